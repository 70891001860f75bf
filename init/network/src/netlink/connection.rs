//! A conversation with the kernel.
//!
//! The kernel works through a datagram while it is sent, so all its answers are in the socket's
//! queue when `send` returns (the parts of a dump follow as the earlier ones are taken). Nothing
//! here ever waits: an empty queue where an answer should be is an error.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use sys::netlink::{self, Family};

use super::flag;
use super::wire::{self, Attributes, Batch, split_message, u32_of};
use crate::error::Hint;
use crate::{Error, Result};

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// The first message type that belongs to a protocol.
const NLMSG_MIN_TYPE: u16 = 16;
/// A dump was disturbed by a change and is not consistent.
const NLM_F_DUMP_INTR: u16 = 0x10;
/// The error message carries attributes.
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSGERR_ATTR_MSG: u16 = 1;

/// As large as the kernel ever makes a datagram of a dump for a reader of this size.
const BUFFER: usize = 64 << 10;
/// A dump that was disturbed this often is given up.
const DUMP_ATTEMPTS: usize = 8;

#[derive(Debug)]
pub(crate) struct Connection {
    socket: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

/// A message of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) kind: u16,
    pub(crate) body: Vec<u8>,
}

/// The first message of a batch that failed.
#[derive(Debug)]
pub(crate) struct Failure {
    /// Which message of the batch; the batch's length if it is not known.
    pub(crate) index: usize,
    pub(crate) source: io::Error,
    pub(crate) hint: Hint,
}

impl Failure {
    pub(crate) fn errno(&self) -> Option<rustix::io::Errno> {
        rustix::io::Errno::from_io_error(&self.source)
    }

    pub(crate) fn to(self, action: impl Into<String>) -> Error {
        Error::Kernel {
            action: action.into(),
            hint: self.hint,
            source: self.source,
        }
    }

    fn local(index: usize, source: io::Error) -> Self {
        Self {
            index,
            source,
            hint: Hint::default(),
        }
    }
}

/// What a datagram's message says of the batch.
enum Verdict {
    Other,
    Reply(Reply),
    Done,
    Failed(io::Error, Hint),
}

impl Connection {
    /// Opens it in the network namespace of the calling thread.
    pub(crate) fn open(family: Family) -> Result<Self> {
        netlink::open(family, 0)
            .map(Self::over)
            .map_err(|source| Error::Io {
                action: "open a netlink socket".to_owned(),
                source,
            })
    }

    /// Opens it in another network namespace.
    pub(crate) fn open_in(namespace: BorrowedFd<'_>, family: Family) -> Result<Self> {
        netlink::open_in(namespace, family)
            .map(Self::over)
            .map_err(|source| Error::Io {
                action: "open a netlink socket in the container's network namespace".to_owned(),
                source,
            })
    }

    fn over(socket: OwnedFd) -> Self {
        Self {
            socket,
            sequence: 1,
            buffer: vec![0; BUFFER],
        }
    }

    /// Sends the batch and gives the messages that the kernel answers it with. All its
    /// messages are carried out even if one fails, except where the protocol has transactions.
    pub(crate) fn run(&mut self, mut batch: Batch) -> Result<Vec<Reply>, Failure> {
        let Some(last) = batch.starts.len().checked_sub(1) else {
            return Ok(Vec::new());
        };
        batch.add_flags(last, flag::ACK);
        self.send(batch, last)
    }

    /// Sends a transaction of netfilter's: `batch` begins and ends with the messages that
    /// bracket it. All of it comes into force, or nothing.
    pub(crate) fn commit(&mut self, mut batch: Batch) -> Result<Vec<Reply>, Failure> {
        // The bracket's own messages are not acknowledged.
        let Some(last) = batch.starts.len().checked_sub(2).filter(|last| *last > 0) else {
            return Ok(Vec::new());
        };
        batch.add_flags(last, flag::ACK);
        self.send(batch, last)
    }

    /// Sends a batch of which the message `last` is answered last, and collects the answers.
    fn send(&mut self, mut batch: Batch, last: usize) -> Result<Vec<Reply>, Failure> {
        let count = batch.starts.len();
        let first = self.sequence;
        self.sequence = first.wrapping_add(count as u32);
        batch.number(first);
        // What an earlier, failed batch may have left.
        while netlink::receive(&self.socket, &mut self.buffer, false).is_ok() {}
        netlink::send(&self.socket, &batch.bytes).map_err(|e| Failure::local(count, e))?;
        self.collect(first, count, last)
    }

    /// Asks for a list; what `write` puts into the body is the request's.
    pub(crate) fn dump(
        &mut self,
        kind: u16,
        write: impl Fn(&mut wire::Body<'_>),
    ) -> Result<Vec<Reply>, Failure> {
        for _ in 0..DUMP_ATTEMPTS {
            let mut batch = Batch::new();
            batch.push(kind, flag::DUMP, &write);
            match self.send(batch, 0) {
                Err(failure) if failure.errno() == Some(rustix::io::Errno::INTR) => {}
                other => return other,
            }
        }
        Err(Failure::local(0, rustix::io::Errno::INTR.into()))
    }

    fn collect(&mut self, first: u32, count: usize, last: usize) -> Result<Vec<Reply>, Failure> {
        let mut replies = Vec::new();
        let mut failed: Option<Failure> = None;
        loop {
            let length = match netlink::receive(&self.socket, &mut self.buffer, false) {
                Ok(length) => length,
                // The queue is empty before the last acknowledgement came.
                Err(source) => return Err(failed.unwrap_or_else(|| Failure::local(count, source))),
            };
            let mut rest = self.buffer.get(..length).unwrap_or_default();
            while let Some((message, after)) = split_message(rest) {
                rest = after;
                let index = message.sequence.wrapping_sub(first) as usize;
                if index >= count {
                    continue;
                }
                match judge(&message) {
                    Verdict::Other => {}
                    Verdict::Reply(reply) => replies.push(reply),
                    Verdict::Failed(source, hint) => {
                        let failure = Failure { index, source, hint };
                        failed.get_or_insert(failure);
                        if index == last {
                            return failed.map_or(Ok(replies), Err);
                        }
                    }
                    Verdict::Done if index == last => return failed.map_or(Ok(replies), Err),
                    Verdict::Done => {}
                }
            }
        }
    }
}

fn judge(message: &wire::Received<'_>) -> Verdict {
    match message.kind {
        NLMSG_ERROR | NLMSG_DONE => {
            // DONE carries a result too, or nothing in old kernels.
            let code = u32_of(message.body).unwrap_or(0).cast_signed();
            if message.flags & NLM_F_DUMP_INTR != 0 {
                return Verdict::Failed(rustix::io::Errno::INTR.into(), Hint::default());
            }
            if code >= 0 {
                return Verdict::Done;
            }
            Verdict::Failed(
                io::Error::from_raw_os_error(code.saturating_neg()),
                Hint(hint(message)),
            )
        }
        kind if kind < NLMSG_MIN_TYPE => Verdict::Other,
        _ if message.flags & NLM_F_DUMP_INTR != 0 => {
            Verdict::Failed(rustix::io::Errno::INTR.into(), Hint::default())
        }
        kind => Verdict::Reply(Reply {
            kind,
            body: message.body.to_vec(),
        }),
    }
}

/// The kernel's own words. They stand after the error number and the request's header (of which
/// no more is repeated, as the socket asked).
fn hint(message: &wire::Received<'_>) -> Option<String> {
    if message.kind != NLMSG_ERROR || message.flags & NLM_F_ACK_TLVS == 0 {
        return None;
    }
    Attributes::after(message.body, 4 + wire::HEADER)
        .find(NLMSGERR_ATTR_MSG)
        .map(wire::text)
        .filter(|text| !text.is_empty())
}
