//! Images made of Debian packages.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use super::rootfs::add_extra_files;
use super::tree::{Kind, Node, Tree};
use super::{Parts, config};
use crate::command;
use crate::debian::{self, Follow, Wanted};
use crate::recipe::{AbsolutePath, Image, Packages, Recipe, User};

/// What no program needs in order to run.
const DOCUMENTATION: &[&str] = &[
    "usr/share/bug/",
    "usr/share/doc-base/",
    "usr/share/doc/",
    "usr/share/info/",
    "usr/share/initramfs-tools/",
    "usr/share/lintian/",
    "usr/share/locale/",
    "usr/share/man/",
];
/// The licence stays with the program.
const LICENCE: &str = "/copyright";

/// Folders that programs expect, with their permissions.
const FOLDERS: &[(&str, u32)] = &[
    ("dev", 0o755),
    ("etc", 0o755),
    ("proc", 0o555),
    ("root", 0o700),
    ("run", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("usr", 0o755),
    ("var", 0o755),
    ("var/tmp", 0o1777),
];

pub(super) fn wanted(packages: &Packages) -> Wanted {
    let names = |list: &[crate::recipe::Name]| list.iter().map(ToString::to_string).collect();
    Wanted {
        names: names(&packages.names),
        follow: if packages.dependencies {
            Follow::All
        } else {
            Follow::None
        },
        without: names(&packages.without),
    }
}

/// Unpacks the packages into one layer and adds what the recipe adds.
pub(super) fn assemble(
    recipe: &Recipe,
    image: &Image,
    packages: &Packages,
    debs: &[PathBuf],
    scratch: &Path,
) -> anyhow::Result<Parts> {
    let mut tree = Tree::default();
    for (path, mode) in FOLDERS {
        tree.add(path, Node::new(Kind::Folder, *mode))?;
    }
    let wanted = |path: &str| !packages.slim || is_needed(path);
    for deb in debs {
        debian::read(deb, |tar| tree.add_tar(tar, wanted))?;
    }
    if let Some(busybox) = &packages.applets {
        link_applets(&mut tree, busybox, scratch)?;
    }
    add_users(&mut tree, &image.users)?;
    add_extra_files(&mut tree, recipe, image)?;
    tree.link_merged_folders()?;
    let layer = tree.write(&scratch.join("layer.tar"))?;
    let names: Vec<&str> = packages.names.iter().map(|name| name.as_str()).collect();
    let made_by = format!("Debian packages: {}", names.join(" "));
    let config = config::write(&image.config, &[&layer.digest], &made_by)?;
    Ok(Parts {
        config,
        layers: vec![layer],
    })
}

fn is_needed(path: &str) -> bool {
    path.ends_with(LICENCE) || !DOCUMENTATION.iter().any(|folder| path.starts_with(folder))
}

/// A link for each of busybox's applets, where busybox itself says that it belongs.
fn link_applets(tree: &mut Tree, busybox: &AbsolutePath, scratch: &Path) -> anyhow::Result<()> {
    let Some(Node {
        kind: Kind::File(program),
        ..
    }) = tree.get(busybox.relative())
    else {
        bail!("There is no busybox at {busybox} in these packages; correct `applets` in the recipe");
    };
    // The program is the one of the verified package; it is asked for its own list.
    let copy = scratch.join("busybox");
    fs::write(&copy, program)?;
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o700))?;
    let list = command::run(Command::new(&copy).arg("--list-full"))
        .with_context(|| format!("{busybox} did not list its applets"))?;
    fs::remove_file(&copy)?;
    for path in String::from_utf8_lossy(&list)
        .lines()
        .filter(|path| !path.is_empty())
    {
        if tree.get(path).is_none() {
            tree.add(path, Node::new(Kind::Symlink(busybox.as_str().to_owned()), 0o777))?;
        }
    }
    Ok(())
}

/// `/etc/passwd` and `/etc/group` with root and the recipe's users.
fn add_users(tree: &mut Tree, users: &[User]) -> anyhow::Result<()> {
    let shell = if tree.get("bin/sh").is_some() {
        "/bin/sh"
    } else {
        "/usr/sbin/nologin"
    };
    let mut passwd = format!("root:x:0:0:root:/root:{shell}\n");
    let mut group = "root:x:0:\n".to_owned();
    for User {
        name,
        uid,
        home,
        shell,
    } in users
    {
        let home = home.as_ref().map_or("/nonexistent", AbsolutePath::as_str);
        let shell = shell.as_ref().map_or("/usr/sbin/nologin", AbsolutePath::as_str);
        passwd.push_str(&format!("{name}:x:{uid}:{uid}:{name}:{home}:{shell}\n"));
        group.push_str(&format!("{name}:x:{uid}:\n"));
    }
    for (path, text) in [("etc/passwd", passwd), ("etc/group", group)] {
        tree.add(path, Node::new(Kind::File(text.into_bytes()), 0o644))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::is_needed;

    #[test]
    fn documentation_stays_away_but_licences_come_along() {
        assert!(is_needed("usr/bin/lighttpd") && is_needed("usr/share/doc/lighttpd/copyright"));
        assert!(!is_needed("usr/share/doc/lighttpd/NEWS.gz") && !is_needed("usr/share/man/man1/sh.1.gz"));
    }
}
