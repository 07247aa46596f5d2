//! The push channel: a connection of its own, subscribed to the volume's channel. A connection that breaks, or that comes
//! back, is [`Event::Lost`].

use std::sync::Arc;
use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use ::redis::{ProtocolVersion, PushInfo, PushKind, Value};
use bytes::Bytes;
use tokio::sync::{Notify, broadcast, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::failure::{Failure, Next};
use super::info::ServerInfo;
use super::link::{Identity, Link, connection_config};
use super::pulse::Pulse;
use crate::error::{Kind, Result};
use crate::meta::events::decode;
use crate::meta::kv::Event;

/// Pauses between two tries to connect.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// The tasks behind all watches of an engine; end with it.
pub(super) struct Push(Vec<JoinHandle<()>>);

impl Drop for Push {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

/// One connection, and how it tells that it broke.
struct Ear {
    connection: MultiplexedConnection,
    broken: Arc<Notify>,
    /// Changes when the other connection found another server.
    replaced: watch::Receiver<u64>,
}

impl Push {
    /// Subscribes, and stays subscribed. When this returns, nothing that is published later is missed unnoticed.
    pub(super) async fn start(link: Arc<Link>, channel: String, pulse: Arc<Pulse>) -> Result<Self> {
        let deadline = tokio::time::Instant::now() + link.options.total_timeout;
        let mut pause = FIRST_PAUSE;
        let ear = loop {
            match listen(&link, &channel, &pulse).await {
                Ok(ear) => break ear,
                Err(e) if e.next == Next::GiveUp || tokio::time::Instant::now() + pause >= deadline => {
                    return Err(e.error.context(link.options.to_string()));
                }
                Err(_) => sleep(pause).await,
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        };
        let beating = tokio::spawn(pulse.clone().run(link.clone()));
        Ok(Push(vec![tokio::spawn(keep(link, channel, pulse, ear)), beating]))
    }
}

async fn keep(link: Arc<Link>, channel: String, pulse: Arc<Pulse>, first: Ear) {
    let mut ear = first;
    loop {
        wait_until_broken(&link, &mut ear).await;
        tracing::warn!(server = %link.options, "the push channel of the metadata broke");
        let _ = link.events.send(Event::Lost);
        pulse.broke();
        let mut pause = FIRST_PAUSE;
        ear = loop {
            sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
            match listen(&link, &channel, &pulse).await {
                Ok(ear) => break ear,
                Err(e) => tracing::debug!(server = %link.options, error = %e.error, "no push channel yet"),
            }
        };
        tracing::info!(server = %link.options, "the push channel of the metadata is back");
        // What was cached while nobody listened may be out of date too.
        let _ = link.events.send(Event::Lost);
    }
}

async fn wait_until_broken(link: &Link, ear: &mut Ear) {
    // A silent connection is asked whether it is still there as often as an answer may take.
    let (ping, time) = (::redis::cmd("PING"), link.options.try_timeout);
    loop {
        tokio::select! {
            () = ear.broken.notified() => return,
            _ = ear.replaced.changed() => return,
            () = sleep(time) => {
                let pong = ear.connection.send_packed_command(&ping);
                if !matches!(timeout(time, pong).await, Ok(Ok(_))) {
                    return;
                }
            }
        }
    }
}

async fn listen(link: &Link, channel: &str, pulse: &Arc<Pulse>) -> Result<Ear, Failure> {
    let broken = Arc::new(Notify::new());
    let replaced = link.replaced.subscribe();
    let config = {
        let (events, broken, pulse) = (link.events.clone(), broken.clone(), pulse.clone());
        connection_config(&link.options).set_push_sender(move |info| {
            hear(info, &events, &broken, &pulse);
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
        connection.subscribe(&[channel, &pulse.channel]).await?;
        Ok(Ear { connection, broken, replaced })
    };
    match timeout(link.options.try_timeout, connecting).await {
        Ok(result) => result,
        Err(_) => Err(Failure::new(Kind::TimedOut, Next::Reconnect, "subscription")),
    }
}

/// Runs on the connection's own task: must not wait.
fn hear(info: PushInfo, events: &broadcast::Sender<Event>, broken: &Notify, pulse: &Pulse) {
    match info.kind {
        PushKind::Message => {
            let mut words = info.data.into_iter();
            let own =
                matches!(words.next(), Some(Value::BulkString(name)) if name == pulse.channel.as_bytes());
            let message = words.next();
            if own {
                if let Some(Value::BulkString(body)) = message {
                    pulse.heard(&body);
                }
                return;
            }
            let heard = match message {
                Some(Value::BulkString(body)) => decode(Bytes::from(body)),
                _ => vec![Event::Lost],
            };
            for event in heard {
                // Nobody listening is no error.
                let _ = events.send(event);
            }
        }
        PushKind::Disconnection => broken.notify_one(),
        _ => {}
    }
}
