//! Reading everything as of one instant.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use hfmount::meta::kv::{Kv, Piece, Write};

use crate::world::{World, del, key, scan_all, set, write};

type Rows = BTreeMap<String, Vec<(Bytes, Bytes)>>;

/// What an empty engine would hold after all pieces; the order of fields is the order in which they were first told.
pub async fn exported(kv: &dyn Kv) -> Rows {
    let mut export = kv.export().await.expect("export");
    let mut all = Rows::new();
    while let Some(piece) = export.next().await.expect("piece") {
        match piece {
            Piece::Set { map, rows } => {
                assert!(!rows.is_empty() && rows.len() <= 500, "{} rows", rows.len());
                let told = all.entry(map).or_default();
                // Looked up by position only while it is small: large ones come once.
                let mut at: BTreeMap<Bytes, usize> =
                    told.iter().enumerate().map(|(n, (field, _))| (field.clone(), n)).collect();
                for (field, value) in rows {
                    match at.get(&field) {
                        Some(&n) => told[n].1 = value,
                        None => {
                            at.insert(field.clone(), told.len());
                            told.push((field, value));
                        }
                    }
                }
            }
            Piece::Del { map, fields } => {
                all.entry(map).or_default().retain(|(field, _)| !fields.contains(field));
            }
            Piece::DelMap { map } => drop(all.remove(&map)),
        }
    }
    all.retain(|_, rows| !rows.is_empty());
    all
}

fn get<'a>(rows: &'a Rows, map: &str, field: &str) -> Option<&'a Bytes> {
    rows.get(map)?.iter().find(|(f, _)| f == field.as_bytes()).map(|(_, value)| value)
}

pub async fn export_tells_everything(world: &dyn World) {
    let kv = world.open().await;
    assert_eq!(exported(&*kv).await, Rows::new());
    let binary: Vec<u8> = (0..=255).collect();
    write(&*kv, vec![set("i1", &binary, &binary), set("i1", "", ""), set("v", "n", "7")]).await;
    for start in (0..3_000).step_by(500) {
        let many = (start..start + 500).flat_map(|n| {
            let n = (n * 7919) % 10_007;
            [set("d1/", format!("{n:05}"), n.to_string()), set("plain", format!("c{n}"), vec![7; 100])]
        });
        write(&*kv, many.collect()).await;
    }
    let small = (0..300).map(|n| set(&format!("i{n}"), "a", n.to_string()));
    write(&*kv, small.chain([set("d2/", "b", "1"), set("d2/", "a", "1"), set("gone", "a", "1")]).collect())
        .await;
    write(&*kv, vec![Write::DelMap("gone".to_owned()), set("big", "a", vec![1; 300 << 10])]).await;
    let rows = exported(&*kv).await;
    let maps: BTreeSet<&str> = rows.keys().map(String::as_str).collect();
    assert_eq!(maps.len(), 300 + 5, "{maps:?}");
    assert_eq!((rows["plain"].len(), rows["i1"].len(), rows["big"][0].1.len()), (3_000, 3, 300 << 10));
    assert_eq!(get(&rows, "v", "n"), Some(&Bytes::from_static(b"7")));
    assert!(rows["i1"].contains(&(Bytes::from(binary.clone()), Bytes::from(binary))));
    for map in ["d1/", "d2/"] {
        let scanned = scan_all(&*kv, map, 1_000).await;
        let scanned: Vec<(Bytes, Bytes)> = scanned.into_iter().map(|e| (e.field, e.value)).collect();
        assert_eq!(rows[map], scanned, "in the order of entry ids");
    }
}

/// Writers keep facts that hold at every instant, and hold in no mixture of two.
pub async fn export_is_of_one_instant(world: &dyn World) {
    const TOKENS: usize = 300;
    let kv = world.open().await;
    let bag = |n: usize| format!("bag{}/", n % 7);
    for n in 0..TOKENS {
        write(&*kv, vec![set(&bag(n), format!("t{n}"), "x")]).await;
    }
    // Enough to make a pass over it last.
    for start in (0..6_000).step_by(1_000) {
        let more = (start..start + 1_000).map(|n| set(&format!("i{n}"), "a", vec![0; 60]));
        write(&*kv, more.chain((start..start + 1_000).map(|n| set("d9/", format!("f{n}"), "x"))).collect())
            .await;
    }
    let stop = Arc::new(AtomicBool::new(false));
    let mut writers = Vec::new();
    for writer in 0..3_usize {
        let (kv, stop) = (world.open().await, stop.clone());
        writers.push(tokio::spawn(async move {
            let mut rounds = 0;
            while !stop.load(Ordering::Relaxed) {
                rounds += 1;
                let round = rounds.to_string();
                // The same number at both ends of the alphabet.
                let counters =
                    [set(&format!("a{writer}"), "n", &round), set(&format!("z{writer}"), "n", &round)];
                // A token leaves one bag for another; each writer has its own.
                let token = (rounds * 31 + writer) % TOKENS / 3 * 3 + writer;
                let (name, there) = (format!("t{token}"), bag(token + rounds));
                let all: Vec<Write> = (0..7).map(|b| del(&bag(b), &name)).collect();
                let token = all.into_iter().chain([set(&there, &name, &round)]);
                // A map that is dropped and made anew, once small, once large.
                let size = if rounds % 2 == 0 { 3 } else { 150 };
                let fresh = format!("fresh{writer}");
                let anew = (0..size).map(|n| set(&fresh, format!("{n}"), &round)).collect::<Vec<_>>();
                // An entry that comes and goes with its inode.
                let inode = format!("i{}", 10_000 + writer);
                let pair = if rounds % 3 == 0 {
                    vec![set("d9/", format!("e{writer}"), "x"), set(&inode, "a", "x")]
                } else {
                    vec![del("d9/", format!("e{writer}")), Write::DelMap(inode)]
                };
                let all =
                    counters.into_iter().chain(token).chain([Write::DelMap(fresh)]).chain(anew).chain(pair);
                write(&*kv, all.collect()).await;
                // The engine in memory never waits by itself.
                tokio::task::yield_now().await;
            }
            rounds
        }));
    }
    for _ in 0..5 {
        let rows = exported(&*kv).await;
        for writer in 0..3 {
            let count = get(&rows, &format!("a{writer}"), "n");
            assert_eq!(count, get(&rows, &format!("z{writer}"), "n"), "one transaction, two counters");
            let fresh = rows.get(&format!("fresh{writer}")).map(Vec::as_slice).unwrap_or_default();
            assert!(fresh.is_empty() || matches!(fresh.len(), 3 | 150), "{} fields", fresh.len());
            assert!(fresh.iter().all(|(_, value)| Some(value) == count), "a map of two generations");
            let entry = get(&rows, "d9/", &format!("e{writer}")).is_some();
            assert_eq!(
                entry,
                rows.contains_key(&format!("i{}", 10_000 + writer)),
                "an entry without its inode"
            );
        }
        let mut tokens = BTreeMap::new();
        for n in 0..7 {
            for (field, _) in rows.get(&bag(n)).into_iter().flatten() {
                *tokens.entry(field.clone()).or_insert(0) += 1;
            }
        }
        assert_eq!(tokens.len(), TOKENS, "a token is lost");
        assert!(tokens.values().all(|n| *n == 1), "a token in two bags");
        assert_eq!(rows.keys().filter(|map| map.starts_with('i')).count() / 6_000, 1);
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        assert!(writer.await.expect("writer") > 5, "it was not kept from writing");
    }
}

pub async fn an_export_can_be_given_up(world: &dyn World) {
    let kv = world.open().await;
    let many = (0..5_000).map(|n| set(&format!("i{n}"), "a", vec![0; 100]));
    write(&*kv, many.collect()).await;
    for _ in 0..3 {
        let mut export = kv.export().await.expect("export");
        assert!(export.next().await.expect("piece").is_some());
        drop(export);
        // The next one may have to wait until the engine has noticed.
        let mut tries = 0;
        let again = loop {
            match world.open().await.export().await {
                Ok(export) => break export,
                Err(e) => assert!(tries < 200, "{e}"),
            }
            tries += 1;
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        };
        drop(again);
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
    assert_eq!(exported(&*kv).await.len(), 5_000);
    write(&*kv, vec![set("v", "after", "x")]).await;
    assert_eq!(kv.get(&[key("v", "after")]).await.expect("get")[0].as_deref(), Some(&b"x"[..]));
}
