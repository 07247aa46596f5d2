//! Opening a store: the one place that knows which kinds there are.

use std::collections::HashSet;
use std::fs::File;
use std::path::{Path as FsPath, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, RetryConfig};

use super::Bucket;
use crate::error::{Error, Kind, Result, ResultExt};
use crate::source::storage::{StorageOptions, StorageUrl};

/// Idle connections kept to one server: as many as transfers may run at once.
const POOL: usize = 64;

impl Bucket {
    /// Opens the store of the volume named `volume`. For a folder, creates it. A server is not asked anything yet: see
    /// [`Bucket::check`].
    ///
    /// [`Kind::Config`]: what the user must change, in words.
    pub async fn open(url: &StorageUrl, options: &StorageOptions, volume: &str) -> Result<Bucket> {
        match url {
            StorageUrl::S3 { bucket, prefix } => {
                let endpoint = options.endpoint.as_deref().map(endpoint).transpose()?;
                let place = match &endpoint {
                    Some(endpoint) => format!("{url} at {}", endpoint.as_str().trim_end_matches('/')),
                    None => url.to_string(),
                };
                let store = s3(bucket, endpoint, options).context(|| place.clone())?;
                let prefix = prefix.split('/').filter(|p| !p.is_empty());
                let root = prefix.chain([volume]).fold(Path::default(), |path, part| path.join(part));
                Ok(Bucket::over(store, root, place, None))
            }
            StorageUrl::File { path } => {
                let folder = path.clone();
                let store = tokio::task::spawn_blocking(move || local(&folder))
                    .await
                    .map_err(|e| Error::with_source(Kind::Internal, url.to_string(), e))?
                    .context(|| url.to_string())?;
                let folders = LocalFolders::new(path.clone());
                Ok(Bucket::over(store, Path::default().join(volume), url.to_string(), Some(folders)))
            }
        }
    }

    /// A bucket in this process's memory, gone with it: for tests. `volume` names its volume as elsewhere.
    #[must_use]
    pub fn in_memory(volume: &str) -> Bucket {
        let store = Arc::new(object_store::memory::InMemory::new());
        Bucket::over(store, Path::default().join(volume), "memory".into(), None)
    }

    #[cfg(test)]
    pub(crate) fn in_store(store: Arc<dyn ObjectStore>, volume: &str) -> Bucket {
        Bucket::over(store, Path::default().join(volume), "memory".into(), None)
    }
}

/// The URL of a server; never repeated in an error while it may hold a password.
fn endpoint(text: &str) -> Result<url::Url> {
    let bad = |why: &'static str| Error::with_source(Kind::Config, "endpoint", why);
    let url = url::Url::parse(text).map_err(|_| bad("it should look like https://host:port"))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(bad(
            "it holds credentials: give them as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY instead",
        ));
    }
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err(bad("it must be an http or https URL"));
    }
    Ok(url)
}

/// Whether the signature of a request must cover its body, which costs a SHA-256 of every byte here and at the server: over
/// a network without TLS nothing else keeps others from changing it on the way. What is read is held to its BLAKE3 anyway.
fn needs_signed_bodies(endpoint: Option<&url::Url>) -> bool {
    let Some(endpoint) = endpoint else { return false };
    let here = match endpoint.host() {
        Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
        Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
        Some(url::Host::Domain(name)) => name == "localhost",
        None => false,
    };
    endpoint.scheme() != "https" && !here
}

fn s3(bucket: &str, endpoint: Option<url::Url>, options: &StorageOptions) -> Result<Arc<dyn ObjectStore>> {
    crate::tls::install_ring();
    let config = |why: &'static str| Error::new(Kind::Config, why);
    let client = ClientOptions::new()
        .with_connect_timeout(Duration::from_secs(5))
        // Bounded by `Patience` instead, by progress: a whole-request limit would cut slow lines off.
        .with_timeout_disabled()
        .with_read_timeout_disabled()
        .with_pool_max_idle_per_host(POOL)
        .with_pool_idle_timeout(Duration::from_secs(60))
        .with_http1_only();
    let retry =
        RetryConfig { backoff: BackoffConfig::default(), max_retries: 0, retry_timeout: Duration::ZERO };
    let mut s3 = AmazonS3Builder::new()
        .with_bucket_name(bucket)
        .with_region(options.region.as_deref().unwrap_or("us-east-1"))
        .with_retry(retry);
    // Amazon's certificate covers one label: a dotted bucket cannot be in the host name.
    let path_style = options.path_style.unwrap_or(options.endpoint.is_some() || bucket.contains('.'));
    let mut plain = false;
    s3 = s3.with_unsigned_payload(!needs_signed_bodies(endpoint.as_ref()));
    if let Some(mut endpoint) = endpoint {
        plain = endpoint.scheme() == "http";
        if !path_style {
            let host = format!("{bucket}.{}", endpoint.host_str().unwrap_or_default());
            endpoint
                .set_host(Some(&host))
                .map_err(|e| Error::with_source(Kind::Config, format!("endpoint for bucket {bucket}"), e))?;
        }
        s3 = s3.with_endpoint(endpoint.as_str().trim_end_matches('/'));
    }
    s3 = s3.with_virtual_hosted_style_request(!path_style).with_client_options(client.with_allow_http(plain));
    match (&options.access_key, &options.secret_key) {
        (Some(key), Some(secret)) => {
            s3 = s3.with_access_key_id(key).with_secret_access_key(secret.expose());
            if let Some(token) = &options.session_token {
                s3 = s3.with_token(token.expose());
            }
        }
        (Some(_), None) => return Err(config("an access key without its secret: set AWS_SECRET_ACCESS_KEY")),
        (None, Some(_)) => return Err(config("a secret without its access key: set AWS_ACCESS_KEY_ID")),
        (None, None) if options.role.is_empty() && options.endpoint.is_some() => {
            return Err(config("no keys: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"));
        }
        // On Amazon's own machines the machine's role serves.
        (None, None) => {
            for (name, value) in &options.role {
                if let Ok(key) = name.to_ascii_lowercase().parse::<AmazonS3ConfigKey>() {
                    s3 = s3.with_config(key, value);
                }
            }
        }
    }
    let store = s3.build().map_err(|e| Error::with_source(Kind::Config, "storage options", e))?;
    Ok(Arc::new(store))
}

fn local(folder: &FsPath) -> Result<Arc<dyn ObjectStore>> {
    let name = || format!("folder {}", folder.display());
    let existing = folder.ancestors().find(|p| p.exists());
    if existing != Some(folder) {
        durable_folder(folder, existing.unwrap_or(folder)).context(name)?;
    }
    let store = LocalFileSystem::new_with_prefix(folder)
        .map_err(|e| Error::with_source(Kind::Config, name(), e))?
        // An acknowledged close must survive a power cut.
        .with_fsync(true);
    Ok(Arc::new(store))
}

/// The directories of a local store that are known to be on disk. The store makes missing ones itself, but of two writers
/// that find one missing, one may answer before the other has synced it.
#[derive(Debug)]
pub(super) struct LocalFolders {
    pub top: PathBuf,
    /// Emptied when full: to sync a directory again does no harm.
    durable: Arc<Mutex<HashSet<PathBuf>>>,
}

impl LocalFolders {
    const MAX_KNOWN: usize = 4096;

    fn new(top: PathBuf) -> Self {
        LocalFolders { top, durable: Arc::default() }
    }

    /// Makes the directory of `object` and syncs it into its parents.
    pub async fn prepare(&self, object: &Path) -> Result<()> {
        let mut folder = self.top.clone();
        let parts: Vec<_> = object.parts().collect();
        folder.extend(parts[..parts.len().saturating_sub(1)].iter().map(|p| p.as_ref()));
        let known =
            |s: &Mutex<HashSet<PathBuf>>| s.lock().unwrap_or_else(PoisonError::into_inner).contains(&folder);
        if known(&self.durable) {
            return Ok(());
        }
        let (top, durable) = (self.top.clone(), self.durable.clone());
        let done = tokio::task::spawn_blocking(move || {
            durable_folder(&folder, &top).context(|| format!("folder {}", folder.display()))?;
            let mut durable = durable.lock().unwrap_or_else(PoisonError::into_inner);
            if durable.len() >= Self::MAX_KNOWN {
                durable.clear();
            }
            durable.insert(folder);
            Ok(())
        });
        done.await.map_err(|e| Error::with_source(Kind::Internal, "folder of the local store", e))?
    }
}

/// Makes `folder` with its parents and syncs the directories above it, up to and including `last`.
fn durable_folder(folder: &FsPath, last: &FsPath) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    for parent in folder.ancestors().skip(1) {
        match File::open(parent).and_then(|dir| dir.sync_all()) {
            // A directory that one may write to but not list; it is not ours.
            Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => {}
            synced => synced?,
        }
        if parent == last {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_signed_where_others_could_change_them() {
        let signed = |text: &str| needs_signed_bodies(Some(&endpoint(text).expect("endpoint")));
        assert!(!needs_signed_bodies(None), "Amazon's own speak TLS");
        for tls_or_here in
            ["https://s3.example", "http://127.0.0.1:9000", "http://[::1]:9000", "http://localhost"]
        {
            assert!(!signed(tls_or_here), "{tls_or_here}");
        }
        for network in ["http://10.0.0.7:9000", "http://s3.example", "http://localhost.example"] {
            assert!(signed(network), "{network}");
        }
    }
}
