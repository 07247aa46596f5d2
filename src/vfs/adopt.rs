//! Files that clients downloaded through the mount become blobs. A file that gets the name `<repository>/blobs/<etag>`, or was
//! written under it, is held to that name behind everybody's back, one file at a time; if its bytes are what the name says,
//! its row says so from then on, and who opens it to read reads the blob: complete, verified, and native where the kernel
//! can. The file stays what it is. Whoever opens it to write writes to the file, and with the first commit it is no blob any
//! more. A file that is not what its name says stays as it is, without a word.

use std::collections::{HashSet, VecDeque};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use lru::LruCache;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use super::Vfs;
use super::handles::Handle;
use crate::chunk::cache::ContentKey;
use crate::chunk::{BlobContent, FileContent, Proof, Proved};
use crate::error::{Kind, Result};
use crate::meta::{Attr, Content, Role};
use crate::types::{BlobId, FileType, Ino, Version};

/// Files that bear such names and are remembered, and those whose bytes were looked at.
const NAMED: NonZeroUsize = NonZeroUsize::new(16 * 1024).expect("not zero");
const LOOKED: NonZeroUsize = NonZeroUsize::new(16 * 1024).expect("not zero");
/// Files that wait to be looked at. What finds no room is looked at when its name is looked up.
const WAITING: usize = 16 * 1024;
/// After what time a file is looked at again of which not all was here, or that was in use.
const AGAIN: Duration = Duration::from_secs(60);
/// How often it is seen to that the file system is gone.
const LOOK: Duration = Duration::from_secs(1);
/// How often it is tried to make the cached bytes the blob's while somebody uses the file, and the pause between.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(100);

/// The blob that a name stands for.
pub(super) fn etag(name: &[u8]) -> Option<BlobId> {
    // Most names are told by their length.
    if !matches!(name.len(), 40 | 64) {
        return None;
    }
    std::str::from_utf8(name).ok().and_then(BlobId::from_etag)
}

/// A file that may be what it is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Candidate {
    ino: Ino,
    blob: BlobId,
    /// The directory of the name.
    parent: Ino,
}

/// The files that may be blobs. Bounded.
#[derive(Debug)]
pub(super) struct Adoption {
    named: Mutex<LruCache<Ino, Candidate>>,
    waiting: Mutex<Waiting>,
    /// Versions that were looked at in vain; until when, if not for good.
    looked: Mutex<LruCache<Ino, (Version, Option<Instant>)>>,
    added: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    queue: VecDeque<Candidate>,
    known: HashSet<Candidate>,
}

impl Default for Adoption {
    fn default() -> Self {
        Adoption {
            named: Mutex::new(LruCache::new(NAMED)),
            waiting: Mutex::default(),
            looked: Mutex::new(LruCache::new(LOOKED)),
            added: Notify::new(),
        }
    }
}

impl Adoption {
    /// A file bears a name. `true` if the name is one of a blob.
    pub fn named(&self, parent: Ino, name: &[u8], attr: &Attr) -> bool {
        let Some(blob) = etag(name).filter(|_| attr.kind == FileType::File) else { return false };
        lock(&self.named).put(attr.ino, Candidate { ino: attr.ino, blob, parent });
        true
    }

    /// Has the file looked at, if it bears such a name.
    fn add(&self, ino: Ino) {
        let Some(candidate) = lock(&self.named).peek(&ino).copied() else { return };
        {
            let mut waiting = lock(&self.waiting);
            if waiting.queue.len() >= WAITING || !waiting.known.insert(candidate) {
                return;
            }
            waiting.queue.push_back(candidate);
        }
        self.added.notify_one();
    }

    /// Whether these bytes were looked at in vain.
    fn has_looked(&self, ino: Ino, version: Version) -> bool {
        let looked = lock(&self.looked);
        let known = looked.peek(&ino).filter(|(of, _)| *of == version);
        known.is_some_and(|(_, until)| until.is_none_or(|until| Instant::now() < until))
    }

    fn note_looked(&self, ino: Ino, version: Version, until: Option<Instant>) {
        lock(&self.looked).put(ino, (version, until));
    }

    /// The next one. From now on it may come to wait again.
    fn next(&self) -> Option<Candidate> {
        let mut waiting = lock(&self.waiting);
        let next = waiting.queue.pop_front()?;
        waiting.known.remove(&next);
        Some(next)
    }
}

/// Looks at one file after the other until the file system is dropped.
pub(super) async fn adopt_all(vfs: Weak<Vfs>, adoption: Arc<Adoption>) {
    loop {
        let added = adoption.added.notified();
        let Some(next) = adoption.next() else {
            let _added_or_late = timeout(LOOK, added).await;
            if vfs.strong_count() == 0 {
                return;
            }
            continue;
        };
        let Some(vfs) = vfs.upgrade() else { return };
        if let Err(e) = vfs.adopt(next).await {
            tracing::debug!(ino = %next.ino, blob = %next.blob, "not looked at: {e}");
        }
    }
}

impl Vfs {
    /// A file got this name.
    pub(super) fn bears_name(&self, parent: Ino, name: &[u8], attr: &Attr) {
        if self.adoption.named(parent, name, attr) {
            self.adoption.add(attr.ino);
        }
    }

    /// A file was found by this name. If the local disk has some of it, and nobody has held it to the name, that is done.
    pub(super) fn found_by_name(&self, parent: Ino, name: &[u8], attr: &Attr) {
        if attr.content == Content::Extents
            && self.adoption.named(parent, name, attr)
            && attr.proven.is_none()
            && !self.adoption.has_looked(attr.ino, attr.version)
            && self.chunks.cache().knows(&ContentKey::File(attr.ino))
        {
            self.adoption.add(attr.ino);
        }
    }

    /// The file was written to by somebody who is done with it.
    pub(super) fn maybe_a_blob(&self, ino: Ino) {
        self.adoption.add(ino);
    }

    /// Whether a directory may be that of a repository's blobs: the Hub's, or one that a client made in its place.
    pub(super) async fn may_hold_blobs(&self, dir: Ino) -> Result<bool> {
        let Some(facts) = self.facts(dir).await? else { return Ok(false) };
        if matches!(facts.role, Some(Role::Blobs(_))) {
            return Ok(true);
        }
        let Some(above) = self.facts(facts.parent).await? else { return Ok(false) };
        Ok(above.parent == Ino::ROOT && facts.parent != Ino::ROOT)
    }

    /// Holds a file to its name.
    async fn adopt(self: &Arc<Self>, Candidate { ino, blob, parent }: Candidate) -> Result<()> {
        let in_use = |file: Arc<FileContent>| file.is_dirty();
        if self.handles.is_open_to_write(ino) || self.files.in_use(ino).is_some_and(in_use) {
            // Whoever closes it, or commits it, comes again.
            return Ok(());
        }
        let attr = match self.meta.getattr(ino).await {
            Err(e) if e.kind() == Kind::Stale => return Ok(()),
            read => read?,
        };
        let fits = attr.kind == FileType::File
            && attr.content == Content::Extents
            && attr.layout.under.is_none()
            && attr.proven != Some(blob)
            && attr.nlink > 0
            && attr.size > 0;
        if !fits || self.adoption.has_looked(ino, attr.version) || !self.may_hold_blobs(parent).await? {
            return Ok(());
        }
        let began = Instant::now();
        let content = self.files.open(&attr)?;
        let proved = self.chunks.prove(&content, blob).await?;
        drop(content);
        let proof = match proved {
            Proved::Yes(proof) => proof,
            Proved::No => {
                self.adoption.note_looked(ino, attr.version, None);
                return Ok(());
            }
            Proved::NotHere => {
                self.adoption.note_looked(ino, attr.version, Some(Instant::now() + AGAIN));
                return Ok(());
            }
        };
        let turned = self.turn(ino, blob, &proof).await?;
        if !self.meta.prove(ino, proof.version, blob).await? {
            // Written to meanwhile. The blob is one all the same.
            return Ok(());
        }
        self.attrs.forget(ino);
        tracing::debug!(%ino, %blob, size = proof.size, took = ?began.elapsed(), "a downloaded file is a blob");
        let told = match turned {
            true => self.chunks.vouch(blob, proof.size).await,
            // Who opens it from now on is not to be kept from reading natively by those who have it open.
            false => {
                let _backing = self.chunks.back(blob, ino);
                self.chunks.bring(blob, proof.size).await
            }
        };
        if let Err(e) = told {
            tracing::debug!(%ino, %blob, "what follows is left to who reads it: {e}");
        }
        Ok(())
    }

    /// Makes what the local disk has of the file the blob's, if nobody has it open or all who do let go of it soon.
    async fn turn(&self, ino: Ino, blob: BlobId, proof: &Proof) -> Result<bool> {
        for _ in 0..TRIES {
            if self.chunks.turn(ino, blob, proof).await? {
                return Ok(true);
            }
            if self.handles.is_open(ino) {
                break;
            }
            sleep(PAUSE).await;
        }
        Ok(false)
    }

    /// The blob that a file is read as by who opens it now. Not while somebody may write to it here, or has: what he writes is
    /// seen by all who open it later.
    pub(super) fn reads_as(&self, attr: &Attr) -> Option<BlobId> {
        let blob = attr.proven.filter(|_| attr.content == Content::Extents && attr.size > 0)?;
        let is_new = |file: Arc<FileContent>| {
            file.refresh(attr);
            !file.is_at(attr.version)
        };
        let written =
            self.files.in_use(attr.ino).is_some_and(is_new) || self.handles.is_open_to_write(attr.ino);
        (!written).then_some(blob)
    }

    /// All of the blob is here: the file's own bytes are for others to have room.
    pub(super) fn let_go_of(&self, ino: Ino) {
        if !self.chunks.cache().knows(&ContentKey::File(ino)) || self.files.in_use(ino).is_some() {
            return;
        }
        let chunks = self.chunks.clone();
        tokio::spawn(async move {
            if let Err(e) = chunks.let_go_of(ino).await {
                tracing::debug!(%ino, "the cache keeps a file that it has as a blob: {e}");
            }
        });
    }

    /// Whether what the handle reads is the blob for certain: nobody here has written to the file since.
    pub(super) fn is_surely_a_blob(&self, handle: &Handle) -> bool {
        let Some(backed) = &handle.backed else { return true };
        match self.files.in_use(handle.ino) {
            Some(file) => file.is_at(backed.version),
            None => self.attrs.told(handle.ino) == Some(backed.version),
        }
    }

    /// The file, if it is not the blob any more as which the handle was opened: then it is read like any other.
    pub(super) async fn written_since(&self, handle: &Handle) -> Result<Option<Arc<FileContent>>> {
        let Some(backed) = handle.backed.as_ref().filter(|_| !self.is_surely_a_blob(handle)) else {
            return Ok(None);
        };
        if let Some(file) = self.files.in_use(handle.ino) {
            return Ok(Some(file));
        }
        let attr = match self.meta.recent(handle.ino, self.opts.attr_ttl) {
            Some((attr, _)) => attr,
            None => self.meta.getattr(handle.ino).await?,
        };
        match attr.version == backed.version {
            true => Ok(None),
            false => self.files.open(&attr).map(Some),
        }
    }

    /// Reads a blob. One that is a file's, and cannot be had as a blob, is read as the file: that has the bytes, or others if another
    /// mount wrote to it since.
    pub(super) async fn read_blob(
        &self,
        handle: &Handle,
        blob: &Arc<BlobContent>,
        offset: u64,
        size: u32,
    ) -> Result<Bytes> {
        let error = match (blob.read(offset, size).await, &handle.backed) {
            (Err(e), Some(_)) => e,
            (read, _) => return read,
        };
        tracing::debug!(ino = %handle.ino, blob = %blob.id(), "read as the file that it is: {error}");
        let attr = self.meta.getattr(handle.ino).await?;
        self.files.open(&attr)?.read(offset, size).await
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_blobs() {
        assert!(matches!(etag("ab".repeat(32).as_bytes()), Some(BlobId::Sha256(_))));
        assert!(matches!(etag("0f".repeat(20).as_bytes()), Some(BlobId::Git(_))));
        for no in [
            "",
            "config.json",
            &"AB".repeat(32),
            &"ab".repeat(31),
            &format!("{}.incomplete", "ab".repeat(32)),
        ] {
            assert_eq!(etag(no.as_bytes()), None, "{no}");
        }
    }
}
