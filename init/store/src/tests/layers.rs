//! Layers: what is placed, and what is refused.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt};

use tar::EntryType;

use super::{add, config, count};
use crate::mkfs::LAYER_INODES;
use crate::testing::{TarMaker, TestPool, output};
use crate::{ChainId, Digest, Error, Store};

const POOL: u64 = 256 << 20;

fn ingest(store: &Store, tar: &[u8]) -> crate::Result<ChainId> {
    Ok(store.ingest_layer(None, &Digest::of(tar), tar)?.chain_id)
}

/// The layer's archive as the store makes it again.
fn packed(store: &Store, chain: &ChainId) -> Vec<u8> {
    let mut tar = Vec::new();
    store.pack_layer(chain, &mut tar).unwrap();
    assert_eq!(store.layer_tar_bytes(chain).unwrap(), tar.len() as u64);
    tar
}

#[test]
fn an_archive_that_names_a_file_twice_cannot_be_made_again_and_a_damaged_one_is_told() {
    let pool = TestPool::new(POOL);
    let store = pool.store();
    for twice in [
        TarMaker::default().file("a", b"one").file("a", b"two").finish(),
        TarMaker::default()
            .file("a/b", b"one")
            .symlink("a", "elsewhere")
            .finish(),
    ] {
        let chain = ingest(&store, &twice).unwrap();
        let refusal = store.pack_layer(&chain, &mut Vec::new()).unwrap_err().to_string();
        assert!(refusal.contains("names a file twice"), "{refusal}");
    }
    // Trailing bytes, a whiteout with content and a link to what is below belong to it.
    let below = TarMaker::default().file("dir/old", b"old").finish();
    let parent = ingest(&store, &below).unwrap();
    let mut tar = TarMaker::default()
        .file("dir/.wh.old", b"why")
        .hardlink("dir/twin", "dir/new")
        .finish();
    tar.splice(..0, TarMaker::default().file("dir/new", &[7; 200_000]).entries());
    tar.resize(tar.len() + 10_000, 3);
    let layer = store.ingest_layer(Some(&parent), &Digest::of(&tar), tar.as_slice());
    let chain = layer.unwrap().chain_id;
    assert!(packed(&store, &chain) == tar);

    // What another key makes of the content has another digest.
    let place = tree(&store, &chain);
    sys::btrfs::set_read_only(fs::File::open(&place).unwrap(), false).unwrap();
    let mut file = fs::File::options()
        .write(true)
        .open(place.join("dir/new"))
        .unwrap();
    file.write_all(b"changed").unwrap();
    drop(file);
    assert!(matches!(
        store.pack_layer(&chain, &mut Vec::new()),
        Err(Error::WrongDigest { .. })
    ));
    let recipes = || fs::read_dir(pool.path().join("store/recipes")).unwrap().count();
    assert_eq!(recipes(), 2);
    drop(store);
    // None of these layers has an image.
    let store = pool.store();
    assert_eq!(recipes(), 0);
    drop(store);
}

fn tree(store: &Store, chain: &ChainId) -> std::path::PathBuf {
    store.path().join("store/layers").join(chain.hex())
}

#[test]
fn a_layer_holds_what_its_tar_says() {
    let pool = TestPool::new(POOL);
    let store = pool.store();
    let tar = TarMaker::default()
        .dir("./")
        .dir("bin/")
        .file("bin/tool", b"content")
        .file("deep/below/missing/folders", b"x")
        .symlink("link", "/bin/tool")
        .hardlink("bin/same", "bin/tool")
        .entry(EntryType::Fifo, "pipe", "", b"")
        .finish();
    let tree = tree(&store, &ingest(&store, &tar).unwrap());
    assert_eq!(fs::read(tree.join("bin/tool")).unwrap(), b"content");
    assert_eq!(
        fs::read_link(tree.join("link")).unwrap().to_str(),
        Some("/bin/tool")
    );
    let meta = fs::metadata(tree.join("bin/same")).unwrap();
    assert_eq!(
        (meta.nlink(), meta.mtime(), meta.permissions().mode() & 0o7777),
        (2, 1_700_000_000, 0o644)
    );
    assert_eq!(fs::metadata(tree.join("bin")).unwrap().mtime(), 1_700_000_000);
    assert!(fs::metadata(tree.join("pipe")).unwrap().file_type().is_fifo());
    assert_eq!(
        fs::read_dir(&tree).unwrap().count(),
        4,
        "something else is in the layer"
    );
    assert!(meta.ino() > LAYER_INODES);
    assert_eq!(
        fs::write(tree.join("new"), "").unwrap_err().kind(),
        std::io::ErrorKind::ReadOnlyFilesystem
    );
    assert_eq!(count(&store, "tmp"), 0);
}

#[test]
fn compressed_layers_are_told_by_their_first_bytes() {
    let pool = TestPool::new(POOL);
    let store = pool.store();
    let tar = |name: &str| TarMaker::default().file(name, &[7; 100_000]).finish();
    let (gzipped, zstandard) = (tar("gzip"), tar("zstd"));
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&gzipped).unwrap();
    let stream = encoder.finish().unwrap();
    store
        .ingest_layer(None, &Digest::of(&gzipped), stream.as_slice())
        .unwrap();
    let stream = zstd::encode_all(zstandard.as_slice(), 1).unwrap();
    store
        .ingest_layer(None, &Digest::of(&zstandard), stream.as_slice())
        .unwrap();
    let refused = store.ingest_layer(None, &Digest::of(b""), b"\xfd7zXZ\0more".as_slice());
    assert!(refused.unwrap_err().to_string().contains("xz"));
}

#[test]
fn upper_layers_replace_and_hide_what_is_below_them() {
    let pool = TestPool::new(POOL);
    let store = pool.store();
    let below = TarMaker::default()
        .file("kept", b"1")
        .file("hidden", b"1")
        .file("changed", b"1")
        .file("opaque/old", b"1")
        .file("tree/a/b", b"1")
        .finish();
    let above = TarMaker::default()
        .file(".wh.hidden", b"")
        .file("changed", b"2")
        .file("opaque/new", b"2")
        .file("opaque/.wh..wh..opq", b"")
        .file(".wh.tree", b"")
        .file(".wh.never-there", b"")
        .file(".wh..wh.plnk", b"")
        .finish();
    let image = add(&store, &[&below, &above], "a");
    let top = tree(&store, image.layers.last().unwrap());
    let names = |path: &std::path::Path| {
        let mut names: Vec<String> = fs::read_dir(path)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    assert_eq!(names(&top), ["changed", "kept", "opaque"]);
    assert_eq!(names(&top.join("opaque")), ["new"]);
    assert_eq!(fs::read(top.join("changed")).unwrap(), b"2");
    assert_eq!(
        fs::read(tree(&store, &image.layers[0]).join("changed")).unwrap(),
        b"1"
    );
    assert_eq!(image.size, 7);
}

#[test]
fn hostile_entries_are_refused_by_name_and_leave_nothing() {
    let pool = TestPool::new(POOL);
    let store = pool.store();
    let new = TarMaker::default;
    let table: [(&str, Vec<u8>, &str); 12] = [
        ("../out", new().file("../out", b"x").finish(), "`..`"),
        ("a/../../out", new().file("a/../../out", b"x").finish(), "`..`"),
        ("/etc/out", new().file("/etc/out", b"x").finish(), "absolute"),
        (
            "link/out",
            new()
                .symlink("link", "../../../..")
                .file("link/out", b"x")
                .finish(),
            "leads out",
        ),
        (
            "link/out",
            new().symlink("link", "/etc").file("link/out", b"x").finish(),
            "through the link",
        ),
        (
            "b/out",
            new()
                .dir("d")
                .symlink("d/a", "../..")
                .symlink("b", "d/a")
                .file("b/out", b"x")
                .finish(),
            "leads out",
        ),
        (
            "loop/x",
            new().symlink("loop", "loop").file("loop/x", b"").finish(),
            "loop",
        ),
        (
            "hard",
            new().hardlink("hard", "../../etc/passwd").finish(),
            "`..`",
        ),
        ("hard", new().hardlink("hard", "/etc/passwd").finish(), "absolute"),
        (
            "hard",
            new()
                .symlink("l", "../../etc")
                .hardlink("hard", "l/passwd")
                .finish(),
            "leads out",
        ),
        (
            "hard",
            new().hardlink("hard", "not-there").finish(),
            "not in the image",
        ),
        (
            "f/x",
            new().file("f", b"x").file("f/x", b"x").finish(),
            "Not a directory",
        ),
    ];
    for (entry, tar, reason) in table {
        let error = ingest(&store, &tar).unwrap_err().to_string();
        assert!(
            error.contains(&format!("`{entry}`")) && error.contains(reason),
            "{entry}: {error}"
        );
        assert_eq!(
            (count(&store, "tmp"), count(&store, "layers")),
            (0, 0),
            "{entry} left something"
        );
    }
    assert!(!std::path::Path::new("/etc/out").exists());
}

#[test]
fn links_that_stay_in_the_image_are_followed() {
    let pool = TestPool::new(POOL);
    let store = pool.store();
    let below = TarMaker::default()
        .dir("usr/lib")
        .symlink("lib", "usr/lib")
        .dir("run")
        .dir("var")
        .symlink("var/run", "/run")
        .finish();
    let above = TarMaker::default()
        .file("lib/a.so", b"x")
        .file("var/run/pid", b"x")
        .symlink("up", "usr/../usr/lib")
        .file("up/b.so", b"x")
        .hardlink("c.so", "lib/a.so")
        .finish();
    let image = add(&store, &[&below, &above], "a");
    let top = tree(&store, image.layers.last().unwrap());
    for name in ["usr/lib/a.so", "run/pid", "usr/lib/b.so", "c.so"] {
        assert_eq!(fs::read(top.join(name)).unwrap(), b"x", "{name}");
    }
    assert!(fs::symlink_metadata(top.join("lib")).unwrap().is_symlink());
}

#[test]
fn a_layer_with_another_digest_is_refused() {
    let pool = TestPool::new(POOL);
    let store = pool.store();
    let tar = TarMaker::default().file("a", b"x").finish();
    let error = store
        .ingest_layer(None, &Digest::of(b"else"), tar.as_slice())
        .unwrap_err();
    assert!(matches!(error, Error::WrongDigest { .. }));
    assert_eq!((count(&store, "tmp"), count(&store, "layers")), (0, 0));
}

#[test]
fn a_truncated_layer_is_refused_at_any_length() {
    let pool = TestPool::new(POOL);
    let store = pool.store();
    let tar = TarMaker::default().file("a", &[1; 3000]).finish();
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&tar).unwrap();
    let gzipped = encoder.finish().unwrap();
    for (stream, end) in [
        (&tar, 100),
        (&tar, 600),
        (&tar, 3600),
        (&gzipped, 5),
        (&gzipped, gzipped.len() - 4),
    ] {
        let error = store
            .ingest_layer(None, &Digest::of(&tar), &stream[..end])
            .unwrap_err();
        assert!(error.is_bad_input(), "cut at {end}: {error}");
        assert_eq!(
            (count(&store, "tmp"), count(&store, "layers")),
            (0, 0),
            "cut at {end}"
        );
    }
}

#[test]
fn a_full_pool_is_said_to_be_full_and_has_its_space_back() {
    let mut pool = TestPool::new(128 << 20);
    let store = pool.store();
    let size = 256u64 << 20;
    let mut header = tar::Header::new_gnu();
    header.set_path("huge").unwrap();
    header.set_size(size);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_cksum();
    // Data that no compression makes small.
    let mut state = 1u64;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    })
    .take(1 << 20)
    .collect();
    let stream = header.as_bytes().chain(Repeated { noise, at: 0 }.take(size));
    let error = store.ingest_layer(None, &Digest::of(b""), stream).unwrap_err();
    assert!(matches!(error, Error::Full { .. }), "{error}");
    assert!(error.to_string().contains("`huge`"), "{error}");
    assert_eq!((count(&store, "tmp"), count(&store, "layers")), (0, 0));
    drop(store);
    pool.unmount();
    pool.mount();
    let mut freed = std::process::Command::new("btrfs");
    assert!(
        output(freed.args(["subvolume", "sync"]).arg(pool.path()))
            .status
            .success()
    );
    let store = pool.store();
    add(
        &store,
        &[&TarMaker::default().file("small", &[1; 4 << 20]).finish()],
        "a",
    );
}

struct Repeated {
    noise: Vec<u8>,
    at: usize,
}

impl Read for Repeated {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let rest = &self.noise[self.at..];
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        self.at = (self.at + count) % self.noise.len();
        Ok(count)
    }
}

#[test]
fn what_was_interrupted_is_collected_when_the_store_is_opened() {
    let pool = TestPool::new(POOL);
    let tar = TarMaker::default().file("a", b"x").finish();
    {
        let store = pool.store();
        // A layer in its place without a record is what a power cut leaves of a pull.
        ingest(&store, &tar).unwrap();
        sys::btrfs::create_subvolume(&store.tmp, "layer-7").unwrap();
        fs::write(pool.path().join("store/tmp/file"), "x").unwrap();
        fs::create_dir(pool.path().join("store/tmp/folder")).unwrap();
        assert_eq!((count(&store, "tmp"), count(&store, "layers")), (3, 1));
    }
    let store = pool.store();
    assert_eq!((count(&store, "tmp"), count(&store, "layers")), (0, 0));
    assert!(matches!(
        store.add_image(&config(&[&tar]), None),
        Err(Error::MissingLayer { .. })
    ));
}

#[test]
fn an_empty_base_layer_keeps_the_inode_numbers_high() {
    let pool = TestPool::new(POOL);
    let store = pool.store();
    let image = add(
        &store,
        &[
            &TarMaker::default().finish(),
            &TarMaker::default().file("a", b"x").finish(),
        ],
        "a",
    );
    let file = tree(&store, image.layers.last().unwrap()).join("a");
    assert!(fs::metadata(file).unwrap().ino() > LAYER_INODES);
}

/// A tree as GNU tar writes it, in one of its forms.
fn tarred(tree: &std::path::Path, form: &[&str]) -> Vec<u8> {
    let tar = crate::testing::output(
        std::process::Command::new("tar")
            .args(form)
            .args(["--sort=name", "--numeric-owner", "-C"])
            .arg(tree)
            .args(["-c", "."]),
    );
    assert!(tar.stdout.len() > 10_000, "{tar:?}");
    tar.stdout
}

#[test]
fn a_layer_is_what_tar_has_written_in_each_of_its_forms() {
    let pool = TestPool::new(POOL);
    let store = pool.store();
    let source = tempfile::tempdir_in(pool.path()).unwrap();
    super::transfers::fill(source.path());
    // Layers have no folders of overlayfs, and the pool has no room for holes that tar writes.
    rustix::fs::removexattr(source.path().join("deep"), "trusted.overlay.opaque").unwrap();
    fs::remove_file(source.path().join("sparse")).unwrap();
    let long = source.path().join("n".repeat(200)).join("m".repeat(200));
    fs::create_dir_all(&long).unwrap();
    fs::write(long.join("file"), "far down").unwrap();
    std::os::unix::fs::symlink("t".repeat(1000), long.join("link")).unwrap();
    fs::hard_link(long.join("file"), long.join("twin")).unwrap();
    let pax = [
        "--format=posix",
        "--pax-option=exthdr.name=%d/%f,delete=atime,delete=ctime",
    ];
    let attributes = [
        "--xattrs",
        "--xattrs-include=user.*",
        "--xattrs-include=security.capability",
    ];
    for form in [&[&pax[..], &attributes].concat()[..], &["--format=gnu"]] {
        let tar = tarred(source.path(), form);
        let chain = ingest(&store, &tar).unwrap();
        let made = tarred(&tree(&store, &chain), form);
        assert!(made == tar, "{form:?}: {} and {} bytes", made.len(), tar.len());
        assert!(packed(&store, &chain) == tar, "{form:?}");
    }
}

#[test]
fn files_with_holes_are_taken_in_every_form_of_tar_and_keep_their_holes() {
    let pool = TestPool::new(POOL);
    let store = pool.store();
    let source = tempfile::tempdir_in(pool.path()).unwrap();
    let size: u64 = 3 << 30;
    let many = fs::File::create(source.path().join("many")).unwrap();
    many.set_len(size).unwrap();
    // More pieces than one header has room for, some at the very ends.
    for piece in 0..40 {
        many.write_all_at(&[piece as u8 + 1; 5000], piece * (64 << 20))
            .unwrap();
    }
    many.write_all_at(b"end", size - 3).unwrap();
    fs::File::create(source.path().join("nothing"))
        .unwrap()
        .set_len(1 << 20)
        .unwrap();
    fs::write(source.path().join("whole"), "without holes").unwrap();
    let (expected, _) = read(&source.path().join("many"));
    for form in [
        &["--format=gnu"][..],
        &["--format=posix", "--sparse-version=0.0"],
        &["--format=posix", "--sparse-version=0.1"],
        &["--format=posix", "--sparse-version=1.0"],
    ] {
        let tar = tarred(source.path(), &[&["--sparse"], form].concat());
        assert!(tar.len() < 2 << 20, "tar has written the holes");
        let chain = ingest(&store, &tar).unwrap();
        assert!(packed(&store, &chain) == tar, "{form:?}");
        let tree = tree(&store, &chain);
        let (content, blocks) = read(&tree.join("many"));
        assert!(content == expected, "{form:?}");
        assert!(blocks < 4 << 11, "{form:?}: the holes are gone, {blocks} sectors");
        let nothing = fs::metadata(tree.join("nothing")).unwrap();
        assert_eq!((nothing.len(), nothing.blocks()), (1 << 20, 0), "{form:?}");
        assert_eq!(
            fs::read_to_string(tree.join("whole")).unwrap(),
            "without holes",
            "{form:?}"
        );
        assert_eq!(fs::read_dir(&tree).unwrap().count(), 3, "{form:?}");
    }
}

/// The length of a file with holes, and its pieces with their places.
type Pieces = (u64, Vec<(u64, Vec<u8>)>);

/// What lies in the pieces of a file, and its sectors of 512 bytes.
fn read(path: &std::path::Path) -> (Pieces, u64) {
    use rustix::fs::{SeekFrom, seek};
    let file = fs::File::open(path).unwrap();
    let meta = file.metadata().unwrap();
    let (mut pieces, mut at) = (Vec::new(), 0);
    while let Ok(begin) = seek(&file, SeekFrom::Data(at)) {
        at = seek(&file, SeekFrom::Hole(begin)).unwrap();
        let mut content = vec![0; (at - begin) as usize];
        file.read_exact_at(&mut content, begin).unwrap();
        pieces.push((begin, content));
    }
    ((meta.len(), pieces), meta.blocks())
}
