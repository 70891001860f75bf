//! `mode=non-blocking`: a process that never waits for its log.
//!
//! What it says goes through a queue of so many bytes on its way to the log. While the log cannot be
//! written (the pool is full, or slow, or a client holds its rotation up) the queue fills, and then lines
//! are dropped, the newest, as with Docker's engine; each line is kept or dropped as a whole, except one
//! whose beginning had been passed on. What is in the queue when the supervisor is killed is lost: who
//! wants this mode has said that lines may be.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use rustix::pipe::{PipeFlags, pipe_with};
use sys::readiness::Interest;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::{CHUNK, Channel, Ends};

type Queue = mpsc::UnboundedSender<(Bytes, OwnedSemaphorePermit)>;

/// The ends behind the queue, for the log. Must be called in a tokio runtime.
pub(crate) fn buffered(ends: Ends, most: u64) -> io::Result<Ends> {
    let most = u32::try_from(most).unwrap_or(u32::MAX);
    let room = Arc::new(Semaphore::new(most as usize));
    let behind = |end: Arc<Channel>| {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let reader = Channel::new(reader, Interest::READABLE)?;
        let writer = Channel::new(writer, Interest::WRITABLE)?;
        let (queue, mut queued) = mpsc::unbounded_channel();
        let into = Into {
            queue,
            room: room.clone(),
            most,
            state: State::Whole,
        };
        tokio::spawn(into.take(end));
        tokio::spawn(async move {
            while let Some((bytes, _room)) = queued.recv().await {
                if writer.write_all(&bytes).await.is_err() {
                    return;
                }
            }
        });
        Ok::<_, io::Error>(Arc::new(reader))
    };
    Ok(Ends {
        stdout: behind(ends.stdout)?,
        stderr: ends.stderr.map(behind).transpose()?,
        // A pipe, whatever is before it.
        terminal: false,
    })
}

/// What has been passed on of the line that the process is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// All of those before it, and nothing of it.
    Whole,
    /// Its beginning.
    Open,
    /// Nothing, and nothing of its rest will be; of an earlier line perhaps the beginning.
    Skipped { broken: bool },
    /// As [`Whole`](Self::Whole), after an earlier line of which only the beginning was passed on.
    Broken,
}

/// The way into the queue.
struct Into {
    queue: Queue,
    room: Arc<Semaphore>,
    most: u32,
    state: State,
}

impl Into {
    /// Takes all that the process says, at once.
    async fn take(mut self, end: Arc<Channel>) {
        let mut buffer = vec![0; CHUNK];
        loop {
            // An end that cannot be read says no more.
            let said = end.read(&mut buffer).await.unwrap_or_default();
            if said.is_empty() {
                return;
            }
            self.pass_on(&said);
        }
    }

    fn pass_on(&mut self, said: &Bytes) {
        let straight = matches!(self.state, State::Whole | State::Open);
        if straight && self.send(said) {
            return;
        }
        for piece in said.split_inclusive(|byte| *byte == b'\n') {
            let piece = said.slice_ref(piece);
            let ends = piece.ends_with(b"\n");
            match self.state {
                State::Skipped { broken } if ends => {
                    self.state = if broken { State::Broken } else { State::Whole };
                }
                State::Skipped { .. } => {}
                before => {
                    let piece = if before == State::Broken {
                        Bytes::from([b"\n", &piece[..]].concat())
                    } else {
                        piece
                    };
                    if !self.send(&piece) {
                        let broken = matches!(before, State::Open | State::Broken);
                        self.state = match (ends, broken) {
                            (true, true) => State::Broken,
                            (true, false) => State::Whole,
                            (false, broken) => State::Skipped { broken },
                        };
                    }
                }
            }
        }
    }

    /// False if there is no room.
    fn send(&mut self, bytes: &Bytes) -> bool {
        // One that is longer than all the room may have all of it.
        let weight = u32::try_from(bytes.len()).unwrap_or(u32::MAX).min(self.most);
        let Ok(room) = self.room.clone().try_acquire_many_owned(weight) else {
            return false;
        };
        self.state = if bytes.ends_with(b"\n") {
            State::Whole
        } else {
            State::Open
        };
        self.queue.send((bytes.clone(), room)).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const MOST: usize = 100_000;

    #[tokio::test]
    async fn a_process_never_waits_and_only_whole_lines_are_missing() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let reader = std::os::fd::OwnedFd::from(reader);
        rustix::io::ioctl_fionbio(&reader, true).unwrap();
        let ends = Ends {
            stdout: Arc::new(Channel::new(reader, Interest::READABLE).unwrap()),
            stderr: None,
            terminal: true,
        };
        let behind = buffered(ends, MOST as u64).unwrap();
        assert!(!behind.is_terminal());
        // Nobody reads the log's side until all is said: ten times what the queue and two pipes hold.
        let saying = tokio::task::spawn_blocking(move || {
            for number in 0..200_000 {
                write!(writer, "line ").unwrap();
                writeln!(writer, "{number:06}").unwrap();
            }
        });
        saying.await.unwrap();
        let mut heard = Vec::new();
        let mut buffer = vec![0; CHUNK];
        loop {
            match behind.stdout.read(&mut buffer).await.unwrap() {
                bytes if bytes.is_empty() => break,
                bytes => heard.extend_from_slice(&bytes),
            }
        }
        assert!((MOST..MOST * 4).contains(&heard.len()), "{}", heard.len());
        let text = String::from_utf8(heard).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[..3], ["line 000000", "line 000001", "line 000002"]);
        let broken = lines
            .iter()
            .filter(|line| line.len() != "line 000000".len())
            .count();
        // Only such as were begun when the room was.
        assert!(broken * 10 < lines.len(), "{broken} of {}", lines.len());
        assert!(lines.iter().all(|line| "line 000000".len() >= line.len()));
    }

    #[test]
    fn a_line_that_cannot_be_ended_is_ended_before_the_next() {
        let (queue, mut queued) = mpsc::unbounded_channel();
        let room = Arc::new(Semaphore::new(8));
        let mut into = Into {
            queue,
            room: room.clone(),
            most: 8,
            state: State::Whole,
        };
        let mut heard = Vec::new();
        let mut say = |text: &'static str, read: bool| {
            into.pass_on(&Bytes::from_static(text.as_bytes()));
            if read {
                while let Ok((bytes, _room)) = queued.try_recv() {
                    heard.extend_from_slice(&bytes);
                }
            }
        };
        say("begun", false);
        say("-too long", false);
        say(" still\nlost\nalso", true);
        say(" lost\nkept\n", true);
        say("whole\n", true);
        assert_eq!(String::from_utf8(heard).unwrap(), "begun\nkept\nwhole\n");
    }
}
