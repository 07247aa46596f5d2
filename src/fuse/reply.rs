//! What becomes of an error on its way to the kernel: an errno, and one line in the log.

use fuser::Errno;

use crate::error::Error;
use crate::types::Ino;

/// The errno of `error`. The log line names the request and the inode, at the level of the error's kind.
pub(super) fn errno(op: &'static str, ino: Ino, error: &Error) -> Errno {
    // The level of a tracing event is fixed at compile time.
    match error.kind().level() {
        tracing::Level::ERROR => tracing::error!(%ino, "{op}: {error}"),
        tracing::Level::WARN => tracing::warn!(%ino, "{op}: {error}"),
        _ => tracing::debug!(%ino, "{op}: {error}"),
    }
    Errno::from_i32(error.errno())
}
