//! Emptying the trash: objects that no file refers to any more are deleted after a grace, for readers on other mounts
//! that still go by the lists they read before.

use std::collections::HashSet;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::{StreamExt, stream};

use super::{Files, Shared};
use crate::error::Result;
use crate::source::bucket::Object;
use crate::types::{ObjectId, SessionId, Timestamp};

/// How long an object stays after the last list that named it was replaced.
pub const GRACE: Duration = Duration::from_secs(15 * 60);
/// How often one of all mounts empties it; each mount asks as often, give or take a half, whether it is the one.
const EVERY: Duration = Duration::from_secs(5 * 60);
const ROWS_AT_ONCE: usize = 1000;
const DELETES_AT_ONCE: usize = 16;

impl Files {
    /// Deletes what has been in the trash for longer than `grace`; returns how many objects. Several mounts at once do
    /// no harm. What cannot be deleted stays for the next time; the first error is returned.
    pub async fn sweep(&self, grace: Duration) -> Result<u64> {
        let grace = i64::try_from(grace.as_nanos()).unwrap_or(i64::MAX);
        let due = Timestamp(self.0.meta.now().0.saturating_sub(grace));
        let (mut after, mut deleted, mut first) = (0, 0, Ok(()));
        // What a journal may still name stays until it is drained.
        let journals: HashSet<SessionId> =
            self.0.meta.journals().await?.into_iter().map(|(id, _)| id).collect();
        loop {
            let page = self.0.meta.trash(after, ROWS_AT_ONCE).await?;
            let Some(last) = page.last() else { break };
            after = last.id;
            let full = page.len() == ROWS_AT_ONCE;
            let objects = page
                .into_iter()
                .filter(|t| t.since <= due && !journals.contains(&t.object.session))
                .map(|t| t.object);
            let delete = async |object: ObjectId| {
                self.0.bucket.delete(&Object::FileChunk(object)).await.map(|()| object)
            };
            let results: Vec<_> =
                stream::iter(objects).map(delete).buffer_unordered(DELETES_AT_ONCE).collect().await;
            let mut gone = Vec::new();
            for result in results {
                match result {
                    Ok(object) => gone.push(object),
                    Err(e) => first = first.and(Err(e)),
                }
            }
            self.0.meta.forget_trash(&gone).await?;
            deleted += gone.len() as u64;
            if !full {
                break;
            }
        }
        first.map(|()| deleted)
    }

    /// Sweeps from time to time as long as the mount lives. Not for read-only mounts.
    pub fn start_sweeping(&self) {
        self.0.runtime.spawn(sweeping(Arc::downgrade(&self.0)));
    }
}

async fn sweeping(shared: Weak<Shared>) {
    loop {
        tokio::time::sleep(EVERY.mul_f64(rand::random_range(0.5..1.5))).await;
        let Some(shared) = shared.upgrade() else { return };
        let sweep = async {
            match shared.meta.elect("sweep", EVERY / 2).await? {
                true => Files(shared.clone()).sweep(GRACE).await,
                false => Ok(0),
            }
        };
        match sweep.await {
            Ok(0) => {}
            Ok(deleted) => tracing::debug!(deleted, "objects that no file refers to"),
            Err(error) => tracing::warn!(%error, "cannot delete objects that no file refers to"),
        }
    }
}
