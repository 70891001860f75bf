//! Manifests and indexes, in the words of the OCI image specification and Docker's schema 2.

use std::collections::BTreeMap;

use serde::Deserialize;
use store::Digest;

/// What is asked for, best first.
pub(crate) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.v2+json";

/// A part of an image, by digest.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    pub(crate) digest: Digest,
    #[serde(default)]
    pub(crate) size: u64,
    #[serde(default)]
    pub(crate) platform: Option<Platform>,
    #[serde(default)]
    pub(crate) annotations: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Platform {
    #[serde(default)]
    pub(crate) architecture: String,
    #[serde(default)]
    pub(crate) os: String,
    /// A level of the instruction set: `v1` is what every amd64 machine has.
    #[serde(default)]
    pub(crate) variant: String,
}

/// One image.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
}

/// What a manifest's address gives: one image, or a choice of them by platform.
#[derive(Debug, Clone)]
pub(crate) enum Document {
    Image(Manifest),
    Index(Vec<Descriptor>),
}

/// More layers than any builder makes.
const MAX_LAYERS: usize = 1024;

impl Document {
    /// Tells the two apart by what they hold, as the media type may be missing.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Either {
            schema_version: u32,
            manifests: Option<Vec<Descriptor>>,
            config: Option<Descriptor>,
            layers: Option<Vec<Descriptor>>,
        }
        let read: Either = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if read.schema_version != 2 {
            return Err(format!(
                "schema version {} is not supported, only 2",
                read.schema_version
            ));
        }
        match (read.manifests, read.config, read.layers) {
            (Some(list), None, _) => Ok(Self::Index(list)),
            (None, Some(config), Some(layers)) if layers.len() <= MAX_LAYERS => {
                Ok(Self::Image(Manifest { config, layers }))
            }
            (None, Some(_), Some(layers)) => Err(format!("{} layers are too many", layers.len())),
            _ => Err("it is neither a manifest nor an index".to_owned()),
        }
    }
}

/// The entry for this machine, and of several the one for every such machine. An entry without a
/// platform is taken if there is no other.
pub(crate) fn choose(list: &[Descriptor]) -> Option<&Descriptor> {
    let plain = |descriptor: &&Descriptor| matches!(variant(descriptor), Some("" | "v1"));
    let unnamed = |descriptor: &&Descriptor| descriptor.platform.is_none() && !is_attestation(descriptor);
    list.iter()
        .find(plain)
        .or_else(|| list.iter().find(|descriptor| variant(descriptor).is_some()))
        .or_else(|| list.iter().find(unnamed))
}

/// The level of the instruction set that an entry for this kind of machine asks for.
fn variant(descriptor: &Descriptor) -> Option<&str> {
    let platform = descriptor.platform.as_ref()?;
    (platform.os == "linux" && platform.architecture == "amd64").then_some(platform.variant.as_str())
}

/// Builders put signatures and provenance beside the images.
fn is_attestation(descriptor: &Descriptor) -> bool {
    descriptor
        .annotations
        .as_ref()
        .is_some_and(|annotations| annotations.contains_key("vnd.docker.reference.type"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(byte: char) -> String {
        format!("sha256:{}", byte.to_string().repeat(64))
    }

    #[test]
    fn the_entry_for_this_machine_is_chosen() {
        let entry = |os: &str, architecture: &str, byte| {
            format!(
                r#"{{"digest":"{}","size":1,"platform":{{"os":"{os}","architecture":"{architecture}"}}}}"#,
                digest(byte)
            )
        };
        let newer = entry("linux", "amd64", 'c').replace("}}", r#","variant":"v3"}}"#);
        let (arm, ours) = (entry("linux", "arm64", 'a'), entry("linux", "amd64", 'b'));
        let unnamed = format!(r#"{{"digest":"{}"}}"#, digest('d'));
        let signature = unnamed.replace(
            "\"}",
            r#"","annotations":{"vnd.docker.reference.type":"attestation-manifest"}}"#,
        );
        for (list, chosen) in [
            (vec![&arm, &newer, &ours], Some('b')),
            (vec![&arm, &newer, &unnamed], Some('c')),
            (vec![&arm, &signature, &unnamed], Some('d')),
            (vec![&arm, &signature], None),
            (vec![], None),
        ] {
            let list: Vec<String> = list.into_iter().cloned().collect();
            let index = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, list.join(","));
            let Document::Index(entries) = Document::parse(index.as_bytes()).unwrap() else {
                panic!("an index")
            };
            let found = choose(&entries).map(|entry| entry.digest.to_string());
            assert_eq!(found, chosen.map(digest), "{index}");
        }
    }

    #[test]
    fn what_is_no_manifest_is_refused() {
        for bad in [
            "",
            "[]",
            "{}",
            r#"{"schemaVersion":1}"#,
            r#"{"schemaVersion":2,"config":{"digest":"x"}}"#,
        ] {
            assert!(Document::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
