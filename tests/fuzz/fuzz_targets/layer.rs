//! Layers: no tar reaches what is outside of its layer.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use store::fuzzing::Jail;
use tempfile::TempDir;

static JAIL: LazyLock<(Jail, TempDir)> = LazyLock::new(|| {
    let dir = tempfile::tempdir().expect("no temporary folder");
    (Jail::new(dir.path()), dir)
});

fuzz_target!(|bytes: &[u8]| {
    JAIL.0.place(bytes);
});
