//! Figures, for `cargo test --release --test chunk_fill -- --ignored --nocapture bench`.

use std::time::Instant;

use hfmount::chunk::ChunksOptions;

use crate::source::Memory;
use crate::world::{Build, eventually};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "prints figures; meaningful in release only"]
async fn bench_fill_and_warm_reads() {
    let dir = tempfile::tempdir().unwrap();
    let mut hub = Memory::new("hub");
    hub.piece = 64 << 10;
    let w = Build { options: ChunksOptions::default(), hub, ..Build::default() }.at(dir.path()).await;
    for round in 0..3_u64 {
        let (blob, _) = w.blob(1 << 30, round).await;
        let mib = blob.size() as f64 / 1e6;
        let mut step = vec![0; 1 << 20];
        for (what, len) in [("cold", 128 << 10), ("warm 128K", 128 << 10), ("warm 1M", 1 << 20)] {
            let start = Instant::now();
            let mut slow = 0;
            for at in (0..blob.size()).step_by(len) {
                if blob.try_read(at, &mut step[..len]).is_none() {
                    slow += 1;
                    assert_eq!(blob.read(at, len as u32).await.unwrap().len(), len);
                }
            }
            let rate = mib / start.elapsed().as_secs_f64();
            println!("{what}: {rate:.0} MB/s, {slow} reads waited");
            if what == "cold" {
                eventually("verified", || blob.is_verified()).await;
                println!(
                    "verified after {:.2} s, {:.0} MB/s in all",
                    start.elapsed().as_secs_f64(),
                    mib / start.elapsed().as_secs_f64()
                );
            }
        }
    }
    println!("{:?}", w.chunks.stats());
}
