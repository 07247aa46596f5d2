//! Folders that hold blobs already: Hugging Face caches that other programs filled, on a disk of this machine. They are
//! only read, and believed as little as a mirror: what comes from there is checked like what comes from anywhere.
//!
//! | file | what |
//! |---|---|
//! | `folder` | finding and opening blobs in one, without ever leaving it |

mod folder;

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::stream::{self, StreamExt};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use self::folder::Folder;
use super::{Fetched, Source, Want};
use crate::blocking::blocking;
use crate::error::{Error, Kind, Result};
use crate::types::BlobId;

/// Bytes read at a time.
const PIECE: u64 = 512 << 10;
/// Blobs of one folder that are known at most: about 64 bytes of memory each.
const MAX_BLOBS: usize = 500_000;
/// Blobs that are not asked for any more, since what is there is not them.
const MAX_BAD: usize = 4096;
/// How often the folder is listed again.
const REFRESH: Duration = Duration::from_secs(10 * 60);
/// How long a transfer waits for the first listing to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// One such folder as a source.
#[derive(Debug)]
pub struct Seed {
    inner: Arc<Inner>,
    listed: watch::Receiver<bool>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Inner {
    /// As the user wrote it.
    path: PathBuf,
    folders: Vec<Folder>,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    blobs: HashMap<BlobId, Place>,
    /// By folder: the names of its repositories.
    repos: Vec<Vec<String>>,
    /// What is there under these names is something else.
    bad: Vec<BlobId>,
    /// Sizes are known, as far as they can be.
    measured: bool,
}

/// Where a blob is: the folder's number, and the repository's among its. And its size, once that is known.
#[derive(Clone, Copy, Debug)]
struct Place {
    folder: u16,
    repo: u32,
    size: Option<u64>,
}

impl Seed {
    /// Opens `path`: a cache of the Hub (`models--…/blobs`), or the folder of one (`hub/models--…`). What lies there is
    /// found out in the background; it may be mounted over from now on.
    ///
    /// # Errors
    /// [`Kind::Config`] if it is no directory that can be read.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub async fn open(path: &Path) -> Result<Self> {
        let (owned, shown) = (path.to_owned(), path.display().to_string());
        let folders = blocking(move || {
            let folder = Folder::open(&owned);
            let folder = folder.map_err(|e| Error::with_source(Kind::Config, format!("seed {shown}"), e))?;
            let hub = Folder::open(&owned.join("hub")).ok();
            Ok([folder].into_iter().chain(hub).collect::<Vec<_>>())
        })
        .await?;
        let inner = Arc::new(Inner { path: path.to_owned(), folders, known: Mutex::default() });
        let (tell, listed) = watch::channel(false);
        let task = tokio::spawn(keep_listed(inner.clone(), tell));
        Ok(Seed { inner, listed, task })
    }

    /// Blobs that are known to lie there.
    #[must_use]
    pub fn blobs(&self) -> usize {
        self.inner.known().blobs.len()
    }

    /// Waits until the folder has been listed once.
    pub async fn listed(&self) {
        // An error says that the task has ended.
        let _ = self.listed.clone().wait_for(|done| *done).await;
    }
}

impl Drop for Seed {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn keep_listed(inner: Arc<Inner>, tell: watch::Sender<bool>) {
    loop {
        let lister = inner.clone();
        let listed = blocking(move || Ok(lister.list())).await;
        match listed {
            Ok(found) => {
                let mut known = inner.known();
                if known.blobs.len() != found.blobs.len() {
                    tracing::info!(seed = %inner.path.display(), blobs = found.blobs.len(), "blobs of a seed");
                }
                known.replace(found);
            }
            Err(e) => tracing::warn!(seed = %inner.path.display(), error = %e, "cannot list a seed"),
        }
        tell.send_replace(true);
        // Takes long on a slow disk; nobody who reads waits for it.
        let measurer = inner.clone();
        let measure = move || {
            measurer.measure();
            Ok(())
        };
        if let Err(e) = blocking(measure).await {
            tracing::warn!(seed = %inner.path.display(), error = %e, "cannot measure the blobs of a seed");
        }
        tokio::time::sleep(REFRESH).await;
    }
}

impl Known {
    /// The name of the repository.
    fn repo(&self, place: Place) -> Option<String> {
        self.repos.get(usize::from(place.folder))?.get(place.repo as usize).cloned()
    }

    /// Lists what lies there now; sizes are those of the names.
    fn replace(&mut self, mut found: Known) {
        for (blob, place) in &mut found.blobs {
            place.size = self.blobs.get(blob).and_then(|before| before.size);
        }
        found.blobs.retain(|blob, _| !self.bad.contains(blob));
        let (bad, measured) = (std::mem::take(&mut self.bad), self.measured);
        *self = Known { bad, measured, ..found };
    }
}

impl Inner {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What lies there now.
    fn list(&self) -> Known {
        let mut known = Known::default();
        for (n, folder) in self.folders.iter().enumerate() {
            let mut repos = Vec::new();
            for repo in folder.repos() {
                let place = Place { folder: n as u16, repo: repos.len() as u32, size: None };
                let before = known.blobs.len();
                for blob in folder.blobs(&repo) {
                    if known.blobs.len() >= MAX_BLOBS {
                        tracing::warn!(seed = %self.path.display(), "more than {MAX_BLOBS} blobs: the rest is not used");
                        break;
                    }
                    known.blobs.entry(blob).or_insert(place);
                }
                if known.blobs.len() > before {
                    repos.push(repo);
                }
            }
            known.repos.push(repos);
        }
        known
    }

    /// Finds out the sizes that are not known.
    fn measure(&self) {
        let unknown: Vec<(BlobId, Place)> = {
            let known = self.known();
            let unknown = known.blobs.iter().filter(|(_, place)| place.size.is_none());
            unknown.map(|(blob, place)| (*blob, *place)).collect()
        };
        for (blob, place) in unknown {
            let Some(repo) = self.known().repo(place) else { continue };
            let size = self.folders[usize::from(place.folder)].size(&repo, blob);
            if let (Some(size), Some(place)) = (size, self.known().blobs.get_mut(&blob)) {
                place.size = Some(size);
            }
        }
        self.known().measured = true;
    }

    /// The file of a blob with exactly this size, if there is one.
    fn open(&self, want: &Want) -> Option<File> {
        let mut tries = Vec::new();
        {
            let known = self.known();
            if known.bad.contains(&want.blob) {
                return None;
            }
            if let Some(place) = known.blobs.get(&want.blob) {
                tries.extend(known.repo(*place).map(|repo| (usize::from(place.folder), repo)));
            }
        }
        // What came there since it was listed, or if that is not done yet, lies where the Hub has it.
        for origin in want.origins.iter() {
            tries.extend((0..self.folders.len()).map(|n| (n, origin.repo.folder())));
        }
        tries.into_iter().find_map(|(n, repo)| self.folders[n].blob(&repo, want.blob, want.size))
    }

    fn is_bad(&self, blob: BlobId) {
        let mut known = self.known();
        known.blobs.remove(&blob);
        if !known.bad.contains(&blob) {
            if known.bad.len() >= MAX_BAD {
                known.bad.remove(0);
            }
            known.bad.push(blob);
        }
    }
}

#[async_trait]
impl Source for Seed {
    fn name(&self) -> &'static str {
        "seed"
    }

    async fn fetch(&self, want: &Want) -> Result<Fetched> {
        if want.is_empty() {
            return Ok(stream::empty().boxed());
        }
        let mut listed = self.listed.clone();
        let _ = tokio::time::timeout(PATIENCE, listed.wait_for(|done| *done)).await;
        let (inner, owned) = (self.inner.clone(), want.clone());
        let file = blocking(move || Ok(inner.open(&owned))).await?;
        let Some(file) = file else {
            return Err(Error::new(Kind::NotFound, format!("seed {}", self.inner.path.display())));
        };
        let range = want.range();
        let reading = Reading {
            inner: self.inner.clone(),
            blob: want.blob,
            file: Arc::new(file),
            at: range.start,
            end: range.end,
        };
        Ok(stream::try_unfold(reading, Reading::next).boxed())
    }

    fn is_near(&self, blob: BlobId) -> bool {
        // Until it is listed nobody knows: it is worth asking.
        self.inner.known().blobs.contains_key(&blob) || !*self.listed.borrow()
    }

    fn near(&self, blob: BlobId) -> Option<u64> {
        self.inner.known().blobs.get(&blob)?.size
    }

    fn all_near(&self, most: usize) -> Option<Vec<(BlobId, u64)>> {
        let mut all: Vec<(BlobId, u64)> = {
            let known = self.inner.known();
            if !known.measured {
                return None;
            }
            known.blobs.iter().filter_map(|(blob, place)| Some((*blob, place.size?))).collect()
        };
        if all.len() > most {
            all.select_nth_unstable_by_key(most, |(_, size)| std::cmp::Reverse(*size));
            all.truncate(most);
        }
        Some(all)
    }

    fn wrong(&self, blob: BlobId) {
        self.inner.is_bad(blob);
        tracing::warn!(seed = %self.inner.path.display(), %blob, "the seed has other bytes under this name: not used for it any more");
    }
}

/// A run being read.
struct Reading {
    inner: Arc<Inner>,
    blob: BlobId,
    file: Arc<File>,
    at: u64,
    end: u64,
}

impl Reading {
    async fn next(mut self) -> Result<Option<(Bytes, Self)>> {
        if self.at >= self.end {
            return Ok(None);
        }
        let (file, at) = (self.file.clone(), self.at);
        let len = (self.end - self.at).min(PIECE) as usize;
        let read = tokio::task::spawn_blocking(move || {
            let mut bytes = BytesMut::zeroed(len);
            file.read_exact_at(&mut bytes, at).map(|()| bytes.freeze())
        });
        let read = read.await.map_err(|e| Error::with_source(Kind::Internal, "reading a seed", e))?;
        match read {
            Ok(bytes) => {
                self.at += bytes.len() as u64;
                Ok(Some((bytes, self)))
            }
            Err(e) => {
                // Cut meanwhile, or its disk fails: another place has it. Not the cache's disk, whatever it was.
                self.inner.is_bad(self.blob);
                let what = format!("blob {} of seed {}", self.blob, self.inner.path.display());
                Err(Error::with_source(Kind::Unavailable, what, e))
            }
        }
    }
}

#[cfg(test)]
mod tests;
