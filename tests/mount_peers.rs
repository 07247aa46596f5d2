//! Real mounts on one Redis that share what each of them fetched: the Hub gives one copy and is left alone when it says so,
//! and the figures of each node tell what it did for the others.

#[path = "support/figures.rs"]
mod figures;
#[path = "support/hub.rs"]
mod hub;
#[path = "support/mount.rs"]
mod mount;
#[path = "support/redis.rs"]
mod redis_server;
#[path = "standin/mod.rs"]
mod standin;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use hfmount::chunk::digest::Digest;
use hfmount::types::BlobId;
use mount::{Home, Mount, can_mount, wait_for};
use redis_server::RedisServer;
use standin::model::{put, random_bytes};
use standin::{StandIn, Target};

const BIG: usize = 12_000_000;
const CHUNKS: f64 = 12.0;

struct World {
    // Dropped before the server that its programs use.
    home: Home,
    hub: StandIn,
    big: Vec<u8>,
    _redis: RedisServer,
}

fn world() -> World {
    let redis = RedisServer::start();
    let mut home = Home::new();
    home.set_env("HFMOUNT_META", &redis.url());
    let hub::World { home, hub, big } = hub::World::in_home(home, &["peers"], BIG, |root, big| {
        put(root, "models/org/one/main/model.safetensors", big);
    });
    World { home, hub, big, _redis: redis }
}

impl World {
    /// A mount, and where its figures are.
    fn node(&self, name: &str) -> (Mount, String) {
        let port = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound");
        let address = port.to_string();
        let listen = ["--peer-listen", "127.0.0.1:0", "--metrics", &address];
        (self.home.mount(name, &listen), address)
    }

    fn active(&self) -> usize {
        let listed = self.home.run_ok(&["peer", "ls", "--json"]);
        listed.matches("\"active\"").count()
    }
}

fn model(mount: &Mount) -> PathBuf {
    hub::snapshot(mount, "one").join("model.safetensors")
}

/// The figures at an address, by name and labels.
fn scrape(address: &str) -> BTreeMap<String, f64> {
    let page = figures::page(address);
    let lines = page.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').expect("a value");
            (name.to_owned(), value.parse().expect("a number"))
        })
        .collect()
}

fn of(figures: &BTreeMap<String, f64>, name: &str) -> f64 {
    *figures.get(name).unwrap_or_else(|| panic!("no {name} in {figures:#?}"))
}

#[test]
fn figures_of_nodes_tell_what_they_gave_each_other() {
    if !can_mount() {
        return;
    }
    let w = world();
    let ((one, at_one), (two, at_two)) = (w.node("one"), w.node("two"));
    wait_for("both know each other", || w.active() == 2);
    let files = [model(&one), model(&two)];
    let readers = files.map(|file| std::thread::spawn(move || fs::read(file).expect("read")));
    for reader in readers {
        assert!(reader.join().expect("no panic") == w.big);
    }
    let figures = [scrape(&at_one), scrape(&at_two)];
    let sum = |name: &str| figures.iter().map(|f| of(f, name)).sum::<f64>();
    assert_eq!(sum("hfmount_source_bytes_total{source=\"hub\"}"), BIG as f64, "one copy for both");
    assert_eq!(sum("hfmount_source_bytes_total{source=\"peer\"}"), BIG as f64);
    assert_eq!(sum("hfmount_peer_sent_bytes_total"), BIG as f64);
    assert_eq!(sum("hfmount_peer_requests_total{outcome=\"chunk\"}"), CHUNKS);
    assert!(sum("hfmount_peer_passed_on_total") <= CHUNKS);
    assert_eq!(sum("hfmount_peer_requests_total{outcome=\"refused\"}"), 0.0);
    assert_eq!(sum("hfmount_chunks_filled_total"), 2.0 * CHUNKS);
    assert_eq!(sum("hfmount_chunks_wrong_total"), 0.0);
    for figures in &figures {
        assert!(of(figures, "hfmount_peer_slots_free") > 0.0);
        assert!(figures.keys().any(|name| name.starts_with("hfmount_peer")), "{figures:#?}");
    }
    assert_eq!(w.hub.counters().leaked_tokens, 0);
}

#[test]
fn a_hub_that_wants_to_be_left_alone_is_by_all_nodes() {
    if !can_mount() {
        return;
    }
    let w = world();
    let ((one, _), (two, _)) = (w.node("one"), w.node("two"));
    wait_for("both know each other", || w.active() == 2);
    let files = [model(&one), model(&two)];
    w.hub.faults(|f| (f.only, f.too_many, f.retry_after) = (Target::Resolve, 1, Some(2)));
    let begun = std::time::Instant::now();
    let readers = files.map(|file| std::thread::spawn(move || fs::read(file).expect("read")));
    for reader in readers {
        assert!(reader.join().expect("no panic") == w.big, "who waits gets it all the same");
    }
    assert!(begun.elapsed().as_secs_f64() >= 1.9, "{:?}", begun.elapsed());
    assert_eq!(w.hub.counters().statuses.get(&429), Some(&1), "one refusal for both");
}

/// What `hfmount info` says of a file.
fn told(w: &World, path: &Path) -> String {
    w.home.run_ok(&["info", "--json", path.to_str().expect("UTF-8")])
}

#[test]
fn what_a_client_downloads_on_one_node_the_others_have_from_it_and_from_the_storage() {
    if !can_mount() {
        return;
    }
    let w = world();
    let ((one, at_one), (two, at_two)) = (w.node("one"), w.node("two"));
    wait_for("both know each other", || w.active() == 2);
    let bytes = random_bytes(33, BIG);
    let etag = Digest::of(&BlobId::Sha256([0; 32]), &bytes).etag();
    let blobs = |mount: &Mount| mount.path().join("models--org--mine/blobs");
    fs::create_dir_all(blobs(&one)).expect("mkdir");
    let temporary = blobs(&one).join(format!("{etag}.incomplete"));
    fs::write(&temporary, &bytes).expect("write");
    let path = blobs(&one).join(&etag);
    fs::rename(&temporary, &path).expect("rename");
    wait_for("it is known to be a blob", || told(&w, &path).contains("\"proven\": true"));
    assert!(fs::read(&path).expect("read") == bytes);
    assert!(fs::read(blobs(&two).join(&etag)).expect("read") == bytes);
    let came = |address: &str, source: &str| {
        let name = format!("hfmount_source_bytes_total{{source=\"{source}\"}}");
        scrape(address).get(&name).copied().unwrap_or_default()
    };
    assert_eq!((came(&at_one, "peer"), came(&at_one, "file")), (0.0, 0.0), "it was here");
    assert_eq!((came(&at_two, "peer") + came(&at_two, "file"), came(&at_two, "hub")), (BIG as f64, 0.0));
    assert!(came(&at_two, "peer") > 0.0, "who has it gives it");
    assert_eq!(two.stop().code(), Some(0));
    assert_eq!(one.stop().code(), Some(0));

    // Nobody is left who has it, and the Hub is not to be asked.
    let cold = w.home.dir("cold");
    let args =
        ["--peer-listen", "127.0.0.1:0", "--hub", "deny", "--cache-dir", cold.to_str().expect("UTF-8")];
    let three = w.home.mount("three", &args);
    assert!(fs::read(blobs(&three).join(&etag)).expect("read") == bytes);
    // Written to there, it is what was written.
    let mut now = bytes;
    now[5_000_000..5_000_004].copy_from_slice(b"over");
    let file = fs::OpenOptions::new().write(true).open(blobs(&three).join(&etag)).expect("open");
    file.write_all_at(b"over", 5_000_000).expect("write");
    drop(file);
    assert!(fs::read(blobs(&three).join(&etag)).expect("read") == now);
    assert!(told(&w, &blobs(&three).join(&etag)).contains("\"proven\": false"));
    assert_eq!(three.stop().code(), Some(0));
    assert_eq!(w.hub.counters().bytes, 0);
}
