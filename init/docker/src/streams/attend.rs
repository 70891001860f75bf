//! The conversation with an attached client.
//!
//! Its connection is watched while it lasts: a client that vanishes is let go at once, also when the
//! process says nothing. One that only closes its own side hears on.

use std::io;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use zones::log::Stream;

use super::{CHUNK, Follower, Listener, Streams, frame};
use crate::http::{Gone, Hijack};

/// How long a client that has everything may take to close its side.
const LINGER: std::time::Duration = std::time::Duration::from_secs(10);
/// Reads of a client's input that wait for the process.
const INPUT_DEPTH: usize = 4;

/// What an attached client wants.
#[derive(Debug, Clone)]
pub(crate) struct Attachment {
    pub(crate) stdin: bool,
    pub(crate) stdout: bool,
    pub(crate) stderr: bool,
    /// Raw bytes instead of frames, and keys that detach.
    pub(crate) terminal: bool,
    /// Raw bytes in any case.
    pub(crate) raw: bool,
    /// The end of the client's input is the end of the process's.
    pub(crate) close_stdin: bool,
    pub(crate) detach_keys: Vec<u8>,
}

/// Where an attached client hears the process.
pub(crate) enum Source {
    /// Among those that [`Streams::pump`] serves.
    Queue(Listener),
    Log(Box<Follower>),
}

/// Serves an attached client until the process has said everything or the client goes.
/// True if the client detached by keys.
pub(crate) async fn attend(
    streams: &Streams,
    source: Source,
    hijack: Hijack,
    wanted: Attachment,
) -> io::Result<bool> {
    let (input, output, gone) = hijack.streams().await?;
    converse(streams, source, input, output, gone, wanted).await
}

async fn converse(
    streams: &Streams,
    source: Source,
    mut input: impl AsyncReadExt + Unpin,
    mut output: impl AsyncWriteExt + Unpin,
    gone: Gone,
    wanted: Attachment,
) -> io::Result<bool> {
    let cut = match &source {
        Source::Queue(listener) => listener.cut.clone(),
        Source::Log(follower) => follower.cut(),
    };
    let said = async {
        // A client that has gone is told by the failing write; the process goes on.
        match source {
            Source::Queue(listener) => tell(listener, &mut output, &wanted).await,
            Source::Log(follower) => tell_log(*follower, &mut output, &wanted).await,
        }
    };
    let (typed, keys) = mpsc::channel(INPUT_DEPTH);
    let heard = async {
        if hear(streams, keys, &wanted).await {
            return;
        }
        std::future::pending().await
    };
    let detached = tokio::select! {
        // What is there to be told goes before the client's end.
        biased;
        told = said => told.map(|()| false),
        () = heard => Ok(true),
        () = cut.cancelled() => Err(io::ErrorKind::TimedOut.into()),
        error = watch(&mut input, typed, wanted.stdin) => Err(error),
        () = gone => Err(io::ErrorKind::BrokenPipe.into()),
    }?;
    output.shutdown().await?;
    let _ = tokio::time::timeout(LINGER, drain(&mut input)).await;
    Ok(detached)
}

/// Passes on what the client sends, or throws it away; returns only when the client has gone.
async fn watch(
    input: &mut (impl AsyncReadExt + Unpin),
    typed: mpsc::Sender<Bytes>,
    wanted: bool,
) -> io::Error {
    let mut buffer = vec![0; if wanted { CHUNK } else { 512 }];
    loop {
        match input.read(&mut buffer).await {
            Ok(0) => break,
            Ok(count) if wanted => {
                let bytes = Bytes::copy_from_slice(buffer.get(..count).unwrap_or_default());
                // Nobody takes it once the process has closed its input.
                let _ = typed.send(bytes).await;
            }
            Ok(_) => {}
            Err(error) => return error,
        }
    }
    // Only its own side is closed, as far as this can tell.
    drop(typed);
    std::future::pending().await
}

/// Reads what the client still sends, to its end. A connection that is closed with unread bytes is
/// reset by the kernel, and with that the client loses the last of what the process said.
async fn drain(input: &mut (impl AsyncReadExt + Unpin)) {
    let mut buffer = [0; 512];
    while matches!(input.read(&mut buffer).await, Ok(1..)) {}
}

impl Attachment {
    async fn write(
        &self,
        output: &mut (impl AsyncWriteExt + Unpin),
        stream: Stream,
        bytes: &[u8],
    ) -> io::Result<()> {
        let asked = match stream {
            Stream::Stdout => self.stdout,
            Stream::Stderr => self.stderr,
        };
        if !asked {
            return Ok(());
        }
        if self.terminal || self.raw {
            return output.write_all(bytes).await;
        }
        output.write_all(&frame(stream, bytes)).await
    }
}

async fn tell(
    mut listener: Listener,
    output: &mut (impl AsyncWriteExt + Unpin),
    wanted: &Attachment,
) -> io::Result<()> {
    while let Some(chunk) = listener.next().await {
        wanted.write(output, chunk.stream, &chunk.bytes).await?;
        if listener.queue.is_empty() {
            output.flush().await?;
        }
    }
    output.flush().await
}

async fn tell_log(
    mut follower: Follower,
    output: &mut (impl AsyncWriteExt + Unpin),
    wanted: &Attachment,
) -> io::Result<()> {
    while let Some(pieces) = follower.next().await? {
        for piece in pieces {
            wanted.write(output, piece.stream, &piece.bytes).await?;
        }
        output.flush().await?;
    }
    output.flush().await
}

/// Takes the client's input to the process. True if the client typed the keys that detach.
async fn hear(streams: &Streams, mut typed: mpsc::Receiver<Bytes>, wanted: &Attachment) -> bool {
    if !wanted.stdin {
        return false;
    }
    let Some(channel) = streams.opened_input().await else {
        return false;
    };
    let mut keys = DetachKeys::new(if wanted.terminal { &wanted.detach_keys } else { &[] });
    while let Some(bytes) = typed.recv().await {
        let (bytes, detach) = keys.pass(&bytes);
        if channel.write_all(&bytes).await.is_err() {
            break;
        }
        if detach {
            return true;
        }
    }
    drop(channel);
    if wanted.close_stdin && !wanted.terminal {
        streams.close_input().await;
    }
    false
}

/// The keys by which a client detaches unless it says others: Ctrl-P, Ctrl-Q.
const DEFAULT_KEYS: &[u8] = &[0x10, 0x11];

/// Reads `ctrl-p,ctrl-q` or `a,b`; none where it is not of this form.
pub(crate) fn parse_detach_keys(text: &str) -> Option<Vec<u8>> {
    if text.is_empty() {
        return Some(DEFAULT_KEYS.to_vec());
    }
    let key = |name: &str| match name.as_bytes() {
        [byte] => Some(*byte),
        [b'c', b't', b'r', b'l', b'-', byte] => match byte.to_ascii_lowercase() {
            letter @ b'a'..=b'z' => Some(letter - b'a' + 1),
            b'@' => Some(0),
            control @ b'['..=b'_' => Some(control - b'[' + 27),
            _ => None,
        },
        _ => None,
    };
    text.split(',').map(key).collect()
}

/// Finds the sequence that detaches in what a client types; its bytes do not reach the process.
struct DetachKeys<'a> {
    keys: &'a [u8],
    matched: usize,
}

impl<'a> DetachKeys<'a> {
    fn new(keys: &'a [u8]) -> Self {
        Self { keys, matched: 0 }
    }

    fn pass(&mut self, bytes: &[u8]) -> (Vec<u8>, bool) {
        let mut through = Vec::with_capacity(bytes.len());
        for &byte in bytes {
            if self.keys.get(self.matched) == Some(&byte) {
                self.matched += 1;
                if self.matched == self.keys.len() {
                    return (through, true);
                }
                continue;
            }
            through.extend_from_slice(&self.keys[..self.matched]);
            self.matched = usize::from(self.keys.first() == Some(&byte));
            if self.matched == 0 {
                through.push(byte);
            }
        }
        (through, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn detach_keys_are_found_across_reads_and_others_pass() {
        let keys = parse_detach_keys("").unwrap();
        let mut filter = DetachKeys::new(&keys);
        assert_eq!(filter.pass(b"ls\n\x10"), (b"ls\n".to_vec(), false));
        assert_eq!(filter.pass(b"x"), (b"\x10x".to_vec(), false));
        assert_eq!(filter.pass(b"\x10"), (vec![], false));
        assert_eq!(filter.pass(b"\x11more"), (vec![], true));
        assert_eq!(parse_detach_keys("ctrl-a,q"), Some(vec![1, b'q']));
        assert_eq!(parse_detach_keys("ctrl-aa"), None);
    }
}
