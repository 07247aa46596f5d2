//! What programs see: bytes, sizes, times.

use std::sync::atomic::Ordering::SeqCst;

use bytes::Bytes;

use super::world::{CHUNK, World, pattern, same};
use crate::meta::{Content, INLINE_MAX};

const C: usize = CHUNK as usize;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_mount_flushed_another_reads() {
    let world = World::new();
    let (a, b) = (world.node().await, world.node().await);
    let ino = a.create("f").await;
    let data = pattern(1, 3 * C + 500);
    let file = a.open(ino).await;
    assert_eq!(file.write(0, data.clone()).await.expect("write"), data.len() as u32);
    same(&a.read_all(&file).await, &data, "one's own writes");
    same(&b.contents(ino).await, &Bytes::new(), "nothing before the flush");
    let attr = file.flush().await.expect("flush");
    assert_eq!((attr.size, attr.content), (data.len() as u64, Content::Extents));
    assert!(!file.is_dirty());
    same(&b.contents(ino).await, &data, "contents");
    assert_eq!(world.kept_bytes(&b, ino).await, data.len() as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flush_without_news_commits_nothing() {
    let world = World::new();
    let (a, b) = (world.node().await, world.node().await);
    let ino = a.create("f").await;
    let reader = b.open(ino).await;
    let writer = a.open(ino).await;
    writer.write(0, pattern(1, 9000)).await.expect("write");
    let version = writer.flush().await.expect("flush").version;
    assert_eq!(writer.flush().await.expect("again").version, version);
    // A handle from before that never wrote must not put its old view back.
    reader.flush().await.expect("nothing");
    assert_eq!(a.meta.getattr(ino).await.expect("attr").version, version);
    same(&b.contents(ino).await, &pattern(1, 9000), "contents");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_files_lie_in_the_metadata_and_move_out_and_in() {
    let world = World::new();
    let (a, b) = (world.node().await, world.node().await);
    let ino = a.create("f").await;
    let file = a.open(ino).await;
    file.write(0, pattern(1, 1000)).await.expect("write");
    let attr = file.flush().await.expect("flush");
    assert!(matches!(&attr.content, Content::Inline(b) if b[..] == pattern(1, 1000)[..]));
    assert_eq!(world.faults.puts.load(SeqCst), 0, "no object for it");
    same(&b.contents(ino).await, &pattern(1, 1000), "contents");

    // One byte more than fits.
    file.write(INLINE_MAX as u64, Bytes::from_static(b"!")).await.expect("write");
    assert_eq!(file.flush().await.expect("flush").content, Content::Extents);
    let mut wanted = vec![0; INLINE_MAX + 1];
    wanted[..1000].copy_from_slice(&pattern(1, 1000));
    wanted[INLINE_MAX] = b'!';
    same(&b.contents(ino).await, &wanted, "contents");

    file.truncate(10).await.expect("truncate");
    assert!(matches!(file.flush().await.expect("flush").content, Content::Inline(_)));
    same(&b.contents(ino).await, &pattern(1, 1000)[..10], "contents");
    file.truncate(0).await.expect("truncate");
    assert_eq!(file.flush().await.expect("flush").content, Content::None);
    same(&b.contents(ino).await, &Bytes::new(), "contents");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_append_uploads_what_it_appended() {
    let world = World::new();
    let a = world.node().await;
    let ino = a.create("f").await;
    let file = a.open(ino).await;
    file.write(0, pattern(1, C / 2)).await.expect("write");
    file.flush().await.expect("flush");
    let before = world.faults.put_bytes.load(SeqCst);
    let mut wanted = pattern(1, C / 2).to_vec();
    for i in 0..5u64 {
        let line = pattern(10 + i, 100);
        assert_eq!(file.append(line.clone()).await.expect("append"), wanted.len() as u64);
        wanted.extend_from_slice(&line);
        file.flush().await.expect("flush");
    }
    assert_eq!(world.faults.put_bytes.load(SeqCst) - before, 500);
    same(&world.node().await.contents(ino).await, &wanted, "contents");

    // Many of them: the chunk is compacted now and then, and never has more than eight extents.
    for i in 0..30u64 {
        let line = pattern(100 + i, 64);
        file.append(line.clone()).await.expect("append");
        wanted.extend_from_slice(&line);
        file.flush().await.expect("flush");
        let rows = a.meta.extents(ino, &[0]).await.expect("rows");
        assert!(rows[0].len() <= 8, "{}", rows[0].len());
    }
    same(&world.node().await.contents(ino).await, &wanted, "contents");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn appends_at_once_do_not_overlap() {
    let world = World::new();
    let a = world.node().await;
    let ino = a.create("f").await;
    let mut tasks = tokio::task::JoinSet::new();
    for i in 0..20u8 {
        let file = a.open(ino).await;
        tasks.spawn(async move { file.append(Bytes::from(vec![i + 1; 777])).await.expect("append") });
    }
    let mut places = tasks.join_all().await;
    places.sort_unstable();
    assert_eq!(places, (0..20).map(|i| i * 777).collect::<Vec<u64>>());
    let bytes = a.contents(ino).await;
    assert!(bytes.chunks(777).all(|c| c.iter().all(|b| b == &c[0])));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sparse_file_takes_no_objects_for_its_holes() {
    let world = World::new();
    let (a, b) = (world.node().await, world.node().await);
    let ino = a.create("f").await;
    let file = a.open(ino).await;
    let far = 1u64 << 40;
    file.write(far, Bytes::from_static(b"end")).await.expect("write");
    file.truncate(far + 10).await.expect("longer");
    file.flush().await.expect("flush");
    assert_eq!(world.faults.put_bytes.load(SeqCst), 3);
    let other = b.open(ino).await;
    assert_eq!(other.size(), far + 10);
    assert_eq!(&other.read(far - 5, 100).await.expect("read")[..], b"\0\0\0\0\0end\0\0\0\0\0\0\0");
    assert_eq!(other.read(1 << 30, 4096).await.expect("read"), vec![0; 4096]);
    // And back: what was cut off does not come again.
    file.truncate(far + 1).await.expect("cut");
    file.truncate(far + 10).await.expect("longer");
    file.flush().await.expect("flush");
    assert_eq!(&b.open(ino).await.read(far, 100).await.expect("read")[..], b"e\0\0\0\0\0\0\0\0\0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blob_becomes_file_data_with_the_first_write() {
    let world = World::new();
    let (a, b) = (world.node().await, world.node().await);
    let (ino, bytes) = world.blob(&a, 3 * C + 77).await;
    same(&a.contents(ino).await, &bytes, "contents");
    let file = a.open(ino).await;
    assert_eq!(
        file.flush().await.expect("nothing").content,
        a.meta.getattr(ino).await.expect("attr").content
    );
    file.write(C as u64 + 5, Bytes::from_static(b"changed")).await.expect("write");
    let mut wanted = bytes.to_vec();
    wanted[C + 5..C + 12].copy_from_slice(b"changed");
    same(&a.read_all(&file).await, &wanted, "contents");
    assert_eq!(file.flush().await.expect("flush").content, Content::Extents);
    same(&b.contents(ino).await, &wanted, "contents");
    same(&a.read_all(&file).await, &wanted, "contents");

    // Cut to nothing first: not a byte of it is read.
    let (ino, _) = world.blob(&a, 3 * C).await;
    let reads = world.blob_reads();
    let file = a.open(ino).await;
    file.truncate(0).await.expect("truncate");
    file.write(0, pattern(5, 5000)).await.expect("write");
    file.flush().await.expect("flush");
    assert_eq!(world.blob_reads(), reads);
    same(&b.contents(ino).await, &pattern(5, 5000), "contents");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn times_set_after_a_write_stay() {
    let world = World::new();
    let a = world.node().await;
    let ino = a.create("f").await;
    let file = a.open(ino).await;
    let before = a.meta.getattr(ino).await.expect("attr").mtime;
    file.write(0, pattern(1, 10)).await.expect("write");
    assert!(file.attr().mtime > before);
    file.set_times(async { Ok(()) }).await.expect("times");
    assert_eq!(file.flush().await.expect("flush").mtime, before);
    file.write(0, pattern(1, 10)).await.expect("write");
    assert!(file.flush().await.expect("flush").mtime > before);
}

/// A release commits while somebody asks for attributes: who read them before must not show them after.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn regression_attributes_read_before_a_commit_are_overtaken() {
    let world = World::new();
    let a = world.node().await;
    let ino = a.create("f").await;
    let file = a.open(ino).await;
    file.write(0, pattern(1, 5000)).await.expect("write");
    file.flush().await.expect("flush");
    let early = a.meta.getattr(ino).await.expect("attr");
    file.truncate(100).await.expect("truncate");
    assert_eq!(file.attr_over(early.clone()).size, 100, "before the commit");
    let after = file.flush().await.expect("flush");
    let shown = file.attr_over(early);
    assert_eq!((shown.size, shown.mtime, shown.version), (100, after.mtime, after.version), "after it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_is_fast_to_read_and_the_rest_says_so() {
    let world = World::new();
    let (a, b) = (world.node().await, world.node().await);
    let ino = a.create("f").await;
    let fa = a.open(ino).await;
    fa.write(0, pattern(1, 2 * C)).await.expect("write");
    let mut buf = vec![0; 2 * C + 10];
    assert_eq!(fa.try_read(0, &mut buf), Some(2 * C));
    assert_eq!(buf[..2 * C], pattern(1, 2 * C)[..]);
    assert_eq!(fa.try_read(2 * C as u64, &mut buf), Some(0), "the end");
    fa.flush().await.expect("flush");
    let fb = b.open(ino).await;
    assert_eq!(fb.try_read(0, &mut buf), None);
    fb.read(0, 10).await.expect("read");
    assert_eq!(fb.try_read(5, &mut buf[..100]), Some(100));
    assert_eq!(buf[..100], pattern(1, 2 * C)[5..105]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_kept_for_the_upload_is_what_the_file_has() {
    let world = World::new();
    let (a, b) = (world.node().await, world.node().await);
    let whole = pattern(1, C);
    // In order, in pieces, and over two chunks.
    let ino = a.create("f").await;
    let file = a.open(ino).await;
    for at in (0..C + 700).step_by(700) {
        let wanted = pattern(2, C + 1400);
        file.write(at as u64, wanted.slice(at..at + 700)).await.expect("write");
    }
    let attr = file.flush().await.expect("flush");
    same(&b.contents(ino).await, &pattern(2, C + 1400)[..attr.size as usize], "in pieces");

    // A file of both mounts that lies in its row: what was kept of one's own bytes is old when the other's are copied.
    let ino = a.create("g").await;
    let (ours, theirs) = (a.open(ino).await, b.open(ino).await);
    ours.write(0, whole.slice(..1000)).await.expect("write");
    ours.flush().await.expect("flush");
    let theirs_attr = b.meta.getattr(ino).await.expect("attr");
    theirs.refresh(&theirs_attr);
    theirs.write(0, pattern(3, 1000)).await.expect("write");
    theirs.flush().await.expect("flush");
    ours.refresh(&a.meta.getattr(ino).await.expect("attr"));
    ours.write(1000, whole.slice(1000..5000)).await.expect("write");
    ours.flush().await.expect("flush");
    let mut wanted = pattern(3, 1000).to_vec();
    wanted.extend_from_slice(&whole[1000..5000]);
    same(&b.contents(ino).await, &wanted, "behind what the other wrote");
    same(&a.contents(ino).await, &wanted, "and here");

    // Cut and written again, overwritten in the middle.
    let ino = a.create("h").await;
    let file = a.open(ino).await;
    file.write(0, whole.slice(..9000)).await.expect("write");
    file.truncate(5000).await.expect("cut");
    file.write(5000, pattern(4, 4000)).await.expect("write");
    file.write(100, pattern(5, 50)).await.expect("write");
    file.write(9000, pattern(6, 100)).await.expect("write");
    file.flush().await.expect("flush");
    let mut wanted = whole[..5000].to_vec();
    wanted.extend_from_slice(&pattern(4, 4000));
    wanted[100..150].copy_from_slice(&pattern(5, 50));
    wanted.extend_from_slice(&pattern(6, 100));
    same(&b.contents(ino).await, &wanted, "cut and overwritten");
}
