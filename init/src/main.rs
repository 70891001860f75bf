//! `/init`: the appliance's one binary. As process 1 it boots the machine and keeps the zones'
//! processes; as `/init supervisor` it is everything else; as a zone's `/sbin/docker-init` it is that
//! zone's process 1; with the command line of an OCI runtime it runs bundles. The role is told apart by
//! its name, the process id and the first argument, so that one static file in the image serves all.

#![forbid(unsafe_code)]

mod boot;
mod console;
mod identity;
mod keeper;
mod keys;
mod link;
mod modules;
mod mounts;
mod oci;
mod pool;
mod power;
mod preload;
mod supervisor;
mod tpm;
mod zone_init;

use std::process::ExitCode;

/// First argument that makes the binary the supervisor. Further ones: the number of the socket to
/// process 1, the build that was asked for (empty: the packed one), why another was given up.
const SUPERVISOR: &str = "supervisor";
/// What a build is called where the version does not tell it apart: set when it is built.
const BUILD: Option<&str> = option_env!("MONOBLOC_BUILD");

fn main() -> ExitCode {
    // In a zone it is process 1 too.
    if zone_init::is_meant() {
        zone_init::run()
    } else if rustix::process::getpid().is_init() {
        keeper::run()
    } else if std::env::args().nth(1).as_deref() == Some(SUPERVISOR) {
        supervisor::run()
    } else if std::env::args().nth(1).as_deref() == Some(docker::upgrade::PROTOCOL) {
        println!("{}", docker::upgrade::introduction(&version()));
        ExitCode::SUCCESS
    } else if std::env::args_os().len() > 1 {
        oci::run()
    } else {
        eprintln!(
            "This is the init of a Monobloc appliance, version {}. It runs as process 1 of a booted image; \
             build one with `monobloc build RECIPE -o FILE`. Elsewhere it is an OCI runtime: `init --help`.",
            env!("CARGO_PKG_VERSION")
        );
        ExitCode::from(2)
    }
}

/// The version, with the build's own name where it has one.
fn version() -> String {
    let build = BUILD.map(|build| format!("+{build}")).unwrap_or_default();
    format!("{}{build}", env!("CARGO_PKG_VERSION"))
}
