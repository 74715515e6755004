//! What `ps` would say about processes, read from `/proc`; names of users and groups from
//! this system's own `/etc/passwd` and `/etc/group`, without the name service switch,
//! which a static binary has not got.

use std::collections::HashMap;
use std::fs;

use bulkhead_isolation::ProcessInfo;

/// What is the same for every process of one listing.
pub struct Listing {
    users: HashMap<u32, String>,
    groups: HashMap<u32, String>,
    boot_time: i64,
    uptime: f64,
    memory_kib: u64,
}

/// `USER_HZ`, 100 on every architecture we build for.
const TICKS: u32 = 100;
/// Most bytes of a command line that are shown.
const MAX_COMMAND: usize = 64 * 1024;

impl Listing {
    /// Reads the system's half.
    pub fn new() -> Self {
        let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
        let boot_time = stat
            .lines()
            .find_map(|line| line.strip_prefix("btime "))
            .and_then(|value| value.trim().parse().ok());
        let uptime = fs::read_to_string("/proc/uptime").unwrap_or_default();
        let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        Self {
            users: names("/etc/passwd"),
            groups: names("/etc/group"),
            boot_time: boot_time.unwrap_or(0),
            uptime: uptime
                .split(' ')
                .next()
                .and_then(|value| value.parse().ok())
                .unwrap_or(0.0),
            memory_kib: kib(&memory, "MemTotal:"),
        }
    }

    /// One process; `None` when it has gone.
    pub fn read(&self, pid: i32) -> Option<ProcessInfo> {
        let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
        let stat = String::from_utf8_lossy(&stat);
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let wchan = fs::read_to_string(format!("/proc/{pid}/wchan")).unwrap_or_default();
        self.parse(&stat, &status, &command, &wchan)
    }

    fn parse(&self, stat: &str, status: &str, command: &[u8], wchan: &str) -> Option<ProcessInfo> {
        // comm may contain anything, parentheses and blanks too: it ends at the last `)`.
        let (pid, rest) = stat.split_once(" (")?;
        let (comm, rest) = rest.rsplit_once(") ")?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        // Fields are numbered from 1 in proc(5); the third, the state, is the first here.
        let field = |number: usize| fields.get(number - 3).copied().unwrap_or_default();
        let value = |number: usize| field(number).parse::<i64>().unwrap_or(0);
        let natural = |number: usize| u32::try_from(value(number)).unwrap_or(0);
        let large = |number: usize| field(number).parse::<u64>().unwrap_or(0);

        let (pid, pgid, sid) = (pid.parse().ok()?, natural(5), natural(6));
        let threads = natural(20);
        let nice = i32::try_from(value(19)).unwrap_or(0);
        let start = seconds(large(22));
        let uid = id(status, "Uid:");
        let gid = id(status, "Gid:");
        let rss = kib(status, "VmRSS:");
        Some(ProcessInfo {
            pid,
            ppid: natural(4),
            pgid,
            sid,
            threads,
            uid,
            gid,
            user: self
                .users
                .get(&uid)
                .cloned()
                .unwrap_or_else(|| uid.to_string()),
            group: self
                .groups
                .get(&gid)
                .cloned()
                .unwrap_or_else(|| gid.to_string()),
            comm: comm.to_owned(),
            args: arguments(command, comm),
            stat: letters(
                field(3),
                &Traits {
                    nice,
                    leader: pid == sid,
                    threads,
                    locked: kib(status, "VmLck:") > 0,
                    foreground: value(8) > 0 && value(8) == i64::from(pgid),
                },
            ),
            tty: terminal(value(7)),
            nice,
            priority: i32::try_from(value(18)).unwrap_or(0),
            started_at: self.boot_time.saturating_add(whole(start)),
            elapsed: u64::try_from(whole(self.uptime - start)).unwrap_or(0),
            cpu_seconds: seconds(large(14).saturating_add(large(15))),
            vsz: large(23) / 1024,
            rss,
            memory_percent: percent(rss, self.memory_kib),
            wchan: match wchan.trim() {
                "" | "0" => "-".to_owned(),
                name => name.to_owned(),
            },
        })
    }
}

/// A count of ticks in seconds.
fn seconds(ticks: u64) -> f64 {
    // Ticks in 32 bits are 497 days of CPU time or uptime, so keep the halves apart.
    let high = u32::try_from(ticks >> 32).unwrap_or(u32::MAX);
    let low = u32::try_from(ticks & 0xffff_ffff).unwrap_or(0);
    (f64::from(high) * 4_294_967_296.0 + f64::from(low)) / f64::from(TICKS)
}

/// Whole seconds, downwards.
fn whole(seconds: f64) -> i64 {
    // Durations on one machine are far from the limits of 64 bits.
    jiff::SignedDuration::try_from_secs_f64(seconds.floor())
        .map_or(0, |duration| duration.as_secs())
}

fn percent(part: u64, total: u64) -> f64 {
    match (u32::try_from(part), u32::try_from(total)) {
        (Ok(part), Ok(total)) if total > 0 => 100.0 * f64::from(part) / f64::from(total),
        // More than 4 TiB: the share in units of MiB.
        _ if total >> 10 > 0 => percent(part >> 10, total >> 10),
        _ => 0.0,
    }
}

fn names(path: &str) -> HashMap<u32, String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let mut names = HashMap::new();
    for line in text.lines() {
        let mut fields = line.split(':');
        if let (Some(name), Some(Ok(number))) = (fields.next(), fields.nth(1).map(str::parse)) {
            names.entry(number).or_insert_with(|| name.to_owned());
        }
    }
    names
}

/// The effective one of the four numbers in a line of `status`.
fn id(status: &str, key: &str) -> u32 {
    let line = status.lines().find_map(|line| line.strip_prefix(key));
    line.and_then(|line| line.split_ascii_whitespace().nth(1)?.parse().ok())
        .unwrap_or(0)
}

fn kib(text: &str, key: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    line.and_then(|line| line.split_ascii_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}

fn arguments(command: &[u8], comm: &str) -> String {
    let command = command.get(..MAX_COMMAND).unwrap_or(command);
    let end = command.iter().rposition(|byte| *byte != 0);
    match end {
        None => format!("[{comm}]"),
        Some(end) => {
            let parts = command
                .get(..=end)
                .unwrap_or_default()
                .split(|byte| *byte == 0);
            let parts: Vec<_> = parts.map(String::from_utf8_lossy).collect();
            parts.join(" ")
        }
    }
}

struct Traits {
    nice: i32,
    leader: bool,
    threads: u32,
    locked: bool,
    foreground: bool,
}

/// `ps`'s state column: the kernel's letter and its own.
fn letters(state: &str, traits: &Traits) -> String {
    let mut letters = state.to_owned();
    match traits.nice {
        ..0 => letters.push('<'),
        0 => {}
        1.. => letters.push('N'),
    }
    let rest = [
        (traits.locked, 'L'),
        (traits.leader, 's'),
        (traits.threads > 1, 'l'),
        (traits.foreground, '+'),
    ];
    letters.extend(
        rest.iter()
            .filter(|(set, _)| *set)
            .map(|(_, letter)| letter),
    );
    letters
}

/// A terminal by its device number, which the kernel packs as `new_encode_dev` does.
fn terminal(device: i64) -> String {
    let device = u64::try_from(device).unwrap_or(0);
    let major = (device >> 8) & 0xfff;
    let minor = (device & 0xff) | ((device >> 12) & 0xf_ff00);
    match major {
        0 => "?".to_owned(),
        136..=143 => format!("pts/{}", (major - 136) * 256 + minor),
        4 if minor < 64 => format!("tty{minor}"),
        4 => format!("ttyS{}", minor - 64),
        229 => format!("hvc{minor}"),
        _ => format!("{major},{minor}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses() {
        let listing = Listing::new();
        let stat = "42 (a) b (c) S 1 42 42 34816 42 4194560 1 0 0 0 150 50 0 0 20 0 1 0 100 \
                    2048000 10 18446744073709551615";
        let info = listing
            .parse(stat, "Uid:\t0\t7\t0\t0\n", b"x\0y z\0", "0")
            .unwrap();
        assert_eq!(
            (info.pid, info.comm.as_str(), info.ppid),
            (42, "a) b (c", 1)
        );
        assert_eq!((info.stat.as_str(), info.tty.as_str()), ("Ss+", "pts/0"));
        assert_eq!((info.uid, info.args.as_str()), (7, "x y z"));
        assert!((info.cpu_seconds - 2.0).abs() < 1e-9);
        assert_eq!((info.vsz, info.wchan.as_str()), (2000, "-"));
    }

    #[test]
    fn this_process() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let info = Listing::new().read(pid).unwrap();
        assert!(info.rss > 0 && info.elapsed < 3600 && info.started_at > 1_600_000_000);
    }

    #[test]
    fn no_arguments_shows_the_name() {
        assert_eq!(arguments(b"", "kthread"), "[kthread]");
        assert_eq!(arguments(b"\0\0", "x"), "[x]");
    }
}
