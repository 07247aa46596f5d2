//! The bin: what users deleted is kept for a while and can be restored.
//!
//! When the last name of an inode goes, by unlink, rmdir or a rename over it, the same transaction that removes the name
//! notes in `bin/` where it was. A file stays as it is, without a name, with all its bytes, and whoever has it open goes on;
//! of a directory or a link the row itself is kept, and it is made anew. After its time a file becomes an orphan as any other.
//!
//! The bin counts for nothing in the volume's usage: what is deleted makes room under a quota at once, and what is restored
//! needs room again.
//!
//! | file | what |
//! |---|---|
//! | `rules` | what is not worth keeping |
//! | `paths` | where things were, as paths |
//! | `restore` | getting them back |

mod paths;
mod restore;
mod rules;

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;

use super::Meta;
use super::kv::{Entry, Kv, Outcome};
use super::lookup::Found;
use super::schema::{self, BIN, BinRow, InodeRow};
use super::txn::Build;
use crate::error::Result;
use crate::types::{FileType, Ino, Timestamp};

pub use self::paths::{Lost, Wanted};
pub use self::restore::Restored;
pub use self::rules::is_temporary;

/// How many rows are read at once, and how many are changed in one transaction.
const ROWS: usize = 1000;
const AT_ONCE: usize = 200;

/// How many rows [`Meta::expire_bin`] lets go of at most, so that its end is near.
const EXPIRED: u64 = 10_000;

/// Whether what loses its last name goes into the bin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Keep {
    #[default]
    No,
    /// If there is a bin ([`Meta::set_bin_ttl`]) and it is worth it.
    Yes,
    /// The same; bytes of a file are on the way, so that it is not empty, whatever the metadata say yet.
    Filled,
}

/// Something in the bin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binned {
    /// Its place in the list, in the order of deletion.
    pub id: u64,
    pub ino: Ino,
    /// Where it was.
    pub parent: Ino,
    pub name: Bytes,
    pub kind: FileType,
    /// Of files, bytes.
    pub size: u64,
    pub deleted: Timestamp,
    /// Until when it is kept.
    pub until: Timestamp,
    /// A directory that was made anew under this number already. It is listed no more, and kept for what lay in it.
    pub became: Option<Ino>,
    /// As it lies in the metadata.
    raw: Bytes,
    /// Of what has no inode any more.
    row: Option<InodeRow>,
}

impl Binned {
    /// Whether it is known what it was, as far as there is no inode to ask.
    #[must_use]
    pub fn has_row(&self) -> bool {
        self.row.is_some()
    }

    pub(super) fn read(entry: Entry) -> Result<Self> {
        let ino = schema::field_ino(&entry.field)?;
        let row: BinRow = schema::decode(&entry.value, || format!("inode {ino} in the bin"))?;
        Ok(Binned {
            id: entry.id,
            ino,
            parent: row.parent,
            name: row.name,
            kind: row.kind,
            size: row.size,
            deleted: row.deleted,
            until: row.until,
            became: row.became,
            raw: entry.value,
            row: row.row,
        })
    }

    fn bin_row(&self) -> BinRow {
        BinRow {
            parent: self.parent,
            name: self.name.clone(),
            kind: self.kind,
            size: self.size,
            deleted: self.deleted,
            until: self.until,
            row: self.row.clone(),
            became: self.became,
        }
    }
}

/// How much lies in the bin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BinUsage {
    pub files: u64,
    /// Of the files.
    pub bytes: u64,
    /// There is more: not all of it was counted.
    pub more: bool,
}

/// Counts up to `most` rows of the bin.
pub async fn bin_usage(kv: &dyn Kv, most: usize) -> Result<BinUsage> {
    let (mut usage, mut after, mut seen) = (BinUsage::default(), 0, 0);
    loop {
        let page = kv.scan(BIN, after, ROWS).await?;
        let Some(last) = page.last() else { return Ok(usage) };
        after = last.id;
        seen += page.len();
        for entry in page {
            let item = Binned::read(entry)?;
            if item.kind == FileType::File {
                usage.files += 1;
                usage.bytes = usage.bytes.saturating_add(item.size);
            }
        }
        if seen >= most {
            usage.more = !kv.scan(BIN, after, 1).await?.is_empty();
            return Ok(usage);
        }
    }
}

impl Meta {
    /// How long what is deleted from now on is kept. 0: it is not, and what is in the bin already stays until its time.
    pub fn set_bin_ttl(&self, ttl: Duration) {
        let nanos = u64::try_from(ttl.as_nanos()).unwrap_or(u64::MAX);
        self.0.bin_ttl.store(nanos, Ordering::Relaxed);
    }

    /// See [`Meta::set_bin_ttl`].
    #[must_use]
    pub fn bin_ttl(&self) -> Duration {
        Duration::from_nanos(self.0.bin_ttl.load(Ordering::Relaxed))
    }

    /// Notes in the bin that `row` loses its last name, if it is worth it; answers whether it was. Instead of an orphan row.
    pub(super) fn put_in_bin(
        &self,
        build: &mut Build,
        found: &Found,
        (parent, name): (Ino, &[u8]),
        keep: Keep,
        now: Timestamp,
    ) -> Result<bool> {
        let ttl = self.0.bin_ttl.load(Ordering::Relaxed);
        if keep == Keep::No || ttl == 0 || !rules::is_worth_it(&found.row, name, keep == Keep::Filled, now) {
            return Ok(false);
        }
        let is_file = found.row.kind == FileType::File;
        // Others compare it with what their own clock says: it must be everybody's.
        let deleted = self.now();
        let row = BinRow {
            parent,
            name: Bytes::copy_from_slice(name),
            kind: found.row.kind,
            size: if is_file { found.row.size } else { 0 },
            deleted,
            until: Timestamp(deleted.0.saturating_add_unsigned(ttl)),
            row: (!is_file).then(|| found.row.clone()),
            became: None,
        };
        build.set(schema::bin_key(found.ino), schema::encode(&row)?);
        Ok(true)
    }

    /// Up to [`ROWS`] things of the bin after the place `after` (0: from the oldest); none at the end.
    pub async fn binned(&self, after: u64) -> Result<Vec<Binned>> {
        self.binned_some(after, ROWS).await
    }

    async fn binned_some(&self, after: u64, rows: usize) -> Result<Vec<Binned>> {
        self.kv().scan(BIN, after, rows).await?.into_iter().map(Binned::read).collect()
    }

    /// Lets go of what has been in the bin for its time, or for longer than what is deleted now would be, at `now` (by the
    /// engine's clock, [`Meta::now`]). Some thousands at most; answers how many. Several mounts may do this at once.
    pub async fn expire_bin(&self, now: Timestamp) -> Result<u64> {
        let ttl = self.0.bin_ttl.load(Ordering::Relaxed);
        let due = |item: &Binned| {
            let shorter = ttl > 0 && item.deleted.0.saturating_add_unsigned(ttl) <= now.0;
            item.until <= now || shorter
        };
        let (mut after, mut gone) = (0, 0);
        loop {
            // Most often the oldest is young: one row is read.
            let rows = if after == 0 { 1 } else { ROWS };
            let page = self.binned_some(after, rows).await?;
            let Some(last) = page.last() else { return Ok(gone) };
            after = last.id;
            let (old, young): (Vec<_>, Vec<_>) = page.into_iter().partition(due);
            gone += self.purge(&old).await?;
            // They lie in the order of their deletion.
            if !young.is_empty() || gone >= EXPIRED {
                return Ok(gone);
            }
        }
    }

    /// Lets go of some things in the bin: files become orphans, and are gone when nobody has them open. Answers how many;
    /// what somebody restores at the same time is his.
    pub async fn purge(&self, items: &[Binned]) -> Result<u64> {
        let mut gone = 0;
        let mut lots: Vec<&[Binned]> = items.chunks(AT_ONCE).collect();
        while let Some(lot) = lots.pop() {
            let mut build = self.build();
            for item in lot {
                let key = schema::bin_key(item.ino);
                build.equals(key.clone(), &item.raw);
                build.del(key);
                if item.kind == FileType::File {
                    build.set(schema::orphan_key(item.ino), schema::encode(&self.new_orphan())?);
                }
            }
            if self.commit(build).await? == Outcome::Applied {
                gone += lot.len() as u64;
            } else if lot.len() > 1 {
                lots.extend(lot.chunks(1));
            }
        }
        Ok(gone)
    }
}
