//! Machines and agents that are lost: every wait ends, nothing is left.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;

use bulkhead_isolation::{Container, ExitStatus, Isolation};
use bulkhead_isolation_vm::VmIsolation;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use serde_json::json;

use crate::harness::{TestBox, exec, host, process, processes_with};

fn kill(id: &str, comm: &str) {
    let found = processes_with(id);
    let pid = found
        .iter()
        .find(|(_, name)| name.starts_with(comm))
        .unwrap()
        .0;
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
}

async fn check_lost(request: &TestBox, container: &Arc<dyn Container>, status: ExitStatus) {
    assert_eq!(status.code, 137);
    let failure = status.failure.expect("it says why");
    eprintln!("failure: {failure}");
    assert!(!failure.is_empty());
    assert!(container.processes().await.is_err());
    assert!(container.init().kill(15).await.is_err());
    container.delete().await.unwrap();
    request.check_gone();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_engine_is_killed() {
    let Some(host) = host() else { return };
    let request = TestBox::new(host, &["sleep", "1000"]);
    let container = request.create().await.unwrap();
    container.init().start().await.unwrap();
    let further = container
        .exec("e", process(&["sleep", "1000"]), false)
        .await
        .unwrap();
    further.start().await.unwrap();
    kill(&request.id, "qemu");
    assert_eq!(further.wait().await.code, 137);
    let status = container.init().wait().await;
    check_lost(&request, &container, status).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_worker_is_killed() {
    let Some(host) = host() else { return };
    let request = TestBox::new(host, &["sleep", "1000"]);
    let container = request.create().await.unwrap();
    container.init().start().await.unwrap();
    kill(&request.id, "vmwp");
    let status = container.init().wait().await;
    check_lost(&request, &container, status).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_guest_panics() {
    let Some(host) = host() else { return };
    let script = "mount -o remount,rw /proc/sys 2>/dev/null; echo 1 > /proc/sys/kernel/sysrq; \
                  echo c > /proc/sysrq-trigger; sleep 1000";
    let request = TestBox::with(host, &["sh", "-c", script], |spec| {
        let all = json!(["CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE", "CAP_SYS_RAWIO"]);
        spec["process"]["capabilities"] =
            json!({"bounding": all, "effective": all, "permitted": all});
    });
    let container = request.create().await.unwrap();
    container.init().start().await.unwrap();
    let status = container.init().wait().await;
    assert!(
        status.failure.as_deref().unwrap_or("").contains("panic"),
        "{status:?}"
    );
    check_lost(&request, &container, status).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn output_that_nobody_reads_blocks_its_writer_only() {
    let Some(host) = host() else { return };
    let request = TestBox::new(host, &["sh", "-c", "seq 1 1000000"]);
    let container = request.create().await.unwrap();
    let init = container.init();
    let unread = init.take_stdio();
    init.start().await.unwrap();
    // The payload is stuck in a write; everything else goes on.
    assert_eq!(exec(&container, "e", &["echo", "fine"]).await.1, "fine\n");
    let (out, _) = crate::harness::output(unread).await;
    assert_eq!(out.lines().count(), 1_000_000);
    assert_eq!(init.wait().await.code, 0);
    container.delete().await.unwrap();
    request.check_gone();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_supervisor_that_vanished_is_swept_up_after() {
    let Some(host) = host() else { return };
    let request = TestBox::new(host, &["sleep", "1000"]);
    let container = request.create().await.unwrap();
    container.init().start().await.unwrap();
    // As for a daemon that cleans up after a supervisor: all it has is the bundle.
    request
        .isolation
        .sweep(&request.id, &request.bundle())
        .await
        .unwrap();
    request.check_gone();
    let status = container.init().wait().await;
    assert_eq!(status.code, 137);
    request
        .isolation
        .sweep(&request.id, &request.bundle())
        .await
        .unwrap();
}

/// What this test binary does when it is executed again as a supervisor: runs a container
/// and is killed.
const SUPERVISOR: &str = "VMTEST_SUPERVISOR";

#[tokio::test(flavor = "multi_thread")]
async fn a_supervisor_that_is_killed_takes_the_machine_along() {
    let Some(host) = host() else { return };
    if std::env::var_os(SUPERVISOR).is_some() {
        let request = TestBox::new(host, &["sleep", "1000"]);
        let container = request.create().await.unwrap();
        container.init().start().await.unwrap();
        println!("id={}", request.id);
        println!("bundle={}", request.bundle().display());
        container.init().wait().await;
        return;
    }
    let name = "lost::a_supervisor_that_is_killed_takes_the_machine_along";
    let mut supervisor = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture", name])
        .env(SUPERVISOR, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(supervisor.stdout.take().unwrap()).lines();
    let mut next = |prefix: &str| {
        lines
            .find_map(|line| {
                line.unwrap()
                    .split_once(prefix)
                    .map(|(_, rest)| rest.to_owned())
            })
            .unwrap()
    };
    let id = next("id=");
    let bundle = PathBuf::from(next("bundle="));
    let machine: Vec<_> = processes_with(&id)
        .into_iter()
        .map(|(pid, _)| Pid::from_raw(i32::try_from(pid).unwrap()).unwrap())
        .map(|pid| pidfd_open(pid, PidfdFlags::empty()).unwrap())
        .collect();
    assert_eq!(machine.len(), 2, "the worker and its engine");
    supervisor.kill().unwrap();
    supervisor.wait().unwrap();
    for process in machine {
        // A pidfd is readable when its process has ended; nobody has to be asked to.
        let mut watched = [PollFd::new(&process, PollFlags::IN)];
        poll(&mut watched, None).unwrap();
    }
    let isolation = VmIsolation::with_worker(host.worker.clone());
    isolation.sweep(&id, &bundle).await.unwrap();
    assert_eq!(std::fs::read_dir(&bundle).unwrap().count(), 0);
    std::fs::remove_dir_all(bundle.parent().unwrap()).unwrap();
}
