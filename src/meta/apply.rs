//! What a transaction means, for the engines that run it in this process. An engine lends its rows; it undoes what was
//! written whenever the outcome is not [`Outcome::Applied`]. (Redis runs the same rules as a script.)

use bytes::Bytes;

use super::kv::{Expect, Key, Outcome, SESSIONS, Txn, Write, session_field};
use crate::error::{Error, Kind, Result};

/// The rows that a transaction reads and writes, as of its own earlier writes.
pub(super) trait Rows {
    fn value(&mut self, key: &Key) -> Result<Option<Bytes>>;
    fn is_empty(&mut self, map: &str) -> Result<bool>;
    /// Keeps the entry id of a field that exists, gives a new one to a new field of an ordered map.
    fn set(&mut self, key: &Key, value: Bytes) -> Result<()>;
    fn delete(&mut self, key: &Key) -> Result<()>;
    fn delete_map(&mut self, map: &str) -> Result<()>;
}

/// Runs `txn` on `rows`. After an error or an outcome other than `Applied` the rows may have been changed in part.
pub(super) fn apply(rows: &mut impl Rows, txn: &Txn) -> Result<Outcome> {
    if let Some(session) = txn.session
        && rows.value(&Key::new(SESSIONS, session_field(session)))?.is_none()
    {
        return Err(fenced(session));
    }
    for (index, expect) in txn.expect.iter().enumerate() {
        let holds = match expect {
            Expect::Absent(key) => rows.value(key)?.is_none(),
            Expect::Present(key) => rows.value(key)?.is_some(),
            Expect::Equals(key, value) => rows.value(key)?.as_ref() == Some(value),
            Expect::MapEmpty(map) => rows.is_empty(map)?,
        };
        if !holds {
            return Ok(Outcome::Conflict(index));
        }
    }
    for write in &txn.write {
        match write {
            Write::Set(key, value) => rows.set(key, value.clone())?,
            Write::Del(key) => rows.delete(key)?,
            Write::DelMap(map) => rows.delete_map(map)?,
            Write::Max(key, floor) => {
                let old = stored(rows, key)?;
                if old.is_none_or(|old| old < i128::from(*floor)) {
                    rows.set(key, Bytes::from(floor.to_string()))?;
                }
            }
            Write::Add(key, n) => {
                let sum = sum(rows, key, *n)?;
                rows.set(key, Bytes::from(sum.to_string()))?;
            }
            Write::AddBounded(key, n, bound) => {
                let sum = sum(rows, key, *n)?;
                if sum > *bound {
                    return Ok(Outcome::Full);
                }
                rows.set(key, Bytes::from(sum.to_string()))?;
            }
            Write::Release(counter, otherwise, value) => match stored(rows, counter)? {
                Some(1) => rows.delete(counter)?,
                Some(n) if n > 1 => rows.set(counter, Bytes::from((n - 1).to_string()))?,
                _ => rows.set(otherwise, value.clone())?,
            },
        }
    }
    Ok(Outcome::Applied)
}

/// The error of a commit under a session that is not registered (any more).
pub(super) fn fenced(session: crate::types::SessionId) -> Error {
    Error::new(Kind::Fenced, format!("session {session}"))
}

/// The error of a number that is none, or that leaves the range of 64 bits.
pub(super) fn not_a_number(key: &Key) -> Error {
    Error::new(Kind::Corrupt, format!("number {:?} of {:?} in the metadata", key.field, key.map))
}

/// Refuses `scan` of a map that has no order.
pub(super) fn check_ordered(map: &str) -> Result<()> {
    if map.ends_with('/') {
        return Ok(());
    }
    Err(Error::new(Kind::Internal, format!("scan of {map:?}, which is not an ordered map")))
}

/// The inode number at the start of a value, for `follow`.
pub(super) fn leading_number(key: &Key, value: &[u8]) -> Result<u64> {
    let head = value.first_chunk::<8>();
    head.map(|head| u64::from_be_bytes(*head)).ok_or_else(|| {
        Error::new(Kind::Corrupt, format!("value of {:?} in {:?} is too short to follow", key.field, key.map))
    })
}

/// `Max` reaches to 2^64, `Add` below 0: the wider type holds both.
fn stored(rows: &mut impl Rows, key: &Key) -> Result<Option<i128>> {
    let Some(value) = rows.value(key)? else { return Ok(None) };
    parse(&value).map(Some).ok_or_else(|| not_a_number(key))
}

/// What all engines take for a number: at most 20 digits, perhaps behind a minus.
fn parse(value: &[u8]) -> Option<i128> {
    let digits = value.strip_prefix(b"-").unwrap_or(value);
    if !(1..=20).contains(&digits.len()) || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok()
}

fn sum(rows: &mut impl Rows, key: &Key, n: i64) -> Result<i64> {
    let sum = stored(rows, key)?.unwrap_or(0) + i128::from(n);
    i64::try_from(sum).map_err(|_| not_a_number(key))
}
