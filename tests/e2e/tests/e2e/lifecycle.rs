//! From created to removed.

use bulkhead_e2e::{BUSYBOX, case, until};

/// A payload that ends with 3 on SIGTERM and says when it is ready for it.
const POLITE: &str =
    r#"sh -c 'trap "exit 3" TERM; trap "echo usr1" USR1; echo ready; while :; do sleep 0.1; done'"#;
/// A payload that ignores SIGTERM.
const STUBBORN: &str = r#"sh -c 'trap "" TERM; echo ready; while :; do sleep 0.1; done'"#;

fn ready(cell: &bulkhead_e2e::Cell, id: &str) {
    let mut logs = cell.line(&format!("logs -f {id}")).start();
    logs.expect("ready");
}

case!(create_start_wait, |cell| {
    let id = cell.create(&format!("{BUSYBOX} sh -c 'echo out; exit 5'"));
    assert_eq!(cell.state(&id), "created");
    let output = cell.cli(&format!("start {id}")).ok();
    assert_eq!(output.text(), id);
    let output = cell.cli(&format!("wait {id}")).ok();
    assert_eq!(output.text(), "5");
    cell.until_state(&id, "exited");
    assert_eq!(cell.inspect(&id)["State"]["ExitCode"], 5);
    // Again, attached: output and exit code are this run's.
    let output = cell.cli(&format!("start -a {id}")).exits(5);
    assert_eq!(output.text(), "out");
});

case!(start_with_stdin, |cell| {
    let id = cell.create(&format!("-i {BUSYBOX} cat"));
    let output = cell
        .line(&format!("start -ai {id}"))
        .stdin("hello")
        .output()
        .ok();
    assert_eq!(output.text(), "hello");
});

case!(stop_is_sigterm_first, |cell| {
    let id = cell.detached(&format!("{BUSYBOX} {POLITE}"));
    ready(cell, &id);
    let output = cell.cli(&format!("stop -t 60 {id}")).ok();
    assert_eq!(output.text(), id);
    let state = cell.inspect(&id)["State"].clone();
    assert_eq!(
        (&state["ExitCode"], &state["Status"]),
        (&3.into(), &"exited".into())
    );
    // Stopping what has stopped is no error.
    cell.cli(&format!("stop {id}")).ok();
});

case!(stop_kills_after_the_timeout, |cell| {
    let id = cell.detached(&format!("{BUSYBOX} {STUBBORN}"));
    ready(cell, &id);
    cell.cli(&format!("stop -t 1 {id}")).ok();
    assert_eq!(cell.inspect(&id)["State"]["ExitCode"], 137);
});

case!(stop_signal_of_the_container, |cell| {
    let id = cell.detached(&format!(
        r#"--stop-signal USR2 {BUSYBOX} sh -c 'trap "exit 4" USR2; echo ready; while :; do sleep 0.1; done'"#
    ));
    ready(cell, &id);
    cell.cli(&format!("stop -t 60 {id}")).ok();
    assert_eq!(cell.inspect(&id)["State"]["ExitCode"], 4);
});

case!(ours stop_with_a_signal, |cell| {
    let id = cell.detached(&format!(
        r#"{BUSYBOX} sh -c 'trap "exit 6" INT; echo ready; while :; do sleep 0.1; done'"#
    ));
    ready(cell, &id);
    cell.cli(&format!("stop --signal INT -t 60 {id}")).ok();
    assert_eq!(cell.inspect(&id)["State"]["ExitCode"], 6);
});

case!(kill, |cell| {
    let id = cell.detached(&format!("{BUSYBOX} {POLITE}"));
    ready(cell, &id);
    cell.cli(&format!("kill -s USR1 {id}")).ok();
    let mut logs = cell.line(&format!("logs -f {id}")).start();
    logs.expect("usr1");
    assert_eq!(cell.state(&id), "running");
    cell.cli(&format!("kill --signal SIGTERM {id}")).ok();
    let output = cell.cli(&format!("wait {id}")).ok();
    assert_eq!(output.text(), "3");
    cell.cli(&format!("kill {id}")).exits(1).says("not running");
    cell.cli(&format!("start {id}")).ok();
    cell.cli(&format!("kill {id}")).ok();
    assert_eq!(cell.cli(&format!("wait {id}")).ok().text(), "137");
    cell.cli(&format!("start {id}")).ok();
    cell.cli(&format!("kill -s NOSUCH {id}"))
        .exits(1)
        .says("NOSUCH");
});

case!(
    a_killed_container_ends_its_client_with_128_and_the_signal,
    |cell| {
        let name = cell.name("c");
        let mut running = cell
            .running(&format!("--name {name} {BUSYBOX} {POLITE}"))
            .start();
        running.expect("ready");
        cell.cli(&format!("kill {name}")).ok();
        running.finish().exits(137);
    }
);

case!(restart_keeps_the_writable_layer, |cell| {
    let id = cell.detached(&format!(
        "{BUSYBOX} sh -c 'echo x >>/count; wc -l </count; echo ready; exec sleep 600'"
    ));
    ready(cell, &id);
    let first = cell.inspect(&id)["State"]["StartedAt"].clone();
    cell.cli(&format!("restart -t 0 {id}")).ok();
    let mut logs = cell.line(&format!("logs -f {id}")).start();
    logs.expect("1\nready\n");
    logs.expect("2\nready\n");
    assert_ne!(cell.inspect(&id)["State"]["StartedAt"], first);
    cell.cli(&format!("stop -t 0 {id}")).ok();
    // A stopped one is simply started.
    cell.cli(&format!("restart {id}")).ok();
    let mut logs = cell.line(&format!("logs -f {id}")).start();
    logs.expect("3\nready\n");
});

case!(remove, |cell| {
    let name = cell.name("c");
    let id = cell.detached(&format!("--name {name} {BUSYBOX} sleep 600"));
    cell.cli(&format!("rm {name}")).exits(1).says("running");
    assert_eq!(cell.state(&id), "running");
    let output = cell.cli(&format!("rm -f {name}")).ok();
    assert_eq!(output.text(), name);
    cell.cli(&format!("rm {name}"))
        .exits(1)
        .says("no such container")
        .says(&name);
    cell.nothing_left_of(&id);
    // The good ones of several go, and the bad one is named.
    let id = cell.create(&format!("{BUSYBOX} true"));
    let output = cell
        .cli(&format!("rm {} no-such-thing", &id[..10]))
        .exits(1);
    assert!(
        output
            .clone()
            .says("no-such-thing")
            .text()
            .contains(&id[..10])
    );
    assert_eq!(cell.state(&id), "gone");
});

case!(names_resolve, |cell| {
    let name = cell.name("c");
    let id = cell.create(&format!("--name {name} {BUSYBOX} true"));
    for reference in [name.as_str(), &id, &id[..12], &id[..6]] {
        assert_eq!(cell.inspect(reference)["Id"], id, "{reference}");
    }
});

case!(rename, |cell| {
    let (old, new) = (cell.name("c"), cell.name("c"));
    let id = cell.create(&format!("--name {old} {BUSYBOX} true"));
    let other = cell.name("c");
    let second = cell.create(&format!("--name {other} {BUSYBOX} true"));
    cell.cli(&format!("rename {old} {new}")).ok();
    assert_eq!(cell.inspect(&new)["Id"], id);
    cell.cli(&format!("inspect {old}")).exits(1);
    cell.cli(&format!("rename {new} {other}"))
        .exits(1)
        .says(&other);
    assert_eq!(cell.inspect(&other)["Id"], second);
    // The old name is free.
    let third = cell.create(&format!("--name {old} {BUSYBOX} true"));
    assert_ne!(third, id);
});

case!(pause_freezes, |cell| {
    let id = cell.detached(&format!(
        "{BUSYBOX} sh -c 'i=0; while :; do i=$((i+1)); echo $i.; sleep 0.05; done'"
    ));
    let mut logs = cell.line(&format!("logs -f {id}")).start();
    logs.expect("3.");
    cell.cli(&format!("pause {id}")).ok();
    assert_eq!(cell.state(&id), "paused");
    cell.cli("ps").ok().says("(Paused)");
    cell.cli(&format!("pause {id}")).exits(1).says("paused");
    cell.cli(&format!("exec {id} true")).exits(1).says("paused");
    // What was on its way arrives; then nothing more is written.
    let lines = || cell.cli(&format!("logs {id}")).ok().lines().len();
    let settled = until("output stops", cell.limit(), || {
        let before = lines();
        std::thread::sleep(std::time::Duration::from_millis(500));
        (lines() == before).then_some(before)
    });
    assert_eq!(lines(), settled);
    cell.cli(&format!("unpause {id}")).ok();
    assert_eq!(cell.state(&id), "running");
    logs.expect(&format!("\n{}.", settled + 3));
    cell.cli(&format!("unpause {id}"))
        .exits(1)
        .says("not paused");
    // A paused one can be removed by force.
    cell.cli(&format!("pause {id}")).ok();
    cell.cli(&format!("rm -f {id}")).ok();
    cell.nothing_left_of(&id);
});

case!(wait_for_several, |cell| {
    let first = cell.detached(&format!("{BUSYBOX} sh -c 'exit 1'"));
    let second = cell.create(&format!("{BUSYBOX} sh -c 'exit 2'"));
    cell.cli(&format!("start {second}")).ok();
    let output = cell.cli(&format!("wait {first} {second}")).ok();
    assert_eq!(output.lines(), ["1", "2"]);
    cell.cli("wait no-such-thing")
        .exits(1)
        .says("no-such-thing");
});

case!(wait_sees_the_end, |cell| {
    let id = cell.detached(&format!("{BUSYBOX} {POLITE}"));
    ready(cell, &id);
    let waiting = cell.line(&format!("wait {id}")).start();
    cell.cli(&format!("stop -t 60 {id}")).ok();
    assert_eq!(waiting.finish().ok().text(), "3");
});

case!(what_runs_is_started_once, |cell| {
    let id = cell.detached(&format!("{BUSYBOX} sleep 600"));
    let pid = cell.inspect(&id)["State"]["Pid"].clone();
    cell.cli(&format!("start {id}")).ok();
    assert_eq!(cell.inspect(&id)["State"]["Pid"], pid);
    assert_ne!(pid, 0);
});

case!(a_removed_container_leaves_no_file, |cell| {
    // Against the reference this compares nothing that Docker promises.
    let id = cell.detached(&format!(
        "{BUSYBOX} sh -c 'dd if=/dev/zero of=/big bs=1M count=5; sleep 600'"
    ));
    cell.cli(&format!("rm -f {id}")).ok();
    let mut left = Vec::new();
    let daemon = cell.daemon();
    for root in [daemon.data_root(), daemon.exec_root()] {
        bulkhead_e2e::host::walk(&root, 8, &mut |path, _| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.contains(&id[..12]) {
                left.push(path.to_owned());
            }
        });
    }
    assert!(left.is_empty(), "{left:?}");
    cell.nothing_left_of(&id);
});
