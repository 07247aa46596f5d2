//! The way to the server: one connection that all operations share, made anew when it breaks, and the retries.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use ::redis::{
    AsyncConnectionConfig, Client, Cmd, ErrorKind, ProtocolVersion, Script, ServerErrorKind, Value,
};
use tokio::sync::{OnceCell, watch};
use tokio::time::{Instant, timeout_at};

use super::failure::{Failure, Next};
use super::info::ServerInfo;
use super::options::RedisOptions;
use super::sentinel;
use crate::error::{Error, Kind, Result};
use crate::meta::kv::Event;
use crate::meta::watchers::Watchers;

/// The first pause between two tries, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// A connection, being made by whoever came first.
type Line = OnceCell<MultiplexedConnection>;

/// Whether a fresh connection leads to the server that the one before led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Identity {
    Same,
    Other,
    /// It does not say. Then it may have forgotten something, but two connections cannot be compared.
    Untold,
}

pub(super) struct Link {
    pub(super) options: RedisOptions,
    line: Mutex<Arc<Line>>,
    last_failure: Mutex<Option<(Instant, Failure)>>,
    /// The `run_id` of the server last connected to, if it told; nothing before the first.
    known: Mutex<Option<Option<String>>>,
    /// Hears [`Event::Lost`] when the server is another one than before.
    pub(super) events: Watchers,
    /// Counts how often the server was found to be another one: the subscriber may be with the old one.
    pub(super) replaced: watch::Sender<u64>,
    /// Counts the same, and how often it could not be told.
    strangers: AtomicU64,
}

impl Link {
    pub(super) fn new(options: RedisOptions) -> Self {
        Link {
            options,
            line: Mutex::default(),
            last_failure: Mutex::default(),
            known: Mutex::default(),
            events: Watchers::default(),
            replaced: watch::Sender::new(0),
            strangers: AtomicU64::new(0),
        }
    }

    /// How to reach the server that is the volume's now.
    pub(super) async fn client(&self, protocol: ProtocolVersion) -> Result<Client, Failure> {
        let address = sentinel::primary(&self.options).await?;
        let client = self.options.client(&address, protocol);
        client.map_err(|error| Failure { error, next: Next::GiveUp })
    }

    /// The server last connected to, if it told who it is.
    pub(super) fn known(&self) -> Option<String> {
        lock(&self.known).clone().flatten()
    }

    /// How often the server was another one than before, or did not say that it was the same.
    pub(super) fn strangers(&self) -> u64 {
        self.strangers.load(SeqCst)
    }

    /// Finds out, with one try, whether there is a server that lets us in.
    pub(super) async fn first_contact(&self) -> Result<()> {
        let deadline = Instant::now() + self.options.try_timeout;
        let line = self.line();
        match timeout_at(deadline, self.connected(&line)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(failure)) => Err(failure.error.context(self.options.to_string())),
            Err(_) => Err(Error::new(Kind::TimedOut, self.options.to_string())),
        }
    }

    /// When an operation that begins now must have ended.
    pub(super) fn deadline(&self) -> Instant {
        Instant::now() + self.options.total_timeout
    }

    /// Sends `request` until it is answered, within the engine's time. It may run more than once.
    pub(super) async fn run(&self, request: &Cmd) -> Result<Value> {
        self.run_until(self.deadline(), request, None, None).await
    }

    /// The same for a `request` that is an EVALSHA of `script`.
    pub(super) async fn run_script(&self, script: &Script, request: &Cmd) -> Result<Value> {
        self.run_until(self.deadline(), request, Some(script), None).await
    }

    /// The same with a deadline, and with another request for all tries after the first.
    pub(super) async fn run_until(
        &self,
        deadline: Instant,
        request: &Cmd,
        script: Option<&Script>,
        repetition: Option<&(dyn Fn() -> Cmd + Sync)>,
    ) -> Result<Value> {
        let mut pause = FIRST_PAUSE;
        let mut repeated = None;
        loop {
            let line = self.line();
            let now = Instant::now();
            let until = deadline.min(now + self.options.try_timeout);
            let cmd = repeated.as_ref().unwrap_or(request);
            let failure = match timeout_at(until, self.attempt(&line, cmd, script)).await {
                Ok(Ok(value)) => return Ok(value),
                Ok(Err(failure)) => failure,
                // Who has much less time than a try proves nothing about the connection, which others use too.
                Err(_) if until - now < self.options.try_timeout / 2 => {
                    Failure::new(Kind::TimedOut, Next::Wait, "reply")
                }
                Err(_) => Failure::new(Kind::TimedOut, Next::Reconnect, "reply"),
            };
            if failure.next == Next::Reconnect {
                self.hang_up(&line);
            }
            let wait = pause.mul_f64(rand::random_range(0.5..1.0));
            if failure.next == Next::GiveUp || Instant::now() + wait >= deadline {
                return Err(failure.error.context(self.options.to_string()));
            }
            tracing::debug!(server = %self.options, error = %failure.error, "trying again");
            tokio::time::sleep(wait).await;
            if Instant::now() >= deadline {
                // This process was stopped for longer than the server remembers requests, maybe: no copy may leave now.
                return Err(failure.error.context(self.options.to_string()));
            }
            repeated = repeated.or_else(|| repetition.map(|build| build()));
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Makes the next operation connect anew.
    pub(super) fn hang_up_current(&self) {
        *lock(&self.line) = Arc::default();
    }

    /// Takes note of the server behind a fresh connection, and refuses a replica: it would answer with the past.
    pub(super) fn recognise(&self, info: &ServerInfo) -> Result<Identity, Failure> {
        if info.is_replica {
            let text = "server is a replica of another";
            return Err(Failure::new(Kind::Unavailable, Next::Reconnect, text));
        }
        let mut known = lock(&self.known);
        let identity = match (&*known, &info.run_id) {
            (None, _) => Identity::Same,
            (Some(Some(before)), Some(now)) if before == now => Identity::Same,
            (Some(Some(_)), Some(_)) => Identity::Other,
            _ => Identity::Untold,
        };
        *known = Some(info.run_id.clone());
        Ok(identity)
    }

    fn line(&self) -> Arc<Line> {
        lock(&self.line).clone()
    }

    /// Drops `line`, unless somebody already did. Others who wait on it for replies still get them.
    fn hang_up(&self, line: &Arc<Line>) {
        let mut current = lock(&self.line);
        if Arc::ptr_eq(&current, line) {
            *current = Arc::default();
        }
    }

    async fn attempt(&self, line: &Line, cmd: &Cmd, script: Option<&Script>) -> Result<Value, Failure> {
        let mut connection = self.connected(line).await?.clone();
        let first = connection.send_packed_command(cmd).await.and_then(Value::extract_error);
        match (first, script) {
            (Err(e), Some(script)) if e.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                let load = script.load_async(&mut connection);
                load.await?;
                Ok(connection.send_packed_command(cmd).await.and_then(Value::extract_error)?)
            }
            (result, _) => Ok(result?),
        }
    }

    async fn connected<'a>(&self, line: &'a Line) -> Result<&'a MultiplexedConnection, Failure> {
        let began = Instant::now();
        line.get_or_try_init(|| async {
            // Who waited for somebody else's try takes its failure instead of making everybody behind wait for another.
            if let Some((when, failure)) = &*lock(&self.last_failure)
                && *when > began
            {
                return Err(failure.share());
            }
            let made = self.connect().await;
            if let Err(failure) = &made {
                *lock(&self.last_failure) = Some((Instant::now(), failure.share()));
            }
            made
        })
        .await
    }

    async fn connect(&self) -> Result<MultiplexedConnection, Failure> {
        let config = connection_config(&self.options);
        let client = self.client(ProtocolVersion::RESP2).await?;
        let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
        let info = ServerInfo::ask(&mut connection).await?;
        let identity = self.recognise(&info)?;
        if identity != Identity::Same {
            tracing::warn!(server = %self.options, "another server, or the same one restarted");
            self.strangers.fetch_add(1, SeqCst);
            self.events.tell(Event::Lost);
        }
        if identity == Identity::Other {
            self.replaced.send_modify(|times| *times += 1);
        }
        Ok(connection)
    }
}

/// The time of a try is kept here, not in the connection: a reply that comes late must not fail what follows it.
pub(super) fn connection_config(options: &RedisOptions) -> AsyncConnectionConfig {
    AsyncConnectionConfig::new()
        .set_response_timeout(None)
        .set_connection_timeout(Some(options.try_timeout))
        .set_pipeline_buffer_size(512)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
