//! Demonstrations: what the appliance promises, shown on one that is booted for it, and checked as it goes.

pub mod disk;
mod program;

/// What somebody who looks on is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// Something begins: what is done, and why it is worth a look.
    Scene { title: String, why: String },
    /// What was seen of it.
    Seen(String),
    /// The last words.
    End(String),
}
