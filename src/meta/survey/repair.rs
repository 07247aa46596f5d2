//! Single repairs, each one transaction that expects what was found: what changed meanwhile is left alone, which the
//! answer `false` says. Mounts hear of them as of any change.

use bytes::Bytes;

use super::{Survey, Surveyed};
use crate::error::{Error, Kind, Result};
use crate::meta::kv::{Change, Expect, Outcome, Txn, Write, number, session_field};
use crate::meta::schema::{self, Holder, InodeRow};
use crate::types::{BlobId, Extent, FileType, Ino, ObjectId, SessionId, Timestamp};

impl Survey {
    async fn apply(&self, txn: Txn) -> Result<bool> {
        Ok(self.kv.commit(txn).await? == Outcome::Applied)
    }

    /// Drops an entry that refers to an inode that is not there.
    pub async fn drop_dangling(&self, dir: Ino, name: &[u8], value: &Bytes) -> Result<bool> {
        let key = schema::entry_key(dir, name);
        let mut expect = vec![Expect::Equals(key.clone(), value.clone())];
        if let Ok((ino, _)) = schema::parse_entry(value) {
            expect.push(Expect::Absent(schema::attr_key(ino)));
        }
        let publish = vec![Change::Entry { parent: dir, name: Bytes::copy_from_slice(name) }];
        self.apply(Txn { expect, write: vec![Write::Del(key)], publish, session: None }).await
    }

    /// Says in an entry what kind its inode is.
    pub async fn set_entry_kind(&self, dir: Ino, name: &[u8], value: &Bytes, of: &Surveyed) -> Result<bool> {
        let Ok(row) = &of.row else { return Ok(false) };
        let key = schema::entry_key(dir, name);
        let expect = vec![
            Expect::Equals(key.clone(), value.clone()),
            Expect::Equals(schema::attr_key(of.ino), of.raw.clone()),
        ];
        let write = vec![Write::Set(key, schema::entry_value(of.ino, row.kind))];
        let publish = vec![Change::Entry { parent: dir, name: Bytes::copy_from_slice(name) }];
        self.apply(Txn { expect, write, publish, session: None }).await
    }

    async fn set_row(&self, of: &Surveyed, change: impl FnOnce(&mut InodeRow)) -> Result<bool> {
        let Ok(row) = &of.row else { return Ok(false) };
        let mut row = row.clone();
        change(&mut row);
        let key = schema::attr_key(of.ino);
        let txn = Txn {
            expect: vec![Expect::Equals(key.clone(), of.raw.clone())],
            write: vec![Write::Set(key, schema::encode(&row)?)],
            publish: vec![Change::Inode { ino: of.ino }],
            session: None,
        };
        self.apply(txn).await
    }

    /// Sets how many names an inode has.
    pub async fn set_nlink(&self, of: &Surveyed, names: u32) -> Result<bool> {
        self.set_row(of, |row| row.nlink = names).await
    }

    /// Sets in which directory a directory lies.
    pub async fn set_parent(&self, of: &Surveyed, parent: Ino) -> Result<bool> {
        self.set_row(of, |row| row.parent = parent).await
    }

    /// Sets how many chunks of a file may have rows.
    pub async fn set_chunks(&self, of: &Surveyed, chunks: u64) -> Result<bool> {
        self.set_row(of, |row| row.chunks = chunks).await
    }

    /// Sets how many subdirectories a directory has.
    pub async fn set_subdirs(&self, of: &Surveyed, subdirs: u32) -> Result<bool> {
        let key = schema::subdirs_key(of.ino);
        let was = match &of.subdirs_raw {
            Some(raw) => Expect::Equals(key.clone(), raw.clone()),
            None => Expect::Absent(key.clone()),
        };
        let txn = Txn {
            expect: vec![was, Expect::Equals(schema::attr_key(of.ino), of.raw.clone())],
            write: vec![Write::Set(key, Bytes::from(subdirs.to_string()))],
            publish: vec![Change::Inode { ino: of.ino }],
            session: None,
        };
        self.apply(txn).await
    }

    /// Gives an inode without a name one: `name` in `dir`.
    pub async fn reconnect(&self, of: &Surveyed, dir: Ino, name: &[u8]) -> Result<bool> {
        let Ok(row) = &of.row else { return Ok(false) };
        let mut row = row.clone();
        let is_dir = row.kind == FileType::Dir;
        row.nlink = 1;
        if is_dir {
            row.parent = dir;
        }
        let (inode, entry) = (schema::attr_key(of.ino), schema::entry_key(dir, name));
        let now = u64::try_from(Timestamp::now().0).unwrap_or(0);
        let mut write = vec![
            Write::Set(inode.clone(), schema::encode(&row)?),
            Write::Set(entry.clone(), schema::entry_value(of.ino, row.kind)),
            Write::Max(schema::changed_key(dir), now),
        ];
        if is_dir {
            write.push(Write::Add(schema::subdirs_key(dir), 1));
        }
        let txn = Txn {
            expect: vec![
                Expect::Equals(inode, of.raw.clone()),
                Expect::Present(schema::attr_key(dir)),
                Expect::Absent(entry),
                Expect::Absent(schema::orphan_key(of.ino)),
                Expect::Absent(schema::bin_key(of.ino)),
            ],
            write,
            publish: vec![
                Change::Entry { parent: dir, name: Bytes::copy_from_slice(name) },
                Change::Inode { ino: of.ino },
            ],
            session: None,
        };
        self.apply(txn).await
    }

    /// Takes an inode that has names, or is not there at all, off the list of those without names.
    pub async fn forget_orphan(&self, ino: Ino, inode: Option<&Bytes>) -> Result<bool> {
        let expect = match inode {
            Some(raw) => Expect::Equals(schema::attr_key(ino), raw.clone()),
            None => Expect::Absent(schema::attr_key(ino)),
        };
        let write = vec![Write::Del(schema::orphan_key(ino))];
        self.apply(Txn { expect: vec![expect], write, ..Txn::default() }).await
    }

    /// Takes something off the list of what can be restored. `inode`: its row, `None` if there is none.
    pub async fn forget_binned(&self, ino: Ino, row: &Bytes, inode: Option<&Bytes>) -> Result<bool> {
        let (key, attr) = (schema::bin_key(ino), schema::attr_key(ino));
        let expect = vec![
            Expect::Equals(key.clone(), row.clone()),
            match inode {
                Some(raw) => Expect::Equals(attr, raw.clone()),
                None => Expect::Absent(attr),
            },
        ];
        self.apply(Txn { expect, write: vec![Write::Del(key)], ..Txn::default() }).await
    }

    /// Writes a chunk's list as `list`, which stands for the same bytes.
    pub async fn set_list(&self, of: &Surveyed, index: u64, was: &Bytes, list: &[Extent]) -> Result<bool> {
        let Ok(row) = &of.row else { return Ok(false) };
        let old: Vec<Extent> = schema::decode(was, || format!("chunk {index} of inode {}", of.ino))?;
        let bytes = |list: &[Extent]| list.iter().map(|e| u64::from(e.len)).sum::<u64>();
        let mut row = row.clone();
        let counted = |data: u64| (data + bytes(list)).saturating_sub(bytes(&old));
        row.layout.data = row.layout.data.map(counted);
        let (key, inode) = (schema::chunk_key(of.ino, index), schema::attr_key(of.ino));
        let txn = Txn {
            expect: vec![
                Expect::Equals(inode.clone(), of.raw.clone()),
                Expect::Equals(key.clone(), was.clone()),
            ],
            write: vec![Write::Set(key, schema::encode(&list)?), Write::Set(inode, schema::encode(&row)?)],
            publish: vec![Change::Inode { ino: of.ino }],
            session: None,
        };
        self.apply(txn).await
    }

    /// Sets how many bytes the chunk rows of a file give.
    pub async fn set_data(&self, of: &Surveyed, data: u64) -> Result<bool> {
        self.set_row(of, |row| row.layout.data = Some(data)).await
    }

    /// Sets by how many chunk rows an object is named beyond the first, if it still is by those of `inodes`.
    pub async fn set_shared(
        &self,
        object: ObjectId,
        was: Option<&Bytes>,
        more: u64,
        inodes: &[(Ino, Bytes)],
    ) -> Result<bool> {
        let key = schema::shared_key(object);
        let mut expect = vec![match was {
            Some(was) => Expect::Equals(key.clone(), was.clone()),
            None => Expect::Absent(key.clone()),
        }];
        // A transaction is bounded; of an object that so many name nobody deletes the last name in this moment.
        let some = inodes.iter().take(super::PAGE);
        expect.extend(some.map(|(ino, raw)| Expect::Equals(schema::attr_key(*ino), raw.clone())));
        let write = vec![Write::Set(key, Bytes::from(more.to_string()))];
        self.apply(Txn { expect, write, ..Txn::default() }).await
    }

    /// Releases the lock of an inode as far as `gone` hold it.
    pub async fn release_locks(&self, ino: Ino, gone: &[SessionId]) -> Result<bool> {
        let key = schema::flock_key(ino);
        let Some(value) = self.kv.get(std::slice::from_ref(&key)).await?.pop().flatten() else {
            return Ok(true);
        };
        let mut holders: Vec<Holder> = schema::decode(&value, || format!("locks of inode {ino}"))?;
        holders.retain(|h| !gone.contains(&h.session));
        let mut write = vec![match holders.is_empty() {
            true => Write::Del(key.clone()),
            false => Write::Set(key.clone(), schema::encode(&holders)?),
        }];
        let held = |s: &SessionId| Write::Del(super::Key::new(schema::held_map(*s), schema::ino_field(ino)));
        write.extend(gone.iter().map(held));
        let txn = Txn {
            expect: vec![Expect::Equals(key, value)],
            write,
            publish: vec![Change::Unlocked { ino }],
            session: None,
        };
        self.apply(txn).await
    }

    /// The bucket does not have the chunk, or something else in its place.
    pub async fn unmark_stored(&self, blob: BlobId, index: u64) -> Result<bool> {
        let write = vec![Write::Del(super::super::blobs::stored_key(blob, index))];
        self.apply(Txn { write, ..Txn::default() }).await
    }

    /// The hashes of a blob's `chunks` first chunks turned out to be wrong: forgets them, and that they are stored.
    pub async fn forget_hashes(&self, blob: BlobId, chunks: u64) -> Result<bool> {
        use super::super::blobs::{hash_key, stored_key, verified_key};
        for first in (0..chunks).step_by(super::PAGE) {
            let some = first..chunks.min(first + super::PAGE as u64);
            let mut write: Vec<Write> =
                some.flat_map(|i| [Write::Del(stored_key(blob, i)), Write::Del(hash_key(blob, i))]).collect();
            write.push(Write::Del(verified_key(blob)));
            self.apply(Txn { write, ..Txn::default() }).await?;
        }
        Ok(true)
    }

    /// Forgets a blob if its row is still `raw`: nobody gave it a name since. Its chunk rows go first, in bounded
    /// transactions that expect the same; `chunks` of them at most.
    pub async fn forget_blob(&self, blob: BlobId, raw: &Bytes, chunks: u64) -> Result<bool> {
        use super::super::blobs::{hash_key, stored_key, verified_key};
        let base = super::Key::new(schema::blob_map(blob), schema::ATTR);
        for first in (0..chunks).step_by(super::PAGE) {
            let some = first..chunks.min(first + super::PAGE as u64);
            let mut write: Vec<Write> =
                some.flat_map(|i| [Write::Del(stored_key(blob, i)), Write::Del(hash_key(blob, i))]).collect();
            write.push(Write::Del(verified_key(blob)));
            let expect = vec![Expect::Equals(base.clone(), raw.clone())];
            if !self.apply(Txn { expect, write, ..Txn::default() }).await? {
                return Ok(false);
            }
        }
        let expect = vec![Expect::Equals(base, raw.clone())];
        let write = vec![Write::DelMap(schema::blob_map(blob))];
        self.apply(Txn { expect, write, ..Txn::default() }).await
    }

    /// Objects that were deleted from the bucket since nothing names them leave the trash, if they were in it.
    pub async fn forget_trash(&self, objects: &[ObjectId]) -> Result<()> {
        for some in objects.chunks(super::PAGE) {
            let rows = |&object: &ObjectId| {
                [Write::Del(schema::trash_key(object)), Write::Del(schema::shared_key(object))]
            };
            let write = some.iter().flat_map(rows).collect();
            self.apply(Txn { write, ..Txn::default() }).await?;
        }
        Ok(())
    }

    /// Drops a tombstone that has run out.
    pub async fn drop_tombstone(&self, name: &Bytes, until: Timestamp) -> Result<bool> {
        let key = schema::tombstone_key(name);
        let expect = vec![Expect::Equals(key.clone(), schema::time_value(until))];
        self.apply(Txn { expect, write: vec![Write::Del(key)], ..Txn::default() }).await
    }

    /// Sets the counters of inodes and bytes, if they are still what was read.
    pub async fn set_counters(&self, was: &[Option<Bytes>; 2], inodes: u64, bytes: u64) -> Result<bool> {
        let keys = [schema::inodes_key(), schema::bytes_key()];
        let expect = keys.iter().zip(was).map(|(key, was)| match was {
            Some(value) => Expect::Equals(key.clone(), value.clone()),
            None => Expect::Absent(key.clone()),
        });
        let write = keys.iter().zip([inodes, bytes]);
        let write = write.map(|(key, n)| Write::Set(key.clone(), Bytes::from(n.to_string())));
        self.apply(Txn { expect: expect.collect(), write: write.collect(), ..Txn::default() }).await
    }

    /// A value that should be a number.
    pub fn number(value: Option<&Bytes>) -> Result<u64> {
        let n = number(value)?;
        u64::try_from(n).map_err(|e| Error::with_source(Kind::Corrupt, "a counter below zero", e))
    }

    /// Notes that what a lost session uploaded is about to be deleted where no row names it: from then on no mount goes on
    /// after that session. `false`: it is registered.
    pub async fn collect(&self, session: SessionId) -> Result<bool> {
        let registered = super::Key::new(super::SESSIONS, session_field(session));
        let write = vec![Write::Set(schema::collected_key(session), schema::time_value(Timestamp::now()))];
        self.apply(Txn { expect: vec![Expect::Absent(registered)], write, ..Txn::default() }).await
    }
}
