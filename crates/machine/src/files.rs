//! Everything that a machine is made of, as open descriptors.
//!
//! Whoever starts a worker opens them, by the paths in the [`MachineConfig`], with the rights
//! that it has; the worker gets them beside the configuration, and has no use for a path but
//! to name a file in a message.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use crate::{Accelerator, Console, Disk, MAX_LAYERS, MAX_NICS, MachineConfig};

/// Hardware virtualization, for machines that use it.
const DEV_KVM: &str = "/dev/kvm";

/// The descriptors of one machine. Each is open exactly once and in nobody else's hands.
#[derive(Debug)]
pub struct MachineFiles {
    /// A stream socket; its other end is with whoever talks to the agent.
    pub transport: OwnedFd,
    /// [`MachineConfig::kernel`], to be read.
    pub kernel: File,
    /// [`MachineConfig::initramfs`], to be read.
    pub initramfs: File,
    /// One for each of [`MachineConfig::disks`], of its kind.
    pub disks: Vec<DiskFiles>,
    /// The file of [`Console::File`], empty, to be written.
    pub console: Option<File>,
    /// `/dev/kvm`, where the machine's accelerator is [`Accelerator::Kvm`].
    pub kvm: Option<File>,
    /// The tap devices of [`MachineConfig::nics`], in their order.
    pub taps: Vec<OwnedFd>,
}

/// What a disk is made of.
#[derive(Debug)]
pub enum DiskFiles {
    /// The files of [`Disk::Layers`] in their order, to be read, each as long as it was said
    /// to be.
    Layers(Vec<File>),
    /// The file of [`Disk::Scratch`], to be read and written.
    Scratch(File),
}

/// A file of a machine cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// It does not open.
    #[error("cannot open the {what} '{}'", .path.display())]
    Open {
        /// What it is to the machine.
        what: &'static str,
        /// Where it should be.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is a directory, a device, or something else that cannot be it.
    #[error("the {what} '{}' is not a regular file", .path.display())]
    NotRegular {
        /// What it is to the machine.
        what: &'static str,
        /// Where it is.
        path: PathBuf,
    },
    /// A layer was cut off, or is another one.
    #[error("the layer '{}' has {found} bytes where {expected} were expected", .path.display())]
    Length {
        /// Where it is.
        path: PathBuf,
        /// How long it is.
        found: u64,
        /// How long it was said to be.
        expected: u64,
    },
    /// There are more, or fewer, of something than a machine has.
    #[error("a VM has {allowed}, not {found}")]
    Count {
        /// How many of what.
        allowed: String,
        /// How many were given.
        found: usize,
    },
    /// The descriptors are not those of this configuration.
    #[error("the VM's files do not belong to its configuration: {0}")]
    Mismatch(&'static str),
}

/// What a descriptor is to a machine. Those of one kind are in the configuration's order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileRole {
    /// [`MachineFiles::transport`]
    Transport,
    /// [`MachineFiles::kernel`]
    Kernel,
    /// [`MachineFiles::initramfs`]
    Initramfs,
    /// One of [`DiskFiles::Layers`]
    Layer,
    /// [`DiskFiles::Scratch`]
    Scratch,
    /// [`MachineFiles::console`]
    Console,
    /// [`MachineFiles::kvm`]
    Kvm,
    /// One of [`MachineFiles::taps`]
    Tap,
}

impl MachineFiles {
    /// Opens what the configuration names.
    ///
    /// # Errors
    /// [`FilesError`], of the first file that cannot be used. The console's file is made last,
    /// so nothing is left behind.
    pub fn open(
        config: &MachineConfig,
        transport: OwnedFd,
        taps: Vec<OwnedFd>,
    ) -> Result<Self, FilesError> {
        if taps.len() != config.nics.len() || taps.len() > MAX_NICS {
            return Err(FilesError::Count {
                allowed: format!("a tap device for each of at most {MAX_NICS} network cards"),
                found: taps.len(),
            });
        }
        let kernel = regular(
            "guest kernel",
            &config.kernel,
            OpenOptions::new().read(true),
        )?;
        let initramfs = regular(
            "guest initramfs",
            &config.initramfs,
            OpenOptions::new().read(true),
        )?;
        let disks = config
            .disks
            .iter()
            .map(open_disk)
            .collect::<Result<_, _>>()?;
        let kvm = match config.accelerator {
            Accelerator::Kvm => Some(open(
                "device for hardware virtualization",
                Path::new(DEV_KVM),
                OpenOptions::new().read(true).write(true),
            )?),
            Accelerator::Tcg => None,
        };
        let console = match &config.console {
            Console::Quiet => None,
            Console::File { path } => Some(regular(
                "console file",
                path,
                OpenOptions::new()
                    .write(true)
                    .create(true)
                    .truncate(true)
                    .mode(0o600),
            )?),
        };
        Ok(Self {
            transport,
            kernel,
            initramfs,
            disks,
            console,
            kvm,
            taps,
        })
    }

    /// Takes them apart, to be sent.
    pub fn into_parts(self) -> Vec<(FileRole, OwnedFd)> {
        let mut parts = vec![
            (FileRole::Transport, self.transport),
            (FileRole::Kernel, self.kernel.into()),
            (FileRole::Initramfs, self.initramfs.into()),
        ];
        for disk in self.disks {
            match disk {
                DiskFiles::Layers(files) => {
                    parts.extend(files.into_iter().map(|file| (FileRole::Layer, file.into())));
                }
                DiskFiles::Scratch(file) => parts.push((FileRole::Scratch, file.into())),
            }
        }
        parts.extend(self.console.map(|file| (FileRole::Console, file.into())));
        parts.extend(self.kvm.map(|file| (FileRole::Kvm, file.into())));
        parts.extend(self.taps.into_iter().map(|tap| (FileRole::Tap, tap)));
        parts
    }

    /// Puts them together again.
    ///
    /// # Errors
    /// [`FilesError::Mismatch`] when one is missing, or too many.
    pub fn from_parts(
        config: &MachineConfig,
        parts: impl IntoIterator<Item = (FileRole, OwnedFd)>,
    ) -> Result<Self, FilesError> {
        let mut parts: Vec<_> = parts.into_iter().collect();
        let mut all = |role: FileRole| -> Vec<OwnedFd> {
            parts
                .extract_if(.., |(of, _)| *of == role)
                .map(|(_, descriptor)| descriptor)
                .collect()
        };
        let transport = only(all(FileRole::Transport), "transport")?;
        let kernel = only(all(FileRole::Kernel), "kernel")?;
        let initramfs = only(all(FileRole::Initramfs), "initramfs")?;
        let mut layers = all(FileRole::Layer).into_iter();
        let mut scratch = all(FileRole::Scratch).into_iter();
        let mut disks = Vec::with_capacity(config.disks.len());
        for disk in &config.disks {
            disks.push(match disk {
                Disk::Layers { files } => {
                    let own: Vec<_> = layers.by_ref().take(files.len()).map(File::from).collect();
                    if own.len() != files.len() {
                        return Err(FilesError::Mismatch("layers"));
                    }
                    DiskFiles::Layers(own)
                }
                Disk::Scratch { .. } => {
                    let own = scratch
                        .next()
                        .ok_or(FilesError::Mismatch("scratch disks"))?;
                    DiskFiles::Scratch(own.into())
                }
            });
        }
        let console = match &config.console {
            Console::File { .. } => Some(only(all(FileRole::Console), "console")?.into()),
            Console::Quiet => None,
        };
        let kvm = match config.accelerator {
            Accelerator::Kvm => Some(only(all(FileRole::Kvm), "kvm")?.into()),
            Accelerator::Tcg => None,
        };
        let taps = all(FileRole::Tap);
        if taps.len() != config.nics.len() {
            return Err(FilesError::Mismatch("network cards"));
        }
        if !parts.is_empty() || layers.next().is_some() || scratch.next().is_some() {
            return Err(FilesError::Mismatch("there are too many"));
        }
        Ok(Self {
            transport,
            kernel: kernel.into(),
            initramfs: initramfs.into(),
            disks,
            console,
            kvm,
            taps,
        })
    }
}

fn only(mut descriptors: Vec<OwnedFd>, what: &'static str) -> Result<OwnedFd, FilesError> {
    match (descriptors.pop(), descriptors.is_empty()) {
        (Some(one), true) => Ok(one),
        _ => Err(FilesError::Mismatch(what)),
    }
}

fn open(what: &'static str, path: &Path, options: &mut OpenOptions) -> Result<File, FilesError> {
    let flags = OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    // Not to wait for the other end of a named pipe; on what is let through it means nothing.
    let flags = flags.bits().cast_signed();
    options
        .custom_flags(flags)
        .open(path)
        .map_err(|source| FilesError::Open {
            what,
            path: path.to_owned(),
            source,
        })
}

fn regular(what: &'static str, path: &Path, options: &mut OpenOptions) -> Result<File, FilesError> {
    let file = open(what, path, options)?;
    if length(what, path, &file)?.is_some() {
        Ok(file)
    } else {
        Err(FilesError::NotRegular {
            what,
            path: path.to_owned(),
        })
    }
}

/// `None` when it is not a regular file.
fn length(what: &'static str, path: &Path, file: &File) -> Result<Option<u64>, FilesError> {
    let metadata = file.metadata().map_err(|source| FilesError::Open {
        what,
        path: path.to_owned(),
        source,
    })?;
    Ok(metadata.is_file().then_some(metadata.len()))
}

fn open_disk(disk: &Disk) -> Result<DiskFiles, FilesError> {
    match disk {
        Disk::Layers { files } if files.is_empty() || files.len() > MAX_LAYERS => {
            Err(FilesError::Count {
                allowed: format!("1 to {MAX_LAYERS} layers"),
                found: files.len(),
            })
        }
        Disk::Layers { files } => {
            let open_layer = |layer: &crate::LayerFile| {
                let file = regular("layer", &layer.path, OpenOptions::new().read(true))?;
                let found = length("layer", &layer.path, &file)?.unwrap_or_default();
                if found == layer.bytes {
                    Ok(file)
                } else {
                    Err(FilesError::Length {
                        path: layer.path.clone(),
                        found,
                        expected: layer.bytes,
                    })
                }
            };
            files
                .iter()
                .map(open_layer)
                .collect::<Result<_, _>>()
                .map(DiskFiles::Layers)
        }
        Disk::Scratch { path } => {
            let mut options = OpenOptions::new();
            regular("scratch disk", path, options.read(true).write(true)).map(DiskFiles::Scratch)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::{EngineKind, LayerFile, Nic};

    fn config(directory: &Path) -> MachineConfig {
        let file = |name: &str, bytes: usize| {
            let path = directory.join(name);
            std::fs::write(&path, vec![1; bytes]).unwrap();
            path
        };
        let layer = |name, bytes: u16| LayerFile {
            path: file(name, usize::from(bytes)),
            bytes: bytes.into(),
        };
        MachineConfig {
            id: "x".to_owned(),
            engine: EngineKind::Qemu,
            accelerator: Accelerator::Tcg,
            kernel: file("kernel", 1),
            kernel_hz: None,
            initramfs: file("initramfs", 2),
            cmdline_extra: Vec::new(),
            memory_bytes: 1,
            balloon_bytes: 0,
            vcpus: 1,
            placement: crate::Placement::default(),
            disks: vec![
                Disk::Scratch {
                    path: file("scratch", 3),
                },
                Disk::Layers {
                    files: vec![layer("first", 512), layer("second", 1024)],
                },
            ],
            nics: vec![Nic { mac: [2; 6] }],
            runtime_dir: directory.to_owned(),
            console: Console::File {
                path: directory.join("console"),
            },
        }
    }

    fn pair() -> (OwnedFd, Vec<OwnedFd>) {
        let (one, other) = UnixStream::pair().unwrap();
        (one.into(), vec![other.into()])
    }

    fn inode(descriptor: impl AsFd) -> u64 {
        rustix::fs::fstat(descriptor).unwrap().st_ino
    }

    #[test]
    fn what_is_taken_apart_is_put_together_again() {
        let directory = tempfile::tempdir().unwrap();
        let config = config(directory.path());
        let (transport, taps) = pair();
        let files = MachineFiles::open(&config, transport, taps).unwrap();
        let inodes = |files: &MachineFiles| {
            let mut all = vec![
                inode(&files.transport),
                inode(&files.kernel),
                inode(&files.initramfs),
                inode(files.console.as_ref().unwrap()),
            ];
            for disk in &files.disks {
                match disk {
                    DiskFiles::Layers(files) => all.extend(files.iter().map(inode)),
                    DiskFiles::Scratch(file) => all.push(inode(file)),
                }
            }
            all.extend(files.taps.iter().map(inode));
            all
        };
        let before = inodes(&files);
        let mut parts = files.into_parts();
        // Only the order within a kind matters.
        parts.sort_by_key(|(role, _)| *role == FileRole::Transport);
        let again = MachineFiles::from_parts(&config, parts).unwrap();
        assert_eq!(inodes(&again), before);
    }

    #[test]
    fn too_few_and_too_many_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let config = config(directory.path());
        let parts = || {
            let (transport, taps) = pair();
            MachineFiles::open(&config, transport, taps)
                .unwrap()
                .into_parts()
        };
        for index in 0..parts().len() {
            let mut fewer = parts();
            fewer.remove(index);
            assert!(
                MachineFiles::from_parts(&config, fewer).is_err(),
                "without {index}"
            );
            let mut more = parts();
            let (role, _) = more[index];
            more.push((role, pair().0));
            assert!(
                MachineFiles::from_parts(&config, more).is_err(),
                "one more {role:?}"
            );
        }
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let good = config(directory.path());
        let refused = |change: &dyn Fn(&mut MachineConfig)| {
            let mut config = good.clone();
            change(&mut config);
            let (transport, taps) = pair();
            MachineFiles::open(&config, transport, taps).unwrap_err()
        };
        let missing = directory.path().join("missing");
        let error = refused(&|config| config.kernel = missing.clone());
        assert!(error.to_string().contains("kernel") && error.to_string().contains("missing"));
        let error = refused(&|config| config.initramfs = directory.path().into());
        assert!(matches!(error, FilesError::NotRegular { .. }), "{error}");
        let error = refused(&|config| {
            let path = missing.clone();
            config.disks = vec![Disk::Scratch { path }];
        });
        assert!(matches!(error, FilesError::Open { .. }), "{error}");
        let error = refused(&|config| {
            let path = config.kernel.clone();
            let files = vec![LayerFile { path, bytes: 512 }];
            config.disks = vec![Disk::Layers { files }];
        });
        assert!(
            matches!(error, FilesError::Length { found: 1, .. }),
            "{error}"
        );
        let error = refused(&|config| config.disks = vec![Disk::Layers { files: Vec::new() }]);
        assert!(matches!(error, FilesError::Count { .. }), "{error}");
        let error = refused(&|config| config.nics.clear());
        assert!(matches!(error, FilesError::Count { .. }), "{error}");
        assert!(!directory.path().join("console").exists());
    }
}
