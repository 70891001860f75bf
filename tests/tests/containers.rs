//! Containers as the unmodified docker command, and bollard, know them: one machine, many tests.

// What fails here fails the test.
#![allow(clippy::unwrap_used)]

use std::sync::LazyLock;

use bollard::query_parameters::ResizeContainerTTYOptions;
use tests::{Boot, Docker, Machine};

static MACHINE: LazyLock<Machine> = LazyLock::new(|| Boot::quickstart().blank_disk().start());

fn docker() -> &'static Docker {
    MACHINE.docker()
}

#[test]
fn version_and_info_tell_what_the_machine_is() {
    let server = docker().ok("version --format '{{.Server.Os}}/{{.Server.Arch}} {{.Server.APIVersion}}'");
    assert_eq!(server, "linux/amd64 1.51");
    let info = docker().ok("info --format '{{.OSType}} {{.Architecture}} {{.NCPU}} {{.Driver}}'");
    assert!(info.starts_with("linux x86_64 2 "), "{info}");
}

#[test]
fn bollard_pings_and_reads_the_version() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let client = MACHINE.bollard();
    assert_eq!(runtime.block_on(client.ping()).unwrap(), "OK");
    let version = runtime.block_on(client.version()).unwrap();
    assert_eq!(
        (version.os.as_deref(), version.min_api_version.as_deref()),
        (Some("linux"), Some("1.24"))
    );
    assert!(version.kernel_version.unwrap().starts_with("6.12."));
}

#[test]
fn run_shows_the_output_of_the_command() {
    assert_eq!(docker().ok("run --rm busybox echo hello world"), "hello world");
}

#[test]
fn run_keeps_standard_output_and_standard_error_apart() {
    let outcome = docker().outcome_of("run --rm busybox sh -c 'echo out; echo err >&2'", b"");
    assert_eq!(
        (outcome.code, outcome.stdout.as_str(), outcome.stderr.as_str()),
        (0, "out", "err")
    );
}

#[test]
fn run_ends_with_the_exit_code_of_the_command() {
    assert_eq!(
        docker().outcome_of("run --rm busybox sh -c 'exit 7'", b"").code,
        7
    );
}

#[test]
fn run_of_a_command_that_is_not_there_ends_with_127() {
    let outcome = docker().outcome_of("run --rm busybox no-such-command", b"");
    assert_eq!(outcome.code, 127, "{outcome}");
    assert!(
        outcome.stderr.contains("executable file not found in $PATH"),
        "{outcome}"
    );
}

#[test]
fn run_of_a_file_that_is_no_program_ends_with_126() {
    let outcome = docker().outcome_of("run --rm busybox /etc/passwd", b"");
    assert_eq!(outcome.code, 126, "{outcome}");
    assert!(outcome.stderr.contains("permission denied"), "{outcome}");
}

#[test]
fn run_passes_standard_input_to_its_end() {
    let text = "line\n".repeat(50_000);
    let outcome = docker().outcome_of("run --rm -i busybox wc -l", text.as_bytes());
    assert_eq!(outcome.ok(), "50000");
}

#[test]
fn run_passes_much_output_unchanged() {
    let counted = docker().ok("run --rm busybox seq 1 50000");
    assert_eq!(counted.lines().count(), 50_000);
    assert!(
        counted
            .lines()
            .enumerate()
            .all(|(index, line)| line == (index + 1).to_string())
    );
}

#[test]
fn run_on_a_terminal_is_a_shell_that_a_person_can_use() {
    let mut shell = docker().terminal("run --rm -it busybox sh");
    shell.expect("# ");
    shell.type_keys("tty; stty size\r");
    shell.expect("/dev/");
    shell.expect("30 100");
    shell.type_keys("exit 3\r");
    assert_eq!(shell.end(), 3);
}

#[test]
fn a_terminal_that_is_resized_is_resized_inside() {
    let script = "trap \"stty size\" WINCH; echo ready; while :; do sleep 0.1; done";
    docker().ok(&format!("run -dit --name resized busybox sh -c '{script}'"));
    let logs = docker().follow("logs -f resized");
    logs.expect("ready");
    // docker's client does not hear of its own terminal's size until some time after the start.
    let size = ResizeContainerTTYOptions { h: 40, w: 120 };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime
        .block_on(MACHINE.bollard().resize_container_tty("resized", size))
        .unwrap();
    logs.expect("40 120");
    docker().ok("rm -f resized");
}

#[test]
fn keys_reach_the_foreground_process_as_signals() {
    let mut shell = docker().terminal("run --rm -it busybox sh");
    shell.expect("# ");
    // A key that comes while the shell still reads its line would be a part of the line.
    shell.type_keys("echo $((40+2)); sleep 1000\r");
    shell.expect("42");
    shell.type_keys("\u{3}");
    shell.expect("# ");
    shell.type_keys("echo code $?\r");
    shell.expect("code 130");
}

#[test]
fn a_detached_container_runs_until_it_is_stopped() {
    let id =
        docker().ok("run -d --name stopped busybox sh -c 'trap \"exit 9\" TERM; while :; do sleep 1; done'");
    assert_eq!(
        docker().ok("inspect -f '{{.State.Status}} {{.Id}}' stopped"),
        format!("running {id}")
    );
    docker().ok("stop stopped");
    assert_eq!(
        docker().ok("inspect -f '{{.State.Status}} {{.State.ExitCode}}' stopped"),
        "exited 9"
    );
    docker().ok("rm stopped");
    assert!(docker().fails("inspect stopped").contains("No such"));
}

#[test]
fn stop_kills_what_ignores_the_signal() {
    docker().ok("run -d --name stubborn busybox sh -c 'trap \"\" TERM; while :; do sleep 1; done'");
    docker().ok("stop -t 1 stubborn");
    assert_eq!(docker().ok("inspect -f '{{.State.ExitCode}}' stubborn"), "137");
    docker().ok("rm stubborn");
}

#[test]
fn kill_sends_the_signal_that_is_named() {
    docker().ok(
        "run -d --name killed busybox sh -c 'trap \"exit 5\" USR1; echo ready; while :; do sleep 0.1; done'",
    );
    docker().follow("logs -f killed").expect("ready");
    docker().ok("kill -s USR1 killed");
    assert_eq!(docker().ok("wait killed"), "5");
    assert!(docker().fails("kill killed").contains("is not running"));
    docker().ok("rm killed");
}

#[test]
fn wait_answers_when_the_container_exits() {
    docker().ok("run -d --name waited busybox sh -c 'read x < /dev/null; sleep 2; exit 4'");
    assert_eq!(docker().ok("wait waited"), "4");
    assert_eq!(
        docker().ok("wait waited"),
        "4",
        "a container that exited long ago answers as well"
    );
    docker().ok("rm waited");
}

#[test]
fn rm_refuses_a_running_container_unless_forced() {
    docker().ok("run -d --name busy busybox sleep 1000");
    let refusal = docker().fails("rm busy");
    assert!(refusal.contains("running"), "{refusal}");
    docker().ok("rm -f busy");
    assert_eq!(docker().ok("ps -aq --filter name=busy"), "");
}

#[test]
fn a_name_belongs_to_one_container() {
    docker().ok("create --name unique busybox");
    let refusal = docker().fails("create --name unique busybox");
    assert!(
        refusal.contains("Conflict") && refusal.contains("unique"),
        "{refusal}"
    );
    docker().ok("rm unique");
    docker().ok("create --name unique busybox");
    docker().ok("rm unique");
}

#[test]
fn ps_lists_what_runs_and_with_a_what_does_not() {
    let id = docker().ok("run -d --name listed --label suite=containers busybox sleep 1000");
    let line = docker()
        .ok("ps --no-trunc --filter name=listed --format '{{.ID}} {{.Image}} {{.Names}} {{.Command}}'");
    assert_eq!(line, format!("{id} busybox listed \"sleep 1000\""));
    docker().ok("kill listed");
    assert_eq!(docker().ok("ps -q --filter name=listed"), "");
    let status = docker().ok("ps -a --filter label=suite=containers --format '{{.Status}}'");
    assert!(status.starts_with("Exited (137)"), "{status}");
    docker().ok("rm listed");
}

#[test]
fn inspect_tells_how_the_container_was_made() {
    docker().ok("create --name inspected -e A=b -w /tmp -u 65534 -h there --memory 64m busybox id");
    let fields = "{{.Config.Env}} {{.Config.WorkingDir}} {{.Config.User}} {{.Config.Hostname}} {{.HostConfig.Memory}} {{.Path}}";
    let told = docker().ok(&format!("inspect -f '{fields}' inspected"));
    assert!(
        told.contains("A=b") && told.ends_with("/tmp 65534 there 67108864 id"),
        "{told}"
    );
    docker().ok("rm inspected");
}

#[test]
fn a_started_container_keeps_its_files() {
    docker().ok("run --name kept busybox sh -c 'cat /file; echo x >> /file'");
    assert_eq!(docker().ok("start -a kept"), "x");
    assert_eq!(docker().ok("start -a kept"), "x\nx");
    docker().ok("rm kept");
}

#[test]
fn two_containers_of_an_image_do_not_see_each_others_files() {
    assert_eq!(
        docker().ok("run --rm busybox sh -c 'echo mine > /etc/mark; cat /etc/mark'"),
        "mine"
    );
    docker().fails("run --rm busybox cat /etc/mark");
}

#[test]
fn rm_leaves_nothing_of_a_container_that_ran_with_rm() {
    docker().ok("run --rm --name brief busybox true");
    assert!(docker().fails("inspect brief").contains("No such"));
}

#[test]
fn environment_folder_user_and_host_name_are_as_asked() {
    let told = docker().ok(
        "run --rm -e A='b c' -w /new/folder -u 1234:5678 -h there busybox sh -c 'echo $A; pwd; id; hostname'",
    );
    assert_eq!(told, "b c\n/new/folder\nuid=1234 gid=5678 groups=5678\nthere");
}

#[test]
fn a_user_is_found_by_name_in_the_images_own_files() {
    assert_eq!(docker().ok("run --rm -u root busybox id -u"), "0");
    let refusal = docker().fails("run --rm -u nobody-knows-him busybox id");
    assert!(refusal.contains("nobody-knows-him"), "{refusal}");
}

#[test]
fn the_entrypoint_can_be_replaced() {
    assert_eq!(docker().ok("run --rm --entrypoint echo busybox a b"), "a b");
}

#[test]
fn a_read_only_root_can_have_a_writable_tmpfs() {
    docker().fails("run --rm --read-only busybox touch /file");
    assert_eq!(
        docker()
            .ok("run --rm --read-only --tmpfs /scratch busybox sh -c 'echo x > /scratch/y; cat /scratch/y'"),
        "x"
    );
}

#[test]
fn exec_runs_beside_the_first_process() {
    docker().ok("run -d --name host-of-exec -e A=b busybox sleep 1000");
    assert_eq!(
        docker().ok("exec host-of-exec sh -c 'echo $A; cat /proc/1/cmdline | tr \"\\0\" \" \"'"),
        "b\nsleep 1000 "
    );
    assert_eq!(
        docker().ok("exec -e A=c -w /tmp -u 7 host-of-exec sh -c 'echo $A $(pwd) $(id -u)'"),
        "c /tmp 7"
    );
    assert_eq!(
        docker().outcome_of("exec host-of-exec sh -c 'exit 6'", b"").code,
        6
    );
    assert_eq!(
        docker().outcome_of("exec -i host-of-exec wc -c", b"12345").ok(),
        "5"
    );
    assert_eq!(
        docker().outcome_of("exec host-of-exec no-such-command", b"").code,
        127
    );
    docker().ok("rm -f host-of-exec");
}

#[test]
fn exec_on_a_terminal_is_a_shell() {
    docker().ok("run -d --name shell busybox sleep 1000");
    let mut shell = docker().terminal("exec -it shell sh");
    shell.expect("# ");
    shell.type_keys("stty size; echo $((6*7)); exit 5\r");
    shell.expect("30 100");
    shell.expect("42");
    assert_eq!(shell.end(), 5);
    docker().ok("rm -f shell");
}

#[test]
fn exec_needs_a_running_container() {
    docker().ok("create --name asleep busybox");
    let refusal = docker().fails("exec asleep true");
    assert!(refusal.contains("not running"), "{refusal}");
    docker().ok("rm asleep");
}

#[test]
fn logs_give_both_streams_and_only_the_last_lines_when_asked() {
    docker().ok("run --name logged busybox sh -c 'echo one; echo two; echo other >&2'");
    let outcome = docker().outcome_of("logs logged", b"");
    assert_eq!(
        (outcome.stdout.as_str(), outcome.stderr.as_str()),
        ("one\ntwo", "other")
    );
    docker().ok("run --name counted busybox seq 1 100");
    assert_eq!(docker().ok("logs --tail 2 counted"), "99\n100");
    let stamped = docker().ok("logs -t --tail 1 counted");
    assert!(
        stamped.starts_with("20") && stamped.ends_with("Z 100"),
        "{stamped}"
    );
    docker().ok("rm logged counted");
}

#[test]
fn logs_follow_until_the_container_exits() {
    docker().ok("run -d --name followed busybox sh -c 'echo first; trap \"echo last; exit 0\" TERM; while :; do sleep 0.1; done'");
    let logs = docker().follow("logs -f followed");
    logs.expect("first");
    docker().ok("kill -s TERM followed");
    logs.expect("last");
    assert_eq!(logs.end(), (0, "first\nlast\n".to_owned()));
    docker().ok("rm followed");
}

#[test]
fn attach_joins_and_leaves_a_terminal() {
    docker().ok("run -dit --name attached busybox sh");
    let mut terminal = docker().terminal("attach attached");
    terminal.type_keys("echo $((40+2))\r");
    terminal.expect("42");
    terminal.type_keys("\u{10}\u{11}");
    terminal.expect("read escape sequence");
    assert_eq!(
        docker().ok("inspect -f '{{.State.Running}}' attached"),
        "true",
        "leaving is not ending"
    );
    docker().ok("rm -f attached");
}

#[test]
fn attach_without_a_terminal_passes_input_and_exit_code() {
    docker().ok("run -di --name fed busybox sh -c 'read word; echo got $word; exit 8'");
    let outcome = docker().outcome_of("attach fed", b"food\n");
    assert_eq!(
        (outcome.code, outcome.stdout.as_str()),
        (8, "got food"),
        "{outcome}"
    );
    docker().ok("rm fed");
}

#[test]
fn what_is_not_supported_is_refused_by_name_and_never_ignored() {
    let cases = [
        ("run --rm --network host busybox true", "host"),
        ("run --rm --pid host busybox true", "PID"),
        ("run --rm --cgroup-parent /x busybox true", "CgroupParent"),
        ("run --rm --gpus all busybox true", "evice"),
        ("run --rm --runtime other busybox true", "untime"),
    ];
    for (line, word) in cases {
        let refusal = docker().fails(line);
        assert!(refusal.contains(word), "`docker {line}` says: {refusal}");
    }
}

#[test]
fn what_is_not_there_answers_with_a_sentence() {
    for line in ["swarm init", "search x", "network create -d overlay mine"] {
        let refusal = docker().fails(line);
        assert!(refusal.trim().len() > 30, "`docker {line}` says: {refusal}");
    }
}

#[test]
fn a_container_that_is_not_there_is_named() {
    for line in [
        "logs nowhere",
        "stop nowhere",
        "exec nowhere true",
        "rm nowhere",
        "start nowhere",
        "wait nowhere",
    ] {
        let refusal = docker().fails(line);
        assert!(
            refusal.contains("No such container") && refusal.contains("nowhere"),
            "`docker {line}` says: {refusal}"
        );
    }
}

#[test]
fn many_containers_run_at_once() {
    let runs = (0..6)
        .map(|number| docker().follow(&format!("run --rm busybox echo number {number}")))
        .collect::<Vec<_>>();
    for (number, run) in runs.into_iter().enumerate() {
        assert_eq!(run.end(), (0, format!("number {number}\n")));
    }
}
