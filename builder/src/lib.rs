#![forbid(unsafe_code)]
pub mod recipe;
