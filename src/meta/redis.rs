//! The metadata engine for a cluster: Redis 6.2 or later, or Valkey.
//!
//! A map is a HASH, an ordered one has a ZSET of entry ids beside it; a volume's keys all begin with `{prefix}`, one slot:
//!
//! | key | type | what |
//! |---|---|---|
//! | `{p}:<map>` | HASH | field → value |
//! | `{p}#<map>` | ZSET | field → entry id, of ordered maps |
//! | `{p}@entry` | number | the last entry id given |
//! | `{p}@ring:<engine>:<slot>` | string | the last request applied in a slot; expires |
//! | `{p}@alive:<session>` | string | a heartbeat; expires |
//! | `{p}@log`, `{p}@log.before` | string | what commits told lately, 1 MiB each, a message longer at most |
//! | `{p}@awake` | number | all that read the log are going to look again by themselves |
//! | `{p}@export` | string | somebody reads everything: commits note what they touch; expires |
//! | `{p}@touched`, `{p}@touched.batch` | SET | what they noted, and what of it is being read again; expire |
//! | `{p}@p:…` | | what nodes tell each other, see [`crate::peer::tracker`]; expire |
//!
//! `{p}@events:<db>` is the channel on which readers of the log are rung for. Every operation is one round trip and one
//! moment: a plain command or one script.
//!
//! **Exactly once.** A commit carries a slot and a request number (`slots.rs`); the script writes the number down in the
//! same step as the changes, and a repetition of it answers what the first one did. So a commit whose reply is lost is
//! sent again, and an error leaves the outcome open only when the time for that ran out.
//!
//! **Waiting.** A try is bounded ([`RedisOptions::try_timeout`]), an operation with its retries too
//! ([`RedisOptions::total_timeout`]). A server that restarts, loads its data or fails over within that time is not noticed.
//! What only the user can change (password, rights, certificate) is told at once.
//!
//! **Push.** A commit appends what it changed to the log in the same step, and watchers are told all that came since the
//! last look together (`log.rs`): at once after a quiet moment, else within some 10 ms. What is told for locks ends that pause.
//! Watchers hear [`Lost`](super::kv::Event::Lost) when their connection breaks, again when it is back, and when
//! the server is another one than before (its `run_id`): it may have forgotten the latest commits.
//!
//! **The server** should have `appendonly yes` and `maxmemory-policy noeviction`; [`Kv::info`] warns otherwise. It is a
//! single primary, with replicas or not, found by its address or by sentinels: a replica is refused, a Redis Cluster is
//! not supported. A user with just the
//! rights that are needed:
//!
//! ```text
//! ACL SETUSER hfmount on >password ~{hfmount}* &{hfmount}* +@all -@admin -@dangerous +info
//! ```

mod export;
mod failure;
mod info;
mod inodes;
mod link;
mod log;
mod options;
mod pulse;
mod push;
mod request;
mod scripts;
mod sentinel;
mod slots;

use std::fmt;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use ::redis::{Cmd, Script, Value, cmd};
use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::OnceCell;
use tokio::time::{Instant, timeout_at};

pub use self::options::{DEFAULT_PREFIX, RedisAddress, RedisOptions};
pub use self::scripts::Scripts;

use self::info::ServerInfo;
use self::link::Link;
use self::pulse::Pulse;
use self::push::{Place, Push};
use self::slots::Slots;
use super::apply::{check_ordered, fenced, not_a_number};
use super::kv::{
    EngineInfo, Entry, Export, Followed, InodePage, Key, Kv, Outcome, SESSIONS, Txn, Watch, Write,
};
use crate::error::{Error, Kind, Result};
use crate::types::{SessionId, Timestamp};

static COMMIT: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("redis/commit.lua")));
static GET: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("redis/get.lua")));
static FOLLOW: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("redis/follow.lua")));
static SCAN: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("redis/scan.lua")));

/// A volume's metadata in Redis.
pub struct RedisKv {
    link: Arc<Link>,
    push: OnceCell<Push>,
    pulse: Arc<Pulse>,
    slots: Slots,
    /// `{prefix}`.
    base: String,
    /// What this engine's requests are remembered under, after `base`.
    ring: String,
    channel: String,
}

impl RedisKv {
    /// Connects. One try: who gives a wrong address or password should hear of it at once. A server that is still
    /// loading its data is waited for.
    ///
    /// # Errors
    /// [`Kind::Config`] for what the user must change (password, rights, prefix), else [`Kind::Unavailable`] or
    /// [`Kind::TimedOut`].
    pub async fn open(options: RedisOptions) -> Result<Arc<Self>> {
        if !RedisOptions::is_prefix(&options.prefix) {
            return Err(Error::new(Kind::Config, format!("prefix {:?} of the metadata", options.prefix)));
        }
        let base = format!("{{{}}}", options.prefix);
        let channel = format!("{base}@events:{}", options.db);
        let link = Arc::new(Link::new(options));
        link.first_contact().await?;
        let engine = SessionId::random();
        let ring = format!("@ring:{engine}");
        let pulse = Arc::new(Pulse::new());
        let kv = RedisKv { link, push: OnceCell::new(), pulse, slots: Slots::new(), base, ring, channel };
        kv.link.run(cmd("HLEN").arg(kv.key(SESSIONS))).await?;
        Ok(Arc::new(kv))
    }

    fn key(&self, map: &str) -> String {
        format!("{}:{map}", self.base)
    }

    fn alive_key(&self, session: SessionId) -> String {
        format!("{}@alive:{session}", self.base)
    }

    fn evalsha(&self, script: &Script) -> Cmd {
        let mut cmd = cmd("EVALSHA");
        cmd.arg(script.get_hash()).arg(1).arg(&self.base);
        cmd
    }

    fn strange(&self, reply: &Value) -> Error {
        let kind = match reply {
            Value::Array(_) => "an array",
            Value::BulkString(_) | Value::SimpleString(_) | Value::Okay => "a string",
            Value::Int(_) => "a number",
            Value::Nil => "nothing",
            _ => "something",
        };
        Error::new(Kind::Internal, format!("{} answered {kind}", self.link.options))
    }
}

impl fmt::Debug for RedisKv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisKv").field("options", &self.link.options).finish_non_exhaustive()
    }
}

#[async_trait]
impl Kv for RedisKv {
    async fn get(&self, keys: &[Key]) -> Result<Vec<Option<Bytes>>> {
        let reply = match keys {
            [] => return Ok(Vec::new()),
            [first, rest @ ..] if rest.iter().all(|key| key.map == first.map) => {
                let mut request = cmd("HMGET");
                request.arg(self.key(&first.map));
                keys.iter().for_each(|key| {
                    request.arg(&key.field[..]);
                });
                self.link.run(&request).await?
            }
            _ => {
                let mut request = self.evalsha(&GET);
                request::get(&mut request, keys);
                self.link.run_script(&GET, &request).await?
            }
        };
        match reply {
            Value::Array(values) if values.len() == keys.len() => Ok(values.into_iter().map(bytes).collect()),
            reply => Err(self.strange(&reply)),
        }
    }

    async fn follow(&self, key: &Key, fields: &[Bytes]) -> Result<Option<Followed>> {
        let mut request = self.evalsha(&FOLLOW);
        request.arg(&key.map).arg(&key.field[..]);
        fields.iter().for_each(|field| {
            request.arg(&field[..]);
        });
        let values = match self.link.run_script(&FOLLOW, &request).await? {
            Value::Nil => return Ok(None),
            Value::Array(values) if values.len() == fields.len() + 1 => values,
            reply => return Err(self.strange(&reply)),
        };
        let mut values = values.into_iter().map(bytes);
        let value = values.next().flatten().ok_or_else(|| self.strange(&Value::Nil))?;
        Ok(Some(Followed { value, fields: values.collect() }))
    }

    async fn scan(&self, map: &str, after: u64, limit: usize) -> Result<Vec<Entry>> {
        check_ordered(map)?;
        let mut request = self.evalsha(&SCAN);
        request.arg(map).arg(after).arg(limit.min(i64::MAX as usize));
        let values = match self.link.run_script(&SCAN, &request).await? {
            Value::Array(values) => values,
            reply => return Err(self.strange(&reply)),
        };
        let mut entries = Vec::with_capacity(values.len() / 3);
        let mut values = values.into_iter().map(bytes);
        while let (Some(id), Some(field), Some(value)) = (values.next(), values.next(), values.next()) {
            let id = id.and_then(|id| std::str::from_utf8(&id).ok()?.parse().ok());
            // An id without its value is no entry: only a foreign hand leaves one.
            if let (Some(id), Some(field), Some(value)) = (id, field, value) {
                entries.push(Entry { id, field, value });
            }
        }
        Ok(entries)
    }

    async fn commit(&self, txn: Txn) -> Result<Outcome> {
        let deadline = self.link.deadline();
        let Ok(Some(slot)) = timeout_at(deadline, self.slots.take()).await else {
            return Err(Error::new(Kind::TimedOut, format!("{}: too many commits", self.link.options)));
        };
        let build = |again: bool| {
            let mut request = self.evalsha(&COMMIT);
            request.arg(&self.ring).arg(slot.slot).arg(slot.request).arg(u8::from(again));
            request::commit(&mut request, &txn, &self.channel);
            request
        };
        let (first, repetition) = (build(false), || build(true));
        let reply = self.link.run_until(deadline, &first, Some(&COMMIT), Some(&repetition)).await?;
        let text = match &reply {
            Value::BulkString(text) => std::str::from_utf8(text).unwrap_or_default(),
            Value::SimpleString(text) => text,
            _ => "",
        };
        let (head, tail) = text.split_at_checked(1).unwrap_or_default();
        match (head, tail.parse().ok(), txn.session) {
            ("A", ..) => Ok(Outcome::Applied),
            ("B", ..) => Ok(Outcome::Full),
            ("C", Some(index), _) => Ok(Outcome::Conflict(index)),
            ("F", _, Some(session)) => Err(fenced(session)),
            ("N", Some(index), _) => match txn.write.get(index) {
                Some(
                    Write::Max(key, _)
                    | Write::Add(key, _)
                    | Write::AddBounded(key, ..)
                    | Write::Release(key, ..),
                ) => Err(not_a_number(key)),
                _ => Err(self.strange(&reply)),
            },
            _ => Err(self.strange(&reply)),
        }
    }

    async fn watch(&self) -> Result<Watch> {
        let watch = self.link.events.subscribe();
        let place = || Place {
            link: self.link.clone(),
            base: self.base.clone(),
            channel: self.channel.clone(),
            pulse: self.pulse.clone(),
        };
        self.push.get_or_try_init(|| Push::start(place())).await?;
        Ok(watch)
    }

    async fn beat(&self, session: SessionId, ttl: Duration) -> Result<()> {
        let mut request = cmd("SET");
        let ttl = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX).clamp(1, 1 << 40);
        request.arg(self.alive_key(session)).arg(1).arg("PX").arg(ttl);
        self.link.run(&request).await.map(drop)
    }

    async fn alive(&self, sessions: &[SessionId]) -> Result<Vec<bool>> {
        if sessions.is_empty() {
            return Ok(Vec::new());
        }
        let mut request = cmd("MGET");
        sessions.iter().for_each(|session| {
            request.arg(self.alive_key(*session));
        });
        match self.link.run(&request).await? {
            Value::Array(values) if values.len() == sessions.len() => {
                Ok(values.iter().map(|value| *value != Value::Nil).collect())
            }
            reply => Err(self.strange(&reply)),
        }
    }

    async fn now(&self) -> Result<Timestamp> {
        let reply = self.link.run(&cmd("TIME")).await?;
        let number = |value: &Value| match value {
            Value::BulkString(bytes) => std::str::from_utf8(bytes).ok()?.parse::<i64>().ok(),
            _ => None,
        };
        match &reply {
            Value::Array(parts) => match parts.iter().map(number).collect::<Option<Vec<i64>>>().as_deref() {
                Some([seconds, micros]) => {
                    Ok(Timestamp(seconds.saturating_mul(1_000_000_000).saturating_add(micros * 1000)))
                }
                _ => Err(self.strange(&reply)),
            },
            _ => Err(self.strange(&reply)),
        }
    }

    fn heard_until(&self) -> Option<Instant> {
        self.pulse.heard_until()
    }

    fn incarnation(&self) -> Option<String> {
        self.link.known()
    }

    fn redis(&self) -> Option<&RedisKv> {
        Some(self)
    }

    async fn info(&self) -> Result<EngineInfo> {
        let info = match self.link.run(&cmd("INFO")).await {
            Ok(reply) => ServerInfo::read(&reply),
            // The user may not ask; that the server answers is known all the same.
            Err(e) if e.kind() == Kind::Config => {
                ServerInfo { name: "redis".to_owned(), ..ServerInfo::default() }
            }
            Err(e) => return Err(e),
        };
        Ok(EngineInfo { name: info.name, warnings: info.warnings })
    }

    async fn inodes(&self, from: Option<&Bytes>) -> Result<InodePage> {
        inodes::page(&self.link, &self.base, from).await
    }

    async fn export(&self) -> Result<Export> {
        export::start(self.link.clone(), self.base.clone()).await
    }
}

fn bytes(value: Value) -> Option<Bytes> {
    match value {
        Value::BulkString(bytes) => Some(Bytes::from(bytes)),
        Value::SimpleString(text) => Some(Bytes::from(text)),
        _ => None,
    }
}
