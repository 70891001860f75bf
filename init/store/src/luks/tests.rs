use std::process::Command;

use super::*;
use crate::testing::{output, turn};

const SIZE: u64 = 64 << 20;

fn disk(size: u64) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(size).unwrap();
    file
}

fn secret(text: &str) -> Secret {
    Secret::new(text.as_bytes().to_vec())
}

fn locks() -> [(Lock, Secret); 2] {
    [
        (Lock::Bundle, secret("of the bundle")),
        (Lock::Passphrase, secret("by heart")),
    ]
}

/// Runs a script with `$DISK` and gives what it has said.
fn cryptsetup(disk: &tempfile::NamedTempFile, script: &str) -> (bool, String) {
    {
        let _turn = turn();
        tools::need(&["cryptsetup-bin"]);
    }
    let run = output(Command::new("sh").args(["-c", script]).env("DISK", disk.path()));
    let text = [run.stdout, run.stderr].concat();
    (run.status.success(), String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn cryptsetup_opens_what_is_written_with_each_of_its_secrets() {
    for size in [SIZE, SIZE + 512] {
        let disk = disk(size);
        let (header, key) = Header::new(size, &locks()).unwrap();
        header.write(disk.as_file()).unwrap();
        for word in ["of the bundle", "by heart"] {
            let (good, said) = cryptsetup(
                &disk,
                &format!(
                    "printf '{word}' > $DISK.key; cryptsetup luksDump --dump-volume-key --batch-mode --key-file $DISK.key $DISK; code=$?; rm $DISK.key; exit $code"
                ),
            );
            assert!(good, "{said}");
            let dumped: String = said
                .split_once("MK dump:")
                .map_or("", |(_, rest)| rest)
                .chars()
                .filter(char::is_ascii_hexdigit)
                .collect();
            assert_eq!(dumped, *key.hex(), "{said}");
        }
        let (good, said) = cryptsetup(&disk, "cryptsetup luksDump $DISK");
        let tweak = header.layout().unwrap().tweak;
        assert!(good && said.contains("Label:         \tmonobloc"), "{said}");
        let sector = if size == SIZE { 4096 } else { 512 };
        assert!(said.contains(&format!("sector: {sector} [bytes]")), "{said}");
        assert_eq!(header.layout(), Some(Layout { sector, tweak }));
    }
}

#[test]
fn a_passphrase_that_cryptsetup_has_added_opens_it_too_and_comes_along_to_other_disks() {
    let first = disk(SIZE);
    let (header, key) = Header::new(SIZE, &locks()).unwrap();
    header.write(first.as_file()).unwrap();
    let (good, said) = cryptsetup(
        &first,
        "printf 'by heart' > $DISK.old; printf another > $DISK.new; cryptsetup luksAddKey -q --pbkdf argon2id --pbkdf-force-iterations 4 --pbkdf-memory 32768 --pbkdf-parallel 1 --key-file $DISK.old $DISK $DISK.new; code=$?; rm $DISK.old $DISK.new; exit $code",
    );
    assert!(good, "{said}");
    let second = disk(2 * SIZE);
    let read = Header::read(first.as_file()).unwrap().unwrap();
    let twin = read.for_disk(2 * SIZE).unwrap();
    twin.write(second.as_file()).unwrap();
    let twin = Header::read(second.as_file()).unwrap().unwrap();
    assert_ne!(twin.uuid, read.uuid);
    assert_ne!(twin.layout().unwrap().tweak, read.layout().unwrap().tweak);
    assert!(twin.opens(&key));
    for (lock, word, opens) in [
        (Lock::Passphrase, "another", true),
        (Lock::Passphrase, "by heart", true),
        (Lock::Passphrase, "of the bundle", false),
        (Lock::Bundle, "of the bundle", true),
        (Lock::Bundle, "another", false),
    ] {
        let found = twin.unlock(&lock, &secret(word));
        assert_eq!(
            found.map(|found| *found.hex() == *key.hex()),
            opens.then_some(true),
            "{lock:?} {word}"
        );
    }
    let (good, said) = cryptsetup(
        &second,
        "printf another | cryptsetup open --test-passphrase $DISK -d -",
    );
    assert!(good, "{said}");
}

#[test]
fn a_damaged_header_is_read_from_its_second_copy_and_foreign_ones_not_at_all() {
    let disk = disk(SIZE);
    let (header, key) = Header::new(SIZE, &locks()).unwrap();
    header.write(disk.as_file()).unwrap();
    disk.as_file().write_all_at(&[7; 512], 4096).unwrap();
    let read = Header::read(disk.as_file()).unwrap().unwrap();
    assert!(read.uuid == header.uuid && read.opens(&key));
    assert_eq!(read.locks(), [Lock::Bundle, Lock::Passphrase]);
    disk.as_file()
        .write_all_at(&[7; 512], binary::HEADER_BYTES + 4096)
        .unwrap();
    assert!(Header::read(disk.as_file()).unwrap().is_none());
    let (good, said) = cryptsetup(
        &disk,
        "printf secret | cryptsetup luksFormat -q --pbkdf pbkdf2 --pbkdf-force-iterations 1000 $DISK -",
    );
    assert!(good, "{said}");
    assert!(Header::read(disk.as_file()).unwrap().is_none());
}

#[test]
fn keys_are_the_same_after_they_were_written_as_digits() {
    let key = Key::random().unwrap();
    assert_eq!(*Key::from_hex(&key.hex()).unwrap().hex(), *key.hex());
    for bad in ["", "00", &"g".repeat(128), &"é".repeat(64)] {
        assert!(Key::from_hex(bad).is_none());
    }
    assert_eq!(format!("{key:?}"), "Key");
}

#[test]
fn a_header_that_asks_for_too_much_or_points_elsewhere_opens_nothing() {
    let (header, _) = Header::new(SIZE, &[(Lock::Bundle, secret("a"))]).unwrap();
    let changed = |pointer: &str, value: Value| {
        let mut header = header.clone();
        let slot = header.metadata.keyslots.get_mut("0").unwrap();
        *slot.pointer_mut(pointer).unwrap() = value;
        header.unlock(&Lock::Bundle, &secret("a")).is_some()
    };
    assert!(changed("/type", json!("luks2")));
    for (pointer, value) in [
        ("/area/offset", json!("0")),
        ("/area/offset", json!("18446744073709551615")),
        ("/area/offset", json!("16777216")),
        ("/key_size", json!(32)),
        ("/af/stripes", json!(4_000_000_000_u64)),
        ("/kdf/iterations", json!(4_000_000_000_u32)),
        ("/kdf/iterations", json!(0)),
        ("/kdf/salt", json!("not base64")),
    ] {
        assert!(!changed(pointer, value.clone()), "{pointer} {value}");
    }
}
