//! The way to the server: one connection that all operations share, made anew when it breaks, and the retries.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use ::redis::{
    AsyncConnectionConfig, Client, Cmd, ErrorKind, ProtocolVersion, Script, ServerErrorKind, Value,
};
use tokio::sync::{Notify, OnceCell, broadcast};
use tokio::time::{Instant, timeout_at};

use super::failure::{Failure, Next};
use super::info::ServerInfo;
use super::options::RedisOptions;
use crate::error::{Error, Kind, Result};
use crate::meta::kv::Event;

/// The first pause between two tries, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// A connection, being made by whoever came first.
type Line = OnceCell<MultiplexedConnection>;

pub(super) struct Link {
    pub(super) options: RedisOptions,
    client: Client,
    line: Mutex<Arc<Line>>,
    last_failure: Mutex<Option<(Instant, Failure)>>,
    /// Of the server last connected to, if it told.
    run_id: Mutex<Option<String>>,
    /// Hears [`Event::Lost`] when the server is another one than before.
    pub(super) events: broadcast::Sender<Event>,
    /// The subscriber is connected to a server that is not the right one any more.
    pub(super) replaced: Notify,
}

impl Link {
    pub(super) fn new(options: RedisOptions, events: broadcast::Sender<Event>) -> Result<Self> {
        Ok(Link {
            client: options.client(ProtocolVersion::RESP2)?,
            options,
            line: Mutex::default(),
            last_failure: Mutex::default(),
            run_id: Mutex::default(),
            events,
            replaced: Notify::new(),
        })
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

    /// Sends `cmd` until it is answered, within the engine's time. With `script`, `cmd` is its EVALSHA. The command may
    /// run more than once.
    pub(super) async fn run(&self, cmd: &Cmd, script: Option<&Script>) -> Result<Value> {
        let deadline = Instant::now() + self.options.total_timeout;
        let mut pause = FIRST_PAUSE;
        loop {
            let line = self.line();
            let until = deadline.min(Instant::now() + self.options.try_timeout);
            let failure = match timeout_at(until, self.attempt(&line, cmd, script)).await {
                Ok(Ok(value)) => return Ok(value),
                Ok(Err(failure)) => failure,
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
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Makes the next operation connect anew.
    pub(super) fn hang_up_current(&self) {
        *lock(&self.line) = Arc::default();
    }

    /// Takes note of the server behind a fresh connection, and refuses a replica: it would answer with the past.
    /// Answers whether it is another server than the one before.
    pub(super) fn recognise(&self, info: &ServerInfo) -> Result<bool, Failure> {
        if info.is_replica {
            let text = "server is a replica of another";
            return Err(Failure::new(Kind::Unavailable, Next::Reconnect, text));
        }
        let mut known = lock(&self.run_id);
        let other = known.is_some() && *known != info.run_id;
        if info.run_id.is_some() {
            known.clone_from(&info.run_id);
        }
        Ok(other)
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
        let mut connection = self.client.get_multiplexed_async_connection_with_config(&config).await?;
        let info = ServerInfo::ask(&mut connection).await?;
        if self.recognise(&info)? {
            tracing::warn!(server = %self.options, "another server, or the same one restarted");
            let _ = self.events.send(Event::Lost);
            self.replaced.notify_one();
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
