//! Publishing the tree of a commit: everything is written under inodes that nobody can reach, and appears with one commit.

use bytes::Bytes;

use super::Meta;
use crate::error::Result;
use crate::types::{BlobId, Commit, Extent, Ino, RepoId, Timestamp};

/// A file of a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanFile {
    /// The names on the way to it, its own the last. At least one.
    pub path: Vec<Bytes>,
    pub blob: BlobId,
    /// Bytes.
    pub size: u64,
    /// The path as the Hub writes it.
    pub repo_path: String,
}

/// The data of a file that is published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InodeContent {
    /// At most [`INLINE_MAX`](super::INLINE_MAX) bytes.
    Inline(Bytes),
    /// Uploaded already.
    Extents {
        /// Bytes.
        size: u64,
        chunks: Vec<(u64, Vec<Extent>)>,
    },
}

/// What is to be published.
#[derive(Clone, Debug)]
pub struct CommitPlan {
    pub repo: RepoId,
    /// The name in the root, if the repository is not there yet.
    pub folder: Bytes,
    /// The directory of the repository, wherever it lies now; or a number of [`Meta::alloc_ino`] that it shall get.
    pub repo_ino: Option<Ino>,
    pub commit: Commit,
    /// The time of everything that is made.
    pub last_modified: Timestamp,
    /// The repository is private or gated.
    pub restricted: bool,
    pub files: Vec<PlanFile>,
    /// `trees/<commit>.json`.
    pub trees_json: InodeContent,
    /// The names under `refs/` that point to the commit from now on.
    pub refs: Vec<String>,
}

/// Where a published commit is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    pub repo_dir: Ino,
    pub snapshot: Ino,
    /// By this call: nobody had published it before.
    pub created: bool,
}

impl Meta {
    /// Publishes a commit.
    pub async fn publish_commit(&self, plan: CommitPlan) -> Result<Published> {
        let _ = plan;
        todo!()
    }

    pub(super) async fn drop_staged_by(&self, session: crate::types::SessionId) -> Result<()> {
        let _ = session;
        Ok(())
    }
}
