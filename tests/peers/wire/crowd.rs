//! Many nodes want one chunk: each gives it to the next.

use super::*;
use tokio::time::Instant;

const LEN: usize = 1 << 20;
const SOON: Duration = Duration::from_secs(60);

/// Each waits while its own transfer of the chunk is under way, as the filler does, and then has it.
async fn take(n: &Node, from: Got) -> NodeId {
    let giver = from.from;
    let bytes = collect(from).await.expect("bytes");
    assert_eq!(bytes, content(0, LEN));
    n.store.land(0, Some(bytes));
    giver
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_sends_a_chunk_under_way_to_a_crowd() {
    let (_, n) = nodes(14).await;
    let (owner, crowd) = n.split_first().expect("14");
    owner.store.begin(0);
    let waits = crowd.iter().map(|me| {
        me.store.begin(0);
        async move {
            take(me, me.client.wait(BLOB, 0, LEN as u32, &owner.holder(), SOON).await.expect("it comes"))
                .await
        }
    });
    let landing = async {
        until("all have found somebody", || {
            n.iter().map(|n| n.store.waiting.load(Relaxed)).sum::<u32>() == crowd.len() as u32
        })
        .await;
        let at_owner = owner.store.waiting.load(Relaxed);
        assert!((1..=3).contains(&at_owner), "{at_owner} at the owner");
        owner.store.land(0, Some(content(0, LEN)));
    };
    let (givers, ()) = tokio::join!(futures::future::join_all(waits), landing);
    for node in &n {
        let given = givers.iter().filter(|g| **g == node.id).count();
        assert!(given <= 3, "{} gave it to {given}", node.id);
    }
    assert!(owner.server.stats().redirected >= 10, "{:?}", owner.server.stats());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chunk_that_is_held_is_not_sent_to_all_at_once_either() {
    let (_, n) = nodes(8).await;
    let (owner, crowd) = n.split_first().expect("8");
    owner.store.put(0, content(0, LEN));
    owner.store.manners(|m| m.pause = Duration::from_millis(150));
    let all = crowd.iter().map(|me| {
        me.store.begin(0);
        async move {
            take(me, me.client.fetch(BLOB, 0, LEN as u32, &[owner.holder()], SOON).await.expect("held")).await
        }
    });
    let givers = futures::future::join_all(all).await;
    assert_eq!(givers.len(), 7);
    let by_owner = givers.iter().filter(|g| **g == owner.id).count();
    assert!((1..=3).contains(&by_owner), "the others had it from those: {by_owner}");
}

#[tokio::test]
async fn when_those_it_was_sent_to_fail_it_comes_back() {
    let (_, n) = nodes(3).await;
    let (owner, crowd) = n.split_first().expect("3");
    // Of the first chunk two would be sent at one time.
    owner.store.begin(1);
    // One waits at the owner; its own transfer is not under way, so who is sent to it finds nothing.
    let at = owner.holder();
    let first = async {
        let got = crowd[0].client.wait(BLOB, 1, LEN as u32, &at, SOON).await;
        assert_eq!(collect(got.expect("it comes")).await.expect("bytes"), content(1, LEN));
    };
    let late = async {
        until("one waits", || owner.store.waiting.load(Relaxed) == 1).await;
        crowd[1].client.wait(BLOB, 1, LEN as u32, &at, SOON).await
    };
    let landing = async {
        until("the second was sent on, and came back", || owner.store.waiting.load(Relaxed) == 2).await;
        assert_eq!(owner.server.stats().redirected, 1);
        owner.store.land(1, Some(content(1, LEN)));
    };
    let (late, (), ()) = tokio::join!(late, landing, first);
    let late = late.expect("from the owner");
    assert_eq!(late.from, owner.id);
    assert_eq!(collect(late).await.expect("bytes"), content(1, LEN));
}

#[tokio::test]
async fn nobody_is_sent_to_a_node_that_only_takes() {
    let (town, n) = nodes(6).await;
    let (owner, crowd) = n.split_first().expect("6");
    owner.store.put(0, content(0, LEN));
    owner.store.manners(|m| m.pause = Duration::from_millis(50));
    crowd.iter().for_each(|taker| town.forget(taker.id));
    let all = crowd.iter().map(async |me| {
        collect(me.client.fetch(BLOB, 0, LEN as u32, &[owner.holder()], SOON).await.expect("held")).await
    });
    for bytes in futures::future::join_all(all).await {
        assert_eq!(bytes.expect("bytes"), content(0, LEN));
    }
    assert_eq!(owner.server.stats().redirected, 0);
}

/// Passes on what comes, as the filler does.
async fn pass_on(n: &Node, got: Got) -> Result<Bytes> {
    let (mut bytes, mut all) = (got.bytes, BytesMut::new());
    while let Some(piece) = bytes.next().await {
        match piece {
            Ok(piece) => all.extend_from_slice(&piece),
            Err(e) => {
                n.store.land(0, None);
                return Err(e);
            }
        }
        // The last of it when it is checked.
        let come = all.clone().freeze();
        n.store.feed(0, come.slice(..come.len().min(LIVE - 1)));
    }
    n.store.feed(0, all.clone().freeze());
    n.store.land(0, Some(all.clone().freeze()));
    Ok(all.freeze())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chunk_is_passed_on_while_it_comes_in() {
    let (_, n) = nodes(6).await;
    let (owner, crowd) = n.split_first().expect("6");
    n.iter().for_each(|n| n.store.begin(0));
    let whole = content(0, LIVE);
    let half = LIVE / 2;
    owner.store.feed(0, whole.slice(..half));
    let mut first = crowd[0].client.wait(BLOB, 0, LIVE as u32, &owner.holder(), SOON).await.expect("begun");
    assert_eq!(first.hash, None, "it is not known yet");
    let mut come = 0;
    while come < half {
        let piece = first.bytes.next().await.expect("a piece").expect("bytes");
        assert_eq!(piece, whole.slice(come..come + piece.len()));
        come += piece.len();
    }
    assert!(
        tokio::time::timeout(Duration::from_millis(50), first.bytes.next()).await.is_err(),
        "no more than has come"
    );
    drop(first);
    let reads = crowd.iter().map(|me| async move {
        let got = me.client.wait(BLOB, 0, LIVE as u32, &owner.holder(), SOON).await.expect("begun");
        pass_on(me, got).await.expect("bytes")
    });
    let rest = async {
        until("all of them have begun", || {
            n.iter().map(|n| n.server.stats().passed_on).sum::<u64>() > crowd.len() as u64
        })
        .await;
        assert!(n.iter().all(|n| n.server.stats().chunks == 0), "and none has it");
        owner.store.feed(0, whole.clone());
        owner.store.land(0, Some(whole.clone()));
    };
    let (read, ()) = tokio::join!(futures::future::join_all(reads), rest);
    assert!(read.iter().all(|bytes| *bytes == whole));
}

#[tokio::test]
async fn what_stops_coming_is_taken_from_who_has_it_whole() {
    let (town, n) = nodes(3).await;
    let (owner, asker, whole) = (&n[0], &n[1], &n[2]);
    let bytes = content(0, LIVE);
    owner.store.begin(0);
    owner.store.feed(0, bytes.slice(..LIVE / 2));
    let got = asker.client.wait(BLOB, 0, LIVE as u32, &owner.holder(), SOON).await.expect("begun");
    whole.store.put(0, bytes.clone());
    town.tell(0, whole.holder());
    let start = tokio::time::Instant::now();
    assert_eq!(collect(got).await.expect("bytes"), bytes);
    assert!(start.elapsed() < Duration::from_secs(8), "long before it is given up: {:?}", start.elapsed());
    assert_eq!(asker.client.given(BLOB, 0).expect("remembered").nodes, [owner.id, whole.id]);
}

#[tokio::test]
async fn what_was_passed_on_in_vain_is_nobodys_chunk() {
    let (_, n) = nodes(2).await;
    let whole = content(0, LIVE);
    n[0].store.begin(0);
    n[0].store.feed(0, whole.slice(..LIVE - 1));
    n[1].store.begin(0);
    let got = n[1].client.wait(BLOB, 0, LIVE as u32, &n[0].holder(), SOON).await.expect("begun");
    let landing = async {
        until("almost all is there", || n[0].server.stats().bytes_up > LIVE as u64 - 2).await;
        // Its transfer failed, or was wrong.
        n[0].store.land(0, None);
    };
    let (read, ()) = tokio::join!(pass_on(&n[1], got), landing);
    assert_eq!(read.expect_err("cut").kind(), Kind::Unavailable);
    assert_eq!(n[1].client.stats()[0].1.wrong, 0, "nobody lied");
    // Who asks for a chunk with its hash is not given one without.
    n[0].store.begin(0);
    n[0].store.feed(0, whole.slice(..1));
    let patience = Duration::from_millis(300);
    let e = n[1].client.fetch(BLOB, 0, LIVE as u32, &[n[0].holder()], patience).await.expect_err("not whole");
    assert_eq!(e.kind(), Kind::NotFound);
}

#[tokio::test]
async fn who_is_to_begin_with_a_chunk_is_asked_to() {
    let (_, n) = nodes(2).await;
    let (at, size, whole) = (n[0].holder(), 3 * LIVE as u64, content(0, LIVE));
    n[0].store.manners(|m| m.begins = true);
    let feeding = async {
        until("it has begun", || !lock(&n[0].store.begun).is_empty()).await;
        n[0].store.feed(0, whole.clone());
        n[0].store.land(0, Some(whole.clone()));
    };
    let asked = n[1].client.wait_begun(BLOB, size, 0, LIVE as u32, &at, SOON);
    let (got, ()) = tokio::join!(asked, feeding);
    assert_eq!(collect(got.expect("it comes")).await.expect("bytes"), whole);
    assert_eq!(*lock(&n[0].store.begun), [(BLOB, size, 0)]);
    // What is there is given without a word.
    let again = n[1].client.wait_begun(BLOB, size, 0, LIVE as u32, &at, SOON).await.expect("held");
    assert_eq!(collect(again).await.expect("bytes"), whole);
    assert_eq!(lock(&n[0].store.begun).len(), 1);
    // Who does not do it says so at once.
    n[0].store.manners(|m| m.begins = false);
    let begun = Instant::now();
    let e = n[1].client.wait_begun(BLOB, size, 1, LIVE as u32, &at, SOON).await.expect_err("not begun");
    assert_eq!(e.kind(), Kind::NotFound);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert!(n[1].client.is_well(n[0].id), "that is no failure");
    // A size that makes no sense is not passed on to the shelf.
    let e = n[1].client.wait_begun(BLOB, 1, 1, LIVE as u32, &at, SOON).await.expect_err("nonsense");
    assert_eq!((e.kind(), lock(&n[0].store.begun).len()), (Kind::NotFound, 2));
}
