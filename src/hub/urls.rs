//! The one place where URLs of the Hub are made.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::Url;

use crate::error::{Error, Kind, Result};
use crate::types::{RepoId, RepoKind};

/// All but what RFC 3986 calls unreserved.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Builds URLs under an endpoint.
#[derive(Clone, Debug)]
pub struct Urls {
    endpoint: Url,
    /// Without a slash at the end.
    prefix: String,
}

impl Urls {
    /// # Errors
    /// [`Kind::Config`] when it is not an http(s) URL.
    pub fn new(endpoint: &str) -> Result<Self> {
        let prefix = endpoint.trim().trim_end_matches('/').to_owned();
        let bad = || format!("Hub endpoint {prefix:?}");
        let url = Url::parse(&prefix).map_err(|e| Error::with_source(Kind::Config, bad(), e))?;
        let plain = url.query().is_none() && url.fragment().is_none() && url.username().is_empty();
        if !matches!(url.scheme(), "http" | "https") || url.host().is_none() || !plain {
            return Err(Error::new(Kind::Config, bad()));
        }
        Ok(Urls { endpoint: url, prefix })
    }

    pub fn endpoint(&self) -> &str {
        &self.prefix
    }

    /// Whether the endpoint is plain http.
    pub fn is_plain(&self) -> bool {
        self.endpoint.scheme() == "http"
    }

    /// Whether the URL is the Hub's own: the token may go there.
    pub fn is_hub(&self, url: &Url) -> bool {
        url.origin() == self.endpoint.origin()
    }

    /// `/api/models/org/name`, followed by `rest` segments.
    pub fn api(&self, repo: &RepoId, rest: &[&str]) -> Result<Url> {
        let mut path = format!("{}/api/{}/{}", self.prefix, repo.kind.plural(), repo_path(repo)?);
        for segment in rest {
            path.push('/');
            path.push_str(&encode(segment)?);
        }
        parse(&path)
    }

    /// `/api/<name>` of the Hub as a whole.
    pub fn global(&self, name: &str) -> Result<Url> {
        parse(&format!("{}/api/{}", self.prefix, encode(name)?))
    }

    /// `/datasets/org/name/resolve/<revision>/<path>`.
    pub fn resolve(&self, repo: &RepoId, revision: &str, path: &str) -> Result<Url> {
        let kind = match repo.kind {
            RepoKind::Model => "",
            RepoKind::Dataset => "datasets/",
            RepoKind::Space => "spaces/",
        };
        let id = repo_path(repo)?;
        let path = path.split('/').map(encode).collect::<Result<Vec<_>>>()?.join("/");
        parse(&format!("{}/{kind}{id}/resolve/{}/{path}", self.prefix, encode(revision)?))
    }
}

fn repo_path(repo: &RepoId) -> Result<String> {
    Ok(repo.id.split('/').map(encode).collect::<Result<Vec<_>>>()?.join("/"))
}

/// One segment. `.` and `..` would be resolved away, encoded or not.
fn encode(segment: &str) -> Result<String> {
    if matches!(segment, "" | "." | "..") {
        return Err(Error::new(Kind::Invalid, format!("{segment:?} in a URL of the Hub")));
    }
    Ok(utf8_percent_encode(segment, SEGMENT).to_string())
}

fn parse(text: &str) -> Result<Url> {
    Url::parse(text).map_err(|e| Error::with_source(Kind::Invalid, format!("URL {text:?}"), e))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repo(kind: RepoKind, id: &str) -> RepoId {
        RepoId { kind, id: id.to_owned() }
    }

    #[test]
    fn revisions_are_one_segment_and_paths_keep_their_slashes() {
        let urls = Urls::new("https://hub.example/mirror/").expect("valid");
        let r = repo(RepoKind::Model, "org/na.me");
        assert_eq!(
            urls.api(&r, &["revision", "refs/pr/1"]).expect("valid").as_str(),
            "https://hub.example/mirror/api/models/org/na.me/revision/refs%2Fpr%2F1"
        );
        let r = repo(RepoKind::Dataset, "squad");
        assert_eq!(
            urls.resolve(&r, "a#b?", "dir one/grün %.txt").expect("valid").as_str(),
            "https://hub.example/mirror/datasets/squad/resolve/a%23b%3F/dir%20one/gr%C3%BCn%20%25.txt"
        );
    }

    #[test]
    fn no_way_up() {
        let urls = Urls::new("https://hub.example").expect("valid");
        let r = repo(RepoKind::Model, "a/b");
        assert!(urls.resolve(&r, "main", "../secret").is_err());
        assert!(urls.resolve(&r, "main", "a//b").is_err());
        assert!(urls.api(&r, &["revision", ".."]).is_err());
        assert!(urls.api(&repo(RepoKind::Model, "../x"), &[]).is_err());
    }

    #[test]
    fn the_token_is_for_one_origin() {
        let urls = Urls::new("https://hub.example").expect("valid");
        let is_hub = |u: &str| urls.is_hub(&Url::parse(u).expect("valid"));
        assert!(is_hub("https://hub.example:443/x"));
        for other in ["http://hub.example/x", "https://hub.example:444/", "https://cdn.hub.example/"] {
            assert!(!is_hub(other), "{other}");
        }
        for bad in ["hub.example", "ftp://hub.example", "https://u@hub.example", "https://h/?a=b", ""] {
            assert!(Urls::new(bad).is_err_and(|e| e.kind() == Kind::Config), "{bad}");
        }
    }
}
