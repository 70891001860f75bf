//! The figures of the README: `cargo bench -p tests`. Ratios and medians, with their goals beside them.

use std::fs;
use std::time::{Duration, Instant};

use tests::image::{Kind, built};
use tests::{Boot, Machine, api, bare};

/// How often each boot is measured.
const BOOTS: usize = 5;
/// How often a container is started.
const STARTS: usize = 20;
/// How long a boot may take.
const BOOT: Duration = Duration::from_secs(120);

fn main() {
    let image = built(Kind::Quickstart).unwrap_or_else(|error| panic!("{error:#}"));
    let efi = image.efi.as_ref().expect("the quickstart makes an .efi file");
    let bytes = fs::metadata(efi).expect("the .efi file was just built").len();
    println!("quickstart .efi: {:.1} MB (goal: at most 45)", bytes as f64 / 1e6);

    // In turns, so that a busy moment of this machine burdens both.
    let (mut bare, mut answering, mut ready, mut last) = (Vec::new(), Vec::new(), Vec::new(), None);
    for _ in 0..BOOTS {
        drop(last.take());
        bare.push(bare::boot(&Boot::quickstart().blank_disk()).unwrap_or_else(|error| panic!("{error:#}")));
        let machine = Boot::quickstart().blank_disk().power_on();
        answering.push(until_answer(&machine));
        ready.push(until_ready(&machine));
        last = Some(machine);
    }
    let (bare, answering, ready) = (median(bare), median(answering), median(ready));
    println!(
        "QEMU start until the kernel has run a program that powers off: {} ms",
        bare.as_millis()
    );
    println!("QEMU start until the API answers: {} ms", answering.as_millis());
    println!(
        "  ratio {:.2} (goal: at most 1.6)",
        answering.as_secs_f64() / bare.as_secs_f64()
    );
    println!(
        "QEMU start until the pool is made and its first image loaded: {} ms",
        ready.as_millis()
    );

    let machine = last.expect("there was a boot");
    println!("idle RAM: {} MB (goal: at most 60)", idle_memory(&machine));
    println!(
        "`docker start` of a ready container by the API: {} ms (median of {STARTS})",
        starts(&machine).as_millis()
    );
}

/// From QEMU's start to the first good answer. Asked as soon as there is an address: QEMU's network
/// makes who asks earlier wait for seconds.
fn until_answer(machine: &Machine) -> Duration {
    let address = machine.console().wait_for("eth0 has 10.0.2.15", BOOT);
    address.unwrap_or_else(|error| panic!("{error}"));
    let answer = api::request(machine.endpoint(), "GET", "/_ping");
    let took = machine.started().elapsed();
    assert!(
        matches!(answer, Ok((200, _))),
        "the API does not answer: {answer:?}"
    );
    took
}

/// From QEMU's start to the console's word that nothing is left to do.
fn until_ready(machine: &Machine) -> Duration {
    said_ready(machine);
    machine.started().elapsed()
}

/// MemTotal − MemAvailable in MB, as the machine itself reads it when nothing runs in it yet.
fn idle_memory(machine: &Machine) -> u32 {
    let line = said_ready(machine);
    let number = line
        .split_once("ready, with ")
        .and_then(|(_, rest)| rest.split(' ').next()?.parse().ok());
    number.unwrap_or_else(|| panic!("no memory in: {line}"))
}

fn said_ready(machine: &Machine) -> String {
    let line = machine.console().wait_for("MB of memory in use", BOOT);
    line.unwrap_or_else(|error| panic!("{error}"))
}

fn starts(machine: &Machine) -> Duration {
    let names = (0..STARTS)
        .map(|number| format!("start{number}"))
        .collect::<Vec<_>>();
    for name in &names {
        machine.docker().ok(&format!("create --name {name} busybox true"));
    }
    let runtime = tokio::runtime::Runtime::new().expect("no runtime");
    let client = machine.bollard();
    let time = |name: &String| {
        let started = Instant::now();
        runtime
            .block_on(client.start_container(name, None))
            .unwrap_or_else(|error| panic!("start {name}: {error}"));
        started.elapsed()
    };
    median(names.iter().map(time).collect())
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}
