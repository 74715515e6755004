//! What keeps containers alive and tells how they are: restart policies, health checks,
//! waits, events, filters of the list.

use bulkhead_e2e::{BUSYBOX, Cell, Daemon, case, until};
use serde_json::Value;

fn health(cell: &Cell, id: &str) -> Value {
    let answer = cell.api("GET", &format!("/containers/{id}/json"), None);
    answer.json()["State"]["Health"].clone()
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
    cell.cli(&format!("rm -f {id}")).ok();
    let events = cell
        .cli(&format!(
            "events --since 0 --until 0s --filter container={id} --format '{{{{.Action}}}}'"
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
    let check = "--health-cmd 'sleep 1000' --health-interval 200ms --health-timeout 300ms \
                 --health-retries 1";
    let slow = cell.detached(&format!("{check} {BUSYBOX} sleep 2000"));
    until_health(cell, &slow, "unhealthy");
    let log = health(cell, &slow)["Log"].clone();
    assert_eq!(log[0]["ExitCode"], -1);
    assert!(
        log[0]["Output"]
            .as_str()
            .is_some_and(|text| text.contains("exceeded timeout"))
    );
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
    assert_eq!(wait(&id, "nope").0, 400);
    assert_eq!(wait("nosuch", "not-running").0, 404);
    std::thread::scope(|scope| {
        let next = scope.spawn(|| {
            let path = format!("/containers/{id}/wait?condition=next-exit");
            let socket = cell.daemon().socket();
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
