//! The options of `hfmount mount` about other nodes.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use clap::{Args, ValueEnum};

use crate::config::units::{limit, size};
use crate::peer::{Advertise, PeerOptions, RedisDown, Role};

/// The longest name of a zone, characters.
const ZONE: usize = 64;

#[derive(Debug, Args)]
pub(super) struct PeerArgs {
    /// Do not deal with the other nodes of the volume: fetch everything from the storage and the Hub. A volume in SQLite is
    /// on one machine and has none.
    #[arg(long, env = "HFMOUNT_NO_PEERS", hide_env_values = true, value_parser = clap::builder::FalseyValueParser::new())]
    no_peers: bool,

    /// Where to serve chunks to the other nodes: an address, a port, or both. Who does not have the volume's key gets nothing.
    /// Default: all addresses of the machine, a free port.
    #[arg(long, value_name = "ADDR", value_parser = listen_address, env = "HFMOUNT_PEER_LISTEN", hide_env_values = true)]
    peer_listen: Option<SocketAddr>,

    /// Where the other nodes reach that, if it is somewhere else: a name or an address, with a port or without. Default: the
    /// address from which this machine reaches Redis.
    #[arg(long, value_name = "ADDR", value_parser = advertised_address, env = "HFMOUNT_ADVERTISE", hide_env_values = true)]
    advertise: Option<Advertise>,

    /// What this node is to the others: a seed serves more, a leech takes and serves nobody.
    #[arg(long, value_enum, default_value = "normal", env = "HFMOUNT_ROLE", hide_env_values = true)]
    role: RoleName,

    /// A name of the place where this node is, such as its rack. Nodes of one zone prefer each other.
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true, value_parser = zone, env = "HFMOUNT_ZONE", hide_env_values = true)]
    zone: String,

    /// How many chunks to send at one time. Default: 16; 64 for a seed.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    upload_slots: Option<u32>,

    /// How much to send to other nodes in a second; 0 or none = no limit.
    #[arg(long, value_name = "SIZE", default_value = "none", value_parser = rate)]
    upload_limit: Rate,

    /// How much to take from other nodes in a second; 0 or none = no limit.
    #[arg(long, value_name = "SIZE", default_value = "none", value_parser = rate)]
    download_limit: Rate,

    /// How much to take from the Hub in a second; 0 or none = no limit.
    #[arg(long, value_name = "SIZE", default_value = "none", value_parser = rate)]
    hub_limit: Rate,

    /// Whether this node may fetch content from the Hub. If not, one that may does it.
    #[arg(long, value_enum, default_value = "allow", env = "HFMOUNT_HUB", hide_env_values = true)]
    hub: HubUse,

    /// What to do about content that no known node has while Redis does not answer: wait, then fail (EIO), or fetch it
    /// directly, perhaps on several nodes at once.
    #[arg(long, value_enum, default_value = "wait")]
    redis_down: WithoutRedis,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum RoleName {
    Normal,
    Seed,
    Leech,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum HubUse {
    Allow,
    Deny,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum WithoutRedis {
    Wait,
    Direct,
}

/// Bytes a second; `None`: as many as there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rate(Option<u64>);

fn rate(text: &str) -> Result<Rate, String> {
    limit(text.trim().trim_end_matches("/s"), size).map(Rate)
}

fn zone(text: &str) -> Result<String, String> {
    let fits = text.len() <= ZONE
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'/'));
    match fits {
        true => Ok(text.to_owned()),
        false => Err(format!("{text:?} is no zone: up to {ZONE} of A-Z, a-z, 0-9, '.', '_', '-' and '/'")),
    }
}

/// `10.0.0.7:9000`, `10.0.0.7`, `[::1]:9000`, `::1`, `9000`, `:9000`.
fn listen_address(text: &str) -> Result<SocketAddr, String> {
    let bad =
        || format!("{text:?} is no address to listen on: write it like 10.0.0.7:9000, 10.0.0.7 or :9000");
    if let Ok(port) = text.strip_prefix(':').unwrap_or(text).parse::<u16>() {
        // Both kinds of address, where the machine has both.
        return Ok((Ipv6Addr::UNSPECIFIED, port).into());
    }
    if let Ok(addr) = text.parse::<SocketAddr>() {
        return Ok(addr);
    }
    let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
    bare.parse::<IpAddr>().map(|ip| (ip, 0).into()).map_err(|_| bad())
}

pub(super) fn advertised_address(text: &str) -> Result<Advertise, String> {
    text.parse()
        .map_err(|_| format!("{text:?} is no address: write it like node-7, 10.0.0.7 or 10.0.0.7:9000"))
}

impl PeerArgs {
    /// Whether content may be fetched from the Hub, with other nodes or without.
    pub(super) fn hub_fetch(&self) -> bool {
        self.hub == HubUse::Allow
    }

    /// Bytes a second from the Hub, with other nodes or without; `None`: as many as there are.
    pub(super) fn hub_limit(&self) -> Option<u64> {
        self.hub_limit.0
    }

    /// `None`: no peers. `offline`: the Hub is not called either way.
    pub(super) fn options(&self, offline: bool) -> Option<PeerOptions> {
        if self.no_peers {
            return None;
        }
        let role = match self.role {
            RoleName::Normal => Role::Normal,
            RoleName::Seed => Role::Seed,
            RoleName::Leech => Role::Leech,
        };
        Some(PeerOptions {
            listen: self.peer_listen,
            advertise: self.advertise.clone(),
            role,
            zone: self.zone.clone(),
            upload_slots: self.upload_slots.unwrap_or(role.default_slots()),
            upload_limit: self.upload_limit.0,
            download_limit: self.download_limit.0,
            hub: self.hub == HubUse::Allow && !offline,
            redis_down: match self.redis_down {
                WithoutRedis::Wait => RedisDown::Wait,
                WithoutRedis::Direct => RedisDown::Direct,
            },
            ..PeerOptions::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        peer: PeerArgs,
    }

    fn args(words: &str) -> PeerArgs {
        let line = Line::try_parse_from(std::iter::once("x").chain(words.split_whitespace()));
        line.expect("a right command line").peer
    }

    fn parse(words: &str) -> Option<PeerOptions> {
        args(words).options(false)
    }

    #[test]
    fn defaults_are_those_of_the_room() {
        assert_eq!(parse(""), Some(PeerOptions::default()));
        assert_eq!(parse("--no-peers --role seed"), None);
    }

    #[test]
    fn options_are_read() {
        let all = "--peer-listen 10.0.0.7 --advertise node-7:81 --role seed --zone rack/7 --upload-limit 10M/s \
                   --download-limit 0 --hub-limit 1K --hub deny --redis-down direct";
        let options = parse(all).expect("peers");
        assert_eq!(options.listen, Some(([10, 0, 0, 7], 0).into()));
        assert_eq!(options.advertise.expect("given").to_string(), "node-7:81");
        assert_eq!((options.role, options.upload_slots, &*options.zone), (Role::Seed, 64, "rack/7"));
        assert_eq!((options.upload_limit, options.download_limit), (Some(10 << 20), None));
        assert_eq!(
            (args(all).hub_limit(), options.hub, options.redis_down),
            (Some(1024), false, RedisDown::Direct)
        );
        assert_eq!(parse("--upload-slots 3 --role seed").expect("peers").upload_slots, 3);
        let line = Line::try_parse_from(["x"]).expect("defaults");
        assert!(!line.peer.options(true).expect("peers").hub, "offline is offline");
    }

    #[test]
    fn places_to_listen_on() {
        let read = |text| listen_address(text).map(|addr| addr.to_string()).ok();
        assert_eq!(read("127.0.0.1:80").as_deref(), Some("127.0.0.1:80"));
        assert_eq!(read("127.0.0.1").as_deref(), Some("127.0.0.1:0"));
        assert_eq!(read(":9000").as_deref(), Some("[::]:9000"));
        assert_eq!(read("9000").as_deref(), Some("[::]:9000"));
        assert_eq!(read("::1").as_deref(), Some("[::1]:0"));
        assert_eq!(read("[::1]").as_deref(), Some("[::1]:0"));
        assert_eq!(read("[::1]:5").as_deref(), Some("[::1]:5"));
        for no in ["", "node-7", "node-7:80", "70000", "1.2.3:4"] {
            assert_eq!(read(no), None, "{no}");
        }
        assert!(zone("a|b").is_err() && zone(&"z".repeat(65)).is_err() && zone("eu-1/rack.7").is_ok());
    }
}
