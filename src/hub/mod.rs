//! The Hub: what its API says, as values. Knows nothing of inodes, caches and file-system semantics.
