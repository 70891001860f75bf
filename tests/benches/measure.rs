//! The figures of the README: `cargo bench -p tests`. Ratios and medians, with their goals beside them.

use std::fs;
use std::time::{Duration, Instant};

use tests::image::{Kind, built};
use tests::{Boot, Machine, api, bare};

/// How often each boot is measured.
const BOOTS: usize = 5;
/// How often a container is started.
const STARTS: usize = 20;

fn main() {
    let image = built(Kind::Quickstart).unwrap_or_else(|error| panic!("{error:#}"));
    let efi = image.efi.as_ref().expect("the quickstart makes an .efi file");
    let bytes = fs::metadata(efi).expect("the .efi file was just built").len();
    println!("quickstart .efi: {:.1} MB (goal: at most 45)", bytes as f64 / 1e6);

    // In turns, so that a busy moment of this machine burdens both.
    let (mut bare, mut answering, mut last) = (Vec::new(), Vec::new(), None);
    for _ in 0..BOOTS {
        drop(last.take());
        bare.push(bare::boot(&Boot::quickstart().blank_disk()).unwrap_or_else(|error| panic!("{error:#}")));
        let machine = Boot::quickstart().blank_disk().start();
        answering.push(until_answer(&machine));
        last = Some(machine);
    }
    let (bare, answering) = (median(bare), median(answering));
    println!(
        "QEMU start until the kernel has run a program that powers off: {} ms",
        bare.as_millis()
    );
    println!("QEMU start until the API answers: {} ms", answering.as_millis());
    println!(
        "  ratio {:.2} (goal: at most 1.6)",
        answering.as_secs_f64() / bare.as_secs_f64()
    );

    let machine = last.expect("there was a boot");
    println!(
        "idle RAM: {:.0} MB (goal: at most 60)",
        idle_memory(&machine) as f64 / 1e6
    );
    println!(
        "`docker start` of a ready container by the API: {} ms (median of {STARTS})",
        starts(&machine).as_millis()
    );
}

/// From QEMU's start to the first good answer.
fn until_answer(machine: &Machine) -> Duration {
    let answer = api::request(machine.endpoint(), "GET", "/_ping");
    let took = machine.started().elapsed();
    assert!(
        matches!(answer, Ok((200, _))),
        "the API does not answer: {answer:?}"
    );
    took
}

/// Bytes in use that no process can get, as a zone that just started reads them.
fn idle_memory(machine: &Machine) -> u64 {
    let info = machine.docker().ok("run --rm busybox cat /proc/meminfo");
    let field = |name: &str| -> u64 {
        let line = info.lines().find(|line| line.starts_with(name));
        let number = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
        number.unwrap_or_else(|| panic!("no {name} in:\n{info}"))
    };
    (field("MemTotal:") - field("MemAvailable:")) * 1024
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
