//! Which handler a request goes to.
//!
//! `/v1.xx` before the path is optional. An endpoint that is not here answers 501 with a sentence,
//! never a wrong success. Everything below `/images`, `/auth`, `/build` and `/distribution` is
//! [`crate::images`]'s own.

use std::sync::Arc;

use hyper::header::{HeaderName, HeaderValue};
use hyper::{Method, StatusCode};

use crate::engine::Engine;
use crate::http::{ApiError, ApiVersion, Body, Request, Response, Result, ok};
use crate::query::decode;
use crate::{images, networks, system};

pub const NEWEST: ApiVersion = ApiVersion(1, 51);
pub const OLDEST: ApiVersion = ApiVersion(1, 24);

/// Answers a request; an error becomes Docker's JSON, and every answer bears Docker's headers.
pub async fn answer(engine: Arc<Engine>, request: hyper::Request<Body>) -> Response {
    let version = engine.config.version.clone();
    let head = request.method() == Method::HEAD;
    let answered = match parse(request) {
        Ok(request) => dispatch(engine, request).await,
        Err(error) => Err(error),
    };
    let mut response = answered.unwrap_or_else(ApiError::into_response);
    if head {
        *response.body_mut() = crate::http::no_body();
    }
    let headers = response.headers_mut();
    for (name, value) in [
        ("api-version", "1.51"),
        ("docker-experimental", "false"),
        ("ostype", "linux"),
        ("builder-version", "1"),
    ] {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    if let Ok(value) = HeaderValue::from_str(&format!("Monobloc/{version} (linux)")) {
        headers.insert(hyper::header::SERVER, value);
    }
    response
}

/// Takes the version's prefix off the path.
pub(crate) fn parse(request: hyper::Request<Body>) -> Result<Request> {
    let whole = request.uri().path();
    let (version, path) = match split_version(whole) {
        None => (NEWEST, whole),
        Some((version, path)) => (version, path),
    };
    if version > NEWEST {
        return Err(ApiError::bad_request(format!(
            "client version {}.{} is too new. Maximum supported API version is 1.51",
            version.0, version.1
        )));
    }
    if version < OLDEST {
        return Err(ApiError::bad_request(format!(
            "client version {}.{} is too old. Minimum supported API version is 1.24, please upgrade your client to a newer version",
            version.0, version.1
        )));
    }
    let path = path.to_owned();
    Ok(Request::new(request, path, version))
}

fn split_version(path: &str) -> Option<(ApiVersion, &str)> {
    let rest = path.strip_prefix("/v")?;
    let (version, _) = rest.split_once('/')?;
    let (major, minor) = version.split_once('.')?;
    let version_number = ApiVersion(major.parse().ok()?, minor.parse().ok()?);
    Some((version_number, rest.get(version.len()..)?))
}

async fn dispatch(engine: Arc<Engine>, mut req: Request) -> Result<Response> {
    let path = req.path.clone();
    let segments: Vec<String> = path
        .split('/')
        .filter(|segment| !segment.is_empty())
        .map(|segment| decode(segment, false))
        .collect();
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    let method = req.method().clone();
    match (method.as_str(), segments.as_slice()) {
        ("GET" | "HEAD", ["_ping"]) => system::ping(),
        ("GET", ["version"]) => system::version(&engine),
        ("GET", ["info"]) => system::info(&engine).await,
        ("GET", ["events"]) => system::events(&engine, &req),
        ("GET", ["monobloc", "v1", "status"]) => system::status(&engine).await,
        (
            "POST",
            [
                "monobloc",
                "v1",
                verb @ ("poweroff" | "reboot" | "restart-supervisor"),
            ],
        ) => system::power(engine, verb),
        ("GET", ["monobloc", "v1", "disks"]) => crate::disks::list(&engine).await,
        ("GET", ["monobloc", "v1", "metrics"]) => crate::disks::metrics(&engine).await,
        ("GET", ["monobloc", "v1", "pool"]) => crate::disks::pool(&engine).await,
        ("POST", ["monobloc", "v1", "pool", "unlock"]) => crate::disks::unlock(&engine, req).await,
        ("POST", ["monobloc", "v1", "pool", verb]) => crate::disks::change(engine, verb, req).await,
        ("GET", ["monobloc", "v1", "snapshots"]) => crate::snapshots::all(&engine).await,
        (_, ["monobloc", "v1", "transfers", rest @ ..]) => {
            crate::snapshots::transfers(engine, method.as_str(), rest, req).await
        }
        (_, ["monobloc", "v1", "zones" | "volumes", _, ..]) => {
            let below = segments.get(2..).unwrap_or_default();
            crate::snapshots::route(engine, method.as_str(), below, req).await
        }
        ("POST", ["monobloc", "v1", "supervisor"]) => crate::upgrade::upload(&engine, req).await,
        ("POST", ["commit"]) => images::commit(&engine, req).await,
        (_, ["images" | "auth" | "build" | "distribution", ..]) => {
            images::route(engine, method.as_str(), &segments, req).await
        }
        (_, ["containers", rest @ ..]) => {
            req.name = rest.first().map(|name| (*name).to_owned()).unwrap_or_default();
            crate::containers::route(engine, method.as_str(), rest, req).await
        }
        (_, ["volumes", rest @ ..]) => crate::volumes::route(engine, method.as_str(), rest, req).await,
        ("POST" | "GET", ["exec", id, verb @ ("start" | "resize" | "json")]) => {
            req.name = (*id).to_owned();
            crate::exec::route(engine, verb, req).await
        }
        (_, ["networks", rest @ ..]) => networks::route(&engine, method.as_str(), rest, req).await,
        ("GET", ["system", "df"]) => crate::usage::usage(&engine, &req).await,
        ("POST", ["swarm", "init" | "join"]) => Err(ApiError::not_implemented(
            "Monobloc machines do not form a swarm; docker contexts let one client work with many.",
        )),
        (
            _,
            [
                "swarm" | "services" | "tasks" | "nodes" | "secrets" | "configs",
                ..,
            ],
        ) => Err(no_swarm()),
        ("GET", ["plugins"]) => ok(&[(); 0]),
        // As an engine that has none: `docker inspect NAME` asks for one kind after the other.
        ("GET", ["plugins", name, ..]) => Err(ApiError::not_found(format!("plugin {name:?} not found"))),
        _ => Err(unknown(&method, &path)),
    }
}

/// What an engine answers that is no member of a swarm.
fn no_swarm() -> ApiError {
    ApiError::unavailable(
        "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to connect this node to swarm and try again.",
    )
}

/// 501 for an endpoint that is not there.
pub fn unknown(method: &Method, path: &str) -> ApiError {
    ApiError::new(
        StatusCode::NOT_IMPLEMENTED,
        format!(
            "Monobloc does not have the endpoint {method} {path} yet; `docker version` shows what answers."
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(uri: &str) -> Result<(String, ApiVersion)> {
        let request = hyper::Request::get(uri).body(crate::http::no_body()).unwrap();
        parse(request).map(|request| (request.path, request.version))
    }

    #[test]
    fn a_version_may_stand_before_the_path_and_need_not() {
        for (uri, path, version) in [
            ("/info", "/info", NEWEST),
            (
                "/v1.41/containers/json?all=1",
                "/containers/json",
                ApiVersion(1, 41),
            ),
            ("/v1.24/_ping", "/_ping", OLDEST),
            ("/v1.51/_ping", "/_ping", NEWEST),
            // No version at all, only names that look a little like one.
            ("/volumes", "/volumes", NEWEST),
            ("/vx.y/info", "/vx.y/info", NEWEST),
            ("/v1/info", "/v1/info", NEWEST),
        ] {
            assert_eq!(parsed(uri).unwrap(), (path.to_owned(), version), "{uri}");
        }
    }

    #[test]
    fn a_version_out_of_range_is_refused_in_dockers_words() {
        for (uri, words) in [
            ("/v1.52/info", "Maximum supported API version is 1.51"),
            ("/v2.0/info", "too new"),
            ("/v1.23/info", "Minimum supported API version is 1.24"),
        ] {
            let error = parsed(uri).unwrap_err();
            assert_eq!(error.status, StatusCode::BAD_REQUEST, "{uri}");
            assert!(error.message.contains(words), "{}", error.message);
        }
    }

    #[test]
    fn what_is_not_there_is_not_a_success() {
        let error = unknown(&Method::POST, "/no/such");
        assert_eq!(error.status, StatusCode::NOT_IMPLEMENTED);
        assert!(error.message.contains("POST /no/such"), "{}", error.message);
        assert_eq!(no_swarm().status, StatusCode::SERVICE_UNAVAILABLE);
    }
}
