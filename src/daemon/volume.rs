//! Getting from a metadata URL to a volume and its bucket.

use std::cmp::Ordering;
use std::sync::Arc;

use crate::config::Volume;
use crate::error::{Error, Kind, Result};
use crate::meta::kv::Kv;
use crate::meta::sqlite::Missing;
use crate::meta::url::{MetaUrl, open_engine};
use crate::secrets::{self, PASSPHRASE};
use crate::source::bucket::{Bucket, Marker};
use crate::source::storage::StorageOptions;

/// The volume at `meta`; an error says what to do if there is none.
pub async fn need_volume(meta: &MetaUrl) -> Result<(Arc<dyn Kv>, Volume)> {
    let none = || {
        let words = format!("there is no volume at {meta}: make one with `hfmount format`");
        Error::new(Kind::Config, words)
    };
    let kv = match open_engine(meta, Missing::Refuse).await {
        Err(e) if e.kind() == Kind::NotFound => return Err(none()),
        kv => kv?,
    };
    let (volume, _) = Volume::read(&*kv).await?.ok_or_else(none)?;
    Ok((kv, volume))
}

/// The keys of the bucket: `--access-key` with its own secret, else the usual `AWS_*`. Where the bucket is comes from the
/// volume's settings, whatever `AWS_ENDPOINT_URL` says on this machine.
pub fn storage_keys(access_key: Option<&str>) -> Result<StorageOptions> {
    let usual = StorageOptions {
        endpoint: None,
        region: None,
        path_style: None,
        ..StorageOptions::from_env(|name| std::env::var(name).ok())
    };
    let secret_key = secrets::from_env("HFMOUNT_SECRET_KEY")?;
    let access_key = access_key.map(str::to_owned).or_else(|| env("HFMOUNT_ACCESS_KEY"));
    match (&access_key, &secret_key) {
        (None, None) => Ok(usual),
        (Some(_), None) if usual.secret_key.is_some() => {
            Ok(StorageOptions { access_key, session_token: None, ..usual })
        }
        (Some(_), None) => {
            Err(Error::new(Kind::Config, "--access-key needs HFMOUNT_SECRET_KEY or its _FILE"))
        }
        (None, Some(_)) if usual.access_key.is_none() => {
            Err(Error::new(Kind::Config, "HFMOUNT_SECRET_KEY needs --access-key"))
        }
        (_, Some(_)) => Ok(StorageOptions {
            access_key: access_key.or(usual.access_key.clone()),
            secret_key,
            session_token: None,
            ..usual
        }),
    }
}

fn env(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|v| !v.is_empty())
}

/// The bucket of a volume, with keys from the environment, else with those that are sealed in the metadata.
pub async fn open_bucket(volume: &Volume) -> Result<Bucket> {
    let given = storage_keys(None)?;
    let passphrase = secrets::from_env(PASSPHRASE)?;
    let owned = volume.clone();
    // Opening sealed keys is hard work on purpose.
    let options = tokio::task::spawn_blocking(move || owned.storage_options(given, passphrase.as_ref()))
        .await
        .map_err(|e| Error::with_source(Kind::Internal, "keys of the bucket", e))??;
    Bucket::open(&volume.storage, &options, &volume.name).await
}

/// Which of the copies of a volume's metadata one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Standing {
    /// The one that goes on with what is in the bucket.
    Current,
    /// It was loaded from a dump, and was not mounted since, but to be read.
    Fresh,
    /// Another one was loaded from a dump later, and goes on: this one does not know what that one needs.
    Superseded,
}

/// The marker of the volume's bucket, as long as these metadata are the ones that go on.
#[must_use]
pub fn marker_of(volume: &Volume) -> Marker {
    Marker {
        uuid: volume.uuid.clone(),
        name: volume.name.clone(),
        chunk_size: volume.chunk_size,
        loaded: volume.loaded,
    }
}

/// That the place holds this volume's objects and no other's; and whether these metadata go on with them.
pub async fn check_marker(bucket: &Bucket, volume: &Volume) -> Result<Standing> {
    match bucket.volume_marker().await? {
        Some(marker) if marker.uuid == volume.uuid => Ok(match volume.loaded.cmp(&marker.loaded) {
            Ordering::Equal => Standing::Current,
            Ordering::Greater => Standing::Fresh,
            Ordering::Less => Standing::Superseded,
        }),
        Some(marker) => Err(Error::new(
            Kind::Config,
            format!("{} holds another volume, {} ({})", bucket.place(), marker.name, marker.uuid),
        )),
        None => Err(Error::new(
            Kind::Config,
            format!("{} does not hold volume {}: format it again", bucket.place(), volume.name),
        )),
    }
}

/// The error of who needs metadata that go on.
#[must_use]
pub fn superseded(bucket: &Bucket, volume: &Volume) -> Error {
    let words = format!(
        "volume {} was loaded from a dump into other metadata, which go on with {}: these are a copy of the past, and would \
         delete what is needed there. To read them, mount --read-only; to go on with these after all, `hfmount dump` them \
         and `hfmount load` that where nothing is",
        volume.name,
        bucket.place()
    );
    Error::new(Kind::Config, words)
}
