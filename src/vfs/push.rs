//! What other mounts changed: events of the metadata become orders to the kernel to forget, and wake who waits for locks.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use bytes::Bytes;

use super::Vfs;
use super::types::Invalidation;
use crate::meta::kv::{Change, Event};
use crate::types::Ino;

/// How many orders may wait for the kernel. Beyond that they are dropped: names follow within `--entry-ttl`, and every
/// open asks the metadata in any case.
const QUEUE: usize = 16 * 1024;

/// The way to the kernel's caches. Never blocks: the thread at the other end may wait for locks that a request holds.
#[derive(Clone, Debug)]
pub struct Invalidations(SyncSender<Invalidation>);

impl Invalidations {
    /// The two ends of a bounded queue.
    #[must_use]
    pub fn channel() -> (Self, Receiver<Invalidation>) {
        let (sender, receiver) = sync_channel(QUEUE);
        (Invalidations(sender), receiver)
    }

    /// The name means something else, or nothing, or something for the first time.
    pub fn entry(&self, parent: Ino, name: Bytes) {
        self.send(Invalidation::Entry { parent, name });
    }

    /// The attributes changed.
    pub fn attrs(&self, ino: Ino) {
        self.send(Invalidation::Attrs { ino });
    }

    /// The data changed.
    pub fn pages(&self, ino: Ino) {
        self.send(Invalidation::Pages { ino });
    }

    fn send(&self, order: Invalidation) {
        match self.0.try_send(order) {
            Ok(()) | Err(TrySendError::Disconnected(_)) => {}
            Err(TrySendError::Full(order)) => tracing::debug!("invalidation queue full, dropped {order:?}"),
        }
    }
}

impl Vfs {
    /// Follows the metadata's push channel until the engine is dropped.
    pub(super) async fn follow_changes(self: Arc<Self>) {
        let mut watch = match self.meta.kv().watch().await {
            Ok(watch) => watch,
            Err(e) => {
                tracing::warn!("no push channel, names follow within the entry TTL: {e}");
                return;
            }
        };
        while let Ok(event) = watch.next().await {
            match event {
                Event::Changed { change, by } => self.changed(change, by == Some(self.meta.session())),
                Event::Lost => self.lost_push(),
            }
        }
    }

    fn changed(&self, change: Change, own: bool) {
        if let Change::Unlocked { ino } = change {
            self.locks.wake(ino);
            return;
        }
        // The kernel knows what was done through it.
        if own {
            return;
        }
        match change {
            Change::Entry { parent, name } => self.invalidations.entry(parent, name),
            Change::Inode { ino } => {
                self.attrs.forget(ino);
                self.invalidations.attrs(ino);
            }
            Change::Unlocked { .. } => {}
        }
    }

    fn lost_push(&self) {
        tracing::warn!("the metadata's push channel was interrupted: dropping what is cached");
        self.attrs.clear();
        self.locks.wake_all();
        if let Some(lazy) = &self.lazy {
            lazy.forget_all();
        }
    }
}
