//! `HostConfig.Mounts` as clients send it and `inspect` shows it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::containers::nullable;

fn is_false(flag: &bool) -> bool {
    !flag
}

/// One mount. What is not known of it stays in `rest`, and is refused if it is set.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct MountRequest {
    #[serde(rename = "Type", deserialize_with = "nullable")]
    pub(crate) kind: String,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub(crate) source: String,
    #[serde(deserialize_with = "nullable")]
    pub(crate) target: String,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_false")]
    pub(crate) read_only: bool,
    /// How late the two sides may agree; here they always do.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub(crate) consistency: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) bind_options: Option<BindOptions>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) volume_options: Option<VolumeOptions>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tmpfs_options: Option<TmpfsOptions>,
    #[serde(flatten)]
    pub(crate) rest: Map<String, Value>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct BindOptions {
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub(crate) propagation: String,
    /// What is mounted below the source does not come along.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_false")]
    pub(crate) non_recursive: bool,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_false")]
    pub(crate) create_mountpoint: bool,
    /// What is mounted below the source stays writable.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_false")]
    pub(crate) read_only_non_recursive: bool,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_false")]
    pub(crate) read_only_force_recursive: bool,
    #[serde(flatten)]
    pub(crate) rest: Map<String, Value>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct VolumeOptions {
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_false")]
    pub(crate) no_copy: bool,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) labels: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) driver_config: Option<Driver>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub(crate) subpath: String,
    #[serde(flatten)]
    pub(crate) rest: Map<String, Value>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Driver {
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub(crate) name: String,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) options: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct TmpfsOptions {
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_zero")]
    pub(crate) size_bytes: i64,
    /// Permission bits.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_zero")]
    pub(crate) mode: i64,
    /// Each a key, or a key and its value.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub(crate) options: Vec<Vec<String>>,
    #[serde(flatten)]
    pub(crate) rest: Map<String, Value>,
}

fn is_zero(number: &i64) -> bool {
    *number == 0
}
