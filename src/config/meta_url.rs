//! Where a volume's metadata is: the one thing that a mount must be told.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use percent_encoding::percent_decode_str;
use url::Url;

use crate::error::{Error, Kind, Result};
use crate::secrets::Secret;

/// The password of the metadata engine, if it is not in the URL: `HFMOUNT_META_PASSWORD`, or the file that
/// `HFMOUNT_META_PASSWORD_FILE` names.
pub const PASSWORD: &str = "HFMOUNT_META_PASSWORD";

const DEFAULT_PORT: u16 = 6379;
const FORMS: &str =
    "redis://[user[:password]@]host[:port][/db], rediss://…, redis+unix:///path[?db=N] or sqlite:///path";

/// The metadata engine and the place in it. `Display` and `Debug` leave out the password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetaUrl {
    /// A file of this machine, absolute.
    Sqlite(PathBuf),
    Redis(RedisUrl),
}

/// A place in a Redis.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisUrl {
    pub address: SocketAddress,
    pub db: u32,
    pub username: Option<String>,
    pub password: Option<Secret>,
    /// Tells several volumes in one database apart; `None`: the usual one.
    pub prefix: Option<String>,
}

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SocketAddress {
    Tcp { host: String, port: u16, tls: bool },
    Unix(PathBuf),
}

impl MetaUrl {
    /// Fills in a password that is not in the URL. No effect on SQLite.
    #[must_use]
    pub fn with_password(mut self, password: Option<Secret>) -> Self {
        if let MetaUrl::Redis(redis) = &mut self {
            redis.password = redis.password.take().or(password);
        }
        self
    }

    /// The URL without its password, and the password: for a command line that others can see. `None` if there is none
    /// in it.
    #[must_use]
    pub fn split_password(text: &str) -> Option<(String, String)> {
        let (scheme, rest) = text.split_once("://")?;
        // What comes before the last `@` of the authority, as URL parsers see it.
        let authority = &rest[..rest.find(['/', '?', '#']).unwrap_or(rest.len())];
        let at = authority.rfind('@')?;
        let (user, password) = authority[..at].split_once(':')?;
        if password.is_empty() {
            return None;
        }
        let decoded = percent_decode_str(password).decode_utf8().ok()?.into_owned();
        Some((format!("{scheme}://{user}@{}", &rest[at + 1..]), decoded))
    }
}

impl FromStr for MetaUrl {
    type Err = Error;

    /// The text is never repeated in an error: it may hold a password.
    fn from_str(text: &str) -> Result<Self> {
        let url = Url::parse(text).map_err(|e| bad(format!("{e}: it should look like {FORMS}")))?;
        if url.fragment().is_some() {
            return Err(bad("it has a fragment (#…): write a # in a password as %23"));
        }
        match url.scheme() {
            "sqlite" => sqlite(&url),
            "redis" => redis(&url, Some(false)),
            "rediss" => redis(&url, Some(true)),
            "redis+unix" => redis(&url, None),
            other => Err(bad(format!("scheme {other:?}: it should look like {FORMS}"))),
        }
    }
}

fn bad(why: impl Into<String>) -> Error {
    Error::with_source(Kind::Config, "metadata URL", why.into())
}

fn decoded(text: &str) -> Result<String> {
    let text = percent_decode_str(text).decode_utf8().map_err(|_| bad("it is not UTF-8"))?;
    Ok(text.into_owned())
}

fn sqlite(url: &Url) -> Result<MetaUrl> {
    if url.host_str().is_some_and(|h| !h.is_empty()) || !url.path().starts_with('/') || url.path().len() < 2 {
        return Err(bad("it should look like sqlite:///path, with three slashes"));
    }
    if url.query().is_some() {
        return Err(bad("sqlite takes no options"));
    }
    Ok(MetaUrl::Sqlite(PathBuf::from(decoded(url.path())?)))
}

/// `tls` is `None` for a socket in the file system.
fn redis(url: &Url, tls: Option<bool>) -> Result<MetaUrl> {
    let mut db = 0;
    let number = |text: &str| text.parse::<u32>().map_err(|_| bad(format!("{text:?} is no database number")));
    let address = match tls {
        Some(tls) => {
            let host = url.host_str().filter(|h| !h.is_empty()).ok_or_else(|| bad("it names no host"))?;
            match url.path().trim_matches('/') {
                "" => {}
                path => db = number(path)?,
            }
            let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
            SocketAddress::Tcp { host, port: url.port().unwrap_or(DEFAULT_PORT), tls }
        }
        None => {
            if url.host_str().is_some_and(|h| !h.is_empty()) || url.path().len() < 2 {
                return Err(bad("it should look like redis+unix:///path, with three slashes"));
            }
            SocketAddress::Unix(PathBuf::from(decoded(url.path())?))
        }
    };
    let mut prefix = None;
    for (key, value) in url.query_pairs() {
        match &*key {
            "db" if tls.is_none() => db = number(&value)?,
            "prefix" => prefix = Some(value.into_owned()),
            other => return Err(bad(format!("option {other:?} is not known"))),
        }
    }
    let username = Some(decoded(url.username())?).filter(|u| !u.is_empty());
    let password = url.password().filter(|p| !p.is_empty()).map(decoded).transpose()?.map(Secret::from);
    Ok(MetaUrl::Redis(RedisUrl { address, db, username, password, prefix }))
}

impl fmt::Display for MetaUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MetaUrl::Sqlite(path) => write!(f, "sqlite://{}", path.display()),
            MetaUrl::Redis(redis) => fmt::Display::fmt(redis, f),
        }
    }
}

impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let user = self.username.as_deref().unwrap_or_default();
        let login = match &self.password {
            Some(_) => format!("{user}:***@"),
            None if user.is_empty() => String::new(),
            None => format!("{user}@"),
        };
        let mut options = Vec::new();
        match &self.address {
            SocketAddress::Tcp { host, port, tls } => {
                let scheme = if *tls { "rediss" } else { "redis" };
                let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
                write!(f, "{scheme}://{login}{host}:{port}/{}", self.db)?;
            }
            SocketAddress::Unix(path) => {
                write!(f, "redis+unix://{login}{}", path.display())?;
                if self.db != 0 {
                    options.push(format!("db={}", self.db));
                }
            }
        }
        options.extend(self.prefix.as_ref().map(|p| format!("prefix={p}")));
        if !options.is_empty() {
            write!(f, "?{}", options.join("&"))?;
        }
        Ok(())
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_parse_and_print_without_the_password() {
        for (text, shown) in [
            ("redis://db.example", "redis://db.example:6379/0"),
            ("redis://db:7000/3", "redis://db:7000/3"),
            ("rediss://u:p%40ss@db/1?prefix=team-a", "rediss://u:***@db:6379/1?prefix=team-a"),
            ("redis://:pw@[::1]:6380/", "redis://:***@[::1]:6380/0"),
            ("redis+unix:///run/redis.sock?db=2", "redis+unix:///run/redis.sock?db=2"),
            ("sqlite:///srv/my%20meta.db", "sqlite:///srv/my meta.db"),
        ] {
            let url: MetaUrl = text.parse().expect(text);
            assert_eq!(url.to_string(), shown, "{text}");
            assert!(!format!("{url:?}").contains("p@ss"), "{url:?}");
        }
        let MetaUrl::Redis(redis) = "redis://u:p%40ss@db".parse().expect("url") else { panic!("redis") };
        assert_eq!(redis.password.expect("password").expose(), "p@ss");
    }

    #[test]
    fn what_cannot_be_meant_is_refused_without_repeating_it() {
        for text in [
            "",
            "db:6379",
            "http://u:hunter2@db",
            "redis://u:hunter2@db/x",
            "redis://u:hunter2@db/0?cluster=1",
            "redis://u:hunter2@",
            "redis://u:hunter2@db:port/0",
            "redis://u:hunter2#@db",
            "sqlite://relative.db",
            "sqlite://u:hunter2@host/x",
            "sqlite:///",
            "redis+unix://host/x",
        ] {
            let e = text.parse::<MetaUrl>().expect_err(text);
            assert_eq!(e.kind(), Kind::Config, "{text}");
            assert!(!format!("{e} {e:?}").contains("hunter2"), "{e}");
        }
    }

    #[test]
    fn passwords_can_be_taken_out_of_a_command_line() {
        assert_eq!(
            MetaUrl::split_password("redis://u:p%40s@db:1/0?prefix=x"),
            Some(("redis://u@db:1/0?prefix=x".into(), "p@s".into()))
        );
        assert_eq!(MetaUrl::split_password("redis://:s@db"), Some(("redis://@db".into(), "s".into())));
        let (bare, _) = MetaUrl::split_password("redis://:s@db").expect("password");
        assert_eq!(bare.parse::<MetaUrl>().expect("url").to_string(), "redis://db:6379/0");
        for none in ["redis://db", "redis://u@db", "redis://u:@db", "sqlite:///a:b@c", "nonsense"] {
            assert_eq!(MetaUrl::split_password(none), None, "{none}");
        }
    }

    #[test]
    fn a_password_from_elsewhere_fills_a_gap_only() {
        let fill = |text: &str| {
            let url: MetaUrl = text.parse().expect(text);
            match url.with_password(Some(Secret::from("other".to_owned()))) {
                MetaUrl::Redis(redis) => redis.password.map(|p| p.expose().to_owned()),
                MetaUrl::Sqlite(_) => None,
            }
        };
        assert_eq!(fill("redis://db").as_deref(), Some("other"));
        assert_eq!(fill("redis://:own@db").as_deref(), Some("own"));
        assert_eq!(fill("sqlite:///x"), None);
    }
}
