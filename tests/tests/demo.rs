//! The demonstrations, by the real command: what they show is checked by themselves.

// What fails here fails the test.
#![allow(clippy::unwrap_used)]

use std::ffi::OsStr;
use std::time::Duration;

use tests::process::{run, words};
use tests::setup::{cache, monobloc_program, tools};

const LONG: Duration = Duration::from_secs(900);

#[test]
fn a_disk_that_fails_costs_nothing_and_whoever_looks_on_is_told_so() {
    tools();
    let home = tempfile::tempdir().unwrap();
    let (data, state) = (home.path().join("data"), home.path().join("state"));
    // The cache is the one of this machine's user: what it holds is the same for everyone.
    let cache = cache().parent().and_then(|path| path.parent()).unwrap();
    let environment: &[(&str, &OsStr)] = &[
        ("HOME", home.path().as_ref()),
        ("XDG_DATA_HOME", data.as_ref()),
        ("XDG_STATE_HOME", state.as_ref()),
        ("XDG_CACHE_HOME", cache.as_ref()),
    ];
    let said = run(LONG, monobloc_program(), words("demo disk"), environment, b"");
    let text = format!("{said}");
    assert!(said.code == 0, "{text}");
    for words in [
        "A machine with two disks",
        "10 files with 40 MB. Each of them is what it was, on both disks.",
        "Nothing was lost",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    assert!(!state.join("monobloc/demo-disk").exists(), "it tidies up");
    eprintln!("{text}");
}
