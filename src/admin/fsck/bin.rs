//! What users deleted and can restore: that it can be, that it has no name, and that it goes when its time is over.

use bytes::Bytes;

use super::{Finding, Fix, Fsck};
use crate::admin::paths::shown;
use crate::error::Result;
use crate::meta::Binned;
use crate::meta::survey::{BinnedRow, Surveyed};
use crate::types::{FileType, Ino, Timestamp};

/// How long after its time something may still be there while volumes are mounted: they take some thousands at once.
const OVERDUE: i64 = 7 * 86_400 * 1_000_000_000;
/// How many are let go of at once.
const AT_ONCE: usize = 1000;

/// Why something in the bin cannot be restored; `None`: it can.
fn fault(item: &Binned, inode: Option<&Surveyed>) -> Option<&'static str> {
    match (item.kind, inode) {
        (FileType::File, None) => Some("it can be restored, and is not there"),
        (FileType::File, Some(Surveyed { row: Ok(row), .. })) if row.kind != FileType::File => {
            Some("it can be restored as a file, and is none")
        }
        (FileType::File, Some(Surveyed { row: Ok(row), .. })) if row.nlink > 0 => {
            Some("it is on the list of what can be restored, and has a name")
        }
        (FileType::File, _) => None,
        (_, Some(_)) => Some("it is on the list of what can be restored, and is there"),
        (_, None) if !item.has_row() => Some("it can be restored, and nobody knows what it was"),
        (_, None) => None,
    }
}

impl Fsck<'_> {
    pub(super) async fn look_at_bin(&mut self) -> Result<()> {
        let survey = self.place.survey.clone();
        let (now, mounted) = (Timestamp::now().0, self.mounted_since().await?);
        let (mut after, mut overdue, mut late) = (0, 0, Vec::new());
        loop {
            let page = survey.bin_page(after).await?;
            let Some(last) = page.last() else { break };
            after = last.id;
            for some in page.chunks(300) {
                let numbers: Vec<u64> = some.iter().map(|row| row.ino.0).collect();
                let inodes = survey.inodes(&numbers).await?;
                let inode = |ino: Ino| inodes.iter().find(|inode| inode.ino == ino);
                for row in some {
                    match &row.item {
                        Ok(item) if fault(item, inode(row.ino)).is_none() => {
                            let over = item.until.0.saturating_add(OVERDUE);
                            if over < now && mounted.is_some_and(|since| since.0 < now - OVERDUE) {
                                overdue += 1;
                                if late.len() < AT_ONCE {
                                    late.push(item.clone());
                                }
                            }
                        }
                        _ => self.judge_binned(row).await?,
                    }
                }
                self.tell("trash", after, after);
            }
        }
        if overdue > 0 {
            let what =
                format!("{overdue} deleted things were to go more than a week ago, and are there still");
            let done = match &self.options.repair {
                Some(meta) => meta.purge(&late).await? == overdue,
                None => false,
            };
            let fix = self.fix("lets go of them", done);
            self.say(Finding { class: "bin", ino: None, path: None, what, fix });
        }
        Ok(())
    }

    /// Since when the mount that has been there longest could have done what is due.
    async fn mounted_since(&self) -> Result<Option<Timestamp>> {
        let mounts = self.place.survey.mounts().await?.into_iter();
        Ok(mounts.filter(|info| !info.read_only).map(|info| info.started).min())
    }

    /// Looks once more, with the row and the inode of one moment.
    async fn judge_binned(&mut self, row: &BinnedRow) -> Result<()> {
        let (ino, survey) = (row.ino, self.place.survey.clone());
        let (again, inode) = survey.bin_and_inode(ino).await?;
        // Restored, or let go of.
        let Some(again) = again.filter(|again| again.raw == row.raw) else { return Ok(()) };
        let item = match &again.item {
            Ok(item) => item,
            Err(error) => {
                let what = format!("its row in the list of what can be restored: {error}");
                self.say(Finding { class: "bin", ino: Some(ino), path: None, what, fix: Fix::None });
                return Ok(());
            }
        };
        let Some(why) = fault(item, inode.as_ref()) else { return Ok(()) };
        let what = format!("{why}: deleted as \"{}\" in inode {}", shown(&item.name), item.parent);
        let raw: Option<&Bytes> = inode.as_ref().map(|inode| &inode.raw);
        let done = self.repairs() && survey.forget_binned(ino, &again.raw, raw).await?;
        let fix = self.fix("takes it off the list", done);
        self.found("bin", ino, self.dir_of(ino), what, fix).await
    }
}
