//! The docker command line, as it is, against the engine.

#![allow(
    clippy::unwrap_used,
    reason = "a test ends at the first thing that is not as it should be"
)]

mod common;

use common::{Machine, with_machine, with_supervisors};

#[test]
fn a_container_runs_and_its_output_and_exit_code_come_back() {
    with_machine(|machine| {
        assert_eq!(machine.out(&["run", "--rm", "busybox", "echo", "hello"]), "hello");
        let (code, _) = machine.fails(&["run", "--rm", "busybox", "sh", "-c", "exit 42"]);
        assert_eq!(code, 42);
        assert_eq!(machine.out(&["ps", "-aq"]), "");
    });
}

#[test]
fn what_cannot_be_run_has_dockers_exit_codes() {
    with_machine(|machine| {
        let (code, text) = machine.fails(&["run", "--rm", "busybox", "nosuchprogram"]);
        assert!(
            code == 127 && text.contains("executable file not found"),
            "{code} {text}"
        );
        let (code, text) = machine.fails(&["run", "--rm", "busybox", "/etc/noprogram"]);
        assert!(code == 126 && text.contains("permission denied"), "{code} {text}");
        let (code, text) = machine.fails(&["run", "--rm", "--cgroup-parent", "/mine", "busybox", "true"]);
        assert!(
            code == 125 && text.contains("HostConfig.CgroupParent"),
            "{code} {text}"
        );
        assert_eq!(machine.out(&["ps", "-aq"]), "");
    });
}

#[test]
fn standard_input_reaches_the_process_and_so_does_its_end() {
    with_machine(|machine| {
        assert_eq!(
            machine.feed(&["run", "-i", "--rm", "busybox", "wc", "-c"], &[b'x'; 100_000]),
            "100000"
        );
        let id = machine.out(&["run", "-d", "busybox", "sleep", "600"]);
        assert_eq!(
            machine.feed(&["exec", "-i", &id, "cat"], b"through exec"),
            "through exec"
        );
        let (code, _) = machine.fails(&["exec", &id, "sh", "-c", "exit 7"]);
        assert_eq!(code, 7);
        let (code, text) = machine.fails(&["exec", &id, "nosuchprogram"]);
        assert!(code == 127, "{code} {text}");
        assert_eq!(
            machine.out(&["exec", "-u", "web", &id, "id"]),
            "uid=33(web) gid=34(www) groups=4(log),34(www)"
        );
        assert_eq!(
            machine.out(&["exec", "-w", "/tmp", "-e", "A=b", &id, "sh", "-c", "echo $PWD $A"]),
            "/tmp b"
        );
        machine.out(&["rm", "-f", &id]);
    });
}

#[test]
fn a_detached_container_lives_and_is_stopped() {
    with_machine(|machine| {
        let id = machine.out(&[
            "run",
            "-d",
            "--name",
            "web",
            "-p",
            "8080:80",
            "busybox",
            "sh",
            "-c",
            "echo page > /tmp/index.html; echo started; exec httpd -f -p 80 -h /tmp",
        ]);
        assert_eq!(
            machine.out(&["ps", "--format", "{{.Names}} {{.Ports}}"]),
            "web 0.0.0.0:8080->80/tcp"
        );
        assert_eq!(
            machine.out(&[
                "inspect",
                "-f",
                "{{.State.Running}} {{.NetworkSettings.IPAddress}}",
                "web"
            ]),
            "true 172.17.0.2"
        );
        let (code, text) = machine.fails(&["run", "-d", "--name", "web", "busybox", "true"]);
        assert!(code == 125 && text.contains("already in use"), "{text}");
        let (code, text) = machine.fails(&["rm", "web"]);
        assert!(
            code == 1 && text.contains("stop the container before removing"),
            "{text}"
        );
        assert_eq!(machine.out(&["logs", "web"]), "started");
        assert_eq!(machine.out(&["stop", "-t", "0", &id[..12]]), id[..12]);
        assert!(
            machine
                .out(&["ps", "-a", "--format", "{{.Status}}"])
                .starts_with("Exited (137)")
        );
        machine.out(&["start", "web"]);
        machine.out(&["rename", "web", "site"]);
        machine.out(&["kill", "site"]);
        assert_eq!(machine.out(&["wait", "site"]), "137");
        machine.out(&["rm", "site"]);
        assert_eq!(machine.out(&["ps", "-aq"]), "");
    });
}

#[test]
fn logs_are_followed_until_the_end_and_their_tail_is_told() {
    with_machine(|machine| {
        machine.out(&[
            "run",
            "-d",
            "--name",
            "talker",
            "busybox",
            "sh",
            "-c",
            "for n in 1 2 3 4 5; do echo line $n; done; echo oops >&2; sleep 1; echo last",
        ]);
        let output = machine.docker(&["logs", "-f", "talker"]);
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            "line 1\nline 2\nline 3\nline 4\nline 5\nlast\n"
        );
        assert_eq!(String::from_utf8_lossy(&output.stderr), "oops\n");
        assert_eq!(machine.out(&["logs", "--tail", "1", "talker"]), "last");
        let stamped = machine.out(&["logs", "-t", "--tail", "1", "talker"]);
        assert!(stamped.ends_with("Z last"), "{stamped}");
    });
}

#[test]
fn a_terminal_is_one() {
    with_machine(|machine| {
        let mut terminal = machine.terminal(&["run", "-it", "--rm", "busybox", "sh"], 33, 101);
        terminal.wait_for("# ");
        terminal.send("stty size; id -u; exit 3\n");
        let (code, text) = terminal.finish();
        assert_eq!(code, 3, "{text}");
        assert!(text.contains("33 101\r\n0\r\n"), "{text:?}");
    });
}

#[test]
fn a_client_detaches_by_keys_and_attaches_again() {
    with_machine(|machine| {
        let mut terminal = machine.terminal(&["run", "-it", "--name", "shell", "busybox", "sh"], 24, 80);
        terminal.wait_for("# ");
        terminal.send("\x10\x11");
        terminal.finish();
        assert_eq!(
            machine.out(&["inspect", "-f", "{{.State.Running}}", "shell"]),
            "true"
        );
        let mut terminal = machine.terminal(&["attach", "shell"], 24, 80);
        terminal.send("echo still he''re; exit\n");
        let (_, text) = terminal.finish();
        assert!(text.contains("still here"), "{text:?}");
        machine.out(&["rm", "shell"]);
        let id = machine.out(&["run", "-d", "busybox", "sleep", "600"]);
        let mut terminal = machine.terminal(&["exec", "-it", &id, "sh"], 24, 80);
        terminal.wait_for("# ");
        terminal.send("exit 5\n");
        assert_eq!(terminal.finish().0, 5);
    });
}

#[test]
fn a_restart_policy_is_honoured() {
    with_machine(|machine| {
        machine.out(&[
            "run",
            "-d",
            "--name",
            "flaky",
            "--restart",
            "on-failure:2",
            "busybox",
            "sh",
            "-c",
            "echo try; exit 1",
        ]);
        let log = machine.docker(&["logs", "-f", "flaky"]);
        assert!(String::from_utf8_lossy(&log.stdout).starts_with("try\n"));
        machine.until(|| machine.out(&["inspect", "-f", "{{.State.Status}}", "flaky"]) == "exited");
        assert_eq!(machine.out(&["logs", "flaky"]), "try\ntry\ntry");
        machine.out(&[
            "run",
            "-d",
            "--name",
            "steady",
            "--restart",
            "always",
            "busybox",
            "sleep",
            "600",
        ]);
        machine.out(&["stop", "-t", "0", "steady"]);
        assert_eq!(
            machine.out(&["inspect", "-f", "{{.State.Status}}", "steady"]),
            "exited"
        );
    });
}

#[test]
fn a_client_without_a_certificate_of_the_site_is_not_let_in() {
    with_machine(|machine| {
        assert!(
            machine
                .out(&["version", "-f", "{{.Server.Version}}"])
                .contains("0.0.0")
        );
        let stranger = common::Site::new().client();
        std::fs::write(machine.dir.join("cert.pem"), stranger.0).unwrap();
        std::fs::write(machine.dir.join("key.pem"), stranger.1).unwrap();
        let (code, text) = machine.fails(&["ps"]);
        assert!(code == 1 && !text.is_empty(), "{text}");
    });
}

#[test]
fn zones_outlive_their_supervisor_and_its_successor_takes_them_over() {
    let first = |machine: &Machine| {
        machine.out(&["run", "-di", "--name", "cat", "busybox", "cat"]);
        machine.out(&["run", "-dit", "--name", "shell", "busybox", "sh"]);
        machine.out(&[
            "run",
            "-d",
            "--name",
            "brief",
            "busybox",
            "sh",
            "-c",
            "sleep 1; echo done; exit 9",
        ]);
        machine.out(&[
            "run", "-d", "--name", "web", "-p", "8080:80", "busybox", "sleep", "600",
        ]);
    };
    let second = |machine: &Machine| {
        assert_eq!(machine.out(&["wait", "brief"]), "9");
        assert_eq!(machine.out(&["logs", "brief"]), "done");
        assert_eq!(machine.feed(&["exec", "-i", "cat", "wc", "-c"], b"12345"), "5");
        assert_eq!(machine.out(&["port", "web"]), "80/tcp -> 0.0.0.0:8080");
        let mut terminal = machine.terminal(&["attach", "shell"], 24, 80);
        terminal.send("echo still he''re; exit 4\n");
        let (code, text) = terminal.finish();
        assert!(code == 4 && text.contains("still here"), "{code} {text:?}");
        machine.out(&["stop", "-t", "0", "web"]);
        assert_eq!(machine.out(&["ps", "-q", "--filter", "name=web"]), "");
    };
    with_supervisors(&[&first, &second]);
}

#[test]
fn after_a_boot_the_restart_policy_decides_what_runs() {
    let first = |machine: &Machine| {
        machine.out(&[
            "run",
            "-d",
            "--name",
            "always",
            "--restart",
            "always",
            "busybox",
            "sleep",
            "600",
        ]);
        machine.out(&[
            "run",
            "-d",
            "--name",
            "wanted",
            "--restart",
            "unless-stopped",
            "busybox",
            "sleep",
            "600",
        ]);
        machine.out(&[
            "run",
            "-d",
            "--name",
            "unwanted",
            "--restart",
            "unless-stopped",
            "busybox",
            "sleep",
            "600",
        ]);
        machine.out(&["run", "-d", "--name", "plain", "busybox", "sleep", "600"]);
        machine.out(&["stop", "-t", "0", "unwanted"]);
        let stopping = machine.engine.stop_all_zones(std::time::Duration::ZERO);
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(stopping);
    };
    let second = |machine: &Machine| {
        let running = || {
            let mut names: Vec<String> = machine
                .out(&["ps", "--format", "{{.Names}}"])
                .lines()
                .map(str::to_owned)
                .collect();
            names.sort();
            names
        };
        machine.until(|| running().len() == 2);
        assert_eq!(running(), ["always", "wanted"]);
    };
    with_supervisors(&[&first, &second]);
}

#[test]
fn a_container_without_a_network_has_its_loopback_and_one_with_has_an_address() {
    with_machine(|machine| {
        let links = machine.out(&["run", "--rm", "--network", "none", "busybox", "ip", "-o", "addr"]);
        assert!(
            links.contains("127.0.0.1/8") && !links.contains("eth0"),
            "{links}"
        );
        let links = machine.out(&[
            "run",
            "--rm",
            "--hostname",
            "here",
            "busybox",
            "sh",
            "-c",
            "ip -o addr; cat /etc/hosts",
        ]);
        assert!(
            links.contains("172.17.0.2/16") && links.contains("172.17.0.2\there"),
            "{links}"
        );
        machine.out(&["run", "-d", "-p", "9000:80", "busybox", "sleep", "600"]);
        let (code, text) = machine.fails(&["run", "--rm", "-p", "9000:80", "busybox", "true"]);
        assert!(code == 125 && text.contains("9000"), "{code} {text}");
        assert_eq!(machine.out(&["ps", "-aq"]).lines().count(), 1);
    });
}

#[test]
fn events_tell_a_containers_life() {
    with_machine(|machine| {
        machine.out(&["run", "--rm", "--name", "mayfly", "busybox", "true"]);
        let filter = ["--filter", "container=mayfly", "--format", "{{.Action}}"];
        // A second from now: the client sends whole seconds.
        let events = machine.out(&[&["events", "--since", "1h", "--until=-1s"][..], &filter].concat());
        let told: Vec<&str> = events.lines().collect();
        assert_eq!(told, ["create", "attach", "start", "die", "destroy"]);
    });
}

#[test]
fn what_is_not_there_answers_with_a_sentence() {
    with_machine(|machine| {
        let id = machine.out(&["create", "busybox", "true"]);
        for (args, sentence) in [
            (&["pause", &id][..], "is not running"),
            (&["search", "x"][..], "searches no registry"),
            (
                &["inspect", "--type", "container", "nobody"][..],
                "No such container: nobody",
            ),
            (&["ps", "--filter", "colour=red"][..], "colour"),
            (&["run", "nosuchimage:none", "true"][..], "nosuchimage"),
        ] {
            let (code, text) = machine.fails(args);
            assert!(code != 0 && text.contains(sentence), "{args:?}: {code} {text}");
        }
        let newer = machine
            .command(&["ps"])
            .env("DOCKER_API_VERSION", "1.99")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&newer.stderr);
        assert!(text.contains("Maximum supported API version is 1.51"), "{text}");
    });
}

/// A frame as a client sends it: final, masked, and short.
fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [7, 8, 9, 10];
    let masked = payload
        .iter()
        .zip(mask.iter().cycle())
        .map(|(byte, key)| byte ^ key);
    let head = [0x80 | kind, 0x80 | payload.len() as u8];
    head.into_iter().chain(mask).chain(masked).collect()
}

#[test]
fn a_browser_attaches_by_a_websocket() {
    use std::io::{Read, Write};
    with_machine(|machine| {
        machine.out(&["run", "-d", "-i", "--name", "echo", "busybox", "cat"]);
        let (status, answer) = machine.ask_at(
            "GET",
            "containers/echo/attach/ws?stream=1",
            &serde_json::Value::Null,
        );
        assert!(
            status == 400 && answer[0]["message"].to_string().contains("WebSocket"),
            "{answer:?}"
        );
        let mut client = std::process::Command::new("timeout")
            .args([
                "60",
                "openssl",
                "s_client",
                "-quiet",
                "-verify_quiet",
                "-cert",
                "cert.pem",
                "-key",
                "key.pem",
                "-connect",
            ])
            .arg(format!("127.0.0.1:{}", machine.port))
            .current_dir(&machine.dir)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let (mut input, mut output) = (client.stdin.take().unwrap(), client.stdout.take().unwrap());
        let head = "GET /v1.43/containers/echo/attach/ws?stream=1&stdin=1&stdout=1 HTTP/1.1\r\nHost: node\r\n\
            Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
            Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        input.write_all(head.as_bytes()).unwrap();
        let mut heard = Vec::new();
        let mut until = |wanted: &[u8]| {
            let mut byte = [0];
            while !heard.ends_with(wanted) {
                output.read_exact(&mut byte).unwrap();
                heard.push(byte[0]);
            }
            String::from_utf8_lossy(&heard).into_owned()
        };
        let answer = until(b"\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
        assert!(answer.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{answer}");
        input.write_all(&frame(1, b"hello\n")).unwrap();
        until(b"\x82\x06hello\n");
        // The process's end is the connection's.
        machine.out(&["kill", "echo"]);
        until(b"\x88\x02\x03\xe8");
        // This one may have gone by itself.
        let _ = input.write_all(&frame(8, b""));
        drop(input);
        client.wait().unwrap();
        machine.out(&["rm", "echo"]);
    });
}
