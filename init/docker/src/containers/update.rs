//! `POST /containers/{id}/update`: other limits and another restart policy, while it runs or not.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::config::{HostConfig, is_zero};
use super::spec;
use crate::engine::Engine;
use crate::http::{ApiError, Request, Response, Result, blocking, ok};

/// What can be changed.
const FIELDS: &[&str] = &[
    "BlkioWeight",
    "CpuPeriod",
    "CpuQuota",
    "CpuShares",
    "CpusetCpus",
    "CpusetMems",
    "Memory",
    "MemoryReservation",
    "MemorySwap",
    "NanoCpus",
    "PidsLimit",
    "RestartPolicy",
];

pub(crate) async fn update(engine: &Arc<Engine>, mut req: Request) -> Result<Response> {
    let container = engine.containers().await?.find(&req.name)?;
    let body: Map<String, Value> = req.json().await?;
    let store = engine.store().await?;
    let _turn = container.turn().await;
    if container.lock().status.is_going() {
        return Err(ApiError::conflict(format!(
            "Cannot update container {}: Container is marked for removal and cannot be \"update\".",
            container.id
        )));
    }
    let before = container.record().host;
    let wanted = merged(&before, body)?;
    if before.auto_remove && wanted.restart_policy.restarts() {
        return Err(ApiError::bad_request(
            "Restart policy cannot be updated because AutoRemove is enabled for the container",
        ));
    }
    spec::check_limits(&wanted)?;
    let limits = spec::limits(&wanted)?;
    let runs = container.process().is_some();
    container.lock().host = wanted;
    let (owned, zones) = (container.clone(), engine.zones.clone());
    let done = blocking(move || {
        if runs {
            zones.cgroups().update(&owned.id, &limits)?;
        }
        owned.save(&store)?;
        Ok::<_, ApiError>(())
    })
    .await;
    if let Err(error) = done {
        container.lock().host = before;
        return Err(error);
    }
    engine.tell("container", "update", &container);
    ok(&json!({ "Warnings": null }))
}

/// What is set in the body goes over what was; a policy with an empty name is none.
fn merged(before: &HostConfig, body: Map<String, Value>) -> Result<HostConfig> {
    let wrong = |error: serde_json::Error| {
        ApiError::bad_request(format!("The container's configuration is wrong: {error}."))
    };
    let mut whole = serde_json::to_value(before).map_err(wrong)?;
    for (key, value) in body {
        let unset = is_zero(&value) || (key == "RestartPolicy" && value.get("Name").is_none_or(is_zero));
        if unset {
            continue;
        }
        if !FIELDS.contains(&key.as_str()) {
            return Err(ApiError::not_implemented(format!(
                "Monobloc does not change {key} of a container that is there; leave it out, or make the container anew."
            )));
        }
        // One of the two ways to say how much CPU it has takes the place of the other.
        match key.as_str() {
            "NanoCpus" => {
                whole["CpuPeriod"] = 0.into();
                whole["CpuQuota"] = 0.into();
            }
            "CpuPeriod" | "CpuQuota" => whole["NanoCpus"] = 0.into(),
            _ => {}
        }
        whole[key] = value;
    }
    let merged: HostConfig = serde_json::from_value(whole).map_err(wrong)?;
    super::config::check_policy(&merged)?;
    Ok(merged)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(body: Value) -> Result<HostConfig> {
        let before = HostConfig {
            memory: 64 << 20,
            nano_cpus: 500_000_000,
            ..HostConfig::default()
        };
        let Value::Object(body) = body else {
            panic!("no object")
        };
        merged(&before, body)
    }

    #[test]
    fn what_is_set_goes_over_what_was_and_the_rest_stays() {
        let changed = change(json!({"PidsLimit": 7, "CpuQuota": 20_000, "Memory": 0})).unwrap();
        assert_eq!((changed.memory, changed.pids_limit), (64 << 20, Some(7)));
        assert_eq!((changed.nano_cpus, changed.cpu_quota), (0, 20_000));
        let policy = change(json!({"RestartPolicy": {"Name": "always"}}))
            .unwrap()
            .restart_policy;
        assert_eq!(policy.name, "always");
        assert!(change(json!({"Binds": ["/a:/b"]})).is_err());
        assert!(change(json!({"RestartPolicy": {"Name": "sometimes"}})).is_err());
    }
}
