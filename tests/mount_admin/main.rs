//! `hfmount gc`, `fsck` and `info` beside real mounts: what a crash leaves goes, and nothing else; damage is found; where a
//! file is. On SQLite with a folder, and on Redis with an S3 server.

#[path = "../support/hub.rs"]
mod hub;
mod info;
#[path = "../support/mount.rs"]
mod mount;
#[path = "../support/redis.rs"]
mod redis_server;
#[path = "../support/servers.rs"]
mod servers;
#[path = "../standin/mod.rs"]
mod standin;
mod trash;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use mount::{Home, Mount, can_mount, text, wait_for};
use redis_server::RedisServer;
use serde_json::Value;
use servers::Servers;
use standin::S3;
use standin::model::{put, random_bytes};

const CHUNK: usize = 1 << 20;

/// A volume, and the folder in which its objects lie as files.
struct World {
    home: Home,
    objects: PathBuf,
    _servers: Option<(RedisServer, S3)>,
}

impl World {
    fn local() -> Self {
        let home = Home::formatted(&["--chunk-size", "1M"]);
        let objects = home.path().join("hfmount/storage/default");
        World { home, objects, _servers: None }
    }

    fn servers() -> Self {
        let Servers { home, redis, s3 } = Servers::formatted(&["--chunk-size", "1M"]);
        let objects = home.path().join("s3/test/some/default");
        World { home, objects, _servers: Some((redis, s3)) }
    }

    /// Objects of file data.
    fn chunks(&self) -> Vec<PathBuf> {
        let dirs = fs::read_dir(self.objects.join("chunks")).into_iter().flatten().flatten();
        let files = dirs.flat_map(|dir| fs::read_dir(dir.path()).into_iter().flatten().flatten());
        let mut files: Vec<PathBuf> = files.map(|file| file.path()).collect();
        files.retain(|file| !file.to_string_lossy().contains('#'));
        files.sort();
        files
    }

    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.home.run_ok(args)).expect("JSON")
    }

    fn gc(&self, args: &[&str]) -> Value {
        self.json(&[&["gc", "--json", "--grace", "0s"], args].concat())
    }

    /// Exit code and findings.
    fn fsck(&self, args: &[&str]) -> (Option<i32>, Vec<Value>) {
        let output = self.home.run(&[&["fsck", "--json"], args].concat());
        let lines: Vec<Value> = text(&output.stdout)
            .lines()
            .map(|line| serde_json::from_str(line).expect("one object a line"))
            .collect();
        let (last, found) = lines.split_last().unwrap_or_else(|| panic!("{}", text(&output.stderr)));
        assert_eq!(last["found"], found.len(), "{lines:?}");
        (output.status.code(), found.to_vec())
    }

    fn is_clean(&self) {
        assert_eq!(self.fsck(&["--deep"]), (Some(0), Vec::new()));
    }

    fn mount(&self, name: &str) -> Mount {
        self.home.mount(name, &["--offline", "--session-ttl", "1s"])
    }

    fn sessions(&self) -> usize {
        self.json(&["status", "--json"])["sessions"].as_array().expect("a list").len()
    }
}

/// Writes five chunks and does not close the file. A process of its own: this one starts others, and each of those closes
/// what it inherits, which writes the file out.
fn writing(path: &Path) -> Child {
    let script =
        "import os, sys, time\nf = open(sys.argv[1], 'wb', 0)\nf.write(os.urandom(5 << 20))\ntime.sleep(600)";
    let mut command = Command::new("python3");
    command.args(["-c", script]).arg(path).spawn().expect("python3")
}

fn path(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// A mount with nothing in its cache, so that all comes from the storage.
fn cold_mount(world: &World, name: &str, args: &[&str]) -> Mount {
    let cache = world.home.path().join(format!("cache-of-{name}"));
    world.home.mount(name, &[&["--offline", "--cache-dir", path(&cache)], args].concat())
}

fn crashed_writers_garbage_goes_and_nothing_else(world: &World) {
    let mut one = world.mount("one");
    let (a, b) = (random_bytes(1, 3 * CHUNK + 77), random_bytes(2, 9000));
    fs::create_dir_all(one.path().join("dir/sub")).expect("mkdir");
    fs::write(one.path().join("dir/sub/a"), &a).expect("write");
    fs::write(one.path().join("b"), &b).expect("write");
    fs::hard_link(one.path().join("b"), one.path().join("dir/b2")).expect("link");
    fs::write(one.path().join("small"), "small").expect("write");
    fs::write(one.path().join("gone"), random_bytes(3, 2 * CHUNK)).expect("write");
    fs::remove_file(one.path().join("gone")).expect("unlink");
    world.is_clean();

    // It has uploaded some chunks, and not said of which file they are.
    let before = world.chunks().len();
    let mut writer = writing(&one.path().join("half"));
    wait_for("uploads", || world.chunks().len() >= before + 4);
    let report = world.gc(&["--delete"]);
    assert_eq!(report["garbage"]["total"]["objects"], 0, "of a mount that lives: {report}");
    one.crash();
    writer.kill().expect("kill");
    writer.wait().expect("wait");
    let left = world.chunks().len();
    let report = world.gc(&["--delete"]);
    assert_eq!(report["garbage"]["total"]["objects"], 0, "nobody has declared it dead yet: {report}");

    let two = world.mount("two");
    wait_for("the end of the dead session", || world.sessions() == 1);
    let report = world.gc(&[]);
    let found = report["garbage"]["chunks"]["objects"].as_u64().expect("a number");
    assert!(found >= 4 && report["deleted"]["objects"] == 0, "{report}");
    assert_eq!(world.chunks().len(), left, "a dry run");
    let young = world.json(&["gc", "--json", "--delete"]);
    assert_eq!(young["deleted"]["objects"], 0, "an hour is the default: {young}");
    let report = world.gc(&["--delete"]);
    assert!(report["deleted"]["objects"].as_u64() >= Some(found) && report["failed"] == 0, "{report}");
    assert_eq!(world.chunks().len() as u64, left as u64 - report["deleted"]["objects"].as_u64().expect("n"));
    assert_eq!(world.gc(&["--delete"])["garbage"]["total"]["objects"], 0);

    // With an empty cache: all that is left of it is in the storage.
    world.is_clean();
    let cold = world.home.path().join("cold");
    let three = world.home.mount("three", &["--offline", "--cache-dir", path(&cold)]);
    assert!(fs::read(three.path().join("dir/sub/a")).expect("read") == a);
    assert!(fs::read(three.path().join("dir/b2")).expect("read") == b);
    assert_eq!(fs::read(three.path().join("small")).expect("read"), b"small");
    assert_eq!(fs::metadata(three.path().join("half")).expect("made").len(), 0);
    assert!(!three.path().join("gone").exists());
    drop((two, three));
    world.is_clean();
}

#[test]
fn what_a_crash_leaves_in_a_folder_is_collected() {
    if can_mount() {
        crashed_writers_garbage_goes_and_nothing_else(&World::local());
    }
}

#[test]
fn what_a_crash_leaves_on_a_server_is_collected() {
    if can_mount() {
        crashed_writers_garbage_goes_and_nothing_else(&World::servers());
    }
}

fn damage_is_found(world: &World) {
    let mount = world.mount("mnt");
    let file = mount.path().join("dir/file");
    fs::create_dir(mount.path().join("dir")).expect("mkdir");
    fs::write(&file, random_bytes(1, 2 * CHUNK)).expect("write");
    fs::write(mount.path().join("other"), random_bytes(2, CHUNK)).expect("write");
    world.is_clean();

    let info = world.json(&["info", "--json", path(&file)]);
    let object = |n: usize| {
        let name = info["chunks"][n]["extents"][0]["object"].as_str().expect("an object");
        world.objects.join(name)
    };
    let mut bytes = fs::read(object(0)).expect("an object");
    bytes[CHUNK / 2] ^= 1;
    fs::write(object(0), bytes).expect("write");
    assert_eq!(world.fsck(&[]), (Some(0), Vec::new()), "its length is right");
    let (code, found) = world.fsck(&["--deep"]);
    assert_eq!((code, found.len()), (Some(1), 1), "{found:?}");
    let inode = fs::metadata(&file).expect("stat").ino();
    assert!(found[0]["path"] == "/dir/file" && found[0]["inode"] == inode, "{found:?}");

    fs::remove_file(object(1)).expect("unlink");
    let (code, found) = world.fsck(&["--repair"]);
    assert_eq!((code, found.len()), (Some(1), 1), "{found:?}");
    assert!(found[0]["repaired"] == false && found[0]["problem"] == "object", "{found:?}");
    let shown = world.home.run(&["fsck", "--deep"]);
    let (out, err) = (text(&shown.stdout), text(&shown.stderr));
    assert!(out.contains(&format!("/dir/file (inode {inode}): bytes 0 to 1048575: ")), "{out}");
    assert!(out.contains("bytes 1048576 to 2097151: ") && err.contains("2 problems"), "{out}{err}");

    // What is written anew is whole.
    fs::write(&file, random_bytes(3, 2 * CHUNK)).expect("write");
    world.is_clean();
    assert_eq!(world.home.run(&["fsck", "--wrong"]).status.code(), Some(2));
}

#[test]
fn damage_in_a_folder_is_found() {
    if can_mount() {
        damage_is_found(&World::local());
    }
}

#[test]
fn damage_on_a_server_is_found() {
    if can_mount() {
        damage_is_found(&World::servers());
    }
}

#[test]
fn broken_uploads_into_a_folder_are_collected() {
    let world = World::local();
    let broken = world.objects.join("chunks/0000000000000005/7#1");
    fs::create_dir_all(broken.parent().expect("a parent")).expect("folder");
    fs::write(&broken, "half of it").expect("file");
    assert_eq!(world.gc(&[])["garbage"]["unfinished"]["bytes"], 10);
    world.home.run_ok(&["gc", "--delete"]);
    assert!(broken.exists(), "younger than an hour: it may be going on");
    assert_eq!(world.gc(&["--delete"])["deleted"]["bytes"], 10);
    assert!(!broken.exists());
}

#[test]
fn another_volumes_bucket_is_refused() {
    let world = World::local();
    fs::remove_file(world.objects.join("hfmount.json")).expect("the marker");
    for verb in ["gc", "fsck"] {
        let output = world.home.run(&[verb]);
        assert_eq!(output.status.code(), Some(1), "{verb}");
        assert!(text(&output.stderr).contains("does not hold volume"), "{}", text(&output.stderr));
    }
}

/// Copies by reference share objects: they go with the last of them and not before.
#[test]
fn a_copy_outlives_what_it_was_copied_from() {
    if !can_mount() {
        return;
    }
    let world = World::servers();
    let (redis, _) = world._servers.as_ref().expect("servers");
    world.home.run_ok(&["config", "--trash-days", "0"]);
    let mount = world.mount("mnt");
    // Whole chunks: what is left over at the end of a file is copied as bytes.
    let data = random_bytes(5, 3 * CHUNK);
    let (source, copy, second) =
        (mount.path().join("source"), mount.path().join("copy"), mount.path().join("second"));
    fs::write(&source, &data).expect("write");
    let objects = world.chunks();
    // The library copies with copy_file_range.
    fs::copy(&source, &copy).expect("copy");
    fs::copy(&copy, &second).expect("copy");
    assert_eq!(world.chunks(), objects, "nothing is uploaded again");
    let script = "return table.concat(redis.call('HVALS', KEYS[1]), ' ')";
    let values = |map: &str| redis.ask(&["EVAL", script, "1", &format!("{{hfmount}}:{map}")]);
    assert_eq!(values("shared/"), "2 2 2");
    world.is_clean();

    fs::remove_file(&source).expect("rm");
    // One of the copies goes its own way in its first chunk.
    let mut changed = data.clone();
    changed[..10].copy_from_slice(b"0123456789");
    let file = fs::File::options().write(true).open(&second).expect("open");
    std::os::unix::fs::FileExt::write_all_at(&file, b"0123456789", 0).expect("write");
    drop(file);
    wait_for("the end of what was removed", || values("shared/") == "1 1 1");
    let report = world.gc(&["--delete"]);
    assert_eq!(report["deleted"]["objects"], 0, "{report}");
    world.is_clean();
    let cold = cold_mount(&world, "cold", &[]);
    assert!(fs::read(cold.path().join("copy")).expect("read") == data);
    assert!(fs::read(cold.path().join("second")).expect("read") == changed);
    drop(cold);

    fs::remove_file(&second).expect("rm");
    wait_for("the last but one", || values("shared/").is_empty());
    assert_eq!(world.gc(&["--delete"])["garbage"]["total"]["objects"], 0);
    world.is_clean();
    let cold = cold_mount(&world, "colder", &[]);
    assert!(fs::read(cold.path().join("copy")).expect("read") == data);
    assert!(world.chunks().len() >= objects.len());
    drop(cold);
    fs::remove_file(&copy).expect("rm");
    let trash = || redis.ask(&["HLEN", "{hfmount}:trash/"]).trim_start_matches(':').trim().parse::<usize>();
    wait_for("the last", || trash().expect("a number") >= objects.len());
    world.is_clean();
}

/// The metadata server is lost and a dump is loaded elsewhere: from then on the old metadata, should they come back, do not
/// know what is needed.
#[test]
fn metadata_of_the_past_delete_nothing() {
    if !can_mount() {
        return;
    }
    let world = World::servers();
    let old = world.mount("old");
    let (a, b) = (random_bytes(1, CHUNK), random_bytes(2, CHUNK + 1));
    fs::write(old.path().join("a"), &a).expect("write");
    drop(old);
    let dump = world.home.path().join("volume.jsonl");
    world.home.run_ok(&["dump", path(&dump)]);
    let copy = world.home.path().join("copy.db");
    let copy = path(&copy);
    world.home.run_ok(&["load", "--meta", copy, path(&dump)]);

    // Looking at a backup changes nothing for those who work.
    let fresh = world.home.run(&["gc", "--meta", copy, "--delete"]);
    assert_eq!(fresh.status.code(), Some(1));
    assert!(text(&fresh.stderr).contains("not mounted since"), "{}", text(&fresh.stderr));
    let look = cold_mount(&world, "look", &["--meta", copy, "--read-only"]);
    assert!(fs::read(look.path().join("a")).expect("read") == a);
    drop(look);
    let old = world.mount("old");
    assert!(fs::read(old.path().join("a")).expect("read") == a);
    drop(old);
    assert_eq!(world.gc(&["--delete"])["failed"], 0);

    // The copy goes on.
    let new = cold_mount(&world, "new", &["--meta", copy]);
    fs::write(new.path().join("b"), &b).expect("write");
    drop(new);
    let says = |args: &[&str]| {
        let output = world.home.run(args);
        (output.status.code(), text(&output.stderr))
    };
    let objects = world.chunks();
    for args in [&["gc"][..], &["gc", "--delete", "--grace", "0s"]] {
        let (code, err) = says(args);
        assert_eq!(code, Some(1), "{err}");
        assert!(err.contains("a copy of the past") && err.contains("hfmount dump"), "{err}");
    }
    let point = world.home.dir("refused");
    let (code, err) = says(&["mount", path(&point), "--offline"]);
    assert!(code == Some(1) && err.contains("mount --read-only"), "{code:?} {err}");
    let past = world.home.mount("past", &["--offline", "--read-only"]);
    assert!(fs::read(past.path().join("a")).expect("read") == a && !past.path().join("b").exists());
    drop(past);
    assert_eq!(world.chunks(), objects);
    let status = world.json(&["status", "--json"]);
    assert!(status.to_string().contains("a copy of the past"), "{status}");

    let gc = world.gc(&["--delete", "--meta", copy]);
    assert_eq!((&gc["deleted"]["objects"], &gc["failed"]), (&0.into(), &0.into()), "{gc}");
    assert_eq!(world.fsck(&["--deep", "--meta", copy]), (Some(0), Vec::new()));
    let again = cold_mount(&world, "again", &["--meta", copy]);
    assert!(fs::read(again.path().join("b")).expect("read") == b);
    drop(again);

    // Those of the past after all.
    let dump = world.home.path().join("past.jsonl");
    world.home.run_ok(&["dump", path(&dump)]);
    let third = world.home.path().join("third.db");
    world.home.run_ok(&["load", "--meta", path(&third), path(&dump)]);
    let third = cold_mount(&world, "third", &["--meta", path(&third)]);
    assert!(fs::read(third.path().join("a")).expect("read") == a);
    assert_eq!(says(&["gc", "--meta", copy]).0, Some(1));
}
