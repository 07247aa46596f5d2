//! Bytes from the Hub and its CDN through `HubSource`: ranges, resumption, signed URLs, and what must never be served.

#[path = "standin/mod.rs"]
mod standin;

use std::time::{Duration, Instant};

use futures::StreamExt;
use hfmount::error::{Error, Kind};
use hfmount::hub::{HubClient, HubOptions, Token};
use hfmount::source::hub::HubSource;
use hfmount::source::{Source, Want};
use hfmount::types::{BlobId, Commit, Origin, RepoId, RepoKind};
use standin::model::{put, random_bytes};
use standin::{Options, StandIn, Target};

const CHUNK: u32 = 64 << 10;
const LEN: usize = 1_000_000;

struct World {
    hub: StandIn,
    client: HubClient,
    big: Want,
    bytes: Vec<u8>,
    small: Want,
    _dir: tempfile::TempDir,
}

fn model(id: &str) -> RepoId {
    RepoId { kind: RepoKind::Model, id: id.to_owned() }
}

async fn world_with(options: Options, token: Option<&str>) -> World {
    let dir = tempfile::tempdir().expect("a folder");
    let bytes = random_bytes(3, LEN);
    put(dir.path(), "models/acme/m/main/model.safetensors", &bytes);
    put(dir.path(), "models/acme/m/main/sub dir/größe/a#b?c %20.txt", "0123456789");
    put(dir.path(), "models/acme/copy/main/again.safetensors", &bytes);
    put(dir.path(), "models/acme/gated/main/again.safetensors", &bytes);
    put(dir.path(), "models/acme/gated/repo.json", r#"{"gated": "auto", "tokens": ["hf_good"]}"#);
    put(dir.path(), "models/acme/other/main/model.safetensors", random_bytes(4, LEN));
    put(dir.path(), "models/acme/short/main/model.safetensors", &bytes[..LEN - 1]);
    let hub = StandIn::start(dir.path(), options).expect("free ports");
    let client = HubClient::new(HubOptions {
        endpoint: hub.endpoint().to_owned(),
        token: Token::new(token.unwrap_or("")).expect("plain"),
        connect_timeout: Duration::from_secs(1),
        read_timeout: Duration::from_secs(1),
        deadline: Duration::from_secs(3),
        ..HubOptions::default()
    });
    let client = client.expect("valid options");
    let commit = commit(&hub, "acme/m");
    let files = client.tree_files(&model("acme/m"), commit).await.expect("the tree");
    let want = |path: &str| {
        let file = files.iter().find(|f| f.path == path).expect("in the tree");
        let origin = Origin { repo: model("acme/m"), commit, path: path.to_owned() };
        let count = file.size.div_ceil(u64::from(CHUNK));
        Want {
            blob: file.blob,
            size: file.size,
            origins: [origin].into(),
            first: 0,
            count,
            chunk_size: CHUNK,
            stored: [].into(),
            holders: [].into(),
        }
    };
    let (big, small) = (want("model.safetensors"), want("sub dir/größe/a#b?c %20.txt"));
    hub.reset();
    World { hub, client, big, bytes, small, _dir: dir }
}

async fn world() -> World {
    world_with(Options::default(), Some("hf_good")).await
}

fn commit(hub: &StandIn, id: &str) -> Commit {
    let commit = hub.commit("models", id, "main").expect("it exists");
    Commit::parse(&commit).expect("40 hex digits")
}

fn origin(hub: &StandIn, id: &str, path: &str) -> Origin {
    Origin { repo: model(id), commit: commit(hub, id), path: path.to_owned() }
}

/// All bytes of a run, or what came before the error.
async fn collect(source: &HubSource, want: &Want) -> Result<Vec<u8>, Error> {
    let mut stream = source.fetch(want).await?;
    let mut bytes = Vec::new();
    while let Some(piece) = stream.next().await {
        bytes.extend_from_slice(&piece?);
    }
    Ok(bytes)
}

fn run(want: &Want, first: u64, count: u64) -> Want {
    Want { first, count, ..want.clone() }
}

#[tokio::test]
async fn runs_of_chunks_from_the_cdn_with_one_question_to_the_hub() {
    let w = world().await;
    let source = HubSource::new(w.client.clone());
    assert_eq!(collect(&source, &w.big).await.expect("all"), w.bytes);
    let chunk = CHUNK as usize;
    assert_eq!(collect(&source, &run(&w.big, 3, 2)).await.expect("two"), w.bytes[3 * chunk..5 * chunk]);
    assert_eq!(collect(&source, &run(&w.big, 15, 99)).await.expect("the end"), w.bytes[15 * chunk..]);
    assert_eq!(collect(&source, &run(&w.big, 16, 1)).await.expect("nothing"), b"");
    let counts = w.hub.counters();
    assert_eq!((counts.of("resolve_get"), counts.of("cdn_get"), counts.of("resolve_head")), (1, 3, 0));
    assert_eq!(counts.leaked_tokens, 0);
    assert_eq!(counts.bytes, (LEN + 2 * chunk + LEN - 15 * chunk) as u64, "no byte that was not asked for");
    assert!(counts.connections <= 2, "connections are used again: {}", counts.connections);
}

#[tokio::test]
async fn many_readers_at_once_ask_the_hub_once() {
    let w = world().await;
    w.hub.faults(|f| (f.only, f.delay_ms) = (Target::Resolve, 50));
    let mut tasks = tokio::task::JoinSet::new();
    for i in 0..15 {
        let (source, want) = (HubSource::new(w.client.clone()), run(&w.big, i, 1));
        tasks.spawn(async move { (want.range(), collect(&source, &want).await) });
    }
    for (range, bytes) in tasks.join_all().await {
        assert_eq!(bytes.expect("a chunk"), w.bytes[range.start as usize..range.end as usize]);
    }
    assert_eq!(w.hub.counters().of("resolve_get"), 1);
}

#[tokio::test]
async fn git_files_come_from_the_hub_itself_by_any_way() {
    for resolve_cache in [false, true] {
        let w = world_with(Options { resolve_cache, ..Options::default() }, None).await;
        let source = HubSource::new(w.client.clone());
        let want = Want { chunk_size: 4, ..w.small.clone() };
        for no_range in [false, true] {
            w.hub.faults(|f| f.no_range = no_range);
            assert_eq!(collect(&source, &run(&want, 1, 1)).await.expect("a piece"), b"4567");
            assert_eq!(collect(&source, &run(&want, 2, 1)).await.expect("the end"), b"89");
        }
        assert_eq!(w.hub.counters().of("cdn_get"), 0);
    }
}

#[tokio::test]
async fn signed_urls_that_are_refused_or_run_out_are_renewed() {
    let w = world_with(Options { signed_for: Duration::from_secs(2), ..Options::default() }, None).await;
    let source = HubSource::new(w.client.clone());
    let one = run(&w.big, 0, 1);
    collect(&source, &one).await.expect("first");
    w.hub.faults(|f| f.expired = 1);
    collect(&source, &one).await.expect("signed anew");
    assert_eq!(w.hub.counters().of("resolve_get"), 2);
    w.hub.expire_urls();
    collect(&source, &one).await.expect("signed anew");
    assert_eq!(w.hub.counters().of("resolve_get"), 3);
    tokio::time::sleep(Duration::from_secs(2)).await;
    collect(&source, &one).await.expect("signed anew before it was refused");
    let counts = w.hub.counters();
    assert_eq!((counts.of("resolve_get"), counts.statuses.get(&403)), (4, Some(&2)));
    // A CDN that refuses everything is no "not found" and no "access denied".
    w.hub.faults(|f| f.expired = u32::MAX);
    let error = collect(&source, &one).await.expect_err("refused");
    assert_eq!(error.kind(), Kind::Unavailable, "{error}");
    assert!(!format!("{error:?}").contains("Signature"), "{error:?}");
}

#[tokio::test]
async fn a_body_that_breaks_off_is_resumed_where_it_stopped() {
    let w = world().await;
    let source = HubSource::new(w.client.clone());
    w.hub.faults(|f| (f.only, f.cut, f.cut_after) = (Target::Cdn, 3, 300_000));
    assert_eq!(collect(&source, &w.big).await.expect("resumed"), w.bytes);
    let counts = w.hub.counters();
    let starts: Vec<u64> = counts.ranges.iter().map(|r| r.start).collect();
    assert_eq!(starts, [0, 300_000, 600_000, 900_000]);
    assert_eq!(counts.bytes, LEN as u64);
    assert_eq!(counts.of("resolve_get"), 1);
}

#[tokio::test]
async fn a_body_that_stalls_is_resumed_and_a_dead_cdn_given_up() {
    let w = world().await;
    let source = HubSource::new(w.client.clone());
    w.hub.faults(|f| (f.only, f.stall, f.stall_after) = (Target::Cdn, 1, 100_000));
    assert_eq!(collect(&source, &w.big).await.expect("resumed"), w.bytes);
    w.hub.faults(|f| (f.stall, f.stall_after) = (u32::MAX, 0));
    let begun = Instant::now();
    let error = collect(&source, &w.big).await.expect_err("never a byte");
    assert_eq!(error.kind(), Kind::TimedOut, "{error}");
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    w.hub.faults(|f| (f.stall, f.hang) = (0, u32::MAX));
    let error = collect(&source, &w.big).await.expect_err("no answer");
    assert_eq!(error.kind(), Kind::TimedOut, "{error}");
}

#[tokio::test]
async fn busy_servers_are_waited_for() {
    let w = world().await;
    let source = HubSource::new(w.client.clone());
    w.hub.faults(|f| (f.only, f.unavailable) = (Target::Cdn, 2));
    assert_eq!(collect(&source, &w.big).await.expect("the third try"), w.bytes);
    w.hub.faults(|f| (f.too_many, f.retry_after) = (1, Some(1)));
    assert_eq!(collect(&source, &run(&w.big, 0, 1)).await.expect("after a second").len(), CHUNK as usize);
    // A limit on the Hub's own answers does not hold up bytes whose place is known.
    w.hub.faults(|f| (f.only, f.too_many) = (Target::Resolve, u32::MAX));
    assert_eq!(collect(&source, &w.big).await.expect("known"), w.bytes);
    let error = collect(&source, &w.small).await.expect_err("unknown");
    assert_eq!(error.kind(), Kind::Unavailable, "{error}");
}

#[tokio::test]
async fn a_slow_transfer_may_take_longer_than_the_deadline() {
    let w = world().await;
    w.hub.faults(|f| (f.only, f.slow) = (Target::Cdn, 250_000));
    let begun = Instant::now();
    assert_eq!(collect(&HubSource::new(w.client.clone()), &w.big).await.expect("slow"), w.bytes);
    assert!(begun.elapsed() > Duration::from_secs(3), "{:?}", begun.elapsed());
    assert_eq!(w.hub.counters().of("cdn_get"), 1);
}

#[tokio::test]
async fn another_content_or_size_under_the_name_is_corrupt() {
    let w = world().await;
    let source = HubSource::new(w.client.clone());
    let at = |id: &str| Want { origins: [origin(&w.hub, id, "model.safetensors")].into(), ..w.big.clone() };
    let error = collect(&source, &at("acme/other")).await.expect_err("another content");
    assert_eq!(error.kind(), Kind::Corrupt, "{error}");
    assert!(error.to_string().contains("acme/other"), "{error}");
    // The same, but a store that lies about the content too: only the length shows it.
    let short = origin(&w.hub, "acme/short", "model.safetensors");
    let blob = w.client.tree_files(&short.repo, short.commit).await.expect("tree")[0].blob;
    let want = Want { blob, origins: [short].into(), ..w.big.clone() };
    let error = collect(&source, &run(&want, 0, 1)).await.expect_err("another size");
    assert_eq!(error.kind(), Kind::Corrupt, "{error}");
}

#[tokio::test]
async fn the_next_origin_has_it() {
    let w = world_with(Options::default(), None).await;
    let source = HubSource::new(w.client.clone());
    let good = origin(&w.hub, "acme/copy", "again.safetensors");
    let gated = origin(&w.hub, "acme/gated", "again.safetensors");
    let gone = Origin { path: "gone".to_owned(), ..good.clone() };
    let deleted = Origin { repo: model("acme/deleted"), ..good.clone() };
    let from = |origins: &[&Origin]| Want {
        origins: origins.iter().map(|o| (*o).clone()).collect::<Vec<_>>().into(),
        ..w.big.clone()
    };
    let all = from(&[&gone, &deleted, &gated, &good]);
    assert_eq!(collect(&source, &all).await.expect("the last one"), w.bytes);
    let kind = async |want| collect(&source, &want).await.expect_err("none has it").kind();
    assert_eq!(kind(from(&[&gone, &gated, &deleted])).await, Kind::Access);
    assert_eq!(kind(from(&[&gone, &deleted])).await, Kind::NotFound);
    assert_eq!(kind(from(&[])).await, Kind::NotFound);
    // Whoever was admitted may.
    let member = world().await;
    let source = HubSource::mirror(member.client.clone());
    let want =
        Want { origins: [origin(&member.hub, "acme/gated", "again.safetensors")].into(), ..w.big.clone() };
    assert_eq!(collect(&source, &want).await.expect("admitted"), w.bytes);
    assert_eq!((source.name(), member.hub.counters().leaked_tokens), ("mirror", 0));
}

#[tokio::test]
async fn wrong_bytes_pass_here_because_the_caller_hashes() {
    let w = world().await;
    w.hub.faults(|f| (f.only, f.wrong) = (Target::Cdn, 1));
    let bytes = collect(&HubSource::new(w.client.clone()), &w.big).await.expect("the right length");
    assert_eq!(bytes.len(), LEN);
    assert_ne!(bytes[0], w.bytes[0]);
    assert_eq!(bytes[1..], w.bytes[1..]);
}

#[tokio::test]
async fn impossible_ranges_are_refused_without_a_request() {
    let w = world().await;
    let BlobId::Sha256(_) = w.big.blob else { panic!("an LFS file") };
    let origin = &w.big.origins[0];
    for (start, end) in [(0, w.big.size + 1), (7, 3)] {
        let opened = w.client.open_range(origin, w.big.blob, w.big.size, start..end).await;
        assert!(opened.is_err_and(|e| e.kind() == Kind::Invalid));
    }
    let offline =
        HubOptions { endpoint: w.hub.endpoint().to_owned(), offline: true, ..HubOptions::default() };
    let source = HubSource::new(HubClient::new(offline).expect("valid"));
    assert_eq!(collect(&source, &w.big).await.expect_err("offline").kind(), Kind::Unavailable);
    assert_eq!(w.hub.counters().requests.values().sum::<u64>(), 0);
}

/// How many transfers ahead a place is asked for: fewer after it refused, whichever way, and never none.
#[tokio::test]
async fn refusals_make_it_ask_for_less_at_a_time() {
    let w = world().await;
    let source = HubSource::new(w.client.clone());
    let unused = source.ahead().expect("it knows");
    assert!(unused >= 8, "it does not keep others from anything: {unused}");
    assert_eq!(collect(&source, &w.big).await.expect("all"), w.bytes);
    let first = source.ahead().expect("it knows");
    assert!((4..=unused).contains(&first), "not too many before it is known to be fast: {first}");

    w.hub.faults(|f| (f.only, f.unavailable) = (Target::Cdn, 1));
    assert_eq!(collect(&source, &w.big).await.expect("in the end"), w.bytes);
    assert_eq!(source.ahead(), Some(first / 2), "503");

    tokio::time::sleep(Duration::from_millis(1100)).await;
    w.hub.faults(|f| (f.only, f.too_many, f.retry_after) = (Target::Cdn, 1, Some(0)));
    assert_eq!(collect(&source, &w.big).await.expect("in the end"), w.bytes);
    let fewest = (first / 4).max(2);
    assert_eq!(source.ahead(), Some(fewest), "429, and never none");

    // What is said about the file is no sign of a crowd.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    w.hub.expire_urls();
    assert_eq!(collect(&source, &w.big).await.expect("signed anew"), w.bytes);
    assert_eq!(source.ahead(), Some(fewest));
}

/// Bodies that were read to their end leave their connections to the next ones.
#[tokio::test]
async fn a_fill_by_many_transfers_takes_as_many_connections_and_no_more() {
    let w = world().await;
    let source = HubSource::new(w.client.clone());
    for _ in 0..5 {
        let mut tasks = tokio::task::JoinSet::new();
        for i in 0..4 {
            let (source, want) = (source.clone(), run(&w.big, i * 4, 4));
            tasks.spawn(async move { collect(&source, &want).await.map(drop) });
        }
        tasks.join_all().await.into_iter().for_each(|ended| ended.expect("a run"));
    }
    let counts = w.hub.counters();
    assert_eq!(counts.of("cdn_get"), 20);
    assert!(counts.connections <= 1 + 4 + 1, "the Hub's, and one for each: {}", counts.connections);
}
