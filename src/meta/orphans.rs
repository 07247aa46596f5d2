//! Files without a name that may still be open somewhere. No mount says when it opens a file; instead an orphan lives
//! for two TTLs after its last name went, and whoever has it open says so again and again.

use bytes::Bytes;

use super::Meta;
use super::data::{CHUNKS_AT_ONCE, objects};
use super::kv::{Entry, Outcome, inode_map};
use super::retry::Tries;
use super::schema::{self, ORPHANS, OrphanRow};
use super::txn::Build;
use crate::error::{Result, ResultExt};
use crate::types::{Ino, ObjectId, Timestamp};

/// How many orphans are handled in one transaction.
const AT_ONCE: usize = 250;

/// An inode that is gone for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reaped {
    pub ino: Ino,
    /// What it had in the store. They lie in the trash, unless other files have them as well.
    pub objects: Vec<ObjectId>,
}

impl Meta {
    /// Of the inodes that this mount has open, keeps those alive that have no name. To be called every third of a TTL.
    pub async fn hold_orphans(&self, open: &[Ino]) -> Result<()> {
        for some in open.chunks(AT_ONCE) {
            let mut tries = Tries::new();
            while !self.try_hold(some).await? {
                tries.again().await.context(|| "keeping unlinked files that are open")?;
            }
        }
        Ok(())
    }

    async fn try_hold(&self, open: &[Ino]) -> Result<bool> {
        let keys: Vec<_> = open.iter().map(|&ino| schema::orphan_key(ino)).collect();
        let until = self.hold_until(self.now());
        let mut build = self.build();
        for ((key, raw), ino) in keys.iter().zip(self.kv().get(&keys).await?).zip(open) {
            let Some(raw) = raw else { continue };
            let row = decode(*ino, &raw)?;
            if row.reaping.is_none() && row.held_until < until {
                build.equals(key.clone(), &raw);
                build.set(key.clone(), schema::encode(&OrphanRow { held_until: until, ..row })?);
            }
        }
        Ok(build.0.write.is_empty() || self.commit(build).await? == Outcome::Applied)
    }

    /// Of a file that loses its last name now.
    pub(super) fn new_orphan(&self) -> OrphanRow {
        // Others compare it with what their own clock says: it must be everybody's.
        let since = self.now();
        OrphanRow { since, held_until: self.hold_until(since), reaping: None, grouped: false }
    }

    /// How long an orphan lives if nobody says anything more.
    pub(super) fn hold_until(&self, now: Timestamp) -> Timestamp {
        let nanos = u64::try_from(self.ttl().as_nanos()).unwrap_or(u64::MAX);
        Timestamp(now.0.saturating_add_unsigned(nanos.saturating_mul(2)))
    }

    /// Whether times in rows of orphans can be trusted: the engine's clock has not jumped for as long as an orphan lives that
    /// nobody holds. Before that, a holder may not have had the time to say by the new clock that it holds.
    #[must_use]
    pub fn may_reap(&self) -> bool {
        self.0.clock.steady_for() >= self.ttl() * 2
    }

    /// Drops the orphans that nobody held until `now` (by the engine's clock, [`Meta::now`]), and goes on with those that somebody else left half dropped.
    /// Several mounts may do this at once.
    pub async fn reap_orphans(&self, now: Timestamp) -> Result<Vec<Reaped>> {
        let mut reaped = Vec::new();
        let mut after = 0;
        loop {
            let entries = self.kv().scan(ORPHANS, after, AT_ONCE).await?;
            let Some(last) = entries.last() else { return Ok(reaped) };
            after = last.id;
            let due = self.due(&entries, now)?;
            for (ino, raw, row) in self.claim(due, &mut reaped).await? {
                let objects = self.drop_chunks(ino, &raw, &row).await.context(|| format!("inode {ino}"))?;
                reaped.push(Reaped { ino, objects });
            }
        }
    }

    fn due(&self, entries: &[Entry], now: Timestamp) -> Result<Vec<(Ino, Bytes, OrphanRow)>> {
        let mut due = Vec::new();
        for entry in entries {
            let ino = schema::field_ino(&entry.field)?;
            let row = decode(ino, &entry.value)?;
            if row.reaping.is_some() || row.held_until < now {
                due.push((ino, entry.value.clone(), row));
            }
        }
        Ok(due)
    }

    /// Takes away the rows of those that are due, so that nobody can hold them any more. Answers those that still
    /// have chunks.
    async fn claim(
        &self,
        due: Vec<(Ino, Bytes, OrphanRow)>,
        reaped: &mut Vec<Reaped>,
    ) -> Result<Vec<(Ino, Bytes, OrphanRow)>> {
        let (mut claimed, fresh): (Vec<_>, Vec<_>) =
            due.into_iter().partition(|(.., row)| row.reaping.is_some());
        // All at once; if somebody holds one of them just now, one by one.
        let mut lots = if fresh.is_empty() { Vec::new() } else { vec![fresh] };
        while let Some(lot) = lots.pop() {
            let (build, with_chunks) = self.claim_lot(&lot).await?;
            if self.commit(build).await? == Outcome::Applied {
                let left: Vec<Ino> = with_chunks.iter().map(|(ino, ..)| *ino).collect();
                let gone = lot.iter().map(|(ino, ..)| *ino).filter(|ino| !left.contains(ino));
                reaped.extend(gone.map(|ino| Reaped { ino, objects: Vec::new() }));
                claimed.extend(with_chunks);
            } else if lot.len() > 1 {
                lots.extend(lot.into_iter().map(|one| vec![one]));
            }
        }
        Ok(claimed)
    }

    async fn claim_lot(
        &self,
        lot: &[(Ino, Bytes, OrphanRow)],
    ) -> Result<(Build, Vec<(Ino, Bytes, OrphanRow)>)> {
        let keys: Vec<_> = lot.iter().map(|(ino, ..)| schema::attr_key(*ino)).collect();
        let mut build = self.build();
        let mut with_chunks = Vec::new();
        for ((ino, raw, row), inode) in lot.iter().zip(self.kv().get(&keys).await?) {
            build.equals(schema::orphan_key(*ino), raw);
            let (chunks, grouped) = match &inode {
                Some(inode) => {
                    let row = schema::decode_row(*ino, inode)?;
                    (row.chunks, row.layout.grouped)
                }
                None => (0, false),
            };
            // A data commit in between would add chunks.
            if let Some(inode) = &inode {
                build.equals(schema::attr_key(*ino), inode);
            }
            build.inode_changed(*ino);
            if chunks == 0 {
                build.del_map(inode_map(ino.0));
                build.del(schema::orphan_key(*ino));
            } else {
                let row = OrphanRow { reaping: Some(chunks), grouped, ..*row };
                let raw = schema::encode(&row)?;
                build.del(schema::attr_key(*ino));
                build.set(schema::orphan_key(*ino), raw.clone());
                with_chunks.push((*ino, raw, row));
            }
        }
        Ok((build, with_chunks))
    }

    /// Lets go of what the chunk rows refer to, some rows at a time, and then forgets the inode.
    async fn drop_chunks(&self, ino: Ino, raw: &Bytes, row: &OrphanRow) -> Result<Vec<ObjectId>> {
        let mut dropped = Vec::new();
        for range in self.row_ranges(ino, row.reaping.unwrap_or(0), row.grouped).await? {
            for first in range.clone().step_by(CHUNKS_AT_ONCE as usize) {
                let chunks: Vec<u64> = (first..range.end.min(first + CHUNKS_AT_ONCE)).collect();
                let mut tries = Tries::new();
                while !self.drop_some(ino, &chunks, row, &mut dropped).await? {
                    tries.again().await?;
                }
            }
        }
        let mut build = self.build();
        build.equals(schema::orphan_key(ino), raw);
        build.del(schema::orphan_key(ino));
        build.del_map(inode_map(ino.0));
        if row.grouped {
            build.del_map(schema::groups_map(ino));
        }
        // A conflict means that somebody else has done it.
        let _ = self.commit(build).await?;
        dropped.sort_unstable();
        dropped.dedup();
        Ok(dropped)
    }

    /// `false`: somebody else drops them too, and was faster. A reference must not be let go of twice.
    async fn drop_some(
        &self,
        ino: Ino,
        chunks: &[u64],
        row: &OrphanRow,
        dropped: &mut Vec<ObjectId>,
    ) -> Result<bool> {
        let keys: Vec<_> = chunks.iter().map(|&index| schema::chunk_key(ino, index)).collect();
        let mut build = self.build();
        let mut objects_here = Vec::new();
        for ((key, raw), index) in keys.iter().zip(self.kv().get(&keys).await?).zip(chunks) {
            let Some(raw) = raw else { continue };
            build.equals(key.clone(), &raw);
            build.del(key.clone());
            for object in objects(&schema::decode_extents(ino, *index, Some(&raw))?.unwrap_or_default()) {
                build.release(object, row.since);
                objects_here.push(object);
            }
        }
        if build.0.write.is_empty() {
            return Ok(true);
        }
        let done = self.commit(build).await? == Outcome::Applied;
        if done {
            dropped.append(&mut objects_here);
        }
        Ok(done)
    }
}

fn decode(ino: Ino, raw: &[u8]) -> Result<OrphanRow> {
    schema::decode(raw, || format!("orphan row of inode {ino}"))
}
