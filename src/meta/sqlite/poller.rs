//! Hears what other processes commit: SQLite has no push, but one integer in shared memory changes whenever another
//! connection commits, and looking at it costs no system call on the disk.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use rusqlite::{Connection, params};
use tokio::time::Instant;

use super::file::{self, failure};
use crate::error::{Error, Kind, Result};
use crate::meta::events::decode;
use crate::meta::kv::{Event, Watch};
use crate::meta::watchers::{Watchers, WeakWatchers};

/// How late a change by another process is heard, at most, while the machine has time.
const INTERVAL: Duration = Duration::from_millis(20);
/// How long to wait after the file could not be read.
const AFTER_ERROR: Duration = Duration::from_millis(500);
const PAGE: i64 = 512;

pub(super) struct Poller {
    path: PathBuf,
    origin: i64,
    events: Watchers,
    /// Whether a thread is polling. It ends when nobody watches, or when the engine is gone.
    running: Arc<Mutex<bool>>,
    /// When the last poll that succeeded began.
    heard: Arc<Mutex<Option<Instant>>>,
}

impl Poller {
    pub(super) fn new(path: PathBuf, origin: i64, events: Watchers) -> Self {
        Poller { path, origin, events, running: Arc::default(), heard: Arc::default() }
    }

    /// Everything that was committed until then has been told.
    pub(super) fn heard_until(&self) -> Option<Instant> {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A receiver that hears everything committed after this call. Blocks on the disk.
    pub(super) fn subscribe(&self) -> Result<Watch> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let receiver = self.events.subscribe();
        if !*running {
            let db = file::connect(&self.path)?;
            let last = newest(&db).map_err(|e| failure(&e).context("events"))?;
            let polling = Polling {
                db,
                last,
                version: None,
                origin: self.origin,
                events: self.events.downgrade(),
                running: self.running.clone(),
                heard: self.heard.clone(),
            };
            thread::Builder::new()
                .name("hfmount-events".to_owned())
                .spawn(move || polling.run())
                .map_err(|e| Error::with_source(Kind::Unavailable, "thread of the metadata events", e))?;
            *running = true;
        }
        Ok(receiver)
    }
}

struct Polling {
    db: Connection,
    /// The newest row of `events` that was heard.
    last: i64,
    version: Option<i64>,
    origin: i64,
    events: WeakWatchers,
    running: Arc<Mutex<bool>>,
    heard: Arc<Mutex<Option<Instant>>>,
}

impl Polling {
    fn run(mut self) {
        while let Some(events) = self.events.upgrade() {
            {
                // Under the lock, so that a new watcher either is counted here or finds nobody running.
                let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
                if events.is_empty() {
                    *running = false;
                    return;
                }
            }
            let began = Instant::now();
            let pause = match self.poll(&events) {
                Ok(()) => {
                    *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = Some(began);
                    INTERVAL
                }
                Err(e) => {
                    tracing::warn!(error = %failure(&e), "events of other processes cannot be read");
                    self.version = None;
                    events.tell(Event::Lost);
                    AFTER_ERROR
                }
            };
            // Not held while asleep, so that the engine's end is seen.
            drop(events);
            thread::sleep(pause);
        }
    }

    fn poll(&mut self, events: &Watchers) -> rusqlite::Result<()> {
        let version: i64 = self.db.prepare_cached("PRAGMA data_version")?.query_row([], |row| row.get(0))?;
        if self.version == Some(version) {
            return Ok(());
        }
        loop {
            let mut page = self
                .db
                .prepare_cached("SELECT id, origin, body FROM events WHERE id > ?1 ORDER BY id LIMIT ?2")?;
            let mut rows = page.query(params![self.last, PAGE])?;
            let mut seen = 0;
            while let Some(row) = rows.next()? {
                let (id, origin): (i64, i64) = (row.get(0)?, row.get(1)?);
                if id != self.last + 1 {
                    // Rows are trimmed from the old end: we slept too long.
                    events.tell(Event::Lost);
                }
                self.last = id;
                seen += 1;
                if origin != self.origin {
                    events.tell_all(decode(Bytes::from(row.get::<_, Vec<u8>>(2)?)));
                }
            }
            if seen < PAGE {
                break;
            }
        }
        if newest(&self.db)? < self.last {
            // The file went back in time (restored under us).
            self.last = newest(&self.db)?;
            events.tell(Event::Lost);
        }
        self.version = Some(version);
        Ok(())
    }
}

fn newest(db: &Connection) -> rusqlite::Result<i64> {
    db.prepare_cached("SELECT coalesce(max(id), 0) FROM events")?.query_row([], |row| row.get(0))
}
