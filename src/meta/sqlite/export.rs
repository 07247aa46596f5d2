//! Reading the whole file in one read transaction, on a connection and a thread of its own: the writer goes on, and only
//! the WAL grows until the end.

use std::path::PathBuf;
use std::thread;

use bytes::Bytes;
use rusqlite::{Connection, Row};

use super::file::{self, failure};
use crate::error::{Error, Kind, Result};
use crate::meta::export::{Export, Feed, Gather, Unread};

/// Plain maps in the order of the table; ordered ones by the index that `scan` has. Neither sorts.
const QUERIES: [&str; 2] = [
    "SELECT map, field, value FROM kv WHERE id IS NULL ORDER BY map, field",
    "SELECT map, field, value FROM kv INDEXED BY kv_order WHERE id IS NOT NULL ORDER BY map, id",
];

pub(super) fn start(path: PathBuf) -> Result<Export> {
    let (feed, export) = Export::new();
    let run = move || {
        let done = match file::connect(&path) {
            Ok(db) => read_all(&db, &feed),
            Err(e) => Ok(Err(e)),
        };
        if let Ok(result) = done {
            let name = || format!("metadata file {}", path.display());
            feed.end_blocking(result.map_err(|e| e.context(name())));
        }
    };
    thread::Builder::new()
        .name("hfmount-export".to_owned())
        .spawn(run)
        .map_err(|e| Error::with_source(Kind::Unavailable, "thread of the export", e))?;
    Ok(export)
}

fn read_all(db: &Connection, feed: &Feed) -> Result<Result<()>, Unread> {
    // The transaction begins with the first read and has nothing to undo.
    let tx = match db.unchecked_transaction() {
        Ok(tx) => tx,
        Err(e) => return Ok(Err(failure(&e))),
    };
    let mut gather = Gather::default();
    for query in QUERIES {
        if let Err(e) = read(&tx, query, &mut gather, feed)? {
            return Ok(Err(failure(&e)));
        }
    }
    if let Some(piece) = gather.take() {
        feed.piece_blocking(piece)?;
    }
    Ok(tx.finish().map_err(|e| failure(&e)))
}

fn read(
    db: &Connection,
    query: &str,
    gather: &mut Gather,
    feed: &Feed,
) -> Result<rusqlite::Result<()>, Unread> {
    let mut statement = match db.prepare(query) {
        Ok(statement) => statement,
        Err(e) => return Ok(Err(e)),
    };
    let mut rows = match statement.query([]) {
        Ok(rows) => rows,
        Err(e) => return Ok(Err(e)),
    };
    loop {
        let piece = match rows.next() {
            Ok(Some(row)) => match take(row, gather) {
                Ok(piece) => piece,
                Err(e) => return Ok(Err(e)),
            },
            Ok(None) => return Ok(Ok(())),
            Err(e) => return Ok(Err(e)),
        };
        if let Some(piece) = piece {
            feed.piece_blocking(piece)?;
        }
    }
}

fn take(row: &Row<'_>, gather: &mut Gather) -> rusqlite::Result<Option<crate::meta::kv::Piece>> {
    let map: String = row.get(0)?;
    let (field, value) = (row.get::<_, Vec<u8>>(1)?, row.get::<_, Vec<u8>>(2)?);
    Ok(gather.push(&map, Bytes::from(field), Bytes::from(value)))
}
