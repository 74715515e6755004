//! `-it`: terminals.

use std::time::Duration;

use bulkhead_e2e::{BUSYBOX, case};

case!(everywhere size_at_start_and_later, |cell| {
    let mut shell = cell.terminal(&format!("--rm {BUSYBOX} sh"));
    let wait_for = |size: &str, word: &str| {
        format!("until stty size | grep -q '{size}'; do sleep 0.1; done; echo {word}''-size\n")
    };
    // The client tells the size right after the start.
    shell.send(wait_for("24 80", "first"));
    shell.expect("first-size");
    shell.send(wait_for("43 132", "second"));
    // It listens for changes only when the first size was answered for, which nobody outside
    // can see: docker's own client loses one that comes before.
    for _ in 0..30 {
        shell.resize(131, 43);
        shell.resize(132, 43);
        if shell.prints_within("second-size", Duration::from_secs(1)) {
            break;
        }
    }
    shell.expect("second-size");
    shell.send("exit\n");
    shell.finish().ok();
});

case!(everywhere control_characters, |cell| {
    let mut shell = cell.terminal(&format!("--rm {BUSYBOX} sh"));
    shell.expect("# ");
    // Its own word that it runs: what is typed here is told apart from it by the quotes.
    shell.send("sh -c 'echo runs''now; exec sleep 600'\n");
    shell.expect("runsnow");
    shell.send([3]);
    shell.expect("# ");
    shell.send("echo c''ode=$?\n");
    shell.expect("code=130");
    shell.expect("# ");
    shell.send([4]);
    shell.finish().ok();
});

// Its child takes the terminal's foreground, which stops who does it from the background.
case!(everywhere an_init_on_a_terminal, |cell| {
    let mut shell = cell.terminal(&format!("--rm --init {BUSYBOX} sh"));
    shell.expect("# ");
    shell.send("sh -c 'echo runs''now; exec sleep 600'\n");
    shell.expect("runsnow");
    shell.send([3]);
    shell.expect("# ");
    shell.send("echo p''id=$$ c''ode=$? $(tty)\n");
    let said = shell.expect("code=130 /dev/pts/0");
    assert!(!said.contains("pid=1 "), "{said}");
    shell.expect("# ");
    shell.send("exit 7\n");
    shell.finish().exits(7);
});

case!(everywhere one_stream_with_carriage_returns, |cell| {
    let running = cell.terminal(&format!(
        "--rm {BUSYBOX} sh -c 'echo out; echo err >&2; tty; echo $TERM'"
    ));
    let output = running.finish().ok();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(text, "out\r\nerr\r\n/dev/pts/0\r\nxterm\r\n");
});

case!(everywhere a_terminal_needs_one, |cell| {
    // The client refuses `-it` when its own input is none.
    cell.run(&format!("-it --rm {BUSYBOX} true"))
        .fails()
        .says("tty");
});

case!(everywhere a_detached_terminal, |cell| {
    let id = cell.detached(&format!("-t {BUSYBOX} sh -c 'tty; echo here'"));
    assert_eq!(cell.cli(&format!("wait {id}")).ok().text(), "0");
    let output = cell.cli(&format!("logs {id}")).ok();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "/dev/pts/0\r\nhere\r\n"
    );
});

case!(everywhere detach_and_attach_again, |cell| {
    let name = cell.name("c");
    let mut shell = cell.terminal(&format!("--name {name} {BUSYBOX} sh"));
    shell.expect("# ");
    shell.send("X=kept\n");
    shell.expect("# ");
    // ^P ^Q
    shell.send([16]);
    shell.send([17]);
    shell.finish().ok();
    assert_eq!(cell.state(&name), "running");
    let mut again = cell
        .line(&format!("attach --detach-keys ctrl-x,d {name}"))
        .terminal();
    again.send("echo i''s=$X\n");
    again.expect("is=kept");
    again.send([24]);
    again.send("d");
    again.finish().fails().says("escape sequence");
    assert_eq!(cell.state(&name), "running");
    let mut again = cell.line(&format!("attach {name}")).terminal();
    again.send("exit 6\n");
    again.finish().exits(6);
});

case!(everywhere large_output, |cell| {
    let output = cell
        .terminal(&format!("--rm {BUSYBOX} seq 1 50000"))
        .finish()
        .ok();
    let lines = output.lines();
    assert_eq!(lines.len(), 50_000);
    assert_eq!(lines[49_999], "50000");
});
