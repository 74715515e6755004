//! Agents that are not ours: what a guest may send instead, the host survives, says so, and
//! keeps nothing.
//!
//! The worker is this test binary, executed again behind a script that moves the socket to
//! the supervisor out of the test harness's way.

use std::os::fd::{FromRawFd, OwnedFd};
use std::time::Duration;

use bulkhead_agent_protocol::{
    Connection, Create, CreateReply, ReadinessTimes, Request, Role, Setup, SetupReply, Start,
    Stdio, Stream, hello, read_message, reply,
};
use bulkhead_isolation::{Container, ErrorKind, IsolationError, Result};
use bulkhead_isolation_vm::{Deadlines, VmIsolation};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::harness::{Host, TestBox, host};

/// Which misbehaviour the worker is to show.
const MODE: &str = "VMTEST_AGENT";
/// A file that the first worker makes.
const MARK: &str = "VMTEST_MARK";
/// The descriptor that the script leaves the socket to the supervisor on.
const CONTROL: i32 = 3;

#[tokio::test]
async fn agent() {
    let Ok(mode) = std::env::var(MODE) else {
        return;
    };
    // SAFETY: the script has put the socket there for us.
    let control = unsafe { OwnedFd::from_raw_fd(CONTROL) };
    let (_, files) = bulkhead_machine::worker::protocol::receive_files(&control).unwrap();
    let transport = std::os::unix::net::UnixStream::from(files.transport);
    transport.set_nonblocking(true).unwrap();
    let mut transport = UnixStream::from_std(transport).unwrap();
    if mode == "mute" {
        return std::future::pending().await;
    }
    if mode == "stranger" {
        transport.write_all(b"SSH-2.0-stranger\r\n").await.unwrap();
        return std::future::pending().await;
    }
    if mode == "mistimed" || (mode == "mistimed-once" && first_time()) {
        transport.write_all(&hello::mistimed()).await.unwrap();
        return std::future::pending().await;
    }
    hello::send(&mut transport).await.unwrap();
    hello::receive(&mut transport).await.unwrap();
    if mode == "garbage" {
        let garbage = vec![0xa5; 1 << 20];
        let _ = transport.write_all(&garbage).await;
        return std::future::pending().await;
    }
    let (_connection, mut incoming) = Connection::spawn(transport, Role::Guest);
    while let Some(stream) = incoming.accept().await {
        let mode = mode.clone();
        tokio::spawn(async move { serve(stream, &mode).await });
    }
}

/// Whether no other worker of this container was here before.
fn first_time() -> bool {
    let mark = std::env::var_os(MARK).unwrap();
    std::fs::File::create_new(mark).is_ok()
}

async fn serve(mut stream: Stream, mode: &str) {
    let request: Request = read_message(&mut stream).await.unwrap();
    match request {
        Request::Setup(_) => match mode {
            "reset" => {}
            "silent" => std::future::pending().await,
            "long" => {
                stream.write_u32(u32::MAX).await.unwrap();
                std::future::pending().await
            }
            "nonsense" => {
                stream.write_all(b"\0\0\0\x04nope").await.unwrap();
                std::future::pending().await
            }
            "escape" => {
                let error = IsolationError::new(ErrorKind::Other, "\x1b]0;owned\x07".repeat(9999));
                reply::<Setup, _>(&mut stream, &Err(error)).await.unwrap();
            }
            _ => {
                let reply_ = SetupReply {
                    kernel: String::new(),
                    memory: 0,
                    times: ReadinessTimes::default(),
                };
                reply::<Setup, _>(&mut stream, &Ok(reply_)).await.unwrap();
            }
        },
        Request::Create(_) => {
            reply::<Create, _>(&mut stream, &Ok(CreateReply { pid: Some(7) }))
                .await
                .unwrap();
        }
        Request::Stdio(_) => {
            reply::<Stdio, _>(&mut stream, &Ok(())).await.unwrap();
            // More than anybody wants to read.
            let chunk = vec![b'x'; 1 << 16];
            while stream.write_all(&chunk).await.is_ok() {}
        }
        Request::Start(_) => {
            reply::<Start, _>(&mut stream, &Ok(())).await.unwrap();
            // The answer is on its way when the worker goes, or lost; both are allowed.
            if mode == "leaves" {
                tokio::task::yield_now().await;
                std::process::exit(0);
            }
        }
        // Waits, kills and shutdowns are never answered.
        _ => {
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await;
            std::future::pending().await
        }
    }
}

fn test_box(host: &Host, mode: &str) -> TestBox {
    let mut request = TestBox::new(host, &["true"]);
    let script = request.directory.path().join("vmwp");
    let executable = std::env::current_exe().unwrap();
    let text = format!(
        "#!/bin/sh\nexport {MODE}={mode} {MARK}=\"$0.mark\" ID=\"$2\"\nexec 3<&0 0</dev/null 1>/dev/null 2>&1\n\
         exec {} --exact hostile::agent\n",
        executable.display()
    );
    // By another process: a descriptor of ours, open for writing, could still be in what a
    // test beside this one forks, and nobody may execute a file that somebody writes.
    let written = std::process::Command::new("sh")
        .args(["-c", r#"printf %s "$1" > "$0" && chmod 755 "$0""#])
        .args([script.as_os_str(), text.as_ref()])
        .status();
    assert!(written.unwrap().success());
    let deadlines = Deadlines {
        boot: Duration::from_secs(3),
        call: Duration::from_secs(3),
        shutdown: Duration::from_secs(3),
    };
    request.isolation = VmIsolation::with_worker(script).with_deadlines(deadlines);
    request
}

async fn created(request: &TestBox) -> Result<std::sync::Arc<dyn Container>> {
    let created = request.create().await;
    if created.is_err() {
        request.check_gone();
        let scratch = request.directory.path().join("writable/scratch.img");
        assert!(!scratch.exists());
    }
    created
}

#[tokio::test(flavor = "multi_thread")]
async fn no_container_comes_of_a_strange_agent() {
    let Some(host) = host() else { return };
    for (mode, text) in [
        ("mute", "did not start up within 3 s"),
        ("stranger", "does not speak"),
        ("garbage", ""),
        ("mistimed", "could not measure its timer"),
        ("reset", "of no use"),
        ("silent", "did not answer within 3 s"),
        ("long", "of no use"),
        ("nonsense", "of no use"),
        ("escape", "owned"),
    ] {
        let request = test_box(host, mode);
        let Err(error) = created(&request).await else {
            panic!("{mode}: must not succeed");
        };
        eprintln!("{mode}: {:.120}", error.message);
        assert!(error.message.contains(text), "{mode}: {error}");
        assert!(
            !error.message.contains('\x1b') && error.message.len() < 8192,
            "{mode}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_could_not_measure_its_timer_starts_again() {
    let Some(host) = host() else { return };
    let request = test_box(host, "mistimed-once");
    let container = created(&request).await.unwrap();
    assert!(request.directory.path().join("vmwp.mark").exists());
    container.delete().await.unwrap();
    request.check_gone();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_does_nothing_is_killed_by_sigkill() {
    let Some(host) = host() else { return };
    let request = test_box(host, "idle");
    let container = created(&request).await.unwrap();
    container.init().start().await.unwrap();
    let error = container.init().kill(15).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
    container.init().kill(9).await.unwrap();
    let status = container.init().wait().await;
    assert_eq!(status.code, 137);
    assert!(status.failure.is_some());
    container.delete().await.unwrap();
    request.check_gone();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_does_nothing_is_deleted() {
    let Some(host) = host() else { return };
    let request = test_box(host, "idle");
    let container = created(&request).await.unwrap();
    container.delete().await.unwrap();
    assert_eq!(container.init().wait().await.code, 137);
    request.check_gone();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_leaves_ends_the_wait() {
    let Some(host) = host() else { return };
    let request = test_box(host, "leaves");
    let container = created(&request).await.unwrap();
    // Whether the answer was still received does not matter.
    let _ = container.init().start().await;
    assert_eq!(container.init().wait().await.code, 137);
    container.delete().await.unwrap();
    request.check_gone();
}
