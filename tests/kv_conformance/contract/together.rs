//! Order, size, and many at once.

use std::collections::BTreeSet;

use hfmount::meta::kv::{Expect, Outcome, Write};

use crate::world::{World, attempt, del, key, scan_all, set, value, write};

pub async fn scan_pages_in_the_order_of_ids(world: &dyn World) {
    let kv = world.open().await;
    let n = 2_500;
    // Neither the names nor the order of hashing is the order of creation.
    for batch in 0..5 {
        let range = (batch * 500)..(batch * 500 + 500);
        write(
            &*kv,
            range.map(|i| set("d1/", format!("{:05}", (i * 7919) % 10_007), i.to_string())).collect(),
        )
        .await;
    }
    write(&*kv, vec![set("d2/", "elsewhere", "x")]).await;
    for page in [1_000, 999, 10_000] {
        let all = scan_all(&*kv, "d1/", page).await;
        let values: Vec<String> =
            all.iter().map(|e| String::from_utf8_lossy(&e.value).into_owned()).collect();
        assert_eq!(values, (0..n).map(|i| i.to_string()).collect::<Vec<_>>(), "page {page}");
        assert!(all.windows(2).all(|pair| pair[0].id < pair[1].id));
        assert!(all.iter().all(|entry| entry.id > 0 && entry.id < 1 << 53));
    }
    assert_eq!(kv.scan("d1/", 0, 0).await.expect("scan"), []);
    assert_eq!(kv.scan("d1/", u64::MAX, 10).await.expect("scan"), []);
    let all = scan_all(&*kv, "d1/", 1000).await;
    let tail = kv.scan("d1/", all[n - 3].id, 10).await.expect("scan");
    assert_eq!(tail, all[n - 2..]);
}

pub async fn entry_ids_stay_and_are_not_reused(world: &dyn World) {
    let kv = world.open().await;
    write(&*kv, vec![set("d1/", "a", "1"), set("d1/", "b", "1"), set("d1/", "c", "1")]).await;
    let first = scan_all(&*kv, "d1/", 10).await;
    write(&*kv, vec![set("d1/", "a", "2")]).await;
    let second = scan_all(&*kv, "d1/", 10).await;
    assert_eq!((second[0].id, &second[0].value[..]), (first[0].id, &b"2"[..]));
    write(&*kv, vec![del("d1/", "c"), set("d1/", "d", "1"), del("d1/", "b"), set("d1/", "b", "1")]).await;
    let third = scan_all(&*kv, "d1/", 10).await;
    let old: BTreeSet<u64> = first.iter().map(|entry| entry.id).collect();
    assert_eq!(third[0].id, first[0].id);
    assert_eq!(third.iter().map(|entry| &entry.field[..]).collect::<Vec<_>>(), [b"a", b"d", b"b"]);
    assert!(third[1..].iter().all(|entry| !old.contains(&entry.id)));
    let other = world.open().await;
    assert_eq!(scan_all(&*other, "d1/", 10).await, third);
}

pub async fn scan_sees_what_stays_exactly_once(world: &dyn World) {
    let kv = world.open().await;
    write(&*kv, (0..600).map(|i| set("d1/", format!("stay{i}"), "s")).collect()).await;
    let churn = {
        let kv = world.open().await;
        tokio::spawn(async move {
            for round in 0..60 {
                let come = (0..10).map(|i| set("d1/", format!("come{round}-{i}"), "c"));
                let touch = (0..10).map(|i| set("d1/", format!("stay{}", round * 10 + i), "t"));
                write(&*kv, come.chain(touch).collect()).await;
                write(&*kv, (0..10).map(|i| del("d1/", format!("come{round}-{i}"))).collect()).await;
            }
        })
    };
    while !churn.is_finished() {
        let all = scan_all(&*kv, "d1/", 37).await;
        let names: Vec<&[u8]> = all.iter().map(|entry| &entry.field[..]).collect();
        let stayed = names.iter().filter(|name| name.starts_with(b"stay")).count();
        assert_eq!(stayed, 600);
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len(), "seen twice");
    }
    churn.await.expect("churn");
}

pub async fn big_transactions(world: &dyn World) {
    let kv = world.open().await;
    let n = 5_000;
    let expect = (0..n).map(|i| Expect::Absent(key("d1/", format!("n{i}")))).collect::<Vec<_>>();
    let writes = || {
        (0..n)
            .flat_map(|i| [set("d1/", format!("n{i}"), "x"), set(&format!("i{i}"), "a", vec![7; 200])])
            .collect()
    };
    assert_eq!(attempt(&*kv, expect.clone(), writes()).await.expect("commit"), Outcome::Applied);
    assert_eq!(scan_all(&*kv, "d1/", 1000).await.len(), n);
    assert_eq!(attempt(&*kv, expect, writes()).await.expect("commit"), Outcome::Conflict(0));
    let mut gone: Vec<Write> = (0..n).map(|i| Write::DelMap(format!("i{i}"))).collect();
    gone.push(Write::DelMap("d1/".to_owned()));
    let present = (0..n).map(|i| Expect::Present(key("d1/", format!("n{i}")))).collect();
    assert_eq!(attempt(&*kv, present, gone).await.expect("commit"), Outcome::Applied);
    assert_eq!(scan_all(&*kv, "d1/", 1000).await, []);
    assert_eq!(value(&*kv, "i4999", "a").await, None);
}

pub async fn increments_from_many_tasks(world: &dyn World) {
    let handles = [world.open().await, world.open().await];
    let tasks: Vec<_> = (0..40)
        .map(|i| {
            let kv = handles[i % 2].clone();
            tokio::spawn(async move {
                for n in 0..25_u64 {
                    let count = vec![
                        Write::Add(key("v", "count"), 1),
                        Write::Max(key("v", "max"), i as u64 * 100 + n),
                        Write::Add(key("v", "below"), -2),
                    ];
                    write(&*kv, count).await;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("task");
    }
    assert_eq!(value(&*handles[0], "v", "count").await.as_deref(), Some("1000"));
    assert_eq!(value(&*handles[1], "v", "below").await.as_deref(), Some("-2000"));
    assert_eq!(value(&*handles[1], "v", "max").await.as_deref(), Some("3924"));
}

pub async fn creates_from_many_tasks_do_not_collide(world: &dyn World) {
    let handles = [world.open().await, world.open().await];
    write(&*handles[0], vec![set("i1", "a", "dir")]).await;
    let tasks: Vec<_> = (0..30)
        .map(|i| {
            let kv = handles[i % 2].clone();
            tokio::spawn(async move {
                for n in 0..20 {
                    let name = format!("{i}-{n}");
                    let expect = vec![Expect::Present(key("i1", "a")), Expect::Absent(key("d1/", &name))];
                    let change = vec![set("d1/", &name, "x"), Write::Add(key("i1", "n"), 1)];
                    assert_eq!(attempt(&*kv, expect, change).await.expect("commit"), Outcome::Applied);
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("task");
    }
    assert_eq!(scan_all(&*handles[1], "d1/", 100).await.len(), 600);
    assert_eq!(value(&*handles[0], "i1", "n").await.as_deref(), Some("600"));
}

pub async fn one_creator_wins(world: &dyn World) {
    let handles = [world.open().await, world.open().await];
    for round in 0..10 {
        let name = format!("n{round}");
        let tasks: Vec<_> = (0..16)
            .map(|i| {
                let (kv, name) = (handles[i % 2].clone(), name.clone());
                tokio::spawn(async move {
                    let expect = vec![Expect::Absent(key("d1/", &name))];
                    attempt(&*kv, expect, vec![set("d1/", &name, i.to_string())]).await.expect("commit")
                })
            })
            .collect();
        let mut winners = 0;
        for task in tasks {
            winners += usize::from(task.await.expect("task") == Outcome::Applied);
        }
        assert_eq!(winners, 1);
    }
}

pub async fn a_moment_is_never_half_a_transaction(world: &dyn World) {
    let kv = world.open().await;
    let state = |n: u64| {
        let mut dirent = (n % 2 + 5).to_be_bytes().to_vec();
        dirent.extend(n.to_string().bytes());
        let row = n.to_string();
        vec![set("d1/", "x", dirent), set("i5", "a", &row), set("i6", "a", &row), set("other", "a", &row)]
    };
    write(&*kv, state(0)).await;
    let writer = {
        let kv = world.open().await;
        tokio::spawn(async move {
            for n in 1..200 {
                write(&*kv, state(n)).await;
            }
        })
    };
    let keys = [key("i5", "a"), key("other", "a"), key("i6", "a")];
    while !writer.is_finished() {
        let values = kv.get(&keys).await.expect("get");
        assert!(values.iter().all(|value| *value == values[0]), "{values:?}");
        let followed = kv.follow(&key("d1/", "x"), &["a".into()]).await.expect("follow").expect("present");
        assert_eq!(Some(followed.value.slice(8..)), followed.fields[0]);
    }
    writer.await.expect("writer");
}
