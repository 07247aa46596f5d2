//! The whole blob against its name, in the background: chunks are digested in order as they come, so that the last one
//! costs no more than the others. Of several nodes that read a blob one checks it.

use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::{StreamExt, stream};
use tokio::time::sleep;

use super::blob::Blob;
use super::cache::Presence;
use super::checkers::Haste;
use super::digest::Digest;
use super::tally::Tally;
use super::{BlobEvent, lock};
use crate::blocking::blocking;
use crate::error::Result;

/// Records taken back at a time.
const FORGETTING: usize = 16;

/// How often it is looked whether another node has come to an end.
const FIRST_LOOK: Duration = Duration::from_millis(200);
const LONGEST_LOOK: Duration = Duration::from_secs(3);

/// How far the check has come.
#[derive(Debug, Default)]
pub(super) struct Check {
    next: u64,
    digest: Option<Digest>,
    /// A task is at work and will see that more chunks are there.
    busy: bool,
    /// Chunks came since the task last looked.
    more: bool,
}

impl Blob {
    /// Goes on with the check if the next chunk in order is there.
    pub(super) fn check_more(self: &Arc<Self>) {
        if self.file.is_verified() || self.file.chunks() == 0 {
            return;
        }
        {
            let mut check = lock(&self.check);
            if check.busy {
                check.more = true;
                return;
            }
            if self.file.presence(check.next) != Presence::Present {
                return;
            }
            check.busy = true;
        }
        self.shared.spawn(work(self.clone()));
    }

    /// `before` and chunk `idx`; `None` if the chunk is not present.
    async fn digest(&self, idx: u64, before: Digest) -> Result<Option<Digest>> {
        loop {
            // Asked here: whoever needs the lock for that would have to wait for a thread that gives way to everybody.
            let changes = self.file.changes();
            if self.file.presence(idx) != Presence::Present {
                return Ok(None);
            }
            let (file, mut digest) = (self.file.clone(), before.clone());
            let scan = move || {
                let whole = file.scan(idx, file.chunk_len(idx), |piece| digest.update(piece))?;
                Ok(whole.then_some(digest))
            };
            let digest = self.shared.checkers.run(self.haste(), scan).await?;
            if digest.is_none() || self.file.changes() == changes {
                return Ok(digest);
            }
        }
    }

    fn haste(&self) -> Haste {
        match self.shared.options.strict {
            // Readers wait for the last chunk until it is done.
            true => Haste::Awaited,
            false if self.file.is_complete() => Haste::Soon,
            false => Haste::Idle,
        }
    }

    /// The blob is one chunk, which was checked as it came in.
    pub(super) fn verified_at_once(self: &Arc<Self>) {
        let blob = self.clone();
        self.shared.spawn(async move {
            if let Err(e) = blob.verified().await {
                tracing::warn!(blob = %blob.id, error = %e, "cannot note that it was verified");
            }
        });
    }

    /// Takes over that another node found the blob right, if one did and all that is here is what it checked.
    async fn adopt(&self) -> Result<bool> {
        if !self.fresh_facts().await?.verified {
            return Ok(false);
        }
        // The records are final now: what differs from them goes, and has to come again.
        self.compare_all().await?;
        if !self.file.is_complete() {
            return Ok(false);
        }
        let file = self.file.clone();
        blocking(move || file.set_verified(true)).await?;
        let _ = self.shared.events.send(BlobEvent::Verified(self.id));
        Ok(true)
    }

    async fn verified(&self) -> Result<()> {
        let file = self.file.clone();
        blocking(move || file.set_verified(true)).await?;
        let told = if self.fresh_facts().await?.verified {
            Ok(())
        } else {
            self.shared.blobs.mark_verified(self.id).await
        };
        // Nobody may listen.
        let _ = self.shared.events.send(BlobEvent::Verified(self.id));
        told
    }

    /// The bytes are not what the name says: none of them is believed any more.
    async fn mismatch(self: &Arc<Self>) -> Result<()> {
        let shared = &self.shared;
        tracing::error!(blob = %self.id, "the bytes are not what the name says; dropped, to be fetched again");
        shared.is_wrong(self.id);
        {
            let mut state = lock(&self.state);
            state.generation += 1;
            state.only_origin = true;
            state.claims.clear();
            state.tally = Tally::default();
        }
        self.let_go.store(false, SeqCst);
        shared.overflow.forget(self.id);
        let file = self.file.clone();
        let hashes = blocking(move || {
            let mut hashes = Vec::new();
            for idx in 0..file.chunks() {
                hashes.extend(file.record_of(idx)?.map(|r| (idx, r.hash)));
            }
            file.clear_all()?;
            Ok(hashes)
        })
        .await?;
        // If others found the blob right with these hashes, the fault is this disk's.
        if !self.fresh_facts().await?.verified {
            let gave = std::mem::take(&mut lock(&self.state).gave);
            gave.into_iter().filter_map(|n| shared.sources.get(n)).for_each(|source| source.wrong(self.id));
            let forget = |(idx, hash)| shared.blobs.forget_hash(self.id, idx, hash);
            let forgotten = stream::iter(hashes).map(forget).buffer_unordered(FORGETTING);
            forgotten.fold(Ok(()), async |all: Result<()>, one| all.and(one)).await?;
        }
        let _ = shared.events.send(BlobEvent::Mismatch(self.id));
        Ok(())
    }
}

/// Another node checks the blob: what it finds out counts here too, for chunks that are what is recorded. If it gives up,
/// this node goes on.
async fn follow(blob: Weak<Blob>) {
    let mut pause = FIRST_LOOK;
    loop {
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_LOOK);
        let Some(blob) = blob.upgrade() else { return };
        if blob.shared.is_closing() || blob.file.is_verified() {
            break lock(&blob.check).busy = false;
        }
        // What is asked of the metadata is asked for a blob that is wholly here.
        if !blob.file.is_complete() {
            continue;
        }
        match blob.adopt().await {
            Ok(true) => break *lock(&blob.check) = Check::default(),
            Ok(false) => {}
            Err(e) => {
                tracing::debug!(blob = %blob.id, error = %e, "cannot find out whether it was verified");
                continue;
            }
        }
        if let Some(peers) = &blob.shared.peers
            && peers.may_verify(blob.id).await
        {
            lock(&blob.check).busy = false;
            break blob.check_more();
        }
    }
}

async fn work(blob: Arc<Blob>) {
    if let Some(peers) = &blob.shared.peers
        && !peers.may_verify(blob.id).await
    {
        let (weak, shared) = (Arc::downgrade(&blob), blob.shared.clone());
        drop(blob);
        return shared.spawn(follow(weak));
    }
    let Ok(_place) = blob.shared.verifying.clone().acquire_owned().await else { return };
    loop {
        let (next, digest) = {
            let mut check = lock(&blob.check);
            check.more = false;
            (check.next, check.digest.clone().unwrap_or_else(|| Digest::new(&blob.id, blob.size)))
        };
        let digest = blob.digest(next, digest).await.unwrap_or_else(|e| {
            tracing::warn!(blob = %blob.id, error = %e, "cannot read the cache to verify it");
            None
        });
        let Some(digest) = digest else {
            let mut check = lock(&blob.check);
            if !check.more {
                check.busy = false;
                return;
            }
            continue;
        };
        if next + 1 < blob.file.chunks() {
            let mut check = lock(&blob.check);
            check.next = next + 1;
            check.digest = Some(digest);
            continue;
        }
        let ended = match digest.finish() == blob.id {
            true => blob.verified().await,
            false => blob.mismatch().await,
        };
        if let Err(e) = ended {
            tracing::warn!(blob = %blob.id, error = %e, "cannot note the outcome of the check");
        }
        *lock(&blob.check) = Check::default();
        // After a mismatch readers may have fetched all of it again meanwhile.
        blob.check_more();
        return;
    }
}
