//! The shared vocabulary: plain values that every layer may name. No I/O, no behaviour beyond parsing and printing.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};

/// An inode number: assigned by the metadata, never reused, below 2^53 (it passes through Lua numbers).
/// Numbers from 2^60 on are virtual: they exist in one mount only and never reach the metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Ino(pub u64);

impl Ino {
    /// The root directory.
    pub const ROOT: Ino = Ino(1);
    /// The first number that the metadata never gives out.
    pub const FIRST_VIRTUAL: u64 = 1 << 60;

    /// Whether the number exists in this mount only.
    #[must_use]
    pub fn is_virtual(self) -> bool {
        self.0 >= Self::FIRST_VIRTUAL
    }
}

impl fmt::Display for Ino {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// One mount's life: a random 63-bit number, new at every start. Printed as 16 hex digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SessionId(pub u64);

impl SessionId {
    /// A fresh id. 63 random bits: two sessions of one volume never share one.
    #[must_use]
    pub fn random() -> Self {
        SessionId(rand::random::<u64>() >> 1)
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for SessionId {
    type Err = Error;
    fn from_str(s: &str) -> Result<Self> {
        u64::from_str_radix(s, 16)
            .map(SessionId)
            .map_err(|e| Error::with_source(Kind::Invalid, format!("session id {s:?}"), e))
    }
}

/// Names one state of an inode. Compared for equality only; changes in the same commit as the inode's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Version {
    pub session: SessionId,
    pub seq: u64,
}

/// Nanoseconds since 1970, as file times are kept. Negative before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// The wall clock of this machine.
    #[must_use]
    pub fn now() -> Self {
        Self::from(SystemTime::now())
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        let nanos = |d: Duration| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX);
        match time.duration_since(UNIX_EPOCH) {
            Ok(d) => Timestamp(nanos(d)),
            Err(e) => Timestamp(-nanos(e.duration())),
        }
    }
}

impl From<Timestamp> for SystemTime {
    fn from(t: Timestamp) -> Self {
        let d = Duration::from_nanos(t.0.unsigned_abs());
        if t.0 >= 0 { UNIX_EPOCH + d } else { UNIX_EPOCH - d }
    }
}

/// What an inode is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum FileType {
    File,
    Dir,
    Symlink,
    Fifo,
    Socket,
    CharDevice,
    BlockDevice,
}

/// What the Hub calls a content: the sha256 of LFS and Xet files, git's sha1 (over `blob <len>\0` + bytes) of small ones.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum BlobId {
    Sha256([u8; 32]),
    Git([u8; 20]),
}

impl BlobId {
    /// The file name under `blobs/`: 64 or 40 hex digits.
    #[must_use]
    pub fn etag(&self) -> String {
        match self {
            BlobId::Sha256(b) => hex::encode(b),
            BlobId::Git(b) => hex::encode(b),
        }
    }

    /// The blob that a file name under `blobs/` stands for; `None` if the name is neither 64 nor 40 lower-case hex digits.
    #[must_use]
    pub fn from_etag(etag: &str) -> Option<Self> {
        if etag.bytes().any(|b| b.is_ascii_uppercase()) {
            return None;
        }
        match etag.len() {
            64 => {
                let mut b = [0; 32];
                hex::decode_to_slice(etag, &mut b).ok().map(|()| BlobId::Sha256(b))
            }
            40 => {
                let mut b = [0; 20];
                hex::decode_to_slice(etag, &mut b).ok().map(|()| BlobId::Git(b))
            }
            _ => None,
        }
    }
}

impl fmt::Display for BlobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BlobId::Sha256(_) => write!(f, "sha256:{}", self.etag()),
            BlobId::Git(_) => write!(f, "git:{}", self.etag()),
        }
    }
}

impl fmt::Debug for BlobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for BlobId {
    type Err = Error;
    fn from_str(s: &str) -> Result<Self> {
        let id = match s.split_once(':') {
            Some(("sha256", h)) if h.len() == 64 => BlobId::from_etag(h),
            Some(("git", h)) if h.len() == 40 => BlobId::from_etag(h),
            _ => None,
        };
        id.ok_or_else(|| Error::new(Kind::Invalid, format!("blob id {s:?}")))
    }
}

/// Names one object of file data in the bucket, `<volume>/chunks/<session>/<seq>`: written once, never changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ObjectId {
    pub session: SessionId,
    pub seq: u64,
}

/// A run of bytes of a file's chunk, kept in an object. Later extents of a chunk's list lie over earlier ones; what no
/// extent covers is zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Extent {
    /// Offset in the chunk, bytes.
    pub start: u32,
    /// Length in bytes, at least 1; `start + len` is at most the chunk size.
    pub len: u32,
    pub object: ObjectId,
    /// Where the run begins in the object, bytes.
    pub object_offset: u32,
    /// What the whole object is held to. `None`: stored by a version that kept none.
    #[serde(default)]
    pub sum: Option<ObjectSum>,
}

/// The length and checksum of a whole object of file data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ObjectSum {
    /// Bytes.
    pub len: u32,
    /// The first half of its BLAKE3.
    #[serde(with = "serde_bytes")]
    pub hash: [u8; 16],
}

impl ObjectSum {
    /// That of `data`, an object of less than 4 GiB. Takes about a millisecond per MiB: not for a runtime's thread if
    /// `data` is large.
    #[must_use]
    pub fn of(data: &[u8]) -> Self {
        Self::with_hash(data.len(), blake3::hash(data).as_bytes())
    }

    /// The same, for who has the BLAKE3 of the `len` bytes already.
    #[must_use]
    pub fn with_hash(len: usize, blake3: &[u8; 32]) -> Self {
        let mut hash = [0; 16];
        hash.copy_from_slice(&blake3[..16]);
        ObjectSum { len: u32::try_from(len).unwrap_or(u32::MAX), hash }
    }
}

/// Which of the Hub's three namespaces a repository is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum RepoKind {
    Model,
    Dataset,
    Space,
}

impl RepoKind {
    /// `models`, `datasets`, `spaces`: as in `/api/<this>/…` and in folder names.
    #[must_use]
    pub fn plural(self) -> &'static str {
        match self {
            RepoKind::Model => "models",
            RepoKind::Dataset => "datasets",
            RepoKind::Space => "spaces",
        }
    }
}

/// A repository of the Hub: `org/name`, or `name` alone for the old ones (`gpt2`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RepoId {
    pub kind: RepoKind,
    pub id: String,
}

impl RepoId {
    /// The repository that a folder of the cache stands for (`models--org--name`), or `None` for a name that cannot be
    /// one: such names never reach the Hub. The Hub's rules: at most 96 characters of `[A-Za-z0-9._-]` a part, no `--`
    /// or `..` within, no `-` or `.` at either end, no `.git` or `.ipynb` at the end.
    #[must_use]
    pub fn from_folder(folder: &str) -> Option<Self> {
        let (plural, rest) = folder.split_once("--")?;
        let kind = match plural {
            "models" => RepoKind::Model,
            "datasets" => RepoKind::Dataset,
            "spaces" => RepoKind::Space,
            _ => return None,
        };
        let part = |s: &str| {
            (1..=96).contains(&s.len())
                && s.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
                && !s.starts_with(['-', '.'])
                && !s.ends_with(['-', '.'])
                && !s.contains("..")
                && !s.ends_with(".git")
                && !s.ends_with(".ipynb")
        };
        let parts: Vec<&str> = rest.split("--").collect();
        (parts.len() <= 2 && parts.iter().all(|p| part(p))).then(|| RepoId { kind, id: parts.join("/") })
    }

    /// The cache folder: `models--org--name`.
    #[must_use]
    pub fn folder(&self) -> String {
        format!("{}--{}", self.kind.plural(), self.id.replace('/', "--"))
    }
}

impl fmt::Display for RepoId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            RepoKind::Model => f.write_str(&self.id),
            kind => write!(f, "{}/{}", kind.plural(), self.id),
        }
    }
}

/// A commit of a repository, exactly 40 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Commit(pub [u8; 20]);

impl Commit {
    /// `None` unless it is 40 lower-case hex digits.
    #[must_use]
    pub fn parse(s: &str) -> Option<Self> {
        match BlobId::from_etag(s) {
            Some(BlobId::Git(b)) => Some(Commit(b)),
            _ => None,
        }
    }
}

impl fmt::Display for Commit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Commit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Where the Hub has a blob: a path in a commit of a repository. A blob may have many.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Origin {
    pub repo: RepoId,
    pub commit: Commit,
    /// Relative, `/`-separated, not encoded.
    pub path: String,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}/{}", self.repo, self.commit, self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_that_are_repositories() {
        let id = |f| RepoId::from_folder(f).map(|r| r.id);
        assert_eq!(id("models--gpt2").as_deref(), Some("gpt2"));
        assert_eq!(id("datasets--org--na.me_1").as_deref(), Some("org/na.me_1"));
        assert_eq!(RepoId::from_folder("spaces--a--b").map(|r| r.folder()).as_deref(), Some("spaces--a--b"));
        for no in [
            "models",
            "models--",
            "kernels--a--b",
            "models--a--b--c",
            "models--a--..",
            "models---a",
            ".locks",
            "models--a--b.lock~",
            "models--a--b c",
        ] {
            assert_eq!(id(no), None, "{no}");
        }
    }

    #[test]
    fn blob_ids_print_and_parse() {
        let id = BlobId::from_etag(&"ab".repeat(32)).expect("64 hex digits");
        assert_eq!(id.to_string().parse::<BlobId>().expect("round trip"), id);
        assert!(BlobId::from_etag(&"AB".repeat(32)).is_none());
        assert!(BlobId::from_etag("ab").is_none());
    }
}
