//! Image endpoints.

use std::sync::Arc;

use crate::engine::Engine;
use crate::http::{Request, Response, Result};
use crate::routes;

/// Answers everything below `/images`, `/auth`, `/build` and `/distribution`.
pub async fn route(_engine: Arc<Engine>, _method: &str, _segments: &[&str], req: Request) -> Result<Response> {
    Err(routes::unknown(req.method(), &req.path))
}
