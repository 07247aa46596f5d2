//! How long one operation takes, and how many a second many tasks get. Prints; asserts nothing. Run it alone:
//! `cargo test --release --test kv_conformance times -- --ignored --nocapture --test-threads 1`

use std::sync::Arc;
use std::time::{Duration, Instant};

use hfmount::meta::kv::{Change, Expect, Kv, Outcome, Txn, Write};
use hfmount::types::Ino;

use crate::world::{World, key, set, write};

async fn median(mut run: impl AsyncFnMut(u64)) -> Duration {
    let mut times = Vec::new();
    for n in 0..1000 {
        let began = Instant::now();
        run(n).await;
        times.push(began.elapsed());
    }
    times.sort_unstable();
    times[times.len() / 2]
}

/// What the meta layer does for a create.
fn create(name: &str) -> Txn {
    Txn {
        session: None,
        expect: vec![Expect::Present(key("i1", "a")), Expect::Absent(key("d1/", name))],
        write: vec![
            set(&format!("i{name}"), "a", [7; 80]),
            set("d1/", name, [0; 9]),
            Write::Max(key("i1", "m"), 1_795_000_000_000_000_000),
            Write::AddBounded(key("v", "inodes"), 1, 1 << 40),
        ],
        publish: vec![Change::Inode { ino: Ino(1) }],
    }
}

async fn measure(name: &str, world: &dyn World) {
    let kv: Arc<dyn Kv> = world.open().await;
    write(&*kv, vec![set("i1", "a", [7; 80]), set("d0/", "x", 1_u64.to_be_bytes())]).await;
    write(&*kv, (0..1000).map(|i| set("d2/", format!("n{i}"), [0; 9])).collect()).await;
    let get = median(async |_| drop(kv.get(&[key("i1", "a"), key("i1", "m")]).await.expect("get"))).await;
    let follow =
        median(async |_| drop(kv.follow(&key("d0/", "x"), &["a".into()]).await.expect("follow"))).await;
    let scan = median(async |_| drop(kv.scan("d2/", 0, 1000).await.expect("scan"))).await;
    let commit = median(async |n| {
        assert_eq!(kv.commit(create(&format!("a{n}"))).await.expect("commit"), Outcome::Applied);
    });
    let commit = commit.await;
    let rate = async |tasks: usize, each: usize, commit: bool| {
        let began = Instant::now();
        let running: Vec<_> = (0..tasks)
            .map(|t| {
                let kv = kv.clone();
                tokio::spawn(async move {
                    for n in 0..each {
                        if commit {
                            let outcome =
                                kv.commit(create(&format!("{tasks}-{t}-{n}"))).await.expect("commit");
                            assert_eq!(outcome, Outcome::Applied);
                        } else {
                            kv.follow(&key("d0/", "x"), &["a".into()]).await.expect("follow");
                        }
                    }
                })
            })
            .collect();
        for task in running {
            task.await.expect("task");
        }
        (tasks * each) as f64 / began.elapsed().as_secs_f64()
    };
    let (follows, creates) = (rate(64, 200, false).await, rate(64, 50, true).await);
    println!(
        "{name}: get {get:?}, follow {follow:?}, scan of 1000 {scan:?}, create {commit:?}; 64 tasks: {follows:.0} follows/s, \
         {creates:.0} creates/s"
    );
}

macro_rules! times {
    ($($name:ident: $world:expr),* $(,)?) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        #[ignore = "prints times"]
        async fn $name() { measure(stringify!($name), &$world).await; })*
    };
}

times!(
    memory: crate::Memory(hfmount::meta::memory::MemoryKv::new()),
    sqlite: crate::Sqlite(tempfile::tempdir().expect("temporary folder")),
    redis_without_aof: crate::Redis(crate::RedisServer::start_with(&[])),
    redis_fsync_each_second: crate::Redis(crate::RedisServer::start_with(&["--appendonly", "yes"])),
    redis_fsync_always: crate::Redis(crate::RedisServer::start()),
);
