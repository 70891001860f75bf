//! The config of an image that is made here (image-spec, `config.md`).

use serde_json::{Map, Value, json};

use crate::recipe::ImageConfig;

/// Writes the config of an image with layers of these digests, lowest first.
pub(super) fn write(config: &ImageConfig, layers: &[&str], made_by: &str) -> anyhow::Result<Vec<u8>> {
    let mut inner = Map::new();
    let mut put = |name: &str, value: Value, empty: bool| {
        if !empty {
            inner.insert(name.to_owned(), value);
        }
    };
    let set = |names: Vec<String>| {
        names
            .into_iter()
            .map(|name| (name, json!({})))
            .collect::<Map<_, _>>()
    };
    let ports = config.exposed_ports.iter().map(ToString::to_string).collect();
    let volumes = config.volumes.iter().map(ToString::to_string).collect();
    put("Cmd", json!(config.cmd), config.cmd.is_empty());
    put(
        "Entrypoint",
        json!(config.entrypoint),
        config.entrypoint.is_empty(),
    );
    put("Env", json!(environment(config)), false);
    put(
        "ExposedPorts",
        Value::Object(set(ports)),
        config.exposed_ports.is_empty(),
    );
    put("Labels", json!(config.labels), config.labels.is_empty());
    put(
        "StopSignal",
        json!(config.stop_signal),
        config.stop_signal.is_none(),
    );
    put("User", json!(config.user), config.user.is_none());
    put("Volumes", Value::Object(set(volumes)), config.volumes.is_empty());
    let workdir = config.workdir.as_ref().map_or("/", |path| path.as_str());
    put("WorkingDir", json!(workdir), false);
    let diff_ids: Vec<String> = layers.iter().map(|digest| format!("sha256:{digest}")).collect();
    let history: Vec<Value> = layers
        .iter()
        .map(|_| json!({"created": CREATED, "created_by": made_by}))
        .collect();
    Ok(serde_json::to_vec(&json!({
        "architecture": "amd64",
        "os": "linux",
        "created": CREATED,
        "config": inner,
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": history,
    }))?)
}

/// The same inputs give the same image, whenever it is made.
const CREATED: &str = "1970-01-01T00:00:00Z";
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

fn environment(config: &ImageConfig) -> Vec<String> {
    let path = (!config.env.contains_key("PATH")).then(|| format!("PATH={PATH}"));
    path.into_iter()
        .chain(config.env.iter().map(|(name, value)| format!("{name}={value}")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_config_has_what_the_recipe_says_and_nothing_empty() {
        let config: ImageConfig = toml::from_str(
            "cmd = [\"sh\"]\nexposed-ports = [\"80\", \"53/udp\"]\nenv = { A = \"1\" }\nworkdir = \"/srv\"",
        )
        .unwrap();
        let value: Value = serde_json::from_slice(&write(&config, &["00"], "test").unwrap()).unwrap();
        assert_eq!(value["config"]["Cmd"], json!(["sh"]));
        assert_eq!(
            value["config"]["ExposedPorts"],
            json!({"53/udp": {}, "80/tcp": {}})
        );
        assert_eq!(value["config"]["Env"], json!([format!("PATH={PATH}"), "A=1"]));
        assert_eq!(value["config"]["WorkingDir"], "/srv");
        assert!(value["config"].get("Entrypoint").is_none());
        assert_eq!(value["rootfs"]["diff_ids"], json!(["sha256:00"]));
    }
}
