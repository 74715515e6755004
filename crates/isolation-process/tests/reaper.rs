//! A reaper takes the children of the whole process, so this is a program of its own with
//! one test: beside others it would take theirs.
#![allow(clippy::unwrap_used)]

use std::process::Command;

use bulkhead_isolation_process::Reaper;
use rustix::process::{Pid, Signal};

#[tokio::test]
async fn children_and_grandchildren() {
    let reaper = Reaper::start().unwrap();
    let child = reaper
        .spawn(Command::new("sh").args(["-c", "exit 7"]))
        .unwrap();
    assert_eq!(child.wait().await.code, 7);
    assert_eq!(child.wait().await.code, 7);
    assert!(reaper.kill(child.pid(), Signal::TERM).is_err());

    let sleeper = reaper.spawn(Command::new("sleep").arg("1000")).unwrap();
    reaper.kill(sleeper.pid(), Signal::TERM).unwrap();
    assert_eq!(sleeper.wait().await.code, 143);

    // An orphan that has ended before its number is known.
    let expected = reaper.expect();
    let file = std::env::temp_dir().join(format!("reaper-{}", std::process::id()));
    // Its parent must not be a shell when it ends: that might reap it itself.
    let script = format!(
        "(sleep 0.1; exit 9) & echo $! > {}; exec sleep 0.3",
        file.display()
    );
    let parent = reaper
        .spawn(Command::new("sh").args(["-c", &script]))
        .unwrap();
    parent.wait().await;
    let pid: i32 = std::fs::read_to_string(&file)
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    std::fs::remove_file(&file).unwrap();
    let orphan = reaper.adopt(Pid::from_raw(pid).unwrap(), &expected);
    assert_eq!(orphan.wait().await.code, 9);
}
