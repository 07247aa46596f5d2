//! What `/metrics` says: the figures of all layers under their names. `docs/metrics.md` lists them.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::chunk::{Chunks, Files, SourceStats};
use crate::fuse::Requests;
use crate::meta::metered::KvStats;
use crate::metrics::Text;
use crate::source::breaker::BreakerState;
use crate::source::bucket::Bucket;
use crate::source::mirror::Mirror;
use crate::types::Timestamp;

/// Adds figures of its own to a page. Must not block.
pub(super) type Extra = Arc<dyn Fn(&mut Text) + Send + Sync>;

/// Where the figures are.
#[derive(Clone)]
pub(super) struct Figures {
    pub volume: String,
    pub chunks: Arc<Chunks>,
    pub files: Files,
    pub bucket: Bucket,
    pub mirrors: Vec<Arc<Mirror>>,
    /// What the metadata engine was asked.
    pub meta: Arc<KvStats>,
    /// Known once it is mounted.
    pub requests: Arc<OnceLock<Arc<Requests>>>,
    pub extra: Vec<Extra>,
    pub started: Timestamp,
}

impl fmt::Debug for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Figures").field("volume", &self.volume).finish_non_exhaustive()
    }
}

impl Figures {
    /// The page of this moment.
    pub(super) fn page(&self) -> String {
        let mut text = Text::new();
        let version = env!("CARGO_PKG_VERSION");
        let labels = [("version", version), ("volume", self.volume.as_str())];
        text.gauge("hfmount_info", "What runs here; always 1.").sample(&labels, 1);
        self.sources(&mut text);
        self.chunks(&mut text);
        self.cache(&mut text);
        self.store(&mut text);
        self.requests(&mut text);
        self.meta(&mut text);
        self.extra.iter().for_each(|extra| extra(&mut text));
        process(&mut text, self.started);
        text.finish()
    }

    fn sources(&self, text: &mut Text) {
        // Several mirrors are one source.
        let mut by_name: BTreeMap<&str, (u64, u64, u64, Duration)> = BTreeMap::new();
        for SourceStats { name, requests, bytes, failed, time } in self.chunks.stats().sources {
            let sum = by_name.entry(name).or_default();
            *sum = (sum.0 + requests, sum.1 + bytes, sum.2 + failed, sum.3 + time);
        }
        let mut family =
            text.counter("hfmount_source_requests_total", "Runs of chunks asked for, by source.");
        by_name.iter().for_each(|(name, sum)| _ = family.sample(&[("source", *name)], sum.0));
        let mut family =
            text.counter("hfmount_source_bytes_total", "Bytes of blobs that came in, by source.");
        by_name.iter().for_each(|(name, sum)| _ = family.sample(&[("source", *name)], sum.1));
        let mut family = text
            .counter("hfmount_source_failures_total", "Runs that did not come, other than not being there.");
        by_name.iter().for_each(|(name, sum)| _ = family.sample(&[("source", *name)], sum.2));
        let mut family =
            text.counter("hfmount_source_seconds_total", "Time of those runs, one beside the other.");
        by_name.iter().for_each(|(name, sum)| _ = family.sample(&[("source", *name)], sum.3.as_secs_f64()));
        if !self.mirrors.is_empty() {
            let mut family =
                text.gauge("hfmount_mirror_up", "1: the mirror is asked; 0: it is left alone for a while.");
            for mirror in &self.mirrors {
                let up = u8::from(mirror.state() == BreakerState::Closed);
                family.sample(&[("mirror", mirror.endpoint())], up);
            }
        }
    }

    fn chunks(&self, text: &mut Text) {
        let stats = self.chunks.stats();
        text.counter("hfmount_chunks_filled_total", "Chunks that came in and were agreed on.")
            .sample(&[], stats.chunks_filled);
        text.counter(
            "hfmount_chunks_wrong_total",
            "Chunks that came in and were not what is recorded of them.",
        )
        .sample(&[], stats.chunks_wrong);
        text.counter("hfmount_chunks_from_memory_total", "Chunks served without room on the disk.")
            .sample(&[], stats.from_memory);
        text.counter("hfmount_blob_mismatches_total", "Whole blobs that were not what their names say.")
            .sample(&[], stats.mismatches);
        text.gauge("hfmount_open_blobs", "Blobs that are open or on their way.")
            .sample(&[], stats.open_blobs);
    }

    fn cache(&self, text: &mut Text) {
        let cache = self.chunks.cache().stats();
        text.gauge("hfmount_cache_bytes", "Bytes in the disk cache.").sample(&[], cache.bytes);
        text.gauge("hfmount_cache_limit_bytes", "What it may hold.").sample(&[], cache.max_bytes);
        text.gauge("hfmount_cache_contents", "Contents in it.").sample(&[], cache.contents);
        let (blobs, files) = (self.chunks.reads(), self.files.reads());
        text.counter(
            "hfmount_cache_read_bytes_total",
            "Bytes that were read, by whether they were on this machine when they were asked for.",
        )
        .sample(&[("outcome", "hit")], blobs.hit() + files.hit())
        .sample(&[("outcome", "miss")], blobs.missed() + files.missed());
        text.gauge("hfmount_cache_memory_bytes", "Bytes held in memory because its disk has failed.")
            .sample(&[], cache.in_memory);
        text.counter("hfmount_cache_evictions_total", "Contents removed to make room.")
            .sample(&[], cache.evicted);
        text.counter(
            "hfmount_cache_evicted_bytes_total",
            "Bytes given back, of those and of contents in use.",
        )
        .sample(&[], cache.evicted_bytes + cache.punched_bytes);
    }

    fn store(&self, text: &mut Text) {
        let (bucket, chunks) = (self.bucket.stats(), self.chunks.stats());
        text.counter(
            "hfmount_object_requests_total",
            "Requests to the object store; tries count one by one.",
        )
        .sample(&[("op", "put")], bucket.puts)
        .sample(&[("op", "get")], bucket.gets)
        .sample(&[("op", "other")], bucket.others);
        text.counter("hfmount_object_bytes_total", "Bytes to and from the object store.")
            .sample(&[("direction", "up")], bucket.bytes_up)
            .sample(&[("direction", "down")], bucket.bytes_down);
        text.counter("hfmount_object_errors_total", "Tries that failed, other than not being there.")
            .sample(&[], bucket.failed);
        let mut family = text.histogram(
            "hfmount_object_request_seconds",
            "Time of whole objects written and read, with all tries.",
        );
        self.bucket.times().iter().for_each(|(op, time)| _ = family.durations(&[("op", *op)], time));
        text.gauge(
            "hfmount_uploads_waiting",
            "What is not in the object store yet: chunks of blobs; files with --writeback.",
        )
        .sample(&[("what", "chunks")], chunks.uploads_waiting)
        .sample(&[("what", "files")], self.files.waiting().0.files);
        text.counter(
            "hfmount_uploads_total",
            "Chunks of blobs put into the object store, and tries that failed.",
        )
        .sample(&[("outcome", "done")], chunks.uploads_done)
        .sample(&[("outcome", "failed")], chunks.uploads_failed);
    }

    fn requests(&self, text: &mut Text) {
        let Some(requests) = self.requests.get() else { return };
        let mut family = text
            .histogram("hfmount_fuse_request_seconds", "Time from a request of the kernel to its answer.");
        requests.by_op().for_each(|(op, time)| _ = family.durations(&[("op", op)], time));
        let mut family = text.counter(
            "hfmount_fuse_errors_total",
            "Requests answered with an error; a name that is not there is none.",
        );
        requests.by_op().for_each(|(op, time)| _ = family.sample(&[("op", op)], time.failed()));
        text.counter("hfmount_fuse_bytes_total", "Bytes that the kernel was given, and that it gave.")
            .sample(&[("direction", "read")], requests.bytes_read())
            .sample(&[("direction", "write")], requests.bytes_written());
    }

    fn meta(&self, text: &mut Text) {
        let stats = &self.meta;
        let mut family = text.histogram(
            "hfmount_meta_operation_seconds",
            "Time of operations on the metadata, with all tries.",
        );
        stats.by_op().iter().for_each(|(op, time)| _ = family.durations(&[("op", *op)], time));
        let mut family = text.counter("hfmount_meta_errors_total", "Operations on the metadata that failed.");
        stats.by_op().iter().for_each(|(op, time)| _ = family.sample(&[("op", *op)], time.failed()));
    }
}

/// What every exporter says of its own process.
fn process(text: &mut Text, started: Timestamp) {
    let start = started.0 as f64 / 1e9;
    text.gauge("process_start_time_seconds", "When the daemon started, seconds since 1970.")
        .sample(&[], start);
    if let Some(seconds) = cpu_seconds() {
        text.counter("process_cpu_seconds_total", "Processor time of the daemon.").sample(&[], seconds);
    }
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
    if let Some(kib) = resident.and_then(|kib| kib.trim().parse::<u64>().ok()) {
        text.gauge("process_resident_memory_bytes", "Memory of the daemon.").sample(&[], kib << 10);
    }
    if let Ok(open) = fs::read_dir("/proc/self/fd") {
        text.gauge("process_open_fds", "Descriptors that the daemon has open.").sample(&[], open.count());
    }
}

fn cpu_seconds() -> Option<f64> {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Some(time.tv_sec as f64 + time.tv_nsec as f64 / 1e9)
}
