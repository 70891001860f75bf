//! `GET /monobloc/v1/metrics`: the pool and its disks for a monitoring system, in the text format of
//! Prometheus (version 0.0.4).

use std::fmt::Write as _;
use std::sync::Arc;

use hyper::header::{CONTENT_TYPE, HeaderValue};
use store::Usage;
use store::members::{Member, State};

use super::{history, state};
use crate::engine::Engine;
use crate::http::{Response, Result, blocking, whole};

pub(crate) async fn metrics(engine: &Arc<Engine>) -> Result<Response> {
    let store = engine.store().await?;
    let text = blocking(move || -> Result<String> {
        let state = state(&store)?;
        let repaired = |id| history::read(&store).of_disk(id);
        Ok(told(&state, &store.usage()?, &|id| {
            let found = repaired(id);
            (found.repaired, found.lost)
        }))
    })
    .await?;
    let mut response = hyper::Response::new(whole(text));
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    Ok(response)
}

/// `scrubbed` gives the blocks of a disk that scrubs have repaired, and that were lost.
fn told(state: &State, usage: &Usage, scrubbed: &dyn Fn(u64) -> (u64, u64)) -> String {
    let mut text = String::new();
    let mut tell = |name: &str, kind: &str, help: &str, values: &[(String, u64)]| {
        let _ = writeln!(
            text,
            "# HELP monobloc_{name} {help}\n# TYPE monobloc_{name} {kind}"
        );
        for (labels, value) in values {
            let _ = writeln!(text, "monobloc_{name}{labels} {value}");
        }
    };
    let one = |value: u64| vec![(String::new(), value)];
    let disks = |value: &dyn Fn(&Member) -> u64| -> Vec<(String, u64)> {
        let labelled = state.members.iter().map(|member| (labels(member), value(member)));
        labelled.collect()
    };
    tell("pool_bytes", "gauge", "Size of the pool.", &one(usage.total));
    tell("pool_free_bytes", "gauge", "Room in the pool.", &one(usage.free));
    tell(
        "pool_survives_disks",
        "gauge",
        "How many more disks may be lost without a loss of data.",
        &one(u64::from(state.survives)),
    );
    tell(
        "disk_missing",
        "gauge",
        "1 where a disk of the pool is not there.",
        &disks(&|member| u64::from(member.missing)),
    );
    tell(
        "disk_bytes",
        "gauge",
        "Size of a disk of the pool.",
        &disks(&|member| member.size),
    );
    for (name, help, value) in ERRORS {
        tell(name, "counter", help, &disks(&|member| value(member)));
    }
    tell(
        "disk_scrub_repaired_total",
        "counter",
        "Blocks of a disk that scrubs have repaired.",
        &disks(&|member| scrubbed(member.id).0),
    );
    tell(
        "disk_scrub_lost_total",
        "counter",
        "Blocks of a disk that scrubs found lost.",
        &disks(&|member| scrubbed(member.id).1),
    );
    text
}

type Count = (&'static str, &'static str, fn(&Member) -> u64);

const ERRORS: [Count; 3] = [
    (
        "disk_read_errors_total",
        "Reads of a disk that have failed.",
        |member| member.errors.read,
    ),
    (
        "disk_write_errors_total",
        "Writes to a disk that have failed.",
        |member| member.errors.write.saturating_add(member.errors.flush),
    ),
    (
        "disk_damaged_total",
        "Blocks that came back from a disk damaged or too old.",
        |member| member.errors.damaged,
    ),
];

fn labels(member: &Member) -> String {
    format!(
        "{{id=\"{}\",disk=\"{}\",serial=\"{}\"}}",
        member.id,
        escaped(member.name.as_deref().unwrap_or_default()),
        escaped(&member.serial)
    )
}

fn escaped(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_disk_has_a_line_of_each_kind_with_its_serial_number() {
        let member = |id, serial: &str, missing| Member {
            id,
            name: Some("vda".to_owned()),
            serial: serial.to_owned(),
            missing,
            encrypted: false,
            size: 4096,
            used: 0,
            errors: store::members::Errors {
                read: 3,
                ..Default::default()
            },
        };
        let state = State {
            uuid: "u".to_owned(),
            members: vec![member(1, "a\"b", false), member(2, "c", true)],
            data: Vec::new(),
            metadata: Vec::new(),
            survives: 1,
        };
        let usage = Usage { total: 10, free: 4 };
        let text = told(&state, &usage, &|id| (id * 10, 0));
        for line in [
            "monobloc_pool_free_bytes 4",
            "monobloc_pool_survives_disks 1",
            "# TYPE monobloc_disk_missing gauge",
            "monobloc_disk_missing{id=\"1\",disk=\"vda\",serial=\"a\\\"b\"} 0",
            "monobloc_disk_missing{id=\"2\",disk=\"vda\",serial=\"c\"} 1",
            "monobloc_disk_read_errors_total{id=\"2\",disk=\"vda\",serial=\"c\"} 3",
            "monobloc_disk_scrub_repaired_total{id=\"2\",disk=\"vda\",serial=\"c\"} 20",
        ] {
            assert!(text.lines().any(|told| told == line), "{line} is not in\n{text}");
        }
    }
}
