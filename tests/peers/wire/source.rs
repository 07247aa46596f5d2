//! Runs of chunks, as the filler asks for them.

use super::*;
use hfmount::source::peer::PeerSource;
use hfmount::source::{Fetched, Source, Want};

const CHUNK: usize = 1 << 20;
/// Four whole chunks and a short one.
const SIZE: u64 = 4 * CHUNK as u64 + 333;

fn len(idx: u64) -> usize {
    (SIZE as usize - idx as usize * CHUNK).min(CHUNK)
}

fn want(first: u64, holders: &[&[&Node]]) -> Want {
    Want {
        blob: BLOB,
        size: SIZE,
        origins: [].into(),
        first,
        count: holders.len() as u64,
        chunk_size: CHUNK as u32,
        stored: [].into(),
        holders: holders.iter().map(|h| h.iter().map(|n| n.holder()).collect()).collect(),
    }
}

async fn read(mut bytes: Fetched) -> (BytesMut, Option<Error>) {
    let mut all = BytesMut::new();
    while let Some(piece) = bytes.next().await {
        match piece {
            Ok(piece) => all.extend_from_slice(&piece),
            Err(e) => return (all, Some(e)),
        }
    }
    (all, None)
}

fn whole(run: std::ops::Range<u64>) -> BytesMut {
    run.flat_map(|idx| content(idx, len(idx))).collect()
}

fn source(of: &Node) -> PeerSource {
    PeerSource::new(of.client.clone(), Duration::from_secs(10))
}

#[tokio::test]
async fn a_run_comes_whole_from_several_nodes() {
    let (_, n) = nodes(3).await;
    for idx in 0..5 {
        n[1 + idx as usize % 2].store.put(idx, content(idx, len(idx)));
    }
    let (a, b): (&[&Node], &[&Node]) = (&[&n[1]], &[&n[2]]);
    let source = source(&n[0]);
    assert_eq!(source.name(), "peer");
    let (bytes, error) = read(source.fetch(&want(0, &[a, b, a, b, a])).await.expect("begun")).await;
    assert!(error.is_none(), "{error:?}");
    assert_eq!(bytes, whole(0..5));
    let (bytes, error) = read(source.fetch(&want(3, &[b, a])).await.expect("begun")).await;
    assert!(error.is_none(), "{error:?}");
    assert_eq!(bytes, whole(3..5));
    let (bytes, error) = read(source.fetch(&want(5, &[a])).await.expect("nothing to do")).await;
    assert!(error.is_none() && bytes.is_empty());
    until("all chunks count as come", || n[0].client.stats().iter().map(|(_, s)| s.chunks).sum::<u64>() == 7)
        .await;
}

#[tokio::test]
async fn where_nobody_has_it_the_run_ends() {
    let (_, n) = nodes(2).await;
    n[1].store.put(0, content(0, CHUNK));
    n[1].store.put(2, content(2, CHUNK));
    let has: &[&Node] = &[&n[1]];
    let source = source(&n[0]);
    let e = source.fetch(&want(0, &[&[], has])).await.err().expect("nobody has the first");
    assert_eq!(e.kind(), Kind::NotFound);
    let none = Want { holders: [].into(), ..want(0, &[has]) };
    assert_eq!(source.fetch(&none).await.err().expect("nobody").kind(), Kind::NotFound);
    assert_eq!(n[1].server.stats().requests, 0, "without asking");

    let (bytes, error) = read(source.fetch(&want(0, &[has, &[], has])).await.expect("begun")).await;
    assert_eq!((bytes, error.expect("not the second").kind()), (whole(0..1), Kind::NotFound));
    let (bytes, error) = read(source.fetch(&want(0, &[has, has])).await.expect("begun")).await;
    let error = error.expect("it has not the second");
    assert_eq!((bytes, error.kind()), (whole(0..1), Kind::NotFound));
    assert!(error.to_string().contains(&n[1].id.to_string()), "{error}");
    assert!(error.to_string().contains("chunk 1"), "{error}");
}

#[tokio::test]
async fn the_next_chunk_is_asked_for_before_this_one_ends() {
    let (_, n) = nodes(2).await;
    for idx in 0..3 {
        n[1].store.put(idx, content(idx, CHUNK));
    }
    let has: &[&Node] = &[&n[1]];
    let mut bytes = source(&n[0]).fetch(&want(0, &[has, has, has])).await.expect("begun");
    let mut got = 0;
    while got < CHUNK / 2 {
        got += bytes.next().await.expect("more").expect("a piece").len();
    }
    until("the second is asked for", || n[1].server.stats().requests == 2).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(n[1].server.stats().requests, 2, "and not the third");
    drop(bytes);
    until("nothing is left behind", || n[1].server.slots_free() == 16).await;
}

#[tokio::test]
async fn a_node_that_fails_half_way_is_named() {
    let (_, n) = nodes(2).await;
    for idx in 0..2 {
        n[1].store.put(idx, content(idx, CHUNK));
    }
    let has: &[&Node] = &[&n[1]];
    n[1].store.manners(|m| m.cut_after = Some(2 * PIECE));
    let (bytes, error) = read(source(&n[0]).fetch(&want(0, &[has, has])).await.expect("begun")).await;
    let error = error.expect("cut");
    assert!(bytes.len() <= 2 * PIECE && whole(0..1).starts_with(&bytes));
    assert!(error.kind().is_transient() && error.to_string().contains(&n[1].id.to_string()), "{error}");
}
