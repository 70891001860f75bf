//! How long work is told to whoever waits for it.

/// Takes notice of the steps of some work.
pub trait Progress: Sync {
    /// Begins a step; it ends with [`Step::finish`], or as a failure when it is dropped before.
    fn step(&self, name: &str) -> Box<dyn Step>;
}

/// One step under way.
pub trait Step {
    /// How much there is to do, in the unit of [`Step::inc`].
    fn set_length(&self, length: u64);
    fn inc(&self, done: u64);
    /// What is being done right now.
    fn message(&self, text: &str);
    fn finish(self: Box<Self>);
}

/// Tells nobody.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn step(&self, _name: &str) -> Box<dyn Step> {
        Box::new(Self)
    }
}

impl Step for Silent {
    fn set_length(&self, _length: u64) {}
    fn inc(&self, _done: u64) {}
    fn message(&self, _text: &str) {}
    fn finish(self: Box<Self>) {}
}
