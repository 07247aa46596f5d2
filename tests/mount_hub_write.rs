//! What programs do to the files of repositories that nobody downloaded: they write over them, cut, append, move, give
//! away and delete them. What another name of the same content, or who has a file open, sees of it.

#[path = "support/hub.rs"]
mod hub;
#[path = "support/mount.rs"]
mod mount;
#[path = "standin/mod.rs"]
mod standin;

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use hub::{World, snapshot};
use mount::{Mount, can_mount};
use standin::model::put;

const BIG: usize = 5_500_000;

fn world() -> World {
    World::new(BIG, |root, big| {
        for repo in ["one", "two"] {
            put(root, &format!("models/org/{repo}/main/config.json"), "{\"a\": 1}");
            put(root, &format!("models/org/{repo}/main/sub/model.safetensors"), big);
        }
    })
}

fn repo(mount: &Mount, repo: &str) -> PathBuf {
    mount.path().join(format!("models--org--{repo}"))
}

fn open_rw(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).expect("open for writing")
}

#[test]
fn a_file_of_the_hub_can_be_written_to_and_no_other_name_of_it_changes() {
    if !can_mount() {
        return;
    }
    let world = world();
    let (one, two) = (world.home.mount("one", &[]), world.home.mount("two", &[]));
    let big = snapshot(&one, "one").join("sub/model.safetensors");
    let reader = File::open(&big).expect("open");
    let mut expected = world.big.clone();
    let file = open_rw(&big);
    file.write_all_at(b"written over", 3_000_000).expect("write");
    expected[3_000_000..3_000_012].copy_from_slice(b"written over");
    let mut seen = [0; 12];
    file.read_exact_at(&mut seen, 3_000_000).expect("read");
    assert_eq!(&seen, b"written over");
    drop(file);
    assert!(fs::read(&big).expect("read") == expected);
    assert!(fs::read(snapshot(&two, "one").join("sub/model.safetensors")).expect("read") == expected);
    assert!(fs::read(snapshot(&one, "two").join("sub/model.safetensors")).expect("read") == world.big);
    // Who had it open sees what was there, or what is there now, and no mixture within a chunk.
    let mut seen = vec![0; 4096];
    reader.read_exact_at(&mut seen, 3_000_000).expect("read");
    assert!(seen == world.big[3_000_000..3_004_096] || seen == expected[3_000_000..3_004_096]);

    for (size, what) in [(2_000_000, "cut"), (6_000_000, "longer"), (0, "empty")] {
        open_rw(&big).set_len(size).expect(what);
        expected.resize(size as usize, 0);
        assert!(fs::read(&big).expect("read") == expected, "{what}");
    }
    let config = snapshot(&one, "two").join("config.json");
    OpenOptions::new().append(true).open(&config).expect("open").write_all(b"\n").expect("append");
    assert_eq!(fs::read_to_string(&config).expect("read"), "{\"a\": 1}\n");
    assert_eq!(fs::read_to_string(snapshot(&one, "one").join("config.json")).expect("read"), "{\"a\": 1}");
    fs::write(&config, "new").expect("O_TRUNC");
    assert_eq!(fs::read_to_string(snapshot(&two, "two").join("config.json")).expect("read"), "new");
    assert_eq!(one.stop().code(), Some(0));
    assert_eq!(two.stop().code(), Some(0));
}

#[test]
fn a_file_of_the_hub_can_be_moved_linked_and_given_away() {
    if !can_mount() {
        return;
    }
    let world = world();
    let mount = world.home.mount("mnt", &["--umask", "022"]);
    let link = snapshot(&mount, "one").join("sub/model.safetensors");
    let blob = fs::canonicalize(&link).expect("blob");
    let before = fs::metadata(&blob).expect("stat");
    assert_eq!(before.mode() & 0o7777, 0o444);
    fs::set_permissions(&blob, fs::Permissions::from_mode(0o600)).expect("chmod");
    assert_eq!(fs::metadata(&blob).expect("stat").mode() & 0o7777, 0o600);
    chown(&blob, Some(7), Some(8)).expect("chown");
    let after = fs::metadata(&blob).expect("stat");
    assert_eq!((after.uid(), after.gid(), after.mode() & 0o7777), (7, 8, 0o600));
    assert_eq!((after.len(), after.mtime()), (before.len(), before.mtime()));

    let other = mount.path().join("mine");
    fs::hard_link(&blob, &other).expect("link");
    assert_eq!(fs::metadata(&other).expect("stat").nlink(), 2);
    fs::rename(&blob, mount.path().join("moved")).expect("rename");
    assert!(fs::metadata(&link).is_err(), "the link of the snapshot leads nowhere");
    fs::remove_file(mount.path().join("moved")).expect("unlink");
    assert!(fs::read(&other).expect("read") == world.big, "its bytes come from the Hub all the same");
    // A client puts it back.
    fs::copy(&other, &blob).expect("copy");
    assert!(fs::read(&link).expect("read") == world.big);
    assert_eq!(mount.stop().code(), Some(0));
}

#[test]
fn a_whole_repository_can_be_deleted_while_it_is_read() {
    if !can_mount() {
        return;
    }
    let world = world();
    let (one, two) = (world.home.mount("one", &[]), world.home.mount("two", &[]));
    let open = File::open(snapshot(&one, "one").join("sub/model.safetensors")).expect("open");
    let elsewhere = File::open(snapshot(&two, "one").join("sub/model.safetensors")).expect("open");
    fs::remove_dir_all(repo(&one, "one")).expect("as `hf cache rm` does");
    assert!(!repo(&one, "one").exists(), "it does not come back by itself");
    mount::wait_for("the other mount hears of it", || !repo(&two, "one").exists());
    assert!(!repo(&two, "one").join("refs/main").exists());
    let listed: Vec<_> = fs::read_dir(one.path()).expect("list").map(|e| e.expect("entry")).collect();
    assert!(listed.is_empty(), "{listed:?}");
    // Not one byte of it was here.
    for (file, who) in [(open, "here"), (elsewhere, "on the other mount")] {
        let mut bytes = vec![0; BIG];
        file.read_exact_at(&mut bytes, 0).expect(who);
        assert!(bytes == world.big, "{who}");
        assert_eq!(file.metadata().expect("stat").nlink(), 0, "{who}");
    }
    // A client that downloads makes the directory, and with it the repository comes back.
    fs::create_dir(repo(&one, "one")).expect("mkdir");
    assert!(repo(&one, "one").is_dir());
    assert!(fs::read(snapshot(&two, "two").join("sub/model.safetensors")).expect("read") == world.big);
    assert!(world.hub.counters().connections > 0);
    assert_eq!(one.stop().code(), Some(0));
    assert_eq!(two.stop().code(), Some(0));
}
