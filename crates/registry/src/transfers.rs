//! Layers that are being fetched: each once, however many pulls want it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bulkhead_image::{Digest, ImageStore, Lease};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::download::{self, Blob, Step};
use crate::error::{RegistryError, Result};
use crate::repository::Repository;

/// What makes two layers the same transfer. The registry is part of it: one that is slow or
/// lies is not to spoil another's pull.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    base: String,
    digest: Digest,
    diff_id: Digest,
}

/// How a transfer is getting on.
#[derive(Debug, Clone)]
pub(crate) enum State {
    Starting,
    /// For one of those that run to end.
    Waiting,
    Fetching(u64),
    Retrying(u64),
    Converting,
    /// In the store, for as long as somebody has this.
    Done(Arc<HeldLease>),
    Failed(Arc<RegistryError>),
}

/// A lease whose end, which does file operations, is not met on the runtime's threads.
#[derive(Debug)]
pub(crate) struct HeldLease(Option<Lease>);

impl HeldLease {
    pub(crate) fn new(lease: Lease) -> Self {
        Self(Some(lease))
    }
}

impl Drop for HeldLease {
    fn drop(&mut self) {
        let lease = self.0.take();
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(move || drop(lease))),
            Err(_) => drop(lease),
        }
    }
}

/// A transfer that somebody waits for. When all have gone it is given up.
#[derive(Debug)]
pub(crate) struct Transfer {
    state: watch::Receiver<State>,
    _cancel: DropGuard,
}

/// All that are going on.
#[derive(Debug)]
pub(crate) struct Transfers {
    store: Arc<ImageStore>,
    running: Mutex<HashMap<Key, Weak<Transfer>>>,
    slots: Arc<Semaphore>,
    attempts: u32,
}

impl Transfers {
    pub(crate) fn new(store: Arc<ImageStore>, slots: usize, attempts: u32) -> Self {
        Self {
            store,
            running: Mutex::default(),
            slots: Arc::new(Semaphore::new(slots.clamp(1, 1000))),
            attempts: attempts.max(1),
        }
    }

    /// Joins the transfer of a layer, or starts it; the second says which.
    fn join(&self, repository: &Repository, blob: Blob) -> (Arc<Transfer>, bool) {
        let key = Key {
            base: repository.endpoint.server.base.clone(),
            digest: blob.digest,
            diff_id: blob.diff_id,
        };
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.retain(|_, transfer| transfer.strong_count() > 0);
        let known = running.get(&key).and_then(Weak::upgrade);
        if let Some(transfer) = known
            && !matches!(*transfer.state.borrow(), State::Failed(_))
        {
            return (transfer, false);
        }
        let (sender, state) = watch::channel(State::Starting);
        let cancel = CancellationToken::new();
        let work = run(
            repository.clone(),
            Arc::clone(&self.store),
            Arc::clone(&self.slots),
            self.attempts,
            blob,
            sender,
        );
        let cancelled = cancel.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = work => {}
                () = cancelled.cancelled() => {}
            }
        });
        let transfer = Arc::new(Transfer {
            state,
            _cancel: cancel.drop_guard(),
        });
        running.insert(key, Arc::downgrade(&transfer));
        (transfer, true)
    }

    /// Brings a layer into the store. The layer stays while the result lives.
    pub(crate) async fn layer(
        &self,
        repository: &Repository,
        blob: Blob,
        mut progress: impl FnMut(&State),
    ) -> Result<Arc<HeldLease>> {
        loop {
            let (transfer, ours) = self.join(repository, blob);
            let mut state = transfer.state.clone();
            let failed = loop {
                let now = state.borrow_and_update().clone();
                progress(&now);
                match now {
                    State::Done(lease) => return Ok(lease),
                    State::Failed(error) => break error,
                    _ => {}
                }
                if state.changed().await.is_err() {
                    break Arc::new(RegistryError::Cancelled);
                }
            };
            drop(transfer);
            // Another pull's credentials or bad luck are not ours.
            if ours {
                return Err(Arc::try_unwrap(failed).unwrap_or_else(|shared| repeat(&shared)));
            }
        }
    }
}

/// An error for one more of those who waited.
fn repeat(error: &RegistryError) -> RegistryError {
    match error {
        RegistryError::Refused(refusal) => RegistryError::Refused(refusal.clone()),
        RegistryError::Cancelled => RegistryError::Cancelled,
        other => RegistryError::InvalidAnswer(other.full_message()),
    }
}

async fn run(
    repository: Repository,
    store: Arc<ImageStore>,
    slots: Arc<Semaphore>,
    attempts: u32,
    blob: Blob,
    sender: watch::Sender<State>,
) {
    let result = async {
        let _slot = match slots.try_acquire() {
            Ok(slot) => slot,
            Err(_) => {
                sender.send_replace(State::Waiting);
                slots
                    .acquire()
                    .await
                    .map_err(|_| RegistryError::Cancelled)?
            }
        };
        let layer = download::layer(&repository, &store, blob, attempts, |step| {
            sender.send_replace(match step {
                Step::Bytes(count) => State::Fetching(count),
                Step::Retrying(seconds) => State::Retrying(seconds),
                Step::Fetched => State::Converting,
            });
        })
        .await?;
        tokio::task::spawn_blocking(move || {
            let mut lease = Lease::new(&store);
            lease.add(layer)?;
            Ok(HeldLease::new(lease))
        })
        .await
        .map_err(|error| RegistryError::Configuration(error.to_string()))?
    };
    let state = match result.await {
        Ok(lease) => State::Done(Arc::new(lease)),
        Err(error) => State::Failed(Arc::new(error)),
    };
    sender.send_replace(state);
}
