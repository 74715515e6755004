//! `run` and its options.

use bulkhead_e2e::{BUSYBOX, case, host};

case!(everywhere exit_code, |cell| {
    cell.run(&format!("--rm {BUSYBOX} sh -c 'exit 42'"))
        .exits(42);
    cell.run(&format!("--rm {BUSYBOX} true")).ok();
});

case!(everywhere command_not_found_is_127, |cell| {
    let name = cell.name("c");
    cell.run(&format!("--name {name} {BUSYBOX} no-such-command"))
        .exits(127)
        .says("no-such-command");
    // Docker keeps the container, in state created, with the code.
    let state = &cell.inspect(&name)["State"];
    assert_eq!(
        (&state["ExitCode"], &state["Status"]),
        (&127.into(), &"created".into())
    );
    cell.run(&format!("--rm {BUSYBOX} /bin/nope"))
        .exits(127)
        .says("/bin/nope");
});

case!(everywhere command_not_executable_is_126, |cell| {
    cell.run(&format!("--rm {BUSYBOX} /etc/not-executable"))
        .exits(126)
        .says("/etc/not-executable");
    cell.run(&format!("--rm {BUSYBOX} /etc"))
        .exits(126)
        .says("/etc");
});

case!(everywhere client_errors_are_125, |cell| {
    cell.run("--no-such-flag busybox true")
        .exits(125)
        .says("no-such-flag");
    cell.run(&format!("--rm -m nonsense {BUSYBOX} true"))
        .exits(125)
        .says("nonsense");
    cell.run("--rm --pull never no-such-image true")
        .exits(125)
        .says("no-such-image");
});

case!(everywhere a_missing_image_is_named, |cell| {
    // Nothing listens on port 1: the pull that follows fails at once.
    cell.run("--rm localhost:1/no-such-image true")
        .exits(125)
        .says("unable to find image")
        .says("localhost:1/no-such-image");
    let missing = cell.api(
        "POST",
        "/containers/create",
        Some(&serde_json::json!({"Image": "no-such-image"})),
    );
    assert_eq!(missing.status, 404);
    assert!(
        missing.message().contains("no-such-image"),
        "{}",
        missing.message()
    );
});

case!(everywhere environment, |cell| {
    let call = cell.running(&format!(
        "--rm -e ONE=1 -e FROM_CLIENT -e 'SPACE=a b' -e EMPTY= {BUSYBOX} env"
    ));
    let output = call.env("FROM_CLIENT", "yes").output().ok();
    let lines = output.lines();
    for line in [
        "ONE=1",
        "FROM_CLIENT=yes",
        "SPACE=a b",
        "EMPTY=",
        "HOME=/root",
    ] {
        assert!(lines.iter().any(|got| got == line), "{line} in {output}");
    }
    assert!(
        lines
            .iter()
            .any(|line| line.starts_with("PATH=/usr/local/sbin:")),
        "{output}"
    );
    assert!(
        lines.iter().any(|line| line.starts_with("HOSTNAME=")),
        "{output}"
    );
    assert!(
        !lines.iter().any(|line| line.starts_with("TERM=")),
        "{output}"
    );
});

case!(everywhere working_directory, |cell| {
    let output = cell.run(&format!("--rm -w /home/user {BUSYBOX} pwd")).ok();
    assert_eq!(output.text(), "/home/user");
    let output = cell
        .run(&format!("--rm -w /made/for/this {BUSYBOX} pwd"))
        .ok();
    assert_eq!(output.text(), "/made/for/this");
    cell.run(&format!("--rm -w relative {BUSYBOX} pwd"))
        .exits(125)
        .says("relative");
});

case!(everywhere user, |cell| {
    let id = |user: &str| {
        let script = "id -u; id -g; id -G; echo $HOME";
        let output = cell.run(&format!("--rm -u {user} {BUSYBOX} sh -c '{script}'"));
        output.ok().lines().join("|")
    };
    assert_eq!(id("user"), "1000|1000|1000 1234|/home/user");
    assert_eq!(id("1000"), "1000|1000|1000 1234|/home/user");
    assert_eq!(id("user:nogroup"), "1000|65534|65534|/home/user");
    assert_eq!(id("4321:8765"), "4321|8765|8765|/");
    cell.run(&format!("--rm -u no-such-user {BUSYBOX} true"))
        .fails()
        .says("no-such-user");
});

case!(everywhere entrypoint, |cell| {
    let output = cell
        .run(&format!("--rm --entrypoint echo {BUSYBOX} a b"))
        .ok();
    assert_eq!(output.text(), "a b");
    let output = cell.run(&format!(
        "--rm --entrypoint /bin/hostname -h thing {BUSYBOX}"
    ));
    assert_eq!(output.ok().text(), "thing");
});

case!(everywhere the_images_command_is_the_default, |cell| {
    // The image says `sh`, which ends at once without input.
    cell.run(&format!("--rm {BUSYBOX}")).ok();
    let output = cell
        .running(&format!("--rm -i {BUSYBOX}"))
        .stdin("echo $0 $((6*7))\n");
    assert_eq!(output.output().ok().text(), "sh 42");
});

case!(everywhere host_name, |cell| {
    let script = "hostname; cat /etc/hostname; grep -c localhost /etc/hosts; uname -n";
    let output = cell.run(&format!("--rm -h thing.example {BUSYBOX} sh -c '{script}'"));
    let lines = output.ok().lines();
    assert_eq!(
        lines,
        ["thing.example", "thing.example", "2", "thing.example"]
    );
    let name = cell.name("c");
    let output = cell.run(&format!("--name {name} {BUSYBOX} hostname")).ok();
    let id = cell.inspect(&name)["Id"]
        .as_str()
        .expect("an ID")
        .to_owned();
    assert_eq!(output.text(), id[..12]);
});

case!(everywhere names_and_labels, |cell| {
    let name = cell.name("c");
    let id = cell.detached(&format!(
        "--name {name} --label colour=green -l plain {BUSYBOX} sleep 600"
    ));
    let inspect = cell.inspect(&name);
    assert_eq!(inspect["Id"], id);
    assert_eq!(inspect["Name"], format!("/{name}"));
    assert_eq!(inspect["Config"]["Labels"]["colour"], "green");
    assert_eq!(inspect["Config"]["Labels"]["plain"], "");
    cell.run(&format!("--rm --name {name} {BUSYBOX} true"))
        .exits(125)
        .says("conflict")
        .says(&name);
    cell.run(&format!("--rm --name 'not/good' {BUSYBOX} true"))
        .exits(125)
        .says("not/good");
});

case!(everywhere network_none_is_loopback_alone, |cell| {
    let script = "ls /sys/class/net; ping -c 1 -W 5 127.0.0.1 >/dev/null && echo up";
    let output = cell
        .run(&format!("--rm --network none {BUSYBOX} sh -c '{script}'"))
        .ok();
    assert_eq!(output.lines(), ["lo", "up"]);
});

case!(everywhere read_only_root_and_tmpfs, |cell| {
    cell.run(&format!("--rm --read-only {BUSYBOX} touch /file"))
        .exits(1)
        .says("read-only");
    let script = "touch /scratch/file && stat -c %a /scratch && \
                  grep \" /scratch \" /proc/mounts && df -k /scratch | tail -n 1";
    let output = cell
        .run(&format!(
            "--rm --read-only --tmpfs /scratch:size=4m,mode=1770 {BUSYBOX} sh -c '{script}'"
        ))
        .ok();
    let lines = output.lines();
    assert_eq!(lines[0], "1770");
    assert!(
        lines[1].starts_with("tmpfs ") && lines[1].contains("noexec"),
        "{output}"
    );
    assert!(lines[2].contains("4096"), "4 MiB: {output}");
});

case!(everywhere generated_files_are_part_of_the_root, |cell| {
    let script = "for f in hosts hostname resolv.conf; do \
                  (echo \"# x\" >>/etc/$f) 2>/dev/null && echo $f; done; test -s /etc/hosts";
    let written = |options: &str| {
        let output = cell.run(&format!("--rm {options} {BUSYBOX} sh -c '{script}'"));
        output.ok().lines()
    };
    assert_eq!(written(""), ["hosts", "hostname", "resolv.conf"]);
    assert_eq!(written("--read-only"), [""; 0]);
});

case!(everywhere a_tmpfs_has_the_mode_of_what_it_covers, |cell| {
    let modes = |options: &str, paths: &str| {
        let output = cell.run(&format!("--rm {options} {BUSYBOX} stat -c %a {paths}"));
        output.ok().lines()
    };
    let covered = "--tmpfs /root --tmpfs /tmp:size=4m --mount type=tmpfs,dst=/home/user";
    assert_eq!(
        modes(covered, "/root /tmp /home/user"),
        ["755", "1777", "755"]
    );
    assert_eq!(modes("--tmpfs /made", "/made"), ["1777"]);
    // Docker's runc of then did not ask whether one was given.
    assert_eq!(
        modes("--tmpfs /root:mode=1770", "/root"),
        [cell.now_or_then("1770", "755")]
    );
});

case!(everywhere kernel_parameters, |cell| {
    let script = "cd /proc/sys; cat net/ipv4/ip_forward fs/inotify/max_user_watches \
                  fs/inotify/max_user_instances kernel/pid_max";
    for options in ["", "--network none"] {
        let output = cell.run(&format!("--rm {options} {BUSYBOX} sh -c '{script}'"));
        let lines = output.ok().lines();
        assert_eq!(lines[0], "1", "as on a host of Docker's");
        if cell.is_hyperv() {
            assert_eq!(lines[1..], ["524288", "1024", "4194304"]);
        }
    }
    let given = "--sysctl net.ipv4.ip_forward=0";
    let output = cell.run(&format!(
        "--rm {given} {BUSYBOX} cat /proc/sys/net/ipv4/ip_forward"
    ));
    assert_eq!(output.ok().text(), "0");
});

case!(everywhere init_reaps, |cell| {
    // The child of a child that ends becomes PID 1's; a PID 1 that reaps leaves no zombie.
    let script =
        "cat /proc/1/comm; (sleep 0.1 & exec true) ; sleep 1; ps -o stat,comm | grep -c ^Z";
    let output = cell.run(&format!("--rm --init {BUSYBOX} sh -c '{script}'"));
    let lines = output.clone().lines();
    assert_ne!(lines[0], "sh", "another PID 1: {output}");
    assert_eq!(lines[1], "0", "{output}");
    // It passes signals on and returns the payload's code.
    cell.run(&format!("--rm --init {BUSYBOX} sh -c 'exit 9'"))
        .exits(9);
    cell.run(&format!("--rm --init {BUSYBOX} sh -c 'kill -TERM $$'"))
        .exits(143);
    // From its first moment: one that comes at once is not lost.
    for (signal, code) in [("TERM", "143"), ("RTMIN+3", "165")] {
        let id = cell.detached(&format!("--init {BUSYBOX} sleep 600"));
        cell.cli(&format!("kill -s {signal} {id}")).ok();
        assert_eq!(cell.cli(&format!("wait {id}")).ok().text(), code);
    }
});

case!(everywhere ulimit, |cell| {
    let output = cell
        .run(&format!(
            "--rm --ulimit nofile=100:200 --ulimit core=0 {BUSYBOX} \
             sh -c 'ulimit -Sn; ulimit -Hn; ulimit -c'"
        ))
        .ok();
    assert_eq!(output.lines(), ["100", "200", "0"]);
});

case!(everywhere small_limits_are_the_payloads, |cell| {
    // What makes the payload's process has other needs.
    for (limit, shown) in [
        ("fsize=0", "0 "),
        ("fsize=1024", "2 "),
        ("fsize=1024:2048 --user user", "2 "),
        ("nofile=16 --ulimit fsize=0", "0 16"),
        ("nofile=16:32 --security-opt no-new-privileges", "unlimited 16"),
    ] {
        let script = "echo $(ulimit -f) $(ulimit -n)";
        let output = cell.run(&format!("--rm --ulimit {limit} {BUSYBOX} sh -c '{script}'"));
        let text = output.ok().text();
        assert!(text.starts_with(shown), "{limit}: {text}");
    }
    let id = cell.detached(&format!(
        "--ulimit nofile=16 --ulimit fsize=0 {BUSYBOX} sleep 600"
    ));
    let script = "echo $(ulimit -f) $(ulimit -n); echo x >/file";
    let output = cell.cli(&format!("exec {id} sh -c '{script}'"));
    assert_eq!(output.exits(153).text(), "0 16", "SIGXFSZ");
    cell.run(&format!("--rm --ulimit fsize=0 {BUSYBOX} no-such-command"))
        .exits(127)
        .says("no-such-command");
});

case!(everywhere default_privileges, |cell| {
    let script = "grep CapEff /proc/self/status; grep ^Seccomp: /proc/self/status; \
                  grep NoNewPrivs /proc/self/status; \
                  mount -t tmpfs x /mnt 2>/dev/null || mount -t tmpfs x /tmp 2>&1; \
                  echo 1 2>&1 >/proc/sys/kernel/panic; cat /proc/keys /proc/timer_list | wc -c; \
                  ls /sys/firmware | wc -l; \
                  mkdir /sys/fs/x 2>&1; unshare -m true 2>&1 || echo refused";
    let output = cell.run(&format!("--rm {BUSYBOX} sh -c '{script}'"));
    let text = output.text();
    for words in [
        "00000000a80425fb",
        "Seccomp:\t2",
        "NoNewPrivs:\t0",
        "refused",
    ] {
        assert!(text.contains(words), "{words} in {output}");
    }
    assert!(
        text.lines().any(|line| line == "0"),
        "masked files are empty: {output}"
    );
    let denied = text.to_lowercase();
    assert!(denied.contains("permission denied"), "mount: {output}");
    assert!(
        denied.contains("read-only file system"),
        "/sys, /proc/sys: {output}"
    );
});

case!(everywhere devices, |cell| {
    let script = "cd /dev; ls | grep -v core$ | sort | tr \"\\n\" \" \"; echo; \
                  echo ok >/dev/null; head -c 4 /dev/zero | wc -c; head -c 4 /dev/urandom | wc -c; \
                  grep -E \" /dev(/pts|/shm|/mqueue)? \" /proc/mounts | cut -d\" \" -f2,3 | sort; \
                  mknod /dev/mine b 7 0 && cat /dev/mine 2>&1";
    let output = cell.run(&format!("--rm {BUSYBOX} sh -c '{script}'"));
    let lines = output.lines();
    assert_eq!(
        lines[0].trim(),
        "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero",
        "{output}"
    );
    assert_eq!(lines[1..3], ["4", "4"], "{output}");
    assert_eq!(
        lines[3..7],
        [
            "/dev tmpfs",
            "/dev/mqueue mqueue",
            "/dev/pts devpts",
            "/dev/shm tmpfs"
        ],
        "{output}"
    );
    assert!(
        lines[7].contains("not permitted"),
        "a device of its own making: {output}"
    );
});

case!(everywhere rm_removes, |cell| {
    let name = cell.name("c");
    cell.run(&format!("--rm --name {name} {BUSYBOX} true")).ok();
    cell.cli(&format!("inspect {name}")).exits(1).says(&name);
    let id = cell.detached(&format!("--rm {BUSYBOX} sleep 600"));
    cell.cli(&format!("stop -t 0 {id}")).ok();
    bulkhead_e2e::until("--rm removes", cell.limit(), || {
        (cell.state(&id) == "gone").then_some(())
    });
    cell.nothing_left_of(&id);
});

case!(everywhere own_pid_namespace, |cell| {
    let output = cell.run(&format!(
        "--rm {BUSYBOX} sh -c 'echo $$; ps -o pid,comm; true'"
    ));
    let lines = output.clone().ok().lines();
    assert_eq!(lines[0], "1");
    assert_eq!(lines.len(), 4, "sh and ps alone: {output}");
});

case!(ours the_isolation_is_shown, |cell| {
    let id = cell.detached(&format!("{BUSYBOX} sleep 600"));
    assert_eq!(cell.inspect(&id)["HostConfig"]["Isolation"], cell.isolation_name());
    let kernel = cell.cli(&format!("exec {id} uname -r")).ok().text();
    assert_eq!(kernel != host::kernel(), cell.is_hyperv());
});

case!(ours process the_default_isolation_is_the_daemons, |cell| {
    let cell = cell.on(bulkhead_e2e::Daemon::start(&["--exec-opt", "isolation=hyperv"]));
    let name = cell.name("c");
    let kernel = cell.cli(&format!("run --name {name} {BUSYBOX} uname -r")).ok();
    assert_ne!(kernel.text(), host::kernel());
    assert_eq!(cell.inspect(&name)["HostConfig"]["Isolation"], "hyperv");
    let kernel = cell.cli(&format!("run --rm --isolation=process {BUSYBOX} uname -r"));
    assert_eq!(kernel.ok().text(), host::kernel());
    let kernel = cell.cli(&format!("run --rm --isolation=default {BUSYBOX} uname -r"));
    assert_ne!(kernel.ok().text(), host::kernel());
    cell.cli("info").ok().says("Default Isolation: hyperv");
});

case!(everywhere many_at_once, |cell| {
    let count = if cell.is_hyperv() { 2 } else { 8 };
    let running: Vec<_> = (0..count)
        .map(|number| {
            cell.running(&format!(
                "--rm {BUSYBOX} sh -c 'echo {number}; exit {number}'"
            ))
            .start()
        })
        .collect();
    for (number, one) in running.into_iter().enumerate() {
        let output = one.finish();
        assert_eq!(
            (output.text(), output.code),
            (number.to_string(), i32::try_from(number).expect("small"))
        );
    }
});
