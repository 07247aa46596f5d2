//! Bounded repetition of what lost a race.

use std::time::Duration;

use tokio::time::Instant;

use super::schema;
use crate::error::{Error, Kind, Result};
use crate::types::Ino;

/// How long a verb tries before it gives up. With hundreds of writers on one row each round has one winner.
const PATIENCE: Duration = Duration::from_secs(15);
const LONGEST_PAUSE: Duration = Duration::from_millis(40);

/// The tries of one verb. The first may build on hints, the later ones read afresh.
pub(super) struct Tries {
    count: u32,
    started: Instant,
}

impl Tries {
    pub fn new() -> Self {
        Tries { count: 0, started: Instant::now() }
    }

    /// Whether hints are out of the question.
    pub fn fresh(&self) -> bool {
        self.count > 0
    }

    /// Prepares another try: at once after a wrong guess, after a pause with jitter when somebody else was
    /// faster. [`Kind::Unavailable`] when it has gone on for too long.
    pub async fn again(&mut self) -> Result<()> {
        self.count += 1;
        if self.count == 1 {
            return Ok(());
        }
        if self.started.elapsed() > PATIENCE {
            let waited = format!("lost the race {} times", self.count);
            return Err(Error::new(Kind::Unavailable, waited));
        }
        let bound = Duration::from_millis(1 << self.count.min(6)).min(LONGEST_PAUSE);
        tokio::time::sleep(bound.mul_f64(rand::random())).await;
        Ok(())
    }
}

/// How an entry is called in errors.
pub(super) fn entry_words(dir: Ino, name: &[u8]) -> String {
    let shown = &name[..name.len().min(schema::NAME_MAX)];
    format!("entry \"{}\" of inode {dir}", shown.escape_ascii())
}
