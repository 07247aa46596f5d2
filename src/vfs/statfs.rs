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
    /// What users stored counts as used, and the room of the store as free. What the lazy cache shows of the Hub takes no
    /// room of its own.
    pub async fn statfs(self: &Arc<Self>) -> Result<StatFs> {
        let usage = self.meta.usage().await?;
        let free = match &self.opts.store_path {
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
        let used = usage.bytes.div_ceil(BLOCK);
        let free = free / BLOCK;
        let endless_files = ENDLESS / BLOCK;
        Ok(StatFs {
            blocks: used + free,
            bfree: free,
            bavail: free,
            files: usage.inodes + endless_files,
            ffree: endless_files,
            bsize: 1 << 20,
            namelen: u32::try_from(NAME_MAX).unwrap_or(255),
            frsize: u32::try_from(BLOCK).unwrap_or(4096),
        })
    }
}
