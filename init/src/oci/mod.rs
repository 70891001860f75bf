//! The OCI runtime command line (`runtime.md` of the runtime-spec, and what callers of runc and crun
//! expect of it): a bundle is a folder with a `config.json` and a root, and runs as a zone.
//!
//! There is no keeper in this role and nothing that stays: each command is a process of its own. What
//! one leaves to the next is the container's first process, which waits at a named pipe until `start`,
//! and its folder below `--root` ([`state`]).

mod args;
mod config;
mod create;
mod exec;
mod features;
mod hooks;
mod life;
mod mounts;
mod resources;
mod state;
mod zone;

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::OnceLock;

use anyhow::{Context as _, bail};
use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use self::args::{Known, Parsed, flag, value};
use self::create::Connection;

const DEFAULT_ROOT: &str = "/run/monobloc-oci";

const HELP: &str = "\
Usage: init [--root DIR] [--log FILE] [--log-format text|json] COMMAND

  create [--bundle DIR] [--pid-file FILE] [--console-socket PATH] [--preserve-fds N] ID
  start ID
  state ID
  kill [--all] ID [SIGNAL]
  delete [--force] ID
  run [--detach] and the options of create, ID
  exec [--process FILE] [--detach] [--tty] [--cwd DIR] [--env NAME=VALUE] [--user UID[:GID]]
       and the options of create but --bundle, ID [PROGRAM ARGUMENT...]
  list [--format table|json] [--quiet]
  features";

const GLOBAL: &[Known] = &[
    value(&["root"]),
    value(&["log"]),
    value(&["log-format"]),
    value(&["log-level"]),
    value(&["cgroup-manager"]),
    value(&["rootless"]),
    flag(&["systemd-cgroup"]),
    flag(&["debug"]),
    flag(&["version", "v"]),
    flag(&["help", "h"]),
];

const CREATE: &[Known] = &[
    value(&["bundle", "b"]),
    value(&["pid-file"]),
    value(&["console-socket"]),
    value(&["preserve-fds"]),
    flag(&["no-pivot"]),
    flag(&["no-new-keyring"]),
    flag(&["detach", "d"]),
];

/// Where errors are written beside standard error.
struct Log {
    file: Option<File>,
    json: bool,
}

static LOG: OnceLock<Log> = OnceLock::new();

/// Runs one command.
pub(crate) fn run() -> ExitCode {
    match command() {
        Ok(code) => code,
        Err(error) => {
            log("error", &format!("{error:#}"));
            let _ = writeln!(io::stderr(), "{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Tells of something that went wrong and changes nothing.
fn warn(error: &anyhow::Error) {
    log("warning", &format!("{error:#}"));
    let _ = writeln!(io::stderr(), "Warning: {error:#}");
}

fn log(level: &str, text: &str) {
    let Some(Log {
        file: Some(file),
        json,
    }) = LOG.get()
    else {
        return;
    };
    let time = OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default();
    let line = if *json {
        json!({"level": level, "msg": text, "time": time}).to_string()
    } else {
        format!("time=\"{time}\" level={level} msg={text:?}")
    };
    let mut file = file;
    let _ = writeln!(file, "{line}");
}

fn command() -> anyhow::Result<ExitCode> {
    let words = std::env::args_os()
        .skip(1)
        .map(|word| {
            word.into_string()
                .map_err(|word| anyhow::anyhow!("{} is no UTF-8", word.display()))
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    let mut globals = Parsed::leading(words, GLOBAL)?;
    open_log(&globals)?;
    if globals.has("version") {
        let version = env!("CARGO_PKG_VERSION");
        return say(&format!(
            "monobloc version {version}\nspec: {}",
            state::OCI_VERSION
        ));
    }
    if globals.has("help") {
        return say(HELP);
    }
    if globals.has("systemd-cgroup") || globals.get("cgroup-manager") == Some("systemd") {
        bail!("Monobloc makes cgroups itself, without systemd; leave --systemd-cgroup out");
    }
    let root = PathBuf::from(globals.get("root").unwrap_or(DEFAULT_ROOT));
    let command = globals.word("a command")?;
    dispatch(&root, &command, globals.words.into())
}

fn open_log(globals: &Parsed) -> anyhow::Result<()> {
    let json = match globals.get("log-format") {
        None | Some("text") => false,
        Some("json") => true,
        Some(other) => bail!("There is no log format {other:?}; text and json are what there is"),
    };
    let open = |path: &str| {
        let file = File::options().create(true).append(true).open(path);
        file.with_context(|| format!("Cannot open the log {path}"))
    };
    let path = globals.get("log").filter(|path| !path.is_empty());
    let file = path.map(open).transpose()?;
    let _ = LOG.set(Log { file, json });
    Ok(())
}

fn dispatch(root: &Path, command: &str, words: Vec<String>) -> anyhow::Result<ExitCode> {
    /// A command that is about one container and has no more words.
    fn container(words: Vec<String>, known: &[Known]) -> anyhow::Result<(Parsed, String)> {
        let mut parsed = Parsed::all(words, known)?;
        let id = parsed.word("the id of a container")?;
        parsed.end()?;
        Ok((parsed, id))
    }
    match command {
        "create" => {
            let (parsed, id) = container(words, CREATE)?;
            let (bundle, connection) = creation(&parsed)?;
            create::create(root, &id, &bundle, &connection)?;
        }
        "start" => {
            let (_, id) = container(words, &[])?;
            create::start(root, &id)?;
        }
        "run" => {
            let (parsed, id) = container(words, CREATE)?;
            let (bundle, connection) = creation(&parsed)?;
            return life::run(root, &id, &bundle, &connection, parsed.has("detach"));
        }
        "state" => {
            let (_, id) = container(words, &[])?;
            return say(&serde_json::to_string_pretty(&life::state(root, &id)?)?);
        }
        "kill" => {
            let mut parsed = Parsed::all(words, &[flag(&["all", "a"])])?;
            let id = parsed.word("the id of a container")?;
            let signal = parsed.words.pop_front().unwrap_or_else(|| "TERM".to_owned());
            parsed.end()?;
            let number =
                sys::signals::parse(&signal).with_context(|| format!("There is no signal {signal:?}"))?;
            life::kill(root, &id, number, parsed.has("all"))?;
        }
        "delete" => {
            let (parsed, id) = container(words, &[flag(&["force", "f"])])?;
            life::delete(root, &id, parsed.has("force"))?;
        }
        "exec" => {
            let mut parsed = Parsed::leading(words, exec::OPTIONS)?;
            let id = parsed.word("the id of a container")?;
            let connection = connection(&parsed)?;
            return exec::exec(root, &id, parsed, &connection);
        }
        "list" => {
            let known = [value(&["format", "f"]), flag(&["quiet", "q"])];
            let parsed = Parsed::all(words, &known)?;
            parsed.end()?;
            let json = parsed.get("format") == Some("json");
            return say(&life::list(root, json, parsed.has("quiet"))?);
        }
        "features" => return say(&serde_json::to_string_pretty(&features::features())?),
        other => bail!("There is no command {other:?}; see --help"),
    }
    Ok(ExitCode::SUCCESS)
}

fn creation(parsed: &Parsed) -> anyhow::Result<(PathBuf, Connection)> {
    if parsed.has("no-pivot") {
        bail!("Monobloc always leaves the machine's root by pivot_root; leave --no-pivot out");
    }
    if parsed.has("no-new-keyring") {
        bail!("Every zone has a session keyring of its own; leave --no-new-keyring out");
    }
    let bundle = PathBuf::from(parsed.get("bundle").unwrap_or("."));
    Ok((bundle, connection(parsed)?))
}

fn connection(parsed: &Parsed) -> anyhow::Result<Connection> {
    let preserve_fds = parsed.get("preserve-fds").map_or(Ok(0), str::parse);
    Ok(Connection {
        console_socket: parsed
            .get("console-socket")
            .filter(|path| !path.is_empty())
            .map(PathBuf::from),
        pid_file: parsed
            .get("pid-file")
            .filter(|path| !path.is_empty())
            .map(PathBuf::from),
        preserve_fds: preserve_fds.context("--preserve-fds must be a number")?,
    })
}

fn say(text: &str) -> anyhow::Result<ExitCode> {
    writeln!(io::stdout(), "{text}").context("Cannot write to standard output")?;
    Ok(ExitCode::SUCCESS)
}
