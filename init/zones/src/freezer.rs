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
        let events = fs::read_to_string(self.path(id).join("cgroup.events"));
        events.is_ok_and(|events| says_frozen(&events))
    }

    async fn set_frozen(&self, id: &str, frozen: bool) -> Result<(), Error> {
        let dir = self.path(id);
        let what = if frozen { "freeze" } else { "thaw" };
        let failed = || Error::io(format!("{what} the zone {id}"));
        // Opened before the change: the kernel tells of what is newer than the last reading.
        let events = File::open(dir.join("cgroup.events")).map_err(failed())?;
        let copy = events.try_clone().map_err(failed())?;
        let watch = readiness::watch(copy.into(), Interest::PRIORITY).map_err(failed())?;
        fs::write(dir.join("cgroup.freeze"), if frozen { "1" } else { "0" }).map_err(failed())?;
        while read_frozen(&events).map_err(failed())? != frozen {
            let mut changed = watch.ready(Interest::PRIORITY).await.map_err(failed())?;
            if read_frozen(&events).map_err(failed())? == frozen {
                break;
            }
            changed.clear_ready();
        }
        Ok(())
    }
}

fn says_frozen(events: &str) -> bool {
    events.lines().any(|line| line == "frozen 1")
}

fn read_frozen(events: &File) -> io::Result<bool> {
    // Two short lines.
    let mut buffer = [0; 128];
    let length = events.read_at(&mut buffer, 0)?;
    let text = buffer.get(..length).unwrap_or_default();
    Ok(says_frozen(&String::from_utf8_lossy(text)))
}
