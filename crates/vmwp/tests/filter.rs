//! The filters of the worker's system calls: no call is missing, none is there for nothing.

#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

#[allow(dead_code, reason = "shared with other tests")]
mod common;

use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use bulkhead_jail::filter::Call;
use bulkhead_machine::worker::protocol::send_files;
use bulkhead_machine::{Disk, EngineKind, ExitReason, LayerFile, MachineFiles, Nic};
use common::trace::{Seen, Trace, is_allowed};
use common::{Guest, Place, engine, tap, vmwp};

/// The threads of a worker that have filters, by their names.
fn filters() -> Vec<(&'static str, &'static [Call])> {
    match engine() {
        EngineKind::Qemu => vec![("vmwp", bulkhead_engine_qemu::WORKER_CALLS)],
        EngineKind::Kvm => vec![
            ("vmwp", bulkhead_engine_kvm::MAIN_CALLS),
            ("vcpu", bulkhead_engine_kvm::VCPU_CALLS),
            ("disks", bulkhead_engine_kvm::DISKS_CALLS),
            ("devices", bulkhead_engine_kvm::DEVICES_CALLS),
        ],
    }
}

/// All that a worker is asked for, in one life: whatever is missing in a list kills it.
async fn a_whole_life(place: &Place) -> Seen {
    let layer = place.path("layer");
    std::fs::write(&layer, vec![1; 4096]).unwrap();
    let layers = Disk::Layers {
        files: vec![LayerFile {
            path: layer,
            bytes: 4096,
        }],
    };
    let scratch = Disk::Scratch {
        path: place.scratch(),
    };
    let mut config = place.config(vec![layers, scratch]);
    config.vcpus = 2;
    let mut taps = Vec::new();
    // QEMU serves its devices by itself: nothing of it is the worker's.
    if engine() == EngineKind::Kvm {
        config.nics = vec![Nic {
            mac: [2, 0, 0, 0, 0, 7],
        }];
        taps.push(tap("192.0.2.1/24"));
    }
    let (mut guest, trace) = Guest::boot_traced(&config, taps).await;
    assert_eq!(guest.text("echo $((6 * 7))").await, "42\n");
    guest.worker.pause().await.unwrap();
    guest.worker.resume().await.unwrap();
    // The kernel's messages go through the worker.
    guest
        .run("for i in $(seq 200); do echo \"a line $i\" > /dev/kmsg; done")
        .await;
    assert_eq!(guest.run("cat /dev/vda").await, vec![1; 4096]);
    let disk = "mkdir /mnt && mount -t ext4 /dev/vdb /mnt && \
                dd if=/dev/urandom of=/mnt/f bs=1M count=4 2>/dev/null && sync && \
                rm /mnt/f && sync && fstrim /mnt && umount /mnt && echo done";
    assert_eq!(guest.text(disk).await, "done\n");
    let random = "dd if=/dev/hwrng bs=16 count=1 2>/dev/null | wc -c";
    assert_eq!(guest.text(random).await, "16\n");
    if engine() == EngineKind::Kvm {
        let ping = "ip link set eth0 up && ip addr add 192.0.2.2/24 dev eth0 && \
                    ping -c 2 192.0.2.1 > /dev/null && echo answered";
        assert_eq!(guest.text(ping).await, "answered\n");
    }
    // The end that the worker has most to do for: it writes to its log.
    guest.tell("exit 1").await;
    let exit = guest.worker.wait().await;
    assert_eq!(exit.reason, ExitReason::GuestPanic, "{exit:?}");
    trace.seen()
}

/// One whose supervisor goes while the machine runs, so that it ends by itself.
fn a_sudden_end(place: &Place) -> Seen {
    let (control, worker_control) = UnixStream::pair().unwrap();
    let (_port, worker_port) = UnixStream::pair().unwrap();
    let config = place.config(Vec::new());
    let files = MachineFiles::open(&config, worker_port.into(), Vec::new()).unwrap();
    let mut worker = std::process::Command::new(vmwp())
        .args(["--id", "x"])
        .stdin(OwnedFd::from(worker_control))
        .spawn()
        .unwrap();
    let trace = Trace::of(worker.id());
    let body = send_files(&control, &config, files).unwrap();
    (&control).write_all(&body).unwrap();
    let running = BufReader::new(&control).lines().nth(1).unwrap().unwrap();
    assert!(running.contains("running"), "{running}");
    drop(control);
    let seen = trace.seen();
    assert!(worker.wait().unwrap().success());
    seen
}

#[tokio::test]
async fn every_call_that_is_made_is_allowed_and_every_one_that_is_allowed_is_made() {
    let Some(place) = Place::new() else { return };
    let mut seen = a_whole_life(&place).await;
    for (thread, calls) in a_sudden_end(&place) {
        seen.entry(thread).or_default().extend(calls);
    }
    let filters = filters();
    let names: Vec<_> = filters.iter().map(|(thread, _)| *thread).collect();
    let unknown: Vec<_> = seen
        .keys()
        .filter(|thread| !names.contains(&thread.as_str()))
        .collect();
    assert!(unknown.is_empty(), "threads without a list: {unknown:?}");
    let mut wrong = Vec::new();
    for (thread, calls) in filters {
        let made = seen.get(thread).unwrap();
        let different: std::collections::BTreeSet<_> =
            calls.iter().map(|call| call.number).collect();
        println!("{thread} may make {} system calls", different.len());
        let redundant = calls
            .iter()
            .filter(|call| call.rare.is_none() && !made.iter().any(|made| is_allowed(call, made)));
        wrong.extend(redundant.map(|call| format!("{thread} has no need of {call:?}")));
        let missing = made
            .iter()
            .filter(|made| !calls.iter().any(|call| is_allowed(call, made)));
        wrong.extend(missing.map(|made| format!("{thread} calls {made:?}")));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
