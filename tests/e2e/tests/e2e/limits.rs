//! Limits, `update`, `stats`.

use bulkhead_e2e::{BUSYBOX, Cell, case, host, until};

/// The value of a limit in the cgroup that the container's processes are in, read on the
/// host: `v1` is controller and file, `v2` the file.
fn on_host(id: &str, v1: (&str, &str), v2: &str) -> String {
    let groups = host::cgroups(id);
    let by = |want: &dyn Fn(&str) -> bool, file: &str| {
        let group = groups.iter().find(|path| want(&path.to_string_lossy()));
        group.and_then(|path| std::fs::read_to_string(path.join(file)).ok())
    };
    let controller = format!("/{}/", v1.0);
    let value = by(&|path| path.contains(&controller), v1.1).or_else(|| by(&|_| true, v2));
    value.unwrap_or_default().trim().to_owned()
}

case!(memory_in_inspect, |cell| {
    let id = cell.detached(&format!("-m 100m {BUSYBOX} sleep 600"));
    assert_eq!(cell.inspect(&id)["HostConfig"]["Memory"], 100 << 20);
    if !cell.is_hyperv() {
        let value = on_host(&id, ("memory", "memory.limit_in_bytes"), "memory.max");
        assert_eq!(value, (100 << 20).to_string());
    }
});

case!(running_out_of_memory_is_137, |cell| {
    let name = cell.name("c");
    cell.run(&format!(
        "--name {name} -m 64m --memory-swap 64m {BUSYBOX} probe eat 400"
    ))
    .exits(137);
    let state = cell.inspect(&name)["State"].clone();
    assert_eq!(
        (&state["OOMKilled"], &state["ExitCode"]),
        (&true.into(), &137.into())
    );
    // The limit is the payload's own: what fits, fits.
    cell.run(&format!("--rm -m 64m {BUSYBOX} probe eat 30"))
        .ok()
        .says("ate 30");
});

case!(hyperv memory_of_the_machine_follows, |cell| {
    let total = |options: &str| {
        let output = cell.run(&format!("--rm {options} {BUSYBOX} awk '/MemTotal/ {{print $2}}' /proc/meminfo"));
        output.ok().text().parse::<u64>().expect("kilobytes") / 1024
    };
    let small = total("-m 256m");
    let large = total("-m 1g");
    assert!((256..512).contains(&small), "256 MiB and the overhead: {small}");
    assert!((1024..1400).contains(&large), "1 GiB and the overhead: {large}");
});

case!(cpus, |cell| {
    let id = cell.detached(&format!("--cpus 0.5 {BUSYBOX} sleep 600"));
    assert_eq!(cell.inspect(&id)["HostConfig"]["NanoCpus"], 500_000_000);
    if cell.is_hyperv() {
        assert_eq!(cell.cli(&format!("exec {id} nproc")).ok().text(), "1");
    }
    // Of a machine too, whatever its guest does.
    let quota = on_host(&id, ("cpu", "cpu.cfs_quota_us"), "cpu.max");
    assert_eq!(quota.split(' ').next(), Some("50000"));
    cell.run(&format!("--rm --cpus 1000 {BUSYBOX} true"))
        .exits(125)
        .says("cpu");
});

case!(hyperv the_machine_is_in_the_containers_group, |cell| {
    let parent = cell.name("parent");
    let shared = tempfile::tempdir().expect("a directory");
    let bind = format!("-v {}:/shared", shared.path().display());
    let options = format!("--cgroup-parent {parent} --cpu-shares 512 {bind}");
    let id = cell.detached(&format!("{options} {BUSYBOX} sleep 600"));
    let worker = &host::workers(&id)[0];
    let group = format!("/{parent}/{id}");
    // One to be waited for, and the one below it that serves.
    let servers = host::pgrep("bulkhead-share", &id);
    assert_eq!(servers.len(), 2, "{servers:?}");
    for process in host::family(worker.pid).iter().chain(&servers) {
        assert!(process.cgroups.contains(&group), "{process:?}");
    }
    // What it uses is counted there.
    let used = on_host(&id, ("memory", "memory.usage_in_bytes"), "memory.current");
    let used: u64 = used.parse().expect("bytes");
    assert!(used > 16 << 20, "a kernel and its files: {used}");
    let shares = on_host(&id, ("cpu", "cpu.shares"), "cpu.weight");
    assert!(["512", "20"].contains(&shares.as_str()), "{shares}");
    // The OOM killer takes it before those who look after it; the daemon is our child.
    let score = |process: &str, file: &str| {
        let score = std::fs::read_to_string(format!("/proc/{process}/{file}"));
        score.expect("a score").trim().parse::<i32>().expect("a number")
    };
    let (machine, supervisor) = (worker.pid.to_string(), worker.ppid.to_string());
    for other in [supervisor.as_str(), "self"] {
        assert!(score(&machine, "oom_score_adj") > score(other, "oom_score_adj"));
        assert!(score(&machine, "oom_score") > score(other, "oom_score"));
    }
    cell.cli(&format!("rm -f {id}")).ok();
    cell.nothing_left_of(&id);
    assert!(host::cgroups(&parent).is_empty(), "no parent either");
});

case!(pids_limit, |cell| {
    let script = "i=0; while [ $i -lt 60 ]; do sleep 2 & i=$((i+1)); done; wait; echo all";
    let output = cell.run(&format!("--rm --pids-limit 20 {BUSYBOX} sh -c '{script}'"));
    assert!(!output.text().contains("all"), "{output}");
    output.says("fork");
});

case!(update_memory_and_cpus, |cell| {
    let id = cell.detached(&format!(
        "-m 128m --memory-swap 128m --cpus 1 {BUSYBOX} sleep 600"
    ));
    cell.cli(&format!("update -m 96m --memory-swap 96m --cpus 0.5 {id}"))
        .ok()
        .says(&id);
    let inspect = cell.inspect(&id);
    assert_eq!(inspect["HostConfig"]["Memory"], 96 << 20);
    assert_eq!(inspect["HostConfig"]["NanoCpus"], 500_000_000);
    if !cell.is_hyperv() {
        let memory = on_host(&id, ("memory", "memory.limit_in_bytes"), "memory.max");
        assert_eq!(memory, (96 << 20).to_string());
    }
    let quota = on_host(&id, ("cpu", "cpu.cfs_quota_us"), "cpu.max");
    assert_eq!(quota.split(' ').next(), Some("50000"));
    // What is in force is in force inside, too.
    cell.cli(&format!("exec {id} probe eat 200")).exits(137);
    cell.cli(&format!("exec {id} probe eat 20")).ok();
    cell.cli("update -m 64m no-such-thing")
        .exits(1)
        .says("no-such-thing");
});

case!(memory_is_raised_and_lowered_while_it_runs, |cell| {
    let id = cell.detached(&format!("-m 96m --memory-swap 96m {BUSYBOX} sleep 600"));
    let update = |size: &str| cell.cli(&format!("update -m {size} --memory-swap {size} {id}"));
    // Mebibytes that the kernel shows in the container.
    let total = || {
        let command = format!("exec {id} awk '/MemTotal/ {{print $2}}' /proc/meminfo");
        let text = cell.cli(&command).ok().text();
        text.parse::<u64>().expect("kilobytes") / 1024
    };
    let eats = |mebibytes: u64| cell.cli(&format!("exec {id} probe eat {mebibytes}"));
    let is_limited_to = |mebibytes: u64| {
        assert_eq!(cell.inspect(&id)["HostConfig"]["Memory"], mebibytes << 20);
        let path = format!("/containers/{id}/stats?stream=false");
        let stats = cell.api("GET", &path, None).json();
        assert_eq!(stats["memory_stats"]["limit"], mebibytes << 20, "{stats}");
        let files = "/sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes";
        let shown = cell.cli(&format!("exec {id} sh -c 'cat {files} 2>/dev/null'"));
        assert_eq!(shown.text(), (mebibytes << 20).to_string());
        eats(mebibytes + 60).exits(137);
    };
    is_limited_to(96);
    let small = total();
    update("400m").ok();
    eats(320).ok().says("ate 320");
    is_limited_to(400);
    if cell.is_hyperv() {
        until("the machine is larger", cell.limit(), || {
            (total() > small + 280).then_some(())
        });
        // Not beyond what it was made for, and then all is as it was.
        update("900g").fails().says("at most 1024 MiB");
        update("8m").fails().says("inimum memory limit");
        is_limited_to(400);
    }
    update("96m").ok();
    is_limited_to(96);
    if cell.is_hyperv() {
        until("the machine is as it was", cell.limit(), || {
            (total() <= small + 8).then_some(())
        });
    }
    eats(60).ok().says("ate 60");
});

case!(limits_hold_or_are_said_not_to, |cell| {
    // A disk of the host's, if there is one.
    let disk = std::fs::read_dir("/sys/block")
        .into_iter()
        .flatten()
        .flatten();
    let mut disks = disk.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let disk = disks
        .find(|name| !name.starts_with("loop") && std::path::Path::new("/dev").join(name).exists());
    let throttle = disk
        .as_ref()
        .map(|disk| format!("--device-read-bps /dev/{disk}:1mb --device-write-iops /dev/{disk}:50"))
        .unwrap_or_default();
    let options = format!(
        "-m 96m --memory-swap 128m --memory-reservation 32m --oom-kill-disable --cpuset-mems 0 \
         {throttle}"
    );
    let made = cell
        .making("create", &format!("{options} {BUSYBOX} sleep 600"))
        .output()
        .ok();
    let id = made.lines().pop().expect("an ID");
    cell.cli(&format!("start {id}")).ok();
    let shown = cell.inspect(&id)["HostConfig"].clone();
    assert_eq!(shown["MemoryReservation"], 32 << 20);
    let made = if shown["MemorySwap"] == -1 {
        // This kernel does not count it.
        made.says("without swap")
    } else {
        assert_eq!(shown["MemorySwap"], 128 << 20);
        made
    };
    if cell.is_hyperv() {
        let made = made
            .says("OomKillDisable discarded")
            .says("Cpuset mems discarded");
        if disk.is_some() {
            made.says("BPS read limit discarded")
                .says("IOPS write limit discarded");
        }
        let low = cell.cli(&format!("exec {id} cat /sys/fs/cgroup/memory.low"));
        assert_eq!(low.ok().text(), (32 << 20).to_string());
    } else {
        let memory = |v1, v2| on_host(&id, ("memory", v1), v2);
        let reserved = memory("memory.soft_limit_in_bytes", "memory.low");
        assert_eq!(reserved, (32 << 20).to_string());
        let swap = memory("memory.memsw.limit_in_bytes", "memory.swap.max");
        assert!(
            shown["MemorySwap"] == -1
                || [(128 << 20).to_string(), (32 << 20).to_string()].contains(&swap),
            "{swap}"
        );
        // The unified hierarchy has no such switch.
        let killer = memory("memory.oom_control", "memory.oom_control");
        if killer.is_empty() {
            made.says("OomKillDisable discarded");
        } else {
            assert!(killer.starts_with("oom_kill_disable 1"), "{killer}");
        }
        assert_eq!(on_host(&id, ("cpuset", "cpuset.mems"), "cpuset.mems"), "0");
        if disk.is_some() {
            let blkio = |v1| on_host(&id, ("blkio", v1), "io.max");
            let read = blkio("blkio.throttle.read_bps_device");
            assert!(read.contains("1048576"), "{read}");
            let write = blkio("blkio.throttle.write_iops_device");
            assert!(write.contains("50"), "{write}");
        }
    }
    // Below its reservation it does not go. Docker looks at what is new only.
    if cell.now_or_then(true, false) {
        cell.cli(&format!("update --memory-reservation 200m {id}"))
            .fails();
    }
    cell.run(&format!("--rm --cpu-rt-runtime 1000 {BUSYBOX} true"))
        .fails();
    cell.cli(&format!("rm -f {id}")).ok();
});

case!(stats_once, |cell| {
    let name = cell.name("c");
    let id = cell.detached(&format!(
        "--name {name} -m 200m {BUSYBOX} sh -c 'while :; do :; done'"
    ));
    let output = cell.cli(&format!("stats --no-stream {id}")).ok();
    let lines = output.lines();
    assert_eq!(lines.len(), 2, "{output}");
    assert!(
        lines[0].contains("CPU %") && lines[0].contains("PIDS"),
        "{output}"
    );
    assert!(
        lines[1].contains(&name) && lines[1].contains("200MiB"),
        "{output}"
    );
    let output = cell
        .cli(&format!(
            "stats --no-stream --format '{{{{.CPUPerc}}}}' {id}"
        ))
        .ok();
    let percent: f64 = output
        .text()
        .trim_end_matches('%')
        .parse()
        .expect("a number");
    assert!(percent > 5.0, "a busy loop: {output}");
    let answer = cell
        .api("GET", &format!("/containers/{id}/stats?stream=false"), None)
        .json();
    assert!(
        answer["memory_stats"]["usage"]
            .as_u64()
            .is_some_and(|usage| usage > 0),
        "{answer}"
    );
    assert!(
        answer["pids_stats"]["current"]
            .as_u64()
            .is_some_and(|count| count >= 1),
        "{answer}"
    );
    let used = |key: &str| answer[key]["cpu_usage"]["total_usage"].as_u64();
    assert!(used("cpu_stats") > used("precpu_stats"), "{answer}");
    // By CPU too, where the kernel counts that: in groups of version 1, which know a maximum.
    let of_each = &answer["cpu_stats"]["cpu_usage"]["percpu_usage"];
    let each: Vec<u64> = serde_json::from_value(of_each.clone()).unwrap_or_default();
    let counted = !answer["memory_stats"]["max_usage"].is_null();
    assert_eq!(counted, each.iter().sum::<u64>() > 0, "{answer}");
});

case!(stats_stream, |cell| {
    let id = cell.detached(&format!("{BUSYBOX} sleep 600"));
    let mut stats = cell
        .line(&format!(
            "stats --format '{{{{.Name}}}}={{{{.PIDs}}}}.' {id}"
        ))
        .start();
    stats.expect("=1.");
    stats.expect("=1.");
    drop(stats);
    let gone = cell.cli("stats --no-stream no-such-thing");
    gone.exits(1).says("no-such-thing");
});

case!(limits_are_found_again_after_a_restart, |cell| {
    let id = cell.detached(&format!("-m 100m --pids-limit 50 {BUSYBOX} sleep 600"));
    cell.cli(&format!("restart -t 0 {id}")).ok();
    cell.until_state(&id, "running");
    if !cell.is_hyperv() {
        let value = until("the limit", cell.limit(), || {
            let value = on_host(&id, ("memory", "memory.limit_in_bytes"), "memory.max");
            (!value.is_empty()).then_some(value)
        });
        assert_eq!(value, (100 << 20).to_string());
        assert_eq!(on_host(&id, ("pids", "pids.max"), "pids.max"), "50");
    }
    let _: &Cell = cell;
});
