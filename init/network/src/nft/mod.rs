//! nftables objects of the family `inet` (IPv4 and IPv6 in one table) and the transactions that change them. Layouts and numbers
//! are those of `linux/netfilter/nf_tables.h` and `linux/netfilter/nfnetlink.h`.

pub(crate) mod expression;

use expression::{Expression, Verdict};

use crate::netlink::{Attributes, Batch, Body, Reply, flag};

const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;

const NFT_MSG_NEWTABLE: u16 = 0;
const NFT_MSG_DELTABLE: u16 = 2;
const NFT_MSG_NEWCHAIN: u16 = 3;
const NFT_MSG_NEWRULE: u16 = 6;
const NFT_MSG_NEWSET: u16 = 9;
const NFT_MSG_NEWSETELEM: u16 = 12;
const NFT_MSG_GETSETELEM: u16 = 13;
const NFT_MSG_DELSETELEM: u16 = 14;

const NFPROTO_UNSPEC: u8 = 0;
const NFPROTO_INET: u8 = 1;
/// Length of `nfgenmsg`.
const GENERIC: usize = 4;

const NFTA_LIST_ELEM: u16 = 1;
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_TABLE_NAME: u16 = 1;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_POLICY: u16 = 5;
const NFTA_CHAIN_TYPE: u16 = 7;
const NFTA_HOOK_HOOKNUM: u16 = 1;
const NFTA_HOOK_PRIORITY: u16 = 2;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_SET_TABLE: u16 = 1;
const NFTA_SET_NAME: u16 = 2;
const NFTA_SET_FLAGS: u16 = 3;
const NFTA_SET_KEY_TYPE: u16 = 4;
const NFTA_SET_KEY_LEN: u16 = 5;
const NFTA_SET_DATA_TYPE: u16 = 6;
const NFTA_SET_DATA_LEN: u16 = 7;
const NFTA_SET_ID: u16 = 10;
const NFT_SET_MAP: u32 = 8;
const NFTA_SET_ELEM_KEY: u16 = 1;
const NFTA_SET_ELEM_DATA: u16 = 2;
const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
const NFTA_SET_ELEM_LIST_SET: u16 = 2;
const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;

/// Elements that go into one message; attributes have 16-bit lengths.
const ELEMENTS_PER_MESSAGE: usize = 500;

/// Where in a packet's way a chain stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Hook {
    Prerouting = 0,
    Input = 1,
    Forward = 2,
    Output = 3,
    Postrouting = 4,
}

/// A chain that the kernel passes packets to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chain {
    pub(crate) name: &'static str,
    /// `filter` or `nat`.
    pub(crate) kind: &'static str,
    pub(crate) hook: Hook,
    /// Chains of a hook are passed through from the least on.
    pub(crate) priority: i32,
    /// For a packet that no rule decided on.
    pub(crate) policy: Verdict,
    pub(crate) rules: Vec<Vec<Expression>>,
}

/// Types of map keys and values as nft(8) names and numbers them, so that it can show them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Kind {
    Ipv4Address = 7,
    Ipv6Address = 8,
    Protocol = 12,
    Port = 13,
    LinkGroup = 35,
}

impl Kind {
    /// Bytes that it takes in a key or value, a multiple of [`PART`].
    const fn length(self) -> usize {
        match self {
            Kind::Ipv6Address => 4 * PART,
            _ => PART,
        }
    }
}

/// Bits that each part of a concatenated type's number takes in nft(8).
const KIND_BITS: u32 = 6;
/// Bytes that each part of a concatenated key or value takes; shorter ones are padded at the end.
pub(crate) const PART: usize = 4;

/// A map from concatenated values to concatenated values; a set where there are none of the latter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Map {
    pub(crate) name: &'static str,
    pub(crate) key: &'static [Kind],
    pub(crate) value: &'static [Kind],
}

/// Key and value of a map's element, each part padded to a multiple of [`PART`] bytes. A set's has no value.
pub(crate) type Element = (Vec<u8>, Vec<u8>);

/// Changes of one table that come into force all at once or not at all.
#[derive(Debug)]
pub(crate) struct Transaction {
    batch: Batch,
    table: &'static str,
    sets: u32,
}

impl Transaction {
    pub(crate) fn new(table: &'static str) -> Self {
        let mut batch = Batch::new();
        batch.push(NFNL_MSG_BATCH_BEGIN, 0, bracket);
        Self {
            batch,
            table,
            sets: 0,
        }
    }

    /// The messages, to be committed.
    pub(crate) fn finish(mut self) -> Batch {
        self.batch.push(NFNL_MSG_BATCH_END, 0, bracket);
        self.batch
    }

    /// Removes the table with all that is in it, if it is there, and makes it anew.
    pub(crate) fn recreate_table(&mut self) {
        let table = self.table;
        let name = |body: &mut Body<'_>| body.text(NFTA_TABLE_NAME, table);
        // Deleting needs it to be there.
        self.push(NFT_MSG_NEWTABLE, flag::CREATE, name);
        self.push(NFT_MSG_DELTABLE, 0, name);
        self.push(NFT_MSG_NEWTABLE, flag::CREATE, name);
    }

    pub(crate) fn add_map(&mut self, map: &Map) {
        let table = self.table;
        self.sets += 1;
        let id = self.sets;
        self.push(NFT_MSG_NEWSET, flag::CREATE | flag::EXCL, |body| {
            body.text(NFTA_SET_TABLE, table);
            body.text(NFTA_SET_NAME, map.name);
            body.be32(NFTA_SET_FLAGS, if map.value.is_empty() { 0 } else { NFT_SET_MAP });
            body.be32(NFTA_SET_KEY_TYPE, concatenated(map.key));
            body.be32(NFTA_SET_KEY_LEN, length(map.key));
            if !map.value.is_empty() {
                body.be32(NFTA_SET_DATA_TYPE, concatenated(map.value));
                body.be32(NFTA_SET_DATA_LEN, length(map.value));
            }
            body.be32(NFTA_SET_ID, id);
        });
    }

    pub(crate) fn add_chain(&mut self, chain: &Chain) {
        let table = self.table;
        self.push(NFT_MSG_NEWCHAIN, flag::CREATE, |body| {
            body.text(NFTA_CHAIN_TABLE, table);
            body.text(NFTA_CHAIN_NAME, chain.name);
            body.nest(NFTA_CHAIN_HOOK, |hook| {
                hook.be32(NFTA_HOOK_HOOKNUM, chain.hook as u32);
                hook.be32(NFTA_HOOK_PRIORITY, chain.priority.cast_unsigned());
            });
            body.be32(NFTA_CHAIN_POLICY, chain.policy as u32);
            body.text(NFTA_CHAIN_TYPE, chain.kind);
        });
        for rule in &chain.rules {
            self.push(NFT_MSG_NEWRULE, flag::CREATE | flag::APPEND, |body| {
                body.text(NFTA_RULE_TABLE, table);
                body.text(NFTA_RULE_CHAIN, chain.name);
                body.nest(NFTA_RULE_EXPRESSIONS, |list| {
                    for expression in rule {
                        expression.write(list);
                    }
                });
            });
        }
    }

    /// Adds elements; one whose key is there with another value is an error.
    pub(crate) fn add_elements(&mut self, map: &Map, elements: &[Element]) {
        self.elements(NFT_MSG_NEWSETELEM, flag::CREATE | flag::EXCL, map, elements);
    }

    pub(crate) fn delete_elements(&mut self, map: &Map, elements: &[Element]) {
        self.elements(NFT_MSG_DELSETELEM, 0, map, elements);
    }

    fn elements(&mut self, message: u16, flags: u16, map: &Map, elements: &[Element]) {
        let table = self.table;
        for some in elements.chunks(ELEMENTS_PER_MESSAGE) {
            self.push(message, flags, |body| {
                body.text(NFTA_SET_ELEM_LIST_TABLE, table);
                body.text(NFTA_SET_ELEM_LIST_SET, map.name);
                body.nest(NFTA_SET_ELEM_LIST_ELEMENTS, |list| {
                    for (key, value) in some {
                        list.nest(NFTA_LIST_ELEM, |element| {
                            element.nest(NFTA_SET_ELEM_KEY, |k| k.bytes(NFTA_DATA_VALUE, key));
                            if !value.is_empty() {
                                element.nest(NFTA_SET_ELEM_DATA, |v| v.bytes(NFTA_DATA_VALUE, value));
                            }
                        });
                    }
                });
            });
        }
    }

    fn push(&mut self, message: u16, flags: u16, write: impl FnOnce(&mut Body<'_>)) {
        self.batch
            .push(NFNL_SUBSYS_NFTABLES << 8 | message, flags, |body| {
                generic(body, NFPROTO_INET, 0);
                write(body);
            });
    }
}

/// The request for a map's elements; the answers are for [`elements`].
pub(crate) const LIST_ELEMENTS: u16 = NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETSETELEM;
pub(crate) fn list_elements(body: &mut Body<'_>, table: &str, map: &Map) {
    generic(body, NFPROTO_INET, 0);
    body.text(NFTA_SET_ELEM_LIST_TABLE, table);
    body.text(NFTA_SET_ELEM_LIST_SET, map.name);
}

/// Reads the elements out of an answer.
pub(crate) fn elements(reply: &Reply) -> Vec<Element> {
    if reply.kind != NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWSETELEM {
        return Vec::new();
    }
    let value = |element: &Attributes<'_>, kind| {
        let data = element.find(kind)?;
        Attributes::of(data).find(NFTA_DATA_VALUE).map(<[u8]>::to_vec)
    };
    Attributes::after(&reply.body, GENERIC)
        .find(NFTA_SET_ELEM_LIST_ELEMENTS)
        .into_iter()
        .flat_map(Attributes::of)
        .filter_map(|(_, element)| {
            let element = Attributes::of(element);
            Some((
                value(&element, NFTA_SET_ELEM_KEY)?,
                value(&element, NFTA_SET_ELEM_DATA).unwrap_or_default(),
            ))
        })
        .collect()
}

fn bracket(body: &mut Body<'_>) {
    generic(body, NFPROTO_UNSPEC, NFNL_SUBSYS_NFTABLES);
}

/// `nfgenmsg`: family, version 0, resource.
fn generic(body: &mut Body<'_>, family: u8, resource: u16) {
    let [high, low] = resource.to_be_bytes();
    body.fixed(&[family, 0, high, low]);
}

fn length(kinds: &[Kind]) -> u32 {
    kinds.iter().map(|kind| kind.length() as u32).sum()
}

fn concatenated(kinds: &[Kind]) -> u32 {
    kinds
        .iter()
        .fold(0, |number, kind| number << KIND_BITS | *kind as u32)
}
