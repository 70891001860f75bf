//! What containers say: kept, rotated, read, followed, and heard by clients that come and go.

#![allow(
    clippy::unwrap_used,
    reason = "a test ends at the first thing that is not as it should be"
)]

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use common::{Machine, with_machine, with_supervisors};

/// `docker run -d` of a shell script, with options before the image.
fn run(machine: &Machine, options: &[&str], script: &str) -> String {
    let args = [&["run", "-d"], options, &["busybox", "sh", "-c", script]].concat();
    machine.out(&args)
}

/// Runs a script to its end.
fn ended(machine: &Machine, options: &[&str], script: &str) -> String {
    let id = run(machine, options, script);
    machine.out(&["wait", &id]);
    id
}

fn follow(machine: &Machine, args: &[&str]) -> Child {
    machine.command(args).spawn().unwrap()
}

/// All that a command still says.
fn rest(child: &mut Child) -> String {
    let mut said = String::new();
    child.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    child.wait().unwrap();
    said
}

fn numbers(count: u32) -> String {
    (1..=count).map(|number| format!("line {number}\n")).collect()
}

fn count_to(count: u32) -> String {
    format!("i=0; while [ $i -lt {count} ]; do i=$((i+1)); echo line $i; done")
}

#[test]
fn a_log_is_rotated_by_size_and_a_follower_misses_nothing() {
    with_machine(|machine| {
        let many = [
            "--name",
            "many",
            "--log-opt",
            "max-size=20k",
            "--log-opt",
            "max-file=500",
        ];
        let few = [
            "--name",
            "few",
            "--log-opt",
            "max-size=20k",
            "--log-opt",
            "max-file=2",
        ];
        run(
            machine,
            &many,
            &format!("sleep 1; {}; sleep 600", count_to(20_000)),
        );
        let mut follower = follow(machine, &["logs", "-f", "many"]);
        let mut attached = follow(machine, &["attach", "--no-stdin", "many"]);
        ended(machine, &few, &count_to(20_000));
        let last = "line 20000";
        for child in [&mut follower, &mut attached] {
            let mut lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
            for number in 1..=20_000 {
                assert_eq!(lines.next().unwrap().unwrap(), format!("line {number}"));
            }
        }
        assert_eq!(machine.out(&["logs", "--tail", "1", "many"]), last);
        machine.out(&["rm", "-f", "many"]);
        assert_eq!(rest(&mut follower) + &rest(&mut attached), "");
        let kept = machine.out(&["logs", "few"]);
        assert!(
            numbers(20_000).ends_with(&format!("{kept}\n")),
            "{} bytes",
            kept.len()
        );
        let path = machine.out(&["inspect", "-f", "{{.LogPath}}", "few"]);
        let sizes = fs::read_dir(&path)
            .unwrap()
            .map(|entry| entry.unwrap().metadata().unwrap().len());
        let total: u64 = sizes.sum();
        assert!((20_000..90_000).contains(&total), "{total}");
        machine.out(&["rm", "few"]);
        assert!(!fs::exists(&path).unwrap());
    });
}

#[test]
fn logs_are_chosen_by_time_and_number_and_show_what_is_asked() {
    with_machine(|machine| {
        let options = [
            "--name",
            "chosen",
            "--label",
            "colour=dark red",
            "-e",
            "SIZE=10",
            "--log-opt",
            "labels=colour,none",
            "--log-opt",
            "env=SIZE",
            "--log-opt",
            "tag={{.Name}}/{{.FullID}}",
        ];
        let script = "echo early; sleep 1; echo late; echo aside >&2; sleep 1; printf end";
        let id = ended(machine, &options, script);
        let output = machine.docker(&["logs", "chosen"]);
        assert_eq!(output.stdout, b"early\nlate\nend");
        assert_eq!(output.stderr, b"aside\n");
        let stamped = machine.out(&["logs", "-t", "chosen"]);
        let times: Vec<&str> = stamped
            .lines()
            .map(|line| line.split(' ').next().unwrap())
            .collect();
        assert_eq!(times.len(), 3);
        assert!(
            times.iter().all(|time| time.len() == 30 && time.ends_with('Z')),
            "{times:?}"
        );
        assert_eq!(machine.out(&["logs", "--since", times[1], "chosen"]), "late\nend");
        assert_eq!(
            machine.out(&["logs", "--until", times[1], "chosen"]),
            "early\nlate"
        );
        assert_eq!(
            machine.out(&["logs", "--since", "1h", "--until", "-2s", "chosen"]),
            "early\nlate\nend"
        );
        assert_eq!(
            machine.out(&["logs", "--since", "1h", "--until", "30m", "chosen"]),
            ""
        );
        assert_eq!(machine.out(&["logs", "--tail", "1", "chosen"]), "end");
        assert_eq!(machine.out(&["logs", "--tail", "0", "chosen"]), "");
        let detailed = machine.out(&["logs", "--details", "--tail", "1", "chosen"]);
        assert_eq!(detailed, format!("SIZE=10,colour=dark+red,tag=chosen%2F{id} end"));
        let shown = machine.out(&["inspect", "-f", "{{json .HostConfig.LogConfig}}", "chosen"]);
        assert!(
            shown.contains(r#""labels":"colour,none""#) && shown.contains(r#""Type":"json-file""#),
            "{shown}"
        );
    });
}

#[test]
fn one_who_follows_up_to_a_moment_is_let_go_when_it_has_come() {
    with_machine(|machine| {
        run(machine, &["--name", "quiet"], "echo once; sleep 600");
        let before = Instant::now();
        assert_eq!(machine.out(&["logs", "-f", "--until", "-2s", "quiet"]), "once");
        assert!(before.elapsed() > Duration::from_secs(1));
    });
}

#[test]
fn each_log_driver_does_what_it_is_named_for_and_others_are_refused() {
    with_machine(|machine| {
        ended(
            machine,
            &["--name", "local", "--log-driver", "local"],
            "echo kept",
        );
        assert_eq!(machine.out(&["logs", "local"]), "kept");
        assert_eq!(
            machine.out(&["inspect", "-f", "{{.HostConfig.LogConfig.Type}}", "local"]),
            "local"
        );
        let none = [
            "run",
            "--name",
            "none",
            "--log-driver",
            "none",
            "busybox",
            "echo",
            "heard",
        ];
        assert_eq!(machine.out(&none), "heard");
        let (code, text) = machine.fails(&["logs", "none"]);
        assert!(
            code == 1 && text.contains("configured logging driver does not support reading"),
            "{code} {text}"
        );
        for (option, text) in [
            (
                "--log-driver=syslog",
                "no log driver named 'syslog' is registered",
            ),
            (
                "--log-opt=colour=red",
                "unknown log opt 'colour' for json-file log driver",
            ),
            ("--log-opt=max-file=0", "max-file cannot be less than 1"),
            ("--log-opt=compress=true", "compress cannot be true"),
            ("--log-opt=max-buffer-size=1m", "'mode=non-blocking'"),
            ("--log-opt=labels-regex=^a", "labels-regex"),
        ] {
            let (code, said) = machine.fails(&["run", option, "busybox", "true"]);
            assert!(code == 125 && said.contains(text), "{option}: {code} {said}");
        }
        let drivers = machine.out(&["info", "-f", "{{.Plugins.Log}} {{.LoggingDriver}}"]);
        assert_eq!(drivers, "[json-file local none] json-file");
    });
}

#[test]
fn a_client_that_does_not_read_holds_up_neither_the_process_nor_its_log() {
    with_machine(|machine| {
        let script =
            "sleep 1; dd if=/dev/zero bs=65536 count=320 2>/dev/null | tr '\\0' 'x'; echo; echo done";
        run(
            machine,
            &["--name", "loud"],
            &script.replace("tr ", "busybox tr "),
        );
        let mut idle = follow(machine, &["attach", "--no-stdin", "loud"]);
        machine.out(&["wait", "loud"]);
        assert_eq!(machine.out(&["logs", "--tail", "1", "loud"]), "done");
        // What it did not read is still to be had.
        let said = rest(&mut idle);
        assert_eq!(said.len(), 320 * 65536 + "\ndone\n".len());
        assert!(said.ends_with("x\ndone\n"));
    });
}

#[test]
fn an_attached_client_gets_everything_however_little_the_log_keeps() {
    with_machine(|machine| {
        let script = count_to(100_000);
        let options = [
            "run",
            "--name",
            "little",
            "--log-opt",
            "max-size=10k",
            "busybox",
            "sh",
            "-c",
            &script,
        ];
        let mut client = follow(machine, &options);
        // More than fits on the way to it: the process waits for the client.
        std::thread::sleep(Duration::from_secs(2));
        assert!(rest(&mut client) == numbers(100_000));
        let kept = machine.out(&["logs", "little"]);
        assert!(
            kept.len() < 40_000 && kept.ends_with("line 100000"),
            "{} bytes",
            kept.len()
        );
    });
}

#[test]
fn many_clients_hear_the_same_and_one_that_closes_its_own_side_hears_on() {
    with_machine(|machine| {
        machine.out(&["run", "-di", "--name", "echo", "busybox", "cat"]);
        let mut listeners: Vec<Child> = (0..3)
            .map(|_| follow(machine, &["attach", "--no-stdin", "echo"]))
            .collect();
        machine.until(|| connections(machine, ESTABLISHED) >= 3);
        // The first has nothing more to say after this, and hears the answer all the same.
        let mut first = machine
            .command(&["attach", "echo"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let input = first.stdin.take().unwrap();
        use std::io::Write;
        (&input).write_all(b"one\n").unwrap();
        drop(input);
        machine.until(|| machine.out(&["logs", "echo"]) == "one");
        assert_eq!(
            machine.feed(
                &["exec", "-i", "echo", "sh", "-c", "cat > /proc/1/fd/1"],
                b"two\n"
            ),
            ""
        );
        machine.until(|| machine.out(&["logs", "echo"]) == "one\ntwo");
        machine.out(&["kill", "echo"]);
        for listener in &mut listeners {
            assert_eq!(rest(listener), "one\ntwo\n");
        }
        assert_eq!(rest(&mut first), "one\ntwo\n");
        // Those that come later can have what went before.
        machine.out(&["start", "echo"]);
        let body = replay(machine, "echo");
        assert!(body.ends_with("one\ntwo\n"), "{body:?}");
    });
}

/// `attach` with `logs=1` and without `stream`, as raw frames.
fn replay(machine: &Machine, name: &str) -> String {
    let script = format!(
        "curl -sS -k --fail-with-body -X POST --cert cert.pem --key key.pem \
         'https://127.0.0.1:{}/containers/{name}/attach?logs=1&stdout=1&stderr=1' --output -",
        machine.port
    );
    let output = std::process::Command::new("sh")
        .args(["-c", &script])
        .current_dir(&machine.dir)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let mut text = String::new();
    let mut bytes = output.stdout.as_slice();
    while let [_, 0, 0, 0, a, b, c, d, after @ ..] = bytes {
        let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
        text.push_str(std::str::from_utf8(&after[..length]).unwrap());
        bytes = &after[length..];
    }
    assert!(bytes.is_empty());
    text
}

/// States of a connection, see `include/net/tcp_states.h`.
const ESTABLISHED: &str = "01";
const CLOSE_WAIT: &str = "08";

/// Connections of the engine's side in a state.
fn connections(machine: &Machine, state: &str) -> usize {
    let table = fs::read_to_string("/proc/thread-self/net/tcp").unwrap();
    let port = format!(":{:04X}", machine.port);
    let ours = table.lines().filter(|line| {
        let mut words = line.split_whitespace();
        words.nth(1).is_some_and(|local| local.ends_with(&port)) && words.nth(1) == Some(state)
    });
    ours.count()
}

#[test]
fn a_client_that_vanishes_is_let_go_at_once_while_the_process_is_silent() {
    with_machine(|machine| {
        machine.out(&["run", "-d", "--name", "silent", "busybox", "sleep", "600"]);
        machine.out(&["run", "-dit", "--name", "shell", "busybox", "sh"]);
        let commands: [&[&str]; 5] = [
            &["run", "--name", "plain", "busybox", "sleep", "600"],
            &["run", "-i", "--name", "input", "busybox", "sleep", "600"],
            &["attach", "silent"],
            &["logs", "-f", "silent"],
            &["exec", "-i", "silent", "sleep", "600"],
        ];
        for args in commands {
            let mut client = machine.command(args).stdin(Stdio::piped()).spawn().unwrap();
            let attached = || connections(machine, ESTABLISHED) > 0;
            machine.until(attached);
            let running = |name: &str| machine.out(&["inspect", "-f", "{{.State.Running}}", name]) == "true";
            if args[0] == "run" {
                machine.until(|| {
                    machine
                        .docker(&["inspect", args[args.len() - 4]])
                        .status
                        .success()
                });
                machine.until(|| running(args[args.len() - 4]));
            }
            client.kill().unwrap();
            client.wait().unwrap();
            machine.until(|| connections(machine, ESTABLISHED) + connections(machine, CLOSE_WAIT) == 0);
            if args[0] == "run" {
                assert!(running(args[args.len() - 4]), "{args:?}");
            }
        }
    });
}

#[test]
fn what_is_said_while_supervisors_change_is_in_the_log_once_and_clients_end_cleanly() {
    let script = count_to(4000).replace("echo line $i", "echo line $i; [ $((i % 40)) = 0 ] && sleep 0.03");
    let script = script + "; sleep 600";
    let clients = std::sync::Mutex::new(Vec::new());
    let first = |machine: &Machine| {
        run(machine, &["--name", "piped"], &script);
        run(machine, &["-t", "--name", "shown"], &script);
        for name in ["piped", "shown"] {
            let attach = machine.command(&["attach", "--no-stdin", name]).spawn().unwrap();
            machine.until(|| machine.out(&["logs", "--tail", "1", name]).contains("line"));
            clients.lock().unwrap().push(attach);
        }
    };
    let second = |machine: &Machine| {
        for mut client in clients.lock().unwrap().drain(..) {
            let said = rest(&mut client).replace('\r', "");
            // From somewhere on, without a gap, to somewhere, if it is not the last line that was cut.
            assert!(numbers(4000).contains(&said), "{said:?}");
        }
        for name in ["piped", "shown"] {
            machine.until(|| machine.out(&["logs", "--tail", "1", name]) == "line 4000");
            let all = machine.out(&["logs", name]).replace('\r', "");
            assert!(all + "\n" == numbers(4000), "{name}");
        }
    };
    let middle = |machine: &Machine| {
        machine.until(|| machine.out(&["logs", "--tail", "1", "piped"]).contains("line"));
    };
    with_supervisors(&[&first, &middle, &middle, &second]);
}

/// A client of the test's own, attached to a container: it has closed its side of the connection, TCP's
/// too, as docker's command does not.
async fn half_closed(machine: &Machine, name: &str) -> String {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let file = |name: &str| fs::read(machine.dir.join(name)).unwrap();
    let certificates = |name: &str| -> Vec<CertificateDer<'static>> {
        CertificateDer::pem_slice_iter(&file(name))
            .map(Result::unwrap)
            .collect()
    };
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(certificates("ca.pem"));
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(
            certificates("cert.pem"),
            PrivateKeyDer::from_pem_slice(&file("key.pem")).unwrap(),
        )
        .unwrap();
    let socket = tokio::net::TcpStream::connect(("127.0.0.1", machine.port))
        .await
        .unwrap();
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
    let mut tls = connector
        .connect(ServerName::try_from("localhost").unwrap(), socket)
        .await
        .unwrap();
    let request = format!(
        "POST /containers/{name}/attach?stream=1&stdin=1&stdout=1&stderr=1 HTTP/1.1\r\nHost: x\r\n\
         Connection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
    );
    tls.write_all(request.as_bytes()).await.unwrap();
    let mut said = Vec::new();
    while !said.ends_with(b"\r\n\r\n") {
        said.push(tls.read_u8().await.unwrap());
    }
    tls.shutdown().await.unwrap();
    said.clear();
    tls.read_to_end(&mut said).await.unwrap();
    String::from_utf8(said).unwrap()
}

#[test]
fn a_client_that_closes_its_side_of_the_connection_hears_to_the_end() {
    with_machine(|machine| {
        machine.out(&["run", "-dit", "--name", "slow", "busybox", "sh"]);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let talk = || {
            machine.until(|| connections(machine, CLOSE_WAIT) == 1);
            // Time enough for a client that is taken for gone to be let go.
            std::thread::sleep(Duration::from_millis(500));
            machine.feed(
                &["exec", "-i", "slow", "sh", "-c", "cat > /proc/1/fd/1"],
                b"still heard\n",
            );
            machine.until(|| machine.out(&["logs", "slow"]).contains("still heard"));
            machine.out(&["kill", "slow"]);
        };
        let said = std::thread::scope(|scope| {
            let talking = scope.spawn(talk);
            let said = runtime.block_on(half_closed(machine, "slow"));
            talking.join().unwrap();
            said
        });
        assert!(said.contains("still heard"), "{said:?}");
    });
}

/// Takes all room that there is for data in the pool.
fn fill(machine: &Machine) -> std::path::PathBuf {
    use rustix::fs::{FallocateFlags, fallocate};
    let path = machine.dir.join("pool/ballast");
    let file = fs::File::create(&path).unwrap();
    let mut size = 0;
    for step in [256 << 20, 16 << 20, 1 << 20, 64 << 10, 4 << 10] {
        while fallocate(&file, FallocateFlags::empty(), size, step).is_ok() {
            size += step;
        }
    }
    path
}

#[test]
fn a_full_pool_makes_the_process_wait_and_nothing_it_says_is_lost() {
    with_machine(|machine| {
        const LINES: u32 = 60_000;
        let script = format!("read go; {}", count_to(LINES));
        machine.out(&["run", "-di", "--name", "patient", "busybox", "sh", "-c", &script]);
        let ballast = fill(machine);
        let mut attached = machine
            .command(&["attach", "patient"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        {
            use std::io::Write;
            let mut input = attached.stdin.take().unwrap();
            input.write_all(b"go\n").unwrap();
        }
        // A process that did not wait would have ended by then.
        std::thread::sleep(Duration::from_secs(4));
        assert_eq!(
            machine.out(&["inspect", "-f", "{{.State.Running}}", "patient"]),
            "true"
        );
        fs::remove_file(ballast).unwrap();
        assert_eq!(machine.out(&["wait", "patient"]), "0");
        assert!(machine.out(&["logs", "patient"]) + "\n" == numbers(LINES));
        assert!(rest(&mut attached) == numbers(LINES));
    });
}

/// They end while what they said has no room in the pool, and the supervisor after them.
#[test]
fn last_words_that_wait_for_room_in_the_pool_wait_beyond_the_supervisor() {
    // As much as a pipe holds, and a terminal.
    const SAID: [(&str, &str, u32); 2] = [("pipes", "-d", 5000), ("terminal", "-dt", 200)];
    let first = |machine: &Machine| {
        for (name, how, lines) in SAID {
            let script = format!(
                "trap 'kill $!' USR1; sleep 600 & echo ready; wait; {}",
                count_to(lines)
            );
            machine.out(&["run", how, "--name", name, "busybox", "sh", "-c", &script]);
            machine.until(|| machine.out(&["logs", name]).trim() == "ready");
        }
        fill(machine);
        for (name, ..) in SAID {
            machine.out(&["kill", "-s", "USR1", name]);
            assert_eq!(machine.out(&["wait", name]), "0");
        }
        assert_ne!(
            machine.out(&["logs", "pipes"]).lines().count(),
            5001,
            "the pool had room"
        );
    };
    let second = |machine: &Machine| {
        for (name, _, lines) in SAID {
            assert_eq!(
                machine.out(&["inspect", "-f", "{{.State.Status}}", name]),
                "exited"
            );
            let refused = machine.docker(&["start", name]);
            let text = String::from_utf8_lossy(&refused.stderr).into_owned();
            assert!(text.contains("waits to be written"), "{name}, {lines}: {text}");
        }
        fs::remove_file(machine.dir.join("pool/ballast")).unwrap();
        for (name, _, lines) in SAID {
            let whole = format!("ready\n{}", numbers(lines));
            let said = || machine.out(&["logs", name]).replace('\r', "") + "\n";
            machine.until(|| said().len() >= whole.len());
            assert!(said() == whole, "{name}");
            machine.out(&["start", name]);
            machine.out(&["rm", "-f", name]);
        }
    };
    with_supervisors(&[&first, &second]);
}

/// Bytes of the pool's disk that are in use, when all is written.
fn used(machine: &Machine) -> u64 {
    let pool = fs::File::open(machine.dir.join("pool")).unwrap();
    rustix::fs::syncfs(&pool).unwrap();
    let space = rustix::fs::fstatvfs(&pool).unwrap();
    (space.f_blocks - space.f_bfree) * space.f_frsize
}

fn words(line: &str) -> Vec<&str> {
    line.split(' ').collect()
}

#[test]
fn a_log_is_compressed_where_that_is_asked_for_and_reads_as_before() {
    with_machine(|machine| {
        let takes = |name: &str, options: &str| {
            let before = used(machine);
            let line = format!("--name {name} --log-opt max-size=50m --log-opt max-file=2 {options}");
            let script = "busybox yes 'the same line again' | head -c 18000000";
            ended(machine, &words(&line), script);
            assert_eq!(machine.docker(&["logs", name]).stdout.len(), 18_000_000);
            used(machine) - before
        };
        let plain = takes("plain", "--log-driver json-file");
        let small = takes("small", "--log-opt compress=true");
        let local = takes("local", "--log-driver local");
        assert!(plain > 18_000_000, "{plain}");
        assert!(small < 4_000_000 && local < 4_000_000, "{small} {local}");
    });
}

#[test]
fn a_container_that_does_not_wait_for_its_log_goes_on_while_that_is_held_up() {
    with_machine(|machine| {
        let line =
            "--name hasty --log-opt mode=non-blocking --log-opt max-buffer-size=64k --log-opt max-size=100k";
        let begun = Instant::now();
        let script = "sleep 1; busybox yes 'a whole line' | head -c 40000000; echo; echo last";
        run(machine, &words(line), script);
        // It reads nothing; without the mode it could hold rotation up for a minute.
        let mut idle = follow(machine, &["attach", "--no-stdin", "hasty"]);
        machine.out(&["wait", "hasty"]);
        assert!(begun.elapsed() < Duration::from_secs(50), "{:?}", begun.elapsed());
        let said = rest(&mut idle);
        assert!(said.len() < 39_000_000, "something must have been dropped");
        let torn = said.lines().filter(|line| *line != "a whole line").count();
        let all = said.lines().count();
        assert!(torn * 10 < all, "{torn} of {all}");
        // Nothing is missing where nothing is held up.
        let calm = words("--name calm --log-opt mode=non-blocking");
        ended(machine, &calm, &count_to(2000));
        assert_eq!(machine.out(&["logs", "calm"]) + "\n", numbers(2000));
    });
}
