//! `monobloc logs`.

use std::io::{self, SeekFrom, Write as _};
use std::ops::ControlFlow;

use super::{Logs, pick, text};

pub(super) fn run(arguments: &Logs) -> anyhow::Result<()> {
    let machine = pick::machine(arguments.machine.as_deref())?;
    let process = machine.process();
    let from = match arguments.tail {
        None => SeekFrom::Start(0),
        Some(lines) => {
            // Its length is taken first, so that what is said meanwhile is told twice rather than not.
            let length = std::fs::metadata(machine.log()).map_or(0, |data| data.len());
            let tail = machine.tail(lines);
            if !tail.is_empty() {
                text::print(&format!("{tail}\n"))?;
            }
            if !arguments.follow {
                return Ok(());
            }
            SeekFrom::Start(length)
        }
    };
    let process = process.as_ref().filter(|_| arguments.follow);
    machine.follow(from, process, |bytes| {
        let mut stdout = io::stdout().lock();
        match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    })
}
