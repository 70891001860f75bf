//! How long a zone's life takes by the API in an emulated machine: `cargo bench -p tests --bench zones`.
//!
//! Each request has a connection of its own, whose making is measured apart.

#![allow(clippy::unwrap_used, reason = "a benchmark fails by it")]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::Boot;
use tests::api::Connection;
use tests::client::Endpoint;

const ROUNDS: usize = 40;
const WARM_UP: usize = 4;

fn main() {
    // `cargo test` runs benchmarks too, without this argument.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let machine = Boot::quickstart().blank_disk().start();
    let client = Client(machine.endpoint());
    let mut times = Times::default();
    for round in 0..WARM_UP + ROUNDS {
        let mut watch = Watch::default();
        client.life(&mut watch, &format!("life{round}"));
        client.whole(&mut watch, &format!("whole{round}"));
        if round >= WARM_UP {
            times.add(watch.laps);
        }
    }
    println!("{ROUNDS} rounds, emulated, in milliseconds");
    println!("{:44} {:>8} {:>8}", "", "p50", "p99");
    times.print();
}

/// What a client does between two calls: docker's command line takes longer to begin, or asks for more.
const BETWEEN_CALLS: Duration = Duration::from_millis(200);

struct Client<'a>(&'a Endpoint);

impl Client<'_> {
    /// The steps of one container's life.
    fn life(&self, watch: &mut Watch, name: &str) {
        self.ask(watch, "ping", "GET", "/_ping", Value::Null);
        self.create(watch, "create", name, &["sleep", "1000"]);
        std::thread::sleep(BETWEEN_CALLS);
        self.act(watch, "start", name, "POST", "/start");
        let wanted = json!({"Cmd": ["true"], "AttachStdout": true});
        let path = format!("/containers/{name}/exec");
        let made = self.ask(watch, "exec: create", "POST", &path, wanted);
        let made: Value = serde_json::from_str(&made).unwrap();
        std::thread::sleep(BETWEEN_CALLS);
        let path = format!("/exec/{}/start", made["Id"].as_str().unwrap());
        self.ask(watch, "exec: start, until it has ended", "POST", &path, json!({}));
        self.act(watch, "stop", name, "POST", "/stop?t=0");
        self.act(watch, "start again", name, "POST", "/start");
        self.act(watch, "kill", name, "POST", "/kill");
        self.act(watch, "remove", name, "DELETE", "");
    }

    /// A short container from nothing to nothing, one call after the other.
    fn whole(&self, watch: &mut Watch, name: &str) {
        let mut quiet = Watch::default();
        let begin = Instant::now();
        self.create(&mut quiet, "", name, &["true"]);
        self.act(&mut quiet, "", name, "POST", "/start");
        self.act(&mut quiet, "", name, "POST", "/wait");
        self.act(&mut quiet, "", name, "DELETE", "?force=1");
        watch
            .laps
            .push(("create, start, wait, remove, with connections", begin.elapsed()));
    }

    fn create(&self, watch: &mut Watch, lap: &'static str, name: &str, command: &[&str]) {
        let wanted = json!({"Image": "busybox", "Cmd": command});
        self.ask(
            watch,
            lap,
            "POST",
            &format!("/containers/create?name={name}"),
            wanted,
        );
    }

    fn act(&self, watch: &mut Watch, lap: &'static str, name: &str, method: &str, verb: &str) {
        self.ask(
            watch,
            lap,
            method,
            &format!("/containers/{name}{verb}"),
            Value::Null,
        );
    }

    fn ask(&self, watch: &mut Watch, lap: &'static str, method: &str, path: &str, body: Value) -> String {
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        watch.begin();
        let connection = Connection::open(self.0).unwrap();
        watch.lap("(a connection)");
        let (status, answer) = connection.send(method, path, body.as_bytes()).unwrap();
        watch.lap(lap);
        assert!(status < 300, "{method} {path}: {status} {answer}");
        answer
    }
}

type Measured = Vec<(&'static str, Duration)>;

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
    fn begin(&mut self) {
        self.last = Instant::now();
    }

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
            println!("{what:44} {:8.1} {:8.1}", at(50), at(99));
        }
    }
}
