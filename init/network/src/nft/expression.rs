//! The expressions that rules are made of, as plain data, and their netlink form. Names and numbers
//! are those of `linux/netfilter/nf_tables.h`.

use crate::netlink::Body;

const NFTA_LIST_ELEM: u16 = 1;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_DATA_VERDICT: u16 = 2;
const NFTA_VERDICT_CODE: u16 = 1;

const NFT_REG_VERDICT: u32 = 0;
/// The first of the 4-byte registers.
const NFT_REG32_00: u32 = 8;

const NFT_NAT_DNAT: u32 = 1;

/// One of the sixteen 4-byte registers; a longer value takes as many as it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Register(pub(crate) u32);

impl Register {
    fn number(self) -> u32 {
        NFT_REG32_00 + self.0
    }
}

/// Where a packet's fields are counted from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Base {
    Network = 1,
    Transport = 2,
}

/// Which Internet protocol a packet is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Family {
    V4 = 2,
    V6 = 10,
}

/// What is known of a packet beside its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Meta {
    InputName = 6,
    OutputName = 7,
    /// `NFPROTO_IPV4` or `NFPROTO_IPV6`, one byte.
    Family = 15,
    TransportProtocol = 16,
    InputGroup = 21,
    OutputGroup = 22,
}

/// What connection tracking knows of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Tracked {
    State = 0,
    Status = 2,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Operator {
    Equal = 0,
    NotEqual = 1,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Verdict {
    Drop = 0,
    Accept = 1,
}

/// A step of a rule. Steps are taken in order; a comparison or a lookup that fails ends the rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Expression {
    Meta(Meta, Register),
    Tracked(Tracked, Register),
    /// Loads packet bytes.
    Payload {
        base: Base,
        offset: u32,
        length: u32,
        to: Register,
    },
    /// Loads a value.
    Value(Register, Vec<u8>),
    /// Keeps the bits of `mask`, in place.
    Mask(Register, Vec<u8>),
    Compare(Register, Operator, Vec<u8>),
    /// Loads what kind of address the destination is (`RTN_LOCAL` and so on).
    DestinationKind(Register),
    /// Loads whether the packet's source would be answered by the link that it came by: 1 or 0.
    WayBack(Register),
    /// Goes on if the key that begins there is in a set.
    Member {
        name: &'static str,
        key: Register,
    },
    /// Looks the key that begins at `key` up in a map, and loads what it maps to.
    Map {
        name: &'static str,
        key: Register,
        to: Register,
    },
    /// New destination address and port from registers.
    DestinationNat {
        family: Family,
        address: Register,
        port: Register,
    },
    Masquerade,
    Verdict(Verdict),
}

impl Expression {
    /// Appends the expression to a rule's list.
    pub(crate) fn write(&self, list: &mut Body<'_>) {
        list.nest(NFTA_LIST_ELEM, |element| {
            element.text(NFTA_EXPR_NAME, self.name());
            element.nest(NFTA_EXPR_DATA, |data| self.write_data(data));
        });
    }

    fn name(&self) -> &'static str {
        match self {
            Expression::Meta(..) => "meta",
            Expression::Tracked(..) => "ct",
            Expression::Payload { .. } => "payload",
            Expression::Mask(..) => "bitwise",
            Expression::Compare(..) => "cmp",
            Expression::DestinationKind(_) | Expression::WayBack(_) => "fib",
            Expression::Map { .. } | Expression::Member { .. } => "lookup",
            Expression::DestinationNat { .. } => "nat",
            Expression::Masquerade => "masq",
            Expression::Value(..) | Expression::Verdict(_) => "immediate",
        }
    }

    fn write_data(&self, data: &mut Body<'_>) {
        match self {
            Expression::Meta(key, to) => {
                // NFTA_META_DREG, NFTA_META_KEY
                data.be32(1, to.number());
                data.be32(2, *key as u32);
            }
            Expression::Tracked(key, to) => {
                // NFTA_CT_DREG, NFTA_CT_KEY
                data.be32(1, to.number());
                data.be32(2, *key as u32);
            }
            Expression::Payload {
                base,
                offset,
                length,
                to,
            } => {
                // NFTA_PAYLOAD_DREG, _BASE, _OFFSET, _LEN
                data.be32(1, to.number());
                data.be32(2, *base as u32);
                data.be32(3, *offset);
                data.be32(4, *length);
            }
            Expression::Value(to, value) => {
                // NFTA_IMMEDIATE_DREG, _DATA
                data.be32(1, to.number());
                data.nest(2, |data| data.bytes(NFTA_DATA_VALUE, value));
            }
            Expression::Mask(register, mask) => {
                // NFTA_BITWISE_SREG, _DREG, _LEN, _MASK, _XOR
                data.be32(1, register.number());
                data.be32(2, register.number());
                data.be32(3, mask.len() as u32);
                data.nest(4, |value| value.bytes(NFTA_DATA_VALUE, mask));
                data.nest(5, |value| {
                    value.bytes(NFTA_DATA_VALUE, &vec![0; mask.len()]);
                });
            }
            Expression::Compare(register, operator, value) => {
                // NFTA_CMP_SREG, _OP, _DATA
                data.be32(1, register.number());
                data.be32(2, *operator as u32);
                data.nest(3, |data| data.bytes(NFTA_DATA_VALUE, value));
            }
            Expression::DestinationKind(to) => {
                // NFTA_FIB_DREG; _RESULT: NFT_FIB_RESULT_ADDRTYPE; _FLAGS: NFTA_FIB_F_DADDR
                data.be32(1, to.number());
                data.be32(2, 3);
                data.be32(3, 2);
            }
            Expression::WayBack(to) => {
                // As above: NFT_FIB_RESULT_OIF; NFTA_FIB_F_SADDR, NFTA_FIB_F_IIF, NFTA_FIB_F_PRESENT
                data.be32(1, to.number());
                data.be32(2, 1);
                data.be32(3, 1 | 8 | 32);
            }
            Expression::Member { name, key } => {
                // NFTA_LOOKUP_SET, _SREG
                data.text(1, name);
                data.be32(2, key.number());
            }
            Expression::Map { name, key, to } => {
                // NFTA_LOOKUP_SET, _SREG, _DREG
                data.text(1, name);
                data.be32(2, key.number());
                data.be32(3, to.number());
            }
            Expression::DestinationNat {
                family,
                address,
                port,
            } => {
                // NFTA_NAT_TYPE, _FAMILY, _REG_ADDR_MIN, _REG_PROTO_MIN
                data.be32(1, NFT_NAT_DNAT);
                data.be32(2, *family as u32);
                data.be32(3, address.number());
                data.be32(5, port.number());
            }
            Expression::Masquerade => {}
            Expression::Verdict(verdict) => {
                // NFTA_IMMEDIATE_DREG, _DATA
                data.be32(1, NFT_REG_VERDICT);
                data.nest(2, |data| {
                    data.nest(NFTA_DATA_VERDICT, |code| {
                        code.be32(NFTA_VERDICT_CODE, *verdict as u32);
                    });
                });
            }
        }
    }
}
