//! When inodes were last read. A field of its own beside the row, so that recording a read never stands in the way of a
//! change, nor makes one.

use super::Meta;
use super::attr::Attr;
use super::kv::{Outcome, Write};
use super::schema;
use crate::error::Result;
use crate::types::{Ino, Timestamp};

/// How many reads are recorded in one transaction.
const AT_ONCE: usize = 256;
/// How often a transaction is tried from which others took an inode.
const TRIES: usize = 8;

/// An inode was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    pub ino: Ino,
    pub at: Timestamp,
    /// The time of last access that it had then, as far as was known.
    pub before: Timestamp,
}

impl Meta {
    /// Records reads: the time of last access moves forward. What is gone is skipped, and so is an inode whose time
    /// somebody has set back since the read. Answers those that others changed in this very moment: they are for the
    /// next time.
    pub async fn record_accesses(&self, accesses: &[Access]) -> Result<Vec<Access>> {
        let mut again = Vec::new();
        for some in accesses.chunks(AT_ONCE) {
            let mut some = some.to_vec();
            for _ in 0..TRIES {
                match self.try_record(&mut some).await? {
                    Some(lost) => again.push(lost),
                    None => some.clear(),
                }
                if some.is_empty() {
                    break;
                }
            }
            again.append(&mut some);
        }
        Ok(again)
    }

    /// Records all of `some`, or takes out and answers the one that was changed meanwhile.
    async fn try_record(&self, some: &mut Vec<Access>) -> Result<Option<Access>> {
        let keys: Vec<_> = some.iter().flat_map(|access| schema::attr_keys(access.ino)).collect();
        let values = self.kv().get(&keys).await?;
        let mut build = self.build();
        let mut expected = Vec::new();
        for (at, (access, fields)) in some.iter().zip(values.chunks(4)).enumerate() {
            let (Some(attr), Some(row)) = (Attr::from_fields(access.ino, fields)?, &fields[0]) else {
                continue;
            };
            if attr.atime < access.before || attr.atime >= access.at {
                continue;
            }
            // Without its row the map must not come back to life.
            build.equals(schema::attr_key(access.ino), row);
            expected.push(at);
            let nanos = u64::try_from(access.at.0).unwrap_or(0);
            build.0.write.push(Write::Max(schema::accessed_key(access.ino), nanos));
            build.inode_changed(access.ino);
        }
        if expected.is_empty() {
            return Ok(None);
        }
        match self.commit(build).await? {
            Outcome::Conflict(lost) => Ok(expected.get(lost).map(|at| some.remove(*at))),
            Outcome::Applied | Outcome::Full => Ok(None),
        }
    }
}
