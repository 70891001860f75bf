//! Users and groups by name, as the image's own `/etc/passwd` and `/etc/group` have them.

use std::fs::File;
use std::io::Read;
use std::os::fd::BorrowedFd;

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use zones::User;

use crate::http::{ApiError, Result};

/// More than any real `/etc/passwd`; the rest is not looked at.
const MAX_FILE: u64 = 1 << 20;

/// The image's databases.
#[derive(Debug, Default)]
pub(crate) struct Databases {
    passwd: String,
    group: String,
}

/// A user and what its entry says besides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) user: User,
    pub(crate) home: Option<String>,
}

impl Databases {
    /// Reads them below `root`, whatever links lie there. What is absent is empty.
    pub(crate) fn read(root: BorrowedFd<'_>) -> Self {
        Self {
            passwd: read_below(root, "etc/passwd"),
            group: read_below(root, "etc/group"),
        }
    }

    /// Finds `user`, `user:group`, each by name or number; empty is root.
    pub(crate) fn find(&self, wanted: &str, add: &[String]) -> Result<Found> {
        let (user, group) = match wanted.split_once(':') {
            None => (wanted, None),
            Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        };
        let user = if user.is_empty() { "0" } else { user };
        let number = user.parse::<u32>().ok();
        let entry = entries(&self.passwd).find(|fields| match (fields.first(), number) {
            (Some(name), _) if *name == user => true,
            (_, Some(number)) => field(fields, 2) == Some(number),
            _ => false,
        });
        let uid = entry.as_ref().and_then(|fields| field(fields, 2)).or(number);
        let uid = uid.ok_or_else(|| {
            ApiError::bad_request(format!(
                "unable to find user {user}: no matching entries in passwd file"
            ))
        })?;
        let name = entry.as_ref().and_then(|fields| fields.first().copied());
        let gid = match group {
            Some(group) => self.group(group)?,
            None => entry.as_ref().and_then(|fields| field(fields, 3)).unwrap_or(0),
        };
        // As Docker: an explicit group leaves the user's others out.
        let mut groups: Vec<u32> = match (group, name) {
            (None, Some(name)) => self.groups_of(name),
            _ => Vec::new(),
        };
        for group in add {
            groups.push(self.group(group)?);
        }
        // As Docker since 20.10.18: without it, a set-group-id program could shed the group.
        groups.push(gid);
        groups.sort_unstable();
        groups.dedup();
        let home = entry.and_then(|fields| fields.get(5).map(|home| (*home).to_owned()));
        Ok(Found {
            user: User { uid, gid, groups },
            home: home.filter(|home| !home.is_empty()),
        })
    }

    fn group(&self, wanted: &str) -> Result<u32> {
        let named = entries(&self.group).find(|fields| fields.first() == Some(&wanted));
        let gid = named.and_then(|fields| field(&fields, 2));
        gid.or_else(|| wanted.parse().ok()).ok_or_else(|| {
            ApiError::bad_request(format!(
                "Unable to find group {wanted}: no matching entries in group file"
            ))
        })
    }

    fn groups_of(&self, name: &str) -> Vec<u32> {
        entries(&self.group)
            .filter(|fields| {
                let members = fields.get(3).copied().unwrap_or_default();
                members.split(',').any(|member| member == name)
            })
            .filter_map(|fields| field(&fields, 2))
            .collect()
    }
}

fn entries(text: &str) -> impl Iterator<Item = Vec<&str>> {
    text.lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| line.split(':').collect())
}

fn field(fields: &[&str], at: usize) -> Option<u32> {
    fields.get(at)?.parse().ok()
}

fn read_below(root: BorrowedFd<'_>, path: &str) -> String {
    // Not blocking: the image may hold a FIFO there.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let opened = openat2(
        root,
        path,
        flags,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    );
    let Ok(opened) = opened else { return String::new() };
    let mut bytes = Vec::new();
    // Half a file has whole entries, which is as good as it gets.
    let _ = File::from(opened).take(MAX_FILE).read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn databases() -> Databases {
        Databases {
            passwd: "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/var/www:/bin/false\nbroken\n".to_owned(),
            group: "root:x:0:\nwww:x:34:\nwheel:x:10:root,web\nlog:x:4:web\n".to_owned(),
        }
    }

    #[test]
    fn users_are_found_by_name_and_number() {
        let found = |text| databases().find(text, &[]).unwrap();
        let user = |uid, gid, groups: &[u32]| User {
            uid,
            gid,
            groups: groups.to_vec(),
        };
        assert_eq!(found("").user, user(0, 0, &[0, 10]));
        assert_eq!(found("web").user, user(33, 34, &[4, 10, 34]));
        assert_eq!(found("33").home.as_deref(), Some("/var/www"));
        assert_eq!(found("web:wheel").user, user(33, 10, &[10]));
        assert_eq!(found("1234").user, user(1234, 0, &[0]));
        assert_eq!(found("1234:5678").user, user(1234, 5678, &[5678]));
        assert_eq!(
            databases()
                .find("", &["log".into(), "99".into()])
                .unwrap()
                .user
                .groups,
            [0, 4, 10, 99]
        );
        assert!(
            databases()
                .find("nobody", &[])
                .unwrap_err()
                .message
                .contains("nobody")
        );
        assert!(
            databases()
                .find("web:nogroup", &[])
                .unwrap_err()
                .message
                .contains("nogroup")
        );
    }

    #[test]
    fn a_link_in_the_image_does_not_lead_out_of_it() {
        use std::os::fd::AsFd;
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("etc/group")).unwrap();
        std::os::unix::fs::symlink("../../../../../../../etc/passwd", dir.path().join("etc/passwd")).unwrap();
        let root = File::open(dir.path()).unwrap();
        let databases = Databases::read(root.as_fd());
        assert!(databases.passwd.is_empty() && databases.group.is_empty());
    }
}
