//! The numbers of all inodes, page by page.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hfmount::meta::kv::{Kv, Write};

use crate::world::{World, set, write};

/// All numbers, and in how many pages they came.
pub async fn all_inodes(kv: &dyn Kv) -> (Vec<u64>, usize) {
    let (mut all, mut from, mut pages) = (Vec::new(), None, 0);
    loop {
        let page = kv.inodes(from.as_ref()).await.expect("a page");
        assert!(page.numbers.len() <= 5_000, "a bounded page: {}", page.numbers.len());
        all.extend(page.numbers);
        pages += 1;
        match page.next {
            Some(next) => from = Some(next),
            None => break,
        }
    }
    all.sort_unstable();
    all.dedup();
    (all, pages)
}

pub async fn inodes_are_told_by_their_numbers(world: &dyn World) {
    let kv = world.open().await;
    assert_eq!(all_inodes(&*kv).await, (vec![], 1));
    // Maps beside them, some with names that begin alike; many fields of one inode.
    let beside = ["ids", "i", "ix7", "i7x", "d7/", "g7/", "j1", "b7", "i-1"];
    write(&*kv, beside.map(|map| set(map, "a", "1")).into()).await;
    write(&*kv, (0..3_000).map(|n| set("i7", format!("c{n}"), "x")).collect()).await;
    let far = (1 << 53) - 1;
    write(&*kv, [1, 300, 1 << 24, far].map(|n: u64| set(&format!("i{n}"), "a", "x")).into()).await;
    let (all, pages) = all_inodes(&*kv).await;
    assert_eq!(all, [1, 7, 300, 1 << 24, far]);
    assert!(pages <= 3, "{pages} pages: the numbers between cost nothing");
    write(&*kv, vec![Write::DelMap("i300".into())]).await;
    assert_eq!(all_inodes(&*kv).await.0, [1, 7, 1 << 24, far]);

    for start in (0..7_000).step_by(1_000) {
        write(&*kv, (start..start + 1_000).map(|n| set(&format!("i{}", n * 1_003), "a", "x")).collect())
            .await;
    }
    let (all, pages) = all_inodes(&*kv).await;
    assert!(pages > 4 && all.len() == 7_000 + 4, "{} in {pages} pages", all.len());
    assert!((0..7_000).all(|n| all.binary_search(&(n * 1_003)).is_ok()));
}

/// Others come and go, and the engine's tables grow and shrink with them.
pub async fn inodes_that_stay_are_seen(world: &dyn World) {
    let kv = world.open().await;
    for start in (0..4_000).step_by(1_000) {
        write(&*kv, (start..start + 1_000).map(|n| set(&format!("i{}", n * 7 + 1), "a", "x")).collect())
            .await;
    }
    let stop = Arc::new(AtomicBool::new(false));
    let (other, stopped) = (world.open().await, stop.clone());
    let writer = tokio::spawn(async move {
        let mut rounds = 0;
        while !stopped.load(Ordering::Relaxed) {
            let maps: Vec<String> = (0..1_000).map(|n| format!("i{}", 100_000 + n * 3 + rounds)).collect();
            write(&*other, maps.iter().map(|map| set(map, "a", "x")).collect()).await;
            tokio::task::yield_now().await;
            write(&*other, maps.into_iter().map(Write::DelMap).collect()).await;
            rounds += 1;
            tokio::task::yield_now().await;
        }
        rounds
    });
    let staying: BTreeSet<u64> = (0..4_000).map(|n| n * 7 + 1).collect();
    for _ in 0..10 {
        let seen: BTreeSet<u64> = all_inodes(&*kv).await.0.into_iter().collect();
        assert!(seen.is_superset(&staying), "{} are missing", staying.difference(&seen).count());
        tokio::task::yield_now().await;
    }
    stop.store(true, Ordering::Relaxed);
    assert!(writer.await.expect("writer") > 0);
}
