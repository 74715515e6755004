//! Containers in real VMs. Needs root, QEMU, mkfs.erofs, a static busybox, the worker binary
//! and a guest directory; what is missing is printed and the tests do nothing.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod figures;
mod harness;
mod hostile;
mod limits;
mod lost;
mod network;
mod processes;
mod shares;
mod storage;
