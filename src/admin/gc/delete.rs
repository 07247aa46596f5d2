//! Deleting what was found to be garbage, or only counting it.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use futures::{StreamExt, stream};

use super::Gc;
use crate::error::Result;
use crate::source::bucket::Object;
use crate::types::{BlobId, ObjectId, SessionId, Timestamp};

const DELETES_AT_ONCE: usize = 16;

impl Gc<'_> {
    /// What mounts would clear up if there were one: what dead sessions held, publications that broke off, deleted files
    /// that nobody has open any more.
    pub(super) async fn drop_leftovers(&mut self) -> Result<()> {
        let survey = self.survey().clone();
        let staged = survey.staged().await?;
        // The sessions after the rows: who stages is registered before.
        let known: HashSet<SessionId> = survey.registered().await?.into_iter().collect();
        let gone: Vec<SessionId> = staged.iter().map(|(s, ..)| *s).filter(|s| !known.contains(s)).collect();
        self.report.staged = gone.len() as u64;
        let Some(meta) = self.options.delete.clone() else { return Ok(()) };
        for session in gone.into_iter().collect::<HashSet<_>>() {
            meta.clean_up(session).await?;
        }
        meta.reap_orphans(meta.now()).await?;
        Ok(())
    }

    pub(super) async fn delete_chunks(&mut self) -> Result<()> {
        self.chunks.retain(|c| !c.needed);
        for garbage in &self.chunks {
            self.report.chunks.add(garbage.size.into());
        }
        if self.options.delete.is_none() {
            return Ok(());
        }
        let garbage = std::mem::take(&mut self.chunks);
        for some in garbage.chunks(1000) {
            let objects = some.iter().map(|c| (Object::FileChunk(c.object), u64::from(c.size)));
            let gone = self.delete(objects).await;
            let ids: Vec<ObjectId> = gone
                .iter()
                .filter_map(|object| match object {
                    Object::FileChunk(id) => Some(*id),
                    _ => None,
                })
                .collect();
            self.survey().forget_trash(&ids).await?;
        }
        Ok(())
    }

    pub(super) async fn delete_blobs(&mut self, rows: HashMap<BlobId, (Bytes, u64)>) -> Result<()> {
        let blobs = std::mem::take(&mut self.blobs);
        for (id, objects) in blobs.iter().filter(|(_, o)| !o.needed) {
            if objects.young {
                self.report.left.objects += objects.sum.objects;
                self.report.left.bytes += objects.sum.bytes;
                continue;
            }
            let row = rows.get(id);
            // A row that could not be read says nothing.
            let unreadable = row.is_none() && {
                let now = self.survey().blobs(&[*id]).await?;
                now.first().is_none_or(|blob| blob.raw.is_some())
            };
            if unreadable {
                continue;
            }
            self.report.blobs += 1;
            self.report.blob_chunks.objects += objects.sum.objects;
            self.report.blob_chunks.bytes += objects.sum.bytes;
            if self.options.delete.is_none() {
                continue;
            }
            if let Some((raw, size)) = row {
                let chunks = size.div_ceil(u64::from(self.place.chunk_size));
                if !self.survey().forget_blob(*id, raw, chunks).await? {
                    continue;
                }
            }
            let (etag, mut objects) = (id.etag(), Vec::new());
            let under = format!("blobs/{}/{etag}", &etag[..2]);
            let bucket = self.place.bucket.clone();
            bucket
                .each(&under, |listed| {
                    objects.extend(Object::parse(&listed.name).map(|object| (object, listed.size)));
                })
                .await?;
            self.delete(objects.into_iter()).await;
        }
        Ok(())
    }

    pub(super) async fn delete_tests(&mut self) {
        for (_, size) in &self.tests {
            self.report.tests.add(*size);
        }
        if self.options.delete.is_some() {
            let tests = std::mem::take(&mut self.tests);
            self.delete(tests.into_iter()).await;
        }
    }

    pub(super) async fn delete_unfinished(&mut self) {
        for listed in std::mem::take(&mut self.unfinished) {
            self.report.unfinished.add(listed.size);
            self.tell("broken uploads", self.report.unfinished.objects, None);
            if self.options.delete.is_none() {
                continue;
            }
            match self.place.bucket.delete_unfinished(&listed).await {
                Ok(()) => self.report.deleted.add(listed.size),
                Err(error) => {
                    self.report.failed += 1;
                    tracing::warn!(%error, "not deleted");
                }
            }
        }
    }

    /// Deletes; answers what is gone. What fails is counted and stays for the next time.
    async fn delete(&mut self, objects: impl Iterator<Item = (Object, u64)>) -> Vec<Object> {
        let bucket = &self.place.bucket;
        let delete = async |(object, size): (Object, u64)| (bucket.delete(&object).await, object, size);
        let mut deleting = stream::iter(objects).map(delete).buffer_unordered(DELETES_AT_ONCE).boxed_local();
        let mut gone = Vec::new();
        while let Some((result, object, size)) = deleting.next().await {
            match result {
                Ok(()) => {
                    self.report.deleted.add(size);
                    gone.push(object);
                }
                Err(error) => {
                    self.report.failed += 1;
                    tracing::warn!(%error, "not deleted");
                }
            }
            self.tell("deleted", self.report.deleted.objects, None);
        }
        gone
    }

    pub(super) async fn drop_tombstones(&mut self) -> Result<()> {
        let now = Timestamp::now();
        for (name, until) in self.survey().tombstones().await? {
            if until >= now {
                continue;
            }
            self.report.tombstones += 1;
            if self.options.delete.is_some() {
                // A conflict means that somebody deleted it once more.
                let _ = self.survey().drop_tombstone(&name, until).await?;
            }
        }
        Ok(())
    }
}
