//! Where the chunks of a blob came from: told once when it is complete, and whenever somebody asks.

use std::time::{Duration, Instant};

use super::blob::Blob;
use super::cache::CacheFile;
use super::lock;
use crate::config::units::human_size;
use crate::error::Result;
use crate::source::Provider;

/// What came in since the blob was opened.
#[derive(Debug, Default)]
pub(super) struct Tally {
    begun: Option<Instant>,
    bytes: u64,
    /// By the provider's number.
    chunks: [u64; Provider::ALL.len()],
    told: bool,
}

impl Tally {
    /// The first bytes are on their way.
    fn begin(&mut self) {
        self.begun.get_or_insert_with(Instant::now);
    }

    /// A chunk came.
    fn add(&mut self, from: Provider, len: u32) {
        self.begin();
        self.bytes += u64::from(len);
        if let Some(chunks) = self.chunks.get_mut(from as usize) {
            *chunks += 1;
        }
    }

    /// Chunks that came from the Hub.
    pub(super) fn hub_chunks(&self) -> u64 {
        self.chunks[Provider::Hub as usize]
    }

    /// All chunks are here, so many: what there is to tell, once.
    fn complete(&mut self, all: u64) -> Option<String> {
        let begun = self.begun.filter(|_| !std::mem::replace(&mut self.told, true))?;
        Some(self.words(begun.elapsed(), all))
    }

    fn words(&self, took: Duration, all: u64) -> String {
        let came: u64 = self.chunks.iter().sum();
        let mut parts = Vec::new();
        for provider in Provider::ALL {
            let chunks = self.chunks[provider as usize];
            if chunks > 0 {
                parts.push(format!("{chunks} chunks from {}", provider.words()));
            }
        }
        if came < all {
            parts.push(format!("{} were here", all - came));
        }
        format!("{} in {:.1} s: {}", human_size(self.bytes), took.as_secs_f64(), parts.join(", "))
    }
}

/// Chunks and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Amount {
    pub chunks: u64,
    pub bytes: u64,
}

impl Amount {
    /// One chunk more.
    pub fn add(&mut self, bytes: u64) {
        self.chunks += 1;
        self.bytes += bytes;
    }
}

/// How much of a blob is on the local disk, and where that came from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Whereabouts {
    pub all: Amount,
    /// Only those that something came from, in the order of [`Provider::ALL`].
    pub here: Vec<(Provider, Amount)>,
    /// Not here.
    pub missing: Amount,
    /// The whole was checked against its name.
    pub verified: bool,
}

impl Whereabouts {
    /// Reads the index of a content. Blocks on the disk.
    pub(super) fn of(file: &CacheFile, size: u64) -> Result<Self> {
        let mut here = Provider::ALL.map(|provider| (provider, Amount::default()));
        let (mut from, chunks) = (0, file.chunks());
        let mut sum = Amount::default();
        while let Some(idx) = file.next_recorded(from, chunks) {
            if let Some(record) = file.record_of(idx)? {
                let place = here.iter_mut().find(|(provider, _)| *provider == record.from);
                place.into_iter().for_each(|(_, amount)| amount.add(u64::from(record.len)));
                sum.add(u64::from(record.len));
            }
            from = idx + 1;
        }
        let mut found = Whereabouts::nothing(size, file.chunk_size());
        found.missing = Amount { chunks: chunks - sum.chunks, bytes: size.saturating_sub(sum.bytes) };
        found.here = here.into_iter().filter(|(_, amount)| amount.chunks > 0).collect();
        found.verified = file.is_verified();
        Ok(found)
    }

    /// Of a blob of which nothing is here.
    pub(super) fn nothing(size: u64, chunk_size: u32) -> Self {
        let all = Amount { chunks: size.div_ceil(u64::from(chunk_size)), bytes: size };
        Whereabouts { all, missing: all, ..Whereabouts::default() }
    }
}

impl Blob {
    /// A transfer begins.
    pub(super) fn transfer_begins(&self) {
        lock(&self.state).tally.begin();
    }

    /// A chunk came in. To be told before it is recorded, so that all are counted when the blob is complete.
    pub(super) fn came_from(&self, from: Provider, len: u32) {
        lock(&self.state).tally.add(from, len);
    }

    /// One line in the log tells where the chunks came from, if all of them are here.
    pub(super) fn tell_if_complete(&self) {
        if !self.file.is_complete() {
            return;
        }
        let words = lock(&self.state).tally.complete(self.file.chunks());
        if let Some(words) = words {
            tracing::info!("blob {} complete: {words}", self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_when_all_is_there() {
        let mut tally = Tally::default();
        assert_eq!(tally.complete(5), None, "nothing came");
        tally.add(Provider::Hub, 1 << 20);
        tally.add(Provider::Peer, 1 << 20);
        tally.add(Provider::Peer, 512 << 10);
        let line = tally.complete(5).expect("told");
        assert!(line.starts_with("2.50 MiB in 0.0 s: "), "{line}");
        assert!(line.ends_with("2 chunks from peers, 1 chunks from the Hub, 2 were here"), "{line}");
        tally.add(Provider::Hub, 1);
        assert_eq!(tally.complete(5), None, "once");
    }
}
