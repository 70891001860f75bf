//! What outlives what: zones the supervisor's death and its replacement, a zone its neighbour, the
//! state a power cut.

// What fails here fails the test.
#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use monobloc::client::{Api, Upgraded};
use monobloc::inspect::init_program;
use serde_json::{Value, json};
use tests::bare::{opening_program, speaking_program};
use tests::image::{Kind, built};
use tests::images::{Image, busybox_layer};
use tests::process::run;
use tests::{Boot, Disk, Machine, api};

/// How long anything may take in an emulated machine.
const LONG: Duration = Duration::from_secs(180);

/// The API as one uses it who knows that it may die at any moment.
struct Stubborn<'a>(&'a Machine);

/// An answer, or none because the connection broke.
type Answer = Option<(u16, Value)>;

impl Stubborn<'_> {
    fn once(&self, method: &str, path: &str, body: &Value) -> Answer {
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let (status, text) = api::send(self.0.endpoint(), method, path, body.as_bytes()).ok()?;
        Some((status, serde_json::from_str(&text).unwrap_or(Value::String(text))))
    }

    /// Asks until there is an answer: only for what may be asked twice.
    fn surely(&self, method: &str, path: &str) -> (u16, Value) {
        let deadline = Instant::now() + LONG;
        loop {
            match self.once(method, path, &Value::Null) {
                Some(answer) => return answer,
                None => assert!(Instant::now() < deadline, "{method} {path} is never answered"),
            }
        }
    }

    /// None if there is no such container.
    fn state(&self, name: &str) -> Option<Value> {
        match self.surely("GET", &format!("/containers/{name}/json")) {
            (200, container) => Some(container["State"].clone()),
            (404, _) => None,
            other => panic!("{name}: {other:?}"),
        }
    }

    /// Makes a container, whatever happens meanwhile.
    fn create(&self, name: &str, wanted: &Value) {
        loop {
            match self.once("POST", &format!("/containers/create?name={name}"), wanted) {
                // 409: the answer to the first attempt was lost.
                Some((201 | 409, _)) => return,
                Some(refusal) => panic!("{name}: {refusal:?}"),
                None if self.state(name).is_some() => return,
                None => {}
            }
        }
    }

    /// Starts a container once, whatever happens meanwhile. One that removes itself may be gone then.
    fn start(&self, name: &str) {
        loop {
            match self.once("POST", &format!("/containers/{name}/start"), &Value::Null) {
                // 404: it has removed itself, after it ended or when its start was cut short.
                Some((204 | 304 | 404, _)) => return,
                Some(refusal) => panic!("{name}: {refusal:?}"),
                None => {}
            }
            match self.state(name) {
                None => return,
                Some(state) if state["Status"] == "created" || state["Error"] != "" => {}
                Some(_) => return,
            }
        }
    }

    /// Waits for the container's end; none if it is gone.
    fn wait(&self, name: &str) -> Option<Value> {
        loop {
            match self.once("POST", &format!("/containers/{name}/wait"), &Value::Null) {
                Some((404, _)) => return None,
                Some((200, _)) => return self.state(name),
                Some(refusal) => panic!("{name}: {refusal:?}"),
                None => {}
            }
        }
    }

    fn remove(&self, name: &str) {
        let path = format!("/containers/{name}?force=1");
        let (status, answer) = self.surely("DELETE", &path);
        assert!(matches!(status, 204 | 404), "{name}: {answer}");
    }

    /// Kills the supervisor (it sends itself SIGKILL) and returns how long it took until the API
    /// answered a ping, and until it told of the containers.
    fn kill_supervisor(&self) -> (Duration, Duration) {
        let answer = self.once("POST", "/monobloc/v1/restart-supervisor", &Value::Null);
        assert!(answer.is_none(), "a dead supervisor answered {answer:?}");
        let dead = Instant::now();
        assert_eq!(self.surely("GET", "/_ping").0, 200);
        let pinged = dead.elapsed();
        assert_eq!(self.surely("GET", "/containers/json").0, 200);
        (pinged, dead.elapsed())
    }
}

fn command(script: &str) -> Value {
    json!({"Image": "busybox", "Cmd": ["sh", "-c", script]})
}

/// Says numbered lines for ever, on both streams and in bursts, and starts no process for it: its
/// standard input is a pipe that nobody writes to.
fn talker(terminal: bool) -> Value {
    let mut wanted = command(
        "i=0; while :; do echo out $i; echo err $i >&2; i=$((i+1)); echo out $i; i=$((i+1)); read -t 3 x; done",
    );
    wanted["OpenStdin"] = true.into();
    wanted["Tty"] = terminal.into();
    wanted
}

/// Panics unless the numbers after `word` are 0, 1, 2 and so on up to the last.
#[track_caller]
fn check_lines(name: &str, text: &str, word: &str, step: usize) -> usize {
    let numbers = text
        .lines()
        .filter_map(|line| line.trim_end().strip_prefix(word)?.trim().parse().ok());
    let numbers: Vec<usize> = numbers.collect();
    let wrong = numbers
        .iter()
        .enumerate()
        .find(|(at, number)| at * step != **number);
    assert!(
        wrong.is_none(),
        "{name}: `{word}` goes wrong at (place, number) {wrong:?} of {}:\n{text}",
        numbers.len()
    );
    numbers.len()
}

/// Makes one short container after the other and holds each to what must become of it.
fn make_short_ones(api: &Stubborn<'_>, maker: usize, done: &AtomicBool, made: &AtomicUsize) {
    for number in 0.. {
        if done.load(Ordering::Relaxed) {
            return;
        }
        let (name, code) = (format!("short-{maker}-{number}"), number % 100 + 1);
        let mut wanted = command(&format!("echo {name}; exit {code}"));
        let removes_itself = number % 4 == 3;
        wanted["HostConfig"] = match number % 4 {
            // A port that is not freed fails the next start.
            0 => json!({"PortBindings": {"80/tcp": [{"HostPort": (9000 + maker).to_string()}]}}),
            1 => json!({"RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": 2}}),
            2 => json!({}),
            _ => json!({"AutoRemove": true}),
        };
        api.create(&name, &wanted);
        api.start(&name);
        let mut ended = api.wait(&name);
        if removes_itself {
            let deadline = Instant::now() + LONG;
            while let Some(state) = ended {
                assert!(Instant::now() < deadline, "{name} is not removed: {state}");
                ended = api.state(&name);
            }
        } else {
            let (state, runs) = settled(api, &name, number % 4 == 1);
            assert_eq!(state["ExitCode"], code, "{name}: {state}");
            assert_eq!(state["Status"], "exited", "{name}: {state}");
            let said = logs(api.0, &name);
            assert_eq!(said, vec![name.as_str(); runs].join("\n"), "{name}: {state}");
            api.remove(&name);
        }
        made.fetch_add(1, Ordering::Relaxed);
    }
}

/// The state at the last end, and how often it has run.
fn settled(api: &Stubborn<'_>, name: &str, restarts: bool) -> (Value, usize) {
    if !restarts {
        return (api.state(name).unwrap(), 1);
    }
    let deadline = Instant::now() + LONG;
    loop {
        let (_, container) = api.surely("GET", &format!("/containers/{name}/json"));
        let state = &container["State"];
        if state["Status"] == "exited" && logs(api.0, name).lines().count() >= 3 {
            return (state.clone(), 3);
        }
        assert!(Instant::now() < deadline, "{name} is not restarted: {container}");
        // It ends once more, or has ended.
        let _ = api.wait(name);
    }
}

/// What a container has said, asked for until there is an answer.
fn logs(machine: &Machine, name: &str) -> String {
    let docker = machine.new_docker();
    let deadline = Instant::now() + LONG;
    loop {
        let outcome = docker.outcome_of(&format!("logs {name}"), b"");
        if outcome.code == 0 {
            return outcome.stdout;
        }
        assert!(Instant::now() < deadline, "{outcome}");
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

/// Kills the supervisor so many times while so many zones run and others come and go.
fn kill_supervisors(kills: usize, zones: usize) {
    let machine = Boot::quickstart().blank_disk().memory(2048 << 20).start();
    let api = Stubborn(&machine);
    let names: Vec<String> = (0..zones).map(|number| format!("talker-{number}")).collect();
    for (number, name) in names.iter().enumerate() {
        api.create(name, &talker(number == 3));
        api.start(name);
    }
    let told = |name: &String| {
        let state = api.state(name).unwrap();
        (
            state["Status"].clone(),
            state["Pid"].clone(),
            state["StartedAt"].clone(),
        )
    };
    let before: Vec<_> = names.iter().map(told).collect();
    let (done, made) = (AtomicBool::new(false), AtomicUsize::new(0));
    let (mut pinged, mut listed) = (Vec::new(), Vec::new());
    thread::scope(|scope| {
        for maker in 0..2 {
            let (api, done, made) = (&api, &done, &made);
            scope.spawn(move || {
                // The others must end if one panics.
                let _done = Finally(done);
                make_short_ones(api, maker, done, made);
            });
        }
        let _done = Finally(&done);
        for round in 0..kills {
            let docker = machine.new_docker();
            let attached = docker.follow("attach --no-stdin talker-0");
            let terminal = docker.follow("attach --no-stdin talker-3");
            let follower = docker.follow("logs -f talker-1");
            let waiter = docker.follow("wait talker-2");
            let added = docker.follow("exec talker-4 sh -c 'echo begun; sleep 1000'");
            attached.expect("out");
            terminal.expect("out");
            follower.expect("out");
            added.expect("begun");
            let (ping, list) = api.kill_supervisor();
            pinged.push(ping);
            listed.push(list);
            for client in [attached, terminal, follower, waiter, added] {
                // That it ends at all is what is asked here; its code is its own affair.
                let _ = client.end();
            }
            assert!(!done.load(Ordering::Relaxed), "a maker failed in round {round}");
        }
    });
    let ms = |time: Duration| time.as_millis();
    println!(
        "{kills} kills beside {zones} zones, {} others came and went; from the death to the first answer: p50 {} ms, max {} ms; \
         to the list of containers: p50 {} ms, max {} ms",
        made.load(Ordering::Relaxed),
        ms(median(pinged.clone())),
        pinged.iter().max().map_or(0, |max| ms(*max)),
        ms(median(listed.clone())),
        listed.iter().max().map_or(0, |max| ms(*max)),
    );
    assert!(made.load(Ordering::Relaxed) > 0, "nothing was made meanwhile");
    assert_eq!(names.iter().map(told).collect::<Vec<_>>(), before);
    for name in &names {
        let (status, answer) = api.surely("POST", &format!("/containers/{name}/kill"));
        assert_eq!(status, 204, "{name}: {answer}");
        let outcome = machine.docker().outcome_of(&format!("logs {name}"), b"");
        // A terminal has one stream.
        check_lines(name, &outcome.stdout, "out", 1);
        check_lines(name, &format!("{}\n{}", outcome.stdout, outcome.stderr), "err", 2);
        api.remove(name);
    }
    let docker = machine.docker();
    assert_eq!(docker.ok("ps -aq"), "");
    // The first range of ids is free again.
    let ids = docker.ok("run --rm busybox cat /proc/self/uid_map");
    assert_eq!(ids.split_whitespace().nth(1), Some("1000000"), "{ids}");
    let text = machine.console().text();
    assert!(!text.contains("panicked"), "{text}");
    machine.power_off();
}

/// Sets a flag when it goes out of scope, however that is.
struct Finally<'a>(&'a AtomicBool);

impl Drop for Finally<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn killed_supervisors_lose_no_zone_no_line_and_no_exit_status() {
    kill_supervisors(8, 20);
}

#[test]
#[ignore = "takes more than five minutes where the machine is emulated"]
fn a_hundred_killed_supervisors_lose_no_zone_no_line_and_no_exit_status() {
    kill_supervisors(100, 50);
}

/// The `/init` that the machines boot.
fn packed() -> Vec<u8> {
    init_program(&built(Kind::Quickstart).unwrap().initrd).unwrap()
}

/// What a program says that is asked to introduce itself.
fn introduction(program: &[u8]) -> String {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("init");
    std::fs::write(&path, program).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    run(LONG, &path, ["protocol"], &[], b"").ok() + "\n"
}

#[test]
fn a_supervisor_is_replaced_and_one_that_is_none_is_not() {
    let machine = Boot::quickstart().blank_disk().restarting().start();
    let docker = machine.docker();
    let client = Api::new(machine.endpoint().port, &machine.endpoint().certificates).unwrap();
    let upgrade = |program: &[u8]| client.upgrade_supervisor(program.to_vec(), LONG);
    let running = || client.status(LONG).unwrap()["supervisor"].clone();
    docker.ok("run -d --name through -p 8080:80 busybox sleep 10000");
    let told = || docker.ok("inspect -f '{{.State.Status}} {{.State.Pid}} {{.State.StartedAt}}' through");
    let before = told();
    let original = packed();
    let efi = built(Kind::Quickstart).unwrap().efi.as_ref().unwrap();
    assert!(
        init_program(efi).unwrap() == original,
        "the .efi file has another /init"
    );
    assert_eq!(running(), json!({"build": null, "fell_back": null}));

    // What is no supervisor is refused, and nothing happens.
    let foreign = introduction(&original).replacen("protocol ", "protocol 0", 1);
    let dynamic = std::fs::read("/bin/bash").unwrap();
    for (garbage, reason) in [
        (&b"#!/bin/sh\nexit 0\n"[..], "no program"),
        (b"", "no program"),
        (&original[..original.len() / 2], "introduces itself as \"\""),
        (&dynamic, "dynamic loader"),
        (
            &speaking_program("Hello\n", false),
            "introduces itself as \"Hello\"",
        ),
        (&speaking_program(&foreign, false), "another protocol"),
    ] {
        let refusal = upgrade(garbage).unwrap_err().to_string();
        assert!(refusal.contains(reason), "{reason}: {refusal}");
    }
    assert_eq!(running(), json!({"build": null, "fell_back": null}));

    // Another build: the same program with a byte more.
    let mut other = original.clone();
    other.push(0);
    let Upgraded::Runs(build) = upgrade(&other).unwrap() else {
        panic!("it fell back");
    };
    assert_eq!(running()["build"], build.as_str());
    assert_eq!(
        (told(), docker.ok("exec through echo in")),
        (before.clone(), "in".to_owned())
    );
    // It stays when it is killed.
    machine.crash_supervisor();
    assert_eq!(running()["build"], build.as_str());

    // One that introduces itself well and then ends, whatever it is asked; and one that never serves.
    let said = introduction(&original);
    for (patient, reason) in [(false, "3 times"), (true, "did not serve")] {
        let fell_back = upgrade(&speaking_program(&said, patient)).unwrap();
        assert!(
            matches!(&fell_back, Upgraded::FellBack(why) if why.contains(reason)),
            "{fell_back:?}"
        );
        let now = running();
        assert!(
            now["build"].is_null() && now["fell_back"].to_string().contains(reason),
            "{now}"
        );
        assert!(machine.console().text().contains("Going back to the packed one"));
        assert_eq!(told(), before);
    }
    assert_eq!(docker.ok("run --rm busybox echo new"), "new");

    // After a boot the packed one runs again.
    let mark = machine.console().mark();
    assert_eq!(upgrade(&other).unwrap(), Upgraded::Runs(build));
    machine.wait_ready(mark);
    machine.reboot();
    assert_eq!(running(), json!({"build": null, "fell_back": null}));
}

/// What a neighbour does over and over: starts a process, opens, writes and reads a file; how often is
/// told in `/dev/shm/progress`.
const NEIGHBOUR: &str =
    "i=0; while :; do /bin/true; i=$((i+1)); echo $i > /dev/shm/new; mv /dev/shm/new /dev/shm/progress; done";

/// How often the neighbour has done it within five seconds of the machine's own time.
#[track_caller]
fn progress(machine: &Machine) -> f64 {
    let script = "a=$(cat /dev/shm/progress); sleep 5; b=$(cat /dev/shm/progress); echo $((b-a))";
    let told = machine.docker().ok(&format!("exec neighbour sh -c '{script}'"));
    told.parse().unwrap()
}

#[test]
fn a_zone_that_takes_all_it_can_get_does_not_stop_its_neighbour() {
    /// Two that share two processors have one each, and where these are imitated on one thread half of
    /// that: a quarter, and some of it for the noise's own cost to the kernel.
    const LEAST: f64 = 1.0 / 10.0;
    let machine = Boot::quickstart().disk(&Disk::blank(1024 << 20)).start();
    let docker = machine.docker();
    let hog = busybox_layer().file("hog", 0o755, opening_program());
    docker
        .outcome_of("load", &Image::new("noise:1", &[hog]).docker_archive())
        .ok();
    docker.ok(&format!("run -d --name neighbour busybox sh -c '{NEIGHBOUR}'"));
    let told = || docker.ok("inspect -f '{{.State.Status}} {{.State.Pid}} {{.RestartCount}}' neighbour");
    let before = told();
    let forks = "exec 2> /dev/null; b() { b | b & }; b; while :; do sleep 100; done";
    let eats = "while :; do tail /dev/zero; done";
    let opens = "i=0; while [ $i -lt 20 ]; do /hog & i=$((i+1)); done; wait; sleep 1000";
    let spins = "for i in 1 2 3 4 5 6 7 8; do while :; do :; done & done; wait";
    for (what, options, script) in [
        ("forks without bound", "", forks),
        ("forks up to its limit", "--pids-limit 64", forks),
        ("fills its memory", "", eats),
        ("fills the memory it may have", "-m 64m", eats),
        ("opens every file", "--ulimit nofile=524288:524288", opens),
        ("spins", "", spins),
        ("talks without end", "", "yes"),
    ] {
        // Each time anew: what else this machine does changes from minute to minute.
        let alone = progress(&machine);
        docker.ok(&format!("run -d --name noise {options} noise:1 sh -c '{script}'"));
        let beside = progress(&machine);
        let asked = Instant::now();
        assert_eq!(docker.ok("run --rm busybox echo answered"), "answered");
        println!(
            "beside one that {what} the neighbour does {:.0} % of what it does alone ({alone:.0}); a container was run in {} ms",
            100.0 * beside / alone,
            asked.elapsed().as_millis()
        );
        assert!(beside >= alone * LEAST, "{what}: {beside} instead of {alone}");
        docker.ok("rm -f noise");
        assert_eq!(told(), before, "{what}");
    }
    // One with a bound of its own fills that, and nobody else's room.
    let alone = progress(&machine);
    let fill = "dd if=/dev/zero of=/fill bs=1M 2>&1; echo full; while :; do echo more >> /fill; done";
    docker.ok(&format!(
        "run -d --name bounded --storage-opt size=48m busybox sh -c '{fill}'"
    ));
    let bounded = docker.follow("logs -f bounded");
    bounded.expect("full");
    assert!(
        bounded.so_far().contains("quota exceeded"),
        "{}",
        bounded.so_far()
    );
    assert!(progress(&machine) >= alone * LEAST);
    let wrote = docker.ok(
        "exec neighbour sh -c 'dd if=/dev/zero of=/own bs=1M count=100 2>/dev/null && wc -c < /own; rm /own'",
    );
    assert_eq!(wrote, (100 << 20).to_string());
    assert!(
        !docker
            .ok("info --format '{{json .Warnings}}'")
            .contains("nearly full")
    );
    docker.ok("rm -f bounded");
    // One without may have the whole pool; the machine goes on, says so, and has its room back with the
    // container.
    let alone = progress(&machine);
    docker.ok(
        "run -d --name filler busybox sh -c 'dd if=/dev/zero of=/fill bs=1M; sync; echo full; sleep 1000'",
    );
    let filler = docker.follow("logs -f filler");
    filler.expect("full");
    let info = docker.outcome_of("info", b"");
    assert!(
        format!("{}{}", info.stdout, info.stderr).contains("The pool is nearly full"),
        "{info}"
    );
    assert!(progress(&machine) >= alone * LEAST);
    assert_eq!(told(), before);
    docker.ok("rm -f filler");
    assert_eq!(docker.ok("run --rm busybox echo room"), "room");
    let text = machine.console().text();
    assert!(
        !text.contains("the supervisor ended") && !text.contains("panicked"),
        "{text}"
    );
    machine.power_off();
}

#[test]
fn after_a_power_cut_the_state_is_readable_and_the_policies_decide_what_runs() {
    let disk = Disk::blank(4096 << 20);
    let machine = Boot::quickstart().disk(&disk).start();
    let docker = machine.docker();
    let forever = "busybox sh -c 'while :; do sleep 1000; done'";
    for (name, policy) in [
        ("always", "always"),
        ("always-stopped", "always"),
        ("unless-stopped", "unless-stopped"),
        ("unless-stopped-stopped", "unless-stopped"),
        ("on-failure", "on-failure"),
        ("on-failure-stopped", "on-failure"),
        ("none", "no"),
    ] {
        docker.ok(&format!("run -d --name {name} --restart {policy} {forever}"));
    }
    docker.ok(&format!("run -d --rm --name removed {forever}"));
    let failed = docker.outcome_of("run --name failed busybox sh -c 'echo said; exit 3'", b"");
    assert_eq!(failed.code, 3, "{failed}");
    docker.ok("run --name done --restart on-failure busybox true");
    docker.ok("create --name created --restart always busybox true");
    docker.ok("stop -t 0 always-stopped unless-stopped-stopped on-failure-stopped");
    // A successor on the same boot starts nothing that was stopped.
    machine.crash_supervisor();
    let stopped = "inspect -f '{{.State.Status}}' always-stopped unless-stopped-stopped on-failure-stopped";
    assert_eq!(docker.ok(stopped), "exited\nexited\nexited");
    machine.cut_power();

    let machine = Boot::quickstart().disk(&disk).start();
    let api = Stubborn(&machine);
    let state = |name: &str| {
        let state = api.state(name)?;
        Some((state["Status"].as_str()?.to_owned(), state["ExitCode"].as_i64()?))
    };
    // As Docker has it when its daemon starts. What is to run is started one after the other.
    let runs = ["always", "always-stopped", "unless-stopped", "on-failure"];
    let deadline = Instant::now() + LONG;
    for name in runs {
        while state(name).is_none_or(|(status, _)| status != "running") {
            assert!(Instant::now() < deadline, "{name} is {:?}", state(name));
        }
    }
    for (name, wanted) in [
        ("unless-stopped-stopped", Some(("exited", 137))),
        ("on-failure-stopped", Some(("exited", 137))),
        // Nobody saw its end.
        ("none", Some(("exited", 255))),
        ("removed", None),
        ("failed", Some(("exited", 3))),
        ("done", Some(("exited", 0))),
        ("created", Some(("created", 0))),
    ] {
        let wanted = wanted.map(|(status, code)| (status.to_owned(), code));
        assert_eq!(state(name), wanted, "{name}");
    }
    // What is shown running runs, and what is not does not, and can be started.
    let docker = machine.docker();
    for name in runs {
        assert_eq!(docker.ok(&format!("exec {name} echo in")), "in");
    }
    assert!(docker.fails("exec none true").contains("is not running"));
    assert_eq!(docker.ok("logs failed"), "said");
    docker.ok("start none");
    assert_eq!(docker.ok("exec none echo again"), "again");
    machine.power_off();
}
