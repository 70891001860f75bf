//! Netlink sockets, also ones that belong to another network namespace.
//!
//! A socket stays in the namespace it was opened in, whoever uses it later. So to configure a zone
//! from outside, a thread that lives for a moment joins the zone's namespace, opens the socket and
//! ends; the caller never leaves its own namespace.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::thread;

use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// What the socket speaks of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Links, addresses, routes: rtnetlink(7).
    Route,
    /// nftables and connection tracking.
    Netfilter,
}

/// Receive buffer, enough for the acknowledgements of a large batch.
const RECEIVE_BUFFER: usize = 1 << 20;

/// Opens a socket in the calling thread's network namespace. `groups` is the mask of the multicast
/// groups it listens to, 0 for none. It asks for the kernel's error texts and for
/// acknowledgements that do not repeat the request.
pub fn open(family: Family, groups: u32) -> io::Result<OwnedFd> {
    let protocol = match family {
        Family::Route => None,
        Family::Netfilter => Some(netlink::NETFILTER),
    };
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        protocol,
    )?;
    rustix::net::bind(&socket, &SocketAddrNetlink::new(0, groups))?;
    rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER)
        .or_else(|_| rustix::net::sockopt::set_socket_recv_buffer_size(&socket, RECEIVE_BUFFER))?;
    enable(&socket, libc::NETLINK_EXT_ACK)?;
    enable(&socket, libc::NETLINK_CAP_ACK)?;
    Ok(socket)
}

/// Opens a socket in the network namespace `namespace`.
pub fn open_in(namespace: BorrowedFd<'_>, family: Family) -> io::Result<OwnedFd> {
    run_in(namespace, || open(family, 0))?
}

/// Runs `work` on a thread of its own in the network namespace `namespace`; processes that it
/// starts are born there too.
pub fn run_in<T: Send>(namespace: BorrowedFd<'_>, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, move || {
                move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network))?;
                Ok(work())
            })?
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Makes a network namespace that lives as long as the descriptor (or a process or socket in it).
pub fn new_namespace() -> io::Result<OwnedFd> {
    thread::spawn(|| {
        // SAFETY: CLONE_NEWNET alone changes which network the calling thread sees, and no memory
        // or descriptor; the thread was made for this and ends right after.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(std::fs::File::open("/proc/thread-self/ns/net")?.into())
    })
    .join()
    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Sends one datagram, which may hold many messages, to the kernel. The kernel has worked through
/// it when this returns.
pub fn send(socket: impl AsFd, datagram: &[u8]) -> io::Result<()> {
    let kernel = SocketAddrNetlink::new(0, 0);
    let sent =
        rustix::io::retry_on_intr(|| rustix::net::sendto(&socket, datagram, SendFlags::empty(), &kernel))?;
    if sent != datagram.len() {
        return Err(io::ErrorKind::WriteZero.into());
    }
    Ok(())
}

/// Receives one datagram of the kernel's into `buffer` and gives its length. What other processes
/// send is dropped. With `wait` false an empty queue is `WouldBlock`. A datagram longer than
/// the buffer is an error.
pub fn receive(socket: impl AsFd, buffer: &mut [u8], wait: bool) -> io::Result<usize> {
    let mut flags = RecvFlags::TRUNC;
    flags.set(RecvFlags::DONTWAIT, !wait);
    loop {
        let (_, length, from) = match rustix::net::recvfrom(&socket, &mut *buffer, flags) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other?,
        };
        let from_kernel = from
            .and_then(|address| SocketAddrNetlink::try_from(address).ok())
            .is_some_and(|address| address.pid() == 0);
        if !from_kernel {
            continue;
        }
        if length > buffer.len() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a netlink datagram was longer than the buffer",
            ));
        }
        return Ok(length);
    }
}

fn enable(socket: &OwnedFd, option: libc::c_int) -> io::Result<()> {
    let one: libc::c_int = 1;
    // SAFETY: the descriptor is open, and the pointer and length describe `one`, which outlives
    // the call.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_NETLINK,
            option,
            (&raw const one).cast(),
            size_of_val(&one) as libc::socklen_t,
        )
    };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
