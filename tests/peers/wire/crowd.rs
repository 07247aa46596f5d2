//! Many nodes want one chunk: a tree of threes.

use super::*;

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
async fn nobody_sends_a_chunk_under_way_to_more_than_three() {
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
        assert_eq!(owner.store.waiting.load(Relaxed), 3, "three at the owner");
        owner.store.land(0, Some(content(0, LEN)));
    };
    let (givers, ()) = tokio::join!(futures::future::join_all(waits), landing);
    for node in &n {
        let given = givers.iter().filter(|g| **g == node.id).count();
        assert!(given <= 3, "{} gave it to {given}", node.id);
    }
    assert_eq!(givers.iter().filter(|g| **g == owner.id).count(), 3);
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
    assert!((3..=4).contains(&by_owner), "the first three, and at most one that came late: {by_owner}");
}

#[tokio::test]
async fn when_those_it_was_sent_to_fail_it_comes_back() {
    let (_, n) = nodes(5).await;
    let (owner, crowd) = n.split_first().expect("5");
    owner.store.begin(0);
    // Three wait at the owner; their own transfers are not under way, so who is sent to them finds nothing.
    let at = owner.holder();
    let waits = crowd[..3].iter().map(|me| me.client.wait(BLOB, 0, LEN as u32, &at, SOON));
    let late = async {
        until("three wait", || owner.store.waiting.load(Relaxed) == 3).await;
        crowd[3].client.wait(BLOB, 0, LEN as u32, &owner.holder(), SOON).await
    };
    let landing = async {
        until("the fourth was sent on", || owner.server.stats().redirected >= 2).await;
        owner.store.land(0, Some(content(0, LEN)));
    };
    let three = async {
        for got in futures::future::join_all(waits).await {
            assert_eq!(collect(got.expect("it comes")).await.expect("bytes"), content(0, LEN));
        }
    };
    let (late, (), ()) = tokio::join!(late, landing, three);
    let late = late.expect("from the owner");
    assert_eq!(late.from, owner.id);
    assert_eq!(collect(late).await.expect("bytes"), content(0, LEN));
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
