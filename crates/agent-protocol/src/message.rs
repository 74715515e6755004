//! What the host asks of the agent. The requests mirror the traits of `bulkhead-isolation`:
//! the agent does with process isolation, inside the guest, what is asked of the VM's
//! container from outside.

use std::path::PathBuf;

use bulkhead_isolation::{ExitStatus, ProcessInfo, Resources, TerminalSize};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::network::{Network, Nic, Resolver};
use crate::share::{AcceptShare, ListenShare, MountShare};

/// The longest injected file, bytes.
pub const MAX_FILE_BYTES: u64 = 16 << 20;
/// The most injected files of one container.
pub const MAX_FILES: usize = 64;

/// A request together with the type of its reply.
pub trait Call: Into<Request> + Send {
    /// What is answered when it succeeds.
    type Reply: Serialize + DeserializeOwned + Send;
}

macro_rules! requests {
    ($($(#[$doc:meta])* $name:ident -> $reply:ty;)*) => {
        /// The first message on every stream.
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(tag = "request", rename_all = "snake_case")]
        pub enum Request {
            $($(#[$doc])* $name($name),)*
        }

        impl Request {
            /// Its name, for logs.
            pub fn name(&self) -> &'static str {
                match self {
                    $(Self::$name(_) => stringify!($name),)*
                }
            }
        }

        $(
            impl From<$name> for Request {
                fn from(request: $name) -> Self {
                    Self::$name(request)
                }
            }

            impl Call for $name {
                type Reply = $reply;
            }
        )*
    };
}

requests! {
    /// See [`Setup`].
    Setup -> SetupReply;
    /// See [`Create`].
    Create -> CreateReply;
    /// See [`Start`].
    Start -> ();
    /// See [`Exec`].
    Exec -> CreateReply;
    /// See [`Kill`].
    Kill -> ();
    /// See [`KillAll`].
    KillAll -> ();
    /// See [`Wait`].
    Wait -> ExitStatus;
    /// See [`Resize`].
    Resize -> ();
    /// See [`Stdio`].
    Stdio -> ();
    /// See [`MountShare`].
    MountShare -> ();
    /// See [`ListenShare`].
    ListenShare -> ();
    /// See [`AcceptShare`].
    AcceptShare -> ();
    /// See [`Pause`].
    Pause -> ();
    /// See [`Resume`].
    Resume -> ();
    /// See [`Processes`].
    Processes -> Vec<ProcessInfo>;
    /// See [`Stats`].
    Stats -> bulkhead_isolation::Stats;
    /// See [`Update`].
    Update -> ();
    /// See [`Files`].
    Files -> ();
    /// See [`Network`].
    Network -> ();
    /// See [`Resolver`].
    Resolver -> ();
    /// See [`WriteFiles`].
    WriteFiles -> ();
    /// See [`Delete`].
    Delete -> ();
    /// See [`Shutdown`].
    Shutdown -> ();
}

/// Makes a machine of the guest: clock, entropy, name, disks. The first request, once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setup {
    /// The layer blobs on the disk with serial `layers`, the lowest first.
    pub layers: Vec<LayerExtent>,
    /// The guest kernel's host name.
    pub hostname: String,
    /// The time of day, seconds since the epoch.
    pub seconds: i64,
    /// And nanoseconds beyond.
    pub nanoseconds: u32,
    /// Fresh random bytes for the guest's generator.
    pub entropy: Vec<u8>,
    /// Its network cards.
    pub nics: Vec<Nic>,
    /// The memory that it starts with, bytes: the machine's without the balloon.
    pub memory: u64,
}

/// A layer blob on the layers disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerExtent {
    /// Where it starts, bytes, a multiple of 512.
    pub offset: u64,
    /// Its length, bytes, a multiple of 512.
    pub length: u64,
}

/// What the guest says about itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SetupReply {
    /// The kernel's release.
    pub kernel: String,
    /// Memory that the kernel manages, bytes.
    pub memory: u64,
    /// How long the start took.
    pub times: ReadinessTimes,
}

/// The guest's start in milliseconds of its own uptime.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadinessTimes {
    /// The kernel ran the agent.
    pub init: u64,
    /// The transport was open.
    pub transport: u64,
    /// The first request was there.
    pub request: u64,
    /// The disks were mounted.
    pub mounted: u64,
}

/// Prepares the container. After the request, on the same stream, come the bytes of the
/// files, one after the other without anything between.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Create {
    /// The container's ID.
    pub id: String,
    /// The OCI specification, adapted to the guest.
    pub spec: Box<oci_spec::runtime::Spec>,
    /// Whether stdin is kept open.
    pub stdin: bool,
    /// Whether a small init runs as PID 1 and the payload under it.
    pub init: bool,
    /// Files bound over the root filesystem; at most [`MAX_FILES`].
    pub files: Vec<FileHeader>,
}

/// A file whose bytes follow the request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileHeader {
    /// Absolute path in the container.
    pub destination: PathBuf,
    /// Permission bits.
    pub mode: u32,
    /// How many bytes follow, at most [`MAX_FILE_BYTES`].
    pub length: u64,
}

/// A process that exists now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateReply {
    /// Its number in the guest, when it is known.
    pub pid: Option<u32>,
}

/// Runs a created process. The empty name is the container's init, here and below.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// Which.
    pub process: String,
}

/// Prepares another process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Exec {
    /// Its name; not empty.
    pub process: String,
    /// The OCI process.
    pub spec: Box<oci_spec::runtime::Process>,
    /// Whether stdin is kept open.
    pub stdin: bool,
}

/// Sends a signal to a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kill {
    /// Which.
    pub process: String,
    /// The signal's number.
    pub signal: i32,
}

/// Sends a signal to every process of the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KillAll {
    /// The signal's number.
    pub signal: i32,
}

/// Answered when the process has exited, however long that takes. The agent forgets an exec
/// when it has answered, so its streams must have been asked for before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wait {
    /// Which.
    pub process: String,
}

/// Sets the size of a process's terminal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resize {
    /// Which.
    pub process: String,
    /// The size.
    pub size: TerminalSize,
}

/// One of a process's standard streams; its bytes follow the reply, in one direction, until
/// the writing side closes. Each can be asked for once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stdio {
    /// Which process.
    pub process: String,
    /// Which stream.
    pub stream: StandardStream,
}

/// A standard stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StandardStream {
    /// From the host to the process.
    Stdin,
    /// From the process, or from its terminal.
    Stdout,
    /// From the process.
    Stderr,
}

/// Freezes the container's processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pause;

/// Thaws them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resume;

/// Lists the container's processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Processes;

/// Tells what the container has used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats;

/// Changes the container's limits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Update {
    /// The new ones.
    pub resources: Resources,
}

/// A conversation about the container's files, whose bytes follow the reply in both
/// directions. Legal from [`Create`] on, or after [`Setup`] where nothing is to be created.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Files {
    /// The container's ID.
    pub id: String,
    /// The OCI specification, adapted to the guest, of a container that was not created.
    pub spec: Option<Box<oci_spec::runtime::Spec>>,
}

/// Writes files of [`Create`] again, in place, where the container has them. After the
/// request, on the same stream, come their bytes as there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriteFiles {
    /// Which; the mode is not changed.
    pub files: Vec<FileHeader>,
}

/// Releases the container; the writable layer stays mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delete;

/// Writes everything back, unmounts the writable layer and powers the machine off. The
/// reply comes before the last step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shutdown;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_survive_the_wire() {
        let requests: Vec<Request> = vec![
            Pause.into(),
            Shutdown.into(),
            Stdio {
                process: "e1".to_owned(),
                stream: StandardStream::Stderr,
            }
            .into(),
            Setup {
                layers: vec![LayerExtent {
                    offset: 0,
                    length: 4096,
                }],
                hostname: "box".to_owned(),
                seconds: -1,
                nanoseconds: 999_999_999,
                entropy: vec![0, 255],
                nics: Vec::new(),
                memory: 1 << 30,
            }
            .into(),
        ];
        for request in requests {
            let bytes = serde_json::to_vec(&request).unwrap();
            assert_eq!(serde_json::from_slice::<Request>(&bytes).unwrap(), request);
        }
    }
}
