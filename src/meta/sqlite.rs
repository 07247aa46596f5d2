//! The metadata engine for one machine: an SQLite file in WAL mode, `synchronous=FULL`. Several processes may use it at
//! once.
//!
//! Each process has one writer thread, which puts the commits that wait into one transaction of SQLite and so behind one
//! fsync; a small pool of connections for reads; and, while somebody watches, a thread that polls `PRAGMA data_version`
//! (every 20 ms) for what other processes committed and published in the table `events`. A watcher that is more than
//! about 4,000 batches behind hears [`Lost`](super::kv::Event::Lost).
//!
//! The file must lie on a local disk: the WAL needs memory that all its users share.

mod clock;
mod export;
mod file;
mod poller;
mod readers;
mod writer;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, params};
use tokio::sync::{mpsc, oneshot};

use self::clock::Clock;
use self::file::failure;
use self::poller::Poller;
use self::readers::Readers;
use self::writer::Job;
use super::apply::{check_ordered, leading_number};
use super::kv::{
    EngineInfo, Entry, Export, Followed, InodePage, Key, Kv, Outcome, Txn, Watch, inode_map, map_inode,
};
use super::watchers::Watchers;
use crate::error::{Error, Kind, Result, ResultExt};
use crate::types::SessionId;

/// How long any operation may take, all waits included.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How many inodes are told at once.
const INODES: usize = 1000;

/// What to do when the file is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// Make it: `format`.
    Create,
    /// Answer [`Kind::NotFound`]: `mount` of a volume that was never formatted.
    Refuse,
}

/// An SQLite file as a metadata engine.
pub struct SqliteKv {
    path: PathBuf,
    jobs: mpsc::Sender<Job>,
    readers: Arc<Readers>,
    poller: Arc<Poller>,
    clock: Clock,
}

impl SqliteKv {
    /// Opens the file at `path`.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if it is missing and must not be made; [`Kind::Config`] if it is not a volume's, or lies on a
    /// file system that cannot hold a WAL.
    pub async fn open(path: impl Into<PathBuf>, missing: Missing) -> Result<Arc<Self>> {
        let path = path.into();
        let open = tokio::task::spawn_blocking(move || Self::open_blocking(path, missing));
        open.await.map_err(|e| Error::with_source(Kind::Internal, "opening the metadata file", e))?
    }

    fn open_blocking(path: PathBuf, missing: Missing) -> Result<Arc<Self>> {
        let name = || format!("metadata file {}", path.display());
        match missing {
            Missing::Create => file::create(&path)?,
            Missing::Refuse => {
                if !path.try_exists().context(name)? {
                    return Err(Error::new(Kind::NotFound, name()));
                }
            }
        }
        let mut db = file::connect(&path)?;
        file::prepare(&mut db, &path)?;
        let clock = Clock::new();
        let events = Watchers::default();
        let origin = SessionId::random().0.cast_signed();
        let jobs = writer::start(db, origin, clock.clone(), events.clone())?;
        Ok(Arc::new(SqliteKv {
            readers: Readers::new(path.clone(), TIMEOUT),
            poller: Arc::new(Poller::new(path.clone(), origin, events)),
            path,
            jobs,
            clock,
        }))
    }

    async fn submit(&self, job: impl FnOnce(oneshot::Sender<Result<Outcome>>) -> Job) -> Result<Outcome> {
        let (reply, answer) = oneshot::channel();
        let task = async {
            let gone = |_| Error::new(Kind::Unavailable, "the metadata writer has stopped");
            self.jobs.send(job(reply)).await.map_err(|_| gone(()))?;
            answer.await.map_err(|_| gone(()))?
        };
        match tokio::time::timeout(TIMEOUT, task).await {
            Ok(result) => result,
            Err(_) => Err(Error::new(Kind::TimedOut, "write to the metadata file")),
        }
    }

    fn name(&self) -> String {
        format!("metadata file {}", self.path.display())
    }
}

impl fmt::Debug for SqliteKv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteKv").field("path", &self.path).finish_non_exhaustive()
    }
}

fn value(db: &Connection, map: &str, field: &[u8]) -> rusqlite::Result<Option<Bytes>> {
    db.prepare_cached("SELECT value FROM kv WHERE map = ?1 AND field = ?2")?
        .query_row(params![map, field], |row| row.get::<_, Vec<u8>>(0))
        .optional()
        .map(|value| value.map(Bytes::from))
}

/// Runs `read` on one state of the file.
fn at_one_moment<T>(db: &Connection, read: impl FnOnce() -> Result<T>) -> Result<T> {
    // The transaction begins with the first read and has nothing to undo.
    let tx = db.unchecked_transaction().map_err(|e| failure(&e))?;
    let result = read();
    tx.finish().map_err(|e| failure(&e))?;
    result
}

#[async_trait]
impl Kv for SqliteKv {
    async fn get(&self, keys: &[Key]) -> Result<Vec<Option<Bytes>>> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let keys = keys.to_vec();
        let read = move |db: &Connection| {
            let read = || {
                let one = |key: &Key| value(db, &key.map, &key.field).map_err(|e| failure(&e));
                keys.iter().map(one).collect()
            };
            if keys.len() == 1 { read() } else { at_one_moment(db, read) }
        };
        self.readers.run(read).await.map_err(|e| e.context(self.name()))
    }

    async fn follow(&self, key: &Key, fields: &[Bytes]) -> Result<Option<Followed>> {
        let (key, fields) = (key.clone(), fields.to_vec());
        let read = move |db: &Connection| {
            at_one_moment(db, || {
                let get = |map: &str, field: &[u8]| value(db, map, field).map_err(|e| failure(&e));
                let Some(value) = get(&key.map, &key.field)? else { return Ok(None) };
                let map = inode_map(leading_number(&key, &value)?);
                let fields = fields.iter().map(|field| get(&map, field)).collect::<Result<_>>()?;
                Ok(Some(Followed { value, fields }))
            })
        };
        self.readers.run(read).await.map_err(|e| e.context(self.name()))
    }

    async fn scan(&self, map: &str, after: u64, limit: usize) -> Result<Vec<Entry>> {
        check_ordered(map)?;
        // Past every id there is nothing; SQLite's integers are signed.
        let Ok(after) = i64::try_from(after) else { return Ok(Vec::new()) };
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let map = map.to_owned();
        let read = move |db: &Connection| {
            let scan = || -> rusqlite::Result<Vec<Entry>> {
                let mut page = db.prepare_cached(
                    "SELECT id, field, value FROM kv WHERE map = ?1 AND id > ?2 ORDER BY id LIMIT ?3",
                )?;
                let rows = page.query_map(params![map, after, limit], |row| {
                    Ok(Entry {
                        id: row.get::<_, i64>(0)?.cast_unsigned(),
                        field: row.get::<_, Vec<u8>>(1)?.into(),
                        value: row.get::<_, Vec<u8>>(2)?.into(),
                    })
                })?;
                rows.collect()
            };
            scan().map_err(|e| failure(&e))
        };
        self.readers.run(read).await.map_err(|e| e.context(self.name()))
    }

    async fn commit(&self, txn: Txn) -> Result<Outcome> {
        let outcome = self.submit(|reply| Job::Commit(txn, reply)).await;
        outcome.map_err(|e| e.context(self.name()))
    }

    async fn watch(&self) -> Result<Watch> {
        let poller = self.poller.clone();
        let subscribed = tokio::task::spawn_blocking(move || poller.subscribe()).await;
        subscribed
            .map_err(|e| Error::with_source(Kind::Internal, "watching the metadata file", e))?
            .map_err(|e| e.context(self.name()))
    }

    async fn beat(&self, session: SessionId, ttl: Duration) -> Result<()> {
        let outcome = self.submit(|reply| Job::Beat(session, ttl, reply)).await;
        outcome.map(|_| ()).map_err(|e| e.context(self.name()))
    }

    async fn alive(&self, sessions: &[SessionId]) -> Result<Vec<bool>> {
        let (sessions, clock) = (sessions.to_vec(), self.clock.clone());
        let read = move |db: &Connection| {
            let one = |session: &SessionId| {
                db.prepare_cached("SELECT 1 FROM alive WHERE session = ?1 AND boot = ?2 AND until_ms > ?3")?
                    .exists(params![session.0.cast_signed(), clock.boot(), clock.now_ms()])
            };
            at_one_moment(db, || {
                sessions.iter().map(|session| one(session).map_err(|e| failure(&e))).collect()
            })
        };
        self.readers.run(read).await.map_err(|e| e.context(self.name()))
    }

    fn heard_until(&self) -> Option<tokio::time::Instant> {
        self.poller.heard_until()
    }

    async fn info(&self) -> Result<EngineInfo> {
        let look = |db: &Connection| {
            db.query_row("SELECT value FROM counter", [], |_| Ok(())).map_err(|e| failure(&e))
        };
        self.readers.run(look).await.map_err(|e| e.context(self.name()))?;
        let name = format!("sqlite {}", rusqlite::version());
        Ok(EngineInfo { name, warnings: network_warning(&self.path).into_iter().collect() })
    }

    async fn inodes(&self, from: Option<&Bytes>) -> Result<InodePage> {
        let mut last = from.map_or("i".to_owned(), |from| String::from_utf8_lossy(from).into_owned());
        let read = move |db: &Connection| {
            // From one map to the next in the index, however many rows each of them has.
            let mut next = db
                .prepare_cached("SELECT map FROM kv WHERE map > ?1 AND map < 'j' ORDER BY map LIMIT 1")
                .map_err(|e| failure(&e))?;
            let mut numbers = Vec::new();
            for _ in 0..INODES {
                let found = next.query_row(params![last], |row| row.get::<_, String>(0)).optional();
                let Some(map) = found.map_err(|e| failure(&e))? else {
                    return Ok(InodePage { numbers, next: None });
                };
                numbers.extend(map_inode(&map));
                last = map;
            }
            Ok(InodePage { numbers, next: Some(Bytes::from(last)) })
        };
        self.readers.run(read).await.map_err(|e| e.context(self.name()))
    }

    async fn export(&self) -> Result<Export> {
        export::start(self.path.clone()).map_err(|e| e.context(self.name()))
    }
}

/// A WAL on a network file system opens and then loses commits once a second machine joins.
fn network_warning(path: &Path) -> Option<String> {
    const NETWORK: [(u32, &str); 4] =
        [(0x6969, "NFS"), (0xff53_4d42, "CIFS"), (0xfe53_4d42, "SMB"), (0x00c3_6400, "Ceph")];
    let magic = rustix::fs::statfs(path).ok()?.f_type as u32;
    let (_, name) = NETWORK.iter().find(|(number, _)| *number == magic)?;
    Some(format!("{} is on {name}: only one machine may use it at a time.", path.display()))
}
