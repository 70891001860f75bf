//! Clients that hold a log's rotation back.
//!
//! What an attached client has not read is not rotated away under it: the process waits, as it does
//! with Docker for a client that is slow. One that reads nothing at all is cut off after
//! [`PATIENCE`](super::PATIENCE). A log without limits makes nobody wait.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// The places of all clients that hear one process by its log.
pub(crate) struct Holds {
    places: Mutex<Vec<Place>>,
    patience: Duration,
    /// Counts the changes.
    moves: watch::Sender<u64>,
    next: Mutex<u64>,
}

struct Place {
    client: u64,
    /// The segment that the client has open, or an earlier one; what is in it is not lost to it.
    reached: u64,
    /// Since when it takes what it was given; none while it waits for more.
    taking: Option<Instant>,
    cut: CancellationToken,
}

impl Holds {
    pub(super) fn new(patience: Duration) -> Self {
        Self {
            places: Mutex::default(),
            patience,
            moves: watch::Sender::default(),
            next: Mutex::default(),
        }
    }

    fn places(&self) -> MutexGuard<'_, Vec<Place>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether somebody would lose something with the segments up to `removal`.
    pub(super) fn hold_back(&self, removal: u64) -> bool {
        self.places().iter().any(|place| place.is_behind(removal))
    }

    pub(super) fn moves(&self) -> watch::Receiver<u64> {
        self.moves.subscribe()
    }

    /// Cuts off those who hold `removal` back and have taken nothing for too long; says when to look
    /// again if nobody moves.
    pub(super) fn cut_off(&self, removal: u64) -> Duration {
        let mut next = self.patience;
        for place in self.places().iter().filter(|place| place.is_behind(removal)) {
            let Some(since) = place.taking else { continue };
            match self.patience.checked_sub(since.elapsed()) {
                Some(left) if !left.is_zero() => next = next.min(left),
                _ => place.cut.cancel(),
            }
        }
        next
    }

    fn change(&self, client: u64, change: impl FnOnce(&mut Place)) {
        if let Some(place) = self.places().iter_mut().find(|place| place.client == client) {
            change(place);
        }
        self.moves.send_modify(|moves| *moves += 1);
    }
}

impl Place {
    fn is_behind(&self, removal: u64) -> bool {
        self.reached < removal && !self.cut.is_cancelled()
    }
}

/// One client's hold, for as long as it lives.
pub(super) struct Hold {
    holds: Arc<Holds>,
    client: u64,
    pub(super) cut: CancellationToken,
}

impl Hold {
    /// Takes a hold on all that is there; [`Hold::reach`] gives up what is behind.
    pub(super) fn new(holds: &Arc<Holds>) -> Self {
        let client = {
            let mut next = holds.next.lock().unwrap_or_else(PoisonError::into_inner);
            *next += 1;
            *next
        };
        let cut = CancellationToken::new();
        holds.places().push(Place {
            client,
            reached: 0,
            taking: None,
            cut: cut.clone(),
        });
        Self {
            holds: holds.clone(),
            client,
            cut,
        }
    }

    /// The client has a segment open, and waits for more or takes what it was given.
    pub(super) fn reach(&self, segment: u64, taking: bool) {
        self.holds.change(self.client, |place| {
            place.reached = segment;
            place.taking = taking.then(Instant::now);
        });
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.holds.places().retain(|place| place.client != self.client);
        self.holds.moves.send_modify(|moves| *moves += 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_who_is_behind_and_takes_nothing_is_cut_off() {
        let holds = Arc::new(Holds::new(Duration::ZERO));
        let [idle, behind, ahead] = [(); 3].map(|()| Hold::new(&holds));
        idle.reach(1, false);
        behind.reach(1, true);
        ahead.reach(2, true);
        assert!(!holds.hold_back(1) && holds.hold_back(2));
        holds.cut_off(2);
        assert!(behind.cut.is_cancelled());
        assert!(!idle.cut.is_cancelled() && !ahead.cut.is_cancelled());
        // The one that waits for more will come; it is not cut off for it.
        assert!(holds.hold_back(2));
        drop(idle);
        assert!(!holds.hold_back(2));
    }
}
