//! What can be seen: ps, top, inspect, events, info, version.

use std::ops::ControlFlow;

use bulkhead_e2e::{BUSYBOX, api, case, host};

case!(ps_filters, |cell| {
    let tag = cell.name("tag");
    let (up, down, new) = (cell.name("up"), cell.name("down"), cell.name("new"));
    let label = format!("--label of={tag}");
    let up_id = cell.detached(&format!(
        "--name {up} {label} --label kind=up {BUSYBOX} sleep 600"
    ));
    let down_id = cell.detached(&format!("--name {down} {label} {BUSYBOX} sh -c 'exit 3'"));
    cell.cli(&format!("wait {down_id}")).ok();
    let new_id = cell.create(&format!("--name {new} {label} {BUSYBOX} true"));
    cell.until_state(&down_id, "exited");
    let names = |options: &str| {
        let format = "--format '{{.Names}}'";
        let output = cell
            .cli(&format!("ps {options} --filter label=of={tag} {format}"))
            .ok();
        let mut lines = output.lines();
        lines.sort();
        lines
    };
    let only = |name: &String| vec![name.clone()];
    let sorted = |mut names: Vec<&String>| {
        names.sort();
        names.into_iter().cloned().collect::<Vec<_>>()
    };
    assert_eq!(names(""), only(&up));
    assert_eq!(names("-a"), sorted(vec![&up, &down, &new]));
    assert_eq!(names("-a --filter status=created"), only(&new));
    assert_eq!(names("--filter status=exited"), only(&down));
    assert_eq!(
        names("-a --filter status=exited --filter status=created"),
        sorted(vec![&down, &new])
    );
    assert_eq!(names("-a --filter exited=3"), only(&down));
    assert_eq!(names("-a --filter exited=4"), Vec::<String>::new());
    assert_eq!(names(&format!("-a --filter name={down}")), only(&down));
    assert_eq!(
        names(&format!("-a --filter id={}", &new_id[..12])),
        only(&new)
    );
    assert_eq!(names("-a --filter label=kind=up"), only(&up));
    assert_eq!(names("-a --filter label=kind"), only(&up));
    assert_eq!(names(&format!("-a --filter ancestor={BUSYBOX}")).len(), 3);
    assert_eq!(names(&format!("-a --filter since={down}")), only(&new));
    assert_eq!(names(&format!("-a --filter before={down}")), only(&up));
    let output = cell
        .cli(&format!("ps -q --no-trunc --filter label=of={tag}"))
        .ok();
    assert_eq!(output.text(), up_id);
    cell.cli("ps --filter nonsense=1").exits(1).says("nonsense");
    cell.cli("ps -a --filter status=nonsense")
        .exits(1)
        .says("nonsense");
});

case!(ps_columns, |cell| {
    let name = cell.name("c");
    let id = cell.detached(&format!("--name {name} {BUSYBOX} sh -c 'exit 7'"));
    cell.cli(&format!("wait {id}")).ok();
    cell.until_state(&id, "exited");
    let output = cell.cli(&format!("ps -a --filter name={name}")).ok();
    let lines = output.lines();
    let heading: Vec<&str> = lines[0]
        .split("  ")
        .map(str::trim)
        .filter(|word| !word.is_empty())
        .collect();
    assert_eq!(
        heading,
        [
            "CONTAINER ID",
            "IMAGE",
            "COMMAND",
            "CREATED",
            "STATUS",
            "PORTS",
            "NAMES"
        ]
    );
    let row = &lines[1];
    assert!(
        row.starts_with(&id[..12]) && row.ends_with(&name),
        "{output}"
    );
    assert!(row.contains("\"sh -c 'exit 7'\""), "{output}");
    assert!(
        row.contains("Exited (7)") && row.contains(BUSYBOX),
        "{output}"
    );
    let output = cell
        .cli(&format!(
            "ps -a --filter name={name} --format '{{{{json .}}}}'"
        ))
        .ok();
    let json = output.json();
    assert_eq!(
        (&json["Names"], &json["State"]),
        (&name.as_str().into(), &"exited".into())
    );
    let output = cell.cli(&format!(
        "ps -a --filter name={name} --format 'table {{{{.ID}}}}\\t{{{{.State}}}}'"
    ));
    let lines = output.ok().lines();
    assert!(
        lines[0].starts_with("CONTAINER ID") && lines[0].ends_with("STATE"),
        "{lines:?}"
    );
    assert!(
        lines[1].starts_with(&id[..12]) && lines[1].ends_with("exited"),
        "{lines:?}"
    );
});

case!(ps_order_is_newest_first, |cell| {
    let tag = cell.name("tag");
    let names: Vec<String> = (0..3).map(|_| cell.name("c")).collect();
    for name in &names {
        let _id = cell.create(&format!("--name {name} --label of={tag} {BUSYBOX} true"));
    }
    let output = cell
        .cli(&format!(
            "ps -a --filter label=of={tag} --format '{{{{.Names}}}}'"
        ))
        .ok();
    let newest_first: Vec<String> = names.iter().rev().cloned().collect();
    assert_eq!(output.lines(), newest_first);
});

case!(top, |cell| {
    let id = cell.detached(&format!(
        "-u user {BUSYBOX} sh -c 'sleep 601 & exec sleep 602'"
    ));
    bulkhead_e2e::until("both sleeps", cell.limit(), || {
        let text = cell.cli(&format!("top {id}")).ok().text();
        (text.contains("sleep 601") && text.contains("sleep 602")).then_some(())
    });
    let heading = cell.cli(&format!("top {id}")).ok().lines()[0].clone();
    let words: Vec<&str> = heading.split_whitespace().collect();
    assert_eq!(
        words,
        ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]
    );
    let pid = cell.inspect(&id)["State"]["Pid"]
        .as_u64()
        .expect("a number");
    if !cell.is_hyperv() {
        let top = cell.cli(&format!("top {id}")).ok().text();
        let row = top
            .lines()
            .find(|line| line.contains("sleep 602"))
            .expect("init");
        assert_eq!(
            row.split_whitespace().nth(1),
            Some(pid.to_string().as_str())
        );
        let process = host::process(u32::try_from(pid).expect("a PID")).expect("it runs");
        assert_eq!(process.comm, "sleep");
    }
    cell.cli("top no-such-thing").exits(1).says("no-such-thing");
});

case!(top_with_columns, |cell| {
    let id = cell.detached(&format!("{BUSYBOX} sleep 600"));
    let output = cell.cli(&format!("top {id} -o pid,args")).ok();
    let lines = output.lines();
    let words: Vec<&str> = lines[0].split_whitespace().collect();
    assert_eq!(words, ["PID", "COMMAND"], "{output}");
    assert!(lines[1].ends_with("sleep 600"), "{output}");
});

case!(inspect, |cell| {
    let name = cell.name("c");
    let id = cell.create(&format!(
        "--name {name} -e A=b -w /tmp -u user -h thing --network none --read-only \
         --stop-signal INT --entrypoint sh {BUSYBOX} -c 'exit 0'"
    ));
    let got = cell.inspect(&name);
    assert_eq!(got["Id"], id);
    assert_eq!(
        (&got["Path"], &got["Args"]),
        (&"sh".into(), &serde_json::json!(["-c", "exit 0"]))
    );
    assert_eq!(got["Config"]["Image"], BUSYBOX);
    assert_eq!(got["Config"]["User"], "user");
    assert_eq!(got["Config"]["WorkingDir"], "/tmp");
    assert_eq!(got["Config"]["Hostname"], "thing");
    assert_eq!(got["Config"]["StopSignal"], "INT");
    assert_eq!(got["Config"]["Entrypoint"], serde_json::json!(["sh"]));
    assert_eq!(got["HostConfig"]["NetworkMode"], "none");
    assert_eq!(got["HostConfig"]["ReadonlyRootfs"], true);
    assert_eq!(got["HostConfig"]["AutoRemove"], false);
    let environment = got["Config"]["Env"].as_array().expect("a list");
    assert!(environment.contains(&"A=b".into()), "{environment:?}");
    let state = &got["State"];
    assert_eq!(
        (&state["Running"], &state["Pid"]),
        (&false.into(), &0.into())
    );
    assert!(
        got["Image"]
            .as_str()
            .is_some_and(|image| image.starts_with("sha256:"))
    );
    let output = cell.cli(&format!(
        "inspect -f '{{{{.Name}}}} {{{{.State.Status}}}} {{{{json .Args}}}}' {name}"
    ));
    assert_eq!(
        output.ok().text(),
        format!("/{name} created [\"-c\",\"exit 0\"]")
    );
    let output = cell
        .cli("inspect no-such-thing")
        .exits(1)
        .says("no such object");
    assert_eq!(output.says("no-such-thing").json(), serde_json::json!([]));
});

case!(events, |cell| {
    let name = cell.name("c");
    let filter = format!("--filter container={name}");
    let mut following = cell
        .line(&format!(
            "events --since 1s {filter} --format '{{{{.Action}}}}.'"
        ))
        .start();
    cell.run(&format!("--rm --name {name} {BUSYBOX} sh -c 'exit 3'"))
        .exits(3);
    for action in ["create.", "start.", "die.", "destroy."] {
        following.expect(action);
    }
    following.signal(rustix::process::Signal::TERM);
    following.finish();
    // The past, with attributes.
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .expect("after 1970");
    let until = format!("{}.{:09}", now.as_secs(), now.subsec_nanos());
    let output = cell
        .cli(&format!(
            "events --since 1h --until {until} {filter} --filter event=die"
        ))
        .ok();
    output.says("exitCode=3").says(&name).says("container die");
    // An end is enough to hear of the past, and how a name begins.
    let part = &name[..name.len() - 1];
    cell.cli(&format!(
        "events --until {until} --filter container={part} --filter event=die"
    ))
    .ok()
    .says("exitCode=3")
    .says(&name);
});

case!(process filters_of_names_are_expressions, |cell| {
    let short = cell.name("thing");
    let long = format!("{short}-more");
    for kind in ["network", "volume"] {
        cell.cli(&format!("{kind} create {short}")).ok();
        cell.cli(&format!("{kind} create {long}")).ok();
        let found = |pattern: &str| {
            let line = format!("{kind} ls --filter name={pattern} --format '{{{{.Name}}}}'");
            let mut lines = cell.cli(&line).ok().lines();
            lines.sort();
            lines
        };
        let both = [short.clone(), long.clone()];
        assert_eq!(found(&short), both, "{kind}");
        assert_eq!(found(&format!("^{short}")), both, "{kind}");
        assert_eq!(found(&format!("^{short}$")), [short.as_str()], "{kind}");
        assert_eq!(found(&format!("{short}.more")), [long.as_str()], "{kind}");
        assert!(found(&format!("{short}[")).is_empty(), "{kind}");
        cell.cli(&format!("{kind} rm {short} {long}")).ok();
    }
});

case!(who_hears_of_an_end_finds_it_ended, |cell| {
    let mark = cell.name("mark");
    let rounds = if cell.is_hyperv() { 1 } else { 5 };
    let socket = cell.daemon().socket();
    let filters = format!("{{\"label\":[\"mark={mark}\"],\"event\":[\"die\"]}}");
    let filters = filters
        .replace('"', "%22")
        .replace('{', "%7B")
        .replace('}', "%7D");
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut left = rounds;
        let mut text = Vec::new();
        let path = format!("/events?since=1&filters={filters}");
        drop(api::stream(&socket, &path, |chunk| {
            text.extend_from_slice(chunk);
            while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = text.drain(..=end).collect();
                let event: serde_json::Value = serde_json::from_slice(&line).expect("an event");
                let id = event["Actor"]["ID"].as_str().expect("an ID");
                let path = format!("/containers/{id}/json");
                let seen = api::request(&socket, "GET", &path, None).expect("an answer");
                tell.send(seen.json()["State"]["Status"].clone())
                    .expect("a listener");
                left -= 1;
            }
            if left == 0 {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        }));
    });
    for _ in 0..rounds {
        let id = cell.detached(&format!("--label mark={mark} {BUSYBOX} true"));
        assert_eq!(told.recv_timeout(cell.limit()).expect("an event"), "exited");
        cell.cli(&format!("rm {id}")).ok();
    }
});

case!(version_and_info, |cell| {
    cell.cli("version").ok().says("Server");
    let output = cell
        .cli("version --format '{{.Server.APIVersion}} {{.Server.Os}}'")
        .ok();
    assert!(output.text().ends_with(" linux"), "{output}");
    cell.cli("info")
        .ok()
        .says("Containers:")
        .says("Kernel Version");
});

case!(ours process info_shows_isolation_and_engine, |cell| {
    let info = cell.api("GET", "/info", None).json();
    let text = info.to_string();
    assert_eq!(info["Isolation"], "process", "{text}");
    assert!(text.contains("qemu") || text.contains("kvm"), "the engine: {text}");
    cell.cli("info").ok().says("Default Isolation: process");
    let answer = cell.api("GET", "/version", None).json();
    assert_eq!((&answer["ApiVersion"], &answer["MinAPIVersion"]), (&"1.50".into(), &"1.24".into()));
});

case!(process the_api_answers_every_path_form, |cell| {
    for path in ["/_ping", "/v1.24/_ping", "/v1.41/_ping"] {
        let answer = cell.api("GET", path, None);
        assert_eq!((answer.status, answer.body.as_slice()), (200, &b"OK"[..]), "{path}");
        assert!(answer.header("api-version").is_some() && answer.header("ostype") == Some("linux"));
    }
    let head = cell.api("HEAD", "/_ping", None);
    assert_eq!(head.status, 200);
    let missing = cell.api("GET", "/no/such/thing", None);
    assert_eq!(missing.status, 404);
    assert!(!missing.message().is_empty());
    let newer = cell.api("GET", "/v9.99/info", None);
    assert_eq!(newer.status, 400);
    assert!(newer.message().contains("9.99"), "{}", newer.message());
    let broken = cell.api("POST", "/containers/create", Some(&serde_json::json!([])));
    let status = cell.now_or_then(400, 500);
    assert_eq!(broken.status, status, "{}", broken.message());
});

case!(process ps_by_port_and_ancestor, |cell| {
    let mark = format!("--label of={}", cell.name("tag"));
    let id = cell.detached(&format!(
        "{mark} -p 127.0.0.1::80 --expose 81 {BUSYBOX} sleep 600"
    ));
    let list = |filter: &str| {
        let line = format!("ps -aq --no-trunc --filter {} {filter}", &mark[2..].replace(' ', "="));
        cell.cli(&line).ok().lines()
    };
    let bound = cell.inspect(&id)["NetworkSettings"]["Ports"]["80/tcp"][0].clone();
    let public = bound["HostPort"].as_str().expect("a port");
    for (filter, found) in [
        (format!("publish={public}"), true),
        ("publish=80".to_owned(), public == "80"),
        (format!("publish={public}/udp"), false),
        ("expose=80".to_owned(), true),
        ("expose=81".to_owned(), true),
        ("expose=82".to_owned(), false),
    ] {
        let listed = list(&format!("--filter {filter}"));
        assert_eq!(listed.len(), usize::from(found), "{filter}: {listed:?}");
    }
    // What an image was made of is an ancestor, too.
    let child = format!("{}:1", cell.name("child"));
    cell.cli(&format!("commit {id} {child}")).ok();
    cell.cli(&format!("kill {id}")).ok();
    cell.until_state(&id, "exited");
    assert!(list("--filter expose=80").is_empty(), "none is open");
    let made = cell.create(&format!("{mark} {child} true"));
    let mut of_busybox = list(&format!("--filter ancestor={BUSYBOX}"));
    of_busybox.sort();
    let mut both = vec![id, made.clone()];
    both.sort();
    assert_eq!(of_busybox, both);
    assert_eq!(list(&format!("--filter ancestor={child}")), [made.as_str()]);
    cell.cli(&format!("rm {made}")).ok();
    cell.cli(&format!("rmi {child}")).ok();
});
