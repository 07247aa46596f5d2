//! Files that turned out to be blobs: a row may say that the file's bytes are exactly those that a blob's name stands for.
//! The file stays what it is, its chunk rows above all; who reads it may read the blob.

use super::Meta;
use super::attr::Attr;
use super::kv::Outcome;
use super::retry::Tries;
use super::schema::{self, Content, Proven};
use crate::error::{Result, ResultExt};
use crate::types::{BlobId, FileType, Ino, Version};

impl Meta {
    /// Says that the file, as it is at `version`, has exactly the bytes of `blob`. Nothing else of it changes, times
    /// included, and whatever next changes its data takes it back. `false`: it is at another version, or its bytes do not
    /// lie in chunk rows alone. One round trip if the row was seen before.
    ///
    /// [`Kind::Stale`](crate::error::Kind::Stale) if it is gone.
    pub async fn prove(&self, ino: Ino, version: Version, blob: BlobId) -> Result<bool> {
        let words = || format!("what inode {ino} is");
        let mut tries = Tries::new();
        loop {
            if let Some(done) = self.try_prove(ino, version, blob, tries.fresh()).await.context(words)? {
                return Ok(done);
            }
            tries.again().await.context(words)?;
        }
    }

    async fn try_prove(&self, ino: Ino, version: Version, blob: BlobId, fresh: bool) -> Result<Option<bool>> {
        let (raw, guessed) = self.raw_row(ino, fresh).await?;
        let mut row = schema::decode_row(ino, &raw)?;
        let fits =
            row.kind == FileType::File && row.content == Content::Extents && row.layout.under.is_none();
        if row.version != version || !fits {
            return Ok((!guessed).then_some(false));
        }
        if row.proven == Some(Proven(blob)) && !guessed {
            return Ok(Some(true));
        }
        let mut build = self.build();
        build.equals(schema::attr_key(ino), &raw);
        row.proven = Some(Proven(blob));
        let raw = build.set_row(ino, &row)?;
        build.inode_changed(ino);
        let attr = Attr::new(ino, row, None, 0);
        match self.commit_making(build, Some(&attr)).await? {
            Outcome::Applied => {
                self.hints().learn_row(ino, &raw);
                Ok(Some(true))
            }
            _ => {
                self.hints().forget_row(ino);
                Ok(None)
            }
        }
    }
}
