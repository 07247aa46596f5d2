//! Which mount of this user is meant by a path.

use std::path::Path;

use crate::daemon::RunFile;

/// The note of the running mount on which the absolute path `dir` lies; of nested ones the innermost. The path itself is not
/// looked at: its daemon may hang.
pub(super) fn mount_of(notes: &[RunFile], dir: &Path) -> Option<RunFile> {
    let own = notes.iter().filter(|note| note.is_running() && dir.starts_with(&note.mount_point));
    own.max_by_key(|note| note.mount_point.as_os_str().len()).cloned()
}
