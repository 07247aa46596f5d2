//! Where a volume's metadata is, as users write it.
//!
//! | form | engine |
//! |---|---|
//! | `redis://[user[:password]@]host[:port][/db]` | Redis or Valkey (also `valkey://`) |
//! | `rediss://…` | the same over TLS, checked against the system's certificates or those in `SSL_CERT_FILE` |
//! | `redis+sentinel://[user@]host[:port][,host[:port]…]/master-name[/db]` | the primary that these sentinels know (also `rediss+sentinel://`) |
//! | `redis+unix:///path/of/socket[?db=n][&user=name]` | the same on this machine |
//! | `sqlite:///path/of/file`, `/path/of/file`, `./file` | SQLite |
//!
//! A Redis database holds one volume, whose keys begin with `{hfmount}`; `?prefix=name` puts another one beside it.
//!
//! A password on the command line can be read by everybody on the machine; [`MetaUrl::with_password`] takes it from
//! elsewhere. No error, `Display` or `Debug` here tells it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use url::Url;

use super::kv::Kv;
use super::redis::{RedisAddress, RedisKv, RedisOptions};
use super::sqlite::{Missing, SqliteKv};
use crate::error::{Error, Kind, Result, ResultExt};

/// The ports of Redis and of its sentinels.
const REDIS_PORT: u16 = 6379;
const SENTINEL_PORT: u16 = 26379;

/// Where a volume's metadata is. `Display` and `Debug` leave out the password.
#[derive(Clone, PartialEq, Eq)]
pub enum MetaUrl {
    /// An absolute path.
    Sqlite(PathBuf),
    Redis(RedisOptions),
}

/// What the environment says about the password, looked up by the caller.
#[derive(Clone, Default)]
pub struct PasswordSource {
    /// `HFMOUNT_META_PASSWORD`.
    pub value: Option<String>,
    /// `HFMOUNT_META_PASSWORD_FILE`: a file with nothing but the password; a newline at its end is not part of it.
    pub file: Option<PathBuf>,
}

impl MetaUrl {
    /// Reads any of the forms above. A relative path is taken from the working directory.
    ///
    /// # Errors
    /// [`Kind::Config`], with a text that names what is wrong but never repeats the URL.
    pub fn parse(text: &str) -> Result<Self> {
        if text.starts_with(['/', '.']) {
            return sqlite(text);
        }
        let Some((scheme, rest)) = text.split_once(':') else {
            return Err(config("say redis://host/db, sqlite:///path or a path with a slash"));
        };
        match scheme {
            "sqlite" => sqlite(rest.strip_prefix("//").unwrap_or(rest)),
            "redis+sentinel" | "valkey+sentinel" => sentinel(rest, false),
            "rediss+sentinel" | "valkeys+sentinel" => sentinel(rest, true),
            "redis" | "valkey" | "rediss" | "valkeys" | "redis+unix" | "valkey+unix" => redis(text),
            _ => Err(config(format!("no engine is called {scheme:?}"))),
        }
    }

    /// The SQLite file of a volume whose metadata URL is not given: `<volume>.db` in `hfmount_home` (`HFMOUNT_HOME`), or
    /// in `.local/share/hfmount` under the user's `home`.
    ///
    /// # Errors
    /// [`Kind::Config`] if neither folder is known, or `volume` is no name for a file.
    pub fn default_file(hfmount_home: Option<&Path>, home: Option<&Path>, volume: &str) -> Result<Self> {
        if !RedisOptions::is_prefix(volume) || volume.starts_with('.') {
            return Err(Error::new(Kind::Config, format!("volume name {volume:?}")));
        }
        let dir = match (hfmount_home, home) {
            (Some(dir), _) => dir.to_owned(),
            (None, Some(home)) => home.join(".local/share/hfmount"),
            (None, None) => return Err(config("neither HFMOUNT_HOME nor HOME is set")),
        };
        Ok(MetaUrl::Sqlite(absolute(&dir.join(format!("{volume}.db")))?))
    }

    /// Adds the password of the sentinels, if it is them who know where the metadata is.
    #[must_use]
    pub fn with_sentinel_password(mut self, password: Option<String>) -> Self {
        if let MetaUrl::Redis(options) = &mut self
            && matches!(options.address, RedisAddress::Sentinel { .. })
        {
            options.sentinel_password = password;
        }
        self
    }

    /// Says how long an operation may wait for a server that does not answer; a sixth of that, at most 5 seconds, for one try.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        if let MetaUrl::Redis(options) = &mut self {
            options.total_timeout = timeout;
            options.try_timeout = (timeout / 6).clamp(Duration::from_millis(100), Duration::from_secs(5));
        }
        self
    }

    /// Adds the password that the environment tells: a password in the URL comes first, then the value, then the file.
    ///
    /// # Errors
    /// If the file is named and needed but cannot be read.
    pub fn with_password(mut self, source: &PasswordSource) -> Result<Self> {
        if let MetaUrl::Redis(options) = &mut self
            && options.password.is_none()
        {
            options.password = match source {
                PasswordSource { value: Some(value), .. } => Some(value.clone()),
                PasswordSource { file: Some(path), .. } => {
                    let text = std::fs::read_to_string(path)
                        .context(|| format!("password file {}", path.display()))
                        .map_err(|e| e.with_kind(Kind::Config))?;
                    Some(text.trim_end_matches(['\r', '\n']).to_owned())
                }
                PasswordSource { value: None, file: None } => None,
            };
        }
        Ok(self)
    }
}

/// Connects to the metadata at `url`. `missing` says what to do if an SQLite file is not there; in Redis a volume is
/// there when it is formatted, which the caller finds out.
///
/// # Errors
/// Those of [`SqliteKv::open`] and [`RedisKv::open`].
pub async fn open_engine(url: &MetaUrl, missing: Missing) -> Result<Arc<dyn Kv>> {
    Ok(match url {
        MetaUrl::Sqlite(path) => SqliteKv::open(path, missing).await?,
        MetaUrl::Redis(options) => RedisKv::open(options.clone()).await?,
    })
}

impl fmt::Display for MetaUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MetaUrl::Sqlite(path) => write!(f, "sqlite://{}", path.display()),
            MetaUrl::Redis(options) => options.fmt(f),
        }
    }
}

impl fmt::Debug for MetaUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MetaUrl({self})")
    }
}

impl fmt::Debug for PasswordSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.value.as_ref().map(|_| "***");
        f.debug_struct("PasswordSource").field("value", &value).field("file", &self.file).finish()
    }
}

fn config(what: impl fmt::Display) -> Error {
    Error::new(Kind::Config, format!("metadata URL: {what}"))
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).context(|| format!("path {}", path.display()))
}

fn sqlite(path: &str) -> Result<MetaUrl> {
    if path.is_empty() || path.ends_with('/') {
        return Err(config("the path of the file is missing"));
    }
    Ok(MetaUrl::Sqlite(absolute(Path::new(path))?))
}

fn redis(text: &str) -> Result<MetaUrl> {
    // The parser's errors repeat nothing of the URL.
    let url = Url::parse(text).map_err(config)?;
    let unix = url.scheme().ends_with("+unix");
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let address = if unix {
        match decode(url.path(), "path")? {
            path if path.len() > 1 && host.is_empty() => RedisAddress::Unix(path.into()),
            _ => return Err(config("say redis+unix:///path/of/socket")),
        }
    } else if host.is_empty() {
        return Err(config("the host is missing"));
    } else {
        let tls = matches!(url.scheme(), "rediss" | "valkeys");
        RedisAddress::Tcp { host: decode(host, "host")?, port: url.port().unwrap_or(REDIS_PORT), tls }
    };
    let mut options = RedisOptions::new(address);
    options.username = Some(decode(url.username(), "user name")?).filter(|name| !name.is_empty());
    options.password = url.password().map(|text| decode(text, "password")).transpose()?;
    if !unix {
        options.db = database(url.path().trim_start_matches('/'))?;
    }
    for (name, value) in url.query_pairs() {
        match &*name {
            "db" if unix => options.db = database(&value)?,
            "user" if unix => options.username = Some(value.into_owned()),
            "prefix" if RedisOptions::is_prefix(&value) => options.prefix = value.into_owned(),
            "prefix" => return Err(config("a prefix is 1 to 64 of A-Z a-z 0-9 . _ -")),
            _ => return Err(config(format!("no parameter is called {name:?}"))),
        }
    }
    if url.fragment().is_some() {
        // Most likely an unescaped # in a password; or somebody hopes to switch off the check of certificates.
        return Err(config("nothing may follow a #; in a password write %23"));
    }
    Ok(MetaUrl::Redis(options))
}

/// `//[user[:password]@]host[:port][,…]/master[/db][?prefix=name]`. A list of hosts is beyond the URL standard.
fn sentinel(rest: &str, tls: bool) -> Result<MetaUrl> {
    let bad = || config("say redis+sentinel://[user@]host:26379,host/master-name[/db]");
    let rest = rest.strip_prefix("//").ok_or_else(bad)?;
    if rest.contains('#') {
        return Err(config("nothing may follow a #; in a password write %23"));
    }
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, path) = rest.split_once('/').ok_or_else(bad)?;
    let (login, hosts) = match authority.rsplit_once('@') {
        Some((login, hosts)) => (Some(login), hosts),
        None => (None, authority),
    };
    let hosts: Vec<(String, u16)> = hosts.split(',').map(sentinel_host).collect::<Result<_>>()?;
    let (master, db) = path.split_once('/').unwrap_or((path, ""));
    let master = decode(master, "name of the primary")?;
    if master.is_empty() {
        return Err(bad());
    }
    let mut options = RedisOptions::new(RedisAddress::Sentinel { hosts, master, tls });
    options.db = database(db)?;
    if let Some(login) = login {
        let (user, password) = match login.split_once(':') {
            Some((user, password)) => (user, Some(password)),
            None => (login, None),
        };
        options.username = Some(decode(user, "user name")?).filter(|name| !name.is_empty());
        options.password = password.map(|text| decode(text, "password")).transpose()?;
    }
    for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
        match &*name {
            "prefix" if RedisOptions::is_prefix(&value) => options.prefix = value.into_owned(),
            "prefix" => return Err(config("a prefix is 1 to 64 of A-Z a-z 0-9 . _ -")),
            _ => return Err(config(format!("no parameter is called {name:?}"))),
        }
    }
    Ok(MetaUrl::Redis(options))
}

/// `host`, `host:port`, `[v6]`, `[v6]:port`.
fn sentinel_host(text: &str) -> Result<(String, u16)> {
    let bad = || config("a sentinel is host or host:port");
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']').ok_or_else(bad)?;
            (host, port.strip_prefix(':'))
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let port = port.map_or(Ok(SENTINEL_PORT), |port| port.parse().map_err(|_| bad()))?;
    if host.is_empty() { Err(bad()) } else { Ok((decode(host, "host")?, port)) }
}

fn database(text: &str) -> Result<u32> {
    if text.is_empty() {
        return Ok(0);
    }
    text.parse().map_err(|_| config("the database is not a number"))
}

fn decode(text: &str, what: &str) -> Result<String> {
    let text = percent_decode_str(text).decode_utf8();
    text.map(|text| text.into_owned()).map_err(|_| config(format!("the {what} is not UTF-8")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redis(text: &str) -> RedisOptions {
        match MetaUrl::parse(text).expect(text) {
            MetaUrl::Redis(options) => options,
            MetaUrl::Sqlite(_) => panic!("{text} is SQLite"),
        }
    }

    #[test]
    fn redis_forms() {
        let tcp = |host: &str, port, tls| RedisAddress::Tcp { host: host.to_owned(), port, tls };
        let plain = redis("redis://db.example");
        assert_eq!(
            (plain.address, plain.db, plain.prefix.as_str()),
            (tcp("db.example", 6379, false), 0, "hfmount")
        );
        let all = redis("rediss://me:p%40ss%2F%23@db.example:7000/3?prefix=team-a");
        assert_eq!(all.address, tcp("db.example", 7000, true));
        assert_eq!((all.username.as_deref(), all.password.as_deref()), (Some("me"), Some("p@ss/#")));
        assert_eq!((all.db, all.prefix.as_str()), (3, "team-a"));
        let found = redis("redis+sentinel://me:p%2Fw@one,two:26380,[::1]:5/main/2?prefix=x");
        let hosts = vec![("one".to_owned(), 26379), ("two".to_owned(), 26380), ("::1".to_owned(), 5)];
        assert_eq!(found.address, RedisAddress::Sentinel { hosts, master: "main".to_owned(), tls: false });
        assert_eq!((found.username.as_deref(), found.password.as_deref()), (Some("me"), Some("p/w")));
        assert_eq!((found.db, found.prefix.as_str()), (2, "x"));
        let found = redis("rediss+sentinel://one/main");
        assert!(matches!(found.address, RedisAddress::Sentinel { tls: true, .. }) && found.db == 0);
        let only_password = redis("redis://:pw@[::1]:7000/");
        assert_eq!(only_password.address, tcp("::1", 7000, false));
        assert_eq!((only_password.username, only_password.password.as_deref()), (None, Some("pw")));
        let unix = redis("redis+unix:///run/re%20dis.sock?db=2&user=me");
        assert_eq!((unix.address, unix.db), (RedisAddress::Unix("/run/re dis.sock".into()), 2));
        assert_eq!(unix.username.as_deref(), Some("me"));
    }

    #[test]
    fn sqlite_forms() {
        let cwd = std::env::current_dir().expect("working directory");
        for (text, path) in [
            ("/v/a.db", PathBuf::from("/v/a.db")),
            ("sqlite:///v/a.db", "/v/a.db".into()),
            ("sqlite:/v/a.db", "/v/a.db".into()),
            ("./a.db", cwd.join("a.db")),
            ("sqlite:a.db", cwd.join("a.db")),
        ] {
            assert_eq!(MetaUrl::parse(text).expect(text), MetaUrl::Sqlite(path));
        }
    }

    #[test]
    fn what_is_wrong_is_said_and_secrets_are_not() {
        for bad in [
            "",
            "volume.db",
            "sqlite://",
            "sqlite:///v/",
            "mysql://u:hunter2@h/d",
            "redis://:hunter2@",
            "redis://u:hunter2@h:99999/0",
            "redis://u:hunter2@h/x",
            "redis://u:hunter2@h/0?prefix=a/b",
            "redis://u:hunter2@h/0?tls=no",
            "rediss://u:hunter2@h/0#insecure",
            "redis://u:hun#ter2@h/0",
            "redis+unix://host/run/s",
            "redis+unix://",
            "redis://u:hunter2%ff@h",
            "redis+sentinel://u:hunter2@h",
            "redis+sentinel://u:hunter2@h/",
            "redis+sentinel://u:hunter2@h,,i/main",
            "redis+sentinel://u:hunter2@h:x/main",
            "redis+sentinel://u:hunter2@h/main/x",
            "redis+sentinel://u:hunter2@h/main?tls=1",
            "redis+sentinel://u:hun#ter2@h/main",
        ] {
            let error = MetaUrl::parse(bad).expect_err(bad);
            assert_eq!(error.kind(), Kind::Config, "{bad}");
            for text in [error.to_string(), format!("{error:?}")] {
                assert!(!text.contains("hunter2") && !text.contains("ter2"), "{text}");
            }
        }
    }

    #[test]
    fn passwords_are_not_shown() {
        for (text, shown) in [
            ("redis://me:hunter2@h/1", "redis://me:***@h:6379/1"),
            ("rediss://:hunter2@[::1]/0?prefix=x", "rediss://:***@[::1]:6379/0?prefix=x"),
            ("redis+unix:///run/s?prefix=x&user=me&db=2", "redis+unix:///run/s?db=2&user=me&prefix=x"),
            ("redis+unix:///run/s?prefix=x", "redis+unix:///run/s?prefix=x"),
            ("redis+sentinel://me:hunter2@a,[::1]:9/m/1", "redis+sentinel://me:***@a:26379,[::1]:9/m/1"),
            ("/v/a.db", "sqlite:///v/a.db"),
        ] {
            let url = MetaUrl::parse(text).expect(text);
            assert_eq!(url.to_string(), shown);
            assert!(!format!("{url:?}").contains("hunter2"));
        }
        assert!(!format!("{:?}", redis("redis://:hunter2@h")).contains("hunter2"));
        let source = PasswordSource { value: Some("hunter2".to_owned()), file: None };
        assert!(!format!("{source:?}").contains("hunter2"));
    }

    #[test]
    fn passwords_come_from_the_nearest_place() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let file = dir.path().join("password");
        std::fs::write(&file, "from file\n").expect("write");
        let both = PasswordSource { value: Some("from value".to_owned()), file: Some(file.clone()) };
        let only_file = PasswordSource { value: None, file: Some(file) };
        let none = PasswordSource::default();
        let no_file = PasswordSource { value: None, file: Some(dir.path().join("none")) };
        let bare = || MetaUrl::parse("redis://h").expect("url");
        let password = |url: MetaUrl| match url {
            MetaUrl::Redis(options) => options.password,
            MetaUrl::Sqlite(_) => None,
        };
        let with = |url: MetaUrl, source| password(url.with_password(source).expect("password"));
        assert_eq!(with(bare(), &both).as_deref(), Some("from value"));
        assert_eq!(with(bare(), &only_file).as_deref(), Some("from file"));
        assert_eq!(with(bare(), &none), None);
        let own = MetaUrl::parse("redis://:own@h").expect("url");
        assert_eq!(with(own, &no_file).as_deref(), Some("own"));
        assert_eq!(bare().with_password(&no_file).expect_err("no file").kind(), Kind::Config);
        let sqlite = MetaUrl::parse("/v/a.db").expect("url");
        assert_eq!(sqlite.clone().with_password(&no_file).expect("not needed"), sqlite);
    }

    #[test]
    fn the_default_file_is_in_the_users_folder() {
        let [hf, home] = [Path::new("/hf"), Path::new("/home/u")];
        let file = |hf, home| MetaUrl::default_file(hf, home, "team");
        assert_eq!(file(Some(hf), Some(home)).expect("url"), MetaUrl::Sqlite("/hf/team.db".into()));
        let local = "/home/u/.local/share/hfmount/team.db";
        assert_eq!(file(None, Some(home)).expect("url"), MetaUrl::Sqlite(local.into()));
        assert_eq!(file(None, None).expect_err("no folder").kind(), Kind::Config);
        for bad in ["", "../x", "a/b", ".hidden"] {
            assert!(MetaUrl::default_file(Some(hf), None, bad).is_err(), "{bad}");
        }
    }
}
