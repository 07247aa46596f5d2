//! What goes over the wire, apart from its authentication: paths, names of headers, the JSON of answers. Both ends use
//! this file, and what comes from the other end is parsed strictly and within bounds.

use std::fmt::Debug;
use std::net::SocketAddr;
use std::time::Duration;

use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};

use super::types::{Holder, NodeId};
use crate::error::{Error, Kind};
use crate::types::BlobId;

/// BLAKE3 of the body, 64 hex digits: of the *whole* chunk even if the body begins within it.
pub const HASH: &str = "hfm-hash";
/// `1`: the blob was verified against its name. `0`: the hash is as first seen.
pub const VERIFIED: &str = "hfm-verified";
/// The answer's MAC.
pub const MAC: &str = "hfm-mac";
/// The node that answers.
pub const NODE: &str = "hfm-node";
/// BLAKE3 of a request's body, 64 hex digits; absent if there is none.
pub const BODY: &str = "hfm-body";

/// The longest body of an answer that is not a chunk.
pub const MAX_JSON: usize = 8 << 10;
/// The longest body of a request.
pub const MAX_ASK: usize = 4 << 10;
/// The most holders that an answer names.
pub const MAX_HOLDERS: usize = 8;
/// The longest zone, bytes.
const MAX_ZONE: usize = 64;
/// The longest message of an error that is passed on, characters.
const MAX_MESSAGE: usize = 300;
/// The largest chunk of any volume.
pub const MAX_CHUNK: u32 = 64 << 20;

/// What the wire has to know about the nodes. The registry answers it from memory.
pub trait Directory: Debug + Send + Sync + 'static {
    /// The time on which all nodes agree (the metadata server's), milliseconds since 1970.
    fn now_ms(&self) -> u64;
    /// A live node that serves others. `None` for one that is unknown, dead, or only takes.
    fn holder(&self, node: NodeId) -> Option<Holder>;
    /// Whether the cluster has put the node out.
    fn is_blocked(&self, node: NodeId) -> bool;
    /// A node has not what it was said to hold. Only a hint; must not block.
    fn not_held(&self, node: NodeId, blob: BlobId, idx: u64) {
        let _ = (node, blob, idx);
    }
    /// The machine of a node says that nobody listens at its place. Only a hint; must not block.
    fn refused(&self, node: NodeId) {
        let _ = node;
    }
    /// Who has the chunk by now. Nobody, if that cannot be found out.
    fn holders(&self, blob: BlobId, idx: u64) -> BoxFuture<'_, Vec<Holder>> {
        let _ = (blob, idx);
        Box::pin(std::future::ready(Vec::new()))
    }
}

/// A request, as its path says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    Ping,
    Chunk(ChunkAsk),
    /// How long the asker waits for the answer.
    Fill(Duration),
}

/// A request for a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkAsk {
    pub blob: BlobId,
    pub idx: u64,
    /// Where in the chunk to begin, bytes.
    pub from: u32,
    /// Waits so long for a transfer under way, or for a slot. `None`: answers at once.
    pub wait: Option<Duration>,
    /// Does not wait for the end of the transfer: what has come of the chunk is passed on. Only with `wait`.
    pub live: bool,
    /// Of the whole blob, bytes: if nobody fetches the chunk there, that node begins to. Only with `live`.
    pub size: Option<u64>,
}

impl Route {
    /// Path and query. Each request has one spelling.
    #[must_use]
    pub fn target(&self) -> String {
        match self {
            Route::Ping => "/v1/ping".to_owned(),
            Route::Fill(wait) => format!("/v1/fill?wait={}", wait.as_millis()),
            Route::Chunk(ask) => {
                let mut target = format!("/v1/blobs/{}/{}", ask.blob.etag(), ask.idx);
                let mut sep = '?';
                if ask.from > 0 {
                    target += &format!("{sep}from={}", ask.from);
                    sep = '&';
                }
                if let Some(wait) = ask.wait {
                    target += &format!("{sep}wait={}", wait.as_millis());
                    if ask.live {
                        target += "&live=1";
                        if let Some(size) = ask.size {
                            target += &format!("&size={size}");
                        }
                    }
                }
                target
            }
        }
    }

    /// The request that a method and a target stand for; `None` if they stand for none.
    #[must_use]
    pub fn parse(method: &str, target: &str) -> Option<Self> {
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (target, None),
        };
        let (mut from, mut wait, mut live, mut size) = (None, None, None, None);
        for pair in query.into_iter().flat_map(|q| q.split('&')) {
            let (name, value) = pair.split_once('=')?;
            let slot = match name {
                "from" => &mut from,
                "wait" => &mut wait,
                "live" => &mut live,
                "size" => &mut size,
                _ => return None,
            };
            if slot.replace(decimal(value)?).is_some() {
                return None;
            }
        }
        let wait = wait.map(Duration::from_millis);
        let live = match live {
            None => false,
            Some(1) if wait.is_some() => true,
            Some(_) => return None,
        };
        if size.is_some() && !live {
            return None;
        }
        match (method, path.strip_prefix("/v1/")?) {
            ("GET", "ping") if query.is_none() => Some(Route::Ping),
            ("POST", "fill") if from.is_none() && !live => Some(Route::Fill(wait.unwrap_or_default())),
            ("GET", rest) => {
                let (etag, idx) = rest.strip_prefix("blobs/")?.split_once('/')?;
                let from = u32::try_from(from.unwrap_or(0)).ok()?;
                Some(Route::Chunk(ChunkAsk {
                    blob: BlobId::from_etag(etag)?,
                    idx: decimal(idx)?,
                    from,
                    wait,
                    live,
                    size,
                }))
            }
            _ => None,
        }
    }
}

/// A number in its one spelling: digits, no sign, no leading zero.
fn decimal(text: &str) -> Option<u64> {
    let plain = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    plain.then(|| text.parse().ok()).flatten()
}

/// 64 lower-case hex digits.
#[must_use]
pub fn parse_hash(text: &str) -> Option<[u8; 32]> {
    match BlobId::from_etag(text) {
        Some(BlobId::Sha256(hash)) => Some(hash),
        _ => None,
    }
}

/// The body of `POST /v1/fill`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FillAsk {
    /// As it prints: `sha256:…`, `git:…`.
    pub blob: String,
    /// Of the whole blob, bytes.
    pub size: u64,
    pub chunk: u64,
}

/// The body of a 503: who else to ask.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Elsewhere {
    /// These are receiving the chunk now, or have just received it: ask them with `wait`.
    pub holders: Vec<Listed>,
}

/// A holder, as it is written down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    pub node: NodeId,
    pub addr: SocketAddr,
    #[serde(default)]
    pub zone: String,
    #[serde(default)]
    pub slots: u32,
}

impl Elsewhere {
    #[must_use]
    pub fn of(holders: &[Holder]) -> Self {
        let list = |h: &Holder| Listed {
            node: h.node,
            addr: h.addr,
            // Cut at a character: it came from a user's command line somewhere.
            zone: h
                .zone
                .char_indices()
                .take_while(|(at, c)| at + c.len_utf8() <= MAX_ZONE)
                .map(|(_, c)| c)
                .collect(),
            slots: h.slots_free,
        };
        Elsewhere { holders: holders.iter().take(MAX_HOLDERS).map(list).collect() }
    }

    /// The holders that a body names; empty if it makes no sense, which is the other's fault and nobody's news.
    #[must_use]
    pub fn parse(body: &[u8]) -> Vec<Holder> {
        if body.len() > MAX_JSON {
            return Vec::new();
        }
        let parsed: Elsewhere = serde_json::from_slice(body).unwrap_or_default();
        let sensible =
            |l: &Listed| l.zone.len() <= MAX_ZONE && l.addr.port() != 0 && !l.addr.ip().is_unspecified();
        let holder = |l: Listed| Holder { node: l.node, addr: l.addr, zone: l.zone, slots_free: l.slots };
        parsed.holders.into_iter().filter(sensible).take(MAX_HOLDERS).map(holder).collect()
    }
}

/// The body of a 502: why a fill failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    pub kind: String,
    pub message: String,
}

/// The kinds of errors that a node tells another, by name. All others are told as `unavailable`.
const KINDS: [(&str, Kind); 8] = [
    ("not-found", Kind::NotFound),
    ("access", Kind::Access),
    ("not-permitted", Kind::NotPermitted),
    ("invalid", Kind::Invalid),
    ("corrupt", Kind::Corrupt),
    ("no-space", Kind::NoSpace),
    ("timed-out", Kind::TimedOut),
    ("unavailable", Kind::Unavailable),
];

impl Failure {
    #[must_use]
    pub fn of(error: &Error) -> Self {
        let name =
            KINDS.iter().find(|(_, kind)| *kind == error.kind()).map_or("unavailable", |(name, _)| name);
        Failure { kind: name.to_owned(), message: clip(&error.to_string()) }
    }

    /// The error that a body tells of.
    #[must_use]
    pub fn parse(body: &[u8]) -> Error {
        let parsed = (body.len() <= MAX_JSON).then(|| serde_json::from_slice::<Failure>(body).ok()).flatten();
        let Some(failure) = parsed else { return Error::new(Kind::Unavailable, "it failed there") };
        let kind =
            KINDS.iter().find(|(name, _)| *name == failure.kind).map_or(Kind::Unavailable, |(_, kind)| *kind);
        Error::with_source(kind, "it failed there", clip(&failure.message))
    }
}

/// A short text without control characters: it may end in a log.
fn clip(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(MAX_MESSAGE).collect()
}

#[cfg(test)]
mod tests;
