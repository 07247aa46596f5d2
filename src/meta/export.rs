//! Reading everything that an engine holds, as of one instant, while others go on writing: for dumps.

use std::fmt;

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::error::{Error, Kind, Result};

/// The most rows of a piece, and roughly the most bytes, one row apart.
pub(super) const PIECE_ROWS: usize = 500;
pub(super) const PIECE_BYTES: usize = 256 << 10;
/// How many pieces wait for who reads them.
const QUEUE: usize = 8;

/// A piece of an [`Export`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// These fields have these values, whatever was said before. Of an ordered map in the order of their entry ids.
    Set { map: String, rows: Vec<(Bytes, Bytes)> },
    /// These fields are absent.
    Del { map: String, fields: Vec<Bytes> },
    /// The map is empty, until more is said of it.
    DelMap { map: String },
}

/// A stream of pieces. Who applies all of them in their order to an empty engine, until `None`, has the rows of one
/// instant between the call and the end; before that they may be of different ones. Dropped early, it ends by itself.
pub struct Export {
    pieces: mpsc::Receiver<Result<Option<Piece>>>,
    ended: bool,
}

impl fmt::Debug for Export {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Export").field("ended", &self.ended).finish_non_exhaustive()
    }
}

impl Export {
    pub(super) fn new() -> (Feed, Self) {
        let (sender, pieces) = mpsc::channel(QUEUE);
        (Feed(sender), Export { pieces, ended: false })
    }

    /// The next piece; `None` at the end. After an error the rows so far are of no use.
    pub async fn next(&mut self) -> Result<Option<Piece>> {
        if self.ended {
            return Ok(None);
        }
        let piece = match self.pieces.recv().await {
            Some(piece) => piece,
            None => Err(Error::new(Kind::Internal, "the export of the metadata broke off")),
        };
        self.ended = !matches!(piece, Ok(Some(_)));
        piece
    }
}

/// Nobody reads any more.
#[derive(Debug)]
pub(super) struct Unread;

/// The engine's end of an export.
#[derive(Clone)]
pub(super) struct Feed(mpsc::Sender<Result<Option<Piece>>>);

impl Feed {
    pub async fn piece(&self, piece: Piece) -> Result<(), Unread> {
        self.0.send(Ok(Some(piece))).await.map_err(|_| Unread)
    }

    /// For a thread of its own.
    pub fn piece_blocking(&self, piece: Piece) -> Result<(), Unread> {
        self.0.blocking_send(Ok(Some(piece))).map_err(|_| Unread)
    }

    /// Ends it, well or not.
    pub async fn end(self, result: Result<()>) {
        // Nobody may be reading any more.
        let _ = self.0.send(result.map(|()| None)).await;
    }

    pub fn end_blocking(self, result: Result<()>) {
        let _ = self.0.blocking_send(result.map(|()| None));
    }
}

/// Gathers rows into pieces of bounded size.
#[derive(Default)]
pub(super) struct Gather {
    map: String,
    rows: Vec<(Bytes, Bytes)>,
    bytes: usize,
}

impl Gather {
    /// Takes a row; answers a piece that is full, or of the map before.
    pub fn push(&mut self, map: &str, field: Bytes, value: Bytes) -> Option<Piece> {
        let full = self.rows.len() >= PIECE_ROWS || self.bytes >= PIECE_BYTES;
        let done = if full || self.map != map { self.take() } else { None };
        if self.map != map {
            map.clone_into(&mut self.map);
        }
        self.bytes += field.len() + value.len();
        self.rows.push((field, value));
        done
    }

    /// What is left.
    pub fn take(&mut self) -> Option<Piece> {
        self.bytes = 0;
        let rows = std::mem::take(&mut self.rows);
        (!rows.is_empty()).then(|| Piece::Set { map: self.map.clone(), rows })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_of_one_map_and_bounded() {
        let mut gather = Gather::default();
        let mut pieces = Vec::new();
        for n in 0..1200_u32 {
            let map = if n < 1100 { "a" } else { "b" };
            pieces.extend(gather.push(map, n.to_be_bytes().to_vec().into(), Bytes::new()));
        }
        for n in 0..4_u32 {
            pieces.extend(gather.push("c", n.to_be_bytes().to_vec().into(), vec![0; 200 << 10].into()));
        }
        pieces.extend(gather.take());
        let sizes: Vec<(&str, usize)> = pieces
            .iter()
            .map(|p| match p {
                Piece::Set { map, rows } => (map.as_str(), rows.len()),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(sizes, [("a", 500), ("a", 500), ("a", 100), ("b", 100), ("c", 2), ("c", 2)]);
        assert_eq!(gather.take(), None);
    }

    #[tokio::test]
    async fn an_export_that_breaks_off_is_no_end() {
        let (feed, mut export) = Export::new();
        let piece = Piece::DelMap { map: "a".to_owned() };
        feed.piece(piece.clone()).await.expect("read");
        drop(feed);
        assert_eq!(export.next().await.expect("piece"), Some(piece));
        assert_eq!(export.next().await.expect_err("broken").kind(), Kind::Internal);
        let (feed, mut export) = Export::new();
        feed.end(Ok(())).await;
        assert_eq!(export.next().await.expect("end"), None);
        assert_eq!(export.next().await.expect("still"), None);
    }
}
