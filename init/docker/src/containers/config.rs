//! What a client asks for with `POST /containers/create`, and what of it can be done.
//!
//! A field that is set to something that Monobloc does not do is refused by its name: a container that
//! silently lacks what was asked for is worse than none. A field at its zero value counts as not set.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use super::devices::DeviceMapping;
use super::log_driver::LogConfig;
use super::mounts::request::MountRequest;
use crate::http::{ApiError, Result};
use crate::networks::EndpointSettings;
use crate::units;

/// Null means the default, as in Go.
pub(crate) fn nullable<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    from: D,
) -> std::result::Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// A list, or a string that stands for a list of one.
fn words<'de, D: Deserializer<'de>>(from: D) -> std::result::Result<Option<Vec<String>>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Words {
        One(String),
        Many(Vec<String>),
    }
    Ok(Option::<Words>::deserialize(from)?.map(|words| match words {
        Words::One(word) => vec![word],
        Words::Many(words) => words,
    }))
}

/// Docker's `Config`: what runs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Config {
    #[serde(deserialize_with = "nullable")]
    pub(crate) hostname: String,
    #[serde(deserialize_with = "nullable")]
    pub(crate) domainname: String,
    #[serde(deserialize_with = "nullable")]
    pub(crate) user: String,
    #[serde(deserialize_with = "nullable")]
    pub(crate) attach_stdin: bool,
    #[serde(deserialize_with = "nullable")]
    pub(crate) attach_stdout: bool,
    #[serde(deserialize_with = "nullable")]
    pub(crate) attach_stderr: bool,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) exposed_ports: BTreeMap<String, Value>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) tty: bool,
    #[serde(deserialize_with = "nullable")]
    pub(crate) open_stdin: bool,
    #[serde(deserialize_with = "nullable")]
    pub(crate) stdin_once: bool,
    #[serde(deserialize_with = "nullable")]
    pub(crate) env: Vec<String>,
    #[serde(deserialize_with = "words")]
    pub(crate) cmd: Option<Vec<String>>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) image: String,
    /// Paths of volumes without a name.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) volumes: BTreeMap<String, Value>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) working_dir: String,
    #[serde(deserialize_with = "words")]
    pub(crate) entrypoint: Option<Vec<String>>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) labels: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) healthcheck: Option<store::Healthcheck>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) stop_signal: Option<String>,
    /// Seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) stop_timeout: Option<i64>,
}

/// Docker's `HostConfig`, as far as it is done; what else was sent stays in `rest` for `inspect`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct HostConfig {
    #[serde(deserialize_with = "nullable")]
    pub(crate) memory: i64,
    #[serde(deserialize_with = "nullable")]
    pub(crate) memory_swap: i64,
    #[serde(deserialize_with = "nullable")]
    pub(crate) nano_cpus: i64,
    #[serde(deserialize_with = "nullable")]
    pub(crate) cpu_period: i64,
    #[serde(deserialize_with = "nullable")]
    pub(crate) cpu_quota: i64,
    #[serde(deserialize_with = "nullable")]
    pub(crate) cpu_shares: i64,
    #[serde(deserialize_with = "nullable")]
    pub(crate) cpuset_cpus: String,
    #[serde(deserialize_with = "nullable")]
    pub(crate) cpuset_mems: String,
    #[serde(deserialize_with = "nullable")]
    pub(crate) memory_reservation: i64,
    pub(crate) oom_kill_disable: Option<bool>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) oom_score_adj: i32,
    #[serde(deserialize_with = "nullable")]
    pub(crate) blkio_weight: u16,
    #[serde(deserialize_with = "nullable")]
    pub(crate) blkio_weight_device: Vec<WeightDevice>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) blkio_device_read_bps: Vec<ThrottleDevice>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) blkio_device_write_bps: Vec<ThrottleDevice>,
    #[serde(deserialize_with = "nullable", rename = "BlkioDeviceReadIOps")]
    pub(crate) blkio_device_read_iops: Vec<ThrottleDevice>,
    #[serde(deserialize_with = "nullable", rename = "BlkioDeviceWriteIOps")]
    pub(crate) blkio_device_write_iops: Vec<ThrottleDevice>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) device_cgroup_rules: Vec<String>,
    pub(crate) pids_limit: Option<i64>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) ulimits: Vec<Ulimit>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) log_config: LogConfig,
    #[serde(deserialize_with = "nullable")]
    pub(crate) network_mode: String,
    /// `CONTAINER:ALIAS`, known to this container on its mode's network.
    pub(crate) links: Option<Vec<String>>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) port_bindings: BTreeMap<String, Option<Vec<PortBinding>>>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) publish_all_ports: bool,
    #[serde(deserialize_with = "nullable")]
    pub(crate) restart_policy: RestartPolicy,
    #[serde(deserialize_with = "nullable")]
    pub(crate) auto_remove: bool,
    pub(crate) cap_add: Option<Vec<String>>,
    pub(crate) cap_drop: Option<Vec<String>>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) dns: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) dns_options: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) dns_search: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) extra_hosts: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) group_add: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) readonly_rootfs: bool,
    #[serde(deserialize_with = "nullable")]
    pub(crate) security_opt: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) privileged: bool,
    #[serde(deserialize_with = "nullable")]
    pub(crate) pid_mode: String,
    #[serde(deserialize_with = "nullable")]
    pub(crate) ipc_mode: String,
    #[serde(deserialize_with = "nullable", rename = "UTSMode")]
    pub(crate) uts_mode: String,
    #[serde(deserialize_with = "nullable")]
    pub(crate) userns_mode: String,
    #[serde(deserialize_with = "nullable")]
    pub(crate) cgroupns_mode: String,
    /// Whether a small init is the container's process 1.
    pub(crate) init: Option<bool>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) shm_size: i64,
    #[serde(deserialize_with = "nullable")]
    pub(crate) sysctls: BTreeMap<String, String>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) tmpfs: BTreeMap<String, String>,
    pub(crate) binds: Option<Vec<String>>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub(crate) mounts: Vec<MountRequest>,
    pub(crate) volumes_from: Option<Vec<String>>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) storage_opt: BTreeMap<String, String>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) volume_driver: String,
    pub(crate) devices: Option<Vec<DeviceMapping>>,
    /// None stands for the usual ones, an empty list for none at all.
    pub(crate) masked_paths: Option<Vec<String>>,
    pub(crate) readonly_paths: Option<Vec<String>>,
    /// Rows and columns.
    #[serde(deserialize_with = "nullable")]
    pub(crate) console_size: Vec<u16>,
    #[serde(flatten)]
    pub(crate) rest: Map<String, Value>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Ulimit {
    pub(crate) name: String,
    pub(crate) soft: i64,
    pub(crate) hard: i64,
}

/// A block device of the machine by its path, and the share of its time.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct WeightDevice {
    pub(crate) path: String,
    pub(crate) weight: u16,
}

/// A block device of the machine by its path, and how much of it in a second.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct ThrottleDevice {
    pub(crate) path: String,
    pub(crate) rate: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct PortBinding {
    #[serde(deserialize_with = "nullable")]
    pub(crate) host_ip: String,
    #[serde(deserialize_with = "nullable")]
    pub(crate) host_port: String,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct RestartPolicy {
    /// Empty and `no` are the same.
    #[serde(deserialize_with = "nullable")]
    pub(crate) name: String,
    #[serde(deserialize_with = "nullable")]
    pub(crate) maximum_retry_count: i64,
}

/// `Config`'s fields that are known; of the others, those that may be set nevertheless.
const CONFIG: &[&str] = &[
    "Hostname",
    "Domainname",
    "User",
    "AttachStdin",
    "AttachStdout",
    "AttachStderr",
    "ExposedPorts",
    "Tty",
    "OpenStdin",
    "StdinOnce",
    "Env",
    "Cmd",
    "Image",
    "Volumes",
    "WorkingDir",
    "Entrypoint",
    "Labels",
    "Healthcheck",
    "StopSignal",
    "StopTimeout",
    "HostConfig",
    "NetworkingConfig",
    "MacAddress",
    // Says how Windows reads the command line.
    "ArgsEscaped",
    // The shell of a Dockerfile, and its later steps: nothing to run here.
    "Shell",
    "OnBuild",
];

/// `HostConfig`'s fields that may be set and mean nothing here, or what is the case anyway.
const HOST_HARMLESS: &[&str] = &[
    "ContainerIDFile",
    "Annotations",
    "Isolation",
    "CpuCount",
    "CpuPercent",
];

/// `HostConfig`'s fields with those values of theirs that ask for what is the case anyway.
const HOST_DEFAULTS: &[(&str, &[&str])] =
    &[("Runtime", &["monobloc", "runc"]), ("MemorySwappiness", &["-1"])];

/// Whether Go would take the value for one that is not set.
pub(super) fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(on) => !on,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}

pub(super) fn refuse(field: &str, why: &str) -> ApiError {
    ApiError::not_implemented(format!("Monobloc does not do {field} yet{why}; leave it out."))
}

/// A label that would have an effect: a container whose network has no bound must not look as if it had.
const RATE: &str = "monobloc.net.rate";

const NO_REAL_TIME: &str = "version 2 of the kernel's control groups does not divide real-time CPU time";
const NO_SWAPPINESS: &str = "version 2 of the kernel's control groups has no swappiness of a group";
const NO_PARENT: &str =
    "the control groups above the containers are the engine's own, and nobody could set a limit on one";

/// What is not done and will not be, with the reason.
fn never(field: &str, why: &str) -> ApiError {
    ApiError::bad_request(format!("HostConfig.{field} cannot be set: {why}; leave it out."))
}

fn check_unknown(body: &Map<String, Value>) -> Result<()> {
    for (field, value) in body {
        if !CONFIG.contains(&field.as_str()) && !is_zero(value) {
            return Err(refuse(field, ""));
        }
    }
    Ok(())
}

fn check_host_rest(rest: &Map<String, Value>) -> Result<()> {
    for (field, value) in rest {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let fine = is_zero(value)
            || HOST_HARMLESS.contains(&field.as_str())
            || HOST_DEFAULTS
                .iter()
                .any(|(known, values)| known == field && values.contains(&text.as_str()));
        if fine {
            continue;
        }
        match field.as_str() {
            "CpuRealtimePeriod" | "CpuRealtimeRuntime" => return Err(never(field, NO_REAL_TIME)),
            "MemorySwappiness" => return Err(never(field, NO_SWAPPINESS)),
            "CgroupParent" => return Err(never(field, NO_PARENT)),
            _ => {
                return Err(refuse(
                    &format!("HostConfig.{field}"),
                    &format!(" (it is {text})"),
                ));
            }
        }
    }
    Ok(())
}

/// The parts of a create request.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    pub(crate) config: Config,
    pub(crate) host: HostConfig,
    pub(crate) networking: Networking,
}

/// Docker's `NetworkingConfig`, and what older clients say beside it.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Networking {
    /// By a network's name or id; null asks for nothing.
    #[serde(deserialize_with = "nullable")]
    pub(crate) endpoints_config: BTreeMap<String, Option<EndpointSettings>>,
    /// Of the network that the mode names; empty leaves it open.
    #[serde(skip)]
    pub(crate) mac: String,
}

/// Reads and checks a create request's body.
pub(crate) fn parse(body: Value) -> Result<Wanted> {
    let Value::Object(mut body) = body else {
        return Err(ApiError::bad_request("The request's body is no JSON object."));
    };
    check_unknown(&body)?;
    let host = body.remove("HostConfig").unwrap_or(Value::Null);
    let wrong = |error: serde_json::Error| {
        ApiError::bad_request(format!("The container's configuration is wrong: {error}."))
    };
    let networking = body.remove("NetworkingConfig").unwrap_or(Value::Null);
    let networking: Option<Networking> = serde_json::from_value(networking).map_err(wrong)?;
    let mut networking = networking.unwrap_or_default();
    if let Some(mac) = body.remove("MacAddress") {
        networking.mac = Option::deserialize(mac).map_err(wrong)?.unwrap_or_default();
    }
    let config: Config = serde_json::from_value(Value::Object(body)).map_err(wrong)?;
    let host: HostConfig = match host {
        Value::Null => HostConfig::default(),
        host => serde_json::from_value(host).map_err(wrong)?,
    };
    check_host_rest(&host.rest)?;
    check_host(&host)?;
    if config.labels.contains_key(RATE) {
        return Err(refuse(&format!("the label {RATE}"), ""));
    }
    if config.image.is_empty() {
        return Err(ApiError::bad_request("No image is named (Image)."));
    }
    if let Some(check) = &config.healthcheck {
        check_health(check)?;
    }
    if let Some(bad) = config
        .env
        .iter()
        .find(|entry| entry.is_empty() || entry.starts_with('='))
    {
        return Err(ApiError::bad_request(format!(
            "invalid environment variable: {bad:?}"
        )));
    }
    if !config.working_dir.is_empty() && !config.working_dir.starts_with('/') {
        return Err(ApiError::bad_request(format!(
            "the working directory '{}' is invalid, it needs to be an absolute path",
            config.working_dir
        )));
    }
    Ok(Wanted {
        config,
        host,
        networking,
    })
}

/// Refuses a restart policy that there is none of.
pub(super) fn check_policy(host: &HostConfig) -> Result<()> {
    match host.restart_policy.name.as_str() {
        "" | "no" | "always" | "unless-stopped" | "on-failure" => {}
        other => {
            return Err(ApiError::bad_request(format!(
                "invalid restart policy: unknown policy '{other}'"
            )));
        }
    }
    Ok(())
}

fn check_health(check: &store::Healthcheck) -> Result<()> {
    /// The least that Docker takes, in nanoseconds.
    const LEAST: i64 = 1_000_000;
    let times = [
        ("Interval", check.interval),
        ("Timeout", check.timeout),
        ("StartPeriod", check.start_period),
        ("StartInterval", check.start_interval),
    ];
    if let Some((name, _)) = times.iter().find(|(_, time)| *time != 0 && *time < LEAST) {
        return Err(ApiError::bad_request(format!(
            "{name} in Healthcheck cannot be less than 1ms"
        )));
    }
    if check.retries < 0 {
        return Err(ApiError::bad_request("Retries in Healthcheck cannot be negative"));
    }
    match check.test.first().map(String::as_str) {
        None | Some("" | "NONE" | "CMD" | "CMD-SHELL") => Ok(()),
        Some(other) => Err(ApiError::bad_request(format!(
            "Unknown type {other:?} in the Healthcheck's Test"
        ))),
    }
}

fn check_host(host: &HostConfig) -> Result<()> {
    host.log_config.check()?;
    check_policy(host)?;
    if host.auto_remove && host.restart_policy.restarts() {
        return Err(ApiError::bad_request(
            "can't create 'AutoRemove' container with restart policy",
        ));
    }
    host.storage_limit()?;
    if host.shm_size < 0 {
        return Err(ApiError::bad_request("SHM size can not be less than 0"));
    }
    Ok(())
}

impl HostConfig {
    /// Bytes that what the container changes may take; everything where nothing is said.
    pub(crate) fn storage_limit(&self) -> Result<Option<u64>> {
        if let Some(other) = self.storage_opt.keys().find(|key| *key != "size") {
            return Err(ApiError::bad_request(format!("Unknown option {other}")));
        }
        let wrong = |text: &String| ApiError::bad_request(format!("invalid size: '{text}'"));
        let limit = |text: &String| units::bytes(text, 1024).ok_or_else(|| wrong(text));
        self.storage_opt.get("size").map(limit).transpose()
    }
}

impl RestartPolicy {
    pub(crate) fn restarts(&self) -> bool {
        !matches!(self.name.as_str(), "" | "no")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_the_docker_client_sends_by_default_is_taken() {
        let body = json!({
            "Hostname": "", "Domainname": "", "User": "", "AttachStdin": false, "AttachStdout": true,
            "AttachStderr": true, "Tty": false, "OpenStdin": false, "StdinOnce": false, "Env": null,
            "Cmd": ["true"], "Image": "busybox", "Volumes": {}, "WorkingDir": "", "Entrypoint": null,
            "OnBuild": null, "Labels": {},
            "HostConfig": {
                "Binds": null, "ContainerIDFile": "", "LogConfig": {"Type": "", "Config": {}},
                "NetworkMode": "default", "PortBindings": {}, "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0},
                "AutoRemove": true, "VolumeDriver": "", "VolumesFrom": null, "ConsoleSize": [24, 80],
                "CapAdd": null, "CapDrop": null, "CgroupnsMode": "", "Dns": [], "DnsOptions": [], "DnsSearch": [],
                "ExtraHosts": null, "GroupAdd": null, "IpcMode": "", "Cgroup": "", "Links": null,
                "OomScoreAdj": 0, "PidMode": "", "Privileged": false, "PublishAllPorts": false,
                "ReadonlyRootfs": false, "SecurityOpt": null, "UTSMode": "", "UsernsMode": "", "ShmSize": 0,
                "Isolation": "", "CpuShares": 0, "Memory": 0, "NanoCpus": 0, "CgroupParent": "",
                "BlkioWeight": 0, "BlkioWeightDevice": [], "Devices": [], "MemorySwap": 0,
                "MemorySwappiness": -1, "OomKillDisable": false, "PidsLimit": 0, "Ulimits": null,
                "MaskedPaths": null, "ReadonlyPaths": null
            },
            "NetworkingConfig": {"EndpointsConfig": {"default": {"IPAMConfig": {}, "Links": null, "Aliases": null}}}
        });
        let wanted = parse(body).unwrap();
        assert!(wanted.host.auto_remove);
        assert_eq!(wanted.config.cmd, Some(vec!["true".to_owned()]));
    }

    #[test]
    fn a_field_that_is_not_done_is_refused_by_its_name() {
        for (host, field) in [
            (json!({"SomethingNew": 7}), "HostConfig.SomethingNew"),
            (json!({"Runtime": "kata"}), "HostConfig.Runtime"),
        ] {
            let error = parse(json!({"Image": "x", "HostConfig": host})).unwrap_err();
            assert_eq!(error.status, hyper::StatusCode::NOT_IMPLEMENTED, "{field}");
            assert!(error.message.contains(field), "{}", error.message);
        }
        let error = parse(json!({"Image": "x", "Labels": {RATE: "10mbit"}})).unwrap_err();
        assert_eq!(error.status, hyper::StatusCode::NOT_IMPLEMENTED);
    }

    #[test]
    fn wrong_values_are_the_clients_fault() {
        for host in [
            json!({"RestartPolicy": {"Name": "sometimes"}}),
            json!({"AutoRemove": true, "RestartPolicy": {"Name": "always"}}),
            json!({"CpuRealtimeRuntime": 5}),
            json!({"MemorySwappiness": 10}),
            json!({"CgroupParent": "/mine"}),
            json!({"LogConfig": {"Type": "syslog"}}),
            json!({"LogConfig": {"Type": "json-file", "Config": {"colour": "red"}}}),
        ] {
            let error = parse(json!({"Image": "x", "HostConfig": host})).unwrap_err();
            assert_eq!(error.status, hyper::StatusCode::BAD_REQUEST, "{}", error.message);
        }
        assert!(parse(json!({"Image": ""})).is_err());
        assert!(parse(json!([])).is_err());
    }
}
