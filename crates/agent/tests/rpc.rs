//! The agent as an ordinary process on this host: its requests, and what it makes of a host
//! that misbehaves. Needs root and a static busybox; prints what is missing.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio as ProcessStdio};

use bulkhead_agent_protocol::{
    Call, Connection, Create, Delete, Exec, FileHeader, Kill, MAX_STREAMS, Processes, Role, Setup,
    Shutdown, StandardStream, Start, Stdio, Stream, Wait, call, hello, write_message,
};
use bulkhead_isolation::{ErrorKind, ExitStatus, Result};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

struct Agent {
    child: Child,
    connection: Connection,
    directory: tempfile::TempDir,
}

fn root() -> Option<tempfile::TempDir> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: not root");
        return None;
    }
    if !Path::new("/bin/busybox").is_file() {
        eprintln!("skipped: there is no /bin/busybox");
        return None;
    }
    let directory = tempfile::tempdir().unwrap();
    for name in ["bin", "dev", "etc", "proc", "sys"] {
        std::fs::create_dir_all(directory.path().join("root").join(name)).unwrap();
    }
    let bin = directory.path().join("root/bin");
    std::fs::copy("/bin/busybox", bin.join("busybox")).unwrap();
    for applet in ["sh", "cat", "sleep", "true", "echo", "wc"] {
        std::os::unix::fs::symlink("busybox", bin.join(applet)).unwrap();
    }
    Some(directory)
}

fn spawn(directory: &tempfile::TempDir) -> (Child, UnixStream) {
    let (host, agent) = std::os::unix::net::UnixStream::pair().unwrap();
    let child = Command::new("unshare")
        .args(["-m", env!("CARGO_BIN_EXE_bulkhead-agent"), "--serve-stdin"])
        .arg(directory.path().join("root"))
        .arg(directory.path().join("state"))
        .stdin(ProcessStdio::from(OwnedFd::from(agent)))
        .spawn()
        .unwrap();
    host.set_nonblocking(true).unwrap();
    (child, UnixStream::from_std(host).unwrap())
}

async fn agent() -> Option<Agent> {
    let directory = root()?;
    let (child, mut transport) = spawn(&directory);
    hello::receive(&mut transport).await.unwrap();
    hello::send(&mut transport).await.unwrap();
    let (connection, _none) = Connection::spawn(transport, Role::Host);
    Some(Agent {
        child,
        connection,
        directory,
    })
}

impl Agent {
    async fn call<C: Call>(&self, request: C) -> Result<C::Reply> {
        let mut stream = self.connection.open().await.unwrap();
        call(&mut stream, request).await.unwrap()
    }

    async fn set_up(&self) {
        let setup = Setup {
            layers: Vec::new(),
            hostname: "guest".to_owned(),
            seconds: 0,
            nanoseconds: 0,
            entropy: Vec::new(),
            nics: Vec::new(),
            memory: 1 << 30,
        };
        self.call(setup).await.unwrap();
    }

    fn create(&self, args: &[&str]) -> Create {
        let unique = self.directory.path().file_name().unwrap().to_string_lossy();
        let id = format!("agenttest-{}", unique.trim_start_matches('.'));
        let spec = json!({
            "ociVersion": "1.0.2",
            "root": {"path": "rootfs"},
            "process": {"args": args, "cwd": "/", "env": ["PATH=/bin"],
                "user": {"uid": 0, "gid": 0}},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
            ],
            "linux": {
                "cgroupsPath": format!("/bulkhead/{id}"),
                "namespaces": [{"type": "mount"}, {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}],
            },
        });
        Create {
            id,
            spec: serde_json::from_value(spec).unwrap(),
            stdin: false,
            init: false,
            files: Vec::new(),
        }
    }

    async fn stream(&self, process: &str, stream: StandardStream) -> Stream {
        let mut opened = self.connection.open().await.unwrap();
        let request = Stdio {
            process: process.to_owned(),
            stream,
        };
        call(&mut opened, request).await.unwrap().unwrap();
        opened
    }

    async fn start(&self, process: &str) {
        let process = process.to_owned();
        self.call(Start { process }).await.unwrap();
    }

    async fn wait(&self, process: &str) -> ExitStatus {
        let process = process.to_owned();
        self.call(Wait { process }).await.unwrap()
    }

    async fn exec(&self, name: &str, args: &[&str]) -> (u32, String) {
        let process = json!({"args": args, "cwd": "/", "env": ["PATH=/bin"],
            "user": {"uid": 0, "gid": 0}});
        let exec = Exec {
            process: name.to_owned(),
            spec: serde_json::from_value(process).unwrap(),
            stdin: false,
        };
        self.call(exec).await.unwrap();
        let mut stdout = self.stream(name, StandardStream::Stdout).await;
        self.start(name).await;
        let mut out = String::new();
        stdout.read_to_string(&mut out).await.unwrap();
        (self.wait(name).await.code, out)
    }

    /// Asks for the end, and sees it.
    async fn end(mut self) {
        let mut stream = self.connection.open().await.unwrap();
        call(&mut stream, Shutdown).await.unwrap().unwrap();
        stream.shutdown().await.unwrap();
        assert!(exit(&mut self.child).await);
    }
}

/// Waits for the agent's exit: whether it was a success.
async fn exit(child: &mut Child) -> bool {
    let pid = child.id();
    tokio::task::spawn_blocking(move || {
        let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
        let status = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
        status.unwrap().unwrap().1.exit_status() == Some(0)
    })
    .await
    .unwrap()
}

#[tokio::test]
async fn a_life() {
    let Some(agent) = agent().await else { return };
    agent.set_up().await;
    let mut create = agent.create(&["sh", "-c", "cat /etc/motd; cat; exit 9"]);
    create.stdin = true;
    create.files.push(FileHeader {
        destination: "/etc/motd".into(),
        mode: 0o640,
        length: 6,
    });
    let mut stream = agent.connection.open().await.unwrap();
    let request: bulkhead_agent_protocol::Request = create.into();
    write_message(&mut stream, &request).await.unwrap();
    stream.write_all(b"hello\n").await.unwrap();
    let reply: Result<bulkhead_agent_protocol::CreateReply> =
        bulkhead_agent_protocol::read_message(&mut stream)
            .await
            .unwrap();
    reply.unwrap();
    let mut stdout = agent.stream("", StandardStream::Stdout).await;
    let mut stdin = agent.stream("", StandardStream::Stdin).await;
    agent.start("").await;
    let started = agent
        .call(Start {
            process: String::new(),
        })
        .await;
    assert_eq!(started.unwrap_err().kind, ErrorKind::FailedPrecondition);
    for index in 0..20 {
        let name = format!("exec{}", index % 3);
        let (code, out) = agent.exec(&name, &["sh", "-c", "echo out; exit 4"]).await;
        assert_eq!((code, out.as_str()), (4, "out\n"));
    }
    let processes = agent.call(Processes).await.unwrap();
    assert!(
        processes.iter().any(|process| process.comm == "cat"),
        "{processes:?}"
    );
    stdin.write_all(b"and good bye").await.unwrap();
    stdin.shutdown().await.unwrap();
    let mut out = String::new();
    stdout.read_to_string(&mut out).await.unwrap();
    assert_eq!(out, "hello\nand good bye");
    assert_eq!(agent.wait("").await.code, 9);
    assert_eq!(agent.wait("").await.code, 9);
    agent.call(Delete).await.unwrap();
    agent.call(Delete).await.unwrap();
    let killed = Kill {
        process: String::new(),
        signal: 9,
    };
    assert_eq!(
        agent.call(killed).await.unwrap_err().kind,
        ErrorKind::NotFound
    );
    agent.end().await;
}

#[tokio::test]
async fn requests_out_of_order_are_refused() {
    let Some(agent) = agent().await else { return };
    let error = agent.call(agent.create(&["true"])).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::FailedPrecondition);
    let error = agent.call(Processes).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::FailedPrecondition);
    let error = agent
        .call(Start {
            process: "x".to_owned(),
        })
        .await
        .unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotFound);
    agent.set_up().await;
    let mut missing = agent.create(&["nonexistent"]);
    missing.files = vec![
        FileHeader {
            destination: "/x".into(),
            mode: 0,
            length: u64::MAX
        };
        2
    ];
    let error = agent.call(missing).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::InvalidArgument);
    agent.end().await;
}

#[tokio::test]
async fn a_host_that_misbehaves_is_survived() {
    let Some(agent) = agent().await else { return };
    agent.set_up().await;
    for bytes in [
        &b"\xff\xff\xff\xff"[..],
        b"\0\0\0\x02{}",
        b"\0\0\0\x04nope",
        b"\0\0\x10\0too short",
        b"\0",
    ] {
        let mut stream = agent.connection.open().await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        assert!(answer.is_empty());
    }
    // Requests whose asker does not stay for the answer.
    for _ in 0..2 * MAX_STREAMS {
        let mut stream = agent.connection.open().await.unwrap();
        let request: bulkhead_agent_protocol::Request = Processes.into();
        write_message(&mut stream, &request).await.unwrap();
    }
    let error = agent.call(Processes).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::FailedPrecondition);
    agent.end().await;
}

#[tokio::test]
async fn without_its_host_the_agent_ends_the_container() {
    let Some(mut agent) = agent().await else {
        return;
    };
    agent.set_up().await;
    let create = agent.create(&["sleep", "1000"]);
    let id = create.id.clone();
    agent.call(create).await.unwrap();
    agent.start("").await;
    drop(agent.connection);
    assert!(exit(&mut agent.child).await);
    let left = Command::new("find")
        .args(["/sys/fs/cgroup", "-name", &id])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&left.stdout), "");
}

#[tokio::test]
async fn another_version_is_turned_away() {
    let Some(directory) = root() else { return };
    let (mut child, mut transport) = spawn(&directory);
    hello::receive(&mut transport).await.unwrap();
    transport.write_all(b"BULKHEAD\0\0\x30\x39").await.unwrap();
    assert!(!exit(&mut child).await);
}
