//! Making namespaces. A user namespace can be entered only by a process with one thread, so a
//! child of ours does it, which is ended as soon as what it made is open here. It makes nothing
//! but system calls: this process may have threads, whose locks the child has copies of.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use rustix::process::{Pid, Signal};
use rustix::thread::{LinkNameSpaceType, UnshareFlags};

use crate::{Mappings, table};

/// Whose a new network namespace is.
#[derive(Debug, Clone, Copy)]
pub enum Owner<'a> {
    /// A new user namespace's.
    New(&'a Mappings),
    /// That of one that there is.
    Existing(BorrowedFd<'a>),
}

/// Makes a user namespace.
///
/// # Errors
/// What the kernel says; needs CAP_SETUID and CAP_SETGID over what is mapped.
pub fn create(mappings: &Mappings) -> io::Result<OwnedFd> {
    open_in_child(Owner::New(mappings), Kind::User)
}

/// Makes a network namespace.
///
/// # Errors
/// What the kernel says.
pub fn network(owner: Owner<'_>) -> io::Result<OwnedFd> {
    open_in_child(owner, Kind::Network)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    User,
    Network,
}

fn open_in_child(owner: Owner<'_>, kind: Kind) -> io::Result<OwnedFd> {
    let (ours, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    // SAFETY: the child makes system calls only, and ends without returning.
    let number = unsafe { libc::fork() };
    if number == 0 {
        in_child(theirs.as_fd(), owner, kind);
    }
    let Some(pid) = Pid::from_raw(number) else {
        return Err(io::Error::last_os_error());
    };
    drop(theirs);
    let opened = talk(ours.as_fd(), pid, owner, kind);
    // Whatever it waits for. Somebody else may have been faster to wait for it.
    let _ = rustix::process::kill_process(pid, Signal::KILL);
    while let Err(Errno::INTR) =
        rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty())
    {}
    opened
}

fn talk(socket: BorrowedFd<'_>, pid: Pid, owner: Owner<'_>, kind: Kind) -> io::Result<OwnedFd> {
    let directory = format!("/proc/{}", pid.as_raw_nonzero());
    outcome(socket)?;
    if let Owner::New(mappings) = owner {
        std::fs::write(format!("{directory}/uid_map"), table(&mappings.uids))?;
        std::fs::write(format!("{directory}/gid_map"), table(&mappings.gids))?;
    }
    if kind == Kind::User {
        return Ok(File::open(format!("{directory}/ns/user"))?.into());
    }
    rustix::net::send(socket, b"go", SendFlags::NOSIGNAL)?;
    outcome(socket)?;
    Ok(File::open(format!("{directory}/ns/net"))?.into())
}

/// How a step of the child's went.
fn outcome(socket: BorrowedFd<'_>) -> io::Result<()> {
    let mut code = [0; 4];
    loop {
        match rustix::net::recv(socket, &mut code, RecvFlags::empty()) {
            Ok((_, 4)) => break,
            Ok(_) => return Err(io::Error::other("the process for a namespace has ended")),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    match i32::from_ne_bytes(code) {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(code)),
    }
}

fn in_child(socket: BorrowedFd<'_>, owner: Owner<'_>, kind: Kind) -> ! {
    // Nobody would end it otherwise.
    let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    let entered = match owner {
        // SAFETY: this process has one thread, and shares nothing with others.
        Owner::New(_) => unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWUSER) },
        Owner::Existing(namespace) => {
            rustix::thread::move_into_link_name_space(namespace, Some(LinkNameSpaceType::User))
        }
    };
    tell(socket, entered);
    let mut word = [0; 2];
    while let Err(Errno::INTR) = rustix::net::recv(socket, &mut word, RecvFlags::empty()) {}
    if kind == Kind::Network {
        // SAFETY: as above.
        tell(socket, unsafe {
            rustix::thread::unshare_unsafe(UnshareFlags::NEWNET)
        });
        while let Err(Errno::INTR) = rustix::net::recv(socket, &mut word, RecvFlags::empty()) {}
    }
    end()
}

fn tell(socket: BorrowedFd<'_>, result: rustix::io::Result<()>) {
    let code = result.err().map_or(0, Errno::raw_os_error);
    let sent = rustix::net::send(socket, &code.to_ne_bytes(), SendFlags::NOSIGNAL);
    if code != 0 || sent.is_err() {
        end();
    }
}

fn end() -> ! {
    // SAFETY: ends this process without anything of the parent's being run.
    unsafe { libc::_exit(1) }
}
