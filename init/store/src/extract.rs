//! Places tar entries in a tree.
