//! The one thread of a process that writes. What is waiting when it gets its turn goes into one SQLite transaction, each
//! under a savepoint of its own: one fsync for all of them.

use std::thread;
use std::time::Duration;

use bytes::Bytes;
use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension, params};
use tokio::sync::{mpsc, oneshot};

use super::clock::Clock;
use super::file::failure;
use crate::error::{Error, Kind, Result};
use crate::meta::apply::{Rows, apply};
use crate::meta::events;
use crate::meta::kv::{Event, Key, Outcome, Txn};
use crate::meta::watchers::Watchers;
use crate::types::SessionId;

/// How many jobs may wait, and how many share one fsync.
const QUEUE: usize = 256;
const BATCH: usize = 128;
/// How many rows of events the file keeps for the other processes, roughly.
const EVENTS_KEPT: i64 = 4096;
/// A longer list of changes is not worth its bytes: the others drop all they know.
const LONGEST_EVENT: usize = 256 << 10;

/// One request and where its answer goes.
pub(super) enum Job {
    Commit(Txn, oneshot::Sender<Result<Outcome>>),
    Beat(SessionId, Duration, oneshot::Sender<Result<Outcome>>),
}

/// Starts the thread; it ends, its queue done, when the sender is dropped.
pub(super) fn start(
    db: Connection,
    origin: i64,
    clock: Clock,
    events: Watchers,
) -> Result<mpsc::Sender<Job>> {
    let (jobs, queue) = mpsc::channel(QUEUE);
    let writer = Writer { db, origin, clock, events, batches: 0, version: None };
    thread::Builder::new()
        .name("hfmount-sqlite".to_owned())
        .spawn(move || writer.run(queue))
        .map_err(|e| Error::with_source(Kind::Unavailable, "thread of the metadata writer", e))?;
    Ok(jobs)
}

struct Writer {
    db: Connection,
    origin: i64,
    clock: Clock,
    events: Watchers,
    batches: u64,
    /// `data_version` after our last batch.
    version: Option<i64>,
}

/// A job that ran, before its transaction is durable.
struct Done {
    reply: oneshot::Sender<Result<Outcome>>,
    result: Result<Outcome>,
    publish: Vec<Event>,
}

impl Writer {
    fn run(mut self, mut queue: mpsc::Receiver<Job>) {
        let mut jobs = Vec::with_capacity(BATCH);
        while let Some(first) = queue.blocking_recv() {
            jobs.push(first);
            while jobs.len() < BATCH
                && let Ok(job) = queue.try_recv()
            {
                jobs.push(job);
            }
            self.batch(jobs.drain(..));
        }
    }

    fn batch(&mut self, jobs: impl Iterator<Item = Job>) {
        let contended = match self.begin() {
            Ok(contended) => contended,
            Err(e) => {
                for job in jobs {
                    let (Job::Commit(_, reply) | Job::Beat(_, _, reply)) = job;
                    let _ = reply.send(Err(e.share()));
                }
                return;
            }
        };
        let mut rows = Table { db: &self.db, next_id: None };
        let mut body = Vec::new();
        let done: Vec<Done> =
            jobs.map(|job| run_job(job, &mut rows, &self.clock, &self.events, &mut body)).collect();
        let next_id = rows.next_id;
        let committed = self.finish(next_id, body);
        if committed.is_err() {
            // The error that counts is the first one.
            let _ = self.db.execute_batch("ROLLBACK");
        }
        for Done { reply, result, publish } in done {
            let result = match (&committed, result) {
                (Err(e), Ok(Outcome::Applied)) => Err(e.share()),
                (_, result) => result,
            };
            if matches!(result, Ok(Outcome::Applied)) {
                self.events.tell_all(publish);
            }
            let _ = reply.send(result);
        }
        if contended {
            // Longer than the others sleep between two looks at the lock: everybody gets a turn.
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Takes the write lock; answers whether another process wrote since our last turn.
    fn begin(&mut self) -> Result<bool> {
        let begin = || -> rusqlite::Result<i64> {
            self.db.execute_batch("BEGIN IMMEDIATE")?;
            self.db.prepare_cached("PRAGMA data_version")?.query_row([], |row| row.get(0))
        };
        let version = begin().map_err(|e| {
            let _ = self.db.execute_batch("ROLLBACK");
            failure(&e).context("write lock")
        })?;
        let before = self.version.replace(version);
        Ok(before.is_some_and(|before| before != version))
    }

    fn finish(&mut self, next_id: Option<i64>, body: Vec<u8>) -> Result<()> {
        self.batches += 1;
        let write = || -> rusqlite::Result<()> {
            if let Some(next) = next_id {
                self.db
                    .prepare_cached("UPDATE counter SET value = ?1 WHERE name = 'entry'")?
                    .execute([next - 1])?;
            }
            if !body.is_empty() {
                // An empty message cannot be read: it says Lost.
                let body = if body.len() > LONGEST_EVENT { vec![0] } else { body };
                self.db
                    .prepare_cached("INSERT INTO events(origin, body) VALUES (?1, ?2)")?
                    .execute(params![self.origin, body])?;
                let last = self.db.last_insert_rowid();
                if last % 256 == 0 {
                    let trim = "DELETE FROM events WHERE id <= ?1";
                    self.db.prepare_cached(trim)?.execute([last - EVENTS_KEPT])?;
                }
            }
            Ok(())
        };
        write().map_err(|e| failure(&e))?;
        self.db.execute_batch("COMMIT").map_err(|e| {
            let error = failure(&e).context("commit");
            // A failed fsync may still have reached the disk: the outcome is not known.
            if error.kind() == Kind::Disk { error.with_kind(Kind::Unavailable) } else { error }
        })
    }
}

fn run_job(job: Job, rows: &mut Table<'_>, clock: &Clock, events: &Watchers, body: &mut Vec<u8>) -> Done {
    match job {
        Job::Commit(txn, reply) => {
            let result = in_savepoint(rows, |rows| apply(rows, &txn));
            let mut publish = Vec::new();
            if matches!(result, Ok(Outcome::Applied)) && !txn.publish.is_empty() {
                events::encode(txn.session, &txn.publish, body);
                if !events.is_empty() {
                    let by = txn.session;
                    publish = txn.publish.into_iter().map(|change| Event::Changed { change, by }).collect();
                }
            }
            Done { reply, result, publish }
        }
        Job::Beat(session, ttl, reply) => {
            let result = in_savepoint(rows, |rows| beat(rows.db, session, ttl, clock));
            Done { reply, result, publish: Vec::new() }
        }
    }
}

fn in_savepoint(
    rows: &mut Table<'_>,
    run: impl FnOnce(&mut Table<'_>) -> Result<Outcome>,
) -> Result<Outcome> {
    let db = rows.db;
    let step = |sql| db.prepare_cached(sql)?.execute([]);
    step("SAVEPOINT job").map_err(|e| failure(&e))?;
    let result = run(rows);
    if !matches!(result, Ok(Outcome::Applied)) {
        step("ROLLBACK TO job").map_err(|e| failure(&e))?;
    }
    step("RELEASE job").map_err(|e| failure(&e))?;
    result
}

fn beat(db: &Connection, session: SessionId, ttl: Duration, clock: &Clock) -> Result<Outcome> {
    let write = || -> rusqlite::Result<usize> {
        // One row of each dead session is no burden; days of them would be.
        db.prepare_cached("DELETE FROM alive WHERE boot != ?1 OR until_ms < ?2")?
            .execute(params![clock.boot(), clock.now_ms() - 86_400_000])?;
        db.prepare_cached("INSERT OR REPLACE INTO alive VALUES (?1, ?2, ?3)")?.execute(params![
            session.0.cast_signed(),
            clock.boot(),
            clock.after_ms(ttl)
        ])
    };
    write().map(|_| Outcome::Applied).map_err(|e| failure(&e))
}

/// The rows under the transaction that the writer holds open.
struct Table<'a> {
    db: &'a Connection,
    /// Loaded when the batch first needs one, stored at its end. Ids of what was rolled back stay unused.
    next_id: Option<i64>,
}

impl Table<'_> {
    fn take_id(&mut self) -> rusqlite::Result<i64> {
        let next = match self.next_id {
            Some(next) => next,
            None => {
                let last: i64 = self
                    .db
                    .prepare_cached("SELECT value FROM counter WHERE name = 'entry'")?
                    .query_row([], |row| row.get(0))?;
                last + 1
            }
        };
        self.next_id = Some(next + 1);
        Ok(next)
    }
}

impl Rows for Table<'_> {
    fn value(&mut self, key: &Key) -> Result<Option<Bytes>> {
        super::value(self.db, &key.map, &key.field).map_err(|e| failure(&e))
    }

    fn is_empty(&mut self, map: &str) -> Result<bool> {
        let row = || {
            self.db
                .prepare_cached("SELECT 1 FROM kv WHERE map = ?1 LIMIT 1")?
                .query_row([map], |_| Ok(()))
                .optional()
        };
        row().map(|row| row.is_none()).map_err(|e| failure(&e))
    }

    fn set(&mut self, key: &Key, value: Bytes) -> Result<()> {
        let mut set = || -> rusqlite::Result<()> {
            let changed = self
                .db
                .prepare_cached("UPDATE kv SET value = ?3 WHERE map = ?1 AND field = ?2")?
                .execute(params![key.map, &key.field[..], &value[..]])?;
            if changed == 0 {
                let id = if key.map.ends_with('/') { Value::Integer(self.take_id()?) } else { Value::Null };
                self.db
                    .prepare_cached("INSERT INTO kv(map, field, value, id) VALUES (?1, ?2, ?3, ?4)")?
                    .execute(params![key.map, &key.field[..], &value[..], id])?;
            }
            Ok(())
        };
        set().map_err(|e| failure(&e))
    }

    fn delete(&mut self, key: &Key) -> Result<()> {
        let delete = || {
            self.db
                .prepare_cached("DELETE FROM kv WHERE map = ?1 AND field = ?2")?
                .execute(params![key.map, &key.field[..]])
        };
        delete().map(drop).map_err(|e| failure(&e))
    }

    fn delete_map(&mut self, map: &str) -> Result<()> {
        let delete = || self.db.prepare_cached("DELETE FROM kv WHERE map = ?1")?.execute([map]);
        delete().map(drop).map_err(|e| failure(&e))
    }
}
