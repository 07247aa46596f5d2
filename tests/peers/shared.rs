//! What nodes share about the Hub.

use std::time::Duration;

use hfmount::error::Kind;
use hfmount::peer::tracker::{HubBucket, Locate, Lock, Need};

use crate::world::{Node, blob, server, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pause_is_everybodys() {
    let server = server();
    let (a, b) = (Node::steady(&server, 0).await, Node::steady(&server, 1).await);
    let hub = "https://hub.example:8443";
    let paused = async |node: &Node, bucket| node.tracker.paused(hub, bucket).await.expect("paused");
    assert_eq!(paused(&b, HubBucket::Api).await, Duration::ZERO);
    let now = a.tracker.pause(hub, HubBucket::Api, Duration::from_secs(40)).await.expect("pause");
    assert_eq!(now, Duration::from_secs(40));
    // A shorter one changes nothing, and one for ever is cut.
    assert!(
        b.tracker.pause(hub, HubBucket::Api, Duration::from_secs(2)).await.expect("pause")
            > Duration::from_secs(20)
    );
    let cut = b.tracker.pause(hub, HubBucket::Resolvers, Duration::MAX).await.expect("pause");
    assert_eq!(cut, Duration::from_secs(330));
    assert!(paused(&b, HubBucket::Api).await <= Duration::from_secs(40));
    // Heartbeats tell it too.
    let pauses = b.tracker.nodes().await.expect("nodes").pauses;
    assert_eq!(pauses.len(), 2);
    assert!(pauses.iter().any(|(host, bucket, left)| host == hub
        && *bucket == HubBucket::Api
        && *left > Duration::from_secs(20)
        && *left <= Duration::from_secs(40)));
    a.tracker.pause("https://other", HubBucket::Api, Duration::from_millis(200)).await.expect("pause");
    until("it ends", || async {
        b.tracker.paused("https://other", HubBucket::Api).await.expect("paused").is_zero()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_location_is_found_out_once() {
    let server = server();
    let mut tasks = Vec::new();
    for number in 0..6 {
        let node = Node::steady(&server, number).await;
        tasks.push(tokio::spawn(async move {
            let limit = Duration::from_secs(30);
            match node.tracker.locate_within(blob(0), "anon", limit).await.expect("locate") {
                Locate::Resolve(token) => {
                    tokio::time::sleep(Duration::from_millis(300)).await;
                    let place = b"https://cdn.example/x?sig=\xff\0";
                    let told = node.tracker.located(blob(0), "anon", token, place, Duration::from_secs(60));
                    told.await.expect("told");
                    true
                }
                Locate::Known(place, left) => {
                    assert_eq!(&place[..], b"https://cdn.example/x?sig=\xff\0");
                    assert!(left <= Duration::from_secs(60) && left > Duration::from_secs(10));
                    false
                }
                Locate::Wait(_) => panic!("not in time"),
            }
        }));
    }
    let mut resolved = 0;
    for task in tasks {
        resolved += usize::from(task.await.expect("task"));
    }
    assert_eq!(resolved, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locations_are_kept_apart_and_dropped() {
    let server = server();
    let (a, b) = (Node::steady(&server, 0).await, Node::steady(&server, 1).await);
    let locate = async |node: &Node, scope: &str| node.tracker.locate(blob(0), scope).await.expect("locate");
    let Locate::Resolve(token) = locate(&a, "anon").await else { panic!() };
    assert!(matches!(locate(&b, "anon").await, Locate::Wait(left) if left <= Duration::from_secs(10)));
    // Of another token's reach nothing is told.
    let Locate::Resolve(other) = locate(&b, "0a1b").await else { panic!() };
    // Who cannot find it out lets others try.
    a.tracker.locate_failed(blob(0), "anon", token).await.expect("failed");
    let Locate::Resolve(second) = locate(&b, "anon").await else { panic!() };
    a.tracker
        .locate_failed(blob(0), "anon", token)
        .await
        .expect("failed again: that is not its turn any more");
    assert!(matches!(locate(&a, "anon").await, Locate::Wait(_)));
    b.tracker.located(blob(0), "anon", second, b"one", Duration::from_secs(60)).await.expect("told");
    b.tracker.located(blob(0), "0a1b", other, b"two", Duration::from_secs(60)).await.expect("told");
    assert!(matches!(locate(&a, "anon").await, Locate::Known(place, _) if &place[..] == b"one"));
    a.tracker.forget_location(blob(0), "anon", b"another").await.expect("forget");
    assert!(matches!(locate(&a, "anon").await, Locate::Known(..)), "somebody has found a new one");
    a.tracker.forget_location(blob(0), "anon", b"one").await.expect("forget");
    let Locate::Resolve(third) = locate(&a, "anon").await else { panic!() };
    // What is too long is not shared.
    a.tracker.located(blob(0), "anon", third, &[0; 20_000], Duration::from_secs(60)).await.expect("told");
    assert!(matches!(locate(&b, "anon").await, Locate::Resolve(_)));
    for scope in ["", "a:b", &"x".repeat(65)] {
        assert_eq!(a.tracker.locate(blob(0), scope).await.expect_err("refused").kind(), Kind::Invalid);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_is_one_nodes() {
    let server = server();
    let (a, b) = (Node::steady(&server, 0).await, Node::steady(&server, 1).await);
    let (what, time) = (Lock::verify(blob(0)), Duration::from_secs(30));
    let token = a.tracker.lock(&what, time).await.expect("lock").expect("free");
    assert_eq!(b.tracker.lock(&what, time).await.expect("lock"), None);
    assert_eq!(a.tracker.lock(&what, time).await.expect("lock"), None, "not even its own again");
    assert!(a.tracker.relock(&what, token, time).await.expect("relock"));
    assert!(b.tracker.lock(&Lock::verify(blob(1)), time).await.expect("lock").is_some());
    assert!(b.tracker.lock(&Lock::named("ref a b"), time).await.expect("lock").is_some());
    a.tracker.unlock(&what, token).await.expect("unlock");
    assert!(!a.tracker.relock(&what, token, time).await.expect("relock"), "it was given back");
    let next = b.tracker.lock(&what, Duration::from_millis(200)).await.expect("lock").expect("free");
    a.tracker.unlock(&what, token).await.expect("unlock of another's");
    until("it runs out", || async { a.tracker.lock(&what, time).await.expect("lock").is_some() }).await;
    assert!(!b.tracker.relock(&what, next, time).await.expect("relock"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn needs_are_passed_on_once() {
    let server = server();
    let (a, b) = (Node::steady(&server, 0).await, Node::steady(&server, 1).await);
    let need = |n: u8, chunks: Vec<u64>| Need { blob: blob(n), size: 9 << 32, chunks };
    assert!(a.tracker.need(&need(0, vec![3, 1])).await.expect("need"));
    assert!(a.tracker.need(&need(0, vec![2, 1])).await.expect("need"));
    assert!(!a.tracker.need(&need(1, vec![])).await.expect("need"), "nothing is needed");
    assert!(a.tracker.need(&need(2, (0..900).collect())).await.expect("need"));
    assert!(a.tracker.need(&need(2, (900..1800).collect())).await.expect("need"));
    assert_eq!(b.tracker.nodes().await.expect("nodes").needs, 2);
    assert_eq!(b.tracker.needed(1).await.expect("needed"), [need(0, vec![1, 2, 3])]);
    // A great many come in parts.
    let mut chunks = Vec::new();
    for part in [1000, 800] {
        let got = b.tracker.needed(8).await.expect("needed");
        assert_eq!((got.len(), got[0].blob, got[0].chunks.len()), (1, blob(2), part));
        chunks.extend(got[0].chunks.clone());
    }
    chunks.sort_unstable();
    assert_eq!(chunks, (0..1800).collect::<Vec<u64>>());
    assert_eq!(b.tracker.needed(8).await.expect("needed"), []);
}
