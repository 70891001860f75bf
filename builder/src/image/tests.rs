//! Whole builds. They need Debian's archive the first time; what was fetched is kept in the usual
//! cache folder.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::*;
use crate::inspect::inspect;
use crate::progress::Silent;

/// Packages are fetched once for all tests, into the cache that `monobloc` itself uses.
fn shared_cache() -> Cache {
    Cache::open(&BuildOptions::from_environment().unwrap().cache).unwrap()
}

/// A static program to stand for `/init`, which would take minutes to build.
fn some_init() -> PathBuf {
    let cache = shared_cache();
    let archive = Archive::new(&cache, &Silent);
    let packages = archive.resolve(&Wanted::only(&["busybox-static"])).unwrap();
    let debs = archive.fetch(&packages).unwrap();
    let dir = cache
        .folder("test-init", &key(&packages).unwrap(), |dir| {
            debian::unpack(&debs[0], dir, |name| name.ends_with("bin/busybox"))
        })
        .unwrap();
    [dir.join("bin/busybox"), dir.join("usr/bin/busybox")]
        .into_iter()
        .find(|path| path.is_file())
        .unwrap()
}

fn options() -> BuildOptions {
    BuildOptions {
        init: Some(some_init()),
        ..BuildOptions::from_environment().unwrap()
    }
}

/// A recipe beside nothing: weak compression, since these images only have to be right.
fn recipe(dir: &Path, more: &str) -> Recipe {
    let text = format!(
        "name = \"t\"\n[kernel]\nprovider = \"debian\"\npackage = \"linux-image-6.12-cloud-amd64\"\n\
         command-line = \"console=ttyS0 quiet\"\n[modules]\nalways = [\"btrfs\", \"overlay\"]\n\
         by-device = [\"virtio_net\", \"virtio_rng\"]\n[initramfs]\nlevel = 1\n{more}"
    );
    let path = dir.join("t.toml");
    fs::write(&path, text).unwrap();
    Recipe::load(&path).unwrap()
}

const BUSYBOX: &str = "[[image]]\nreference = \"busybox\"\n\
    source.packages = { names = [\"busybox-static\"], applets = \"/bin/busybox\" }\nconfig = { cmd = [\"sh\"] }\n";

/// A cache that has the fetched packages of the shared one but nothing made from them.
fn fresh_cache(dir: &Path) -> PathBuf {
    let shared = BuildOptions::from_environment().unwrap().cache;
    let own = dir.join("cache");
    fs::create_dir_all(&own).unwrap();
    for kind in ["debs", "apt"] {
        std::os::unix::fs::symlink(shared.join(kind), own.join(kind)).unwrap();
    }
    own
}

#[test]
fn two_builds_of_the_same_inputs_are_byte_identical() {
    let built: Vec<_> = (0..2)
        .map(|_| {
            let dir = tempfile::tempdir().unwrap();
            let options = options();
            let options = BuildOptions {
                cache: fresh_cache(dir.path()),
                ..options
            };
            let image = build(&recipe(dir.path(), BUSYBOX), &options, &Silent).unwrap();
            assert!(!image.cached);
            let files = [
                &image.vmlinuz,
                &image.initrd,
                image.efi.as_ref().unwrap(),
                &image.manifest,
            ];
            files.map(|file| {
                (
                    file.file_name().unwrap().to_owned(),
                    sha256_of_file(file).unwrap(),
                )
            })
        })
        .collect();
    assert_eq!(built[0], built[1]);
}

#[test]
fn a_second_build_finds_everything_made_and_a_change_makes_it_anew() {
    let dir = tempfile::tempdir().unwrap();
    let (options, first) = (options(), recipe(dir.path(), BUSYBOX));
    let made = build(&first, &options, &Silent).unwrap();
    let again = build(&first, &options, &Silent).unwrap();
    assert!(again.cached && again.dir == made.dir);

    let commented = recipe(dir.path(), &format!("# Only a comment.\n{BUSYBOX}"));
    assert_eq!(build(&commented, &options, &Silent).unwrap().dir, made.dir);
    let qemu = recipe(dir.path(), &format!("{BUSYBOX}[qemu]\nmemory = \"3G\"\n"));
    assert_eq!(
        build(&qemu, &options, &Silent).unwrap().dir,
        made.dir,
        "how it is run is not in it"
    );
    let pool = recipe(dir.path(), &format!("{BUSYBOX}[pool]\npolicy = \"memory\"\n"));
    assert_ne!(build(&pool, &options, &Silent).unwrap().dir, made.dir);
}

#[test]
fn inspect_tells_what_the_recipe_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let more = format!(
        "[registry]\ninsecure = [\"10.0.2.2\"]\n{BUSYBOX}[[zone]]\nname = \"z\"\nimage = \"busybox\"\nports = [\"80:8080\"]\n"
    );
    let image = build(&recipe(dir.path(), &more), &options(), &Silent).unwrap();
    let found = inspect(image.efi.as_ref().unwrap()).unwrap();
    assert_eq!(found.command_line.as_deref(), Some("console=ttyS0 quiet"));
    assert!(found.release.as_ref().unwrap().starts_with("6.12."));
    assert!(found.init.is_static);
    assert_eq!(found.boot.load_modules, ["btrfs", "overlay"]);
    assert_eq!(found.boot.registry.insecure, ["10.0.2.2"]);
    assert_eq!(found.boot.zones[0].ports[0].host, 80);
    assert_eq!(found.boot.images[0].reference, "busybox:latest");
    assert!(
        found.modules.modules["btrfs"]
            .depends
            .contains(&"raid6_pq".to_owned())
    );
    assert!(
        found.modules.modules["virtio_net"]
            .aliases
            .iter()
            .any(|alias| alias.starts_with("virtio:"))
    );
    assert!(found.images["0.tar"] > 1 << 20);
    let inputs = found.inputs.unwrap();
    assert!(
        matches!(&inputs.images[0].inputs, oci::Inputs::Packages(list) if list[0].name == "busybox-static")
    );
    assert_eq!(inputs.kernel.package.sha256.len(), 64);

    let folder = inspect(&image.dir).unwrap();
    assert_eq!(folder.kernel, found.kernel);
    assert_eq!(folder.initrd, found.initrd);
    let manifest: Manifest = serde_json::from_slice(&fs::read(&image.manifest).unwrap()).unwrap();
    assert_eq!(manifest.outputs["initrd"], found.initrd);
    let text = fs::read_to_string(&image.manifest).unwrap();
    assert!(!text.contains(env!("CARGO_MANIFEST_DIR")) && !text.contains(dir.path().to_str().unwrap()));
}

#[test]
fn objdump_and_sbverify_read_the_uefi_image() {
    tools::need(&["binutils", "sbsigntool"]);
    let dir = tempfile::tempdir().unwrap();
    let image = build(&recipe(dir.path(), ""), &options(), &Silent).unwrap();
    let efi = image.efi.unwrap();
    let run = |program: &str, args: &[&str], package: &str| {
        let output = Command::new(program).args(args).arg(&efi).output();
        let output = output
            .unwrap_or_else(|error| panic!("This test needs {program} (Debian package {package}): {error}"));
        assert!(output.status.success() || program == "sbverify", "{output:?}");
        format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        )
    };
    let table = run("objdump", &["-h"], "binutils");
    for (name, file) in [(".linux", &image.vmlinuz), (".initrd", &image.initrd)] {
        let line = table
            .lines()
            .find(|line| line.split_whitespace().nth(1) == Some(name))
            .unwrap();
        let size = u64::from_str_radix(line.split_whitespace().nth(2).unwrap(), 16).unwrap();
        assert_eq!(size, fs::metadata(file).unwrap().len(), "{line}");
    }
    // What objcopy takes out again is what was put in.
    let out = dir.path().join("linux");
    let dump = Command::new("objcopy")
        .arg("-O")
        .arg("binary")
        .arg("--only-section=.linux")
        .arg(&efi)
        .arg(&out)
        .output();
    assert!(dump.unwrap().status.success());
    assert_eq!(
        sha256_of_file(&out).unwrap(),
        sha256_of_file(&image.vmlinuz).unwrap()
    );
    assert!(run("sbverify", &["--list"], "sbsigntool").contains("No signature table present"));
}

#[test]
fn sections_do_not_overlap_in_file_or_memory() {
    let dir = tempfile::tempdir().unwrap();
    let image = build(&recipe(dir.path(), ""), &options(), &Silent).unwrap();
    let bytes = fs::read(image.efi.unwrap()).unwrap();
    let pe = goblin::pe::PE::parse(&bytes).unwrap();
    let header = pe.header.optional_header.unwrap().windows_fields;
    let ends = |at: u32, size: u32| u64::from(at) + u64::from(size);
    for pair in pe.sections.windows(2) {
        assert!(ends(pair[0].virtual_address, pair[0].virtual_size) <= u64::from(pair[1].virtual_address));
        assert!(
            ends(pair[0].pointer_to_raw_data, pair[0].size_of_raw_data)
                <= u64::from(pair[1].pointer_to_raw_data)
        );
    }
    let last = pe.sections.last().unwrap();
    assert!(u64::from(header.size_of_image) >= ends(last.virtual_address, last.virtual_size));
    assert_eq!(
        ends(last.pointer_to_raw_data, last.size_of_raw_data),
        bytes.len() as u64
    );
}

#[test]
fn a_module_or_package_that_is_not_there_is_an_error_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let absent = recipe(
        dir.path(),
        "[[image]]\nreference = \"x\"\nsource.packages = { names = [\"no-such-package-here\"] }\n",
    );
    let error = format!("{:#}", build(&absent, &options(), &Silent).unwrap_err());
    assert!(
        error.contains("no package no-such-package-here") && error.contains("image x:latest"),
        "{error}"
    );

    let mut module = recipe(dir.path(), "");
    let text = fs::read_to_string(dir.path().join("t.toml"))
        .unwrap()
        .replace("virtio_rng", "virtio_nett");
    fs::write(dir.path().join("t.toml"), text).unwrap();
    module = Recipe::load(&dir.path().join("t.toml")).unwrap_or(module);
    let error = format!("{:#}", build(&module, &options(), &Silent).unwrap_err());
    assert!(
        error.contains("no module virtio_nett (but virtio_net)"),
        "{error}"
    );
}

#[test]
fn a_kernel_that_lacks_a_required_option_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(
        dir.path().join("mine.config"),
        "CONFIG_USER_NS=y\nCONFIG_BTRFS_FS=y\nCONFIG_NO_SUCH=m\n",
    )
    .unwrap();
    let text = "name = \"t\"\n[kernel]\nprovider = \"debian\"\npackage = \"linux-image-6.12-cloud-amd64\"\n\
                command-line = \"\"\nrequired-config = \"mine.config\"\n";
    fs::write(dir.path().join("t.toml"), text).unwrap();
    let recipe = Recipe::load(&dir.path().join("t.toml")).unwrap();
    let error = format!("{:#}", build(&recipe, &options(), &Silent).unwrap_err());
    assert!(
        error.contains("CONFIG_BTRFS_FS=y, CONFIG_NO_SUCH=y or =m"),
        "{error}"
    );
}

#[test]
fn modules_keep_their_signatures_unless_the_recipe_says_otherwise() {
    let dir = tempfile::tempdir().unwrap();
    let magic = b"~Module signature appended~\n";
    for (more, kept) in [
        ("", true),
        ("[modules]\nalways = [\"loop\"]\nsignatures = false\n", false),
    ] {
        let path = dir.path().join("t.toml");
        let always = if more.is_empty() {
            "[modules]\nalways = [\"loop\"]\n"
        } else {
            more
        };
        let text = format!(
            "name = \"t\"\n[kernel]\nprovider = \"debian\"\npackage = \"linux-image-6.12-cloud-amd64\"\n\
             command-line = \"\"\n{always}[output]\nefi = false\n"
        );
        fs::write(&path, text).unwrap();
        let image = build(&Recipe::load(&path).unwrap(), &options(), &Silent).unwrap();
        assert!(image.efi.is_none());
        let packed = fs::read(image.initrd).unwrap();
        let entries =
            crate::initramfs::read::entries(&crate::initramfs::read::decompress(&packed).unwrap()).unwrap();
        assert_eq!(entries["lib/modules/loop.ko"].ends_with(magic), kept);
    }
}

#[test]
fn an_init_that_is_not_static_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let options = BuildOptions {
        init: Some("/bin/bash".into()),
        ..options()
    };
    let error = build(&recipe(dir.path(), ""), &options, &Silent)
        .unwrap_err()
        .to_string();
    assert!(error.contains("dynamic loader"), "{error}");
}

#[test]
fn the_projects_own_recipes_are_valid() {
    let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("../images");
    for name in ["quickstart", "web"] {
        let recipe = Recipe::load(&images.join(format!("{name}.toml"))).unwrap();
        assert_eq!(recipe.name.as_str(), name);
    }
}
