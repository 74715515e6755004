//! What may be asked of the API, in which words it is refused, and what its answers have.

use bulkhead_e2e::{BUSYBOX, Cell, case};
use serde_json::{Value, json};

case!(process odd_questions, |cell| {
    // Docker 20.10 takes what is wrong with some for its own fault.
    let is = |answer: &bulkhead_e2e::api::Answer, status: u16| {
        let old = answer.status == 500 && bulkhead_e2e::daemon::is_reference();
        old || answer.status == status
    };
    for (method, path, status, words) in [
        ("POST", "/build/cancel", 400, "build ID not provided"),
        ("POST", "/build/cancel?id=x", 200, ""),
        ("GET", "/networks/bridge?verbose=x", 400, "invalid value for verbose: x"),
        ("GET", "/networks/bridge?verbose=T", 200, ""),
    ] {
        let answer = cell.api(method, path, None);
        assert!(is(&answer, status), "{path}: {}", answer.message());
        assert!(answer.message().contains(words), "{path}: {}", answer.message());
    }
    // Names of networks are nearly free.
    for name in [
        format!("container:{}", cell.name("x")),
        format!("{}{}", cell.name("n"), "n".repeat(300)),
    ] {
        let made = cell.api("POST", "/networks/create", Some(&json!({ "Name": name })));
        assert_eq!(made.status, 201, "{}", made.message());
        let id = made.json()["Id"].as_str().expect("an ID").to_owned();
        let seen = cell.api("GET", &format!("/networks/{id}"), None).json();
        assert_eq!(seen["Name"], name);
        assert_eq!(cell.api("DELETE", &format!("/networks/{id}"), None).status, 204);
    }
    let blank = cell.api("POST", "/networks/create", Some(&json!({ "Name": " " })));
    assert!(is(&blank, 400), "{}", blank.message());
});

case!(process parameters_in_a_form, |cell| {
    let id = cell.detached(&format!("{BUSYBOX} sleep 1000"));
    let kill = |query: &str, form: &[u8]| {
        let body = Some(("application/x-www-form-urlencoded", form));
        let path = format!("/containers/{id}/kill{query}");
        bulkhead_e2e::api::request(&cell.daemon().socket(), "POST", &path, body)
            .expect("an answer")
            .status
    };
    // The form comes first.
    for (query, form) in [("", &b"signal=WINCH"[..]), ("?signal=KILL", b"a=b&signal=WIN%43H")] {
        assert_eq!(kill(query, form), 204);
        assert_eq!(cell.state(&id), "running");
    }
    assert_eq!(kill("?signal=WINCH", b"signal=KILL"), 204);
    cell.until_state(&id, "exited");
});

/// What a creation of a container of this configuration is answered.
fn creation(cell: &Cell, query: &str, body: &Value) -> bulkhead_e2e::api::Answer {
    let mut whole = json!({ "Image": BUSYBOX, "Cmd": ["true"] });
    for (key, value) in body.as_object().expect("an object") {
        whole[key] = value.clone();
    }
    let path = format!("/containers/create?name={}{query}", cell.name("c"));
    cell.api("POST", &path, Some(&whole))
}

case!(process configurations_that_are_refused, |cell| {
    let log = |options: Value| json!({ "LogConfig": { "Type": "json-file", "Config": options } });
    let mount = |kind: &str, more: Value| {
        json!({ "Mounts": [{
            "Type": kind, "Source": "/tmp", "Target": "/x", "BindOptions": more,
        }] })
    };
    for (host_config, words) in [
        (json!({ "ExtraHosts": ["bogus"] }), "bad format for add-host: \"bogus\""),
        (json!({ "ExtraHosts": ["a:b"] }), "invalid IP address in add-host: \"b\""),
        (log(json!({ "mode": "bogus" })), "logger: logging mode not supported: bogus"),
        (
            log(json!({ "max-buffer-size": "1m" })),
            "logger: max-buffer-size option is only supported with 'mode=non-blocking'",
        ),
        (
            log(json!({ "mode": "non-blocking", "max-buffer-size": "x" })),
            "error parsing option max-buffer-size: invalid size: 'x'",
        ),
        (
            mount("bogus", Value::Null),
            "invalid mount config for type \"bogus\": mount type unknown",
        ),
        (
            mount("bind", json!({ "Propagation": "bogus" })),
            "invalid propagation mode: bogus",
        ),
        (json!({ "CgroupnsMode": "bogus" }), "invalid cgroup namespace mode: bogus"),
    ] {
        let answer = creation(cell, "", &json!({ "HostConfig": host_config }));
        assert_eq!(answer.status, 400, "{words}: {}", answer.message());
        assert!(answer.message().contains(words), "{words}: {}", answer.message());
    }
    let link = json!({ "HostConfig": { "Links": ["a:b:c"] } });
    let message = creation(cell, "", &link).message();
    assert!(message.contains("bad format for links: a:b:c"), "{message}");
    let joined = json!({
        "ExposedPorts": { "80/tcp": {} }, "HostConfig": { "NetworkMode": "container:x" }
    });
    let answer = creation(cell, "", &joined);
    assert_eq!(answer.status, 400);
    assert_eq!(
        answer.message(),
        "conflicting options: port exposing and the container type network mode"
    );
    let answer = creation(cell, "&platform=bogus", &json!({}));
    assert_eq!(answer.status, 400);
    assert!(answer.message().contains("unknown operating system"), "{}", answer.message());
});

case!(process configurations_that_are_taken, |cell| {
    let made = |query: &str, body: Value| {
        let answer = creation(cell, query, &body);
        assert_eq!(answer.status, 201, "{body}: {}", answer.message());
        let id = answer.json()["Id"].as_str().expect("an ID").to_owned();
        let shown = cell.inspect(&id);
        cell.cli(&format!("rm {id}")).ok();
        shown
    };
    made("", json!({ "HostConfig": { "NanoCpus": 1 } }));
    let policy = json!({ "Name": "", "MaximumRetryCount": 3 });
    made("", json!({ "HostConfig": { "RestartPolicy": policy } }));
    if cfg!(target_arch = "x86_64") {
        made("&platform=linux/x86_64", json!({}));
        made("&platform=LINUX/AMD64", json!({}));
    }
    let hosts = json!(["a:1.2.3.4", "b:::1", "c:host-gateway"]);
    made("", json!({ "HostConfig": { "ExtraHosts": hosts } }));
    // What nobody said is shown as nothing.
    let shown = made("", json!({ "HostConfig": {
        "RestartPolicy": { "Name": "always" }, "Ulimits": [{ "Name": "core" }],
    } }));
    let always = json!({ "Name": "always", "MaximumRetryCount": 0 });
    assert_eq!(shown["HostConfig"]["RestartPolicy"], always);
    let core = json!([{ "Name": "core", "Hard": 0, "Soft": 0 }]);
    assert_eq!(shown["HostConfig"]["Ulimits"], core);
    // In the host's network a container is called like the host.
    let shown = made("", json!({ "HostConfig": { "NetworkMode": "host" } }));
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").expect("a name");
    assert_eq!(shown["Config"]["Hostname"], host.trim());
});

case!(process what_execs_say_and_write, |cell| {
    let id = cell.detached(&format!("--network none --expose 81 {BUSYBOX} sleep 1000"));
    // Where there is no network there are no ports.
    assert_eq!(cell.inspect(&id)["NetworkSettings"]["Ports"], json!({}));
    let exec = |body: Value| {
        let made = cell.api("POST", &format!("/containers/{id}/exec"), Some(&body));
        assert_eq!(made.status, 201, "{}", made.message());
        made.json()["Id"].as_str().expect("an ID").to_owned()
    };
    let start = |exec: &str, body: Value| {
        cell.api("POST", &format!("/exec/{exec}/start"), Some(&body))
    };
    // The start says whether frames are read, and without an upgrade the stream is raw.
    let echo = json!({ "Cmd": ["echo", "hi"], "AttachStdout": true });
    for (tty, bytes) in [(true, &b"hi\n"[..]), (false, b"\x01\0\0\0\0\0\0\x03hi\n")] {
        let answer = start(&exec(echo.clone()), json!({ "Tty": tty }));
        assert_eq!(answer.body, bytes, "{tty}");
        assert_eq!(answer.header("content-type"), Some("application/vnd.docker.raw-stream"));
    }
    let one = exec(json!({ "Cmd": ["sleep", "1000"], "DetachKeys": "ctrl-x" }));
    let inspect = || cell.api("GET", &format!("/exec/{one}/json"), None);
    let shown = inspect().json();
    assert_eq!(shown["DetachKeys"], "GA==", "{shown}");
    assert!(shown["ProcessConfig"].get("user").is_none(), "{shown}");
    assert_eq!(start(&one, json!({ "Detach": true })).status, 200);
    // What has no terminal has no size, which is no error.
    for path in [format!("/containers/{id}"), format!("/exec/{one}")] {
        let answer = cell.api("POST", &format!("{path}/resize?h=10&w=20"), None);
        assert_eq!(answer.status, 200, "{path}: {}", answer.message());
    }
    cell.cli(&format!("rm -f {id}")).ok();
    let gone = inspect();
    assert_eq!(gone.status, 404);
    assert_eq!(gone.message(), format!("No such exec instance: {one}"));
    assert_eq!(start(&one, json!({})).status, 404);
});

case!(process starts_that_fail_and_updates, |cell| {
    let id = cell.create(&format!("{BUSYBOX} /no/such/program"));
    let answer = cell.api("POST", &format!("/containers/{id}/start?checkpoint=x"), None);
    assert_eq!(answer.status, 400);
    assert!(answer.message().contains("experimental"), "{}", answer.message());
    cell.cli(&format!("start {id}")).fails();
    // A wait knows that it never ran.
    let waited = cell.api("POST", &format!("/containers/{id}/wait"), None).json();
    assert_eq!(waited["StatusCode"], 127, "{waited}");
    let error = waited["Error"]["Message"].as_str().expect("a reason");
    assert!(error.contains("/no/such/program"), "{error}");
    let id = cell.detached(&format!("--rm --cpus 0.5 {BUSYBOX} sleep 1000"));
    let update = |body: Value| cell.api("POST", &format!("/containers/{id}/update"), Some(&body));
    let answer = update(json!({ "RestartPolicy": { "Name": "no" } }));
    assert_eq!(answer.status, 200, "{}", answer.message());
    // Where there is no such weight it is left out, with a warning.
    let answer = update(json!({ "BlkioWeight": 300 }));
    assert_eq!(answer.status, 200, "{}", answer.message());
    let answer = update(json!({ "RestartPolicy": { "Name": "always" } }));
    assert_eq!(answer.status, 409, "{}", answer.message());
    for (key, what) in [("CpuPeriod", "CPU Period"), ("CpuQuota", "CPU Quota")] {
        let answer = update(json!({ key: 50_000 }));
        assert_eq!(answer.status, 409, "{}", answer.message());
        let words = format!(
            "Conflicting options: {what} cannot be updated as NanoCPUs has already been set"
        );
        assert!(answer.message().contains(&words), "{}", answer.message());
    }
});
