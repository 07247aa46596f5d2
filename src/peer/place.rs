//! Where the other nodes reach this one.

use std::net::SocketAddr;

use super::tracker::Tracker;
use super::types::PeerOptions;
use crate::error::{Error, Kind, Result};

/// The address that the others are told, of a server that listens at `bound`: the one that the user says; else that of
/// `bound`; else, if it listens on all addresses, the one from which this machine reaches Redis, which is loopback if Redis is
/// on this machine.
///
/// # Errors
/// [`Kind::Config`] if the name that the user says means nothing, else [`Kind::Unavailable`].
pub async fn advertised(tracker: &Tracker, options: &PeerOptions, bound: SocketAddr) -> Result<SocketAddr> {
    if let Some(said) = &options.advertise {
        let port = said.port.unwrap_or(bound.port());
        let bad = || format!("address {said} for other nodes");
        let found = tokio::net::lookup_host((said.host.as_str(), port)).await;
        let mut found = found.map_err(|e| Error::with_source(Kind::Config, bad(), e))?;
        let first = found.next().ok_or_else(|| Error::new(Kind::Config, bad()))?;
        // Of a name with both kinds of address the one that is served.
        return Ok(if first.is_ipv6() && bound.is_ipv4() {
            found.find(SocketAddr::is_ipv4).unwrap_or(first)
        } else {
            first
        });
    }
    if !bound.ip().is_unspecified() {
        return Ok(bound);
    }
    let ip = tracker.scripts().local_address().await?;
    if ip.is_ipv6() && bound.is_ipv4() {
        let words = format!(
            "this machine reaches Redis from {ip}, and serves other nodes over IPv4 only: --advertise"
        );
        return Err(Error::new(Kind::Config, words));
    }
    Ok((ip, bound.port()).into())
}
