//! What a mount is told.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::meta::url::MetaUrl;
use crate::peer::PeerOptions;

/// One mount's options, complete: defaults are filled in.
#[derive(Clone, Debug)]
pub struct MountOptions {
    pub meta: MetaUrl,
    /// As the user wrote it.
    pub dir: PathBuf,
    /// `None`: below the home, by the volume's name.
    pub cache_dir: Option<PathBuf>,
    /// Bytes of disk that the cache may take.
    pub cache_size: u64,
    /// The share of the disk that the cache leaves free, whatever its size: 0.1.
    pub free_space_ratio: f64,
    pub read_only: bool,
    /// close and fsync answer when the data is safe on the local disk; uploads follow.
    pub writeback: bool,
    /// Never calls the Hub.
    pub offline: bool,
    /// Where the Hub's token is; before all other places.
    pub token_file: Option<PathBuf>,
    /// `None`: as the volume says.
    pub hub_endpoint: Option<String>,
    /// Endpoints of mirrors, in the order in which they are asked for bytes.
    pub mirrors: Vec<String>,
    /// Caches of the Hub on this machine that are read from.
    pub seeds: Vec<PathBuf>,
    /// The kernel may read complete blobs by itself, if it can.
    pub passthrough: bool,
    /// The end of a blob is not shown before all of it was checked.
    pub strict: bool,
    /// Where figures for Prometheus are served.
    pub metrics: Option<SocketAddr>,
    /// A branch older than this is asked for again.
    pub ref_ttl: Duration,
    pub attr_ttl: Duration,
    pub entry_ttl: Duration,
    /// The longest that one request of a program may take.
    pub io_timeout: Duration,
    /// How long what was deleted does not come back from the Hub.
    pub tombstone_ttl: Duration,
    /// Reads move the time of last access, as with the mount option of that name.
    pub relatime: bool,
    /// How long this mount may be silent before others take over what it held.
    pub session_ttl: Duration,
    pub allow_other: bool,
    /// Whom the files of the Hub seem to belong to.
    pub uid: u32,
    pub gid: u32,
    pub umask: u16,
    /// Whether content may be fetched from the Hub, and how much of it in a second (bytes; `None`: as much as there is).
    pub hub_fetch: bool,
    pub hub_limit: Option<u64>,
    /// What to do with the other nodes of the volume. `None`: nothing.
    pub peer: Option<PeerOptions>,
}
