//! The supervisor with process isolation, over its own sockets, as the daemon uses it.

#![expect(clippy::unwrap_used, reason = "in tests a panic is the report")]

mod support;

use bulkhead_isolation::{ErrorKind, Resources};
use containerd_shim_protos::api::Status;
use support::{Shim, Wish, is, process, unframed, wait_until_gone};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

async fn read_all(stream: &mut UnixStream) -> String {
    let mut output = Vec::new();
    stream.read_to_end(&mut output).await.unwrap();
    unframed(&output)
}

/// Reads raw output until it contains `text`.
async fn read_until(stream: &mut UnixStream, text: &str) -> String {
    let mut seen = Vec::new();
    let mut buffer = [0; 4096];
    while !String::from_utf8_lossy(&seen).contains(text) {
        let count = stream.read(&mut buffer).await.unwrap();
        assert!(
            count > 0,
            "ended before {text:?}: {:?}",
            String::from_utf8_lossy(&seen)
        );
        seen.extend_from_slice(&buffer[..count]);
    }
    String::from_utf8_lossy(&seen).into_owned()
}

/// Runs a command to its end: its output and exit code.
async fn run(wish: Wish) -> (String, u32) {
    let shim = Shim::create(wish).await;
    let mut stream = shim.attach("", false).await;
    shim.begin("").await.unwrap();
    let code = shim.wait("").await;
    let output = read_all(&mut stream).await;
    shim.finish().await;
    (output, code)
}

#[tokio::test]
async fn a_life() {
    let shim = Shim::create(Wish::shell("echo out; echo err >&2; hostname; exit 7")).await;
    let mut stream = shim.attach("", false).await;
    assert_eq!(shim.status().await, Status::CREATED);
    assert!(shim.exit_record().is_none());
    shim.begin("").await.unwrap();
    assert_eq!(shim.wait("").await, 7);
    assert_eq!(shim.exit_record().unwrap().code, 7);
    let text = read_all(&mut stream).await;
    for line in ["out\n", "err\n", "tester\n"] {
        assert!(text.contains(line), "{text:?}");
        assert!(shim.logged().contains(line), "{:?}", shim.logged());
    }
    assert_eq!(shim.status().await, Status::STOPPED);
    assert_eq!(shim.delete("").await.unwrap(), 7);
    shim.shutdown().await;
    shim.nothing_is_left();
}

#[tokio::test]
async fn stdin_reaches_cat_and_ends_with_the_client() {
    let mut wish = Wish::new(&["cat"]);
    wish.stdin = true;
    let shim = Shim::create(wish).await;
    let mut stream = shim.attach("", true).await;
    shim.begin("").await.unwrap();
    let long = "0123456789abcdef".repeat(64 * 1024);
    let (mut reader, mut writer) = stream.split();
    let writing = async {
        writer.write_all(long.as_bytes()).await.unwrap();
        writer.shutdown().await.unwrap();
    };
    let mut output = Vec::new();
    let (_, read) = tokio::join!(writing, reader.read_to_end(&mut output));
    read.unwrap();
    assert!(unframed(&output) == long);
    assert_eq!(shim.wait("").await, 0);
    shim.finish().await;
}

#[tokio::test]
async fn without_stdin_it_is_at_its_end() {
    let (output, code) = run(Wish::shell(
        "cat; readlink /proc/self/fd/0; echo $MARK$HOME; grep -E 'Sig(Ign|Blk)' /proc/self/status; ls /proc/self/fd | wc -l",
    ))
    .await;
    assert_eq!(
        (output.as_str(), code),
        (
            "/dev/null\n1/root\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n4\n",
            0
        )
    );
}

#[tokio::test]
async fn a_terminal() {
    let mut wish = Wish::new(&["sh"]);
    wish.terminal = true;
    wish.stdin = true;
    wish.edit = Box::new(|spec| {
        let size = oci_spec::runtime::BoxBuilder::default()
            .width(91u64)
            .height(17u64);
        let mut process = spec.process().clone().unwrap();
        process.set_console_size(Some(size.build().unwrap()));
        spec.set_process(Some(process));
    });
    let shim = Shim::create(wish).await;
    let mut stream = shim.attach("", true).await;
    shim.begin("").await.unwrap();
    stream.write_all(b"stty size; tty\n").await.unwrap();
    let seen = read_until(&mut stream, "/dev/").await;
    assert!(seen.contains("17 91"), "{seen:?}");
    shim.resize("", 100, 40).await.unwrap();
    stream.write_all(b"stty size\n").await.unwrap();
    read_until(&mut stream, "40 100").await;
    stream.write_all(b"exit 3\n").await.unwrap();
    assert_eq!(shim.wait("").await, 3);
    shim.finish().await;
}

#[tokio::test]
async fn users() {
    let cases = [
        (
            Some(""),
            "uid=0(root) gid=0(root) groups=0(root),10(wheel)\n/root\n",
        ),
        (
            Some("ann"),
            "uid=1000(ann) gid=100(users) groups=10(wheel),100(users)\n/home/ann\n",
        ),
        (
            Some("ann:wheel"),
            "uid=1000(ann) gid=10(wheel) groups=10(wheel)\n/home/ann\n",
        ),
        (Some("4242:4343"), "uid=4242 gid=4343 groups=4343\n/\n"),
        (None, "uid=0(root) gid=0(root)groups=\n/root\n"),
    ];
    for (user, expected) in cases {
        let mut wish = Wish::shell("id; echo $HOME; echo x >/dev/stderr");
        wish.user = user.map(str::to_owned);
        let (output, _) = run(wish).await;
        let lines: Vec<&str> = output.lines().collect();
        let mut groups: Vec<&str> = lines[0]
            .split("groups=")
            .nth(1)
            .unwrap_or_default()
            .split(',')
            .collect();
        groups.sort_unstable();
        let head = lines[0].split("groups=").next().unwrap();
        assert_eq!(
            format!("{head}groups={}\n{}\n", groups.join(","), lines[1]),
            expected
        );
        assert_eq!(lines[2], "x", "{output:?}");
    }
}

#[tokio::test]
async fn commands_that_cannot_run() {
    let cases: [(&[&str], ErrorKind, &str); 5] = [
        (
            &["nope"],
            ErrorKind::CommandNotFound,
            "exec: \"nope\": executable file not found in $PATH",
        ),
        (
            &["/nope"],
            ErrorKind::CommandNotFound,
            "exec: \"/nope\": stat /nope: no such file or directory",
        ),
        (
            &["/etc"],
            ErrorKind::CommandNotExecutable,
            "exec: \"/etc\": is a directory",
        ),
        (
            &["/etc/passwd"],
            ErrorKind::CommandNotExecutable,
            "exec: \"/etc/passwd\": permission denied",
        ),
        (
            &["sh"],
            ErrorKind::InvalidArgument,
            "unable to find user x: no matching entries in passwd file",
        ),
    ];
    for (args, kind, message) in cases {
        let mut wish = Wish::new(args);
        if args == ["sh"] {
            wish.user = Some("x".to_owned());
        }
        let (shim, options) = Shim::start(wish).await;
        let error = shim.create_with(&options).await.unwrap_err();
        is(&error, kind, message);
        shim.shutdown().await;
        shim.nothing_is_left();
    }
    // Found out by the kernel only.
    let mut wish = Wish::new(&["/garbage"]);
    let tree = tempfile::tempdir().unwrap();
    let garbage = tree.path().join("garbage");
    std::fs::write(&garbage, [0, 1, 2]).unwrap();
    std::fs::set_permissions(
        &garbage,
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    let blob = tree.path().join("garbage.erofs");
    support::make_blob(tree.path(), &blob);
    wish.layers.push(blob);
    let shim = Shim::create(wish).await;
    let error = shim.begin("").await.unwrap_err();
    is(
        &error,
        ErrorKind::CommandNotExecutable,
        "exec /garbage: exec format error",
    );
    assert_eq!(shim.wait("").await, 126);
    shim.finish().await;
}

#[tokio::test]
async fn exec() {
    let shim = Shim::create(Wish::new(&["sleep", "1000"])).await;
    let not_yet = shim
        .exec("e", &process(&["true"], false, None), false)
        .await;
    assert_eq!(not_yet.unwrap_err().kind, ErrorKind::FailedPrecondition);
    shim.begin("").await.unwrap();
    let (output, code) = shim
        .run_exec("one", &["sh", "-c", "hostname; ls /proc/1/root; exit 4"])
        .await;
    assert!(output.starts_with("tester\nbin\n"), "{output:?}");
    assert_eq!(code, 4);

    // The same confinement as for init: mkdir is refused by the filter.
    let (output, _) = shim.run_exec("filter", &["mkdir", "/x"]).await;
    assert!(output.contains("Operation not supported"), "{output:?}");
    let (output, _) = shim.run_exec("caps", &["sh", "-c", "grep -E 'Cap|Sec' /proc/1/status >/tmp/1; grep -E 'Cap|Sec' /proc/self/status | diff - /tmp/1 && cat /proc/self/cgroup | diff - /proc/1/cgroup && echo same"]).await;
    assert_eq!(output, "same\n");

    let error = shim
        .exec("x", &process(&["nope"], false, None), false)
        .await
        .unwrap_err();
    is(
        &error,
        ErrorKind::CommandNotFound,
        "exec: \"nope\": executable file not found in $PATH",
    );
    let mut elsewhere = process(&["true"], false, None);
    elsewhere.set_cwd("/nowhere".into());
    let error = shim.exec("x", &elsewhere, false).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::WorkingDirectory);

    // With stdin, with a terminal, killed.
    shim.exec("cat", &process(&["cat"], false, Some("ann")), true)
        .await
        .unwrap();
    let mut stream = shim.attach("cat", true).await;
    shim.begin("cat").await.unwrap();
    stream.write_all(b"hello").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(read_all(&mut stream).await, "hello");
    assert_eq!(shim.wait("cat").await, 0);

    shim.exec("tty", &process(&["sh"], true, Some("ann")), true)
        .await
        .unwrap();
    let mut stream = shim.attach("tty", true).await;
    shim.resize("tty", 77, 11).await.unwrap();
    shim.begin("tty").await.unwrap();
    stream
        .write_all(b"stty size; id -u; echo it $((6 * 7)); exec sleep 1000\n")
        .await
        .unwrap();
    let seen = read_until(&mut stream, "it 42").await;
    assert!(seen.contains("11 77"), "{seen:?}");
    let names: Vec<String> = shim
        .pids()
        .await
        .into_iter()
        .map(|process| process.comm)
        .collect();
    assert_eq!(names.len(), 2, "{names:?}");
    shim.kill("tty", libc::SIGTERM, false).await.unwrap();
    assert_eq!(shim.wait("tty").await, 143);
    assert_eq!(shim.delete("tty").await.unwrap(), 143);

    // A child that keeps the pipe does not keep the exec.
    let (output, code) = shim
        .run_exec("bg", &["sh", "-c", "echo a; sleep 999 & echo b"])
        .await;
    assert_eq!((output.as_str(), code), ("a\nb\n", 0));
    let left = std::fs::read_dir(shim.bundle.path().join("runtime")).unwrap();
    assert!(
        !left
            .flatten()
            .any(|entry| entry.file_name().to_string_lossy().starts_with("exec"))
    );
    shim.finish().await;
}

#[tokio::test]
async fn many_execs_at_once() {
    let shim = Shim::create(Wish::new(&["sleep", "1000"])).await;
    shim.begin("").await.unwrap();
    let ids: Vec<String> = (0..12).map(|number| format!("e{number}")).collect();
    let runs = ids
        .iter()
        .map(|id| shim.run_exec(id, &["sh", "-c", "echo $$ >/dev/null; echo done; exit 5"]));
    let mut set = Vec::new();
    for run in runs {
        set.push(run);
    }
    for (output, code) in futures_join(set).await {
        assert_eq!((output.as_str(), code), ("done\n", 5));
    }
    shim.finish().await;
}

/// Polls all of them on this task.
async fn futures_join<F: Future>(futures: Vec<F>) -> Vec<F::Output> {
    let mut pinned: Vec<_> = futures.into_iter().map(Box::pin).collect();
    let mut outputs: Vec<Option<F::Output>> = pinned.iter().map(|_| None).collect();
    std::future::poll_fn(|context| {
        for (future, output) in pinned.iter_mut().zip(&mut outputs) {
            if output.is_none()
                && let std::task::Poll::Ready(value) = future.as_mut().poll(context)
            {
                *output = Some(value);
            }
        }
        if outputs.iter().all(Option::is_some) {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
    outputs.into_iter().flatten().collect()
}

#[tokio::test]
async fn signals() {
    let trap = "trap 'exit 42' TERM; echo up; while :; do sleep 0.05; done";
    let shim = Shim::create(Wish::shell(trap)).await;
    let mut stream = shim.attach("", false).await;
    shim.begin("").await.unwrap();
    read_until(&mut stream, "up").await;
    shim.kill("", libc::SIGTERM, false).await.unwrap();
    assert_eq!(shim.wait("").await, 42);
    assert_eq!(
        shim.kill("", libc::SIGTERM, false).await.unwrap_err().kind,
        ErrorKind::NotFound
    );
    shim.finish().await;

    let shim = Shim::create(Wish::new(&["sleep", "1000"])).await;
    shim.begin("").await.unwrap();
    shim.kill("", libc::SIGKILL, true).await.unwrap();
    assert_eq!(shim.wait("").await, 137);
    shim.finish().await;

    // Created and never started.
    let shim = Shim::create(Wish::new(&["sleep", "1000"])).await;
    shim.kill("", libc::SIGTERM, false).await.unwrap();
    assert_eq!(shim.wait("").await, 137);
    shim.finish().await;
    let shim = Shim::create(Wish::new(&["sleep", "1000"])).await;
    assert_eq!(shim.delete("").await.unwrap(), 137);
    shim.shutdown().await;
    shim.nothing_is_left();
}

#[tokio::test]
async fn pause_and_resume() {
    let shim = Shim::create(Wish::shell("while :; do echo tick; sleep 0.02; done")).await;
    assert_eq!(
        shim.pause().await.unwrap_err().kind,
        ErrorKind::FailedPrecondition
    );
    shim.begin("").await.unwrap();
    shim.pause().await.unwrap();
    assert_eq!(shim.status().await, Status::PAUSED);
    let refused = shim
        .exec("e", &process(&["true"], false, None), false)
        .await;
    assert_eq!(refused.unwrap_err().kind, ErrorKind::FailedPrecondition);
    let mut stream = shim.attach("", false).await;
    shim.resume().await.unwrap();
    assert_eq!(shim.status().await, Status::RUNNING);
    read_until(&mut stream, "tick").await;
    assert_eq!(
        shim.resume().await.unwrap_err().kind,
        ErrorKind::FailedPrecondition
    );
    // Killed while frozen.
    shim.pause().await.unwrap();
    shim.kill("", libc::SIGKILL, false).await.unwrap();
    assert_eq!(shim.wait("").await, 137);
    shim.finish().await;
}

#[tokio::test]
async fn listing_counting_limiting() {
    let shim = Shim::create(Wish::shell("sleep 1000 & sleep 1000; :")).await;
    let pid = shim.begin("").await.unwrap();
    let (output, _) = shim
        .run_exec(
            "wait",
            &[
                "sh",
                "-c",
                "until [ $(pidof sleep | wc -w) = 2 ]; do :; done; echo ok",
            ],
        )
        .await;
    assert_eq!(output, "ok\n");
    let listed = shim.pids().await;
    assert_eq!(listed.len(), 3, "{listed:?}");
    let init = listed.iter().find(|process| process.pid == pid).unwrap();
    assert!(init.args.starts_with("sh -c sleep"), "{init:?}");
    let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap();
    assert_eq!(comm.trim(), init.comm);

    let limits = Resources {
        memory: Some(64 << 20),
        cpu_quota: Some(50_000),
        cpu_period: Some(100_000),
        pids_limit: Some(50),
        ..Resources::default()
    };
    shim.update(&limits).await.unwrap();
    let stats = shim.stats().await;
    assert_eq!((stats.memory.limit, stats.pids_limit), (64 << 20, 50));
    assert_eq!(stats.pids, 3);
    assert!(stats.memory.usage > 0 && stats.cpu.total > 0 && stats.cpu.system > stats.cpu.total);
    // One of these cannot be had, so neither is.
    let impossible = Resources {
        pids_limit: Some(60),
        cpuset_cpus: Some("4000".to_owned()),
        memory: Some(65 << 20),
        ..Resources::default()
    };
    assert_eq!(
        shim.update(&impossible).await.unwrap_err().kind,
        ErrorKind::InvalidArgument
    );
    let stats = shim.stats().await;
    assert_eq!((stats.memory.limit, stats.pids_limit), (64 << 20, 50));
    shim.finish().await;
}

#[tokio::test]
async fn out_of_memory_is_said() {
    let mut wish = Wish::shell("x=$(yes | head -c 100000000); echo survived");
    wish.edit = Box::new(|spec| {
        let mut linux = spec.linux().clone().unwrap();
        let memory = oci_spec::runtime::LinuxMemoryBuilder::default()
            .limit(16i64 << 20)
            .swap(16i64 << 20);
        let resources =
            oci_spec::runtime::LinuxResourcesBuilder::default().memory(memory.build().unwrap());
        linux.set_resources(Some(resources.build().unwrap()));
        spec.set_linux(Some(linux));
    });
    let shim = Shim::create(wish).await;
    shim.begin("").await.unwrap();
    assert_eq!(shim.wait("").await, 137);
    assert!(shim.exit_record().unwrap().oom_killed);
    shim.finish().await;
}

#[tokio::test]
async fn docker_init_forwards_and_reaps() {
    let mut wish =
        Wish::shell("trap 'exit 9' USR1; (sleep 0.01 &) ; echo up; while :; do sleep 0.05; done");
    wish.init = true;
    let shim = Shim::create(wish).await;
    let mut stream = shim.attach("", false).await;
    shim.begin("").await.unwrap();
    read_until(&mut stream, "up").await;
    let (output, _) = shim
        .run_exec(
            "ps",
            &[
                "sh",
                "-c",
                "tr '\\0' ' ' </proc/1/cmdline; touch /sbin/docker-init",
            ],
        )
        .await;
    assert!(
        output.starts_with("/sbin/docker-init -- sh -c"),
        "{output:?}"
    );
    assert!(output.contains("Read-only"), "{output:?}");
    shim.kill("", libc::SIGUSR1, false).await.unwrap();
    assert_eq!(shim.wait("").await, 9);
    shim.finish().await;
}

#[tokio::test]
async fn layers() {
    // None at all: nothing can be found in it.
    let mut wish = Wish::new(&["sh"]);
    wish.layers.clear();
    let (shim, options) = Shim::start(wish).await;
    let error = shim.create_with(&options).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::CommandNotFound, "{error}");
    shim.shutdown().await;
    shim.nothing_is_left();

    // As many as Docker allows.
    let directory = tempfile::tempdir().unwrap();
    let mut wish = Wish::shell(
        "ls /layer | wc -l; cat /which; echo written > /layer/new; ls -ld /new/dir; pwd",
    );
    for number in 0..126 {
        let tree = directory.path().join("tree");
        std::fs::create_dir_all(tree.join("layer")).unwrap();
        std::fs::write(tree.join(format!("layer/{number}")), "").unwrap();
        std::fs::write(tree.join("which"), format!("{number}\n")).unwrap();
        let blob = directory.path().join(format!("{number}.erofs"));
        support::make_blob(&tree, &blob);
        std::fs::remove_dir_all(&tree).unwrap();
        wish.layers.push(blob);
    }
    wish.edit = Box::new(|spec| {
        let mut process = spec.process().clone().unwrap();
        process.set_cwd("/new/dir".into());
        spec.set_process(Some(process));
    });
    let shim = Shim::create(wish).await;
    let mut stream = shim.attach("", false).await;
    shim.begin("").await.unwrap();
    assert_eq!(shim.wait("").await, 0);
    let output = read_all(&mut stream).await;
    assert!(output.starts_with("126\n125\ndrwxr-xr-x"), "{output:?}");
    assert!(output.ends_with("/new/dir\n"), "{output:?}");
    let upper = shim.writable.join("upper/layer/new");
    assert_eq!(std::fs::read_to_string(upper).unwrap(), "written\n");
    shim.finish().await;
}

#[tokio::test]
async fn a_blob_that_is_none() {
    let directory = tempfile::tempdir().unwrap();
    let blob = directory.path().join("blob");
    std::fs::write(&blob, vec![0; 8192]).unwrap();
    let mut wish = Wish::new(&["sh"]);
    wish.layers.push(blob.clone());
    let (shim, options) = Shim::start(wish).await;
    let error = shim.create_with(&options).await.unwrap_err();
    assert!(error.message.contains(blob.to_str().unwrap()), "{error}");
    shim.shutdown().await;
    shim.nothing_is_left();
}

#[tokio::test]
async fn attach_misses_nothing_and_waits_for_the_slow() {
    let shim = Shim::create(Wish::shell("seq 1 200000")).await;
    let mut quick = shim.attach("", false).await;
    let mut slow = shim.attach("", false).await;
    shim.begin("").await.unwrap();
    let expected: String = (1..=200_000).map(|number| format!("{number}\n")).collect();
    let slowly = async {
        // Starts to read only when the other cannot get on without it.
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        read_all(&mut slow).await
    };
    let (one, two) = tokio::join!(read_all(&mut quick), slowly);
    assert!(one == expected && two == expected);
    assert_eq!(shim.wait("").await, 0);
    assert!(shim.logged() == expected);
    shim.finish().await;
}

#[tokio::test]
async fn nobody_reads_and_it_ends_all_the_same() {
    let shim = Shim::create(Wish::shell("seq 1 30000; exit 2")).await;
    let _stuck = shim.attach("", false).await;
    shim.begin("").await.unwrap();
    assert_eq!(shim.wait("").await, 2);
    assert!(shim.logged().ends_with("30000\n"));
    shim.finish().await;
}

#[tokio::test]
async fn the_supervisor_is_killed() {
    let shim = Shim::create(Wish::shell("sleep 1000 & sleep 1000")).await;
    let init = shim.begin("").await.unwrap();
    let supervisor = shim.supervisor_pid();
    let comm = std::fs::read_to_string(format!("/proc/{supervisor}/comm")).unwrap();
    assert_eq!(comm.trim(), "containerd-shim");
    let pid = rustix::process::Pid::from_raw(supervisor).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    wait_until_gone(supervisor);
    assert!(std::path::Path::new(&format!("/proc/{init}")).exists());
    let (swept, response) = shim.sweep();
    assert!(swept);
    assert_eq!(response.exit_status, 137);
    let init = i32::try_from(init).unwrap();
    wait_until_gone(init);
    assert_eq!(shim.exit_record().unwrap().code, 137);
    // Once more, with nothing to do.
    assert!(shim.sweep().0);
    let sockets = shim
        .bundle
        .path()
        .parent()
        .unwrap()
        .parent()
        .unwrap()
        .join("s");
    for socket in std::fs::read_dir(sockets).unwrap() {
        std::fs::remove_file(socket.unwrap().path()).unwrap();
    }
    shim.nothing_is_left();
}

#[tokio::test]
async fn the_supervisor_is_told_to_end() {
    let shim = Shim::create(Wish::new(&["sleep", "1000"])).await;
    shim.begin("").await.unwrap();
    let supervisor = shim.supervisor_pid();
    let pid = rustix::process::Pid::from_raw(supervisor).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    wait_until_gone(supervisor);
    assert_eq!(shim.exit_record().unwrap().code, 137);
    shim.nothing_is_left();
}

#[tokio::test]
async fn devices_are_refused_that_are_not_listed() {
    let mut wish = Wish::shell("(: </dev/kmsg) 2>&1; (: >/dev/null) && echo null; ls -l /dev/kmsg");
    wish.edit = Box::new(|spec| {
        let device = oci_spec::runtime::LinuxDeviceBuilder::default()
            .path("/dev/kmsg")
            .typ(oci_spec::runtime::LinuxDeviceType::C)
            .major(1i64)
            .minor(11i64)
            .file_mode(0o666u32)
            .build()
            .unwrap();
        let nothing = oci_spec::runtime::LinuxDeviceCgroupBuilder::default()
            .allow(false)
            .access("rwm")
            .build()
            .unwrap();
        let resources = oci_spec::runtime::LinuxResourcesBuilder::default().devices(vec![nothing]);
        let mut linux = spec.linux().clone().unwrap();
        linux.set_devices(Some(vec![device]));
        linux.set_resources(Some(resources.build().unwrap()));
        spec.set_linux(Some(linux));
    });
    let (output, _) = run(wish).await;
    assert!(
        output.contains("Operation not permitted\nnull\ncrw"),
        "{output:?}"
    );
}

/// As containerd asks for it: a root that is mounted for us, streams in named pipes, no
/// options of ours.
#[tokio::test]
async fn a_foreign_daemon() {
    let mut wish = Wish::new(&["cat"]);
    wish.stdin = true;
    let (shim, _) = Shim::start(wish).await;
    let fifo = |name: &str| shim.directory.path().join(name);
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    for name in ["in", "out"] {
        let kind = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, fifo(name), kind, mode, 0).unwrap();
    }
    let mut options = tokio::net::unix::pipe::OpenOptions::new();
    let mut output = options.open_receiver(fifo("out")).unwrap();
    std::fs::create_dir(shim.bundle.path().join("rootfs")).unwrap();
    shim.create_foreign(support::busybox(), &fifo("in"), &fifo("out"))
        .await
        .unwrap();
    let mut input = options.read_write(true).open_sender(fifo("in")).unwrap();
    shim.begin("").await.unwrap();
    input.write_all(b"through the pipe").await.unwrap();
    let mut seen = [0; 16];
    output.read_exact(&mut seen).await.unwrap();
    assert_eq!(&seen, b"through the pipe");
    shim.close_stdin().await.unwrap();
    assert_eq!(shim.wait("").await, 0);
    shim.delete("").await.unwrap();
    shim.shutdown().await;
    // Not ours to remove, and empty as it was.
    std::fs::remove_dir(shim.bundle.path().join("rootfs")).unwrap();
    shim.nothing_is_left();
}
