//! How long a zone's life takes by the API in an emulated machine: `cargo bench -p tests --bench zones`.
//!
//! bollard makes a connection for each request. What a request that does nothing takes, which is the
//! TLS handshake and HTTP, stands beside, to be taken off the others.

#![allow(clippy::unwrap_used, reason = "a benchmark fails by it")]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bollard::Docker;
use bollard::exec::{CreateExecOptions, StartExecOptions, StartExecResults};
use bollard::models::ContainerCreateBody;
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, RemoveContainerOptionsBuilder, StopContainerOptionsBuilder,
    WaitContainerOptions,
};
use futures_util::StreamExt;
use tests::Boot;

const ROUNDS: usize = 40;
const WARM_UP: usize = 4;

fn main() {
    // `cargo test` runs benchmarks too, without this argument.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let machine = Boot::quickstart().blank_disk().start();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let mut times = Times::default();
    runtime.block_on(async {
        let client = machine.bollard();
        for round in 0..WARM_UP + ROUNDS {
            let mut measured = life(&client, &format!("life{round}")).await;
            measured.extend(whole(&client, &format!("whole{round}")).await);
            if round >= WARM_UP {
                times.add(measured);
            }
        }
    });
    println!("{ROUNDS} rounds, each request with a connection of its own, emulated, in milliseconds");
    println!("{:36} {:>8} {:>8}", "", "p50", "p99");
    times.print();
}

type Measured = Vec<(&'static str, Duration)>;

/// The steps of one container's life.
async fn life(client: &Docker, name: &str) -> Measured {
    let mut watch = Watch::default();
    client.ping().await.unwrap();
    watch.lap("ping");
    create(client, name, &["sleep", "1000"]).await;
    watch.lap("create");
    client.start_container(name, None).await.unwrap();
    watch.lap("start");
    let id = make_exec(client, name).await;
    watch.lap("exec: create");
    run_exec(client, &id).await;
    watch.lap("exec: start, until it has ended");
    let at_once = StopContainerOptionsBuilder::default().t(0).build();
    client.stop_container(name, Some(at_once)).await.unwrap();
    watch.lap("stop");
    client.remove_container(name, None).await.unwrap();
    watch.lap("remove");
    watch.laps
}

/// A short container from nothing to nothing.
async fn whole(client: &Docker, name: &str) -> Measured {
    let mut watch = Watch::default();
    create(client, name, &["true"]).await;
    client.start_container(name, None).await.unwrap();
    let mut waiting = client.wait_container(name, None::<WaitContainerOptions>);
    while let Some(ended) = waiting.next().await {
        ended.unwrap();
    }
    let force = RemoveContainerOptionsBuilder::default().force(true).build();
    client.remove_container(name, Some(force)).await.unwrap();
    watch.lap("create, start, wait, remove");
    watch.laps
}

async fn create(client: &Docker, name: &str, command: &[&str]) {
    let body = ContainerCreateBody {
        image: Some("busybox".to_owned()),
        cmd: Some(command.iter().map(|word| (*word).to_owned()).collect()),
        ..ContainerCreateBody::default()
    };
    let named = CreateContainerOptionsBuilder::default().name(name).build();
    client.create_container(Some(named), body).await.unwrap();
}

async fn make_exec(client: &Docker, name: &str) -> String {
    let wanted = CreateExecOptions {
        cmd: Some(vec!["true"]),
        attach_stdout: Some(true),
        ..CreateExecOptions::default()
    };
    client.create_exec(name, wanted).await.unwrap().id
}

async fn run_exec(client: &Docker, id: &str) {
    let started = client.start_exec(id, None::<StartExecOptions>).await.unwrap();
    if let StartExecResults::Attached { mut output, .. } = started {
        while let Some(said) = output.next().await {
            said.unwrap();
        }
    }
}

struct Watch {
    last: Instant,
    laps: Measured,
}

impl Default for Watch {
    fn default() -> Self {
        Self {
            last: Instant::now(),
            laps: Vec::new(),
        }
    }
}

impl Watch {
    fn lap(&mut self, what: &'static str) {
        let now = Instant::now();
        self.laps.push((what, now - self.last));
        self.last = now;
    }
}

#[derive(Default)]
struct Times(BTreeMap<&'static str, Vec<Duration>>);

impl Times {
    fn add(&mut self, measured: Measured) {
        for (what, took) in measured {
            self.0.entry(what).or_default().push(took);
        }
    }

    fn print(&mut self) {
        for (what, times) in &mut self.0 {
            times.sort_unstable();
            let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1e3;
            println!("{what:36} {:8.1} {:8.1}", at(50), at(99));
        }
    }
}
