//! What a daemon that comes back does by a container's policies, and what can be changed
//! while it runs.

use bulkhead_e2e::{BUSYBOX, Cell, Daemon, case, until};

/// A container that ends with 3 as soon as the host makes `go` in `directory`, which it
/// takes away.
fn ends_on_word(cell: &Cell, directory: &std::path::Path, options: &str) -> String {
    let script = "while [ ! -e /word/go ]; do sleep 0.1; done; rm /word/go; exit 3";
    cell.detached(&format!(
        "{options} -v {}:/word {BUSYBOX} sh -c '{script}'",
        directory.display()
    ))
}

/// Says the word, and waits until it was heard.
#[track_caller]
fn say(cell: &Cell, directory: &std::path::Path) {
    let word = directory.join("go");
    std::fs::write(&word, "").expect("a file");
    until("the word is heard", cell.limit(), || {
        (!word.exists()).then_some(())
    });
}

case!(ends_while_no_daemon_runs, |cell| {
    let cell = cell.on(Daemon::start(&[]));
    let directory = || tempfile::tempdir().expect("a directory");
    let (failing, limited, removed) = (directory(), directory(), directory());
    let failed = ends_on_word(&cell, failing.path(), "--restart on-failure");
    let spent = ends_on_word(&cell, limited.path(), "--restart on-failure:1");
    let gone = ends_on_word(&cell, removed.path(), "--rm -v /anonymous");
    let volumes = "volume ls -q";
    assert_eq!(cell.cli(volumes).ok().lines().len(), 1);
    // One restart is all that it has.
    say(&cell, limited.path());
    until("it runs again", cell.limit(), || {
        let shown = cell.inspect(&spent);
        (shown["RestartCount"] == 1 && shown["State"]["Status"] == "running").then_some(())
    });
    cell.daemon().kill();
    for directory in [&failing, &limited, &removed] {
        say(&cell, directory.path());
    }
    cell.daemon().restart();
    cell.until_state(&failed, "running");
    cell.until_state(&spent, "exited");
    cell.until_state(&gone, "gone");
    assert_eq!(cell.inspect(&spent)["State"]["ExitCode"], 3);
    // Docker keeps it.
    if cell.now_or_then(true, false) {
        until("its volume is gone", cell.limit(), || {
            cell.cli(volumes).ok().text().is_empty().then_some(())
        });
    }
    // A start by hand begins to count anew.
    cell.cli(&format!("start {spent}")).ok();
    assert_eq!(cell.inspect(&spent)["RestartCount"], 0);
    say(&cell, limited.path());
    until("it runs again", cell.limit(), || {
        (cell.inspect(&spent)["RestartCount"] == 1).then_some(())
    });
    cell.cli(&format!("rm -f {failed} {spent}")).ok();
    cell.finish();
});

case!(restarts_wait_longer_and_longer, |cell| {
    // Docker 20.10 can't update what ends meanwhile.
    let id = cell.detached(&format!(
        "--restart always {BUSYBOX} sh -c 'sleep 1; false'"
    ));
    // Restarting is a state of its own, and counts as running.
    until("it waits", cell.limit(), || {
        let state = cell.inspect(&id)["State"].clone();
        (state["Status"] == "restarting").then(|| {
            assert_eq!(state["Restarting"], true);
            assert_eq!(state["Running"], true);
            assert_eq!(state["ExitCode"], 1);
        })
    });
    until("it has been tried three times", cell.limit(), || {
        (cell.inspect(&id)["RestartCount"].as_u64()? >= 3).then_some(())
    });
    // Nor does a start cut it short, or begin to count anew.
    let started = cell.api("POST", &format!("/containers/{id}/start"), None);
    assert_eq!(started.status, 304, "{}", started.message());
    let count = cell.inspect(&id)["RestartCount"].as_u64();
    assert!(count >= Some(3), "{count:?}");
    // A stop ends the waiting, whatever is left of it.
    cell.cli(&format!("stop {id}")).ok();
    assert_eq!(cell.state(&id), "exited");
    // So does another policy: the next end is the last.
    cell.cli(&format!("start {id}")).ok();
    cell.cli(&format!("update --restart no {id}")).ok();
    cell.until_state(&id, "exited");
    cell.cli(&format!("rm -f {id}")).ok();
});

case!(what_runs_is_changed, |cell| {
    let limits = "-m 96m --memory-swap 96m --cpus 0.5";
    let id = cell.detached(&format!("{limits} --init {BUSYBOX} sleep 1000"));
    let update = |line: &str| cell.cli(&format!("update {line} {id}"));
    update("-m 48m --memory-swap 48m").ok();
    cell.cli(&format!("exec {id} probe eat 70")).exits(137);
    update("-m 96m --memory-swap 96m").ok();
    cell.cli(&format!("exec {id} probe eat 70")).ok();
    update("-m 128m --memory-swap 128m --cpus 1").ok();
    // Processes that are there do not go, further ones are refused.
    update("--pids-limit 12").ok();
    assert_eq!(cell.inspect(&id)["HostConfig"]["PidsLimit"], 12);
    let many = "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do sleep 2 & done; wait; echo all";
    let output = cell.cli(&format!("exec {id} sh -c '{many}'"));
    assert!(!output.text().contains("all"), "{output}");
    output.says("fork");
    update("--pids-limit -1").ok();
    cell.cli(&format!("exec {id} sh -c '{many}'"))
        .ok()
        .says("all");
    // What is refused changes nothing.
    let before = cell.inspect(&id)["HostConfig"].clone();
    for (line, words) in [
        ("-m 1m", "minimum memory limit"),
        ("--cpus 1000", "cpu"),
        ("--restart no:3", "maximum retry count"),
    ] {
        update(line).fails().says(words);
    }
    assert_eq!(cell.inspect(&id)["HostConfig"], before);
    // A policy holds from the next end on.
    let script = "mkfifo /go; read word </go; exit 3";
    let id = cell.detached(&format!("{BUSYBOX} sh -c '{script}'"));
    cell.cli(&format!("update --restart on-failure:1 {id}"))
        .ok();
    cell.cli(&format!(
        "exec {id} sh -c 'until [ -p /go ]; do :; done; echo >/go'"
    ))
    .ok();
    until("it runs again", cell.limit(), || {
        let shown = cell.inspect(&id);
        (shown["RestartCount"] == 1 && shown["State"]["Status"] == "running").then_some(())
    });
});

case!(ours copies_of_what_changes, |cell| {
    let directory = tempfile::tempdir().expect("a directory");
    let script = "mkdir -p /tree; while :; do \
                  mkdir -p /tree/a/b; echo one >/tree/a/b/file; ln -s /etc/passwd /tree/a/link; \
                  dd if=/dev/zero of=/tree/grows bs=64k count=40 2>/dev/null; \
                  mv /tree/a /tree/c; rm -r /tree/c; : >/tree/grows; done";
    let id = cell.detached(&format!("{BUSYBOX} sh -c '{script}'"));
    until("there is a tree", cell.limit(), || {
        let look = cell.cli(&format!("exec {id} test -d /tree"));
        (look.code == 0).then_some(())
    });
    for round in 0..12 {
        let to = directory.path().join(round.to_string());
        // A whole archive, of whatever was there; or docker's word for what is not there now.
        let copied = cell.cli(&format!("cp {id}:/tree {}", to.display()));
        assert!(
            copied.code == 0 || copied.err().to_lowercase().contains("no such"),
            "{copied}"
        );
        let archive = cell.cli(&format!("cp {id}:/tree/grows -"));
        if archive.code == 0 {
            let mut entries = tar::Archive::new(archive.stdout.as_slice());
            for entry in entries.entries().expect("an archive") {
                let mut entry = entry.expect("a whole entry");
                let size = entry.size();
                let read = std::io::copy(&mut entry, &mut std::io::sink());
                assert_eq!(read.expect("its bytes"), size);
            }
        }
        // Into what comes and goes.
        let file = directory.path().join("in");
        std::fs::write(&file, "in").expect("a file");
        let into = cell.cli(&format!("cp {} {id}:/tree/a/in", file.display()));
        let refused = ["no such", "could not find", "not found"];
        assert!(
            into.code == 0
                || refused
                    .iter()
                    .any(|word| into.err().to_lowercase().contains(word)),
            "{into}"
        );
    }
    assert_eq!(cell.state(&id), "running");
});
