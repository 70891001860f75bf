//! Mounts as a container sees them, and what of the machine is hidden from it.

#![allow(clippy::unwrap_used, reason = "it is how a test's helper fails")]

mod common;

use common::{Machine, with_machine};

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

/// What a script prints in a new container with these options.
fn sh(machine: &Machine, options: &str, script: &str) -> String {
    let mut args = vec!["run", "--rm"];
    args.extend(options.split_whitespace());
    args.extend(["busybox", "sh", "-c", script]);
    machine.out(&args)
}

/// What docker complains of; the command must fail.
fn complaint(machine: &Machine, options: &str) -> String {
    let mut args = vec!["run", "--rm"];
    args.extend(options.split_whitespace());
    args.extend(["busybox", "true"]);
    let (code, text) = machine.fails(&args);
    assert_ne!(code, 0, "{options}: {text}");
    text
}

#[test]
fn a_named_volume_is_shared_and_stays_when_its_containers_go() {
    with_machine(|machine| {
        // Two containers have different ids on the machine, and see the same owner.
        sh(
            machine,
            "-v data:/d",
            "echo kept > /d/a; busybox chown 33:34 /d/a",
        );
        machine.out(&["run", "-d", "--name", "other", "busybox", "sleep", "1000"]);
        assert_eq!(
            sh(
                machine,
                "-v data:/e/deep",
                "cat /e/deep/a; busybox stat -c %u:%g /e/deep/a"
            ),
            "kept\n33:34"
        );
        // Read-only is so from within, and not elsewhere.
        let refused = machine.docker(&[
            "run",
            "--rm",
            "-v",
            "data:/d:ro",
            "busybox",
            "sh",
            "-c",
            "echo > /d/b",
        ]);
        let text = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(text.contains("Read-only file system"), "{text}");
        assert_eq!(machine.out(&["volume", "ls", "-q"]), "data");
        machine.out(&[
            "run", "-d", "--name", "user", "-v", "data:/d", "busybox", "sleep", "1000",
        ]);
        let (_, text) = machine.fails(&["volume", "rm", "data"]);
        assert!(text.contains("remove data: volume is in use - ["), "{text}");
        machine.out(&["rm", "-fv", "user"]);
        machine.out(&["volume", "rm", "data"]);
        let (_, text) = machine.fails(&["volume", "inspect", "data"]);
        assert!(text.contains("o such volume"), "{text}");
    });
}

#[test]
fn volumes_are_made_listed_looked_at_and_pruned() {
    with_machine(|machine| {
        let create = ["volume", "create", "--label", "colour=red", "one1"];
        assert_eq!(machine.out(&create), "one1");
        assert_eq!(machine.out(&create), "one1");
        machine.out(&["volume", "create", "two"]);
        let anonymous = machine.out(&["volume", "create"]);
        assert_eq!(anonymous.len(), 64);
        let list = |filter: &str| machine.out(&["volume", "ls", "-q", "--filter", filter]);
        assert_eq!(list("label=colour=red"), "one1");
        assert_eq!(list("name=wo"), "two");
        assert_eq!(list("driver=other"), "");
        machine.out(&["create", "--name", "user", "-v", "two:/x", "busybox", "true"]);
        assert_eq!(list("dangling=false"), "two");
        let format = "{{.Driver}} {{.Scope}} {{.Labels.colour}}";
        assert_eq!(
            machine.out(&["volume", "inspect", "-f", format, "one1"]),
            "local local red"
        );
        // Clients before 1.42 mean all of them, later ones those without a name.
        let prune = |version: &str| {
            let pruned = machine
                .command(&["volume", "prune", "-f"])
                .env("DOCKER_API_VERSION", version)
                .output()
                .unwrap();
            assert!(pruned.status.success(), "{pruned:?}");
            machine.out(&["volume", "ls", "-q"])
        };
        assert_eq!(prune("1.42"), "one1\ntwo");
        assert_eq!(prune("1.41"), "two");
        for (args, words) in [
            (&["volume", "create", "a"][..], "volume name is too short"),
            (
                &["volume", "create", "a/b"],
                "includes invalid characters for a local volume name",
            ),
            (
                &["volume", "create", "-d", "nfs", "nn"],
                "plugin \"nfs\" not found",
            ),
            (
                &["volume", "create", "-o", "type=nfs", "-o", "device=:/x", "nn"],
                "does not mount volumes of the type",
            ),
            (
                &["volume", "create", "-o", "odd=1", "nn"],
                "invalid option: \"odd\"",
            ),
            (&["volume", "rm", "absent"], "o such volume"),
        ] {
            let (_, text) = machine.fails(args);
            assert!(text.contains(words), "{args:?}: {text}");
        }
        machine.out(&["volume", "rm", "-f", "absent"]);
    });
}

#[test]
fn a_volume_without_a_name_holds_what_the_image_has_and_goes_with_its_container() {
    with_machine(|machine| {
        let script = "cat /etc/group; busybox grep -c ' /etc ' /proc/self/mountinfo";
        assert!(sh(machine, "-v /etc", script).ends_with("log:x:4:web\n1"));
        assert_eq!(machine.out(&["volume", "ls", "-q"]), "", "--rm takes it along");
        machine.out(&["create", "--name", "one", "-v", "/etc", "busybox", "true"]);
        machine.out(&[
            "create",
            "--name",
            "two",
            "--volumes-from",
            "one:ro",
            "busybox",
            "true",
        ]);
        machine.out(&["rm", "-v", "one"]);
        assert_eq!(machine.out(&["volume", "ls", "-q"]).len(), 64, "another uses it");
        let shown = machine.out(&[
            "inspect",
            "-f",
            "{{range .Mounts}}{{.Destination}} {{.RW}}{{end}}",
            "two",
        ]);
        assert_eq!(shown, "/etc false");
        machine.out(&["rm", "two"]);
        assert_eq!(
            machine.out(&["volume", "ls", "-q"]).len(),
            64,
            "without -v it stays"
        );
        let pruned = machine.out(&["volume", "prune", "-f"]);
        assert!(pruned.contains("Total reclaimed space"), "{pruned}");
        assert_eq!(machine.out(&["volume", "ls", "-q"]), "");
        // A named one is filled too, unless it is told not to be, and never goes by itself.
        assert_eq!(sh(machine, "-v named:/etc", "cat /etc/noprogram | wc -l"), "0");
        assert_eq!(
            sh(
                machine,
                "-v empty:/etc:nocopy",
                "busybox ls /etc/group 2>/dev/null || echo none"
            ),
            "none"
        );
        assert_eq!(machine.out(&["volume", "ls", "-q"]), "empty\nnamed");
        let text = complaint(machine, "-v file:/etc/group");
        assert!(text.contains("cannot mount volume over existing file"), "{text}");
    });
}

#[test]
fn a_bind_is_a_path_in_the_nodes_own_tree() {
    with_machine(|machine| {
        sh(
            machine,
            "-v /srv/made:/x",
            "echo here > /x/file; busybox ln -s ../../../../etc /x/out",
        );
        assert_eq!(
            sh(machine, "-v /srv/made/file:/etc/motd", "cat /etc/motd"),
            "here"
        );
        assert_eq!(
            sh(
                machine,
                "-v /:/host:ro",
                "cat /host/srv/made/file; busybox ls /host"
            ),
            "here\nsrv"
        );
        let file = "type=bind,source=/srv/made/file,target=/etc/hostname,readonly";
        assert_eq!(
            sh(machine, &format!("--mount {file}"), "cat /etc/hostname"),
            "here"
        );
        let absent = complaint(machine, "--mount type=bind,source=/srv/absent,target=/x");
        assert!(
            absent.contains(
                "invalid mount config for type \"bind\": bind source path does not exist: /srv/absent"
            ),
            "{absent}"
        );
        // Nothing of this machine: its own /etc is not the tree's, by no path and no link.
        let outside = complaint(machine, "--mount type=bind,source=/etc/passwd,target=/x");
        assert!(outside.contains("does not exist"), "{outside}");
        let link = complaint(machine, "--mount type=bind,source=/srv/made/out/passwd,target=/x");
        assert!(link.contains("does not exist"), "{link}");
        let socket = complaint(machine, "-v /var/run/docker.sock:/var/run/docker.sock");
        assert!(socket.contains("There is no Docker socket here"), "{socket}");
        for mismatched in ["-v /srv/made:/etc/group", "-v /srv/made/file:/etc"] {
            let text = complaint(machine, mismatched);
            assert!(
                text.contains("Are you trying to mount a directory onto a file"),
                "{text}"
            );
        }
        let twice = complaint(machine, "-v /srv:/x -v /srv/made:/x/");
        assert!(twice.contains("Duplicate mount point: /x"), "{twice}");
        let create = "-v /srv/new:/x:rslave -v vv:/y:ro --tmpfs /z";
        let mut args = vec!["create", "--name", "shown"];
        args.extend(create.split_whitespace());
        args.extend(["busybox", "true"]);
        machine.out(&args);
        let format = "{{range .Mounts}}{{.Type}} {{.Name}} {{.Destination}} {{.Mode}} {{.RW}} {{.Propagation}};{{end}}";
        // The client does not keep the order in which it was told of them.
        let shown = machine.out(&["inspect", "-f", format, "shown"]);
        let mut mounts: Vec<&str> = shown.split_terminator(';').collect();
        mounts.sort_unstable();
        assert_eq!(mounts, ["bind  /x rslave true rslave", "volume vv /y ro false "]);
        let binds = machine.out(&["inspect", "-f", "{{join .HostConfig.Binds \" \"}}", "shown"]);
        let mut binds: Vec<&str> = binds.split(' ').collect();
        binds.sort_unstable();
        assert_eq!(binds, ["/srv/new:/x:rslave", "vv:/y:ro"]);
    });
}

#[test]
fn links_of_the_image_do_not_lead_a_mount_out_of_the_container() {
    with_machine(|machine| {
        // An image whose folders are links out of it.
        let script = "busybox rm -rf /tmp; busybox ln -s ../../../../../../srv /tmp; busybox ln -s /proc/self/root/../.. /up";
        machine.out(&["run", "--name", "linked", "busybox", "sh", "-c", script]);
        machine.out(&["start", "linked"]);
        machine.out(&["wait", "linked"]);
        machine.out(&["rm", "linked"]);
        let text = sh(
            machine,
            "-v inner:/l/m",
            "busybox ln -s ../../../../../../../root /l/m/out; busybox readlink /l/m/out",
        );
        assert_eq!(text, "../../../../../../../root");
        // The volume holds a link; a mount below it lands in the container's own /root.
        let seen = sh(
            machine,
            "-v inner:/l/m -v below:/l/m/out/there",
            "echo x > /root/there/file; busybox ls /l/m/out/there",
        );
        assert_eq!(seen, "file");
        assert_eq!(sh(machine, "-v below:/b", "cat /b/file"), "x");
    });
}

#[test]
fn a_tmpfs_has_the_options_that_it_was_given() {
    with_machine(|machine| {
        let line = |options: &str| {
            sh(
                machine,
                options,
                "busybox grep ' /t ' /proc/self/mountinfo; busybox stat -c %a:%u /t",
            )
        };
        let usual = line("--tmpfs /t");
        assert!(
            usual.contains("rw,nosuid,nodev,noexec") && usual.ends_with("1777:0"),
            "{usual}"
        );
        let given = line("--tmpfs /t:exec,suid,size=1m,mode=750,uid=33,noatime");
        assert!(
            given.contains("rw,nodev,noatime") && given.contains("size=1024k"),
            "{given}"
        );
        assert!(given.ends_with("750:33"), "{given}");
        let mount = line("--mount type=tmpfs,target=/t,tmpfs-size=2097152,tmpfs-mode=700");
        assert!(
            mount.contains("size=2048k") && mount.ends_with("700:0"),
            "{mount}"
        );
        // A program runs from one that allows it, and not from one that does not.
        let run = "busybox cp /bin/busybox /t/busybox && /t/busybox echo ran";
        assert_eq!(sh(machine, "--tmpfs /t:exec", run), "ran");
        let refused = machine.docker(&["run", "--rm", "--tmpfs", "/t", "busybox", "sh", "-c", run]);
        assert_eq!(refused.status.code(), Some(126), "{refused:?}");
        // It looks like the folder that it covers.
        assert_eq!(
            sh(machine, "--tmpfs /root", "busybox stat -c %a /root"),
            sh(machine, "", "busybox stat -c %a /root")
        );
        let wrong = complaint(machine, "--tmpfs /t:size=big");
        assert!(wrong.contains("Invalid tmpfs option \"size=big\""), "{wrong}");
        let warned = machine.docker(&["create", "--tmpfs", "/t:dev", "busybox", "true"]);
        let text = String::from_utf8_lossy(&warned.stderr).into_owned();
        assert!(text.contains("WARNING: The option \"dev\""), "{text}");
    });
}

#[test]
fn a_device_of_the_machine_is_there_with_its_owner() {
    with_machine(|machine| {
        let script = "busybox head -c 3 /dev/none | wc -c; busybox stat -c '%t:%T %a %u' /dev/none";
        assert_eq!(
            sh(machine, "--device /dev/zero:/dev/none:r", script),
            "3\n1:5 666 0"
        );
        let absent = complaint(machine, "--device /dev/absent");
        assert!(
            absent.contains("error gathering device information while adding custom device \"/dev/absent\": no such file or directory"),
            "{absent}"
        );
        let file = complaint(machine, "--device /etc/passwd:/dev/x");
        assert!(file.contains("not a device node"), "{file}");
    });
}

#[test]
fn a_volume_can_be_in_memory_or_in_the_nodes_tree() {
    with_machine(|machine| {
        let memory = [
            "volume",
            "create",
            "-o",
            "type=tmpfs",
            "-o",
            "device=tmpfs",
            "-o",
            "o=size=64k,uid=33",
            "memory",
        ];
        machine.out(&memory);
        machine.out(&[
            "run",
            "-d",
            "--name",
            "one",
            "-v",
            "memory:/m",
            "busybox",
            "sleep",
            "1000",
        ]);
        machine.out(&["exec", "one", "sh", "-c", "echo x > /m/a"]);
        let look = "busybox stat -c %u /m; cat /m/a 2>/dev/null || echo gone; busybox grep -c 'size=64k' /proc/self/mountinfo";
        assert_eq!(sh(machine, "-v memory:/m", look), "33\nx\n1");
        machine.out(&["rm", "-f", "one"]);
        assert_eq!(sh(machine, "-v memory:/m", look), "33\ngone\n1");
        machine.out(&["volume", "rm", "memory"]);
        let bound = [
            "volume",
            "create",
            "-o",
            "type=none",
            "-o",
            "device=/srv/there",
            "-o",
            "o=bind",
            "there",
        ];
        machine.out(&bound);
        let absent = complaint(machine, "-v there:/t");
        assert!(absent.contains("cannot access path /srv/there"), "{absent}");
        sh(machine, "-v /srv/there:/x", "echo kept > /x/file");
        assert_eq!(sh(machine, "-v there:/t", "cat /t/file"), "kept");
        let options = "{{.Options.device}} {{.Options.o}}";
        assert_eq!(
            machine.out(&["volume", "inspect", "-f", options, "there"]),
            "/srv/there bind"
        );
        machine.out(&["volume", "rm", "there"]);
        assert_eq!(sh(machine, "-v /srv/there:/x", "cat /x/file"), "kept");
    });
}

#[test]
fn files_are_copied_into_and_out_of_the_volumes_of_a_container_that_does_not_run() {
    with_machine(|machine| {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("in"), "copied").unwrap();
        let local = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        machine.out(&[
            "create",
            "--name",
            "still",
            "-v",
            "data:/data",
            "-v",
            "/srv/b:/b:ro",
            "busybox",
            "true",
        ]);
        machine.out(&["cp", &local("in"), "still:/data"]);
        machine.out(&["cp", &local("in"), "still:/data/again"]);
        assert_eq!(
            sh(
                machine,
                "-v data:/d",
                "cat /d/in /d/again; busybox stat -c %u /d/in"
            ),
            "copiedcopied0"
        );
        machine.out(&["cp", "still:/data/again", &local("out")]);
        assert_eq!(std::fs::read(local("out")).unwrap(), b"copied");
        let (_, text) = machine.fails(&["cp", &local("in"), "still:/b"]);
        assert!(
            text.contains("Read-only file system") || text.contains("read-only"),
            "{text}"
        );
        let (_, text) = machine.fails(&["cp", "still:/data", &local("all")]);
        assert!(text.contains("start it first"), "{text}");
        // Its twin: the root is there too.
        machine.out(&["cp", &local("in"), "still:/tmp/here"]);
        machine.out(&["cp", "still:/tmp/here", &local("back")]);
        assert_eq!(std::fs::read(local("back")).unwrap(), b"copied");
    });
}
