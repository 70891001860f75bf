//! The first container: proof for whoever started a machine that it does what it is for.

use anyhow::{Context, bail};
use bollard::Docker;
use bollard::errors::Error;
use bollard::models::ContainerCreateBody;
use bollard::query_parameters::{LogsOptionsBuilder, RemoveContainerOptionsBuilder};
use futures_util::StreamExt as _;

use super::{Api, block_on};

/// What the container runs; every shell of any age understands it.
const SCRIPT: &str = r#"echo "Hello from a container on $(uname -s) $(uname -r), with $(nproc) CPUs.""#;
/// As much of its output as is shown.
const MAX_OUTPUT: usize = 64 << 10;

/// Runs one container from an image to its end, removes it, and gives what it wrote.
///
/// # Errors
/// The image is not there, has no shell, or the container failed.
pub fn run(api: &Api, image: &str) -> anyhow::Result<String> {
    let docker = api.docker().context("Cannot make a Docker client")?;
    let ran = block_on(run_to_end(&docker, image))?;
    ran.with_context(|| format!("Cannot run a container from {image}"))
}

async fn run_to_end(docker: &Docker, image: &str) -> anyhow::Result<String> {
    let body = ContainerCreateBody {
        image: Some(image.to_owned()),
        entrypoint: Some(vec!["sh".to_owned(), "-c".to_owned()]),
        cmd: Some(vec![SCRIPT.to_owned()]),
        ..ContainerCreateBody::default()
    };
    let id = docker.create_container(None, body).await.map_err(plain)?.id;
    let ran = start_and_read(docker, &id).await;
    let options = RemoveContainerOptionsBuilder::default().force(true).build();
    let removed = docker.remove_container(&id, Some(options)).await.map_err(plain);
    let output = ran?;
    removed.context("Cannot remove the container")?;
    Ok(output)
}

async fn start_and_read(docker: &Docker, id: &str) -> anyhow::Result<String> {
    docker.start_container(id, None).await.map_err(plain)?;
    let status = match docker.wait_container(id, None).next().await {
        Some(Ok(answer)) => answer.status_code,
        Some(Err(Error::DockerContainerWaitError { code, .. })) => code,
        Some(Err(error)) => return Err(plain(error)),
        None => bail!("The API did not say how the container ended"),
    };
    let options = LogsOptionsBuilder::default().stdout(true).stderr(true).build();
    let mut logs = docker.logs(id, Some(options));
    let mut output = Vec::new();
    while let Some(part) = logs.next().await {
        output.extend_from_slice(&part.map_err(plain)?.into_bytes());
        if output.len() > MAX_OUTPUT {
            break;
        }
    }
    let output = String::from_utf8_lossy(&output).trim_end().to_owned();
    if status != 0 {
        bail!("It ended with status {status} and said: {output}");
    }
    Ok(output)
}

/// The API's own words, without the numbers around them.
fn plain(error: Error) -> anyhow::Error {
    match error {
        Error::DockerResponseServerError { message, .. } => anyhow::Error::msg(message),
        other => other.into(),
    }
}
