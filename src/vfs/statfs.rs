//! The figures of `df`: what the volume holds, and what room there is.

use std::sync::Arc;

use super::Vfs;
use super::types::StatFs;
use crate::blocking::blocking;
use crate::error::{Error, Kind, Result};
use crate::meta::NAME_MAX;

/// A bucket has no end that anybody could tell: one pebibyte is shown as free.
const ENDLESS: u64 = 1 << 50;
const BLOCK: u64 = 4096;

impl Vfs {
    /// What users stored counts as used; the room is that of the store, or what is left of the volume's capacity, whichever
    /// is less. What the lazy cache shows of the Hub takes no room of its own.
    pub async fn statfs(self: &Arc<Self>) -> Result<StatFs> {
        let usage = self.meta.usage().await?;
        let limits = self.meta.limits();
        let mut free = match &self.opts.store_path {
            None => ENDLESS,
            Some(path) => {
                let path = path.clone();
                blocking(move || {
                    rustix::fs::statvfs(&path).map(|s| s.f_bavail.saturating_mul(s.f_frsize)).map_err(|e| {
                        Error::with_source(Kind::Disk, format!("free space of {}", path.display()), e)
                    })
                })
                .await?
            }
        };
        if let Some(capacity) = limits.bytes {
            free = free.min(capacity.saturating_sub(usage.bytes));
        }
        let used = usage.bytes.div_ceil(BLOCK);
        let free = free / BLOCK;
        let free_files = match limits.inodes {
            Some(inodes) => inodes.saturating_sub(usage.inodes),
            None => ENDLESS / BLOCK,
        };
        Ok(StatFs {
            blocks: used + free,
            bfree: free,
            bavail: free,
            files: usage.inodes + free_files,
            ffree: free_files,
            bsize: 1 << 20,
            namelen: u32::try_from(NAME_MAX).unwrap_or(255),
            frsize: u32::try_from(BLOCK).unwrap_or(4096),
        })
    }
}
