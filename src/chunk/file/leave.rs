//! When the cache's disk fails, or others fill it: a file goes on in memory, and from there to the bucket.

use std::sync::Arc;

use super::content::FileContent;
use crate::error::{Error, Kind};

impl FileContent {
    /// Whether `error` is the end of the cache's disk, and the file has left it, so that the same may be tried again. What
    /// cannot be read any more and is nowhere else is lost, and the next flush says so.
    pub(super) async fn leave_disk(self: &Arc<Self>, error: &Error) -> bool {
        if error.kind() != Kind::Disk || self.shared.cache.aside().is_none() {
            return false;
        }
        let leave = |content: &Arc<FileContent>| {
            // It was never opened: what is opened now is in memory.
            let Some(cache) = content.opened_cache() else { return Ok(true) };
            let keep = content.in_slots(&content.state().unstored());
            cache.go_to_memory(&keep, |lost| {
                let lost = &content.out_of_slots(lost)[..];
                if let (Some(first), Some(last)) = (lost.first(), lost.last()) {
                    tracing::error!(
                        "{}: bytes between {} and {} that were not uploaded are lost with the cache's disk",
                        content.what(),
                        first.start,
                        last.end
                    );
                }
                content.state().moved(lost);
            })
        };
        match self.on_disk(leave).await {
            // Somebody else's doing, if not this one's.
            Ok(_) => self.opened_cache().is_none_or(|cache| cache.is_in_memory()),
            Err(e) => {
                tracing::warn!("{}: no memory in the place of the disk: {e}", self.what());
                false
            }
        }
    }

    /// The disk is full of what is not ours: the file goes on in memory, until the last of those who use it lets go of it.
    /// `false`: there is no room in memory either. Nothing is lost by it.
    pub(super) async fn leave_full_disk(self: &Arc<Self>) -> bool {
        let leave = |content: &Arc<FileContent>| {
            let Some(cache) = content.opened_cache() else { return content.cache_in_memory().map(|_| true) };
            let keep = content.state().unstored();
            let bytes = keep.iter().map(|r| r.end - r.start).sum();
            if cache.is_in_memory() || !content.shared.cache.has_memory(bytes) {
                return Ok(false);
            }
            cache.go_to_memory(&keep, |lost| content.state().moved(lost))
        };
        match self.on_disk(leave).await {
            Ok(left) => left,
            Err(e) => {
                tracing::warn!("{}: no memory in the place of the disk: {e}", self.what());
                false
            }
        }
    }

    /// Whether the file is in memory because its disk has failed.
    pub(super) fn in_memory(&self) -> bool {
        self.opened_cache().is_some_and(|cache| cache.is_in_memory())
    }
}
