//! A local disk that is full.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::Ordering::SeqCst;

use super::world::{CHUNK, World, options, pattern, same, writeback};
use crate::chunk::cache::disk::Disk;
use crate::chunk::file::Saved;
use crate::error::Kind;

const C: usize = CHUNK as usize;

/// A disk of its own for a cache directory; needs root.
pub struct Tmpfs(pub PathBuf);

impl Tmpfs {
    pub fn mount(path: &Path, size: &str) -> Self {
        std::fs::create_dir_all(path).expect("a directory");
        let options = format!("size={size},mode=0700");
        let done = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(path).status();
        assert!(done.expect("mount").success(), "this test mounts a tmpfs and needs root");
        Tmpfs(path.to_owned())
    }
}

impl Tmpfs {
    /// Takes all the room that is left.
    pub fn fill(&self) {
        let mut file = std::fs::File::create(self.0.join("filler")).expect("a file");
        let error = loop {
            if let Err(e) = file.write_all(&[1; 4096]) {
                break e;
            }
        };
        assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // Lazily: background work may hold a file a moment longer.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_evicts_what_it_can_and_then_says_so() {
    let world = World::new();
    let disk = Tmpfs::mount(&world.path().join("small"), "8m");
    let a = world.node_at(disk.0.join("cache")).await;
    let (old, new) = (a.create("old").await, a.create("new").await);
    {
        let file = a.open(old).await;
        file.write(0, pattern(1, 64 * C)).await.expect("write");
        file.flush().await.expect("flush");
        a.settled(old, 64).await;
    }
    // What is durable elsewhere makes room.
    let file = a.open(new).await;
    let data = pattern(2, 100 * C);
    for (i, piece) in data.chunks(C).enumerate() {
        file.write((i * C) as u64, data.slice_ref(piece)).await.expect("the old file goes");
    }
    file.flush().await.expect("flush");
    same(&a.read_all(&file).await, &data, "the new file");
    same(&a.contents(old).await, &pattern(1, 64 * C), "the old one, fetched again");

    // What is not stays, and the writer is told.
    world.faults.fail_puts.store(u32::MAX, SeqCst);
    let third = a.create("third").await;
    let file = a.open(third).await;
    let data = pattern(3, 300 * C);
    let mut written = 0;
    let error = loop {
        let piece = data.slice(written..written + C / 2);
        match file.write(written as u64, piece).await {
            Ok(n) => written += n as usize,
            Err(e) => break e,
        }
    };
    assert_eq!(error.kind(), Kind::NoSpace, "{error}");
    assert!(written > 50 * C, "{written}");
    assert_eq!(file.size(), written as u64, "nothing of the failed write counts");
    same(&a.read_all(&file).await, &data[..written], "what was taken is there");
    world.faults.fail_puts.store(0, SeqCst);
    file.flush().await.expect("flush");
    same(&world.node().await.contents(third).await, &data[..written], "another mount");
    // With that in the bucket there is room again.
    file.write(written as u64, pattern(4, C)).await.expect("write");
    file.flush().await.expect("flush");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_larger_than_the_disk_is_read_and_written() {
    let world = World::new();
    let disk = Tmpfs::mount(&world.path().join("small"), "4m");
    let a = world.node_at(disk.0.join("cache")).await;
    let ino = a.create("f").await;
    let file = a.open(ino).await;
    let data = pattern(1, 200 * C);
    for (i, piece) in data.chunks(C).enumerate() {
        let offset = (i * C) as u64;
        file.write(offset, data.slice_ref(piece)).await.expect("what is uploaded makes room");
    }
    file.flush().await.expect("flush");
    same(&a.read_all(&file).await, &data, "the writer");
    let other = Tmpfs::mount(&world.path().join("other"), "2m");
    let b = world.node_at(other.0.join("cache")).await;
    same(&b.contents(ino).await, &data, "a reader with less room");
}

/// Somebody else fills the disk, to the last byte, and nothing on it is ours to give back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_disk_that_others_filled_reads_and_writes_go_on() {
    for (options, early) in [(options(), false), (options(), true), (writeback(), false), (writeback(), true)]
    {
        let world = World::new();
        let disk = Tmpfs::mount(&world.path().join("small"), "3m");
        let a = world.node_on(disk.0.join("cache"), options, Disk::default()).await;
        let (old, new, half) = (a.create("old").await, a.create("new").await, a.create("half").await);
        let b = world.node().await;
        let theirs = b.open(old).await;
        theirs.write(0, pattern(1, 100 * C)).await.expect("write");
        theirs.flush().await.expect("flush");
        if early {
            disk.fill();
        }
        // Half-way through a file that is longer than the disk would have room for.
        let open = a.open(half).await;
        open.write(0, pattern(3, 10 * C + 9)).await.expect("write");
        if !early {
            disk.fill();
        }
        same(&a.contents(old).await, &pattern(1, 100 * C), "what others wrote is read");
        let data = pattern(3, 100 * C);
        for at in (10 * C + 9..data.len()).step_by(C / 2 + 1) {
            let piece = data.slice(at..data.len().min(at + C / 2 + 1));
            open.write(at as u64, piece).await.expect("it goes on");
        }
        same(&a.read_all(&open).await, &data, "one's own writes");
        open.save().await.expect("save");
        let file = a.open(new).await;
        file.write(5, pattern(2, 3 * C)).await.expect("one that was never on the disk");
        let saved = file.save().await.expect("save");
        assert!(!early || matches!(saved, Saved::Stored(_)), "nothing is safe here");
        a.drained().await;
        same(&world.node().await.contents(half).await, &data, "another mount");
        same(&world.node().await.contents(new).await[5..], &pattern(2, 3 * C), "another mount");
        assert!(a.cache.aside().is_none(), "a full disk is no failed one");
        assert!(!early || a.cache.stats().in_memory > 0, "memory stands in for it");
        drop((open, file));
    }
}

/// The disk of a node is full of what others wrote before: a file that has nothing there yet gets in.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_write_of_a_file_finds_room_too() {
    let world = World::new();
    let disk = Tmpfs::mount(&world.path().join("small"), "4m");
    let a = world.node_at(disk.0.join("cache")).await;
    let (old, new) = (a.create("old").await, a.create("new").await);
    {
        let file = a.open(old).await;
        file.write(0, pattern(1, 20 * C)).await.expect("write");
        file.flush().await.expect("flush");
        a.settled(old, 20).await;
    }
    // To the last byte.
    let mut rest = std::fs::File::create(disk.0.join("rest")).expect("create");
    while std::io::Write::write_all(&mut rest, &[1; 4096]).is_ok() {}
    let file = a.open(new).await;
    let data = pattern(2, 3 * C);
    file.write(0, data.clone()).await.expect("the old file goes");
    file.flush().await.expect("flush");
    same(&a.read_all(&file).await, &data, "the new file");
    same(&world.node().await.contents(old).await, &pattern(1, 20 * C), "the old one, in the bucket");
}
