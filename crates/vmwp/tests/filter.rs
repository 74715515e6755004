//! The filter of the worker's system calls: no call is missing, none is there for nothing.

#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

#[allow(dead_code, reason = "shared with other tests")]
mod common;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use bulkhead_engine_qemu::WORKER_CALLS;
use bulkhead_machine::worker::protocol::send_files;
use bulkhead_machine::{Disk, ExitReason, LayerFile, MachineFiles};
use common::trace::Trace;
use common::{Guest, Place, vmwp};

/// All that a worker is asked for, in one life: whatever is missing in the list kills it.
async fn a_whole_life(place: &Place) -> BTreeSet<i64> {
    let layer = place.path("layer");
    std::fs::write(&layer, vec![1; 4096]).unwrap();
    let disks = vec![Disk::Layers {
        files: vec![LayerFile {
            path: layer,
            bytes: 4096,
        }],
    }];
    let (mut guest, trace) = Guest::boot_traced(&place.config(disks)).await;
    assert_eq!(guest.text("echo $((6 * 7))").await, "42\n");
    guest.worker.pause().await.unwrap();
    guest.worker.resume().await.unwrap();
    // The kernel's messages go through the worker.
    guest
        .run("for i in $(seq 2000); do echo \"a line $i\" > /dev/kmsg; done")
        .await;
    // The end that the worker has most to do for: it writes to its log.
    guest.tell("exit 1").await;
    let exit = guest.worker.wait().await;
    assert_eq!(exit.reason, ExitReason::GuestPanic, "{exit:?}");
    trace.seen()
}

/// One whose supervisor goes while the machine runs, so that it ends by itself.
fn a_sudden_end(place: &Place) -> BTreeSet<i64> {
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
    seen.extend(a_sudden_end(&place));
    let redundant: Vec<_> = WORKER_CALLS
        .iter()
        .filter(|call| call.rare.is_none() && !seen.contains(&call.number))
        .map(|call| call.name)
        .collect();
    println!(
        "the worker of a QEMU machine may make {} system calls",
        WORKER_CALLS.len()
    );
    let unlisted: Vec<_> = seen
        .iter()
        .filter(|number| WORKER_CALLS.iter().all(|call| call.number != **number))
        .collect();
    assert!(
        unlisted.is_empty(),
        "not on the list: {unlisted:?}, not needed: {redundant:?}"
    );
    assert!(redundant.is_empty(), "nobody needs {redundant:?}");
}
