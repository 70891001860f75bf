use std::ops::ControlFlow;
use std::process::{Child, Command, Stdio};
use std::thread;

use super::*;

fn machine() -> (tempfile::TempDir, Machine) {
    let state = tempfile::tempdir().unwrap();
    let machine = Machine::named(state.path(), "quickstart");
    fs::create_dir_all(machine.dir()).unwrap();
    (state, machine)
}

/// A process with a command line of our choice, ended when dropped.
struct Stub(Child);

impl Stub {
    fn with_argument(argument: &Path) -> Self {
        let mut sh = Command::new("sh");
        sh.args(["-c", "read line; echo $line; exit 0", "stub"])
            .arg(argument);
        Self(sh.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap())
    }

    fn end(&mut self) {
        drop(self.0.stdin.take());
        self.0.wait().unwrap();
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_process_that_is_not_ours_is_never_taken_for_the_machine() {
    let (_state, machine) = machine();
    for text in ["", "nonsense", "0", "-1", "1", "999999999"] {
        fs::write(machine.pid_file(), text).unwrap();
        assert!(machine.process().is_none(), "pid file {text:?}");
    }
    let foreign = Stub::with_argument(Path::new("/elsewhere/qmp.sock"));
    fs::write(machine.pid_file(), foreign.0.id().to_string()).unwrap();
    assert!(machine.process().is_none());
}

#[test]
fn the_machines_process_is_found_until_it_ends() {
    let (_state, machine) = machine();
    let mut ours = Stub::with_argument(&machine.qmp());
    fs::write(machine.pid_file(), format!("{}\n", ours.0.id())).unwrap();
    // The new program's command line is there once it was executed.
    let process = loop {
        match machine.process() {
            Some(process) => break process,
            None => thread::yield_now(),
        }
    };
    assert!(process.is_alive());
    assert!(!process.wait_end(Duration::from_millis(10)));
    ours.end();
    assert!(process.wait_end(Duration::ZERO));
    assert!(machine.process().is_none());
}

#[test]
fn machines_are_those_that_were_started() {
    let (state, machine) = machine();
    assert!(Machine::all(state.path()).unwrap().is_empty());
    fs::write(machine.record_path(), "{}").unwrap();
    let names: Vec<_> = Machine::all(state.path())
        .unwrap()
        .iter()
        .map(|machine| machine.name().to_owned())
        .collect();
    assert_eq!(names, ["quickstart"]);
    assert!(Machine::all(Path::new("/nowhere")).unwrap().is_empty());
}

#[test]
fn a_record_that_is_damaged_is_none() {
    let (_state, machine) = machine();
    fs::write(machine.record_path(), "{").unwrap();
    assert!(machine.record().is_none());
}

#[test]
fn a_machines_folder_is_its_owners() {
    use std::os::unix::fs::PermissionsExt as _;
    let state = tempfile::tempdir().unwrap();
    let machine = Machine::named(&state.path().join("monobloc"), "quickstart");
    let _lock = machine.lock(&mut || ()).unwrap();
    let mode = fs::metadata(machine.dir()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}

#[test]
fn a_second_command_waits_for_the_first() {
    let (_state, machine) = machine();
    let first = machine.lock(&mut || panic!("nobody else is there")).unwrap();
    let other = machine.clone();
    let (sender, waits) = std::sync::mpsc::channel();
    let second = thread::spawn(move || other.lock(&mut || sender.send(()).unwrap()).map(drop));
    waits.recv().unwrap();
    drop(first);
    second.join().unwrap().unwrap();
}

#[test]
fn a_log_is_followed_until_the_process_ends() {
    let (_state, machine) = machine();
    fs::write(machine.log(), "one\n").unwrap();
    let mut stub = Stub::with_argument(&machine.qmp());
    let pid = Pid::from_raw(i32::try_from(stub.0.id()).unwrap()).unwrap();
    let process = Process {
        pid,
        fd: pidfd_open(pid, PidfdFlags::empty()).unwrap(),
    };
    let mut told = String::new();
    machine
        .follow(SeekFrom::Start(0), Some(&process), |bytes| {
            told.push_str(std::str::from_utf8(bytes).unwrap());
            let mut log = OpenOptions::new().append(true).open(machine.log()).unwrap();
            match told.as_str() {
                "one\n" => std::io::Write::write_all(&mut log, b"two\n").unwrap(),
                _ => stub.end(),
            }
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(told, "one\ntwo\n");
}

#[test]
fn a_log_whose_machine_is_off_is_read_once() {
    let (_state, machine) = machine();
    fs::write(machine.log(), "all there is").unwrap();
    let mut told = Vec::new();
    machine
        .follow(SeekFrom::Start(0), None, |bytes| {
            told.extend_from_slice(bytes);
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(told, b"all there is");
}

#[test]
fn the_tail_is_the_last_lines_with_something_in_them() {
    let (_state, machine) = machine();
    assert_eq!(machine.tail(2), "");
    fs::write(machine.log(), "one\r\ntwo\r\n\r\nthree\r\n").unwrap();
    assert_eq!(machine.tail(2), "two\nthree");
    assert_eq!(machine.tail(9), "one\ntwo\nthree");
}
