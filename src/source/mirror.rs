//! Mirrors of the Hub: the same protocol at another endpoint, asked before the Hub and believed less. A mirror is asked for
//! bytes only; what repositories, branches and files there are, the Hub alone says.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, StreamExt};
use lru::LruCache;

use super::breaker::{Breaker, BreakerOptions, BreakerState, Pass};
use super::hub::HubSource;
use super::{Fetched, Source, Want};
use crate::error::{Error, Kind, Result};
use crate::hub::{HubClient, HubOptions};
use crate::types::BlobId;

/// How long it is remembered that a mirror does not have a blob, or has another one in its place.
const LACKS_FOR: Duration = Duration::from_secs(300);
/// Blobs of which that is remembered.
const MAX_LACKING: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");

/// How a mirror is used.
#[derive(Clone, Debug)]
pub struct MirrorOptions {
    pub breaker: BreakerOptions,
    /// For a connection to be made.
    pub connect_timeout: Duration,
    /// For an answer to begin, and between two pieces of a body.
    pub read_timeout: Duration,
    /// A transfer that in this long of waiting for it ...
    pub pace_window: Duration,
    /// ... gave fewer bytes than these is given up.
    pub pace_bytes: u64,
}

impl Default for MirrorOptions {
    fn default() -> Self {
        MirrorOptions {
            breaker: BreakerOptions::default(),
            connect_timeout: Duration::from_secs(3),
            read_timeout: Duration::from_secs(8),
            pace_window: Duration::from_secs(8),
            pace_bytes: 256 << 10,
        }
    }
}

/// One mirror as a source. While it does not work it costs nothing: see [`Breaker`].
#[derive(Debug)]
pub struct Mirror {
    source: HubSource,
    options: MirrorOptions,
    judge: Arc<Judge>,
    lacking: Mutex<LruCache<BlobId, Instant>>,
}

impl Mirror {
    /// A mirror at `endpoint`, without a token. No connection is made yet. Proxies are used as the environment says.
    ///
    /// # Errors
    /// [`Kind::Config`] for an endpoint that is not an http(s) URL, or when the system's certificates cannot be loaded.
    pub fn new(endpoint: &str, options: MirrorOptions) -> Result<Self> {
        let client = HubClient::new(HubOptions {
            endpoint: endpoint.to_owned(),
            token: None,
            connect_timeout: options.connect_timeout,
            read_timeout: options.read_timeout,
            deadline: options.connect_timeout + options.read_timeout,
            // The Hub is next.
            patient: false,
            ..HubOptions::default()
        })?;
        Ok(Mirror {
            judge: Arc::new(Judge {
                endpoint: client.endpoint().to_owned(),
                breaker: Arc::new(Breaker::new(options.breaker)),
            }),
            source: HubSource::mirror(client),
            lacking: Mutex::new(LruCache::new(MAX_LACKING)),
            options,
        })
    }

    #[must_use]
    pub fn endpoint(&self) -> &str {
        &self.judge.endpoint
    }

    /// Whether it is asked at this moment.
    #[must_use]
    pub fn state(&self) -> BreakerState {
        self.judge.breaker.state()
    }

    fn lacks(&self, blob: BlobId) -> bool {
        let mut lacking = self.lacking.lock().unwrap_or_else(PoisonError::into_inner);
        let lacks = lacking.get(&blob).is_some_and(|at| at.elapsed() < LACKS_FOR);
        if !lacks {
            lacking.pop(&blob);
        }
        lacks
    }

    fn note_lacking(&self, blob: BlobId) {
        self.lacking.lock().unwrap_or_else(PoisonError::into_inner).put(blob, Instant::now());
    }
}

#[async_trait]
impl Source for Mirror {
    fn name(&self) -> &'static str {
        "mirror"
    }

    async fn fetch(&self, want: &Want) -> Result<Fetched> {
        if want.is_empty() {
            return Ok(stream::empty().boxed());
        }
        let endpoint = self.endpoint();
        if self.lacks(want.blob) {
            return Err(Error::new(Kind::NotFound, format!("{endpoint} did not have it")));
        }
        let Ok(pass) = self.judge.breaker.enter() else {
            return Err(Error::new(Kind::Unavailable, format!("{endpoint} is left alone for a while")));
        };
        let error = match self.source.fetch(want).await {
            Ok(bytes) => {
                let MirrorOptions { pace_window, pace_bytes, .. } = self.options;
                let pace = Pace { window: pace_window, least: pace_bytes, waited: Duration::ZERO, got: 0 };
                let watched = Watched { bytes, pass: Some(pass), pace, judge: self.judge.clone() };
                return Ok(stream::try_unfold(watched, Watched::next).boxed());
            }
            Err(e) => e,
        };
        match error.kind() {
            // It works; it just is not the Hub. What it refuses says nothing about what the Hub would.
            Kind::NotFound | Kind::Access => {
                pass.succeeded();
                self.note_lacking(want.blob);
                Err(error.with_kind(Kind::NotFound))
            }
            Kind::Corrupt => {
                self.note_lacking(want.blob);
                self.judge.lied(want.blob, &error);
                Err(error.with_kind(Kind::NotFound))
            }
            _ => {
                self.judge.failed(pass, &error);
                Err(error)
            }
        }
    }

    fn wrong(&self, blob: BlobId) {
        self.note_lacking(blob);
        self.judge.lied(blob, &Error::new(Kind::Corrupt, "its bytes are not the blob's"));
    }
}

/// What a mirror's conduct leads to.
#[derive(Debug)]
struct Judge {
    /// For messages.
    endpoint: String,
    breaker: Arc<Breaker>,
}

impl Judge {
    fn failed(&self, pass: Pass, error: &Error) {
        let before = self.breaker.openings();
        pass.failed();
        if self.breaker.openings() > before {
            tracing::warn!(mirror = %self.endpoint, error = %error, "the mirror does not work: left alone for a while");
        }
    }

    fn lied(&self, blob: BlobId, error: &Error) {
        self.breaker.condemn();
        tracing::warn!(mirror = %self.endpoint, %blob, error = %error, "wrong bytes: the mirror is left alone for a while");
    }
}

/// How fast a transfer has to be, by the time that it is waited for: a slow reader is not the mirror's fault.
#[derive(Debug)]
struct Pace {
    window: Duration,
    least: u64,
    waited: Duration,
    got: u64,
}

impl Pace {
    /// Whether it is too slow.
    fn note(&mut self, waited: Duration, bytes: usize) -> bool {
        self.waited += waited;
        self.got += bytes as u64;
        if self.waited < self.window {
            return false;
        }
        let slow = self.got < self.least;
        (self.waited, self.got) = (Duration::ZERO, 0);
        slow
    }
}

/// A transfer whose end tells the breaker.
struct Watched {
    bytes: Fetched,
    pass: Option<Pass>,
    pace: Pace,
    judge: Arc<Judge>,
}

impl Watched {
    async fn next(mut self) -> Result<Option<(Bytes, Self)>> {
        let begun = Instant::now();
        let error = match self.bytes.next().await {
            Some(Ok(bytes)) if !self.pace.note(begun.elapsed(), bytes.len()) => {
                return Ok(Some((bytes, self)));
            }
            Some(Ok(_)) => Error::new(Kind::TimedOut, format!("{} is too slow", self.judge.endpoint)),
            Some(Err(e)) => e,
            None => {
                if let Some(pass) = self.pass.take() {
                    pass.succeeded();
                }
                return Ok(None);
            }
        };
        if let Some(pass) = self.pass.take() {
            self.judge.failed(pass, &error);
        }
        Err(error)
    }
}
