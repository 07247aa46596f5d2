//! Bringing what the journal holds to the bucket, behind those who wrote it: a few files at a time, again and again until it
//! is there.

use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::content::FileContent;
use super::{Files, Shared};
use crate::chunk::cache::Waiting;
use crate::error::{Error, Kind, Result};
use crate::meta::Attr;
use crate::types::{Ino, Version};

/// What is written and closed again within so long is committed once.
const DELAY: Duration = Duration::from_millis(200);
/// Between two tries of one file; the longer, the oftener it failed.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// A session without a journal stays on the list for so long: the next close would put it there again.
const IDLE: Duration = Duration::from_secs(10);

/// A file's data was committed though nobody waited for it.
#[derive(Clone, Debug)]
pub struct FileCommitted {
    pub before: Version,
    /// The attributes afterwards.
    pub attr: Attr,
    /// What another mount wrote came in with it.
    pub merged: bool,
}

impl FileContent {
    /// Sees to it that the file is uploaded, some time.
    pub(super) fn drain(self: &Arc<Self>) {
        if !self.draining.swap(true, SeqCst) {
            let content = self.clone();
            self.shared.spawn(async move { content.drain_all().await });
        }
    }

    async fn drain_all(self: &Arc<Self>) {
        let shared = &self.shared;
        let mut pause = FIRST_PAUSE;
        loop {
            if !shared.is_closing() {
                let _soon = timeout(DELAY, shared.hurry.notified()).await;
            }
            while self.state().journalled.is_some() && !shared.closed.load(SeqCst) {
                match self.drain_once().await {
                    Ok(()) => {
                        pause = FIRST_PAUSE;
                        shared.note_error(self.ino, None);
                    }
                    Err(e) if e.kind() == Kind::Stale => break,
                    Err(e) => {
                        shared.note_error(self.ino, Some(&e));
                        let _sooner = timeout(pause, shared.hurry.notified()).await;
                        pause = (pause * 2).min(LONGEST_PAUSE);
                    }
                }
            }
            self.draining.store(false, SeqCst);
            // A save that found this task at work relies on it.
            let more = self.state().journalled.is_some() && !shared.closed.load(SeqCst);
            if !more || self.draining.swap(true, SeqCst) {
                return;
            }
        }
    }

    async fn drain_once(self: &Arc<Self>) -> Result<()> {
        let shared = &self.shared;
        let place = shared.drains.acquire().await;
        let _place = place.map_err(|e| Error::with_source(Kind::Internal, self.what(), e))?;
        let (before, merges) = self.lineage();
        let attr = self.flush_now().await?;
        if before != attr.version {
            // Nobody may listen.
            let merged = self.lineage().1 != merges;
            let _ = shared.events.send(FileCommitted { before, attr, merged });
        }
        Ok(())
    }
}

impl Shared {
    /// Notes how the last upload of a file in the journal went. The first that fails is said, and that none does any more.
    pub(super) fn note_error(&self, ino: Ino, error: Option<&Error>) {
        let mut errors = self.errors.lock().unwrap_or_else(PoisonError::into_inner);
        let none = errors.is_empty();
        match error {
            Some(e) => {
                if none {
                    tracing::warn!("data in the journal cannot be uploaded now, tried again: {e}");
                }
                errors.insert(ino, e.to_string());
            }
            None => {
                if errors.remove(&ino).is_some() && errors.is_empty() {
                    tracing::info!("data in the journal is uploaded again");
                }
            }
        }
    }
}

impl Files {
    /// Waits until nothing is left in the journal, `bound` at most. Those that wait after a failure do so as they would.
    pub async fn drain(&self, bound: Duration) {
        let drained = self.0.drained.notified();
        if self.0.cache.journal().waiting().files > 0 {
            let _ = timeout(bound, drained).await;
        }
    }

    /// Waits until nothing is left in the journal, `bound` at most; what is.
    pub(super) async fn drain_within(&self, bound: Duration) -> Waiting {
        let deadline = Instant::now() + bound;
        loop {
            let drained = self.0.drained.notified();
            let waiting = self.0.cache.journal().waiting();
            if waiting.files == 0 || Instant::now() >= deadline {
                return waiting;
            }
            // Those that wait after a failure try now.
            self.0.hurry.notify_waiters();
            let _more = timeout(Duration::from_millis(500).min(deadline - Instant::now()), drained).await;
        }
    }
}

/// Takes sessions without a journal off the list.
pub(super) async fn tidy(shared: std::sync::Weak<Shared>) {
    loop {
        sleep(IDLE).await;
        let Some(shared) = shared.upgrade() else { return };
        if shared.is_closing() {
            return;
        }
        if let Err(error) = shared.unregister().await {
            tracing::debug!(%error, "the journal's session stays registered for now");
        }
        if let Err(error) = shared.forget_ended().await {
            tracing::debug!(%error, "marks of committed entries stay for now");
        }
    }
}
