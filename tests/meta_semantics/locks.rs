//! flock across mounts.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hfmount::meta::LockKind::{Exclusive, Shared};
use hfmount::meta::kv::{Change, Event};
use hfmount::meta::{LockKind, Meta};
use hfmount::types::Ino;

use crate::world::*;

const F: Ino = Ino(77);

async fn lock(meta: &Meta, owner: u64, kind: LockKind) -> bool {
    meta.try_lock(F, owner, kind).await.expect("lock")
}

async fn unlock(meta: &Meta, owner: u64) {
    meta.unlock(F, owner).await.expect("unlock");
}

pub async fn shared_and_exclusive(world: &World) {
    let (a, b) = (world.mount().await, world.mount().await);
    assert!(lock(&a, 1, Exclusive).await);
    assert!(lock(&a, 1, Exclusive).await, "it has it already");
    assert!(!lock(&a, 2, Exclusive).await && !lock(&b, 1, Exclusive).await && !lock(&b, 1, Shared).await);
    unlock(&b, 1).await;
    assert!(!lock(&b, 1, Shared).await, "who has none cannot release another's");
    unlock(&a, 1).await;
    assert!(lock(&b, 1, Shared).await && lock(&a, 1, Shared).await && lock(&a, 2, Shared).await);
    assert!(!lock(&a, 3, Exclusive).await);
    unlock(&b, 1).await;
    unlock(&a, 1).await;
    assert!(!lock(&b, 1, Exclusive).await);
    unlock(&a, 2).await;
    assert!(lock(&b, 1, Exclusive).await);
    assert!(a.try_lock(Ino(78), 1, Exclusive).await.expect("another file"));
}

pub async fn conversions(world: &World) {
    let (a, b) = (world.mount().await, world.mount().await);
    assert!(lock(&a, 1, Shared).await && lock(&a, 1, Exclusive).await);
    assert!(!lock(&b, 1, Shared).await);
    assert!(lock(&a, 1, Shared).await, "down");
    assert!(lock(&b, 1, Shared).await);
    // Both want more: the first to ask loses what it had, so that the second gets it.
    assert!(!lock(&a, 1, Exclusive).await);
    assert!(lock(&b, 1, Exclusive).await);
    assert!(!lock(&a, 1, Shared).await);
    unlock(&b, 1).await;
    assert!(lock(&a, 1, Exclusive).await);
}

pub async fn released_with_an_event(world: &World) {
    let (a, b) = (world.mount().await, world.mount().await);
    let mut watch = b.kv().watch().await.expect("watch");
    assert!(lock(&a, 1, Exclusive).await);
    unlock(&a, 1).await;
    let unlocked = async {
        loop {
            let event = watch.next().await.expect("event");
            if let Event::Changed { change: Change::Unlocked { ino: F }, by } = event {
                return by;
            }
        }
    };
    let by = tokio::time::timeout(Duration::from_secs(10), unlocked).await.expect("in time");
    assert_eq!(by, Some(a.session()));
}

pub async fn many_owners_one_at_a_time(world: &World) {
    let mounts = [world.mount().await, world.mount().await];
    let inside = Arc::new(AtomicU64::new(0));
    let mut tasks = Vec::new();
    for owner in 0..12 {
        let (meta, inside) = (mounts[owner % 2].clone(), inside.clone());
        tasks.push(tokio::spawn(async move {
            for _ in 0..3 {
                while !lock(&meta, owner as u64, Exclusive).await {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                tokio::task::yield_now().await;
                assert_eq!(inside.fetch_sub(1, Ordering::SeqCst), 1);
                unlock(&meta, owner as u64).await;
            }
        }));
    }
    for task in tasks {
        task.await.expect("task");
    }
    assert!(lock(&mounts[0], 99, Exclusive).await);
}

pub async fn who_waited_long_comes_first(world: &World) {
    let (a, b) = (world.mount().await, world.mount().await);
    assert!(lock(&a, 1, Exclusive).await);
    assert_eq!(b.queue_for_lock(F, 5, None).await.expect("queue"), None);
    assert!(!lock(&b, 5, Exclusive).await, "first in line is not in possession");
    assert_eq!(b.queue_for_lock(F, 5, None).await.expect("again"), None);
    unlock(&a, 1).await;
    assert!(!lock(&a, 1, Exclusive).await && !lock(&a, 2, Shared).await && !lock(&b, 6, Shared).await);
    assert!(lock(&b, 5, Exclusive).await);
    unlock(&b, 5).await;
    assert!(lock(&a, 1, Exclusive).await, "one turn, not two");
    assert!(lock(&a, 1, Shared).await);
    // Readers that come and go do not keep a writer out.
    assert_eq!(b.queue_for_lock(F, 5, None).await.expect("queue"), None);
    assert!(!lock(&a, 2, Shared).await);
    unlock(&a, 1).await;
    assert!(lock(&b, 5, Exclusive).await);
    // Who has it may have less of it, whoever waits.
    assert_eq!(a.queue_for_lock(F, 9, None).await.expect("queue"), None);
    assert!(lock(&b, 5, Shared).await);
}

pub async fn a_place_in_the_line_is_given_up(world: &World) {
    let (a, b) = (world.mount().await, world.mount().await);
    assert_eq!(b.queue_for_lock(F, 5, None).await.expect("queue"), None);
    assert!(!lock(&a, 1, Exclusive).await);
    let mut watch = a.kv().watch().await.expect("watch");
    unlock(&b, 5).await;
    let told = async {
        while !matches!(
            watch.next().await.expect("event"),
            Event::Changed { change: Change::Unlocked { ino: F }, .. }
        ) {}
    };
    tokio::time::timeout(Duration::from_secs(10), told).await.expect("those behind are told");
    assert!(lock(&a, 1, Exclusive).await);
    unlock(&a, 1).await;
    // Of somebody who went away without a word.
    assert_eq!(b.queue_for_lock(F, 5, None).await.expect("queue"), None);
    let stale = a.queue_for_lock(F, 1, None).await.expect("queue").expect("another is first");
    assert_eq!(a.queue_for_lock(F, 1, None).await.expect("queue"), Some(stale.clone()));
    assert_eq!(a.queue_for_lock(F, 1, Some(&stale)).await.expect("queue"), None);
    assert!(!lock(&b, 5, Exclusive).await && lock(&a, 1, Exclusive).await);
    unlock(&a, 1).await;
    // Of the dead.
    assert_eq!(b.queue_for_lock(F, 6, None).await.expect("queue"), None);
    b.close().await.expect("close");
    assert!(lock(&a, 1, Exclusive).await);
}
