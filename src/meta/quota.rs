//! How much users may put into a volume. The bounds are checked in the transaction that adds: no race gets past them.
//!
//! A program should hear early, at `write`, that there is no room. So a mount also keeps an estimate: what the volume held
//! when it last looked, and what was written here and is not committed yet. The estimate alone refuses nothing: before
//! that, the volume is asked.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use super::Meta;
use super::settings::Usage;
use crate::error::{Error, Kind, Result};

/// No bound.
const NONE: i64 = i64::MAX;
/// How long a commit that was counted twice, as made and as still to be made, may take to be noticed.
const SETTLING: Duration = Duration::from_millis(20);

/// How much the users of a volume may have in it, all mounts together; `None`: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Sizes of all files, as [`Usage::bytes`].
    pub bytes: Option<u64>,
    /// As [`Usage::inodes`].
    pub inodes: Option<u64>,
}

/// One mount's view of them.
#[derive(Debug)]
pub(super) struct Quota {
    bytes: AtomicI64,
    inodes: AtomicI64,
    /// Bytes in the volume, when it was last asked, and what this mount added since.
    used: AtomicI64,
    /// Bytes that this mount is going to add.
    promised: AtomicI64,
}

impl Default for Quota {
    fn default() -> Self {
        Quota {
            bytes: AtomicI64::new(NONE),
            inodes: AtomicI64::new(NONE),
            used: AtomicI64::new(0),
            promised: AtomicI64::new(0),
        }
    }
}

fn stored(limit: Option<u64>) -> i64 {
    limit.map_or(NONE, |n| i64::try_from(n).unwrap_or(NONE))
}

fn bound(stored: &AtomicI64) -> Option<i64> {
    Some(stored.load(Ordering::Relaxed)).filter(|n| *n != NONE)
}

impl Meta {
    /// From now on this mount keeps to `limits`. What is over them already stays.
    pub fn set_limits(&self, limits: Limits) {
        self.0.quota.bytes.store(stored(limits.bytes), Ordering::Relaxed);
        self.0.quota.inodes.store(stored(limits.inodes), Ordering::Relaxed);
    }

    /// What this mount keeps to.
    #[must_use]
    pub fn limits(&self) -> Limits {
        let limit = |stored| bound(stored).and_then(|n| u64::try_from(n).ok());
        Limits { bytes: limit(&self.0.quota.bytes), inodes: limit(&self.0.quota.inodes) }
    }

    pub(super) fn bytes_bound(&self) -> Option<i64> {
        bound(&self.0.quota.bytes)
    }

    pub(super) fn inodes_bound(&self) -> Option<i64> {
        bound(&self.0.quota.inodes)
    }

    pub(super) fn note_usage(&self, usage: Usage) {
        self.0.quota.used.store(i64::try_from(usage.bytes).unwrap_or(NONE), Ordering::Relaxed);
    }

    pub(super) fn note_growth(&self, bytes: i64) {
        self.0.quota.used.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Whether the volume takes `more` bytes beyond what is in it and was [promised](Self::promise); [`Kind::NoSpace`] if
    /// not. No round trip while there is room, or no limit.
    pub async fn room_for(&self, more: u64) -> Result<()> {
        let quota = &self.0.quota;
        let fits = || {
            let limit = quota.bytes.load(Ordering::Relaxed);
            let sum =
                quota.used.load(Ordering::Relaxed).saturating_add(quota.promised.load(Ordering::Relaxed));
            limit == NONE || sum.saturating_add_unsigned(more) <= limit
        };
        if fits() {
            return Ok(());
        }
        self.usage().await?;
        if !fits() {
            tokio::time::sleep(SETTLING).await;
            self.usage().await?;
        }
        if fits() { Ok(()) } else { Err(self.full_of_bytes()) }
    }

    /// `more` bytes (fewer, if negative) were written here and are to be committed.
    pub fn promise(&self, more: i64) {
        self.0.quota.promised.fetch_add(more, Ordering::Relaxed);
    }

    pub(super) fn full_of_bytes(&self) -> Error {
        let words = match self.limits().bytes {
            Some(limit) => format!("the volume's capacity of {limit} bytes"),
            None => "the volume's capacity".to_owned(),
        };
        Error::new(Kind::NoSpace, words)
    }

    pub(super) fn full_of_inodes(&self) -> Error {
        let words = match self.limits().inodes {
            Some(limit) => format!("the volume's {limit} inodes"),
            None => "the volume's inodes".to_owned(),
        };
        Error::new(Kind::NoSpace, words)
    }
}
