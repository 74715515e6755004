//! `--userns-remap`: whose subordinate IDs containers with process isolation have, from
//! `/etc/passwd`, `/etc/group`, `/etc/subuid` and `/etc/subgid`. The files are read as they are:
//! the binary is static, so the name service switch is out of reach.

use std::io::Write;
use std::path::Path;
use std::process::Command;

use bulkhead_userns::{IdRange, Mappings};

/// What a flag without a name of its own stands for, as in Docker.
const DEFAULT_USER: &str = "dockremap";
/// How many IDs a mapping has to have: those of the oldest programs, among them nobody's.
const FEWEST: u64 = 1 << 16;
/// Where ranges that are given out begin.
const FIRST: u64 = 100_000;

const PASSWD: &str = "/etc/passwd";
const GROUP: &str = "/etc/group";
const SUBUID: &str = "/etc/subuid";
const SUBGID: &str = "/etc/subgid";

/// Why IDs cannot be mapped.
#[derive(Debug, thiserror::Error)]
pub enum RemapError {
    /// More than a user and a group.
    #[error("expected default, a user, or a user and a group with a colon between them")]
    Form,
    /// A user that there is not.
    #[error("there is no user '{0}' in {PASSWD}")]
    User(String),
    /// A group that there is not.
    #[error("there is no group '{0}' in {GROUP}")]
    Group(String),
    /// The host's own.
    #[error("root cannot be mapped to itself; leave the flag out for no mapping")]
    Root,
    /// A user without subordinate IDs.
    #[error(
        "there are no subordinate IDs of the user '{user}' in {file}: a line {user}:100000:65536 \
         would give it some"
    )]
    NoRange {
        /// Whose.
        user: String,
        /// Where they would be.
        file: &'static str,
    },
    /// A user with few of them.
    #[error("the user '{user}' has {size} subordinate IDs in {file}, and 65536 are needed")]
    TooFew {
        /// Whose.
        user: String,
        /// How many.
        size: u64,
        /// Where.
        file: &'static str,
    },
    /// A line that says nothing.
    #[error("the line '{line}' of {file} is not NAME:FIRST:COUNT")]
    Line {
        /// The line.
        line: String,
        /// Where.
        file: &'static str,
    },
    /// The user of `default` cannot be made.
    #[error("the user {DEFAULT_USER} cannot be made: {0}")]
    Make(String),
    /// A file that cannot be read or written.
    #[error("{file}: {source}")]
    File {
        /// Which.
        file: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// A host that has no such mounts.
    #[error("{0}")]
    Host(String),
}

/// What the flag stands for; `None` for nothing. The files of containers are to be in
/// `data_root`. `default` makes the user that it names, as Docker does.
///
/// # Errors
/// What is missing.
pub fn resolve(text: &str, data_root: &Path) -> Result<Option<Mappings>, RemapError> {
    if text.is_empty() {
        return Ok(None);
    }
    let user = match text {
        "default" => {
            make_default_user()?;
            DEFAULT_USER.to_owned()
        }
        _ => named_user(text, &read(PASSWD)?, &read(GROUP)?)?,
    };
    let uid = uid_of(&user, &read(PASSWD)?).ok_or_else(|| RemapError::User(user.clone()))?;
    let mappings = Mappings {
        uids: ranges(&user, uid, &read(SUBUID)?, SUBUID)?,
        gids: ranges(&user, uid, &read(SUBGID)?, SUBGID)?,
    };
    let directory = data_root.ancestors().find(|path| path.is_dir());
    bulkhead_userns::check(&mappings, directory.unwrap_or(Path::new("/")))
        .map_err(RemapError::Host)?;
    Ok(Some(mappings))
}

fn read(file: &'static str) -> Result<String, RemapError> {
    match std::fs::read(file) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        Err(source) => Err(RemapError::File { file, source }),
    }
}

/// Name and number of each entry of `/etc/passwd` or `/etc/group`.
fn entries(text: &str) -> impl Iterator<Item = (&str, u32)> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        Some((name, fields.nth(1)?.parse().ok()?))
    })
}

fn find<'a>(wanted: &str, text: &'a str) -> Option<(&'a str, u32)> {
    let number: Option<u32> = wanted.parse().ok();
    entries(text).find(|(name, id)| *name == wanted || number == Some(*id))
}

fn uid_of(user: &str, passwd: &str) -> Option<u32> {
    find(user, passwd).map(|(_, uid)| uid)
}

/// The user that `user`, `user:group` and their numbers name.
fn named_user(text: &str, passwd: &str, group: &str) -> Result<String, RemapError> {
    let (user, wanted_group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    if user.is_empty() || wanted_group.is_some_and(|group| group.is_empty() || group.contains(':'))
    {
        return Err(RemapError::Form);
    }
    let (name, uid) = find(user, passwd).ok_or_else(|| RemapError::User(user.to_owned()))?;
    if uid == 0 {
        return Err(RemapError::Root);
    }
    let wanted_group = wanted_group.unwrap_or(name);
    find(wanted_group, group).ok_or_else(|| RemapError::Group(wanted_group.to_owned()))?;
    Ok(name.to_owned())
}

/// The ranges of a file, with whose they are.
fn lines<'a>(
    text: &'a str,
    file: &'static str,
) -> impl Iterator<Item = Result<Line<'a>, RemapError>> {
    let lines = text.lines().map(str::trim);
    let lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(move |line| {
        let mut fields = line.split(':');
        let parsed = (|| {
            Some(Line {
                owner: fields.next()?,
                first: fields.next()?.parse().ok()?,
                size: fields.next()?.parse().ok()?,
            })
        })();
        let fits = |line: &Line<'_>| line.first.checked_add(line.size).is_some();
        parsed.filter(fits).ok_or_else(|| RemapError::Line {
            line: line.to_owned(),
            file,
        })
    })
}

struct Line<'a> {
    owner: &'a str,
    first: u32,
    size: u32,
}

fn ranges(
    user: &str,
    uid: u32,
    text: &str,
    file: &'static str,
) -> Result<Vec<IdRange>, RemapError> {
    let number = uid.to_string();
    let mut out = Vec::new();
    let mut next = 0_u32;
    for line in lines(text, file) {
        let line = match line {
            Ok(line) => line,
            Err(RemapError::Line { line, .. }) if !is_of(&line, user, &number) => {
                tracing::debug!(file, line, "a line of somebody else's is left out");
                continue;
            }
            Err(error) => return Err(error),
        };
        if (line.owner != user && line.owner != number) || line.size == 0 {
            continue;
        }
        // What no ID of the container's is left for is not mapped.
        let size = line.size.min(u32::MAX - next);
        out.push(IdRange {
            container: next,
            host: line.first,
            size,
        });
        next += size;
    }
    let size = u64::from(next);
    match size {
        0 => Err(RemapError::NoRange {
            user: user.to_owned(),
            file,
        }),
        _ if size < FEWEST => Err(RemapError::TooFew {
            user: user.to_owned(),
            size,
            file,
        }),
        _ => Ok(out),
    }
}

/// Whose a line is that says nothing else.
fn is_of(line: &str, user: &str, number: &str) -> bool {
    let owner = line.split(':').next().unwrap_or_default();
    owner == user || owner == number
}

/// Makes the user of `default` where there is none, and gives it IDs where it has none.
fn make_default_user() -> Result<(), RemapError> {
    if uid_of(DEFAULT_USER, &read(PASSWD)?).is_none() {
        let made = Command::new("useradd")
            .args(["--system", "--no-create-home", "--shell", "/bin/false"])
            .args(["--user-group", DEFAULT_USER])
            .output()
            .map_err(|error| RemapError::Make(format!("useradd: {error}")))?;
        if !made.status.success() {
            let text = String::from_utf8_lossy(&made.stderr).trim().to_owned();
            return Err(RemapError::Make(text));
        }
    }
    for file in [SUBUID, SUBGID] {
        let text = read(file)?;
        let has_some = lines(&text, file)
            .filter_map(Result::ok)
            .any(|line| line.owner == DEFAULT_USER);
        if !has_some {
            give_range(file, &text).map_err(|source| RemapError::File { file, source })?;
        }
    }
    Ok(())
}

/// Appends a range that is behind all others.
fn give_range(file: &'static str, text: &str) -> std::io::Result<()> {
    let ends = lines(text, file)
        .filter_map(Result::ok)
        .map(|line| u64::from(line.first) + u64::from(line.size));
    let first = ends.max().unwrap_or(0).max(FIRST);
    let newline = if text.is_empty() || text.ends_with('\n') {
        ""
    } else {
        "\n"
    };
    let mut opened = std::fs::File::options()
        .append(true)
        .create(true)
        .open(file)?;
    opened.write_all(format!("{newline}{DEFAULT_USER}:{first}:{FEWEST}\n").as_bytes())?;
    opened.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    const USERS: &str = "root:x:0:0:root:/root:/bin/sh\nann:x:1000:100::/:/bin/sh\n";
    const GROUPS: &str = "root:x:0:\nusers:x:100:\nann:x:1000:\n";

    #[test]
    fn users_and_groups_are_named_in_four_ways() {
        let named = |text: &str| named_user(text, USERS, GROUPS);
        for text in ["ann", "1000", "ann:users", "1000:100"] {
            assert_eq!(named(text).unwrap(), "ann", "{text}");
        }
        assert!(matches!(named("bob"), Err(RemapError::User(_))));
        assert!(matches!(named("4242:100"), Err(RemapError::User(_))));
        assert!(matches!(named("ann:nobody"), Err(RemapError::Group(_))));
        assert!(matches!(named("root"), Err(RemapError::Root)));
        for text in ["ann:users:x", ":users", "ann:"] {
            assert!(matches!(named(text), Err(RemapError::Form)), "{text}");
        }
    }

    #[test]
    fn ranges_are_put_end_to_end() {
        let of = |text: &str| ranges("ann", 1000, text, SUBUID);
        let two = of("bob:1:x\n# a comment\nann:200000:65000\nbob:1:9\n1000:500000:1000\n");
        let range = |container, host, size| IdRange {
            container,
            host,
            size,
        };
        let expected = [range(0, 200_000, 65_000), range(65_000, 500_000, 1000)];
        assert_eq!(two.unwrap(), expected);
        assert!(matches!(of("bob:1:70000"), Err(RemapError::NoRange { .. })));
        let few = of("ann:200000:1000");
        assert!(matches!(few, Err(RemapError::TooFew { size: 1000, .. })));
        assert!(matches!(of("ann:x:70000"), Err(RemapError::Line { .. })));
        let over = of("ann:4294967295:70000");
        assert!(matches!(over, Err(RemapError::Line { .. })));
    }
}
