//! A container that writes files with their checksums, and checks them.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use bollard::Docker;
use bollard::exec::StartExecResults;
use bollard::models::{ContainerCreateBody, ExecConfig, HostConfig};
use futures_util::StreamExt as _;
use tokio::time::timeout;

use crate::client::{Api, block_on};

const NAME: &str = "keeper";
/// Bytes of each of its files.
const FILE: u64 = 4_000_000;
/// Bytes of memory that it may have: far less than its files, so that it reads them from the disks.
const MEMORY: i64 = 24 << 20;
/// How long one thing that it does may take, emulated on a busy machine.
const LIMIT: Duration = Duration::from_secs(240);

pub(super) struct Program {
    docker: Docker,
    files: u64,
}

impl Program {
    /// Starts it; it has no files yet.
    pub(super) fn start(api: &Api, image: &str) -> anyhow::Result<Self> {
        let docker = api.docker().context("Cannot make a Docker client")?;
        let words = ["sh", "-c", "while sleep 1; do :; done"];
        let body = ContainerCreateBody {
            image: Some(image.to_owned()),
            cmd: Some(words.map(str::to_owned).to_vec()),
            host_config: Some(HostConfig {
                memory: Some(MEMORY),
                memory_swap: Some(MEMORY),
                ..HostConfig::default()
            }),
            ..ContainerCreateBody::default()
        };
        let options = bollard::query_parameters::CreateContainerOptionsBuilder::default()
            .name(NAME)
            .build();
        block_on(async {
            docker.create_container(Some(options), body).await?;
            docker.start_container(NAME, None).await
        })?
        .context("Cannot start the program")?;
        Ok(Self { docker, files: 0 })
    }

    /// Bytes that it has written.
    pub(super) fn bytes(&self) -> u64 {
        self.files * FILE
    }

    pub(super) fn files(&self) -> u64 {
        self.files
    }

    /// Has it write more files, and their checksums.
    pub(super) fn write(&mut self, files: u64) -> anyhow::Result<()> {
        let (first, last) = (self.files + 1, self.files + files);
        let said = self.run(&format!(
            "cd /root && for i in $(seq {first} {last}); do head -c {FILE} /dev/urandom > file$i && sha256sum file$i >> sums || exit 1; done; sync; echo written"
        ))?;
        ensure!(said.contains("written"), "The program could not write: {said}");
        self.files = last;
        Ok(())
    }

    /// Has it read everything again and compare.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        let said = self.run("cd /root && sha256sum -c sums")?;
        let right = said.lines().filter(|line| line.ends_with(": OK")).count();
        ensure!(
            right as u64 == self.files,
            "The program found other data than it wrote: {said}"
        );
        Ok(())
    }

    /// Whether it has run all the time.
    pub(super) fn never_stopped(&self) -> anyhow::Result<bool> {
        let told =
            block_on(self.docker.inspect_container(NAME, None))?.context("Cannot look at the program")?;
        let running = told.state.and_then(|state| state.running).unwrap_or(false);
        Ok(running && told.restart_count == Some(0))
    }

    fn run(&self, script: &str) -> anyhow::Result<String> {
        let work = async {
            let wanted = ExecConfig {
                cmd: Some(["sh", "-c", script].map(str::to_owned).to_vec()),
                attach_stdout: Some(true),
                attach_stderr: Some(true),
                ..ExecConfig::default()
            };
            let exec = self.docker.create_exec(NAME, wanted).await?;
            let mut said = String::new();
            match self.docker.start_exec(&exec.id, None).await? {
                StartExecResults::Attached { mut output, .. } => {
                    while let Some(part) = output.next().await {
                        said.push_str(&String::from_utf8_lossy(&part?.into_bytes()));
                    }
                }
                StartExecResults::Detached => bail!("It was not listened to"),
            }
            anyhow::Ok(said)
        };
        let bounded = async { timeout(LIMIT, work).await };
        let said = block_on(bounded)?.context("The program did not come to its end")?;
        said.context("The program cannot be asked")
    }
}
