//! Which of the listed objects are needed, and which sessions may be collected.

use std::collections::HashSet;
use std::time::Duration;

use bytes::Bytes;

use super::{Gc, PASSES};
use crate::admin::inodes::{blobs_of, each_chunks, each_inode, unreadable};
use crate::error::Result;
use crate::meta::survey::Surveyed;
use crate::meta::{Content, InodeRow};
use crate::types::{ObjectId, SessionId};

/// How long objects in the trash are the mounts' own to delete.
const TRASH_GRACE: Duration = Duration::from_secs(15 * 60);

fn digest(raw: &Bytes) -> u64 {
    let hash = blake3::hash(raw);
    u64::from_le_bytes(hash.as_bytes()[..8].try_into().unwrap_or_default())
}

impl Gc<'_> {
    /// Marks all that the metadata names.
    pub(super) async fn keep_what_is_named(&mut self) -> Result<()> {
        for pass in 0..PASSES {
            let before = std::mem::take(&mut self.read);
            let (mut changed, mut met) = (0, 0);
            let (survey, tell) = (self.place.survey.clone(), self.tell);
            let what = if pass == 0 { "inodes" } else { "inodes again" };
            each_inode(&survey, what, tell, async |inode: Surveyed| {
                met += u64::from(before.binary_search_by_key(&inode.ino.0, |(ino, _)| *ino).is_ok());
                changed += u64::from(self.keep_inode(&inode, &before).await?);
                Ok(())
            })
            .await?;
            // One that went may have given its objects to another that was not met yet.
            changed += before.len() as u64 - met;
            if pass == 0 {
                self.collect_sessions().await?;
                continue;
            }
            self.report.restless = changed > 0;
            if changed == 0 {
                break;
            }
        }
        let fresh = super::before(TRASH_GRACE);
        for (object, since) in self.survey().trash().await? {
            if since >= fresh {
                self.need(object);
            }
        }
        Ok(())
    }

    /// Sees to it that nobody commits any more what nothing names, or leaves it alone.
    async fn collect_sessions(&mut self) -> Result<()> {
        if self.options.delete.is_none() {
            return Ok(());
        }
        let sessions: HashSet<SessionId> =
            self.chunks.iter().filter(|c| !c.needed).map(|c| c.object.session).collect();
        for session in sessions {
            if !self.survey().collect(session).await? {
                self.held.insert(session);
            }
        }
        // Those that came back in time.
        self.held.extend(self.survey().sessions().await?);
        let (held, left) = (&self.held, &mut self.report.left);
        self.chunks.retain(|c| {
            let keep = !held.contains(&c.object.session);
            if !keep {
                left.add(c.size.into());
            }
            keep
        });
        Ok(())
    }

    /// Marks what one inode needs; whether it is other than at the last pass.
    async fn keep_inode(&mut self, inode: &Surveyed, before: &[(u64, u64)]) -> Result<bool> {
        let row = inode.row.as_ref().map_err(|e| unreadable("an inode", e))?;
        for (blob, _) in blobs_of(row) {
            if let Some(objects) = self.blobs.get_mut(&blob) {
                objects.needed = true;
            }
        }
        if row.content != Content::Extents && row.chunks == 0 {
            // It may have had some when it was read before.
            return Ok(before.binary_search_by_key(&inode.ino.0, |(ino, _)| *ino).is_ok());
        }
        let digest = digest(&inode.raw);
        let known = before.binary_search_by_key(&inode.ino.0, |(ino, _)| *ino);
        if known.is_ok_and(|at| before[at].1 == digest) {
            self.read.push((inode.ino.0, digest));
            return Ok(false);
        }
        let now = self.keep_chunks(inode, row).await?;
        // Of a file that changed while it was read nothing is known yet.
        self.read.push((inode.ino.0, if now { digest } else { !digest }));
        Ok(true)
    }

    async fn keep_chunks(&mut self, inode: &Surveyed, row: &InodeRow) -> Result<bool> {
        let survey = self.place.survey.clone();
        let mut same = true;
        each_chunks(&survey, inode.ino, row, row.chunks, async |_, chunks| {
            same &= chunks.raw.as_ref() == Some(&inode.raw);
            for (_, _, list) in chunks.lists {
                for extent in list.map_err(|e| unreadable("a chunk", &e))? {
                    self.need(extent.object);
                }
            }
            Ok(())
        })
        .await?;
        Ok(same)
    }

    fn need(&mut self, object: ObjectId) {
        if let Ok(at) = self.chunks.binary_search_by_key(&object, |c| c.object) {
            self.chunks[at].needed = true;
        }
    }
}
