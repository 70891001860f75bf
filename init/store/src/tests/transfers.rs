//! Snapshots sent from one pool to another: the same there, whole or as differences, cut off or damaged.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, symlink};
use std::path::Path;
use std::process::Command;

use sha2::{Digest as _, Sha256};

use super::{add, count};
use crate::snapshot::Of;
use crate::testing::{TarMaker, TestPool, UserNamespace, output};
use crate::{Error, Image, Label, Result, Sort, Store, transfer_id};

const POOL: u64 = 512 << 20;
const MIB: u64 = 1 << 20;
const ZONE: Of<'static> = Of::Zone("zone");
const DATA: Of<'static> = Of::Volume("data");

fn image(store: &Store) -> Image {
    add(
        store,
        &[&TarMaker::default().file("from-image", b"x").finish()],
        "a",
    )
}

fn sent(store: &Store, of: Of<'_>, snapshot: &str, from: Option<&str>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let about = serde_json::json!({"config": "any"});
    let sending = store.sending(of, snapshot, from, of.name(), about).unwrap();
    sending.write(0, &mut bytes).unwrap();
    bytes
}

/// A volume of all that there can be, as it is sent, and the transfer's id.
fn volume_sent(store: &Store) -> (Vec<u8>, String) {
    store.create_volume("data", None).unwrap();
    fill(&store.volume_path("data"));
    store.create_snapshot(DATA, "first").unwrap();
    let whole = sent(store, DATA, "first", None);
    let id = transfer_id(&label(&whole));
    (whole, id)
}

fn label(bytes: &[u8]) -> Vec<u8> {
    let length = u32::from_le_bytes(bytes[16..20].try_into().unwrap()) as usize;
    bytes[20..20 + length].to_vec()
}

/// Has a pool take in what was sent; gives what is said of it.
fn taken(store: &Store, bytes: &[u8], of: Of<'_>, limit: Option<u64>) -> Result<Label> {
    let id = transfer_id(&label(bytes));
    let mut incoming = store.receive(&id, 0)?;
    for part in bytes.chunks(100_000) {
        incoming.put(part)?;
    }
    drop(incoming);
    let arrived = store.arrived(&id, &mut |_, _| {})?;
    let label = arrived.label.clone();
    let placed = store.take_in(&arrived, of, limit, &mut |_, _| {});
    arrived.done()?;
    placed.map(|()| label)
}

/// All of a tree that a tar knows, as one; and how much of the disk each file takes.
fn image_of(tree: &Path) -> Vec<u8> {
    let tar = output(
        Command::new("tar")
            .args([
                "--format=posix",
                "--pax-option=exthdr.name=%d/%f,delete=atime,delete=ctime",
            ])
            .args([
                "--xattrs",
                "--xattrs-include=*",
                "--sort=name",
                "--numeric-owner",
                "-C",
            ])
            .arg(tree)
            .args(["-c", "."]),
    );
    assert!(!tar.stdout.is_empty(), "{tar:?}");
    let places = output(
        Command::new("find")
            .arg(tree)
            .args(["-type", "f", "-printf", "%P %b\n"]),
    );
    let mut lines: Vec<&[u8]> = places.stdout.split(|byte| *byte == b'\n').collect();
    lines.sort_unstable();
    [tar.stdout, lines.join(&b'\n')].concat()
}

#[track_caller]
fn assert_same(one: &Path, other: &Path) {
    let (one, other) = (image_of(one), image_of(other));
    assert!(
        one == other,
        "the trees differ: {} and {} bytes",
        one.len(),
        other.len()
    );
}

fn run(program: &str, args: &[&str], dir: &Path) {
    let done = output(Command::new(program).args(args).current_dir(dir));
    assert!(done.status.success(), "{program} {args:?}: {done:?}");
}

/// One of everything.
pub(super) fn fill(tree: &Path) {
    for (name, content) in [
        ("plain", "text"),
        ("with a space", ""),
        ("gone", "x"),
        ("grows", "begin"),
    ] {
        fs::write(tree.join(name), content).unwrap();
    }
    fs::write(tree.join(std::ffi::OsStr::from_bytes(b"no-\xff-text")), "x").unwrap();
    fs::write(tree.join("n".repeat(255)), "long").unwrap();
    fs::create_dir_all(tree.join("deep/er/still")).unwrap();
    fs::write(tree.join("deep/er/still/file"), vec![7; 3 * MIB as usize]).unwrap();
    fs::hard_link(tree.join("plain"), tree.join("deep/twin")).unwrap();
    symlink("../plain", tree.join("deep/link")).unwrap();
    symlink("/etc/shadow", tree.join("absolute")).unwrap();
    let sparse = File::create(tree.join("sparse")).unwrap();
    sparse.set_len(100 * MIB).unwrap();
    sparse.write_all_at(&[1; 4096], 50 * MIB).unwrap();
    run("mknod", &["whiteout", "c", "0", "0"], tree);
    run("mknod", &["device", "b", "259", "70000"], tree);
    run("mkfifo", &["pipe"], tree);
    run("cp", &["/bin/true", "program"], tree);
    run("chown", &["100000:3000000000", "program"], tree);
    run("chmod", &["6755", "program"], tree);
    run(
        "touch",
        &["-h", "-d", "2150-01-02 03:04:05.123456789", "absolute"],
        tree,
    );
    run("touch", &["-d", "1931-01-02", "deep/er"], tree);
    let capability = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    for (file, name, value) in [
        ("deep", "trusted.overlay.opaque", &b"y"[..]),
        ("plain", "user.note", b"kept"),
        ("program", "security.capability", capability),
    ] {
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(tree.join(file), name, value, flags).unwrap();
    }
}

/// What makes each kind of difference.
fn change(tree: &Path) {
    fs::remove_file(tree.join("gone")).unwrap();
    fs::rename(tree.join("plain"), tree.join("gone")).unwrap();
    fs::rename(tree.join("deep/er"), tree.join("moved")).unwrap();
    fs::create_dir(tree.join("deep/er")).unwrap();
    fs::write(tree.join("deep/er/new"), vec![3; 300_000]).unwrap();
    let mut grows = File::options().append(true).open(tree.join("grows")).unwrap();
    grows.write_all(&vec![9; 200_000]).unwrap();
    let file = File::options()
        .write(true)
        .open(tree.join("moved/still/file"))
        .unwrap();
    file.write_all_at(b"changed", 2 * MIB + 5).unwrap();
    file.set_len(2 * MIB + MIB / 2).unwrap();
    run("cp", &["--reflink=always", "moved/still/file", "copy"], tree);
    fs::remove_file(tree.join("whiteout")).unwrap();
    fs::create_dir(tree.join("whiteout")).unwrap();
    run("chown", &["-h", "5:6", "absolute"], tree);
    run("chmod", &["600", "program"], tree);
    rustix::fs::removexattr(tree.join("gone"), "user.note").unwrap();
}

#[test]
fn a_zone_is_the_same_elsewhere_and_so_is_what_becomes_of_it() {
    let (here, there) = (TestPool::new(POOL), TestPool::new(POOL));
    let (one, two) = (here.store(), there.store());
    let image = image(&one);
    one.create_root("zone", &image.id, None).unwrap();
    let upper = |pool: &TestPool| pool.path().join("store/roots/zone/upper");
    let kept = |pool: &TestPool, name: &str| pool.path().join("store/snapshots/zones/zone").join(name);
    fill(&upper(&here));
    one.create_snapshot(ZONE, "first").unwrap();
    let first = sent(&one, ZONE, "first", None);
    change(&upper(&here));
    one.create_snapshot(ZONE, "second").unwrap();
    let second = sent(&one, ZONE, "second", Some("first"));
    assert!(second.len() < first.len() / 3, "{} {}", first.len(), second.len());

    // Without its image it is nothing.
    let refused = taken(&two, &first, ZONE, None).unwrap_err();
    assert!(matches!(refused, Error::NoSuchImage { .. }), "{refused}");
    add(
        &two,
        &[&TarMaker::default().file("from-image", b"x").finish()],
        "a",
    );
    // Nor is the difference without what it is one to.
    assert!(taken(&two, &second, ZONE, None).unwrap_err().is_conflict());

    let told = taken(&two, &first, ZONE, None).unwrap();
    assert_eq!(
        (told.kind, told.name.as_str(), told.snapshot.as_str()),
        (Sort::Zone, "zone", "first")
    );
    assert_same(&kept(&here, "first"), &kept(&there, "first"));
    assert_same(&kept(&here, "first").join("upper"), &upper(&there));
    taken(&two, &second, ZONE, None).unwrap();
    assert_same(&kept(&here, "second"), &kept(&there, "second"));
    // The zone itself is left as it is until it is told otherwise.
    assert_same(&kept(&here, "first").join("upper"), &upper(&there));
    two.roll_back(ZONE, "second").unwrap();
    assert_same(&upper(&here), &upper(&there));
    let userns = UserNamespace::new(1_000_000);
    two.mount_root("zone", userns.fd.as_fd()).unwrap();
    assert_eq!((count(&two, "tmp"), count(&two, "incoming")), (0, 0));

    // What is made of it there comes back as a difference, and is not taken for what was sent.
    fs::write(upper(&there).join("there"), "made there").unwrap();
    two.create_snapshot(ZONE, "third").unwrap();
    assert!(
        taken(&two, &sent(&one, ZONE, "second", Some("first")), ZONE, None)
            .unwrap_err()
            .is_conflict()
    );
    taken(&one, &sent(&two, ZONE, "third", Some("second")), ZONE, None).unwrap();
    assert_same(&kept(&here, "third"), &kept(&there, "third"));
    assert_eq!(
        fs::read_to_string(kept(&here, "third").join("upper/there")).unwrap(),
        "made there"
    );
}

#[test]
fn what_a_volume_has_received_counts_for_its_limit() {
    let (here, there) = (TestPool::new(POOL), TestPool::new(POOL));
    let (one, two) = (here.store(), there.store());
    one.create_volume("data", None).unwrap();
    let path = one.volume_path("data");
    fill(&path);
    fs::write(path.join("big"), vec![5; 8 * MIB as usize]).unwrap();
    one.create_snapshot(DATA, "first").unwrap();
    fs::write(path.join("more"), vec![6; 4 * MIB as usize]).unwrap();
    one.create_snapshot(DATA, "second").unwrap();
    taken(&two, &sent(&one, DATA, "first", None), DATA, Some(20 * MIB)).unwrap();
    let held = || two.volume_held("data").unwrap().unwrap();
    assert!(
        held().limit == Some(20 * MIB) && held().used > 11 * MIB,
        "{:?}",
        held()
    );
    taken(&two, &sent(&one, DATA, "second", Some("first")), DATA, None).unwrap();
    assert!(
        held().limit == Some(20 * MIB) && held().used > 15 * MIB,
        "{:?}",
        held()
    );
    let mut file = File::create(two.volume_path("data").join("own")).unwrap();
    let refused = file
        .write_all(&vec![8; 6 * MIB as usize])
        .and_then(|()| file.sync_all());
    assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::QuotaExceeded);
    // It is there already.
    let again = taken(&two, &sent(&one, DATA, "first", None), DATA, None).unwrap_err();
    assert!(again.is_conflict(), "{again}");
    assert!(taken(&two, &sent(&one, DATA, "first", None), Of::Zone("data"), None).is_err());
    assert_eq!(count(&two, "tmp"), 0);
}

#[test]
fn what_is_cut_off_goes_on_where_it_was_after_a_boot_too_and_is_not_seen_before_it_is_whole() {
    let (here, mut there) = (TestPool::new(POOL), TestPool::new(POOL));
    let one = here.store();
    let (whole, id) = volume_sent(&one);
    let cuts = [
        0,
        10,
        1000,
        whole.len() / 2,
        whole.len() - 40,
        whole.len() - 1,
        whole.len(),
    ];
    for pair in cuts.windows(2) {
        {
            let two = there.store();
            let begin = two.received(&id).unwrap();
            assert_eq!(begin as usize, pair[0]);
            assert!(two.receive(&id, begin + 1).unwrap_err().is_conflict());
            let mut incoming = two.receive(&id, begin).unwrap();
            assert!(two.receive(&id, begin).unwrap_err().is_conflict(), "two at once");
            // The sender makes it anew, from there on.
            let mut rest = Vec::new();
            let about = serde_json::json!({"config": "any"});
            let sending = one.sending(DATA, "first", None, "data", about).unwrap();
            sending.write(begin, &mut rest).unwrap();
            assert!(rest == whole[pair[0]..]);
            incoming.put(&rest[..pair[1] - pair[0]]).unwrap();
            drop(incoming);
            if pair[1] < whole.len() {
                assert!(two.arrived(&id, &mut |_, _| {}).unwrap_err().is_bad_input());
                assert_eq!(two.transfers().unwrap(), [(id.clone(), pair[1] as u64)]);
            }
            assert!(two.snapshots(DATA).unwrap().is_empty() && !two.volume_path("data").exists());
        }
        there.unmount();
        there.mount();
    }
    let two = there.store();
    let arrived = two.arrived(&id, &mut |_, _| {}).unwrap();
    two.take_in(&arrived, DATA, None, &mut |_, _| {}).unwrap();
    arrived.done().unwrap();
    assert_same(&one.volume_path("data"), &two.volume_path("data"));
    two.forget_transfer(&id).unwrap();
    assert!(two.received("../../state").unwrap_err().is_bad_input());
}

/// As a power cut leaves it that came between the length and the bytes.
#[test]
fn what_is_not_on_the_disk_for_certain_is_sent_again() {
    let (here, mut there) = (TestPool::new(POOL), TestPool::new(POOL));
    let one = here.store();
    let (whole, id) = volume_sent(&one);
    let begun = whole.len() / 2;
    {
        let two = there.store();
        two.receive(&id, 0).unwrap().put(&whole[..begun]).unwrap();
        let path = two.path().join("store/incoming").join(&id);
        let file = fs::File::options().write(true).open(path).unwrap();
        file.set_len(begun as u64 + 100_000).unwrap();
    }
    there.unmount();
    there.mount();
    let two = there.store();
    assert_eq!(two.received(&id).unwrap(), begun as u64);
    let mut rest = two.receive(&id, begun as u64).unwrap();
    rest.put(&whole[begun..]).unwrap();
    drop(rest);
    let arrived = two.arrived(&id, &mut |_, _| {}).unwrap();
    two.take_in(&arrived, DATA, None, &mut |_, _| {}).unwrap();
    assert_same(&one.volume_path("data"), &two.volume_path("data"));
}

#[test]
fn what_was_damaged_on_the_way_is_refused_and_nothing_of_it_stays() {
    let (here, there) = (TestPool::new(POOL), TestPool::new(POOL));
    let (one, two) = (here.store(), there.store());
    one.create_volume("data", None).unwrap();
    fs::write(one.volume_path("data").join("file"), vec![5; 300_000]).unwrap();
    one.create_snapshot(DATA, "first").unwrap();
    let whole = sent(&one, DATA, "first", None);
    for at in [25, 2000, whole.len() / 2, whole.len() - 60, whole.len() - 1] {
        let mut damaged = whole.clone();
        damaged[at] ^= 1;
        let error = taken(&two, &damaged, DATA, None).unwrap_err();
        assert!(error.is_bad_input(), "{at}: {error}");
        assert!(two.snapshots(DATA).unwrap().is_empty() && !two.volume_path("data").exists());
        assert_eq!((count(&two, "tmp"), count(&two, "incoming")), (0, 0), "{at}");
    }
    taken(&two, &whole, DATA, None).unwrap();
}

/// A command's kind, and its attributes with theirs.
type Made<'a> = (u16, &'a [(u16, &'a [u8])]);

/// A stream of commands that a sender of bad faith makes up, with a right digest.
fn made_up(commands: &[Made<'_>]) -> Vec<u8> {
    let uuid = [7; 16];
    let label = Label {
        kind: Sort::Volume,
        name: "data".to_owned(),
        snapshot: "bad".to_owned(),
        uuid: "07".repeat(16),
        from: None,
        about: serde_json::Value::Null,
    };
    let label = serde_json::to_vec(&label).unwrap();
    let mut bytes = b"MONOBLOC SEND 1\n".to_vec();
    bytes.extend_from_slice(&(label.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&label);
    bytes.extend_from_slice(b"btrfs-stream\0\x01\0\0\0");
    let begin: Made<'_> = (1, &[(15, b"x"), (1, &uuid), (2, &[0; 8])]);
    for (kind, attributes) in [begin].iter().chain(commands) {
        let mut body = Vec::new();
        for (kind, value) in *attributes {
            body.extend_from_slice(&kind.to_le_bytes());
            body.extend_from_slice(&(value.len() as u16).to_le_bytes());
            body.extend_from_slice(value);
        }
        bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&kind.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&body);
    }
    let digest: [u8; 32] = Sha256::digest(&bytes).into();
    bytes.extend_from_slice(b"MONOBLOC SENT 1\n");
    bytes.extend_from_slice(&digest);
    bytes
}

#[test]
fn no_stream_reaches_what_is_outside_its_tree() {
    let pool = TestPool::new(POOL);
    let store = pool.store();
    let file: Made<'_> = (3, &[(15, b"file")]);
    let link: Made<'_> = (8, &[(15, b"link"), (17, b"../../layers")]);
    let zero = 0_u64.to_le_bytes();
    let mode = 0o777_u64.to_le_bytes();
    let write: Made<'_> = (15, &[(15, b"file"), (18, &zero), (19, b"x")]);
    let end: Made<'_> = (21, &[]);
    // The twin that is let through.
    taken(&store, &made_up(&[file, link, write, end]), DATA, None).unwrap();
    assert_eq!(fs::read(store.volume_path("data").join("file")).unwrap(), b"x");
    let other = Of::Volume("other");
    for bad in [
        (3, &[(15, &b"../escaped"[..])][..]),
        (3, &[(15, b"/escaped")]),
        (3, &[(15, b"link/escaped")]),
        (3, &[(15, b"..")]),
        (3, &[(15, b"")]),
        (15, &[(15, b"link/x"), (18, &zero), (19, b"x")]),
        (15, &[(15, b"link"), (18, &zero), (19, b"x")]),
        (18, &[(15, b"link"), (5, &mode)]),
        (18, &[(15, b"../tmp"), (5, &mode)]),
        (10, &[(15, b"mine"), (17, b"../../../state/images/x")]),
        (9, &[(15, b"file"), (16, b"../file")]),
        (12, &[(15, b"../../tmp")]),
        (
            13,
            &[(15, b"file"), (13, b"trusted.overlay.redirect"), (14, b"/")],
        ),
        (
            16,
            &[
                (15, b"file"),
                (18, &zero),
                (24, &mode),
                (20, &[9; 16]),
                (22, b"file"),
                (23, &zero),
            ],
        ),
        (7, &[]),
        (77, &[]),
        (21, &[(15, b"x")]),
    ] {
        let after = if bad.0 == 21 { file } else { end };
        let stream = made_up(&[file, link, bad, after]);
        let refused = taken(&store, &stream, other, None);
        assert!(refused.is_err(), "{bad:?}");
        assert!(!store.volume_path("other").exists() && store.snapshots(other).unwrap().is_empty());
        assert_eq!(count(&store, "tmp"), 0);
    }
    for place in ["store/tmp", "store", "", "volumes"] {
        assert!(!pool.path().join(place).join("escaped").exists());
    }
    assert_ne!(
        fs::metadata(pool.path().join("store/layers")).unwrap().mode() & 0o777,
        0o777
    );
}
