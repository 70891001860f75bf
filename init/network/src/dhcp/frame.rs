//! DHCP messages in UDP in IPv4, as bytes: a client without an address has to write and read the
//! headers itself (RFC 791, RFC 768).

use sys::packet::Instruction;

/// Ports of server and client (RFC 2131, section 4.1).
pub(super) const SERVER_PORT: u16 = 67;
pub(super) const CLIENT_PORT: u16 = 68;

const IP_HEADER: usize = 20;
const UDP_HEADER: usize = 8;
const PROTOCOL_UDP: u8 = 17;
const TTL: u8 = 64;

/// Passes UDP packets to the client's port that are no later fragments; everything else on the
/// link never wakes the client.
pub(super) const FILTER: [Instruction; 9] = [
    // A = protocol; other than UDP is dropped
    load(0x30, 9),
    jump(0x15, PROTOCOL_UDP as u32, 0, 5),
    // A = flags and fragment offset; an offset is dropped
    load(0x28, 6),
    jump(0x45, 0x1fff, 3, 0),
    // X = length of the IP header; A = destination port
    load(0xb1, 0),
    load(0x48, 2),
    jump(0x15, CLIENT_PORT as u32, 1, 0),
    // pass none; pass all of it
    load(0x06, 0),
    load(0x06, u32::MAX),
];

const fn load(code: u16, operand: u32) -> Instruction {
    jump(code, operand, 0, 0)
}

const fn jump(code: u16, operand: u32, jump_true: u8, jump_false: u8) -> Instruction {
    Instruction {
        code,
        jump_true,
        jump_false,
        operand,
    }
}

/// A broadcast from no address, client to server.
pub(super) fn wrap(message: &[u8]) -> Vec<u8> {
    let udp_length = (UDP_HEADER + message.len()) as u16;
    let length = IP_HEADER as u16 + udp_length;
    let mut packet = Vec::with_capacity(length.into());
    packet.extend_from_slice(&[0x45, 0]);
    packet.extend_from_slice(&length.to_be_bytes());
    // Identification 0, don't fragment.
    packet.extend_from_slice(&[0, 0, 0x40, 0, TTL, PROTOCOL_UDP, 0, 0]);
    packet.extend_from_slice(&[0, 0, 0, 0, 255, 255, 255, 255]);
    let checksum = fold(sum(&packet));
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    let mut udp = Vec::with_capacity(udp_length.into());
    udp.extend_from_slice(&CLIENT_PORT.to_be_bytes());
    udp.extend_from_slice(&SERVER_PORT.to_be_bytes());
    udp.extend_from_slice(&udp_length.to_be_bytes());
    udp.extend_from_slice(&[0, 0]);
    udp.extend_from_slice(message);
    let checksum = match udp_checksum(&packet[12..20], &udp) {
        // 0 would say that there is none.
        0 => 0xffff,
        other => other,
    };
    udp[6..8].copy_from_slice(&checksum.to_be_bytes());
    packet.extend_from_slice(&udp);
    packet
}

/// The message in a packet to the client's port; none if the packet is something else or damaged.
/// The transport checksum is looked at where it is `checksum_ready`.
pub(super) fn unwrap(packet: &[u8], checksum_ready: bool) -> Option<&[u8]> {
    let first = *packet.first()?;
    let header_length = usize::from(first & 0x0f) * 4;
    if first >> 4 != 4 || header_length < IP_HEADER {
        return None;
    }
    // Ethernet pads short packets.
    let packet = packet.get(..usize::from(be16(packet, 2)?))?;
    let header = packet.get(..header_length)?;
    let fragment = be16(header, 6)? & 0x3fff != 0;
    if fragment || *header.get(9)? != PROTOCOL_UDP || fold(sum(header)) != 0 {
        return None;
    }
    let udp = packet.get(header_length..)?;
    let udp = udp.get(..usize::from(be16(udp, 4)?))?;
    if be16(udp, 2)? != CLIENT_PORT {
        return None;
    }
    let checked = checksum_ready && be16(udp, 6)? != 0;
    if checked && udp_checksum(header.get(12..20)?, udp) != 0 {
        return None;
    }
    udp.get(UDP_HEADER..)
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|b| u16::from_be_bytes(*b))
}

/// Checksum over the pseudo header and the datagram; 0 for a datagram with a right one in it.
fn udp_checksum(addresses: &[u8], udp: &[u8]) -> u16 {
    fold(sum(addresses) + u64::from(PROTOCOL_UDP) + udp.len() as u64 + sum(udp))
}

fn sum(bytes: &[u8]) -> u64 {
    let (pairs, odd) = bytes.as_chunks::<2>();
    let pairs: u64 = pairs
        .iter()
        .map(|pair| u64::from(u16::from_be_bytes(*pair)))
        .sum();
    pairs + odd.first().map_or(0, |byte| u64::from(*byte) << 8)
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A packet as a server would send it: ports swapped, so to the client.
    fn to_client(message: &[u8]) -> Vec<u8> {
        let mut packet = wrap(message);
        packet[20..24].copy_from_slice(&[0, 67, 0, 68]);
        packet
    }

    #[test]
    fn what_is_wrapped_is_unwrapped() {
        for message in [&b""[..], b"x", b"odd", &[0xff; 1472]] {
            assert_eq!(unwrap(&to_client(message), true), Some(message));
            let mut padded = to_client(message);
            padded.extend_from_slice(&[0; 20]);
            assert_eq!(unwrap(&padded, true), Some(message));
        }
    }

    #[test]
    fn packets_for_others_are_not_unwrapped() {
        assert_eq!(unwrap(&wrap(b"to a server"), true), None);
    }

    #[test]
    fn damaged_packets_are_not_unwrapped() {
        let good = to_client(b"message");
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x11;
            let unwrapped = unwrap(&bad, true);
            // Only a checksum field that became 0, which means there is none, could pass.
            assert_eq!(unwrapped, None, "byte {at}");
        }
        for length in 0..good.len() {
            assert_eq!(unwrap(&good[..length], true), None, "{length} bytes");
        }
    }

    #[test]
    fn a_checksum_that_is_left_to_hardware_is_not_looked_at() {
        let mut packet = to_client(b"message");
        packet[26] ^= 1;
        assert_eq!(unwrap(&packet, true), None);
        assert_eq!(unwrap(&packet, false), Some(&b"message"[..]));
    }
}
