//! Which devices a zone may open, as a program of the kernel's own (`Documentation/bpf`,
//! `BPF_PROG_TYPE_CGROUP_DEVICE`) that is attached to the zone's cgroup before its first process is
//! born.
//!
//! The rules are those of cgroup v1's `devices.allow`: an access is let through if the rules that match
//! the device allow all of it together. What no rule names is refused.

use sys::bpf::Instruction;

use crate::devices::{Device, DeviceAccess, DeviceKind};

/// Lets through some accesses to some devices; none is any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceRule {
    pub kind: Option<DeviceKind>,
    pub major: Option<u32>,
    pub minor: Option<u32>,
    pub access: DeviceAccess,
}

impl DeviceRule {
    /// Everything: for a zone with the host's own powers.
    pub const ALL: Self = Self {
        kind: None,
        major: None,
        minor: None,
        access: DeviceAccess::ALL,
    };

    const fn character(major: u32, minor: Option<u32>) -> Self {
        Self {
            kind: Some(DeviceKind::Character),
            major: Some(major),
            minor,
            access: DeviceAccess::ALL,
        }
    }
}

impl From<&Device> for DeviceRule {
    fn from(device: &Device) -> Self {
        Self {
            kind: Some(device.kind),
            major: Some(device.major),
            minor: Some(device.minor),
            access: device.access,
        }
    }
}

/// What every zone has, as Docker has it: making any node, which opens none, and the devices of its
/// own `/dev` (`Documentation/admin-guide/devices.txt`).
pub(crate) const DEFAULT: &[DeviceRule] = &[
    DeviceRule {
        access: DeviceAccess {
            read: false,
            write: false,
            make: true,
        },
        ..DeviceRule::ALL
    },
    // null, zero, full, random, urandom
    DeviceRule::character(1, Some(3)),
    DeviceRule::character(1, Some(5)),
    DeviceRule::character(1, Some(7)),
    DeviceRule::character(1, Some(8)),
    DeviceRule::character(1, Some(9)),
    // tty, console, ptmx
    DeviceRule::character(5, Some(0)),
    DeviceRule::character(5, Some(1)),
    DeviceRule::character(5, Some(2)),
    // Terminals of the zone's own devpts.
    DeviceRule::character(136, None),
];

/// `BPF_DEVCG_*` of `linux/bpf.h`: kinds, and bits of an access.
const BLOCK: i32 = 1;
const CHARACTER: i32 = 2;
const MAKE: i32 = 1;
const READ: i32 = 2;
const WRITE: i32 = 4;

/// Operation codes (`Documentation/bpf/standardization/instruction-set.rst`).
const LOAD_WORD: u8 = 0x61;
const AND: u8 = 0x54;
const SHIFT_RIGHT: u8 = 0x74;
const MOVE: u8 = 0xb4;
const MOVE_REGISTER: u8 = 0xbc;
const IF_NOT_EQUAL: u8 = 0x56;
const EXIT: u8 = 0x95;

/// Registers: the result; the context, `struct bpf_cgroup_dev_ctx`; and what is kept of it here.
const RESULT: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
const WANTED: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

/// The program that lets through what the rules do.
pub(crate) fn program(rules: &[DeviceRule]) -> Vec<Instruction> {
    let mut code = vec![
        // access_type: the kind in the low half, the access above it; then major and minor number.
        load(KIND, 0),
        two(MOVE_REGISTER, WANTED, KIND),
        one(AND, KIND, 0xffff),
        one(SHIFT_RIGHT, WANTED, 16),
        load(MAJOR, 4),
        load(MINOR, 8),
    ];
    for rule in rules {
        code.extend(one_rule(rule));
    }
    code.extend([one(MOVE, RESULT, 0), one(EXIT, RESULT, 0)]);
    code
}

/// Takes what the rule allows off what is wanted; with nothing left, the access is let through.
fn one_rule(rule: &DeviceRule) -> Vec<Instruction> {
    let kind = rule.kind.map(|kind| match kind {
        DeviceKind::Block => BLOCK,
        DeviceKind::Character => CHARACTER,
    });
    let number = |number: Option<u32>| number.map(u32::cast_signed);
    let tests: Vec<(u8, i32)> = [
        (KIND, kind),
        (MAJOR, number(rule.major)),
        (MINOR, number(rule.minor)),
    ]
    .into_iter()
    .filter_map(|(register, value)| Some((register, value?)))
    .collect();
    let bit = |wanted: bool, bit: i32| if wanted { bit } else { 0 };
    let access = rule.access;
    let allowed = bit(access.make, MAKE) | bit(access.read, READ) | bit(access.write, WRITE);
    let body = [
        one(AND, WANTED, !allowed),
        jump_if_not(WANTED, 0, 2),
        one(MOVE, RESULT, 1),
        one(EXIT, RESULT, 0),
    ];
    let mut code = Vec::new();
    for (index, (register, value)) in tests.iter().enumerate() {
        let over = tests.len() - index - 1 + body.len();
        code.push(jump_if_not(*register, *value, over as i16));
    }
    code.extend(body);
    code
}

const fn one(code: u8, register: u8, immediate: i32) -> Instruction {
    Instruction {
        code,
        registers: register,
        offset: 0,
        immediate,
    }
}

const fn two(code: u8, to: u8, from: u8) -> Instruction {
    Instruction {
        code,
        registers: to | from << 4,
        offset: 0,
        immediate: 0,
    }
}

const fn load(to: u8, offset: i16) -> Instruction {
    Instruction {
        code: LOAD_WORD,
        registers: to | CONTEXT << 4,
        offset,
        immediate: 0,
    }
}

/// Skips `over` instructions if the register's low half is another value.
const fn jump_if_not(register: u8, value: i32, over: i16) -> Instruction {
    Instruction {
        code: IF_NOT_EQUAL,
        registers: register,
        offset: over,
        immediate: value,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a program as the kernel would.
    fn allows(code: &[Instruction], kind: i32, access: i32, major: i32, minor: i32) -> bool {
        let context = [kind | access << 16, major, minor];
        let mut registers = [0i32; 16];
        let mut at = 0usize;
        loop {
            let step = code[at];
            at += 1;
            let (to, from) = (usize::from(step.registers & 15), usize::from(step.registers >> 4));
            match step.code {
                LOAD_WORD => registers[to] = context[usize::try_from(step.offset / 4).unwrap()],
                AND => registers[to] &= step.immediate,
                SHIFT_RIGHT => registers[to] >>= step.immediate,
                MOVE => registers[to] = step.immediate,
                MOVE_REGISTER => registers[to] = registers[from],
                IF_NOT_EQUAL if registers[to] != step.immediate => {
                    at += usize::try_from(step.offset).unwrap();
                }
                IF_NOT_EQUAL => {}
                EXIT => return registers[0] == 1,
                other => panic!("operation {other:#x}"),
            }
        }
    }

    #[test]
    fn the_usual_devices_are_let_through_and_a_disk_is_not() {
        let code = program(DEFAULT);
        assert!(allows(&code, CHARACTER, READ | WRITE, 1, 3), "null");
        assert!(allows(&code, CHARACTER, READ | WRITE, 136, 77), "a terminal");
        assert!(allows(&code, BLOCK, MAKE, 8, 0), "the node of a disk");
        assert!(!allows(&code, BLOCK, READ, 8, 0), "a disk");
        assert!(!allows(&code, BLOCK, READ, 1, 3), "the kind counts");
        assert!(!allows(&code, CHARACTER, READ, 1, 1), "mem");
    }

    #[test]
    fn rules_add_up_and_say_no_more_than_they_do() {
        let only = |access| DeviceRule {
            access: DeviceAccess::parse(access).unwrap(),
            ..DeviceRule::character(10, Some(200))
        };
        let read = program(&[only("r")]);
        assert!(allows(&read, CHARACTER, READ, 10, 200));
        assert!(!allows(&read, CHARACTER, READ | WRITE, 10, 200));
        assert!(!allows(&read, CHARACTER, READ, 10, 201));
        let both = program(&[only("r"), only("w")]);
        assert!(allows(&both, CHARACTER, READ | WRITE, 10, 200));
        assert!(!allows(&both, CHARACTER, READ | WRITE | MAKE, 10, 200));
        assert!(allows(
            &program(&[DeviceRule::ALL]),
            BLOCK,
            READ | WRITE | MAKE,
            8,
            1
        ));
        assert!(!allows(&program(&[]), CHARACTER, READ, 1, 3));
    }
}
