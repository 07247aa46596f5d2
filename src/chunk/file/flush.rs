//! Flush: the rest to the bucket, then one transaction that says what the file consists of.

use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use tokio::time::{Instant, sleep_until, timeout};

use super::content::FileContent;
use super::state::{Base, Plan, Step};
use crate::error::{Error, Kind, Result, ResultExt};
use crate::meta::{Attr, Committed, DataChange, INLINE_MAX};
use crate::types::Ino;

/// Chunk rows in one transaction. In tests so few that small files take several.
const ROWS_PER_COMMIT: usize = if cfg!(test) { 3 } else { 1000 };
/// Chunks whose upload is waited for at once.
const CHUNKS_AT_ONCE: usize = 16;
/// Between two tries of an upload.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How often a flush begins again because others commit to the same file.
const CONFLICTS: u32 = 32;

impl FileContent {
    /// Brings all that was written before this call to the bucket and commits it; the attributes afterwards. Nothing new:
    /// no I/O. Flushes that overlap share the work. A bucket that does not answer is tried again within the `io_timeout`. On an
    /// error everything stays as it is, and the next flush tries again.
    ///
    /// [`Kind::Stale`]: the inode is gone, and nothing will ever be committed.
    pub async fn flush(self: &Arc<Self>) -> Result<Attr> {
        let limit = self.shared.options.io_timeout;
        let flush = self.flush_until(Instant::now() + limit);
        // Who waits for somebody else's flush waits no longer either; one try more is allowed for.
        match timeout(limit + self.shared.bucket.patience().progress * 2, flush).await {
            Ok(flushed) => flushed,
            Err(_) => Err(Error::new(Kind::TimedOut, format!("{} after {} s", self.what(), limit.as_secs()))),
        }
    }

    /// The same with one try, for who comes back to it.
    pub(super) async fn flush_now(self: &Arc<Self>) -> Result<Attr> {
        self.flush_until(Instant::now()).await
    }

    /// The same, trying again until then.
    pub(super) async fn flush_until(self: &Arc<Self>, deadline: Instant) -> Result<Attr> {
        if !self.is_dirty() {
            return Ok(self.attr());
        }
        let wanted = self.state().changes;
        let content = self.clone();
        // A task of its own: the caller may stop waiting, the bookkeeping may not stop half-way.
        let task = self.shared.spawn(async move { content.flush_upto(wanted, deadline).await });
        task.await
            .map_err(|e| Error::with_source(Kind::Internal, "a flush", e))
            .flatten()
            .context(|| self.what())
    }

    async fn flush_upto(self: &Arc<Self>, wanted: u64, deadline: Instant) -> Result<Attr> {
        let _one = self.flushing.lock().await;
        // Somebody's flush that began after our write has done it.
        if self.state().flushed < wanted
            && let Err(e) = self.store_and_commit(deadline).await
        {
            if e.kind() == Kind::Stale {
                let journalled = self.state().journalled;
                if let Some(journalled) = journalled {
                    // Of a volume that is not there nothing can be said.
                    self.shared.meta.getattr(Ino::ROOT).await.map_err(|e| e.with_kind(Kind::Unavailable))?;
                    let ino = self.ino;
                    tracing::info!(
                        "inode {ino} was deleted: what was written at {:?} and not uploaded is dropped",
                        journalled.since
                    );
                }
                self.abandon().await;
            }
            return Err(e);
        }
        self.end_entry(false).await;
        self.clean_up().await;
        let lost = std::mem::take(&mut self.state().lost);
        match lost {
            false => Ok(self.attr()),
            true => Err(Error::new(Kind::Disk, "what was not uploaded is lost with the cache's disk")),
        }
    }

    async fn store_and_commit(self: &Arc<Self>, deadline: Instant) -> Result<()> {
        let (upto, size) = {
            let state = self.state();
            (state.changes, state.size)
        };
        let mut conflicts = 0;
        let mut left_disk = false;
        loop {
            self.learn_row_ranges().await?;
            let inline =
                (1..=INLINE_MAX as u64).contains(&self.size()) && !self.state().must_cut(ROWS_PER_COMMIT);
            if !inline {
                self.store_until(deadline).await?;
            }
            let committing = self.committing.lock().await;
            let step = if inline { self.commit_inline().await } else { self.commit_rows(upto, size).await };
            drop(committing);
            let step = match step {
                Err(e) if !left_disk && self.leave_disk(&e).await => {
                    left_disk = true;
                    continue;
                }
                step => step?,
            };
            match step {
                Some(Step::Last) => return Ok(()),
                Some(_) => {}
                None => {
                    conflicts += 1;
                    if conflicts > CONFLICTS {
                        return Err(Error::with_source(
                            Kind::Unavailable,
                            self.what(),
                            "other mounts commit to it all the time",
                        ));
                    }
                    let pause = rand::random_range(0..=(1u64 << conflicts.min(7)));
                    tokio::time::sleep(Duration::from_millis(pause)).await;
                }
            }
        }
    }

    /// Finds out which chunks have rows, if the commit must know and they are too many to try each.
    pub(super) async fn learn_row_ranges(&self) -> Result<()> {
        let (version, chunks) = {
            let state = self.state();
            if !state.needs_row_ranges() {
                return Ok(());
            }
            (state.attr.version, state.attr.chunks)
        };
        let ranges = self.shared.meta.row_ranges(self.ino, chunks, true).await?;
        let mut state = self.state();
        if state.attr.version == version {
            state.row_ranges = Some(Arc::new(ranges));
        }
        Ok(())
    }

    /// Uploads all that is new, again and again until `deadline` if the bucket does not answer. Between two tries no place is
    /// taken that others could use.
    async fn store_until(self: &Arc<Self>, deadline: Instant) -> Result<()> {
        let mut pause = FIRST_PAUSE;
        loop {
            let error = match self.store().await {
                Ok(()) => return Ok(()),
                Err(e) => e,
            };
            if self.leave_disk(&error).await && Instant::now() < deadline {
                continue;
            }
            let wake = Instant::now() + pause.mul_f64(rand::random_range(0.5..1.0));
            if !error.kind().is_transient() || wake > deadline || self.shared.is_closing() {
                return Err(error);
            }
            tracing::debug!(%error, "an upload is tried again");
            sleep_until(wake).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Uploads all that is new, and reads the lists that the commit needs.
    async fn store(self: &Arc<Self>) -> Result<()> {
        loop {
            let rows = self.state().rows_to_plan();
            for idx in rows {
                self.learn_rows(idx..idx + 1).await?;
            }
            let chunks = {
                let state = self.state();
                let mut chunks = state.to_upload();
                // What is still a blob or in the row becomes objects with the first change.
                chunks.extend(state.bare_chunks());
                chunks.sort_unstable();
                chunks.dedup();
                chunks.retain(|&idx| state.is_unstored(idx));
                chunks
            };
            let upload = async |idx: &u64| self.upload(*idx).await;
            stream::iter(&chunks).map(upload).buffer_unordered(CHUNKS_AT_ONCE).try_collect::<()>().await?;
            // Writers may go on: what was new at the beginning is what counts, and one round has it.
            let state = self.state();
            if state.rows_to_plan().is_empty() && !chunks.iter().any(|&idx| state.must_store(idx)) {
                return Ok(());
            }
        }
    }

    /// One commit of chunk rows. `None`: somebody else committed; what they did is the base now.
    async fn commit_rows(self: &Arc<Self>, upto: u64, size: u64) -> Result<Option<Step>> {
        let (plan, base, mark) = {
            let mut state = self.state();
            if !state.rows_to_plan().is_empty() || state.needs_row_ranges() {
                // A chunk landed since, or a hole was made: the lists come first.
                drop(state);
                return Ok(Some(Step::Some));
            }
            let plan = state.plan(ROWS_PER_COMMIT, size);
            state.begin_commit(&plan);
            let mark = if plan.kind == Step::Last { state.mark(upto) } else { None };
            (plan, state.attr.version, mark)
        };
        let change = DataChange {
            size: plan.size,
            inline: None,
            chunks: plan.chunks.clone(),
            mtime: self.commit_mtime(),
            under: plan.under,
            holes_below: plan.holes_below,
            end: Some(plan.size.div_ceil(u64::from(self.shared.chunk_size))),
            mark,
            ..DataChange::default()
        };
        self.commit(base, change, plan, upto).await
    }

    /// The commit of a file that fits into its row.
    async fn commit_inline(self: &Arc<Self>) -> Result<Option<Step>> {
        // Brings here what is elsewhere, so that the lock is held for short.
        self.read(0, INLINE_MAX as u32).await?;
        let landing = self.landing.lock().await;
        let in_memory = self.in_memory();
        let Some((len, parts)) = self.parts(0, INLINE_MAX) else { return Ok(Some(Step::Some)) };
        let gathered = self.gather(len, parts).await?;
        let Some(bytes) = gathered.filter(|_| self.in_memory() == in_memory) else {
            return Ok(Some(Step::Some));
        };
        let (plan, base, upto, mark) = {
            let mut state = self.state();
            if bytes.is_empty() || state.size != bytes.len() as u64 {
                // It grew or was cut meanwhile.
                return Ok(Some(Step::Some));
            }
            let plan = state.plan_inline();
            state.begin_commit(&plan);
            (plan, state.attr.version, state.changes, state.mark(state.changes))
        };
        drop(landing);
        let change = DataChange {
            size: plan.size,
            inline: Some(bytes),
            mtime: self.commit_mtime(),
            mark,
            ..DataChange::default()
        };
        self.commit(base, change, plan, upto).await
    }

    fn commit_mtime(&self) -> Option<crate::types::Timestamp> {
        self.state().committing.as_ref().and_then(|d| d.mtime)
    }

    async fn commit(
        self: &Arc<Self>,
        base: crate::types::Version,
        mut change: DataChange,
        plan: Plan,
        upto: u64,
    ) -> Result<Option<Step>> {
        let version = self.shared.meta.next_version();
        change.version = Some(version);
        let committed = self.shared.meta.commit_data(self.ino, base, change).await;
        let mut state = self.state();
        match committed {
            Ok(Committed::Applied(attr)) => {
                state.end_commit_applied(attr, &plan, upto);
                let settled: Vec<u64> = plan.chunks.iter().map(|(idx, _)| *idx).collect();
                drop(state);
                self.reclaim();
                self.settle_behind(settled);
                Ok(Some(plan.kind))
            }
            Ok(Committed::Conflict(attr)) => {
                let ours = self.shared.meta.is_own(attr.version.session);
                state.rebase(attr, ours);
                Ok(None)
            }
            Err(e) => {
                state.commit_unknown(&plan, version, e.kind().is_transient());
                Err(e)
            }
        }
    }

    /// Hands committed chunks to the cache's index, in the background: nobody waits for it.
    fn settle_behind(self: &Arc<Self>, chunks: Vec<u64>) {
        if self.opened_cache().is_none() || self.state().base != Base::Rows {
            return;
        }
        let content = self.clone();
        self.shared.spawn(async move {
            for idx in chunks {
                if let Err(error) = content.on_disk(move |content| content.settle(idx)).await {
                    tracing::warn!(%error, "the cache cannot keep what was written");
                    return;
                }
            }
        });
    }

    /// After a flush: deletes what nobody refers to, and lets go if nothing is new.
    async fn clean_up(self: &Arc<Self>) {
        // No write is half-way.
        let _landing = self.landing.lock().await;
        let (objects, clean) = {
            let mut state = self.state();
            (state.take_discarded(), !state.is_modified())
        };
        self.delete_objects(objects);
        if clean {
            self.shared.unpin(self.ino);
        }
    }
}
