//! Work inside a container's network namespace.

use std::fs::File;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::sync::oneshot;

use super::NetworkError;

/// A network namespace, held open.
#[derive(Debug, Clone)]
pub struct Namespace {
    path: PathBuf,
    file: Arc<File>,
}

impl Namespace {
    /// The one that this file stands for.
    ///
    /// # Errors
    /// [`NetworkError::Namespace`].
    pub fn open(path: &Path) -> Result<Self, NetworkError> {
        let file = File::open(path).map_err(|source| NetworkError::Namespace {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            path: path.to_owned(),
            file: Arc::new(file),
        })
    }

    /// Does something in a thread that is in the namespace and has a runtime of its own; the
    /// thread ends with it, even when nobody waits any more.
    ///
    /// # Errors
    /// [`NetworkError::Namespace`] when there is no such thread.
    pub async fn run<T, W, F>(&self, work: W) -> Result<T, NetworkError>
    where
        T: Send + 'static,
        W: FnOnce() -> F + Send + 'static,
        F: Future<Output = T>,
    {
        let failed = |source: io::Error| NetworkError::Namespace {
            path: self.path.clone(),
            source,
        };
        let (sender, receiver) = oneshot::channel();
        self.spawn(sender, work).map_err(failed)?;
        match receiver.await {
            Ok(done) => done.map_err(failed),
            Err(_) => Err(failed(io::Error::other("its thread was lost"))),
        }
    }

    fn spawn<T, W, F>(&self, sender: oneshot::Sender<io::Result<T>>, work: W) -> io::Result<()>
    where
        T: Send + 'static,
        W: FnOnce() -> F + Send + 'static,
        F: Future<Output = T>,
    {
        let file = Arc::clone(&self.file);
        std::thread::Builder::new()
            .name("netns".to_owned())
            .spawn(move || {
                let done = enter(&file).map(|runtime| runtime.block_on(async { work().await }));
                // The asker may have been cancelled.
                let _ = sender.send(done);
            })
            .map(drop)
    }
}

/// Takes the calling thread into the namespace.
fn enter(namespace: &File) -> io::Result<tokio::runtime::Runtime> {
    move_into_link_name_space(
        std::os::fd::AsFd::as_fd(namespace),
        Some(LinkNameSpaceType::Network),
    )?;
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
}
