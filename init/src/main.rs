//! `/init`: the appliance's one binary. As process 1 it boots the machine and keeps the zones'
//! processes; as `/init supervisor` it is everything else. The role is told apart by the process
//! id and the first argument, so that one static file in the image serves both.

#![forbid(unsafe_code)]

mod boot;
mod console;
mod identity;
mod keeper;
mod link;
mod modules;
mod mounts;
mod pool;
mod power;
mod preload;
mod supervisor;

use std::process::ExitCode;

/// First argument that makes the binary the supervisor.
const SUPERVISOR: &str = "supervisor";

fn main() -> ExitCode {
    if rustix::process::getpid().is_init() {
        keeper::run()
    } else if std::env::args().nth(1).as_deref() == Some(SUPERVISOR) {
        supervisor::run()
    } else {
        eprintln!(
            "This is the init of a Monobloc appliance, version {}. It runs as process 1 of a booted image; \
             build one with `monobloc build RECIPE -o FILE`.",
            env!("CARGO_PKG_VERSION")
        );
        ExitCode::from(2)
    }
}
