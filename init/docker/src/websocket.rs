//! WebSocket (RFC 6455), as far as `attach/ws` needs it: an answer to the handshake, and a stream of bytes
//! over its frames. What the client sends in frames of data, of whatever kind and however divided, is the
//! input; what it is told comes in binary frames.

use std::io;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::http::{Gone, Input, Output};

/// Bytes on their way between frames and the stream.
const BUFFER: usize = 32 << 10;
/// How long a client that was told the end may take to say its own.
const LINGER: Duration = Duration::from_secs(10);
/// Bytes of a control frame's payload at most (5.5).
const MAX_CONTROL: u64 = 125;
/// What the client's key is digested with (1.3).
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// The status of a regular end (7.4.1).
const NORMAL: [u8; 2] = 1000u16.to_be_bytes();

const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// `Sec-WebSocket-Accept` for the client's `Sec-WebSocket-Key`.
pub(crate) fn accept(key: &[u8]) -> String {
    let mut digest = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
    digest.update(key);
    digest.update(GUID);
    BASE64_STANDARD.encode(digest.finish())
}

/// A stream over the frames of a connection. Must be called in a tokio runtime.
pub(crate) fn over((input, output, gone): (Input, Output, Gone)) -> (Input, Output, Gone) {
    let (typed, ours) = duplex(BUFFER);
    let (theirs, told) = duplex(BUFFER);
    let left = CancellationToken::new();
    let leaving = left.clone().drop_guard();
    tokio::spawn(async move {
        let _leaving = leaving;
        serve(input, output, gone, typed, told).await;
    });
    (
        Box::new(ours),
        Box::new(theirs),
        Box::pin(async move { left.cancelled().await }),
    )
}

/// What is to be answered to a frame.
enum Answer {
    Pong(Vec<u8>),
    Close,
}

async fn serve(input: Input, mut output: Output, mut gone: Gone, typed: DuplexStream, told: DuplexStream) {
    let (answer, answers) = mpsc::channel(1);
    let mut reading = Box::pin(read(input, typed, answer));
    let mut is_read = false;
    {
        let mut writing = Box::pin(write(&mut output, told, answers));
        loop {
            tokio::select! {
                _ = &mut writing => break,
                () = &mut reading, if !is_read => is_read = true,
                () = &mut gone => return,
            }
        }
    }
    drop(gone);
    let _ = output.shutdown().await;
    if !is_read {
        let _ = tokio::time::timeout(LINGER, reading).await;
    }
}

/// Takes the client's frames until it closes, or sends what is no frame.
async fn read(mut input: Input, mut typed: DuplexStream, answer: mpsc::Sender<Answer>) {
    while let Ok(true) = read_frame(&mut input, &mut typed, &answer).await {}
    let _ = answer.send(Answer::Close).await;
}

/// False for the last.
async fn read_frame(
    input: &mut Input,
    typed: &mut DuplexStream,
    answer: &mpsc::Sender<Answer>,
) -> io::Result<bool> {
    let [kind, length] = read_bytes(input).await?;
    // A client's frames are masked, and no extension was agreed on.
    if length & 0x80 == 0 || kind & 0x70 != 0 {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let length = match length & 0x7f {
        126 => u64::from(u16::from_be_bytes(read_bytes(input).await?)),
        127 => u64::from_be_bytes(read_bytes(input).await?),
        short => u64::from(short),
    };
    let mask = Mask(read_bytes(input).await?);
    match kind & 0x0f {
        CONTINUATION | TEXT | BINARY => mask.copy(input, length, typed).await.map(|()| true),
        CLOSE => Ok(false),
        PING | PONG if length > MAX_CONTROL => Err(io::ErrorKind::InvalidData.into()),
        PING => {
            let mut payload = Vec::new();
            mask.copy(input, length, &mut payload).await?;
            let sent = answer.send(Answer::Pong(payload)).await;
            Ok(sent.is_ok())
        }
        PONG => mask
            .copy(input, length, &mut tokio::io::sink())
            .await
            .map(|()| true),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

async fn read_bytes<const N: usize>(input: &mut Input) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    input.read_exact(&mut bytes).await?;
    Ok(bytes)
}

struct Mask([u8; 4]);

impl Mask {
    /// Takes a payload, however long it is, without keeping it.
    async fn copy(
        &self,
        input: &mut Input,
        length: u64,
        to: &mut (impl AsyncWriteExt + Unpin),
    ) -> io::Result<()> {
        let mut buffer = [0; 4096];
        let mut done = 0;
        while done < length {
            let most = usize::try_from(length - done).map_or(buffer.len(), |left| left.min(buffer.len()));
            let piece = buffer.get_mut(..most).unwrap_or_default();
            input.read_exact(piece).await?;
            // All pieces but the last are of a length that the mask's divides.
            for (byte, key) in piece.iter_mut().zip(self.0.iter().cycle()) {
                *byte ^= key;
            }
            to.write_all(piece).await?;
            done += most as u64;
        }
        Ok(())
    }
}

/// Tells the client what it is to hear, until there is no more. One that has closed hears nothing.
async fn write(
    output: &mut Output,
    mut told: DuplexStream,
    mut answers: mpsc::Receiver<Answer>,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    let mut closed = false;
    loop {
        tokio::select! {
            Some(answer) = answers.recv() => match answer {
                Answer::Pong(payload) => write_frame(output, PONG, &payload).await?,
                Answer::Close if !closed => {
                    closed = true;
                    write_frame(output, CLOSE, &NORMAL).await?;
                }
                Answer::Close => {}
            },
            count = told.read(&mut buffer) => match count? {
                0 if closed => return Ok(()),
                0 => return write_frame(output, CLOSE, &NORMAL).await,
                _ if closed => {}
                count => write_frame(output, BINARY, buffer.get(..count).unwrap_or_default()).await?,
            },
        }
    }
}

async fn write_frame(output: &mut Output, kind: u8, payload: &[u8]) -> io::Result<()> {
    /// Not divided.
    const FINAL: u8 = 0x80;
    let mut frame = vec![FINAL | kind];
    match (u8::try_from(payload.len()), u16::try_from(payload.len())) {
        (Ok(length @ 0..126), _) => frame.push(length),
        (_, Ok(length)) => {
            frame.push(126);
            frame.extend_from_slice(&length.to_be_bytes());
        }
        _ => {
            frame.push(127);
            frame.extend_from_slice(&(payload.len() as u64).to_be_bytes());
        }
    }
    frame.extend_from_slice(payload);
    output.write_all(&frame).await?;
    output.flush().await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masked(kind: u8, payload: &[u8]) -> Vec<u8> {
        let mask = [1, 2, 3, 4];
        let mut frame = vec![0x80 | kind];
        match payload.len() {
            short @ 0..126 => frame.push(0x80 | short as u8),
            long => {
                frame.push(0x80 | 126);
                frame.extend_from_slice(&(long as u16).to_be_bytes());
            }
        }
        frame.extend_from_slice(&mask);
        frame.extend(
            payload
                .iter()
                .zip(mask.iter().cycle())
                .map(|(byte, key)| byte ^ key),
        );
        frame
    }

    /// A client's end of a connection, and the stream over its frames.
    fn connection() -> (DuplexStream, (Input, Output, Gone)) {
        let (client, server) = duplex(1 << 20);
        let (input, output) = tokio::io::split(server);
        let raw: (Input, Output, Gone) = (
            Box::new(input),
            Box::new(output),
            Box::pin(std::future::pending()),
        );
        (client, over(raw))
    }

    #[test]
    fn a_key_is_accepted_with_the_value_of_the_standard() {
        assert_eq!(
            accept(b"dGhlIHNhbXBsZSBub25jZQ=="),
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
    }

    #[tokio::test]
    async fn frames_of_all_kinds_become_a_stream_and_a_stream_frames() {
        let (mut client, (mut input, mut output, _gone)) = connection();
        let long = vec![b'x'; 10_000];
        for frame in [
            masked(TEXT, b"one "),
            masked(PING, b"there?"),
            masked(BINARY, &long),
        ] {
            client.write_all(&frame).await.unwrap();
        }
        let mut heard = vec![0; 10_004];
        input.read_exact(&mut heard).await.unwrap();
        assert_eq!(heard, [b"one ", &long[..]].concat());
        let mut pong = [0; 8];
        client.read_exact(&mut pong).await.unwrap();
        assert_eq!(&pong, b"\x8a\x06there?");
        output.write_all(b"told").await.unwrap();
        let mut frame = [0; 6];
        client.read_exact(&mut frame).await.unwrap();
        assert_eq!(&frame, b"\x82\x04told");
        output.shutdown().await.unwrap();
        let mut end = [0; 4];
        client.read_exact(&mut end).await.unwrap();
        assert_eq!(&end, b"\x88\x02\x03\xe8");
        client.write_all(&masked(CLOSE, b"")).await.unwrap();
        assert_eq!(input.read(&mut heard).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn one_who_closes_is_answered_and_what_is_no_frame_ends_the_input() {
        for last in [masked(CLOSE, b""), b"\x82\x01x".to_vec(), masked(3, b"")] {
            let (mut client, (mut input, mut output, _gone)) = connection();
            client.write_all(&last).await.unwrap();
            assert_eq!(input.read(&mut [0; 8]).await.unwrap(), 0);
            let mut end = [0; 4];
            client.read_exact(&mut end).await.unwrap();
            assert_eq!(&end, b"\x88\x02\x03\xe8");
            output.write_all(b"nobody hears this").await.unwrap();
            output.shutdown().await.unwrap();
            assert_eq!(client.read(&mut end).await.unwrap(), 0);
        }
    }
}
