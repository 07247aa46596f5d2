//! Journals beside the own cache directory. Of several daemons of one machine each has a sibling of it; if they end in a crash
//! and not all of them come back, somebody else must upload what theirs hold: this mount does, as another mount would.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::blocking::blocking;
use crate::chunk::Files;
use crate::chunk::cache::{CacheDir, CacheLimits, Waiting};
use crate::chunk::file::{BlobReader, FilesOptions};
use crate::error::Result;
use crate::meta::kv::Kv;
use crate::meta::{Meta, SessionInfo};
use crate::source::bucket::Bucket;

/// How often is looked; and how long other daemons may take to take up their own directories again.
const EVERY: Duration = Duration::from_secs(20);
/// How often is looked whether the end has come.
const STEP: Duration = Duration::from_millis(500);
/// What the end of one of them may take.
const GRACE: Duration = Duration::from_secs(2);

/// What it takes to upload them.
pub(super) struct Means {
    pub kv: Arc<dyn Kv>,
    pub info: SessionInfo,
    pub session_ttl: Duration,
    pub bucket: Bucket,
    pub blobs: Arc<dyn BlobReader>,
    pub chunk_size: u32,
    pub volume: String,
    pub limits: CacheLimits,
    pub io_timeout: Duration,
}

/// The watch over the siblings of a cache directory.
pub(super) struct Siblings {
    task: JoinHandle<()>,
    stop: watch::Sender<bool>,
}

impl Siblings {
    /// `own`: the directory that was taken, when `wanted` was.
    pub fn watch(means: Means, wanted: PathBuf, own: PathBuf) -> Self {
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(async move {
            let mut stopped = stopped;
            loop {
                if tokio::time::timeout(EVERY, stopped.wait_for(|stop| *stop)).await.is_ok() {
                    return;
                }
                let (wanted, own) = (wanted.clone(), own.clone());
                let found = blocking(move || Ok(left_in(&wanted, &own))).await.unwrap_or_default();
                for root in found {
                    if let Err(error) = upload(&means, &root, &stopped).await {
                        tracing::warn!("data in {} is not uploaded yet: {error}", root.display());
                    }
                }
            }
        });
        Siblings { task, stop }
    }

    /// What is not uploaded by now stays where it is.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        let end = self.task.abort_handle();
        if tokio::time::timeout(GRACE * 3, self.task).await.is_err() {
            end.abort();
        }
    }
}

/// Siblings that nobody need be using, and that have something in their journals.
fn left_in(wanted: &Path, own: &Path) -> Vec<PathBuf> {
    let mut found = CacheDir::siblings(wanted);
    found.retain(|root| root != own && Waiting::in_dir(root).is_ok_and(|waiting| waiting.files > 0));
    found
}

/// Uploads the journal in `root`, unless a daemon uses it.
async fn upload(means: &Means, root: &Path, stopped: &watch::Receiver<bool>) -> Result<()> {
    let (path, volume, limits) = (root.to_owned(), means.volume.clone(), means.limits.clone());
    let Some(cache) = blocking(move || CacheDir::open_this(&path, &volume, limits)).await? else {
        return Ok(());
    };
    tracing::info!("{} has data that nobody uploads: that is done from here", root.display());
    // As another mount, so that this one hears of it as of any other's.
    let info = SessionInfo { mountpoint: root.display().to_string(), ..means.info.clone() };
    let meta = Meta::open(means.kv.clone(), info, means.session_ttl).await?;
    let options =
        FilesOptions { io_timeout: means.io_timeout, drain: Duration::ZERO, ..FilesOptions::default() };
    let files = Files::with_options(
        meta.clone(),
        cache.clone(),
        means.bucket.clone(),
        means.blobs.clone(),
        means.chunk_size,
        options,
    );
    let resumed = files.resume().await;
    while resumed.is_ok() && files.waiting().0.files > 0 && !*stopped.borrow() {
        files.drain(STEP).await;
    }
    let closed = files.close(GRACE).await;
    let cached = blocking(move || cache.close()).await;
    resumed.map(drop).and(closed).and(cached).and(meta.close().await)
}
