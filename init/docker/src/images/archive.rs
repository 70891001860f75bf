//! Images from archives: `docker load` and `docker import`.

use std::sync::Arc;

use serde_json::json;
use store::{ContainerConfig, History, ImageConfig, Reference, Store};
use tokio::io::AsyncRead;
use tokio_util::io::SyncIoBridge;

use crate::engine::Engine;
use crate::http::{ApiError, BodySender, Request, Response, Result, ndjson};

/// `POST /images/load`
pub(super) async fn load(engine: &Arc<Engine>, req: Request) -> Result<Response> {
    let store = engine.store().await?;
    let (sender, response) = ndjson();
    let archive = reader(req);
    let engine = engine.clone();
    tokio::task::spawn_blocking(move || {
        let outcome = store.load(archive, &mut |_| {});
        for image in outcome.iter().flatten() {
            let id = image.id.to_string();
            super::tell(
                &engine,
                "load",
                &id,
                &image
                    .references
                    .first()
                    .map_or_else(|| id.clone(), ToString::to_string),
            );
        }
        let sent = match outcome {
            Ok(loaded) => loaded.iter().try_for_each(|image| {
                if image.references.is_empty() {
                    return sender.blocking_send_json(
                        &json!({ "stream": format!("Loaded image ID: {}\n", image.id) }),
                    );
                }
                image.references.iter().try_for_each(|name| {
                    sender.blocking_send_json(&json!({ "stream": format!("Loaded image: {name}\n") }))
                })
            }),
            Err(error) => sender.blocking_send_json(&failure(&error.to_string())),
        };
        // A client that has gone needs no answer.
        drop(sent);
    });
    Ok(response)
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
    let reference = match req.query.get("repo") {
        None => None,
        Some(repository) => {
            let reference: Reference = repository.parse()?;
            Some(match req.query.get("tag") {
                Some(tag) => reference.with_tag(tag)?,
                None => reference.or_latest(),
            })
        }
    };
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
    tokio::task::spawn_blocking(move || {
        let outcome = store.import(archive, config, reference.as_ref());
        if let Ok(image) = &outcome {
            let id = image.id.to_string();
            super::tell(
                &engine,
                "import",
                &id,
                &reference.map_or_else(|| id.clone(), |name| name.to_string()),
            );
        }
        send_imported(&sender, outcome);
    });
    Ok(response)
}

fn send_imported(sender: &BodySender, outcome: store::Result<store::Image>) {
    let told = match outcome {
        Ok(image) => json!({ "status": image.id.to_string() }),
        Err(error) => failure(&error.to_string()),
    };
    // A client that has gone needs no answer.
    let _ = sender.blocking_send_json(&told);
}

/// The instructions that `docker import --change` takes, of which the plain ones are read.
fn changes<'a>(lines: impl Iterator<Item = &'a str>) -> Result<ContainerConfig> {
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
                    "{other} is not among the changes that an import takes: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, USER, WORKDIR."
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
