//! The way to the local disk for what may block.

use crate::error::{Error, Kind, Result};

/// Runs `work` on the blocking pool, which is bounded by the runtime.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|e| Err(Error::with_source(Kind::Internal, "work on the local disk", e)))
}
