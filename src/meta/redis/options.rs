//! Which Redis, as whom, and how long to wait.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use ::redis::io::tcp::TcpSettings;
use ::redis::{Client, ConnectionAddr, IntoConnectionInfo, ProtocolVersion, RedisConnectionInfo};

use crate::error::{Error, Kind, Result};

/// The prefix of a volume's keys unless the user says another.
pub const DEFAULT_PREFIX: &str = "hfmount";

/// Where a Redis listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RedisAddress {
    Tcp {
        host: String,
        port: u16,
        tls: bool,
    },
    Unix(PathBuf),
    /// The primary that these sentinels name `master`. They are asked for every new connection.
    Sentinel {
        hosts: Vec<(String, u16)>,
        master: String,
        tls: bool,
    },
}

/// What is needed to reach a volume's metadata in Redis. `Debug` and `Display` leave out the password.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisOptions {
    pub address: RedisAddress,
    pub db: u32,
    pub username: Option<String>,
    pub password: Option<String>,
    /// Of the sentinels, if they ask for one.
    pub sentinel_password: Option<String>,
    /// Tells the volumes in one database apart: `[A-Za-z0-9._-]`, 1–64 characters.
    pub prefix: String,
    /// How long one try of an operation may take, a new connection included.
    pub try_timeout: Duration,
    /// How long an operation may take in all, while the connection breaks or the server says that it cannot now.
    pub total_timeout: Duration,
}

impl RedisOptions {
    /// Database 0 at `address`, no user, the usual prefix; 5 seconds a try, 30 in all.
    #[must_use]
    pub fn new(address: RedisAddress) -> Self {
        RedisOptions {
            address,
            db: 0,
            username: None,
            password: None,
            sentinel_password: None,
            prefix: DEFAULT_PREFIX.to_owned(),
            try_timeout: Duration::from_secs(5),
            total_timeout: Duration::from_secs(30),
        }
    }

    /// Whether `prefix` may be one: it lies between the braces that keep a volume in one slot.
    #[must_use]
    pub fn is_prefix(prefix: &str) -> bool {
        (1..=64).contains(&prefix.len())
            && prefix.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
    }

    /// RESP3 is needed for pushed messages only; RESP2 works with everything.
    pub(super) fn client(&self, address: &RedisAddress, protocol: ProtocolVersion) -> Result<Client> {
        let mut login = RedisConnectionInfo::default().set_db(i64::from(self.db));
        if let Some(username) = &self.username {
            login = login.set_username(username);
        }
        if let Some(password) = &self.password {
            login = login.set_password(password);
        }
        self.client_as(address, protocol, login)
    }

    /// The same for a sentinel, which has no databases and a password of its own.
    pub(super) fn client_of_sentinel(
        &self,
        address: &RedisAddress,
        protocol: ProtocolVersion,
    ) -> Result<Client> {
        let mut login = RedisConnectionInfo::default();
        if let Some(password) = &self.sentinel_password {
            login = login.set_password(password);
        }
        self.client_as(address, protocol, login)
    }

    fn client_as(
        &self,
        address: &RedisAddress,
        protocol: ProtocolVersion,
        login: RedisConnectionInfo,
    ) -> Result<Client> {
        let addr = match address {
            RedisAddress::Tcp { host, port, tls: false } => ConnectionAddr::Tcp(host.clone(), *port),
            RedisAddress::Tcp { host, port, tls: true } => {
                // Where another part has installed it already, that is the same one.
                let _ = rustls::crypto::ring::default_provider().install_default();
                ConnectionAddr::TcpTls { host: host.clone(), port: *port, insecure: false, tls_params: None }
            }
            RedisAddress::Unix(path) => ConnectionAddr::Unix(path.clone()),
            // Resolved before this.
            RedisAddress::Sentinel { .. } => return Err(Error::new(Kind::Internal, self.to_string())),
        };
        let redis = login.set_protocol(protocol).set_lib_name("hfmount", env!("CARGO_PKG_VERSION"));
        // A peer that vanished without a word is noticed after the time of one try.
        let tcp = TcpSettings::default().set_nodelay(true).set_user_timeout(self.try_timeout);
        addr.into_connection_info()
            .map(|info| info.set_redis_settings(redis).set_tcp_settings(tcp))
            .and_then(Client::open)
            .map_err(|e| Error::with_source(Kind::Config, self.to_string(), e))
    }
}

impl RedisOptions {
    fn login(&self) -> String {
        match (self.username.as_deref(), &self.password) {
            (None, None) => String::new(),
            (Some(user), None) => format!("{user}@"),
            (user, Some(_)) => format!("{}:***@", user.unwrap_or_default()),
        }
    }
}

fn place(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

impl fmt::Display for RedisOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parameters = Vec::new();
        match &self.address {
            RedisAddress::Tcp { host, port, tls } => {
                let scheme = if *tls { "rediss" } else { "redis" };
                write!(f, "{scheme}://{}{}/{}", self.login(), place(host, *port), self.db)?;
            }
            RedisAddress::Sentinel { hosts, master, tls } => {
                let scheme = if *tls { "rediss" } else { "redis" };
                let hosts: Vec<String> = hosts.iter().map(|(host, port)| place(host, *port)).collect();
                write!(f, "{scheme}+sentinel://{}{}/{master}/{}", self.login(), hosts.join(","), self.db)?;
            }
            RedisAddress::Unix(path) => {
                write!(f, "redis+unix://{}", path.display())?;
                parameters.extend((self.db != 0).then(|| format!("db={}", self.db)));
                parameters.extend(self.username.as_ref().map(|user| format!("user={user}")));
            }
        }
        parameters.extend((self.prefix != DEFAULT_PREFIX).then(|| format!("prefix={}", self.prefix)));
        if !parameters.is_empty() {
            write!(f, "?{}", parameters.join("&"))?;
        }
        Ok(())
    }
}

impl fmt::Debug for RedisOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisOptions")
            .field("url", &self.to_string())
            .field("try_timeout", &self.try_timeout)
            .field("total_timeout", &self.total_timeout)
            .finish_non_exhaustive()
    }
}
