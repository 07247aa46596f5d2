//! Scripts of other rooms on the server of a volume, over the connection that its metadata use.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ::redis::{Cmd, ProtocolVersion, Script, Value, cmd};
use tokio::time::Instant;

use super::RedisKv;
use super::link::Link;
use crate::error::{Error, Kind, Result};

/// A way to run scripts that have nothing to do with the metadata but share their server. What they write must lie under
/// [`Scripts::base`] followed by `@`, expire by itself, and be such that its loss does no harm: dumps and checks do not see it.
#[derive(Clone)]
pub struct Scripts {
    link: Arc<Link>,
    base: String,
}

impl RedisKv {
    /// Runs scripts beside the metadata.
    #[must_use]
    pub fn scripts(&self) -> Scripts {
        Scripts { link: self.link.clone(), base: self.base.clone() }
    }
}

impl Scripts {
    /// What all keys of the volume begin with, and every script gets as its `KEYS[1]`.
    #[must_use]
    pub fn base(&self) -> &str {
        &self.base
    }

    /// The server, as errors and logs name it.
    #[must_use]
    pub fn server(&self) -> String {
        self.link.options.to_string()
    }

    /// Names the server's memory, as [`Kv::incarnation`](crate::meta::kv::Kv::incarnation) does.
    #[must_use]
    pub fn incarnation(&self) -> Option<String> {
        self.link.known()
    }

    /// Runs `script` with the arguments that `with` adds; tries again, if need be, for `within`. It may run more than once.
    ///
    /// # Errors
    /// [`Kind::Unavailable`] or [`Kind::TimedOut`]; [`Kind::Config`] for what the user must change.
    pub async fn run(&self, script: &Script, with: impl FnOnce(&mut Cmd), within: Duration) -> Result<Value> {
        let mut request = cmd("EVALSHA");
        request.arg(script.get_hash()).arg(1).arg(&self.base);
        with(&mut request);
        self.link.run_until(Instant::now() + within, &request, Some(script), None).await
    }

    /// The address from which this machine reaches the server: loopback if it is on this machine.
    ///
    /// # Errors
    /// If there is no server of that name, or no way to it.
    pub async fn local_address(&self) -> Result<IpAddr> {
        let place = || self.server();
        let client = self.link.client(ProtocolVersion::RESP2).await.map_err(|failure| failure.error)?;
        let (host, port) = match client.get_connection_info().addr() {
            ::redis::ConnectionAddr::Tcp(host, port) | ::redis::ConnectionAddr::TcpTls { host, port, .. } => {
                (host.clone(), *port)
            }
            _ => return Ok(std::net::Ipv4Addr::LOCALHOST.into()),
        };
        let unreachable = |e| Error::with_source(Kind::Unavailable, place(), e);
        let mut last = None;
        for server in tokio::net::lookup_host((host.as_str(), port)).await.map_err(unreachable)? {
            // Nothing is sent: a route is looked up.
            let any: (IpAddr, u16) = match server.ip() {
                IpAddr::V4(_) => (std::net::Ipv4Addr::UNSPECIFIED.into(), 0),
                IpAddr::V6(_) => (std::net::Ipv6Addr::UNSPECIFIED.into(), 0),
            };
            let socket = match tokio::net::UdpSocket::bind(any).await {
                Ok(socket) => socket,
                Err(e) => {
                    last = Some(e);
                    continue;
                }
            };
            match socket.connect(server).await.and_then(|()| socket.local_addr()) {
                Ok(local) => return Ok(local.ip().to_canonical()),
                Err(e) => last = Some(e),
            }
        }
        Err(last.map_or_else(|| Error::new(Kind::Unavailable, place()), unreachable))
    }
}

impl fmt::Debug for Scripts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scripts").field("options", &self.link.options).finish_non_exhaustive()
    }
}
