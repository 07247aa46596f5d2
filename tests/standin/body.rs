//! The bytes of a file as a body: paced, counted and, when wanted, spoiled.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures::stream;

use super::counters::Meter;
use super::faults::Spoil;
use super::throttle::Bucket;

/// Large enough that the calls do not count, small enough to stay in the processor's cache.
const GRAIN: u64 = 256 << 10;

/// How one body is to flow.
#[derive(Debug)]
pub struct Flow {
    pub buckets: Vec<Arc<Bucket>>,
    pub spoil: Spoil,
    pub meter: Meter,
}

/// The bytes of `range` of `file`. Reads happen on the server's own threads: its files are small or in the page cache.
pub fn file(file: File, range: Range<u64>, mut flow: Flow) -> Body {
    flow.buckets.extend(flow.spoil.slow.map(|rate| Arc::new(Bucket::new(rate))));
    let grain = flow.buckets.iter().map(|b| b.grain()).min().unwrap_or(GRAIN);
    let start = range.start;
    let state = (file, range, flow);
    Body::from_stream(stream::try_unfold(state, move |(file, mut range, flow)| async move {
        let done = range.start - start;
        let mut len = (range.end - range.start).min(grain);
        if let Some(after) = flow.spoil.stall_after {
            if done >= after {
                std::future::pending::<()>().await;
            }
            len = len.min(after - done);
        }
        if let Some(after) = flow.spoil.cut_after {
            if done >= after {
                // Time to flush what went before.
                tokio::time::sleep(Duration::from_millis(30)).await;
                return Err(io::Error::other("cut on purpose"));
            }
            len = len.min(after - done);
        }
        if len == 0 {
            return Ok(None);
        }
        for bucket in &flow.buckets {
            bucket.take(len).await;
        }
        let mut bytes = vec![0; usize::try_from(len).expect("at most the grain")];
        file.read_exact_at(&mut bytes, range.start)?;
        if flow.spoil.wrong && done == 0 {
            bytes[0] ^= 0x55;
        }
        flow.meter.sent(len);
        range.start += len;
        Ok(Some((Bytes::from(bytes), (file, range, flow))))
    }))
}
