//! What a configuration says, read back from inside the container.

use std::fs;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use sys::spawn::{IdMap, user_namespace};

use crate::bundle::{Bundle, read_until};

fn mounts(bundle: &mut Bundle) -> &mut Vec<Value> {
    bundle.config["mounts"].as_array_mut().unwrap()
}

#[test]
fn the_process_has_its_user_groups_limits_and_masks() {
    let mut bundle = Bundle::new(
        "id -u; id -g; id -G; touch /tmp/x; stat -c %a /tmp/x; pwd; ulimit -n; cat /proc/self/oom_score_adj; \
         grep -E 'CapEff|CapBnd|CapAmb|NoNewPrivs|Seccomp:' /proc/self/status | tr '\\n' ' '",
    );
    let process = &mut bundle.config["process"];
    process["user"] = json!({"uid": 1000, "gid": 1001, "additionalGids": [5, 6], "umask": 0o027});
    process["cwd"] = json!("/tmp/made");
    process["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 77, "hard": 88}]);
    process["oomScoreAdj"] = json!(300);
    let set = json!(["CAP_KILL", "CAP_NET_BIND_SERVICE"]);
    for name in ["bounding", "effective", "permitted", "inheritable"] {
        process["capabilities"][name] = set.clone();
    }
    process["capabilities"]["ambient"] = json!(["CAP_KILL"]);
    bundle.config["root"]["readonly"] = json!(false);
    let root = bundle.path().join("rootfs/tmp");
    fs::set_permissions(root, fs::Permissions::from_mode(0o1777)).unwrap();
    let out = bundle.run().good();
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(
        lines[..8],
        [
            "1000",
            "1001",
            "1001 5 6",
            "640",
            "/tmp/made",
            "77",
            "300",
            lines[7]
        ]
    );
    let words: Vec<&str> = lines[7].split_whitespace().collect();
    let of = |name: &str| words[words.iter().position(|word| *word == name).unwrap() + 1];
    // The program was run with what is ambient alone, as a user's is.
    assert_eq!(of("CapEff:"), "0000000000000020");
    assert_eq!(of("CapBnd:"), "0000000000000420");
    assert_eq!(of("CapAmb:"), "0000000000000020");
    assert_eq!(of("NoNewPrivs:"), "1");
}

#[test]
fn mounts_have_their_options_and_paths_are_masked() {
    let mut bundle = Bundle::new(
        "grep ' /data ' /proc/mounts; cat /data/file; touch /data/x; cat /file; grep ' /scratch ' /proc/mounts; \
         touch /x; cat /secret; ls /hidden | wc -l; touch /closed/x; cat /proc/sys/net/ipv4/ip_forward",
    );
    fs::create_dir(bundle.path().join("data")).unwrap();
    fs::write(bundle.path().join("data/file"), "in a folder\n").unwrap();
    for dir in ["hidden/inner", "closed"] {
        fs::create_dir_all(bundle.path().join("rootfs").join(dir)).unwrap();
    }
    fs::write(bundle.path().join("rootfs/secret"), "told").unwrap();
    mounts(&mut bundle).extend([
        json!({"destination": "/data", "source": "data", "options": ["rbind", "ro", "nosuid", "rprivate"]}),
        json!({"destination": "/file", "type": "bind", "source": "data/file", "options": ["bind"]}),
        json!({"destination": "/scratch", "type": "tmpfs", "source": "mine", "options": ["noexec", "size=1m"]}),
    ]);
    let linux = &mut bundle.config["linux"];
    linux["maskedPaths"] = json!(["/secret", "/hidden", "/nothing"]);
    linux["readonlyPaths"] = json!(["/closed", "/nothing"]);
    linux["sysctl"] = json!({"net.ipv4.ip_forward": "1"});
    let said = bundle.run();
    let lines: Vec<&str> = said.out.lines().collect();
    assert!(lines[0].contains(" ro,nosuid,"), "{said:?}");
    assert_eq!(lines[1..3], ["in a folder", "in a folder"]);
    assert!(lines[3].starts_with("mine /scratch tmpfs rw,noexec,"), "{said:?}");
    assert!(lines[3].contains("size=1024k"), "{said:?}");
    assert_eq!(lines[4..], ["0", "1"]);
    assert_eq!(said.err.matches("Read-only file system").count(), 3, "{said:?}");
}

#[test]
fn devices_are_nodes_or_in_a_user_namespace_the_machines() {
    let script = "stat -c '%F %t:%T %a' /dev/null /dev/mine; echo x >/dev/mine && echo open";
    let device = json!([{"path": "/dev/mine", "type": "c", "major": 1, "minor": 7, "fileMode": 0o622}]);
    let rules =
        json!([{"allow": false, "access": "rwm"}, {"allow": true, "type": "c", "major": 1, "minor": 7}]);
    let mut bundle = Bundle::new(script);
    bundle.config["linux"]["devices"] = device.clone();
    bundle.config["linux"]["resources"]["devices"] = rules;
    let said = bundle.run();
    assert_eq!(
        said.out,
        "character special file 1:3 666\ncharacter special file 1:7 622\n"
    );
    assert!(said.err.contains("No space left"), "{said:?}");

    let mut bundle = Bundle::new("echo x >/dev/full").with_users();
    bundle.config["linux"]["devices"] = json!([{"path": "/dev/full", "type": "c", "major": 1, "minor": 7}]);
    assert!(bundle.run().err.contains("No space left"));
}

#[test]
fn root_of_a_user_namespace_is_nobody_outside() {
    let bundle = Bundle::new("id -u; cat /proc/self/uid_map | tr -s ' '; touch /dev/shm/x && stat -c %u /dev/shm/x; exec sleep 1000")
        .with_users();
    bundle.create("one").good();
    let pid = bundle.state("one")["pid"].to_string();
    bundle.say(&["start", "one"]).good();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(status.contains("Uid:\t1000000\t1000000"), "{status}");
    bundle.say(&["delete", "--force", "one"]).good();
    assert_eq!(bundle.out().lines().next(), Some("0"));
}

/// A process in namespaces of its own, which holds them.
struct Holder(Child);

impl Holder {
    fn new(words: &[&str]) -> Self {
        let mut holder = Command::new("unshare");
        holder
            .args(words)
            .args(["sh", "-c", "echo ready; exec sleep 1000"]);
        let mut holder = holder.stdout(Stdio::piped()).spawn().unwrap();
        read_until(holder.stdout.as_mut().unwrap(), "ready");
        Self(holder)
    }

    fn path(&self, name: &str) -> String {
        format!("/proc/{}/ns/{name}", self.0.id())
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn link(path: &str) -> String {
    fs::read_link(path).unwrap().to_str().unwrap().to_owned()
}

#[test]
fn namespaces_are_new_joined_by_path_or_the_machines() {
    let holder = Holder::new(&["--net", "--uts", "--ipc"]);
    for users in [false, true] {
        let mut bundle =
            Bundle::new("cd /proc/self/ns; for n in net uts ipc pid cgroup time; do readlink $n; done");
        if users {
            bundle = bundle.with_users();
        }
        bundle.config.as_object_mut().unwrap().remove("hostname");
        for (kind, name) in [("network", "net"), ("uts", "uts"), ("ipc", "ipc")] {
            bundle.add_namespace(json!({"type": kind, "path": holder.path(name)}));
        }
        bundle.config["linux"]["sysctl"] = json!({});
        // Of an IPC namespace that is another user namespace's.
        mounts(&mut bundle).retain(|mount| mount["type"] != "mqueue");
        let out = bundle.run().good();
        let lines: Vec<&str> = out.lines().collect();
        for (at, name) in ["net", "uts", "ipc"].into_iter().enumerate() {
            assert_eq!(lines[at], link(&holder.path(name)));
        }
        assert_ne!(lines[3], link("/proc/self/ns/pid"), "a new one");
        assert_eq!(lines[5], link("/proc/self/ns/time"), "the machine's");
    }
}

#[test]
fn a_user_namespace_is_joined_by_path_and_owns_the_new_ones() {
    let ids = IdMap {
        host: 2_000_000,
        count: 65_536,
    };
    let namespace = user_namespace(ids).unwrap();
    let path = format!("/proc/{}/fd/{}", std::process::id(), namespace.as_raw_fd());
    let mut bundle = Bundle::new("readlink /proc/self/ns/user; id -u; hostname");
    bundle.own_root(2_000_000);
    bundle.add_namespace(json!({"type": "user", "path": path}));
    let said = bundle.run();
    assert_eq!(said.out, format!("{}\n0\ncrun\n", link(&path)), "{said:?}");
}

#[test]
fn namespaces_that_contradict_are_refused() {
    let mut bundle = Bundle::new("true");
    bundle.config["linux"]["uidMappings"] = json!([{"containerID": 0, "hostID": 0, "size": 1}]);
    bundle.create("one").bad("no user namespace");
    let mut bundle = Bundle::new("true");
    bundle.add_namespace(json!({"type": "user"}));
    bundle.create("one").bad("no uidMappings");
    let mut bundle = Bundle::new("true");
    bundle.config["linux"]["namespaces"] = json!([{"type": "mount"}]);
    bundle.create("one").bad("hostname");
    let mut bundle = Bundle::new("true");
    bundle.config["linux"]["namespaces"] = json!([{"type": "uts"}]);
    bundle.create("one").bad("mount namespace");
    let mut bundle = Bundle::new("true");
    bundle.config["linux"]["sysctl"] = json!({"kernel.panic": "1"});
    bundle.create("one").bad("is the machine's");
    let mut bundle = Bundle::new("true");
    bundle.add_namespace(json!({"type": "ipc", "path": "/nothing-such"}));
    bundle.create("one").bad("Cannot open the ipc namespace");
    bundle.nothing_left();
}

#[test]
fn a_terminal_is_sent_over_the_console_socket() {
    let mut bundle = Bundle::new("stty size; tty; read word; echo got $word; ls -l /dev/console | head -c 1");
    bundle.config["process"]["terminal"] = json!(true);
    bundle.config["process"]["consoleSize"] = json!({"height": 30, "width": 100});
    bundle.create("one").bad("--console-socket");
    let path = bundle.path().join("console");
    let listener = UnixListener::bind(&path).unwrap();
    bundle
        .create_with(&["create", "--console-socket", "console", "one"])
        .good();
    let (socket, _) = listener.accept().unwrap();
    let packet = sys::socket::receive(socket.as_fd()).unwrap().unwrap();
    let [master] = packet.fds.try_into().unwrap();
    bundle.say(&["start", "one"]).good();
    let mut master = fs::File::from(master);
    let shown = read_until(&mut master, "/dev/pts/0");
    assert!(shown.starts_with("30 100\r\n/dev/pts/0"), "{shown:?}");
    std::io::Write::write_all(&mut master, b"something\n").unwrap();
    read_until(&mut master, "got something");
    bundle.wait("one");
    bundle.say(&["delete", "one"]).good();
    bundle.config["process"]["terminal"] = json!(false);
    bundle
        .create_with(&["create", "--console-socket", "console", "one"])
        .bad("no process.terminal");
    bundle.nothing_left();
}

#[test]
fn descriptors_are_passed_on_when_asked_for_and_no_others() {
    let script = "cat <&3; ls /proc/self/fd | wc -l";
    let bundle = Bundle::new(script);
    let line = format!(
        "exec 3<<X 4<<X\none\nX\ntwo\nX\n{} --root {} run",
        env!("CARGO_BIN_EXE_init"),
        bundle.states().display()
    );
    let shell = |options: &str| {
        bundle.write();
        let mut shell = Command::new("sh");
        shell
            .args(["-c", &format!("{line} {options} one")])
            .current_dir(bundle.path());
        let output = shell.output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    // Beside them: standard input, output and error, and the folder that is read.
    assert_eq!(shell("--preserve-fds 1"), "one\n5\n");
    assert_eq!(shell("--preserve-fds 2"), "one\n6\n");
    assert_eq!(shell(""), "4\n");
}

#[test]
fn a_root_may_be_read_only_and_shared() {
    let mut bundle =
        Bundle::new("touch /x || echo closed; grep ' / / ' /proc/self/mountinfo | grep -c shared:");
    bundle.config["linux"]["rootfsPropagation"] = json!("shared");
    let said = bundle.run();
    assert!(said.out.starts_with("closed\n"), "{said:?}");
    let root = fs::metadata(bundle.path().join("rootfs")).unwrap();
    assert!(root.nlink() > 0);
    bundle.config["linux"]["rootfsPropagation"] = json!("sideways");
    bundle.create("one").bad("sideways");
}

#[test]
fn a_32_bit_personality_shows_a_32_bit_machine() {
    let mut bundle = Bundle::new("/bin/busybox uname -m");
    bundle.config["linux"]["personality"] = json!({"domain": "LINUX32"});
    assert_eq!(bundle.run().good(), "i686\n");
    bundle.config["linux"]["personality"] = json!({"domain": "PDP"});
    bundle.create("one").bad("PDP");
}
