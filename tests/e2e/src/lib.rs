//! The kit of the end-to-end suite.
//!
//! A case is a function over a [`Cell`]: one isolation, one client, one daemon. The
//! [`case!`] macro makes a test of it for every isolation and client, so names read like
//! `run::exit_code::hyperv::docker`. Nothing here knows how the engine works inside: it
//! is looked at through its clients, its API and the host's own tools.
//!
//! Environment:
//! - `BULKHEAD_E2E_BIN`: directory of the binaries under test; by default the one that
//!   cargo put this test's own profile into.
//! - `BULKHEAD_E2E_REFERENCE=dockerd`: run the cases against dockerd. Only those named
//!   `process::docker` mean anything then; cases about what Docker does not have are
//!   named `ours_docker` and `ours_bulkhead`.
//! - `BULKHEAD_E2E_VM_ENGINE`: `--vm-engine` of the daemons, `auto` by default.
//! - `BULKHEAD_E2E_VMS`: how many hyperv cases run at a time; 2 by default.
//! - `BULKHEAD_E2E_KEEP`: keep the daemon's directory and log for a look.

pub mod api;
pub mod cell;
pub mod client;
pub mod daemon;
pub mod host;
pub mod http;
pub mod images;
pub mod leaks;
pub mod programs;
pub mod registry;

pub use cell::{BUSYBOX, Cell, ClientKind, IsolationKind};
pub use client::{Call, Output, Running, until};
pub use daemon::Daemon;

/// Whether this runs in the rig (`cargo xtask rig`): all is slow there, and its files are on
/// a tmpfs of Linux 6.1.
#[must_use]
pub fn in_rig() -> bool {
    std::env::var_os("BULKHEAD_RIG").is_some()
}

/// Whether the VMs of this run are the kvm engine's, as its caller wants it.
#[must_use]
pub fn on_kvm() -> bool {
    std::env::var("BULKHEAD_E2E_VM_ENGINE").is_ok_and(|engine| engine == "kvm")
}

/// Makes tests of a case: `case!(name, |cell| …)` for both isolations and both clients.
///
/// What our own client does with a VM's container it does with a process's: of the four
/// cells the one of both, which takes a VM, is left to `make test-e2e-all`. `everywhere` in
/// front runs it always, for cases about what goes between a client and a container.
///
/// Other words in front narrow it:
/// `ours` (Docker has no such thing, so not against the reference), `process`,
/// `ours process`, `hyperv` (which is always ours), `docker` (the client is another program,
/// such as compose).
#[macro_export]
macro_rules! case {
    ($(#[$meta:meta])* ours $name:ident, $body:expr) => {
        $crate::case!(@module $(#[$meta])* $name, $body, {
            mod process { $crate::case!(@test Process, Docker, ours_docker);
                          $crate::case!(@test Process, Bulkhead, ours_bulkhead); }
            mod hyperv { $crate::case!(@test Hyperv, Docker, ours_docker);
                         $crate::case!(@test #[ignore = "make test-e2e-all"]
                                       Hyperv, Bulkhead, ours_bulkhead); }
        });
    };
    ($(#[$meta:meta])* ours process $name:ident, $body:expr) => {
        $crate::case!(@module $(#[$meta])* $name, $body, {
            mod process { $crate::case!(@test Process, Docker, ours_docker);
                          $crate::case!(@test Process, Bulkhead, ours_bulkhead); }
        });
    };
    ($(#[$meta:meta])* hyperv $name:ident, $body:expr) => {
        $crate::case!(@module $(#[$meta])* $name, $body, {
            mod hyperv { $crate::case!(@test Hyperv, Docker, ours_docker);
                         $crate::case!(@test #[ignore = "make test-e2e-all"]
                                       Hyperv, Bulkhead, ours_bulkhead); }
        });
    };
    ($(#[$meta:meta])* process $name:ident, $body:expr) => {
        $crate::case!(@module $(#[$meta])* $name, $body, {
            mod process { $crate::case!(@test Process, Docker, docker);
                          $crate::case!(@test Process, Bulkhead, bulkhead); }
        });
    };
    ($(#[$meta:meta])* docker $name:ident, $body:expr) => {
        $crate::case!(@module $(#[$meta])* $name, $body, {
            mod process { $crate::case!(@test Process, Docker, docker); }
            mod hyperv { $crate::case!(@test Hyperv, Docker, docker); }
        });
    };
    ($(#[$meta:meta])* everywhere $name:ident, $body:expr) => {
        $crate::case!(@module $(#[$meta])* $name, $body, {
            mod process { $crate::case!(@test Process, Docker, docker);
                          $crate::case!(@test Process, Bulkhead, bulkhead); }
            mod hyperv { $crate::case!(@test Hyperv, Docker, docker);
                         $crate::case!(@test Hyperv, Bulkhead, bulkhead); }
        });
    };
    ($(#[$meta:meta])* $name:ident, $body:expr) => {
        $crate::case!(@module $(#[$meta])* $name, $body, {
            mod process { $crate::case!(@test Process, Docker, docker);
                          $crate::case!(@test Process, Bulkhead, bulkhead); }
            mod hyperv { $crate::case!(@test Hyperv, Docker, docker);
                         $crate::case!(@test #[ignore = "make test-e2e-all"]
                                       Hyperv, Bulkhead, bulkhead); }
        });
    };
    (@module $(#[$meta:meta])* $name:ident, $body:expr, { $($tests:item)* }) => {
        $(#[$meta])*
        mod $name {
            #[allow(unused_imports, reason = "not every case uses all of its file's imports")]
            use super::*;
            fn body(cell: &$crate::Cell) {
                let body: fn(&$crate::Cell) = $body;
                body(cell);
            }
            $($tests)*
        }
    };
    (@test $(#[$meta:meta])* $isolation:ident, $client:ident, $test:ident) => {
        #[test]
        $(#[$meta])*
        fn $test() {
            let cell = $crate::Cell::new(
                $crate::IsolationKind::$isolation,
                $crate::ClientKind::$client,
                module_path!(),
                env!("CARGO_BIN_EXE_e2e-probe"),
            );
            super::body(&cell);
            cell.finish();
        }
    };
}
