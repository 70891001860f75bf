//! Volumes, binds, tmpfs and devices, each read back from inside the zone; and paths that would lead
//! out of where they belong.

// What fails here fails the test.
#![allow(clippy::unwrap_used)]

use std::sync::LazyLock;

use bollard::models::{
    ContainerCreateBody, HostConfig, Mount, MountBindOptions, MountBindOptionsPropagationEnum, MountType,
    MountVolumeOptions,
};
use bollard::query_parameters::CreateContainerOptionsBuilder;
use serde_json::json;
use tests::images::{Image, Layer, busybox_layer};
use tests::{Boot, Docker, Machine};

static MACHINE: LazyLock<Machine> = LazyLock::new(|| Boot::quickstart().blank_disk().start());

fn docker() -> &'static Docker {
    MACHINE.docker()
}

/// Runs a line of shell in a new zone.
#[track_caller]
fn sh(options: &str, script: &str) -> String {
    docker().ok(&format!("run --rm {options} busybox sh -c '{script}'"))
}

/// What docker says where the zone is not to start, or its script is to fail.
#[track_caller]
fn refused(options: &str, script: &str) -> String {
    docker().fails(&format!("run --rm {options} busybox sh -c '{script}'"))
}

/// Runs a line of shell in a zone with mounts that docker's command has no words for.
#[track_caller]
fn sh_with(name: &str, mounts: Vec<Mount>, script: &str) -> Result<String, String> {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let body = ContainerCreateBody {
        image: Some("busybox".to_owned()),
        cmd: Some(["sh", "-c", script].map(str::to_owned).to_vec()),
        host_config: Some(HostConfig {
            mounts: Some(mounts),
            ..HostConfig::default()
        }),
        ..ContainerCreateBody::default()
    };
    let options = CreateContainerOptionsBuilder::new().name(name).build();
    let made = runtime.block_on(MACHINE.bollard().create_container(Some(options), body));
    made.map_err(|error| error.to_string())?;
    let outcome = docker().outcome_of(&format!("start -a {name}"), b"");
    docker().ok(&format!("rm {name}"));
    if outcome.code == 0 {
        Ok(outcome.stdout)
    } else {
        Err(outcome.to_string())
    }
}

#[test]
fn the_docker_command_makes_lists_shows_and_removes_volumes() {
    assert_eq!(docker().ok("volume create --label kind=test listed"), "listed");
    assert_eq!(docker().ok("volume create listed"), "listed");
    assert_eq!(docker().ok("volume ls -q --filter label=kind=test"), "listed");
    let format = "{{.Name}} {{.Driver}} {{.Scope}} {{.Labels.kind}}";
    assert_eq!(
        docker().ok(&format!("volume inspect -f '{format}' listed")),
        "listed local local test"
    );
    docker().ok("create --name holder -v listed:/x busybox true");
    let said = docker().fails("volume rm listed");
    assert!(said.contains("volume is in use"), "{said}");
    docker().ok("rm holder");
    docker().ok("volume rm listed");
    assert!(docker().fails("volume inspect listed").contains("o such volume"));
}

#[test]
fn two_running_zones_share_a_volume_and_agree_on_its_owners() {
    let wait = "while [ ! -e /d/go ]; do sleep 0.1; done";
    docker().ok(&format!(
        "run -d --name reader -v both:/d busybox sh -c '{wait}; stat -c %u:%g:%a /d/file; cat /d/file'"
    ));
    let write = "echo hello > /d/file; chown 33:34 /d/file; chmod 640 /d/file; touch /d/go";
    sh("-v both:/d", write);
    assert_eq!(docker().ok("wait reader"), "0");
    assert_eq!(docker().ok("logs reader"), "33:34:640\nhello");
    // A user of the zone may write what is his, and no more.
    assert_eq!(
        sh("-v both:/d -u 33:34", "echo mine >> /d/file; tail -1 /d/file"),
        "mine"
    );
    refused("-v both:/d -u 7", "echo mine >> /d/file");
    docker().ok("rm reader");
    docker().ok("volume rm both");
}

#[test]
fn a_volume_keeps_what_the_image_has_there() {
    let image = Image {
        layers: vec![
            busybox_layer().bytes(),
            Layer::new()
                .folder("data/")
                .file("data/secret", 0o600, "of the image")
                .file("data/run", 0o4755, "#!")
                .symlink("data/link", "secret")
                .folder("data/below/")
                .file("data/below/file", 0o644, "deep")
                .bytes(),
        ],
        ..Image::new("with-volume:1", &[])
    };
    let image = image.with("Volumes", json!({"/data": {}}));
    docker().outcome_of("load", &image.docker_archive()).ok();
    let look = "cd /data; cat secret below/file; stat -c %a secret run; readlink link; grep -c \" /data \" /proc/self/mountinfo";
    let run = |options: &str| docker().ok(&format!("run --rm {options} with-volume:1 sh -c '{look}'"));
    let whole = "of the imagedeep600\n4755\nsecret\n1";
    assert_eq!(run(""), whole);
    assert_eq!(run("-v filled:/data"), whole);
    // What is in it already is left alone.
    sh("-v filled:/d", "echo -n changed > /d/secret");
    assert_eq!(run("-v filled:/data"), whole.replace("of the image", "changed"));
    refused("-v unfilled:/etc:nocopy", "cat /etc/passwd");
    // --rm took the ones without names along; those with names stay.
    assert_eq!(
        docker().ok("volume ls -q --filter name=filled"),
        "filled\nunfilled"
    );
    docker().ok("create --name named-and-not -v filled:/x with-volume:1 true");
    let format = "{{range .Mounts}}{{if eq .Destination \"/data\"}}{{.Name}}{{end}}{{end}}";
    let anonymous = docker().ok(&format!("inspect -f '{format}' named-and-not"));
    assert_eq!(anonymous.len(), 64);
    docker().ok("rm -v named-and-not");
    assert!(
        docker()
            .fails(&format!("volume inspect {anonymous}"))
            .contains("o such volume")
    );
    docker().ok("volume rm filled unfilled");
    docker().ok("rmi with-volume:1");
}

#[test]
fn volumes_from_another_container_come_with_its_rights_or_fewer() {
    docker().ok("create --name giver -v given:/a -v /srv/giver:/b:ro busybox true");
    let look = "echo x > /a/file && cat /a/file; echo x > /b/file || echo closed";
    assert_eq!(sh("--volumes-from giver", look), "x\nclosed");
    refused("--volumes-from giver:ro", "echo y > /a/file");
    assert_eq!(sh("--volumes-from giver:ro", "cat /a/file"), "x");
    let said = refused("--volumes-from nobody", "true");
    assert!(said.contains("No such container: nobody"), "{said}");
    docker().ok("rm giver");
    docker().ok("volume rm given");
}

#[test]
fn a_bind_is_read_only_where_it_is_asked_for_with_all_below_it() {
    sh("-v /srv/door:/x", "echo open > /x/file; mkdir /x/below");
    assert_eq!(sh("-v /srv/door:/x:ro", "cat /x/file"), "open");
    assert!(refused("-v /srv/door:/x:ro", "echo > /x/file").contains("Read-only file system"));
    // A volume below a bind keeps its own right; what is above comes first, however it is written.
    let nested = "-v inner:/x/below -v /srv/door:/x:ro --tmpfs /x/below/deep";
    assert_eq!(
        sh(
            nested,
            "echo > /x/below/a; echo > /x/below/deep/b; ls /x/below /x/below/deep; echo > /x/c || echo closed"
        ),
        "/x/below:\na\ndeep\n\n/x/below/deep:\nb\nclosed"
    );
    // A single file, also over one that the engine itself would put there.
    assert_eq!(sh("-v /srv/door/file:/etc/hosts:ro", "cat /etc/hosts"), "open");
    assert_eq!(sh("-v /srv/door/file:/made/for/it", "cat /made/for/it"), "open");
    // The read-only root has writable volumes.
    assert!(refused("--read-only -v inner:/v", "echo > /file").contains("Read-only file system"));
    assert_eq!(
        sh("--read-only -v inner:/v", "echo in > /v/file; cat /v/file"),
        "in"
    );
    docker().ok("volume rm inner");
}

#[test]
fn a_mount_that_is_made_in_one_zone_appears_in_another_only_where_both_share() {
    let admin = "--cap-add SYS_ADMIN --security-opt seccomp=unconfined";
    let mount = "mkdir -p /x/new && mount -t tmpfs none /x/new && echo here > /x/new/file && echo ready";
    for (name, maker, other, seen) in [
        ("shared", "rshared", "rslave", "here"),
        ("private", "rprivate", "rslave", "none"),
        ("closed", "rshared", "rprivate", "none"),
    ] {
        let wait = "while [ ! -e /d/go ]; do sleep 0.1; done; cat /x/new/file 2>/dev/null || echo none";
        docker().ok(&format!(
            "run -d --name looks-{name} -v go-{name}:/d -v /srv/{name}:/x:{other} busybox sh -c '{wait}'"
        ));
        docker().ok(&format!(
            "run -d --name mounts-{name} {admin} -v /srv/{name}:/x:{maker} busybox sh -c '{mount}; sleep 1000'"
        ));
        docker().follow(&format!("logs -f mounts-{name}")).expect("ready");
        sh(&format!("-v go-{name}:/d"), "touch /d/go");
        docker().ok(&format!("wait looks-{name}"));
        assert_eq!(
            docker().ok(&format!("logs looks-{name}")),
            seen,
            "{maker} {other}"
        );
        // What was mounted there before is part of a new bind, unless that leaves it out.
        if name == "shared" {
            assert_eq!(sh("-v /srv/shared:/x", "cat /x/new/file"), "here");
            let bind = |non_recursive| {
                vec![Mount {
                    typ: Some(MountType::BIND),
                    source: Some("/srv/shared".to_owned()),
                    target: Some("/x".to_owned()),
                    bind_options: Some(MountBindOptions {
                        non_recursive: Some(non_recursive),
                        propagation: Some(MountBindOptionsPropagationEnum::PRIVATE),
                        ..MountBindOptions::default()
                    }),
                    ..Mount::default()
                }]
            };
            let look = "cat /x/new/file 2>/dev/null || echo none";
            assert_eq!(sh_with("recursive", bind(false), look).unwrap(), "here");
            assert_eq!(sh_with("not-recursive", bind(true), look).unwrap(), "none");
        }
        docker().ok(&format!("rm -f looks-{name} mounts-{name}"));
        docker().ok(&format!("volume rm go-{name}"));
    }
}

#[test]
fn options_that_only_the_api_knows_are_honoured() {
    sh(
        "-v parts:/d",
        "mkdir -p /d/one/two; echo part > /d/one/two/file; ln -s ../../../.. /d/out",
    );
    let volume = |subpath: &str| {
        vec![Mount {
            typ: Some(MountType::VOLUME),
            source: Some("parts".to_owned()),
            target: Some("/x".to_owned()),
            volume_options: Some(MountVolumeOptions {
                subpath: Some(subpath.to_owned()),
                ..MountVolumeOptions::default()
            }),
            ..Mount::default()
        }]
    };
    assert_eq!(sh_with("part", volume("one/two"), "cat /x/file").unwrap(), "part");
    let absent = sh_with("absent", volume("one/three"), "true").unwrap_err();
    assert!(absent.contains("cannot access path"), "{absent}");
    let above = sh_with("above", volume("one/../.."), "true").unwrap_err();
    assert!(above.contains("subpath must be a relative path"), "{above}");
    // A link that leads upwards ends at the volume's own root.
    assert_eq!(sh_with("out", volume("out"), "ls /x").unwrap(), "one\nout");
    let bind = |create| {
        vec![Mount {
            typ: Some(MountType::BIND),
            source: Some("/srv/to-be/made".to_owned()),
            target: Some("/x".to_owned()),
            bind_options: Some(MountBindOptions {
                create_mountpoint: Some(create),
                ..MountBindOptions::default()
            }),
            ..Mount::default()
        }]
    };
    let missing = sh_with("missing", bind(false), "true").unwrap_err();
    assert!(
        missing.contains("bind source path does not exist: /srv/to-be/made"),
        "{missing}"
    );
    assert_eq!(sh_with("makes", bind(true), "ls /x").unwrap(), "");
    docker().ok("volume rm parts");
}

#[test]
fn nothing_of_the_machine_itself_can_be_bound() {
    let tree = sh("-v /:/host", "mkdir -p /host/srv; ls /host");
    for own in ["init", "proc", "sys", "dev", "pool", "run", "store", "state"] {
        assert!(!tree.lines().any(|name| name == own), "{tree}");
    }
    for source in ["/proc/self", "/sys/kernel", "/init", "/run/monobloc"] {
        let said = refused(&format!("--mount type=bind,source={source},target=/x"), "true");
        assert!(
            said.contains("bind source path does not exist"),
            "{source}: {said}"
        );
    }
    let said = refused("-v /var/run/docker.sock:/var/run/docker.sock", "true");
    assert!(said.contains("There is no Docker socket here"), "{said}");
}

#[test]
fn a_source_that_becomes_a_link_while_it_is_mounted_does_not_lead_out() {
    // One zone swaps a folder for a link that climbs, again and again, while others bind it.
    sh(
        "-v /srv/race:/r",
        "mkdir /r/folder; touch /r/folder/inside; ln -s ../../../../../../.. /r/link",
    );
    let swap = "cd /r; echo ready; while :; do mv -T folder door; mv -T door folder; mv -T link door; mv -T door link; done";
    docker().ok(&format!(
        "run -d --name swapper -v /srv/race:/r busybox sh -c '{swap}'"
    ));
    docker().follow("logs -f swapper").expect("ready");
    for _ in 0..8 {
        let bind = "type=bind,source=/srv/race/door,target=/x";
        let outcome = docker().outcome_of(&format!("run --rm --mount {bind} busybox ls /x"), b"");
        let names: Vec<&str> = outcome.stdout.lines().collect();
        // The folder, the root of the node's tree, or a refusal.
        let refused = outcome.code != 0 && outcome.stderr.contains("bind source path does not exist");
        let fine = refused || names == ["inside"] || names.contains(&"srv");
        assert!(fine, "{outcome}");
        for own in ["store", "state", "volumes", "init", "proc"] {
            assert!(!names.contains(&own), "{outcome}");
        }
    }
    docker().ok("rm -f swapper");
}

#[test]
fn a_target_that_is_a_link_lands_in_the_zones_own_root() {
    sh(
        "-v traps:/v",
        "ln -s ../../../../../../tmp /v/up; ln -s /proc/1/root /v/magic; ln -s /nowhere/yet /v/far",
    );
    let look = |target: &str, place: &str| {
        sh(
            &format!("-v traps:/v -v prize:{target}"),
            &format!("echo x > {place}/file; ls {target}; grep -c \" {place} \" /proc/self/mountinfo"),
        )
    };
    assert_eq!(look("/v/up/there", "/tmp/there"), "file\n1");
    assert_eq!(look("/v/far", "/nowhere/yet"), "file\n1");
    // A link of /proc that leads to another root is not followed at all.
    let said = refused("-v traps:/v -v prize:/v/magic/tmp", "true");
    assert!(said.contains("/v/magic/tmp"), "{said}");
    for target in ["/proc", "/proc/self/fd", "/dev", "/"] {
        let said = refused(&format!("-v prize:{target}"), "true");
        assert!(said.contains("invalid volume specification"), "{target}: {said}");
    }
    docker().ok("volume rm traps prize");
}

#[test]
fn a_tmpfs_is_as_it_was_asked_for() {
    let look = "grep \" /t \" /proc/self/mountinfo; stat -c %a:%u:%g /t";
    let usual = sh("--tmpfs /t", look);
    assert!(
        usual.contains("rw,nosuid,nodev,noexec") && usual.ends_with("1777:0:0"),
        "{usual}"
    );
    let given = sh("--tmpfs /t:exec,suid,size=1m,mode=750,uid=33,gid=34", look);
    assert!(
        given.contains(" rw,nodev") && !given.contains("noexec") && given.contains("size=1024k"),
        "{given}"
    );
    assert!(given.ends_with("750:33:34"), "{given}");
    let program = "cp /bin/busybox /t/busybox && /t/busybox echo ran";
    assert_eq!(sh("--tmpfs /t:exec", program), "ran");
    assert!(refused("--tmpfs /t", program).contains("Permission denied"));
    assert!(
        refused("--tmpfs /t:size=64k", "dd if=/dev/zero of=/t/f bs=64k count=2").contains("No space left")
    );
    assert!(refused("--tmpfs /t:ro", "touch /t/f").contains("Read-only file system"));
    assert!(refused("--tmpfs /t:colour=red", "true").contains("Invalid tmpfs option"));
    let mount = sh(
        "--mount type=tmpfs,target=/t,tmpfs-size=65536,tmpfs-mode=700",
        look,
    );
    assert!(
        mount.contains("size=64k") && mount.ends_with("700:0:0"),
        "{mount}"
    );
}

#[test]
fn what_is_hidden_and_read_only_can_be_opened() {
    let look = "cat /proc/interrupts | wc -l; grep -c \" /proc/sys ro\" /proc/self/mountinfo || true";
    assert_eq!(sh("", look), "0\n1");
    let open = sh("--security-opt systempaths=unconfined", look);
    assert!(!open.starts_with("0\n") && open.ends_with("\n0"), "{open}");
}

#[test]
fn a_device_is_there_with_its_owner_and_its_rights_and_a_disk_in_use_is_not_given() {
    let look = "head -c 3 /dev/nulls | wc -c; stat -c \"%t:%T %u:%g\" /dev/nulls";
    assert_eq!(sh("--device /dev/zero:/dev/nulls", look), "3\n1:5 0:0");
    // One that no zone has by itself, with fewer rights than it has on the machine.
    let open = ": > /dev/serial && echo opened";
    assert_eq!(sh("--device /dev/ttyS0:/dev/serial", open), "opened");
    let said = refused("--device /dev/ttyS0:/dev/serial:r", open);
    assert!(said.contains("Operation not permitted"), "{said}");
    // Without it the node may be made, but opens nothing.
    refused(
        "--cap-add MKNOD",
        "mknod /dev/nulls c 1 5 && head -c 3 /dev/nulls",
    );
    let said = refused("--device /dev/absent", "true");
    assert!(
        said.contains("error gathering device information while adding custom device"),
        "{said}"
    );
    let said = refused("--device /dev/vda", "true");
    assert!(said.contains("/dev/vda is in use by this machine"), "{said}");
}

#[test]
fn inspect_shows_mounts_as_docker_does() {
    let options =
        "-v shown:/a -v /srv/shown:/b:ro,rslave -v /c --tmpfs /d --mount type=tmpfs,target=/e,tmpfs-size=1m";
    docker().ok(&format!("create --name shown {options} busybox true"));
    let format = "{{range .Mounts}}{{.Type}} {{.Destination}} {{.Mode}} {{.RW}} {{.Propagation}};{{end}}";
    let shown = docker().ok(&format!("inspect -f '{format}' shown"));
    // The client keeps the order of `-v` to itself.
    let mut mounts: Vec<&str> = shown.split_terminator(';').collect();
    mounts.sort_unstable();
    assert_eq!(
        mounts,
        [
            "bind /b ro,rslave false rslave",
            "tmpfs /e  true ",
            "volume /a z true ",
            "volume /c  true ",
        ]
    );
    let format =
        "{{.HostConfig.Tmpfs}} {{(index .HostConfig.Mounts 0).TmpfsOptions.SizeBytes}} {{.Config.Volumes}}";
    assert_eq!(
        docker().ok(&format!("inspect -f '{format}' shown")),
        "map[/d:] 1048576 map[/c:{}]"
    );
    let binds = docker().ok("inspect -f '{{range .HostConfig.Binds}}{{.}} {{end}}' shown");
    let mut binds: Vec<&str> = binds.split_whitespace().collect();
    binds.sort_unstable();
    assert_eq!(binds, ["/srv/shown:/b:ro,rslave", "shown:/a"]);
    assert_eq!(
        docker().ok("ps -aq --filter volume=shown --format '{{.Names}}'"),
        "shown"
    );
    docker().ok("rm -v shown");
    assert_eq!(docker().ok("volume ls -q --filter name=shown"), "shown");
    docker().ok("volume rm shown");
}

#[test]
fn events_tell_of_a_volumes_life() {
    docker().ok("volume create told");
    sh("-v told:/x", "true");
    docker().ok("volume rm told");
    let format = "{{.Action}} {{.Actor.Attributes.driver}} {{.Actor.Attributes.destination}}";
    // Followed, not bounded by `--until`: the client computes that by this machine's clock.
    let events = docker().follow(&format!(
        "events --since 1h --filter volume=told --format '{format}'"
    ));
    events.expect("destroy local");
    let told = events.so_far();
    let lines: Vec<&str> = told
        .lines()
        .map(|line| line.trim_end_matches(" <no value>").trim_end())
        .collect();
    assert_eq!(
        lines,
        ["create local", "mount local /x", "unmount local", "destroy local"]
    );
}

#[test]
fn volumes_and_binds_outlive_the_supervisor_and_the_machine() {
    let machine = Boot::quickstart().blank_disk().restarting().start();
    let docker = machine.docker();
    docker.ok("run -d --name keeps --restart always -v kept:/v -v /srv/kept:/b -v /a busybox sh -c 'date >> /v/starts; sync; sleep 1000'");
    docker.ok("exec keeps sh -c 'echo v > /v/file; echo b > /b/file; echo a > /a/file; sync'");
    let look = "exec keeps cat /v/file /b/file /a/file";
    machine.crash_supervisor();
    assert_eq!(docker.ok(look), "v\nb\na");
    assert!(docker.fails("volume rm kept").contains("volume is in use"));
    machine.reboot();
    // Its restart policy starts it again, some time after the machine is ready.
    docker.ok("start keeps");
    assert_eq!(docker.ok(look), "v\nb\na");
    let starts = "while [ $(wc -l < /v/starts) -lt 2 ]; do sleep 0.1; done; wc -l < /v/starts";
    assert_eq!(docker.ok(&format!("exec keeps sh -c '{starts}'")), "2");
    assert_eq!(docker.ok("volume ls -q --filter name=kept"), "kept");
    docker.ok("rm -fv keeps");
    assert_eq!(docker.ok("volume ls -q"), "kept");
    machine.power_off();
}

#[test]
fn a_volume_of_the_driver_can_be_in_memory_or_in_the_nodes_tree() {
    docker().ok("volume create -o type=tmpfs -o device=tmpfs -o o=size=64k,uid=33,noexec memory");
    docker()
        .ok("run -d --name remembers -v memory:/m busybox sh -c 'echo x > /m/file; echo ready; sleep 1000'");
    docker().follow("logs -f remembers").expect("ready");
    let look = "stat -c %u /m; cat /m/file 2>/dev/null || echo gone; grep -c \" /m .*noexec.*size=64k\" /proc/self/mountinfo";
    assert_eq!(sh("-v memory:/m", look), "33\nx\n1");
    docker().ok("rm -f remembers");
    assert_eq!(sh("-v memory:/m", look), "33\ngone\n1");
    docker().ok("volume rm memory");
    sh("-v /srv/driven:/x", "echo kept > /x/file");
    docker().ok("volume create -o type=none -o device=/srv/driven -o o=bind driven");
    assert_eq!(sh("-v driven:/d", "cat /d/file"), "kept");
    docker().ok("volume rm driven");
    assert_eq!(sh("-v /srv/driven:/x", "cat /x/file"), "kept");
}
