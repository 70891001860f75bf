//! Images from archives: `docker load` and `docker import`.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::json;
use store::{ContainerConfig, History, ImageConfig, LoadEvent, Loaded, Reference, Store};
use tokio::io::AsyncRead;
use tokio_util::io::SyncIoBridge;

use super::progress;
use crate::engine::Engine;
use crate::http::{ApiError, BodySender, Request, Response, Result, ndjson};

/// `POST /images/load`
pub(super) async fn load(engine: &Arc<Engine>, req: Request) -> Result<Response> {
    let store = engine.store().await?;
    for platform in req.query.all("platform") {
        super::only_this_platform(platform_of_json(platform)?.as_deref())?;
    }
    let quiet = req.query.flag("quiet");
    let (sender, response) = ndjson();
    let archive = reader(req);
    let engine = engine.clone();
    tokio::task::spawn_blocking(move || {
        // A client that has gone needs no answer; what it sent is loaded all the same.
        let outcome = store.load(archive, &mut |event| {
            if let LoadEvent::Unpacking { diff_id, done, total } = event
                && !quiet
            {
                let _ = sender.blocking_send_json(&progress::line("Loading layer", &diff_id, done, total));
            }
        });
        for image in outcome.iter().flatten() {
            let id = image.id.to_string();
            let name = image
                .references
                .first()
                .map_or_else(|| id.clone(), ToString::to_string);
            super::tell(&engine, "load", &id, &name);
        }
        match outcome {
            Ok(loaded) => loaded.iter().for_each(|image| send_loaded(&sender, image)),
            Err(error) => {
                let _ = sender.blocking_send_json(&failure(&error.to_string()));
            }
        }
    });
    Ok(response)
}

fn send_loaded(sender: &BodySender, image: &Loaded) {
    let mut lines: Vec<String> = image
        .references
        .iter()
        .map(|name| format!("Loaded image: {name}\n"))
        .collect();
    if lines.is_empty() {
        lines.push(format!("Loaded image ID: {}\n", image.id));
    }
    for line in lines {
        let _ = sender.blocking_send_json(&json!({ "stream": line }));
    }
}

/// Since 1.48 a load takes platforms as JSON objects.
fn platform_of_json(text: &str) -> Result<Option<String>> {
    #[derive(Deserialize)]
    struct Platform {
        os: String,
        architecture: String,
    }
    if text.is_empty() {
        return Ok(None);
    }
    serde_json::from_str(text)
        .map(|Platform { os, architecture }| Some(format!("{os}/{architecture}")))
        .map_err(|error| {
            ApiError::bad_request(format!("Parameter platform is not the JSON expected: {error}."))
        })
}

/// The error of a streamed answer, as Docker has it.
pub(super) fn failure(message: &str) -> serde_json::Value {
    json!({ "errorDetail": { "message": message }, "error": message })
}

fn reader(req: Request) -> SyncIoBridge<std::pin::Pin<Box<dyn AsyncRead + Send>>> {
    SyncIoBridge::new(Box::pin(req.into_reader()))
}

/// `POST /images/create?fromSrc=-`: the body is the tar of a root file system.
pub(super) fn import(engine: &Arc<Engine>, store: Arc<Store>, req: Request) -> Result<Response> {
    if req.query.get("fromSrc") != Some("-") {
        return Err(ApiError::not_implemented(
            "Monobloc imports from the client only: `docker import FILE` or `docker import -`.",
        ));
    }
    let reference = wanted_name(&req)?;
    let now = zones::log::now();
    let config = ImageConfig {
        config: changes(req.query.all("changes"))?,
        architecture: "amd64".to_owned(),
        os: "linux".to_owned(),
        created: Some(now.clone()),
        history: vec![History {
            created: Some(now),
            comment: Some(req.query.get("message").unwrap_or("Imported from -").to_owned()),
            ..History::default()
        }],
        ..ImageConfig::default()
    };
    let (sender, response) = ndjson();
    let archive = reader(req);
    let engine = engine.clone();
    tokio::task::spawn_blocking(move || match store.import(archive, config, reference.as_ref()) {
        Ok(image) => {
            let id = image.id.to_string();
            let name = reference.map_or_else(|| id.clone(), |name| name.to_string());
            super::tell(&engine, "import", &id, &name);
            // A client that has gone needs no answer.
            let _ = sender.blocking_send_json(&json!({ "status": id }));
        }
        Err(error) => {
            let _ = sender.blocking_send_json(&failure(&error.to_string()));
        }
    });
    Ok(response)
}

/// The name that a request gives its image by `repo` and `tag`.
pub(super) fn wanted_name(req: &Request) -> Result<Option<Reference>> {
    let Some(repository) = req.query.get("repo").filter(|name| !name.is_empty()) else {
        return Ok(None);
    };
    let reference: Reference = repository.parse()?;
    Ok(Some(match req.query.get("tag").filter(|tag| !tag.is_empty()) {
        Some(tag) => reference.with_tag(tag)?,
        None => reference.or_latest(),
    }))
}

/// The instructions that `docker import --change` and `docker commit --change` take, of which the plain ones are read.
pub(super) fn changes<'a>(lines: impl Iterator<Item = &'a str>) -> Result<ContainerConfig> {
    let mut config = ContainerConfig::default();
    for line in lines.filter(|line| !line.trim().is_empty()) {
        let (instruction, rest) = line
            .trim()
            .split_once(char::is_whitespace)
            .unwrap_or((line.trim(), ""));
        let rest = rest.trim();
        match instruction.to_ascii_uppercase().as_str() {
            "CMD" => config.cmd = Some(command(rest)),
            "ENTRYPOINT" => config.entrypoint = Some(command(rest)),
            "ENV" => config.env.push(rest.to_owned()),
            "LABEL" => {
                let (key, value) = rest.split_once('=').unwrap_or((rest, ""));
                let unquoted = |text: &str| text.trim_matches('"').to_owned();
                config.labels.insert(unquoted(key), unquoted(value));
            }
            "USER" => rest.clone_into(&mut config.user),
            "WORKDIR" => rest.clone_into(&mut config.working_dir),
            "EXPOSE" => {
                let port = if rest.contains('/') {
                    rest.to_owned()
                } else {
                    format!("{rest}/tcp")
                };
                config.exposed_ports.insert(port, json!({}));
            }
            other => {
                return Err(ApiError::bad_request(format!(
                    "{other} is not among the changes that are taken here: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, USER, WORKDIR."
                )));
            }
        }
    }
    Ok(config)
}

/// A JSON list, or a line for the shell.
fn command(text: &str) -> Vec<String> {
    serde_json::from_str(text)
        .unwrap_or_else(|_| vec!["/bin/sh".to_owned(), "-c".to_owned(), text.to_owned()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_changes_of_an_import_are_read_and_others_refused() {
        let read = changes(
            [
                "CMD [\"sh\", \"-l\"]",
                "entrypoint run it",
                "EXPOSE 80",
                "ENV A=b",
            ]
            .into_iter(),
        )
        .unwrap();
        assert_eq!(read.cmd, Some(vec!["sh".to_owned(), "-l".to_owned()]));
        assert_eq!(
            read.entrypoint,
            Some(vec!["/bin/sh".to_owned(), "-c".to_owned(), "run it".to_owned()])
        );
        assert!(read.exposed_ports.contains_key("80/tcp"));
        assert_eq!(read.env, ["A=b"]);
        assert!(
            changes(["RUN rm"].into_iter())
                .unwrap_err()
                .message
                .contains("RUN")
        );
    }
}
