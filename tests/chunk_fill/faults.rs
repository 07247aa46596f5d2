//! Sources that fail, lie and hang.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hfmount::chunk::{BlobEvent, ChunksOptions};
use hfmount::error::Kind;
use hfmount::meta::Recorded;

use crate::source::{Fault, Memory};
use crate::world::{Build, CHUNK, bytes, eventually, read_all, same, sha256, world};

#[tokio::test(flavor = "multi_thread")]
async fn transient_faults_are_tried_again_and_whole_chunks_kept() {
    let dir = tempfile::tempdir().unwrap();
    let w = world(dir.path()).await;
    let (blob, data) = w.blob(8 * CHUNK, 1).await;
    w.hub.fault(&[
        Fault::Refuse(Kind::Unavailable),
        Fault::Refuse(Kind::TimedOut),
        Fault::Break(CHUNK + 17),
        Fault::Short(100),
    ]);
    // A run of three chunks in one request.
    same(&blob.read(0, 3 * CHUNK as u32).await.unwrap(), &data[..3 * CHUNK]);
    let requests: Vec<_> = w.hub.requests().into_iter().filter(|(first, _)| *first < 3).collect();
    assert_eq!(requests, [(0, 3), (0, 3), (0, 3), (1, 2), (1, 2)], "the first chunk came whole");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_source_does_not_have_the_next_one_has() {
    let dir = tempfile::tempdir().unwrap();
    let bucket = Arc::new(Memory::new("bucket"));
    let w = Build { before: vec![bucket.clone()], ..Build::default() }.at(dir.path()).await;
    let (blob, data) = w.blob(6 * CHUNK, 1).await;
    same(&blob.read(0, 100).await.unwrap(), &data[..100]);
    assert_eq!((bucket.requests(), w.hub.requests()), (vec![(0, 1)], vec![(0, 1)]));
    // One that breaks off in the middle: the rest comes from the next, at once.
    bucket.put(blob.id(), data.clone());
    bucket.fault(&[Fault::Break(CHUNK + 5)]);
    same(&blob.read(2 * CHUNK as u64, 2 * CHUNK as u32).await.unwrap(), &data[2 * CHUNK..4 * CHUNK]);
    assert!(w.hub.requests().contains(&(3, 1)), "{:?}", w.hub.requests());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_hangs_is_given_up_for_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let bucket = Arc::new(Memory::new("bucket"));
    bucket.set_always(Fault::Hang);
    let options = ChunksOptions { source_timeout: Duration::from_millis(200), ..Build::default().options };
    let w = Build { before: vec![bucket], options, ..Build::default() }.at(dir.path()).await;
    let (blob, data) = w.blob(3 * CHUNK, 1).await;
    let start = Instant::now();
    same(&blob.read(0, 100).await.unwrap(), &data[..100]);
    assert!(start.elapsed() < Duration::from_secs(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_is_there_however_long_the_next_of_its_run_takes() {
    let dir = tempfile::tempdir().unwrap();
    let w = world(dir.path()).await;
    let (blob, data) = w.blob(3 * CHUNK, 1).await;
    w.hub.set_delay(Duration::from_millis(200));
    w.hub.fault(&[Fault::Stall(CHUNK + 5)]);
    let both = tokio::spawn({
        let blob = blob.clone();
        async move { blob.read(0, 2 * CHUNK as u32).await }
    });
    eventually("it is asked for", || w.hub.requests() == [(0, 2)]).await;
    // It waits before the first byte comes.
    let first = tokio::time::timeout(Duration::from_secs(2), blob.read(0, 100)).await;
    same(&first.expect("in time").unwrap(), &data[..100]);
    assert!(!both.is_finished(), "the second one does not come");
    both.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_hangs_does_not_hold_up_another() {
    let dir = tempfile::tempdir().unwrap();
    let options = ChunksOptions { source_timeout: Duration::from_secs(15), ..Build::default().options };
    let w = Build { options, ..Build::default() }.at(dir.path()).await;
    let mut stuck = Vec::new();
    for seed in 0..5 {
        let (blob, _) = w.blob(300 * CHUNK, seed).await;
        // Far enough to be fetched ahead of, by 128 chunks.
        for at in 0..5 {
            blob.read(at * CHUNK as u64, CHUNK as u32).await.unwrap();
        }
        w.hub.hang(blob.id());
        stuck.extend((0..40).map(|i| {
            let blob = blob.clone();
            tokio::spawn(async move { blob.read((150 + 3 * i) * CHUNK as u64, 100).await })
        }));
    }
    // A stall is known as one after a second.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let start = Instant::now();
    let (blob, data) = w.blob(200 * CHUNK, 99).await;
    same(&read_all(&blob, CHUNK as u32 / 2).await, &data);
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    assert!(stuck.iter().all(|task| !task.is_finished()));
    stuck.iter().for_each(|task| task.abort());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_is_bounded_as_a_whole() {
    let dir = tempfile::tempdir().unwrap();
    let options = ChunksOptions {
        io_timeout: Duration::from_millis(700),
        source_timeout: Duration::from_millis(300),
        ..Build::default().options
    };
    let w = Build { options, ..Build::default() }.at(dir.path()).await;
    let (blob, data) = w.blob(3 * CHUNK, 1).await;
    for fault in [Fault::Hang, Fault::Refuse(Kind::Unavailable)] {
        w.hub.set_always(fault);
        let start = Instant::now();
        let e = blob.read(0, 100).await.unwrap_err();
        assert_eq!(e.kind(), Kind::TimedOut, "{e}");
        assert!(start.elapsed() < Duration::from_secs(2), "{fault:?}");
        assert!(e.to_string().contains(&blob.id().to_string()), "{e}");
    }
    w.hub.set_always(Fault::None);
    same(&blob.read(0, 100).await.unwrap(), &data[..100]);
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_answered_at_once_and_not_asked_again_by_each_reader() {
    let dir = tempfile::tempdir().unwrap();
    let bucket = Arc::new(Memory::new("bucket"));
    let w = Build { before: vec![bucket.clone()], ..Build::default() }.at(dir.path()).await;
    let (blob, data) = w.blob(50 * CHUNK, 1).await;
    w.hub.set_always(Fault::Refuse(Kind::Access));
    for at in 0..10 {
        let e = blob.read(at * CHUNK as u64, 100).await.unwrap_err();
        assert_eq!(e.kind(), Kind::Access, "{e}");
    }
    assert_eq!(w.hub.requests().len(), 1);
    // What the bucket has is read all the same.
    bucket.put(blob.id(), data.clone());
    same(&blob.read(30 * CHUNK as u64, 100).await.unwrap(), &data[30 * CHUNK..30 * CHUNK + 100]);
    // A file whose bytes nobody has is there all the same.
    let gone = w.chunks.open_blob(sha256(b"gone"), 4).await.unwrap();
    w.hub.set_always(Fault::None);
    let e = gone.read(0, 4).await.unwrap_err();
    assert_eq!((e.kind(), e.errno()), (Kind::Unavailable, libc::EIO), "{e}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_differ_from_the_record_are_never_served() {
    let dir = tempfile::tempdir().unwrap();
    let bucket = Arc::new(Memory::new("bucket"));
    let w = Build { before: vec![bucket.clone()], ..Build::default() }.at(dir.path()).await;
    let (blob, data) = w.blob(4 * CHUNK, 1).await;
    for (idx, chunk) in data.chunks(CHUNK).enumerate() {
        let hash = *blake3::hash(chunk).as_bytes();
        assert_eq!(w.blobs.record(blob.id(), idx as u64, hash).await.unwrap(), Recorded::New);
    }
    bucket.put(blob.id(), data.clone());
    bucket.fault(&[Fault::Wrong(10)]);
    same(&blob.read(0, 100).await.unwrap(), &data[..100]);
    assert_eq!(w.hub.requests(), [(0, 1)], "the next source was asked");
    assert_eq!(w.chunks.stats().chunks_wrong, 1);

    // Verified: the origin's word does not change it either.
    w.blobs.mark_verified(blob.id()).await.unwrap();
    bucket.set_always(Fault::Wrong(0));
    w.hub.set_always(Fault::Wrong(1));
    let e = blob.read(3 * CHUNK as u64, 10).await.unwrap_err();
    assert_eq!(e.kind(), Kind::Corrupt, "{e}");
    bucket.set_always(Fault::None);
    same(&blob.read(3 * CHUNK as u64, 10).await.unwrap(), &data[3 * CHUNK..3 * CHUNK + 10]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_record_gives_way_to_the_origin_asked_twice() {
    let dir = tempfile::tempdir().unwrap();
    let w = world(dir.path()).await;
    let (blob, data) = w.blob(4 * CHUNK, 1).await;
    assert_eq!(w.blobs.record(blob.id(), 1, [7; 32]).await.unwrap(), Recorded::New);
    same(&blob.read(CHUNK as u64, 100).await.unwrap(), &data[CHUNK..CHUNK + 100]);
    assert_eq!(w.hub.times()[1], 2);
    let row = w.blobs.chunks(blob.id(), 1, 1).await.unwrap()[0];
    assert_eq!(row.hash, Some(*blake3::hash(&data[CHUNK..2 * CHUNK]).as_bytes()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_is_not_what_its_name_says_is_dropped_and_fetched_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    let bucket = Arc::new(Memory::new("bucket"));
    let w = Build { before: vec![bucket.clone()], ..Build::default() }.at(dir.path()).await;
    let mut events = w.chunks.events();
    let (blob, data) = w.blob(6 * CHUNK, 1).await;
    let mut wrong = data.to_vec();
    wrong[3 * CHUNK] ^= 1;
    let wrong_hash = *blake3::hash(&wrong[3 * CHUNK..4 * CHUNK]).as_bytes();
    bucket.put(blob.id(), wrong.into());
    read_all(&blob, CHUNK as u32).await;
    assert_eq!(events.recv().await.unwrap(), BlobEvent::Mismatch(blob.id()));
    let row = w.blobs.chunks(blob.id(), 3, 1).await.unwrap()[0];
    assert_ne!(row.hash, Some(wrong_hash), "taken back");
    let asked = bucket.chunks_asked();
    same(&read_all(&blob, CHUNK as u32).await, &data);
    assert_eq!(events.recv().await.unwrap(), BlobEvent::Verified(blob.id()));
    assert_eq!(bucket.chunks_asked(), asked, "only the origin was asked");
    assert_eq!(w.chunks.stats().mismatches, 1);
    // The kernel may have what was read at first, and be told to forget it later than the next one opens the blob.
    let (id, size) = (blob.id(), blob.size());
    drop(blob);
    assert!(w.chunks.open_blob(id, size).await.unwrap().was_wrong());
    assert!(!w.blob(2 * CHUNK, 2).await.0.was_wrong());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_blob_is_checked_before_anybody_sees_it() {
    let dir = tempfile::tempdir().unwrap();
    let w = world(dir.path()).await;
    let (blob, data) = w.blob(1000, 1).await;
    // Even a record in agreement with the wrong bytes.
    let mut wrong = data.to_vec();
    wrong[500] ^= 1;
    let hash = *blake3::hash(&wrong).as_bytes();
    assert_eq!(w.blobs.record(blob.id(), 0, hash).await.unwrap(), Recorded::New);
    w.hub.fault(&[Fault::Wrong(500), Fault::Wrong(500)]);
    same(&blob.read(0, 1000).await.unwrap(), &data);
    assert_eq!(w.hub.requests().len(), 3);
    eventually("verified", || blob.is_verified()).await;
    w.hub.put(sha256(b"x"), bytes(1, 0));
    let bad = w.chunks.open_blob(sha256(b"x"), 1).await.unwrap();
    assert_eq!(bad.read(0, 1).await.unwrap_err().kind(), Kind::Corrupt);
}
