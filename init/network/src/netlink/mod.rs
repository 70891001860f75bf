//! Netlink (RFC 3549, netlink(7)): messages and attributes as bytes, and a conversation with the
//! kernel over a socket.

mod connection;
mod wire;

pub(crate) use connection::{Connection, Failure, Reply};
pub(crate) use wire::{Attributes, Batch, Body, text, u16_of, u32_of};

/// `nlmsghdr` flags of requests (`linux/netlink.h`).
pub(crate) mod flag {
    pub(crate) const REQUEST: u16 = 0x001;
    pub(crate) const ACK: u16 = 0x004;
    /// `NLM_F_ROOT | NLM_F_MATCH`
    pub(crate) const DUMP: u16 = 0x300;
    /// A thing that is there already is replaced …
    pub(crate) const REPLACE: u16 = 0x100;
    /// … or is an error.
    pub(crate) const EXCL: u16 = 0x200;
    pub(crate) const CREATE: u16 = 0x400;
    pub(crate) const APPEND: u16 = 0x800;
}
