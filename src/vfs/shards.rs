//! Which files of a repository are read one after the other: the shards of a model, by the index that lies beside them.

use std::collections::{BTreeSet, HashMap};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use async_trait::async_trait;
use bytes::Bytes;
use lru::LruCache;
use serde::Deserialize;

use crate::blocking::blocking;
use crate::chunk::{Chunks, Sequel};
use crate::error::{Error, Kind, Result, ResultExt};
use crate::meta::{Attr, Content, Meta};
use crate::types::{BlobId, FileType, Ino, Origin};

/// Indexes are a few MiB at most: a line for each tensor.
const LARGEST_INDEX: u64 = 64 << 20;
/// Bytes of one read of it.
const STEP: u32 = 4 << 20;
const SUFFIX: &str = ".index.json";
/// Indexes remembered, and entries of a folder that are looked through for one.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(16).expect("not zero");
const LISTED: usize = 2048;

/// Finds the shards that follow one, in the repositories that the volume has.
#[derive(Debug)]
pub struct Shards {
    meta: Meta,
    /// It is the store's in turn.
    chunks: Weak<Chunks>,
    /// The files that an index names, in the order in which loaders read them: that of their names.
    indexes: Mutex<LruCache<BlobId, Arc<[String]>>>,
}

/// The part of an index that counts: the file of each tensor.
#[derive(Deserialize)]
struct Index {
    weight_map: HashMap<String, String>,
}

/// Where a file of a commit lies.
struct Place {
    /// The repository's folder of blobs.
    blobs: Ino,
    /// The folder of the commit that has it.
    folder: Ino,
    name: String,
}

impl Shards {
    /// Over the names of `meta`; the indexes themselves are read through `chunks`.
    #[must_use]
    pub fn new(meta: Meta, chunks: &Arc<Chunks>) -> Arc<Self> {
        let indexes = Mutex::new(LruCache::new(REMEMBERED));
        Arc::new(Shards { meta, chunks: Arc::downgrade(chunks), indexes })
    }

    async fn place(&self, origin: &Origin) -> Result<Option<Place>> {
        let Some(repo) = self.below(Ino::ROOT, &origin.repo.folder()).await? else { return Ok(None) };
        let (Some(blobs), Some(snapshots)) =
            (self.below(repo, "blobs").await?, self.below(repo, "snapshots").await?)
        else {
            return Ok(None);
        };
        let Some(mut folder) = self.below(snapshots, &origin.commit.to_string()).await? else {
            return Ok(None);
        };
        let (above, name) = origin.path.rsplit_once('/').unwrap_or(("", &origin.path));
        for part in above.split('/').filter(|part| !part.is_empty()) {
            match self.below(folder, part).await? {
                Some(next) => folder = next,
                None => return Ok(None),
            }
        }
        Ok(Some(Place { blobs, folder, name: name.to_owned() }))
    }

    async fn below(&self, dir: Ino, name: &str) -> Result<Option<Ino>> {
        let found = self.meta.lookup(dir, name.as_bytes()).await?;
        Ok(found.filter(|attr| attr.kind == FileType::Dir).map(|attr| attr.ino))
    }

    /// The blob that a name in the folder of a commit stands for, and its length.
    async fn blob(&self, place: &Place, name: &str) -> Result<Option<(BlobId, u64)>> {
        let Some(attr) = self.meta.lookup(place.folder, name.as_bytes()).await? else { return Ok(None) };
        let Content::Symlink(target) = &attr.content else { return Ok(blob_of(&attr)) };
        let Some(etag) = target.rsplit(|b| *b == b'/').next().filter(|etag| !etag.is_empty()) else {
            return Ok(None);
        };
        Ok(self.meta.lookup(place.blobs, etag).await?.as_ref().and_then(blob_of))
    }

    /// The files that the index beside `place` names, if there is one that names this file too.
    async fn siblings(&self, place: &Place) -> Result<Option<Arc<[String]>>> {
        let usual = index_name(&place.name);
        if let Some(name) = &usual
            && let Some(files) = self.index(place, name).await?
        {
            return Ok(Some(files));
        }
        let listed = self.meta.readdir(place.folder, 0, LISTED).await?;
        let names = listed.iter().filter_map(|entry| std::str::from_utf8(&entry.name).ok());
        for name in names.filter(|name| name.ends_with(SUFFIX) && usual.as_deref() != Some(*name)) {
            if let Some(files) = self.index(place, name).await? {
                return Ok(Some(files));
            }
        }
        Ok(None)
    }

    /// The files that this index names, if `place` is one of them.
    async fn index(&self, place: &Place, name: &str) -> Result<Option<Arc<[String]>>> {
        let Some((blob, size)) = self.blob(place, name).await? else { return Ok(None) };
        let known = self.remembered().get(&blob).cloned();
        let files = match known {
            Some(files) => files,
            None if size > LARGEST_INDEX => return Ok(None),
            None => {
                let text = self.text(blob, size).await.context(|| name.to_owned())?;
                let files = blocking(move || Ok(files_of(&text))).await?;
                self.remembered().put(blob, files.clone());
                files
            }
        };
        Ok(Some(files).filter(|files| files.contains(&place.name)))
    }

    async fn text(&self, blob: BlobId, size: u64) -> Result<Vec<u8>> {
        let gone = || Error::new(Kind::Unavailable, "the store of chunks is closed");
        let content = self.chunks.upgrade().ok_or_else(gone)?.open_blob(blob, size).await?;
        let mut text = Vec::new();
        while (text.len() as u64) < size {
            let piece: Bytes = content.read(text.len() as u64, STEP).await?;
            if piece.is_empty() {
                break;
            }
            text.extend_from_slice(&piece);
        }
        Ok(text)
    }

    fn remembered(&self) -> std::sync::MutexGuard<'_, LruCache<BlobId, Arc<[String]>>> {
        self.indexes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Sequel for Shards {
    async fn after(&self, _blob: BlobId, origins: &[Origin], most: usize) -> Result<Vec<(BlobId, u64)>> {
        // The latest commit is the one that is most likely read.
        for origin in origins.iter().rev() {
            let Some(place) = self.place(origin).await? else { continue };
            let Some(files) = self.siblings(&place).await? else { continue };
            let mut next = Vec::new();
            for name in files.iter().skip_while(|name| **name != place.name).skip(1).take(most) {
                match self.blob(&place, name).await? {
                    Some(blob) => next.push(blob),
                    // It was deleted: who reads these files will stop there.
                    None => break,
                }
            }
            return Ok(next);
        }
        Ok(Vec::new())
    }
}

fn blob_of(attr: &Attr) -> Option<(BlobId, u64)> {
    match attr.content {
        Content::Blob(blob) => Some((blob, attr.size)),
        _ => None,
    }
}

/// `model-00002-of-00005.safetensors` → `model.safetensors.index.json`.
fn index_name(shard: &str) -> Option<String> {
    let (stem, ending) = shard.rsplit_once('.')?;
    let (stem, total) = stem.rsplit_once("-of-")?;
    let (stem, number) = stem.rsplit_once('-')?;
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    (is_number(total) && is_number(number)).then(|| format!("{stem}.{ending}{SUFFIX}"))
}

/// The files of an index by name. What is no index names none; one that names a folder's file is for others to find.
fn files_of(text: &[u8]) -> Arc<[String]> {
    let Ok(index) = serde_json::from_slice::<Index>(text) else { return Arc::from([]) };
    let files: BTreeSet<String> = index.weight_map.into_values().filter(|name| !name.contains('/')).collect();
    files.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_indexes() {
        let of = |name| index_name(name);
        assert_eq!(of("model-00002-of-00005.safetensors").as_deref(), Some("model.safetensors.index.json"));
        assert_eq!(of("pytorch_model-1-of-2.bin").as_deref(), Some("pytorch_model.bin.index.json"));
        for single in ["model.safetensors", "of-3.bin", "a-of-b.bin", "model-1-of-.bin", "README", "-of-.x"] {
            assert_eq!(of(single), None, "{single}");
        }
    }

    #[test]
    fn files_come_once_and_in_order() {
        let text = br#"{"metadata": {"total_size": 5}, "weight_map": {"a": "m-2", "b": "m-1", "c": "m-2", "d": "../x"}}"#;
        assert_eq!(files_of(text).to_vec(), ["m-1", "m-2"]);
        for other in [&b"{}"[..], b"", b"{\"weight_map\": 3}", b"\xff"] {
            assert!(files_of(other).is_empty());
        }
    }
}
