//! Where one file is: its row, its content, and for each chunk whether the bucket and the caches of this machine have it.

use std::collections::HashSet;
use std::path::PathBuf;

use super::Place;
use super::paths::path_of;
use crate::chunk::cache::{ContentKey, Peek};
use crate::chunk::extents;
use crate::error::{Error, Kind, Result};
use crate::meta::{Attr, Content, Proven};
use crate::source::Provider;
use crate::source::bucket::Object;
use crate::types::{BlobId, Extent, Ino, Origin};

/// The most chunks that are told one by one.
pub const CHUNKS_MAX: usize = 10_000;
/// Chunk rows in one round trip.
const AT_ONCE: u64 = 450;

/// What is known of an inode.
#[derive(Debug)]
pub struct Info {
    pub attr: Attr,
    /// From the root.
    pub path: Option<String>,
    pub blob: Option<BlobInfo>,
    /// Those that are somewhere; holes are left out.
    pub chunks: Vec<ChunkInfo>,
    /// There are more than [`CHUNKS_MAX`].
    pub more: bool,
}

/// What is known of the blob that a file is, has the bytes of, or began as a copy of.
#[derive(Debug)]
pub struct BlobInfo {
    pub id: BlobId,
    /// All of it was checked against its name by somebody.
    pub verified: bool,
    pub origins: Vec<Origin>,
    /// Caches of this machine that checked all of it.
    pub verified_here: bool,
}

/// What is known of one chunk.
#[derive(Debug)]
pub struct ChunkInfo {
    pub index: u64,
    /// Of a blob: its BLAKE3, if somebody filled it. Of a file: `None`, unless the blob under it shows here.
    pub hash: Option<[u8; 32]>,
    /// Of a file: where its bytes are. Empty if it is of a blob, or a hole that lies over one.
    pub extents: Vec<Extent>,
    /// Of a blob: recorded as being in the bucket. Of a file: that all its objects are there, if that was asked.
    pub stored: Option<bool>,
    /// The caches of this machine that have it.
    pub cached: Vec<PathBuf>,
    /// Of a blob that a cache has, or a file that is there as one: where its bytes came from when they came there.
    pub from: Option<Provider>,
}

/// What is known of `ino`. `caches`: cache directories of this machine. `look`: asks the bucket for each object.
///
/// [`Kind::NotFound`] if there is no such inode.
pub async fn info(place: &Place, ino: Ino, caches: &[PathBuf], look: bool) -> Result<Info> {
    let attr = place.survey.attr(ino).await?;
    let attr = attr.ok_or_else(|| Error::new(Kind::NotFound, format!("inode {ino}")))?;
    let path = path_of(&place.survey, ino, attr.parent).await?;
    let mut info = Info { attr, path, blob: None, chunks: Vec::new(), more: false };
    match info.attr.content.clone() {
        Content::Blob(id) => blob(place, id, info.attr.size, caches, look, &mut info).await?,
        Content::Extents => file(place, caches, look, &mut info).await?,
        _ => {}
    }
    Ok(info)
}

fn peeks(caches: &[PathBuf], key: ContentKey) -> Result<Vec<(PathBuf, Peek)>> {
    let mut found = Vec::new();
    for root in caches {
        found.extend(Peek::open(root, &key)?.map(|peek| (root.clone(), peek)));
    }
    Ok(found)
}

/// Its first `len` bytes, where nothing else is known already.
async fn blob(
    place: &Place,
    id: BlobId,
    len: u64,
    caches: &[PathBuf],
    look: bool,
    info: &mut Info,
) -> Result<()> {
    let own: HashSet<u64> = info.chunks.iter().map(|c| c.index).collect();
    let peeks = peeks(caches, ContentKey::Blob(id))?;
    let row = place.survey.blobs(&[id]).await?.pop();
    info.blob = Some(BlobInfo {
        id,
        verified: row.as_ref().is_some_and(|r| r.verified),
        origins: row.map(|r| r.origins).unwrap_or_default(),
        verified_here: peeks.iter().any(|(_, peek)| peek.is_verified()),
    });
    let chunks = len.div_ceil(u64::from(place.chunk_size));
    for first in (0..chunks).step_by(AT_ONCE as usize) {
        for chunk in place.survey.blob_chunks(id, first, AT_ONCE.min(chunks - first)).await? {
            if own.contains(&chunk.index) {
                continue;
            }
            if info.chunks.len() >= CHUNKS_MAX {
                info.more = true;
                return Ok(());
            }
            let hash = chunk.hash?;
            let mut stored = chunk.stored;
            if let (true, true, Some(hash)) = (look, stored, hash) {
                stored =
                    place.bucket.exists(&Object::BlobChunk { blob: id, index: chunk.index, hash }).await?;
            }
            let holds =
                |peek: &Peek| peek.record(chunk.index).is_some_and(|r| hash.is_none_or(|h| r.hash == h));
            let cached: Vec<PathBuf> =
                peeks.iter().filter(|(_, peek)| holds(peek)).map(|(root, _)| root.clone()).collect();
            let holder = peeks.iter().find(|(_, peek)| holds(peek));
            let from = holder.and_then(|(_, peek)| peek.record(chunk.index)).map(|record| record.from);
            info.chunks.push(ChunkInfo {
                index: chunk.index,
                hash,
                extents: Vec::new(),
                stored: Some(stored),
                cached,
                from,
            });
        }
    }
    Ok(())
}

async fn file(place: &Place, caches: &[PathBuf], look: bool, info: &mut Info) -> Result<()> {
    let ino = info.attr.ino;
    let own = peeks(caches, ContentKey::File(ino))?;
    let Some(inode) = place.survey.inode(ino).await? else { return Ok(()) };
    let row = inode.row?;
    // Its bytes may be here as those of the blob that they are.
    let as_blob = match row.proven {
        Some(Proven(id)) => peeks(caches, ContentKey::Blob(id))?,
        None => Vec::new(),
    };
    if let Some(Proven(id)) = row.proven {
        let known = place.survey.blobs(&[id]).await?.pop();
        info.blob = Some(BlobInfo {
            id,
            // By whoever said it of the file.
            verified: true,
            origins: known.map(|r| r.origins).unwrap_or_default(),
            verified_here: as_blob.iter().any(|(_, peek)| peek.is_verified()),
        });
    }
    for range in place.survey.chunk_ranges(ino, &row, row.chunks).await? {
        for first in range.clone().step_by(AT_ONCE as usize) {
            let count = AT_ONCE.min(range.end - first);
            for (index, _, list) in place.survey.chunks(ino, first, count).await?.lists {
                if info.chunks.len() >= CHUNKS_MAX {
                    info.more = true;
                    return Ok(());
                }
                let list = extents::canonical(&list?);
                let mut stored = None;
                if look && !list.is_empty() {
                    let mut all = true;
                    for extent in &list {
                        all &= place.bucket.exists(&Object::FileChunk(extent.object)).await?;
                    }
                    stored = Some(all);
                }
                let tag = extents::tag(&list);
                let holds = |peek: &Peek| peek.record(index).is_some_and(|r| r.tag == tag);
                let own = own.iter().filter(|(_, p)| holds(p));
                let blobs = as_blob.iter().filter(|(_, p)| p.record(index).is_some());
                let mut cached: Vec<PathBuf> = own.chain(blobs).map(|(root, _)| root.clone()).collect();
                cached.sort();
                cached.dedup();
                let from = as_blob.iter().find_map(|(_, p)| p.record(index)).map(|record| record.from);
                info.chunks.push(ChunkInfo { index, hash: None, extents: list, stored, cached, from });
            }
        }
    }
    if let Some(under) = row.layout.under {
        blob(place, under.blob, under.len, caches, look, info).await?;
        info.chunks.sort_by_key(|chunk| chunk.index);
    }
    Ok(())
}
