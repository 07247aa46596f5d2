//! `--writeback`: what was written is safe on the local disk when close and fsync answer; it goes to the bucket, and to the
//! other mounts, behind. Also how what a crash left in the journal comes back.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, PoisonError};

use tokio::sync::MutexGuard;

use super::content::FileContent;
use super::place::NEAR;
use super::state::{Entry, Journalled, State};
use super::{Files, Shared};
use crate::chunk::cache::{ContentKey, Kept, Waiting};
use crate::error::{Error, Kind, Result, ResultExt};
use crate::meta::{Attr, INLINE_MAX, JournalMark};
use crate::types::{FileType, Ino, SessionId, Timestamp};

/// Committed entries whose marks are still to be taken away; of more they stay until nothing waits.
const ENDED: usize = 100_000;

/// What became of data that was to be made safe.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "an answer, used at once")]
pub enum Saved {
    /// It is on this mount's disk; other mounts see it when it is uploaded.
    Here,
    /// It is committed; the attributes afterwards.
    Stored(Attr),
}

impl FileContent {
    /// Makes all that was written before this call safe. With `writeback` that means on the local disk: it outlives a crash of
    /// the process and of the machine, and goes to the bucket behind. Without it, and if the disk does not take it, as
    /// [`FileContent::flush`]; so also when that costs one round trip anyway, because the data fits into the metadata.
    pub async fn save(self: &Arc<Self>) -> Result<Saved> {
        if self.shared.options.writeback && self.is_dirty() && self.is_worth_it() {
            let content = self.clone();
            // A task of its own: the caller may stop waiting, the bookkeeping may not stop half-way.
            let saved = self.shared.spawn(async move { content.save_here().await }).await;
            match saved.map_err(|e| Error::with_source(Kind::Internal, "a save", e)).flatten() {
                Ok(()) => {
                    self.drain();
                    return Ok(Saved::Here);
                }
                Err(e) if self.shared.cache.aside().is_some() => tracing::debug!("{}: {e}", self.what()),
                Err(e) => tracing::warn!("{} is written through: the cache cannot keep it: {e}", self.what()),
            }
        }
        self.flush().await.map(Saved::Stored)
    }

    /// Whether there is something to upload, and the disk may take more of it.
    fn is_worth_it(&self) -> bool {
        let limit = self.shared.options.backlog.unwrap_or(self.shared.cache.limits().max_bytes / 2);
        let state = self.state();
        let uploads = state.size > INLINE_MAX as u64
            && !state.has_far(NEAR)
            && (!state.to_upload().is_empty() || !state.bare_chunks().is_empty());
        drop(state);
        uploads
            && !self.in_memory()
            && self.shared.cache.aside().is_none()
            && self.shared.cache.journal().waiting().bytes < limit
    }

    /// Brings all that was written so far to the local disk, and an entry about it into the journal.
    pub(super) async fn save_here(self: &Arc<Self>) -> Result<()> {
        let wanted = self.state().changes;
        let one = self.saving.lock().await;
        // Somebody's save that began after our write has done it.
        if self.state().journalled.is_some_and(|j| j.changes >= wanted) {
            return Ok(());
        }
        self.put_entry(&one, true).await
    }

    /// Writes the journal's entry anew, as things are now; `data`: and the data that it speaks of to the disk before.
    async fn put_entry(self: &Arc<Self>, _one: &MutexGuard<'_, ()>, data: bool) -> Result<()> {
        let shared = &self.shared;
        let mark =
            JournalMark { session: shared.meta.session(), serial: shared.serials.fetch_add(1, SeqCst) };
        let (entry, journalled) = {
            // No write is half-way: what the entry says is what is there.
            let _landing = self.landing.lock().await;
            let mut state = self.state();
            if state.has_far(NEAR) {
                // Their places in the cache are known to this process only.
                return Err(Error::with_source(
                    Kind::Disk,
                    self.what(),
                    "chunks too far out for the journal",
                ));
            }
            let since = state.journalled.map_or_else(Timestamp::now, |j| j.since);
            let entry = state.entry(mark);
            state.rely_also_on(&entry);
            (entry, Journalled { mark, changes: state.changes, since })
        };
        let written = self.write_entry(entry, journalled.since, data).await;
        let unneeded = {
            let mut state = self.state();
            match &written {
                Ok(entry) => {
                    (state.journalled, state.attempted) = (Some(journalled), None);
                    state.rely_only_on(Some(entry))
                }
                // There was none before, and there is none now.
                Err(_) if state.journalled.is_none() && !shared.cache.journal().has_remains() => {
                    state.rely_only_on(None)
                }
                Err(_) => {
                    state.attempted = Some(journalled);
                    Vec::new()
                }
            }
        };
        self.settle_all(unneeded).await;
        written.map(drop)
    }

    async fn write_entry(self: &Arc<Self>, entry: Entry, since: Timestamp, data: bool) -> Result<Entry> {
        let shared = &self.shared;
        // Until it is there nobody takes the session off the list for want of entries.
        let _counted = shared.count_save();
        shared.register(&entry).await?;
        let content = self.clone();
        let write = move || {
            let bytes = entry.bytes();
            if data && bytes > 0 {
                content.cache()?.sync_data()?;
            }
            // Memory in the place of a disk is no safe place.
            if bytes > 0 && content.in_memory() {
                return Err(Error::with_source(Kind::Disk, content.what(), "it is in memory"));
            }
            let kept = Kept { bytes, since };
            content.shared.cache.journal().put(content.ino, kept, &entry.encode()?)?;
            Ok(entry)
        };
        let task = shared.runtime.spawn_blocking(write);
        task.await.map_err(|e| Error::with_source(Kind::Internal, self.what(), e))?
    }

    /// Chunks that no entry needs any more may go to the index, if they are in the bucket.
    async fn settle_all(self: &Arc<Self>, chunks: Vec<u64>) {
        if chunks.is_empty() || self.opened_cache().is_none() {
            return;
        }
        let settle = move |content: &Arc<FileContent>| chunks.iter().try_for_each(|&idx| content.settle(idx));
        if let Err(error) = self.on_disk(settle).await {
            tracing::debug!(%error, "the cache cannot keep what was written");
        }
        self.state().forget_some();
    }

    /// The file was cut, or its times were set: the entry that it has must say so before anybody relies on it. Called with
    /// `saving` held.
    pub(super) async fn correct_entry(self: &Arc<Self>, one: &MutexGuard<'_, ()>) -> Result<()> {
        if self.state().journalled.is_none() {
            return Ok(());
        }
        self.put_entry(one, true).await
    }

    /// Takes the file's entry out of the journal if all of it is committed; or `anyhow`, if nothing of it ever will be.
    pub(super) async fn end_entry(self: &Arc<Self>, anyhow: bool) {
        if self.state().journalled.is_none() {
            return;
        }
        let _one = self.saving.lock().await;
        let ended = {
            let state = self.state();
            let over = |j: &Journalled| anyhow || j.changes <= state.flushed;
            match state.journalled.filter(over) {
                Some(ended) => ended,
                None => return,
            }
        };
        let content = self.clone();
        let remove = move || content.shared.cache.journal().remove(content.ino);
        match self.shared.runtime.spawn_blocking(remove).await {
            Ok(Ok(())) if !anyhow => self.shared.note_ended(ended.mark, self.ino),
            Ok(Ok(())) => {}
            // The metadata knows that it is committed.
            Ok(Err(error)) => {
                tracing::warn!(%error, "a drained entry stays in the journal until the next mount")
            }
            Err(_) => {}
        }
        let unneeded = {
            let mut state = self.state();
            (state.journalled, state.attempted) = (None, None);
            state.rely_only_on(None)
        };
        self.shared.note_error(self.ino, None);
        self.shared.drained.notify_waiters();
        self.settle_all(unneeded).await;
    }
}

impl Shared {
    /// Says in the metadata, once for each, that the sessions which the entry speaks of have a journal.
    async fn register(self: &Arc<Self>, entry: &Entry) -> Result<()> {
        let mut registered = self.registered.lock().await;
        for session in entry.sessions() {
            if !registered.contains(&session) {
                let mut all = registered.clone();
                all.insert(session);
                // First here, so that the next run knows what to take off the list.
                self.write_sessions(all).await?;
                self.meta.register_journal(session, &self.cache.path().display().to_string()).await?;
                registered.insert(session);
            }
        }
        Ok(())
    }

    async fn write_sessions(self: &Arc<Self>, sessions: HashSet<SessionId>) -> Result<()> {
        let shared = self.clone();
        let write = move || shared.cache.journal().set_sessions(&sessions);
        let task = self.runtime.spawn_blocking(write);
        task.await.map_err(|e| Error::with_source(Kind::Internal, "the journal", e))?
    }

    /// Takes this mount's sessions, and those whose journals it went on with, off the list, if nothing waits any more.
    pub(super) async fn unregister(self: &Arc<Self>) -> Result<()> {
        let mut registered = self.registered.lock().await;
        let journal = self.cache.journal();
        // A save that is counted later waits for the list, and puts its session there again.
        if registered.is_empty()
            || self.saves.load(SeqCst) > 0
            || journal.waiting() != Waiting::default()
            || journal.has_remains()
        {
            return Ok(());
        }
        // Entries that were removed must not come back when nothing says any more that they are committed.
        self.sync_journal().await?;
        for session in registered.clone() {
            self.meta.end_journal(session).await?;
            registered.remove(&session);
        }
        self.ended.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.write_sessions(HashSet::new()).await
    }

    async fn sync_journal(self: &Arc<Self>) -> Result<()> {
        let shared = self.clone();
        let task = self.runtime.spawn_blocking(move || shared.cache.journal().sync());
        task.await.map_err(|e| Error::with_source(Kind::Internal, "the journal", e))?
    }

    fn count_save(&self) -> impl Drop + '_ {
        struct Counted<'a>(&'a AtomicU64);
        impl Drop for Counted<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, SeqCst);
            }
        }
        self.saves.fetch_add(1, SeqCst);
        Counted(&self.saves)
    }

    /// The entry is committed, and removed.
    fn note_ended(&self, mark: JournalMark, ino: Ino) {
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        if ended.len() < ENDED {
            ended.push((mark, ino));
        }
    }

    /// What the metadata says of entries that no power loss can bring back is taken away there.
    pub(super) async fn forget_ended(self: &Arc<Self>) -> Result<()> {
        let ended = std::mem::take(&mut *self.ended.lock().unwrap_or_else(PoisonError::into_inner));
        if ended.is_empty() || self.cache.journal().has_remains() {
            return Ok(());
        }
        self.sync_journal().await?;
        self.meta.forget_marks(&ended).await
    }
}

impl Files {
    /// Takes over what earlier runs left in the journal of the cache directory: before anything is served. From then on reads
    /// see it, and it goes to the bucket behind. Entries of deleted files are dropped; those that cannot be used are kept for
    /// somebody to look at. Returns how many files are to be uploaded.
    pub async fn resume(&self) -> Result<u64> {
        let mut resumed = 0;
        let shared = self.0.clone();
        let sessions = self.blocking(move || shared.cache.journal().sessions()).await?;
        self.0.registered.lock().await.extend(sessions);
        for ino in self.0.cache.journal().found() {
            if self.resume_one(ino).await.context(|| format!("journalled data of inode {ino}"))? {
                resumed += 1;
            }
        }
        if resumed > 0 {
            let Waiting { bytes, .. } = self.0.cache.journal().waiting();
            tracing::info!(
                "{resumed} files ({bytes} bytes) that an earlier run did not upload are uploaded now"
            );
        }
        Ok(resumed)
    }

    async fn resume_one(&self, ino: Ino) -> Result<bool> {
        let shared = self.0.clone();
        let read = move || {
            shared.cache.journal().read(ino).and_then(|(kept, text)| Ok((kept, Entry::decode(&text)?)))
        };
        let (kept, entry) = match self.blocking(read).await {
            Ok(found) => found,
            Err(e) if e.kind() == Kind::Corrupt => return self.set_aside(ino, &e).await,
            Err(e) => return Err(e),
        };
        self.0.registered.lock().await.extend(entry.sessions());
        if entry.chunk_size != self.0.chunk_size {
            let why = Error::new(Kind::Corrupt, format!("chunks of {} bytes", entry.chunk_size));
            return self.set_aside(ino, &why).await;
        }
        let attr = match self.0.meta.getattr(ino).await {
            Err(e) if e.kind() == Kind::Stale => {
                // Of a volume that is not there nothing can be said.
                self.0.meta.getattr(Ino::ROOT).await?;
                tracing::info!(
                    "inode {ino} was deleted meanwhile: {} bytes that were never uploaded are dropped",
                    kept.bytes
                );
                return self.drop_entry(ino, true).await;
            }
            attr => attr?,
        };
        if attr.kind != FileType::File {
            return self.set_aside(ino, &Error::new(Kind::Corrupt, "the inode is no file")).await;
        }
        let committed = self.0.meta.journalled(entry.session, ino).await?;
        if committed >= entry.serial {
            self.drop_entry(ino, false).await?;
            self.0.note_ended(JournalMark { session: entry.session, serial: committed }, ino);
            return Ok(false);
        }
        if attr.version != entry.base && attr.version.session != entry.session {
            tracing::info!(
                "inode {ino} was written by another mount meanwhile: what was written here lies over it"
            );
        }
        match self.restore(&attr, &entry, kept).await {
            Err(e) if matches!(e.kind(), Kind::Corrupt | Kind::NotFound) => self.set_aside(ino, &e).await,
            restored => restored.map(|()| true),
        }
    }

    async fn restore(&self, attr: &Attr, entry: &Entry, kept: Kept) -> Result<()> {
        let mark = JournalMark { session: entry.session, serial: entry.serial };
        let state = State::restored(attr.clone(), entry, Journalled { mark, changes: 1, since: kept.since });
        let content = FileContent::with_state(self.0.clone(), state, attr.ino);
        let (opened, wanted) = (content.clone(), entry.clone());
        self.blocking(move || {
            if wanted.bytes() > 0 {
                let cache = opened.cache()?;
                let there = cache.data().metadata().context(|| opened.what())?.len();
                if there < wanted.dirty_end() {
                    let why = format!("{} bytes of {} are in the cache", there, wanted.dirty_end());
                    return Err(Error::with_source(Kind::Corrupt, opened.what(), why));
                }
                // Records that a power loss brought back are of what was there before.
                wanted.dirty_chunks().try_for_each(|idx| cache.clear(idx, idx + 1))?;
            }
            opened.shared.cache.journal().taken_over(opened.ino);
            Ok(())
        })
        .await?;
        let mut open = self.0.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.insert(attr.ino, Arc::downgrade(&content));
        drop(open);
        self.0.pin(&content);
        content.claim_again();
        content.drain();
        Ok(())
    }

    async fn drop_entry(&self, ino: Ino, data: bool) -> Result<bool> {
        let shared = self.0.clone();
        self.blocking(move || {
            shared.cache.journal().remove(ino)?;
            if data { shared.cache.remove(&ContentKey::File(ino)) } else { Ok(()) }
        })
        .await?;
        Ok(false)
    }

    /// Nothing is deleted that cannot be understood.
    async fn set_aside(&self, ino: Ino, why: &Error) -> Result<bool> {
        let shared = self.0.clone();
        let path = self.blocking(move || shared.cache.journal().set_aside(ino)).await?;
        tracing::error!(
            "data of inode {ino} that was never uploaded cannot be used, and is kept with {}: {why}",
            path.display()
        );
        Ok(false)
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let task = self.0.runtime.spawn_blocking(work);
        task.await.map_err(|e| Error::with_source(Kind::Internal, "the journal", e))?
    }

    /// What waits in the journal to be uploaded, and the last reason why some of it could not be.
    #[must_use]
    pub fn waiting(&self) -> (Waiting, Option<String>) {
        let waiting = self.0.cache.journal().waiting();
        let errors = self.0.errors.lock().unwrap_or_else(PoisonError::into_inner);
        let error = errors.iter().min_by_key(|(ino, _)| **ino).map(|(_, error)| error.clone());
        (waiting, error)
    }
}
