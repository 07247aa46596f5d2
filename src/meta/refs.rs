//! The files under `refs/`: each holds the 40 hex digits of a commit, without a newline.

use super::Meta;
use super::attr::Attr;
use crate::error::Result;
use crate::types::{Commit, Ino};

/// What a ref says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefTarget {
    pub commit: Commit,
    /// Of the file. Its mtime is when the ref was last known to be true.
    pub attr: Attr,
}

impl Meta {
    /// What `refs/<name>` says, `refs` being the directory; `None` if there is no such file or it holds no commit.
    pub async fn read_ref(&self, refs: Ino, name: &str) -> Result<Option<RefTarget>> {
        let _ = (refs, name);
        todo!()
    }

    /// Makes `refs/<name>` say `commit`, replacing the file as a rename would. If it says so already, its mtime becomes
    /// now. Directories on the way are made.
    pub async fn set_ref(&self, refs: Ino, name: &str, commit: Commit) -> Result<Attr> {
        let _ = (refs, name, commit);
        todo!()
    }
}
