//! Machines.
pub struct Machine;
pub struct Boot;
