//! The last steps of a container's process before its payload runs: it is in its
//! namespaces, on its root, has its user; libcontainer calls here to check the command,
//! and then to execute it.
//!
//! The seccomp filter and the capabilities are ours and not libcontainer's, which leaves
//! the processes of an exec without a filter, and would load it after the capability to
//! do so has gone when `noNewPrivileges` is spelled out as `false`.

use std::cell::RefCell;
use std::convert::Infallible;
use std::ffi::CString;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use bulkhead_isolation::{ErrorKind, IsolationError, Result};
use libcontainer::capabilities;
use libcontainer::seccomp;
use libcontainer::syscall::syscall::create_syscall;
use libcontainer::workload::{
    Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError,
};
use nix::sys::signal::SigSet;
use oci_spec::runtime::{LinuxCapabilities, LinuxSeccomp, Process, Spec};
use rustix::process::{Gid, Uid};

use super::limits::Late;
use super::lookup;
use super::remap::Entry;
use crate::wire::{self, Report};

/// The payload of one process.
#[derive(Clone)]
pub struct Payload {
    control: Rc<OwnedFd>,
    capabilities: Option<LinuxCapabilities>,
    seccomp: Option<LinuxSeccomp>,
    no_new_privileges: bool,
    limits: Late,
    uid: u32,
    /// Into which user namespace it still has to go.
    entry: Option<Rc<Entry>>,
    found: Rc<RefCell<Option<PathBuf>>>,
}

impl Payload {
    /// Takes over the parts of the specification that are applied here.
    pub fn take(spec: &mut Spec, control: BorrowedFd<'_>) -> Result<Self> {
        let seccomp = spec.linux_mut().as_mut().and_then(|linux| {
            let seccomp = linux.seccomp().clone();
            linux.set_seccomp(None);
            seccomp
        });
        if seccomp.as_ref().is_some_and(seccomp::is_notify) {
            return Err(IsolationError::new(
                ErrorKind::Unsupported,
                "seccomp profiles with SCMP_ACT_NOTIFY are not supported",
            ));
        }
        let control = control
            .try_clone_to_owned()
            .map_err(|error| IsolationError::other("keep the helper's socket", error))?;
        let process = spec.process_mut().as_mut();
        let process = process.ok_or_else(|| {
            IsolationError::new(
                ErrorKind::InvalidArgument,
                "the specification has no process",
            )
        })?;
        let capabilities = process.capabilities().clone();
        let no_new_privileges = process.no_new_privileges().unwrap_or(false);
        let limits = Late::take(process);
        // libcontainer tells absence from `false`.
        process
            .set_capabilities(None)
            .set_no_new_privileges(no_new_privileges.then_some(true));
        Ok(Self {
            control: Rc::new(control),
            capabilities,
            seccomp,
            no_new_privileges,
            limits,
            uid: process.user().uid(),
            entry: None,
            found: Rc::default(),
        })
    }

    /// The same, in a user namespace that libcontainer does not enter.
    pub fn entering(mut self, entry: Option<Entry>) -> Self {
        self.entry = entry.map(Rc::new);
        self
    }

    fn prepare(&self, process: &Process) -> Result<()> {
        match &self.entry {
            Some(entry) => entry.enter()?,
            None => self.own_streams(),
        }
        self.limits.set()?;
        // A filter needs CAP_SYS_ADMIN or no_new_privs; with the latter it comes last, so
        // that it need not allow what the rest of this does.
        if !self.no_new_privileges {
            self.load_filter()?;
        }
        if let Some(wanted) = &self.capabilities {
            capabilities::drop_privileges(wanted, create_syscall().as_ref()).map_err(|error| {
                IsolationError::other("set capabilities", super::with_causes(&error))
            })?;
        }
        if self.no_new_privileges {
            self.load_filter()?;
        }
        let command = process
            .args()
            .as_ref()
            .and_then(|arguments| arguments.first());
        let found = lookup::find(
            command.map(String::as_str).unwrap_or_default(),
            variable(process, "PATH"),
        )?;
        self.found.replace(Some(found));
        Ok(())
    }

    /// Lets a payload that is not root open its own `/dev/stdout` and its terminal.
    fn own_streams(&self) {
        if self.uid == 0 {
            return;
        }
        let null = rustix::fs::stat("/dev/null").map(|stat| stat.st_rdev);
        let streams = [
            rustix::stdio::stdin(),
            rustix::stdio::stdout(),
            rustix::stdio::stderr(),
        ];
        for stream in streams {
            let stat = rustix::fs::fstat(stream);
            if stat.as_ref().map(|stat| stat.st_rdev).ok() == null.as_ref().ok().copied() {
                continue;
            }
            // Read-only filesystems and the like: as good as before.
            let _ = rustix::fs::fchown(stream, Some(Uid::from_raw(self.uid)), None::<Gid>);
        }
    }

    fn load_filter(&self) -> Result<()> {
        let Some(profile) = &self.seccomp else {
            return Ok(());
        };
        super::seccomp::load(profile)
            .map_err(|error| IsolationError::new(ErrorKind::Other, super::with_causes(&error)))
    }

    fn execute(&self, process: &Process) -> Result<Infallible> {
        let found = self.found.borrow_mut().take();
        let file = found.ok_or_else(|| IsolationError::new(ErrorKind::Other, "no command"))?;
        let plain = |text: &[u8]| {
            CString::new(text).map_err(|_| {
                IsolationError::new(
                    ErrorKind::InvalidArgument,
                    "a zero byte in an argument or an environment variable",
                )
            })
        };
        let all = |texts: &Option<Vec<String>>| -> Result<Vec<CString>> {
            let texts = texts.iter().flatten();
            texts.map(|text| plain(text.as_bytes())).collect()
        };
        let (arguments, environment) = (all(process.args())?, all(process.env())?);
        let path = plain(file.as_os_str().as_bytes())?;
        let blocked = if file == Path::new(super::INIT_PATH) {
            super::docker_init::blocked()
        } else {
            SigSet::empty()
        };
        self.limits.set_last()?;
        default_signals(&blocked);
        let error = match nix::unistd::execve(&path, &arguments, &environment) {
            Ok(never) => return Ok(never),
            Err(error) => error,
        };
        let kind = match error {
            // The interpreter of a script, or the loader, is missing.
            nix::errno::Errno::ENOENT => ErrorKind::CommandNotFound,
            _ => ErrorKind::CommandNotExecutable,
        };
        let reason = match error {
            nix::errno::Errno::ENOENT => "no such file or directory".to_owned(),
            nix::errno::Errno::EACCES => "permission denied".to_owned(),
            nix::errno::Errno::ENOEXEC => "exec format error".to_owned(),
            other => other.desc().to_owned(),
        };
        Err(IsolationError::new(
            kind,
            format!("exec {}: {reason}", file.display()),
        ))
    }

    fn report(&self, report: Report) {
        // Nobody is left to be told that nobody is left.
        let _ = wire::send_report(std::os::fd::AsFd::as_fd(&*self.control), report);
    }
}

/// Rust ignores SIGPIPE, which would be inherited; and who knows what our caller ignored.
fn default_signals(blocked: &SigSet) {
    /// `_NSIG` of the kernel; the C library keeps two of them for itself, and would refuse.
    const SIGNALS: i32 = 64;
    // struct kernel_sigaction: SIG_DFL, no flags, no restorer, an empty mask.
    let default = [0_u64; 4];
    for signal in 1..=SIGNALS {
        // SAFETY: `default` outlives the call, which reads it only. SIGKILL and SIGSTOP are
        // refused.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                std::ptr::null::<u64>(),
                size_of::<u64>(),
            )
        };
    }
    // Cannot fail with these arguments.
    let _ = blocked.thread_set_mask();
}

/// The value of an environment variable.
fn variable<'a>(process: &'a Process, name: &str) -> Option<&'a str> {
    let environment = process.env().as_ref()?.iter();
    let mut values = environment.filter_map(|entry| entry.split_once('='));
    values.find(|(key, _)| *key == name).map(|(_, value)| value)
}

impl Executor for Payload {
    fn validate(&self, spec: &Spec) -> std::result::Result<(), ExecutorValidationError> {
        let Some(process) = spec.process() else {
            return Err(ExecutorValidationError::ArgValidationError(
                "no process".into(),
            ));
        };
        match self.prepare(process) {
            Ok(()) => Ok(()),
            Err(error) => {
                let message = error.message.clone();
                self.report(Report::Failed(error));
                Err(ExecutorValidationError::ArgValidationError(message))
            }
        }
    }

    /// Our own environment stays; the payload gets its by `execve`, in the order given.
    fn setup_envs(
        &self,
        _: std::collections::HashMap<String, String>,
    ) -> std::result::Result<(), ExecutorSetEnvsError> {
        Ok(())
    }

    fn exec(&self, spec: &Spec) -> std::result::Result<(), ExecutorError> {
        // Not before: until here libcontainer needs its files.
        self.report(Report::Ready);
        if !wire::wait_for_go(std::os::fd::AsFd::as_fd(&*self.control)) {
            // Whoever would have started it has gone.
            std::process::exit(1);
        }
        let Some(process) = spec.process() else {
            return Err(ExecutorError::InvalidArg);
        };
        match self.execute(process) {
            Ok(never) => match never {},
            Err(error) => {
                let message = error.message.clone();
                let code = if error.kind == ErrorKind::CommandNotFound {
                    127
                } else {
                    126
                };
                self.report(Report::Failed(error));
                eprintln!("{message}");
                std::process::exit(code);
            }
        }
    }
}
