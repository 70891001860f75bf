//! Filters of system calls, compiled to the kernel's classic BPF (seccomp(2)).
//!
//! A [`Profile`] speaks of calls by their names. For each of the kernel's call tables, which are those of
//! 64-bit, 32-bit and x32 programs, the numbers with the same verdict are turned into runs, and the
//! filter finds the run of a call by bisection: some ten instructions a call instead of one for each call
//! of the list. A call that is newer than all that the profile knows is answered as missing (`ENOSYS`),
//! so that programs take an older one instead; a profile that allows by default allows it.

mod compile;
mod profile;
mod rules;
mod table;

use std::sync::{Arc, OnceLock};

use sys::program::SockFilter;

use crate::capabilities::CapabilitySet;
use crate::error::Error;

pub use rules::{Action, Comparison, Condition, Profile, Rule};

/// What a zone may call.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Seccomp {
    /// Docker's default profile, by the zone's capabilities.
    #[default]
    Default,
    Unconfined,
    Custom(Arc<Profile>),
}

/// The filter for a zone, or none.
///
/// # Errors
/// A custom profile that is too long for the kernel.
pub(crate) fn filter(
    seccomp: &Seccomp,
    capabilities: CapabilitySet,
) -> Result<Option<Vec<SockFilter>>, Error> {
    /// Nearly all zones have it.
    static USUAL: OnceLock<Vec<SockFilter>> = OnceLock::new();
    match seccomp {
        Seccomp::Unconfined => Ok(None),
        Seccomp::Custom(profile) => compile::compile(profile).map(Some),
        Seccomp::Default if capabilities == CapabilitySet::DEFAULT => {
            if let Some(usual) = USUAL.get() {
                return Ok(Some(usual.clone()));
            }
            let filter = compile::compile(&profile::default(capabilities))?;
            Ok(Some(USUAL.get_or_init(|| filter).clone()))
        }
        Seccomp::Default => compile::compile(&profile::default(capabilities)).map(Some),
    }
}

#[cfg(test)]
mod tests;
