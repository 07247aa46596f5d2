//! The engine's clock, as this mount knows it. What mounts compare with each other — until when a deleted file is kept, since
//! when an object is in the trash, until when a tombstone holds — is told by one clock: a node whose own is an hour off
//! deletes nothing early and keeps nothing for ever. Times that users see (mtime and the like) are the node's own.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use super::kv::Kv;
use crate::error::Result;
use crate::types::Timestamp;

/// The engine's answers, and when they came by a clock that never steps and that sleeps with nobody.
#[derive(Debug)]
pub(super) struct EngineClock(Mutex<Answers>);

#[derive(Debug)]
struct Answers {
    last: (i64, Timestamp),
    /// Since when the answers have followed from each other.
    steady_since: i64,
}

fn boottime() -> i64 {
    let now = clock_gettime(ClockId::Boottime);
    now.tv_sec.saturating_mul(1_000_000_000).saturating_add(now.tv_nsec)
}

impl EngineClock {
    /// Asks the engine.
    pub async fn read(kv: &dyn Kv) -> Result<Self> {
        let answer = kv.now().await?;
        let now = boottime();
        Ok(EngineClock(Mutex::new(Answers { last: (now, answer), steady_since: now })))
    }

    /// Asks the engine again: its clock may be set, and another server may have another one. An answer that is more than
    /// `slack` off what it should be begins a new time.
    pub async fn set(&self, kv: &dyn Kv, slack: Duration) -> Result<()> {
        let asked = boottime();
        let answer = kv.now().await?;
        let now = boottime();
        let mut answers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let expected = |at: i64| answers.last.1.0.saturating_add(at.saturating_sub(answers.last.0));
        // Told at some moment between asking and hearing it.
        let off = (answer.0.saturating_sub(expected(now))).max(expected(asked).saturating_sub(answer.0));
        if u128::try_from(off).unwrap_or(0) > slack.as_nanos() {
            tracing::warn!(
                seconds = off / 1_000_000_000,
                "the clock of the metadata was set, or is another one's"
            );
            answers.steady_since = now;
        }
        answers.last = (now, answer);
        Ok(())
    }

    /// What it shows now.
    pub fn now(&self) -> Timestamp {
        let (told, answer) = self.0.lock().unwrap_or_else(PoisonError::into_inner).last;
        Timestamp(answer.0.saturating_add(boottime().saturating_sub(told)))
    }

    /// For how long it has gone on without a jump, as far as this mount saw.
    pub fn steady_for(&self) -> Duration {
        let since = self.0.lock().unwrap_or_else(PoisonError::into_inner).steady_since;
        Duration::from_nanos(u64::try_from(boottime().saturating_sub(since)).unwrap_or(0))
    }
}
