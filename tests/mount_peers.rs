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
use std::path::PathBuf;

use mount::{Home, Mount, can_mount, wait_for};
use redis_server::RedisServer;
use standin::model::put;
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
