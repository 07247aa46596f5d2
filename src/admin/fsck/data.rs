//! The chunks of files: their lists against the file's row, and the objects that they name against the bucket.

use std::collections::HashSet;

use bytes::Bytes;
use futures::{StreamExt, stream};

use super::{Fix, Fsck};
use crate::admin::inodes::{each_chunks, each_of, objects};
use crate::blocking::blocking;
use crate::chunk::extents::{canonical, end};
use crate::error::{Kind, Result};
use crate::meta::survey::Surveyed;
use crate::source::bucket::Object;
use crate::types::{Extent, Ino, ObjectId, ObjectSum};

/// How often a file that changes is looked at again.
const ROUNDS: usize = 3;
/// Objects that are asked for at once.
const AT_ONCE: usize = 8;
/// How far beyond the highest chunk that may have a row one is looked for.
const BEYOND: u64 = 1000;

/// Something about a chunk that is wrong if the file's row stays as it is.
struct Suspect {
    index: u64,
    class: &'static str,
    what: String,
    repair: Repair,
}

enum Repair {
    None,
    /// Raise the number of chunks.
    Chunks(u64),
    /// Write the list in order.
    Order(Bytes, Vec<Extent>),
    /// Say how many bytes there are.
    Data(u64),
}

impl Fsck<'_> {
    pub(super) async fn look_at_data(&mut self) -> Result<()> {
        let files: Vec<u64> = self.seen.iter().filter(|s| s.chunks).map(|s| s.ino).collect();
        let (survey, tell) = (self.place.survey.clone(), self.tell);
        each_of(&survey, &files, "files", tell, async |inode: Surveyed| self.look_at_file(inode).await).await
    }

    async fn look_at_file(&mut self, mut inode: Surveyed) -> Result<()> {
        self.report.files += 1;
        for _ in 0..ROUNDS {
            let known = self.references.len();
            let (suspects, same) = self.look_at_chunks(&inode).await?;
            if !same {
                self.references.truncate(known);
            } else {
                for suspect in suspects {
                    self.say_of_chunk(&mut inode, suspect).await?;
                }
                return Ok(());
            }
            match self.place.survey.inode(inode.ino).await? {
                Some(now) => inode = now,
                None => return Ok(()),
            }
        }
        self.report.restless += 1;
        Ok(())
    }

    async fn say_of_chunk(&mut self, inode: &mut Surveyed, suspect: Suspect) -> Result<()> {
        let (survey, ino) = (self.place.survey.clone(), inode.ino);
        let fix = match suspect.repair {
            Repair::None => Fix::None,
            Repair::Chunks(chunks) => {
                let done = self.repairs() && survey.set_chunks(inode, chunks).await?;
                self.fix("counts them", done)
            }
            Repair::Data(bytes) => {
                let done = self.repairs() && survey.set_data(inode, bytes).await?;
                self.fix("counts them", done)
            }
            Repair::Order(raw, list) => {
                let done = self.repairs() && survey.set_list(inode, suspect.index, &raw, &list).await?;
                self.fix("puts them in order", done)
            }
        };
        // The next repair expects what this one wrote.
        if let (Fix::Done, Some(now)) = (&fix, survey.inode(ino).await?) {
            *inode = now;
        }
        self.found(suspect.class, ino, self.dir_of(ino), suspect.what, fix).await
    }

    /// What is wrong with the chunks of a file, and whether its row stayed the same meanwhile.
    async fn look_at_chunks(&mut self, inode: &Surveyed) -> Result<(Vec<Suspect>, bool)> {
        let Ok(row) = &inode.row else { return Ok((Vec::new(), true)) };
        let unit = u64::from(self.place.chunk_size);
        let all = row.chunks.max(row.size.div_ceil(unit).min(row.chunks.saturating_add(BEYOND)));
        let (survey, deep) = (self.place.survey.clone(), self.options.deep);
        let (mut suspects, mut same, mut top) = (Vec::new(), true, row.chunks);
        let mut bytes = Some(0);
        let mut read = HashSet::new();
        each_chunks(&survey, inode.ino, row, all, async |_, chunks| {
            same &= chunks.raw.as_ref() == Some(&inode.raw);
            let mut named = Vec::new();
            for (index, raw, list) in chunks.lists {
                let list = match list {
                    Ok(list) => list,
                    Err(error) => {
                        let what = format!("chunk {index}: {error}");
                        suspects.push(Suspect { index, class: "chunk", what, repair: Repair::None });
                        bytes = None;
                        continue;
                    }
                };
                top = top.max(index + 1);
                bytes = bytes.map(|bytes| bytes + list.iter().map(|e| u64::from(e.len)).sum::<u64>());
                let room = row.size.saturating_sub(index.saturating_mul(unit)).min(unit);
                suspects.extend(shape(index, raw, &list, self.place.chunk_size, room));
                if self.options.below.is_none() {
                    self.references.extend(objects(&list));
                }
                named.extend(list.into_iter().map(|extent| (index, extent)));
            }
            self.report.objects += named.len() as u64;
            self.look_at_objects(inode.ino, named, deep, &mut read, &mut suspects).await
        })
        .await?;
        if top > row.chunks {
            let what = format!("it has a row for chunk {} and says that there are {}", top - 1, row.chunks);
            suspects.push(Suspect { index: top - 1, class: "chunks", what, repair: Repair::Chunks(top) });
        } else if let (Some(bytes), Some(said), true) = (bytes, row.layout.data, suspects.is_empty())
            && bytes != said
        {
            let what = format!("its chunks give {bytes} bytes, and it says {said}");
            suspects.push(Suspect { index: 0, class: "data", what, repair: Repair::Data(bytes) });
        }
        Ok((suspects, same))
    }

    /// Whether the objects are there, long enough, and with `deep` what they are held to.
    async fn look_at_objects(
        &mut self,
        ino: Ino,
        named: Vec<(u64, Extent)>,
        deep: bool,
        read: &mut HashSet<ObjectId>,
        suspects: &mut Vec<Suspect>,
    ) -> Result<()> {
        let mut left = Vec::new();
        for (index, extent) in named {
            let listed = self.listing.as_ref().and_then(|l| l.len_of(&Object::FileChunk(extent.object)));
            if listed.is_none_or(|len| fault(&extent, len).is_some()) || (deep && read.insert(extent.object))
            {
                left.push((index, extent));
            }
        }
        let bucket = &self.place.bucket;
        let look = async |(index, extent): (u64, Extent)| {
            let object = Object::FileChunk(extent.object);
            let found: Result<(Option<String>, u64)> = async {
                if !deep {
                    let len = bucket.head(&object).await?;
                    return Ok((len.map_or(Some("is not there".to_owned()), |len| fault(&extent, len)), 0));
                }
                let bytes = match bucket.get(&object, None).await {
                    Ok(bytes) => bytes,
                    Err(e) if e.kind() == Kind::NotFound => return Ok((Some("is not there".to_owned()), 0)),
                    Err(e) => return Err(e),
                };
                let len = bytes.len() as u64;
                if let Some(why) = fault(&extent, len) {
                    return Ok((Some(why), len));
                }
                let Some(sum) = extent.sum else { return Ok((None, len)) };
                let now = blocking(move || Ok(ObjectSum::of(&bytes))).await?;
                Ok(((now != sum).then(|| "holds other bytes than were stored".to_owned()), len))
            }
            .await;
            (index, extent, found)
        };
        let mut looks = stream::iter(left).map(look).buffer_unordered(AT_ONCE).boxed();
        let mut wrong = Vec::new();
        while let Some((index, extent, found)) = looks.next().await {
            let (fault, len) = found?;
            self.report.read += len;
            wrong.extend(fault.map(|why| (index, extent, why)));
        }
        drop(looks);
        let unit = u64::from(self.place.chunk_size);
        for (index, extent, why) in wrong {
            let start = index * unit + u64::from(extent.start);
            let object = Object::FileChunk(extent.object);
            let what = format!("bytes {start} to {}: {object} {why}", start + u64::from(extent.len) - 1);
            tracing::debug!(%ino, %what, "suspect");
            suspects.push(Suspect { index, class: "object", what, repair: Repair::None });
        }
        Ok(())
    }
}

/// Why an object of `len` bytes is not what an extent says.
fn fault(extent: &Extent, len: u64) -> Option<String> {
    let need = u64::from(extent.object_offset) + u64::from(extent.len);
    match extent.sum {
        _ if len < need => Some(format!("has {len} bytes, and {need} are needed")),
        Some(sum) if len != u64::from(sum.len) => Some(format!("has {len} bytes instead of {}", sum.len)),
        _ => None,
    }
}

/// What is wrong with a list by itself. `room`: so many bytes of the chunk are the file's.
fn shape(index: u64, raw: Bytes, list: &[Extent], chunk_size: u32, room: u64) -> Option<Suspect> {
    let suspect = |class, what, repair| Some(Suspect { index, class, what, repair });
    let beyond = |e: &&Extent| {
        e.len == 0
            || e.start.checked_add(e.len).is_none_or(|end| end > chunk_size)
            || e.object_offset.checked_add(e.len).is_none()
    };
    if let Some(extent) = list.iter().find(beyond) {
        let what = format!(
            "chunk {index}: an extent of {} bytes at {} in {} bytes",
            extent.len, extent.start, chunk_size
        );
        return suspect("extent", what, Repair::None);
    }
    let ordered = canonical(list);
    if ordered != list {
        let what = format!("chunk {index}: its extents overlap or are not in order");
        return suspect("order", what, Repair::Order(raw, ordered));
    }
    let end = u64::from(end(list));
    if end > room {
        let what = format!("chunk {index}: it has {end} bytes, and {room} are the file's");
        return suspect("beyond", what, Repair::None);
    }
    None
}
