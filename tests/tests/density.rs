//! Many sleeping zones in one machine: what each costs, and that the last starts as fast as the first.

// What fails here fails the test.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use bollard::models::{ContainerCreateBody, HostConfig};
use bollard::query_parameters::{CreateContainerOptionsBuilder, RemoveContainerOptionsBuilder};
use tests::{Boot, Machine};
use tokio::task::JoinSet;

const MIB: u64 = 1 << 20;
/// Starts of which a median is taken, at either end.
const SAMPLE: usize = 15;
/// Removals under way at once.
const AT_ONCE: usize = 8;

#[test]
fn a_hundred_zones_sleep_in_one_machine() {
    fill(100, Duration::from_secs(120));
}

#[test]
#[ignore = "starts a thousand zones in an emulated machine, which takes some minutes"]
fn a_thousand_zones_sleep_in_two_gibibytes() {
    fill(1_000, Duration::from_secs(600));
}

/// Starts `count` zones one after the other, and removes them all within `removal`.
fn fill(count: usize, removal: Duration) {
    let machine = Boot::quickstart().memory(2_048 * MIB).blank_disk().start();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let client = machine.bollard();
    // The first start of all brings what every other finds: the image's pages, code that has run.
    runtime.block_on(start(&client, "warm"));
    let before = Memory::of(&machine);

    let mut times = Vec::with_capacity(count);
    for number in 0..count {
        times.push(runtime.block_on(start(&client, &name(number))));
    }
    let (first, last) = (median(&times[..SAMPLE]), median(&times[count - SAMPLE..]));
    let after = Memory::of(&machine);
    let each = |before: u64, after: u64| after.saturating_sub(before) / count as u64;
    println!(
        "{count} zones: start p50 {:.1} ms at the first, {:.1} ms at the last",
        first.as_secs_f64() * 1e3,
        last.as_secs_f64() * 1e3
    );
    println!(
        "memory for each: {} KiB in all; the kernel {} KiB, the supervisor {} KiB, process 1 {} KiB",
        each(before.all, after.all),
        each(before.kernel, after.kernel),
        each(before.supervisor, after.supervisor),
        each(before.process_1, after.process_1)
    );
    assert!(
        last <= first * 2,
        "a start takes {last:?} beside {count} zones, and {first:?} beside none"
    );

    // They run, and the last one is on the network.
    let running = machine.docker().ok("ps -q");
    assert_eq!(running.lines().count(), count + 1);
    let last = name(count - 1);
    machine
        .docker()
        .ok(&format!("exec {last} ping -c 1 -W 20 172.17.0.1"));
    let neighbour = machine.docker().ok(&format!(
        "inspect -f {{{{.NetworkSettings.IPAddress}}}} {}",
        name(0)
    ));
    machine
        .docker()
        .ok(&format!("exec {last} ping -c 1 -W 20 {neighbour}"));

    let began = Instant::now();
    runtime.block_on(remove_all(&client, count));
    let took = began.elapsed();
    println!("all removed in {:.1} s", took.as_secs_f64());
    assert!(took < removal, "removing {count} zones took {took:?}");
    assert_eq!(machine.docker().ok("ps -aq").lines().count(), 1);
}

fn name(number: usize) -> String {
    format!("zone{number}")
}

/// How long the start of a new zone takes that sleeps from then on.
async fn start(client: &bollard::Docker, name: &str) -> Duration {
    let body = ContainerCreateBody {
        image: Some("busybox".to_owned()),
        cmd: Some(vec!["sleep".to_owned(), "100000".to_owned()]),
        host_config: Some(HostConfig::default()),
        ..ContainerCreateBody::default()
    };
    let named = CreateContainerOptionsBuilder::default().name(name).build();
    client.create_container(Some(named), body).await.unwrap();
    let began = Instant::now();
    client.start_container(name, None).await.unwrap();
    began.elapsed()
}

async fn remove_all(client: &bollard::Docker, count: usize) {
    let mut removing = JoinSet::new();
    for number in 0..count {
        if removing.len() >= AT_ONCE {
            removing.join_next().await.unwrap().unwrap();
        }
        let client = client.clone();
        removing.spawn(async move {
            let force = RemoveContainerOptionsBuilder::default().force(true).build();
            client.remove_container(&name(number), Some(force)).await.unwrap();
        });
    }
    while let Some(removed) = removing.join_next().await {
        removed.unwrap();
    }
}

fn median(times: &[Duration]) -> Duration {
    let mut times = times.to_vec();
    times.sort_unstable();
    times[times.len() / 2]
}

/// KiB in use: of the whole machine, and by whom.
struct Memory {
    all: u64,
    kernel: u64,
    supervisor: u64,
    process_1: u64,
}

impl Memory {
    fn of(machine: &Machine) -> Self {
        let status = machine.request("GET", "/monobloc/v1/status");
        let status: serde_json::Value = serde_json::from_str(&status).unwrap();
        let kib = |name: &str| {
            let bytes = status["memory_".to_owned() + name].as_u64();
            bytes.unwrap_or_else(|| panic!("no memory_{name} in {status}")) / 1024
        };
        Self {
            all: kib("total") - kib("available"),
            kernel: kib("kernel"),
            supervisor: kib("supervisor"),
            process_1: kib("process_1"),
        }
    }
}
