//! What is written here and not committed yet counts against the volume's capacity, so that a program hears at `write`
//! that there is no room, and not first at `close`.

use std::sync::atomic::Ordering;

use super::content::FileContent;
use crate::error::Result;

impl FileContent {
    /// The file is about to reach to `end`. [`Kind::NoSpace`](crate::error::Kind::NoSpace) if the volume has no room for
    /// that: then nothing of it may be written. Without a limit it costs nothing.
    pub(super) async fn claim(&self, end: u64) -> Result<()> {
        if self.shared.meta.limits().bytes.is_none() {
            return Ok(());
        }
        let wanted = {
            let state = self.state();
            end.max(state.size).saturating_sub(state.attr.usage())
        };
        let held = self.claimed.load(Ordering::Relaxed);
        if wanted > held {
            self.shared.meta.room_for(wanted - held).await?;
            self.set_claim(wanted);
        }
        Ok(())
    }

    /// What an earlier run wrote, and this one is to commit. Nobody can be refused it any more.
    pub(super) fn claim_again(&self) {
        if self.shared.meta.limits().bytes.is_some() {
            let growth = {
                let state = self.state();
                state.size.saturating_sub(state.attr.usage())
            };
            self.set_claim(growth);
        }
    }

    /// Claims what the file really is going to add: after a commit, a cut, a write that failed.
    pub(super) fn reclaim(&self) {
        if self.claimed.load(Ordering::Relaxed) == 0 {
            return;
        }
        let state = self.state();
        let growth = state.size.saturating_sub(state.attr.usage());
        let wanted = if state.is_modified() { growth } else { 0 };
        drop(state);
        self.set_claim(wanted);
    }

    pub(super) fn set_claim(&self, wanted: u64) {
        let held = self.claimed.swap(wanted, Ordering::Relaxed);
        // Sizes are below 2^63.
        self.shared.meta.promise(wanted.cast_signed() - held.cast_signed());
    }
}
