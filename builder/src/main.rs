//! `monobloc`: builds images from recipes and runs them on this machine.

#![forbid(unsafe_code)]

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
