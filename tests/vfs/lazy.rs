//! The lazy Hub cache.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use hfmount::error::Kind;
use hfmount::types::FileType;

use crate::node::{Cluster, Settings};

/// A repository with a config, a nested file and a 3.5 MiB LFS file.
fn tiny(root: &Path) {
    write(root, "models/org/tiny/main/config.json", b"{\"a\": 1}");
    write(root, "models/org/tiny/main/sub/deep/x y#?.txt", "ü".as_bytes());
    write(root, "models/org/tiny/main/empty.txt", b"");
    write(root, "models/org/tiny/main/model.safetensors", &weights());
}

fn weights() -> Vec<u8> {
    (0..3_670_016u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

fn write(root: &Path, path: &str, bytes: &[u8]) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().expect("parent")).expect("mkdir");
    fs::write(path, bytes).expect("write");
}

const REPO: &str = "models--org--tiny";

#[tokio::test]
async fn a_repository_that_nobody_downloaded_is_there() {
    let cluster = Cluster::new(tiny);
    let node = cluster.node().await;
    let commit = String::from_utf8(node.cat(&format!("{REPO}/refs/main")).await.expect("ref").to_vec())
        .expect("utf-8");
    assert_eq!(Some(&commit), cluster.hub.commit("models", "org/tiny", "main").as_ref());
    assert_eq!(node.ls(REPO).await.expect("ls"), [".no_exist", "blobs", "refs", "snapshots", "trees"]);
    assert_eq!(node.ls(&format!("{REPO}/snapshots")).await.expect("ls"), std::slice::from_ref(&commit));
    let snapshot = format!("{REPO}/snapshots/{commit}");
    assert_eq!(
        node.ls(&snapshot).await.expect("ls"),
        ["config.json", "empty.txt", "model.safetensors", "sub"]
    );
    assert_eq!(node.cat(&format!("{snapshot}/config.json")).await.expect("cat"), &b"{\"a\": 1}"[..]);
    assert_eq!(node.cat(&format!("{snapshot}/sub/deep/x y#?.txt")).await.expect("cat"), "ü".as_bytes());
    assert_eq!(node.cat(&format!("{snapshot}/empty.txt")).await.expect("cat"), &b""[..]);
    assert_eq!(node.cat(&format!("{snapshot}/model.safetensors")).await.expect("cat"), weights());
    let trees = node.cat(&format!("{REPO}/trees/{commit}.json")).await.expect("trees");
    let trees: serde_json::Value = serde_json::from_slice(&trees).expect("json");
    assert_eq!(trees["files"].as_object().expect("files").len(), 4);
    assert!(node.ls("").await.expect("root").contains(&REPO.to_owned()));
}

#[tokio::test]
async fn each_byte_is_asked_for_once_and_nothing_the_second_time() {
    let cluster = Cluster::new(tiny);
    let node = cluster.node().await;
    let commit = cluster.hub.commit("models", "org/tiny", "main").expect("commit");
    let path = format!("{REPO}/snapshots/{commit}/model.safetensors");
    let (a, b) = tokio::join!(node.cat(&path), node.cat(&path));
    assert_eq!(a.expect("cat"), weights());
    assert_eq!(b.expect("cat"), weights());
    let first = cluster.hub.counters();
    assert_eq!(first.bytes, weights().len() as u64, "each byte once");
    assert_eq!(first.of("revision"), 1);
    assert_eq!(first.of("tree"), 1);
    cluster.hub.reset();
    assert_eq!(node.cat(&path).await.expect("cat"), weights());
    assert_eq!(node.cat(&format!("{REPO}/refs/main")).await.expect("ref"), commit.as_bytes());
    assert_eq!(cluster.hub.counters().total(), 0, "{:?}", cluster.hub.counters());
}

#[tokio::test]
async fn what_is_not_in_a_commit_is_in_no_exist() {
    let cluster = Cluster::new(tiny);
    let node = cluster.node().await;
    let commit = cluster.hub.commit("models", "org/tiny", "main").expect("commit");
    node.walk(REPO).await.expect("repo");
    let dir = format!("{REPO}/.no_exist/{commit}");
    for absent in ["added_tokens.json", "sub/a.json", "onnx/model.onnx", "onnx/deep/er/x.y"] {
        let entry = node.walk(&format!("{dir}/{absent}")).await.expect(absent);
        assert_eq!((entry.stat.kind, entry.stat.size), (FileType::File, 0), "{absent}");
    }
    for present in ["config.json", "sub/deep/x y#?.txt"] {
        assert_eq!(node.walk(&format!("{dir}/{present}")).await.expect_err(present).kind(), Kind::NotFound);
    }
    assert_eq!(node.walk(&format!("{dir}/sub")).await.expect("sub").stat.kind, FileType::Dir);
    assert_eq!(node.ls(&dir).await.expect("ls"), [""; 0]);
    let other = format!("{REPO}/.no_exist/{}", "0".repeat(40));
    assert_eq!(node.walk(&other).await.expect_err("unknown commit").kind(), Kind::NotFound);
}

#[tokio::test]
async fn branches_tags_pull_requests_and_commits() {
    let cluster = Cluster::new(|root| {
        tiny(root);
        write(root, "models/org/tiny/feature_x/config.json", b"{\"a\": 2}");
        write(root, "models/org/tiny/pr1/config.json", b"{\"a\": 3}");
        let repo = r#"{"branches": {"main": "main", "feature/x": "feature_x"}, "tags": {"v1.0": "main"}, "pr": {"1": "pr1"}}"#;
        write(root, "models/org/tiny/repo.json", repo.as_bytes());
    });
    let node = cluster.node().await;
    let of = |revision| cluster.hub.commit("models", "org/tiny", revision).expect("commit");
    for name in ["main", "v1.0", "feature/x", "refs/pr/1"] {
        let text = node.cat(&format!("{REPO}/refs/{name}")).await.expect(name);
        assert_eq!(text, of(name).as_bytes(), "{name}");
    }
    let pr = format!("{REPO}/snapshots/{}/config.json", of("refs/pr/1"));
    assert_eq!(node.cat(&pr).await.expect("pull request"), &b"{\"a\": 3}"[..]);
    for absent in ["nope", "refs/pr/99", "main.1234abcd.tmp", &of("main")] {
        let error = node.walk(&format!("{REPO}/refs/{absent}")).await.expect_err(absent);
        assert_eq!(error.kind(), Kind::NotFound, "{absent}");
    }
}

#[tokio::test]
async fn a_commit_by_its_name_and_the_second_commit_of_a_repository() {
    let cluster = Cluster::new(tiny);
    let node = cluster.node_with(Settings { ref_ttl: Duration::ZERO, ..Settings::default() }).await;
    let old = cluster.hub.commit("models", "org/tiny", "main").expect("commit");
    assert_eq!(node.cat(&format!("{REPO}/refs/main")).await.expect("ref"), old.as_bytes());
    write(cluster.root(), "models/org/tiny/main/config.json", b"{\"a\": 10}");
    let new = cluster.hub.commit("models", "org/tiny", "main").expect("commit");
    assert_ne!(old, new);
    let text = node.cat(&format!("{REPO}/snapshots/{new}/config.json")).await.expect("new commit");
    assert_eq!(text, &b"{\"a\": 10}"[..]);
    assert_eq!(node.cat(&format!("{REPO}/refs/main")).await.expect("ref follows"), new.as_bytes());
    assert_eq!(
        node.cat(&format!("{REPO}/snapshots/{old}/sub/deep/x y#?.txt")).await.expect("old"),
        "ü".as_bytes()
    );
}

#[tokio::test]
async fn names_that_are_no_repositories_never_reach_the_hub() {
    let cluster = Cluster::new(tiny);
    let node = cluster.node().await;
    for name in
        ["CACHEDIR.TAG", "models--", "version.txt", "models--a--b--c", "kernels--a--b", "tmp123", ".locks"]
    {
        assert_eq!(node.walk(name).await.expect_err(name).kind(), Kind::NotFound, "{name}");
    }
    node.ls("").await.expect("ls");
    assert_eq!(cluster.hub.counters().total(), 0);
    let unknown = node.walk("models--org--unknown").await.expect_err("unknown");
    assert_eq!(unknown.kind(), Kind::NotFound);
    let asked = cluster.hub.counters().total();
    assert!(asked >= 1);
    node.walk("models--org--unknown").await.expect_err("unknown");
    assert_eq!(cluster.hub.counters().total(), asked, "a refusal is remembered");
    node.mkdir("models--org--unknown").await.expect("a client may make it");
}

#[tokio::test]
async fn a_hub_in_trouble_is_never_no_such_file() {
    let cluster = Cluster::new(tiny);
    let settings = Settings { hub_deadline: Duration::from_secs(1), ..Settings::default() };
    let node = cluster.node_with(settings).await;
    cluster.hub.faults(|f| f.unavailable = u32::MAX);
    // The root answers early; inside, the failure shows as what it is.
    let error = node.walk(&format!("{REPO}/refs/main")).await.expect_err("hub down");
    assert_eq!(error.errno(), libc::EIO, "{error}");
    cluster.hub.faults(|f| f.unavailable = 0);
    tokio::time::sleep(Duration::from_millis(2_100)).await;
    node.walk(&format!("{REPO}/refs/main")).await.expect("hub is back");
}

#[tokio::test]
async fn a_hanging_hub_does_not_hold_the_root() {
    let cluster = Cluster::new(tiny);
    let node = cluster.node().await;
    cluster.hub.faults(|f| f.delay_ms = 2_500);
    let start = Instant::now();
    let early = node.walk(REPO).await.expect("a directory, for now");
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    assert_eq!(early.stat.kind, FileType::Dir);
    assert!(early.entry_ttl.is_zero());
    node.mkdir("else").await.expect("mkdir");
    node.ls("").await.expect("ls");
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    // Inside, who comes waits, and finds the real thing under the same number.
    node.walk(&format!("{REPO}/refs/main")).await.expect("answered");
    assert_eq!(node.walk(REPO).await.expect("repo").stat.ino, early.stat.ino);

    // An early directory that the Hub does not know is withdrawn.
    let early = node.walk("models--org--nothing").await.expect("a directory, for now").stat.ino;
    let inside = node.walk("models--org--nothing/refs").await.expect_err("withdrawn");
    assert_eq!(inside.kind(), Kind::NotFound);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(node.walk("models--org--nothing").await.expect_err("gone").kind(), Kind::NotFound);
    assert!(node.vfs.try_getattr(early).is_none_or(|known| known.is_err()));
}

#[tokio::test]
async fn deleted_repositories_stay_away_until_somebody_makes_them() {
    let cluster = Cluster::new(tiny);
    let node = cluster.node().await;
    let caller = crate::node::ROOT;
    node.walk(REPO).await.expect("repo");
    let root = hfmount::types::Ino::ROOT;
    node.vfs.rename(&caller, (root, REPO.as_bytes()), (root, b"aside"), 0).await.expect("rename");
    assert_eq!(node.walk(REPO).await.expect_err("tombstone").kind(), Kind::NotFound);
    let commit = cluster.hub.commit("models", "org/tiny", "main").expect("commit");
    let path = format!("aside/snapshots/{commit}/config.json");
    assert_eq!(node.cat(&path).await.expect("still there"), &b"{\"a\": 1}"[..]);
    node.mkdir(REPO).await.expect("mkdir ends the tombstone");
    assert_eq!(node.ls(REPO).await.expect("ls"), [""; 0], "made by hand: nobody fills it");
}

#[tokio::test]
async fn offline_nodes_never_call_out_and_read_what_the_bucket_has() {
    let cluster = Cluster::new(tiny);
    let online = cluster.node_with(Settings { store_hub_blobs: true, ..Settings::default() }).await;
    let commit = cluster.hub.commit("models", "org/tiny", "main").expect("commit");
    let path = format!("{REPO}/snapshots/{commit}/model.safetensors");
    assert_eq!(online.cat(&path).await.expect("cat"), weights());
    online.chunks.shutdown(Duration::from_secs(10)).await.expect("uploads drained");
    cluster.hub.reset();
    let offline = cluster.node_with(Settings { offline: true, ..Settings::default() }).await;
    assert_eq!(offline.cat(&path).await.expect("from the bucket"), weights());
    assert_eq!(offline.walk("models--org--other").await.expect_err("unknown").kind(), Kind::NotFound);
    assert_eq!(cluster.hub.counters().total(), 0);
}

#[tokio::test]
async fn two_nodes_that_meet_a_repository_at_once_agree() {
    let cluster = Cluster::new(tiny);
    let (a, b) = (cluster.node().await, cluster.node().await);
    let refs = format!("{REPO}/refs/main");
    let (x, y) = tokio::join!(a.cat(&refs), b.cat(&refs));
    assert_eq!(x.expect("a"), y.expect("b"));
    let (x, y) = tokio::join!(a.walk(REPO), b.walk(REPO));
    assert_eq!(x.expect("a").stat.ino, y.expect("b").stat.ino);
}

#[tokio::test]
async fn private_and_gated_repositories_need_the_token_and_show_it() {
    for repo in
        [r#"{"private": true, "tokens": ["hf_secret"]}"#, r#"{"gated": "auto", "tokens": ["hf_secret"]}"#]
    {
        let cluster = Cluster::new(|root| {
            tiny(root);
            write(root, "models/org/tiny/repo.json", repo.as_bytes());
        });
        let node = cluster.node().await;
        assert_eq!(node.walk(REPO).await.expect_err("no token").kind(), Kind::NotFound, "{repo}");
        node.mkdir(REPO).await.expect("a client with a token of its own downloads by itself");
        let settings = Settings { token: Some("hf_secret"), ..Settings::default() };
        let cluster = Cluster::new(|root| {
            tiny(root);
            write(root, "models/org/tiny/repo.json", repo.as_bytes());
        });
        let node = cluster.node_with(settings).await;
        let dir = node.walk(REPO).await.expect(repo);
        assert_eq!(dir.stat.mode, 0o750, "{repo}");
        let commit = cluster.hub.commit("models", "org/tiny", "main").expect("commit");
        let path = format!("{REPO}/snapshots/{commit}/model.safetensors");
        assert_eq!(node.cat(&path).await.expect("with the token"), weights());
        assert_eq!(cluster.hub.counters().leaked_tokens, 0, "the CDN never sees it");
    }
}

#[tokio::test]
async fn wrong_bytes_are_caught() {
    let cluster = Cluster::new(tiny);
    let node = cluster.node().await;
    let commit = cluster.hub.commit("models", "org/tiny", "main").expect("commit");
    node.walk(REPO).await.expect("repo");
    cluster.hub.faults(|f| {
        f.only = crate::standin::Target::Resolve;
        f.wrong = 1;
    });
    let path = format!("{REPO}/snapshots/{commit}/config.json");
    // A small file is one chunk: it is checked whole before it is served.
    let mut last = Vec::new();
    for _ in 0..50 {
        if let Ok(bytes) = node.cat(&path).await {
            last = bytes.to_vec();
            if last == b"{\"a\": 1}" {
                break;
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(last, b"{\"a\": 1}");
}
