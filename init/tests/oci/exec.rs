//! Processes that are added to a running container, and filters of system calls.

use std::fs;

use serde_json::json;

use crate::bundle::Bundle;

fn running(bundle: Bundle) -> Bundle {
    bundle.create("one").good();
    bundle.say(&["start", "one"]).good();
    bundle
}

#[test]
fn an_added_process_is_in_the_container() {
    for bundle in [Bundle::new("sleep 1000"), Bundle::new("sleep 1000").with_users()] {
        let bundle = running(bundle);
        let script = "cat /proc/1/comm; hostname; id -u; grep -E 'CapEff|NoNew' /proc/self/status; exit 4";
        let said = bundle.say(&["exec", "one", "sh", "-c", script]);
        assert_eq!(
            said.out, "sleep\ncrun\n0\nCapEff:\t0000000020000420\nNoNewPrivs:\t1\n",
            "{said:?}"
        );
        assert_eq!(said.code, 4);
        let pid = bundle.state("one")["pid"].to_string();
        for namespace in ["mnt", "pid", "net", "uts", "ipc", "user"] {
            let path = format!("/proc/self/ns/{namespace}");
            let said = bundle.say(&["exec", "one", "readlink", &path]).good();
            let own = fs::read_link(format!("/proc/{pid}/ns/{namespace}")).unwrap();
            assert_eq!(said.trim_end(), own.to_str().unwrap());
        }
        bundle.say(&["delete", "--force", "one"]).good();
    }
}

#[test]
fn an_added_process_is_as_its_file_or_its_options_say() {
    let bundle = running(Bundle::new("sleep 1000"));
    let process = json!({
        "args": ["sh", "-c", "id -u; pwd; echo $WHAT"], "cwd": "/tmp", "user": {"uid": 5, "gid": 6},
        "env": ["PATH=/bin", "WHAT=file"],
    });
    fs::write(bundle.path().join("process"), process.to_string()).unwrap();
    assert_eq!(
        bundle.say(&["exec", "--process", "process", "one"]).good(),
        "5\n/tmp\nfile\n"
    );
    let options = ["exec", "--user=7:8", "--cwd=/bin", "-e", "WHAT=option", "one"];
    let words = [options.as_slice(), &["sh", "-c", "id -u; id -g; pwd; echo $WHAT"]].concat();
    assert_eq!(bundle.say(&words).good(), "7\n8\n/bin\noption\n");
    bundle
        .say(&["exec", "one", "nothing-such"])
        .bad("executable file not found");
    bundle.say(&["exec", "one"]).bad("Say which program");
    bundle.say(&["exec", "nobody", "true"]).bad("does not exist");
    let detached = ["exec", "--detach", "--pid-file=pid", "one", "sleep", "1000"];
    assert!(bundle.create_with(&detached).code == 0);
    let pid = fs::read_to_string(bundle.path().join("pid")).unwrap();
    assert_eq!(
        fs::read_to_string(format!("/proc/{pid}/comm")).unwrap(),
        "sleep\n"
    );
    bundle.say(&["kill", "--all", "one", "KILL"]).good();
    bundle.wait("one");
    bundle.say(&["exec", "one", "true"]).bad("is stopped");
    bundle.say(&["delete", "one"]).good();
}

#[test]
fn a_filter_of_system_calls_is_the_configurations() {
    let script = "hostname other || echo refused; busybox mkdir /tmp/x 2>/dev/null || echo none; echo end";
    let mut bundle = Bundle::new(script);
    bundle.config["root"]["readonly"] = json!(false);
    bundle.config["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
        "syscalls": [
            {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
            {"names": ["kill"], "action": "SCMP_ACT_KILL_PROCESS",
             "args": [{"index": 1, "value": 12, "op": "SCMP_CMP_EQ"}]},
        ],
    });
    // With and without what lets anybody install a filter.
    for no_new_privileges in [true, false] {
        bundle.config["process"]["noNewPrivileges"] = json!(no_new_privileges);
        let said = bundle.run();
        assert_eq!(said.out, "refused\nnone\nend\n", "{said:?}");
        assert!(said.err.contains("not permitted"), "no CAP_SYS_ADMIN: {said:?}");
    }
    // Its process 1 ignores the signal, so it is the filter that ends it.
    bundle.config["process"]["args"] = json!(["sh", "-c", "kill -10 1; kill -12 1; echo not reached"]);
    let said = bundle.run();
    assert_eq!((said.code, said.out.as_str()), (128 + 31, ""), "{said:?}");
    bundle.config["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_NOTIFY"});
    bundle.create("one").bad("SCMP_ACT_NOTIFY");
}
