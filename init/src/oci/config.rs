//! A bundle's `config.json`, as the OCI runtime-spec 1.0 to 1.2 has it (`config.md`,
//! `config-linux.md`). What the specification has and this role does not do is read as [`Refused`], so
//! that it is not passed over; what the specification does not know is ignored, as it demands.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A property that must be absent or say nothing.
pub(super) type Refused = Option<Value>;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Config {
    pub(super) oci_version: String,
    pub(super) process: Option<Process>,
    pub(super) root: Option<Root>,
    pub(super) hostname: Option<String>,
    pub(super) domainname: Option<String>,
    #[serde(default)]
    pub(super) mounts: Vec<Mount>,
    #[serde(default)]
    pub(super) hooks: Hooks,
    #[serde(default)]
    pub(super) annotations: BTreeMap<String, String>,
    #[serde(default)]
    pub(super) linux: Linux,
    solaris: Refused,
    windows: Refused,
    vm: Refused,
    zos: Refused,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Process {
    #[serde(default)]
    pub(super) terminal: bool,
    pub(super) console_size: Option<ConsoleSize>,
    #[serde(default)]
    pub(super) user: User,
    #[serde(default)]
    pub(super) args: Vec<String>,
    #[serde(default)]
    pub(super) env: Vec<String>,
    pub(super) cwd: String,
    pub(super) capabilities: Option<Capabilities>,
    #[serde(default)]
    pub(super) rlimits: Vec<Rlimit>,
    #[serde(default)]
    pub(super) no_new_privileges: bool,
    pub(super) oom_score_adj: Option<i32>,
    #[serde(default)]
    pub(super) apparmor_profile: String,
    #[serde(default)]
    pub(super) selinux_label: String,
    scheduler: Refused,
    io_priority: Refused,
    #[serde(rename = "execCPUAffinity")]
    exec_cpu_affinity: Refused,
}

#[derive(Debug, Clone, Copy, Deserialize)]
pub(super) struct ConsoleSize {
    pub(super) height: u16,
    pub(super) width: u16,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct User {
    #[serde(default)]
    pub(super) uid: u32,
    #[serde(default)]
    pub(super) gid: u32,
    pub(super) umask: Option<u32>,
    #[serde(default)]
    pub(super) additional_gids: Vec<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Capabilities {
    pub(super) bounding: Vec<String>,
    pub(super) effective: Vec<String>,
    pub(super) permitted: Vec<String>,
    pub(super) inheritable: Vec<String>,
    pub(super) ambient: Vec<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Rlimit {
    #[serde(rename = "type")]
    pub(super) name: String,
    pub(super) soft: u64,
    pub(super) hard: u64,
}

#[derive(Debug, Deserialize)]
pub(super) struct Root {
    pub(super) path: String,
    #[serde(default)]
    pub(super) readonly: bool,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Mount {
    pub(super) destination: String,
    #[serde(rename = "type")]
    pub(super) kind: Option<String>,
    pub(super) source: Option<String>,
    #[serde(default)]
    pub(super) options: Vec<String>,
    pub(super) uid_mappings: Refused,
    pub(super) gid_mappings: Refused,
}

#[derive(Debug, Default, Clone, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Hooks {
    pub(super) prestart: Vec<Hook>,
    pub(super) create_runtime: Vec<Hook>,
    pub(super) create_container: Vec<Hook>,
    pub(super) start_container: Vec<Hook>,
    pub(super) poststart: Vec<Hook>,
    pub(super) poststop: Vec<Hook>,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
pub(super) struct Hook {
    pub(super) path: String,
    #[serde(default)]
    pub(super) args: Vec<String>,
    #[serde(default)]
    pub(super) env: Vec<String>,
    /// Seconds.
    pub(super) timeout: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Linux {
    pub(super) namespaces: Vec<Namespace>,
    pub(super) uid_mappings: Vec<IdMapping>,
    pub(super) gid_mappings: Vec<IdMapping>,
    pub(super) devices: Vec<Device>,
    pub(super) cgroups_path: Option<String>,
    pub(super) resources: Option<Resources>,
    pub(super) sysctl: BTreeMap<String, String>,
    pub(super) seccomp: Option<Value>,
    pub(super) rootfs_propagation: String,
    pub(super) masked_paths: Vec<String>,
    pub(super) readonly_paths: Vec<String>,
    pub(super) mount_label: String,
    pub(super) personality: Option<Personality>,
    intel_rdt: Refused,
    time_offsets: Refused,
    net_devices: Refused,
    memory_policy: Refused,
}

#[derive(Debug, Deserialize)]
pub(super) struct Namespace {
    #[serde(rename = "type")]
    pub(super) kind: NamespaceKind,
    pub(super) path: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum NamespaceKind {
    Pid,
    Network,
    Mount,
    Ipc,
    Uts,
    User,
    Cgroup,
    Time,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct IdMapping {
    #[serde(rename = "containerID")]
    pub(super) container_id: u32,
    #[serde(rename = "hostID")]
    pub(super) host_id: u32,
    pub(super) size: u32,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Device {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) path: String,
    #[serde(default)]
    pub(super) major: u32,
    #[serde(default)]
    pub(super) minor: u32,
    pub(super) file_mode: Option<u32>,
    #[serde(default)]
    pub(super) uid: u32,
    #[serde(default)]
    pub(super) gid: u32,
}

#[derive(Debug, Deserialize)]
pub(super) struct Personality {
    pub(super) domain: String,
    #[serde(default)]
    pub(super) flags: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Resources {
    pub(super) memory: Memory,
    pub(super) cpu: Cpu,
    pub(super) pids: Pids,
    #[serde(rename = "blockIO")]
    pub(super) block_io: BlockIo,
    pub(super) devices: Vec<DeviceRule>,
    pub(super) unified: BTreeMap<String, String>,
    pub(super) hugepage_limits: Refused,
    pub(super) network: Refused,
    pub(super) rdma: Refused,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Memory {
    /// Bytes; -1 is no limit.
    pub(super) limit: Option<i64>,
    pub(super) reservation: Option<i64>,
    /// Memory and swap together.
    pub(super) swap: Option<i64>,
    pub(super) kernel: Refused,
    #[serde(rename = "kernelTCP")]
    pub(super) kernel_tcp: Refused,
    pub(super) swappiness: Refused,
    #[serde(rename = "disableOOMKiller")]
    pub(super) disable_oom_killer: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Cpu {
    pub(super) shares: Option<u64>,
    /// Microseconds of each period.
    pub(super) quota: Option<i64>,
    pub(super) burst: Option<u64>,
    pub(super) period: Option<u64>,
    pub(super) realtime_runtime: Refused,
    pub(super) realtime_period: Refused,
    pub(super) cpus: String,
    pub(super) mems: String,
    pub(super) idle: Option<i64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Pids {
    pub(super) limit: Option<i64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct BlockIo {
    pub(super) weight: Option<u16>,
    pub(super) leaf_weight: Refused,
    pub(super) weight_device: Vec<DeviceWeight>,
    pub(super) throttle_read_bps_device: Vec<Throttle>,
    pub(super) throttle_write_bps_device: Vec<Throttle>,
    #[serde(rename = "throttleReadIOPSDevice")]
    pub(super) throttle_read_iops_device: Vec<Throttle>,
    #[serde(rename = "throttleWriteIOPSDevice")]
    pub(super) throttle_write_iops_device: Vec<Throttle>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
pub(super) struct DeviceWeight {
    pub(super) major: u32,
    pub(super) minor: u32,
    pub(super) weight: Option<u16>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
pub(super) struct Throttle {
    pub(super) major: u32,
    pub(super) minor: u32,
    pub(super) rate: u64,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct DeviceRule {
    pub(super) allow: bool,
    #[serde(rename = "type")]
    pub(super) kind: Option<String>,
    pub(super) major: Option<i64>,
    pub(super) minor: Option<i64>,
    pub(super) access: Option<String>,
}

/// Reads JSON; a property that is null is as one that is not there, as callers in Go write empty lists.
pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> serde_json::Result<T> {
    let mut value = serde_json::from_slice(bytes)?;
    drop_nulls(&mut value);
    serde_json::from_value(value)
}

fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(drop_nulls);
        }
        Value::Array(list) => list.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

impl Config {
    /// Reads a bundle's configuration, and refuses what this role does not do.
    pub(super) fn read(bundle: &Path) -> anyhow::Result<Self> {
        let path = bundle.join("config.json");
        let bytes = fs::read(&path).with_context(|| format!("Cannot read {}", path.display()))?;
        let config: Self = parse(&bytes)
            .with_context(|| format!("{} is no configuration of the OCI runtime-spec", path.display()))?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> anyhow::Result<()> {
        let version = &self.oci_version;
        let minor = version.strip_prefix("1.").and_then(|rest| rest.split('.').next());
        ensure!(
            minor.is_some_and(|minor| minor.parse::<u32>().is_ok()),
            "ociVersion {version:?} is unknown; versions 1.0 to 1.2 are what there is"
        );
        refuse(&[
            ("solaris", &self.solaris),
            ("windows", &self.windows),
            ("vm", &self.vm),
            ("zos", &self.zos),
            ("linux.intelRdt", &self.linux.intel_rdt),
            ("linux.timeOffsets", &self.linux.time_offsets),
            ("linux.netDevices", &self.linux.net_devices),
            ("linux.memoryPolicy", &self.linux.memory_policy),
        ])?;
        refuse_text("linux.mountLabel", &self.linux.mount_label)?;
        if let Some(process) = &self.process {
            process.check()?;
        }
        for mount in &self.mounts {
            refuse(&[
                ("mounts.uidMappings", &mount.uid_mappings),
                ("mounts.gidMappings", &mount.gid_mappings),
            ])?;
        }
        Ok(())
    }
}

impl Process {
    /// Refuses what this role does not do; a process that is added comes without the rest.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        refuse(&[
            ("process.scheduler", &self.scheduler),
            ("process.ioPriority", &self.io_priority),
            ("process.execCPUAffinity", &self.exec_cpu_affinity),
        ])?;
        refuse_text("process.apparmorProfile", &self.apparmor_profile)?;
        refuse_text("process.selinuxLabel", &self.selinux_label)?;
        ensure!(
            self.cwd.starts_with('/'),
            "process.cwd is {:?}, which is no absolute path",
            self.cwd
        );
        ensure!(
            !self.args.is_empty(),
            "process.args is empty; say which program to run"
        );
        Ok(())
    }
}

/// Refuses properties that ask for what this role does not do.
pub(super) fn refuse(properties: &[(&str, &Refused)]) -> anyhow::Result<()> {
    for (name, value) in properties {
        let says_nothing = match value {
            None | Some(Value::Null | Value::Bool(false)) => true,
            Some(Value::Number(number)) => number.as_i64() == Some(0),
            Some(Value::String(text)) => text.is_empty(),
            Some(Value::Array(list)) => list.is_empty(),
            Some(Value::Object(map)) => map.is_empty(),
            Some(Value::Bool(true)) => false,
        };
        if !says_nothing {
            bail!("Monobloc does not do {name} of config.json; leave it out");
        }
    }
    Ok(())
}

fn refuse_text(name: &str, value: &str) -> anyhow::Result<()> {
    ensure!(
        value.is_empty(),
        "Monobloc does not do {name} of config.json; leave it out"
    );
    Ok(())
}
