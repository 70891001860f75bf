//! Images: pulled, loaded, imported, listed and removed; the bad ones refused, with nothing left
//! behind; and a whole Debian.

// What fails here fails the test.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::sync::LazyLock;
use std::time::Duration;

use serde_json::json;
use tests::images::{Image, Layer, busybox, debian_archive, digest, gzip};
use tests::registry::{Access, PASSWORD, Registry, USER};
use tests::{Boot, Docker, Machine};

static MACHINE: LazyLock<Machine> = LazyLock::new(|| Boot::quickstart().blank_disk().start());
static REGISTRY: LazyLock<Registry> = LazyLock::new(|| Registry::start(Access::Anyone));

fn docker() -> &'static Docker {
    MACHINE.docker()
}

/// Loads an archive that must be refused; nothing of it may be listed afterwards.
#[track_caller]
fn refused(reference: &str, archive: &[u8]) -> String {
    let said = docker().outcome_of("load", archive).failed();
    assert_eq!(
        docker().ok(&format!("images -q {reference}")),
        "",
        "something is left of {reference}"
    );
    said
}

#[test]
fn an_image_is_pulled_by_tag_and_by_digest() {
    let image = busybox("box:1");
    let digest = REGISTRY.push("library/box:1", &image);
    let name = format!("{}/library/box", REGISTRY.address());
    assert!(docker().ok(&format!("pull {name}:1")).contains(&digest));
    assert_eq!(docker().ok(&format!("run --rm {name}:1 echo pulled")), "pulled");
    assert_eq!(
        docker().ok(&format!("inspect -f '{{{{.Id}}}}' {name}:1")),
        image.id()
    );
    docker().ok(&format!("rmi {name}:1"));
    docker().ok(&format!("pull {name}@{digest}"));
    assert_eq!(
        docker().ok(&format!("inspect -f '{{{{.RepoDigests}}}}' {name}@{digest}")),
        format!("[{name}@{digest}]")
    );
    docker().ok(&format!("rmi {name}@{digest}"));
}

#[test]
fn run_pulls_what_is_not_there() {
    REGISTRY.push(
        "fetched:1",
        &busybox("fetched:1").with("Cmd", json!(["echo", "fetched and run"])),
    );
    let outcome = docker().outcome_of(&format!("run --rm {}/fetched:1", REGISTRY.address()), b"");
    assert_eq!(outcome.ok(), "fetched and run");
}

#[test]
fn a_pull_of_what_is_not_there_says_so() {
    let said = docker().fails(&format!("pull {}/nothing:1", REGISTRY.address()));
    assert!(
        said.contains("nothing") && (said.contains("not found") || said.contains("unknown")),
        "{said}"
    );
}

#[test]
fn a_registry_with_passwords_serves_those_who_have_logged_in() {
    REGISTRY.push("secret:1", &busybox("secret:1"));
    let closed = REGISTRY.beside(Access::Password);
    let name = format!("{}/secret:1", closed.address());
    let someone = MACHINE.new_docker();
    let refusal = someone.fails(&format!("pull {name}"));
    assert!(
        refusal.contains("authentication") || refusal.contains("unauthorized"),
        "{refusal}"
    );
    let login = |password: &str| {
        someone.outcome_of(
            &format!("login -u '{USER}' --password-stdin {}", closed.address()),
            password.as_bytes(),
        )
    };
    login("wrong").failed();
    assert!(login(PASSWORD).ok().contains("Login Succeeded"));
    someone.ok(&format!("pull {name}"));
    assert_eq!(someone.ok(&format!("run --rm {name} echo in")), "in");
    docker().ok(&format!("rmi {name}"));
}

#[test]
fn a_registry_with_tokens_gives_public_images_to_anyone_and_others_to_its_user() {
    REGISTRY.push("public/box:1", &busybox("public/box:1"));
    REGISTRY.push("private/box:1", &busybox("private/box:1"));
    let closed = REGISTRY.beside(Access::Token);
    let (public, private) = (
        format!("{}/public/box:1", closed.address()),
        format!("{}/private/box:1", closed.address()),
    );
    let someone = MACHINE.new_docker();
    someone.ok(&format!("pull {public}"));
    someone.fails(&format!("pull {private}"));
    someone
        .outcome_of(
            &format!("login -u '{USER}' --password-stdin {}", closed.address()),
            PASSWORD.as_bytes(),
        )
        .ok();
    someone.ok(&format!("pull {private}"));
    let asked = closed.tokens_asked();
    assert!(
        asked
            .iter()
            .any(|(target, user)| target.contains("public") && user.is_none()),
        "{asked:?}"
    );
    assert!(
        asked
            .iter()
            .any(|(target, user)| target.contains("private") && user.as_deref() == Some(USER)),
        "{asked:?}"
    );
    docker().ok(&format!("rmi {public} {private}"));
}

#[test]
fn an_image_is_pushed_once_and_is_the_same_when_it_comes_back() {
    let docker = docker();
    docker
        .outcome_of("load", &busybox("ours:1").docker_archive())
        .ok();
    docker.ok("run --name pusher ours:1 sh -c 'echo pushed > /pushed'");
    docker.ok("commit pusher ours:2");
    docker.ok("rm pusher");
    let id = docker.ok("images -q --no-trunc ours:2");
    let name = format!("{}/team/ours:2", REGISTRY.address());
    docker.ok(&format!("tag ours:2 {name}"));
    let said = docker.ok(&format!("push {name}"));
    assert!(
        said.contains("Pushed") && said.contains("2: digest: sha256:"),
        "{said}"
    );
    let again = docker.ok(&format!("push {name}"));
    assert!(
        again.contains("Layer already exists") && !again.contains("Pushed"),
        "{again}"
    );
    let digest = said.split_once("digest: ").unwrap().1.split(' ').next().unwrap();
    let told = docker.ok(&format!("inspect --format '{{{{json .RepoDigests}}}}' {name}"));
    assert!(told.contains(digest), "{told}");
    let told = MACHINE.request("GET", &format!("/v1.41/distribution/{name}/json"));
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    assert_eq!(told["Descriptor"]["digest"], digest, "{told}");
    assert_eq!(
        told["Platforms"],
        json!([{"architecture": "amd64", "os": "linux"}])
    );

    // Another repository of the same registry gets the layers from there.
    let other = format!("{}/other/ours:2", REGISTRY.address());
    docker.ok(&format!("tag ours:2 {other}"));
    let said = docker.ok(&format!("push {other}"));
    assert!(said.contains("Mounted from team/ours"), "{said}");

    docker.ok(&format!("rmi {name} {other} ours:1 ours:2"));
    docker.ok(&format!("pull {other}"));
    assert_eq!(docker.ok(&format!("images -q --no-trunc {other}")), id);
    assert_eq!(docker.ok(&format!("run --rm {other} cat /pushed")), "pushed");

    // All tags of a repository, where it has a password and where it has tokens.
    for access in [Access::Password, Access::Token] {
        let closed = REGISTRY.beside(access);
        let repository = format!("{}/closed/ours", closed.address());
        for tag in ["a", "b"] {
            docker.ok(&format!("tag {other} {repository}:{tag}"));
        }
        let someone = MACHINE.new_docker();
        let refusal = someone.fails(&format!("push {repository}:a"));
        assert!(refusal.contains("denied"), "{access:?}: {refusal}");
        someone
            .outcome_of(
                &format!("login -u '{USER}' --password-stdin {}", closed.address()),
                PASSWORD.as_bytes(),
            )
            .ok();
        let said = someone.ok(&format!("push -a {repository}"));
        assert!(
            said.contains("a: digest:") && said.contains("b: digest:"),
            "{access:?}: {said}"
        );
        docker.ok(&format!("rmi {repository}:a {repository}:b"));
        let said = someone.ok(&format!("pull -a {repository}"));
        assert!(said.contains("Pulling from closed/ours"), "{said}");
        docker.ok(&format!("rmi {repository}:a {repository}:b"));
    }
    docker.ok(&format!("rmi {other}"));
    let refusal = docker.fails(&format!("push {name}"));
    assert!(refusal.contains("does not exist"), "{refusal}");
    let refusal = docker.fails("search busybox");
    assert!(refusal.contains("searches no registry"), "{refusal}");
}

#[test]
fn a_blob_that_is_not_what_its_digest_says_is_refused() {
    let image = Image::new(
        "forged:1",
        &[tests::images::busybox_layer().file("mark", 0o644, "forged")],
    );
    REGISTRY.push("forged:1", &image);
    let blob = REGISTRY.blob_file(&digest(&gzip(&image.layers[0])));
    let other = Image::new(
        "x",
        &[tests::images::busybox_layer().file("mark", 0o644, "gotcha")],
    );
    fs::write(blob, gzip(&other.layers[0])).unwrap();
    let name = format!("{}/forged:1", REGISTRY.address());
    let refusal = docker().fails(&format!("pull {name}"));
    assert!(
        refusal.contains("digest") || refusal.contains("size"),
        "{refusal}"
    );
    assert_eq!(docker().ok(&format!("images -q {name}")), "");
}

#[test]
fn a_registry_that_is_not_there_is_named() {
    let port = tests::host::free_port();
    let refusal = docker().fails(&format!("pull 10.0.2.2:{port}/box:1"));
    assert!(refusal.contains(&format!("10.0.2.2:{port}")), "{refusal}");
}

#[test]
fn archives_of_both_forms_are_loaded_plain_and_compressed() {
    type Pack = fn(&Image) -> Vec<u8>;
    let cases: [(&str, Pack); 4] = [
        ("loaded:docker", Image::docker_archive),
        ("loaded:oci", Image::oci_archive),
        ("loaded:docker-gz", |image| gzip(&image.docker_archive())),
        ("loaded:oci-gz", |image| gzip(&image.oci_archive())),
    ];
    for (reference, pack) in cases {
        let image = busybox(reference).with("Labels", json!({"from": reference}));
        assert!(
            docker()
                .outcome_of("load", &pack(&image))
                .ok()
                .contains(&format!("Loaded image: {reference}"))
        );
        assert_eq!(
            docker().ok(&format!("images -q --no-trunc {reference}")),
            image.id()
        );
        assert_eq!(
            docker().ok(&format!("run --rm {reference} echo {reference}")),
            reference
        );
        docker().ok(&format!("rmi {reference}"));
        assert_eq!(docker().ok(&format!("images -q {reference}")), "");
    }
}

#[test]
fn layers_are_laid_over_each_other() {
    let base = tests::images::busybox_layer()
        .folder("d/")
        .file("d/gone", 0o644, "x")
        .file("d/kept", 0o644, "x")
        .folder("opaque/")
        .file("opaque/old", 0o644, "x");
    let above = Layer::new()
        .folder("d/")
        .file("d/.wh.gone", 0o644, "")
        .folder("opaque/")
        .file("opaque/.wh..wh..opq", 0o644, "")
        .file("opaque/new", 0o644, "x");
    let image = Image::new("layered:1", &[base, above]);
    docker().outcome_of("load", &image.docker_archive()).ok();
    assert_eq!(
        docker().ok("run --rm layered:1 sh -c 'ls -A d opaque'"),
        "d:\nkept\n\nopaque:\nnew"
    );
    docker().ok("rmi layered:1");
}

#[test]
fn a_root_file_system_is_imported_with_its_command() {
    let rootfs = busybox("x").layers.remove(0);
    let id = docker()
        .outcome_of(
            "import --change 'CMD [\"echo\",\"imported\"]' - imported:1",
            &rootfs,
        )
        .ok();
    assert!(id.starts_with("sha256:"), "{id}");
    assert_eq!(docker().ok("run --rm imported:1"), "imported");
    docker().ok("rmi imported:1");
}

#[test]
fn tags_name_an_image_until_the_last_is_removed() {
    docker()
        .outcome_of(
            "load",
            &busybox("named:1")
                .with("Labels", json!({"n": "1"}))
                .docker_archive(),
        )
        .ok();
    docker().ok("tag named:1 named:2");
    assert_eq!(docker().ok("images --format '{{.Tag}}' named").lines().count(), 2);
    assert!(docker().ok("rmi named:1").contains("Untagged: named:1"));
    assert!(docker().ok("rmi named:2").contains("Deleted: sha256:"));
    assert!(docker().fails("rmi named:2").contains("No such image"));
}

#[test]
fn an_image_in_use_is_not_removed() {
    docker()
        .outcome_of(
            "load",
            &busybox("used:1")
                .with("Labels", json!({"n": "used"}))
                .docker_archive(),
        )
        .ok();
    docker().ok("create --name user-of-image used:1");
    let refusal = docker().fails("rmi used:1");
    assert!(
        refusal.contains("container") && refusal.contains("us"),
        "{refusal}"
    );
    docker().ok("rm user-of-image");
    docker().ok("rmi used:1");
}

#[test]
fn a_truncated_archive_is_refused() {
    let archive = busybox("truncated:1").docker_archive();
    for part in [archive.len() / 2, archive.len() - 3000, 700] {
        let said = refused("truncated:1", &archive[..part]);
        assert!(!said.contains("panic"), "{said}");
    }
    let zipped = gzip(&archive);
    refused("truncated:1", &zipped[..zipped.len() / 2]);
}

#[test]
fn what_is_no_archive_is_refused_with_a_sentence() {
    for bytes in [
        &b"hello, this is no archive at all"[..],
        &[0; 4096],
        &[0xff; 100_000],
        b"",
    ] {
        let said = refused("nothing:1", bytes);
        assert!(said.trim().len() > 20, "{said}");
    }
}

#[test]
fn a_layer_that_differs_from_its_digest_is_refused() {
    let image = busybox("altered:1");
    let mut altered = image.clone();
    altered.layers = vec![Layer::new().file("evil", 0o644, "x").bytes()];
    // The configuration of one image beside the layer of another.
    let archive = image.oci_archive_of(&[gzip(&altered.layers[0])]);
    let said = refused("altered:1", &archive);
    assert!(said.contains("sha256:"), "{said}");
}

#[test]
fn a_layer_cannot_write_outside_its_root() {
    let cases = [
        ("../outside", Layer::new().file("../outside", 0o644, "x")),
        (
            "a/../../outside",
            Layer::new().folder("a/").file("a/../../outside", 0o644, "x"),
        ),
    ];
    for (name, layer) in cases {
        let image = Image::new("escaping:1", &[tests::images::busybox_layer(), layer]);
        let said = refused("escaping:1", &image.docker_archive());
        assert!(said.contains(name), "{name}: {said}");
    }
}

#[test]
fn a_link_out_of_the_root_is_no_way_out_and_links_within_are_followed() {
    let layer = Layer::new()
        .symlink("up", "../../../../../..")
        .file("up/outside", 0o644, "x");
    let image = Image::new("climbing:1", &[tests::images::busybox_layer(), layer]);
    let said = refused("climbing:1", &image.docker_archive());
    assert!(said.contains("up/outside"), "{said}");

    let base = tests::images::busybox_layer()
        .folder("real/")
        .symlink("relative", "real")
        .symlink("absolute", "/real");
    let above = Layer::new()
        .file("relative/one", 0o644, "inside")
        .file("absolute/two", 0o644, "inside")
        .hardlink("hard", "real/one");
    let image = Image::new("staying:1", &[base, above]);
    docker().outcome_of("load", &image.docker_archive()).ok();
    assert_eq!(
        docker().ok("run --rm staying:1 cat /real/one /real/two /hard"),
        "insideinsideinside"
    );
    docker().ok("rmi staying:1");
}

#[test]
fn a_hard_link_to_the_machines_files_is_refused_or_empty() {
    let layer = Layer::new().hardlink("shadow", "../../../../init");
    let image = Image::new("linking:1", &[tests::images::busybox_layer(), layer]);
    refused("linking:1", &image.docker_archive());
}

#[test]
fn a_debian_runs_with_its_own_programs_and_users() {
    let docker = MACHINE.new_docker().with_limit(Duration::from_secs(300));
    let loaded = docker.ok(&format!("load -i {}", debian_archive().display()));
    assert!(loaded.contains("Loaded image: debian:test"), "{loaded}");
    assert!(
        docker
            .ok("run --rm debian:test apt --version")
            .starts_with("apt ")
    );
    assert_eq!(
        docker.ok("run --rm -u www-data debian:test id"),
        "uid=33(www-data) gid=33(www-data) groups=33(www-data)"
    );
    assert_eq!(
        docker.ok("run --rm debian:test id"),
        "uid=0(root) gid=0(root) groups=0(root)"
    );
    assert!(
        docker
            .ok("run --rm debian:test dpkg -l bash")
            .contains("GNU Bourne Again SHell")
    );
    assert_eq!(docker.ok("run --rm debian:test bash -c 'useradd -m someone && su someone -c \"id -un; touch ~/f; stat -c %U ~/f\"'"), "someone\nsomeone");
    let mut shell = docker.terminal("run --rm -it debian:test");
    shell.expect("# ");
    shell.type_keys("perl -e 'print \"answer \", 6*7, chr 10'; exit\r");
    shell.expect("answer 42");
    assert_eq!(shell.end(), 0);
}
