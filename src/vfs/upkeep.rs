//! What a mount does besides answering: it keeps deleted files alive while they are open here, and lets go of those that
//! nobody holds.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::watch;

use super::{Vfs, adopt, atime, push};
use crate::error::Result;
use crate::meta::Meta;

/// How often held files are renewed: well below the time after which others drop them, which is two TTLs.
fn every(meta: &Meta) -> Duration {
    meta.ttl() * 2 / 3
}

impl Vfs {
    pub(super) fn start_upkeep(self: &Arc<Self>) {
        tokio::spawn(push::follow_changes(Arc::downgrade(self), self.meta.clone()));
        tokio::spawn(push::follow_commits(Arc::downgrade(self), self.files.commits()));
        tokio::spawn(push::follow_blobs(Arc::downgrade(self), self.chunks.events()));
        tokio::spawn(push::watch_silence(Arc::downgrade(self)));
        let every = every(&self.meta);
        tokio::spawn(upkeep(Arc::downgrade(self), every, self.meta.renewals()));
        if !self.opts.read_only {
            tokio::spawn(adopt::adopt_all(Arc::downgrade(self), self.adoption.clone()));
            tokio::spawn(tidy(Arc::downgrade(self), every));
        }
        if self.notes_accesses() {
            tokio::spawn(record_accesses(Arc::downgrade(self), every));
        }
    }

    async fn upkeep_once(&self) -> Result<()> {
        self.meta.hold_orphans(&self.handles.open_inodes()).await
    }

    /// Lets go of what nobody holds any more. One mount of all does it for all, each time round: the scan costs the same
    /// whoever does it.
    async fn tidy_once(&self) -> Result<()> {
        if !self.meta.may_reap() || !self.meta.elect("orphans", every(&self.meta) * 3 / 4).await? {
            return Ok(());
        }
        let expired = self.meta.expire_bin(self.meta.now()).await?;
        if expired > 0 {
            tracing::debug!("{expired} deleted things were kept for their time");
        }
        // Their objects lie in the trash now; whoever empties that deletes them.
        let reaped = self.meta.reap_orphans(self.meta.now()).await?;
        if !reaped.is_empty() {
            tracing::debug!("{} deleted files that nobody has open are gone", reaped.len());
        }
        Ok(())
    }
}

async fn upkeep(vfs: Weak<Vfs>, every: Duration, mut renewals: watch::Receiver<u64>) {
    loop {
        let renewed = tokio::select! {
            () = tokio::time::sleep(every) => false,
            changed = renewals.changed() => match changed {
                Ok(()) => true,
                Err(_) => return,
            },
        };
        let Some(vfs) = vfs.upgrade() else { return };
        if renewed {
            // The time before is not accounted for: this mount may have been stopped, or cut off.
            vfs.lost_push().await;
        }
        if let Err(e) = vfs.upkeep_once().await {
            tracing::warn!("upkeep of open and deleted files, tried again in {every:?}: {e}");
        }
        if renewed {
            vfs.retake_locks().await;
        }
    }
}

/// Apart from the upkeep: after somebody deleted a million files this takes its time, and what is open must be held meanwhile.
async fn tidy(vfs: Weak<Vfs>, every: Duration) {
    loop {
        tokio::time::sleep(every).await;
        let Some(vfs) = vfs.upgrade() else { return };
        if let Err(e) = vfs.tidy_once().await {
            tracing::warn!("letting go of deleted files, tried again in {every:?}: {e}");
        }
    }
}

async fn record_accesses(vfs: Weak<Vfs>, patience: Duration) {
    loop {
        tokio::time::sleep(atime::EVERY).await;
        let Some(vfs) = vfs.upgrade() else { return };
        vfs.record_accesses(patience).await;
    }
}
