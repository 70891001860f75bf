//! `GET /containers/{id}/top`: the processes of a container, in the columns that `ps` would show.
//!
//! There is no `ps` in the appliance; the columns are made of what proc(5) tells. User ids are those
//! within the container.

use std::sync::Arc;

use serde_json::json;
use time::OffsetDateTime;
use zones::stats::ProcessInfo;

use crate::engine::Engine;
use crate::http::{ApiError, Request, Response, Result, blocking, ok};
use crate::system;

/// Clock ticks of a second, on every Linux of this kind (`sysconf(_SC_CLK_TCK)`).
const TICKS: u64 = 100;

/// What a column is made of.
struct Row<'a> {
    process: &'a ProcessInfo,
    user: String,
    /// Seconds since the machine's boot, and bytes of its memory.
    uptime: u64,
    memory: u64,
}

type Column = (&'static str, fn(&Row<'_>) -> String);

const FULL: &[&str] = &["uid", "pid", "ppid", "c", "stime", "tty", "time", "cmd"];
const BSD: &[&str] = &[
    "user", "pid", "%cpu", "%mem", "vsz", "rss", "tty", "stat", "start", "time", "command",
];

pub(crate) async fn top(engine: &Arc<Engine>, req: &Request) -> Result<Response> {
    let container = engine.containers().await?.find(&req.name)?;
    container.running()?;
    let names = columns(req.query.get("ps_args").unwrap_or("-ef"))?;
    let columns: Vec<Column> = names.iter().map(|name| column(name)).collect::<Result<_>>()?;
    let (owned, shown, first_id) = (engine.clone(), container.clone(), container.record().first_id);
    let rows = blocking(move || {
        let processes = owned.zones.cgroups().processes(&shown.id)?;
        let (uptime, memory) = (system::uptime() as u64, system::memory().0);
        let rows = processes.iter().map(|process| {
            let user = process.uid.checked_sub(first_id).map_or_else(
                || "-".to_owned(),
                |uid| match uid {
                    0 => "root".to_owned(),
                    uid => uid.to_string(),
                },
            );
            let row = Row {
                process,
                user,
                uptime,
                memory,
            };
            columns
                .iter()
                .map(|(_, cell)| cell(&row))
                .collect::<Vec<String>>()
        });
        let titles: Vec<&str> = columns.iter().map(|(title, _)| *title).collect();
        Ok::<_, zones::Error>(json!({ "Titles": titles, "Processes": rows.collect::<Vec<_>>() }))
    })
    .await?;
    engine.tell("container", "top", &container);
    ok(&rows)
}

/// The columns that arguments of `ps` ask for.
fn columns(arguments: &str) -> Result<Vec<String>> {
    let words: Vec<&str> = arguments.split_whitespace().collect();
    let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    match words.as_slice() {
        [] | ["-ef" | "-e" | "-f" | "-eF" | "ef"] => Ok(owned(FULL)),
        ["aux" | "-aux" | "auxw" | "auxww"] => Ok(owned(BSD)),
        ["-o" | "-eo" | "o" | "--format" | "-Ao", lists @ ..] if !lists.is_empty() => {
            let names = lists.iter().flat_map(|list| list.split(','));
            // A title of one's own may follow a name.
            Ok(names
                .map(|name| name.split('=').next().unwrap_or(name).to_lowercase())
                .collect())
        }
        _ => Err(ApiError::not_implemented(format!(
            "Monobloc has no ps: of its arguments it knows -ef, aux and -o with a list of columns, not {arguments:?}."
        ))),
    }
}

fn column(name: &str) -> Result<Column> {
    let text = |row: &Row<'_>| {
        let process = row.process;
        if process.arguments.is_empty() {
            format!("[{}]", process.name)
        } else {
            process.arguments.join(" ")
        }
    };
    Ok(match name {
        "uid" => ("UID", |row| row.user.clone()),
        "user" | "euser" | "ruser" => ("USER", |row| row.user.clone()),
        "pid" => ("PID", |row| row.process.pid.to_string()),
        "ppid" => ("PPID", |row| row.process.parent.to_string()),
        "c" => ("C", |row| (tenths_of_cpu(row) / 10).to_string()),
        "%cpu" | "pcpu" => ("%CPU", |row| tenths(tenths_of_cpu(row))),
        "%mem" | "pmem" => ("%MEM", |row| {
            tenths(row.process.resident * 1000 / row.memory.max(1))
        }),
        "vsz" | "vsize" => ("VSZ", |row| (row.process.virtual_size >> 10).to_string()),
        "rss" | "rssize" => ("RSS", |row| (row.process.resident >> 10).to_string()),
        "tty" | "tt" | "tname" => ("TTY", |row| match row.process.terminal {
            0 => "?".to_owned(),
            // The minor number of a pseudo terminal (proc_pid_stat(5)).
            number => format!("pts/{}", (number & 0xff) | ((number >> 12) & 0xf_ff00)),
        }),
        "stat" => ("STAT", |row| row.process.state.to_string()),
        "s" | "state" => ("S", |row| row.process.state.to_string()),
        "start" | "stime" | "start_time" => (if name == "start" { "START" } else { "STIME" }, started),
        "time" | "cputime" => ("TIME", |row| {
            let seconds = row.process.cpu_ticks / TICKS;
            format!(
                "{:02}:{:02}:{:02}",
                seconds / 3600,
                seconds / 60 % 60,
                seconds % 60
            )
        }),
        "etimes" => ("ELAPSED", |row| alive(row).to_string()),
        "ni" | "nice" => ("NI", |row| row.process.nice.to_string()),
        "nlwp" | "thcount" => ("NLWP", |row| row.process.threads.to_string()),
        "comm" | "ucmd" => ("COMMAND", |row| row.process.name.clone()),
        "cmd" => ("CMD", text),
        "args" | "command" => ("COMMAND", text),
        other => {
            return Err(ApiError::bad_request(format!(
                "error: unknown user-defined format specifier {other:?}"
            )));
        }
    })
}

fn alive(row: &Row<'_>) -> u64 {
    row.uptime.saturating_sub(row.process.started_ticks / TICKS)
}

fn tenths_of_cpu(row: &Row<'_>) -> u64 {
    row.process.cpu_ticks * 1000 / TICKS / alive(row).max(1)
}

fn tenths(value: u64) -> String {
    format!("{}.{}", value / 10, value % 10)
}

fn started(row: &Row<'_>) -> String {
    let at = OffsetDateTime::now_utc() - time::Duration::seconds(i64::try_from(alive(row)).unwrap_or(0));
    format!("{:02}:{:02}", at.hour(), at.minute())
}

#[cfg(test)]
mod tests {
    use super::{column, columns};

    #[test]
    fn the_arguments_that_clients_send_are_known_and_others_told() {
        assert_eq!(columns("-ef").unwrap().len(), 8);
        assert_eq!(columns("aux").unwrap().len(), 11);
        assert_eq!(columns("-o pid,comm=NAME user").unwrap(), ["pid", "comm", "user"]);
        assert!(columns("--forest").is_err());
        assert!(column("nonsense").is_err());
        for name in columns("-ef").unwrap().iter().chain(&columns("aux").unwrap()) {
            assert!(column(name).is_ok(), "{name}");
        }
    }
}
