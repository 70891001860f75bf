//! Mounts as a container sees them, and what of the machine is hidden from it.

#![allow(clippy::unwrap_used, reason = "it is how a test's helper fails")]

mod common;

use common::with_machine;

#[test]
fn what_is_hidden_is_hidden_unless_the_client_gives_a_list_of_its_own() {
    with_machine(|machine| {
        let script = "cat /proc/interrupts | wc -c; echo 1 > /proc/sys/net/ipv4/ip_forward && echo written";
        let seen = |option: &str| {
            machine.docker(&[
                "run",
                "--rm",
                "--security-opt",
                option,
                "busybox",
                "sh",
                "-c",
                script,
            ])
        };
        let usual = seen("no-new-privileges");
        let text = String::from_utf8_lossy(&usual.stderr).into_owned();
        assert!(text.contains("Read-only file system"), "{text}");
        assert_eq!(String::from_utf8_lossy(&usual.stdout), "0\n");
        let open = seen("systempaths=unconfined");
        assert!(
            open.stdout.ends_with(b"written\n") && !open.stdout.starts_with(b"0\n"),
            "{open:?}"
        );
    });
}
