//! Asking sentinels which server is the primary. They are asked anew for every connection: the answer changes with a
//! failover, and a connection that broke is often the first sign of one.

use std::time::Duration;

use ::redis::{ProtocolVersion, Value, cmd};
use tokio::time::timeout;

use super::failure::{Failure, Next};
use super::link::connection_config;
use super::options::{RedisAddress, RedisOptions};
use crate::error::Kind;

/// The primary's address, as the first sentinel that knows it says. Asked one after the other, each for a share of one try.
pub(super) async fn primary(options: &RedisOptions) -> Result<RedisAddress, Failure> {
    let RedisAddress::Sentinel { hosts, master, tls } = &options.address else {
        return Ok(options.address.clone());
    };
    let share = options.try_timeout / (u32::try_from(hosts.len()).unwrap_or(u32::MAX).saturating_add(1));
    let share = share.max(Duration::from_millis(100));
    let mut last = Failure::new(Kind::Unavailable, Next::Reconnect, "no sentinel answers");
    let mut unknown = 0;
    for (host, port) in hosts {
        let address = RedisAddress::Tcp { host: host.clone(), port: *port, tls: *tls };
        match timeout(share, ask(options, &address, master, *tls)).await {
            Ok(Ok(Some(primary))) => return Ok(primary),
            Ok(Ok(None)) => unknown += 1,
            Ok(Err(failure)) => {
                tracing::debug!(sentinel = %format_args!("{host}:{port}"), error = %failure.error, "asking for the primary");
                last = failure;
            }
            Err(_) => tracing::debug!(sentinel = %format_args!("{host}:{port}"), "does not answer"),
        }
    }
    if unknown == hosts.len() {
        return Err(Failure::new(Kind::Config, Next::GiveUp, "no sentinel knows a primary of that name"));
    }
    // Another sentinel may let us in, or know more, in a moment.
    if last.next == Next::GiveUp && unknown == 0 {
        return Err(last);
    }
    Err(Failure { next: Next::Reconnect, ..last })
}

async fn ask(
    options: &RedisOptions,
    sentinel: &RedisAddress,
    master: &str,
    tls: bool,
) -> Result<Option<RedisAddress>, Failure> {
    let client = options
        .client_of_sentinel(sentinel, ProtocolVersion::RESP2)
        .map_err(|error| Failure { error, next: Next::GiveUp })?;
    let config = connection_config(options);
    let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
    let mut question = cmd("SENTINEL");
    question.arg("GET-MASTER-ADDR-BY-NAME").arg(master);
    let answer = connection.send_packed_command(&question).await.and_then(Value::extract_error)?;
    let Value::Array(words) = answer else { return Ok(None) };
    let text = |value: &Value| match value {
        Value::BulkString(bytes) => String::from_utf8(bytes.clone()).ok(),
        Value::SimpleString(text) => Some(text.clone()),
        _ => None,
    };
    let (host, port) = match &words[..] {
        [host, port] => (text(host), text(port).and_then(|port| port.parse().ok())),
        _ => (None, None),
    };
    match (host, port) {
        (Some(host), Some(port)) => Ok(Some(RedisAddress::Tcp { host, port, tls })),
        _ => Err(Failure::new(Kind::Internal, Next::Reconnect, "a sentinel answered something else")),
    }
}
