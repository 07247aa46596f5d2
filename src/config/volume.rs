//! A volume's settings, as `format` stores them in the metadata.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{Error, Kind, Result};
use crate::meta::kv::Kv;
use crate::meta::{Limits, Settings, read_settings, write_settings};
use crate::secrets::{self, Sealed, Secret};
use crate::source::storage::{StorageOptions, StorageUrl};
use crate::types::Timestamp;

/// The form of the settings that this binary writes.
pub const VOLUME_SCHEMA: u32 = 1;
/// What this binary is able to use: volumes whose `min_client` is not above it.
pub const CLIENT: u32 = 1;
/// Where the Hub is unless somebody says otherwise.
pub const PUBLIC_HUB: &str = "https://huggingface.co";

/// Whether chunks that came from the Hub are kept in the bucket too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum StoreHubBlobs {
    /// When the bucket is remote: in a folder of the same disk a blob would only lie twice.
    #[default]
    Auto,
    Always,
    Never,
}

/// A volume. Holds no secret but sealed ones, and the key by which the volume's own mounts know each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// See [`VOLUME_SCHEMA`].
    pub schema_version: u32,
    /// The least [`CLIENT`] that may use it.
    pub min_client: u32,
    /// 32 hex digits, made by `format`, never changed.
    pub uuid: String,
    pub name: String,
    pub created: Timestamp,
    /// Bytes; see [`check_chunk_size`]. Never changed.
    pub chunk_size: u32,
    /// Never changed: what is stored there stays there.
    pub storage: StorageUrl,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_style: Option<bool>,
    #[serde(default)]
    pub store_hub_blobs: StoreHubBlobs,
    pub hub_endpoint: String,
    /// 64 hex digits.
    pub peer_key: String,
    /// Bytes that users may have in it; `None`: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<u64>,
    /// Inodes that users may have in it, the root included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inodes: Option<u64>,
    /// How long what users delete can be restored, seconds; 0: not at all.
    #[serde(default = "a_day")]
    pub trash_seconds: u64,
    /// When these metadata were loaded from a dump, later than all loads before; `None`: never. The bucket's marker names the
    /// copy that goes on: of two copies each would delete the other's bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loaded: Option<Timestamp>,
    /// The keys of the bucket ([`StorageKeys`]), if `format` was given a passphrase.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed_keys: Option<Sealed>,
    /// What newer binaries wrote and this one does not know: kept.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// What `trash_seconds` is unless somebody says otherwise.
#[must_use]
pub fn a_day() -> u64 {
    86_400
}

/// The keys of a bucket, as they are sealed.
#[derive(Serialize, Deserialize)]
pub struct StorageKeys {
    access_key: Option<String>,
    secret_key: Option<String>,
    session_token: Option<String>,
}

impl std::fmt::Debug for StorageKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("<keys>")
    }
}

impl Volume {
    /// Whether blobs that came from the Hub go to the bucket.
    #[must_use]
    pub fn stores_hub_blobs(&self) -> bool {
        match self.store_hub_blobs {
            StoreHubBlobs::Auto => !self.storage.is_local(),
            StoreHubBlobs::Always => true,
            StoreHubBlobs::Never => false,
        }
    }

    /// What its users may have in it.
    #[must_use]
    pub fn limits(&self) -> Limits {
        Limits { bytes: self.capacity, inodes: self.inodes }
    }

    /// How long what users delete can be restored; zero: not at all.
    #[must_use]
    pub fn trash(&self) -> Duration {
        Duration::from_secs(self.trash_seconds)
    }

    /// Reads the settings of the volume that `kv` holds; `None` if it holds none. [`Kind::Config`] if they are for newer
    /// binaries only.
    pub async fn read(kv: &dyn Kv) -> Result<Option<(Self, Settings<Value>)>> {
        let Some(settings) = read_settings::<Value>(kv).await? else { return Ok(None) };
        let volume = Self::from_json(settings.value.clone())?;
        Ok(Some((volume, settings)))
    }

    /// Which binaries may use it is looked at first: the rest may be in a form that this one cannot read.
    fn from_json(value: Value) -> Result<Self> {
        let min_client = value.get("min_client").and_then(Value::as_u64).unwrap_or(0);
        if min_client > u64::from(CLIENT) {
            let words = format!(
                "this volume needs an hfmount of level {min_client}, and this one is of level {CLIENT}: use a newer one"
            );
            return Err(Error::new(Kind::Config, words));
        }
        serde_json::from_value(value)
            .map_err(|e| Error::with_source(Kind::Corrupt, "the settings of the volume", e))
    }

    /// Stores the settings: over `old`, or only if there are none. False: somebody else was faster.
    pub async fn write(&self, kv: &dyn Kv, old: Option<&Settings<Value>>) -> Result<bool> {
        let json = serde_json::to_value(self)
            .map_err(|e| Error::with_source(Kind::Internal, "encoding the settings of the volume", e))?;
        write_settings(kv, old, &json).await
    }

    /// Puts the keys of `options` into the settings, sealed. Slow: not for the async workers.
    pub fn seal_keys(&mut self, options: &StorageOptions, passphrase: &Secret) -> Result<()> {
        let text = |s: &Option<Secret>| s.as_ref().map(|s| s.expose().to_owned());
        let keys = StorageKeys {
            access_key: options.access_key.clone(),
            secret_key: text(&options.secret_key),
            session_token: text(&options.session_token),
        };
        let plain = serde_json::to_vec(&keys)
            .map_err(|e| Error::with_source(Kind::Internal, "keys of the bucket", e.to_string()))?;
        self.sealed_keys = Some(secrets::seal(passphrase, &self.uuid, &plain)?);
        Ok(())
    }

    /// How to reach the bucket: what `given` says, then the settings; keys that were given go before sealed ones, which are
    /// opened only if needed. Slow if they are: not for the async workers. [`Kind::Config`] if sealed keys are needed
    /// and `passphrase` is absent or wrong.
    pub fn storage_options(
        &self,
        given: StorageOptions,
        passphrase: Option<&Secret>,
    ) -> Result<StorageOptions> {
        let mut stored = StorageOptions {
            endpoint: self.endpoint.clone(),
            region: self.region.clone(),
            path_style: self.path_style,
            ..StorageOptions::default()
        };
        let keyless = given.access_key.is_none() && given.secret_key.is_none();
        if let Some(sealed) = self.sealed_keys.as_ref().filter(|_| keyless) {
            let Some(passphrase) = passphrase else {
                return Err(Error::new(
                    Kind::Config,
                    "the keys of the bucket are sealed in the metadata: set HFMOUNT_PASSPHRASE, \
                     HFMOUNT_PASSPHRASE_FILE, or the keys themselves (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)",
                ));
            };
            let plain = secrets::open(sealed, passphrase, &self.uuid)?;
            let keys: StorageKeys = serde_json::from_slice(&plain)
                .map_err(|_| Error::new(Kind::Corrupt, "the sealed keys of the bucket"))?;
            stored.access_key = keys.access_key;
            stored.secret_key = keys.secret_key.map(Secret::from);
            stored.session_token = keys.session_token.map(Secret::from);
        }
        Ok(given.or(stored))
    }
}

/// Whether `name` may name a volume: it becomes a part of object names. `[a-z0-9][a-z0-9-]{1,61}[a-z0-9]`.
pub fn check_name(name: &str) -> Result<(), String> {
    let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let fits = (3..=63).contains(&name.len())
        && name.bytes().all(|b| good(b) || b == b'-')
        && name.bytes().next().is_some_and(good)
        && name.bytes().last().is_some_and(good);
    if fits {
        Ok(())
    } else {
        Err(format!(
            "{name:?} cannot name a volume: 3 to 63 lower-case letters, digits and dashes, no dash at either end"
        ))
    }
}

/// Whether chunks can be of so many bytes: a power of two from 1 MiB to 64 MiB.
pub fn check_chunk_size(bytes: u64) -> Result<u32, String> {
    match u32::try_from(bytes) {
        Ok(size) if size.is_power_of_two() && (1 << 20..=64 << 20).contains(&size) => Ok(size),
        _ => Err("a chunk has 1M, 2M, 4M … or 64M bytes: a power of two".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume() -> Volume {
        Volume {
            schema_version: VOLUME_SCHEMA,
            min_client: 1,
            uuid: "00".repeat(16),
            name: "test".into(),
            created: Timestamp(0),
            chunk_size: 4 << 20,
            storage: "s3://models/x".parse().expect("url"),
            endpoint: Some("http://127.0.0.1:9000".into()),
            region: None,
            path_style: None,
            store_hub_blobs: StoreHubBlobs::Auto,
            hub_endpoint: PUBLIC_HUB.into(),
            peer_key: "11".repeat(32),
            capacity: None,
            inodes: None,
            trash_seconds: a_day(),
            loaded: None,
            sealed_keys: None,
            other: Map::new(),
        }
    }

    #[test]
    fn names_that_may_be() {
        for good in ["abc", "a-b", "0a9", &"x".repeat(63), "a--b"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", "ab", "-ab", "ab-", "Abc", "a_b", "a.b", "a/b", "äbc", &"x".repeat(64)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn chunk_sizes_that_may_be() {
        assert_eq!(check_chunk_size(4 << 20), Ok(4 << 20));
        assert_eq!(check_chunk_size(64 << 20), Ok(64 << 20));
        for bad in [0, 1 << 19, 3 << 20, 128 << 20, u64::MAX] {
            assert!(check_chunk_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn settings_survive_what_newer_binaries_add() {
        let mut json = serde_json::to_value(volume()).expect("json");
        json["quota"] = 7.into();
        let back = Volume::from_json(json).expect("volume");
        assert_eq!(back.other.get("quota"), Some(&7.into()));
        assert_eq!(serde_json::to_value(&back).expect("json")["quota"], 7);
    }

    #[test]
    fn a_volume_for_newer_binaries_is_refused_whatever_else_it_holds() {
        let json = serde_json::json!({ "min_client": 2, "storage": { "in": "a form of the future" } });
        let e = Volume::from_json(json).expect_err("too new");
        assert_eq!(e.kind(), Kind::Config);
        assert!(e.to_string().contains("use a newer one"), "{e}");
    }

    #[test]
    fn auto_stores_blobs_in_remote_buckets_only() {
        let mut v = volume();
        assert!(v.stores_hub_blobs());
        v.storage = "file:///srv/x".parse().expect("url");
        assert!(!v.stores_hub_blobs());
        v.store_hub_blobs = StoreHubBlobs::Always;
        assert!(v.stores_hub_blobs());
    }

    #[test]
    fn sealed_keys_serve_where_none_are_given() {
        let secret = |s: &str| Secret::from(s.to_owned());
        let mut v = volume();
        let keys = StorageOptions {
            access_key: Some("id".into()),
            secret_key: Some(secret("hunter2")),
            ..StorageOptions::default()
        };
        v.seal_keys(&keys, &secret("pass")).expect("sealed");
        assert!(!serde_json::to_string(&v).expect("json").contains("hunter2"));
        let none = StorageOptions::default;
        let opened = v.storage_options(none(), Some(&secret("pass"))).expect("opened");
        assert_eq!(opened.secret_key, Some(secret("hunter2")));
        assert_eq!(opened.endpoint.as_deref(), Some("http://127.0.0.1:9000"));
        assert_eq!(v.storage_options(none(), None).expect_err("no passphrase").kind(), Kind::Config);
        assert!(v.storage_options(none(), Some(&secret("wrong"))).is_err());
        let mine = StorageOptions { access_key: Some("me".into()), secret_key: Some(secret("s")), ..none() };
        let used = v.storage_options(mine, None).expect("given keys need no passphrase");
        assert_eq!(used.access_key.as_deref(), Some("me"));
    }
}
