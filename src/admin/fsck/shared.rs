//! Objects that several chunk rows name, against how many it is said to be. Fewer than there are would have an object deleted that
//! is needed; more only keep one longer, which `hfmount gc` finds.

use std::collections::HashMap;

use bytes::Bytes;

use super::Fsck;
use crate::admin::inodes::{each_chunks, each_of, objects};
use crate::error::Result;
use crate::meta::survey::{Survey, Surveyed};
use crate::source::bucket::Object;
use crate::types::{Ino, ObjectId};

/// Rows in one round trip.
const AT_ONCE: usize = 500;

/// Who names an object: inodes with their rows, and in how many chunks.
#[derive(Debug, Default)]
struct Namers {
    inodes: Vec<(Ino, Bytes)>,
    chunks: u64,
}

fn said(value: Option<&Bytes>) -> u64 {
    Survey::number(value).unwrap_or(0)
}

impl Fsck<'_> {
    pub(super) async fn look_at_shared(&mut self) -> Result<()> {
        let mut references = std::mem::take(&mut self.references);
        references.sort_unstable();
        let many: Vec<(ObjectId, u64)> = references
            .chunk_by(|a, b| a == b)
            .filter(|run| run.len() > 1)
            .map(|run| (run[0], run.len() as u64 - 1))
            .collect();
        drop(references);
        let mut before = HashMap::new();
        for some in many.chunks(AT_ONCE) {
            let objects: Vec<ObjectId> = some.iter().map(|(object, _)| *object).collect();
            let values = self.place.survey.shared(&objects).await?;
            let few = some.iter().zip(values).filter(|((_, more), value)| said(value.as_ref()) < *more);
            before.extend(few.map(|((object, _), value)| (*object, value)));
        }
        if before.is_empty() {
            return Ok(());
        }
        let mut named = self.namers(&before).await?;
        for (object, value) in before {
            let namers = named.remove(&object).unwrap_or_default();
            if self.are_as_before(object, &value, &namers).await? {
                self.judge_shared(object, value.as_ref(), &namers).await?;
            } else {
                self.report.restless += 1;
            }
        }
        Ok(())
    }

    /// Who names some objects.
    async fn namers(&self, some: &HashMap<ObjectId, Option<Bytes>>) -> Result<HashMap<ObjectId, Namers>> {
        let files: Vec<u64> = self.seen.iter().filter(|s| s.chunks).map(|s| s.ino).collect();
        let survey = self.place.survey.clone();
        let mut named: HashMap<ObjectId, Namers> = HashMap::new();
        each_of(&survey, &files, "files again", self.tell, async |inode: Surveyed| {
            let Ok(row) = &inode.row else { return Ok(()) };
            each_chunks(&survey, inode.ino, row, row.chunks, async |_, chunks| {
                // What changed meanwhile is found out afterwards, by its row.
                for list in chunks.lists.into_iter().filter_map(|(_, _, list)| list.ok()) {
                    for object in objects(&list).into_iter().filter(|object| some.contains_key(object)) {
                        let namers = named.entry(object).or_default();
                        namers.chunks += 1;
                        if namers.inodes.last().is_none_or(|(ino, _)| *ino != inode.ino) {
                            namers.inodes.push((inode.ino, inode.raw.clone()));
                        }
                    }
                }
                Ok(())
            })
            .await
        })
        .await?;
        Ok(named)
    }

    async fn are_as_before(&self, object: ObjectId, value: &Option<Bytes>, namers: &Namers) -> Result<bool> {
        let survey = &self.place.survey;
        for some in namers.inodes.chunks(AT_ONCE) {
            let numbers: Vec<u64> = some.iter().map(|(ino, _)| ino.0).collect();
            let now = survey.inodes(&numbers).await?;
            let same = |((_, raw), now): (&(Ino, Bytes), &Surveyed)| now.raw == *raw;
            if now.len() != some.len() || !some.iter().zip(&now).all(same) {
                return Ok(false);
            }
        }
        Ok(survey.shared(&[object]).await?.pop().flatten() == *value)
    }

    async fn judge_shared(&mut self, object: ObjectId, value: Option<&Bytes>, namers: &Namers) -> Result<()> {
        let more = namers.chunks.saturating_sub(1);
        let (Some((ino, _)), true) = (namers.inodes.first(), said(value) < more) else { return Ok(()) };
        let what = format!(
            "{} is named by {} chunks, and {} are counted",
            Object::FileChunk(object),
            namers.chunks,
            said(value) + 1
        );
        let done =
            self.repairs() && self.place.survey.set_shared(object, value, more, &namers.inodes).await?;
        let fix = self.fix("counts them", done);
        self.found("shared", *ino, self.dir_of(*ino), what, fix).await
    }
}
