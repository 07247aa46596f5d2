//! How the Hub is reached, and the token.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::error::{Error, Kind, Result};

/// A user access token. Never printed; not serialisable on purpose.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// A token from its text; surrounding white space goes. `None` when nothing is left.
    ///
    /// # Errors
    /// [`Kind::Config`] for characters that no header can carry; the text is not repeated.
    pub fn new(text: &str) -> Result<Option<Self>> {
        let text = text.trim();
        if !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(Error::new(Kind::Config, "the Hub token holds characters that no token has"));
        }
        Ok((!text.is_empty()).then(|| Token(text.to_owned())))
    }

    /// The token that the Hugging Face libraries would use: `HF_TOKEN` (`HUGGING_FACE_HUB_TOKEN`), else the file
    /// `HF_TOKEN_PATH`, `$HF_HOME/token` or `~/.cache/huggingface/token`. To be called before anything is mounted there.
    ///
    /// # Errors
    /// [`Kind::Config`] when the file exists and cannot be read.
    pub fn discover() -> Result<Option<Self>> {
        Self::discover_with(|name| std::env::var(name).ok().filter(|v| !v.is_empty()))
    }

    fn discover_with(var: impl Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        for name in ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"] {
            if let Some(token) = var(name).map(|v| Token::new(&v)).transpose()?.flatten() {
                return Ok(Some(token));
            }
        }
        let home = || {
            let cache = var("XDG_CACHE_HOME").map(PathBuf::from);
            let cache = cache.or_else(|| var("HOME").map(|h| PathBuf::from(h).join(".cache")));
            var("HF_HOME").map(PathBuf::from).or_else(|| cache.map(|c| c.join("huggingface")))
        };
        let file = var("HF_TOKEN_PATH").map(PathBuf::from).or_else(|| home().map(|h| h.join("token")));
        let Some(file) = file else { return Ok(None) };
        match std::fs::read_to_string(&file) {
            Ok(text) => Token::new(&text),
            Err(e)
                if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) =>
            {
                Ok(None)
            }
            Err(e) => Err(Error::with_source(Kind::Config, format!("token file {}", file.display()), e)),
        }
    }

    /// A name for those who have the same rights at an endpoint, with this token or without one. It tells nothing of the
    /// token to who does not have the `key`.
    #[must_use]
    pub fn scope(token: Option<&Token>, endpoint: &str, key: &[u8; 32]) -> String {
        let mut hasher = blake3::Hasher::new_keyed(key);
        hasher.update(b"hub scope\0").update(endpoint.trim_end_matches('/').as_bytes());
        if let Some(token) = token {
            hasher.update(b"\0").update(token.0.as_bytes());
        }
        hasher.finalize().to_hex()[..32].to_owned()
    }

    pub(super) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// How the Hub is reached.
#[derive(Clone, Debug)]
pub struct HubOptions {
    /// `https://huggingface.co`, or a mirror; a path prefix is allowed.
    pub endpoint: String,
    pub token: Option<Token>,
    pub user_agent: String,
    /// For a connection to be made.
    pub connect_timeout: Duration,
    /// For an answer to begin, and between two pieces of a body.
    pub read_timeout: Duration,
    /// For a call with all its tries; for bytes, the longest time without a new one.
    pub deadline: Duration,
    /// API calls under way at once.
    pub concurrency: usize,
    /// Bodies of files under way at once.
    pub transfers: usize,
    /// Calls are tried again while that can help, and waits that the server asks for are kept. Otherwise the first failure
    /// is the answer: somebody else can be asked.
    pub patient: bool,
    /// Every call answers [`Kind::Unavailable`] at once, without I/O.
    pub offline: bool,
}

impl HubOptions {
    /// The endpoint of the Hub itself.
    pub const ENDPOINT: &'static str = "https://huggingface.co";
}

impl Default for HubOptions {
    fn default() -> Self {
        HubOptions {
            endpoint: Self::ENDPOINT.to_owned(),
            token: None,
            user_agent: concat!("hfmount/", env!("CARGO_PKG_VERSION")).to_owned(),
            connect_timeout: Duration::from_secs(10),
            read_timeout: Duration::from_secs(20),
            deadline: Duration::from_secs(60),
            concurrency: 16,
            transfers: 64,
            patient: true,
            offline: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_not_printed() {
        let token = Token::new(" hf_secret\n").expect("plain").expect("some");
        let options = HubOptions { token: Some(token.clone()), ..HubOptions::default() };
        assert!(!format!("{options:?} {token:?}").contains("hf_secret"));
        assert_eq!(token.expose(), "hf_secret");
        let refused = Token::new("hf_se cret").expect_err("a space");
        assert!(!format!("{refused} {refused:?}").contains("cret\""));
    }

    #[test]
    fn scopes_differ_by_token_endpoint_and_key() {
        let token = |text| Token::new(text).expect("plain");
        let of = |t: Option<Token>, endpoint, key: u8| Token::scope(t.as_ref(), endpoint, &[key; 32]);
        let anon = of(None, "https://hub", 1);
        assert_eq!(anon, of(None, "https://hub/", 1));
        assert!(anon.len() == 32 && anon.bytes().all(|b| b.is_ascii_alphanumeric()));
        let mut all = vec![
            anon,
            of(token("a"), "https://hub", 1),
            of(token("b"), "https://hub", 1),
            of(None, "https://other", 1),
            of(None, "https://hub", 2),
        ];
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 5);
    }

    #[test]
    fn the_libraries_places_in_their_order() {
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::write(dir.path().join("token"), "hf_file\n").expect("written");
        let home = dir.path().to_str().expect("UTF-8").to_owned();
        let of = |vars: &[(&str, &str)]| {
            let vars: Vec<(String, String)> =
                vars.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
            Token::discover_with(|name| vars.iter().find(|(k, _)| k == name).map(|(_, v)| v.clone()))
                .expect("readable")
                .map(|t| t.0)
        };
        assert_eq!(of(&[("HF_TOKEN", "hf_env"), ("HF_HOME", &home)]).as_deref(), Some("hf_env"));
        assert_eq!(of(&[("HF_HOME", &home)]).as_deref(), Some("hf_file"));
        assert_eq!(of(&[("HF_TOKEN_PATH", &format!("{home}/none")), ("HF_HOME", &home)]), None);
        assert_eq!(of(&[]), None);
    }
}
