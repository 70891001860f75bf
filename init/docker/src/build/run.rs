//! `RUN`: a container of the stage's image runs a command, and what it changes becomes a layer.

use std::sync::Arc;

use serde_json::{Map, Value, json};
use store::{History, Store};

use super::Options;
use super::dockerfile::Instruction;
use super::stage::Stage;
use crate::containers::{self, Container, MADE};
use crate::engine::Engine;
use crate::http::{ApiError, BodySender, Result};
use crate::images::short;

/// What runs: a list as it is, anything else by the shell.
pub(super) fn command(stage: &Stage, instruction: &Instruction) -> Result<Vec<String>> {
    instruction
        .only_flags(&["network"])
        .map_err(ApiError::not_implemented)?;
    if let Some(list) = instruction.list() {
        return Ok(list);
    }
    let mut script = instruction.rest.clone();
    match instruction.heredocs.as_slice() {
        [] => {}
        [only] if is_mark(&script, &only.name) => {
            if only.content.starts_with("#!") {
                return Err(ApiError::not_implemented(
                    "Monobloc runs here-documents by the shell, not by the program that their first line names; name that program in RUN instead.",
                ));
            }
            script.clone_from(&only.content);
        }
        all => {
            for heredoc in all {
                script = format!("{script}\n{}{}", heredoc.content, heredoc.name);
            }
        }
    }
    let mut command = stage.shell();
    command.push(script);
    Ok(command)
}

/// Whether the text is just `<<NAME`, in any of its forms.
fn is_mark(text: &str, name: &str) -> bool {
    let bare: String = text.chars().filter(|c| !matches!(c, '"' | '\'')).collect();
    bare == format!("<<{name}") || bare == format!("<<-{name}")
}

/// The create request of the container.
pub(super) fn request(
    stage: &Stage,
    options: &Options,
    instruction: &Instruction,
    command: &[String],
) -> Value {
    let own = &stage.config.config;
    let set = |name: &str| own.env.iter().any(|entry| entry.split('=').next() == Some(name));
    let args = stage.args.iter().filter(|(name, _)| !set(name));
    let env: Vec<String> = args.map(|(name, value)| format!("{name}={value}")).collect();
    let mut host = options.host.clone();
    if let Some(network) = instruction.flag("network") {
        host.insert("NetworkMode".to_owned(), network.into());
    }
    let image = stage.image.map(|image| image.to_string());
    json!({
        "Image": image, "Entrypoint": [""], "Cmd": command, "Env": env,
        "Healthcheck": {"Test": ["NONE"]}, "HostConfig": Value::Object(host),
    })
}

/// Runs it to its end, tells what it says, and gives the container, which is the caller's to remove.
pub(super) async fn run(
    engine: &Arc<Engine>,
    request: Value,
    sender: &BodySender,
) -> Result<(Arc<Container>, i32)> {
    let container = containers::make(engine, request).await?;
    let id = short(&container.id);
    let _ = sender
        .send_json(&json!({ "stream": format!(" ---> Running in {id}\n") }))
        .await;
    let ended = tokio::select! {
        ended = containers::run_to_end(engine, &container, sender) => ended,
        () = sender.closed() => Err(ApiError::bad_request("The client has gone.")),
    };
    match ended {
        Ok(code) => Ok((container, code)),
        Err(error) => {
            let _ = containers::discard(engine, &container).await;
            Err(error)
        }
    }
}

/// Takes the container's changes into the stage.
pub(super) fn keep(store: &Store, stage: &mut Stage, container: &Container, text: &str) -> Result<()> {
    let now = zones::log::now();
    let made = History {
        created: Some(now.clone()),
        created_by: Some(text.to_owned()),
        ..History::default()
    };
    let mut config = stage.config.clone();
    config.created = Some(now);
    let image = store.moment(&container.id)?.commit(config, made, MADE, None)?;
    stage.take(&image);
    Ok(())
}

/// Settings for containers, as the query has them.
pub(super) fn host_config(query: &crate::query::Query) -> Result<Map<String, Value>> {
    let mut host = Map::new();
    for (key, field) in [
        ("memory", "Memory"),
        ("memswap", "MemorySwap"),
        ("cpushares", "CpuShares"),
        ("cpuperiod", "CpuPeriod"),
        ("cpuquota", "CpuQuota"),
        ("shmsize", "ShmSize"),
    ] {
        if let Some(number) = query.number::<i64>(key)?.filter(|number| *number != 0) {
            host.insert(field.to_owned(), number.into());
        }
    }
    for (key, field) in [
        ("cpusetcpus", "CpusetCpus"),
        ("cpusetmems", "CpusetMems"),
        ("networkmode", "NetworkMode"),
    ] {
        if let Some(text) = query.get(key).filter(|text| !text.is_empty()) {
            host.insert(field.to_owned(), text.into());
        }
    }
    if let Some(hosts) = query.get("extrahosts").filter(|text| !text.is_empty()) {
        let hosts: Vec<&str> = hosts.split(',').collect();
        host.insert("ExtraHosts".to_owned(), json!(hosts));
    }
    if let Some(limits) = query.get("ulimits").filter(|text| !matches!(*text, "" | "null")) {
        let limits: Value = serde_json::from_str(limits).map_err(|error| {
            ApiError::bad_request(format!("Parameter ulimits is not the JSON expected: {error}."))
        })?;
        host.insert("Ulimits".to_owned(), limits);
    }
    Ok(host)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::dockerfile::parse;

    fn of(text: &str) -> Result<Vec<String>> {
        let file = parse(&format!("FROM a\n{text}")).unwrap();
        command(&Stage::empty(None), &file.instructions[1])
    }

    #[test]
    fn commands_are_lists_or_lines_of_the_shell() {
        assert_eq!(of("RUN [\"a\", \"b c\"]").unwrap(), ["a", "b c"]);
        assert_eq!(of("RUN a && b").unwrap(), ["/bin/sh", "-c", "a && b"]);
        assert_eq!(of("RUN <<EOF\na\nb\nEOF\n").unwrap()[2], "a\nb\n");
        assert_eq!(
            of("RUN cat <<EOF > x\na\nEOF\n").unwrap()[2],
            "cat <<EOF > x\na\nEOF"
        );
        assert!(of("RUN <<EOF\n#!/usr/bin/python\nEOF\n").is_err());
        assert!(of("RUN --mount=type=cache,target=/x a").is_err());
    }
}
