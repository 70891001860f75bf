//! (module of its owner)
