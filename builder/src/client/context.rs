//! The docker command's context for a machine, so that `docker --context NAME` reaches it.
//!
//! Contexts are made with the docker command itself (20.10 and later), which keeps its own copy of
//! the certificates. Where there is no docker command, there is nothing to do.

use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::command::{self, CommandError};

const DOCKER: &str = "docker";

/// What became of a context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Registered {
    Created,
    Updated,
    /// This machine has no docker command.
    NoClient,
}

/// Makes the context, or has it lead to another place.
///
/// # Errors
/// docker refuses; its words are in the error.
pub fn register(name: &str, port: u16, certificates: &Path) -> Result<Registered, CommandError> {
    let there = match exists(name) {
        Ok(there) => there,
        Err(CommandError::Missing { .. }) => return Ok(Registered::NoClient),
        Err(error) => return Err(error),
    };
    let verb = if there { "update" } else { "create" };
    command::run(
        docker()
            .args(["context", verb, name, "--docker"])
            .arg(endpoint(port, certificates))
            .args(["--description", "A Monobloc machine in QEMU"]),
    )?;
    Ok(if there {
        Registered::Updated
    } else {
        Registered::Created
    })
}

/// Takes a context away, if it is there and not the one in use.
///
/// # Errors
/// docker refuses.
pub fn remove(name: &str) -> Result<(), CommandError> {
    match exists(name) {
        Ok(true) => command::run(docker().args(["context", "rm", name])).map(|_| ()),
        Ok(false) | Err(CommandError::Missing { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

fn exists(name: &str) -> Result<bool, CommandError> {
    let status = docker()
        .args(["context", "inspect", name])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    match status {
        Ok(status) => Ok(status.success()),
        // A `docker` in the search path that may not be run is as good as none.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Err(command::not_started(DOCKER, io::ErrorKind::NotFound.into()))
        }
        Err(error) => Err(command::not_started(DOCKER, error)),
    }
}

/// The docker command, for which settings of a shell that speaks to another daemon do not count.
fn docker() -> Command {
    let mut docker = Command::new(DOCKER);
    docker.env_remove("DOCKER_HOST").env_remove("DOCKER_CONTEXT");
    docker
}

/// The value of `--docker`: comma-separated, and read as CSV, where quotes keep a comma in a path.
fn endpoint(port: u16, certificates: &Path) -> String {
    let file = |key: &str, name: &str| {
        let field = format!("{key}={}", certificates.join(name).display());
        if field.contains([',', '"']) {
            format!("\"{}\"", field.replace('"', "\"\""))
        } else {
            field
        }
    };
    format!(
        "host=tcp://127.0.0.1:{port},{},{},{}",
        file("ca", "ca.pem"),
        file("cert", "cert.pem"),
        file("key", "key.pem")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_endpoint_is_what_docker_reads() {
        assert_eq!(
            endpoint(2376, Path::new("/site/client")),
            "host=tcp://127.0.0.1:2376,ca=/site/client/ca.pem,cert=/site/client/cert.pem,key=/site/client/key.pem"
        );
        assert!(endpoint(1, Path::new("/a,b")).contains("\"ca=/a,b/ca.pem\""));
    }
}
