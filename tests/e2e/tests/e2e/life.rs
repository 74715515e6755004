//! What keeps containers alive and tells how they are: restart policies, health checks,
//! waits, events, filters of the list.

use bulkhead_e2e::{BUSYBOX, Cell, Daemon, case, until};
use serde_json::Value;

fn health(cell: &Cell, id: &str) -> Value {
    let answer = cell.api("GET", &format!("/containers/{id}/json"), None);
    answer.json()["State"]["Health"].clone()
}

/// The end of a look at events, in seconds since 1970: docker's client rounds a duration like
/// `0s` down to a whole second, and what happened since would be missing.
fn shortly() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |now| now.as_secs() + 1)
}

fn until_health(cell: &Cell, id: &str, wanted: &str) {
    cell_until(cell, &format!("{id} is {wanted}"), || {
        health(cell, id)["Status"] == wanted
    });
}

fn cell_until(cell: &Cell, what: &str, look: impl Fn() -> bool) {
    until(what, cell.limit(), || look().then_some(()));
}

case!(health_is_probed, |cell| {
    let name = cell.name("c");
    let check = "--health-cmd 'cat /tmp/well; test -e /tmp/well' --health-interval 200ms \
                 --health-timeout 60s --health-retries 2";
    let id = cell.detached(&format!("--name {name} {check} {BUSYBOX} sleep 1000"));
    let shown = format!("ps --filter name={name} --format '{{{{.Status}}}}'");
    until_health(cell, &id, "unhealthy");
    cell.cli(&shown).ok().says("(unhealthy)");
    let bad = health(cell, &id);
    assert!(bad["FailingStreak"].as_u64() >= Some(2), "{bad}");
    let log = bad["Log"].as_array().expect("a log");
    assert!(log.iter().all(|probe| probe["ExitCode"] == 1), "{bad}");
    cell.cli(&format!("exec {id} sh -c 'echo fine >/tmp/well'"))
        .ok();
    until_health(cell, &id, "healthy");
    cell.cli(&shown).ok().says("(healthy)");
    let well = health(cell, &id);
    assert_eq!(well["FailingStreak"], 0);
    let log = well["Log"].as_array().expect("a log");
    assert!(log.len() <= 5);
    let last = log.last().expect("a result");
    assert_eq!(last["ExitCode"], 0);
    assert_eq!(last["Output"], "fine\n");
    let filtered = |health: &str| {
        let line = format!("ps -q --no-trunc --filter name={name} --filter health={health}");
        cell.cli(&line).ok().text()
    };
    assert_eq!(filtered("healthy"), id);
    assert_eq!(filtered("unhealthy"), "");
    assert_eq!(filtered("none"), "");
    // Of what does not run nothing is known to be well.
    cell.cli(&format!("kill {id}")).ok();
    until_health(cell, &id, "unhealthy");
    cell.cli(&format!("rm -f {id}")).ok();
    let events = cell
        .cli(&format!(
            "events --since 0 --until {} --filter container={id} --format '{{{{.Action}}}}'",
            shortly()
        ))
        .ok();
    let changes: Vec<String> = events
        .lines()
        .into_iter()
        .filter(|line| line.starts_with("health_status"))
        .collect();
    assert_eq!(
        changes,
        ["health_status: unhealthy", "health_status: healthy"]
    );
});

case!(health_has_a_grace_and_a_limit, |cell| {
    // Failures of the first hour don't count, a success does.
    let check = "--health-cmd 'test -e /tmp/well' --health-interval 200ms \
                 --health-timeout 60s --health-retries 1 --health-start-period 1h";
    let early = cell.now_or_then("--health-start-interval 200ms", "");
    let id = cell.detached(&format!("{check} {early} {BUSYBOX} sleep 1000"));
    cell_until(cell, "it has been probed", || {
        let log = health(cell, &id)["Log"].clone();
        log.as_array().is_some_and(|log| log.len() >= 2)
    });
    assert_eq!(health(cell, &id)["Status"], "starting");
    cell.cli(&format!("exec {id} touch /tmp/well")).ok();
    until_health(cell, &id, "healthy");
    cell.cli(&format!("exec {id} rm /tmp/well")).ok();
    until_health(cell, &id, "unhealthy");
    // One that hangs is ended.
    let check = "--health-cmd 'echo asked; sleep 1000' --health-interval 200ms \
                 --health-timeout 2s --health-retries 1";
    let slow = cell.detached(&format!("{check} {BUSYBOX} sleep 2000"));
    until_health(cell, &slow, "unhealthy");
    let log = health(cell, &slow)["Log"].clone();
    assert_eq!(log[0]["ExitCode"], -1);
    assert!(
        log[0]["Output"]
            .as_str()
            .is_some_and(|text| text.contains("exceeded timeout"))
    );
    if !bulkhead_e2e::daemon::is_reference() {
        // With what it had printed, once it got to print anything.
        cell_until(cell, "a check prints", || {
            let log = health(cell, &slow)["Log"].clone();
            let said = "Health check exceeded timeout (2s): asked\n";
            let mut log = log.as_array().into_iter().flatten();
            log.any(|one| one["Output"] == said)
        });
    }
    // None, though the image or the line has one.
    let none = cell.create(&format!("--no-healthcheck {BUSYBOX} true"));
    assert_eq!(health(cell, &none), Value::Null);
    cell.making(
        "create",
        &format!("--health-cmd x --health-interval 1us {BUSYBOX} true"),
    )
    .output()
    .fails()
    .says("less than 1ms");
});

case!(restarts_by_policy, |cell| {
    // It fails twice, then ends well.
    let script = "n=$(cat /tmp/n 2>/dev/null || echo 0); echo $((n+1)) >/tmp/n; [ $n -ge 2 ]";
    let id = cell.detached(&format!(
        "--restart on-failure:5 {BUSYBOX} sh -c '{script}'"
    ));
    cell.until_state(&id, "exited");
    cell_until(cell, "it has ended well", || {
        let shown = cell.inspect(&id);
        shown["RestartCount"] == 2 && shown["State"]["ExitCode"] == 0
    });
    // It gives up.
    let id = cell.detached(&format!("--restart on-failure:1 {BUSYBOX} sh -c 'exit 3'"));
    cell_until(cell, "it has given up", || {
        let shown = cell.inspect(&id);
        shown["RestartCount"] == 1 && shown["State"]["Status"] == "exited"
    });
    assert_eq!(cell.inspect(&id)["State"]["ExitCode"], 3);
    // A user's stop holds, and the policy can change.
    let id = cell.detached(&format!("--restart always --init {BUSYBOX} sleep 1000"));
    cell.cli(&format!("stop {id}")).ok();
    assert_eq!(cell.state(&id), "exited");
    cell.cli(&format!("update --restart no {id}")).ok();
    assert_eq!(
        cell.inspect(&id)["HostConfig"]["RestartPolicy"]["Name"],
        "no"
    );
    for bad in [
        "--restart nope",
        "--restart always:3",
        "--restart always --rm",
    ] {
        cell.making("create", &format!("{bad} {BUSYBOX} true"))
            .output()
            .fails();
    }
});

case!(policies_outlive_the_daemon, |cell| {
    let cell = cell.on(Daemon::start(&[]));
    let always = cell.detached(&format!("--restart always --init {BUSYBOX} sleep 1000"));
    let unless = cell.detached(&format!(
        "--restart unless-stopped --init {BUSYBOX} sleep 1000"
    ));
    cell.cli(&format!("stop {always} {unless}")).ok();
    cell.daemon().kill();
    cell.daemon().restart();
    cell.until_state(&always, "running");
    assert_eq!(cell.state(&unless), "exited");
    cell.cli(&format!("rm -f {always} {unless}")).ok();
    cell.finish();
});

case!(what_wait_waits_for, |cell| {
    let wait = |id: &str, condition: &str| {
        let path = format!("/containers/{id}/wait?condition={condition}");
        let answer = cell.api("POST", &path, None);
        (answer.status, answer.json()["StatusCode"].clone())
    };
    let id = cell.create(&format!("{BUSYBOX} sh -c 'read x; exit 4'"));
    assert_eq!(
        wait(&id, "not-running"),
        (200, 0.into()),
        "created is not running"
    );
    assert_eq!(wait(&id, "nope").0, cell.now_or_then(400, 200));
    assert_eq!(wait("nosuch", "not-running").0, 404);
    let socket = cell.daemon().socket();
    let path = format!("/containers/{id}/wait?condition=next-exit");
    std::thread::scope(|scope| {
        let next = scope.spawn(|| {
            bulkhead_e2e::api::request(&socket, "POST", &path, None).map(|answer| answer.json())
        });
        cell.cli(&format!("start -a {id}")).exits(4);
        // The wait may have come after the first end: then there is another.
        while !next.is_finished() {
            cell.cli(&format!("start -a {id}"));
        }
        let answer = next.join().expect("no panic").expect("an answer");
        assert_eq!(answer["StatusCode"], 4);
    });
    assert_eq!(wait(&id, "not-running"), (200, 4.into()));
    assert_eq!(
        cell.api("POST", &format!("/containers/{id}/stop"), None)
            .status,
        304
    );
    assert_eq!(
        cell.api("POST", &format!("/containers/{id}/kill"), None)
            .status,
        409
    );
});

case!(ours process tcp_needs_certificates, |cell| {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = |name: &str| dir.path().join(name).display().to_string();
    let openssl = |line: &str| {
        let words = line.split_whitespace().map(|word| word.replace("@", &file("")));
        let output = std::process::Command::new("openssl").args(words).output();
        let output = output.expect("openssl, from package openssl");
        assert!(output.status.success(), "openssl {line}: {output:?}");
    };
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2";
    for name in ["ca", "stranger"] {
        openssl(&format!(
            "req -x509 {key} -subj /CN={name} -keyout @{name}-key.pem -out @{name}.pem"
        ));
    }
    for (name, extra) in [
        ("server", "-addext subjectAltName=IP:127.0.0.1"),
        ("client", "-addext extendedKeyUsage=clientAuth"),
    ] {
        openssl(&format!(
            "req -x509 {key} -subj /CN={name} {extra} -addext basicConstraints=CA:FALSE \
             -CA @ca.pem -CAkey @ca-key.pem -keyout @{name}-key.pem -out @{name}.pem"
        ));
    }
    let cell = cell.on(Daemon::start(&[
        "-H", "tcp://127.0.0.1:0", "--tlsverify", "--tlscacert", &file("ca.pem"),
        "--tlscert", &file("server.pem"), "--tlskey", &file("server-key.pem"),
    ]));
    let log = cell.daemon().log();
    let port: String = log
        .split("127.0.0.1:")
        .nth(1)
        .unwrap_or_else(|| panic!("no port in {log}"))
        .chars()
        .take_while(char::is_ascii_digit)
        .collect();
    let ping = |certificate: &str| {
        let script = format!(
            "printf 'GET /_ping HTTP/1.0\\r\\n\\r\\n' | timeout 20 openssl s_client -quiet \
             -verify_return_error -CAfile {} -connect 127.0.0.1:{port} {certificate} 2>&1",
            file("ca.pem")
        );
        let output = std::process::Command::new("sh").args(["-c", &script]).output();
        String::from_utf8_lossy(&output.expect("sh").stdout).into_owned()
    };
    let with = |name: &str| {
        let (cert, key) = (file(&format!("{name}.pem")), file(&format!("{name}-key.pem")));
        ping(&format!("-cert {cert} -key {key}"))
    };
    assert!(with("client").contains("200 OK"), "{}", with("client"));
    for refused in [ping(""), with("stranger")] {
        assert!(!refused.contains("200 OK"), "{refused}");
    }
    if cell.client == bulkhead_e2e::ClientKind::Docker {
        let tls = format!(
            "-H tcp://127.0.0.1:{port} --tlsverify --tlscacert {} --tlscert {} --tlskey {}",
            file("ca.pem"), file("client.pem"), file("client-key.pem")
        );
        let line = format!("{tls} run -i --rm {BUSYBOX} cat");
        let output = cell.line(&line).stdin("through all of it").output().ok();
        assert_eq!(output.text(), "through all of it");
        let plain = format!("-H tcp://127.0.0.1:{port} version");
        cell.cli(&plain).fails();
    }
    cell.finish();
});

case!(streams_over_a_websocket, |cell| {
    use std::io::{Read, Write};
    let id = cell.detached(&format!("-i {BUSYBOX} cat"));
    let mut socket = std::os::unix::net::UnixStream::connect(cell.daemon().socket())
        .expect("the daemon listens");
    socket
        .set_read_timeout(Some(cell.limit()))
        .expect("a socket");
    let head = format!(
        "GET /v1.41/containers/{id}/attach/ws?stream=1&stdin=1&stdout=1 HTTP/1.1\r\n\
         Host: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Origin: http://localhost\r\n\r\n"
    );
    socket.write_all(head.as_bytes()).expect("is open");
    let mut answer = Vec::new();
    let mut byte = [0];
    while !answer.ends_with(b"\r\n\r\n") {
        assert_eq!(socket.read(&mut byte).expect("an answer"), 1);
        answer.push(byte[0]);
    }
    let answer = String::from_utf8_lossy(&answer).to_lowercase();
    assert!(answer.starts_with("http/1.1 101"), "{answer}");
    assert!(answer.contains("s3pplmbitxaq9kygzzhzrbk+xoo="), "{answer}");
    // A text frame, masked with zeros.
    socket
        .write_all(&[0x81, 0x86, 0, 0, 0, 0])
        .expect("is open");
    socket.write_all(b"hello\n").expect("is open");
    let mut frame = [0; 8];
    socket.read_exact(&mut frame).expect("the echo");
    assert_eq!(&frame[1..], b"\x06hello\n");
    if !bulkhead_e2e::daemon::is_reference() {
        // A close is answered in kind, and is the end.
        socket
            .write_all(&[0x88, 0x82, 0, 0, 0, 0, 3, 0xe9])
            .expect("is open");
        let mut end = Vec::new();
        socket.read_to_end(&mut end).expect("an end");
        assert_eq!(end, [0x88, 2, 3, 0xe9]);
    }
    drop(socket);
    let bad = cell.api("GET", &format!("/containers/{id}/attach/ws?stream=1"), None);
    assert_eq!(bad.status, 400);
});

case!(lists_are_filtered, |cell| {
    let (one, two, three) = (cell.name("c"), cell.name("c"), cell.name("c"));
    let mark = format!("--label mark={one}");
    let first = cell.create(&format!("--name {one} {mark} --expose 81 {BUSYBOX} true"));
    let second = cell.detached(&format!("--name {two} {mark} --init {BUSYBOX} sleep 1000"));
    let third = cell.create(&format!(
        "--name {three} {mark} -l a=b {BUSYBOX} sh -c 'exit 7'"
    ));
    cell.cli(&format!("start -a {third}")).exits(7);
    let list = |filter: &str| {
        let line = format!("ps -aq --no-trunc --filter label=mark={one} {filter}");
        let mut ids = cell.cli(&line).ok().lines();
        ids.sort();
        ids
    };
    let sorted = |ids: &[&String]| {
        let mut ids: Vec<String> = ids.iter().map(|id| (*id).clone()).collect();
        ids.sort();
        ids
    };
    assert_eq!(list(""), sorted(&[&first, &second, &third]));
    assert_eq!(list("--filter status=created"), sorted(&[&first]));
    assert_eq!(list("--filter status=running"), sorted(&[&second]));
    assert_eq!(
        list("--filter status=exited --filter exited=7"),
        sorted(&[&third])
    );
    assert_eq!(list("--filter exited=0"), sorted(&[]));
    assert_eq!(list(&format!("--filter before={two}")), sorted(&[&first]));
    assert_eq!(list(&format!("--filter since={second}")), sorted(&[&third]));
    assert_eq!(list(&format!("--filter name={two}")), sorted(&[&second]));
    assert_eq!(
        list(&format!("--filter name=^/{two}$ --filter name=^{three}$")),
        sorted(&[&second, &third])
    );
    assert_eq!(list(&format!("--filter id={first}")), sorted(&[&first]));
    assert_eq!(list("--filter label=a=b"), sorted(&[&third]));
    assert_eq!(list("--filter label=a=c"), sorted(&[]));
    assert_eq!(
        list(&format!("--filter ancestor={BUSYBOX}")),
        sorted(&[&first, &second, &third])
    );
    assert_eq!(list("--filter ancestor=nosuch"), sorted(&[]));
    // What does not run has no ports.
    assert_eq!(list("--filter expose=81"), sorted(&[]));
    assert_eq!(list("--filter expose=80-90/udp"), sorted(&[]));
    // Without values it filters nothing, and what a value is set to does not count.
    let mark = format!("%22label%22:%7B%22mark%3D{one}%22:false%7D");
    let path = format!("/containers/json?all=1&filters=%7B%22name%22:%7B%7D,{mark}%7D");
    let listed = cell.api("GET", &path, None).json();
    assert_eq!(listed.as_array().map(Vec::len), Some(3), "{listed}");
    for bad in [
        "status=nope",
        "exited=x",
        "health=x",
        "expose=x",
        "nosuch=1",
    ] {
        cell.cli(&format!("ps --filter {bad}")).fails();
    }
    let sized = cell
        .api("GET", &format!("/containers/{first}/json?size=1"), None)
        .json();
    assert!(
        sized["SizeRootFs"].as_u64() > sized["SizeRw"].as_u64(),
        "{sized}"
    );
    cell.cli(&format!("container prune -f --filter label=mark={one}"))
        .ok();
    assert_eq!(list(""), sorted(&[&second]));
    let events = cell.cli(&format!(
        "events --since 0 --until {} --filter label=mark={one} --filter event=die \
         --filter event=destroy --filter type=container --format '{{{{.Action}}}} {{{{.Actor.ID}}}}'",
        shortly()
    ));
    let mut wanted = vec![
        format!("die {third}"),
        format!("destroy {first}"),
        format!("destroy {third}"),
    ];
    wanted.sort();
    let mut got = events.ok().lines();
    got.sort();
    assert_eq!(got, wanted);
});

case!(what_the_kernel_allows, |cell| {
    // Capabilities, system calls, sysctls, shared memory: each says no first.
    let mount = "mkdir -p /tmp/m; mount -t tmpfs none /tmp/m && echo mounted";
    cell.run(&format!("--rm {BUSYBOX} sh -c '{mount}'")).fails();
    // The reference cannot where it has not every capability itself.
    if cell.now_or_then(true, false) {
        cell.run(&format!("--rm --privileged {BUSYBOX} sh -c '{mount}'"))
            .ok()
            .says("mounted");
    }
    let script = "grep -E \"NoNewPrivs|Seccomp:\" /proc/self/status | tr -d \"\\t\"; \
                  cat /proc/sys/net/ipv4/ip_default_ttl; df -k /dev/shm | tail -1";
    let output = cell
        .run(&format!(
            "--rm --security-opt no-new-privileges --security-opt seccomp=unconfined \
             --sysctl net.ipv4.ip_default_ttl=77 --shm-size 8m {BUSYBOX} sh -c '{script}'"
        ))
        .ok();
    assert_eq!(
        &output.lines()[..3],
        ["NoNewPrivs:1", "Seccomp:0", "77"],
        "{output}"
    );
    assert!(output.lines()[3].contains(" 8192 "), "{output}");
    let dir = tempfile::tempdir().expect("a temporary directory");
    let profile = dir.path().join("profile.json");
    let rules = r#"{"defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]}"#;
    std::fs::write(&profile, rules).expect("is ours");
    let denied = format!(
        "--rm --security-opt seccomp={} {BUSYBOX} mkdir /tmp/x",
        profile.display()
    );
    cell.run(&denied).fails().says("not permitted");
    if !bulkhead_e2e::daemon::is_reference() {
        // Privileged is without the profile that there is by default, not without this one.
        cell.run(&format!("--privileged {denied}"))
            .fails()
            .says("not permitted");
    }
    for bad in [
        "--sysctl kernel.panic=1",
        "--security-opt seccomp=/nosuchprofile",
        "--security-opt nosuch=1",
        "--cap-add NOSUCH",
        "--log-driver nosuch",
        "--device /dev/nosuchdevice",
    ] {
        cell.run(&format!("--rm {bad} {BUSYBOX} true")).fails();
    }
    // What every kernel makes by itself is there at both; what else the host has is its own.
    let script = "ls -l /dev/mine /dev/tunnel; nproc; exec 3<>/dev/tunnel && echo open";
    cell.run(&format!(
        "--rm --device /dev/null:/dev/mine:rw --device /dev/net/tun:/dev/tunnel --userns=host \
         --cpuset-cpus 0 --cpuset-mems 0 {BUSYBOX} sh -c '{script}'"
    ))
    .ok()
    .says("1,   3")
    .says("10, 200")
    .says("\n1\n")
    .says("open");
    if cell.is_hyperv() {
        cell.run(&format!("--rm --device /dev/loop-control {BUSYBOX} true"))
            .fails()
            .says("own kernel");
    }
    let local = cell.create(&format!(
        "--log-driver local --log-opt max-size=1m {BUSYBOX} echo kept"
    ));
    cell.cli(&format!("start -a {local}")).ok();
    assert_eq!(cell.cli(&format!("logs {local}")).ok().text(), "kept");
    let none = cell.create(&format!("--log-driver none {BUSYBOX} echo gone"));
    cell.cli(&format!("start -a {none}")).ok().says("gone");
    cell.cli(&format!("logs {none}")).fails();
});

// A program that asks for the host's processes, memory or name sees those of the kernel that
// it runs on: this host's, or its machine's.
case!(namespaces_of_the_host, |cell| {
    let shell = format!("--rm --pid=host --ipc=host --uts=host {BUSYBOX} sh -c");
    let seen = cell
        .run(&format!(
            "{shell} 'cat /proc/1/comm; hostname; echo $$; [ -d /dev/shm ] && echo shm'"
        ))
        .ok()
        .text();
    let lines: Vec<&str> = seen.lines().collect();
    let [first, name, pid, "shm"] = lines.as_slice() else {
        panic!("{seen}");
    };
    if cell.is_hyperv() {
        assert_eq!(*first, "init", "the machine's first process");
    } else {
        let init = std::fs::read_to_string("/proc/1/comm").expect("a first process");
        assert_eq!(*first, init.trim());
    }
    assert_ne!(*pid, "1");
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").expect("a name");
    assert_eq!(*name, host.trim());
    let name = cell.name("c");
    cell.run(&format!(
        "-d --name {name} --pid=host {BUSYBOX} sh -c 'sleep 1000 & exec sleep 1001'"
    ))
    .ok();
    // The shell may be on its way yet; then there are the container's processes and no others.
    until("both sleep", cell.limit(), || {
        let top = cell.cli(&format!("top {name}")).ok().text();
        let both =
            ["sleep 1000", "sleep 1001"].map(|one| top.lines().any(|line| line.ends_with(one)));
        (both == [true, true]).then(|| assert_eq!(top.lines().count(), 3, "{top}"))
    });
    cell.cli(&format!("exec {name} true")).ok();
    cell.cli(&format!("restart -t 0 {name}")).ok();
    cell.cli(&format!("rm -f {name}")).ok();
});
