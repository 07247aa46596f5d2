//! Switchable faults.

use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

/// Which requests the faults are for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    #[default]
    Any,
    /// `/api/…`
    Api,
    /// `/…/resolve/…`
    Resolve,
    /// Bytes from the other origin.
    Cdn,
    /// GET and HEAD of objects (S3).
    Get,
    Put,
    /// DELETE, and POST, which deletes many.
    Delete,
    List,
}

/// What goes wrong. The numbers count down; `u32::MAX` never does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Faults {
    /// The requests that the others apply to. Control requests (`/_standin/…`) never fail.
    pub only: Target,
    /// The next N requests are answered 429.
    pub too_many: u32,
    /// `Retry-After` of those answers, seconds.
    pub retry_after: Option<u64>,
    /// `t` of their `RateLimit` header, seconds.
    pub ratelimit_t: Option<u64>,
    /// The next N requests are answered 503.
    pub unavailable: u32,
    /// The next N requests are read and never answered.
    pub hang: u32,
    /// Every answer comes this much later.
    pub delay_ms: u64,
    /// Bytes per second of every body of a file; 0: no limit.
    pub slow: u64,
    /// The next N bodies of files stop after `cut_after` bytes, and the connection closes.
    pub cut: u32,
    pub cut_after: u64,
    /// The next N bodies of files stop after `stall_after` bytes, and the connection stays open.
    pub stall: u32,
    pub stall_after: u64,
    /// The next N bodies of files have their first byte changed.
    pub wrong: u32,
    /// Every repository is gated, for everybody.
    pub gated: bool,
    /// The CDN refuses the next N requests with 403, as it does when a signed URL has run out.
    pub expired: u32,
    /// Range is ignored: 200 and the whole file.
    pub no_range: bool,
    /// Connections are closed instead of answering.
    pub refuse: bool,
    /// The next N PUTs (S3) are carried out, and the connection closes instead of an answer.
    pub lost_reply: u32,
}

/// What is to happen to one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Pass,
    TooMany { retry_after: Option<u64>, ratelimit_t: Option<u64> },
    Unavailable,
    Hang,
    Refuse,
}

/// What is to happen to one body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spoil {
    pub cut_after: Option<u64>,
    pub stall_after: Option<u64>,
    pub wrong: bool,
    /// Bytes per second.
    pub slow: Option<u64>,
}

/// The switchboard of one stand-in. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Switches(Arc<Mutex<Faults>>);

impl Switches {
    /// Changes the faults.
    pub fn set(&self, f: impl FnOnce(&mut Faults)) -> Faults {
        let mut faults = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        f(&mut faults);
        faults.clone()
    }

    /// The faults now.
    pub fn get(&self) -> Faults {
        self.set(|_| ())
    }

    /// Sets the fields that the JSON object names.
    pub fn merge(&self, json: &[u8]) -> Result<Faults, serde_json::Error> {
        let given: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(json)?;
        let mut merged = serde_json::to_value(self.get())?;
        if let Some(map) = merged.as_object_mut() {
            map.extend(given);
        }
        let merged: Faults = serde_json::from_value(merged)?;
        Ok(self.set(|f| *f = merged))
    }

    /// Decides about one request, and the delay of its answer.
    pub fn request(&self, target: Target) -> (Fate, std::time::Duration) {
        let mut fate = Fate::Pass;
        let faults = self.set(|f| {
            if !f.is_for(target) {
                return;
            }
            if f.refuse {
                fate = Fate::Refuse;
            } else if spend(&mut f.hang) {
                fate = Fate::Hang;
            } else if spend(&mut f.too_many) {
                fate = Fate::TooMany { retry_after: f.retry_after, ratelimit_t: f.ratelimit_t };
            } else if spend(&mut f.unavailable) {
                fate = Fate::Unavailable;
            }
        });
        let delay = if faults.is_for(target) { faults.delay_ms } else { 0 };
        (fate, std::time::Duration::from_millis(delay))
    }

    /// Decides about one body of a file.
    pub fn body(&self, target: Target) -> Spoil {
        let mut spoil = Spoil::default();
        self.set(|f| {
            if f.is_for(target) {
                spoil.cut_after = spend(&mut f.cut).then_some(f.cut_after);
                spoil.stall_after = spend(&mut f.stall).then_some(f.stall_after);
                spoil.wrong = spend(&mut f.wrong);
                spoil.slow = (f.slow > 0).then_some(f.slow);
            }
        });
        spoil
    }

    /// Whether this signed URL is to be refused.
    pub fn expired(&self) -> bool {
        let mut expired = false;
        self.set(|f| expired = spend(&mut f.expired));
        expired
    }
}

impl Switches {
    /// Whether the answer to this write is to be lost.
    pub fn lost_reply(&self) -> bool {
        let mut lost = false;
        self.set(|f| lost = spend(&mut f.lost_reply));
        lost
    }
}

impl Faults {
    fn is_for(&self, target: Target) -> bool {
        self.only == Target::Any || self.only == target
    }
}

fn spend(left: &mut u32) -> bool {
    let some = *left > 0;
    if some && *left != u32::MAX {
        *left -= 1;
    }
    some
}
