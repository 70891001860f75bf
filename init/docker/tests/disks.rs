//! The pool by the API, on this machine: a pool in memory, whose disks are nobody's but this machine's
//! own and are only looked at.

// What fails here fails the test.
#![allow(clippy::unwrap_used)]

mod common;

use common::with_machine;
use serde_json::{Value, json};

#[test]
fn a_pool_in_memory_is_told_scrubbed_and_left_where_it_is() {
    with_machine(|machine| {
        let none = json!({});
        let pool = || machine.ask("GET", "pool", &none).1.remove(0);
        let told = pool();
        assert_eq!(told["place"], "memory", "{told:#}");
        assert!(told["profile"].as_str().unwrap().contains("in memory"));
        assert_eq!(told["disks"].as_array().unwrap().len(), 1);
        assert_eq!(told["warnings"], json!([]), "{told:#}");
        assert_eq!(told["last_scrub"], Value::Null);

        let (status, answer) = machine.ask("POST", "pool/scrub", &none);
        assert_eq!(
            (status, answer.last()),
            (200, Some(&json!({"done": true}))),
            "{answer:?}"
        );
        let told = pool();
        assert_eq!(told["last_scrub"]["disks"][0]["damaged"], 0, "{told:#}");
        assert_eq!(told["work"], Value::Null);

        let (status, disks) = machine.ask("GET", "disks", &none);
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
            ("unlock", json!({"passphrase": "open sesame"}), 409),
            ("unlock", json!({}), 400),
            ("add", json!({"disks": ["a"], "encryption": {"by": "tpm"}}), 400),
            (
                "create",
                json!({"disks": ["a"], "encryption": {"by": "magic"}}),
                400,
            ),
            (
                "create",
                json!({"disks": ["a"], "encryption": {"by": "passphrase"}}),
                400,
            ),
            (
                "create",
                json!({"disks": ["a"], "encryption": {"by": "passphrase", "passphrase": "short"}}),
                400,
            ),
            (
                "create",
                json!({"disks": ["a"], "encryption": {"by": "tpm"}}),
                409,
            ),
        ] {
            let (status, answer) = machine.ask("POST", &format!("pool/{verb}"), &body);
            assert_eq!(status, expected, "{verb}: {answer:?}");
        }
        assert_eq!(machine.out(&["info", "-f", "{{len .Warnings}}"]).trim(), "0");
    });
}
