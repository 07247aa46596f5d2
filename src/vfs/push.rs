//! What other mounts changed: events of the metadata become orders to the kernel to forget, and wake who waits for locks.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::broadcast::{self, error::RecvError};

use super::Vfs;
use super::present::SHORTEST;
use super::types::Invalidation;
use crate::chunk::BlobEvent;
use crate::chunk::file::FileCommitted;
use crate::meta::Meta;
use crate::meta::kv::{Change, Event};
use crate::types::BlobId;

/// How often it is looked whether the push has fallen silent, while anything depends on it.
const LOOK: Duration = Duration::from_millis(100);
/// The longest silence that is taken for a pause, whatever `--entry-ttl` allows.
const LONGEST_SILENCE: Duration = Duration::from_secs(10);

/// Follows the metadata's push channel until the file system is dropped.
pub(super) async fn follow_changes(vfs: Weak<Vfs>, meta: Meta) {
    let mut watch = match meta.watch().await {
        Ok(watch) => watch,
        Err(e) => {
            tracing::warn!("no push channel, names follow within the entry TTL: {e}");
            return;
        }
    };
    drop(meta);
    while let Ok(events) = watch.next_all().await {
        let Some(vfs) = vfs.upgrade() else { return };
        let (mut others, mut unlocked) = (Vec::with_capacity(events.len()), Vec::new());
        for event in events {
            match event {
                Event::Changed { change: Change::Unlocked { ino }, .. } => unlocked.push(ino),
                // The kernel knows what was done through it.
                Event::Changed { by: Some(by), .. } if vfs.meta.is_own(by) => {}
                Event::Changed { change, .. } => others.push(change),
                Event::Lost => {
                    vfs.changed(std::mem::take(&mut others));
                    vfs.lost_push().await;
                }
            }
        }
        vfs.changed(others);
        for ino in unlocked {
            vfs.locks.wake(ino);
        }
    }
}

/// Takes back what the kernel was granted for long when the push is not known to arrive any more: the channel need not
/// break for that.
pub(super) async fn watch_silence(vfs: Weak<Vfs>) {
    loop {
        let some = {
            let Some(vfs) = vfs.upgrade() else { return };
            vfs.long.is_empty().then(|| Arc::clone(&vfs.long.some))
        };
        if let Some(some) = some {
            // Late, to see that the file system is gone.
            let _some_or_late = tokio::time::timeout(Duration::from_secs(1), some.notified()).await;
            continue;
        }
        {
            let Some(vfs) = vfs.upgrade() else { return };
            let overflowed = vfs.invalidations.overflowed();
            if overflowed || !vfs.push_arrives() {
                tracing::debug!(overflowed, "the push is silent: names are granted for --entry-ttl only");
                vfs.take_back().await;
            }
        }
        tokio::time::sleep(LOOK).await;
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

/// Takes note of commits of this mount that nobody waited for: what was kept on the local disk has reached the others.
pub(super) async fn follow_commits(vfs: Weak<Vfs>, mut commits: broadcast::Receiver<FileCommitted>) {
    loop {
        let commit = commits.recv().await;
        let Some(vfs) = vfs.upgrade() else { return };
        match commit {
            Ok(FileCommitted { before, attr, merged }) => {
                vfs.committed(before, &attr, merged);
                vfs.maybe_a_blob(attr.ino);
            }
            // Which is not known: the next open of each finds another version, and drops what the kernel has.
            Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return,
        }
    }
}

impl Vfs {
    /// Others changed something. What this costs, each change in the cluster costs every mount: no lock is taken for each.
    fn changed(&self, changes: Vec<Change>) {
        if changes.is_empty() {
            return;
        }
        // Before the kernel asks again.
        self.meta.heard(&changes);
        let inos = changes.iter().filter_map(|change| match change {
            Change::Inode { ino } => Some(*ino),
            _ => None,
        });
        self.attrs.forget_all(inos.clone());
        inos.for_each(|ino| self.atimes.heard(ino));
        self.long.forget(&changes);
        self.invalidations.send_all(changes.into_iter().filter_map(|change| match change {
            Change::Entry { parent, name } => Some(Invalidation::Entry { parent, name }),
            Change::Inode { ino } => Some(Invalidation::Attrs { ino }),
            Change::Unlocked { .. } => None,
        }));
    }

    fn drop_pages(&self, blob: Option<BlobId>) {
        for ino in self.handles.open_blobs(blob) {
            self.invalidations.pages(ino);
        }
    }

    /// Whether all that others changed until just now is known here.
    pub(super) fn push_arrives(&self) -> bool {
        self.push_silence().is_some()
    }

    /// How long ago "just now" was. `None`: too long, or that is not known.
    pub(super) fn push_silence(&self) -> Option<Duration> {
        let longest = self.opts.entry_ttl.clamp(SHORTEST, LONGEST_SILENCE);
        let silence = self.meta.kv().heard_until()?.elapsed();
        (silence < longest).then_some(silence)
    }

    /// Events were missed.
    pub(super) async fn lost_push(self: &Arc<Self>) {
        tracing::warn!("the metadata's push channel was interrupted: dropping what is cached");
        self.attrs.clear();
        self.meta.missed_changes().await;
        self.locks.wake_all();
        if let Some(lazy) = &self.lazy {
            lazy.forget_all();
        }
        let vfs = Arc::clone(self);
        tokio::spawn(async move { vfs.take_back().await });
    }

    /// Makes the kernel forget all that it was granted for long.
    async fn take_back(&self) {
        let (names, attrs) = self.long.take();
        for (parent, name) in names {
            self.invalidations.send_surely(Invalidation::Entry { parent, name }).await;
        }
        for ino in attrs {
            self.invalidations.send_surely(Invalidation::Attrs { ino }).await;
        }
    }
}
