//! `GET /containers/{id}/logs`.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use zones::log::{Entry, Progress, Reader, Selection};

use super::container::{Container, log_path};
use crate::engine::Engine;
use crate::http::{ApiError, ApiVersion, BodySender, Request, Response, Result, blocking, channel};
use crate::query::Query;
use crate::streams::frame;

/// From this version on the answer says whether it is frames.
const TYPED: ApiVersion = ApiVersion(1, 42);
/// How long one who follows up to a moment waits for what was said just before it.
const AFTERTHOUGHT: Duration = Duration::from_secs(1);
pub(crate) const RAW: &str = "application/vnd.docker.raw-stream";
pub(crate) const FRAMES: &str = "application/vnd.docker.multiplexed-stream";

/// The content type of a stream for a client of this version.
pub(crate) fn content_type(version: ApiVersion, terminal: bool) -> &'static str {
    if version >= TYPED && !terminal {
        FRAMES
    } else {
        RAW
    }
}

pub(crate) async fn logs(engine: &Arc<Engine>, req: &Request) -> Result<Response> {
    let container = engine.containers().await?.find(&req.name)?;
    let store = engine.store().await?;
    let selection = selection(&req.query)?;
    if !selection.stdout && !selection.stderr {
        return Err(ApiError::bad_request(
            "Bad parameters: you must choose at least one stream",
        ));
    }
    let record = container.record();
    if !container.keeps_log() {
        return Err(ApiError::not_implemented(
            "configured logging driver does not support reading",
        ));
    }
    let follow = req.query.flag("follow");
    let terminal = record.config.tty;
    let form = Form {
        timestamps: req.query.flag("timestamps"),
        details: req
            .query
            .flag("details")
            .then(|| record.host.log_config.details(&record)),
        terminal,
    };
    let path = log_path(&store, &container.id)?;
    // Before the first look into the file: nothing that comes between is missed.
    let progress = container.log.subscribe();
    let reader = blocking(move || Reader::open(&path, selection).map_err(unreadable)).await?;
    let until = selection.until;
    let (sender, body) = channel();
    tokio::spawn(async move {
        let telling = tell(reader, progress, follow, form, &sender, &container);
        tokio::select! {
            // The client goes, or the pool fails: either way the answer ends.
            _ = telling => {}
            () = sender.closed() => {}
            // Nothing that comes later is wanted.
            () = come(until), if follow => {}
        }
    });
    let mut response = hyper::Response::new(body);
    let kind = content_type(req.version, terminal);
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    Ok(response)
}

pub(crate) fn unreadable(error: io::Error) -> ApiError {
    ApiError::internal(format!("Cannot read the container's log: {error}."))
}

/// Returns when a moment has come, and what was said up to then has had time to be written.
async fn come(moment: Option<i128>) {
    let Some(moment) = moment else {
        return std::future::pending().await;
    };
    let left = moment - OffsetDateTime::now_utc().unix_timestamp_nanos();
    let left = Duration::from_nanos(u64::try_from(left.max(0)).unwrap_or(u64::MAX));
    tokio::time::sleep(left.saturating_add(AFTERTHOUGHT)).await;
}

struct Form {
    timestamps: bool,
    /// What the log's options name, before each line.
    details: Option<String>,
    terminal: bool,
}

impl Form {
    fn write(&self, entry: &Entry, into: &mut Vec<u8>) {
        let mut line = Vec::with_capacity(entry.bytes.len() + 40);
        if self.timestamps {
            line.extend_from_slice(entry.timestamp().as_bytes());
            line.push(b' ');
        }
        if let Some(details) = &self.details {
            line.extend_from_slice(details.as_bytes());
            line.push(b' ');
        }
        line.extend_from_slice(&entry.bytes);
        if self.terminal {
            into.append(&mut line);
        } else {
            into.extend_from_slice(&frame(entry.stream, &line));
        }
    }
}

async fn tell(
    mut reader: Reader,
    mut progress: tokio::sync::watch::Receiver<Progress>,
    follow: bool,
    form: Form,
    sender: &BodySender,
    container: &Container,
) -> Result<()> {
    let mut life = container.life.subscribe();
    loop {
        // Taken before reading: what is appended after this is notified again.
        let ended = progress.borrow_and_update().ended;
        loop {
            let (entries, back) = next_entries(reader).await?;
            reader = back;
            if entries.is_empty() {
                break;
            }
            let mut bytes = Vec::new();
            entries.iter().for_each(|entry| form.write(entry, &mut bytes));
            let gone = |_| ApiError::internal("The client has gone.");
            sender.send(Bytes::from(bytes)).await.map_err(gone)?;
        }
        // A container that restarts says more, unless it never ran or stays down.
        if !follow || reader.is_done() || (ended && !life.borrow().running) {
            return Ok(());
        }
        tokio::select! {
            changed = progress.changed() => changed.map_err(|_| ApiError::internal("The log is gone."))?,
            changed = life.changed() => changed.map_err(|_| ApiError::internal("The container is gone."))?,
        }
    }
}

pub(crate) async fn next_entries(mut reader: Reader) -> Result<(Vec<Entry>, Reader)> {
    blocking(move || {
        let entries = reader.entries().map_err(unreadable)?;
        Ok::<_, ApiError>((entries, reader))
    })
    .await
}

fn selection(query: &Query) -> Result<Selection> {
    let tail = match query.get("tail") {
        None | Some("all") => None,
        // Docker takes what is no number, or a negative one, for all.
        Some(text) => text.parse().ok(),
    };
    Ok(Selection {
        stdout: query.flag("stdout"),
        stderr: query.flag("stderr"),
        tail,
        since: moment(query, "since")?.filter(|at| *at != 0),
        until: moment(query, "until")?.filter(|at| *at != 0),
    })
}

/// A time as `seconds`, `seconds.nanoseconds` or RFC 3339; nanoseconds since the epoch.
pub(crate) fn moment(query: &Query, key: &str) -> Result<Option<i128>> {
    let Some(text) = query.get(key) else {
        return Ok(None);
    };
    let wrong = || {
        ApiError::bad_request(format!(
            "Parameter {key} is {text:?}, which is no time; give seconds since 1970 or RFC 3339."
        ))
    };
    if let Ok(at) = OffsetDateTime::parse(text, &Rfc3339) {
        return Ok(Some(at.unix_timestamp_nanos()));
    }
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i128 = seconds.parse::<i64>().map_err(|_| wrong())?.into();
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanoseconds: i128 = digits.parse::<u32>().map_err(|_| wrong())?.into();
    Ok(Some(seconds * 1_000_000_000 + nanoseconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_in_all_forms_that_docker_sends() {
        let read = |text: &str| moment(&Query::parse(&format!("since={text}")), "since");
        assert_eq!(read("12").unwrap(), Some(12_000_000_000));
        assert_eq!(read("12.5").unwrap(), Some(12_500_000_000));
        assert_eq!(read("1970-01-01T00:00:01Z").unwrap(), Some(1_000_000_000));
        assert_eq!(read("").unwrap(), None);
        assert!(read("yesterday").is_err());
    }
}
