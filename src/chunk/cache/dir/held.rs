//! What the directory holds, for those who tell others.

use std::ops::Range;
use std::sync::Arc;

use super::CacheDir;
use crate::chunk::cache::file::CacheFile;
use crate::chunk::cache::index::Header;
use crate::chunk::cache::layout::index_path;
use crate::chunk::cache::{ContentKey, Presence, lock};
use crate::error::{Result, ResultExt};
use crate::types::BlobId;

impl CacheDir {
    /// The blobs that it has anything of. No I/O.
    #[must_use]
    pub fn blobs(&self) -> Vec<BlobId> {
        let blob = |key: &ContentKey| match key {
            ContentKey::Blob(id) => Some(*id),
            ContentKey::File(_) => None,
        };
        lock(&self.table).keys().filter_map(blob).collect()
    }

    /// Bytes of blobs on the disk. No I/O.
    #[must_use]
    pub fn blob_bytes(&self) -> u64 {
        let table = lock(&self.table);
        table.iter().filter(|(key, _)| matches!(key, ContentKey::Blob(_))).map(|(_, entry)| entry.bytes).sum()
    }

    /// The size of a content as its files on the disk say; `None` if there are none.
    pub fn size_of(&self, key: &ContentKey) -> Result<Option<u64>> {
        if let Some(file) = self.in_use(key) {
            return Ok(Some(file.size()));
        }
        let header = self.header_of(key)?;
        Ok(header.map(|header| header.size))
    }

    /// The runs of chunks that are present, none of them in doubt. Contents that nobody uses are opened for it.
    pub fn held_chunks(self: &Arc<Self>, key: &ContentKey) -> Result<Vec<Range<u64>>> {
        let file = match self.in_use(key) {
            Some(file) => file,
            None => match self.header_of(key)? {
                Some(header) => self.open_content(*key, header.size, header.chunk_size)?,
                None => return Ok(Vec::new()),
            },
        };
        Ok(present(&file))
    }

    fn header_of(&self, key: &ContentKey) -> Result<Option<Header>> {
        if self.aside().is_some() || !self.knows(key) {
            return Ok(None);
        }
        let path = index_path(&self.root.join(key.path()));
        let mut raw = [0; 64];
        let read = match self.disk().open(&path) {
            Ok(index) => index.read_full(&mut raw, 0),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => Err(e),
        };
        let whole = read.context(|| path.display().to_string())? == raw.len();
        Ok(if whole { Header::decode(&raw).ok() } else { None })
    }
}

fn present(file: &CacheFile) -> Vec<Range<u64>> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    let mut from = 0;
    while let Some(idx) = file.next_recorded(from, file.chunks()) {
        from = idx + 1;
        if file.presence(idx) != Presence::Present {
            continue;
        }
        match runs.last_mut() {
            Some(run) if run.end == idx => run.end += 1,
            _ => runs.push(idx..idx + 1),
        }
    }
    runs
}
