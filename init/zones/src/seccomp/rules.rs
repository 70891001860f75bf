//! A profile as data: which system calls have which outcome, under which conditions.
//!
//! The words are those of libseccomp and of Docker's profiles (seccomp(2), `seccomp_rule_add(3)`).

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Allow,
    /// Allowed, and told to the kernel's audit log.
    Log,
    /// It fails with an errno.
    Errno(u16),
    /// The thread gets `SIGSYS`.
    Trap,
    /// A tracer is told, with a number of the profile's choice; without one the call fails with `ENOSYS`.
    Trace(u16),
    KillThread,
    KillProcess,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    NotEqual,
    Less,
    LessOrEqual,
    Equal,
    GreaterOrEqual,
    Greater,
    /// Equal in the bits of the mask.
    MaskedEqual {
        mask: u64,
    },
}

/// A test of an argument, unsigned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Condition {
    /// 0 to 5.
    pub argument: u8,
    pub comparison: Comparison,
    pub value: u64,
    /// Only the low 32 bits are looked at, on either side.
    pub low_half: bool,
}

/// What becomes of some calls if all conditions hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Names; one that this kernel's tables do not have means nothing.
    pub calls: Vec<String>,
    pub action: Action,
    pub conditions: Vec<Condition>,
}

/// All of it. Of several rules for one call, those with conditions are tried first, in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// For calls that no rule names.
    pub default: Action,
    /// Whether 32-bit programs may run; they are killed at their first call otherwise.
    pub x86: bool,
    /// The same for programs of the x32 table.
    pub x32: bool,
    pub rules: Vec<Rule>,
}
