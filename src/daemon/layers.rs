//! The layers of one mount, from the metadata engine up to the file system.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Resource, getrlimit};
use tokio::task::JoinHandle;

use super::metrics::Figures;
use super::nodes::{self, Serving};
use super::siblings::{Means, Siblings};
use super::{
    SharedHub, Standing, check_marker, marker_of, need_volume, open_bucket, places, settings, superseded,
};
use crate::blocking::blocking;
use crate::chunk::cache::{CacheDir, CacheLimits};
use crate::chunk::file::FilesOptions;
use crate::chunk::{Chunks, ChunksOptions, Files};
use crate::config::{Home, MountOptions, Volume};
use crate::error::{Result, ResultExt};
use crate::fuse::MountPoint;
use crate::hub::{HubClient, HubOptions, Token};
use crate::meta::kv::Kv;
use crate::meta::metered::MeteredKv;
use crate::meta::url::MetaUrl;
use crate::meta::{Meta, SessionInfo};
use crate::peer::limits::Limit;
use crate::secrets;
use crate::source::Source;
use crate::source::bucket::{Bucket, BucketSource, Patience};
use crate::source::hub::HubSource;
use crate::source::limited::Limited;
use crate::source::mirror::{Mirror, MirrorOptions};
use crate::source::seed::Seed;
use crate::source::storage::StorageUrl;
use crate::types::Timestamp;
use crate::vfs::lazy::{Lazy, LazyOptions};
use crate::vfs::{Orders, Private, Shards, Vfs, VfsOptions};

/// How long chunks of the Hub that are on their way to the bucket may keep the end waiting.
const UPLOADS: Duration = Duration::from_secs(5);

/// Small blobs that stay open at most: those of some hundred models.
const MOST_SMALL: usize = 1024;

/// How long what was read last may take to be noted down at the end.
const RECORDING: Duration = Duration::from_secs(5);

/// One mount's layers, built and running.
pub(super) struct Layers {
    volume: Volume,
    meta: Meta,
    chunks: Arc<Chunks>,
    files: Files,
    /// Follows the volume's settings.
    following: JoinHandle<()>,
    /// Not of a read-only mount.
    siblings: Option<Siblings>,
    /// Of a volume that other machines reach.
    serving: Option<Serving>,
    pub(super) vfs: Arc<Vfs>,
    /// What the user should know of the layers.
    pub(super) notices: Vec<String>,
    /// What `/metrics` says.
    pub(super) figures: Figures,
    /// Taken when the file system is mounted.
    pub(super) invalidations: Option<Orders>,
}

/// Small blobs that stay open: with an eighth of the descriptors that this process may have.
fn small_blobs() -> usize {
    let limit = getrlimit(Resource::Nofile).current;
    limit.map_or(MOST_SMALL, |limit| usize::try_from(limit / 16).unwrap_or(MOST_SMALL).clamp(64, MOST_SMALL))
}

impl Layers {
    /// Builds them. Nothing is mounted yet, and what lies under the mount point is still to be seen.
    pub(super) async fn build(home: &Home, options: &MountOptions, point: &MountPoint) -> Result<Self> {
        // Before anything may be mounted over it.
        let token = token(options)?;
        let (kv, volume) = need_volume(&options.meta).await?;
        let metered = MeteredKv::new(kv);
        let meta_stats = metered.stats().clone();
        let kv: Arc<dyn Kv> = Arc::new(metered);
        let cache_path = options.cache_dir.clone().unwrap_or_else(|| home.cache(&volume.name));
        let private_path = home.private(&volume.name);
        check_places(options, &volume, point.path(), &cache_path, &private_path)?;
        let bucket = bucket(options, &volume).await?;
        let warnings = kv.info().await?.warnings;
        let notices = warnings.into_iter().map(|warning| format!("{}: {warning}", options.meta)).collect();

        let limits = CacheLimits {
            max_bytes: options.cache_size,
            free_ratio: options.free_space_ratio,
            ..CacheLimits::default()
        };
        let (uuid, wanted, allowed) = (volume.uuid.clone(), cache_path.clone(), limits.clone());
        let cache = blocking(move || CacheDir::open(&wanted, &uuid, allowed)).await?;
        let adopted = adopt(point);
        // Held from here on: one of them may be what the mount will hide.
        let seeds = seeds(options).await?;
        let private = blocking(move || {
            let private = Private::open(private_path)?;
            for tokens in adopted {
                let files: Vec<(&str, Vec<u8>)> =
                    tokens.files.iter().map(|(name, bytes)| (*name, bytes.clone())).collect();
                private.adopt(tokens.uid, tokens.gid, &files)?;
            }
            Ok(private)
        })
        .await?;

        let meta = Meta::open(kv.clone(), session_info(options, point.path()), options.session_ttl).await?;
        meta.set_tombstone_ttl(options.tombstone_ttl);
        settings::apply(&meta, &volume).await?;
        let following = tokio::spawn(settings::follow(meta.clone()));
        let scope_key = blake3::derive_key("hfmount signed places of the Hub", volume.peer_key.as_bytes());
        let hub_token = token.clone();
        let hub = HubClient::new(HubOptions {
            endpoint: options.hub_endpoint.clone().unwrap_or_else(|| volume.hub_endpoint.clone()),
            token,
            offline: options.offline,
            ..HubOptions::default()
        })?;
        let peers = nodes::known(&*kv, &volume, options.peer.as_ref())?;
        if let Some(peers) = &peers {
            let scope = Token::scope(hub_token.as_ref(), hub.endpoint(), &scope_key);
            hub.share(SharedHub::new(peers.tracker().clone(), hub.endpoint(), scope));
        }
        let mirrors = mirrors(options)?;
        let sources = sources(options, seeds, &bucket, &mirrors, options.hub_fetch.then_some(&hub));
        let chunks_options = ChunksOptions {
            chunk_size: volume.chunk_size,
            io_timeout: options.io_timeout,
            store_hub_blobs: volume.stores_hub_blobs() && !options.read_only,
            strict: options.strict,
            small_blobs: small_blobs(),
            ..ChunksOptions::default()
        };
        let chunks = Arc::new(Chunks::among(
            chunks_options,
            cache.clone(),
            meta.blobs(),
            sources,
            Some(bucket.clone()),
            peers.clone(),
        ));
        chunks.learn_what_follows(Shards::new(meta.clone(), &chunks));
        let serving = match peers {
            Some(peers) => Some(Serving::start(peers, &volume, &chunks).await?),
            None => None,
        };
        let files_options = FilesOptions {
            io_timeout: options.io_timeout,
            writeback: options.writeback,
            ..FilesOptions::default()
        };
        let chunk_size = volume.chunk_size;
        let own = cache.path().to_owned();
        let store = bucket.clone();
        let means = Means {
            kv,
            info: meta.info().clone(),
            session_ttl: options.session_ttl,
            bucket: bucket.clone(),
            blobs: chunks.clone(),
            chunk_size,
            volume: volume.uuid.clone(),
            limits,
            io_timeout: options.io_timeout,
        };
        let files =
            Files::with_options(meta.clone(), cache, bucket, chunks.clone(), chunk_size, files_options);
        resume(options, &files).await?;
        let siblings = (!options.read_only).then(|| Siblings::watch(means, cache_path, own));
        if !options.read_only {
            files.start_sweeping();
        }
        let figures = Figures {
            volume: volume.name.clone(),
            chunks: chunks.clone(),
            files: files.clone(),
            bucket: store,
            mirrors,
            meta: meta_stats,
            requests: Arc::default(),
            extra: serving.iter().map(nodes::figures).collect(),
            started: meta.info().started,
        };
        let (sender, receiver) = Vfs::invalidation_queue();
        let lazy = (!options.offline).then(|| {
            let settings = LazyOptions { ref_ttl: options.ref_ttl, io_timeout: options.io_timeout };
            Lazy::new(meta.clone(), files.clone(), hub, settings, sender.clone())
        });
        let settings = vfs_options(options, &volume);
        let vfs = Vfs::new(meta.clone(), chunks.clone(), files.clone(), lazy, private, sender, settings);
        Ok(Layers {
            volume,
            meta,
            chunks,
            files,
            following,
            siblings,
            serving,
            vfs,
            notices,
            figures,
            invalidations: Some(receiver),
        })
    }

    /// For messages.
    pub(super) fn name(&self) -> String {
        format!("volume {}", self.volume.name)
    }

    /// Whose mount it is and where its cache lies, for the note about this daemon.
    pub(super) fn places(&self) -> (&str, &Path) {
        (&self.volume.uuid, self.chunks.cache().path())
    }

    /// What an operator should see and no program is told: why the cache's disk is not used any more, and why journalled data
    /// cannot be uploaded.
    pub(super) fn troubles(&self) -> (Option<String>, Option<String>) {
        (self.chunks.cache().aside().map(str::to_owned), self.files.waiting().1)
    }

    /// Takes them down from the top: writes what is open, then ends what runs, then the session. All steps are taken;
    /// the first error is returned.
    pub(super) async fn stop(self) -> Result<()> {
        self.following.abort();
        if let Some(siblings) = self.siblings {
            siblings.stop().await;
        }
        self.vfs.record_accesses(RECORDING).await;
        if let Some(serving) = self.serving {
            serving.stop().await;
        }
        let flushed = self.files.close(UPLOADS).await.context(|| "writing what was open");
        let cached = self.chunks.shutdown(UPLOADS).await;
        let closed = self.meta.close().await;
        flushed.and(cached).and(closed)
    }
}

/// Goes on with what an earlier run acknowledged and did not upload: before anything is served, so that all of it is seen.
async fn resume(options: &MountOptions, files: &Files) -> Result<()> {
    if !options.read_only {
        return files.resume().await.map(drop);
    }
    let waiting = files.waiting().0.files;
    if waiting > 0 {
        tracing::warn!(
            "{waiting} files in the cache directory are not uploaded: a mount that may write goes on with them"
        );
    }
    Ok(())
}

/// The folders that hold blobs already.
async fn seeds(options: &MountOptions) -> Result<Vec<Seed>> {
    let mut seeds = Vec::new();
    for path in &options.seeds {
        seeds.push(Seed::open(path).await?);
    }
    Ok(seeds)
}

/// Where bytes come from, in the order in which places are asked: the nearest first, the origin last.
fn sources(
    options: &MountOptions,
    seeds: Vec<Seed>,
    bucket: &Bucket,
    mirrors: &[Arc<Mirror>],
    hub: Option<&HubClient>,
) -> Vec<Arc<dyn Source>> {
    let mut sources: Vec<Arc<dyn Source>> = Vec::new();
    for seed in seeds {
        sources.push(Arc::new(seed));
    }
    sources.push(Arc::new(BucketSource::new(bucket)));
    for mirror in mirrors {
        sources.push(mirror.clone());
    }
    if let Some(hub) = hub.filter(|_| !options.offline) {
        let hub = HubSource::new(hub.clone());
        match options.hub_limit {
            Some(rate) => sources.push(Arc::new(Limited::new(hub, Arc::new(Limit::new(rate))))),
            None => sources.push(Arc::new(hub)),
        }
    }
    sources
}

/// Mirrors are called no more than the Hub is.
fn mirrors(options: &MountOptions) -> Result<Vec<Arc<Mirror>>> {
    let used = options.mirrors.iter().filter(|_| !options.offline);
    used.map(|url| Ok(Arc::new(Mirror::new(url, MirrorOptions::default())?))).collect()
}

fn vfs_options(options: &MountOptions, volume: &Volume) -> VfsOptions {
    VfsOptions {
        uid: options.uid,
        gid: options.gid,
        umask: options.umask,
        read_only: options.read_only,
        entry_ttl: options.entry_ttl,
        attr_ttl: options.attr_ttl,
        tombstone_ttl: options.tombstone_ttl,
        relatime: options.relatime,
        store_path: folder(volume).map(Path::to_path_buf),
    }
}

fn folder(volume: &Volume) -> Option<&Path> {
    match &volume.storage {
        StorageUrl::File { path } => Some(path),
        StorageUrl::S3 { .. } => None,
    }
}

/// `--token-file`, else where the libraries would find one.
fn token(options: &MountOptions) -> Result<Option<Token>> {
    match &options.token_file {
        Some(file) => Token::new(&secrets::from_file(file)?),
        None => Token::discover(),
    }
}

fn check_places(
    options: &MountOptions,
    volume: &Volume,
    point: &Path,
    cache: &Path,
    private: &Path,
) -> Result<()> {
    let mut needed = vec![("cache directory", cache), ("folder of private files", private)];
    if let MetaUrl::Sqlite(path) = &options.meta {
        needed.push(("metadata file", path));
    }
    needed.extend(folder(volume).map(|path| ("storage folder", path)));
    places::check(point, &needed)
}

/// The bucket, known to be this volume's. A mount that never calls out takes that on trust if the bucket does not answer. Of
/// metadata that were loaded from a dump the first mount that may write makes them those that go on.
async fn bucket(options: &MountOptions, volume: &Volume) -> Result<Bucket> {
    let bucket = open_bucket(volume).await?;
    let brief = bucket.with_patience(Patience::short());
    match check_marker(&brief, volume).await {
        Err(e) if options.offline && e.kind().is_transient() => tracing::warn!("{e}"),
        Ok(Standing::Superseded) if !options.read_only => return Err(superseded(&bucket, volume)),
        Ok(Standing::Superseded) => tracing::warn!("{}", superseded(&bucket, volume)),
        Ok(Standing::Fresh) if !options.read_only => {
            brief.hand_over(&marker_of(volume)).await?;
            tracing::warn!(
                "these metadata, loaded from a dump, go on with {}: other copies of them can only be read from now on",
                bucket.place()
            );
        }
        standing => drop(standing?),
    }
    Ok(bucket)
}

fn session_info(options: &MountOptions, point: &Path) -> SessionInfo {
    SessionInfo {
        host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        pid: std::process::id(),
        mountpoint: point.display().to_string(),
        started: Timestamp::now(),
        version: env!("CARGO_PKG_VERSION").into(),
        read_only: options.read_only,
    }
}

/// The tokens of one user in the folder that the mount will hide.
struct Tokens {
    uid: u32,
    gid: u32,
    files: Vec<(&'static str, Vec<u8>)>,
}

/// What lies there already stays its owner's: `hf auth whoami` works as before.
fn adopt(point: &MountPoint) -> Vec<Tokens> {
    use std::os::unix::fs::MetadataExt;
    let mut found: Vec<Tokens> = Vec::new();
    for name in ["token", "stored_tokens"] {
        let path: PathBuf = point.path().join(name);
        let Ok(meta) = std::fs::symlink_metadata(&path) else { continue };
        // A link could lead anywhere.
        let (true, Ok(text)) = (meta.is_file(), secrets::from_file(&path)) else { continue };
        let (uid, gid) = (meta.uid(), meta.gid());
        let bytes = text.into_bytes();
        match found.iter_mut().find(|t| t.uid == uid) {
            Some(tokens) => tokens.files.push((name, bytes)),
            None => found.push(Tokens { uid, gid, files: vec![(name, bytes)] }),
        }
    }
    found
}
