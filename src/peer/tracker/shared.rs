//! What nodes share about the Hub: its pauses, signed locations, who asks for what, and who asks for those that may not.

use std::fmt;
use std::str::FromStr;
use std::sync::LazyLock;
use std::time::Duration;

use bytes::Bytes;
use redis::{Script, Value};
use tokio::time::{Instant, sleep};

use super::claim::CHUNKS;
use super::{Tracker, list, ms, number, script, strange, text};
use crate::error::{Error, Kind, Result};
use crate::peer::types::Token;
use crate::types::BlobId;

static PAUSE: LazyLock<Script> = script!("pause.lua");
static LOCATE: LazyLock<Script> = script!("locate.lua");
static LOCK: LazyLock<Script> = script!("lock.lua");
static NEED: LazyLock<Script> = script!("need.lua");

/// How long one node may take to find a location out before another one tries.
const RESOLVING: Duration = Duration::from_secs(10);
/// How often who waits for a location looks, at first and at last.
const FIRST_LOOK: Duration = Duration::from_millis(30);
const LAST_LOOK: Duration = Duration::from_millis(500);
/// The longest location that is shared, bytes.
const LOCATION: usize = 16 << 10;
/// How long a need is remembered; who still has it says so again.
const NEEDED_FOR: Duration = Duration::from_mins(2);
/// The Hub's windows last five minutes; nobody may pause a cluster for much longer.
const LONGEST_PAUSE: Duration = Duration::from_secs(330);

/// The Hub counts requests in buckets that fill apart from each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HubBucket {
    Api,
    Resolvers,
}

impl fmt::Display for HubBucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            HubBucket::Api => "api",
            HubBucket::Resolvers => "resolvers",
        })
    }
}

impl FromStr for HubBucket {
    type Err = Error;
    fn from_str(s: &str) -> Result<Self> {
        match s {
            "api" => Ok(HubBucket::Api),
            "resolvers" => Ok(HubBucket::Resolvers),
            _ => Err(Error::new(Kind::Invalid, "bucket of the Hub")),
        }
    }
}

/// What [`Tracker::locate`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Locate {
    /// Somebody found it out already; it is good for so long.
    Known(Bytes, Duration),
    /// This node is to ask the Hub, and to say [`Tracker::located`] or [`Tracker::locate_failed`] with this token.
    Resolve(Token),
    /// Another node is asking the Hub, and has so long for it.
    Wait(Duration),
}

/// Something that one node of the cluster does at a time.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Lock(String);

impl Lock {
    /// The check of a whole blob.
    #[must_use]
    pub fn verify(blob: BlobId) -> Self {
        Lock(format!("verify:{}", blob.etag()))
    }

    /// Anything else, by a name that all nodes give it: a reference of a repository, a listing.
    #[must_use]
    pub fn named(what: &str) -> Self {
        Lock(format!("named:{}", &blake3::hash(what.as_bytes()).to_hex()[..32]))
    }
}

/// Chunks that a node wants which may not call the Hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    pub blob: BlobId,
    /// Of the whole blob, bytes.
    pub size: u64,
    pub chunks: Vec<u64>,
}

impl Tracker {
    /// The Hub at `host` asked to be left alone for so long: all nodes hear of it, with their next heartbeat at the latest.
    /// A longer pause that is under way stays. Answers how long it is now.
    pub async fn pause(&self, host: &str, bucket: HubBucket, wait: Duration) -> Result<Duration> {
        self.pausing(host, bucket, Some(wait.min(LONGEST_PAUSE))).await
    }

    /// How long the Hub wants to be left alone; zero: it may be asked.
    pub async fn paused(&self, host: &str, bucket: HubBucket) -> Result<Duration> {
        self.pausing(host, bucket, None).await
    }

    async fn pausing(&self, host: &str, bucket: HubBucket, wait: Option<Duration>) -> Result<Duration> {
        let reply = self.call("pause of the Hub", &PAUSE, |cmd| {
            cmd.arg(format!("{host} {bucket}"));
            wait.iter().for_each(|wait| {
                cmd.arg(ms(*wait));
            });
        });
        number(&reply.await?).map(Duration::from_millis).ok_or_else(|| strange("a pause"))
    }

    /// Where a blob is, for those of a `scope` (who may see it: `anon`, or a keyed hash of a token). One node of the
    /// cluster at a time is told to find out what nobody knows.
    pub async fn locate(&self, blob: BlobId, scope: &str) -> Result<Locate> {
        self.locate_as(blob, scope, token()).await
    }

    /// The same, and waits up to `limit` while another node finds it out.
    pub async fn locate_within(&self, blob: BlobId, scope: &str, limit: Duration) -> Result<Locate> {
        let (deadline, token, mut pause) = (Instant::now() + limit, token(), FIRST_LOOK);
        loop {
            match self.locate_as(blob, scope, token).await? {
                Locate::Wait(_) if Instant::now() + pause < deadline => sleep(pause).await,
                answer => return Ok(answer),
            }
            pause = (pause * 3 / 2).min(LAST_LOOK);
        }
    }

    async fn locate_as(&self, blob: BlobId, scope: &str, token: Token) -> Result<Locate> {
        let reply = self.located_by(blob, scope, "ask", token, Some(RESOLVING), None).await?;
        let parts = list(&reply).unwrap_or_default();
        let left = |at: usize| parts.get(at).and_then(number).map_or(Duration::ZERO, Duration::from_millis);
        match (parts.first().and_then(text), parts.get(1)) {
            (Some("K"), Some(Value::BulkString(location))) => {
                Ok(Locate::Known(Bytes::copy_from_slice(location), left(2)))
            }
            (Some("R"), _) => Ok(Locate::Resolve(token)),
            (Some("W"), _) => Ok(Locate::Wait(left(1))),
            _ => Err(strange("a location")),
        }
    }

    /// The location that was to be found out: others have it for so long. One that is too long is not shared.
    pub async fn located(
        &self,
        blob: BlobId,
        scope: &str,
        token: Token,
        location: &[u8],
        lasts: Duration,
    ) -> Result<()> {
        if location.len() > LOCATION || lasts < Duration::from_secs(1) {
            return self.locate_failed(blob, scope, token).await;
        }
        self.located_by(blob, scope, "tell", token, Some(lasts), Some(location)).await.map(drop)
    }

    /// It was not found out: others may try at once.
    pub async fn locate_failed(&self, blob: BlobId, scope: &str, token: Token) -> Result<()> {
        self.located_by(blob, scope, "fail", token, None, None).await.map(drop)
    }

    async fn located_by(
        &self,
        blob: BlobId,
        scope: &str,
        what: &str,
        token: Token,
        time: Option<Duration>,
        location: Option<&[u8]>,
    ) -> Result<Value> {
        let name = name(blob, scope)?;
        let ask = |cmd: &mut redis::Cmd| {
            cmd.arg(name).arg(what).arg(token.0);
            time.iter().for_each(|time| {
                cmd.arg(ms(*time));
            });
            location.iter().for_each(|location| {
                cmd.arg(*location);
            });
        };
        self.call("location", &LOCATE, ask).await
    }

    /// A shared location turned out to be of no use. Forgets it, unless somebody has found another one since.
    pub async fn forget_location(&self, blob: BlobId, scope: &str, location: &[u8]) -> Result<()> {
        let name = name(blob, scope)?;
        let reply = self.call("location", &LOCATE, |cmd| {
            cmd.arg(name).arg("drop").arg(location);
        });
        reply.await.map(drop)
    }

    /// Takes a lock for so long; `None`: another node has it.
    pub async fn lock(&self, what: &Lock, lasts: Duration) -> Result<Option<Token>> {
        let token = token();
        Ok(self.locking(what, token, ms(lasts), "take").await?.then_some(token))
    }

    /// Has it for so long from now. `false`: it was lost.
    pub async fn relock(&self, what: &Lock, token: Token, lasts: Duration) -> Result<bool> {
        self.locking(what, token, ms(lasts), "renew").await
    }

    pub async fn unlock(&self, what: &Lock, token: Token) -> Result<()> {
        self.locking(what, token, 0, "give").await.map(drop)
    }

    async fn locking(&self, what: &Lock, token: Token, lasts: u64, how: &str) -> Result<bool> {
        let reply = self.call("lock", &LOCK, |cmd| {
            cmd.arg(&what.0).arg(token.0).arg(lasts).arg(how);
        });
        Ok(number(&reply.await?) == Some(1))
    }

    /// This node wants chunks and may not call the Hub, and nobody who may has answered: whoever may finds it with
    /// [`Tracker::needed`]. Remembered for two minutes. `false`: too much is needed already.
    pub async fn need(&self, need: &Need) -> Result<bool> {
        // As many as one answer gives out.
        let chunks: Vec<u64> =
            need.chunks.iter().copied().filter(|chunk| *chunk < CHUNKS).take(1000).collect();
        if chunks.is_empty() {
            return Ok(false);
        }
        let reply = self.call("need", &NEED, |cmd| {
            cmd.arg("put").arg(ms(NEEDED_FOR)).arg(need.blob.etag()).arg(need.size);
            chunks.iter().for_each(|chunk| {
                cmd.arg(*chunk);
            });
        });
        Ok(number(&reply.await?) == Some(1))
    }

    /// What others need, of up to `blobs` blobs. It is taken out: who asks is to fetch it, or it is said again.
    pub async fn needed(&self, blobs: usize) -> Result<Vec<Need>> {
        let reply = self.call("need", &NEED, |cmd| {
            cmd.arg("take").arg(blobs.clamp(1, 64));
        });
        let read = |row: &Value| {
            let [blob, size, chunks @ ..] = list(row)? else { return None };
            let mut chunks: Vec<u64> = chunks.iter().map(number).collect::<Option<_>>()?;
            chunks.sort_unstable();
            Some(Need { blob: BlobId::from_etag(text(blob)?)?, size: number(size)?, chunks })
        };
        let reply = reply.await?;
        list(&reply).and_then(|rows| rows.iter().map(read).collect()).ok_or_else(|| strange("a need"))
    }
}

/// Of the asker's own making, so that a question whose answer was lost can be put again.
fn token() -> Token {
    Token(rand::random::<u64>() >> 11)
}

fn name(blob: BlobId, scope: &str) -> Result<String> {
    let fits = (1..=64).contains(&scope.len()) && scope.bytes().all(|b| b.is_ascii_alphanumeric());
    if fits {
        Ok(format!("{}:{scope}", blob.etag()))
    } else {
        Err(Error::new(Kind::Invalid, "scope of a location: up to 64 letters and digits"))
    }
}
