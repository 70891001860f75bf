//! The appliance's `/init`: built by cargo from the project's own sources, and proved to be static,
//! because there is no dynamic loader in the appliance that could start it otherwise.

use std::env;
use std::io::{BufRead as _, BufReader, Read as _, Seek as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use goblin::elf::{Elf, header::EM_X86_64, program_header::PT_INTERP};
use serde::Deserialize;

use crate::command;
use crate::progress::{Progress, Step};

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Builds the package `init` of a workspace; where nothing changed, cargo sees that by itself.
pub(crate) fn build(workspace: &Path, progress: &dyn Progress) -> anyhow::Result<PathBuf> {
    ensure!(
        workspace.join("init/Cargo.toml").is_file(),
        "The sources of /init are not in {}; run monobloc in a checkout of the project",
        workspace.display()
    );
    let step = progress.step("build /init");
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut cargo = Command::new(cargo);
    cargo
        .current_dir(workspace)
        .args([
            "build",
            "--profile=appliance",
            "--package=init",
            "--bin=init",
            "--target",
            TARGET,
        ])
        // What is built as JSON, what is wrong as text.
        .arg("--message-format=json-render-diagnostics")
        .arg("--config")
        .arg(remapped_paths(workspace))
        // These would take the place of the project's own flags, which make the binary static.
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    let path = run(&mut cargo, step.as_ref()).context("Cannot build /init")?;
    step.finish();
    path.context("cargo did not say where it put /init")
}

/// Runs cargo and tells what it has built as it goes; returns where `/init` is.
fn run(cargo: &mut Command, step: &dyn Step) -> anyhow::Result<Option<PathBuf>> {
    // A file takes the errors, because nobody reads them while the other pipe is read.
    let mut stderr = tempfile::tempfile().context("Cannot make a temporary file")?;
    let mut child = cargo
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(stderr.try_clone()?)
        .spawn()
        .map_err(|error| command::not_started("cargo", error))?;
    let mut found = None;
    for line in BufReader::new(child.stdout.take().context("cargo has no output")?).lines() {
        if let Some(message) = Message::read(&line?) {
            step.message(&message.target.name);
            step.inc(1);
            found = message.executable_of_init().or(found);
        }
    }
    let status = child.wait()?;
    if !status.success() {
        let mut text = String::new();
        stderr.rewind()?;
        stderr.read_to_string(&mut text)?;
        return Err(command::failed("cargo build", status, &text).into());
    }
    Ok(found)
}

/// Cargo's setting that keeps the places of sources out of the binary's panic messages: the image
/// must not depend on where it was made.
fn remapped_paths(workspace: &Path) -> String {
    let home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")));
    let flags: Vec<String> = [(home.as_deref(), "/cargo"), (Some(workspace), "/monobloc")]
        .into_iter()
        .filter_map(|(from, to)| Some(format!("--remap-path-prefix={}={to}", from?.to_str()?)))
        .map(|flag| toml::Value::String(flag).to_string())
        .collect();
    format!("target.{TARGET}.rustflags=[{}]", flags.join(","))
}

/// One line of what `cargo build --message-format=json` prints, of a crate that is built.
#[derive(Deserialize)]
struct Message {
    executable: Option<PathBuf>,
    target: Target,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}

impl Message {
    fn read(line: &str) -> Option<Self> {
        serde_json::from_str(line).ok()
    }

    fn executable_of_init(self) -> Option<PathBuf> {
        self.executable.filter(|_| self.target.name == "init")
    }
}

/// Checks that the kernel can start a program without anything else on disk.
///
/// # Errors
/// It is no x86-64 program, or it wants an interpreter or libraries, which are named.
pub(crate) fn prove_static(bytes: &[u8]) -> anyhow::Result<()> {
    let elf = Elf::parse(bytes).context("/init is no program (ELF)")?;
    ensure!(
        elf.header.e_machine == EM_X86_64 && elf.is_64,
        "/init is not for x86-64"
    );
    let interpreter = elf
        .program_headers
        .iter()
        .any(|header| header.p_type == PT_INTERP);
    ensure!(
        !interpreter,
        "/init wants the dynamic loader {}; build it with `-C target-feature=+crt-static` and an explicit target",
        elf.interpreter.unwrap_or("of the system")
    );
    ensure!(
        elf.libraries.is_empty(),
        "/init wants the libraries {}; it must be static",
        elf.libraries.join(", ")
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Silent;

    #[test]
    fn a_static_program_is_taken() {
        let own = std::fs::read("/proc/self/exe").unwrap();
        prove_static(&own).expect("the tests are linked statically, as everything here is");
    }

    #[test]
    fn a_dynamic_program_is_refused_with_what_it_wants() {
        let bash = std::fs::read("/bin/bash").unwrap();
        let error = prove_static(&bash).unwrap_err().to_string();
        assert!(error.contains("ld-linux-x86-64.so.2"), "{error}");
        assert!(prove_static(b"#!/bin/sh\n").is_err());
    }

    #[test]
    fn the_binary_is_found_in_cargos_messages() {
        let messages = "{\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"sys\"},\"executable\":null}\nnoise\n\
                        {\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"init\"},\"executable\":\"/t/init\"}\n";
        let found: Vec<_> = messages
            .lines()
            .filter_map(Message::read)
            .filter_map(Message::executable_of_init)
            .collect();
        assert_eq!(found, [PathBuf::from("/t/init")]);
        assert!(Message::read("{\"reason\":\"build-finished\"}").is_none());
    }

    /// A workspace whose `init` is one small file.
    fn workspace(source: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write(
            "Cargo.toml",
            "[workspace]\nmembers = [\"init\"]\nresolver = \"3\"\n[profile.appliance]\ninherits = \"release\"\n",
        );
        write(
            "init/Cargo.toml",
            "[package]\nname = \"init\"\nversion = \"0.0.0\"\nedition = \"2024\"\n",
        );
        write("init/src/main.rs", source);
        let flags = "rustflags = [\"-C\", \"target-feature=+crt-static\"]\n";
        let target = dir.path().join("target");
        let config = format!("[build]\ntarget-dir = {target:?}\n[target.{TARGET}]\n{flags}");
        write(".cargo/config.toml", &config);
        dir
    }

    #[test]
    fn the_binary_that_cargo_builds_is_static_and_does_not_tell_where_it_was_built() {
        let dir =
            workspace("fn main() { let n = std::env::args().count(); assert!(n > 7, \"{}\", file!()); }");
        let path = build(dir.path(), &Silent).unwrap();
        let bytes = std::fs::read(path).unwrap();
        prove_static(&bytes).unwrap();
        let place = dir.path().to_str().unwrap().as_bytes();
        assert!(
            !bytes.windows(place.len()).any(|part| part == place),
            "the folder's name is in the binary"
        );
    }

    #[test]
    fn sources_that_do_not_compile_are_told_in_the_compilers_words() {
        let dir = workspace("fn main() { there_is_no_such_thing(); }");
        let error = format!("{:#}", build(dir.path(), &Silent).unwrap_err());
        assert!(
            error.contains("Cannot build /init") && error.contains("there_is_no_such_thing"),
            "{error}"
        );
    }

    #[test]
    fn a_folder_without_the_sources_is_told() {
        let error = build(Path::new("/nowhere"), &Silent).unwrap_err().to_string();
        assert!(error.contains("not in /nowhere"), "{error}");
    }

    #[test]
    fn a_path_with_odd_letters_stays_one_setting() {
        let setting = remapped_paths(Path::new("/a \"b\\c"));
        let value: toml::Table = setting
            .parse()
            .unwrap_or_else(|error| panic!("{setting}: {error}"));
        let flags = value["target"][TARGET]["rustflags"].as_array().unwrap();
        assert_eq!(
            flags.last().unwrap().as_str(),
            Some("--remap-path-prefix=/a \"b\\c=/monobloc")
        );
    }
}
