//! The way to what may block, the local disk above all, from asynchronous code.

use crate::error::{Error, Kind, Result};

/// Runs `work` on the runtime's blocking pool, which is bounded. A panic in it is an error here.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(e) => Err(Error::with_source(Kind::Internal, "work on the local disk", e)),
    }
}
