//! Another supervisor for a machine that runs.

use std::time::{Duration, Instant};

use hyper::Method;
use hyper::body::Bytes;

use super::{Api, ApiError};

/// How long one answer may take.
const ANSWER: Duration = Duration::from_secs(30);

/// What became of an upgrade.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Upgraded {
    /// The supervisor is of this build now.
    Runs(String),
    /// It did not come to serve; the packed supervisor runs again.
    FellBack(String),
}

impl Api {
    /// Has the machine's supervisor replaced by another program; the zones go on. Returns when a
    /// supervisor answers again.
    ///
    /// # Errors
    /// The machine refuses the program, which leaves everything as it was; or no supervisor answers
    /// within the limit.
    pub fn upgrade_supervisor(&self, program: Vec<u8>, limit: Duration) -> Result<Upgraded, ApiError> {
        let deadline = Instant::now() + limit;
        let path = "/monobloc/v1/supervisor";
        let answer = self.call_for_json(Method::POST, path, Bytes::from(program), limit)?;
        let build = answer["build"].as_str().unwrap_or_default().to_owned();
        // A supervisor that ends at once gives no answer.
        let ended = self.call(
            Method::POST,
            "/monobloc/v1/restart-supervisor",
            Bytes::new(),
            ANSWER,
        );
        if let Err(error @ ApiError::Refused { .. }) = ended {
            return Err(error);
        }
        loop {
            // A connection waits for the next supervisor in the socket that process 1 keeps, and breaks
            // when that one dies.
            let told = match self.status(ANSWER) {
                Ok(status) => status,
                Err(error) if Instant::now() >= deadline => return Err(error),
                Err(_) => continue,
            };
            let field = |name: &str| told["supervisor"][name].as_str().unwrap_or_default().to_owned();
            if field("build") == build {
                return Ok(Upgraded::Runs(build));
            }
            if !field("fell_back").is_empty() {
                return Ok(Upgraded::FellBack(field("fell_back")));
            }
            if Instant::now() >= deadline {
                return Err(ApiError::Timeout {
                    address: self.address,
                    limit,
                });
            }
        }
    }
}
