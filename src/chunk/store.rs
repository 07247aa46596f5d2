//! Putting chunks that came from elsewhere into the bucket, in the background. Losing one is no loss: what is not marked
//! as stored is found again when its blob is next opened, and can be had from the Hub meanwhile. Of several nodes one puts
//! a chunk: whoever brought it into the cluster, and if that did not come about, whoever finds that it is not there.

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout_at};

use super::blob::Blob;
use super::cache::ContentKey;
use super::lock;
use super::shared::Shared;
use crate::blocking::blocking;
use crate::error::Result;
use crate::source::Provider;
use crate::source::bucket::Bucket;
use crate::types::BlobId;

/// Chunks that wait at most; the rest is found again later.
const MAX_WAITING: usize = 64 << 10;
/// Bytes in memory for uploads.
const MEMORY: u64 = 16 << 20;
const MAX_WORKERS: u64 = 4;
const TRIES: u32 = 4;
const PAUSE: Duration = Duration::from_secs(2);
/// While other nodes take chunks from this one, the bucket gets little: they have somebody who waits for them, and there is one
/// link for both. One chunk at a time then, and after each a rest so many times as long as it took, within bounds: a tenth of
/// the time, however fast the link. Without a taker for so long all goes on; and how often that is looked at.
const REST: u32 = 9;
const LONGEST_REST: Duration = Duration::from_secs(30);
const LATELY: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(200);

#[derive(Clone, Copy, Debug)]
struct Upload {
    blob: BlobId,
    size: u64,
    idx: u64,
    hash: [u8; 32],
    tries: u32,
}

/// The chunks that wait to be put into the bucket.
#[derive(Debug, Default)]
pub(super) struct Uploads {
    queue: Mutex<VecDeque<Upload>>,
    /// What waits or is being put: a blob that is opened anew is looked through while its chunks still wait.
    known: Mutex<HashSet<(BlobId, u64)>>,
    added: Notify,
    /// One fewer to do.
    ended: Notify,
    /// Waiting and being put.
    open: AtomicU64,
    pub done: AtomicU64,
    pub failed: AtomicU64,
    /// When another node was given something last.
    gave: Mutex<Option<Instant>>,
    /// The one upload of a time in which others are given something.
    rare: Mutex<Rare>,
}

#[derive(Debug, Default)]
struct Rare {
    under_way: bool,
    /// None begins before then.
    rests: Option<Instant>,
}

/// How an upload may begin. Over when dropped.
#[derive(Debug)]
struct Turn<'a> {
    uploads: &'a Uploads,
    rare: bool,
    began: Instant,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if self.rare {
            *lock(&self.uploads.rare) = Rare::after(self.began, Instant::now());
        }
    }
}

impl Rare {
    /// None is under way, after one from then to now.
    fn after(began: Instant, now: Instant) -> Self {
        Rare { under_way: false, rests: Some(now + ((now - began) * REST).min(LONGEST_REST)) }
    }
}

impl Uploads {
    pub(super) fn waiting(&self) -> u64 {
        self.open.load(Relaxed)
    }

    /// Another node is being given something.
    pub(super) fn give_way(&self) {
        *lock(&self.gave) = Some(Instant::now());
    }

    /// The turn of one upload, if it may begin now.
    fn turn(&self, now: Instant) -> Option<Turn<'_>> {
        let rare = lock(&self.gave).is_some_and(|at| now - at < LATELY);
        if rare {
            let mut state = lock(&self.rare);
            if state.under_way || state.rests.is_some_and(|until| now < until) {
                return None;
            }
            state.under_way = true;
        }
        Some(Turn { uploads: self, rare, began: now })
    }

    /// A chunk came from elsewhere.
    pub(super) fn add(&self, blob: &Blob, idx: u64, hash: [u8; 32]) {
        if !blob.shared.stores() {
            return;
        }
        self.push(Upload { blob: blob.id, size: blob.size, idx, hash, tries: 0 });
    }

    fn push(&self, upload: Upload) {
        {
            let mut queue = lock(&self.queue);
            if queue.len() >= MAX_WAITING || !lock(&self.known).insert((upload.blob, upload.idx)) {
                return;
            }
            queue.push_back(upload);
        }
        self.open.fetch_add(1, Relaxed);
        self.added.notify_one();
    }

    /// Looks in the background for chunks of an opened blob that earlier runs did not put into the bucket.
    pub(super) fn look_for(&self, blob: &Arc<Blob>) {
        if !blob.shared.stores()
            || blob.shared.backings.has(&blob.id)
            || blob.file.next_recorded(0, blob.file.chunks()).is_none()
        {
            return;
        }
        let blob = blob.clone();
        blob.shared.clone().spawn(async move {
            let (file, found) = (blob.file.clone(), blob.clone());
            let looked = blocking(move || {
                let mut from = 0;
                while let Some(idx) = file.next_recorded(from, file.chunks()) {
                    // What files of the volume have is in the bucket, as theirs.
                    if let Some(record) = file.record_of(idx)?
                        && !record.stored
                        && record.from != Provider::File
                    {
                        found.shared.uploads.add(&found, idx, record.hash);
                    }
                    from = idx + 1;
                }
                Ok(())
            });
            if let Err(e) = looked.await {
                tracing::debug!(blob = %blob.id, error = %e, "cannot look for chunks to store");
            }
        });
    }

    /// Waits until all is done or `grace` is over; returns what is left.
    pub(super) async fn drain(&self, grace: Duration) -> u64 {
        let deadline = Instant::now() + grace;
        loop {
            let ended = self.ended.notified();
            let left = self.waiting();
            if left == 0 || timeout_at(deadline, ended).await.is_err() {
                return left;
            }
        }
    }

    async fn next(&self) -> Upload {
        loop {
            let added = self.added.notified();
            if let Some(upload) = lock(&self.queue).pop_front() {
                return upload;
            }
            added.await;
        }
    }
}

impl Shared {
    fn stores(&self) -> bool {
        self.options.store_hub_blobs && self.bucket.is_some()
    }
}

/// Starts the workers, if blobs are to be put into the bucket.
pub(super) fn start(shared: &Arc<Shared>) {
    let Some(bucket) = shared.bucket.clone().filter(|_| shared.stores()) else { return };
    let workers = (MEMORY / u64::from(shared.options.chunk_size)).clamp(1, MAX_WORKERS);
    for _ in 0..workers {
        // A weak handle would not do: the store's end cancels these.
        shared.spawn(work(shared.clone(), bucket.clone()));
    }
}

async fn work(shared: Arc<Shared>, bucket: Bucket) {
    let uploads = &shared.uploads;
    loop {
        let upload = uploads.next().await;
        let turn = loop {
            match uploads.turn(Instant::now()) {
                None if !shared.is_closing() => sleep(LOOK).await,
                turn => break turn,
            }
        };
        let ended = put(&shared, &bucket, &upload).await;
        drop(turn);
        lock(&uploads.known).remove(&(upload.blob, upload.idx));
        match ended {
            Ok(true) => {
                uploads.done.fetch_add(1, Relaxed);
                shared.alone.shared(upload.blob, upload.idx);
            }
            // Gone or changed meanwhile.
            Ok(false) => {}
            Err(e) => {
                uploads.failed.fetch_add(1, Relaxed);
                let again = upload.tries + 1 < TRIES && !shared.is_closing();
                tracing::warn!(blob = %upload.blob, chunk = upload.idx, error = %e, again, "not put into the bucket");
                if again {
                    sleep(PAUSE * (upload.tries + 1)).await;
                    uploads.push(Upload { tries: upload.tries + 1, ..upload });
                }
            }
        }
        uploads.open.fetch_sub(1, Relaxed);
        uploads.ended.notify_waiters();
    }
}

async fn put(shared: &Arc<Shared>, bucket: &Bucket, upload: &Upload) -> Result<bool> {
    let Upload { blob, size, idx, hash, .. } = *upload;
    let (cache, chunk_size) = (shared.cache.clone(), shared.options.chunk_size);
    if let Some(peers) = &shared.peers {
        let rows = shared.blobs.chunks(blob, idx, 1).await?;
        if rows.first().is_some_and(|row| row.stored && row.hash == Some(hash)) {
            let key = ContentKey::Blob(blob);
            let noted = blocking(move || match cache.knows(&key) {
                true => cache.open_content(key, size, chunk_size)?.set_stored(idx, &hash),
                false => Ok(()),
            });
            noted.await?;
            return Ok(false);
        }
        // Another node is about to: that it did is found when the blob is next opened.
        if !peers.may_store(blob, idx).await {
            return Ok(false);
        }
    }
    let read = blocking(move || {
        let key = ContentKey::Blob(blob);
        if !cache.knows(&key) {
            return Ok(None);
        }
        let file = cache.open_content(key, size, chunk_size)?;
        let mut bytes = BytesMut::zeroed(file.chunk_len(idx) as usize);
        let n = file.read_present(idx * u64::from(chunk_size), &mut bytes)?;
        let bytes: Bytes = bytes.freeze();
        let right = n == Some(bytes.len()) && *blake3::hash(&bytes).as_bytes() == hash;
        Ok(right.then_some((file, bytes)))
    });
    let Some((file, bytes)) = read.await? else { return Ok(false) };
    bucket.put_blob_chunk(blob, idx, hash, bytes).await?;
    shared.blobs.mark_stored(blob, idx).await?;
    blocking(move || file.set_stored(idx, &hash)).await?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn while_others_take_the_bucket_gets_a_tenth() {
        let (uploads, mut now) = (Uploads::default(), Instant::now());
        let all: Vec<_> = (0..4).filter_map(|_| uploads.turn(now)).collect();
        assert!(all.len() == 4 && all.iter().all(|turn| !turn.rare), "nobody takes anything");
        drop(all);
        // Each takes as long as it says.
        let upload = |now: &mut Instant, took: Duration| {
            *lock(&uploads.gave) = Some(*now);
            let Some(turn) = uploads.turn(*now) else { return false };
            assert!(turn.rare && uploads.turn(*now).is_none(), "one at a time");
            let began = *now;
            *now += took;
            drop(turn);
            *lock(&uploads.rare) = Rare::after(began, *now);
            true
        };
        let mut begun = 0;
        for _ in 0..200 {
            match upload(&mut now, LOOK) {
                true => begun += 1,
                false => now += LOOK,
            }
        }
        assert!((18..=22).contains(&begun), "{begun} of 200");
        // However slow the link is, there is an end to the rest.
        now += LONGEST_REST;
        assert!(upload(&mut now, Duration::from_secs(60)));
        assert!(!upload(&mut now, LOOK));
        now += LONGEST_REST;
        assert!(upload(&mut now, LOOK));
        assert!(!upload(&mut now, LOOK));
        now += LATELY;
        assert!(uploads.turn(now).is_some_and(|turn| !turn.rare), "nobody takes anything any more");
    }
}
