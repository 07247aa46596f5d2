//! A file as a whole: whether all of it is on the local disk, as it was committed, and reading it for who needs its bytes
//! elsewhere. For files that turn out to be blobs ([`crate::chunk::Proof`]).

use std::ops::Range;
use std::sync::{Arc, Weak};

use bytes::Bytes;

use super::content::FileContent;
use super::state::Part;
use super::{Files, Shared};
use crate::chunk::cache::{CacheFile, ContentKey, Presence, Record};
use crate::chunk::extents;
use crate::error::{Error, Kind, Result};
use crate::types::{BlobId, Extent, Ino, Version};

/// The files of a mount, without keeping them.
#[derive(Clone, Debug)]
pub(in crate::chunk) struct WeakFiles(Weak<Shared>);

impl WeakFiles {
    pub fn upgrade(&self) -> Option<Files> {
        self.0.upgrade().map(Files)
    }
}

impl Files {
    pub(in crate::chunk) fn downgrade(&self) -> WeakFiles {
        WeakFiles(Arc::downgrade(&self.0))
    }

    /// The content of a file of `size` bytes that is known to be `blob`. [`Kind::NotFound`] if it is not, or not any more.
    pub(in crate::chunk) async fn proven(
        &self,
        ino: Ino,
        blob: BlobId,
        size: u64,
    ) -> Result<Arc<FileContent>> {
        let no_more = || Error::new(Kind::NotFound, format!("inode {ino} is not blob {blob} any more"));
        let attr = match self.0.meta.getattr(ino).await {
            Err(e) if e.kind() == Kind::Stale => return Err(no_more()),
            read => read?,
        };
        if attr.proven != Some(blob) || attr.size != size {
            return Err(no_more());
        }
        let content = self.open(&attr)?;
        if content.is_at(attr.version) { Ok(content) } else { Err(no_more()) }
    }
}

impl FileContent {
    /// Whether the file is what was committed as this version: nothing in it is new, or on its way.
    #[must_use]
    pub fn is_at(&self, version: Version) -> bool {
        let state = self.state();
        state.attr.version == version && !state.is_modified() && state.committing.is_none()
    }

    /// Whether all of it seems to be on the local disk. Reads nothing of it.
    pub(in crate::chunk) async fn is_here(self: &Arc<Self>) -> Result<bool> {
        let key = ContentKey::File(self.ino);
        if self.opened_cache().is_none() && !self.shared.cache.knows(&key) {
            return Ok(false);
        }
        self.read_disk(|content| {
            let cache = content.cache()?;
            let state = content.state();
            let unit = u64::from(content.shared.chunk_size);
            let here = |idx: u64| {
                let recorded = content.slot(idx) == Some(idx) && cache.presence(idx) != Presence::Absent;
                recorded || state.is_local(idx, 0..state.within(idx, state.size))
            };
            Ok(!cache.is_in_memory() && (0..state.size.div_ceil(unit)).all(here))
        })
        .await
    }

    /// The cache's file and its record of chunk `idx`, if that is of all of the chunk, as it is committed. A chunk that is
    /// here and was not handed to the index yet is.
    pub(in crate::chunk) async fn held(
        self: &Arc<Self>,
        idx: u64,
    ) -> Result<Option<(Arc<CacheFile>, Record)>> {
        self.learn_rows(idx..idx + 1).await?;
        self.on_disk(move |content| {
            content.settle(idx)?;
            let (tag, whole) = {
                let state = content.state();
                if state.needs_rows(idx) {
                    return Ok(None);
                }
                (extents::tag(&state.list(idx)), state.within(idx, state.size))
            };
            if content.slot(idx) != Some(idx) || !content.has_recorded(idx, &tag) {
                return Ok(None);
            }
            let cache = content.cache()?;
            let record = cache.record_of(idx)?.filter(|record| record.tag == tag && record.len == whole);
            Ok(record.map(|record| (cache.clone(), record)))
        })
        .await
    }

    /// The bytes of parts of chunk `idx`, all of which are to be fetched, out of the blob that the file is known to be, if that
    /// is here. `None`: they have to be fetched.
    pub(super) async fn fetch_here(&self, idx: u64, parts: &[Part]) -> Option<Vec<(Range<u32>, Bytes)>> {
        let (blob, size) = {
            let state = self.state();
            let blob = state.attr.proven?;
            // What is committed now, and no more: parts that were listed before may be of another version.
            let list = state.committed_rows(idx)?;
            let same = |own: &Extent, e: &Extent| {
                own.object == e.object
                    && own.start <= e.start
                    && e.start - own.start == e.object_offset.wrapping_sub(own.object_offset)
                    && e.start + e.len <= own.start + own.len
            };
            let committed = |part: &Part| match part {
                Part::Fetch(e) => list.iter().any(|own| same(own, e)),
                _ => false,
            };
            if !parts.iter().all(committed) {
                return None;
            }
            (blob, state.attr.size)
        };
        let mut pieces = Vec::with_capacity(parts.len());
        for span in parts.iter().map(Part::span) {
            let (at, len) = (self.offset(idx, span.start), span.end - span.start);
            pieces.push((span, self.shared.blobs.read_here(blob, size, at, len).await?));
        }
        Some(pieces)
    }

    /// Exactly `len` bytes at `offset` of the file as it was committed at `version`; what has to be fetched for it is not kept.
    /// [`Kind::NotFound`] if it has changed.
    pub(in crate::chunk) async fn read_at(
        self: &Arc<Self>,
        version: Version,
        offset: u64,
        len: u32,
    ) -> Result<Bytes> {
        let bytes = self.read_once(offset, len, true).await?;
        if bytes.len() != len as usize || !self.is_at(version) {
            return Err(Error::with_source(Kind::NotFound, self.what(), "it was written to meanwhile"));
        }
        Ok(bytes)
    }
}
