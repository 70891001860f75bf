//! Takes what a process says into its log.
//!
//! What blocks on the disk runs where it may, a turn at a time, for as many processes at a time as
//! [`TURNS`] says: a thousand that say nothing cost a task each, and many that say much wait for each
//! other and not for the engine.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::Semaphore;
use zones::log::{self, Stream, Taken, Writer};

use super::holds::Holds;
use super::{Channel, Ends, Streams};

/// Processes whose words are written at the same time.
static TURNS: Semaphore = Semaphore::const_new(32);
/// Bytes that a process may have written before it is another's turn.
const BUDGET: usize = 4 << 20;
/// Pause before the next try where the pool is full: nothing tells when it has room again.
pub(crate) const BREATH: Duration = Duration::from_secs(1);

/// Everything that a turn needs, and what came of it.
struct Turn {
    writer: Writer,
    ends: [Option<Arc<Channel>>; 2],
    /// Of a terminal.
    relay: Option<OwnedFd>,
    holds: Arc<Holds>,
    /// There was nothing more at present.
    dry: [bool; 2],
    /// The segment whose removal somebody holds back, if it came to that.
    outcome: io::Result<Option<u64>>,
}

impl Streams {
    /// Returns when the process has said everything and it is in the log. While that cannot be written
    /// the process waits, and so does this; `name` is whose log it is, for the console.
    pub(crate) async fn record(&self, ends: Ends, relay: Option<OwnedFd>, writer: Writer, name: &str) {
        let mut turn = Turn {
            writer,
            ends: [Some(ends.stdout), ends.stderr],
            relay,
            holds: self.holds.clone(),
            dry: [false; 2],
            outcome: Ok(None),
        };
        let mut moves = self.holds.moves();
        let mut waiting = false;
        loop {
            moves.borrow_and_update();
            let Some(back) = take_turn(turn).await else {
                eprintln!("container {name}: its output can no longer be taken");
                return;
            };
            turn = back;
            match &turn.outcome {
                Err(error) => {
                    if !waiting {
                        eprintln!("container {name}: its log cannot be written ({error}); it waits");
                    }
                    waiting = true;
                    tokio::time::sleep(BREATH).await;
                    continue;
                }
                Ok(Some(removal)) => {
                    let limit = self.holds.cut_off(*removal);
                    // Somebody moves, or has had his time.
                    let _ = tokio::time::timeout(limit, moves.changed()).await;
                }
                Ok(None) if turn.ends.iter().all(Option::is_none) => return,
                Ok(None) => {}
            }
            if waiting {
                eprintln!("container {name}: its log can be written again");
            }
            waiting = false;
        }
    }
}

/// Waits until there is something to take, and takes it.
async fn take_turn(turn: Turn) -> Option<Turn> {
    let ends = turn.ends.clone();
    let [out, err] = &ends;
    let mut guards = tokio::select! {
        guard = ready(out.as_deref()) => [Some(guard), ready(err.as_deref()).now_or_never()],
        guard = ready(err.as_deref()) => [ready(out.as_deref()).now_or_never(), Some(guard)],
        // Both are closed, and what they said is not all in the log.
        () = std::future::ready(()), if out.is_none() && err.is_none() => [None, None],
    };
    // Never closed.
    let permit = TURNS.acquire().await;
    let turn = tokio::task::spawn_blocking(move || turn.run()).await.ok()?;
    drop(permit);
    for (guard, dry) in guards.iter_mut().zip(turn.dry) {
        if let (Some(Ok(guard)), true) = (guard, dry) {
            guard.clear_ready();
        }
    }
    Some(turn)
}

type Guard<'a> = tokio::io::unix::AsyncFdReadyGuard<'a, OwnedFd>;

async fn ready(channel: Option<&Channel>) -> io::Result<Guard<'_>> {
    match channel {
        Some(channel) => channel.0.readable().await,
        None => std::future::pending().await,
    }
}

impl Turn {
    fn run(mut self) -> Self {
        self.dry = [false; 2];
        self.outcome = self.try_run();
        self
    }

    fn try_run(&mut self) -> io::Result<Option<u64>> {
        let mut left = BUDGET;
        let has_more = |turn: &Self| {
            let mut both = turn.ends.iter().zip(turn.dry);
            both.any(|(end, dry)| end.is_some() && !dry)
        };
        while left > 0 && has_more(self) {
            for stream in Stream::BOTH {
                let number = stream as usize;
                let Some(end) = self.ends[number].clone().filter(|_| !self.dry[number]) else {
                    continue;
                };
                let removal = self.writer.removal();
                if let Some(removal) = removal.filter(|removal| self.holds.hold_back(*removal)) {
                    return Ok(Some(removal));
                }
                match self.take(stream, &end)? {
                    Taken::Bytes(count) => left = left.saturating_sub(count),
                    Taken::Nothing => self.dry[number] = true,
                    Taken::End => self.ends[number] = None,
                }
            }
        }
        if self.ends.iter().all(Option::is_none) {
            self.writer.finish()?;
        }
        Ok(None)
    }

    fn take(&mut self, stream: Stream, end: &Channel) -> io::Result<Taken> {
        let end = end.0.get_ref().as_fd();
        let Some(relay) = &self.relay else {
            return self.writer.take(stream, end);
        };
        // A predecessor may have left something in it.
        match self.writer.take(stream, relay.as_fd())? {
            Taken::Bytes(count) => return Ok(Taken::Bytes(count)),
            Taken::Nothing | Taken::End => {}
        }
        match log::relay(end, relay.as_fd())? {
            Taken::Bytes(_) => self.writer.take(stream, relay.as_fd()),
            other => Ok(other),
        }
    }
}
