//! The pool by the API, on this machine: a pool in memory, whose disks are nobody's but this machine's
//! own and are only looked at.

// What fails here fails the test.
#![allow(clippy::unwrap_used)]

mod common;

use std::process::Command;

use common::{Machine, with_machine};
use serde_json::{Value, json};

/// Sends a request; gives the status and the answer's JSON documents.
fn ask(machine: &Machine, method: &str, path: &str, body: &Value) -> (u32, Vec<Value>) {
    let file = |name: &str| machine.dir.join(name);
    // Without a look at the certificate: the harness gives its authority and its node one name, which
    // curl takes for one certificate.
    let output = Command::new("curl")
        .args([
            "-sSk",
            "-X",
            method,
            "-w",
            "\n%{http_code}",
            "-d",
            &body.to_string(),
        ])
        .arg("--cert")
        .arg(file("cert.pem"))
        .arg("--key")
        .arg(file("key.pem"))
        .arg(format!("https://127.0.0.1:{}/monobloc/v1/{path}", machine.port))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let (answer, status) = text.rsplit_once('\n').unwrap();
    let documents = serde_json::Deserializer::from_str(answer).into_iter();
    (
        status.parse().unwrap(),
        documents.map(|document| document.unwrap()).collect(),
    )
}

#[test]
fn a_pool_in_memory_is_told_scrubbed_and_left_where_it_is() {
    with_machine(|machine| {
        let none = json!({});
        let pool = || ask(machine, "GET", "pool", &none).1.remove(0);
        let told = pool();
        assert_eq!(told["place"], "memory", "{told:#}");
        assert!(told["profile"].as_str().unwrap().contains("in memory"));
        assert_eq!(told["disks"].as_array().unwrap().len(), 1);
        assert_eq!(told["warnings"], json!([]), "{told:#}");
        assert_eq!(told["last_scrub"], Value::Null);

        let (status, answer) = ask(machine, "POST", "pool/scrub", &none);
        assert_eq!(
            (status, answer.last()),
            (200, Some(&json!({"done": true}))),
            "{answer:?}"
        );
        let told = pool();
        assert_eq!(told["last_scrub"]["disks"][0]["damaged"], 0, "{told:#}");
        assert_eq!(told["work"], Value::Null);

        let (status, disks) = ask(machine, "GET", "disks", &none);
        assert_eq!(status, 200);
        assert!(
            disks[0]
                .as_array()
                .unwrap()
                .iter()
                .all(|disk| disk["name"].is_string())
        );
        for (verb, body, expected) in [
            ("add", json!({"disks": ["nobody"]}), 409),
            ("create", json!({"disks": ["nobody"]}), 404),
            ("remove", json!({"disks": ["nobody"]}), 404),
            ("replace", json!({"disks": ["nobody"]}), 409),
            ("create", json!({"disks": ["a"], "force": true}), 400),
            ("dance", json!({}), 404),
        ] {
            let (status, answer) = ask(machine, "POST", &format!("pool/{verb}"), &body);
            assert_eq!(status, expected, "{verb}: {answer:?}");
        }
        assert_eq!(machine.out(&["info", "-f", "{{len .Warnings}}"]).trim(), "0");
    });
}
