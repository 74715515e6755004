//! `exec`.

use bulkhead_e2e::{BUSYBOX, Cell, case, until};

fn sleeper(cell: &Cell) -> String {
    cell.detached(&format!("-e OWN=container {BUSYBOX} sleep 600"))
}

case!(everywhere exit_codes, |cell| {
    let id = sleeper(cell);
    cell.cli(&format!("exec {id} sh -c 'exit 42'")).exits(42);
    cell.cli(&format!("exec {id} true")).ok();
    cell.cli(&format!("exec {id} no-such-command"))
        .exits(cell.now_or_then(127, 126))
        .says("no-such-command");
    cell.cli(&format!("exec {id} /etc/not-executable"))
        .exits(126)
        .says("/etc/not-executable");
    cell.cli(&format!("exec {id} sh -c 'kill -9 $$'"))
        .exits(137);
    // None of that disturbed the container.
    assert_eq!(cell.state(&id), "running");
});

case!(everywhere environment_directory_user, |cell| {
    let id = sleeper(cell);
    let output = cell
        .cli(&format!("exec -e EXTRA=exec -w /home/user -u user {id} sh -c 'echo $OWN $EXTRA; pwd; id -u; echo $HOME'"))
        .ok();
    assert_eq!(
        output.lines(),
        ["container exec", "/home/user", "1000", "/home/user"]
    );
    cell.cli(&format!("exec -u no-such-user {id} true"))
        .fails()
        .says("no-such-user");
});

case!(everywhere a_directory_that_is_not_there, |cell| {
    let id = sleeper(cell);
    for (path, reason) in [
        ("/nope", "no such file or directory"),
        ("/etc/passwd", "not a directory"),
    ] {
        cell.cli(&format!("exec -w {path} {id} pwd"))
            .exits(cell.now_or_then(127, 126))
            .says("OCI runtime exec failed: exec failed: unable to start container process: chdir")
            .says(&format!(
                "chdir to cwd (\"{path}\") set in config.json failed: {reason}: unknown"
            ));
    }
    assert_eq!(cell.state(&id), "running");
});

case!(everywhere stdin, |cell| {
    let id = sleeper(cell);
    let output = cell
        .line(&format!("exec -i {id} sha256sum"))
        .stdin("some words")
        .output()
        .ok();
    assert!(
        output
            .text()
            .starts_with(&bulkhead_e2e::images::sha256(b"some words"))
    );
    // Without -i nothing comes in.
    let output = cell
        .line(&format!("exec {id} cat"))
        .stdin("some words")
        .output()
        .ok();
    assert_eq!(output.text(), "");
});

case!(everywhere both_outputs, |cell| {
    let id = sleeper(cell);
    let output = cell
        .cli(&format!("exec {id} sh -c 'echo out; echo err >&2'"))
        .ok();
    assert_eq!(
        (output.text().as_str(), output.err().as_str()),
        ("out", "err")
    );
    // They are not the container's output.
    assert_eq!(cell.cli(&format!("logs {id}")).ok().text(), "");
});

case!(everywhere terminal, |cell| {
    let id = sleeper(cell);
    let mut shell = cell.line(&format!("exec -it {id} sh")).terminal();
    shell.expect("# ");
    shell.send("tty; echo t''erm=$TERM\n");
    shell.expect("/dev/pts/");
    shell.expect("term=xterm");
    shell.resize(100, 40);
    let look = "until stty size | grep -q '40 100'; do sleep 0.1; done";
    shell.send(format!("{look}; echo new''-size\n"));
    shell.expect("new-size");
    shell.send("exit 9\n");
    shell.finish().exits(9);
});

case!(everywhere detached, |cell| {
    let id = sleeper(cell);
    cell.cli(&format!("exec -d {id} sh -c 'echo done >/made; sleep 600'"))
        .ok();
    until("its file", cell.limit(), || {
        (cell.cli(&format!("exec {id} cat /made")).text() == "done").then_some(())
    });
    cell.cli(&format!("top {id}")).ok().says("sleep 600");
});

case!(everywhere same_namespaces, |cell| {
    let id = sleeper(cell);
    let output = cell
        .cli(&format!(
            "exec {id} sh -c 'ps -o pid,comm; cat /proc/1/comm; ls /sys/class/net'"
        ))
        .ok();
    let lines = output.lines();
    assert!(lines.contains(&"sleep".to_owned()), "{output}");
    assert_eq!(lines.last().map(String::as_str), Some("lo"), "{output}");
    let privileges = "grep -E 'CapEff|Seccomp:' /proc/self/status";
    let output = cell.cli(&format!("exec {id} {privileges}")).ok();
    output.says("a80425fb").says("seccomp:\t2");
});

case!(everywhere needs_a_running_container, |cell| {
    let id = cell.create(&format!("{BUSYBOX} true"));
    cell.cli(&format!("exec {id} true"))
        .exits(1)
        .says("not running");
    cell.cli("exec no-such-thing true")
        .exits(1)
        .says("no-such-thing");
});

case!(everywhere ends_with_the_container, |cell| {
    let id = sleeper(cell);
    let mut running = cell
        .line(&format!("exec {id} sh -c 'echo ready; sleep 600'"))
        .start();
    running.expect("ready");
    cell.cli(&format!("kill {id}")).ok();
    running.finish().exits(137);
});

case!(everywhere many_at_once, |cell| {
    let id = sleeper(cell);
    let running: Vec<_> = (0..8)
        .map(|number| {
            cell.line(&format!("exec {id} sh -c 'echo {number}; exit {number}'"))
                .start()
        })
        .collect();
    for (number, one) in running.into_iter().enumerate() {
        let output = one.finish();
        assert_eq!(
            (output.text(), output.code),
            (number.to_string(), i32::try_from(number).expect("small")),
            "{output}"
        );
    }
});

case!(everywhere large_streams, |cell| {
    let id = sleeper(cell);
    let bytes: Vec<u8> = (0..5_000_000_u32)
        .flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect();
    let output = cell
        .line(&format!("exec -i {id} cat"))
        .stdin(bytes.clone())
        .output()
        .ok();
    assert_eq!(output.stdout.len(), bytes.len());
    assert!(output.stdout == bytes, "the same bytes come back");
});
