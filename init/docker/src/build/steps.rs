//! The steps of a build, one after the other.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::json;
use store::{Digest, ImageId, Reference, Store, Workspace, ZoneFiles};
use tokio::runtime::Handle;

use super::copy::Plan;
use super::dockerfile::{Dockerfile, Instruction, instruction};
use super::stage::Stage;
use super::words::word;
use super::{Options, cache, run};
use crate::containers;
use crate::engine::Engine;
use crate::http::{ApiError, BodySender, Result};
use crate::images::{self, short};
use crate::registry::{Credentials, Session};

/// Arguments that need no declaration, as Docker has them.
const PREDEFINED: &[&str] = &["HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY"];
/// What stands for the machine that builds and the one that is built for.
const PLATFORM: &[(&str, &str)] = &[
    ("BUILDPLATFORM", "linux/amd64"),
    ("BUILDOS", "linux"),
    ("BUILDARCH", "amd64"),
    ("TARGETPLATFORM", "linux/amd64"),
    ("TARGETOS", "linux"),
    ("TARGETARCH", "amd64"),
];
const SCRATCH: &str = "scratch";

pub(super) struct Build<'a> {
    engine: &'a Arc<Engine>,
    store: &'a Arc<Store>,
    context: Workspace,
    options: Options,
    sender: &'a BodySender,
    runtime: Handle,
    /// Arguments before the first `FROM`.
    global: BTreeMap<String, String>,
    consumed: BTreeSet<String>,
    stages: Vec<Stage>,
}

impl<'a> Build<'a> {
    pub(super) fn new(
        engine: &'a Arc<Engine>,
        store: &'a Arc<Store>,
        context: Workspace,
        options: Options,
        sender: &'a BodySender,
        runtime: Handle,
    ) -> Self {
        Self {
            engine,
            store,
            context,
            options,
            sender,
            runtime,
            global: BTreeMap::new(),
            consumed: BTreeSet::new(),
            stages: Vec::new(),
        }
    }

    fn say(&self, line: impl Into<String>) -> Result<()> {
        let line: String = line.into();
        let sent = self.sender.blocking_send_json(&json!({ "stream": line }));
        sent.map_err(|_| ApiError::bad_request("The client has gone."))
    }

    pub(super) fn run(mut self, file: &Dockerfile) -> Result<ImageId> {
        // Layers on their way to an image are not collected meanwhile.
        let store = self.store.clone();
        let _hold = store.hold();
        let steps = file.instructions.len();
        for (number, step) in file.instructions.iter().enumerate() {
            if step.name == "FROM" && self.is_target_done() {
                break;
            }
            self.say(format!("Step {}/{steps} : {}\n", number + 1, step.text()))?;
            self.step(step, file.escape).map_err(|error| ApiError {
                message: describe(step, &error.message),
                ..error
            })?;
            if let Some(image) = self.stages.last().and_then(|stage| stage.image) {
                self.say(format!(" ---> {}\n", short(&image.hex())))?;
            }
        }
        if !self.options.target.is_empty() && !self.is_target_done() {
            return Err(ApiError::bad_request(format!(
                "failed to reach build target {} in Dockerfile",
                self.options.target
            )));
        }
        self.label()?;
        let unused: Vec<&String> = self
            .options
            .args
            .keys()
            .filter(|name| !self.consumed.contains(*name))
            .collect();
        if !unused.is_empty() {
            self.say(format!(
                "[Warning] One or more build-args {unused:?} were not consumed\n"
            ))?;
        }
        let image = self.stages.last().and_then(|stage| stage.image);
        image.ok_or_else(|| ApiError::bad_request("No image was generated. Is your Dockerfile empty?"))
    }

    fn is_target_done(&self) -> bool {
        let target = self.options.target.as_str();
        let last = self.stages.len().checked_sub(1);
        !target.is_empty()
            && self.stages.last().is_some_and(|stage| {
                stage
                    .name
                    .as_deref()
                    .is_some_and(|name| name.eq_ignore_ascii_case(target))
                    || last.is_some_and(|last| target.parse() == Ok(last))
            })
    }

    fn step(&mut self, step: &Instruction, escape: char) -> Result<()> {
        match step.name.as_str() {
            "FROM" => self.from(step, escape),
            "ARG" => self.argument(step, escape),
            name => {
                let mut stage = self.stages.pop().ok_or_else(|| {
                    ApiError::bad_request(format!(
                        "no build stage in current context: {name} stands before FROM"
                    ))
                })?;
                let done = match name {
                    "RUN" => self.command(&mut stage, step),
                    "COPY" | "ADD" => self.files(&mut stage, step, escape),
                    _ => self.setting(&mut stage, step, escape),
                };
                self.stages.push(stage);
                done
            }
        }
    }

    fn from(&mut self, step: &Instruction, escape: char) -> Result<()> {
        step.only_flags(&["platform"]).map_err(ApiError::bad_request)?;
        let global = self.global.clone();
        let lookup = |name: &str| global.get(name).cloned().or_else(|| platform(name));
        if let Some(wanted) = step.flag("platform") {
            let wanted = word(wanted, escape, &lookup).map_err(ApiError::bad_request)?;
            images::only_this_platform(Some(&wanted))?;
        }
        let parts: Vec<&str> = step.rest.split_whitespace().collect();
        let (base, name) = match parts.as_slice() {
            [base] => (*base, None),
            [base, as_word, name] if as_word.eq_ignore_ascii_case("as") => {
                (*base, Some((*name).to_ascii_lowercase()))
            }
            _ => {
                return Err(ApiError::bad_request(
                    "FROM requires either one or three arguments",
                ));
            }
        };
        let base = word(base, escape, &lookup).map_err(ApiError::bad_request)?;
        if base.is_empty() {
            return Err(ApiError::bad_request(format!(
                "base name ({}) should not be blank",
                step.rest
            )));
        }
        let earlier = self
            .stages
            .iter()
            .rev()
            .find(|stage| stage.name.as_deref() == Some(&base.to_ascii_lowercase()));
        let stage = match earlier {
            Some(earlier) => earlier.followed_by(name),
            None if base == SCRATCH => Stage::empty(name),
            None => Stage::on(&self.image(&base, self.options.pulls)?, name),
        };
        let triggers = earlier
            .is_none()
            .then(|| stage.config.config.on_build.clone())
            .flatten();
        self.stages.push(stage);
        let Some(triggers) = triggers.filter(|triggers| !triggers.is_empty()) else {
            return Ok(());
        };
        if let Some(stage) = self.stages.last_mut() {
            stage.config.config.on_build = None;
        }
        self.say(format!("# Executing {} build triggers\n", triggers.len()))?;
        for trigger in triggers {
            let step = instruction(&trigger, step.line).map_err(ApiError::bad_request)?;
            self.step(&step, escape)?;
        }
        Ok(())
    }

    /// An image by name, fetched if it is not there or a newer one is asked for.
    fn image(&self, name: &str, pulls: bool) -> Result<store::Image> {
        if !pulls {
            match self.store.resolve(name) {
                Ok(image) => return Ok(image),
                Err(error) if !error.is_not_found() => return Err(error.into()),
                Err(_) => {}
            }
        }
        let reference: Reference = name.parse()?;
        let reference = reference.or_latest();
        let registry = reference.registry();
        let keys = if registry == "docker.io" {
            &["https://index.docker.io/v1/", "docker.io"][..]
        } else {
            &[][..]
        };
        let found = keys
            .iter()
            .copied()
            .chain([registry])
            .find_map(|key| self.options.credentials.get(key));
        let credentials = match found {
            Some(found) => Credentials::from_json(found.to_string().as_bytes())?,
            None => None,
        };
        let session = Session::new(&reference, credentials, &self.engine.config.registry.insecure)?;
        self.runtime
            .block_on(images::fetch(session, self.store, &reference, self.sender))?;
        Ok(self.store.resolve(&reference.to_string())?)
    }

    fn argument(&mut self, step: &Instruction, escape: char) -> Result<()> {
        let stage = self.stages.last();
        let global = self.global.clone();
        let values: Vec<(String, Option<String>)> = {
            let lookup = |name: &str| match stage {
                Some(stage) => stage.variable(name),
                None => global.get(name).cloned().or_else(|| platform(name)),
            };
            let words = super::words::words(&step.rest, escape, &lookup).map_err(ApiError::bad_request)?;
            let split = |text: String| match text.split_once('=') {
                Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                None => (text, None),
            };
            words.into_iter().map(split).collect()
        };
        let in_stage = stage.is_some();
        for (name, default) in values {
            self.consumed.insert(name.clone());
            let asked = self.options.args.get(&name).cloned().flatten();
            let inherited = || self.global.get(&name).cloned().or_else(|| platform(&name));
            let value = asked.or(default).or_else(|| in_stage.then(inherited).flatten());
            match (self.stages.last_mut(), value) {
                (Some(stage), Some(value)) => drop(stage.args.insert(name, value)),
                (None, Some(value)) => drop(self.global.insert(name, value)),
                _ => {}
            }
        }
        Ok(())
    }

    fn setting(&mut self, stage: &mut Stage, step: &Instruction, escape: char) -> Result<()> {
        let before = stage.image;
        let text = stage.set(step, escape).map_err(ApiError::bad_request)?;
        let key = cache::key(before.as_ref(), &text, None);
        if self.take_cached(stage, &key)? {
            return Ok(());
        }
        stage.keep(self.store, &text, None)?;
        self.remember(stage, &key)
    }

    fn take_cached(&self, stage: &mut Stage, key: &str) -> Result<bool> {
        if !self.options.uses_cache {
            return Ok(false);
        }
        let Some(image) = cache::find(self.store, key) else {
            return Ok(false);
        };
        stage.take(&image);
        self.say(" ---> Using cache\n")?;
        Ok(true)
    }

    fn remember(&self, stage: &Stage, key: &str) -> Result<()> {
        match &stage.image {
            Some(image) => Ok(cache::keep(self.store, key, image)?),
            None => Ok(()),
        }
    }

    fn files(&mut self, stage: &mut Stage, step: &Instruction, escape: char) -> Result<()> {
        let tree = stage
            .image
            .map(|image| self.store.image_files(&image))
            .transpose()?;
        let other = step.flag("from").map(|from| self.tree_of(from)).transpose()?;
        let runtime = self.runtime.clone();
        let fetch = move |url: &str| runtime.block_on(images::download(url));
        let before = stage.clone();
        let plan = Plan {
            instruction: step,
            escape,
            stage: &before,
            tree: tree.as_ref(),
            from: Some(other.as_ref().unwrap_or(self.context.files())),
            store: self.store,
            fetch: &fetch,
        };
        let (copy, shown) = plan.copy()?;
        let content: Digest = copy.digest()?;
        let text = format!("{} {shown} in {}", step.name, stage.config.config.working_dir);
        let key = cache::key(stage.image.as_ref(), &text, Some(&content));
        if self.take_cached(stage, &key)? {
            return Ok(());
        }
        let layer = copy.layer(self.store, &before)?;
        stage.keep(self.store, &step.text(), Some(&layer))?;
        self.remember(stage, &key)
    }

    /// The tree of an earlier stage, by name or number, or of an image.
    fn tree_of(&self, from: &str) -> Result<ZoneFiles> {
        let number = from
            .parse::<usize>()
            .ok()
            .and_then(|number| self.stages.get(number));
        let named = || {
            self.stages
                .iter()
                .find(|stage| stage.name.as_deref() == Some(&from.to_ascii_lowercase()))
        };
        let image = match number.or_else(named) {
            Some(stage) => stage
                .image
                .ok_or_else(|| ApiError::bad_request(format!("the stage {from} is empty")))?,
            None => self.image(from, false)?.id,
        };
        Ok(self.store.image_files(&image)?)
    }

    fn command(&mut self, stage: &mut Stage, step: &Instruction) -> Result<()> {
        let command = run::command(stage, step)?;
        // Proxies change what a command may reach, not what it makes.
        for name in PREDEFINED
            .iter()
            .flat_map(|name| [(*name).to_owned(), name.to_ascii_lowercase()])
        {
            if let Some(Some(value)) = self.options.args.get(&name) {
                self.consumed.insert(name.clone());
                stage.args.insert(name, value.clone());
            }
        }
        let text = format!("{command:?} with {:?} {:?}", stage.args, step.flags);
        let key = cache::key(stage.image.as_ref(), &text, None);
        if self.take_cached(stage, &key)? {
            return Ok(());
        }
        if stage.image.is_none() {
            stage.keep(self.store, "FROM scratch", None)?;
        }
        let request = run::request(stage, &self.options, step, &command);
        let (container, code) = self
            .runtime
            .block_on(run::run(self.engine, request, self.sender))?;
        let kept = if code == 0 {
            run::keep(self.store, stage, &container, &command.join(" "))
        } else {
            Err(ApiError::bad_request(format!(
                "The command '{}' returned a non-zero code: {code}",
                command.join(" ")
            )))
        };
        let removed = self
            .runtime
            .block_on(containers::discard(self.engine, &container));
        kept?;
        removed?;
        self.say(format!(
            " ---> Removed intermediate container {}\n",
            short(&container.id)
        ))?;
        self.remember(stage, &key)
    }

    /// The labels of the command line.
    fn label(&mut self) -> Result<()> {
        if self.options.labels.is_empty() {
            return Ok(());
        }
        let Some(mut stage) = self.stages.pop() else {
            return Ok(());
        };
        stage.config.config.labels.extend(self.options.labels.clone());
        let text = format!("LABEL {}", json!(self.options.labels));
        let key = cache::key(stage.image.as_ref(), &text, None);
        if !self.take_cached(&mut stage, &key)? {
            stage.keep(self.store, &text, None)?;
            self.remember(&stage, &key)?;
        }
        self.stages.push(stage);
        Ok(())
    }
}

fn platform(name: &str) -> Option<String> {
    let found = PLATFORM.iter().find(|(known, _)| *known == name);
    found.map(|(_, value)| (*value).to_owned())
}

fn describe(step: &Instruction, message: &str) -> String {
    format!("line {}: {}: {message}", step.line, step.name)
}
