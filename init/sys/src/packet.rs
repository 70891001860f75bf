//! Packet sockets (packet(7)) of one link: network-layer packets in and out before the link has an
//! address. The kernel writes and takes off the link-layer header.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// IPv4 in the link-layer header.
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// ARP in the link-layer header.
pub const ETHERTYPE_ARP: u16 = 0x0806;

/// One instruction of a classic socket filter; the packet begins at its network-layer header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    pub code: u16,
    pub jump_true: u8,
    pub jump_false: u8,
    pub operand: u32,
}

/// A received packet's circumstances.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    pub length: usize,
    /// False where the sender left the transport checksum to hardware that the packet never
    /// passed (it comes from this machine), so that the field holds nothing to check.
    pub checksum_ready: bool,
}

/// A socket that sends and receives packets of one ethertype on one link, never blocking.
#[derive(Debug)]
pub struct PacketSocket {
    socket: OwnedFd,
    link: i32,
    ethertype: u16,
}

impl PacketSocket {
    /// Opens it in the calling thread's network namespace on the link with the index `link`.
    /// Packets that `filter` lets through from then on are received; an empty one passes all.
    pub fn open(link: u32, ethertype: u16, filter: &[Instruction]) -> io::Result<Self> {
        let link = i32::try_from(link).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        // Protocol 0: nothing is received before the filter stands and the link is bound.
        let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: no pointers; the result is checked.
        let raw = check(unsafe { libc::socket(libc::AF_PACKET, kind, 0) })?;
        // SAFETY: `raw` was opened just now and nobody else owns it.
        let socket = unsafe { OwnedFd::from_raw_fd(raw) };
        let this = Self {
            socket,
            link,
            ethertype,
        };
        if !filter.is_empty() {
            this.attach(filter)?;
        }
        this.set(libc::SOL_PACKET, libc::PACKET_AUXDATA, &1_i32)?;
        let address = this.address([0; 6]);
        // SAFETY: `address` is a whole sockaddr_ll that outlives the call.
        check(unsafe {
            libc::bind(
                this.socket.as_raw_fd(),
                (&raw const address).cast(),
                size_of_val(&address) as libc::socklen_t,
            )
        })?;
        Ok(this)
    }

    /// Sends one packet to the link-layer address `to`.
    pub fn send(&self, to: [u8; 6], packet: &[u8]) -> io::Result<()> {
        let address = self.address(to);
        // SAFETY: both pointers come with the lengths of what they point to, and both outlive the
        // call.
        let sent = unsafe {
            libc::sendto(
                self.socket.as_raw_fd(),
                packet.as_ptr().cast(),
                packet.len(),
                0,
                (&raw const address).cast(),
                size_of_val(&address) as libc::socklen_t,
            )
        };
        if sent < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Receives one packet; `WouldBlock` if there is none. A longer packet is cut to the buffer.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<Received> {
        let mut vector = libc::iovec {
            iov_base: buffer.as_mut_ptr().cast(),
            iov_len: buffer.len(),
        };
        // Words, so that control messages are aligned.
        let mut control = [0_u64; 16];
        // SAFETY: zero is a valid msghdr (null pointers with zero lengths).
        let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
        message.msg_iov = &raw mut vector;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control);
        // SAFETY: the header points to one iovec over `buffer` and to `control`, all of which
        // outlive the call and are writable.
        let length = unsafe { libc::recvmsg(self.socket.as_raw_fd(), &raw mut message, 0) };
        if length < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Received {
            length: usize::try_from(length).unwrap_or(0).min(buffer.len()),
            checksum_ready: status(&message) & libc::TP_STATUS_CSUMNOTREADY == 0,
        })
    }

    fn attach(&self, filter: &[Instruction]) -> io::Result<()> {
        let mut code: Vec<libc::sock_filter> = filter
            .iter()
            .map(|i| libc::sock_filter {
                code: i.code,
                jt: i.jump_true,
                jf: i.jump_false,
                k: i.operand,
            })
            .collect();
        let program = libc::sock_fprog {
            len: u16::try_from(code.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?,
            filter: code.as_mut_ptr(),
        };
        // `program` points into `code`, which lives to the end of this function.
        self.set(libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
    }

    /// Sets a socket option whose value is a plain C value.
    fn set<T>(&self, level: i32, option: i32, value: &T) -> io::Result<()> {
        // SAFETY: pointer and length describe `value`, which outlives the call; the callers pass
        // the C type that the option takes.
        check(unsafe {
            libc::setsockopt(
                self.socket.as_raw_fd(),
                level,
                option,
                std::ptr::from_ref(value).cast(),
                size_of::<T>() as libc::socklen_t,
            )
        })
        .map(drop)
    }

    fn address(&self, to: [u8; 6]) -> libc::sockaddr_ll {
        let [a, b, c, d, e, f] = to;
        libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: self.ethertype.to_be(),
            sll_ifindex: self.link,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 6,
            sll_addr: [a, b, c, d, e, f, 0, 0],
        }
    }
}

impl AsRawFd for PacketSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// The status word of the message's auxiliary data, 0 without one.
fn status(message: &libc::msghdr) -> u32 {
    // SAFETY: recvmsg has filled the header in; its control buffer is alive and holds
    // `msg_controllen` valid bytes, within which the CMSG functions stay.
    let mut control = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !control.is_null() {
        // SAFETY: not null, so it points to a whole control header in the buffer; the data of
        // PACKET_AUXDATA is a tpacket_auxdata, read unaligned after its length was checked.
        unsafe {
            let header = control.read();
            let wanted = libc::CMSG_LEN(size_of::<libc::tpacket_auxdata>() as u32) as usize;
            if header.cmsg_level == libc::SOL_PACKET
                && header.cmsg_type == libc::PACKET_AUXDATA
                && header.cmsg_len >= wanted
            {
                let data: libc::tpacket_auxdata = libc::CMSG_DATA(control)
                    .cast::<libc::tpacket_auxdata>()
                    .read_unaligned();
                return data.tp_status;
            }
            control = libc::CMSG_NXTHDR(message, control);
        }
    }
    0
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}
