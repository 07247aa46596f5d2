//! The contract of a metadata engine: a transactional map of maps.
//!
//! A *map* has a name and holds *fields* with *values*, all byte strings. A map exists while it holds a field. Maps whose
//! name ends in `/` are *ordered*: each field has an entry id, given when the field is first set and kept while it
//! exists, which [`Kv::scan`] follows. File-system semantics are written once over this, in the parent module.

use std::fmt::Debug;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::Instant;

use crate::error::{Error, Kind, Result};
use crate::types::{Ino, SessionId, Timestamp};

pub use super::export::{Export, Piece};
pub use super::watchers::Watch;

/// The place of one value.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    pub map: String,
    pub field: Bytes,
}

impl Key {
    /// The value of `field` in `map`.
    pub fn new(map: impl Into<String>, field: impl Into<Bytes>) -> Self {
        Key { map: map.into(), field: field.into() }
    }
}

/// What must hold for a transaction to apply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expect {
    Absent(Key),
    Present(Key),
    Equals(Key, Bytes),
    /// The map holds no field.
    MapEmpty(String),
}

/// One change of a transaction. Changes apply in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    Set(Key, Bytes),
    /// Deleting what is absent is no error.
    Del(Key),
    /// Drops a whole map. Bounded work is the caller's duty.
    DelMap(String),
    /// Sets the number to the larger of it and the given one, exactly; absent counts as smaller than any. What is to be
    /// read with [`number`] must be below 2^63.
    Max(Key, u64),
    /// Adds to the number, absent counts as 0. Never wraps: a sum beyond 64 bits is [`Kind::Corrupt`] and nothing is
    /// applied, as for a value that is no number (a decimal of at most 20 digits).
    Add(Key, i64),
    /// As `Add`, but the transaction is [`Outcome::Full`] (nothing applied) when the sum would exceed the bound. To
    /// give back what was counted use `Add`: a bound that was lowered must not stand in the way.
    AddBounded(Key, i64, i64),
    /// Takes 1 from the number at the first key, which goes when that makes it 0. If there is no number above 0, sets the
    /// second key to the value instead.
    Release(Key, Key, Bytes),
}

/// A change that other mounts should hear of. A hint: correctness never rests on its arrival.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The name in the directory now means something else or nothing.
    Entry { parent: Ino, name: Bytes },
    /// Attributes or data of the inode changed.
    Inode { ino: Ino },
    /// A lock on the inode was released: waiters should try again.
    Unlocked { ino: Ino },
}

/// A transaction: all writes, iff every expectation holds at that moment. A few thousand expectations and writes are fine;
/// one that takes a server a second holds up everybody.
#[derive(Clone, Debug, Default)]
pub struct Txn {
    /// The session that commits. The engine adds the expectation that this session is still registered (the field
    /// [`session_field`] of [`SESSIONS`]) and answers [`Kind::Fenced`] when it is not. `None`: no fence (format, tools).
    pub session: Option<SessionId>,
    pub expect: Vec<Expect>,
    pub write: Vec<Write>,
    /// Published with the commit, in the same atomic step, tagged with the session.
    pub publish: Vec<Change>,
}

/// How a transaction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Outcome {
    Applied,
    /// An expectation did not hold (its index in [`Txn::expect`]); nothing was written.
    Conflict(usize),
    /// An [`Write::AddBounded`] met its bound; nothing was written.
    Full,
}

/// An entry of an ordered map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Above 0, below 2^53, unique in the map, not reused while the map exists.
    pub id: u64,
    pub field: Bytes,
    pub value: Bytes,
}

/// What [`Kv::follow`] read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Followed {
    pub value: Bytes,
    pub fields: Vec<Option<Bytes>>,
}

/// Some of the inodes that exist; see [`Kv::inodes`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InodePage {
    /// In no order; some may be told twice.
    pub numbers: Vec<u64>,
    /// Where to go on; `None`: these were the last.
    pub next: Option<Bytes>,
}

/// What the push channel says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Another transaction published this. `by` is the session that committed it (`None`: a tool).
    Changed { change: Change, by: Option<SessionId> },
    /// Events may have been missed, or the server's memory may have gone back: drop everything that is cached.
    Lost,
}

/// What an engine says of itself, for `status` and for warnings at mount.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineInfo {
    /// `sqlite 3.50.4`, `redis 7.0.15`.
    pub name: String,
    /// Settings that endanger what users store (no AOF, an evicting `maxmemory-policy` …), as sentences.
    pub warnings: Vec<String>,
}

/// The ordered map of registered sessions: field [`session_field`], value a session row.
pub const SESSIONS: &str = "sessions/";

/// The field of a session in [`SESSIONS`].
#[must_use]
pub fn session_field(id: SessionId) -> Bytes {
    Bytes::from(id.to_string())
}

/// The map of an inode's own rows. The engines know this one name, for [`Kv::follow`].
#[must_use]
pub fn inode_map(ino: u64) -> String {
    format!("i{ino}")
}

/// The number of the inode whose map this is, the reverse of [`inode_map`]; `None`: it is none.
pub(super) fn map_inode(map: &str) -> Option<u64> {
    let digits = map.strip_prefix('i').filter(|n| n.bytes().all(|b| b.is_ascii_digit()))?;
    digits.parse().ok()
}

/// Reads a value that [`Write::Max`] or [`Write::Add`] made: a decimal number.
pub fn number(value: Option<&Bytes>) -> Result<i64> {
    let Some(value) = value else { return Ok(0) };
    std::str::from_utf8(value)
        .ok()
        .and_then(|s| s.parse().ok())
        .ok_or_else(|| Error::new(Kind::Corrupt, format!("number {value:?} in the metadata")))
}

/// A metadata engine. Every method is bounded in time by the engine's own options and answers
/// [`Kind::TimedOut`] or [`Kind::Unavailable`] when the server does not; never "absent" instead.
#[async_trait]
pub trait Kv: Debug + Send + Sync + 'static {
    /// The values at `keys`, in their order, all of one moment, in one round trip.
    async fn get(&self, keys: &[Key]) -> Result<Vec<Option<Bytes>>>;

    /// Reads the value at `key`; its first 8 bytes are a big-endian number `n`; reads `fields` of the map
    /// [`inode_map`]`(n)`. One round trip, one moment. `None` if `key` is absent.
    async fn follow(&self, key: &Key, fields: &[Bytes]) -> Result<Option<Followed>>;

    /// Up to `limit` entries of an ordered map with ids above `after`, in the order of ids; fewer only at the end. Entries
    /// that come or go meanwhile may or may not be seen; the others are seen exactly once over successive calls.
    async fn scan(&self, map: &str, after: u64, limit: usize) -> Result<Vec<Entry>>;

    /// Applies a transaction wholly or not at all, exactly once even if replies are lost: after an error the
    /// outcome is unknown only if the error is [`Kind::TimedOut`] or [`Kind::Unavailable`]. A future that is dropped
    /// leaves it unknown too.
    ///
    /// Other errors: [`Kind::Fenced`] (see [`Txn::session`]), [`Kind::Corrupt`] (a number that is none),
    /// [`Kind::NoSpace`]; nothing was written.
    async fn commit(&self, txn: Txn) -> Result<Outcome>;

    /// Subscribes to the changes that commits publish from now on, this process's own included. Those of one process
    /// are heard in the order of its commits; a reader who has heard of a commit sees it.
    async fn watch(&self) -> Result<Watch>;

    /// Says that the session lives, for `ttl` from now by the engine's clock.
    async fn beat(&self, session: SessionId, ttl: Duration) -> Result<()>;

    /// Of `sessions`, which have a heartbeat that has not run out, in the same order.
    async fn alive(&self, sessions: &[SessionId]) -> Result<Vec<bool>>;

    /// What the engine says of itself; also the cheapest way to find out that it answers.
    async fn info(&self) -> Result<EngineInfo>;

    /// The time by the engine's clock: one clock for all mounts, whatever theirs say. For one machine it is that machine's.
    async fn now(&self) -> Result<Timestamp> {
        Ok(Timestamp::now())
    }

    /// Up to when the watchers of this engine are known to have been told all that was published, [`Event::Lost`] included.
    /// `None`: not known, for one because nobody watches. Never waits. An engine to which knowing costs anything finds out
    /// only while it is asked this again and again.
    fn heard_until(&self) -> Option<Instant> {
        None
    }

    /// Names the server's memory: another name means that it may have forgotten the latest commits. `None`: it never does.
    fn incarnation(&self) -> Option<String> {
        None
    }

    /// The engine itself if it is the one for clusters, for what nodes do with each other beside the metadata.
    fn redis(&self) -> Option<&super::redis::RedisKv> {
        None
    }

    /// A page of the numbers of all inodes that have a map ([`inode_map`]), from the start or from where the page before said.
    /// Those that are there from the first call to the last are told; those that come or go meanwhile perhaps. A page is
    /// little work, and may be empty; all of them together cost in proportion to what there is, whatever the numbers are.
    ///
    /// [`Kind::Unavailable`] also if the server was replaced since the page before: begin again.
    async fn inodes(&self, _from: Option<&Bytes>) -> Result<InodePage> {
        Err(Error::new(Kind::NotSupported, "enumeration in this metadata engine"))
    }

    /// Reads every row of every map, as of one instant, in bounded pieces, while others go on committing; what lives
    /// outside of maps (heartbeats, events) is not in it. Holds up nobody for long, whatever the size of the volume.
    ///
    /// One at a time may run on a volume in Redis: else [`Kind::Busy`]. Who takes minutes to read a piece, or meets a
    /// server that restarts, gets an error and begins again.
    async fn export(&self) -> Result<Export> {
        Err(Error::new(Kind::NotSupported, "export of this metadata engine"))
    }
}
