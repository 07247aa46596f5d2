//! Each inode by itself: whether its row can be read and makes sense, and who is said to hold its lock.

use super::seen::{Seen, objection};
use super::{Finding, Fix, Fsck};
use crate::admin::inodes::{blobs_of, each_inode, each_of};
use crate::error::Result;
use crate::meta::survey::Surveyed;
use crate::types::{FileType, Ino, SessionId};

impl Fsck<'_> {
    pub(super) async fn look_at_inodes(&mut self) -> Result<()> {
        let (survey, tell) = (self.place.survey.clone(), self.tell);
        each_inode(&survey, "inodes", tell, async |inode: Surveyed| self.look_at_inode(&inode).await).await?;
        if self.seen.first().is_none_or(|seen| seen.ino != Ino::ROOT.0) {
            let what = "the root directory is not there".to_owned();
            self.say(Finding { class: "root", ino: Some(Ino::ROOT), path: None, what, fix: Fix::None });
        }
        Ok(())
    }

    pub(super) async fn look_at_some(&mut self, numbers: &[u64]) -> Result<()> {
        let (survey, tell) = (self.place.survey.clone(), self.tell);
        each_of(&survey, numbers, "inodes", tell, async |inode: Surveyed| self.look_at_inode(&inode).await)
            .await
    }

    async fn look_at_inode(&mut self, inode: &Surveyed) -> Result<()> {
        self.report.inodes += 1;
        let seen = Seen::new(inode);
        self.seen.push(seen);
        let (ino, dir) = (inode.ino, Ino(seen.dir));
        match &inode.row {
            Err(error) => self.found("inode", ino, dir, format!("its row: {error}"), Fix::None).await?,
            Ok(row) => {
                if let Some(why) = objection(ino, row) {
                    self.found("inode", ino, dir, why, Fix::None).await?;
                }
                for (blob, size) in blobs_of(row) {
                    let (first, known) = (self.blobs.get(&blob).copied(), (size, ino));
                    match first {
                        Some((other, _)) if other != size => {
                            let what = format!("it has {size} bytes, and blob {blob} has {other} elsewhere");
                            self.found("blob-size", ino, dir, what, Fix::None).await?;
                        }
                        Some(_) => {}
                        None => drop(self.blobs.insert(blob, known)),
                    }
                }
            }
        }
        if let Err(error) = &inode.subdirs {
            self.found("subdirs", ino, dir, format!("its number of subdirectories: {error}"), Fix::None)
                .await?;
        }
        match &inode.lockers {
            Err(error) => self.found("lock", ino, dir, format!("its lock: {error}"), Fix::None).await,
            Ok(lockers) => self.look_at_lockers(ino, dir, lockers).await,
        }
    }

    async fn look_at_lockers(&mut self, ino: Ino, dir: Ino, lockers: &[SessionId]) -> Result<()> {
        let strangers = |known: &std::collections::HashSet<SessionId>, lockers: &[SessionId]| {
            lockers.iter().filter(|s| !known.contains(s)).copied().collect::<Vec<_>>()
        };
        if strangers(&self.sessions, lockers).is_empty() {
            return Ok(());
        }
        // It may have been registered since, or the lock released: the list after the sessions, as it is now.
        self.sessions.extend(self.place.survey.known_sessions().await?);
        let Some(Surveyed { lockers: Ok(lockers), .. }) = self.place.survey.inode(ino).await? else {
            return Ok(());
        };
        self.sessions.extend(self.place.survey.known_sessions().await?);
        let gone = strangers(&self.sessions, &lockers);
        if gone.is_empty() {
            return Ok(());
        }
        let what = format!("its lock is held by session {}, which does not exist", gone[0]);
        let done = self.repairs() && self.place.survey.release_locks(ino, &gone).await?;
        self.found("lock", ino, dir, what, self.fix("releases it", done)).await
    }

    /// The inodes at and below `top`, sorted.
    pub(super) async fn below(&mut self, top: Ino) -> Result<Vec<u64>> {
        let mut numbers = vec![top.0];
        let mut dirs = vec![top];
        while let Some(dir) = dirs.pop() {
            let mut after = 0;
            loop {
                let page = self.place.survey.names(dir, after).await?;
                let Some(last) = page.last() else { break };
                after = last.id;
                for (ino, kind) in page.iter().filter_map(|named| named.target.as_ref().ok()) {
                    numbers.push(ino.0);
                    // A row that goes round must not lead round for ever.
                    if *kind == FileType::Dir && *ino != top {
                        dirs.push(*ino);
                    }
                }
            }
            self.tell("names", 0, numbers.len() as u64);
            if numbers.len() > (1 << 20) && numbers.len().is_power_of_two() {
                numbers.sort_unstable();
                numbers.dedup();
            }
        }
        numbers.sort_unstable();
        numbers.dedup();
        Ok(numbers)
    }
}
