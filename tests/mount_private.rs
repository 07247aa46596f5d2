//! What belongs to one user on one node, through a real mount.

#[path = "support/mount.rs"]
mod mount;

use std::fs;
use std::io::Write;

use mount::{Home, can_mount};

#[test]
fn private_folders_are_listed_renamed_in_and_removed_whole() {
    if !can_mount() {
        return;
    }
    let home = Home::formatted(&[]);
    let mount = home.mount("mnt", &["--offline"]);
    let xet = mount.path().join("xet");
    fs::create_dir_all(xet.join("logs/deep")).expect("mkdir");
    for n in 0..300 {
        fs::write(xet.join(format!("logs/{n:03}.log")), format!("line {n}\n")).expect("write");
    }
    let listed = fs::read_dir(xet.join("logs")).expect("list");
    let mut names: Vec<String> =
        listed.map(|e| e.expect("entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    assert_eq!(names.len(), 301);
    assert_eq!((names[0].as_str(), names[300].as_str()), ("000.log", "deep"));
    let mut log = fs::OpenOptions::new().append(true).open(xet.join("logs/000.log")).expect("open");
    log.write_all(b"more\n").expect("append");
    drop(log);
    assert_eq!(fs::read_to_string(xet.join("logs/000.log")).expect("read"), "line 0\nmore\n");
    fs::rename(xet.join("logs"), xet.join("old")).expect("rename");
    assert_eq!(fs::read_to_string(xet.join("old/007.log")).expect("read"), "line 7\n");
    fs::remove_dir_all(&xet).expect("remove all");
    assert!(!xet.exists());
    let root: Vec<_> = fs::read_dir(mount.path()).expect("list").collect();
    assert!(root.is_empty(), "nothing of it is anybody else's");
    assert_eq!(mount.stop().code(), Some(0));
}
