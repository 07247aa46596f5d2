//! The engine's clock, as this mount knows it. What mounts compare with each other — until when a deleted file is kept, since
//! when an object is in the trash, until when a tombstone holds — is told by one clock: a node whose own is an hour off
//! deletes nothing early and keeps nothing for ever. Times that users see (mtime and the like) are the node's own.

use std::sync::{Mutex, PoisonError};

use rustix::time::{ClockId, clock_gettime};

use super::kv::Kv;
use crate::error::Result;
use crate::types::Timestamp;

/// The last answer of the engine, and when it came by a clock that never steps and that sleeps with nobody.
#[derive(Debug)]
pub(super) struct EngineClock(Mutex<(i64, Timestamp)>);

fn boottime() -> i64 {
    let now = clock_gettime(ClockId::Boottime);
    now.tv_sec.saturating_mul(1_000_000_000).saturating_add(now.tv_nsec)
}

impl EngineClock {
    /// Asks the engine.
    pub async fn read(kv: &dyn Kv) -> Result<Self> {
        let clock = EngineClock(Mutex::new((boottime(), Timestamp(0))));
        clock.set(kv).await?;
        Ok(clock)
    }

    /// Asks the engine again: its clock may be set, and another server may have another one.
    pub async fn set(&self, kv: &dyn Kv) -> Result<()> {
        let now = kv.now().await?;
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = (boottime(), now);
        Ok(())
    }

    /// What it shows now.
    pub fn now(&self) -> Timestamp {
        let (asked, answer) = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Timestamp(answer.0.saturating_add(boottime().saturating_sub(asked)))
    }
}
