//! `logs` and the file behind it.

use bulkhead_e2e::{BUSYBOX, case};

case!(docker entries_say_what_their_options_ask_for, |cell| {
    let name = cell.name("c");
    let options = "--log-opt labels=one,no --log-opt env-regex=^AN --log-opt tag={{.Name}}/x";
    cell.run(&format!(
        "--name {name} -l one=1 -l two=2 -e ANY=a,b -e OTHER=o {options} {BUSYBOX} echo said"
    ))
    .ok();
    let seen = cell.cli(&format!("logs --details {name}")).ok();
    assert_eq!(seen.text(), format!("ANY=a%2Cb,one=1,tag={name}%2Fx said"));
    assert_eq!(cell.cli(&format!("logs {name}")).ok().text(), "said");
    cell.cli(&format!("rm {name}")).ok();
});

case!(output_comes_back_on_its_stream, |cell| {
    let id = cell.detached(&format!(
        "{BUSYBOX} sh -c 'echo out; sleep 0.1; echo err >&2; sleep 0.1; printf end'"
    ));
    cell.cli(&format!("wait {id}")).ok();
    let output = cell.cli(&format!("logs {id}")).ok();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "out\nend");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "err\n");
});

case!(tail, |cell| {
    let id = cell.detached(&format!("{BUSYBOX} seq 1 1000"));
    cell.cli(&format!("wait {id}")).ok();
    let tail = |count: &str| cell.cli(&format!("logs --tail {count} {id}")).ok().lines();
    assert_eq!(tail("3"), ["998", "999", "1000"]);
    assert!(tail("0").is_empty());
    assert_eq!(tail("all").len(), 1000);
    assert_eq!(tail("5000").len(), 1000);
});

case!(follow_ends_with_the_container, |cell| {
    let id = cell.detached(&format!(
        r#"{BUSYBOX} sh -c 'trap "echo last; exit" TERM; i=0; while :; do i=$((i+1)); echo $i; sleep 0.05; done'"#
    ));
    let mut logs = cell.line(&format!("logs -f {id}")).start();
    logs.expect("\n10\n");
    cell.cli(&format!("stop -t 60 {id}")).ok();
    let output = logs.finish().ok();
    let lines = output.lines();
    let (last, numbers) = lines.split_last().expect("lines");
    assert_eq!(last, "last");
    assert!(
        numbers
            .iter()
            .zip(1..)
            .all(|(line, number)| *line == number.to_string()),
        "{output}"
    );
});

case!(follow_from_the_tail, |cell| {
    let id = cell.detached(&format!("-i {BUSYBOX} sh -c 'seq 1 100; cat'"));
    cell.line(&format!("logs -f {id}"))
        .start()
        .expect("\n100\n");
    let mut logs = cell.line(&format!("logs -f --tail 2 {id}")).start();
    logs.expect("99\n100\n");
    let mut attached = cell.line(&format!("attach {id}")).start();
    attached.send("new\n");
    logs.expect("new\n");
    cell.cli(&format!("kill {id}")).ok();
    let output = logs.finish().ok();
    assert_eq!(output.lines(), ["99", "100", "new"]);
});

case!(times_and_since, |cell| {
    let id = cell.detached(&format!("{BUSYBOX} sh -c 'echo one; sleep 2; echo two'"));
    cell.cli(&format!("wait {id}")).ok();
    let output = cell.cli(&format!("logs -t {id}")).ok();
    let lines = output.lines();
    let times: Vec<&str> = lines
        .iter()
        .filter_map(|line| line.split(' ').next())
        .collect();
    // 2006-01-02T15:04:05.999999999Z
    assert!(
        times
            .iter()
            .all(|time| time.len() == 30 && time.ends_with('Z')),
        "{output}"
    );
    assert!(
        lines[0].ends_with(" one") && lines[1].ends_with(" two"),
        "{output}"
    );
    let output = cell.cli(&format!("logs --since {} {id}", times[1])).ok();
    assert_eq!(output.text(), "two");
    let output = cell.cli(&format!("logs --until {} {id}", times[0])).ok();
    assert_eq!(output.text(), "one");
    let output = cell.cli(&format!("logs --since 1h {id}")).ok();
    assert_eq!(output.lines(), ["one", "two"]);
});

case!(the_file_is_dockers, |cell| {
    let id = cell.detached(&format!(
        r#"{BUSYBOX} sh -c 'echo "a \"b\""; echo err >&2'"#
    ));
    cell.cli(&format!("wait {id}")).ok();
    let inspect = cell.inspect(&id);
    assert_eq!(inspect["HostConfig"]["LogConfig"]["Type"], "json-file");
    let path = inspect["LogPath"].as_str().expect("a path");
    let text = std::fs::read_to_string(path).expect("the log file");
    let mut entries: Vec<serde_json::Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("a JSON line"))
        .collect();
    entries.sort_by_key(|entry| entry["stream"].to_string());
    assert_eq!(entries.len(), 2);
    assert_eq!(
        (&entries[0]["log"], &entries[0]["stream"]),
        (&"err\n".into(), &"stderr".into())
    );
    assert_eq!(
        (&entries[1]["log"], &entries[1]["stream"]),
        (&"a \"b\"\n".into(), &"stdout".into())
    );
    assert!(
        entries[0]["time"]
            .as_str()
            .is_some_and(|time| time.ends_with('Z'))
    );
});

case!(long_lines_stay_whole, |cell| {
    let id = cell.detached(&format!(
        "{BUSYBOX} sh -c 'head -c 100000 /dev/zero | tr \"\\0\" x; echo; echo next'"
    ));
    cell.cli(&format!("wait {id}")).ok();
    let output = cell.cli(&format!("logs {id}")).ok();
    let lines = output.lines();
    assert_eq!(
        (lines.len(), lines[0].len(), lines[1].as_str()),
        (2, 100_000, "next")
    );
});

case!(rotation, |cell| {
    let id = cell.detached(&format!(
        "--log-opt max-size=20k --log-opt max-file=2 {BUSYBOX} seq 1 5000"
    ));
    cell.cli(&format!("wait {id}")).ok();
    let path = cell.inspect(&id)["LogPath"]
        .as_str()
        .expect("a path")
        .to_owned();
    for path in [path.clone(), format!("{path}.1")] {
        let size = std::fs::metadata(&path).expect("a log file").len();
        assert!(size <= 21 << 10, "{path} has {size} bytes");
    }
    assert!(!std::path::Path::new(&format!("{path}.2")).exists());
    assert_eq!(cell.cli(&format!("logs --tail 1 {id}")).ok().text(), "5000");
});

case!(no_log, |cell| {
    let id = cell.detached(&format!("--log-driver none {BUSYBOX} echo lost"));
    cell.cli(&format!("wait {id}")).ok();
    cell.cli(&format!("logs {id}"))
        .exits(1)
        .says("does not support reading");
});

case!(of_a_missing_container, |cell| {
    cell.cli("logs no-such-thing")
        .exits(1)
        .says("no-such-thing");
});
