//! Zones from creation to exit, and over the death of a supervisor.

#![allow(clippy::unwrap_used, reason = "it is how a test's helper fails")]

mod common;

use std::fs;

use common::{IDS, bench, hierarchy, process, read_all, read_until, spec, unique};
use zones::keeper::{Server, Turn};
use zones::{Cgroups, StartError, Stdio, TerminalSize, Zones, resize};

#[tokio::test]
async fn a_zone_runs_its_program_and_its_exit_code_comes_back() {
    let bench = bench().await;
    let (text, exit) = bench
        .sh("echo out; echo err >&2; hostname; id -u; cat /etc/hosts; exit 7")
        .await;
    assert_eq!(text, "out\nbox\n0\n127.0.0.1 localhost\nerr\n");
    assert_eq!(exit.code, 7);
    assert!(!exit.oom_killed);
}

#[tokio::test]
async fn a_program_that_is_not_there_or_may_not_be_run_is_told_apart() {
    let bench = bench().await;
    let failure = |args: &'static [&'static str]| async {
        let started = bench.start(spec(args)).await;
        started.expect_err("must not start")
    };
    let missing = failure(&["nothing-such"]).await;
    assert!(matches!(missing, StartError::NotInPath { .. }), "{missing}");
    assert_eq!(missing.exit_code(), 127);
    let missing = failure(&["/bin/nothing-such"]).await;
    assert!(matches!(missing, StartError::NotFound { .. }), "{missing}");
    let refused = failure(&["/etc/hosts"]).await;
    assert!(
        matches!(refused, StartError::PermissionDenied { .. }),
        "{refused}"
    );
    assert_eq!(refused.exit_code(), 126);
}

#[tokio::test]
async fn a_signal_ends_a_zone_with_128_and_its_number() {
    let bench = bench().await;
    let (process, _stdio) = bench.start(spec(&["sleep", "1000"])).await.unwrap();
    process.signal(libc::SIGKILL).unwrap();
    assert_eq!(bench.zones.exited(&process.key).await.unwrap().code, 137);
    bench.zones.acknowledge_zone(&process.key).await.unwrap();
    assert!(!bench.zones.cgroups().path(&process.key).exists());
}

#[tokio::test]
async fn an_added_process_shares_the_zones_namespaces() {
    let bench = bench().await;
    let zone_spec = spec(&["sleep", "1000"]);
    let (zone, _stdio) = bench.start(zone_spec).await.unwrap();
    let script = "hostname; cat /proc/1/cmdline; id -u; cat /proc/self/uid_map; ls /proc/self/ns";
    let key = unique("exec");
    let (added, stdio) = bench
        .zones
        .add(&zone, &key, &process(&["sh", "-c", script]), IDS)
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
    let text = read_all(stdio).await;
    assert!(text.starts_with("box\nsleep\u{0}1000\u{0}0\n"), "{text:?}");
    assert!(text.contains("1000000"), "{text:?}");
    assert_eq!(bench.zones.exited(&added.key).await.unwrap().code, 0);
    for namespace in ["user", "pid", "mnt", "uts", "ipc", "net", "cgroup"] {
        let of = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/{namespace}")).unwrap();
        assert_ne!(
            of(zone.pid),
            of(std::process::id() as i32),
            "{namespace} must be the zone's own"
        );
    }
    zone.signal(libc::SIGKILL).unwrap();
    bench.zones.exited(&zone.key).await.unwrap();
}

#[tokio::test]
async fn a_terminal_has_its_size_and_is_the_controlling_one() {
    let bench = bench().await;
    let mut with_terminal = spec(&["sh", "-c", "stty size; echo hello > /dev/tty; ls /dev/console"]);
    with_terminal.process.terminal = Some(TerminalSize {
        rows: 30,
        columns: 100,
    });
    let (text, exit) = bench.run(with_terminal).await;
    assert_eq!(
        (text.as_str(), exit.code),
        ("30 100\r\nhello\r\n/dev/console\r\n", 0)
    );
}

#[tokio::test]
async fn a_supervisor_that_returns_finds_zones_statuses_and_pipes() {
    let (first, keepers) = sys::socket::pair().unwrap();
    let mut server = Server::new().unwrap();
    server.attach_supervisor(keepers).unwrap();
    let (second, replacement) = sys::socket::pair().unwrap();
    std::thread::spawn(move || {
        while server.turn().unwrap() != Turn::SupervisorGone {}
        server.attach_supervisor(replacement).unwrap();
        while server.turn().unwrap() != Turn::SupervisorGone {}
    });
    let helper = bench().await;
    let cgroups = Cgroups::open(&hierarchy(), "monobloc-test").unwrap();

    let mut asleep = spec(&["sh", "-c", "echo before; cat; echo after"]);
    asleep.process.stdin = true;
    let ended = spec(&["sh", "-c", "exit 3"]);
    let (asleep_id, ended_id) = (asleep.id.clone(), ended.id.clone());
    // The first supervisor lives in a runtime of its own and dies with it.
    let (tree_a, tree_b) = (helper.tree(), helper.tree());
    let first_cgroups = cgroups.clone();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let (zones, _, _) = Zones::connect(first, first_cgroups).await.unwrap();
            let started = zones
                .create(asleep, tree_a)
                .await
                .unwrap()
                .release()
                .await
                .unwrap();
            let (process, _) = zones
                .create(ended, tree_b)
                .await
                .unwrap()
                .release()
                .await
                .unwrap();
            zones.exited(&process.key).await.unwrap();
            drop(started);
        });
    })
    .join()
    .unwrap();

    let (zones, mut survivors, _) = Zones::connect(second, cgroups).await.unwrap();
    survivors.sort_by_key(|survivor| survivor.exit.is_none());
    let [gone, alive] = survivors.try_into().unwrap();
    assert_eq!(
        (gone.key.as_str(), gone.exit.unwrap().code),
        (ended_id.as_str(), 3)
    );
    assert_eq!((alive.key.as_str(), alive.exit), (asleep_id.as_str(), None));
    let Some(Stdio::Pipes { stdin, stdout, .. }) = alive.stdio else {
        panic!("the pipes must be kept")
    };
    zones.acknowledge_zone(&ended_id).await.unwrap();
    rustix::io::write(stdin.unwrap(), b"between\n").unwrap();
    assert_eq!(read_until(&stdout, "between\n").await, "before\nbetween\n");
    alive.process.signal(libc::SIGKILL).unwrap();
    assert_eq!(zones.exited(&asleep_id).await.unwrap().code, 137);
    zones.acknowledge_zone(&asleep_id).await.unwrap();
}

#[tokio::test]
async fn standard_input_ends_when_the_supervisor_and_the_keeper_have_closed_it() {
    let bench = bench().await;
    let mut reader = spec(&["sh", "-c", "cat; echo over"]);
    reader.process.stdin = true;
    let (process, stdio) = bench.start(reader).await.unwrap();
    let Stdio::Pipes { stdin, stdout, .. } = stdio else {
        panic!("no pipes")
    };
    let stdin = stdin.unwrap();
    rustix::io::write(&stdin, b"text\n").unwrap();
    drop(stdin);
    bench.zones.close_input(&process.key).await.unwrap();
    assert_eq!(read_until(&stdout, "over\n").await, "text\nover\n");
    assert_eq!(bench.zones.exited(&process.key).await.unwrap().code, 0);
    bench.zones.acknowledge_zone(&process.key).await.unwrap();
}

#[tokio::test]
async fn a_terminal_is_resized_and_survives_its_supervisor() {
    let (first, keepers) = sys::socket::pair().unwrap();
    let (second, replacement) = sys::socket::pair().unwrap();
    let mut server = Server::new().unwrap();
    server.attach_supervisor(keepers).unwrap();
    std::thread::spawn(move || {
        while server.turn().unwrap() != Turn::SupervisorGone {}
        server.attach_supervisor(replacement).unwrap();
        while server.turn().unwrap() != Turn::SupervisorGone {}
    });
    let (bench, cgroups) = (
        bench().await,
        Cgroups::open(&hierarchy(), "monobloc-test").unwrap(),
    );
    let mut with_terminal = spec(&[
        "sh",
        "-c",
        "stty -echo; echo ready; while read x; do stty size; done",
    ]);
    with_terminal.process.terminal = Some(TerminalSize::default());
    let (id, tree, before) = (with_terminal.id.clone(), bench.tree(), cgroups.clone());
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let (zones, ..) = Zones::connect(first, before).await.unwrap();
            let (_, stdio) = zones
                .create(with_terminal, tree)
                .await
                .unwrap()
                .release()
                .await
                .unwrap();
            let Stdio::Terminal(master) = stdio else {
                panic!("no terminal")
            };
            read_until(&master, "ready").await;
            rustix::io::write(&master, b"\n").unwrap();
            read_until(&master, "24 80").await;
        });
    })
    .join()
    .unwrap();
    let (zones, survivors, _) = Zones::connect(second, cgroups).await.unwrap();
    let [survivor] = survivors.try_into().unwrap();
    let Some(Stdio::Terminal(master)) = survivor.stdio else {
        panic!("the terminal must be kept")
    };
    resize(&master, 50, 132).unwrap();
    rustix::io::write(&master, b"\n").unwrap();
    read_until(&master, "50 132").await;
    survivor.process.signal(libc::SIGKILL).unwrap();
    assert_eq!(zones.exited(&id).await.unwrap().code, 137);
    zones.acknowledge_zone(&id).await.unwrap();
}

#[tokio::test]
async fn an_added_process_fails_with_its_own_reason_and_the_zone_goes_on() {
    let bench = bench().await;
    let zone_spec = spec(&["sleep", "1000"]);
    let id = zone_spec.id.clone();
    let (zone, _stdio) = bench.start(zone_spec).await.unwrap();
    let exec = |args: &'static [&'static str]| {
        let (bench, zone) = (&bench, &zone);
        async move {
            let key = unique("exec");
            let added = bench.zones.add(zone, &key, &process(args), IDS).await?;
            Ok::<_, StartError>(added.release().await?.1)
        }
    };
    let got = exec(&["nothing"]).await;
    assert!(
        matches!(got, Err(StartError::NotInPath { .. })),
        "{:?}",
        got.err()
    );
    assert!(matches!(
        exec(&["/etc"]).await,
        Err(StartError::PermissionDenied { .. })
    ));
    assert_eq!(read_all(exec(&["hostname"]).await.unwrap()).await, "box\n");
    zone.signal(libc::SIGKILL).unwrap();
    bench.zones.exited(&id).await.unwrap();
    assert!(exec(&["true"]).await.is_err(), "the zone has ended");
    bench.zones.acknowledge_zone(&id).await.unwrap();
}

#[tokio::test]
async fn a_zone_that_is_given_up_before_its_start_leaves_nothing() {
    let bench = bench().await;
    let spec = spec(&["true"]);
    let id = spec.id.clone();
    let pending = bench.zones.create(spec, bench.tree()).await.unwrap();
    let own = fs::metadata("/proc/self/ns/net").unwrap();
    let zones = rustix::fs::fstat(pending.network_namespace().unwrap()).unwrap();
    assert_ne!(
        std::os::unix::fs::MetadataExt::ino(&own),
        zones.st_ino,
        "a network of its own"
    );
    let cgroup = bench.zones.cgroups().path(&id);
    assert!(cgroup.exists());
    let exit = bench.zones.clone();
    let ended = tokio::spawn(async move { exit.exited(&id).await });
    tokio::task::yield_now().await;
    drop(pending);
    assert_eq!(ended.await.unwrap().unwrap().code, 127);
    while cgroup.exists() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_zone_that_fails_before_the_gate_says_why() {
    let bench = bench().await;
    let mut impossible = spec(&["true"]);
    impossible.sysctls = vec![("kernel.no_such_thing".to_owned(), "1".to_owned())];
    let pending = bench.zones.create(impossible, bench.tree()).await.unwrap();
    let error = pending.release().await.expect_err("must not start");
    assert_eq!(error.to_string(), "Cannot write /proc/sys/kernel/no_such_thing");
}
