//! Files that are open when another node deletes them, and what is left of them after crashes.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::{Duration, Instant};

use hfmount::meta::kv::Kv;
use hfmount::meta::redis::{RedisAddress, RedisKv, RedisOptions};

use crate::mount::can_mount;
use crate::redis_server::RedisServer;
use crate::world::{AOF, TTL, World, bytes, write};

const SIZE: usize = 3_000_000;

/// A volume in which what is deleted is not kept for a day.
fn without_trash() -> World {
    World::with(RedisServer::start_supervised(AOF), &["--trash-days", "0"])
}

/// What the metadata hold of deleted files: files without a name, and objects on their way out.
#[derive(Debug, PartialEq, Eq)]
struct Left {
    orphans: usize,
    trash: usize,
    /// Rows of inodes and of their chunks, by the server's keys.
    inodes: usize,
}

fn left(world: &World) -> Left {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    runtime.block_on(async {
        let address = world.redis.address();
        let (host, port) = (address.ip().to_string(), address.port());
        let options = RedisOptions::new(RedisAddress::Tcp { host, port, tls: false });
        let kv = RedisKv::open(options).await.expect("open");
        let count = async |map: &str| kv.scan(map, 0, 10_000).await.expect("scan").len();
        Left {
            orphans: count("orphans/").await,
            trash: count("trash/").await,
            inodes: keys(world, "{hfmount}:i[0-9]*"),
        }
    })
}

fn keys(world: &World, pattern: &str) -> usize {
    let script = format!("return tostring(#redis.call('KEYS', '{pattern}'))");
    world.redis.ask(&["EVAL", &script, "0"]).parse().expect("number")
}

fn wait_until_gone(world: &World, inodes: usize) -> Duration {
    let begun = Instant::now();
    loop {
        let now = left(world);
        if now.orphans == 0 && now.inodes == inodes {
            return begun.elapsed();
        }
        assert!(begun.elapsed() < TTL * 15, "{now:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn they_live_until_their_last_close() {
    if !can_mount() {
        return;
    }
    let world = without_trash();
    let (one, two) = (world.mount("one"), world.mount("two"));
    let empty = left(&world);
    let (small, large) = (one.path().join("small"), one.path().join("large"));
    let data = bytes(SIZE);
    write(&small, b"small");
    write(&large, &data);
    // Without its local copy: what is read later must still be in the store.
    let files: Vec<File> = [&small, &large]
        .map(|path| {
            OpenOptions::new().read(true).write(true).open(two.path().join(path.file_name().expect("name")))
        })
        .map(|file| file.expect("open"))
        .into();
    fs::remove_file(&small).expect("unlink");
    fs::remove_file(&large).expect("unlink");
    assert_eq!(left(&world).orphans, 2);
    // For longer than a file lives that nobody holds.
    let begun = Instant::now();
    let mut n = 0;
    while begun.elapsed() < TTL * 3 {
        let mut piece = [0; 1000];
        let at = (n * 123_457) % (SIZE - 1000);
        files[1].read_exact_at(&mut piece, at as u64).expect("read");
        assert!(piece[..] == data[at..at + 1000]);
        files[0].write_all_at(format!("written after the end {n:4}").as_bytes(), 0).expect("write");
        files[0].sync_all().expect("fsync");
        let mut text = vec![0; 26];
        files[0].read_exact_at(&mut text, 0).expect("read");
        assert_eq!(text, format!("written after the end {n:4}").as_bytes());
        n += 1;
        std::thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(
        (files[1].metadata().expect("fstat").nlink(), files[0].metadata().expect("fstat").nlink()),
        (0, 0)
    );
    assert_eq!(left(&world).orphans, 2, "held");
    drop(files);
    let took = wait_until_gone(&world, empty.inodes);
    println!("gone {took:?} after the last close");
    assert_eq!(left(&world).trash, SIZE.div_ceil(1 << 20), "the objects of the large one are to be deleted");
    assert_eq!((one.stop().code(), two.stop().code()), (Some(0), Some(0)));
}

#[test]
fn nothing_is_left_when_either_node_crashes() {
    if !can_mount() {
        return;
    }
    let world = without_trash();
    let mut one = world.mount("one");
    let (mut two, three) = (world.mount("two"), world.mount("three"));
    let empty = left(&world);
    let data = bytes(SIZE);
    for name in ["held-by-the-dead", "deleted-by-the-dead"] {
        write(&one.path().join(name), &data);
    }
    // Who has it open dies; who deletes dies right after.
    let by_the_dead = File::open(one.path().join("held-by-the-dead")).expect("open");
    let survivor = File::open(three.path().join("deleted-by-the-dead")).expect("open");
    fs::remove_file(three.path().join("held-by-the-dead")).expect("unlink");
    fs::remove_file(two.path().join("deleted-by-the-dead")).expect("unlink");
    one.crash();
    two.crash();
    std::thread::sleep(TTL * 3);
    let mut piece = vec![0; 1000];
    survivor.read_exact_at(&mut piece, 2_500_000).expect("the survivor reads on");
    assert!(piece == data[2_500_000..2_501_000]);
    assert_eq!(left(&world).orphans, 1, "the survivor's");
    drop(survivor);
    let took = wait_until_gone(&world, empty.inodes);
    println!("gone {took:?} after the last close");
    assert_eq!(left(&world).trash, 2 * SIZE.div_ceil(1 << 20));
    assert_eq!(keys(&world, "{hfmount}@alive:*"), 1, "of the dead nothing is left");
    drop(by_the_dead);
    assert_eq!(three.stop().code(), Some(0));
}
