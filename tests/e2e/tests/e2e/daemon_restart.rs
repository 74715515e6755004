//! Containers outlive the daemon, whatever ends it.

use bulkhead_e2e::{BUSYBOX, Daemon, case, until};

const COUNTER: &str =
    r#"sh -c 'trap "exit 3" TERM; i=0; while :; do i=$((i+1)); echo $i; sleep 0.05; done'"#;

case!(kill_and_restart, |cell| {
    let cell = cell.on(Daemon::start(&[]));
    let name = cell.name("c");
    let id = cell.detached(&format!("--name {name} {BUSYBOX} {COUNTER}"));
    cell.line(&format!("logs -f {id}")).start().expect("\n5\n");
    let pid = cell.inspect(&id)["State"]["Pid"].clone();
    cell.daemon().kill();
    // It goes on while nobody serves; there is nobody to ask, so time has to do.
    std::thread::sleep(std::time::Duration::from_secs(1));
    cell.daemon().restart();
    let output = cell.cli("ps --format '{{.Names}} {{.State}}'").ok();
    assert_eq!(output.text(), format!("{name} running"));
    assert_eq!(cell.inspect(&id)["State"]["Pid"], pid);
    let kept = cell.cli(&format!("logs {id}")).ok().lines().len();
    let mut logs = cell.line(&format!("logs -f {id}")).start();
    logs.expect(&format!("\n{}\n", kept + 5));
    cell.cli(&format!("exec {id} sh -c 'exit 9'")).exits(9);
    cell.cli(&format!("top {id}")).ok().says("sh -c");
    let mut shell = cell.line(&format!("exec -it {id} sh")).terminal();
    shell.expect("# ");
    shell.send("exit 4\n");
    shell.finish().exits(4);
    cell.cli(&format!("stats --no-stream {id}"))
        .ok()
        .says(&name);
    let waiting = cell.line(&format!("wait {id}")).start();
    cell.cli(&format!("stop -t 60 {id}")).ok();
    assert_eq!(waiting.finish().ok().text(), "3");
    let lines = logs.finish().ok().lines();
    let complete = lines
        .iter()
        .zip(1..)
        .all(|(line, number)| *line == number.to_string());
    assert!(complete, "no line is lost: {lines:?}");
    cell.cli(&format!("start {id}")).ok();
    cell.cli(&format!("rm -f {id}")).ok();
    cell.nothing_left_of(&id);
    cell.finish();
});

case!(an_end_while_no_daemon_runs, |cell| {
    let cell = cell.on(Daemon::start(&[]));
    let seconds = 3;
    let kept = cell.detached(&format!(
        "{BUSYBOX} sh -c 'sleep {seconds}; echo bye; exit 8'"
    ));
    let removed =
        (!cell.is_hyperv()).then(|| cell.detached(&format!("--rm {BUSYBOX} sleep {seconds}")));
    cell.daemon().kill();
    std::thread::sleep(std::time::Duration::from_secs(seconds + 1));
    cell.daemon().restart();
    assert_eq!(cell.cli(&format!("wait {kept}")).ok().text(), "8");
    assert_eq!(cell.state(&kept), "exited");
    // Docker's logs are the daemon's own work.
    let bye = cell.now_or_then("bye", "");
    assert_eq!(cell.cli(&format!("logs {kept}")).ok().text(), bye);
    if let Some(removed) = removed {
        until("--rm is honoured", cell.limit(), || {
            (cell.state(&removed) == "gone").then_some(())
        });
        cell.nothing_left_of(&removed);
    }
    // It can be started again.
    cell.cli(&format!("start -a {kept}")).exits(8);
    cell.finish();
});

case!(an_orderly_stop_leaves_them_too, |cell| {
    let cell = cell.on(Daemon::start(&[]));
    // Docker 20.10 removes `--rm` containers when it starts, running or not.
    let rm = cell.now_or_then("--rm", "");
    let id = cell.detached(&format!("{rm} {BUSYBOX} {COUNTER}"));
    cell.line(&format!("logs -f {id}")).start().expect("\n3\n");
    cell.daemon().stop();
    cell.daemon().restart();
    assert_eq!(cell.state(&id), "running");
    cell.cli(&format!("stop -t 60 {id}")).ok();
    cell.until_state(&id, cell.now_or_then("gone", "exited"));
    cell.cli(&format!("rm -f {id}")).ok();
    cell.nothing_left_of(&id);
    cell.finish();
});

case!(attached_clients_end_and_can_come_back, |cell| {
    let cell = cell.on(Daemon::start(&[]));
    let name = cell.name("c");
    let mut shell = cell.terminal(&format!("--name {name} {BUSYBOX} sh"));
    shell.expect("# ");
    shell.send("X=kept\n");
    shell.expect("# ");
    cell.daemon().kill();
    shell.finish();
    cell.daemon().restart();
    let mut again = cell.line(&format!("attach {name}")).terminal();
    again.send("echo i''s=$X\n");
    again.expect("is=kept");
    again.send("exit 5\n");
    again.finish().exits(5);
    cell.finish();
});

case!(ours killed_in_the_middle_of_anything, |cell| {
    let cell = cell.on(Daemon::start(&[]));
    let rounds = if cell.is_hyperv() { 3 } else { 8 };
    for round in 0..rounds {
        let running: Vec<_> = (0..2)
            .map(|_| cell.running(&format!("--rm {BUSYBOX} true")).start())
            .collect();
        // Another moment of a start each time.
        std::thread::sleep(std::time::Duration::from_millis(20 + 45 * round));
        cell.daemon().kill();
        for one in running {
            one.finish();
        }
        cell.daemon().restart();
    }
    // Every container there is can be removed, and the daemon works.
    let ids = cell.cli("ps -aq --no-trunc").ok().lines();
    for id in &ids {
        cell.cli(&format!("rm -f {id}"));
    }
    until("all are gone", cell.limit(), || cell.cli("ps -aq").ok().lines().is_empty().then_some(()));
    for id in &ids {
        cell.nothing_left_of(id);
    }
    cell.run(&format!("--rm {BUSYBOX} true")).ok();
    cell.finish();
});
