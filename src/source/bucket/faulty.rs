//! A store that fails on demand, around any other. For tests; nothing else uses it.

use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

use super::{Bucket, Patience};

/// Switches of a faulty store, and what was asked of it.
#[derive(Debug, Default)]
pub struct Faults {
    /// This many next uploads answer 503.
    pub fail_puts: AtomicU32,
    /// This many next uploads are applied, and answer 503.
    pub lose_replies: AtomicU32,
    /// This many next reads answer 503.
    pub fail_gets: AtomicU32,
    /// This many next bodies break off after half.
    pub cut_bodies: AtomicU32,
    /// This many next bodies come with one bit changed.
    pub flip_bodies: AtomicU32,
    /// Every request waits this long first, in ms.
    pub delay: AtomicU64,
    pub put_bytes: AtomicU64,
    pub puts: AtomicU64,
    pub gets: AtomicU64,
    /// Names that were deleted.
    pub deleted: Mutex<Vec<String>>,
    /// Uploads of exactly so many bytes never answer; 0: none.
    pub hang_at: AtomicU64,
    /// Only uploads at or above this many bytes fail.
    pub fail_from: AtomicU64,
}

/// Takes one of `n`, if there is one.
fn take(n: &AtomicU32) -> bool {
    n.fetch_update(SeqCst, SeqCst, |n| n.checked_sub(1)).is_ok()
}

fn unavailable() -> object_store::Error {
    let source = "Server returned non-2xx status code: 503 Service Unavailable: SlowDown".into();
    object_store::Error::Generic { store: "faulty", source }
}

impl Faults {
    /// Nothing fails any more.
    pub fn heal(&self) {
        for n in [&self.fail_puts, &self.lose_replies, &self.fail_gets, &self.cut_bodies, &self.flip_bodies] {
            n.store(0, SeqCst);
        }
        for n in [&self.delay, &self.hang_at, &self.fail_from] {
            n.store(0, SeqCst);
        }
    }
}

#[derive(Debug)]
struct Faulty {
    inner: Arc<dyn ObjectStore>,
    faults: Arc<Faults>,
}

/// The same objects by way of a store that fails on demand, with the patience of a test.
#[must_use]
pub fn around(bucket: &Bucket) -> (Bucket, Arc<Faults>) {
    let faults = Arc::new(Faults::default());
    let store = Arc::new(Faulty { inner: bucket.shared.store.clone(), faults: faults.clone() });
    let patience = Patience { progress: Duration::from_secs(20), total: Duration::from_millis(400) };
    let around = Bucket::over(store, bucket.shared.root.clone(), "faulty".into(), None);
    (around.with_patience(patience), faults)
}

/// A bucket in memory that fails on demand, with the patience of a test.
#[cfg(test)]
pub(crate) fn faulty_bucket() -> (Bucket, Arc<Faults>) {
    let faults = Arc::new(Faults::default());
    let store = Faulty { inner: Arc::new(object_store::memory::InMemory::new()), faults: faults.clone() };
    let patience = Patience { progress: Duration::from_secs(2), total: Duration::from_millis(600) };
    (Bucket::in_store(Arc::new(store), "vol").with_patience(patience), faults)
}

impl Faulty {
    async fn delay(&self) {
        match self.faults.delay.load(SeqCst) {
            0 => {}
            ms => tokio::time::sleep(Duration::from_millis(ms)).await,
        }
    }
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "faulty {}", self.inner)
    }
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        self.delay().await;
        let bytes = payload.content_length() as u64;
        self.faults.puts.fetch_add(1, SeqCst);
        while bytes > 0 && self.faults.hang_at.load(SeqCst) == bytes {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        if bytes >= self.faults.fail_from.load(SeqCst) && take(&self.faults.fail_puts) {
            return Err(unavailable());
        }
        self.faults.put_bytes.fetch_add(bytes, SeqCst);
        let result = self.inner.put_opts(location, payload, opts).await;
        if take(&self.faults.lose_replies) { Err(unavailable()) } else { result }
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, opts).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.delay().await;
        self.faults.gets.fetch_add(1, SeqCst);
        if take(&self.faults.fail_gets) {
            return Err(unavailable());
        }
        let result = self.inner.get_opts(location, options).await?;
        let flip = take(&self.faults.flip_bodies);
        if !flip && !take(&self.faults.cut_bodies) {
            return Ok(result);
        }
        let (meta, range, attributes) =
            (result.meta.clone(), result.range.clone(), result.attributes.clone());
        let extensions = result.extensions.clone();
        let all = result.bytes().await?;
        let stream = if flip {
            let mut all = all.to_vec();
            let middle = all.len() / 2;
            all[middle] ^= 1;
            futures::stream::iter(vec![Ok(Bytes::from(all))])
        } else {
            futures::stream::iter(vec![Ok(all.slice(..all.len() / 2)), Err(unavailable())])
        };
        let payload = GetResultPayload::Stream(stream.boxed());
        Ok(GetResult { payload, meta, range, attributes, extensions })
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.inner.get_ranges(location, ranges).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let faults = self.faults.clone();
        let noted = locations.inspect(move |l| {
            if let Ok(l) = l {
                faults.deleted.lock().unwrap_or_else(PoisonError::into_inner).push(l.to_string());
            }
        });
        self.inner.delete_stream(noted.boxed())
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        if take(&self.faults.fail_gets) {
            return futures::future::ready(Err(unavailable())).into_stream().boxed();
        }
        self.inner.list(prefix)
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
