//! `GET /containers/json`.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

use serde_json::{Value, json};
use store::{ImageId, Store};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::container::{Container, Record, Status};
use super::health::HealthStatus;
use super::mounts;
use super::pause::is_paused;
use super::show::mode;
use crate::engine::Engine;
use crate::http::{ApiError, Request, Response, Result, blocking, ok};
use crate::networks;
use crate::query::Filters;

const FILTERS: &[&str] = &[
    "ancestor", "before", "exited", "expose", "health", "id", "is-task", "label", "name", "network",
    "publish", "since", "status", "volume",
];

pub(crate) async fn list(engine: &Arc<Engine>, req: &Request) -> Result<Response> {
    let filters = req.query.filters()?;
    filters.only(FILTERS)?;
    let limit = req
        .query
        .number::<i64>("limit")?
        .and_then(|limit| usize::try_from(limit).ok())
        .filter(|limit| *limit > 0);
    let everything = req.query.flag("all")
        || limit.is_some()
        || !filters.get("status").is_empty()
        || !filters.get("exited").is_empty();
    let containers = engine.containers().await?;
    let bound = |key: &str| -> Result<Option<String>> {
        let created = filters
            .get(key)
            .first()
            .map(|name| containers.find(name).map(|found| found.record().created));
        created.transpose()
    };
    let (before, since) = (bound("before")?, bound("since")?);
    let mut records: Vec<(Arc<Container>, Record)> = containers
        .all()
        .into_iter()
        .map(|container| (container.clone(), container.record()))
        .collect();
    // Times have one form, so that their text sorts as they do.
    records.sort_by(|(_, a), (_, b)| b.created.cmp(&a.created));
    let ancestors = ancestors(engine, &filters).await?;
    let (published, exposed) = (
        port_ranges(&filters, "publish")?,
        port_ranges(&filters, "expose")?,
    );
    let store = engine.store().await?;
    let mut shown = Vec::new();
    for (_, record) in &records {
        let in_time = before.as_ref().is_none_or(|before| record.created < *before)
            && since.as_ref().is_none_or(|since| record.created > *since);
        let running = matches!(record.status, Status::Running | Status::Restarting);
        let of_image = filters.get("ancestor").is_empty() || ancestors.contains(&record.image);
        if (everything || running) && in_time && of_image && matches(engine, record, &filters)? {
            let one = summary(engine, &store, record);
            let any = published.is_empty() && exposed.is_empty();
            if any || has_port(&one["Ports"], &published, &exposed) {
                shown.push(one);
            }
        }
        if limit.is_some_and(|limit| shown.len() >= limit) {
            break;
        }
    }
    if req.query.flag("size") {
        let ids: Vec<String> = shown
            .iter()
            .filter_map(|one| Some(one["Id"].as_str()?.to_owned()))
            .collect();
        for (one, (own, whole)) in shown.iter_mut().zip(sizes(&store, ids).await?) {
            one["SizeRw"] = own.into();
            one["SizeRootFs"] = whole.into();
        }
    }
    ok(&shown)
}

/// Ports of one protocol, from the first to the last.
type Ports = (RangeInclusive<u64>, String);

/// `80`, `80/udp` or `8000-8080/tcp`.
fn port_ranges(filters: &Filters, key: &str) -> Result<Vec<Ports>> {
    let parse = |text: &String| {
        let (numbers, kind) = text.split_once('/').unwrap_or((text, "tcp"));
        let (first, last) = numbers.split_once('-').unwrap_or((numbers, numbers));
        match (first.parse::<u16>(), last.parse::<u16>()) {
            (Ok(first), Ok(last)) if first <= last => Ok((first.into()..=last.into(), kind.to_owned())),
            _ => Err(ApiError::bad_request(format!(
                "invalid filter '{key}={text}': it is no port and no range of ports"
            ))),
        }
    };
    filters.get(key).iter().map(parse).collect()
}

/// Whether one of the ports is published so, or exposed so.
fn has_port(ports: &Value, published: &[Ports], exposed: &[Ports]) -> bool {
    let is_in = |port: &Value, number: &str, ranges: &[Ports]| {
        let number = port[number].as_u64();
        let fits = |(range, kind): &Ports| {
            number.is_some_and(|number| range.contains(&number)) && port["Type"] == **kind
        };
        ranges.iter().any(fits)
    };
    let mut ports = ports.as_array().into_iter().flatten();
    ports.any(|port| is_in(port, "PublicPort", published) || is_in(port, "PrivatePort", exposed))
}

/// Bytes of each container's own, and with its image: of the content of its files, as Docker counts. The
/// quota's count is of something else, as it leaves out what a copied file still shares with the image and
/// has the file system's own records. One whose files cannot be read counts nothing.
pub(crate) async fn sizes(store: &Arc<Store>, ids: Vec<String>) -> Result<Vec<(u64, u64)>> {
    let store = store.clone();
    blocking(move || {
        let images: HashMap<String, ImageId> = store.roots().into_iter().collect();
        let size = |id: &String| {
            let own = store.root_size(id).unwrap_or(0);
            let image = images.get(id).and_then(|image| store.image(image));
            (own, own + image.map_or(0, |image| image.size))
        };
        Ok::<_, ApiError>(ids.iter().map(size).collect())
    })
    .await
}

/// Ids of the images that the filter means.
async fn ancestors(engine: &Arc<Engine>, filters: &Filters) -> Result<Vec<String>> {
    let store = engine.store().await?;
    let ids = filters.get("ancestor").iter();
    Ok(ids
        .filter_map(|name| store.resolve(name).ok())
        .map(|image| image.id.to_string())
        .collect())
}

fn matches(engine: &Engine, record: &Record, filters: &Filters) -> Result<bool> {
    const STATUSES: &[&str] = &[
        "created",
        "restarting",
        "running",
        "removing",
        "paused",
        "exited",
        "dead",
    ];
    if let Some(bad) = filters
        .get("status")
        .iter()
        .find(|status| !STATUSES.contains(&status.as_str()))
    {
        return Err(ApiError::bad_request(format!("invalid filter 'status={bad}'")));
    }
    for code in filters.get("exited") {
        let _: i32 = code
            .parse()
            .map_err(|_| ApiError::bad_request(format!("invalid filter 'exited={code}'")))?;
    }
    // Docker takes regular expressions; the parts that clients send are a text and its two anchors.
    let named = |wanted: &str| {
        let (start, text) = wanted
            .strip_prefix('^')
            .map_or((false, wanted), |rest| (true, rest));
        let (end, text) = text.strip_suffix('$').map_or((false, text), |rest| (true, rest));
        let text = text.strip_prefix('/').unwrap_or(text);
        match (start, end) {
            (true, true) => record.name == text,
            (true, false) => record.name.starts_with(text),
            (false, true) => record.name.ends_with(text),
            (false, false) => record.name.contains(text),
        }
    };
    let on = |wanted: &str| {
        let joined = record.joined();
        let named = |name: &str, id: &str| wanted == name || wanted == id;
        record.host.network_mode == wanted || joined.iter().any(|joined| named(&joined.name, &joined.id))
    };
    Ok(filters.matches("id", |id| record.id.starts_with(id))
        && filters.matches("name", named)
        && filters.matches("status", |status| state(engine, record) == status)
        && filters.matches("health", |wanted| {
            health(engine, record).map_or("none", HealthStatus::text) == wanted
        })
        && filters.matches("exited", |code| {
            record.status == Status::Exited && record.exit_code.to_string() == code
        })
&& filters.matches("network", on)
        // No container is a swarm's task.
        && filters.matches("is-task", |wanted| matches!(wanted, "0" | "false"))
        && filters.matches("volume", |wanted| mounts::names(record, wanted))
        && filters.labels(|key| record.config.labels.get(key).map(String::as_str)))
}

pub(crate) fn summary(engine: &Engine, store: &Store, record: &Record) -> Value {
    let network = engine.network_now();
    let bound = network
        .map(|network| network.published(&record.id))
        .unwrap_or_default();
    let mut ports: Vec<Value> = bound
        .iter()
        .map(|port| {
            json!({"IP": port.host_ip.to_string(), "PrivatePort": port.zone_port,
                "PublicPort": port.host_port, "Type": port.protocol.name()})
        })
        .collect();
    if record.status == Status::Running {
        for key in record.config.exposed_ports.keys() {
            let (number, kind) = key.split_once('/').unwrap_or((key, "tcp"));
            let number: u16 = number.parse().unwrap_or(0);
            if !bound
                .iter()
                .any(|port| port.zone_port == number && port.protocol.name() == kind)
            {
                ports.push(json!({"PrivatePort": number, "Type": kind}));
            }
        }
    }
    let state = state(engine, record);
    let paused = state == PAUSED;
    let mut text = status(record, OffsetDateTime::now_utc());
    if paused {
        text.push_str(" (Paused)");
    } else if let Some(health) = health(engine, record) {
        text.push_str(match health {
            HealthStatus::Starting => " (health: starting)",
            HealthStatus::Healthy => " (healthy)",
            HealthStatus::Unhealthy => " (unhealthy)",
        });
    }
    json!({
        "Id": record.id, "Names": [format!("/{}", record.name)],
        "Image": record.config.image, "ImageID": record.image,
        "Command": record.command().join(" "),
        "Created": parse(&record.created).unix_timestamp(),
        "Ports": ports, "Labels": record.config.labels,
        "State": state, "Status": text,
        "HostConfig": {"NetworkMode": mode(&record.host)},
        "NetworkSettings": {"Networks": networks::show(engine, record)},
        "Mounts": mounts::show(store, record),
    })
}

const PAUSED: &str = "paused";

fn state(engine: &Engine, record: &Record) -> &'static str {
    if record.status == Status::Running && is_paused(engine, &record.id) {
        PAUSED
    } else {
        record.status.text()
    }
}

fn health(engine: &Engine, record: &Record) -> Option<HealthStatus> {
    if record.status != Status::Running {
        return None;
    }
    let found = engine.containers.find(&record.id).ok()?;
    found.health().map(|health| health.status)
}

fn parse(time: &str) -> OffsetDateTime {
    OffsetDateTime::parse(time, &Rfc3339).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

/// `Up 3 minutes`, `Exited (0) 2 hours ago`.
fn status(record: &Record, now: OffsetDateTime) -> String {
    match record.status {
        Status::Created => "Created".to_owned(),
        Status::Running => format!("Up {}", duration(now - parse(&record.started))),
        Status::Restarting => {
            format!(
                "Restarting ({}) {} ago",
                record.exit_code,
                duration(now - parse(&record.finished))
            )
        }
        Status::Removing => "Removal In Progress".to_owned(),
        Status::Dead => "Dead".to_owned(),
        Status::Exited => format!(
            "Exited ({}) {} ago",
            record.exit_code,
            duration(now - parse(&record.finished))
        ),
    }
}

/// A length of time as Docker says it.
fn duration(length: time::Duration) -> String {
    match (
        length.whole_seconds(),
        length.whole_minutes(),
        length.whole_hours(),
    ) {
        (..1, ..) => "Less than a second".to_owned(),
        (1, ..) => "1 second".to_owned(),
        (seconds @ ..60, ..) => format!("{seconds} seconds"),
        (_, 1, _) => "About a minute".to_owned(),
        (_, minutes @ ..60, _) => format!("{minutes} minutes"),
        (.., 1) => "About an hour".to_owned(),
        (.., hours @ ..48) => format!("{hours} hours"),
        (.., hours @ ..336) => format!("{} days", hours / 24),
        (.., hours @ ..1440) => format!("{} weeks", hours / 24 / 7),
        (.., hours @ ..17520) => format!("{} months", hours / 24 / 30),
        (.., hours) => format!("{} years", hours / 24 / 365),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time_are_said_as_docker_says_them() {
        for (seconds, text) in [
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (150, "2 minutes"),
            (4000, "About an hour"),
            (3 * 3600, "3 hours"),
            (3 * 86400, "3 days"),
            (21 * 86400, "3 weeks"),
        ] {
            assert_eq!(duration(time::Duration::seconds(seconds)), text);
        }
    }
}
