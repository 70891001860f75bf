//! The freezer: all processes of a zone stop where they are, and go on again.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;

use sys::readiness::{self, Interest};

use crate::cgroup::Cgroups;
use crate::error::Error;

impl Cgroups {
    /// Stops all processes of a zone, among them those that are born meanwhile; returns when the last
    /// one has stopped. A process that waits for a disk stops when that has answered.
    pub async fn freeze(&self, id: &str) -> Result<(), Error> {
        self.set_frozen(id, true).await
    }

    /// Lets a frozen zone go on; returns when it does.
    pub async fn thaw(&self, id: &str) -> Result<(), Error> {
        self.set_frozen(id, false).await
    }

    /// Whether all processes of a zone are stopped.
    pub fn is_frozen(&self, id: &str) -> bool {
        File::open(self.path(id).join(EVENTS)).is_ok_and(|events| says(&events, "frozen 1").unwrap_or(false))
    }

    async fn set_frozen(&self, id: &str, frozen: bool) -> Result<(), Error> {
        let dir = self.path(id);
        let what = if frozen { "freeze" } else { "thaw" };
        let failed = || Error::io(format!("{what} the zone {id}"));
        // Opened before the change: the kernel tells of what is newer than the last reading.
        let events = File::open(dir.join(EVENTS)).map_err(failed())?;
        fs::write(dir.join("cgroup.freeze"), if frozen { "1" } else { "0" }).map_err(failed())?;
        let wanted = if frozen { "frozen 1" } else { "frozen 0" };
        until(&events, wanted).await.map_err(failed())
    }

    /// Removes a zone's cgroup when the last of its processes, which were killed, has ended.
    pub(crate) async fn remove_when_empty(&self, id: &str) -> Result<(), Error> {
        let Err(busy) = self.remove(id) else {
            return Ok(());
        };
        let Ok(events) = File::open(self.path(id).join(EVENTS)) else {
            return Err(busy);
        };
        self.kill(id);
        until(&events, "populated 0")
            .await
            .map_err(Error::io(format!("wait for the end of the zone {id}")))?;
        self.remove(id)
    }
}

/// Tells of changes, and is ready for poll(2) with an urgent event when there was one.
const EVENTS: &str = "cgroup.events";

/// Waits until the file has a line.
async fn until(events: &File, line: &str) -> io::Result<()> {
    let watch = readiness::watch(events.try_clone()?.into(), Interest::PRIORITY)?;
    while !says(events, line)? {
        let mut changed = watch.ready(Interest::PRIORITY).await?;
        if says(events, line)? {
            break;
        }
        changed.clear_ready();
    }
    Ok(())
}

fn says(events: &File, line: &str) -> io::Result<bool> {
    // Two short lines.
    let mut buffer = [0; 128];
    let length = events.read_at(&mut buffer, 0)?;
    let text = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default());
    Ok(text.lines().any(|there| there == line))
}
