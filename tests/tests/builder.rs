//! What the builder makes, held against other programs that know the formats; and what it says to
//! mistakes.

// What fails here fails the test.
#![allow(clippy::unwrap_used)]

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tests::Outcome;
use tests::image::{Kind, built};
use tests::process::{run, words};
use tests::setup::{monobloc_program, tools, workspace};

const LONG: Duration = Duration::from_secs(600);

/// Runs the `monobloc` command.
fn monobloc(line: &str) -> Outcome {
    run(LONG, monobloc_program(), words(line), &[], b"")
}

#[track_caller]
fn tool(line: &str) -> String {
    tools();
    let words = words(line);
    run(LONG, &words[0], &words[1..], &[], b"").ok()
}

/// The quickstart recipe with a part of its text replaced, in a folder of its own.
fn changed(from: &str, to: &str) -> (tempfile::TempDir, PathBuf) {
    let text = fs::read_to_string(workspace().join("images/quickstart.toml")).unwrap();
    assert!(text.contains(from), "the recipe has no {from:?}");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("changed.toml");
    fs::write(&path, text.replacen(from, to, 1)).unwrap();
    (folder, path)
}

/// Builds a recipe that must be refused; nothing may be left of it.
#[track_caller]
fn refused(recipe: &Path) -> String {
    let output = recipe.with_file_name("out.efi");
    let said = monobloc(&format!("build {} -o {}", recipe.display(), output.display())).failed();
    let left = fs::read_dir(recipe.parent().unwrap()).unwrap().count();
    assert_eq!(left, 1, "something half-made is left beside the recipe");
    assert!(!said.contains("panicked"), "{said}");
    said
}

#[test]
fn two_builds_are_the_same_byte_for_byte() {
    let folder = tempfile::tempdir().unwrap();
    let build = |name: &str| {
        let file = folder.path().join(name);
        let cache = folder.path().join(format!("cache-{name}"));
        let words = [
            "build".into(),
            workspace().join("images/quickstart.toml").into_os_string(),
            "-o".into(),
            file.clone().into_os_string(),
        ];
        let environment: &[(&str, &OsStr)] = &[("XDG_CACHE_HOME", cache.as_ref())];
        run(LONG, monobloc_program(), words, environment, b"").ok();
        fs::read(file).unwrap()
    };
    assert!(build("one.efi") == build("two.efi"), "the two differ");
}

#[test]
fn the_single_file_is_a_pe_that_other_programs_read() {
    let image = built(Kind::Quickstart).unwrap();
    let efi = image.efi.as_ref().unwrap();
    let sections = tool(&format!("objdump -h {}", efi.display()));
    for section in [".linux", ".initrd", ".cmdline", ".osrel", ".uname"] {
        assert!(sections.contains(section), "{section} is not in:\n{sections}");
    }
    let folder = tempfile::tempdir().unwrap();
    for (section, expected) in [(".linux", &image.vmlinuz), (".initrd", &image.initrd)] {
        let out = folder.path().join(section);
        tool(&format!(
            "objcopy --dump-section {section}={} {} {}",
            out.display(),
            efi.display(),
            folder.path().join("rest").display()
        ));
        let (read, expected) = (fs::read(out).unwrap(), fs::read(expected).unwrap());
        assert!(
            read.get(..expected.len()) == Some(&expected[..]),
            "{section} is not the file of the direct boot"
        );
    }
    // Unsigned, but well-formed enough to be asked.
    let said = run(LONG, "sbverify", ["--list".as_ref(), efi.as_os_str()], &[], b"");
    assert!(format!("{said}").contains("No signature table present"), "{said}");
}

#[test]
fn the_initramfs_is_an_archive_that_cpio_lists() {
    let image = built(Kind::Quickstart).unwrap();
    let listed = tool(&format!(
        "sh -c 'zstd -dc {0} 2>/dev/null | cpio -itv --quiet || cpio -itv --quiet < {0}'",
        image.initrd.display()
    ));
    for name in ["init", "etc/monobloc/boot.json", "lib/modules/index.json"] {
        let line = listed.lines().find(|line| line.ends_with(&format!(" {name}")));
        let line = line.unwrap_or_else(|| panic!("{name} is not in:\n{listed}"));
        assert!(line.contains("root"), "{line}");
    }
}

#[test]
fn the_init_is_static() {
    let image = built(Kind::Quickstart).unwrap();
    let folder = tempfile::tempdir().unwrap();
    tool(&format!(
        "sh -c 'cd {} && zstd -dc {} | cpio -i --quiet init'",
        folder.path().display(),
        image.initrd.display()
    ));
    let headers = tool(&format!("readelf -ld {}", folder.path().join("init").display()));
    assert!(
        !headers.contains("INTERP") && !headers.contains("NEEDED"),
        "{headers}"
    );
}

#[test]
fn the_manifest_names_every_input_with_its_digest() {
    let image = built(Kind::Quickstart).unwrap();
    let manifest = fs::read_to_string(&image.manifest).unwrap();
    for input in ["linux-image-6.12", "busybox-static", "systemd-boot-efi", "sha256"] {
        assert!(manifest.contains(input), "{input} is not in:\n{manifest}");
    }
}

#[test]
fn inspect_tells_what_is_in_a_file() {
    let image = built(Kind::Quickstart).unwrap();
    let told = monobloc(&format!(
        "inspect --json {}",
        image.efi.as_ref().unwrap().display()
    ))
    .ok();
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    let text = told.to_string();
    assert!(
        text.contains(image.cmdline.trim()) && text.contains("overlay") && text.contains("6.12"),
        "{text}"
    );
}

#[test]
fn an_inspected_file_that_is_no_image_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let whole = fs::read(built(Kind::Quickstart).unwrap().efi.as_ref().unwrap()).unwrap();
    for (name, bytes) in [
        ("text", &b"hello"[..]),
        ("empty", b""),
        ("truncated", &whole[..whole.len() / 2]),
    ] {
        let file = folder.path().join(name);
        fs::write(&file, bytes).unwrap();
        let said = monobloc(&format!("inspect {}", file.display())).failed();
        assert!(
            said.contains(name) && !said.contains("panicked"),
            "{name}: {said}"
        );
    }
}

#[test]
fn a_mistake_in_a_recipe_is_told_with_its_line() {
    let (_folder, recipe) = changed("[kernel]", "[kernle]");
    let said = refused(&recipe);
    assert!(
        said.contains("changed.toml:") && said.contains("kernle") && said.contains("kernel"),
        "{said}"
    );
}

#[test]
fn a_package_that_does_not_exist_is_named() {
    let (_folder, recipe) = changed("\"busybox-static\"", "\"no-such-package-anywhere\"");
    let said = refused(&recipe);
    assert!(said.contains("no-such-package-anywhere"), "{said}");
}

#[test]
fn a_recipe_that_is_not_there_is_named() {
    let said = monobloc("build /nowhere/x.toml -o /nowhere/x.efi").failed();
    assert!(said.contains("/nowhere/x.toml"), "{said}");
}
