//! Messages and attributes as bytes. Numbers are in the machine's byte order unless a name says
//! `be`; each part is padded to 4 bytes.

/// Length of `nlmsghdr`.
pub(super) const HEADER: usize = 16;
/// Length of `nlattr`.
const ATTRIBUTE: usize = 4;
const NESTED: u16 = 0x8000;
/// The bits of an attribute's type that are no flags.
const TYPE_MASK: u16 = 0x3fff;

/// Requests that travel in one datagram.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(super) bytes: Vec<u8>,
    /// Where each message begins.
    pub(super) starts: Vec<usize>,
}

impl Batch {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Adds a message whose body `write` fills in. `flag::REQUEST` is implied.
    pub(crate) fn push(&mut self, kind: u16, flags: u16, write: impl FnOnce(&mut Body<'_>)) {
        let start = self.bytes.len();
        self.starts.push(start);
        self.bytes.extend_from_slice(&0_u32.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes
            .extend_from_slice(&(flags | super::flag::REQUEST).to_ne_bytes());
        // Sequence number and port, set when the batch is sent.
        self.bytes.extend_from_slice(&[0; 8]);
        write(&mut Body {
            bytes: &mut self.bytes,
        });
        let length = (self.bytes.len() - start) as u32;
        put(&mut self.bytes, start, &length.to_ne_bytes());
        pad(&mut self.bytes);
    }

    /// Sets flag bits of the message `index`.
    pub(super) fn add_flags(&mut self, index: usize, flags: u16) {
        let Some(at) = self.starts.get(index).map(|start| start + 6) else {
            return;
        };
        if let Some(old) = self.bytes.get(at..).and_then(u16_of) {
            put(&mut self.bytes, at, &(old | flags).to_ne_bytes());
        }
    }

    /// Numbers the messages from `first` on.
    pub(super) fn number(&mut self, first: u32) {
        for (offset, start) in (0_u32..).zip(&self.starts) {
            put(
                &mut self.bytes,
                start + 8,
                &first.wrapping_add(offset).to_ne_bytes(),
            );
        }
    }
}

/// The body of a message or of a nested attribute.
#[derive(Debug)]
pub(crate) struct Body<'a> {
    bytes: &'a mut Vec<u8>,
}

impl Body<'_> {
    /// Appends a fixed structure, such as `ifinfomsg`.
    pub(crate) fn fixed(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        pad(self.bytes);
    }

    pub(crate) fn bytes(&mut self, kind: u16, value: &[u8]) {
        let length = (ATTRIBUTE + value.len()) as u16;
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        pad(self.bytes);
    }

    /// A text with the zero byte that the kernel expects at its end.
    pub(crate) fn text(&mut self, kind: u16, value: &str) {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes);
    }

    pub(crate) fn u32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_ne_bytes());
    }

    pub(crate) fn be32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    pub(crate) fn nest(&mut self, kind: u16, write: impl FnOnce(&mut Body<'_>)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&(kind | NESTED).to_ne_bytes());
        write(&mut Body { bytes: self.bytes });
        let length = (self.bytes.len() - start) as u16;
        put(self.bytes, start, &length.to_ne_bytes());
    }
}

/// Reads the attributes of a body; ends at the first that is cut off.
#[derive(Debug, Clone)]
pub(crate) struct Attributes<'a> {
    rest: &'a [u8],
}

impl<'a> Attributes<'a> {
    /// `body` after a fixed structure of `fixed` bytes.
    pub(crate) fn after(body: &'a [u8], fixed: usize) -> Self {
        Self {
            rest: body.get(fixed..).unwrap_or_default(),
        }
    }

    pub(crate) fn of(body: &'a [u8]) -> Self {
        Self::after(body, 0)
    }

    /// The first attribute of this type.
    pub(crate) fn find(&self, kind: u16) -> Option<&'a [u8]> {
        self.clone().find_map(|(k, value)| (k == kind).then_some(value))
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(u16_of(self.rest)?);
        let kind = u16_of(self.rest.get(2..)?)? & TYPE_MASK;
        let value = self.rest.get(ATTRIBUTE..length)?;
        self.rest = self.rest.get(padded(length)..).unwrap_or_default();
        Some((kind, value))
    }
}

/// One message of a received datagram.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Received<'a> {
    pub(super) kind: u16,
    pub(super) flags: u16,
    pub(super) sequence: u32,
    pub(super) body: &'a [u8],
}

/// Takes the first message off a datagram.
pub(super) fn split_message(datagram: &[u8]) -> Option<(Received<'_>, &[u8])> {
    let length = u32_of(datagram)? as usize;
    let message = Received {
        kind: u16_of(datagram.get(4..)?)?,
        flags: u16_of(datagram.get(6..)?)?,
        sequence: u32_of(datagram.get(8..)?)?,
        body: datagram.get(HEADER..length)?,
    };
    Some((message, datagram.get(padded(length)..).unwrap_or_default()))
}

pub(crate) fn u16_of(bytes: &[u8]) -> Option<u16> {
    bytes.first_chunk().map(|b| u16::from_ne_bytes(*b))
}

pub(crate) fn u32_of(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().map(|b| u32::from_ne_bytes(*b))
}

/// A text attribute without its zero byte.
pub(crate) fn text(value: &[u8]) -> String {
    let end = value.iter().position(|b| *b == 0).unwrap_or(value.len());
    String::from_utf8_lossy(value.get(..end).unwrap_or_default()).into_owned()
}

fn padded(length: usize) -> usize {
    length.next_multiple_of(4)
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(padded(bytes.len()), 0);
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at + value.len()) {
        place.copy_from_slice(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_has_its_length_and_padded_attributes() {
        let mut batch = Batch::new();
        batch.push(0x10, 0, |body| {
            body.fixed(&[1, 2, 3, 4]);
            body.text(3, "eth0");
            body.nest(5, |inner| inner.bytes(1, &[7]));
        });
        let (message, rest) = split_message(&batch.bytes).unwrap();
        assert!(rest.is_empty());
        assert_eq!(message.kind, 0x10);
        assert_eq!(message.flags, super::super::flag::REQUEST);
        let attributes = Attributes::after(message.body, 4);
        assert_eq!(attributes.find(3), Some(&b"eth0\0"[..]));
        let inner = Attributes::of(attributes.find(5).unwrap());
        assert_eq!(inner.collect::<Vec<_>>(), [(1, &[7_u8][..])]);
    }

    #[test]
    fn cut_off_or_senseless_attributes_end_the_reading() {
        for bytes in [
            &[][..],
            &[4],
            &[0, 0, 1, 0],
            &[3, 0, 1, 0],
            &[200, 0, 1, 0, 9],
            &[255; 64],
        ] {
            assert_eq!(Attributes::of(bytes).count(), 0, "{bytes:?}");
        }
    }

    #[test]
    fn a_message_longer_than_its_datagram_is_none() {
        let mut batch = Batch::new();
        batch.push(1, 0, |body| body.u32(1, 1));
        for cut in 0..batch.bytes.len() {
            assert!(split_message(&batch.bytes[..cut]).is_none(), "{cut}");
        }
        assert!(split_message(&[0; 64]).is_none());
    }

    #[test]
    fn messages_are_numbered_in_order() {
        let mut batch = Batch::new();
        batch.push(1, 0, |_| {});
        batch.push(2, 0, |_| {});
        batch.number(u32::MAX);
        let (first, rest) = split_message(&batch.bytes).unwrap();
        let (second, _) = split_message(rest).unwrap();
        assert_eq!((first.sequence, second.sequence), (u32::MAX, 0));
    }
}
