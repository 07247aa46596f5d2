//! Files of the volume that are blobs: while somebody reads such a file as the blob, the blob's bytes can be had out of the
//! file's own objects, whoever else has them. So nothing is lost when the blob leaves the local disk.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, OnceLock};

use async_trait::async_trait;
use futures::{StreamExt, stream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Chunks;
use super::file::{FileContent, Files, WeakFiles};
use super::lock;
use super::shared::Shared;
use crate::error::{Error, Kind, Result};
use crate::source::{Fetched, Source, Want};
use crate::types::{BlobId, Ino, Version};

/// Chunks of files that are in memory at once, on their way into blobs.
const AT_ONCE: usize = 8;

/// Which files there are.
#[derive(Debug)]
pub(super) struct Backings {
    files: OnceLock<WeakFiles>,
    /// Those that are open as blobs, how often. No more than programs have open.
    open: Mutex<HashMap<BlobId, BTreeMap<Ino, usize>>>,
    places: Arc<Semaphore>,
}

impl Default for Backings {
    fn default() -> Self {
        Backings { files: OnceLock::new(), open: Mutex::default(), places: Arc::new(Semaphore::new(AT_ONCE)) }
    }
}

impl Backings {
    /// Whether there is a file for this blob.
    pub fn has(&self, blob: &BlobId) -> bool {
        lock(&self.open).contains_key(blob)
    }

    /// The files that have the blob's bytes, if there are any.
    pub fn source(&self, blob: &BlobId) -> Option<FileSource> {
        let inos = lock(&self.open).get(blob)?.keys().copied().collect();
        let files = self.files.get()?.upgrade()?;
        Some(FileSource { files, inos, places: self.places.clone() })
    }
}

/// A file is open as a blob. Until this is dropped its bytes are asked for first when the blob's are needed.
#[derive(Debug)]
pub struct Backing {
    shared: Arc<Shared>,
    blob: BlobId,
    ino: Ino,
}

impl Drop for Backing {
    fn drop(&mut self) {
        let mut open = lock(&self.shared.backings.open);
        let Some(files) = open.get_mut(&self.blob) else { return };
        if let Some(count) = files.get_mut(&self.ino) {
            *count -= 1;
            if *count == 0 {
                files.remove(&self.ino);
            }
        }
        if files.is_empty() {
            open.remove(&self.blob);
        }
    }
}

impl Chunks {
    /// Says where the files of the mount are; once.
    pub fn read_files_of(&self, files: &Files) {
        let _first = self.shared.backings.files.set(files.downgrade());
    }

    /// The file `ino`, which the metadata say is `blob`, is about to be read as that. To be said before the blob is opened.
    #[must_use]
    pub fn back(&self, blob: BlobId, ino: Ino) -> Backing {
        *lock(&self.shared.backings.open).entry(blob).or_default().entry(ino).or_insert(0) += 1;
        Backing { shared: self.shared.clone(), blob, ino }
    }
}

/// The files that have the bytes of one blob. What one of them gives it gives of the version at which it was found to be the
/// blob, or not at all.
#[derive(Debug)]
pub(super) struct FileSource {
    files: Files,
    inos: Vec<Ino>,
    places: Arc<Semaphore>,
}

impl FileSource {
    async fn content(&self, blob: BlobId, size: u64) -> Result<Arc<FileContent>> {
        let mut last = Error::new(Kind::NotFound, "no file has the blob");
        for ino in &self.inos {
            match self.files.proven(*ino, blob, size).await {
                Err(e) if e.kind() == Kind::NotFound => last = e,
                found => return found,
            }
        }
        Err(last)
    }
}

/// A run of chunks of a file.
struct Run {
    content: Arc<FileContent>,
    version: Version,
    want: Want,
    next: u64,
    places: Arc<Semaphore>,
}

#[async_trait]
impl Source for FileSource {
    fn name(&self) -> &'static str {
        "file"
    }

    async fn fetch(&self, want: &Want) -> Result<Fetched> {
        let content = self.content(want.blob, want.size).await?;
        let version = content.version();
        let (next, places) = (want.first, self.places.clone());
        let run = Run { content, version, want: want.clone(), next, places };
        let none: Option<OwnedSemaphorePermit> = None;
        let chunks = stream::try_unfold((run, none), |(mut run, before)| async move {
            // Whoever has asked for the next one has done with the one before.
            drop(before);
            // Below the chunk size, which is a u32.
            let len = run.want.len_of(run.next) as u32;
            if len == 0 {
                return Ok(None);
            }
            let place = run.places.clone().acquire_owned().await;
            let place = place.map_err(|e| Error::with_source(Kind::Internal, "a place for a chunk", e))?;
            let offset = run.next * u64::from(run.want.chunk_size);
            let bytes = run.content.read_at(run.version, offset, len).await?;
            run.next += 1;
            Ok(Some((bytes, (run, Some(place)))))
        });
        Ok(chunks.boxed())
    }
}
