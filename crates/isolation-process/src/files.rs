//! The files of a container: each conversation is served by a helper of its own.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio as CommandStdio};
use std::sync::Arc;

use async_trait::async_trait;
use bulkhead_files::protocol::Bind;
use bulkhead_isolation::{
    ContainerFiles, CreateRequest, InjectedFile, IsolationError, Result, Rootfs,
};
use oci_spec::runtime::Spec;

use crate::helper;
use crate::isolation::{blocking, remove_files, unmount};
use crate::layout::Layout;
use crate::reaper::{Child, Reaper};
use crate::wire::{self, Control, FilesOrder, LowerOrder, Order, Report, StackOrder};

/// Where a container's files are.
pub struct ProcessFiles {
    reaper: Arc<Reaper>,
    order: FilesOrder,
    /// What goes away with this, when it was made for it.
    made: Option<Layout>,
}

impl ProcessFiles {
    /// The files of the container that this request makes, whose root is mounted.
    pub fn new(reaper: Arc<Reaper>, request: &CreateRequest, spec: &Spec) -> Self {
        let layout = Layout::new(&request.bundle);
        let (root, stack) = match &request.rootfs {
            Rootfs::Layers { layers, writable } => {
                let lower = LowerOrder::Blobs {
                    blobs: layers.clone(),
                    points: layout.layers(),
                };
                let upper = writable.join("upper");
                (layout.rootfs(), Some(StackOrder { upper, lower }))
            }
            Rootfs::Mounted(path) => (path.clone(), None),
            Rootfs::Stacked {
                root,
                layers,
                upper,
            } => {
                let lower = LowerOrder::Directories(layers.clone());
                let upper = upper.clone();
                (root.clone(), Some(StackOrder { upper, lower }))
            }
        };
        let read_only = spec.root().as_ref().and_then(|root| root.readonly());
        Self {
            reaper,
            order: FilesOrder {
                root,
                read_only: read_only.unwrap_or(false),
                binds: binds(spec, &request.injected_files),
                stack,
                mappings: helper::mappings(spec),
            },
            made: None,
        }
    }

    /// The same, to be unmounted and removed at the end.
    pub fn owning(mut self, layout: Layout) -> Self {
        self.made = Some(layout);
        self
    }
}

/// What the specification mounts from outside of the container.
fn binds(spec: &Spec, injected: &[InjectedFile]) -> Vec<Bind> {
    let mut binds = Vec::new();
    for mount in spec.mounts().iter().flatten() {
        let has = |wanted: &str| {
            let mut options = mount.options().iter().flatten();
            options.any(|option| option == wanted)
        };
        let bind = mount.typ().as_deref() == Some("bind") || has("bind") || has("rbind");
        if let Some(source) = mount.source().as_ref().filter(|_| bind) {
            binds.push(Bind {
                source: source.clone(),
                destination: mount.destination().clone(),
                read_only: has("ro"),
                recursive: has("rbind"),
            });
        }
    }
    for file in injected {
        if !binds
            .iter()
            .any(|bind| bind.destination == file.destination)
        {
            binds.push(Bind {
                source: file.source.clone(),
                destination: file.destination.clone(),
                read_only: false,
                recursive: false,
            });
        }
    }
    // What is mounted within another mount comes after it.
    binds.sort_by_key(|bind| bind.destination.components().count());
    binds
}

/// Starts a helper with an order and the descriptors that belong to it.
fn start(reaper: &Reaper, order: &Order, descriptors: &[OwnedFd]) -> Result<(Child, OwnedFd)> {
    let (ours, theirs) =
        wire::pair().map_err(|error| IsolationError::other("create socket pair", error))?;
    wire::send_order(ours.as_fd(), order, descriptors)
        .map_err(|error| IsolationError::other("send order to helper", error))?;
    let mut command = Command::new(helper::program());
    command
        .arg(helper::ARGUMENT)
        .env_clear()
        .stdin(theirs)
        .stdout(CommandStdio::null());
    let helper = reaper
        .spawn(&mut command)
        .map_err(|error| IsolationError::other("start helper", error))?;
    Ok((helper, ours))
}

/// Has a helper do what has no other outcome than that it is done.
pub async fn carry_out(reaper: &Reaper, order: &Order) -> Result<()> {
    let (helper, control) = start(reaper, order, &[])?;
    let control =
        Control::new(control).map_err(|error| IsolationError::other("poll helper", error))?;
    let report = control.report().await;
    helper.wait().await;
    match report {
        Ok(Some((Report::Failed(error), _))) => Err(error),
        Ok(Some((Report::Done, _))) => Ok(()),
        Ok(_) => Err(IsolationError::other(
            "helper",
            "it ended without an answer",
        )),
        Err(error) => Err(IsolationError::other("read from helper", error)),
    }
}

#[async_trait]
impl ContainerFiles for ProcessFiles {
    async fn serve(&self, client: UnixStream) -> Result<()> {
        client
            .set_nonblocking(false)
            .map_err(|error| IsolationError::other("hand over a client", error))?;
        let descriptors = [OwnedFd::from(client)];
        let order = Order::Files(self.order.clone());
        let (helper, _control) = start(&self.reaper, &order, &descriptors)?;
        // The helper alone has the client now: its end is the conversation's.
        drop(descriptors);
        let exit = helper.wait().await;
        if exit.code == 0 {
            return Ok(());
        }
        Err(IsolationError::other(
            "serve a container's files",
            format!("the helper ended with {}", exit.code),
        ))
    }

    async fn close(&self) -> Result<()> {
        let Some(layout) = self.made.clone() else {
            return Ok(());
        };
        let released = blocking(move || {
            unmount(&layout)?;
            remove_files(&layout)
        });
        released
            .await
            .map_err(|error| IsolationError::other("release a container's files", error))
    }
}
