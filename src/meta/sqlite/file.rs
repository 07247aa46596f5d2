//! The database file: how it is opened, what lies in it, and what its errors mean.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::thread;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};

use crate::error::{Error, Kind, Result, ResultExt};

/// `hfmt`: tells other programs, and us, whose file it is.
const APPLICATION_ID: i32 = 0x6866_6d74;
/// The layout of the tables below.
const LAYOUT: i32 = 1;

/// Entry ids come from one counter, so an id names one entry of the whole volume. The index serves `scan` alone.
const TABLES: &str = "
CREATE TABLE kv(
    map TEXT NOT NULL, field BLOB NOT NULL, value BLOB NOT NULL, id INTEGER, PRIMARY KEY (map, field)
) WITHOUT ROWID;
CREATE UNIQUE INDEX kv_order ON kv(map, id) WHERE id IS NOT NULL;
CREATE TABLE counter(name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO counter VALUES ('entry', 0);
CREATE TABLE events(id INTEGER PRIMARY KEY, origin INTEGER NOT NULL, body BLOB NOT NULL);
CREATE TABLE alive(session INTEGER PRIMARY KEY, boot TEXT NOT NULL, until_ms INTEGER NOT NULL);
";

/// Makes the file, and the folders above it, if they are missing: readable by this user only, since whoever reads the
/// metadata is in the cluster.
pub(super) fn create(path: &Path) -> Result<()> {
    let name = || format!("metadata file {}", path.display());
    if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
        made.context(|| format!("folder {}", dir.display()))?;
    }
    if path.try_exists().context(name)? {
        return Ok(());
    }
    // Closing any descriptor of a file drops all locks that this process has on it, SQLite's too. So the file gets its
    // name when it is closed for good.
    let mut unnamed = path.as_os_str().to_owned();
    unnamed.push(format!(".{:08x}.new", rand::random::<u32>()));
    fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unnamed).map(drop).context(name)?;
    let named = match fs::hard_link(&unnamed, path) {
        Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(()),
        // No links here: who makes the same file at this moment has to be unlucky as well.
        Err(e) if matches!(e.raw_os_error(), Some(libc::EPERM | libc::EOPNOTSUPP)) => {
            fs::rename(&unnamed, path)
        }
        linked => linked,
    };
    let _ = fs::remove_file(&unnamed);
    named.context(name)
}

/// A connection with all settings, on a file that exists.
pub(super) fn connect(path: &Path) -> Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let name = || format!("metadata file {}", path.display());
    let open = || -> rusqlite::Result<Connection> {
        let mut db = Connection::open_with_flags(path, flags)?;
        // SQLite's own waits grow to 100 ms; a process that polls so rarely starves beside one that writes steadily.
        db.busy_handler(Some(|tries| {
            thread::sleep(Duration::from_millis(1));
            tries < BUSY_TRIES
        }))?;
        db.pragma_update(None, "synchronous", "FULL")?;
        db.pragma_update(None, "cache_size", -8192)?;
        db.pragma_update(None, "journal_size_limit", 64 << 20)?;
        db.set_prepared_statement_cache_capacity(32);
        Ok(db)
    };
    open().map_err(|e| failure(&e).context(name()))
}

/// About ten seconds.
const BUSY_TRIES: i32 = 9_000;

/// Brings the file to this program's layout, or refuses it.
pub(super) fn prepare(db: &mut Connection, path: &Path) -> Result<()> {
    let name = || format!("metadata file {}", path.display());
    let mut tries = 0;
    let found = loop {
        match make(db) {
            Ok(found) => break found,
            // Where waiting could be a deadlock SQLite does not ask the busy handler: two that switch a new file to WAL
            // at once. One of them has to begin again.
            Err(e) if failure(&e).kind() == Kind::TimedOut && tries < 200 => {
                tries += 1;
                thread::sleep(Duration::from_millis(5));
            }
            Err(e) => return Err(failure(&e).context(name())),
        }
    };
    let text = match found {
        Found::Nothing | Found::Layout(LAYOUT) => return Ok(()),
        Found::Layout(other) => format!("layout {other}; this version of hfmount knows {LAYOUT}"),
        Found::Foreign => "a database of another program".to_owned(),
        Found::NoWal => "this file system has no memory that processes share".to_owned(),
    };
    Err(Error::new(Kind::Config, text).context(name()))
}

/// Makes the tables if there is nothing; answers what was there before.
fn make(db: &mut Connection) -> rusqlite::Result<Found> {
    // Looked at before anything is written, and at one moment: others may be making the same file.
    let tx = db.unchecked_transaction()?;
    let found = layout(&tx)?;
    drop(tx);
    if found == Found::Foreign {
        return Ok(found);
    }
    let mode: String = db.pragma_update_and_check(None, "journal_mode", "wal", |row| row.get(0))?;
    if mode != "wal" {
        return Ok(Found::NoWal);
    }
    let tx = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let found = layout(&tx)?;
    if found == Found::Nothing {
        tx.execute_batch(TABLES)?;
        tx.pragma_update(None, "application_id", APPLICATION_ID)?;
        tx.pragma_update(None, "user_version", LAYOUT)?;
    }
    tx.commit()?;
    Ok(found)
}

#[derive(PartialEq, Eq)]
enum Found {
    Nothing,
    Layout(i32),
    Foreign,
    NoWal,
}

fn layout(db: &Connection) -> rusqlite::Result<Found> {
    let id: i32 = db.pragma_query_value(None, "application_id", |row| row.get(0))?;
    let version: i32 = db.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let tables: i64 = db.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    Ok(match (id, tables) {
        (APPLICATION_ID, _) => Found::Layout(version),
        (0, 0) => Found::Nothing,
        _ => Found::Foreign,
    })
}

/// What an error of SQLite means. Adds no name: the callers know it.
pub(super) fn failure(e: &rusqlite::Error) -> Error {
    let kind = match e.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Kind::TimedOut,
        Some(ErrorCode::DiskFull) => Kind::NoSpace,
        Some(ErrorCode::DatabaseCorrupt) => Kind::Corrupt,
        Some(ErrorCode::NotADatabase | ErrorCode::CannotOpen) => Kind::Config,
        Some(ErrorCode::PermissionDenied | ErrorCode::ReadOnly) => Kind::Access,
        Some(ErrorCode::SystemIoFailure) => Kind::Disk,
        _ => Kind::Internal,
    };
    // Statements have no values in them, so the text tells no secrets.
    Error::with_source(kind, "sqlite", e.to_string())
}
