//! File data that does not come through a handle: bytes that hfmount itself makes.

use bytes::Bytes;

use super::Files;
use crate::error::Result;
use crate::source::bucket::Object;
use crate::types::{Extent, ObjectSum};

impl Files {
    /// Puts `data` into the bucket as a file's chunks and returns their rows, for an inode that is about to be published.
    /// What is put and then not published is garbage in the bucket.
    pub async fn put(&self, data: Bytes) -> Result<Vec<(u64, Vec<Extent>)>> {
        let mut rows = Vec::new();
        let size = self.0.chunk_size as usize;
        for (index, start) in (0..data.len()).step_by(size).enumerate() {
            let piece = data.slice(start..data.len().min(start + size));
            let object = self.0.meta.next_object();
            let sum = ObjectSum::of(&piece);
            self.0.bucket.put(&Object::FileChunk(object), piece).await?;
            let extent = Extent { start: 0, len: sum.len, object, object_offset: 0, sum: Some(sum) };
            rows.push((index as u64, vec![extent]));
        }
        Ok(rows)
    }
}
