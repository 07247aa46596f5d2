//! What an earlier run left in a cache directory.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Weak;
use std::sync::atomic::Ordering::Relaxed;

use super::{CacheDir, Entry, millis};
use crate::chunk::cache::index::RECORD_LEN;
use crate::chunk::cache::layout::{index_path, list};
use crate::chunk::cache::{ContentKey, lock};

impl CacheDir {
    /// Reads what the directory holds. Runs beside everything else.
    pub(in super::super) fn load(&self) {
        for kind in ["blobs", "files"] {
            for fan in list(&self.root.join(kind)) {
                for path in list(&fan) {
                    if self.signal.stopped() {
                        return;
                    }
                    self.load_one(kind, &path);
                }
            }
        }
        self.loaded.store(true, Relaxed);
    }

    fn load_one(&self, kind: &str, path: &Path) {
        let Some(name) = path.file_name().and_then(|n| n.to_str()) else { return };
        let Some(key) = ContentKey::parse(kind, name.strip_suffix(".idx").unwrap_or(name)) else { return };
        let _gate = lock(self.gate(&key));
        if lock(&self.table).contains_key(&key) {
            return;
        }
        let data = self.root.join(key.path());
        let (Ok(meta), Ok(index)) = (fs::metadata(&data), fs::metadata(index_path(&data))) else {
            if self.journal.protects(&key) {
                return;
            }
            // Half a pair is left of an unlink that a crash cut in two.
            if let Err(e) = self.unlink(&key) {
                tracing::warn!(error = %e, "cannot remove a leftover of the cache");
            }
            return;
        };
        let used = index.modified().map_or(0, millis);
        let bytes = meta.blocks() * 512 + index.len().max(RECORD_LEN);
        let born = meta.created().map_or(used, millis);
        let entry = Entry { bytes, last_used: used, born, stamped: used, open: Weak::new() };
        lock(&self.table).insert(key, entry);
        self.used.fetch_add(bytes, Relaxed);
    }
}
