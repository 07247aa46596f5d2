//! Figures, for `cargo test --release --test chunk_fill -- --ignored --nocapture bench`.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures::{StreamExt, stream};
use hfmount::chunk::ChunksOptions;
use hfmount::chunk::digest::Digest;
use hfmount::error::Result;
use hfmount::source::{Fetched, Source, Want};
use hfmount::types::BlobId;

use crate::world::{Build, bytes, eventually};

const SIZE: u64 = 2 << 30;

/// The same 32 MiB over and over, as a fast network would give them.
#[derive(Debug)]
struct Repeat(Bytes);

#[async_trait::async_trait]
impl Source for Repeat {
    fn name(&self) -> &'static str {
        "repeat"
    }

    async fn fetch(&self, want: &Want) -> Result<Fetched> {
        let (data, range) = (self.0.clone(), want.range());
        let piece = move |at: u64| {
            let from = at as usize % data.len();
            let len = (64 << 10).min((range.end - at) as usize).min(data.len() - from);
            Ok(data.slice(from..from + len))
        };
        Ok(stream::iter((want.range().start..want.range().end).step_by(64 << 10).map(piece)).boxed())
    }
}

fn peak() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    status.lines().filter(|l| l.starts_with("VmHWM") || l.starts_with("VmRSS")).collect::<Vec<_>>().join(", ")
}

fn cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "prints figures; meaningful in release only"]
async fn bench_fill_and_warm_reads() {
    let dir = tempfile::tempdir().unwrap();
    let data = bytes(32 << 20, 1);
    let mut digest = Digest::new(&BlobId::Sha256([0; 32]), SIZE);
    let start = Instant::now();
    (0..SIZE / (32 << 20)).for_each(|_| digest.update(&data));
    println!("sha256 alone: {:.0} MB/s", SIZE as f64 / 1e6 / start.elapsed().as_secs_f64());
    let id = digest.finish();
    println!("before: {}", peak());
    let build =
        Build { options: ChunksOptions::default(), before: vec![Arc::new(Repeat(data))], ..Build::default() };
    let w = build.at(dir.path()).await;
    let mb = SIZE as f64 / 1e6;
    for _ in 0..3 {
        let blob = w.chunks.open_blob(id, SIZE).await.unwrap();
        let mut step = vec![0; 1 << 20];
        for (what, len) in [("cold", 128 << 10), ("warm 128K", 128 << 10), ("warm 1M", 1 << 20)] {
            let (start, busy) = (Instant::now(), cpu());
            let mut slow = 0;
            for at in (0..SIZE).step_by(len) {
                if blob.try_read(at, &mut step[..len]).is_none() {
                    slow += 1;
                    assert_eq!(blob.read(at, len as u32).await.unwrap().len(), len);
                }
            }
            let took = start.elapsed().as_secs_f64();
            println!(
                "{what}: {:.0} MB/s, {:.2} cpu-s/GB, {slow} reads waited",
                mb / took,
                (cpu() - busy) / mb * 1e3
            );
            if what == "cold" {
                eventually("verified", || blob.is_verified()).await;
                println!("  verified: {:.0} MB/s in all, {}", mb / start.elapsed().as_secs_f64(), peak());
            }
        }
        let key = blob.cache_file().key();
        drop(blob);
        eventually("closed", || w.chunks.stats().open_blobs == 0).await;
        w.chunks.cache().remove(&key).unwrap();
    }
    println!("{:?}", w.chunks.stats());
}
