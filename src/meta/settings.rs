//! What concerns the volume as a whole: its settings, the layout it has, its usage, its tombstones.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Meta;
use super::kv::{Expect, Kv, Outcome, Txn, Write, number};
use super::schema::{self, Content, InodeRow, Layout, Role, SCHEMA, SchemaRow};
use crate::error::{Error, Kind, Result};
use crate::types::{FileType, Ino, SessionId, Timestamp, Version};

/// How long a deleted repository stays away unless [`Meta::set_tombstone_ttl`] says otherwise.
pub(super) const TOMBSTONE_TTL: Duration = Duration::from_secs(3600);

/// What users put into the volume. What comes from the Hub is not in it until somebody writes to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Sizes of all files that have a name and data of their own, bytes, holes included.
    pub bytes: u64,
    /// Inodes, the root included.
    pub inodes: u64,
}

/// The settings of a volume and the bytes that they were read from.
#[derive(Clone, Debug)]
pub struct Settings<T> {
    pub value: T,
    raw: Bytes,
}

/// What the volume holds, in one round trip.
pub async fn read_usage(kv: &dyn Kv) -> Result<Usage> {
    let values = kv.get(&[schema::bytes_key(), schema::inodes_key()]).await?;
    // Below 0 only after a server lost part of its memory.
    let count = |value: &Option<Bytes>| number(value.as_ref()).map(|n| u64::try_from(n).unwrap_or(0));
    Ok(Usage { bytes: count(&values[0])?, inodes: count(&values[1])? })
}

/// Reads the settings; `None` if the metadata holds no volume. For `format` and `mount`, before there is a session.
pub async fn read_settings<T: DeserializeOwned>(kv: &dyn Kv) -> Result<Option<Settings<T>>> {
    let Some(raw) = kv.get(&[schema::settings_key()]).await?.pop().flatten() else { return Ok(None) };
    let value = serde_json::from_slice(&raw)
        .map_err(|e| Error::with_source(Kind::Corrupt, "the settings of the volume", e))?;
    Ok(Some(Settings { value, raw }))
}

/// Writes the settings as JSON: over those that were read before, or (`old` is `None`) only if there are none. Makes the root
/// directory and notes the layout if they are not there. Answers whether it was done; `false`: somebody else was
/// faster.
pub async fn write_settings<T: Serialize>(kv: &dyn Kv, old: Option<&Settings<T>>, new: &T) -> Result<bool> {
    let json = serde_json::to_vec_pretty(new)
        .map_err(|e| Error::with_source(Kind::Internal, "encoding the settings of the volume", e))?;
    prepare(kv).await?;
    let key = schema::settings_key();
    let expect = match old {
        Some(old) => Expect::Equals(key.clone(), old.raw.clone()),
        None => Expect::Absent(key.clone()),
    };
    let write = vec![Write::Set(key, Bytes::from(json))];
    let txn = Txn { expect: vec![expect], write, ..Txn::default() };
    Ok(kv.commit(txn).await? == Outcome::Applied)
}

/// Makes what every volume has, unless it is there: the root directory, the mark of the layout. [`Kind::Config`] if the
/// layout is one that this binary must not touch.
pub(super) async fn prepare(kv: &dyn Kv) -> Result<()> {
    let now = Timestamp::now();
    let root = InodeRow {
        kind: FileType::Dir,
        mode: 0o777,
        uid: 0,
        gid: 0,
        hub: true,
        restricted: false,
        nlink: 1,
        rdev: 0,
        size: 0,
        atime: now,
        mtime: now,
        ctime: now,
        version: Version { session: SessionId(0), seq: 0 },
        content: Content::None,
        role: Some(Role::Root),
        parent: Ino::ROOT,
        mode_set: false,
        chunks: 0,
        xattrs: false,
        uncounted: false,
        layout: Layout::default(),
        proven: None,
    };
    loop {
        if let Some(value) = kv.get(&[schema::schema_key()]).await?.pop().flatten() {
            check_schema(&value)?;
            if raise_schema(kv, &value).await? {
                return Ok(());
            }
            continue;
        }
        let row = SchemaRow { version: SCHEMA, oldest: SCHEMA };
        let txn = Txn {
            expect: vec![Expect::Absent(schema::schema_key()), Expect::Absent(schema::loading_key())],
            write: vec![
                Write::Set(schema::schema_key(), schema::encode(&row)?),
                Write::Set(schema::attr_key(Ino::ROOT), schema::encode(&root)?),
                Write::Add(schema::inodes_key(), 1),
            ],
            ..Txn::default()
        };
        match kv.commit(txn).await? {
            Outcome::Applied => return Ok(()),
            Outcome::Conflict(1) => {
                let words = "a dump is being loaded here, or was not loaded to its end: load it again";
                return Err(Error::new(Kind::Config, words));
            }
            _ => {}
        }
    }
}

/// A volume that an older binary made is of this layout from now on, and older ones are refused. `false`: somebody else
/// changed it.
async fn raise_schema(kv: &dyn Kv, value: &Bytes) -> Result<bool> {
    let row: SchemaRow = schema::decode(value, || "the layout of the volume".to_owned())?;
    if row.version >= SCHEMA {
        return Ok(true);
    }
    let row = schema::encode(&SchemaRow { version: SCHEMA, oldest: SCHEMA })?;
    let txn = Txn {
        expect: vec![Expect::Equals(schema::schema_key(), value.clone())],
        write: vec![Write::Set(schema::schema_key(), row)],
        ..Txn::default()
    };
    Ok(kv.commit(txn).await? == Outcome::Applied)
}

fn check_schema(value: &[u8]) -> Result<()> {
    let row: SchemaRow = schema::decode(value, || "the layout of the volume".to_owned())?;
    if row.oldest > SCHEMA {
        let words = format!(
            "the volume has metadata layout {} and this hfmount knows {SCHEMA}: use a newer hfmount",
            row.version
        );
        return Err(Error::new(Kind::Config, words));
    }
    Ok(())
}

impl Meta {
    /// What the volume holds, in one round trip.
    pub async fn usage(&self) -> Result<Usage> {
        let usage = read_usage(&**self.kv()).await?;
        self.note_usage(usage);
        Ok(usage)
    }

    /// How long a repository that is removed from the root, or renamed away, does not come back by itself. 0: not at all.
    pub fn set_tombstone_ttl(&self, ttl: Duration) {
        let nanos = u64::try_from(ttl.as_nanos()).unwrap_or(u64::MAX);
        self.0.tombstone_ttl.store(nanos, Ordering::Relaxed);
    }

    pub(super) fn tombstone_ttl_nanos(&self) -> u64 {
        self.0.tombstone_ttl.load(Ordering::Relaxed)
    }

    /// Until when the name in the root must not be filled from the Hub; `None` if it may.
    pub async fn tombstone(&self, name: &[u8]) -> Result<Option<Timestamp>> {
        let value = self.kv().get(&[schema::tombstone_key(name)]).await?.pop().flatten();
        let until = value.map(|v| schema::value_time(&v)).transpose()?;
        Ok(until.filter(|until| *until > self.now()))
    }

    /// Sets or (`None`) ends the tombstone of a name in the root. The verbs that remove and make do so themselves.
    pub async fn set_tombstone(&self, name: &[u8], until: Option<Timestamp>) -> Result<()> {
        let mut build = self.build();
        match until {
            Some(until) => build.set(schema::tombstone_key(name), schema::time_value(until)),
            None => build.del(schema::tombstone_key(name)),
        }
        // Without an expectation there is nothing to lose to.
        let _ = self.commit(build).await?;
        Ok(())
    }

    /// Reads the settings of the volume; see [`read_settings`].
    pub async fn settings<T: DeserializeOwned>(&self) -> Result<Option<Settings<T>>> {
        let kv = Arc::clone(self.kv());
        read_settings(&*kv).await
    }
}
