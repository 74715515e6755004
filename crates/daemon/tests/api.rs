//! The API of a daemon in this process, over its socket: what it accepts, refuses and answers
//! without a payload being started. Needs root: network namespaces are files on a mount.

#![expect(clippy::unwrap_used, reason = "in tests a panic is the report")]

use std::path::{Path, PathBuf};

use bulkhead_daemon::DaemonArgs;
use bulkhead_daemon::config::Config;
use bytes::Bytes;
use clap::Parser;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

struct TestDaemon {
    dir: tempfile::TempDir,
    shutdown: CancellationToken,
    running: JoinHandle<Result<(), bulkhead_daemon::server::ServerError>>,
}

impl TestDaemon {
    async fn start() -> Self {
        Self::start_in(tempfile::tempdir().unwrap()).await
    }

    async fn start_in(dir: tempfile::TempDir) -> Self {
        let path = |name: &str| dir.path().join(name).display().to_string();
        let args = DaemonArgs::parse_from([
            "daemon",
            "-H",
            &format!("unix://{}", path("d.sock")),
            "--data-root",
            &path("data"),
            "--exec-root",
            &path("exec"),
            "--pidfile",
            &path("pid"),
        ]);
        let shutdown = CancellationToken::new();
        let config = Config::from_args(&args).unwrap();
        let running = tokio::spawn(bulkhead_daemon::run(config, shutdown.clone()));
        let daemon = Self {
            dir,
            shutdown,
            running,
        };
        while UnixStream::connect(daemon.socket()).await.is_err() {
            assert!(!daemon.running.is_finished(), "the daemon ended");
            tokio::task::yield_now().await;
        }
        daemon
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("d.sock")
    }

    async fn stop(self) -> tempfile::TempDir {
        self.shutdown.cancel();
        self.running.await.unwrap().unwrap();
        self.dir
    }

    async fn call(&self, method: Method, path: &str, body: &[u8]) -> (StatusCode, Value) {
        let stream = UnixStream::connect(self.socket()).await.unwrap();
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("Host", "d")
            .header("Content-Type", "application/json")
            .body(Full::new(Bytes::copy_from_slice(body)))
            .unwrap();
        let response = sender.send_request(request).await.unwrap();
        let status = response.status();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        let value = serde_json::from_slice(&bytes)
            .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned()));
        (status, value)
    }

    async fn get(&self, path: &str) -> (StatusCode, Value) {
        self.call(Method::GET, path, b"").await
    }

    async fn post(&self, path: &str, body: Value) -> (StatusCode, Value) {
        self.call(Method::POST, path, body.to_string().as_bytes())
            .await
    }

    async fn import_image(&self) {
        let mut archive = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(0);
        header.set_mode(0o755);
        header.set_entry_type(tar::EntryType::Directory);
        archive.append_data(&mut header, "etc", &b""[..]).unwrap();
        let archive = archive.into_inner().unwrap();
        let (status, answer) = self
            .call(
                Method::POST,
                "/images/create?fromSrc=-&repo=empty&tag=latest",
                &archive,
            )
            .await;
        assert_eq!(status, StatusCode::OK, "{answer}");
    }

    async fn create(&self, name: &str, body: Value) -> String {
        let (status, answer) = self
            .post(&format!("/containers/create?name={name}"), body)
            .await;
        assert_eq!(status, StatusCode::CREATED, "{answer}");
        answer["Id"].as_str().unwrap().to_owned()
    }
}

fn message(answer: &(StatusCode, Value)) -> (u16, &str) {
    (
        answer.0.as_u16(),
        answer.1["message"].as_str().unwrap_or_default(),
    )
}

fn command() -> Value {
    json!({ "Image": "empty", "Cmd": ["/x"] })
}

#[tokio::test(flavor = "multi_thread")]
async fn paths_and_versions() {
    let daemon = TestDaemon::start().await;
    for path in [
        "/containers/json",
        "/v1.24/containers/json",
        "/v1.50/containers/json",
    ] {
        assert_eq!(
            daemon.get(path).await,
            (StatusCode::OK, json!([])),
            "{path}"
        );
    }
    assert_eq!(
        message(&daemon.get("/v1.99/containers/json").await),
        (
            400,
            "client version 1.99 is too new. Maximum supported API version is 1.50"
        )
    );
    assert_eq!(
        message(&daemon.get("/nowhere").await),
        (404, "page not found")
    );
    for (method, path, name) in [
        (Method::GET, "/plugins/a:1/json", "a:1"),
        (Method::POST, "/v1.50/plugins/a/enable", "a"),
        (Method::DELETE, "/plugins/a", "a"),
    ] {
        assert_eq!(
            message(&daemon.call(method, path, b"").await),
            (404, format!("plugin \"{name}\" not found").as_str())
        );
    }
    let privileges = daemon.get("/plugins/privileges?remote=a").await;
    assert_eq!(privileges.0, StatusCode::NOT_IMPLEMENTED);
    let dir = daemon.stop().await;
    assert!(!dir.path().join("d.sock").exists());
    assert!(!dir.path().join("pid").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_differ_in_what_they_take_and_tell() {
    let daemon = TestDaemon::start().await;
    daemon.import_image().await;
    let mut body = command();
    body["NetworkingConfig"] = json!({ "EndpointsConfig": { "one": {}, "two": {} } });
    let refused = daemon.post("/v1.43/containers/create", body.clone()).await;
    assert_eq!(
        message(&refused),
        (
            400,
            "Container cannot be created with multiple network endpoints: one, two"
        )
    );
    let (status, _) = daemon.post("/v1.44/containers/create", body).await;
    assert_eq!(status, StatusCode::CREATED);
    let mut body = command();
    body["HostConfig"] = json!({ "Annotations": { "a": "b" } });
    let id = daemon.create("noted", body).await;
    for (version, told) in [("1.45", Value::Null), ("1.46", json!({ "a": "b" }))] {
        let path = format!("/v{version}/containers/json?all=1");
        let (_, list) = daemon.get(&path).await;
        let mut list = list.as_array().unwrap().iter();
        let noted = list.find(|one| one["Id"] == *id).unwrap();
        assert_eq!(noted["HostConfig"]["Annotations"], told, "{version}");
    }
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_hidden_from_the_privileged() {
    let daemon = TestDaemon::start().await;
    daemon.import_image().await;
    for (privileged, shown) in [(false, true), (true, false)] {
        let mut body = command();
        body["HostConfig"] = json!({ "Privileged": privileged });
        let id = daemon.create(&format!("c-{privileged}"), body).await;
        let (_, inspected) = daemon.get(&format!("/containers/{id}/json")).await;
        for list in ["MaskedPaths", "ReadonlyPaths"] {
            assert_eq!(inspected["HostConfig"][list].is_array(), shown, "{list}");
        }
    }
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_socket_is_not_for_everybody() {
    use std::os::unix::fs::PermissionsExt;
    let daemon = TestDaemon::start().await;
    let mode = std::fs::metadata(daemon.socket())
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o660);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_leave_nothing() {
    let daemon = TestDaemon::start().await;
    daemon.import_image().await;
    let create = "/containers/create?name=web";
    let cases = [
        (create, b"{".to_vec(), 400),
        (create, b"".to_vec(), 400),
        (create, b"[]".to_vec(), 400),
        (create, b"{}".to_vec(), 400),
        (
            create,
            json!({ "Image": "missing", "Cmd": ["x"] })
                .to_string()
                .into(),
            404,
        ),
        (create, json!({ "Image": "empty" }).to_string().into(), 400),
        (
            "/containers/create?name=-",
            command().to_string().into(),
            400,
        ),
        (
            create,
            json!({ "Image": "empty", "Cmd": ["x"], "HostConfig": { "Isolation": "vm" } })
                .to_string()
                .into(),
            400,
        ),
        (
            create,
            json!({
                "Image": "empty", "Cmd": ["x"],
                "HostConfig": { "LogConfig": { "Type": "syslog" } },
            })
            .to_string()
            .into(),
            400,
        ),
        (
            create,
            json!({ "Image": "empty", "Cmd": ["x"], "StopSignal": "SIGNOPE" })
                .to_string()
                .into(),
            400,
        ),
    ];
    for (path, body, status) in cases {
        let answer = daemon.call(Method::POST, path, &body).await;
        assert_eq!(
            answer.0.as_u16(),
            status,
            "{}: {}",
            String::from_utf8_lossy(&body),
            answer.1
        );
        assert!(answer.1["message"].is_string());
    }
    let (_, list) = daemon.get("/containers/json?all=1").await;
    assert_eq!(list, json!([]));
    let containers = daemon.dir.path().join("data/containers");
    let left = std::fs::read_dir(containers).map_or(0, Iterator::count);
    assert_eq!(left, 0);
    // The name that was refused is free.
    daemon.create("web", command()).await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_isolations_are_told_the_known_ones() {
    let daemon = TestDaemon::start().await;
    daemon.import_image().await;
    let body = json!({ "Image": "empty", "Cmd": ["x"], "HostConfig": { "Isolation": "vm" } });
    let answer = daemon.post("/containers/create", body).await;
    let (status, text) = message(&answer);
    assert_eq!(status, 400);
    assert!(
        text.contains("process") && text.contains("hyperv"),
        "{text}"
    );
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_is_found_shown_renamed_and_removed() {
    let daemon = TestDaemon::start().await;
    daemon.import_image().await;
    let id = daemon
        .create(
            "web",
            json!({ "Image": "empty", "Cmd": ["/x", "a b"], "Labels": { "k": "v" } }),
        )
        .await;
    for reference in [id.as_str(), &id[..12], "web"] {
        let (status, shown) = daemon.get(&format!("/containers/{reference}/json")).await;
        assert_eq!(status, StatusCode::OK, "{reference}");
        assert_eq!(shown["Id"], id.as_str());
    }
    // With its slash it makes a path that is not clean.
    let (status, _) = daemon.get("/containers/%2Fweb/json").await;
    assert_eq!(status, StatusCode::MOVED_PERMANENTLY);
    let (_, shown) = daemon.get("/containers/web/json").await;
    assert_eq!(shown["Name"], "/web");
    assert_eq!(shown["State"]["Status"], "created");
    assert_eq!(shown["HostConfig"]["Isolation"], "process");
    assert_eq!(shown["Config"]["Hostname"], id[..12]);
    let (_, list) = daemon.get("/containers/json").await;
    assert_eq!(list, json!([]), "it does not run");
    let (_, list) = daemon.get("/containers/json?all=1").await;
    assert_eq!(list[0]["Command"], "/x 'a b'");
    assert_eq!(list[0]["Status"], "Created");
    for (filter, count) in [
        (json!({ "label": ["k=v"] }), 1),
        (json!({ "label": ["k=w"] }), 0),
        (json!({ "name": { "we": true } }), 1),
        (json!({ "status": ["running"] }), 0),
        (json!({ "status": ["created"] }), 1),
        (json!({ "ancestor": ["empty"] }), 1),
        (json!({ "isolation": ["hyperv"] }), 0),
    ] {
        let encoded: String = filter
            .to_string()
            .bytes()
            .map(|byte| format!("%{byte:02X}"))
            .collect();
        let (_, list) = daemon
            .get(&format!("/containers/json?all=1&filters={encoded}"))
            .await;
        assert_eq!(list.as_array().unwrap().len(), count, "{filter}");
    }
    let answer = daemon.post("/containers/create?name=web", command()).await;
    assert_eq!(
        message(&answer),
        (
            409,
            format!(
                "Conflict. The container name \"/web\" is already in use by container \"{id}\". \
                 You have to remove (or rename) that container to be able to reuse that name."
            )
            .as_str()
        )
    );
    let (status, _) = daemon
        .post("/containers/web/rename?name=api", json!({}))
        .await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    assert_eq!(
        daemon.get("/containers/web/json").await.0,
        StatusCode::NOT_FOUND
    );
    let (status, _) = daemon.call(Method::DELETE, "/containers/api", b"").await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    assert_eq!(
        message(&daemon.get("/containers/api/json").await),
        (404, "No such container: api")
    );
    daemon.stop().await;
}

/// What clients' own tests look for: the class of the error, and Docker's words.
#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_of_dockers_class() {
    let daemon = TestDaemon::start().await;
    daemon.import_image().await;
    let with = |host_config: Value| {
        let mut body = command();
        body["HostConfig"] = host_config;
        body["WorkingDir"] = json!("/srv/../tmp/");
        body
    };
    daemon
        .create("brief", with(json!({ "AutoRemove": true })))
        .await;
    let (_, shown) = daemon.get("/containers/brief/json").await;
    assert_eq!(shown["Config"]["WorkingDir"], "/tmp");
    for (path, body, status, words) in [
        (
            "/containers/brief/update",
            json!({ "RestartPolicy": { "Name": "always" } }),
            409,
            "AutoRemove is enabled",
        ),
        (
            "/containers/brief/rename?name=brief",
            json!({}),
            400,
            "Renaming a container with the same name",
        ),
        (
            "/containers/create",
            with(json!({ "Links": ["nobody:alias"] })),
            400,
            "could not get container for nobody",
        ),
        (
            "/containers/create",
            with(json!({ "SecurityOpt": ["nonsense"] })),
            400,
            "invalid --security-opt 1: \"nonsense\"",
        ),
        (
            "/containers/create",
            with(json!({ "LogConfig": { "Type": "asdf" } })),
            400,
            "logger: no log driver named 'asdf' is registered",
        ),
        (
            "/images/empty/tag?repo=sha256&tag=abc",
            json!({}),
            400,
            "ambiguous tag using digest algorithm as name",
        ),
    ] {
        let answer = daemon.post(path, body).await;
        let (got, text) = message(&answer);
        assert_eq!(got, status, "{path}: {text}");
        assert!(text.contains(words), "{path}: {text}");
    }
    // Of a limit on processes, everything below 1 means none; old clients cannot set it.
    for (path, limit, shown) in [
        ("/containers/brief/update", 16, json!(16)),
        ("/v1.39/containers/brief/update", 32, json!(16)),
        ("/containers/brief/update", -2, json!(0)),
    ] {
        let (status, _) = daemon.post(path, json!({ "PidsLimit": limit })).await;
        assert_eq!(status, StatusCode::OK, "{path} {limit}");
        let (_, now) = daemon.get("/containers/brief/json").await;
        assert_eq!(now["HostConfig"]["PidsLimit"], shown, "{path} {limit}");
    }
    assert_eq!(daemon.get("/networks/").await.0, StatusCode::OK);
    let (_, first) = daemon.get("/containers/json?all=1&all=0").await;
    assert_eq!(
        first.as_array().map(Vec::len),
        Some(1),
        "the first value counts"
    );
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn verbs_are_refused_by_state() {
    let daemon = TestDaemon::start().await;
    daemon.import_image().await;
    let id = daemon.create("web", command()).await;
    for (verb, status) in [
        ("stop", 304),
        ("kill", 409),
        ("pause", 409),
        ("unpause", 409),
        ("exec", 409),
        ("resize?h=1&w=1", 409),
    ] {
        let body = json!({ "Cmd": ["x"] });
        let answer = daemon
            .post(&format!("/containers/web/{verb}"), body.clone())
            .await;
        assert_eq!(answer.0.as_u16(), status, "{verb}: {}", answer.1);
        let answer = daemon.post(&format!("/containers/nope/{verb}"), body).await;
        assert_eq!(answer.0.as_u16(), 404, "{verb}: {}", answer.1);
    }
    let answer = daemon.get("/containers/web/top").await;
    assert_eq!(
        message(&answer),
        (409, format!("container {id} is not running").as_str())
    );
    let answer = daemon.get("/containers/web/logs").await;
    assert_eq!(answer.0, StatusCode::BAD_REQUEST);
    let answer = daemon.get("/containers/web/logs?stdout=1&follow=1").await;
    assert_eq!(answer, (StatusCode::OK, json!("")));
    let answer = daemon.get("/exec/nope/json").await;
    assert_eq!(message(&answer), (404, "No such exec instance: nope"));
    // What does not run is not waited for.
    let answer = daemon.post("/containers/web/wait", json!({})).await;
    assert_eq!(answer, (StatusCode::OK, json!({ "StatusCode": 0 })));
    let answer = daemon
        .post("/containers/web/wait?condition=never", json!({}))
        .await;
    assert_eq!(answer.0, StatusCode::BAD_REQUEST);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_for_removal_is_answered_by_it() {
    let daemon = TestDaemon::start().await;
    daemon.import_image().await;
    daemon.create("web", command()).await;
    let mut waiter = UnixStream::connect(daemon.socket()).await.unwrap();
    waiter
        .write_all(b"POST /containers/web/wait?condition=removed HTTP/1.1\r\nHost: d\r\n\r\n")
        .await
        .unwrap();
    // The head comes at once; the answer does not.
    let mut head = [0; 12];
    waiter.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 200");
    let (status, _) = daemon.call(Method::DELETE, "/containers/web", b"").await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    let mut rest = Vec::new();
    while !rest.ends_with(b"0\r\n\r\n") {
        assert_ne!(waiter.read_buf(&mut rest).await.unwrap(), 0);
    }
    assert!(String::from_utf8_lossy(&rest).contains("{\"StatusCode\":0}"));
    daemon.stop().await;
}

/// Sends an attach and gives the head of the answer.
async fn attach(socket: &Path, more: &str) -> (UnixStream, String) {
    let mut stream = UnixStream::connect(socket).await.unwrap();
    let request = format!(
        "POST /v1.50/containers/web/attach?stream=1&stdout=1 HTTP/1.1\r\nHost: d\r\n{more}\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    (stream, String::from_utf8(head).unwrap().to_lowercase())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attach_takes_the_connection_over_and_ends_with_the_container() {
    let daemon = TestDaemon::start().await;
    daemon.import_image().await;
    daemon.create("web", command()).await;
    let (mut upgraded, head) =
        attach(&daemon.socket(), "Connection: Upgrade\r\nUpgrade: tcp\r\n").await;
    assert!(head.starts_with("http/1.1 101 "), "{head}");
    assert!(head.contains("upgrade: tcp\r\n"), "{head}");
    assert!(
        head.contains("application/vnd.docker.multiplexed-stream"),
        "{head}"
    );
    let (mut plain, head) = attach(&daemon.socket(), "").await;
    assert!(head.contains(" 200 "), "{head}");
    assert!(!head.contains("transfer-encoding"), "{head}");
    daemon.call(Method::DELETE, "/containers/web", b"").await;
    let mut bytes = Vec::new();
    upgraded.read_to_end(&mut bytes).await.unwrap();
    plain.read_to_end(&mut bytes).await.unwrap();
    assert_eq!(bytes, b"");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_outlive_the_daemon_and_leftovers_do_not() {
    let daemon = TestDaemon::start().await;
    daemon.import_image().await;
    let id = daemon.create("web", command()).await;
    let dir = daemon.stop().await;
    for left in ["data/containers/half", "exec/tasks/lost"] {
        std::fs::create_dir_all(dir.path().join(left)).unwrap();
    }
    std::fs::create_dir_all(dir.path().join("exec/s")).unwrap();
    std::fs::write(dir.path().join("exec/s/lost.task"), b"").unwrap();
    let daemon = TestDaemon::start_in(dir).await;
    let (_, shown) = daemon.get("/containers/web/json").await;
    assert_eq!(shown["Id"], id.as_str());
    for left in [
        "data/containers/half",
        "exec/tasks/lost",
        "exec/s/lost.task",
    ] {
        assert!(!daemon.dir.path().join(left).exists(), "{left}");
    }
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_daemons_do_not_share_a_data_root() {
    let daemon = TestDaemon::start().await;
    let path = |name: &str| daemon.dir.path().join(name).display().to_string();
    let args = DaemonArgs::parse_from([
        "daemon",
        "-H",
        &format!("unix://{}", path("other.sock")),
        "--data-root",
        &path("data"),
        "--exec-root",
        &path("other"),
        "--pidfile",
        &path("other.pid"),
    ]);
    let config = Config::from_args(&args).unwrap();
    let refused = bulkhead_daemon::run(config, CancellationToken::new()).await;
    assert!(refused.is_err());
    assert!(!daemon.dir.path().join("other.sock").exists());
    daemon.stop().await;
}
