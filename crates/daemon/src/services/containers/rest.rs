//! The files of a container that does not run: a supervisor shows them, without a payload,
//! for as long as somebody looks and a moment longer, since requests come in twos and threads
//! (`docker cp` asks what is there before it copies). It is one that is started for that, or
//! that of the run before, if whoever had the container run said that the files are next.

use std::sync::Arc;
use std::time::Duration;

use bulkhead_isolation::InjectedFile;
use bulkhead_task::bundle::Bundle;
use tokio::sync::watch;

use super::actor::Actor;
use super::joined::Joined;
use super::model::{Record, Status};
use super::{Command, Containers, Handle, Shared, launch};
use crate::error::{ApiError, ApiResult};
use crate::services::supervisor::{self, Task};

/// How long the files are kept open when nobody looks any more.
const LINGER: Duration = Duration::from_secs(2);

/// How long those of a run that has ended wait for the first who looks. Nothing depends on it
/// but that they go at last: who comes later has them opened again.
const FIRST_LOOK: Duration = Duration::from_secs(60);

/// A supervisor that shows files, as its container's owner task has it.
pub(super) struct Rest {
    task: Arc<Task>,
    /// Whether the container's payload ran there.
    ran: bool,
    /// How many look.
    users: watch::Sender<usize>,
    number: u64,
}

/// The files of a container, for as long as this lives.
#[derive(Debug)]
pub struct FilesAccess {
    task: Arc<Task>,
    /// Of a container that does not run.
    looking: Option<Looking>,
}

/// One of those who look at a container at rest, which neither starts nor goes meanwhile: its
/// owner waits, and takes no more orders, so whoever looks must not wait for the owner.
#[derive(Debug)]
struct Looking {
    users: watch::Sender<usize>,
    shared: Arc<Shared>,
}

impl FilesAccess {
    /// Whom to ask.
    pub fn task(&self) -> &Task {
        &self.task
    }

    /// Publishes what was done with the files.
    pub(super) async fn announce(&self, container: &Handle, action: &str) {
        match &self.looking {
            Some(looking) => {
                let view = container.view();
                looking.shared.event(&view.record, action, &[]);
            }
            None => container.announce(action, Vec::new()).await,
        }
    }
}

impl Drop for FilesAccess {
    fn drop(&mut self) {
        if let Some(Looking { users, .. }) = &self.looking {
            users.send_modify(|count| *count = count.saturating_sub(1));
        }
    }
}

impl Actor {
    /// Gives access to the files, whether the container runs or not.
    pub(super) async fn open_files(&mut self) -> ApiResult<FilesAccess> {
        if matches!(self.record.state.status, Status::Removing | Status::Dead) {
            return Err(ApiError::conflict(
                "container is marked for removal: its files cannot be used",
            ));
        }
        if let Some(task) = &self.task {
            return Ok(FilesAccess {
                task: Arc::clone(task),
                looking: None,
            });
        }
        if self.rest.as_ref().is_some_and(|rest| rest.task.is_gone()) {
            self.close_rest().await;
        }
        if self.rest.is_none() {
            let task = launch_files(&self.shared, &self.record).await?;
            self.show_files_of(task, false);
        }
        let rest = self.rest.as_ref();
        let rest = rest.ok_or_else(|| ApiError::conflict("the container's files are in use"))?;
        rest.users.send_modify(|count| *count += 1);
        Ok(FilesAccess {
            task: Arc::clone(&rest.task),
            looking: Some(Looking {
                users: rest.users.clone(),
                shared: Arc::clone(&self.shared),
            }),
        })
    }

    /// Has this supervisor show the files from now on; what it runs, or ran, has ended.
    pub(super) fn show_files_of(&mut self, task: Arc<Task>, ran: bool) {
        self.rests += 1;
        let rest = Rest {
            task,
            ran,
            users: watch::Sender::new(0),
            number: self.rests,
        };
        self.close_when_idle(&rest);
        self.rest = Some(rest);
    }

    fn close_when_idle(&self, rest: &Rest) {
        let mut users = rest.users.subscribe();
        let mailbox = self.own_mailbox.clone();
        let number = rest.number;
        tokio::spawn(async move {
            loop {
                // Where they were opened for somebody, that is at once.
                let first = users.wait_for(|count| *count > 0);
                match tokio::time::timeout(FIRST_LOOK, first).await {
                    Ok(Ok(_)) => {}
                    Ok(Err(_)) => return,
                    Err(_) => break,
                }
                if users.wait_for(|count| *count == 0).await.is_err() {
                    return;
                }
                let again = users.wait_for(|count| *count > 0);
                if tokio::time::timeout(LINGER, again).await.is_err() {
                    break;
                }
            }
            if let Some(mailbox) = mailbox.upgrade() {
                let _ = mailbox.send(Command::FilesIdle { number }).await;
            }
        });
    }

    /// The timer's word that nobody has looked for a while.
    pub(super) async fn files_idle(&mut self, number: u64) {
        let Some(rest) = &self.rest else { return };
        if rest.number != number {
            return;
        }
        if *rest.users.borrow() > 0 {
            self.close_when_idle(rest);
            return;
        }
        self.close_rest().await;
    }

    /// Waits until nobody looks at the files of the container at rest, and closes them: it is
    /// about to run, or to go.
    pub(super) async fn finish_rest(&mut self) {
        if let Some(rest) = &self.rest {
            let mut users = rest.users.subscribe();
            // The sender is ours.
            let _ = users.wait_for(|count| *count == 0).await;
            self.close_rest().await;
        }
    }

    /// Closes them, whoever looks.
    pub(super) async fn close_rest(&mut self) {
        let Some(rest) = self.rest.take() else {
            return;
        };
        if rest.ran {
            launch::release(&self.shared, &self.record, &rest.task).await;
        } else {
            release_files(&self.shared, &self.record, &rest.task).await;
        }
    }
}

/// Starts a supervisor that shows the files. On an error nothing is left.
async fn launch_files(shared: &Arc<Shared>, record: &Record) -> ApiResult<Arc<Task>> {
    let binary = supervisor::find_binary()?;
    let bundle = Bundle::of(&shared.config.exec_root, &record.id);
    let mounts = super::mounts::prepare(shared, record).await?;
    let launched = async {
        // Nothing runs, so there is no such namespace.
        let netns = shared.netns_path(&record.id);
        let mut alone = record.clone();
        // Nor does it need whom it is linked with.
        alone.host_config.links = None;
        launch::write_bundle(
            shared,
            &alone,
            &bundle,
            mounts,
            Some(&netns),
            Joined::default(),
        )
        .map_err(|failure| failure.error)?;
        let task = Task::launch(&binary, &shared.config.exec_root, &record.id).await?;
        let mut options = launch::options(shared, record, generated(shared, record));
        options.files_only = true;
        match task.create(&options, false).await {
            Ok(_) => Ok(Arc::new(task)),
            Err(error) => {
                if !task.is_gone() {
                    task.shutdown().await;
                }
                Err(ApiError::from(error))
            }
        }
    };
    let launched = launched.await;
    if launched.is_err() {
        launch::sweep(shared, &record.id).await;
        launch::forget_bundle(shared, &record.id);
        super::mounts::unmount(shared, record).await;
    }
    launched
}

async fn release_files(shared: &Arc<Shared>, record: &Record, task: &Task) {
    let released = task.delete("").await;
    if let Err(error) = &released {
        tracing::warn!(id = %record.id, %error, "files could not be released; sweeping");
    }
    task.shutdown().await;
    if released.is_err() {
        launch::sweep(shared, &record.id).await;
    }
    launch::forget_bundle(shared, &record.id);
    super::mounts::unmount(shared, record).await;
}

/// The generated files that an earlier run left.
fn generated(shared: &Arc<Shared>, record: &Record) -> Vec<InjectedFile> {
    let containers = Containers {
        shared: Arc::clone(shared),
    };
    let files = containers.files(record);
    [
        (files.resolv_conf, "/etc/resolv.conf"),
        (files.hostname, "/etc/hostname"),
        (files.hosts, "/etc/hosts"),
    ]
    .into_iter()
    .filter(|(source, _)| source.is_file())
    .map(|(source, destination)| InjectedFile {
        source,
        destination: destination.into(),
    })
    .collect()
}
