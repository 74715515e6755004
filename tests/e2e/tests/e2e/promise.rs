//! What the project promises, in one script: the first case of the suite.

use bulkhead_e2e::{BUSYBOX, case, host};

case!(everywhere a_shell_on_the_right_kernel, |cell| {
    let mut shell = cell.terminal(&format!("--rm {BUSYBOX} sh"));
    shell.expect("# ");
    // What is typed comes back too: the quotes tell the answer from the question.
    shell.send(
        "echo k''ernel=$(uname -r) boot=$(cat /proc/sys/kernel/random/boot_id) tty=$(tty) e''nd\n",
    );
    shell.expect("kernel=");
    let printed = shell.expect(" end");
    let kernel = printed.split(' ').next().unwrap_or_default().to_owned();
    let boot = printed.split("boot=").nth(1).unwrap_or_default();
    assert!(printed.contains("tty=/dev/"), "a terminal: {printed}");
    if cell.is_hyperv() {
        assert_ne!(kernel, host::kernel(), "its own kernel");
        assert!(!boot.contains(&host::boot_id()), "its own boot: {boot}");
    } else {
        assert_eq!(kernel, host::kernel());
        assert!(boot.contains(&host::boot_id()), "the host's boot: {boot}");
    }
    shell.send("exit 7\n");
    shell.finish().exits(7);
});

case!(everywhere the_host_sees_what_it_should, |cell| {
    // A number of packets that nobody else asks for, to know this ping among others'.
    let mark = cell.number().to_string();
    let id = cell.detached(&format!("{BUSYBOX} ping -c {mark} localhost"));
    let top = cell.cli(&format!("top {id}")).ok();
    let lines = top.lines();
    assert_eq!(lines.len(), 2, "a heading and one process: {top}");
    assert!(
        lines[0].contains("PID") && lines[0].contains("CMD"),
        "{top}"
    );
    assert!(lines[1].contains("ping"), "{top}");
    let column = lines[0].split_whitespace().position(|word| word == "PID");
    let pid: u32 = lines[1]
        .split_whitespace()
        .nth(column.expect("a column PID"))
        .and_then(|pid| pid.parse().ok())
        .expect("a number");
    let pings = host::pgrep("ping", &mark);
    if cell.is_hyperv() {
        assert!(pings.is_empty(), "no process of the payload: {pings:?}");
        assert_eq!(host::workers(&id).len(), 1, "one worker");
        assert!(host::members(&id).iter().all(|one| one.comm != "ping"));
    } else {
        let pids: Vec<u32> = pings.iter().map(|ping| ping.pid).collect();
        assert_eq!(pids, [pid], "the PID of `top` is the host's");
        assert!(host::workers(&id).is_empty(), "no worker");
    }
    // It really runs: loopback answers.
    let mut logs = cell.line(&format!("logs -f {id}")).start();
    logs.expect("64 bytes from");
    cell.cli(&format!("rm -f {id}")).ok();
    logs.finish();
    assert!(host::pgrep("ping", &mark).is_empty(), "no ping");
    cell.nothing_left_of(&id);
});
