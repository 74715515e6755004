//! The host's files and sockets in a VM.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use bulkhead_isolation::ErrorKind;
use serde_json::{Value, json};

use crate::harness::{TestBox, exec, host};

/// Adds a bind mount to a specification.
fn bind(spec: &mut Value, source: &Path, destination: &str, options: &[&str]) {
    let mount = json!({
        "destination": destination, "type": "bind", "source": source, "options": options,
    });
    spec["mounts"].as_array_mut().unwrap().push(mount);
}

/// No server of the container is left.
fn check_ended(id: &str) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let left = crate::harness::processes_with(id);
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "{left:?}");
        std::thread::yield_now();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn both_sides_see_what_the_other_does() {
    let Some(host) = host() else { return };
    let shared = tempfile::tempdir().unwrap();
    let path = shared.path().to_owned();
    let kept = path.join("kept");
    fs::create_dir(path.join("volume")).unwrap();
    fs::write(&kept, "kept").unwrap();
    let request = TestBox::with(host, &["sleep", "1000"], |spec| {
        bind(spec, &path.join("volume"), "/data", &["rbind", "rprivate"]);
        bind(spec, &path.join("volume"), "/looked/at", &["rbind", "ro"]);
        bind(
            spec,
            &path.join("kept"),
            "/etc/kept",
            &["rbind", "rprivate"],
        );
    });
    let container = request.create().await.unwrap();
    container.init().start().await.unwrap();
    let mut number = 0;
    let mut sh = async |script: &str| {
        number += 1;
        let (code, out, err) = exec(&container, &format!("e{number}"), &["sh", "-c", script]).await;
        assert_eq!(code, 0, "{script}: {out}{err}");
        out
    };
    let volume = path.join("volume");
    for round in 0..3 {
        sh(&format!("echo {round} > /data/f")).await;
        assert_eq!(
            fs::read_to_string(volume.join("f")).unwrap(),
            format!("{round}\n")
        );
        fs::write(volume.join("f"), format!("host {round}")).unwrap();
        assert_eq!(sh("cat /data/f").await, format!("host {round}"));
        assert_eq!(sh("cat /looked/at/f").await, format!("host {round}"));
    }
    assert_eq!(sh("cat /etc/kept; echo more >> /etc/kept").await, "kept");
    assert_eq!(fs::read_to_string(&kept).unwrap(), "keptmore\n");
    let out =
        sh("exec 2>&1; touch /looked/at/x; rm /looked/at/f; (echo x > /looked/at/f); true").await;
    assert_eq!(out.matches("Read-only file system").count(), 3, "{out}");
    assert!(volume.join("f").exists() && !volume.join("x").exists());
    sh("chmod 4750 /data/f && mknod /data/null c 1 3 && dd if=/dev/zero of=/data/large bs=1M count=8 2>/dev/null").await;
    let seen = fs::metadata(volume.join("f")).unwrap();
    assert_eq!(seen.mode() & 0o7777, 0o4750);
    assert_eq!(fs::metadata(volume.join("large")).unwrap().len(), 8 << 20);
    let large: Vec<u8> = (0..3u32 << 20).map(|n| n.to_le_bytes()[1] & 0x7f).collect();
    fs::write(volume.join("large"), &large).unwrap();
    assert!(sh("cat /data/large").await.as_bytes() == large);
    let made = sh(
        "mkdir /data/d && cd /data/d && seq 200 | while read n; do echo $n > $n; done; ls | wc -l",
    )
    .await;
    assert_eq!(made.trim(), "200");
    assert_eq!(fs::read_dir(volume.join("d")).unwrap().count(), 200);
    container.init().kill(9).await.unwrap();
    container.init().wait().await;
    container.delete().await.unwrap();
    request.check_gone();
    check_ended(&request.id);
}

/// What the other half is to say.
const CLIENT: &str = "VMTEST_CLIENT";

/// Not a test of its own: it runs in the guest.
#[test]
fn client() {
    let Ok(question) = std::env::var(CLIENT) else {
        return;
    };
    let mut connection = UnixStream::connect("/run/service.sock").unwrap();
    connection.write_all(question.as_bytes()).unwrap();
    connection.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).unwrap();
    println!("<{answer}>");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_of_the_host_is_connected_to() {
    let Some(host) = host() else { return };
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("service.sock");
    let listener = UnixListener::bind(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o660)).unwrap();
    std::thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            let mut connection = connection;
            std::thread::spawn(move || {
                let mut question = Vec::new();
                connection.read_to_end(&mut question).unwrap();
                let answer = format!("you said {}", String::from_utf8_lossy(&question));
                connection.write_all(answer.as_bytes()).unwrap();
            });
        }
    });
    let request = TestBox::with(host, &["sleep", "1000"], |spec| {
        bind(spec, &path, "/run/service.sock", &["rbind"]);
        // This test program, whose other half runs in there.
        bind(
            spec,
            &std::env::current_exe().unwrap(),
            "/client",
            &["rbind", "ro"],
        );
    });
    let container = request.create().await.unwrap();
    container.init().start().await.unwrap();
    let (_, out, err) = exec(
        &container,
        "s",
        &["stat", "-c", "%F %a", "/run/service.sock"],
    )
    .await;
    assert_eq!(out, "socket 660\n", "{err}");
    for round in 0..3 {
        let script = format!(
            "{CLIENT}='round {round}' /client --exact shares::client --nocapture --test-threads 1"
        );
        let (code, out, err) = exec(&container, &format!("n{round}"), &["sh", "-c", &script]).await;
        assert_eq!(code, 0, "{out}{err}");
        let expected = format!("<you said round {round}>");
        assert!(out.contains(&expected), "{out}{err}");
    }
    container.init().kill(9).await.unwrap();
    container.init().wait().await;
    container.delete().await.unwrap();
    request.check_gone();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_shared_is_refused() {
    let Some(host) = host() else { return };
    for (source, options, expected) in [
        ("/nonexistent/source", &["rbind"][..], "No such file"),
        ("/dev/null", &["rbind"], "device or a pipe"),
        ("/tmp", &["rbind", "rshared"], "propagation 'rshared'"),
        ("tmp", &["rbind"], "no absolute source"),
    ] {
        let request = TestBox::with(host, &["true"], |spec| {
            bind(spec, Path::new(source), "/data", options);
        });
        let error = request.create().await.err().unwrap();
        assert_eq!(error.kind, ErrorKind::InvalidArgument);
        assert!(error.message.contains(expected), "{error}");
        request.check_gone();
        assert!(!request.directory.path().join("writable").exists());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_dies_leaves_errors_and_no_hang() {
    let Some(host) = host() else { return };
    let shared = tempfile::tempdir().unwrap();
    fs::write(shared.path().join("f"), "x").unwrap();
    let request = TestBox::with(host, &["sleep", "1000"], |spec| {
        bind(spec, shared.path(), "/data", &["rbind"]);
    });
    let container = request.create().await.unwrap();
    container.init().start().await.unwrap();
    for (pid, comm) in crate::harness::processes_with(&request.id) {
        if comm == "bulkhead-share" {
            let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
    let (code, _, err) = exec(&container, "c", &["cat", "/data/f"]).await;
    assert_ne!(code, 0);
    assert!(
        err.contains("not connected") || err.contains("abort"),
        "{err}"
    );
    container.init().kill(9).await.unwrap();
    container.init().wait().await;
    container.delete().await.unwrap();
    request.check_gone();
}
