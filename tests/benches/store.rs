//! The store beside Debian's docker.io in an identical machine: `cargo bench -p tests --bench store`.
//!
//! Both machines are there at once, and each operation is done in turn by the one and the other, by the
//! same client over the same kind of connection.

#![allow(clippy::unwrap_used, reason = "a benchmark fails by it")]

use std::fs;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::api::Connection;
use tests::client::Endpoint;
use tests::peer::{Peer, large_image};
use tests::registry::{Access, Registry};
use tests::{Boot, Disk, Docker};

const DISK: u64 = 16 << 30;
const MEMORY: u64 = 2 << 30;
const LONG: Duration = Duration::from_secs(600);
/// Of what takes seconds, and of what does not.
const FEW: usize = 3;
const MANY: usize = 21;
const IMAGE: &str = "bench/large:1";
/// None may be slower than this, whatever it is.
const LEAST: f64 = 0.9;

fn main() {
    // `cargo test` runs benchmarks too, without this argument.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let image = large_image(IMAGE).unwrap();
    let size: usize = image.layers.iter().map(Vec::len).sum();
    let folder = tempfile::tempdir().unwrap();
    let archive = folder.path().join("image.tar");
    fs::write(&archive, image.docker_archive()).unwrap();
    let registry = Registry::start(Access::Anyone);
    registry.push(IMAGE, &image);
    let remote = format!("{}/{IMAGE}", registry.address());

    let disk = Disk::blank(DISK);
    let boot = Boot::quickstart().memory(MEMORY);
    let machine = boot.clone().disk(&disk).start();
    let peer = Peer::start(&boot, DISK).unwrap();
    let ours = Side::new("monobloc", machine.endpoint());
    let theirs = Side::new("docker.io", peer.endpoint());
    println!(
        "an image of {} MB in {} layers, medians",
        size / 1_000_000,
        image.layers.len()
    );
    println!(
        "{:44} {:>12} {:>12} {:>8} {:>6}",
        "", ours.name, theirs.name, "times", "goal"
    );
    let both =
        |what, goal, measure: &dyn Fn(&Side) -> f64| tell(what, goal, measure(&ours), measure(&theirs));

    let alternate = |rounds: usize, what: &str, goal: f64, step: &dyn Fn(&Side, usize) -> Duration| {
        let mut times = [Vec::new(), Vec::new()];
        for round in 0..rounds {
            for (side, times) in [&ours, &theirs].into_iter().zip(&mut times) {
                times.push(step(side, round));
            }
        }
        let [mine, other] = times.map(median);
        tell(what, goal, mine, other);
    };
    alternate(FEW, "load an archive of it, s", LEAST, &|side, _| {
        side.forget();
        side.timed(&format!("load -i {}", archive.display()))
    });
    alternate(
        FEW,
        "pull it from a registry of this machine, s",
        2.0,
        &|side, _| {
            side.forget();
            side.timed(&format!("pull {remote}"))
        },
    );
    for side in [&ours, &theirs] {
        side.docker.ok(&format!("tag {remote} {IMAGE}"));
    }
    alternate(MANY, "create a container of it, s", 50.0, &|side, round| {
        let body = json!({"Image": IMAGE});
        side.request("POST", &format!("/containers/create?name=made{round}"), &body)
    });
    alternate(MANY, "remove it, s", LEAST, &|side, round| {
        side.request("DELETE", &format!("/containers/made{round}"), &Value::Null)
    });
    for side in [&ours, &theirs] {
        side.docker.ok(&format!(
            "run --name changed {IMAGE} sh -c 'cp -a /usr/lib/gcc /copy; echo changed > /etc/hostname2; sync'"
        ));
    }
    alternate(
        FEW,
        "commit one that has some 100 MB of its own, s",
        LEAST,
        &|side, round| {
            side.request(
                "POST",
                &format!("/commit?container=changed&repo=committed&tag={round}"),
                &json!({}),
            )
        },
    );
    for (place, path) in [("the root", "/file"), ("a volume", "/volume/file")] {
        for (kind, word) in [("write", "sequential"), ("randwrite", "random")] {
            let what = format!("write 4k blocks, {word}, in {place}, s for 64 MiB");
            alternate(FEW, &what, LEAST, &|side, _| side.fio(kind, path));
        }
    }
    both("delete the image, s", LEAST, &|side| {
        side.docker.ok("rm changed");
        side.docker.ok("rmi committed:0 committed:1 committed:2");
        side.docker.ok(&format!("rmi {remote}"));
        side.timed(&format!("rmi {IMAGE}")).as_secs_f64()
    });
}

/// Prints a line: how many times as fast the first is.
fn tell(what: &str, goal: f64, mine: f64, other: f64) {
    let times = other / mine;
    let missed = if times < goal { "  MISSED" } else { "" };
    println!("{what:44} {mine:12.4} {other:12.4} {times:8.2} {goal:6}{missed}");
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64()
}

/// One of the two machines.
struct Side<'a> {
    name: &'static str,
    endpoint: &'a Endpoint,
    docker: Docker,
}

impl<'a> Side<'a> {
    fn new(name: &'static str, endpoint: &'a Endpoint) -> Self {
        Self {
            name,
            endpoint,
            docker: Docker::new(endpoint).with_limit(LONG),
        }
    }

    /// Removes all images but the machine's first.
    fn forget(&self) {
        let images = self.docker.ok("images --format {{.Repository}}:{{.Tag}}");
        for image in images.lines().filter(|image| image.contains("bench/")) {
            self.docker.ok(&format!("rmi {image}"));
        }
    }

    /// How long docker takes for a command.
    fn timed(&self, line: &str) -> Duration {
        let begin = Instant::now();
        self.docker.ok(line);
        begin.elapsed()
    }

    /// How long a request takes on a connection that is there.
    fn request(&self, method: &str, path: &str, body: &Value) -> Duration {
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let connection = Connection::open(self.endpoint).unwrap();
        let begin = Instant::now();
        let (status, answer) = connection
            .send(method, &format!("/v1.41{path}"), body.as_bytes())
            .unwrap();
        let took = begin.elapsed();
        assert!(status < 300, "{}: {method} {path}: {status} {answer}", self.name);
        took
    }

    /// How long fio takes to write, until all of it is on the disk, by its own clock.
    fn fio(&self, kind: &str, path: &str) -> Duration {
        let said = self.docker.ok(&format!(
            "run --rm -v /volume {IMAGE} fio --name=w --rw={kind} --filename={path} --bs=4k --size=64m \
             --ioengine=psync --end_fsync=1 --randrepeat=1 --output-format=json"
        ));
        let start = said.find('{').unwrap_or_default();
        let told: Value = serde_json::from_str(&said[start..]).unwrap();
        let millis = told["jobs"][0]["job_runtime"].as_u64().unwrap();
        Duration::from_millis(millis)
    }
}
