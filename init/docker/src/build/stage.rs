//! One stage of a build: what its image is so far, and the instructions that change only its settings.

use std::collections::BTreeMap;

use serde_json::json;
use store::{ChainId, Healthcheck, History, Image, ImageConfig, ImageId, Layer, Store};

use super::dockerfile::Instruction;
use super::words::{word, words};
use crate::containers::{clean, spec};

pub(super) const SHELL: &[&str] = &["/bin/sh", "-c"];

#[derive(Clone)]
pub(super) struct Stage {
    pub(super) name: Option<String>,
    /// None as long as there is nothing on `scratch`.
    pub(super) image: Option<ImageId>,
    pub(super) chain: Option<ChainId>,
    pub(super) config: ImageConfig,
    /// Arguments that are declared, with their values.
    pub(super) args: BTreeMap<String, String>,
    /// This stage has said its own command: an entry point leaves it.
    has_command: bool,
}

impl Stage {
    pub(super) fn empty(name: Option<String>) -> Self {
        let config = ImageConfig {
            architecture: "amd64".to_owned(),
            os: "linux".to_owned(),
            ..ImageConfig::default()
        };
        Self {
            name,
            image: None,
            chain: None,
            config,
            args: BTreeMap::new(),
            has_command: false,
        }
    }

    pub(super) fn on(image: &Image, name: Option<String>) -> Self {
        let mut stage = Self::empty(name);
        stage.take(image);
        stage
    }

    /// A stage that begins where this one ended.
    pub(super) fn followed_by(&self, name: Option<String>) -> Self {
        Self {
            name,
            args: BTreeMap::new(),
            has_command: false,
            ..self.clone()
        }
    }

    /// Goes on with an image that was made before.
    pub(super) fn take(&mut self, image: &Image) {
        self.image = Some(image.id);
        self.chain = image.layers.last().copied();
        self.config = image.config.clone();
    }

    /// Records the stage as an image, after an instruction that has made a layer or not.
    pub(super) fn keep(&mut self, store: &Store, text: &str, layer: Option<&Layer>) -> store::Result<()> {
        let now = zones::log::now();
        self.config.created = Some(now.clone());
        self.config.history.push(History {
            created: Some(now),
            created_by: Some(text.to_owned()),
            empty_layer: layer.is_none(),
            ..History::default()
        });
        self.config.rootfs.kind = "layers".to_owned();
        if let Some(layer) = layer {
            self.config.rootfs.diff_ids.push(layer.diff_id);
            self.chain = Some(layer.chain_id);
        }
        let raw = serde_json::to_vec(&self.config).map_err(|error| store::Error::BadConfig {
            reason: error.to_string(),
        })?;
        self.image = Some(store.add_image(&raw, None)?.id);
        Ok(())
    }

    /// A variable's value: the environment goes before arguments.
    pub(super) fn variable(&self, name: &str) -> Option<String> {
        let own = self.config.config.env.iter().rev().find_map(|entry| {
            let (key, value) = entry.split_once('=')?;
            (key == name).then(|| value.to_owned())
        });
        own.or_else(|| self.args.get(name).cloned())
    }

    pub(super) fn shell(&self) -> Vec<String> {
        let default = || SHELL.iter().map(|word| (*word).to_owned()).collect();
        self.config.config.shell.clone().unwrap_or_else(default)
    }

    /// A path as it is meant in the working directory.
    pub(super) fn absolute(&self, path: &str) -> String {
        if path.starts_with('/') {
            return path.to_owned();
        }
        let folder = self.config.config.working_dir.trim_end_matches('/');
        format!("{folder}/{path}")
    }

    /// A list as JSON, or a line for the shell.
    fn command(&self, instruction: &Instruction) -> Vec<String> {
        instruction.list().unwrap_or_else(|| {
            let mut command = self.shell();
            command.push(instruction.rest.clone());
            command
        })
    }

    /// Carries out an instruction that only changes settings; gives its text with variables replaced.
    pub(super) fn set(&mut self, instruction: &Instruction, escape: char) -> Result<String, String> {
        let before = self.clone();
        let lookup = |name: &str| before.variable(name);
        let one = || word(&instruction.rest, escape, &lookup);
        let config = &mut self.config.config;
        let shown = match instruction.name.as_str() {
            "ENV" => {
                let pairs = pairs(instruction, escape, &lookup)?;
                spec::merge_env(&mut config.env, &pairs);
                pairs.join(" ")
            }
            "LABEL" => {
                let pairs = pairs(instruction, escape, &lookup)?;
                for pair in &pairs {
                    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                    config.labels.insert(key.to_owned(), value.to_owned());
                }
                pairs.join(" ")
            }
            "EXPOSE" => {
                let ports = words(&instruction.rest, escape, &lookup)?;
                for port in &ports {
                    for port in ports_of(port)? {
                        config.exposed_ports.insert(port, json!({}));
                    }
                }
                ports.join(" ")
            }
            "VOLUME" => {
                let volumes = match instruction.list() {
                    Some(list) => list,
                    None => words(&instruction.rest, escape, &lookup)?,
                };
                for path in &volumes {
                    config.volumes.insert(path.clone(), json!({}));
                }
                volumes.join(" ")
            }
            "USER" => {
                config.user = one()?;
                config.user.clone()
            }
            "STOPSIGNAL" => {
                let signal = one()?;
                spec::parse_signal(&signal).map_err(|error| error.message)?;
                config.stop_signal = Some(signal.clone());
                signal
            }
            "WORKDIR" => {
                let path = before.absolute(&one()?);
                config.working_dir = clean(&path);
                config.working_dir.clone()
            }
            "SHELL" => {
                let list = instruction.list().filter(|list| !list.is_empty());
                config.shell = Some(list.ok_or("SHELL requires the arguments to be in JSON form")?);
                instruction.rest.clone()
            }
            "CMD" => {
                config.cmd = Some(before.command(instruction));
                self.has_command = true;
                instruction.rest.clone()
            }
            "ENTRYPOINT" => {
                config.entrypoint = Some(before.command(instruction)).filter(|list| !list.is_empty());
                if !self.has_command {
                    config.cmd = None;
                }
                instruction.rest.clone()
            }
            "HEALTHCHECK" => {
                config.healthcheck = Some(health(instruction)?);
                instruction.rest.clone()
            }
            "MAINTAINER" => {
                self.config.author = Some(instruction.rest.clone());
                instruction.rest.clone()
            }
            "ONBUILD" => {
                let inner = super::dockerfile::instruction(&instruction.rest, instruction.line)?;
                if matches!(inner.name.as_str(), "ONBUILD" | "FROM" | "MAINTAINER") {
                    return Err(format!("{} isn't allowed as an ONBUILD trigger", inner.name));
                }
                config
                    .on_build
                    .get_or_insert_default()
                    .push(instruction.rest.clone());
                instruction.rest.clone()
            }
            other => return Err(format!("{other} is not carried out here")),
        };
        Ok(format!("{} {shown}", instruction.name))
    }
}

/// `key=value …`, or the old form `key value`.
fn pairs(
    instruction: &Instruction,
    escape: char,
    lookup: super::words::Lookup<'_>,
) -> Result<Vec<String>, String> {
    let first = instruction.rest.split_whitespace().next().unwrap_or_default();
    if first.contains('=') {
        let pairs = words(&instruction.rest, escape, lookup)?;
        return match pairs
            .iter()
            .find(|pair| !pair.contains('=') || pair.starts_with('='))
        {
            Some(bad) => Err(format!(
                "{}: {bad:?} is not of the form key=value",
                instruction.name
            )),
            None => Ok(pairs),
        };
    }
    let (key, value) = instruction
        .rest
        .split_once(char::is_whitespace)
        .ok_or_else(|| format!("{} must have two arguments", instruction.name))?;
    Ok(vec![format!("{key}={}", word(value.trim(), escape, lookup)?)])
}

/// `80`, `53/udp`, `7000-7002/tcp`.
fn ports_of(text: &str) -> Result<Vec<String>, String> {
    let wrong = || format!("invalid containerPort: {text}");
    let (range, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let number = |text: &str| text.parse::<u16>().map_err(|_| wrong());
    let (first, last) = (number(first)?, number(last)?);
    let known = matches!(protocol, "tcp" | "udp" | "sctp");
    if first > last || !known {
        return Err(wrong());
    }
    Ok((first..=last).map(|port| format!("{port}/{protocol}")).collect())
}

fn health(instruction: &Instruction) -> Result<Healthcheck, String> {
    instruction.only_flags(&["interval", "timeout", "start-period", "start-interval", "retries"])?;
    let (kind, rest) = instruction
        .rest
        .split_once(char::is_whitespace)
        .unwrap_or((&instruction.rest, ""));
    let mut check = Healthcheck::default();
    match kind.to_ascii_uppercase().as_str() {
        "NONE" => check.test = vec!["NONE".to_owned()],
        "CMD" => {
            let list: Option<Vec<String>> = serde_json::from_str(rest.trim()).ok();
            check.test = match list {
                Some(list) => ["CMD".to_owned()].into_iter().chain(list).collect(),
                None => vec!["CMD-SHELL".to_owned(), rest.trim().to_owned()],
            };
        }
        other => return Err(format!("Unknown type {other:?} in HEALTHCHECK (try CMD)")),
    }
    let time = |name: &str| instruction.flag(name).map_or(Ok(0), nanoseconds);
    check.interval = time("interval")?;
    check.timeout = time("timeout")?;
    check.start_period = time("start-period")?;
    check.start_interval = time("start-interval")?;
    if let Some(retries) = instruction.flag("retries") {
        check.retries = retries
            .parse()
            .map_err(|_| format!("invalid retries: {retries}"))?;
    }
    Ok(check)
}

/// A length of time as Go writes it: `1m30s`, `500ms`.
fn nanoseconds(text: &str) -> Result<i64, String> {
    let wrong = || format!("invalid duration: {text:?}");
    let (mut total, mut rest) = (0.0, text);
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or_else(wrong)?;
        let (number, after) = rest.split_at(digits);
        let unit_end = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_end);
        let factor = match unit {
            "ns" => 1.0,
            "us" | "µs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 60e9,
            "h" => 3_600e9,
            _ => return Err(wrong()),
        };
        total += number.parse::<f64>().map_err(|_| wrong())? * factor;
        rest = after;
    }
    Ok(total as i64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::dockerfile::instruction;

    fn after(lines: &[&str]) -> Stage {
        let mut stage = Stage::empty(None);
        for line in lines {
            stage.set(&instruction(line, 1).unwrap(), '\\').unwrap();
        }
        stage
    }

    #[test]
    fn settings_are_those_that_docker_makes_of_them() {
        let config = after(&[
            "ENV A=1 B=\"two words\"",
            "ENV old form of $A",
            "LABEL a.b=c d=$B",
            "EXPOSE 80 53/udp 7000-7001",
            "VOLUME [\"/data\"]",
            "VOLUME /a /b",
            "WORKDIR /srv",
            "WORKDIR sub/../app",
            "USER web",
            "STOPSIGNAL SIGINT",
            "CMD echo $A",
            "HEALTHCHECK --interval=1m30s --retries=2 CMD true",
        ])
        .config
        .config;
        assert_eq!(config.env, ["A=1", "B=two words", "old=form of 1"]);
        assert_eq!(config.labels["d"], "two words");
        let ports: Vec<&String> = config.exposed_ports.keys().collect();
        assert_eq!(ports, ["53/udp", "7000/tcp", "7001/tcp", "80/tcp"]);
        assert_eq!(config.volumes.len(), 3);
        assert_eq!(config.working_dir, "/srv/app");
        assert_eq!(config.cmd.unwrap(), ["/bin/sh", "-c", "echo $A"]);
        let check = config.healthcheck.unwrap();
        assert_eq!((check.interval, check.retries), (90_000_000_000, 2));
        assert_eq!(check.test, ["CMD-SHELL", "true"]);
    }

    #[test]
    fn an_entry_point_leaves_out_a_command_of_the_base_only() {
        let mut stage = after(&["CMD [\"base\"]"]);
        stage.has_command = false;
        let set = |stage: &mut Stage, line: &str| stage.set(&instruction(line, 1).unwrap(), '\\').map(drop);
        set(&mut stage, "ENTRYPOINT [\"run\"]").unwrap();
        assert_eq!(stage.config.config.cmd, None);
        set(&mut stage, "CMD [\"own\"]").unwrap();
        set(&mut stage, "ENTRYPOINT [\"again\"]").unwrap();
        assert_eq!(stage.config.config.cmd.as_deref(), Some(&["own".to_owned()][..]));
    }

    #[test]
    fn wrong_settings_are_refused() {
        for line in [
            "EXPOSE x",
            "EXPOSE 9-1",
            "SHELL sh",
            "HEALTHCHECK WHY",
            "ENV alone",
            "ONBUILD FROM a",
            "STOPSIGNAL NONE",
        ] {
            let refused = Stage::empty(None).set(&instruction(line, 1).unwrap(), '\\');
            assert!(refused.is_err(), "{line}");
        }
    }
}
