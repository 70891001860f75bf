//! Names are asked of the servers in `/etc/resolv.conf`, and addresses of nobody. As both are the whole
//! machine's, the test runs once more in namespaces of its own.

use std::fs;
use std::net::UdpSocket;
use std::process::{Command, Stdio};
use std::thread;

use super::pool::{TestStore, spawn};
use super::server::{Layout, Server, program};
use super::{Pull, Session, pull};

/// Where the test's name server listens.
const SERVER: &str = "127.0.0.53";
const INSIDE: &str = "registry::tests::names::inside_of_namespaces";
/// The file that lies over `/etc/resolv.conf`.
const FILE: &str = "MONOBLOC_TEST_RESOLV_CONF";

#[test]
fn names_are_asked_of_the_name_servers_in_resolv_conf_and_addresses_of_nobody() {
    tools::need(&["skopeo", "iproute2"]);
    program();
    let file = tempfile::NamedTempFile::new().unwrap();
    let script = format!(
        "ip link set lo up && mount --bind \"${FILE}\" /etc/resolv.conf && exec \"$0\" --exact {INSIDE} --ignored"
    );
    let mut command = Command::new("unshare");
    command
        .args(["--net", "--mount", "sh", "-ec", &script])
        .arg(std::env::current_exe().unwrap())
        .env(FILE, file.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let output = spawn(&mut command).wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[tokio::test]
#[ignore = "it needs namespaces of its own, which another test makes"]
async fn inside_of_namespaces() {
    let file = std::env::var_os(FILE).expect("run the other test of this module");
    let (pool, server) = (TestStore::new(), Server::start());
    server.push(&Layout::new(&[b"one"]), "box:1");
    let socket = UdpSocket::bind((SERVER, 53)).unwrap();
    thread::spawn(move || serve(&socket));
    let store = pool.store();
    let by_name = async |host: &str| {
        let reference = format!("{host}:{}/box:1", server.port).parse().unwrap();
        let session = Session::new(&reference, None, &[host.to_owned()])?;
        let (events, _) = tokio::sync::mpsc::channel(64);
        Pull::begin(session).await?.run(store.clone(), events).await
    };
    // Nobody can be asked, nor need be.
    let text = by_name("registry.test").await.unwrap_err().to_string();
    assert!(
        text.contains("Cannot reach registry registry.test") && text.contains("no name servers"),
        "{text}"
    );
    pull(&store, server.port, "box:1").await.unwrap();
    // The network comes up.
    fs::write(file, format!("search example\nnameserver {SERVER}\n")).unwrap();
    by_name("registry.test").await.unwrap();
    let text = by_name("nowhere.test").await.unwrap_err().to_string();
    assert!(
        text.contains("Cannot reach registry nowhere.test") && text.contains("cannot be resolved"),
        "{text}"
    );
}

/// A name server (RFC 1035, section 4.1) that knows `registry.test` alone.
fn serve(socket: &UdpSocket) {
    let mut packet = [0; 512];
    while let Ok((length, client)) = socket.recv_from(&mut packet) {
        let query = &packet[..length];
        let question = &query[12..];
        let name = question.iter().position(|byte| *byte == 0).unwrap() + 1;
        let known = question[..name].eq_ignore_ascii_case(b"\x08registry\x04test\0");
        let address = known && question[name..name + 2] == [0, 1];
        // A response, authoritative; NXDOMAIN for a name that is not known.
        let mut answer = query[..2].to_vec();
        answer.extend([0x85, if known { 0x80 } else { 0x83 }]);
        answer.extend([0, 1, 0, u8::from(address), 0, 0, 0, 0]);
        answer.extend(&question[..name + 4]);
        if address {
            // The question's name, A, IN, 60 s, four bytes.
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, 1]);
        }
        socket.send_to(&answer, client).unwrap();
    }
}
