//! One cell of the table isolations × clients, as a case sees it.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;

use crate::api::{self, Answer};
use crate::client::{Call, Output, Running};
use crate::daemon::{binaries, is_reference};
use crate::{Daemon, leaks};

/// The image of nearly every case.
pub const BUSYBOX: &str = "busybox";

/// What separates the containers of a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IsolationKind {
    /// Namespaces.
    Process,
    /// A virtual machine.
    Hyperv,
}

/// Who talks to the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientKind {
    /// The unmodified docker CLI.
    Docker,
    /// Ours.
    Bulkhead,
}

/// How many hyperv cases run: software emulation makes two VMs fill two cores.
struct Machines {
    free: Mutex<Option<usize>>,
    changed: Condvar,
}

static MACHINES: Machines = Machines {
    free: Mutex::new(None),
    changed: Condvar::new(),
};

struct Permit;

impl Permit {
    fn take() -> Self {
        let mut free = MACHINES.free.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let left = free.get_or_insert_with(|| {
                let limit = std::env::var("BULKHEAD_E2E_VMS").ok();
                limit.and_then(|limit| limit.parse().ok()).unwrap_or(2)
            });
            if *left > 0 {
                *left -= 1;
                return Self;
            }
            free = MACHINES
                .changed
                .wait(free)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut free = MACHINES.free.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(free) = free.as_mut() {
            *free += 1;
        }
        MACHINES.changed.notify_one();
    }
}

/// An isolation, a client and a daemon; knows the containers that its case made and
/// removes them.
pub struct Cell {
    /// What separates the containers.
    pub isolation: IsolationKind,
    /// Who talks to the daemon.
    pub client: ClientKind,
    label: String,
    probe: &'static str,
    shared: RefCell<Option<Arc<Daemon>>>,
    names: AtomicU32,
    _permit: Option<Permit>,
}

impl Cell {
    /// For the [`crate::case!`] macro.
    #[must_use]
    pub fn new(
        isolation: IsolationKind,
        client: ClientKind,
        test: &str,
        probe: &'static str,
    ) -> Self {
        crate::images::set_probe(probe);
        let client_name = match client {
            ClientKind::Docker => "docker",
            ClientKind::Bulkhead => "bulkhead",
        };
        let label = format!("{test}::{client_name}").replace("::", "-");
        Self {
            isolation,
            client,
            label,
            probe,
            shared: RefCell::new(None),
            names: AtomicU32::new(0),
            _permit: (isolation == IsolationKind::Hyperv).then(Permit::take),
        }
    }

    /// The same cell on a daemon of its own, which goes with the returned cell.
    #[must_use]
    pub fn on(&self, daemon: Daemon) -> Self {
        Self {
            isolation: self.isolation,
            client: self.client,
            label: self.label.clone(),
            probe: self.probe,
            shared: RefCell::new(Some(Arc::new(daemon))),
            names: AtomicU32::new(0),
            _permit: None,
        }
    }

    /// The daemon.
    pub fn daemon(&self) -> Arc<Daemon> {
        let mut daemon = self.shared.borrow_mut();
        Arc::clone(daemon.get_or_insert_with(Daemon::shared))
    }

    /// What is true of us (and of Docker today), or what was true of Docker 20.10, which
    /// Debian's reference is.
    #[must_use]
    pub fn now_or_then<T>(&self, now: T, then: T) -> T {
        if is_reference() { then } else { now }
    }

    /// Whether the containers are VMs.
    #[must_use]
    pub fn is_hyperv(&self) -> bool {
        self.isolation == IsolationKind::Hyperv
    }

    /// The isolation's name in the API.
    #[must_use]
    pub fn isolation_name(&self) -> &'static str {
        match self.isolation {
            IsolationKind::Process => "process",
            IsolationKind::Hyperv => "hyperv",
        }
    }

    /// A build at the cell's isolation. Where no buildx is installed, the docker command takes
    /// the classic builder by itself.
    #[must_use]
    pub fn building(&self, rest: &str) -> Call {
        let isolation = if is_reference() {
            String::new()
        } else {
            format!("--isolation={}", self.isolation_name())
        };
        self.line(&format!("build {isolation} {rest}"))
    }

    /// What an image's command prints, line by line. Always a process: the files are the same.
    #[must_use]
    pub fn prints(&self, image: &str, command: &str) -> Vec<String> {
        self.cli(&format!("run --rm {image} {command}"))
            .ok()
            .lines()
    }

    /// Path on the host of the program that describes file trees.
    #[must_use]
    pub fn probe(&self) -> PathBuf {
        self.probe.into()
    }

    /// A name for a container or image that no other case uses.
    #[must_use]
    pub fn name(&self, word: &str) -> String {
        let number = self.names.fetch_add(1, Ordering::Relaxed);
        let label = self.label.to_lowercase();
        let label = label.trim_start_matches("e2e-").replace('_', "-");
        format!("{label}-{word}{number}")
    }

    /// A number that no other case has, to know its processes on the host by.
    #[must_use]
    pub fn number(&self) -> u64 {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        1_000_000_000 + u64::from(std::process::id() % 100_000) * 1000 + u64::from(next)
    }

    /// The client's usual limit. Software emulation on a busy machine is slow, and a limit
    /// is there for what hangs, not for what is slow. The rig is ten times as slow again.
    #[must_use]
    pub fn limit(&self) -> Duration {
        let limit = Duration::from_secs(if self.is_hyperv() { 180 } else { 90 });
        if crate::in_rig() { limit * 5 } else { limit }
    }

    fn command(&self) -> Command {
        self.of_daemon(match self.client {
            ClientKind::Docker => Command::new("docker"),
            ClientKind::Bulkhead => Command::new(binaries().join("bulkhead")),
        })
    }

    /// A call of another client: compose, or a program with an SDK.
    #[must_use]
    pub fn program(&self, program: &Path, arguments: &[String]) -> Call {
        let mut command = self.of_daemon(Command::new(program));
        command.args(arguments);
        let what = format!("{} {}", program.display(), shell_words::join(arguments));
        Call::new(what, command, self.limit())
    }

    pub(crate) fn of_daemon(&self, mut command: Command) -> Command {
        let daemon = self.daemon();
        command
            .env("DOCKER_HOST", daemon.host())
            .env("DOCKER_CONFIG", daemon.base().join("client"))
            .env_remove("DOCKER_CONTEXT")
            .env_remove("DOCKER_API_VERSION")
            .env_remove("BULKHEAD_HOST");
        command
    }

    /// A client's call with exactly these arguments.
    #[must_use]
    pub fn call(&self, arguments: &[&str]) -> Call {
        let mut command = self.command();
        command.args(arguments);
        let client = match self.client {
            ClientKind::Docker => "docker",
            ClientKind::Bulkhead => "bulkhead",
        };
        let what = format!("{client} {}", shell_words::join(arguments));
        Call::new(what, command, self.limit())
    }

    /// A client's call, its line split as a shell would.
    #[track_caller]
    #[must_use]
    pub fn line(&self, line: &str) -> Call {
        let words = shell_words::split(line).expect("a well-formed line");
        self.call(&words.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Runs a client's line to its end.
    #[track_caller]
    pub fn cli(&self, line: &str) -> Output {
        self.line(line).output()
    }

    /// The label that every container of the case carries.
    #[must_use]
    pub fn label(&self) -> &str {
        &self.label
    }

    /// `run` or `create` with this cell's isolation and label, then the rest of the line.
    #[track_caller]
    #[must_use]
    pub fn making(&self, verb: &str, line: &str) -> Call {
        let label = format!("e2e={}", self.label);
        let isolation = format!("--isolation={}", self.isolation_name());
        let mut words = vec![verb, "--label", &label];
        if !is_reference() {
            words.push(&isolation);
        }
        let rest = shell_words::split(line).expect("a well-formed line");
        words.extend(rest.iter().map(String::as_str));
        self.call(&words)
    }

    /// `run` that is yet to be started.
    #[track_caller]
    #[must_use]
    pub fn running(&self, line: &str) -> Call {
        self.making("run", line)
    }

    /// `run`, to its end.
    #[track_caller]
    pub fn run(&self, line: &str) -> Output {
        self.running(line).output()
    }

    /// `run -d`; the container's ID.
    #[track_caller]
    #[must_use]
    pub fn detached(&self, line: &str) -> String {
        let id = self.run(&format!("-d {line}")).ok().text();
        assert!(
            id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit()),
            "run -d prints an ID, not {id:?}"
        );
        id
    }

    /// `create`; the container's ID.
    #[track_caller]
    #[must_use]
    pub fn create(&self, line: &str) -> String {
        self.making("create", line).output().ok().text()
    }

    /// `run -it` on a terminal.
    #[track_caller]
    pub fn terminal(&self, line: &str) -> Running {
        self.running(&format!("-it {line}")).terminal()
    }

    /// `inspect` of a container.
    #[track_caller]
    #[must_use]
    pub fn inspect(&self, id: &str) -> Value {
        let list = self
            .cli(&format!("inspect --type container {id}"))
            .ok()
            .json();
        list[0].clone()
    }

    /// One of the `State` fields of a container.
    #[track_caller]
    #[must_use]
    pub fn state(&self, id: &str) -> String {
        let answer = self.api("GET", &format!("/containers/{id}/json"), None);
        let json = answer.json();
        json["State"]["Status"]
            .as_str()
            .unwrap_or("gone")
            .to_owned()
    }

    /// Waits until the container is in this state.
    #[track_caller]
    pub fn until_state(&self, id: &str, state: &str) {
        crate::until(&format!("{id} is {state}"), self.limit(), || {
            (self.state(id) == state).then_some(())
        });
    }

    /// A request without a client.
    #[track_caller]
    pub fn api(&self, method: &str, path: &str, body: Option<&Value>) -> Answer {
        let bytes = body.map(ToString::to_string);
        let body = bytes
            .as_ref()
            .map(|bytes| ("application/json", bytes.as_bytes()));
        api::request(&self.daemon().socket(), method, path, body)
            .unwrap_or_else(|error| panic!("{method} {path}: {error}\n{}", self.daemon().log()))
    }

    /// The container's payload and the host agree that nothing of it is left.
    #[track_caller]
    pub fn nothing_left_of(&self, id: &str) {
        let ids = [id.to_owned()];
        let left = || {
            let mut left = leaks::of_containers(&ids);
            left.extend(crate::host::mounts(id));
            let named = crate::host::processes().into_iter();
            let named = named.filter(|one| one.command.contains(id) || one.cgroups.contains(id));
            left.extend(named.map(|one| format!("process {} {}", one.pid, one.command)));
            left
        };
        // The client is answered when the container is gone; its supervisor may still be
        // on its last instructions.
        let mut found = left();
        for _ in 0..60 {
            if found.is_empty() {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
            found = left();
        }
        assert!(found.is_empty(), "left of {id}:\n  {}", found.join("\n  "));
    }

    fn clean(&self) -> Result<(), String> {
        let Some(daemon) = self.shared.borrow().clone() else {
            return Ok(());
        };
        let socket = daemon.socket();
        let filters = format!("%7B%22label%22%3A%5B%22e2e%3D{}%22%5D%7D", self.label);
        let path = format!("/containers/json?all=1&filters={filters}");
        let list = api::request(&socket, "GET", &path, None).map_err(|error| error.to_string())?;
        for container in list.json().as_array().map_or(&[][..], Vec::as_slice) {
            let id = container["Id"].as_str().unwrap_or_default();
            let path = format!("/containers/{id}?force=1&v=1");
            let answer =
                api::request(&socket, "DELETE", &path, None).map_err(|error| error.to_string())?;
            if answer.status >= 300 && answer.status != 404 {
                return Err(format!("rm -f {id}: {}", answer.message()));
            }
        }
        Ok(())
    }

    /// Removes what the case made; the case fails if that fails.
    pub fn finish(self) {
        if let Err(error) = self.clean() {
            panic!("cleaning up: {error}");
        }
    }
}

impl Drop for Cell {
    fn drop(&mut self) {
        if std::thread::panicking() {
            if let Some(daemon) = self.shared.borrow().as_ref() {
                eprintln!("--- the daemon's log ends with\n{}", daemon.log());
            }
            drop(self.clean());
        }
    }
}
