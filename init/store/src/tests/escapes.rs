//! No entry leaves the layer, in whatever order links, folders and files come.

use tar::EntryType;

use crate::fuzzing::Jail;
use crate::testing::TarMaker;

/// `splitmix64`: the same sequences in every run.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ z >> 31) % below as u64) as usize
    }

    fn one<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.next(of.len())]
    }
}

/// A path of few words, so that entries meet each other.
fn path(numbers: &mut Numbers, hostile: bool) -> String {
    let words: &[&str] = if hostile {
        &["a", "b", "c", "..", "..", "outside", "file", ".", "root"]
    } else {
        &["a", "b", "c", "file", "folder"]
    };
    let count = 1 + numbers.next(4);
    let parts: Vec<&str> = (0..count).map(|_| numbers.one(words)).collect();
    let begin = if hostile && numbers.next(5) == 0 { "/" } else { "" };
    format!("{begin}{}", parts.join("/"))
}

fn sequence(numbers: &mut Numbers, outside: &str) -> Vec<u8> {
    let mut tar = TarMaker::default();
    for _ in 0..2 + numbers.next(12) {
        let hostile = numbers.next(12) == 0;
        let name = path(numbers, hostile);
        let target = match numbers.next(5) {
            0 => "../outside".to_owned(),
            1 => "../../outside/file".to_owned(),
            2 if outside.len() < 90 => outside.to_owned(),
            _ => path(numbers, true),
        };
        let kinds = [
            EntryType::Regular,
            EntryType::Regular,
            EntryType::Directory,
            EntryType::Symlink,
            EntryType::Symlink,
            EntryType::Link,
            EntryType::Fifo,
        ];
        tar = match kinds[numbers.next(kinds.len())] {
            EntryType::Regular if numbers.next(6) == 0 => {
                let (folder, file) = name.rsplit_once('/').unwrap_or(("", &name));
                let hidden = numbers.one(&[file, ".wh..opq"]).to_owned();
                let folder = if folder.is_empty() { "." } else { folder };
                tar.file(&format!("{folder}/.wh.{hidden}"), b"")
            }
            EntryType::Regular => tar.file(&name, b"changed"),
            EntryType::Directory => tar.dir(&format!("{name}/")),
            kind @ EntryType::Fifo => tar.entry(kind, &name, "", b""),
            kind => tar.entry(kind, &name, &target, b""),
        };
    }
    tar.finish()
}

#[test]
fn no_sequence_of_entries_reaches_what_is_outside_of_the_layer() {
    let dir = tempfile::tempdir().unwrap();
    let jail = Jail::new(dir.path());
    let outside = jail.outside().to_str().unwrap().to_owned();
    let mut numbers = Numbers(1);
    let taken = (0..5000)
        .filter(|_| jail.place(&sequence(&mut numbers, &outside)))
        .count();
    // Neither is everything refused, nor is nothing.
    assert!((500..4900).contains(&taken), "{taken} of 5000 were taken");
}

#[test]
fn the_search_for_changes_outside_finds_one() {
    let dir = tempfile::tempdir().unwrap();
    let jail = Jail::new(dir.path());
    std::fs::hard_link(jail.outside().join("file"), dir.path().join("twin")).unwrap();
    let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| jail.place(b"")));
    assert!(found.is_err());
}
