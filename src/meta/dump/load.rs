//! Loading a dump into an engine that holds nothing.
//!
//! What makes a volume of the rows, its settings and its layout, is written last, in one transaction. Until then a mark
//! says that a load is on: nobody can mount or format, and a load that broke off is begun again over what it left.

use std::collections::{BTreeMap, BTreeSet};
use std::io::BufRead;

use bytes::Bytes;
use serde_json::Value;

use super::line::{Line, Reader, decode};
use super::{Header, Progress, is_momentary};
use crate::error::{Error, Kind, Result};
use crate::meta::kv::{Expect, Key, Kv, Outcome, Piece, Txn, Write, number, session_field};
use crate::meta::schema::{self, DEAD, SCHEMA, STAGING, SchemaRow, StagingRow};
use crate::types::{SessionId, Timestamp};

/// Writes and bytes of one transaction, roughly.
const WRITES: usize = 1000;
const BYTES: usize = 1 << 20;
/// Inode numbers that are left out: a volume that lived on after the dump has given some out, and programs and caches
/// remember which file they were.
const SKIP_INOS: i64 = 1 << 24;

/// The setting that says when metadata were loaded.
const LOADED: &str = "loaded";

/// A dump that was loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    pub header: Header,
    pub lines: u64,
    pub rows: u64,
    pub bytes: u64,
    /// A load that broke off was there, and was replaced.
    pub replaced: bool,
}

/// Reads a dump to its end and tells whether it is whole, without loading it.
///
/// # Errors
/// [`Kind::Config`] if it is no dump, or one for a newer hfmount; [`Kind::Corrupt`] if it was cut off or changed.
pub fn check(input: &mut dyn BufRead, mut progress: impl FnMut(Progress)) -> Result<Header> {
    let mut reader = Reader::open(input)?;
    while reader.next()?.is_some() {
        progress(Progress { rows: reader.rows, bytes: reader.bytes });
    }
    Ok(reader.header)
}

/// Loads a dump into `kv`, which must hold nothing but what an earlier load that broke off left. Memory is bounded.
///
/// The volume is there when this returns, and not before. Inode numbers that the volume may have given out since the dump
/// are not given out again. Its settings say that it was `loaded`, and when: of several copies of a volume the latest goes on.
///
/// # Errors
/// As [`check`]; [`Kind::Exists`] if `kv` holds something, [`Kind::Busy`] if another load begins meanwhile.
pub async fn load(
    kv: &dyn Kv,
    input: &mut dyn BufRead,
    mut progress: impl FnMut(Progress),
) -> Result<Loaded> {
    let mut reader = Reader::open(input)?;
    let (mut target, replaced) = Target::claim(kv, &reader.header).await?;
    if replaced {
        target.wipe().await?;
    }
    while let Some(line) = reader.next()? {
        if !is_momentary(&line.map) {
            target.line(line).await?;
        }
        progress(Progress { rows: reader.rows, bytes: reader.bytes });
    }
    target.finish().await?;
    Ok(Loaded {
        header: reader.header.clone(),
        lines: reader.lines,
        rows: reader.rows,
        bytes: reader.bytes,
        replaced,
    })
}

/// The settings of a copy that is loaded now: later than any that the dump knows of, whatever the clock says.
fn stamped(settings: &[u8]) -> Result<Bytes> {
    let broken = |e| Error::with_source(Kind::Corrupt, "the settings of the dumped volume", e);
    let mut settings: Value = serde_json::from_slice(settings).map_err(broken)?;
    if let Some(settings) = settings.as_object_mut() {
        let before = settings.get(LOADED).and_then(Value::as_i64).unwrap_or(0);
        let now = Timestamp::now().0.max(before.saturating_add(1));
        settings.insert(LOADED.to_owned(), now.into());
    }
    Ok(serde_json::to_vec_pretty(&settings).map_err(broken)?.into())
}

struct Target<'a> {
    kv: &'a dyn Kv,
    /// The mark of this load.
    mark: Bytes,
    write: Vec<Write>,
    bytes: usize,
    /// The few rows that are written last.
    kept: BTreeMap<(String, Bytes), Bytes>,
    /// Whose inodes nobody can reach.
    staged: BTreeMap<Bytes, SessionId>,
}

/// The maps whose rows are written last.
fn is_kept(map: &str) -> bool {
    matches!(map, "v" | "ids")
}

impl<'a> Target<'a> {
    /// Takes an engine that holds nothing; answers also whether a load that broke off is in the way.
    async fn claim(kv: &'a dyn Kv, header: &Header) -> Result<(Self, bool)> {
        let place = [schema::settings_key(), schema::schema_key(), schema::loading_key()];
        let found = kv.get(&place).await?;
        let taken = |what: &str| {
            let words = format!("the metadata holds {what}: a dump is loaded where nothing is");
            Err(Error::new(Kind::Exists, words))
        };
        let [settings, layout, loading] = [&found[0], &found[1], &found[2]];
        if settings.is_some() || layout.is_some() {
            return taken("a volume already");
        }
        if loading.is_none() && kv.export().await?.next().await?.is_some() {
            return taken("something already");
        }
        let mark = format!("{} {} {}", header.uuid, SessionId::random(), Timestamp::now().0);
        let mark = Bytes::from(mark);
        let expect = vec![
            Expect::Absent(schema::settings_key()),
            Expect::Absent(schema::schema_key()),
            match loading {
                Some(seen) => Expect::Equals(schema::loading_key(), seen.clone()),
                None => Expect::Absent(schema::loading_key()),
            },
        ];
        let write = vec![Write::Set(schema::loading_key(), mark.clone())];
        if kv.commit(Txn { expect, write, ..Txn::default() }).await? != Outcome::Applied {
            return Err(Error::new(Kind::Busy, "somebody else writes to the metadata"));
        }
        let target =
            Target { kv, mark, write: Vec::new(), bytes: 0, kept: BTreeMap::new(), staged: BTreeMap::new() };
        Ok((target, loading.is_some()))
    }

    /// Takes away what an earlier load wrote.
    async fn wipe(&mut self) -> Result<()> {
        let mut export = self.kv.export().await?;
        while let Some(piece) = export.next().await? {
            let Piece::Set { map, rows } = piece else { continue };
            for (field, _) in rows {
                let key = Key::new(map.clone(), field);
                if key != schema::loading_key() {
                    self.push(Write::Del(key), 0).await?;
                }
            }
        }
        self.send().await
    }

    async fn line(&mut self, line: Line) -> Result<()> {
        let Line { map, set, del, drop } = line;
        if map == STAGING {
            self.note_staged(&set, &del, drop)?;
        }
        if is_kept(&map) {
            if drop {
                self.kept.retain(|(kept, _), _| *kept != map);
            }
            for (field, value) in set {
                self.kept.insert((map.clone(), decode(field)?), decode(value)?);
            }
            for field in del {
                self.kept.remove(&(map.clone(), decode(field)?));
            }
            return Ok(());
        }
        if drop {
            // It was a small one when this dump wrote of it before.
            self.push(Write::DelMap(map.clone()), 0).await?;
        }
        for (field, value) in set {
            let (field, value) = (decode(field)?, decode(value)?);
            let size = field.len() + value.len();
            self.push(Write::Set(Key::new(map.clone(), field), value), size).await?;
        }
        for field in del {
            self.push(Write::Del(Key::new(map.clone(), decode(field)?)), 0).await?;
        }
        Ok(())
    }

    fn note_staged(&mut self, set: &[(String, String)], del: &[String], drop: bool) -> Result<()> {
        if drop {
            self.staged.clear();
        }
        for (field, value) in set {
            let value = decode(value.clone())?;
            let row: StagingRow = schema::decode(&value, || "a row of staged inodes".to_owned())?;
            self.staged.insert(decode(field.clone())?, row.session);
        }
        for field in del {
            self.staged.remove(&decode(field.clone())?);
        }
        Ok(())
    }

    async fn push(&mut self, write: Write, bytes: usize) -> Result<()> {
        self.write.push(write);
        self.bytes += bytes;
        if self.write.len() >= WRITES || self.bytes >= BYTES { self.send().await } else { Ok(()) }
    }

    async fn send(&mut self) -> Result<()> {
        let write = std::mem::take(&mut self.write);
        self.bytes = 0;
        if write.is_empty() { Ok(()) } else { self.commit(write, Vec::new()).await }
    }

    async fn commit(&self, write: Vec<Write>, mut expect: Vec<Expect>) -> Result<()> {
        expect.push(Expect::Equals(schema::loading_key(), self.mark.clone()));
        match self.kv.commit(Txn { expect, write, ..Txn::default() }).await? {
            Outcome::Applied => Ok(()),
            _ => Err(Error::new(Kind::Busy, "another load into the same metadata has begun")),
        }
    }

    /// Makes a volume of it.
    async fn finish(mut self) -> Result<()> {
        self.send().await?;
        let row = |key: &Key| self.kept.get(&(key.map.clone(), key.field.clone()));
        if row(&schema::settings_key()).is_none() {
            return Err(Error::new(Kind::Corrupt, "the dump has no settings of a volume"));
        }
        if let Some(layout) = row(&schema::schema_key()) {
            let layout: SchemaRow = schema::decode(layout, || "the layout of the volume".to_owned())?;
            if layout.oldest > SCHEMA {
                let words = format!("the dump has metadata layout {}: use a newer hfmount", layout.version);
                return Err(Error::new(Kind::Config, words));
            }
        }
        let ino = schema::last_ino_key();
        let last = number(row(&ino))?.max(1).saturating_add(SKIP_INOS);
        let settings = schema::settings_key();
        if let Some(text) = self.kept.get_mut(&(settings.map, settings.field)) {
            *text = stamped(text)?;
        }
        let mut write: Vec<Write> = std::mem::take(&mut self.kept)
            .into_iter()
            .map(|((map, field), value)| Write::Set(Key::new(map, field), value))
            .collect();
        write.push(Write::Set(ino, Bytes::from(last.to_string())));
        // What they had written and nobody could reach is swept up after them.
        let dead: BTreeSet<SessionId> = self.staged.values().copied().collect();
        let now = schema::time_value(Timestamp::now());
        write.extend(dead.iter().map(|s| Write::Set(Key::new(DEAD, session_field(*s)), now.clone())));
        write.push(Write::Del(schema::loading_key()));
        self.commit(write, vec![Expect::Absent(schema::settings_key())]).await
    }
}
