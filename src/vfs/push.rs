//! What other mounts changed: events of the metadata become orders to the kernel to forget, and wake who waits for locks.

use std::sync::Weak;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use bytes::Bytes;
use tokio::sync::broadcast::{self, error::RecvError};

use super::Vfs;
use super::types::Invalidation;
use crate::chunk::BlobEvent;
use crate::meta::Meta;
use crate::meta::kv::{Change, Event};
use crate::types::{BlobId, Ino};

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

/// Follows the metadata's push channel until the file system is dropped.
pub(super) async fn follow_changes(vfs: Weak<Vfs>, meta: Meta) {
    let mut watch = match meta.watch().await {
        Ok(watch) => watch,
        Err(e) => {
            tracing::warn!("no push channel, names follow within the entry TTL: {e}");
            return;
        }
    };
    let own = meta.session();
    drop(meta);
    while let Ok(event) = watch.next().await {
        let Some(vfs) = vfs.upgrade() else { return };
        match event {
            Event::Changed { change, by } => vfs.changed(change, by == Some(own)),
            Event::Lost => vfs.lost_push().await,
        }
    }
}

/// Drops what the kernel has of blobs whose bytes turned out to be wrong, in whichever open file they are.
pub(super) async fn follow_blobs(vfs: Weak<Vfs>, mut events: broadcast::Receiver<BlobEvent>) {
    loop {
        let event = events.recv().await;
        let Some(vfs) = vfs.upgrade() else { return };
        match event {
            Ok(BlobEvent::Mismatch(blob)) => vfs.drop_pages(Some(blob)),
            Ok(BlobEvent::Verified(_)) => {}
            // Which blobs is not known any more: all that is open.
            Err(RecvError::Lagged(_)) => vfs.drop_pages(None),
            Err(RecvError::Closed) => return,
        }
    }
}

impl Vfs {
    fn changed(&self, change: Change, own: bool) {
        if let Change::Unlocked { ino } = change {
            self.locks.wake(ino);
            return;
        }
        // The kernel knows what was done through it.
        if own {
            return;
        }
        // Before the kernel asks again.
        self.meta.heard(&change);
        match change {
            Change::Entry { parent, name } => self.invalidations.entry(parent, name),
            Change::Inode { ino } => {
                self.attrs.forget(ino);
                self.invalidations.attrs(ino);
            }
            Change::Unlocked { .. } => {}
        }
    }

    fn drop_pages(&self, blob: Option<BlobId>) {
        for ino in self.handles.open_blobs(blob) {
            self.invalidations.pages(ino);
        }
    }

    async fn lost_push(&self) {
        tracing::warn!("the metadata's push channel was interrupted: dropping what is cached");
        self.attrs.clear();
        self.meta.missed_changes().await;
        self.locks.wake_all();
        if let Some(lazy) = &self.lazy {
            lazy.forget_all();
        }
    }
}
