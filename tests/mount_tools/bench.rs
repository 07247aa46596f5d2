//! `hfmount bench`: how fast a place is.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::mount::{Home, can_mount, text, wait_for};
use crate::servers::Servers;
use crate::{Beside, utf8};

const FILES: [&str; 9] =
    ["write_big", "read_big", "write_small", "read_small", "stat", "list", "create", "rename", "unlink"];
const TRIPS: [&str; 6] = ["put", "get", "put_small", "get_small", "meta_read", "meta_commit"];
const FEW: [&str; 9] = [
    "bench",
    "--threads",
    "2",
    "--big-file-size",
    "3M",
    "--small-file-size",
    "5K",
    "--small-file-count",
    "10",
];

fn names(report: &Value) -> Vec<&str> {
    let rows = report["rows"].as_array().expect("rows");
    rows.iter().map(|row| row["name"].as_str().expect("name")).collect()
}

/// All files and directories under a directory.
fn tree(dir: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(dir).expect("list").map(|e| e.expect("entry")) {
        found.insert(utf8(&entry.path()).to_owned());
        if entry.file_type().expect("type").is_dir() {
            found.extend(tree(&entry.path()));
        }
    }
    found
}

fn measures_everything(home: &Home, storage: &str) {
    let mount = home.mount("mnt", &["--offline"]);
    fs::write(mount.path().join("mine"), "mine").expect("write");
    let place = utf8(mount.path());
    let output = home.run(&[&FEW[..], &["--keep-caches", "--json", place]].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(names(&report), [&FILES[..], &["fuse", "meta"], &TRIPS[..]].concat(), "{report:#}");
    assert!(report["notes"].as_array().expect("notes").is_empty(), "{report:#}");
    assert!(report["volume"]["storage"].as_str().expect("storage").starts_with(storage), "{report:#}");
    assert_eq!((&report["caches"], &report["threads"]), (&"kept".into(), &2.into()));
    for row in report["rows"].as_array().expect("rows") {
        let of = |name: &str| row[name].as_f64().unwrap_or_else(|| panic!("{name}: {row}"));
        assert!(of("rate") > 0.0 && of("mean_ms") > 0.0 && of("count") >= 2.0, "{row}");
    }
    let left: Vec<_> =
        fs::read_dir(mount.path()).expect("list").map(|e| e.expect("entry").file_name()).collect();
    assert_eq!(left, ["mine"]);
    let status: Value = serde_json::from_str(&home.run_ok(&["status", "--json"])).expect("JSON");
    assert_eq!(status["sessions"].as_array().map(Vec::len), Some(1), "only the mount's: {status:#}");
    assert_eq!(status["trash"]["files"], 0, "{status:#}");
    let garbage: Value =
        serde_json::from_str(&home.run_ok(&["gc", "--grace", "0s", "--json"])).expect("JSON");
    assert_eq!(garbage["garbage"]["tests"]["objects"], 0, "{garbage:#}");
    assert!(mount.stop().success());
}

#[test]
fn bench_measures_files_store_and_engine() {
    if !can_mount() {
        return;
    }
    let home = Home::formatted(&[]);
    measures_everything(&home, "file://");
    assert!(tree(&home.path().join("hfmount/storage")).iter().all(|path| !path.contains("/test-")));
}

#[test]
fn bench_measures_redis_and_s3() {
    if !can_mount() {
        return;
    }
    let Servers { mut home, redis: _redis, s3: _s3 } = Servers::formatted(&[]);
    measures_everything(&home, "s3://");

    // Who has no keys measures the rest, and is told.
    let mount = home.mount("mnt", &["--offline"]);
    let line: Value = serde_json::from_str(&home.run_ok(&["stats", "--count", "1", "--json"])).expect("JSON");
    assert_eq!(line["peers"]["out_bytes_per_second"], 0.0, "{line}");
    assert!(home.run_ok(&["stats", "--count", "1"]).contains(" peers "));
    home.set_env("AWS_SECRET_ACCESS_KEY", "wrong");
    let output = home.run(&[&FEW[..], &["--keep-caches", utf8(mount.path())]].concat());
    let (out, said) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{said}");
    assert!(
        said.contains("note: object store was not measured: ") && !out.contains("put objects"),
        "{said}{out}"
    );
    assert!(out.contains("metadata commit") && !out.contains('\x1b'), "{out}");
}

#[test]
fn bench_works_on_any_directory_and_says_what_it_cannot() {
    if !can_mount() {
        return;
    }
    let home = Home::formatted(&[]);
    let plain = home.dir("plain");
    let output = home.run(&[&FEW[..], &["--json", utf8(&plain)]].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((names(&report), &report["volume"]), (FILES.to_vec(), &Value::Null));
    let dropped = report["caches"] == "dropped";
    assert_eq!(dropped, report["notes"].as_array().expect("notes").is_empty(), "{report:#}");
    let out = home.run_ok(&[&FEW[..], &["--keep-caches", utf8(&plain)]].concat());
    assert!(
        out.contains("write large file") && out.contains("MiB/s") && out.contains("caches kept"),
        "{out}"
    );
    assert!(!out.contains('\x1b') && tree(&plain).is_empty(), "{out}");

    let mount = home.mount("mnt", &["--offline"]);
    assert!(mount.stop().success());
    let mount = home.mount("mnt", &["--offline", "--read-only"]);
    let fails = |args: &[&str], words: &str| {
        let output = home.run(&[&["bench"], args].concat());
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(words), "{said}");
    };
    fails(&[utf8(mount.path())], "is read-only");
    fails(&["--big-file-size", "900P", utf8(&plain)], "--big-file-size");
    fails(&[utf8(&home.path().join("none"))], "none");
    for args in [&["--threads", "0"][..], &["--threads", "1000"], &["--big-file-size", "x"], &[]] {
        assert_eq!(home.run(&[&["bench"], args].concat()).status.code(), Some(2), "{args:?}");
    }
    assert!(tree(&plain).is_empty());
}

#[test]
fn an_interrupted_bench_leaves_nothing() {
    if !can_mount() {
        return;
    }
    let home = Home::formatted(&[]);
    let mount = home.mount("mnt", &["--offline"]);
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let args = ["bench", "--big-file-size", "0", "--small-file-count", "100000", utf8(mount.path())];
        let mut bench = Beside::start(home.command(&args));
        wait_for("some files", || {
            let folder = fs::read_dir(mount.path()).expect("list").next();
            let files = folder.map(|e| fs::read_dir(e.expect("entry").path()).map_or(0, Iterator::count));
            files.unwrap_or(0) > 10
        });
        bench.signal(signal);
        let (code, said) = bench.end();
        assert!(code == Some(1) && said.contains("interrupted"), "{said}");
        assert_eq!(fs::read_dir(mount.path()).expect("list").count(), 0);
    }
}
