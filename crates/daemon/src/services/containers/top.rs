//! `docker top`: processes as `ps` prints them, from what the supervisor tells, so that it
//! is the same for every isolation. No `ps` is run.

use bulkhead_isolation::ProcessInfo;
use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::error::{ApiError, ApiResult};

/// A table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Heads of the columns.
    pub titles: Vec<String>,
    /// Rows.
    pub rows: Vec<Vec<String>>,
}

type Column = (&'static str, fn(&ProcessInfo, &Clock) -> String);

/// What is needed to print times.
struct Clock {
    now: Timestamp,
    zone: TimeZone,
}

/// Makes the table that `ps <args>` would print of these processes.
///
/// # Errors
/// 400 for arguments that are not known here.
pub fn table(args: &str, mut processes: Vec<ProcessInfo>) -> ApiResult<Table> {
    let columns = columns(args)?;
    processes.sort_by_key(|process| process.pid);
    let clock = Clock {
        now: Timestamp::now(),
        zone: TimeZone::system(),
    };
    Ok(Table {
        titles: columns.iter().map(|(title, _)| title.clone()).collect(),
        rows: processes
            .iter()
            .map(|process| {
                columns
                    .iter()
                    .map(|(_, format)| format(process, &clock))
                    .collect()
            })
            .collect(),
    })
}

type Chosen = Vec<(String, fn(&ProcessInfo, &Clock) -> String)>;

fn columns(args: &str) -> ApiResult<Chosen> {
    let unknown = |what: &str| {
        ApiError::bad_request(format!(
            "ps: unknown option or column '{what}': known are -ef, aux, and -o with columns such \
             as pid,ppid,user,comm,args"
        ))
    };
    let mut words = args.split_whitespace();
    let mut chosen: Chosen = Vec::new();
    let mut preset: Option<&[&str]> = None;
    while let Some(word) = words.next() {
        let bare = word.trim_start_matches('-');
        if let Some(list) = word.strip_prefix("--format=") {
            chosen.extend(named(list)?);
            continue;
        }
        if word == "--format" || word == "--forest" || word == "--no-headers" {
            if word == "--format" {
                let list = words.next().ok_or_else(|| unknown(word))?;
                chosen.extend(named(list)?);
                continue;
            }
            return Err(unknown(word));
        }
        // `-o pid,comm`, `-opid`, `-eo pid`, `o pid`.
        if let Some((flags, list)) = bare.split_once('o') {
            if !flags.chars().all(|c| "eAaxwf".contains(c)) {
                return Err(unknown(word));
            }
            let list = if list.is_empty() {
                words.next().ok_or_else(|| unknown(word))?
            } else {
                list
            };
            chosen.extend(named(list)?);
            continue;
        }
        if bare.is_empty() || !bare.chars().all(|c| "eAafxuwlFjly".contains(c)) {
            return Err(unknown(word));
        }
        let bsd = !word.starts_with('-');
        for flag in bare.chars() {
            preset = match flag {
                'u' if bsd || bare.contains(['a', 'x']) => Some(USER),
                'f' | 'F' if !bsd => Some(FULL),
                'l' => Some(LONG),
                'j' => Some(JOBS),
                _ => preset,
            };
        }
    }
    if chosen.is_empty() {
        let list = preset.unwrap_or(if args.trim().is_empty() { FULL } else { SHORT });
        chosen = list
            .iter()
            .filter_map(|name| find(name))
            .map(|(title, format)| (title.to_owned(), format))
            .collect();
    }
    Ok(chosen)
}

/// `pid,comm=NAME,…`.
fn named(list: &str) -> ApiResult<Chosen> {
    list.split(',')
        .map(|item| {
            let (name, title) = match item.split_once('=') {
                Some((name, title)) => (name, Some(title)),
                None => (item, None),
            };
            let (own, format) = find(&name.to_ascii_lowercase()).ok_or_else(|| {
                ApiError::bad_request(format!(
                    "error: unknown user-defined format specifier \"{name}\""
                ))
            })?;
            Ok((title.unwrap_or(own).to_owned(), format))
        })
        .collect()
}

const FULL: &[&str] = &["ruid", "pid", "ppid", "c", "stime", "tty", "time", "cmd"];
const USER: &[&str] = &[
    "user",
    "pid",
    "%cpu",
    "%mem",
    "vsz",
    "rss",
    "tty",
    "stat",
    "start_bsd",
    "bsdtime",
    "command",
];
const LONG: &[&str] = &[
    "s", "user", "pid", "ppid", "c", "pri", "ni", "vsz", "wchan", "tty", "time", "ucmd",
];
const JOBS: &[&str] = &["pid", "pgid", "sid", "tty", "time", "ucmd"];
const SHORT: &[&str] = &["pid", "tty", "time", "ucmd"];

fn find(name: &str) -> Option<Column> {
    Some(match name {
        "ruid" => ("UID", |p, _| p.user.clone()),
        "user" | "euser" | "ruser" | "uname" | "u" => ("USER", |p, _| p.user.clone()),
        "uid" | "euid" => ("UID", |p, _| p.uid.to_string()),
        "group" | "egroup" | "rgroup" => ("GROUP", |p, _| p.group.clone()),
        "gid" | "egid" | "rgid" => ("GID", |p, _| p.gid.to_string()),
        "pid" | "tgid" => ("PID", |p, _| p.pid.to_string()),
        "ppid" => ("PPID", |p, _| p.ppid.to_string()),
        "pgid" | "pgrp" => ("PGID", |p, _| p.pgid.to_string()),
        "sid" | "sess" | "session" => ("SID", |p, _| p.sid.to_string()),
        "nlwp" | "thcount" => ("NLWP", |p, _| p.threads.to_string()),
        "c" => ("C", |p, _| format!("{:.0}", cpu_percent(p).floor())),
        "%cpu" | "pcpu" => ("%CPU", |p, _| format!("{:.1}", cpu_percent(p))),
        "%mem" | "pmem" => ("%MEM", |p, _| format!("{:.1}", p.memory_percent)),
        "vsz" | "vsize" => ("VSZ", |p, _| p.vsz.to_string()),
        "rss" | "rssize" | "rsz" => ("RSS", |p, _| p.rss.to_string()),
        "tty" | "tt" | "tname" => ("TTY", |p, _| p.tty.clone()),
        "stat" => ("STAT", |p, _| p.stat.clone()),
        "s" | "state" => ("S", |p, _| p.stat.chars().take(1).collect()),
        "ni" | "nice" => ("NI", |p, _| p.nice.to_string()),
        "pri" => ("PRI", |p, _| p.priority.to_string()),
        "stime" => ("STIME", started_short),
        "start_bsd" | "start" => ("START", started_short),
        "start_time" => ("START", started_short),
        "lstart" => ("STARTED", |p, clock| {
            Timestamp::from_second(p.started_at)
                .map(|at| {
                    at.to_zoned(clock.zone.clone())
                        .strftime("%a %b %e %H:%M:%S %Y")
                        .to_string()
                })
                .unwrap_or_default()
        }),
        "etime" => ("ELAPSED", |p, _| elapsed(p.elapsed)),
        "etimes" => ("ELAPSED", |p, _| p.elapsed.to_string()),
        "time" | "cputime" => ("TIME", |p, _| {
            let total = seconds(p.cpu_seconds);
            let (days, rest) = (total / 86_400, total % 86_400);
            let clock = format!("{:02}:{:02}:{:02}", rest / 3600, rest / 60 % 60, rest % 60);
            if days > 0 {
                format!("{days}-{clock}")
            } else {
                clock
            }
        }),
        "bsdtime" => ("TIME", |p, _| {
            let total = seconds(p.cpu_seconds);
            format!("{}:{:02}", total / 60, total % 60)
        }),
        "wchan" => ("WCHAN", |p, _| p.wchan.clone()),
        "comm" | "ucomm" => ("COMMAND", |p, _| p.comm.clone()),
        "ucmd" => ("CMD", |p, _| p.comm.clone()),
        "cmd" => ("CMD", |p, _| p.args.clone()),
        "args" | "command" => ("COMMAND", |p, _| p.args.clone()),
        _ => return None,
    })
}

fn cpu_percent(process: &ProcessInfo) -> f64 {
    // Ages are far below 2^32 seconds.
    let age = f64::from(u32::try_from(process.elapsed).unwrap_or(u32::MAX));
    if age > 0.0 {
        process.cpu_seconds * 100.0 / age
    } else {
        0.0
    }
}

/// Whole seconds of a non-negative time.
fn seconds(time: f64) -> u64 {
    std::time::Duration::try_from_secs_f64(time)
        .map(|time| time.as_secs())
        .unwrap_or(0)
}

/// `14:03` when it was less than a day ago, else `Nov23`, else the year.
fn started_short(process: &ProcessInfo, clock: &Clock) -> String {
    let Ok(at) = Timestamp::from_second(process.started_at) else {
        return "?".to_owned();
    };
    let at = at.to_zoned(clock.zone.clone());
    let now = clock.now.to_zoned(clock.zone.clone());
    if clock.now.as_second() - process.started_at < 86_400 && at.date() == now.date() {
        at.strftime("%H:%M").to_string()
    } else if at.year() == now.year() {
        at.strftime("%b%d").to_string()
    } else {
        at.strftime("%Y").to_string()
    }
}

/// `[[dd-]hh:]mm:ss`.
fn elapsed(total: u64) -> String {
    let (days, hours, minutes, seconds) = (
        total / 86_400,
        total / 3600 % 24,
        total / 60 % 60,
        total % 60,
    );
    if days > 0 {
        format!("{days}-{hours:02}:{minutes:02}:{seconds:02}")
    } else if hours > 0 {
        format!("{hours:02}:{minutes:02}:{seconds:02}")
    } else {
        format!("{minutes:02}:{seconds:02}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process() -> ProcessInfo {
        ProcessInfo {
            pid: 42,
            ppid: 1,
            user: "root".to_owned(),
            comm: "ping".to_owned(),
            args: "ping localhost".to_owned(),
            stat: "Ss".to_owned(),
            tty: "?".to_owned(),
            started_at: Timestamp::now().as_second(),
            elapsed: 100,
            cpu_seconds: 61.5,
            ..ProcessInfo::default()
        }
    }

    #[test]
    fn the_default_is_full() {
        let table = table("-ef", vec![process()]).unwrap();
        assert_eq!(
            table.titles,
            ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]
        );
        assert_eq!(table.rows[0][6], "00:01:01");
        assert_eq!(table.rows[0][7], "ping localhost");
    }

    #[test]
    fn other_formats() {
        assert_eq!(
            table("aux", vec![process()]).unwrap().titles[..4],
            ["USER", "PID", "%CPU", "%MEM"]
        );
        for args in ["-o pid,comm", "-eo pid,comm", "-opid,comm", "o pid,comm"] {
            let table = table(args, vec![process()]).unwrap();
            assert_eq!(table.titles, ["PID", "COMMAND"], "{args}");
            assert_eq!(table.rows, [["42", "ping"]], "{args}");
        }
        assert_eq!(table("-o pid=NR", vec![]).unwrap().titles, ["NR"]);
        for args in ["--nope", "-o nope", "-o", "-z"] {
            assert!(table(args, vec![]).is_err(), "{args}");
        }
    }
}
