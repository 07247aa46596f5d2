//! The calls: revisions, trees, refs.

use reqwest::Url;
use reqwest::header::{HeaderMap, LINK};
use serde::Deserialize;
use serde_json::Value;

use super::client::HubClient;
use super::date;
use crate::error::{Error, Kind, Result, ResultExt};
use crate::types::{BlobId, Commit, RepoId, RepoKind, Timestamp};

/// Of a thousand entries each: far more than any repository has.
const MOST_PAGES: u32 = 20_000;
/// `NAME_MAX` and `PATH_MAX`: what is longer cannot be a file here.
const LONGEST_NAME: usize = 255;
const LONGEST_PATH: usize = 4_000;

/// What a revision of a repository is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RevisionInfo {
    /// The repository's name now: differs from the one asked for after a renaming (`gpt2` → `openai-community/gpt2`).
    pub canonical_id: String,
    pub commit: Commit,
    pub private: bool,
    /// The bytes are for those who were admitted.
    pub gated: bool,
    /// When the repository last changed; 1970 if the Hub does not say.
    pub last_modified: Timestamp,
}

/// The LFS side of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lfs {
    pub sha256: [u8; 32],
    pub size: u64,
}

/// A file of a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeFile {
    /// Relative, `/`-separated; no empty, `.` or `..` component, no NUL, each at most 255 bytes.
    pub path: String,
    /// Length of the content in bytes, at most `i64::MAX`.
    pub size: u64,
    /// The content's name: sha256 for LFS files, git's otherwise.
    pub blob: BlobId,
    /// Git's id of what git has: of the bytes or of the LFS pointer.
    pub git_oid: [u8; 20],
    pub lfs: Option<Lfs>,
    /// 64 hex digits.
    pub xet_hash: Option<String>,
}

/// A branch, tag or other ref.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubRef {
    /// What clients pass as revision and what the file under `refs/` is called: `main`, `v1.0`, `refs/pr/1`.
    pub revision: String,
    pub commit: Commit,
}

#[derive(Deserialize)]
struct InfoBody {
    id: Option<String>,
    sha: Option<String>,
    #[serde(default)]
    private: bool,
    #[serde(default)]
    gated: Value,
    #[serde(rename = "lastModified")]
    last_modified: Option<String>,
}

#[derive(Deserialize)]
struct EntryBody {
    r#type: String,
    oid: String,
    size: u64,
    path: String,
    lfs: Option<LfsBody>,
    #[serde(rename = "xetHash")]
    xet_hash: Option<String>,
}

#[derive(Deserialize)]
struct LfsBody {
    oid: String,
    size: u64,
}

#[derive(Deserialize)]
struct RefsBody {
    #[serde(default)]
    branches: Vec<RefBody>,
    #[serde(default)]
    converts: Vec<RefBody>,
    #[serde(default)]
    tags: Vec<RefBody>,
    #[serde(default, rename = "pullRequests")]
    pull_requests: Vec<RefBody>,
}

#[derive(Deserialize)]
struct RefBody {
    r#ref: String,
    #[serde(rename = "targetCommit")]
    target_commit: String,
}

#[derive(Deserialize)]
struct WhoBody {
    name: String,
}

impl HubClient {
    /// What `revision` (a branch, a tag, `refs/pr/1`, a commit) is now.
    ///
    /// # Errors
    /// [`Kind::NotFound`] when the Hub knows no such repository or revision (for strangers a private one does not
    /// exist), [`Kind::Access`] when it refuses.
    pub async fn revision(&self, repo: &RepoId, revision: &str) -> Result<RevisionInfo> {
        let what = format!("{repo} revision {revision}");
        let mut url = self.0.urls.api(repo, &["revision", revision])?;
        // Otherwise the answer lists every file. Spaces are never gated, and the Hub refuses the word there.
        let fields: &[&str] = match repo.kind {
            RepoKind::Space => &["sha", "lastModified", "private"],
            _ => &["sha", "lastModified", "private", "gated"],
        };
        url.query_pairs_mut().extend_pairs(fields.iter().map(|f| ("expand", f)));
        let (body, _, _): (InfoBody, _, _) = self.json(&what, &url).await?;
        let sha = body.sha.unwrap_or_default();
        let commit = Commit::parse(&sha)
            .ok_or_else(|| Error::new(Kind::Corrupt, format!("{what}: {sha:?} is no commit")))?;
        let known = |id: &String| RepoId { kind: repo.kind, id: id.clone() }.folder();
        let canonical_id = body.id.filter(|id| RepoId::from_folder(&known(id)).is_some());
        Ok(RevisionInfo {
            canonical_id: canonical_id.unwrap_or_else(|| repo.id.clone()),
            commit,
            private: body.private,
            gated: !matches!(body.gated, Value::Null | Value::Bool(false)),
            last_modified: body.last_modified.as_deref().and_then(date::iso).unwrap_or_default(),
        })
    }

    /// The files of a commit, page by page: memory is bounded by one page (1,000 entries) whatever the size of the tree.
    #[must_use]
    pub fn tree(&self, repo: &RepoId, commit: Commit) -> TreePages {
        TreePages { client: self.clone(), repo: repo.clone(), commit, next: Next::First, pages: 0 }
    }

    /// All files of a commit at once.
    ///
    /// # Errors
    /// Those of [`TreePages::next`].
    pub async fn tree_files(&self, repo: &RepoId, commit: Commit) -> Result<Vec<TreeFile>> {
        let mut pages = self.tree(repo, commit);
        let mut files = Vec::new();
        while let Some(page) = pages.next().await? {
            files.extend(page);
        }
        Ok(files)
    }

    /// Branches, tags and converted refs, and with `pull_requests` those as well.
    ///
    /// # Errors
    /// As [`HubClient::revision`].
    pub async fn refs(&self, repo: &RepoId, pull_requests: bool) -> Result<Vec<HubRef>> {
        let what = format!("refs of {repo}");
        let mut url = self.0.urls.api(repo, &["refs"])?;
        if pull_requests {
            url.set_query(Some("include_prs=1"));
        }
        let (body, _, _): (RefsBody, _, _) = self.json(&what, &url).await?;
        let all = [body.branches, body.converts, body.tags, body.pull_requests].into_iter().flatten();
        all.map(|r| {
            let commit = Commit::parse(&r.target_commit);
            let commit = commit.ok_or_else(|| {
                Error::new(Kind::Corrupt, format!("{what}: {:?} is no commit", r.target_commit))
            })?;
            let short = r.r#ref.strip_prefix("refs/heads/").or_else(|| r.r#ref.strip_prefix("refs/tags/"));
            Ok(HubRef { revision: short.unwrap_or(&r.r#ref).to_owned(), commit })
        })
        .collect()
    }

    /// Whose token it is; `None` without one.
    ///
    /// # Errors
    /// [`Kind::Access`] when the Hub does not know the token.
    pub async fn whoami(&self) -> Result<Option<String>> {
        if !self.has_token() {
            return Ok(None);
        }
        let (body, _, _): (WhoBody, _, _) =
            self.json("the Hub token", &self.0.urls.global("whoami-v2")?).await?;
        Ok(Some(body.name))
    }
}

/// A tree that is being read.
#[derive(Debug)]
pub struct TreePages {
    client: HubClient,
    repo: RepoId,
    commit: Commit,
    next: Next,
    pages: u32,
}

#[derive(Debug)]
enum Next {
    First,
    At(Url),
    Done,
}

impl TreePages {
    /// The files of the next page, possibly none; `None` after the last. After an error it may be called again and
    /// tries the same page.
    ///
    /// # Errors
    /// [`Kind::NotFound`], [`Kind::Access`] as for [`HubClient::revision`]; [`Kind::Corrupt`] for ids and sizes that
    /// cannot be. Files whose names cannot exist here are left out, with a warning in the log.
    pub async fn next(&mut self) -> Result<Option<Vec<TreeFile>>> {
        let what = format!("tree of {}@{}", self.repo, self.commit);
        let url = match &self.next {
            Next::First => {
                let mut url = self.client.0.urls.api(&self.repo, &["tree", &self.commit.to_string()])?;
                url.set_query(Some("recursive=true"));
                url
            }
            Next::At(url) => url.clone(),
            Next::Done => return Ok(None),
        };
        let (entries, url, headers): (Vec<EntryBody>, Url, HeaderMap) = self.client.json(&what, &url).await?;
        let files = entries
            .into_iter()
            .filter(|entry| entry.r#type == "file")
            .filter_map(|entry| file(entry).context(|| what.clone()).transpose())
            .collect::<Result<Vec<_>>>()?;
        self.pages += 1;
        self.next = match next_query(&headers) {
            None => Next::Done,
            Some(query) => {
                let mut at = url.clone();
                at.set_query(Some(&query));
                if at == url || self.pages >= MOST_PAGES {
                    return Err(Error::new(Kind::Corrupt, format!("{what}: the list of files has no end")));
                }
                Next::At(at)
            }
        };
        Ok(Some(files))
    }
}

/// The query of `Link: <https://…?cursor=…>; rel="next"`. The rest of the URL is not taken: the token goes with the
/// next request too, and mirrors tend to leave the name of the real Hub in there.
fn next_query(headers: &HeaderMap) -> Option<String> {
    headers.get_all(LINK).iter().filter_map(|v| v.to_str().ok()).find_map(|value| {
        value.split('<').skip(1).find_map(|link| {
            let (target, parameters) = link.split_once('>')?;
            let is_next = parameters.contains("rel=\"next\"") || parameters.contains("rel=next");
            is_next.then(|| target.split_once('?').map(|(_, query)| query.to_owned()))?
        })
    })
}

/// A file, or `None` for one whose name cannot be presented.
fn file(entry: EntryBody) -> Result<Option<TreeFile>> {
    let EntryBody { path, oid, .. } = &entry;
    if !is_plain(path) {
        tracing::warn!(?path, "a file of the Hub is left out: its name cannot exist here");
        return Ok(None);
    }
    let corrupt = |text: String| Error::new(Kind::Corrupt, format!("{path}: {text}"));
    let Some(BlobId::Git(git_oid)) = BlobId::from_etag(oid) else {
        return Err(corrupt(format!("{oid:?} is no git id")));
    };
    let lfs = match &entry.lfs {
        None => None,
        Some(lfs) => match BlobId::from_etag(&lfs.oid) {
            Some(BlobId::Sha256(sha256)) => Some(Lfs { sha256, size: lfs.size }),
            _ => return Err(corrupt(format!("{:?} is no sha256", lfs.oid))),
        },
    };
    let size = lfs.map_or(entry.size, |l| l.size);
    if i64::try_from(size).is_err() {
        return Err(corrupt(format!("{size} bytes")));
    }
    let blob = lfs.map_or(BlobId::Git(git_oid), |l| BlobId::Sha256(l.sha256));
    let xet_hash = entry.xet_hash.filter(|h| matches!(BlobId::from_etag(h), Some(BlobId::Sha256(_))));
    Ok(Some(TreeFile { path: entry.path, size, blob, git_oid, lfs, xet_hash }))
}

fn is_plain(path: &str) -> bool {
    path.len() <= LONGEST_PATH
        && !path.contains('\0')
        && path.split('/').all(|c| !matches!(c, "" | "." | "..") && c.len() <= LONGEST_NAME)
}

#[cfg(test)]
mod tests {
    use super::*;
    use reqwest::header::HeaderValue;

    #[test]
    fn names_that_cannot_be_files() {
        for good in ["a", "a/b.c", "…/ü", "a b#?%", ".gitattributes", "..."] {
            assert!(is_plain(good), "{good}");
        }
        let long = "x".repeat(256);
        for bad in ["", "/a", "a/", "a//b", "..", "a/../b", "./a", "a\0b", &long] {
            assert!(!is_plain(bad), "{bad}");
        }
    }

    #[test]
    fn only_the_query_of_a_next_page_counts() {
        let next = |v: &'static str| next_query(&HeaderMap::from_iter([(LINK, HeaderValue::from_static(v))]));
        assert_eq!(
            next("<https://elsewhere/x?cursor=a%3D&limit=2>; rel=\"next\"").as_deref(),
            Some("cursor=a%3D&limit=2")
        );
        assert_eq!(
            next("<https://h/x?a=1>; rel=\"prev\", <https://h/x?a=2>; rel=\"next\"").as_deref(),
            Some("a=2")
        );
        assert_eq!(next("<https://h/x?a=1>; rel=\"prev\""), None);
        assert_eq!(next("nonsense"), None);
    }

    #[test]
    fn ids_and_sizes_must_be_possible() {
        let entry = |json: Value| file(serde_json::from_value(json).expect("an entry"));
        let git = "ab".repeat(20);
        let sha = "cd".repeat(32);
        let lfs = entry(serde_json::json!({"type": "file", "oid": git, "size": 130, "path": "m",
            "lfs": {"oid": sha, "size": 7, "pointerSize": 130}, "xetHash": "short"}));
        let lfs = lfs.expect("valid").expect("present");
        assert_eq!((lfs.size, lfs.blob.etag(), lfs.xet_hash), (7, sha, None));
        let bad = entry(serde_json::json!({"type": "file", "oid": "zz", "size": 1, "path": "m"}));
        assert!(bad.is_err_and(|e| e.kind() == Kind::Corrupt));
        let huge = entry(serde_json::json!({"type": "file", "oid": git, "size": u64::MAX, "path": "m"}));
        assert!(huge.is_err_and(|e| e.kind() == Kind::Corrupt));
    }
}
