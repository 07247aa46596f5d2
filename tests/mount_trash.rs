//! The trash on real mounts: `rm -r`, and `hfmount restore`.

#[path = "support/mount.rs"]
mod mount;
#[path = "support/redis.rs"]
mod redis_server;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use mount::{Home, can_mount, wait_for};
use redis_server::RedisServer;
use serde_json::Value;

/// Everything below a directory: mode, and bytes, target or nothing.
fn tree(root: &Path) -> BTreeMap<String, (u32, Vec<u8>)> {
    let mut found = BTreeMap::new();
    let mut todo = vec![root.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).expect("a directory") {
            let path = entry.expect("an entry").path();
            let stat = path.symlink_metadata().expect("stat");
            let bytes = if stat.is_dir() {
                todo.push(path.clone());
                Vec::new()
            } else if stat.is_symlink() {
                fs::read_link(&path).expect("link").into_os_string().into_encoded_bytes()
            } else {
                fs::read(&path).expect("read")
            };
            let name = path.strip_prefix(root).expect("below").display().to_string();
            found.insert(name, (stat.mode(), bytes));
        }
    }
    found
}

fn plant(root: &Path) {
    fs::create_dir_all(root.join("src/deep/empty")).expect("mkdir");
    fs::write(root.join("src/main.py"), "print(1)\n").expect("write");
    fs::write(root.join("src/deep/weights.bin"), vec![7; 3_000_001]).expect("write");
    fs::write(root.join("src/deep/grüße"), "x").expect("write");
    symlink("main.py", root.join("src/link")).expect("symlink");
    fs::write(root.join("src/__init__.py"), "").expect("write");
    // Neither is of this minute: what is empty and new was made for a moment.
    for name in ["src/link", "src/__init__.py"] {
        let touched = Command::new("touch").args(["-h", "-d", "2 hours ago"]).arg(root.join(name)).status();
        assert!(touched.expect("touch").success());
    }
    fs::set_permissions(root.join("src/deep"), PermissionsExt::from_mode(0o750)).expect("chmod");
}

fn rm_r(path: &Path) {
    fs::remove_dir_all(path).expect("rm -r");
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).expect("JSON")
}

fn list(home: &Home, args: &[&str]) -> Vec<String> {
    let out = json(&home.run_ok(&[&["restore", "--json"], args].concat()));
    let rows = out["trash"].as_array().expect("a list");
    let mut paths: Vec<String> =
        rows.iter().map(|row| row["path"].as_str().expect("a path").to_owned()).collect();
    paths.sort();
    paths
}

#[test]
fn a_tree_that_was_deleted_comes_back() {
    if !can_mount() {
        return;
    }
    let home = Home::formatted(&["--chunk-size", "1MiB"]);
    let mount = home.mount("mnt", &["--offline"]);
    let at = mount.path();
    let point = at.to_str().expect("UTF-8");
    plant(at);
    let before = tree(at);
    assert_eq!(before.len(), 8);
    rm_r(&at.join("src"));
    assert_eq!(tree(at), BTreeMap::new());

    let src = format!("{point}/src");
    let all: Vec<String> = before.keys().cloned().collect();
    assert_eq!(list(&home, &[point]), all, "by the mount point");
    assert_eq!(list(&home, &[]), all, "by the volume");
    assert_eq!(list(&home, &["--list", &format!("{src}/deep/*")]).len(), 3);
    let shown = home.run_ok(&["restore", point]);
    assert!(shown.contains("src/deep/weights.bin") && shown.contains("2.86 MiB"), "{shown}");
    assert!(home.run_ok(&["status"]).contains("4 files"), "{}", home.run_ok(&["status"]));

    let plan = home.run_ok(&["restore", "--dry-run", &src]);
    assert!(plan.contains("would be restored: src/deep/weights.bin"), "{plan}");
    assert_eq!(tree(at), BTreeMap::new());
    let done = json(&home.run_ok(&["restore", "--json", &src]));
    assert_eq!(done["restored"].as_array().expect("a list").len(), all.len());
    wait_for("the mount to hear of it", || tree(at) == before);
    assert_eq!(list(&home, &[]), [""; 0]);

    // A name that is in use is refused; elsewhere there is room.
    fs::remove_file(at.join("src/main.py")).expect("rm");
    fs::write(at.join("src/main.py"), "print(2)\n").expect("write");
    let refused = home.run(&["restore", &format!("{src}/main.py")]);
    let words = mount::text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1));
    assert!(words.contains("src/main.py is there now") && words.contains("--to"), "{words}");
    assert_eq!(fs::read(at.join("src/main.py")).expect("read"), b"print(2)\n");
    home.run_ok(&["restore", &format!("{src}/main.py"), "--to", &format!("{point}/old")]);
    assert_eq!(fs::read(at.join("old/main.py")).expect("read"), b"print(1)\n");
    assert_eq!(home.run(&["restore", &format!("{src}/none")]).status.code(), Some(1));
    assert_eq!(home.run(&["restore", "/nowhere/of/ours"]).status.code(), Some(1));
    assert_eq!(mount.stop().code(), Some(0));
}

#[test]
fn two_mounts_share_one_trash() {
    if !can_mount() {
        return;
    }
    let server = RedisServer::start_with(&[]);
    let mut home = Home::new();
    home.set_env("HFMOUNT_META", &format!("redis://127.0.0.1:{}/0", server.port()));
    home.run_ok(&["format", "--chunk-size", "1MiB"]);
    let (one, two) = (home.mount("one", &["--offline"]), home.mount("two", &["--offline"]));
    plant(one.path());
    let before = tree(one.path());
    rm_r(&two.path().join("src"));
    wait_for("the other to see it", || tree(one.path()).is_empty());
    let src = two.path().join("src");
    home.run_ok(&["restore", src.to_str().expect("UTF-8")]);
    wait_for("both to have it", || [&one, &two].iter().all(|m| tree(m.path()) == before));
    // Crashed in between: what was deleted is in the bin as a whole.
    rm_r(&src);
    let mut two = two;
    two.crash();
    home.run_ok(&["restore", "--all", "--newer", "1h"]);
    wait_for("it is there again", || tree(one.path()) == before);
    assert_eq!(one.stop().code(), Some(0));
}

#[test]
fn what_was_kept_for_its_time_goes() {
    if !can_mount() {
        return;
    }
    // 0.00004 days are four seconds.
    let mut home = Home::formatted(&["--trash-days", "0.00004"]);
    home.set_env("HFMOUNT_SESSION_TTL", "1s");
    let mount = home.mount("mnt", &["--offline"]);
    let file = mount.path().join("file");
    fs::write(&file, vec![1; 1 << 20]).expect("write");
    fs::remove_file(&file).expect("rm");
    assert_eq!(list(&home, &[]), ["file"]);
    wait_for("it is let go", || list(&home, &[]).is_empty());
    assert_eq!(home.run(&["restore", file.to_str().expect("UTF-8")]).status.code(), Some(1));

    // By hand, and for longer.
    let kept = home.run_ok(&["config", "--trash-days", "7"]);
    assert!(kept.contains("kept for 7d"), "{kept}");
    wait_for("the mount to follow", || {
        fs::write(&file, "again").expect("write");
        fs::remove_file(&file).expect("rm");
        let out = json(&home.run_ok(&["restore", "--json"]));
        let newest = out["trash"].as_array().and_then(|rows| rows.last()).expect("one");
        newest["until"].as_i64() > newest["deleted"].as_i64().map(|t| t + 86_400)
    });
    let rehearsed = json(&home.run_ok(&["restore", "--empty", "--dry-run", "--json"]));
    assert!(rehearsed["deleted"].as_u64() >= Some(1) && !list(&home, &[]).is_empty());
    home.run_ok(&["restore", "--empty"]);
    assert_eq!(list(&home, &[]), [""; 0]);
    assert_eq!(mount.stop().code(), Some(0));
}

/// What was closed was written, though only the local disk has it yet.
#[test]
fn what_writeback_has_not_uploaded_yet_is_kept() {
    if !can_mount() {
        return;
    }
    let home = Home::formatted(&["--chunk-size", "1MiB"]);
    let mount = home.mount("mnt", &["--offline", "--writeback"]);
    let file = |n: u8| mount.path().join(format!("file-{n}"));
    for n in 0..20 {
        fs::write(file(n), vec![n; 300_000 + usize::from(n)]).expect("write");
        fs::remove_file(file(n)).expect("rm");
    }
    // And what another one replaced.
    fs::write(file(50), vec![50; 400_000]).expect("write");
    fs::write(file(51), vec![51; 400_000]).expect("write");
    fs::rename(file(51), file(50)).expect("rename");
    fs::remove_file(file(50)).expect("rm");
    assert_eq!(list(&home, &[]).len(), 22);
    home.run_ok(&["restore", "--all"]);
    wait_for("the mount to hear of it", || file(50).exists());
    let point = mount.path().to_owned();
    assert_eq!(mount.stop().code(), Some(0));
    home.run_ok(&["restore", "file-50", "--to", "older"]);
    let mount = home.mount("mnt", &["--offline"]);
    for n in (0..20).chain([50, 51]) {
        let path = if n == 51 {
            "file-50".to_owned()
        } else if n == 50 {
            "older/file-50".to_owned()
        } else {
            format!("file-{n}")
        };
        let seen = fs::read(point.join(&path)).expect("read");
        let len = if n < 20 { 300_000 + usize::from(n) } else { 400_000 };
        assert!(seen == vec![n; len], "{path}: {} bytes", seen.len());
    }
    assert_eq!(mount.stop().code(), Some(0));
}
