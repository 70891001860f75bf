//! Snapshots on their way: out of a machine as a stream of bytes, and into one.
//!
//! The stream begins with a label, by which the receiving machine tells what it has of it already
//! (`init/store/src/transfer`).

use std::io::{self, Read, Write};
use std::time::Duration;

use futures_util::stream;
use http_body_util::{BodyExt as _, Full, Limited, StreamBody};
use hyper::body::{Bytes, Frame};
use hyper::{Method, Request};
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::mpsc;

use super::pool::refused;
use super::snapshots::escaped;
use super::{Api, ApiError, MAX_ANSWER, Stage, Subject, block_on, message};

const MARK: &[u8; 16] = b"MONOBLOC SEND 1\n";
/// What stands before the digest at a stream's end.
pub const SENT: &[u8; 16] = b"MONOBLOC SENT 1\n";
/// Bytes of both.
pub const DIGEST_AND_MARK: u64 = 48;
const MAX_LABEL: u32 = 1 << 20;
/// Bytes that are read at once.
const PART: usize = 256 << 10;
/// So many of these wait for the machine.
const DEPTH: usize = 8;

/// A snapshot that is to be sent, and to what it is the difference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    pub of: Subject,
    pub snapshot: String,
    pub from: Option<String>,
}

impl Source {
    fn path(&self, more: &str) -> String {
        let from = self.from.as_deref().map(escaped);
        let from = from.map_or_else(String::new, |from| format!("&from={from}"));
        let below = format!("snapshots/{}/send?{more}{from}", escaped(&self.snapshot));
        self.of.path(&below)
    }
}

/// What a stream begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beginning {
    bytes: Vec<u8>,
}

/// What of a label is of interest here.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Label {
    name: String,
    snapshot: String,
}

impl Beginning {
    /// Reads it off a stream.
    ///
    /// # Errors
    /// It is no such stream.
    pub fn read(from: &mut dyn Read) -> io::Result<Self> {
        let no = || io::Error::new(io::ErrorKind::InvalidData, "this is no snapshot that was sent");
        let mut bytes = vec![0; MARK.len() + 4];
        from.read_exact(&mut bytes).map_err(|_| no())?;
        let (mark, length) = bytes.split_at(MARK.len());
        let length = length.first_chunk().map(|length| u32::from_le_bytes(*length));
        let length = length
            .filter(|length| mark == MARK && *length <= MAX_LABEL)
            .ok_or_else(no)?;
        let mut label = vec![0; length as usize];
        from.read_exact(&mut label).map_err(|_| no())?;
        bytes.extend_from_slice(&label);
        Ok(Self { bytes })
    }

    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn label(&self) -> &[u8] {
        self.bytes.get(MARK.len() + 4..).unwrap_or_default()
    }

    /// `web@before`
    #[must_use]
    pub fn name(&self) -> String {
        let label: Label = serde_json::from_slice(self.label()).unwrap_or_default();
        format!("{}@{}", label.name, label.snapshot)
    }
}

impl Api {
    /// What the stream of a snapshot begins with.
    ///
    /// # Errors
    /// As [`Api::ping`].
    pub fn beginning(&self, source: &Source, limit: Duration) -> Result<Beginning, ApiError> {
        let bytes = self.call(Method::GET, &source.path("label=1"), Bytes::new(), limit)?;
        Beginning::read(&mut bytes.as_ref()).map_err(ApiError::Stream)
    }

    /// Writes the stream of a snapshot, from a byte on; `told` gets how many have come.
    ///
    /// # Errors
    /// As [`Api::ping`]; it breaks off, or cannot be written.
    pub fn send_snapshot(
        &self,
        source: &Source,
        offset: u64,
        to: &mut dyn Write,
        limit: Duration,
        told: &mut dyn FnMut(u64),
    ) -> Result<(), ApiError> {
        let path = source.path(&format!("offset={offset}"));
        let work = async {
            let request = Request::get(&path).body(Full::new(Bytes::new()));
            let request = request.map_err(|error| self.no_answer(&error))?;
            let mut body = self.begin(request, &path, limit).await?.into_body();
            let mut done = offset;
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(|error| self.no_answer(&error))?;
                if let Some(data) = frame.data_ref() {
                    to.write_all(data).map_err(ApiError::Stream)?;
                    done += data.len() as u64;
                    told(done);
                }
            }
            to.flush().map_err(ApiError::Stream)
        };
        block_on(work).map_err(|source| self.connection(source))?
    }

    /// Asks a machine whether it can have a snapshot; gives the transfer's id and how much of it has come.
    ///
    /// # Errors
    /// As [`Api::ping`]; it cannot.
    pub fn offer(
        &self,
        beginning: &Beginning,
        name: Option<&str>,
        limit: Duration,
    ) -> Result<(String, u64), ApiError> {
        let path = format!("/monobloc/v1/transfers{}", query(name));
        let label = Bytes::copy_from_slice(beginning.label());
        let told = self.call_for_json(Method::POST, &path, label, limit)?;
        let received = told.get("received").and_then(Value::as_u64);
        match (told.get("id").and_then(Value::as_str), received) {
            (Some(id), Some(received)) => Ok((id.to_owned(), received)),
            _ => Err(self.no_answer(&io::Error::other("it tells of no transfer"))),
        }
    }

    /// Goes on with a transfer, with what `from` has from byte `offset` on; `told` gets how many bytes have
    /// been read.
    ///
    /// # Errors
    /// As [`Api::ping`]; `from` cannot be read.
    pub fn upload(
        &self,
        id: &str,
        offset: u64,
        mut from: impl Read + Send + 'static,
        told: impl Fn(u64) + Send + 'static,
    ) -> Result<(), ApiError> {
        let path = format!("/monobloc/v1/transfers/{}?offset={offset}", escaped(id));
        let (sender, receiver) = mpsc::channel::<io::Result<Frame<Bytes>>>(DEPTH);
        std::thread::spawn(move || {
            let mut done = offset;
            loop {
                let mut part = vec![0; PART];
                let read = match from.read(&mut part) {
                    Ok(0) => return,
                    Ok(count) => {
                        part.truncate(count);
                        done += count as u64;
                        told(done);
                        Ok(Frame::data(Bytes::from(part)))
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(error) => Err(error),
                };
                // An error means that the machine takes no more, which its answer tells.
                if sender.blocking_send(read).is_err() {
                    return;
                }
            }
        });
        let parts = stream::unfold(receiver, |mut receiver| async move {
            let part = receiver.recv().await?;
            Some((part, receiver))
        });
        let work = async {
            let request = Request::put(&path).body(StreamBody::new(Box::pin(parts)));
            let request = request.map_err(|error| self.no_answer(&error))?;
            let response = self.send(request).await?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
            let body = body.map_err(|error| self.no_answer(&*error))?.to_bytes();
            if status.is_success() {
                return Ok(());
            }
            Err(refused(&path, status.as_u16(), message(&body)))
        };
        block_on(work).map_err(|source| self.connection(source))?
    }

    /// Has a machine check a transfer that is whole and put it in its place; gives what it has become.
    ///
    /// # Errors
    /// As [`Api::ping`]; it is damaged, or cannot be had.
    pub fn take_in(
        &self,
        id: &str,
        name: Option<&str>,
        limit: Duration,
        tell: &mut dyn FnMut(&Stage),
    ) -> Result<Value, ApiError> {
        let path = format!("/monobloc/v1/transfers/{}{}", escaped(id), query(name));
        self.follow_work(&path, Bytes::new(), limit, tell)
    }
}

fn query(name: Option<&str>) -> String {
    name.map_or_else(String::new, |name| format!("?name={}", escaped(name)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Kind;

    #[test]
    fn a_stream_says_what_it_is_of() {
        let label = br#"{"kind":"zone","name":"web","snapshot":"before","uuid":"","from":null}"#;
        let mut bytes = [MARK.as_slice(), &(label.len() as u32).to_le_bytes(), label].concat();
        let whole = bytes.clone();
        bytes.extend_from_slice(b"content");
        let beginning = Beginning::read(&mut bytes.as_slice()).unwrap();
        assert_eq!(
            (beginning.name().as_str(), beginning.bytes()),
            ("web@before", whole.as_slice())
        );
        for cut in [0, 16, 19, 40] {
            assert!(Beginning::read(&mut &bytes[..cut]).is_err(), "{cut}");
        }
        assert!(Beginning::read(&mut [b'x'; 100].as_slice()).is_err());
    }

    #[test]
    fn a_difference_is_asked_for_by_both_names() {
        let source = Source {
            of: Subject {
                kind: Kind::Zone,
                name: "web".to_owned(),
            },
            snapshot: "b".to_owned(),
            from: Some("a&c".to_owned()),
        };
        assert_eq!(
            source.path("offset=7"),
            "/monobloc/v1/zones/web/snapshots/b/send?offset=7&from=a%26c"
        );
    }
}
