//! A process's standard streams and the clients that are attached to them.
//!
//! [`Streams`] outlives the process: a client may attach before the start, and the first byte that
//! the process says reaches it. What a process with a log says goes there and nowhere else
//! ([`Streams::record`]), and its clients read it there ([`Follower`]): none of them holds anybody up,
//! unless what it has not read is about to be rotated away ([`holds`]).
//!
//! What has no log, an added process or a container with the driver `none`, is heard by
//! [`Streams::pump`], which hands it to every client. A client that does not read holds such a process
//! up, but not for ever: after [`PATIENCE`] it is cut off. What waits for a client is bounded at all
//! times.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use sys::readiness::{self, AsyncFd, Interest};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;
use zones::log::Stream;
use zones::{Stdio, Zones};

mod attend;
mod buffer;
mod follow;
mod holds;
mod record;

pub(crate) use attend::{Attachment, Source, attend, parse_detach_keys};
pub(crate) use buffer::buffered;
pub(crate) use follow::{Follower, Span};
pub(crate) use record::BREATH;

/// Bytes read from a process at a time.
const CHUNK: usize = 32 << 10;
/// Chunks that wait for a client before the process has to.
const CLIENT_DEPTH: usize = 32;
/// Chunks beyond that, once the process has ended: what a pipe can still hold of it (a mebibyte each
/// of stdout and stderr, see pipe(7)), so that a client that is behind misses nothing.
const REST_DEPTH: usize = 2 * (1 << 20) / CHUNK;
/// How long a client that reads nothing at all may hold the process up.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the process said, as it was read.
#[derive(Debug, Clone)]
pub(crate) struct Chunk {
    pub(crate) stream: Stream,
    pub(crate) bytes: Bytes,
}

/// A pipe's end or a terminal's master.
pub(crate) struct Channel(AsyncFd<OwnedFd>);

impl Channel {
    fn new(fd: OwnedFd, interest: Interest) -> io::Result<Self> {
        Ok(Self(readiness::watch(fd, interest)?))
    }

    async fn read(&self, buffer: &mut [u8]) -> io::Result<Bytes> {
        let read = |fd: &OwnedFd| Ok(rustix::io::read(fd, &mut *buffer)?);
        let count = match self.0.async_io(Interest::READABLE, read).await {
            // A terminal whose other side is closed.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => 0,
            other => other?,
        };
        // A copy of its own: a chunk that waits for a client keeps no more memory than it needs.
        Ok(Bytes::copy_from_slice(buffer.get(..count).unwrap_or_default()))
    }

    async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let write = |fd: &OwnedFd| Ok(rustix::io::write(fd, bytes)?);
            let count = self.0.async_io(Interest::WRITABLE, write).await?;
            bytes = bytes.get(count..).unwrap_or_default();
        }
        Ok(())
    }
}

/// The way to the process's standard input.
#[derive(Clone, Default)]
enum Input {
    /// The process does not run yet.
    #[default]
    Awaited,
    Open(Arc<Channel>),
    Closed,
}

/// The engine's side of a client's queue.
#[derive(Clone)]
struct Client {
    queue: mpsc::UnboundedSender<(Chunk, OwnedSemaphorePermit)>,
    /// Bounds the queue; closed when the client has gone.
    room: Arc<Semaphore>,
    cut: CancellationToken,
}

/// The client's side of its queue.
pub(crate) struct Listener {
    queue: mpsc::UnboundedReceiver<(Chunk, OwnedSemaphorePermit)>,
    room: Arc<Semaphore>,
    /// The client was too slow; nothing more comes.
    cut: CancellationToken,
}

impl Listener {
    fn pair() -> (Client, Self) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let room = Arc::new(Semaphore::new(CLIENT_DEPTH));
        let cut = CancellationToken::new();
        let client = Client {
            queue: sender,
            room: room.clone(),
            cut: cut.clone(),
        };
        let listener = Self {
            queue: receiver,
            room,
            cut,
        };
        (client, listener)
    }

    /// One that hears nothing.
    pub(crate) fn deaf() -> Self {
        Self::pair().1
    }

    pub(crate) async fn next(&mut self) -> Option<Chunk> {
        self.queue.recv().await.map(|(chunk, _room)| chunk)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.room.close();
    }
}

pub(crate) struct Streams {
    clients: Mutex<Vec<Client>>,
    patience: Duration,
    input: watch::Sender<Input>,
    /// Who to tell that the input is closed: process 1 has a copy of it.
    keeper: Mutex<Option<(Zones, String)>>,
    /// Clients that hear the process by its log.
    holds: Arc<holds::Holds>,
    /// Counts the times at which the output of all clients ended.
    closes: watch::Sender<u64>,
}

impl Default for Streams {
    fn default() -> Self {
        Self {
            clients: Mutex::default(),
            patience: PATIENCE,
            input: watch::Sender::default(),
            keeper: Mutex::default(),
            holds: Arc::new(holds::Holds::new(PATIENCE)),
            closes: watch::Sender::default(),
        }
    }
}

/// A process's ends as the engine drives them.
pub(crate) struct Ends {
    stdout: Arc<Channel>,
    stderr: Option<Arc<Channel>>,
    terminal: bool,
}

impl Ends {
    /// Whether the process has a terminal, which shows both streams as one.
    pub(crate) fn is_terminal(&self) -> bool {
        self.terminal
    }
}

impl Streams {
    /// A client's place among those that hear the process.
    pub(crate) fn listen(&self) -> Listener {
        let (client, listener) = Listener::pair();
        self.clients().push(client);
        listener
    }

    fn clients(&self) -> std::sync::MutexGuard<'_, Vec<Client>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the ends of a process that has started (or was found running).
    pub(crate) fn open(&self, stdio: Stdio, zones: &Zones, key: &str) -> io::Result<Ends> {
        match stdio {
            Stdio::Terminal(master) => {
                let master = Arc::new(Channel::new(master, Interest::READABLE | Interest::WRITABLE)?);
                self.input.send_replace(Input::Open(master.clone()));
                Ok(Ends {
                    stdout: master,
                    stderr: None,
                    terminal: true,
                })
            }
            Stdio::Pipes {
                stdin,
                stdout,
                stderr,
            } => {
                let input = match stdin {
                    Some(stdin) => Input::Open(Arc::new(Channel::new(stdin, Interest::WRITABLE)?)),
                    None => Input::Closed,
                };
                *self.keeper.lock().unwrap_or_else(PoisonError::into_inner) =
                    Some((zones.clone(), key.to_owned()));
                self.input.send_replace(input);
                Ok(Ends {
                    stdout: Arc::new(Channel::new(stdout, Interest::READABLE)?),
                    stderr: Some(Arc::new(Channel::new(stderr, Interest::READABLE)?)),
                    terminal: false,
                })
            }
        }
    }

    /// Takes what a process without a log says to the clients until it says no more.
    pub(crate) async fn pump(&self, ends: Ends) {
        let (mut out, mut err) = (vec![0; CHUNK], vec![0; CHUNK]);
        let (mut out_open, mut err_open) = (true, ends.stderr.is_some());
        while out_open || err_open {
            let stderr = async {
                match &ends.stderr {
                    Some(stderr) => stderr.read(&mut err).await,
                    None => std::future::pending().await,
                }
            };
            let (stream, read) = tokio::select! {
                read = ends.stdout.read(&mut out), if out_open => (Stream::Stdout, read),
                read = stderr, if err_open => (Stream::Stderr, read),
            };
            match read {
                Ok(bytes) if !bytes.is_empty() => self.say(Chunk { stream, bytes }).await,
                // An end that cannot be read says no more.
                _ if stream == Stream::Stdout => out_open = false,
                _ => err_open = false,
            }
        }
    }

    async fn say(&self, chunk: Chunk) {
        let clients: Vec<_> = self.clients().clone();
        let mut gone = false;
        for client in clients {
            gone |= !self.pass_on(&client, &chunk).await;
        }
        if gone {
            self.clients().retain(|client| !client.room.is_closed());
        }
    }

    /// False if the client has gone, or is taken for gone.
    async fn pass_on(&self, client: &Client, chunk: &Chunk) -> bool {
        let room = client.room.clone().acquire_owned();
        match tokio::time::timeout(self.patience, room).await {
            Ok(Ok(room)) => client.queue.send((chunk.clone(), room)).is_ok(),
            Ok(Err(_)) => false,
            Err(_) => {
                client.cut.cancel();
                client.room.close();
                false
            }
        }
    }

    /// The process has ended: what it left in its pipes is taken without waiting for the clients.
    pub(crate) fn hurry(&self) {
        for client in self.clients().iter() {
            client.room.add_permits(REST_DEPTH);
        }
    }

    /// The process has ended or will not come: its clients' output ends.
    pub(crate) fn close(&self) {
        self.clients().clear();
        self.closes.send_modify(|closes| *closes += 1);
        self.input.send_replace(Input::Awaited);
    }

    /// As [`Self::close`], of a process that will not be started again.
    pub(crate) fn close_for_good(&self) {
        self.clients().clear();
        self.closes.send_modify(|closes| *closes += 1);
        self.input.send_replace(Input::Closed);
    }

    /// Closes the process's standard input for good.
    pub(crate) async fn close_input(&self) {
        let was = self.input.send_replace(Input::Closed);
        let keeper = self.keeper.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let (Input::Open(_), Some((zones, key))) = (was, keeper) {
            // Without process 1 there is no copy either.
            let _ = zones.close_input(&key).await;
        }
    }

    /// Sets the size of the terminal; false where the process has none or does not run.
    pub(crate) fn resize(&self, rows: u16, columns: u16) -> bool {
        match &*self.input.borrow() {
            Input::Open(channel) => zones::resize(channel.0.get_ref(), rows, columns).is_ok(),
            _ => false,
        }
    }

    /// Returns when the process runs or has closed its input.
    pub(crate) async fn settled(&self) {
        let _ = self.opened_input().await;
    }

    async fn opened_input(&self) -> Option<Arc<Channel>> {
        let mut watching = self.input.subscribe();
        let settled = watching.wait_for(|input| !matches!(input, Input::Awaited)).await;
        match settled.as_deref() {
            Ok(Input::Open(channel)) => Some(channel.clone()),
            _ => None,
        }
    }
}

/// Docker's frame: the stream's number, three zero bytes, the length (big-endian), the bytes.
pub(crate) fn frame(stream: Stream, bytes: &[u8]) -> Vec<u8> {
    let number = match stream {
        Stream::Stdout => 1,
        Stream::Stderr => 2,
    };
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes();
    let mut framed = Vec::with_capacity(bytes.len() + 8);
    framed.extend_from_slice(&[number, 0, 0, 0]);
    framed.extend_from_slice(&length);
    framed.extend_from_slice(bytes);
    framed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_has_dockers_header() {
        assert_eq!(frame(Stream::Stderr, b"abc"), b"\x02\0\0\0\0\0\0\x03abc");
    }

    /// A process of the test's own: its standard output.
    fn process() -> (std::io::PipeWriter, Ends) {
        let (reader, writer) = std::io::pipe().unwrap();
        let reader = OwnedFd::from(reader);
        rustix::io::ioctl_fionbio(&reader, true).unwrap();
        let ends = Ends {
            stdout: Arc::new(Channel::new(reader, Interest::READABLE).unwrap()),
            stderr: None,
            terminal: false,
        };
        (writer, ends)
    }

    /// Fills the client's queue: each write is read as a chunk of its own.
    async fn say_until_held_up(writer: &mut std::io::PipeWriter, streams: &Streams) {
        use std::io::Write;
        let room = streams.clients()[0].room.clone();
        while room.available_permits() > 0 {
            let before = room.available_permits();
            writer.write_all(b"x").unwrap();
            while room.available_permits() == before {
                tokio::task::yield_now().await;
            }
        }
    }

    #[tokio::test]
    async fn a_client_that_never_reads_is_cut_off_and_the_process_goes_on() {
        use std::io::Write;
        let streams = Streams {
            patience: Duration::from_millis(100),
            ..Streams::default()
        };
        let (mut writer, ends) = process();
        let idle = streams.listen();
        let mut reading = streams.listen();
        let talk = async {
            say_until_held_up(&mut writer, &streams).await;
            writer.write_all(b"last").unwrap();
            drop(writer);
        };
        let read = async {
            let mut said = Vec::new();
            while let Some(chunk) = reading.next().await {
                said.extend_from_slice(&chunk.bytes);
            }
            said
        };
        let pump = async {
            streams.pump(ends).await;
            streams.close();
        };
        let ((), (), said) = tokio::join!(pump, talk, read);
        assert_eq!(said, [&[b'x'; CLIENT_DEPTH][..], b"last"].concat());
        assert!(idle.cut.is_cancelled() && !reading.cut.is_cancelled());
    }

    #[tokio::test]
    async fn a_client_that_is_behind_when_the_process_ends_misses_nothing() {
        use std::io::Write;
        let streams = Streams::default();
        let (mut writer, ends) = process();
        let mut late = streams.listen();
        let talk = async {
            say_until_held_up(&mut writer, &streams).await;
            // All that the pipe holds, and the end.
            writer.write_all(&[b'y'; 60 << 10]).unwrap();
            drop(writer);
            streams.hurry();
        };
        // Without a reader: it must end all the same.
        tokio::join!(streams.pump(ends), talk);
        streams.close();
        let mut said = Vec::new();
        while let Some(chunk) = late.next().await {
            said.extend_from_slice(&chunk.bytes);
        }
        assert_eq!(said.len(), CLIENT_DEPTH + (60 << 10));
        assert_eq!(said.last(), Some(&b'y'));
    }
}
