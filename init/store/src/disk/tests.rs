use super::*;

const SIZE: u64 = 256 << 20;

fn image(at: &[(u64, &[u8])]) -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(SIZE).unwrap();
    for (offset, bytes) in at {
        file.write_all_at(bytes, *offset).unwrap();
    }
    file
}

#[test]
fn a_disk_of_zeros_is_blank() {
    assert_eq!(inspect(&image(&[]), SIZE), Content::Blank);
}

#[test]
fn a_single_byte_at_either_end_makes_a_disk_foreign() {
    for offset in [0, 1, 511, EDGE - 1, SIZE - EDGE, SIZE - 1, 64 << 20, SIZE / 2] {
        let content = inspect(&image(&[(offset, &[1])]), SIZE);
        assert!(
            matches!(content, Content::Foreign(_)),
            "byte {offset} was overlooked"
        );
    }
}

#[test]
fn known_content_is_named() {
    let table: [(u64, &[u8], &str); 6] = [
        (512, b"EFI PART", "GPT"),
        (SIZE - 512, b"EFI PART", "backup of a GPT"),
        (1080, &[0x53, 0xef], "ext2"),
        (0, b"XFSB", "XFS"),
        (0, b"LUKS\xba\xbe\x00\x02", "LUKS"),
        (510, &[0x55, 0xaa], "boot record"),
    ];
    for (offset, magic, name) in table {
        match inspect(&image(&[(offset, magic)]), SIZE) {
            Content::Foreign(text) => assert!(text.contains(name), "{text} for {name}"),
            other => panic!("{name} was taken for {other:?}"),
        }
    }
}

#[test]
fn a_pool_is_told_from_another_btrfs() {
    for (label, ours) in [
        ("monobloc", true),
        ("monobloc-2", true),
        ("data", false),
        ("", false),
        ("monoblock", false),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        File::create(&path).unwrap().set_len(SIZE).unwrap();
        mkfs::write(&path, label).unwrap();
        let content = inspect(&File::open(&path).unwrap(), SIZE);
        assert_eq!(matches!(content, Content::Pool { .. }), ours, "label `{label}`");
        assert_eq!(matches!(content, Content::Foreign(_)), !ours, "label `{label}`");
    }
}

#[test]
fn a_disk_that_cannot_be_read_is_not_blank() {
    assert!(matches!(inspect(&image(&[]), SIZE + 1), Content::Foreign(_)));
}

#[test]
fn disks_are_read_from_sysfs_with_their_users() {
    let dir = tempfile::tempdir().unwrap();
    let (sys, dev) = (dir.path().join("block"), dir.path().join("dev"));
    fs::create_dir_all(&dev).unwrap();
    for name in ["tda", "tdb", "tdc", "loop0", "sr0"] {
        let folder = sys.join(name);
        fs::create_dir_all(folder.join("holders")).unwrap();
        if name != "loop0" {
            fs::create_dir_all(folder.join("device")).unwrap();
        }
        for (file, text) in [("size", "524288\n"), ("ro", "0\n"), ("removable", "0\n")] {
            fs::write(folder.join(file), text).unwrap();
        }
        File::create(dev.join(name)).unwrap().set_len(SIZE).unwrap();
    }
    fs::create_dir_all(sys.join("tdb/tdb1")).unwrap();
    fs::write(sys.join("tdb/tdb1/partition"), "1\n").unwrap();
    fs::write(sys.join("tdc/holders/dm-0"), "").unwrap();
    let disks = list_in(&sys, &dev).unwrap();
    let contents: Vec<(&str, &Content)> = disks
        .iter()
        .map(|disk| (disk.name.as_str(), &disk.content))
        .collect();
    assert_eq!(disks[0].size, SIZE);
    assert_eq!(
        contents,
        [
            ("tda", &Content::Blank),
            ("tdb", &Content::Foreign("partitions".to_owned())),
            ("tdc", &Content::Foreign("a part of dm-0".to_owned())),
        ]
    );
}

#[test]
fn what_becomes_of_a_disk_is_heard_of() {
    let changes = Changes::watch().unwrap();
    let file = tempfile::tempfile().unwrap();
    file.set_len(SIZE).unwrap();
    let _device = sys::loopdev::LoopDevice::attach(&file).unwrap();
    let deadline = Instant::now() + std::time::Duration::from_secs(60);
    assert!(changes.wait(Some(deadline)).unwrap());
    assert!(is_of_disk(
        b"add@/devices/x\0ACTION=add\0SUBSYSTEM=block\0DEVTYPE=disk\0"
    ));
    assert!(!is_of_disk(
        b"add@/devices/x\0ACTION=add\0SUBSYSTEM=net\0INTERFACE=SUBSYSTEM=block\0"
    ));
}
