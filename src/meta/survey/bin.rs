//! What users deleted and can restore, row by row.

use bytes::Bytes;

use super::{PAGE, Survey, Surveyed};
use crate::error::Result;
use crate::meta::bin::Binned;
use crate::meta::kv::Entry;
use crate::meta::schema::{self, BIN};
use crate::types::Ino;

/// A row of the bin.
#[derive(Debug)]
pub struct BinnedRow {
    /// Its place in the list.
    pub id: u64,
    pub ino: Ino,
    /// As it lies there.
    pub raw: Bytes,
    pub item: Result<Binned>,
}

impl BinnedRow {
    fn read(entry: Entry) -> Result<Self> {
        let (id, ino, raw) = (entry.id, schema::field_ino(&entry.field)?, entry.value.clone());
        Ok(BinnedRow { id, ino, raw, item: Binned::read(entry) })
    }
}

impl Survey {
    /// A page of what was removed and may come back, after the place `after`; an empty one is the end.
    pub async fn bin_page(&self, after: u64) -> Result<Vec<BinnedRow>> {
        self.kv.scan(BIN, after, PAGE).await?.into_iter().map(BinnedRow::read).collect()
    }

    /// What the bin has of an inode, and the inode, of one moment.
    pub async fn bin_and_inode(&self, ino: Ino) -> Result<(Option<BinnedRow>, Option<Surveyed>)> {
        let key = schema::bin_key(ino);
        let mut values = self.kv.get(&[key.clone(), schema::attr_key(ino)]).await?;
        let (inode, value) = (values.pop().flatten(), values.pop().flatten());
        let read = |value| BinnedRow::read(Entry { id: 0, field: key.field, value });
        let surveyed = |raw: Bytes| Surveyed {
            ino,
            row: schema::decode_row(ino, &raw),
            raw,
            subdirs: Ok(0),
            subdirs_raw: None,
            lockers: Ok(Vec::new()),
        };
        Ok((value.map(read).transpose()?, inode.map(surveyed)))
    }
}
