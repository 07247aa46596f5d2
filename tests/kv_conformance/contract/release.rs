//! Letting go of what several may refer to: a counter that goes with its last step, and what is set instead of a step below 0.

use hfmount::error::Kind;
use hfmount::meta::kv::{Expect, Kv, Outcome, Write};

use crate::world::{World, attempt, key, scan_all, set, value, write};

fn release(name: &str) -> Write {
    Write::Release(key("shared/", name), key("trash/", name), "now".into())
}

/// The counter, and whether it lies in the trash.
async fn state(kv: &dyn Kv, name: &str) -> (Option<String>, bool) {
    let trash = value(kv, "trash/", name).await;
    assert!(trash.is_none() || trash.as_deref() == Some("now"), "{trash:?}");
    (value(kv, "shared/", name).await, trash.is_some())
}

pub async fn the_last_reference_leaves_the_object_to_the_trash(world: &dyn World) {
    let kv = world.open().await;
    // Counted are the references beyond the first.
    write(&*kv, vec![Write::Add(key("shared/", "a"), 2)]).await;
    for left in [Some("1"), None] {
        write(&*kv, vec![release("a")]).await;
        assert_eq!(state(&*kv, "a").await, (left.map(str::to_owned), false));
    }
    assert!(scan_all(&*kv, "shared/", 10).await.is_empty(), "a counter of 0 is none, nor is its entry");
    write(&*kv, vec![release("a")]).await;
    assert_eq!(state(&*kv, "a").await, (None, true));
    let trash = scan_all(&*kv, "trash/", 10).await;
    assert!(trash.len() == 1 && trash[0].id > 0, "it can be scanned: {trash:?}");
    // Once more does what it did.
    write(&*kv, vec![release("a")]).await;
    assert_eq!(state(&*kv, "a").await, (None, true));
    // What never was counted has one reference; nor is 0 or less a step to take.
    for (name, count) in [("b", None), ("c", Some("0")), ("d", Some("-3"))] {
        write(&*kv, count.map(|count| set("shared/", name, count)).into_iter().collect()).await;
        write(&*kv, vec![release(name)]).await;
        assert_eq!(state(&*kv, name).await, (count.map(str::to_owned), true), "{name}");
    }
    for (count, less) in [
        ("10", "9"),
        ("1000000000", "999999999"),
        ("9007199254740993", "9007199254740992"),
        ("9223372036854775807", "9223372036854775806"),
    ] {
        write(&*kv, vec![set("shared/", "big", count), release("big")]).await;
        assert_eq!(state(&*kv, "big").await, (Some(less.to_owned()), false));
    }
}

pub async fn releases_of_one_transaction_and_of_many_tasks(world: &dyn World) {
    let kv = world.open().await;
    // A reference that comes in the same transaction counts before one that goes, and the other way round they would not.
    write(&*kv, vec![Write::Add(key("shared/", "a"), 1), release("a"), release("a")]).await;
    assert_eq!(state(&*kv, "a").await, (None, true));
    // Nothing of a transaction that does not apply.
    write(&*kv, vec![set("shared/", "b", "1")]).await;
    let refused = attempt(&*kv, vec![Expect::Present(key("m", "none"))], vec![release("b")]).await;
    assert_eq!(refused.expect("commit"), Outcome::Conflict(0));
    let full = vec![release("b"), release("b"), Write::AddBounded(key("v", "bytes"), 5, 4)];
    assert_eq!(attempt(&*kv, vec![], full).await.expect("commit"), Outcome::Full);
    assert_eq!(state(&*kv, "b").await, (Some("1".to_owned()), false));
    write(&*kv, vec![set("shared/", "c", "many")]).await;
    let error = attempt(&*kv, vec![], vec![release("b"), release("c")]).await.expect_err("no number");
    assert_eq!(error.kind(), Kind::Corrupt);
    assert_eq!(state(&*kv, "b").await, (Some("1".to_owned()), false));

    write(&*kv, vec![set("shared/", "d", "39")]).await;
    let mut tasks = Vec::new();
    for _ in 0..4 {
        let kv = world.open().await;
        tasks.push(tokio::spawn(async move {
            for _ in 0..10 {
                assert_eq!(
                    attempt(&*kv, vec![], vec![release("d")]).await.expect("commit"),
                    Outcome::Applied
                );
            }
        }));
    }
    for task in tasks {
        task.await.expect("task");
    }
    assert_eq!(state(&*kv, "d").await, (None, true), "the fortieth of forty, and no other");
}
