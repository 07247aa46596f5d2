//! What the stand-ins were asked for: so that a test can say "one tree call, no byte twice".

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::http::{HeaderMap, header};
use serde::Serialize;

/// Ranges beyond this many are counted but not listed.
const MAX_RANGES: usize = 100_000;

/// A copy of the counters at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Requests by kind: `info`, `revision`, `tree`, `paths_info`, `refs`, `resolve_head`, `resolve_get`, `cdn_head`,
    /// `cdn_get`, `xet_token`, `xet_reconstruction`, `xorb_get`, `whoami`, `other`; for S3 `get`, `head`, `put`, `delete`, `list`, `post`.
    pub requests: BTreeMap<String, u64>,
    /// The same apart for each kind of program ([`agent`]).
    pub agents: BTreeMap<String, BTreeMap<String, u64>>,
    /// Answers by status.
    pub statuses: BTreeMap<u16, u64>,
    /// TCP connections accepted.
    pub connections: u64,
    /// Bytes of files handed out (API answers are not counted).
    pub bytes: u64,
    /// Bytes of files taken in (S3).
    pub bytes_in: u64,
    pub paths: BTreeMap<String, PathCounts>,
    /// In the order in which they began.
    pub ranges: Vec<Ranged>,
    /// Requests to the CDN that carried an Authorization header. They are refused; this must stay 0.
    pub leaked_tokens: u64,
}

impl Counts {
    /// Requests of one kind.
    pub fn of(&self, kind: &str) -> u64 {
        self.requests.get(kind).copied().unwrap_or(0)
    }

    /// Requests of all kinds.
    pub fn total(&self) -> u64 {
        self.requests.values().sum()
    }
}

/// The counters of one file: `models/org/name/path`, or the key of an object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PathCounts {
    pub requests: u64,
    pub bytes: u64,
    /// How often its place at the CDN was asked for (HEAD and GET of `/resolve/…`).
    pub resolves: u64,
}

/// One request for bytes: what was to be sent (end exclusive) and what was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Ranged {
    pub path: String,
    /// Who asked ([`agent`]).
    pub agent: String,
    /// The address that asked; nothing if it was not told.
    pub from: String,
    /// Milliseconds since 1970 when it began.
    pub millis: u64,
    pub start: u64,
    pub end: u64,
    pub sent: u64,
}

/// The counters of one stand-in. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Counters(Arc<Mutex<Counts>>);

impl Counters {
    fn with<T>(&self, f: impl FnOnce(&mut Counts) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The state now.
    pub fn get(&self) -> Counts {
        self.with(|c| c.clone())
    }

    /// Back to zero.
    pub fn reset(&self) {
        self.with(|c| *c = Counts::default());
    }

    pub fn request(&self, kind: &str, headers: &HeaderMap) {
        let agent = agent(headers);
        self.with(|c| {
            *c.requests.entry(kind.to_owned()).or_default() += 1;
            *c.agents.entry(agent).or_default().entry(kind.to_owned()).or_default() += 1;
        });
    }

    pub fn status(&self, status: u16) {
        self.with(|c| *c.statuses.entry(status).or_default() += 1);
    }

    pub fn connection(&self) {
        self.with(|c| c.connections += 1);
    }

    pub fn leaked_token(&self) {
        self.with(|c| c.leaked_tokens += 1);
    }

    pub fn taken(&self, bytes: u64) {
        self.with(|c| c.bytes_in += bytes);
    }

    /// Counts one answer that says where the file lies.
    pub fn resolved(&self, path: &str) {
        self.with(|c| c.paths.entry(path.to_owned()).or_default().resolves += 1);
    }

    /// Opens the account of one transfer.
    pub fn transfer(&self, path: &str, start: u64, end: u64, headers: &HeaderMap) -> Meter {
        let (agent, from) = (agent(headers), String::new());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let millis = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        let index = self.with(|c| {
            c.paths.entry(path.to_owned()).or_default().requests += 1;
            let room = c.ranges.len() < MAX_RANGES;
            room.then(|| {
                c.ranges.push(Ranged { path: path.to_owned(), agent, from, millis, start, end, sent: 0 });
                c.ranges.len() - 1
            })
        });
        Meter { counters: self.clone(), path: path.to_owned(), start, index }
    }
}

/// The program that a request comes from: `hf_hub` for the Python libraries, whose own name comes second, else the first
/// product of its User-Agent (`hfmount`, `curl`), else nothing.
pub fn agent(headers: &HeaderMap) -> String {
    let text = headers.get(header::USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or("");
    if text.contains("hf_hub/") {
        return "hf_hub".to_owned();
    }
    text.split(['/', ' ', ';']).next().unwrap_or("").to_owned()
}

/// The account of one transfer.
#[derive(Debug)]
pub struct Meter {
    counters: Counters,
    path: String,
    start: u64,
    index: Option<usize>,
}

impl Meter {
    /// Tells who asked.
    pub fn from(self, address: Option<IpAddr>) -> Self {
        self.counters.with(|c| {
            if let (Some(range), Some(address)) = (self.index.and_then(|i| c.ranges.get_mut(i)), address) {
                range.from = address.to_string();
            }
        });
        self
    }

    /// Adds bytes that were handed to the connection.
    pub fn sent(&self, bytes: u64) {
        self.counters.with(|c| {
            c.bytes += bytes;
            c.paths.entry(self.path.clone()).or_default().bytes += bytes;
            // A reset meanwhile took the list away.
            if let Some(range) = self.index.and_then(|i| c.ranges.get_mut(i))
                && range.path == self.path
                && range.start == self.start
            {
                range.sent += bytes;
            }
        });
    }
}
