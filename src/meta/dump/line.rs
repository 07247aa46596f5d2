//! The lines of a dump.

use std::io::{BufRead, Read};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{DUMP_VERSION, End, Header};
use crate::error::{Error, Kind, Result, ResultExt};

/// No line is longer: a piece has some hundred KiB.
const LONGEST: u64 = 64 << 20;
/// Marks what is no plain text.
const BINARY: &str = "b64:";

/// What a line says of a map.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Line {
    pub map: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub set: Vec<(String, String)>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub del: Vec<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub drop: bool,
}

impl Line {
    pub fn of(map: &str) -> Self {
        Line { map: map.to_owned(), ..Line::default() }
    }
}

/// A byte string as text that people can read where it is text.
pub(super) fn encode(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.starts_with(BINARY) && !text.chars().any(char::is_control) => text.to_owned(),
        _ => format!("{BINARY}{}", STANDARD.encode(bytes)),
    }
}

pub(super) fn decode(text: String) -> Result<Bytes> {
    match text.strip_prefix(BINARY) {
        Some(code) => STANDARD
            .decode(code)
            .map(Bytes::from)
            .map_err(|e| Error::with_source(Kind::Corrupt, "base64 in the dump", e)),
        None => Ok(Bytes::from(text)),
    }
}

/// Reads a dump line by line, and knows at the end whether it was whole.
pub(super) struct Reader<'a> {
    input: &'a mut dyn BufRead,
    hasher: blake3::Hasher,
    pub header: Header,
    pub bytes: u64,
    pub lines: u64,
    pub rows: u64,
    text: Vec<u8>,
}

impl<'a> Reader<'a> {
    /// Reads the first line. [`Kind::Config`] if it is no dump, or one of a later form.
    pub fn open(input: &'a mut dyn BufRead) -> Result<Self> {
        let header = Header {
            hfmount_dump: 0,
            volume: String::new(),
            uuid: String::new(),
            time: Default::default(),
            engine: String::new(),
            version: String::new(),
        };
        let mut reader = Reader {
            input,
            hasher: blake3::Hasher::new(),
            header,
            bytes: 0,
            lines: 0,
            rows: 0,
            text: Vec::new(),
        };
        // Which form it is in comes first: the rest may look otherwise.
        #[derive(Deserialize)]
        struct Form {
            hfmount_dump: u32,
        }
        let no_dump = || Error::new(Kind::Config, "this is no dump of hfmount");
        if !reader.next_text()? {
            return Err(no_dump());
        }
        let form: Form = serde_json::from_slice(&reader.text).map_err(|_| no_dump())?;
        if form.hfmount_dump > DUMP_VERSION {
            let words = format!(
                "the dump is of form {}, and this hfmount knows {DUMP_VERSION}: use a newer hfmount",
                form.hfmount_dump
            );
            return Err(Error::new(Kind::Config, words));
        }
        reader.header = serde_json::from_slice(&reader.text).map_err(|_| no_dump())?;
        reader.count();
        Ok(reader)
    }

    /// The next line about a map; `None` after the last one, if nothing is missing and nothing was changed.
    pub fn next(&mut self) -> Result<Option<Line>> {
        if !self.next_text()? || !self.text.ends_with(b"\n") {
            return Err(cut_off());
        }
        if let Ok(line) = serde_json::from_slice::<Line>(&self.text) {
            self.rows += line.set.len() as u64;
            self.count();
            return Ok(Some(line));
        }
        let number = self.lines + 1;
        let end: End = serde_json::from_slice(&self.text)
            .map_err(|e| Error::with_source(Kind::Corrupt, format!("line {number} of the dump"), e))?;
        let found =
            End { lines: self.lines, rows: self.rows, blake3: self.hasher.finalize().to_hex().to_string() };
        if found != end {
            return Err(Error::new(Kind::Corrupt, "the dump is not as it was written: its checksum differs"));
        }
        self.count();
        if self.next_text()? {
            return Err(Error::new(Kind::Corrupt, "something follows the dump's last line"));
        }
        Ok(None)
    }

    fn next_text(&mut self) -> Result<bool> {
        self.text.clear();
        let read = (&mut *self.input).take(LONGEST).read_until(b'\n', &mut self.text);
        read.context(|| "reading the dump").map(|n| n > 0)
    }

    fn count(&mut self) {
        self.hasher.update(&self.text);
        self.bytes += self.text.len() as u64;
        self.lines += 1;
    }
}

fn cut_off() -> Error {
    Error::new(Kind::Corrupt, "the dump was cut off: its last line is missing")
}
