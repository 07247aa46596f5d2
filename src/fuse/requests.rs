//! What the kernel asked, and how long it waited.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::metrics::Histogram;

/// The requests that there are, by their names in the log.
const OPS: [&str; 30] = [
    "lookup",
    "getattr",
    "read",
    "open",
    "release",
    "readlink",
    "readdirplus",
    "opendir",
    "getxattr",
    "write",
    "flush",
    "create",
    "setattr",
    "unlink",
    "rename",
    "mkdir",
    "rmdir",
    "symlink",
    "link",
    "mknod",
    "fsync",
    "statfs",
    "flock",
    "readdir",
    "listxattr",
    "setxattr",
    "removexattr",
    "fallocate",
    "lseek",
    "copy_file_range",
];

/// Requests by kind, from their coming in to their answer. What asks for no answer is not counted.
#[derive(Debug, Default)]
pub struct Requests {
    known: [Histogram; OPS.len()],
    others: Histogram,
    read: AtomicU64,
    written: AtomicU64,
}

impl Requests {
    pub(super) fn note(&self, op: &str, took: Duration, failed: bool) {
        let known = OPS.iter().position(|known| *known == op);
        known.map_or(&self.others, |n| &self.known[n]).note(took, failed);
    }

    /// A read was answered with so many bytes.
    pub(super) fn gave(&self, bytes: usize) {
        self.read.fetch_add(bytes as u64, Relaxed);
    }

    /// A write of so many bytes was taken.
    pub(super) fn took(&self, bytes: u32) {
        self.written.fetch_add(u64::from(bytes), Relaxed);
    }

    /// Bytes that reads were answered with. What the kernel has in its own pages, or reads past this program, it does not ask.
    #[must_use]
    pub fn bytes_read(&self) -> u64 {
        self.read.load(Relaxed)
    }

    /// Bytes that were written.
    #[must_use]
    pub fn bytes_written(&self) -> u64 {
        self.written.load(Relaxed)
    }

    /// Those kinds that came, with their names.
    pub fn by_op(&self) -> impl Iterator<Item = (&'static str, &Histogram)> {
        let all = OPS.iter().copied().zip(&self.known).chain([("other", &self.others)]);
        all.filter(|(_, histogram)| histogram.count() > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_by_name() {
        let requests = Requests::default();
        requests.note("read", Duration::from_micros(5), false);
        requests.note("read", Duration::from_micros(5), true);
        requests.note("made up", Duration::from_micros(5), false);
        let seen: Vec<_> = requests.by_op().map(|(op, h)| (op, h.count(), h.failed())).collect();
        assert_eq!(seen, [("read", 2, 1), ("other", 1, 0)]);
        requests.gave(7);
        requests.took(5);
        assert_eq!((requests.bytes_read(), requests.bytes_written()), (7, 5));
    }
}
