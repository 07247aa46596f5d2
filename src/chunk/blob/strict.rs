//! `--strict`: the end of a blob is held back from readers until all of it was checked against its name, so that nobody reads
//! a bad one to its end. Who wants the end gets all of it fetched.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{sleep, timeout};

use super::Blob;
use crate::chunk::BlobEvent;
use crate::chunk::cache::Presence;
use crate::chunk::flight::Landing;
use crate::error::{Error, Kind, Result};

/// Chunks fetched at a time.
const AT_ONCE: u64 = 8;
/// How often it is looked whether the check has come to its end, beside being told.
const LOOK: Duration = Duration::from_millis(500);
const PAUSE: Duration = Duration::from_millis(50);

impl Blob {
    /// Whether a read up to `end` has something of the last chunk. A blob of one chunk was checked as it came.
    pub(super) fn reaches_end(&self, end: u64) -> bool {
        let chunks = self.file.chunks();
        chunks > 1 && end > (chunks - 1) * self.chunk_size()
    }

    /// Whether such a read has to wait for the check of the whole.
    pub(super) fn holds_back(&self, end: u64) -> bool {
        self.shared.options.strict
            && self.reaches_end(end)
            && !self.file.is_verified()
            && !self.let_go.load(SeqCst)
    }

    /// Returns when all of it was checked: here; or by another mount, with which all that is here agrees.
    /// [`Kind::Corrupt`] if it is not what its name says: who has read from it must not go on.
    pub(super) async fn whole(self: &Arc<Self>) -> Result<()> {
        let mut events = self.shared.events.subscribe();
        let mut passes = 0;
        loop {
            passes += 1;
            if self.file.is_verified() {
                return Ok(());
            }
            if self.facts().await.is_ok_and(|facts| facts.verified) {
                // The records are final: what comes from now on is held to them, and what is here already is compared.
                self.compare_all().await?;
                self.let_go.store(true, SeqCst);
                return Ok(());
            }
            self.fetch_all().await?;
            self.check_more();
            let ended = async {
                loop {
                    match events.recv().await {
                        Ok(BlobEvent::Verified(id)) if id == self.id => return false,
                        Ok(BlobEvent::Mismatch(id)) if id == self.id => return true,
                        Ok(_) => {}
                        Err(RecvError::Lagged(_)) => return false,
                        Err(RecvError::Closed) => return std::future::pending().await,
                    }
                }
            };
            // What the cache cannot keep until it is checked must not be fetched all the time.
            if timeout(LOOK * passes.min(20), ended).await == Ok(true) {
                return Err(Error::new(Kind::Corrupt, "its bytes were not what its name says"));
            }
        }
    }

    /// Has every chunk come here once, in order, a few at a time.
    async fn fetch_all(self: &Arc<Self>) -> Result<()> {
        let chunks = self.file.chunks();
        let mut first = 0;
        while first < chunks {
            let end = (first + AT_ONCE).min(chunks);
            let missing = (first..end).filter(|idx| self.file.presence(*idx) != Presence::Present);
            let waits = self.join(missing)?;
            let mut landings: FuturesUnordered<_> =
                waits.into_iter().map(|(_, wait)| wait.landing()).collect();
            let mut again = false;
            while let Some(landing) = landings.next().await {
                match landing {
                    Landing::Cached | Landing::Memory(_) => {}
                    Landing::Failed(e) if e.kind().is_transient() => again = true,
                    Landing::Failed(e) => return Err(e.share()),
                }
            }
            match again {
                true => sleep(PAUSE).await,
                false => first = end,
            }
        }
        Ok(())
    }
}
