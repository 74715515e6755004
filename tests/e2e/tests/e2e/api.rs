//! What SDKs ask of the API and the docker CLI does not.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::net::UnixStream;

use bulkhead_e2e::http::{Files, Server};
use bulkhead_e2e::images::{Meta, Tar, busybox_tar};
use bulkhead_e2e::{BUSYBOX, Cell, Daemon, case, until};
use serde_json::{Value, json};

case!(a_link_is_removed_alone, |cell| {
    let (child, parent) = (cell.name("child"), cell.name("parent"));
    let child_id = cell.detached(&format!("--name {child} {BUSYBOX} sleep 1000"));
    let parent_id = cell.detached(&format!(
        "--name {parent} --link {child}:al {BUSYBOX} sleep 1000"
    ));
    let names = || {
        let listed = cell.api("GET", "/containers/json", None).json();
        let listed = listed.as_array().expect("a list");
        let found = listed.iter().find(|one| one["Id"] == child_id.as_str());
        let mut names: Vec<String> = found.expect("the child")["Names"]
            .as_array()
            .expect("names")
            .iter()
            .map(|name| name.as_str().unwrap_or_default().to_owned())
            .collect();
        names.sort();
        names
    };
    let link = format!("/{child}:/{parent}/al");
    assert_eq!(
        cell.inspect(&parent_id)["HostConfig"]["Links"],
        json!([link])
    );
    let mut both = vec![format!("/{child}"), format!("/{parent}/al")];
    both.sort();
    assert_eq!(names(), both);
    // By such a name it is found like by its own.
    for path in [format!("{parent}/al"), format!("{parent}%2Fal")] {
        let path = format!("/containers/{path}/json");
        let seen = cell.api("GET", &path, None).json();
        assert_eq!(seen["Id"], child_id.as_str(), "{path}");
    }
    for none in [format!("{parent}/nope"), format!("{child}/al")] {
        let seen = cell.api("GET", &format!("/containers/{none}/json"), None);
        assert_eq!(seen.status, 404, "{none}");
        assert_eq!(seen.message(), format!("No such container: {none}"));
    }
    cell.cli(&format!("exec {parent}/al echo found"))
        .ok()
        .says("found");
    let remove = |path: &str| cell.api("DELETE", &format!("/containers/{path}"), None);
    assert_eq!(remove(&format!("{parent}/nope?link=1")).status, 404);
    assert_eq!(remove(&format!("{parent}/al?link=1")).status, 204);
    assert_eq!(remove(&format!("{parent}/al?link=1")).status, 404);
    assert_eq!(names(), [format!("/{child}")]);
    assert_eq!(cell.inspect(&parent_id)["HostConfig"]["Links"], Value::Null);
    let hosts = cell.cli(&format!("exec {parent_id} cat /etc/hosts")).ok();
    assert!(!hosts.text().contains("\tal"), "{hosts}");
    for id in [&child_id, &parent_id] {
        assert_eq!(cell.state(id), "running");
    }
});

case!(process the_default_isolation_and_runtime_by_name, |cell| {
    let body = json!({
        "Image": BUSYBOX, "Cmd": ["true"], "HostConfig": { "Isolation": "default" }
    });
    let path = format!("/containers/create?name={}", cell.name("c"));
    let created = cell.api("POST", &path, Some(&body));
    assert_eq!(created.status, 201, "{}", created.message());
    let id = created.json()["Id"].as_str().expect("an ID").to_owned();
    let shown = cell.inspect(&id)["HostConfig"].clone();
    assert_eq!(shown["Isolation"], "default");
    assert_eq!(shown["Runtime"], "runc");
    let info = cell.api("GET", "/info", None).json();
    assert_eq!(info["DefaultRuntime"], "runc");
    assert!(info["Runtimes"]["runc"].is_object(), "{info}");
    cell.cli(&format!("rm {id}")).ok();
});

case!(an_update_to_an_unknown_policy, |cell| {
    let id = cell.detached(&format!("{BUSYBOX} sleep 1000"));
    let update = |body: &Value| {
        let path = format!("/containers/{id}/update");
        cell.api("POST", &path, Some(body))
    };
    let refused = update(&json!({ "RestartPolicy": { "Name": "sometimes" } }));
    assert_eq!(refused.status, 400, "{}", refused.message());
    let message = refused.message();
    assert!(message.starts_with("invalid restart policy"), "{message}");
    assert!(message.contains("'sometimes'"), "{message}");
    assert_eq!(
        update(&json!({ "RestartPolicy": { "Name": "always" } })).status,
        200
    );
    let policy = cell.inspect(&id)["HostConfig"]["RestartPolicy"]["Name"].clone();
    assert_eq!(policy, "always");
});

/// Makes a container by a client of this version, and what an inspect says of it.
fn made_by(cell: &Cell, version: &str, body: &Value) -> Value {
    let path = format!("/{version}/containers/create?name={}", cell.name("c"));
    let made = cell.api("POST", &path, Some(body));
    assert_eq!(made.status, 201, "{version} {body}: {}", made.message());
    let shown = cell.inspect(made.json()["Id"].as_str().expect("an ID"));
    cell.cli(&format!("rm {}", shown["Id"].as_str().expect("an ID")))
        .ok();
    shown
}

case!(docker defaults_are_those_of_the_clients_version, |cell| {
    let body = json!({ "Image": BUSYBOX, "HostConfig": { "AutoRemove": true } });
    for (version, removed, ipc) in [
        ("v1.24", false, "shareable"),
        ("v1.39", true, "shareable"),
        ("v1.40", true, "private"),
    ] {
        let shown = made_by(cell, version, &body);
        assert_eq!(shown["HostConfig"]["AutoRemove"], removed, "{version}");
        assert_eq!(shown["HostConfig"]["IpcMode"], ipc, "{version}");
    }
    // A check that nobody knows is none.
    let body = json!({ "Image": BUSYBOX, "Healthcheck": { "Test": ["true"] } });
    let shown = made_by(cell, "v1.41", &body);
    assert_eq!(shown["Config"]["Healthcheck"]["Test"], json!(["true"]));
    let mac = "02:42:ac:11:65:43";
    let mut body = json!({ "Image": BUSYBOX, "MacAddress": mac });
    let shown = made_by(cell, "v1.41", &body);
    assert_eq!(shown["Config"]["MacAddress"], mac);
    body["HostConfig"] = json!({ "NetworkMode": "container:other" });
    let refused = cell.api("POST", "/v1.41/containers/create", Some(&body));
    assert_eq!(refused.status, 400);
    assert_eq!(
        refused.message(),
        "conflicting options: mac-address and the network mode"
    );
});

case!(ours process fields_that_came_later, |cell| {
    let mac = "02:42:ac:11:65:44";
    let body = json!({
        "Image": BUSYBOX,
        "Healthcheck": { "Test": ["CMD", "true"], "StartInterval": 5_000_000_000_i64 },
        "HostConfig": { "Annotations": { "a": "b" } },
        "NetworkingConfig": { "EndpointsConfig": { "bridge": { "MacAddress": mac } } },
    });
    let (old, new) = (made_by(cell, "v1.41", &body), made_by(cell, "v1.44", &body));
    assert_eq!(old["HostConfig"]["Annotations"], Value::Null);
    assert_eq!(new["HostConfig"]["Annotations"]["a"], "b");
    let interval = |shown: &Value| shown["Config"]["Healthcheck"]["StartInterval"].as_i64();
    assert_eq!(interval(&old).unwrap_or(0), 0);
    assert_eq!(interval(&new), Some(5_000_000_000));
    assert_eq!(old["Config"]["MacAddress"], Value::Null);
    assert_eq!(new["Config"]["MacAddress"], mac);
    let mounted = |kind: &str, options: Value| {
        let mut mount = json!({ "Type": kind, "Source": cell.name("v"), "Target": "/v" });
        mount
            .as_object_mut()
            .expect("an object")
            .extend(options.as_object().expect("an object").clone());
        json!({ "Image": BUSYBOX, "HostConfig": { "Mounts": [mount] } })
    };
    let mut forced = mounted(
        "bind",
        json!({ "ReadOnly": true, "BindOptions": { "ReadOnlyForceRecursive": true } }),
    );
    forced["HostConfig"]["Mounts"][0]["Source"] = json!("/tmp");
    let part = mounted("volume", json!({ "VolumeOptions": { "Subpath": "a" } }));
    let mut other = body.clone();
    other["MacAddress"] = json!("02:42:ac:11:65:45");
    for (version, body, words) in [
        ("v1.43", forced, "BindOptions.ReadOnlyForceRecursive needs API v1.44 or newer"),
        ("v1.44", part, "VolumeOptions.Subpath needs API v1.45 or newer"),
        ("v1.45", other, "the container-wide MAC address must match"),
    ] {
        let path = format!("/{version}/containers/create");
        let refused = cell.api("POST", &path, Some(&body));
        assert_eq!(refused.status, 400, "{}", refused.message());
        assert!(refused.message().contains(words), "{}", refused.message());
    }
});

case!(ours exec_while_the_container_ends, |cell| {
    let id = cell.detached(&format!("{BUSYBOX} sleep 2"));
    let refusal = loop {
        let create = format!("/containers/{id}/exec");
        let created = cell.api("POST", &create, Some(&json!({ "Cmd": ["true"] })));
        if created.status != 201 {
            break created;
        }
        let exec = created.json()["Id"].as_str().expect("an ID").to_owned();
        let start = format!("/exec/{exec}/start");
        let started = cell.api("POST", &start, Some(&json!({ "Detach": true })));
        if started.status != 200 {
            break started;
        }
    };
    assert_eq!(refusal.status, 409, "{}", refusal.message());
    let message = refusal.message();
    assert!(message.ends_with("is not running"), "{message}");
});

case!(process images_from_an_address, |cell| {
    let files: Files = BTreeMap::from([(
        "/root.tar".to_owned(),
        ("application/x-tar", busybox_tar().to_vec()),
    )]);
    let server = Server::start(files);
    let name = cell.name("image");
    let import = |path: &str| {
        let source = format!("http://{}/{path}", server.address());
        let path = format!("/images/create?fromSrc={source}&repo={name}&changes=CMD%20true");
        cell.api("POST", &path, None)
    };
    let answer = import("root.tar");
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    assert_eq!(answer.status, 200, "{text}");
    assert!(text.contains("sha256:"), "{text}");
    cell.run(&format!("--rm {name} echo works")).ok().says("works");
    cell.cli(&format!("rmi {name}")).ok();
    let answer = import("missing.tar");
    assert_eq!(answer.status, 404, "{}", answer.message());
    let words = format!(
        "failed to GET http://{}/missing.tar with status 404 Not Found:",
        server.address()
    );
    assert!(answer.message().starts_with(&words), "{}", answer.message());
    cell.cli(&format!("image inspect {name}")).fails();
});

case!(process an_unknown_platform, |cell| {
    let path = "/images/create?fromImage=none.invalid/x&tag=y&platform=foobar";
    let answer = cell.api("POST", path, None);
    assert!(answer.status >= 400, "{}", answer.status);
    let message = answer.message();
    assert!(message.contains("unknown operating system"), "{message}");
    // In a build too, whose base is here.
    let dockerfile = format!("FROM {BUSYBOX}\n");
    let mut context = Tar::new();
    context.file("Dockerfile", &Meta::mode(0o644), dockerfile.as_bytes());
    let context = context.done();
    let body = Some(("application/x-tar", context.as_slice()));
    let socket = cell.daemon().socket();
    let path = "/build?platform=foobar";
    let answer = bulkhead_e2e::api::request(&socket, "POST", path, body);
    let answer = answer.expect("an answer");
    assert_eq!(answer.status, 400, "{}", answer.message());
    let message = answer.message();
    assert!(message.contains("unknown operating system"), "{message}");
});

case!(builds_show_errors_in_red, |cell| {
    let number = cell.number();
    let dockerfile = format!("FROM {BUSYBOX}\nRUN echo fine; echo {number} >&2\n");
    let mut context = Tar::new();
    context.file("Dockerfile", &Meta::mode(0o644), dockerfile.as_bytes());
    let context = context.done();
    let name = cell.name("image");
    let isolation = if cell.is_hyperv() { "hyperv" } else { "" };
    let path = format!("/build?rm=1&isolation={isolation}&t={name}");
    let body = Some(("application/x-tar", context.as_slice()));
    let socket = cell.daemon().socket();
    let answer = bulkhead_e2e::api::request(&socket, "POST", &path, body).expect("an answer");
    assert_eq!(answer.status, 200);
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    let said: Vec<String> = text
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter_map(|line| line["stream"].as_str().map(str::to_owned))
        .collect();
    let red = format!("\x1b[91m{number}\n\x1b[0m");
    assert!(said.contains(&red), "{said:?}");
    assert!(said.contains(&"fine\n".to_owned()), "{said:?}");
    cell.cli(&format!("rmi {name}")).ok();
});

case!(process paths_are_cleaned, |cell| {
    for (path, clean) in [
        ("//_ping", "/_ping"),
        ("/v1.41//images/json?all=1", "/v1.41/images/json?all=1"),
        ("/containers/../info", "/info"),
        ("/images/%2e%2E/./info/", "/info/"),
        ("/images/a%2F%2Fb%20c/json", "/images/a/b%20c/json"),
    ] {
        for method in ["GET", "POST"] {
            let answer = cell.api(method, path, None);
            assert_eq!(answer.status, 301, "{method} {path}");
            assert_eq!(answer.header("location"), Some(clean), "{method} {path}");
        }
    }
    for (path, status) in [
        ("/networks/", 200),
        ("/info/", 404),
        ("/images/busybox:latest..x/json", 404),
    ] {
        let answer = cell.api("GET", path, None);
        assert_eq!(answer.status, status, "{path}: {}", answer.message());
    }
});

case!(process heads_and_options, |cell| {
    let id = cell.create(&format!("{BUSYBOX} true"));
    for (path, status) in [
        ("/_ping".to_owned(), 200),
        (format!("/containers/{id}/archive?path=/bin"), 200),
        ("/info".to_owned(), 404),
        ("/images/json".to_owned(), 404),
        (format!("/containers/{id}/json"), 404),
        ("/nothing".to_owned(), 404),
    ] {
        assert_eq!(cell.api("HEAD", &path, None).status, status, "{path}");
    }
    for path in ["/info", "/nothing"] {
        assert_eq!(cell.api("OPTIONS", path, None).status, 200, "{path}");
        assert_eq!(cell.api("DELETE", path, None).status, 404, "{path}");
    }
});

case!(process bodies_and_names_that_are_missing, |cell| {
    for path in ["volumes/create", "networks/create"] {
        let answer = cell.api("POST", &format!("/{path}"), None);
        assert_eq!(answer.status, 400, "{path}: {}", answer.message());
        assert!(answer.message().contains("EOF"), "{}", answer.message());
    }
    let saved = cell.api("GET", "/images/get", None);
    assert_eq!(saved.status, 200);
    let kind = saved.header("content-type");
    assert_eq!(kind, Some("application/x-tar"));
    let text = String::from_utf8_lossy(&saved.body).into_owned();
    assert!(text.contains("manifest.json"), "{text:?}");
    let refused = cell.api("GET", "/images/get?names=", None);
    assert!(refused.status >= 400, "{}", refused.status);
    assert_eq!(refused.message(), "invalid reference format");
    let refused = cell.api("POST", "/build?version=7", None);
    assert!(refused.status >= 400, "{}", refused.status);
    assert_eq!(refused.message(), "invalid version \"7\"");
});

case!(names_of_members_in_any_case, |cell| {
    let isolation = if cell.is_hyperv() {
        "hyperv"
    } else {
        "default"
    };
    let volume = cell.name("volume");
    let body = json!({ "name": volume, "LABELS": { "Kind": "x" } });
    let made = cell.api("POST", "/volumes/create", Some(&body));
    assert_eq!(made.status, 201, "{}", made.message());
    assert_eq!(made.json()["Name"], volume.as_str());
    assert_eq!(made.json()["Labels"], json!({ "Kind": "x" }));
    let body = json!({
        "image": "no-such-image", "Image": BUSYBOX, "cmd": ["sleep", "1000"],
        "env": ["path_of=x"], "labels": { "Cmd": "kept" }, "OpenStdin": null,
        "hostconfig": {
            "isolation": isolation, "memory": 67_108_864,
            "mounts": [{ "type": "volume", "source": volume, "target": "/v" }],
            "restartpolicy": { "name": "on-failure", "maximumretrycount": 2 },
        },
    });
    let path = format!("/containers/create?name={}", cell.name("c"));
    let created = cell.api("POST", &path, Some(&body));
    assert_eq!(created.status, 201, "{}", created.message());
    let id = created.json()["Id"].as_str().expect("an ID").to_owned();
    let seen = cell.inspect(&id);
    assert_eq!(seen["Config"]["Image"], BUSYBOX);
    assert_eq!(seen["Config"]["Labels"], json!({ "Cmd": "kept" }));
    assert_eq!(seen["HostConfig"]["Memory"], 67_108_864);
    assert_eq!(seen["HostConfig"]["RestartPolicy"]["MaximumRetryCount"], 2);
    assert_eq!(seen["Mounts"][0]["Name"], volume.as_str());
    cell.cli(&format!("start {id}")).ok();
    let body = json!({ "cmd": ["true"], "ENV": ["a=b"] });
    let exec = cell.api("POST", &format!("/containers/{id}/exec"), Some(&body));
    assert_eq!(exec.status, 201, "{}", exec.message());
    let exec = exec.json()["Id"].as_str().expect("an ID").to_owned();
    let body = json!({ "detach": true });
    let started = cell.api("POST", &format!("/exec/{exec}/start"), Some(&body));
    assert_eq!(started.status, 200, "{}", started.message());
    let body = json!({ "cpushares": 512, "restartpolicy": { "name": "no" } });
    let updated = cell.api("POST", &format!("/containers/{id}/update"), Some(&body));
    assert_eq!(updated.status, 200, "{}", updated.message());
    let seen = cell.inspect(&id);
    assert_eq!(seen["HostConfig"]["CpuShares"], 512);
    assert_eq!(seen["HostConfig"]["RestartPolicy"]["Name"], "no");
    cell.cli(&format!("rm -f {id}")).ok();
    cell.cli(&format!("volume rm {volume}")).ok();
});

case!(an_attach_of_nothing_ends, |cell| {
    let id = cell.detached(&format!("{BUSYBOX} sleep 1000"));
    // There is no input to attach to either.
    for query in ["", "?stream=1", "?stream=1&logs=1", "?stream=1&stdin=1"] {
        let answer = cell.api("POST", &format!("/containers/{id}/attach{query}"), None);
        assert_eq!(answer.status, 200, "{query}: {}", answer.message());
        assert_eq!(answer.body, b"", "{query}");
    }
    assert_eq!(cell.state(&id), "running");
});

case!(process bridges_filter_as_the_host_says, |cell| {
    let info = cell.api("GET", "/info", None).json();
    for (member, file) in [
        ("BridgeNfIptables", "bridge-nf-call-iptables"),
        ("BridgeNfIp6tables", "bridge-nf-call-ip6tables"),
    ] {
        let switch = std::fs::read_to_string(format!("/proc/sys/net/bridge/{file}"));
        let is_on = switch.is_ok_and(|text| text.trim() == "1");
        assert_eq!(info[member], is_on, "{member}");
    }
});

case!(process quiet_builds, |cell| {
    let number = cell.number();
    let build = |command: &str| {
        let dockerfile = format!("FROM {BUSYBOX}\nRUN {command}\n");
        let mut context = Tar::new();
        context.file("Dockerfile", &Meta::mode(0o644), dockerfile.as_bytes());
        let context = context.done();
        let body = Some(("application/x-tar", context.as_slice()));
        let socket = cell.daemon().socket();
        let answer = bulkhead_e2e::api::request(&socket, "POST", "/build?q=1&rm=1&forcerm=1", body);
        let answer = answer.expect("an answer");
        assert_eq!(answer.status, 200, "{}", answer.message());
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        let lines = text.lines().filter(|line| !line.is_empty());
        let lines = lines.map(|line| serde_json::from_str(line).expect("JSON"));
        lines.collect::<Vec<Value>>()
    };
    // What it would have said is wanted where it fails.
    let lines = build(&format!("echo said {number}; exit 3"));
    let said = json!({ "stream": format!("said {number}\n") });
    assert!(lines.contains(&said), "{lines:?}");
    assert_eq!(lines.last().expect("a line")["errorDetail"]["code"], 3);
    // And nothing but the ID where it does not.
    let lines = build(&format!("echo said {number} > /said"));
    assert_eq!(lines.len(), 1, "{lines:?}");
    let id = lines[0]["stream"].as_str().expect("an ID");
    assert!(id.starts_with("sha256:") && id.ends_with('\n'), "{id}");
    cell.cli(&format!("rmi {}", id.trim())).ok();
    let built = |command: &str| {
        let dockerfile = format!("FROM {BUSYBOX}\nRUN {command}\n");
        cell.building("-q -").stdin(dockerfile).output()
    };
    built(&format!("echo again {number}; exit 4")).exits(4).says(&format!("again {number}"));
    let id = built(&format!("echo again {number} > /said")).ok().text();
    cell.cli(&format!("rmi {id}")).ok();
});

case!(builds_end_with_their_client, |cell| {
    let isolation = if cell.is_hyperv() { "hyperv" } else { "" };
    // A quiet one has sent nothing when its client leaves.
    for quiet in [0, 1] {
        let number = cell.number();
        let dockerfile = format!("FROM {BUSYBOX}\nRUN sleep 1000{number}\n");
        let mut context = Tar::new();
        context.file("Dockerfile", &Meta::mode(0o644), dockerfile.as_bytes());
        let context = context.done();
        let command = format!("sleep 1000{number}");
        let containers = |query: &str| {
            let path = format!("/containers/json{query}");
            let listed = cell.api("GET", &path, None).json();
            let listed = listed.as_array().expect("a list").iter();
            listed
                .filter(|one| one["Command"].to_string().contains(&command))
                .count()
        };
        let mut client = UnixStream::connect(cell.daemon().socket()).expect("a daemon");
        let head = format!(
            "POST /build?q={quiet}&isolation={isolation} HTTP/1.1\r\nHost: docker\r\n\
             Content-Type: application/x-tar\r\nContent-Length: {}\r\n\r\n",
            context.len()
        );
        client.write_all(head.as_bytes()).expect("a listener");
        client.write_all(&context).expect("a listener");
        until("the step runs", cell.limit(), || {
            (containers("") == 1).then_some(())
        });
        drop(client);
        until("the step's container is gone", cell.limit(), || {
            (containers("?all=1") == 0).then_some(())
        });
    }
});

case!(process pruned_builds_are_told, |cell| {
    let cell = cell.on(Daemon::start(&[]));
    let pruned = cell.api("POST", "/build/prune", None);
    assert_eq!(pruned.status, 200, "{}", pruned.message());
    let pruned = pruned.json();
    assert_eq!(pruned["CachesDeleted"], Value::Null);
    assert_eq!(pruned["SpaceReclaimed"], 0);
    let event = event_of_builds(&cell);
    assert_eq!(event["Action"], "prune");
    assert_eq!(event["Actor"]["Attributes"]["reclaimed"], "0");
    finish(cell);
});

case!(ours process the_build_cache_is_counted, |cell| {
    let cell = cell.on(Daemon::start(&[]));
    let usage = |version: &str| cell.api("GET", &format!("{version}/system/df"), None).json();
    assert_eq!(usage("")["BuildCache"], json!([]));
    let dockerfile = format!(
        "FROM {BUSYBOX}\n\
         RUN --mount=type=cache,target=/m head -c 5000 /dev/zero > /m/file\n"
    );
    cell.building("-t built -").stdin(dockerfile).output().ok();
    let before = usage("");
    let cache = &before["BuildCache"][0];
    assert_eq!(cache["Type"], "exec.cachemount");
    assert_eq!(cache["Size"], 5000);
    assert_eq!(cache["InUse"], false);
    assert_eq!(usage("/v1.41")["BuilderSize"], 5000);
    let of_images = cell.api("GET", "/system/df?type=image", None).json();
    assert_eq!(of_images["BuildCache"], Value::Null);
    cell.cli("system df").ok().says("5kB");
    // By its ID, or as much of that as it takes.
    let short = &cache["ID"].as_str().expect("an ID")[..12];
    let prune = format!("/build/prune?filters=%7B%22id%22:%5B%22{short}%22%5D%7D");
    let pruned = cell.api("POST", &prune, None).json();
    assert_eq!(pruned["CachesDeleted"], json!([cache["ID"]]));
    assert_eq!(pruned["SpaceReclaimed"], 5000);
    assert_eq!(usage("")["BuildCache"], json!([]));
    let event = event_of_builds(&cell);
    assert_eq!(event["Actor"]["Attributes"]["reclaimed"], "5000");
    finish(cell);
});

/// The one event of the builder that there was.
fn event_of_builds(cell: &Cell) -> Value {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let soon = now.expect("a time").as_secs() + 1;
    let filters = "%7B%22type%22:%7B%22builder%22:true%7D%7D";
    let path = format!("/events?since=1&until={soon}&filters={filters}");
    let events = cell.api("GET", &path, None).body;
    serde_json::from_slice(&events).expect("one event")
}

/// Ends a daemon that was the case's own.
fn finish(cell: Cell) {
    let daemon = cell.daemon();
    cell.finish();
    let left = daemon.finish();
    assert!(left.is_empty(), "{left:?}");
}

case!(ours process platforms_of_images, |cell| {
    let document = cell.api("GET", &format!("/images/{BUSYBOX}/json"), None).json();
    let own = json!({ "os": document["Os"], "architecture": document["Architecture"] });
    let other = json!({ "os": "linux", "architecture": "s390x" });
    for (place, has_query) in [
        (format!("{BUSYBOX}/json"), false),
        (format!("{BUSYBOX}/history"), false),
        (format!("{BUSYBOX}/get"), false),
        (format!("get?names={BUSYBOX}"), true),
    ] {
        let ask = |platform: &str| {
            let platform = platform.replace('"', "%22").replace('{', "%7B").replace('}', "%7D");
            let mark = if has_query { '&' } else { '?' };
            let path = format!("/images/{place}{mark}platform={platform}");
            let answer = cell.api("GET", &path, None);
            (answer.status, answer.message())
        };
        assert_eq!(ask(&own.to_string()).0, 200, "{place}");
        let (status, message) = ask(&other.to_string());
        assert_eq!(status, 404, "{place}: {message}");
        assert!(message.ends_with("(linux/s390x)"), "{message}");
        assert_eq!(ask("linux/s390x").0, 400, "{place}");
    }
});

case!(what_containers_wrote_is_one_number, |cell| {
    let script = "head -c 5000 /dev/zero > /file";
    let wrote = cell.detached(&format!("{BUSYBOX} sh -c '{script}'"));
    let fresh = cell.create(&format!("{BUSYBOX} true"));
    cell.cli(&format!("wait {wrote}")).ok();
    cell.until_state(&wrote, "exited");
    let used = cell.api("GET", "/system/df?type=container", None).json();
    let listed = cell
        .api("GET", "/containers/json?all=1&size=1", None)
        .json();
    let of = |list: &Value, id: &str| {
        let mut list = list.as_array().expect("a list").iter();
        let found = list.find(|one| one["Id"] == id).expect("the container");
        // Of nothing, nothing is said.
        found["SizeRw"].as_u64().unwrap_or(0)
    };
    assert_eq!(of(&used["Containers"], &fresh), 0);
    assert_eq!(of(&listed, &fresh), 0);
    let written = of(&listed, &wrote);
    assert_eq!(of(&used["Containers"], &wrote), written);
    if cell.is_hyperv() {
        // Its disk has a filesystem on it, too.
        assert!(written >= 5000, "{written}");
    } else {
        assert_eq!(written, 5000);
    }
});
