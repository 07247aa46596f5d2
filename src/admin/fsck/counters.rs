//! The counters of inodes and bytes against the truth.

use super::{Finding, Fsck};
use crate::admin::inodes::each_inode;
use crate::error::Result;
use crate::meta::survey::{Survey, Surveyed};

/// How often it is counted, for two that agree.
const ROUNDS: usize = 4;

impl Fsck<'_> {
    /// They change with every file that is made, so what is counted is compared with what they say only if they say the same
    /// before and after, and twice in a row.
    pub(super) async fn look_at_counters(&mut self) -> Result<()> {
        let survey = self.place.survey.clone();
        let mut last = None;
        for _ in 0..ROUNDS {
            let before = survey.counters().await?;
            let truth = self.count_all(&survey).await?;
            if survey.counters().await? != before {
                last = None;
                continue;
            }
            let said = (Survey::number(before[0].as_ref()).ok(), Survey::number(before[1].as_ref()).ok());
            if said == (Some(truth.0), Some(truth.1)) {
                return Ok(());
            }
            let now = (before.clone(), truth);
            if last.as_ref() != Some(&now) {
                last = Some(now);
                continue;
            }
            let words = |n: Option<u64>| n.map_or_else(|| "nonsense".to_owned(), |n| n.to_string());
            let what = format!(
                "the volume holds {} inodes and {} bytes and says {} and {}",
                truth.0,
                truth.1,
                words(said.0),
                words(said.1)
            );
            let done = self.repairs() && survey.set_counters(&before, truth.0, truth.1).await?;
            let fix = self.fix("counts them", done);
            self.say(Finding { class: "counters", ino: None, path: None, what, fix });
            return Ok(());
        }
        self.report.uncounted = true;
        Ok(())
    }

    async fn count_all(&self, survey: &Survey) -> Result<(u64, u64)> {
        let (mut inodes, mut bytes) = (0, 0u64);
        each_inode(survey, "counting", self.tell, async |inode: Surveyed| {
            if let Ok(row) = &inode.row {
                let (i, b) = row.counts();
                inodes += i;
                bytes = bytes.saturating_add(b);
            }
            Ok(())
        })
        .await?;
        Ok((inodes, bytes))
    }
}
