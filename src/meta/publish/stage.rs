//! Inodes that nobody can reach yet: written in bounded transactions, noted in `staging/` so that they can be dropped
//! if they are never published.

use std::ops::Range;

use bytes::Bytes;

use super::super::Meta;
use super::super::data::{CHUNKS_AT_ONCE, objects};
use super::super::kv::{Expect, Key, Outcome, Txn, inode_map};
use super::super::schema::{self, InodeRow, STAGING, StagingRow};
use super::super::txn::Build;
use crate::error::{Error, Kind, Result, ResultExt};
use crate::types::{Extent, FileType, Ino, SessionId};

/// The most writes in one transaction.
const WRITES: usize = 1000;
/// The most bytes of values in one transaction, about.
const BYTES: usize = 512 << 10;
/// How many rows are read at once when staged inodes are dropped.
const DROP_AT_ONCE: u64 = 500;

/// Inodes in the making.
pub(super) struct Stage<'a> {
    meta: &'a Meta,
    key: Key,
    /// The record in `staging/`, as it lies there.
    raw: Bytes,
    begun: bool,
    numbers: Range<u64>,
    build: Build,
    bytes: usize,
}

impl<'a> Stage<'a> {
    /// Room for `count` inodes, and for the entries of `root`, whose row comes last. All directories are to be written
    /// before any entry.
    pub async fn new(meta: &'a Meta, count: u64, root: Option<Ino>) -> Result<Stage<'a>> {
        let first = meta.take_inos(count).await?;
        let session = meta.session();
        let row = StagingRow { session, since: meta.now(), first, count, root, dropping: false };
        Ok(Stage {
            meta,
            key: Key::new(STAGING, schema::ino_field(first)),
            raw: schema::encode(&row)?,
            begun: false,
            numbers: first.0..first.0 + count,
            build: meta.build(),
            bytes: 0,
        })
    }

    /// The next number.
    pub fn ino(&mut self) -> Result<Ino> {
        let ino = self.numbers.next();
        ino.map(Ino).ok_or_else(|| Error::new(Kind::Internal, "a publication counted its inodes wrongly"))
    }

    /// Writes an inode; of a directory with its number of subdirectories.
    pub async fn inode(&mut self, ino: Ino, row: &InodeRow, subdirs: i64) -> Result<()> {
        self.build.expect(Expect::Absent(schema::attr_key(ino)));
        self.bytes += self.build.set_row(ino, row)?.len();
        self.build.add(schema::subdirs_key(ino), subdirs);
        self.flush_if_full().await
    }

    pub async fn entry(&mut self, dir: Ino, name: &[u8], ino: Ino, kind: FileType) -> Result<()> {
        self.build.set(schema::entry_key(dir, name), schema::entry_value(ino, kind));
        self.bytes += name.len();
        self.flush_if_full().await
    }

    pub async fn chunk(&mut self, ino: Ino, index: u64, list: &[Extent]) -> Result<()> {
        let value = schema::encode(&list)?;
        self.bytes += value.len();
        self.build.set(schema::chunk_key(ino, index), value);
        self.flush_if_full().await
    }

    async fn flush_if_full(&mut self) -> Result<()> {
        // An inode and its entry may add three.
        if self.build.0.write.len() + 3 < WRITES && self.bytes < BYTES {
            return Ok(());
        }
        self.flush().await
    }

    async fn flush(&mut self) -> Result<()> {
        let mut build = std::mem::replace(&mut self.build, self.meta.build());
        self.bytes = 0;
        if self.begun {
            build.equals(self.key.clone(), &self.raw);
        } else {
            build.expect(Expect::Absent(self.key.clone()));
            build.set(self.key.clone(), self.raw.clone());
            self.begun = true;
        }
        match self.meta.commit(build).await? {
            Outcome::Applied => Ok(()),
            _ => Err(Error::new(Kind::Unavailable, "a publication was cut off")),
        }
    }

    /// Writes what is left and answers a transaction that ends the staging: the caller adds what makes the inodes
    /// reachable.
    pub async fn finish(&mut self) -> Result<Build> {
        self.flush().await?;
        let mut build = self.meta.build();
        build.equals(self.key.clone(), &self.raw);
        build.del(self.key.clone());
        Ok(build)
    }

    /// Drops what was written, unless it was published after all. Objects of the store stay.
    pub async fn abandon(self) {
        if !self.begun {
            return;
        }
        if let Err(error) = self.meta.drop_stage(&self.key, false).await {
            tracing::warn!(%error, "a publication that failed is left for others to clean up");
        }
    }
}

impl Meta {
    /// Drops what a dead session had staged, and what it was about to drop.
    pub(in super::super) async fn drop_staged_by(&self, session: SessionId) -> Result<()> {
        let mut after = 0;
        loop {
            let entries = self.kv().scan(STAGING, after, 256).await?;
            let Some(last) = entries.last() else { return Ok(()) };
            after = last.id;
            for entry in entries {
                let row: StagingRow = schema::decode(&entry.value, || "a staging row".to_owned())?;
                if row.session == session {
                    self.drop_stage(&Key::new(STAGING, entry.field), true).await?;
                }
            }
        }
    }

    /// Drops staged inodes; with `trash`, what they have in the store goes to the trash.
    async fn drop_stage(&self, key: &Key, trash: bool) -> Result<()> {
        let Some(raw) = self.kv().get(std::slice::from_ref(key)).await?.pop().flatten() else {
            return Ok(());
        };
        let mut row: StagingRow = schema::decode(&raw, || "a staging row".to_owned())?;
        if !row.dropping {
            // From here on it cannot be published any more.
            row.dropping = true;
            let mut build = Build(Txn::default());
            build.equals(key.clone(), &raw);
            build.set(key.clone(), schema::encode(&row)?);
            if self.commit(build).await? != Outcome::Applied {
                return Ok(());
            }
        }
        let end = row.first.0 + row.count;
        for start in (row.first.0..end).step_by(DROP_AT_ONCE as usize) {
            let inos = (start..end.min(start + DROP_AT_ONCE)).map(Ino).collect();
            self.drop_inodes(inos, trash).await.context(|| format!("staged inodes from {start}"))?;
        }
        if let Some(root) = row.root {
            self.drop_entries(root).await?;
        }
        let mut build = Build(Txn::default());
        build.del(key.clone());
        // Without an expectation there is nothing to lose to.
        let _ = self.commit(build).await?;
        Ok(())
    }

    async fn drop_inodes(&self, inos: Vec<Ino>, trash: bool) -> Result<()> {
        let keys: Vec<_> = inos.iter().map(|&ino| schema::attr_key(ino)).collect();
        let mut build = Build(Txn::default());
        for (&ino, raw) in inos.iter().zip(self.kv().get(&keys).await?) {
            let Some(raw) = raw else { continue };
            let row = schema::decode_row(ino, &raw)?;
            if row.kind == FileType::Dir {
                self.drop_entries(ino).await?;
            }
            if trash {
                self.trash_chunks(&mut build, ino, row.chunks).await?;
            }
            build.del_map(inode_map(ino.0));
        }
        let _ = self.commit(build).await?;
        Ok(())
    }

    async fn drop_entries(&self, dir: Ino) -> Result<()> {
        loop {
            let entries = self.kv().scan(&schema::dir_map(dir), 0, WRITES).await?;
            let mut build = Build(Txn::default());
            for entry in &entries {
                build.del(Key::new(schema::dir_map(dir), entry.field.clone()));
            }
            if entries.is_empty() {
                return Ok(());
            }
            let _ = self.commit(build).await?;
        }
    }

    async fn trash_chunks(&self, build: &mut Build, ino: Ino, chunks: u64) -> Result<()> {
        let now = self.now();
        for first in (0..chunks).step_by(CHUNKS_AT_ONCE as usize) {
            let some: Vec<u64> = (first..chunks.min(first + CHUNKS_AT_ONCE)).collect();
            for object in self.extents(ino, &some).await?.iter().flat_map(|list| objects(list)) {
                build.release(object, now);
            }
        }
        Ok(())
    }
}
