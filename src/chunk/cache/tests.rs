use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::error::Kind;

const CHUNK: u32 = 64 << 10;

fn blob(n: u8) -> ContentKey {
    ContentKey::Blob(BlobId::Sha256([n; 32]))
}

fn open(path: &Path) -> Arc<CacheDir> {
    open_with(path, CacheLimits { free_ratio: 0.0, ..CacheLimits::default() })
}

fn open_with(path: &Path, limits: CacheLimits) -> Arc<CacheDir> {
    let dir = CacheDir::open(path, "volume", limits).expect("cache directory");
    assert!(dir.wait_loaded(Duration::from_secs(10)));
    dir
}

fn fill(file: &CacheFile, idx: u64, byte: u8) {
    let data = vec![byte; file.chunk_len(idx) as usize];
    file.write_at(idx * u64::from(CHUNK), &data).expect("write");
    file.record(idx, &BLOB_TAG, blake3::hash(&data).as_bytes(), data.len() as u32, || ()).expect("record");
}

fn read_chunk(file: &CacheFile, idx: u64) -> Option<Vec<u8>> {
    let mut buf = vec![0xEE; file.chunk_len(idx) as usize];
    let n = file.read_present(idx * u64::from(CHUNK), &mut buf).expect("read")?;
    assert_eq!(n, buf.len());
    Some(buf)
}

/// As after a crash: the directory is let go without saying that it stopped cleanly.
fn crash(dir: Arc<CacheDir>) {
    let left = Arc::downgrade(&dir);
    drop(dir);
    for _ in 0..1000 {
        if left.strong_count() == 0 {
            return;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    panic!("somebody holds the cache directory");
}

#[test]
fn what_was_filled_is_there_after_a_clean_restart() {
    let tmp = tempfile::tempdir().expect("a directory");
    let size = u64::from(CHUNK) * 2 + 100;
    {
        let dir = open(tmp.path());
        let file = dir.open_content(blob(1), size, CHUNK).expect("open");
        fill(&file, 0, 1);
        fill(&file, 2, 3);
        assert_eq!(file.filled_bytes(), u64::from(CHUNK) + 100);
        assert!(!file.is_complete());
        file.set_verified(true).expect("verified");
        file.set_stored(2, blake3::hash(&[3; 100]).as_bytes()).expect("stored");
        drop(file);
        dir.close().expect("close");
    }
    let dir = open(tmp.path());
    let file = dir.open_content(blob(1), size, CHUNK).expect("open");
    assert!(read_chunk(&file, 0) == Some(vec![1; CHUNK as usize]));
    assert!(read_chunk(&file, 1).is_none());
    assert!(read_chunk(&file, 2) == Some(vec![3; 100]));
    let mut buf = [0; 200];
    assert_eq!(file.try_read(size - 50, &mut buf), Some(50), "only to the end");
    assert_eq!(file.try_read(u64::from(CHUNK) - 10, &mut buf), None, "half of it absent");
    assert!(file.is_verified());
    assert!(file.record_of(2).expect("record").expect("present").stored);
    assert!(!file.record_of(0).expect("record").expect("present").stored);
    assert_eq!(file.filled_bytes(), u64::from(CHUNK) + 100);
    assert!(dir.stats().bytes >= u64::from(CHUNK));
}

#[test]
fn after_a_crash_bytes_are_checked_before_they_are_used() {
    let tmp = tempfile::tempdir().expect("a directory");
    let size = u64::from(CHUNK) * 3;
    let dir = open(tmp.path());
    let file = dir.open_content(blob(1), size, CHUNK).expect("open");
    fill(&file, 0, 1);
    drop(file);
    dir.close().expect("close");
    crash(dir);

    let dir = open(tmp.path());
    let file = dir.open_content(blob(1), size, CHUNK).expect("open");
    fill(&file, 1, 2);
    fill(&file, 2, 3);
    drop(file);
    crash(dir);
    // What the disk never got.
    let data = OpenOptions::new().write(true).open(tmp.path().join(blob(1).path())).expect("data file");
    data.write_all_at(&[0; 512], u64::from(CHUNK) * 2 + 4096).expect("damage");

    let dir = open(tmp.path());
    let file = dir.open_content(blob(1), size, CHUNK).expect("open");
    assert_eq!(file.presence(0), Presence::Present, "of a clean run");
    assert_eq!((file.presence(1), file.presence(2)), (Presence::Suspect, Presence::Suspect));
    assert!(read_chunk(&file, 1).is_none());
    assert!(file.verify(1).expect("verify") && !file.verify(2).expect("verify"));
    assert!(read_chunk(&file, 1) == Some(vec![2; CHUNK as usize]));
    assert_eq!(file.presence(2), Presence::Absent);
    let stats = dir.stats();
    assert_eq!((stats.verified, stats.dropped), (1, 1));
    drop(file);
    dir.close().expect("close");
    crash(dir);

    let dir = open(tmp.path());
    let file = dir.open_content(blob(1), size, CHUNK).expect("open");
    assert_eq!(file.presence(1), Presence::Present, "checked in a run that stopped cleanly");
}

#[test]
fn a_pair_that_was_copied_is_checked() {
    let (from, to) = (tempfile::tempdir().expect("dir"), tempfile::tempdir().expect("dir"));
    let dir = open(from.path());
    fill(&dir.open_content(blob(1), 100, CHUNK).expect("open"), 0, 1);
    dir.close().expect("close");
    open(to.path()).close().expect("close");
    fs::create_dir_all(to.path().join("blobs/01")).expect("mkdir");
    for name in [blob(1).path(), blob(1).path().with_extension("idx")] {
        fs::copy(from.path().join(&name), to.path().join(&name)).expect("copy");
    }
    fs::copy(from.path().join("state"), to.path().join("state")).expect("copy");
    let file = open(to.path()).open_content(blob(1), 100, CHUNK).expect("open");
    assert_eq!(file.presence(0), Presence::Suspect);
    assert!(file.verify(0).expect("verify"));
}

#[test]
fn a_second_daemon_takes_a_sibling() {
    let tmp = tempfile::tempdir().expect("a directory");
    let path = tmp.path().join("cache");
    let (one, two) = (open(&path), open(&path));
    assert_eq!(one.path(), path);
    assert_eq!(two.path(), tmp.path().join("cache-1"));
    crash(one);
    assert_eq!(open(&path).path(), path);
}

#[test]
fn writing_over_a_chunk_unrecords_it() {
    let tmp = tempfile::tempdir().expect("a directory");
    let dir = open(tmp.path());
    let file = dir.open_content(ContentKey::File(Ino(9)), u64::from(CHUNK) * 2, CHUNK).expect("open");
    fill(&file, 0, 1);
    fill(&file, 1, 2);
    file.write_at(10, b"x").expect("write");
    assert_eq!((file.presence(0), file.presence(1)), (Presence::Absent, Presence::Present));
    assert_eq!(file.filled_bytes(), u64::from(CHUNK));
    assert!(file.has(1, &BLOB_TAG).expect("has") && !file.has(1, &[1; 16]).expect("has"));
    file.set_size(u64::from(CHUNK) + 5).expect("shrink");
    assert_eq!((file.presence(1), file.filled_bytes()), (Presence::Absent, 0));
    file.set_size(u64::from(CHUNK) * 9).expect("grow");
    fill(&file, 8, 3);
    let mut buf = [1; 10];
    assert_eq!(file.read_at(u64::from(CHUNK) + 4, &mut buf).expect("read"), 10);
    assert_eq!(buf, [2, 0, 0, 0, 0, 0, 0, 0, 0, 0], "what was cut off does not come back");
    assert!(
        Arc::ptr_eq(&file, &dir.open_content(file.key(), 1, CHUNK).expect("open")),
        "shared while in use"
    );
}

#[test]
fn another_size_or_chunk_size_starts_empty() {
    let tmp = tempfile::tempdir().expect("a directory");
    let dir = open(tmp.path());
    fill(&dir.open_content(blob(1), 100, CHUNK).expect("open"), 0, 1);
    assert_eq!(dir.open_content(blob(1), 100, CHUNK).expect("open").presence(0), Presence::Present);
    assert_eq!(dir.open_content(blob(1), 101, CHUNK).expect("open").presence(0), Presence::Absent);
    fill(&dir.open_content(blob(1), 101, CHUNK).expect("open"), 0, 1);
    assert_eq!(dir.open_content(blob(1), 101, CHUNK * 2).expect("open").presence(0), Presence::Absent);
}

/// Waits for the evictor.
fn settle(dir: &CacheDir, max: u64) {
    for _ in 0..500 {
        if dir.stats().bytes <= max {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("still {} bytes", dir.stats().bytes);
}

fn small(max_chunks: u64, policy: Policy) -> CacheLimits {
    CacheLimits { max_bytes: max_chunks * u64::from(CHUNK), free_ratio: 0.0, max_contents: 1000, policy }
}

#[test]
fn the_least_recently_used_go_first_and_nothing_in_use_goes() {
    let tmp = tempfile::tempdir().expect("a directory");
    let dir = open_with(tmp.path(), small(10, Policy::Lru));
    let held = dir.open_content(blob(0), u64::from(CHUNK), CHUNK).expect("open");
    held.set_dirty(true);
    fill(&held, 0, 1);
    for n in 1..=8 {
        fill(&dir.open_content(blob(n), u64::from(CHUNK), CHUNK).expect("open"), 0, n);
        std::thread::sleep(Duration::from_millis(2));
    }
    drop(dir.open_content(blob(1), u64::from(CHUNK), CHUNK).expect("used again"));
    std::thread::sleep(Duration::from_millis(2));
    for n in 9..=11 {
        fill(&dir.open_content(blob(n), u64::from(CHUNK), CHUNK).expect("open"), 0, n);
        settle(&dir, 10 * u64::from(CHUNK));
    }
    assert!(dir.knows(&blob(0)) && dir.knows(&blob(1)) && dir.knows(&blob(11)));
    assert!(!dir.knows(&blob(2)) && !tmp.path().join(blob(2).path()).exists());
    assert!(read_chunk(&held, 0) == Some(vec![1; CHUNK as usize]));
    assert!(dir.stats().evicted >= 2);
}

#[test]
fn a_large_content_in_use_gives_back_what_was_not_read_for_long() {
    let tmp = tempfile::tempdir().expect("a directory");
    let dir = open_with(tmp.path(), small(10, Policy::LargeFirst));
    let file = dir.open_content(blob(1), u64::from(CHUNK) * 40, CHUNK).expect("open");
    for idx in 0..40 {
        fill(&file, idx, idx as u8);
        assert!(read_chunk(&file, idx) == Some(vec![idx as u8; CHUNK as usize]), "what was just filled");
        settle(&dir, 10 * u64::from(CHUNK));
    }
    let left: Vec<u64> = (0..40).filter(|i| file.presence(*i) == Presence::Present).collect();
    assert!(left.len() <= 10 && left.contains(&39), "{left:?}");
    for idx in left {
        assert!(read_chunk(&file, idx) == Some(vec![idx as u8; CHUNK as usize]));
    }
    assert!(dir.stats().punched_bytes >= 30 * u64::from(CHUNK));
}

#[test]
fn what_the_kernel_maps_is_never_punched_or_written() {
    let tmp = tempfile::tempdir().expect("a directory");
    let dir = open_with(tmp.path(), small(10, Policy::Lru));
    let file = dir.open_content(blob(1), u64::from(CHUNK) * 8, CHUNK).expect("open");
    (0..7).for_each(|idx| fill(&file, idx, 7));
    assert!(!file.mark_passthrough().expect("mark"), "nobody has checked it");
    file.set_verified(true).expect("verified");
    assert!(!file.mark_passthrough().expect("mark"), "not all of it is there");
    fill(&file, 7, 7);
    assert!(file.mark_passthrough().expect("mark") && file.is_passthrough());
    assert_eq!(file.write_at(u64::from(CHUNK) * 4, b"x").expect_err("refused").kind(), Kind::Busy);
    assert!(!dir.make_room(1 << 20));
    assert_eq!(file.presence(0), Presence::Present);
    drop(file);
    assert!(dir.open_content(blob(1), u64::from(CHUNK) * 8, CHUNK).expect("open").is_passthrough());
    assert!(dir.make_room(1), "unlinked as a whole when nobody uses it");
    assert!(!dir.knows(&blob(1)));
}

#[test]
fn what_the_kernel_was_given_and_has_a_hole_is_begun_anew() {
    let tmp = tempfile::tempdir().expect("a directory");
    let dir = open(tmp.path());
    let size = u64::from(CHUNK) * 2;
    let file = dir.open_content(blob(1), size, CHUNK).expect("open");
    (0..2).for_each(|idx| fill(&file, idx, 7));
    file.set_verified(true).expect("verified");
    assert!(file.mark_passthrough().expect("mark"));
    file.clear(1, 2).expect("found to be wrong");
    let given = file.disk_data().try_clone().expect("what the kernel has");
    drop(file);
    let file = dir.open_content(blob(1), size, CHUNK).expect("open");
    assert!(!file.is_passthrough() && !file.is_verified());
    assert_eq!((file.presence(0), file.presence(1)), (Presence::Absent, Presence::Absent));
    fill(&file, 0, 9);
    let mut first = [0; 4];
    std::os::unix::fs::FileExt::read_exact_at(&given, &mut first, 0).expect("read");
    assert_eq!(first, [7; 4], "who maps it keeps what it was");
    assert_eq!(dir.stats().contents, 1);
}

#[test]
fn a_restart_knows_what_is_there_and_removes_halves() {
    let tmp = tempfile::tempdir().expect("a directory");
    let dir = open(tmp.path());
    for n in 1..=3 {
        fill(&dir.open_content(blob(n), u64::from(CHUNK), CHUNK).expect("open"), 0, n);
    }
    let bytes = dir.stats().bytes;
    dir.close().expect("close");
    crash(dir);
    let dir = open(tmp.path());
    assert_eq!((dir.stats().bytes, dir.stats().contents), (bytes, 3));
    dir.close().expect("close");
    crash(dir);
    fs::remove_file(tmp.path().join(blob(2).path()).with_extension("idx")).expect("damage");
    fs::remove_file(tmp.path().join(blob(3).path())).expect("damage");
    let dir = open(tmp.path());
    assert_eq!(dir.stats().contents, 1);
    assert!(!tmp.path().join(blob(2).path()).exists());
    assert_eq!(dir.open_content(blob(3), 64, CHUNK).expect("open").presence(0), Presence::Absent);
}

const FILE: ContentKey = ContentKey::File(Ino(5));
const SIZE: u64 = CHUNK as u64 * 2 + 100;

/// A file in the cache, as those who write files leave it; and what stands for its records.
fn written(dir: &Arc<CacheDir>, last: u32) -> [u8; 32] {
    let file = dir.open_content(FILE, u64::from(CHUNK) * 3, CHUNK).expect("open");
    let mut seen = Seen::default();
    for (idx, len) in [(0, CHUNK), (1, CHUNK), (2, last)] {
        let data = vec![idx as u8 + 1; len as usize];
        file.write_at(idx * u64::from(CHUNK), &data).expect("write");
        file.record(idx, &[9; 16], blake3::hash(&data).as_bytes(), len, || ()).expect("record");
        seen.add(&file.record_of(idx).expect("read").expect("recorded"));
    }
    seen.finish()
}

fn is_the_blob(dir: &Arc<CacheDir>) {
    assert!(!dir.knows(&FILE));
    let file = dir.open_content(blob(1), SIZE, CHUNK).expect("open");
    for idx in 0..3 {
        assert_ne!(file.presence(idx), Presence::Absent);
        assert!(file.verify(idx).expect("verify"));
        let len = file.chunk_len(idx) as usize;
        assert!(read_chunk(&file, idx) == Some(vec![idx as u8 + 1; len]), "{idx}");
    }
    assert!(file.is_complete() && file.is_verified() && file.mark_passthrough().expect("for the kernel"));
    assert_eq!(file.disk_data().metadata().expect("stat").len(), SIZE, "it ends where the blob does");
}

#[test]
fn the_bytes_of_a_file_become_those_of_a_blob() {
    let tmp = tempfile::tempdir().expect("a directory");
    let ContentKey::Blob(id) = blob(1) else { unreachable!() };
    {
        let dir = open(tmp.path());
        let seen = written(&dir, 100);
        let before = dir.stats();
        let ino = std::os::unix::fs::MetadataExt::ino;
        let data = ino(&fs::metadata(tmp.path().join(FILE.path())).expect("stat"));
        // What was there of it before was less.
        fill(&dir.open_content(blob(1), SIZE, CHUNK).expect("open"), 0, 1);
        assert!(dir.turn(Ino(5), id, SIZE, CHUNK, &seen).expect("turn"));
        assert_eq!(ino(&fs::metadata(tmp.path().join(blob(1).path())).expect("stat")), data, "the same file");
        assert_eq!((dir.stats().bytes, dir.stats().contents), (before.bytes, before.contents));
        is_the_blob(&dir);
        // Once more: there is nothing left to do.
        assert!(dir.turn(Ino(5), id, SIZE, CHUNK, &seen).expect("turn"));
        let again = written(&dir, 100);
        assert!(dir.turn(Ino(5), id, SIZE, CHUNK, &again).expect("turn"));
        is_the_blob(&dir);
        dir.close().expect("close");
        assert!(!dir.turn(Ino(5), id, SIZE, CHUNK, &seen).expect("nothing any more"));
    }
    is_the_blob(&open(tmp.path()));
}

#[test]
fn what_does_not_fit_or_is_in_use_stays_a_file() {
    let tmp = tempfile::tempdir().expect("a directory");
    let dir = open(tmp.path());
    let ContentKey::Blob(id) = blob(1) else { unreachable!() };
    let turn = |seen: &[u8; 32]| dir.turn(Ino(5), id, SIZE, CHUNK, seen).expect("turn");
    assert!(!turn(&[0; 32]), "there is none");
    let seen = written(&dir, 99);
    assert!(!turn(&seen), "its end is not there");
    let seen = written(&dir, 100);
    assert!(!turn(&[0; 32]), "others than those that were seen");
    let used = dir.open_content(FILE, u64::from(CHUNK) * 3, CHUNK).expect("open");
    assert!(!turn(&seen), "the file is in use");
    drop(used);
    let used = dir.open_content(blob(1), SIZE, CHUNK).expect("open");
    assert!(!turn(&seen), "the blob is in use");
    drop(used);
    let file = dir.open_content(FILE, u64::from(CHUNK) * 3, CHUNK).expect("open");
    assert!(read_chunk(&file, 1) == Some(vec![2; CHUNK as usize]), "all of it is there");
    assert!(!file.is_verified());
    drop(file);
    dir.journal()
        .put(Ino(5), Kept { bytes: 1, since: crate::types::Timestamp(1) }, b"entry")
        .expect("journal");
    assert!(!turn(&seen), "only here");
    dir.journal().remove(Ino(5)).expect("journal");
    assert!(turn(&seen));
    is_the_blob(&dir);
}

#[test]
fn after_a_crash_it_is_checked_before_it_counts() {
    let tmp = tempfile::tempdir().expect("a directory");
    let ContentKey::Blob(id) = blob(1) else { unreachable!() };
    {
        let dir = open(tmp.path());
        let seen = written(&dir, 100);
        assert!(dir.turn(Ino(5), id, SIZE, CHUNK, &seen).expect("turn"));
        crash(dir);
    }
    let dir = open(tmp.path());
    let file = dir.open_content(blob(1), SIZE, CHUNK).expect("open");
    assert!(!file.is_complete());
    assert_eq!(file.presence(0), Presence::Suspect);
    drop(file);
    is_the_blob(&dir);
}
