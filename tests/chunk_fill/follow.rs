//! What a reader's conduct brings: a loader the whole at once, and the blobs that follow it; a reader of a header next to nothing.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use hfmount::chunk::cache::CacheLimits;
use hfmount::chunk::{BlobContent, ChunksOptions, Sequel};
use hfmount::error::Result;
use hfmount::types::{BlobId, Origin};

use crate::source::Memory;
use crate::world::{Build, CHUNK, World, bytes, eventually, read_all, same, sha256};

/// Blobs that are read in this order.
#[derive(Debug)]
struct Order(Vec<(BlobId, u64)>);

#[async_trait::async_trait]
impl Sequel for Order {
    async fn after(&self, blob: BlobId, _: &[Origin], most: usize) -> Result<Vec<(BlobId, u64)>> {
        let at = self.0.iter().position(|(id, _)| *id == blob).expect("one of them");
        Ok(self.0[at + 1..].iter().take(most).copied().collect())
    }
}

/// Blobs of so many chunks, one after the other.
async fn sequence(w: &World, chunks: &[usize]) -> Vec<(BlobId, u64)> {
    let mut order = Vec::new();
    for (n, chunks) in chunks.iter().enumerate() {
        let data = bytes(chunks * CHUNK, n as u64);
        let (id, len) = (sha256(&data), data.len() as u64);
        w.hub.put(id, data);
        w.blobs.introduce(id, len, None).await.unwrap();
        order.push((id, len));
    }
    w.chunks.learn_what_follows(Arc::new(Order(order.clone())));
    order
}

async fn open(w: &World, (id, len): (BlobId, u64)) -> Arc<BlobContent> {
    w.chunks.open_blob(id, len).await.unwrap()
}

fn here(w: &World, (id, len): (BlobId, u64)) -> u64 {
    w.chunks.filled_bytes(&id, len) / CHUNK as u64
}

#[tokio::test(flavor = "multi_thread")]
async fn who_goes_on_after_the_first_chunk_gets_what_fills_a_link() {
    let dir = tempfile::tempdir().unwrap();
    let w = crate::world::world(dir.path()).await;
    let (blob, _) = w.blob(500 * CHUNK, 1).await;
    for at in (0..CHUNK).step_by(8 << 10) {
        blob.read(at as u64, 8 << 10).await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(w.hub.chunks_asked(), 2, "perhaps it was a header: {:?}", w.hub.requests());
    blob.read(CHUNK as u64, 100).await.unwrap();
    eventually("many at once", || w.hub.chunks_asked() >= 2 + 16).await;
    assert!(w.hub.requests().len() >= 2 + 8, "by several transfers: {:?}", w.hub.requests());
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_transfers_ahead_than_the_source_bears() {
    let dir = tempfile::tempdir().unwrap();
    let mut hub = Memory::new("hub");
    hub.ahead = Some(3);
    let w = Build { hub, ..Build::default() }.at(dir.path()).await;
    w.hub.set_delay(Duration::from_millis(5));
    let (blob, data) = w.blob(200 * CHUNK, 1).await;
    same(&read_all(&blob, 16 << 10).await, &data);
    // And the reader's own.
    assert!(w.hub.most_open.load(SeqCst) <= 4, "{}", w.hub.most_open.load(SeqCst));
    assert!(w.hub.times().iter().all(|n| *n == 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_follows_a_blob_that_is_read_whole_comes_before_it_is_opened() {
    let dir = tempfile::tempdir().unwrap();
    let w = crate::world::world(dir.path()).await;
    let order = sequence(&w, &[40, 30, 1, 50]).await;
    let one = open(&w, order[0]).await;
    read_all(&one, 16 << 10).await;
    drop(one);
    // All that follows is less than the window.
    for blob in &order[1..] {
        eventually("it is here", || here(&w, *blob) * CHUNK as u64 == blob.1).await;
    }
    let asked = w.hub.chunks_asked();
    assert_eq!(asked, 121, "each once");
    for blob in &order[1..] {
        let content = open(&w, *blob).await;
        assert!(content.is_complete());
        assert_eq!(read_all(&content, 64 << 10).await.len() as u64, blob.1);
    }
    assert_eq!(w.hub.chunks_asked(), asked);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_than_a_window_follows_until_the_reader_comes() {
    let dir = tempfile::tempdir().unwrap();
    // An eighth of it: 20 chunks.
    let limits = CacheLimits { max_bytes: (160 * CHUNK) as u64, free_ratio: 0.0, ..CacheLimits::default() };
    let w = Build { limits, ..Build::default() }.at(dir.path()).await;
    let order = sequence(&w, &[30, 12, 30, 30]).await;
    let one = open(&w, order[0]).await;
    read_all(&one, 16 << 10).await;
    eventually("the window is here", || here(&w, order[1]) + here(&w, order[2]) == 20).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(order[1..].iter().map(|blob| here(&w, *blob)).collect::<Vec<_>>(), [12, 8, 0]);
    // The kernel may read what is complete without a word: its open tells enough.
    drop(open(&w, order[1]).await);
    eventually("what follows it", || here(&w, order[2]) == 20).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!((here(&w, order[2]), here(&w, order[3])), (20, 0), "opened again it is no news");
    drop(open(&w, order[1]).await);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!((here(&w, order[2]), here(&w, order[3])), (20, 0));
    let three = open(&w, order[2]).await;
    read_all(&three, 16 << 10).await;
    eventually("the last one", || here(&w, order[3]) == 20).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_follows_readers_of_headers_and_random_ones() {
    let dir = tempfile::tempdir().unwrap();
    let w = crate::world::world(dir.path()).await;
    let order = sequence(&w, &[40, 40]).await;
    let one = open(&w, order[0]).await;
    one.read(0, 8).await.unwrap();
    one.read(8, 50_000).await.unwrap();
    for n in 0..60_u64 {
        one.read((n * 17 % 40) * CHUNK as u64 + 5, 100).await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(here(&w, order[1]), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_follows_where_only_the_bucket_can_be_asked() {
    let dir = tempfile::tempdir().unwrap();
    let w = Build { hub: Memory::new("bucket"), ..Build::default() }.at(dir.path()).await;
    let order = sequence(&w, &[40, 40]).await;
    let one = open(&w, order[0]).await;
    read_all(&one, 16 << 10).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(here(&w, order[1]), 0);
}

/// Who had a look at the header keeps what was fetched for him, and reads on from there.
#[tokio::test(flavor = "multi_thread")]
async fn who_looked_at_the_next_header_before_reads_on_from_what_is_here() {
    let dir = tempfile::tempdir().unwrap();
    let options = ChunksOptions { chunk_size: CHUNK as u32, ..Build::default().options };
    let w = Build { options, ..Build::default() }.at(dir.path()).await;
    let order = sequence(&w, &[40, 40]).await;
    let (one, two) = (open(&w, order[0]).await, open(&w, order[1]).await);
    two.read(0, 100).await.unwrap();
    assert_eq!(here(&w, order[1]), 1);
    let first = read_all(&one, 16 << 10).await;
    same(&first, &bytes(40 * CHUNK, 0));
    eventually("all of the second", || here(&w, order[1]) == 40).await;
    same(&read_all(&two, 16 << 10).await, &bytes(40 * CHUNK, 1));
    assert_eq!(w.hub.chunks_asked(), 80);
}
