//! Where the constants of the sizing come from. Run with `--ignored --nocapture figures`.

use std::time::Instant;

use serde_json::json;

use crate::harness::{TestBox, exec, host};

/// Prints, for machines of several sizes, what the kernel and the agent take of the memory.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "prints figures, checks nothing"]
async fn figures() {
    let Some(host) = host() else { return };
    for mebibytes in [16_u64, 64, 512, 2048, 8192] {
        let request = TestBox::with(host, &["sleep", "1000"], |spec| {
            spec["linux"]["resources"] = json!({"memory": {"limit": mebibytes << 20}});
        });
        let began = Instant::now();
        let container = request.create().await.unwrap();
        container.init().start().await.unwrap();
        let ready = began.elapsed();
        let script = "cat /proc/meminfo; cat /sys/fs/cgroup/memory.current";
        let (_, out, _) = exec(&container, "e", &["sh", "-c", script]).await;
        let field = |name: &str| {
            let line = out
                .lines()
                .find(|line| line.starts_with(name))
                .unwrap_or_default();
            let number = line.split_ascii_whitespace().nth(1).unwrap_or_default();
            number.parse::<u64>().unwrap_or(0) / 1024
        };
        let machine = mebibytes + (bulkhead_isolation_vm::overhead(mebibytes << 20) >> 20);
        let available = field("MemAvailable:");
        println!(
            "payload {mebibytes} MiB, machine {machine} MiB: total {}, free {}, available \
             {available}; taken {}; ready in {ready:?}",
            field("MemTotal:"),
            field("MemFree:"),
            machine.saturating_sub(available),
        );
        container.delete().await.unwrap();
        request.check_gone();
    }
}
