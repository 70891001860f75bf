use std::path::Path;

use handover::{PoolPolicy, Protocol};

use super::*;

const MINIMAL: &str = r#"name = "t"
[kernel]
provider = "debian"
package = "linux-image-6.12-cloud-amd64"
command-line = "console=ttyS0"
"#;

fn parse(more: &str) -> Result<Recipe, RecipeError> {
    Recipe::parse(&format!("{MINIMAL}{more}"), Path::new("t.toml"))
}

fn error(text: &str) -> String {
    Recipe::parse(text, Path::new("dir/t.toml"))
        .expect_err("this recipe has a mistake")
        .to_string()
}

#[test]
fn a_minimal_recipe_gets_the_defaults() {
    let recipe = parse("").unwrap();
    assert_eq!(recipe.name.as_str(), "t");
    assert_eq!(
        recipe.pool.policy,
        PoolPolicy::Existing,
        "no disk is claimed unless the recipe says so"
    );
    assert_eq!(recipe.initramfs.compression, Compression::Zstd);
    assert_eq!(recipe.qemu.memory, ByteSize(1 << 30));
    assert!(recipe.output.efi && recipe.images.is_empty() && recipe.zones.is_empty());
    assert!(!recipe.zone_rules.allow_host_privilege);
}

#[test]
fn every_part_of_a_recipe_is_read() {
    let recipe = parse(
        r#"
        [modules]
        always = ["overlay"]
        by-device = ["virtio-net"]
        [pool]
        policy = "claim-blank"
        [qemu]
        memory = "512M"
        cpus = 1
        disk = "4GiB"
        forwards = ["8080:80"]
        [[image]]
        reference = "web"
        source.packages = { names = ["lighttpd"], dependencies = true, without = ["systemd"] }
        config = { cmd = ["/usr/sbin/lighttpd"], exposed-ports = ["80"], workdir = "/srv" }
        [[image.file]]
        path = "/srv/index.html"
        content = "hello"
        mode = "0640"
        [[image.user]]
        name = "www-data"
        uid = 33
        [[image]]
        reference = "localhost:5000/team/app:1.2"
        source.oci-archive = "app.tar"
        [zones]
        allow-host-privilege = true
        [[zone]]
        name = "web"
        image = "web:latest"
        ports = ["80", "53:5353/udp"]
        memory = "64M"
        cpus = 0.5
        "#,
    )
    .unwrap();
    assert_eq!(
        recipe.modules.by_device[0].get_ref().as_str(),
        "virtio_net",
        "dashes become underscores"
    );
    assert_eq!(recipe.pool.policy, PoolPolicy::ClaimBlank);
    assert_eq!(recipe.qemu.disk, Some(ByteSize(4 << 30)));
    assert_eq!(recipe.images[0].reference.get_ref().as_str(), "web:latest");
    assert_eq!(recipe.images[1].reference.get_ref().tag(), "1.2");
    assert_eq!(recipe.images[0].files[0].mode, Some(Mode(0o640)));
    let ports: Vec<_> = recipe.zones[0].ports.iter().map(|port| *port.get_ref()).collect();
    assert_eq!(
        ports[0],
        PortMapping {
            outer: 80,
            inner: 80,
            protocol: Protocol::Tcp
        }
    );
    assert_eq!(
        ports[1],
        PortMapping {
            outer: 53,
            inner: 5353,
            protocol: Protocol::Udp
        }
    );
    assert!(recipe.zone_rules.allow_host_privilege);
    assert_eq!(recipe.zones[0].memory, Some(ByteSize(64 << 20)));
    assert_eq!(recipe.zones[0].cpus, Some(Cpus(500_000_000)));
}

/// `(what is added to the minimal recipe, line of the mistake, parts of the message)`
const MISTAKES: &[(&str, usize, &[&str])] = &[
    ("colour = 1", 6, &["Unknown field `colour`", "`command-line`"]),
    ("required-conf = \"x\"", 6, &["Did you mean `required-config`?"]),
    (
        "[modules]\nallways = []",
        7,
        &["Unknown field `allways`", "Did you mean `always`?"],
    ),
    (
        "[modules]\nalways = [\n\"a\",\n\"kernel/net/a.ko\"]",
        9,
        &["\"kernel/net/a.ko\"", "kernel module's name"],
    ),
    ("[modules]\nalways = \"overlay\"", 7, &["expected a sequence"]),
    (
        "[pool]\npolicy = \"claim-blnk\"",
        7,
        &["Unknown variant `claim-blnk`", "Did you mean `claim-blank`?"],
    ),
    (
        "[initramfs]\ncompression = \"xz\"",
        7,
        &["Unknown variant `xz`", "`zstd`", "`gzip`", "`none`"],
    ),
    (
        "[initramfs]\nlevel = 23",
        7,
        &["Invalid level 23", "from 1 to 19"],
    ),
    (
        "[initramfs]\ncompression = \"gzip\"\nlevel = 10",
        8,
        &["from 1 to 9"],
    ),
    ("[qemu]\nmemory = \"1 gig\"", 7, &["\"1 gig\"", "\"512M\""]),
    (
        "[qemu]\nmemory = 512",
        7,
        &["integer `512`", "expected a size such as"],
    ),
    (
        "[qemu]\nmemory = \"99999999999T\"",
        7,
        &["expected a size such as"],
    ),
    ("[qemu]\ncpus = -1", 7, &["-1"]),
    (
        "[qemu]\nforwards = [\"8080:80/sctp\"]",
        7,
        &["\"8080:80/sctp\"", "\"8080:80\""],
    ),
    ("[qemu]\nforwards = [\"0:80\"]", 7, &["expected ports such as"]),
    (
        "[[image]]\nreference = \"Busybox\"",
        7,
        &["\"Busybox\"", "lower case"],
    ),
    ("[[image]]\nreference = \"a/../b\"", 7, &["image's name and tag"]),
    ("[[image]]\nreference = \"b\"", 6, &["Missing field `source`"]),
    (
        "[[image]]\nreference = \"b\"\nsource.oci-tar = \"x\"",
        8,
        &["Unknown variant `oci-tar`", "`oci-archive`"],
    ),
    (
        "[[image]]\nreference = \"b\"\nsource.oci-archive = \"x\"\nconfig.cmd = [\"sh\"]",
        7,
        &["finished archive", "no `config`"],
    ),
    (
        "[[image]]\nreference = \"b\"\nsource.rootfs = \"x\"\n[[image.file]]\npath = \"/a\"",
        10,
        &["exactly one of `content`, `source`, `link` and `folder`"],
    ),
    (
        "[[image]]\nreference = \"b\"\nsource.rootfs = \"x\"\n[[image.file]]\npath = \"/a/../b\"\ncontent=\"\"",
        10,
        &["expected an absolute path"],
    ),
    (
        "[[image]]\nreference = \"b\"\nsource.rootfs = \"x\"\n[[image]]\nreference = \"b:latest\"\nsource.rootfs = \"x\"",
        10,
        &["b:latest is there twice"],
    ),
    (
        "[[zone]]\nname = \"z\"\nimage = \"b\"",
        8,
        &["wants image b:latest", "does not have"],
    ),
    (
        "[[zone]]\nname = \"-z\"\nimage = \"b\"",
        7,
        &["\"-z\"", "starts with a letter or digit"],
    ),
    (
        "[[zone]]\nname = \"z\"\nimage = \"b\"\ncpus = \"half\"",
        9,
        &["expected a number of CPUs"],
    ),
    (
        "[registry]\ninsecure = [\"http://10.0.2.2\"]",
        7,
        &["\"http://10.0.2.2\"", "without `http://`"],
    ),
    (
        "[[image]]\nreference = \"b\"\nsource.rootfs = \"x\"\nconfig.stop-signal = \"TERM\"",
        9,
        &["\"TERM\"", "\"SIGTERM\""],
    ),
    (
        "[[image]]\nreference = \"b\"\nsource.rootfs = \"x\"\nconfig.user = \"a b\"",
        9,
        &["expected a user"],
    ),
    ("[kernel]\n", 6, &["uplicate"]),
    ("= 3", 6, &[]),
];

#[test]
fn a_mistake_is_told_with_its_line_and_the_expected_form() {
    for (more, line, parts) in MISTAKES {
        let message = error(&format!("{MINIMAL}{more}"));
        assert!(
            message.starts_with(&format!("dir/t.toml:{line}:")),
            "wrong place for {more:?}: {message}"
        );
        for part in *parts {
            assert!(
                message.contains(part),
                "{part:?} is not in the message for {more:?}: {message}"
            );
        }
    }
}

#[test]
fn a_recipe_without_a_needed_key_names_the_key() {
    assert!(error("name = \"t\"\n").contains("Missing field `kernel`"));
    assert!(error("").contains("issing field"));
    let no_package = MINIMAL.replace("package = \"linux-image-6.12-cloud-amd64\"\n", "");
    assert!(
        error(&no_package).contains("Missing field `package`"),
        "{}",
        error(&no_package)
    );
    let provider = MINIMAL.replace("\"debian\"", "\"fedora\"");
    assert!(
        error(&provider).starts_with("dir/t.toml:3:"),
        "{}",
        error(&provider)
    );
}

#[test]
fn the_message_shows_the_line_itself() {
    let message = error(&format!("{MINIMAL}[qemu]\nmemory = \"lots\"\n"));
    assert!(message.ends_with("\n  7 | memory = \"lots\""), "{message}");
}

#[test]
fn a_recipe_that_is_not_there_is_named() {
    let message = Recipe::load(Path::new("/nowhere/x.toml"))
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("Cannot read the recipe /nowhere/x.toml"),
        "{message}"
    );
}

#[test]
fn sizes_are_shown_in_the_unit_that_fits() {
    for (text, bytes, shown) in [
        ("1024", 1024, "1K"),
        ("1536M", 1536 << 20, "1536M"),
        ("4 GiB", 4 << 30, "4G"),
        ("1000", 1000, "1000"),
    ] {
        let size: ByteSize = text.parse().unwrap();
        assert_eq!((size.0, size.to_string().as_str()), (bytes, shown));
    }
    assert!("0".parse::<ByteSize>().is_err());
}
