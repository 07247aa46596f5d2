//! Inode numbers: from one counter of the volume, in batches, never given out twice.
//!
//! A server that lost its latest commits may have lost what the counter counted. So beside the counter lies the name of
//! the server's memory for which it is true ([`Kv::incarnation`](super::kv::Kv::incarnation)); whoever finds another name
//! there leaves out more numbers than anybody took in the time that may be lost. Otherwise a file that was lost, and is
//! still open on one mount, could have the number of a new one of another mount.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::{Mutex as StdMutex, PoisonError};

use bytes::Bytes;
use lru::LruCache;
use tokio::sync::Mutex;

use super::Meta;
use super::kv::{Expect, Outcome, number};
use super::retry::Tries;
use super::schema;
use crate::error::{Error, Kind, Result, ResultExt};
use crate::types::Ino;

/// How many numbers a mount takes at once.
const BATCH: u64 = 256;
/// How many reserved numbers are remembered, of directories that are shown and not there yet.
const RESERVED: NonZeroUsize = NonZeroUsize::new(16_384).expect("above 0");
/// How many numbers are left out when the counter may have gone back.
const SKIPPED: u64 = 1 << 24;
/// Numbers pass through Lua, where integers end.
const LIMIT: u64 = 1 << 53;

/// The numbers at hand.
pub(super) struct Ids {
    /// Held while a batch is fetched, so that a hundred waiters fetch one. The fetch is bounded by the engine.
    left: Mutex<Range<u64>>,
    /// Never held across an await.
    reserved: StdMutex<LruCache<Ino, ()>>,
}

impl Ids {
    pub fn new() -> Self {
        Ids { left: Mutex::new(0..0), reserved: StdMutex::new(LruCache::new(RESERVED)) }
    }

    /// Drops the numbers at hand: another mount may have got them after the server's memory went back.
    pub async fn forget(&self) {
        *self.left.lock().await = 0..0;
    }
}

impl Meta {
    /// Reserves a number that no inode had before, for a directory that is shown before its repository is published
    /// ([`CommitPlan::repo_ino`](super::CommitPlan::repo_ino)); the other verbs take their numbers themselves. One that
    /// is never used needs not be given back. The latest 16,384 reservations hold.
    pub async fn reserve_ino(&self) -> Result<Ino> {
        let ino = self.alloc_ino().await?;
        self.0.ids.reserved.lock().unwrap_or_else(PoisonError::into_inner).put(ino, ());
        Ok(ino)
    }

    /// Whether the number was reserved and not used: then no inode ever had it. What was an inode once and is
    /// gone must not come back under its number.
    pub(super) fn is_reserved(&self, ino: Ino) -> bool {
        self.0.ids.reserved.lock().unwrap_or_else(PoisonError::into_inner).contains(&ino)
    }

    pub(super) fn use_reserved(&self, ino: Ino) {
        self.0.ids.reserved.lock().unwrap_or_else(PoisonError::into_inner).pop(&ino);
    }

    pub(super) async fn alloc_ino(&self) -> Result<Ino> {
        let mut left = self.0.ids.left.lock().await;
        if left.is_empty() {
            let first = self.take_inos(BATCH).await?;
            *left = first.0..first.0 + BATCH;
        }
        let ino = left.start;
        left.start += 1;
        Ok(Ino(ino))
    }

    /// `count` consecutive numbers; answers the first.
    pub(super) async fn take_inos(&self, count: u64) -> Result<Ino> {
        let (key, run_key) = (schema::last_ino_key(), schema::run_key());
        let mut tries = Tries::new();
        loop {
            let run = self.kv().incarnation();
            let mut values = self.kv().get(&[key.clone(), run_key.clone()]).await?;
            let (known_run, seen) = (values.pop().flatten(), values.pop().flatten());
            let same_run = run.as_ref().is_none_or(|run| known_run.as_deref() == Some(run.as_bytes()));
            let last = match &seen {
                Some(_) => u64::try_from(number(seen.as_ref())?)
                    .map_err(|e| Error::with_source(Kind::Corrupt, "the counter of inode numbers", e))?,
                None => Ino::ROOT.0,
            };
            let first = if same_run || known_run.is_none() { last } else { last.saturating_add(SKIPPED) };
            let next = first
                .checked_add(count)
                .filter(|n| *n < LIMIT)
                .ok_or_else(|| Error::new(Kind::NoSpace, "no inode numbers are left"))?;
            let mut build = self.build();
            match &seen {
                Some(value) => build.equals(key.clone(), value),
                None => build.expect(Expect::Absent(key.clone())),
            };
            build.set(key.clone(), Bytes::from(next.to_string()));
            if let (false, Some(run)) = (same_run, &run) {
                match &known_run {
                    Some(value) => build.equals(run_key.clone(), value),
                    None => build.expect(Expect::Absent(run_key.clone())),
                };
                build.set(run_key.clone(), Bytes::from(run.clone()));
            }
            // Another server may have done it, with less in its memory: then they are taken once more.
            if self.commit(build).await? == Outcome::Applied && self.kv().incarnation() == run {
                return Ok(Ino(first + 1));
            }
            tries.again().await.context(|| "taking inode numbers")?;
        }
    }
}
