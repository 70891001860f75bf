//! From a profile to the instructions of a filter.

use std::collections::{BTreeMap, HashMap};

use sys::program::SockFilter;

use super::rules::{Action, Comparison, Condition, Profile, Rule};
use super::table::{CALLS, NONE, X32, X32_FIRST_OWN, X32_OWN};
use crate::error::Error;

/// Offsets in `struct seccomp_data`; of an argument, the low half comes first.
pub(super) const DATA_NR: u32 = 0;
pub(super) const DATA_ARCH: u32 = 4;
pub(super) const DATA_ARGS: u32 = 16;
/// `AUDIT_ARCH_X86_64`, `AUDIT_ARCH_I386` (`linux/audit.h`).
pub(super) const ARCH_X86_64: u32 = 0xc000_003e;
pub(super) const ARCH_I386: u32 = 0x4000_0003;

/// Operation codes of classic BPF (`linux/bpf_common.h`).
pub(super) const LOAD: u16 = 0x20;
pub(super) const AND: u16 = 0x54;
pub(super) const JUMP: u16 = 0x05;
pub(super) const IF_EQUAL: u16 = 0x15;
pub(super) const IF_GREATER: u16 = 0x25;
pub(super) const IF_AT_LEAST: u16 = 0x35;
pub(super) const RETURN: u16 = 0x06;

/// The most that the kernel takes (`BPF_MAXINSNS`).
const MOST: usize = 4_096;

/// What becomes of a call if all conditions hold.
type Alternative = (Vec<Condition>, Action);

/// What becomes of a call: the first rule whose conditions hold, or else the last word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Verdict {
    rules: Vec<Alternative>,
    otherwise: Action,
}

impl Verdict {
    fn always(action: Action) -> Self {
        Self {
            rules: Vec::new(),
            otherwise: action,
        }
    }
}

/// A run of numbers from `first` up to the next run, all with one verdict.
struct Run<'a> {
    first: u32,
    verdict: &'a Verdict,
}

pub(super) fn compile(profile: &Profile) -> Result<Vec<SockFilter>, Error> {
    let by_name = verdicts(profile);
    let killed = || vec![instruction(RETURN, code(Action::KillProcess))];
    let x86_64 = table(&by_name, profile.default, 0, number_x86_64);
    let x32 = if profile.x32 {
        let own = table(&by_name, profile.default, X32 | X32_FIRST_OWN, number_x32);
        let mut x32 = jump_unless_at_least(X32 | X32_FIRST_OWN, own.len());
        x32.extend(own);
        // The rest have the numbers of x86-64, whose table follows.
        x32.push(instruction(AND, !X32));
        x32
    } else {
        killed()
    };
    let x86 = if profile.x86 {
        let mut x86 = vec![instruction(LOAD, DATA_NR)];
        x86.extend(table(&by_name, profile.default, 0, number_x86));
        x86
    } else {
        killed()
    };
    let mut filter = vec![
        instruction(LOAD, DATA_ARCH),
        branch(IF_EQUAL, ARCH_X86_64, 3, 0),
        branch(IF_EQUAL, ARCH_I386, 1, 0),
        // No other is left on a machine of this kind.
        instruction(RETURN, code(Action::KillProcess)),
        // Over what is of the other two.
        instruction(JUMP, 0),
        instruction(LOAD, DATA_NR),
    ];
    let to_x86 = filter.len() - 2;
    filter.extend(jump_unless_at_least(X32, x32.len()));
    filter.extend(x32);
    filter.extend(x86_64);
    let over = (filter.len() - to_x86 - 1) as u32;
    if let Some(jump) = filter.get_mut(to_x86) {
        *jump = instruction(JUMP, over);
    }
    filter.extend(x86);
    if filter.len() > MOST {
        return Err(Error::FilterTooLong(filter.len()));
    }
    Ok(filter)
}

/// Skips `over` instructions if the number is below.
fn jump_unless_at_least(number: u32, over: usize) -> Vec<SockFilter> {
    vec![branch(IF_AT_LEAST, number, 1, 0), instruction(JUMP, over as u32)]
}

fn number_x86_64(name: &str) -> Option<u32> {
    find(name).map(|call| call.1).filter(|number| *number != NONE)
}

fn number_x86(name: &str) -> Option<u32> {
    find(name).map(|call| call.2).filter(|number| *number != NONE)
}

/// Of the calls that have a number of their own there.
fn number_x32(name: &str) -> Option<u32> {
    let own = X32_OWN.iter().find(|(own, _)| *own == name);
    own.map(|(_, number)| X32 | number)
}

fn find(name: &str) -> Option<&'static super::table::Call> {
    let at = CALLS.binary_search_by_key(&name, |call| call.0).ok()?;
    CALLS.get(at)
}

/// The verdict on each call that the profile names.
pub(super) fn verdicts(profile: &Profile) -> HashMap<&str, Verdict> {
    let mut verdicts: HashMap<&str, (Vec<Alternative>, Option<Action>)> = HashMap::new();
    for rule in &profile.rules {
        for name in &rule.calls {
            let (rules, otherwise) = verdicts.entry(name).or_default();
            if rule.conditions.is_empty() {
                otherwise.get_or_insert(rule.action);
            } else {
                rules.extend(alternatives(rule));
            }
        }
    }
    let verdict = |(name, (rules, otherwise))| {
        let otherwise: Option<Action> = otherwise;
        (
            name,
            Verdict {
                rules,
                otherwise: otherwise.unwrap_or(profile.default),
            },
        )
    };
    verdicts.into_iter().map(verdict).collect()
}

/// As runc has it: where two conditions speak of one argument, each is an alternative by itself.
fn alternatives(rule: &Rule) -> Vec<Alternative> {
    let twice = rule.conditions.iter().enumerate().any(|(at, condition)| {
        let before = rule.conditions.iter().take(at);
        let mut same = before.filter(|other| other.argument == condition.argument);
        same.next().is_some()
    });
    if twice {
        let alone = |condition: &Condition| (vec![*condition], rule.action);
        rule.conditions.iter().map(alone).collect()
    } else {
        vec![(rule.conditions.clone(), rule.action)]
    }
}

/// The part of the filter for one call table, from a number on. The number is loaded.
fn table(
    by_name: &HashMap<&str, Verdict>,
    default: Action,
    from: u32,
    number: fn(&str) -> Option<u32>,
) -> Vec<SockFilter> {
    let verdicts: BTreeMap<u32, &Verdict> = by_name
        .iter()
        .filter_map(|(name, verdict)| Some((number(name)?, verdict)))
        .collect();
    let unnamed = Verdict::always(default);
    let newer = match default {
        Action::Allow | Action::Log => unnamed.clone(),
        _ => Verdict::always(Action::Errno(libc::ENOSYS as u16)),
    };
    let mut runs = vec![Run {
        first: from,
        verdict: &unnamed,
    }];
    let mut next = from;
    for (number, verdict) in verdicts {
        if number > next {
            add(&mut runs, next, &unnamed);
        }
        add(&mut runs, number, verdict);
        next = number + 1;
    }
    add(&mut runs, next, &newer);
    bisect(&runs)
}

fn add<'a>(runs: &mut Vec<Run<'a>>, first: u32, verdict: &'a Verdict) {
    match runs.last_mut() {
        Some(last) if last.verdict == verdict => {}
        Some(last) if last.first == first => last.verdict = verdict,
        _ => runs.push(Run { first, verdict }),
    }
}

fn bisect(runs: &[Run<'_>]) -> Vec<SockFilter> {
    let (left, right) = runs.split_at(runs.len() / 2);
    let Some(middle) = right.first() else {
        return Vec::new();
    };
    if left.is_empty() {
        return decide(middle.verdict);
    }
    let below = bisect(left);
    let above = bisect(right);
    // The jump over the lower half may be longer than a condition's offset can say.
    let mut code = match u8::try_from(below.len()) {
        Ok(offset) => vec![branch(IF_AT_LEAST, middle.first, offset, 0)],
        Err(_) => {
            vec![
                branch(IF_AT_LEAST, middle.first, 0, 1),
                instruction(JUMP, below.len() as u32),
            ]
        }
    };
    code.extend(below);
    code.extend(above);
    code
}

fn decide(verdict: &Verdict) -> Vec<SockFilter> {
    let mut filter = Vec::new();
    for (conditions, action) in &verdict.rules {
        let tests: Vec<Test> = conditions.iter().flat_map(tests).collect();
        for (at, test) in tests.iter().enumerate() {
            // To the next rule, over the rest of the tests and the action.
            let failed = u8::try_from(tests.len() - at).unwrap_or(u8::MAX);
            filter.push(test.instruction(failed));
        }
        filter.push(instruction(RETURN, code(*action)));
    }
    filter.push(instruction(RETURN, code(verdict.otherwise)));
    filter
}

/// One instruction of a condition.
#[derive(Clone, Copy)]
enum Test {
    Plain(SockFilter),
    /// Where to go on if it holds, and if not.
    Branch(u16, u32, To, To),
}

#[derive(Clone, Copy)]
enum To {
    /// So many instructions are left out.
    Over(u8),
    /// The condition does not hold.
    Failed,
}

impl Test {
    fn instruction(self, failed: u8) -> SockFilter {
        let offset = |to| match to {
            To::Over(count) => count,
            To::Failed => failed,
        };
        match self {
            Self::Plain(plain) => plain,
            Self::Branch(code, value, yes, no) => branch(code, value, offset(yes), offset(no)),
        }
    }
}

/// A condition on two halves: the high one decides, and where it does not the low one.
fn tests(condition: &Condition) -> Vec<Test> {
    const NEXT: To = To::Over(0);
    let (high, low) = ((condition.value >> 32) as u32, condition.value as u32);
    let at = DATA_ARGS + 8 * u32::from(condition.argument);
    let (load_low, load_high) = (
        Test::Plain(instruction(LOAD, at)),
        Test::Plain(instruction(LOAD, at + 4)),
    );
    let mask = |bits: u32| Test::Plain(instruction(AND, bits));
    let equal = |value: u32| Test::Branch(IF_EQUAL, value, NEXT, To::Failed);
    // How the low half decides, and how many instructions that takes.
    let low_part = match condition.comparison {
        Comparison::Equal => vec![load_low, equal(low)],
        Comparison::MaskedEqual { mask: bits } => vec![load_low, mask(bits as u32), equal(low)],
        Comparison::NotEqual => vec![load_low, Test::Branch(IF_EQUAL, low, To::Failed, NEXT)],
        Comparison::Greater => vec![load_low, Test::Branch(IF_GREATER, low, NEXT, To::Failed)],
        Comparison::GreaterOrEqual => vec![load_low, Test::Branch(IF_AT_LEAST, low, NEXT, To::Failed)],
        Comparison::Less => vec![load_low, Test::Branch(IF_AT_LEAST, low, To::Failed, NEXT)],
        Comparison::LessOrEqual => vec![load_low, Test::Branch(IF_GREATER, low, To::Failed, NEXT)],
    };
    if condition.low_half {
        return low_part;
    }
    let over_low = To::Over(low_part.len() as u8);
    let over_both = To::Over(low_part.len() as u8 + 1);
    let mut tests = match condition.comparison {
        Comparison::Equal => vec![load_high, equal(high)],
        Comparison::MaskedEqual { mask: bits } => vec![load_high, mask((bits >> 32) as u32), equal(high)],
        Comparison::NotEqual => vec![load_high, Test::Branch(IF_EQUAL, high, NEXT, over_low)],
        Comparison::Greater | Comparison::GreaterOrEqual => vec![
            load_high,
            Test::Branch(IF_GREATER, high, over_both, NEXT),
            equal(high),
        ],
        Comparison::Less | Comparison::LessOrEqual => vec![
            load_high,
            Test::Branch(IF_GREATER, high, To::Failed, NEXT),
            Test::Branch(IF_EQUAL, high, NEXT, over_low),
        ],
    };
    tests.extend(low_part);
    tests
}

/// `SECCOMP_RET_*` (`linux/seccomp.h`), with what goes in the low half.
pub(super) fn code(action: Action) -> u32 {
    match action {
        Action::KillProcess => 0x8000_0000,
        Action::KillThread => 0,
        Action::Trap => 0x0003_0000,
        Action::Errno(errno) => 0x0005_0000 | u32::from(errno),
        Action::Trace(number) => 0x7ff0_0000 | u32::from(number),
        Action::Log => 0x7ffc_0000,
        Action::Allow => 0x7fff_0000,
    }
}

const fn instruction(code: u16, k: u32) -> SockFilter {
    SockFilter {
        code,
        jt: 0,
        jf: 0,
        k,
    }
}

const fn branch(code: u16, k: u32, jt: u8, jf: u8) -> SockFilter {
    SockFilter { code, jt, jf, k }
}
