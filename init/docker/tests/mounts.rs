//! Mounts as a container sees them, and what of the machine is hidden from it.

#![allow(clippy::unwrap_used, reason = "it is how a test's helper fails")]

mod common;

use common::with_machine;

#[test]
fn what_is_hidden_is_hidden_unless_the_client_gives_a_list_of_its_own() {
    with_machine(|machine| {
        let script = "cat /proc/interrupts | wc -c; busybox grep -c ' /proc/sys ro' /proc/self/mountinfo";
        let seen = |option: &str| {
            let run = ["run", "--rm", "--security-opt", option, "busybox", "sh", "-c"];
            let output = machine.docker(&[&run[..], &[script]].concat());
            String::from_utf8(output.stdout).unwrap()
        };
        assert_eq!(seen("no-new-privileges"), "0\n1\n");
        let open = seen("systempaths=unconfined");
        assert!(!open.starts_with("0\n") && open.ends_with("\n0\n"), "{open:?}");
    });
}
