//! Limits, and what cannot be.

use std::path::PathBuf;

use bulkhead_isolation::{ErrorKind, Resources, Rootfs};
use serde_json::json;

use crate::harness::{TestBox, exec, host};

#[tokio::test(flavor = "multi_thread")]
async fn limits_hold_in_the_guest_and_can_be_lowered() {
    let Some(host) = host() else { return };
    let request = TestBox::with(host, &["sleep", "1000"], |spec| {
        spec["linux"]["resources"] = json!({
            "memory": {"limit": 67_108_864, "swap": 134_217_728},
            "cpu": {"quota": 50_000, "period": 100_000},
            "pids": {"limit": 20},
        });
    });
    let container = request.create().await.unwrap();
    container.init().start().await.unwrap();
    let script =
        "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max /sys/fs/cgroup/pids.max; nproc";
    let (_, out, err) = exec(&container, "a", &["sh", "-c", script]).await;
    assert_eq!(out, "67108864\n50000 100000\n20\n1\n", "{err}");
    let lower = Resources {
        memory: Some(32 << 20),
        pids_limit: Some(10),
        ..Resources::default()
    };
    container.update(lower).await.unwrap();
    let script = "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max";
    let (_, out, err) = exec(&container, "b", &["sh", "-c", script]).await;
    assert_eq!(out, "33554432\n10\n", "{err}");
    let more = Resources {
        memory: Some(1 << 40),
        ..Resources::default()
    };
    let error = container.update(more).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::InvalidArgument, "{error}");
    container.delete().await.unwrap();
    request.check_gone();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payload_out_of_memory_takes_nobody_along() {
    let Some(host) = host() else { return };
    for limit in [64, 512] {
        let args = ["sh", "-c", "exec tail /dev/zero"];
        let mut request = TestBox::with(host, &args, |spec| {
            spec["linux"]["resources"] = json!({"memory": {"limit": limit << 20}});
        });
        request.request.vm.debug = true;
        let container = request.create().await.unwrap();
        let init = container.init();
        init.start().await.unwrap();
        let status = init.wait().await;
        assert_eq!(status.code, 137);
        assert_eq!(status.failure, None, "the machine lives on");
        assert!(status.oom_killed);
        container.delete().await.unwrap();
        request.check_gone();
        let console = std::fs::read(request.bundle().join("console.log")).unwrap();
        let console = String::from_utf8_lossy(&console);
        assert!(console.contains("Memory cgroup out of memory"), "{console}");
        assert!(!console.contains("] Out of memory"), "{console}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_is_refused_and_leaves_nothing() {
    let Some(host) = host() else { return };
    let small = TestBox::with(host, &["true"], |spec| {
        spec["linux"]["resources"] = json!({"memory": {"limit": 1_048_576}});
    });
    let mounted = {
        let mut request = TestBox::new(host, &["true"]);
        request.request.rootfs = Rootfs::Mounted("/".into());
        request
    };
    let no_guest = {
        let mut request = TestBox::new(host, &["true"]);
        request.request.vm.guest_dir = Some("/nonexistent".into());
        request
    };
    let no_worker = {
        let mut request = TestBox::new(host, &["true"]);
        request.isolation =
            bulkhead_isolation_vm::VmIsolation::with_worker(PathBuf::from("/nonexistent/vmwp"));
        request
    };
    for (request, kind) in [
        (small, ErrorKind::InvalidArgument),
        (mounted, ErrorKind::Unsupported),
        (no_guest, ErrorKind::Unavailable),
        (no_worker, ErrorKind::Unavailable),
    ] {
        let Err(error) = request.create().await else {
            panic!("must not succeed");
        };
        assert_eq!(error.kind, kind, "{error}");
        request.check_gone();
        assert!(
            !request
                .directory
                .path()
                .join("writable/scratch.img")
                .exists()
        );
    }
}
