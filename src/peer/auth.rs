//! Who may ask: every request carries a keyed BLAKE3 over all of it that matters, and so does every answer. The key is the
//! volume's; who does not have it learns nothing. A request is good once, at one node, for a minute.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::{Mutex, PoisonError};

use super::types::NodeId;
use crate::error::{Error, Kind, Result};

/// How far the asker's clock may be from ours, milliseconds.
pub const SKEW_MS: u64 = 60_000;
/// Nonces that are remembered: with more requests than that in a minute the window becomes shorter.
const NONCES: usize = 1 << 16;
/// The longest `Authorization` that can be right, bytes.
const LONGEST: usize = 160;

/// The keys of a volume's peers, made of the volume's key.
#[derive(Clone, PartialEq, Eq)]
pub struct PeerKey {
    requests: [u8; 32],
    answers: [u8; 32],
}

impl fmt::Debug for PeerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<key>")
    }
}

impl PeerKey {
    /// From 32 random bytes.
    #[must_use]
    pub fn new(key: &[u8; 32]) -> Self {
        PeerKey {
            requests: blake3::derive_key("hfmount 2026 peer requests v1", key),
            answers: blake3::derive_key("hfmount 2026 peer answers v1", key),
        }
    }

    /// From a volume's settings: 64 hex digits. [`Kind::Corrupt`], without repeating it, if it is something else.
    pub fn from_hex(text: &str) -> Result<Self> {
        let mut key = [0; 32];
        hex::decode_to_slice(text, &mut key)
            .map_err(|_| Error::new(Kind::Corrupt, "the peer key in the settings of the volume"))?;
        Ok(Self::new(&key))
    }
}

/// What a request's MAC covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signed<'a> {
    pub method: &'a str,
    /// Path and query, as sent.
    pub target: &'a str,
    /// BLAKE3 of the body, if there is one.
    pub body: Option<[u8; 32]>,
}

/// A request's `Authorization`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pass {
    /// Who asks.
    pub node: NodeId,
    /// Who is asked; 0: whoever it is, for a ping only.
    pub to: NodeId,
    /// When, milliseconds since 1970, by the cluster's clock.
    pub time_ms: u64,
    pub nonce: [u8; 16],
    mac: [u8; 32],
}

impl Pass {
    /// A pass for one request.
    #[must_use]
    pub fn issue(key: &PeerKey, node: NodeId, to: NodeId, time_ms: u64, signed: &Signed<'_>) -> Self {
        let mut pass = Pass { node, to, time_ms, nonce: rand::random(), mac: [0; 32] };
        pass.mac = *pass.sum(key, signed).as_bytes();
        pass
    }

    /// The header's value.
    #[must_use]
    pub fn header(&self) -> String {
        let (nonce, mac) = (hex::encode(self.nonce), hex::encode(self.mac));
        format!("HFM1 {} {} {} {nonce} {mac}", self.node, self.to, self.time_ms)
    }

    /// Reads a header's value; `None` unless it is spelled exactly as [`Pass::header`] spells it.
    #[must_use]
    pub fn parse(header: &str) -> Option<Self> {
        if header.len() > LONGEST {
            return None;
        }
        let mut parts = header.strip_prefix("HFM1 ")?.split(' ');
        let pass = Pass {
            node: parts.next()?.parse().ok()?,
            to: parts.next()?.parse().ok()?,
            time_ms: parts.next()?.parse().ok()?,
            nonce: bytes(parts.next()?)?,
            mac: bytes(parts.next()?)?,
        };
        (pass.header() == header).then_some(pass)
    }

    /// Whether somebody with the key made it for this request. Takes the same time whatever is wrong with the MAC.
    #[must_use]
    pub fn is_for(&self, key: &PeerKey, signed: &Signed<'_>) -> bool {
        self.sum(key, signed) == blake3::Hash::from_bytes(self.mac)
    }

    fn sum(&self, key: &PeerKey, signed: &Signed<'_>) -> blake3::Hash {
        let body = signed.body.map_or_else(|| "-".to_owned(), hex::encode);
        // Neither a method nor a target has a line end in it, so no two requests have one text.
        let text = format!(
            "hfm1 request\n{}\n{}\n{}\n{}\n{}\n{}\n{body}",
            signed.method,
            signed.target,
            self.node,
            self.to,
            self.time_ms,
            hex::encode(self.nonce)
        );
        blake3::keyed_hash(&key.requests, text.as_bytes())
    }
}

fn bytes<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    hex::decode_to_slice(text, &mut bytes).ok().map(|()| bytes)
}

/// What an answer's MAC covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Of the request.
    pub nonce: [u8; 16],
    pub status: u16,
    /// Who answers.
    pub node: NodeId,
    /// Bytes of the body.
    pub len: u64,
    /// Of the body, or of the whole chunk.
    pub hash: Option<[u8; 32]>,
    pub verified: Option<bool>,
}

impl Answer {
    /// The header's value: 64 hex digits.
    #[must_use]
    pub fn mac(&self, key: &PeerKey) -> String {
        hex::encode(self.sum(key).as_bytes())
    }

    /// Whether `mac` is this answer's, made by somebody with the key.
    #[must_use]
    pub fn has_mac(&self, key: &PeerKey, mac: &str) -> bool {
        bytes(mac).is_some_and(|mac| self.sum(key) == blake3::Hash::from_bytes(mac))
    }

    fn sum(&self, key: &PeerKey) -> blake3::Hash {
        let text = format!(
            "hfm1 answer\n{}\n{}\n{}\n{}\n{}\n{}",
            hex::encode(self.nonce),
            self.status,
            self.node,
            self.len,
            self.hash.map_or_else(|| "-".to_owned(), hex::encode),
            self.verified.map_or("-", |v| if v { "1" } else { "0" }),
        );
        blake3::keyed_hash(&key.answers, text.as_bytes())
    }
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Too old, or from the future.
    Time,
    /// It was here before, or may have been.
    Replay,
}

/// The requests of the last minute. Only those with a right MAC come here, so that strangers cannot fill it.
#[derive(Debug, Default)]
pub struct Window(Mutex<Seen>);

#[derive(Debug, Default)]
struct Seen {
    /// Nonces by the second of their time.
    seconds: BTreeMap<u64, HashSet<u128>>,
    count: usize,
    /// What was before this second is not known any more.
    floor: u64,
}

impl Window {
    /// Lets a request pass once. Memory is bounded: if there are more in a minute than can be remembered, the oldest are
    /// forgotten, and with them their time is refused.
    pub fn admit(&self, pass: &Pass, now_ms: u64) -> Result<(), Refused> {
        if pass.time_ms.abs_diff(now_ms) > SKEW_MS {
            return Err(Refused::Time);
        }
        let mut guard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = &mut *guard;
        let outdated = now_ms.saturating_sub(SKEW_MS) / 1000;
        while let Some(oldest) = seen.seconds.first_entry() {
            if *oldest.key() >= outdated && seen.count < NONCES {
                break;
            }
            // A clock that goes back must not open what was forgotten.
            let (second, nonces) = oldest.remove_entry();
            seen.count -= nonces.len();
            seen.floor = seen.floor.max(second + 1);
        }
        let second = pass.time_ms / 1000;
        if second < seen.floor
            || !seen.seconds.entry(second).or_default().insert(u128::from_le_bytes(pass.nonce))
        {
            return Err(Refused::Replay);
        }
        seen.count += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
