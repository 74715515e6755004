//! Docker's `user[:group]`, looked up in the container's own `/etc/passwd` and
//! `/etc/group`. Both files come from an image: they are opened without leaving the
//! container's root, and bounded.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};

use bulkhead_isolation::{ErrorKind, IsolationError, Result};
use rustix::fs::{Mode, OFlags, ResolveFlags};

/// Longest `/etc/passwd` or `/etc/group` that is read, bytes.
const MAX_FILE: u64 = 16 << 20;
/// Largest number that Docker accepts for a user or a group.
const MAX_ID: u32 = 0x7fff_ffff;

/// What a process runs as.
#[derive(Debug, PartialEq, Eq)]
pub struct Identity {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    pub home: String,
}

/// Resolves `name`; `None` or an empty one is the user 0.
pub fn resolve(root: BorrowedFd<'_>, name: &str) -> Result<Identity> {
    let passwd = read(root, "etc/passwd")?;
    let group = read(root, "etc/group")?;
    lookup(name, &passwd, &group)
}

/// The home directory of a numeric user.
pub fn home(root: BorrowedFd<'_>, uid: u32) -> Result<String> {
    let passwd = read(root, "etc/passwd")?;
    let entry = users(&passwd).find(|user| user.uid == uid);
    Ok(entry.map_or_else(|| "/".to_owned(), User::home))
}

/// The numbers of groups that are named.
pub fn group_numbers(root: BorrowedFd<'_>, names: &str) -> Result<Vec<u32>> {
    let group = read(root, "etc/group")?;
    names
        .split(',')
        .filter(|name| !name.is_empty())
        .map(|name| group_number(name, &group))
        .collect()
}

fn group_number(name: &str, group: &str) -> Result<u32> {
    let number = id(name)?;
    groups(group)
        .find(|group| group.name == name || number == Some(group.gid))
        .map(|group| group.gid)
        .or(number)
        .ok_or_else(|| {
            IsolationError::new(
                ErrorKind::InvalidArgument,
                format!("unable to find group {name}: no matching entries in group file"),
            )
        })
}

/// A file below the container's root, empty when it is not there.
fn read(root: BorrowedFd<'_>, path: &str) -> Result<String> {
    let opened = rustix::fs::openat2(
        root,
        path,
        OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    );
    let read = match opened {
        Ok(opened) => read_bounded(File::from(opened)),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => Ok(Vec::new()),
        Err(error) => Err(error.into()),
    };
    match read {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) => Err(IsolationError::other(
            format!("read /{path} of the container"),
            error,
        )),
    }
}

fn read_bounded(file: File) -> io::Result<Vec<u8>> {
    let metadata = rustix::fs::fstat(file.as_fd())?;
    if !rustix::fs::FileType::from_raw_mode(metadata.st_mode).is_file() {
        return Ok(Vec::new());
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[derive(Debug, Clone, Copy)]
struct User<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

impl User<'_> {
    fn home(self) -> String {
        if self.home.is_empty() {
            "/".to_owned()
        } else {
            self.home.to_owned()
        }
    }
}

fn users(passwd: &str) -> impl Iterator<Item = User<'_>> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let mut fields = fields.skip(1);
        let uid = fields.next()?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        let home = fields.nth(1).unwrap_or_default();
        Some(User {
            name,
            uid,
            gid,
            home,
        })
    })
}

struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

fn groups(group: &str) -> impl Iterator<Item = Group<'_>> {
    group.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let gid = fields.nth(1)?.parse().ok()?;
        let members = fields.next().unwrap_or_default();
        Some(Group { name, gid, members })
    })
}

fn lookup(name: &str, passwd: &str, group: &str) -> Result<Identity> {
    let (user_name, group_name) = match name.split_once(':') {
        Some((user, group)) => (user, group),
        None => (name, ""),
    };
    let number = id(user_name)?;
    let found = users(passwd).find(|user| match user_name {
        "" => user.uid == 0,
        name => user.name == name || number == Some(user.uid),
    });
    let mut identity = match (found, number) {
        (Some(user), _) => Identity {
            uid: user.uid,
            gid: user.gid,
            groups: Vec::new(),
            home: user.home(),
        },
        (None, Some(uid)) => nameless(uid),
        (None, None) if user_name.is_empty() => nameless(0),
        (None, None) => {
            return Err(IsolationError::new(
                ErrorKind::InvalidArgument,
                format!("unable to find user {user_name}: no matching entries in passwd file"),
            ));
        }
    };
    if group_name.is_empty() {
        // Membership is by name, so a user without one is in no further groups.
        if let Some(user) = found {
            let mut member_of: Vec<u32> = groups(group)
                .filter(|group| group.members.split(',').any(|member| member == user.name))
                .map(|group| group.gid)
                .collect();
            member_of.sort_unstable();
            member_of.dedup();
            identity.groups = member_of;
        }
    } else {
        identity.gid = group_number(group_name, group)?;
    }
    // The primary group is among the further ones, as in Docker, so that a process which
    // changes its primary group keeps what the first denied (CVE-2022-36109).
    if !identity.groups.contains(&identity.gid) {
        identity.groups.insert(0, identity.gid);
    }
    Ok(identity)
}

fn nameless(uid: u32) -> Identity {
    Identity {
        uid,
        gid: 0,
        groups: Vec::new(),
        home: "/".to_owned(),
    }
}

/// A name that is a number, which has to be in range.
fn id(name: &str) -> Result<Option<u32>> {
    if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(None);
    }
    match name.parse() {
        Ok(number) if number <= MAX_ID => Ok(Some(number)),
        _ => Err(IsolationError::new(
            ErrorKind::InvalidArgument,
            format!("uids and gids must be in range 0-{MAX_ID}"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nbin:x:1:1::/bin:\nann:x:1000:100::/home/ann:/bin/sh\nbroken\n";
    const GROUP: &str = "root:x:0:\nwheel:x:10:root,ann\nusers:x:100:\naudio:x:29:ann\n";

    fn resolved(name: &str) -> (u32, u32, Vec<u32>, String) {
        let identity = lookup(name, PASSWD, GROUP).unwrap();
        (identity.uid, identity.gid, identity.groups, identity.home)
    }

    #[test]
    fn as_docker_does() {
        assert_eq!(resolved(""), (0, 0, vec![0, 10], "/root".into()));
        assert_eq!(
            resolved("ann"),
            (1000, 100, vec![100, 10, 29], "/home/ann".into())
        );
        assert_eq!(
            resolved("1000"),
            (1000, 100, vec![100, 10, 29], "/home/ann".into())
        );
        assert_eq!(resolved("4242"), (4242, 0, vec![0], "/".into()));
        assert_eq!(
            resolved("ann:audio"),
            (1000, 29, vec![29], "/home/ann".into())
        );
        assert_eq!(resolved("4242:4343"), (4242, 4343, vec![4343], "/".into()));
        assert_eq!(resolved(":wheel"), (0, 10, vec![10], "/root".into()));
    }

    #[test]
    fn errors_name_what_is_missing() {
        let message = |name: &str| lookup(name, PASSWD, GROUP).unwrap_err().message;
        assert_eq!(
            message("nobody"),
            "unable to find user nobody: no matching entries in passwd file"
        );
        assert_eq!(
            message("ann:nogroup"),
            "unable to find group nogroup: no matching entries in group file"
        );
        assert_eq!(
            message("4294967295"),
            "uids and gids must be in range 0-2147483647"
        );
    }

    #[test]
    fn images_without_files() {
        assert_eq!(lookup("", "", "").unwrap().uid, 0);
        assert_eq!(lookup("7:8", "", "").unwrap().gid, 8);
    }
}
