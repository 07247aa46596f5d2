//! The metadata of a volume as a file that does not depend on the engine: one JSON object a line.
//!
//! | line | what |
//! |---|---|
//! | first | [`Header`]: the version of this form, the volume, when |
//! | `{"map":…,"set":[[field,value],…]}` | these fields have these values |
//! | `{"map":…,"del":[field,…]}` | these are absent after all |
//! | `{"map":…,"drop":true}` | the map is empty after all |
//! | last | [`End`]: how many lines and rows, and the BLAKE3 of all lines before it |
//!
//! Maps, fields and rows are those of `schema.rs`. A field or value is a string: its text, or `b64:` and base64 for what
//! is no plain text. Mounts may write while a dump is made: later lines then correct earlier ones, and only all of them
//! together are the state of one instant. So a dump that was cut off is of no use, and refused.
//!
//! What is of the moment is left out: sessions, their locks, elections, the journals of single nodes. Inodes that nobody
//! could reach yet are in it, and are dropped by the first mount. What was deleted and is still open somewhere, or kept for
//! `hfmount restore`, is in it as well.

mod line;
mod load;

use std::io::Write;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::kv::{Kv, Piece};
use super::settings::read_settings;
use crate::error::{Error, Kind, Result, ResultExt};
use crate::types::Timestamp;

pub use self::load::{Loaded, check, load};

use self::line::{Line, encode};

/// The version of the form that this binary writes, and the latest that it reads.
pub const DUMP_VERSION: u32 = 1;

/// The first line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// See [`DUMP_VERSION`].
    pub hfmount_dump: u32,
    pub volume: String,
    pub uuid: String,
    /// When it was begun.
    pub time: Timestamp,
    /// What it was read from, for people.
    pub engine: String,
    /// Of hfmount.
    pub version: String,
}

/// The last line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// Before this one.
    pub lines: u64,
    /// That were set; those that changed meanwhile count again.
    pub rows: u64,
    /// 64 hex digits.
    pub blake3: String,
}

/// A dump that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dumped {
    pub header: Header,
    pub lines: u64,
    pub rows: u64,
    pub bytes: u64,
}

/// How far it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    pub rows: u64,
    pub bytes: u64,
}

/// Whether a map is of the moment: it says nothing of the volume to who loads it.
fn is_momentary(map: &str) -> bool {
    let lock = map.strip_prefix('l').is_some_and(|ino| ino.bytes().all(|b| b.is_ascii_digit()));
    lock || map.starts_with("held") || matches!(map, "sessions/" | "dead/" | "jobs" | "journals/")
}

/// Writes all that `kv` holds of its volume to `out`, as of one instant, whoever writes meanwhile. Memory is bounded.
///
/// Whoever reads it has the key by which the volume's mounts know each other; keys of the bucket only if sealed.
///
/// # Errors
/// [`Kind::Config`] if there is no volume, [`Kind::Busy`] if another dump is being made; those of the engine and of `out`.
pub async fn dump(kv: &dyn Kv, out: &mut dyn Write, mut progress: impl FnMut(Progress)) -> Result<Dumped> {
    let settings = read_settings::<Value>(kv).await?;
    let settings = settings.ok_or_else(|| Error::new(Kind::Config, "there is no volume"))?;
    let text = |name: &str| settings.value.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let header = Header {
        hfmount_dump: DUMP_VERSION,
        volume: text("name"),
        uuid: text("uuid"),
        time: Timestamp::now(),
        engine: kv.info().await?.name,
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let mut writer = Writer { out, hasher: blake3::Hasher::new(), lines: 0, bytes: 0 };
    writer.line(&header)?;
    let mut rows = 0;
    let mut export = kv.export().await?;
    while let Some(piece) = export.next().await? {
        let line = match &piece {
            Piece::Set { map, rows } => Line { set: rows.iter().map(pair).collect(), ..Line::of(map) },
            Piece::Del { map, fields } => {
                Line { del: fields.iter().map(|f| encode(f)).collect(), ..Line::of(map) }
            }
            Piece::DelMap { map } => Line { drop: true, ..Line::of(map) },
        };
        if is_momentary(&line.map) {
            continue;
        }
        rows += line.set.len() as u64;
        writer.line(&line)?;
        progress(Progress { rows, bytes: writer.bytes });
    }
    let end = End { lines: writer.lines, rows, blake3: writer.hasher.finalize().to_hex().to_string() };
    writer.line(&end)?;
    writer.out.flush().context(|| "writing the dump")?;
    Ok(Dumped { header, lines: writer.lines, rows, bytes: writer.bytes })
}

fn pair((field, value): &(bytes::Bytes, bytes::Bytes)) -> (String, String) {
    (encode(field), encode(value))
}

struct Writer<'a> {
    out: &'a mut dyn Write,
    hasher: blake3::Hasher,
    lines: u64,
    bytes: u64,
}

impl Writer<'_> {
    fn line(&mut self, line: &impl Serialize) -> Result<()> {
        let mut text = serde_json::to_vec(line)
            .map_err(|e| Error::with_source(Kind::Internal, "encoding a line of the dump", e))?;
        text.push(b'\n');
        self.hasher.update(&text);
        self.lines += 1;
        self.bytes += text.len() as u64;
        self.out.write_all(&text).context(|| "writing the dump")
    }
}

#[cfg(test)]
mod tests;
