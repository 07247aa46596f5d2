//! What the wire takes: bytes a second of one stream, and processor seconds a gigabyte at both ends. Not a test:
//! `cargo test --test peers wire::bench -- --ignored --nocapture`.

use super::*;
use hfmount::source::peer::PeerSource;
use hfmount::source::{Source, Want};
use tokio::runtime::{Builder, Runtime};

const CHUNK: usize = 4 << 20;
const CHUNKS: u64 = 256;

fn runtime(name: &str) -> Runtime {
    Builder::new_multi_thread().worker_threads(2).thread_name(name).enable_all().build().expect("a runtime")
}

/// Processor seconds of the threads whose name begins so: their own, and the kernel's for them.
fn cpu(name: &str) -> [f64; 2] {
    let mut ticks = [0.0; 2];
    for task in std::fs::read_dir("/proc/self/task").expect("tasks").flatten() {
        let Ok(stat) = std::fs::read_to_string(task.path().join("stat")) else { continue };
        let (Some(open), Some(close)) = (stat.find('('), stat.rfind(')')) else { continue };
        if stat[open + 1..close].starts_with(name) {
            let fields: Vec<&str> = stat[close + 2..].split(' ').collect();
            for (sum, field) in ticks.iter_mut().zip(&fields[11..13]) {
                *sum += field.parse::<f64>().expect("ticks") / 100.0;
            }
        }
    }
    ticks
}

#[test]
#[ignore = "a measurement"]
fn one_stream_and_four() {
    let (servers, clients) = (runtime("srv"), runtime("cli"));
    let town = Arc::new(Town::default());
    let server = servers.block_on(Node::new(&town, Plan::default()));
    let asker = clients.block_on(Node::new(&town, Plan::default()));
    // One buffer for all: the server's disk is not what is measured.
    let bytes = content(0, CHUNK);
    (0..CHUNKS).for_each(|idx| server.store.put(idx, bytes.clone()));
    let source = PeerSource::new(asker.client.clone(), Duration::from_secs(10));
    let one: Arc<[Holder]> = [server.holder()].into();
    for streams in [1, 1, 1, 4] {
        let (s0, c0) = (cpu("srv"), cpu("cli"));
        let start = std::time::Instant::now();
        let runs = (0..streams).map(|n| {
            let each = CHUNKS / streams;
            let want = Want {
                blob: BLOB,
                size: CHUNKS * CHUNK as u64,
                origins: [].into(),
                first: n * each,
                count: each,
                chunk_size: CHUNK as u32,
                stored: [].into(),
                holders: (0..each).map(|_| one.clone()).collect(),
            };
            let source = source.clone();
            clients.spawn(async move {
                let mut bytes = source.fetch(&want).await.expect("begun");
                let (mut got, mut pieces) = (0, 0);
                while let Some(piece) = bytes.next().await {
                    got += piece.expect("bytes").len();
                    pieces += 1;
                }
                (got, pieces)
            })
        });
        let all: Vec<_> = clients.block_on(futures::future::join_all(runs.collect::<Vec<_>>()));
        let took = start.elapsed().as_secs_f64();
        let (got, pieces) =
            all.into_iter().map(|r| r.expect("a run")).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
        assert_eq!(got as u64, CHUNKS * CHUNK as u64);
        let gb = got as f64 / 1e9;
        let [server, client] = [("srv", s0), ("cli", c0)].map(|(name, before)| {
            let after = cpu(name);
            format!("{:.2} + {:.2}", (after[0] - before[0]) / gb, (after[1] - before[1]) / gb)
        });
        println!(
            "{streams} stream(s): {:.2} GB/s; CPU s/GB, own + kernel: server {server}, client {client}; pieces of {} KiB",
            gb / took,
            got / pieces / 1024,
        );
    }
}
