//! A mirror of the Hub as a source: what it gives, and how it is left alone when it is down, slow or lies.

#[path = "standin/mod.rs"]
mod standin;

use std::time::{Duration, Instant};

use futures::StreamExt;
use hfmount::error::{Error, Kind};
use hfmount::source::breaker::{BreakerOptions, BreakerState};
use hfmount::source::mirror::{Mirror, MirrorOptions};
use hfmount::source::{Source, Want};
use hfmount::types::{BlobId, Commit, Origin, RepoId, RepoKind};
use sha2::{Digest, Sha256};
use standin::model::{put, random_bytes};
use standin::{Options, StandIn, Target};

const CHUNK: u32 = 64 << 10;
const LEN: usize = 1_000_000;
const BRIEF: Duration = Duration::from_millis(400);

struct World {
    hub: StandIn,
    mirror: Mirror,
    want: Want,
    bytes: Vec<u8>,
    _dir: tempfile::TempDir,
}

fn world() -> World {
    let dir = tempfile::tempdir().expect("a folder");
    let bytes = random_bytes(3, LEN);
    put(dir.path(), "models/acme/m/main/model.safetensors", &bytes);
    let hub = StandIn::start(dir.path(), Options::default()).expect("free ports");
    let options = MirrorOptions {
        breaker: BreakerOptions { first: BRIEF, first_condemned: BRIEF * 2, ..BreakerOptions::default() },
        connect_timeout: Duration::from_secs(1),
        read_timeout: Duration::from_secs(1),
        pace_window: Duration::from_secs(1),
        pace_bytes: 64 << 10,
    };
    let mirror = Mirror::new(hub.endpoint(), options).expect("an endpoint");
    let commit = hub.commit("models", "acme/m", "main").and_then(|c| Commit::parse(&c)).expect("a commit");
    let repo = RepoId { kind: RepoKind::Model, id: "acme/m".to_owned() };
    let origin = Origin { repo, commit, path: "model.safetensors".to_owned() };
    let want = Want {
        blob: BlobId::Sha256(Sha256::digest(&bytes).into()),
        size: LEN as u64,
        origins: [origin].into(),
        first: 0,
        count: 1 << 20,
        chunk_size: CHUNK,
        stored: [].into(),
        holders: [].into(),
    };
    World { hub, mirror, want, bytes, _dir: dir }
}

impl World {
    async fn get(&self) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        let mut stream = self.mirror.fetch(&self.want).await?;
        while let Some(piece) = stream.next().await {
            bytes.extend_from_slice(&piece?);
        }
        Ok(bytes)
    }

    async fn fails(&self) -> Kind {
        self.get().await.expect_err("no bytes").kind()
    }

    fn requests(&self) -> u64 {
        self.hub.counters().total()
    }
}

/// Until the breaker lets one through again.
async fn wait_out(mirror: &Mirror, want: &Want) {
    let end = Instant::now() + Duration::from_secs(20);
    while mirror.fetch(want).await.is_err_and(|e| e.to_string().contains("left alone")) {
        assert!(Instant::now() < end, "the breaker does not let anybody through");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn it_serves_without_a_token() {
    let w = world();
    assert!(w.get().await.expect("all") == w.bytes);
    let part = Want { first: 3, count: 2, ..w.want.clone() };
    let pieces: Vec<_> = w.mirror.fetch(&part).await.expect("a part").collect().await;
    let part: Vec<u8> = pieces.into_iter().flat_map(|p| p.expect("a piece")).collect();
    assert_eq!(part, w.bytes[3 * CHUNK as usize..5 * CHUNK as usize]);
    assert_eq!(w.mirror.state(), BreakerState::Closed);
}

#[tokio::test]
async fn down_it_is_left_alone_and_found_again() {
    let w = world();
    w.hub.faults(|f| f.refuse = true);
    for _ in 0..3 {
        assert!(w.fails().await.is_transient());
    }
    assert_eq!(w.mirror.state(), BreakerState::Open);
    let before = w.requests();
    let begun = Instant::now();
    for _ in 0..100 {
        assert_eq!(w.fails().await, Kind::Unavailable);
    }
    assert!(begun.elapsed() < Duration::from_secs(1), "to be left alone costs nothing");
    w.hub.faults(|f| f.refuse = false);
    assert!(w.requests() <= before + 2, "{before} → {}", w.requests());
    wait_out(&w.mirror, &w.want).await;
    let end = Instant::now() + Duration::from_secs(20);
    while !w.get().await.is_ok_and(|bytes| bytes == w.bytes) {
        assert!(Instant::now() < end);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(w.mirror.state(), BreakerState::Closed);
}

#[tokio::test]
async fn server_errors_and_hanging_answers_count() {
    let w = world();
    w.hub.faults(|f| (f.only, f.unavailable, f.hang) = (Target::Resolve, 2, 1));
    let begun = Instant::now();
    for _ in 0..3 {
        assert!(w.fails().await.is_transient());
    }
    assert!(
        begun.elapsed() < Duration::from_secs(15),
        "it is not tried again and again: {:?}",
        begun.elapsed()
    );
    assert_eq!(w.mirror.state(), BreakerState::Open);
}

#[tokio::test]
async fn what_it_does_not_have_is_asked_for_once_and_is_no_failure() {
    let mut w = world();
    let mut origin = w.want.origins[0].clone();
    origin.path = "none.bin".to_owned();
    w.want.origins = [origin].into();
    for _ in 0..10 {
        assert_eq!(w.fails().await, Kind::NotFound);
    }
    assert_eq!(w.requests(), 1);
    assert_eq!(w.mirror.state(), BreakerState::Closed);
}

#[tokio::test]
async fn what_it_refuses_is_not_there() {
    let w = world();
    w.hub.faults(|f| f.gated = true);
    assert_eq!(w.fails().await, Kind::NotFound, "the Hub may say something else");
    assert_eq!(w.mirror.state(), BreakerState::Closed);
}

#[tokio::test]
async fn another_content_under_the_name_and_wrong_bytes_condemn_it() {
    let mut w = world();
    let right = w.want.blob;
    w.want.blob = BlobId::Sha256([9; 32]);
    assert_eq!(w.fails().await, Kind::NotFound);
    assert_eq!(w.mirror.state(), BreakerState::Open, "at once");
    w.want.blob = right;
    wait_out(&w.mirror, &w.want).await;
    assert!(w.get().await.is_ok());
    w.mirror.wrong(right);
    assert_eq!(w.mirror.state(), BreakerState::Open);
    let other = Want { blob: BlobId::Sha256([8; 32]), ..w.want.clone() };
    assert!(w.mirror.fetch(&other).await.is_err_and(|e| e.kind() == Kind::Unavailable));
    assert_eq!(w.fails().await, Kind::NotFound, "that blob is not asked for there, breaker or not");
}

#[tokio::test]
async fn a_trickle_is_given_up() {
    let w = world();
    w.hub.faults(|f| f.slow = 8 << 10);
    let begun = Instant::now();
    assert_eq!(w.fails().await, Kind::TimedOut);
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    // A reader that takes its time is not the mirror's fault.
    w.hub.faults(|f| f.slow = 0);
    let mut stream = w.mirror.fetch(&w.want).await.expect("begins");
    let mut len = 0;
    while let Some(piece) = stream.next().await {
        len += piece.expect("a piece").len();
        if len < 300_000 {
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }
    assert_eq!(len, LEN);
}
