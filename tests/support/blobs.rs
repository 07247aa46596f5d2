//! Bytes for tests of stores of chunks, which run on tokio.

use std::time::{Duration, Instant};

use bytes::Bytes;

/// Bytes that differ everywhere, and from those of another seed.
pub fn bytes(len: usize, seed: u64) -> Bytes {
    let mut out = vec![0; len];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.finalize_xof().fill(&mut out);
    out.into()
}

/// Compares without printing megabytes.
#[track_caller]
pub fn same(got: &[u8], expected: &[u8]) {
    assert_eq!(got.len(), expected.len(), "lengths");
    if let Some(at) = got.iter().zip(expected).position(|(a, b)| a != b) {
        panic!("differs at byte {at}");
    }
}

/// Waits until it is so.
pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(30), "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
