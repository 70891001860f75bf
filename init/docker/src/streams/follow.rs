//! A client's place in a log that grows.

use std::io;
use std::path::PathBuf;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use zones::log::{Hearing, Listener, Piece, Progress};

use super::Streams;
use super::holds::Hold;
use crate::http::{Result, blocking};

/// Where a client is to begin and to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Span {
    /// What is there, and no more.
    Past,
    /// What comes, to the end of the process's life.
    Present,
    /// Both.
    Whole,
}

pub(crate) struct Follower {
    /// None after an error.
    listener: Option<Listener>,
    progress: watch::Receiver<Progress>,
    closes: watch::Receiver<u64>,
    /// The count at the beginning.
    closes_before: u64,
    live: bool,
    hold: Hold,
}

impl Follower {
    /// Nothing that comes after this returns is missed.
    pub(crate) async fn open(
        streams: &Streams,
        progress: watch::Receiver<Progress>,
        dir: PathBuf,
        span: Span,
    ) -> Result<Self> {
        let hold = Hold::new(&streams.holds);
        let mut closes = streams.closes.subscribe();
        let closes_before = *closes.borrow_and_update();
        let opened = blocking(move || {
            let listener = match span {
                Span::Present => Listener::from_now(&dir),
                Span::Past | Span::Whole => Listener::from_first(&dir),
            };
            listener.map_err(crate::containers::logs::unreadable)
        });
        let listener = opened.await?;
        hold.reach(listener.segment(), false);
        Ok(Self {
            listener: Some(listener),
            progress,
            closes,
            closes_before,
            live: span != Span::Past,
            hold,
        })
    }

    /// Cancelled when the client has taken nothing for too long.
    pub(super) fn cut(&self) -> CancellationToken {
        self.hold.cut.clone()
    }

    /// The next pieces; none when the process has ended and all was told.
    ///
    /// # Errors
    /// The log cannot be read, or what came next was rotated away.
    pub(super) async fn next(&mut self) -> io::Result<Option<Vec<Piece>>> {
        loop {
            // Taken before reading: what comes after it is notified again.
            let closed = *self.closes.borrow_and_update() != self.closes_before;
            let over = self.progress.borrow_and_update().ended;
            let mut listener = self.listener.take().ok_or(io::ErrorKind::NotFound)?;
            let read = tokio::task::spawn_blocking(move || (listener.pieces(), listener)).await;
            let (pieces, listener) = read.map_err(io::Error::other)?;
            let (state, segment) = (listener.state(), listener.segment());
            self.listener = Some(listener);
            let pieces = pieces?;
            self.hold.reach(segment, !pieces.is_empty());
            if !pieces.is_empty() {
                return Ok(Some(pieces));
            }
            match state {
                Hearing::Lost => return Err(io::Error::other("the log was rotated away from its reader")),
                // Nothing more comes; the client is let go when the end is settled.
                Hearing::Ended if !closed => {
                    let _ = self.closes.changed().await;
                }
                // What waits to be written is waited for, also when the process has ended.
                Hearing::On if self.live && !(closed && over) => {
                    tokio::select! {
                        changed = self.progress.changed() => changed.map_err(io::Error::other)?,
                        changed = self.closes.changed() => changed.map_err(io::Error::other)?,
                    }
                }
                Hearing::Ended | Hearing::On => return Ok(None),
            }
        }
    }
}
