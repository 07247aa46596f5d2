//! The push channel: a task that reads the log of changes (`log.rs`), and a connection of its own over which it is rung for.
//! A connection that breaks, or that comes back, is [`Event::Lost`].

use std::sync::Arc;
use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use ::redis::{ProtocolVersion, PushInfo, PushKind, Value};
use bytes::Bytes;
use futures::FutureExt;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::failure::{Failure, Next};
use super::info::ServerInfo;
use super::link::{Identity, Link, connection_config};
use super::log::{AT_ONCE, Log, PAUSE, SOON};
use super::pulse::Pulse;
use crate::error::{Kind, Result};
use crate::meta::events::decode;
use crate::meta::kv::Event;
use crate::meta::watchers::Watchers;

/// Pauses between two tries to connect.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// The task behind all watches of an engine; ends with it.
pub(super) struct Push(JoinHandle<()>);

impl Drop for Push {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Where an engine listens.
pub(super) struct Place {
    pub(super) link: Arc<Link>,
    /// The tag before all keys of the volume.
    pub(super) base: String,
    /// The channel of the bell.
    pub(super) channel: String,
    pub(super) pulse: Arc<Pulse>,
}

/// One connection, how it tells what it heard and that it broke, and the place in the log that goes with it.
struct Ear {
    connection: MultiplexedConnection,
    bell: Arc<Bell>,
    /// Changes when the other connection found another server.
    replaced: watch::Receiver<u64>,
    log: Log,
}

#[derive(Default)]
struct Bell {
    soon: Notify,
    at_once: Notify,
    broken: Notify,
}

impl Push {
    /// Begins to listen, and goes on. When this returns, nothing that is published later is missed unnoticed.
    pub(super) async fn start(place: Place) -> Result<Self> {
        let deadline = Instant::now() + place.link.options.total_timeout;
        let mut pause = FIRST_PAUSE;
        let ear = loop {
            match listen(&place).await {
                Ok(ear) => break ear,
                Err(e) if e.next == Next::GiveUp || Instant::now() + pause >= deadline => {
                    return Err(e.error.context(place.link.options.to_string()));
                }
                Err(_) => sleep(pause).await,
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        };
        Ok(Push(tokio::spawn(keep(place, ear))))
    }
}

async fn keep(place: Place, first: Ear) {
    let (link, pulse) = (&place.link, &place.pulse);
    let mut ear = first;
    loop {
        let Ear { connection, bell, replaced, log } = &mut ear;
        tokio::select! {
            () = wait_until_broken(link, connection, &bell.broken, replaced) => {}
            () = read(log, &link.events, bell, pulse) => {}
        }
        tracing::warn!(server = %link.options, "the push channel of the metadata broke");
        link.events.tell(Event::Lost);
        pulse.broke();
        let mut pause = FIRST_PAUSE;
        ear = loop {
            sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
            match listen(&place).await {
                Ok(ear) => break ear,
                Err(e) => tracing::debug!(server = %link.options, error = %e.error, "no push channel yet"),
            }
        };
        tracing::info!(server = %link.options, "the push channel of the metadata is back");
        // What was cached while nobody listened may be out of date too.
        link.events.tell(Event::Lost);
    }
}

async fn wait_until_broken(
    link: &Link,
    connection: &mut MultiplexedConnection,
    broken: &Notify,
    replaced: &mut watch::Receiver<u64>,
) {
    // A silent connection is asked whether it is still there as often as an answer may take.
    let (ping, time) = (::redis::cmd("PING"), link.options.try_timeout);
    loop {
        tokio::select! {
            () = broken.notified() => return,
            _ = replaced.changed() => return,
            () = sleep(time) => {
                let pong = connection.send_packed_command(&ping);
                if !matches!(timeout(time, pong).await, Ok(Ok(_))) {
                    return;
                }
            }
        }
    }
}

/// Passes on what the log says, until the server is another one.
async fn read(log: &mut Log, events: &Watchers, bell: &Bell, pulse: &Pulse) {
    loop {
        // What was rung for until now is read now.
        let _rung = (bell.soon.notified().now_or_never(), bell.at_once.notified().now_or_never());
        let sent = Instant::now();
        match log.read().await {
            Ok(told) => {
                let quiet = told.is_empty();
                events.tell_all(told);
                pulse.heard(sent);
                if quiet {
                    tokio::select! {
                        () = bell.soon.notified() => {}
                        () = bell.at_once.notified() => {}
                        () = pulse.due(sent) => {}
                    }
                } else {
                    tokio::select! {
                        () = bell.at_once.notified() => {}
                        () = sleep(PAUSE) => {}
                    }
                }
            }
            Err(_) if !log.is_here() => return,
            Err(error) => {
                tracing::debug!(%error, "the log of changes cannot be read");
                sleep(FIRST_PAUSE).await;
            }
        }
    }
}

async fn listen(place: &Place) -> Result<Ear, Failure> {
    let Place { link, base, channel, .. } = place;
    let bell = Arc::<Bell>::default();
    let replaced = link.replaced.subscribe();
    let config = {
        let (events, bell) = (link.events.clone(), bell.clone());
        connection_config(&link.options).set_push_sender(move |info| {
            hear(info, &events, &bell);
            Ok::<(), ()>(())
        })
    };
    let connecting = async {
        let client = link.client(ProtocolVersion::RESP3).await?;
        let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
        let info = ServerInfo::ask(&mut connection).await?;
        if link.recognise(&info)? == Identity::Other {
            link.hang_up_current();
        }
        connection.subscribe(channel).await?;
        // In this order: what is told after the place was taken is rung for, and the bell is heard.
        let begun = Log::begin(link.clone(), base.clone()).await;
        let log = begun.map_err(|error| Failure { error, next: Next::Wait })?;
        Ok(Ear { connection, bell, replaced, log })
    };
    match timeout(link.options.try_timeout, connecting).await {
        Ok(result) => result,
        Err(_) => Err(Failure::new(Kind::TimedOut, Next::Reconnect, "subscription")),
    }
}

/// Runs on the connection's own task: must not wait.
fn hear(info: PushInfo, events: &Watchers, bell: &Bell) {
    match info.kind {
        PushKind::Message => match info.data.into_iter().nth(1) {
            Some(Value::BulkString(body)) if body == SOON => bell.soon.notify_one(),
            Some(Value::BulkString(body)) if body == AT_ONCE => bell.at_once.notify_one(),
            // A mount of a version that knows no log says it here.
            Some(Value::BulkString(body)) => events.tell_all(decode(Bytes::from(body))),
            _ => events.tell(Event::Lost),
        },
        PushKind::Disconnection => bell.broken.notify_one(),
        _ => {}
    }
}
