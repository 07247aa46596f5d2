//! Several clients of the Hub with one tracker, on a real Redis: one question for each place, one pause for all.

#[path = "support/redis.rs"]
mod redis_server;
#[path = "standin/mod.rs"]
mod standin;

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use hfmount::daemon::SharedHub;
use hfmount::hub::{HubClient, HubOptions, Token};
use hfmount::meta::kv::Kv;
use hfmount::meta::redis::{RedisAddress, RedisKv, RedisOptions};
use hfmount::peer::tracker::Tracker;
use hfmount::peer::{NodeId, PeerOptions};
use hfmount::types::{BlobId, Commit, Origin, RepoId, RepoKind};
use redis_server::RedisServer;
use sha2::{Digest, Sha256};
use standin::model::{put, random_bytes};
use standin::{Options, StandIn, Target};

const LEN: usize = 1_000_000;

struct World {
    redis: RedisServer,
    hub: StandIn,
    kv: Arc<dyn Kv>,
    /// Two files of the Hub.
    files: Vec<(Origin, BlobId, Vec<u8>)>,
    _dir: tempfile::TempDir,
}

async fn world() -> World {
    let dir = tempfile::tempdir().expect("a folder");
    let contents = [random_bytes(3, LEN), random_bytes(4, LEN)];
    for (n, bytes) in contents.iter().enumerate() {
        put(dir.path(), &format!("models/acme/m/main/{n}.safetensors"), bytes);
    }
    let hub = StandIn::start(dir.path(), Options::default()).expect("free ports");
    let commit = hub.commit("models", "acme/m", "main").and_then(|c| Commit::parse(&c)).expect("a commit");
    let repo = RepoId { kind: RepoKind::Model, id: "acme/m".to_owned() };
    let file = |(n, bytes): (usize, Vec<u8>)| {
        let origin = Origin { repo: repo.clone(), commit, path: format!("{n}.safetensors") };
        (origin, BlobId::Sha256(Sha256::digest(&bytes).into()), bytes)
    };
    let files = contents.into_iter().enumerate().map(file).collect();
    let redis = RedisServer::start_with(&[]);
    let address = RedisAddress::Tcp {
        host: redis.address().ip().to_string(),
        port: redis.address().port(),
        tls: false,
    };
    let kv = RedisKv::open(RedisOptions::new(address)).await.expect("open");
    World { redis, hub, kv, files, _dir: dir }
}

impl World {
    /// A client as one node has it.
    fn node(&self, token: &str) -> HubClient {
        let token = Token::new(token).expect("plain");
        let scope = Token::scope(token.as_ref(), self.hub.endpoint(), &[5; 32]);
        let client = HubClient::new(HubOptions {
            endpoint: self.hub.endpoint().to_owned(),
            token,
            connect_timeout: Duration::from_secs(2),
            read_timeout: Duration::from_secs(5),
            deadline: Duration::from_secs(20),
            ..HubOptions::default()
        })
        .expect("valid options");
        let tracker = Tracker::new(&*self.kv, NodeId::random(), &PeerOptions::default()).expect("Redis");
        client.share(SharedHub::new(tracker, self.hub.endpoint(), scope));
        client
    }

    /// Reads one of the files.
    async fn read(&self, client: &HubClient, n: usize) {
        let (origin, blob, bytes) = &self.files[n];
        let mut stream = client.open_range(origin, *blob, LEN as u64, 0..LEN as u64).await.expect("opens");
        let mut got = Vec::new();
        while let Some(piece) = stream.next().await {
            got.extend_from_slice(&piece.expect("a piece"));
        }
        assert!(got == *bytes);
    }

    fn resolved(&self) -> u64 {
        self.hub.counters().of("resolve_get")
    }
}

#[tokio::test]
async fn nodes_ask_once_where_a_file_is() {
    let w = world().await;
    w.hub.faults(|f| (f.only, f.delay_ms) = (Target::Resolve, 200));
    let nodes: Vec<_> = (0..4).map(|_| w.node("hf_one")).collect();
    futures::future::join_all(nodes.iter().map(|node| w.read(node, 0))).await;
    assert_eq!(w.resolved(), 1);
    let late = w.node("hf_one");
    w.read(&late, 0).await;
    assert_eq!(w.resolved(), 1, "also for who comes later");
    w.read(&late, 1).await;
    assert_eq!(w.resolved(), 2, "another file");
    w.read(&w.node("hf_two"), 0).await;
    w.read(&w.node(""), 0).await;
    assert_eq!(w.resolved(), 4, "who has other rights asks for himself");
    assert_eq!(w.hub.counters().leaked_tokens, 0);
}

#[tokio::test]
async fn a_pause_of_one_is_kept_by_all() {
    let w = world().await;
    let (a, b) = (w.node("hf_one"), w.node("hf_two"));
    w.read(&b, 1).await;
    w.hub.faults(|f| (f.only, f.too_many, f.retry_after) = (Target::Resolve, 1, Some(4)));
    let begun = Instant::now();
    let first = w.read(&a, 0);
    let second = async {
        // The other one has heard by then.
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        assert_eq!(w.hub.counters().statuses.get(&429), Some(&1));
        let before = w.resolved();
        let asked = async {
            tokio::time::sleep(Duration::from_millis(1_000)).await;
            assert_eq!(w.resolved(), before, "nobody asks while the Hub wants to be left alone");
        };
        tokio::join!(w.read(&b, 0), asked);
    };
    tokio::join!(first, second);
    assert!(begun.elapsed() >= Duration::from_millis(3_800), "{:?}", begun.elapsed());
    assert_eq!(w.hub.counters().statuses.get(&429), Some(&1), "one refusal for both");
}

#[tokio::test]
async fn what_has_run_out_is_asked_for_by_one() {
    let w = world().await;
    let nodes: Vec<_> = (0..3).map(|_| w.node("hf_one")).collect();
    for node in &nodes {
        w.read(node, 0).await;
    }
    assert_eq!(w.resolved(), 1);
    w.hub.expire_urls();
    w.hub.faults(|f| (f.only, f.delay_ms) = (Target::Resolve, 100));
    futures::future::join_all(nodes.iter().map(|node| w.read(node, 0))).await;
    assert_eq!(w.resolved(), 2);
}

#[tokio::test]
async fn who_asks_and_fails_leaves_it_to_the_next() {
    let w = world().await;
    let (a, b) = (w.node("hf_one"), w.node("hf_one"));
    w.hub.faults(|f| (f.only, f.hang) = (Target::Resolve, 1));
    {
        let (origin, blob, _) = &w.files[0];
        let asks = a.open_range(origin, *blob, LEN as u64, 0..1);
        assert!(tokio::time::timeout(Duration::from_millis(500), asks).await.is_err(), "it hangs");
    }
    let begun = Instant::now();
    w.read(&b, 0).await;
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn without_the_tracker_each_asks_for_itself() {
    let mut w = world().await;
    let (a, b) = (w.node("hf_one"), w.node("hf_one"));
    w.redis.kill();
    let begun = Instant::now();
    w.read(&a, 0).await;
    w.read(&b, 0).await;
    w.read(&a, 1).await;
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    assert_eq!(w.resolved(), 3);
}
