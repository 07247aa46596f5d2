//! The trash: objects of the store that nothing refers to any more. They stay for a grace, for readers that still go
//! by what they read before.

use super::Meta;
use std::time::Duration;

use super::kv::{Expect, Outcome, Txn, Write};
use super::schema::{self, TRASH};
use super::txn::Build;
use crate::error::Result;
use crate::types::{ObjectId, Timestamp};

/// How many rows of the trash are dropped in one transaction.
const AT_ONCE: usize = 1000;

/// An object in the trash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trashed {
    /// Its place in the list; a listing goes on after it.
    pub id: u64,
    pub object: ObjectId,
    /// Since when nothing refers to it.
    pub since: Timestamp,
}

impl Meta {
    /// Up to `limit` objects of the trash after the place `after` (0: from the start). Fewer than `limit` means that
    /// there are no more. Whoever deletes one says so with [`Meta::forget_trash`], after the grace has passed.
    pub async fn trash(&self, after: u64, limit: usize) -> Result<Vec<Trashed>> {
        let entries = self.kv().scan(TRASH, after, limit).await?;
        let decode = |e: super::kv::Entry| {
            let (object, since) = (schema::trash_object(&e.field)?, schema::value_time(&e.value)?);
            Ok(Trashed { id: e.id, object, since })
        };
        entries.into_iter().map(decode).collect()
    }

    /// The objects were deleted from the store.
    pub async fn forget_trash(&self, objects: &[ObjectId]) -> Result<()> {
        for some in objects.chunks(AT_ONCE) {
            let write = some.iter().map(|&object| Write::Del(schema::trash_key(object))).collect();
            let txn = Txn { session: Some(self.session()), write, ..Txn::default() };
            // Without an expectation there is nothing to lose to.
            let _ = self.commit(Build(txn)).await?;
        }
        Ok(())
    }
}

impl Meta {
    /// Whether this mount shall do the background job now: `true` for one mount of all, once in `every`. The job is not
    /// protected against a second one: a mount that takes longer than `every` is overtaken.
    pub async fn elect(&self, job: &str, every: Duration) -> Result<bool> {
        let key = schema::job_key(job);
        let seen = self.kv().get(std::slice::from_ref(&key)).await?.pop().flatten();
        let now = self.now();
        if let Some(seen) = &seen {
            // Mounts know the engine's clock to within a round trip, so the time may lie a little ahead. One far in the future is
            // of a clock that was set back.
            let since = now.0.saturating_sub(schema::value_time(seen)?.0);
            if since.unsigned_abs() < u64::try_from(every.as_nanos()).unwrap_or(u64::MAX) {
                return Ok(false);
            }
        }
        let mut build = self.build();
        match &seen {
            Some(seen) => build.equals(key.clone(), seen),
            None => build.expect(Expect::Absent(key.clone())),
        };
        build.set(key, schema::time_value(now));
        Ok(self.commit(build).await? == Outcome::Applied)
    }
}
