//! `hfmount format`: makes a volume.

use clap::Args;
use serde_json::{Map, Value, json};

use super::config::Changes;
use super::progress::waiting;
use super::show::{Table, show};
use super::{Failure, MetaArgs, small_runtime};
use crate::config::units::{human_size, size};
use crate::config::{
    CLIENT, Home, PUBLIC_HUB, StoreHubBlobs, VOLUME_SCHEMA, Volume, a_day, check_chunk_size, check_name,
};
use crate::daemon::{marker_of, storage_keys};
use crate::error::{Error, Kind, Result};
use crate::meta::Settings;
use crate::meta::kv::Kv;
use crate::meta::sqlite::Missing;
use crate::meta::url::{MetaUrl, open_engine};
use crate::secrets::{self, PASSPHRASE, Secret};
use crate::source::bucket::{Bucket, Claim, Patience};
use crate::source::storage::{StorageOptions, StorageUrl};
use crate::types::Timestamp;

const DEFAULT_NAME: &str = "default";
const DEFAULT_CHUNK_SIZE: u32 = 4 << 20;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  # Everything on this machine, below ~/.local/share/hfmount
  hfmount format

  # For a cluster. The bucket's keys are sealed in the metadata, so that a mount needs its URL and the passphrase only
  export HFMOUNT_META_PASSWORD_FILE=/etc/hfmount/redis HFMOUNT_PASSPHRASE_FILE=/etc/hfmount/passphrase
  export AWS_ACCESS_KEY_ID=… AWS_SECRET_ACCESS_KEY=…
  hfmount format --meta redis://redis.internal/1 --storage s3://models/hf --endpoint https://minio.internal team-cache

  # Later: another Hub mirror
  hfmount format --meta redis://redis.internal/1 --update --hub-endpoint https://hf-mirror.internal

Formatting a volume again changes nothing unless --update is given; name, storage and chunk size never change.")]
pub(super) struct FormatArgs {
    /// Name of the volume: 3 to 63 lower-case letters, digits and dashes.
    #[arg(value_parser = name_of, value_name = "NAME")]
    name: Option<String>,

    #[command(flatten)]
    meta: MetaArgs,

    /// Where the bytes are kept: s3://bucket/prefix or file:///path. Default: a folder in $HFMOUNT_HOME.
    #[arg(long, value_name = "URL", env = "HFMOUNT_STORAGE", hide_env_values = true)]
    storage: Option<String>,

    /// URL of an S3 server other than Amazon's. Default: AWS_ENDPOINT_URL.
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,

    /// Region of the bucket. Default: AWS_REGION, else us-east-1.
    #[arg(long)]
    region: Option<String>,

    /// Whether the bucket stands in the path of URLs rather than in the host name. Default: with --endpoint, yes.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    path_style: Option<bool>,

    /// Access key of the bucket; its secret comes from HFMOUNT_SECRET_KEY[_FILE]. Default: AWS_ACCESS_KEY_ID and
    /// AWS_SECRET_ACCESS_KEY.
    #[arg(long, value_name = "ID")]
    access_key: Option<String>,

    /// Bytes of a chunk: 1M to 64M, a power of two [default: 4M].
    #[arg(long, value_name = "SIZE", value_parser = chunk_size_of)]
    chunk_size: Option<u32>,

    /// Whether chunks that come from the Hub are kept in the bucket too; auto = when it is remote [default: auto].
    #[arg(long, value_enum)]
    store_hub_blobs: Option<StoreHubBlobs>,

    /// Where the Hub is. Default: $HF_ENDPOINT, else the public Hub.
    #[arg(long, value_name = "URL")]
    hub_endpoint: Option<String>,

    #[command(flatten)]
    changes: Changes,

    /// Change the settings of a volume that is there already, as far as options say so.
    #[arg(long)]
    update: bool,

    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

fn name_of(text: &str) -> Result<String, String> {
    check_name(text).map(|()| text.to_owned())
}

fn chunk_size_of(text: &str) -> Result<u32, String> {
    check_chunk_size(size(text)?)
}

fn env(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|v| !v.is_empty())
}

/// What became of the volume.
enum Outcome {
    Made,
    Changed(Vec<&'static str>),
    Kept,
}

impl FormatArgs {
    pub(super) fn run(self) -> Result<(), Failure> {
        let home = Home::from_env()?;
        let meta = self.meta.url(&home)?;
        let (volume, outcome, notices) = {
            let _waiting = waiting(format!("for {meta} and the storage"));
            small_runtime()?.block_on(self.format(&home, &meta))?
        };
        if self.json {
            show(&format!("{:#}\n", report_json(&volume, &outcome, &meta, &notices)))?;
        } else {
            show(&report(&volume, &outcome, &meta, &self.meta))?;
            for notice in notices {
                eprintln!("note: {notice}");
            }
        }
        Ok(())
    }

    async fn format(&self, home: &Home, meta: &MetaUrl) -> Result<(Volume, Outcome, Vec<String>)> {
        let mut notices = Vec::new();
        // A file that is not there is made last, when all else is found to work.
        let kv = match open_engine(meta, Missing::Refuse).await {
            Ok(kv) => Some(kv),
            Err(e) if e.kind() == Kind::NotFound => None,
            Err(e) => return Err(e),
        };
        let found = match &kv {
            Some(kv) => Volume::read(&**kv).await?,
            None => None,
        };
        if let (Some(kv), Some((volume, settings))) = (&kv, found) {
            let (volume, outcome) = self.again(&**kv, volume, &settings, &mut notices).await?;
            return Ok((volume, outcome, notices));
        }
        let mut volume = self.new_volume(home)?;
        if matches!(meta, MetaUrl::Redis(_)) && volume.storage.is_local() {
            notices.push(format!("{} is a folder of this machine: others cannot use it", volume.storage));
        }
        let options = volume.storage_options(self.given_keys()?, None)?;
        if let Some(passphrase) = passphrase_for(&volume, &options)? {
            volume.seal_keys(&options, &passphrase)?;
        }
        check_bucket(&volume, &options).await?;
        let kv = match kv {
            Some(kv) => kv,
            None => open_engine(meta, Missing::Create).await?,
        };
        if !volume.write(&*kv, None).await? {
            return Err(Error::new(Kind::Busy, format!("another format of {meta} was faster")));
        }
        notices.extend(kv.info().await?.warnings);
        Ok((volume, Outcome::Made, notices))
    }

    fn given_keys(&self) -> Result<StorageOptions> {
        let keys = storage_keys(self.access_key.as_deref())?;
        let own = StorageOptions {
            endpoint: self.endpoint.clone(),
            region: self.region.clone(),
            path_style: self.path_style,
            ..StorageOptions::default()
        };
        Ok(own.or(keys))
    }

    fn new_volume(&self, home: &Home) -> Result<Volume> {
        let storage = match &self.storage {
            Some(text) => text.parse().map_err(|e: Error| e.context("--storage"))?,
            None => StorageUrl::File { path: home.storage() },
        };
        let remote = !storage.is_local();
        let usual = StorageOptions::from_env(|name| std::env::var(name).ok());
        let mut volume = Volume {
            schema_version: VOLUME_SCHEMA,
            min_client: CLIENT,
            uuid: hex::encode(rand::random::<[u8; 16]>()),
            name: self.name.clone().unwrap_or_else(|| DEFAULT_NAME.into()),
            created: Timestamp::now(),
            chunk_size: self.chunk_size.unwrap_or(DEFAULT_CHUNK_SIZE),
            storage,
            // What the environment said now must hold on the other machines too.
            endpoint: self.endpoint.clone().or(usual.endpoint).filter(|_| remote),
            region: self.region.clone().or(usual.region).filter(|_| remote),
            path_style: self.path_style,
            store_hub_blobs: self.store_hub_blobs.unwrap_or_default(),
            hub_endpoint: match self.hub_endpoint.clone().or_else(|| env("HF_ENDPOINT")) {
                Some(url) => hub_url(&url)?,
                None => PUBLIC_HUB.into(),
            },
            peer_key: hex::encode(rand::random::<[u8; 32]>()),
            capacity: None,
            inodes: None,
            trash_seconds: a_day(),
            loaded: None,
            sealed_keys: None,
            other: Map::new(),
        };
        self.changes.apply(&mut volume);
        Ok(volume)
    }

    /// The metadata holds a volume already.
    async fn again(
        &self,
        kv: &dyn Kv,
        volume: Volume,
        settings: &Settings<Value>,
        notices: &mut Vec<String>,
    ) -> Result<(Volume, Outcome)> {
        self.refuse_fixed(&volume)?;
        let (mut changed, fields) = self.changed(&volume)?;
        let passphrase = secrets::from_env(PASSPHRASE)?;
        let options = changed.storage_options(self.given_keys()?, passphrase.as_ref())?;
        if !self.update {
            if !fields.is_empty() {
                notices.push(format!("not changed without --update: {}", fields.join(", ")));
            }
            check_bucket(&volume, &options).await?;
            return Ok((volume, Outcome::Kept));
        }
        let mut fields = fields;
        if let Some(passphrase) = passphrase_for(&changed, &options)? {
            changed.seal_keys(&options, &passphrase)?;
            fields.push("sealed keys");
        }
        check_bucket(&changed, &options).await?;
        if fields.is_empty() {
            return Ok((volume, Outcome::Kept));
        }
        if !changed.write(kv, Some(settings)).await? {
            return Err(Error::new(Kind::Busy, "another format changed the volume at the same time"));
        }
        Ok((changed, Outcome::Changed(fields)))
    }

    /// What never changes, and what the user may have thought would.
    fn refuse_fixed(&self, volume: &Volume) -> Result<()> {
        let other = |what: &str, is: &str, asked: &str| {
            let words =
                format!("the metadata holds a volume whose {what} is {is}, not {asked}: this never changes");
            Err(Error::new(Kind::Exists, words))
        };
        if let Some(name) = self.name.as_ref().filter(|n| **n != volume.name) {
            return other("name", &volume.name, name);
        }
        if let Some(size) = self.chunk_size.filter(|s| *s != volume.chunk_size) {
            let (is, asked) = (human_size(volume.chunk_size.into()), human_size(size.into()));
            return other("chunk size", &is, &asked);
        }
        if let Some(text) = &self.storage {
            let asked: StorageUrl = text.parse().map_err(|e: Error| e.context("--storage"))?;
            if asked != volume.storage {
                return other("storage", &volume.storage.to_string(), &asked.to_string());
            }
        }
        Ok(())
    }

    /// The volume with what the options say, and which settings differ.
    fn changed(&self, volume: &Volume) -> Result<(Volume, Vec<&'static str>)> {
        let mut new = volume.clone();
        if self.endpoint.is_some() {
            new.endpoint.clone_from(&self.endpoint);
        }
        if self.region.is_some() {
            new.region.clone_from(&self.region);
        }
        new.path_style = self.path_style.or(new.path_style);
        new.store_hub_blobs = self.store_hub_blobs.unwrap_or(new.store_hub_blobs);
        if let Some(url) = &self.hub_endpoint {
            new.hub_endpoint = hub_url(url)?;
        }
        let differ = [
            ("endpoint", new.endpoint != volume.endpoint),
            ("region", new.region != volume.region),
            ("path style", new.path_style != volume.path_style),
            ("store hub blobs", new.store_hub_blobs != volume.store_hub_blobs),
            ("hub endpoint", new.hub_endpoint != volume.hub_endpoint),
        ];
        let mut fields: Vec<_> = differ.into_iter().filter(|(_, d)| *d).map(|(name, _)| name).collect();
        fields.extend(self.changes.apply(&mut new));
        Ok((new, fields))
    }
}

/// Keys are sealed when there are keys, a bucket that they are for, and a passphrase.
fn passphrase_for(volume: &Volume, options: &StorageOptions) -> Result<Option<Secret>> {
    let wanted = options.secret_key.is_some() && !volume.storage.is_local();
    Ok(secrets::from_env(PASSPHRASE)?.filter(|_| wanted))
}

/// An `http(s)` URL without a user, a query or a slash at its end.
pub(super) fn hub_url(text: &str) -> Result<String> {
    http_url("--hub-endpoint", text)
}

/// The same for any option.
pub(super) fn http_url(option: &'static str, text: &str) -> Result<String> {
    let bad = |why: &str| Error::with_source(Kind::Config, option, why.to_owned());
    let url = url::Url::parse(text).map_err(|_| bad("it should look like https://huggingface.co"))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(bad("it holds credentials: the Hub's token comes from HF_TOKEN or a token file"));
    }
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() || url.query().is_some() {
        return Err(bad("it should look like https://huggingface.co"));
    }
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

/// A test object goes there and back; then the place is this volume's, or it is refused.
async fn check_bucket(volume: &Volume, options: &StorageOptions) -> Result<()> {
    let bucket = Bucket::open(&volume.storage, options, &volume.name).await?;
    let bucket = bucket.with_patience(Patience::short());
    bucket.check().await?;
    // Made or found: it is this volume's.
    let (Claim::Made | Claim::Ours) = bucket.claim(&marker_of(volume)).await?;
    Ok(())
}

fn report(volume: &Volume, outcome: &Outcome, meta: &MetaUrl, given: &MetaArgs) -> String {
    let what = match outcome {
        Outcome::Made => "made".to_owned(),
        Outcome::Changed(fields) => format!("changed: {}", fields.join(", ")),
        Outcome::Kept => "is there already, nothing was changed".to_owned(),
    };
    let mut table = Table::default();
    table.row("volume", format!("{} ({what})", volume.name)).row("uuid", &volume.uuid);
    table.row("metadata", meta.to_string()).row("storage", volume.storage.to_string());
    if let Some(endpoint) = &volume.endpoint {
        table.row("endpoint", endpoint);
    }
    table.row("keys", if volume.sealed_keys.is_some() { "sealed in the metadata" } else { "not stored" });
    table.row("chunk size", human_size(volume.chunk_size.into()));
    table.row("hub", &volume.hub_endpoint);
    table.row(
        "hub blobs",
        if volume.stores_hub_blobs() { "kept in the storage too" } else { "cached on disks only" },
    );
    let option = if given.meta.is_some() { format!("--meta {meta} ") } else { String::new() };
    super::config::rows(&mut table, volume);
    format!("{table}\nMount it: hfmount mount {option}-d DIR\n")
}

fn report_json(volume: &Volume, outcome: &Outcome, meta: &MetaUrl, notices: &[String]) -> Value {
    let (result, changed) = match outcome {
        Outcome::Made => ("made", &[][..]),
        Outcome::Changed(fields) => ("changed", fields.as_slice()),
        Outcome::Kept => ("kept", &[][..]),
    };
    json!({
        "result": result,
        "changed": changed,
        "volume": super::status::volume_json(volume),
        "meta": meta.to_string(),
        "notices": notices,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hub_urls() {
        assert_eq!(hub_url("https://hf.example/").expect("good"), "https://hf.example");
        assert_eq!(hub_url("http://127.0.0.1:8080/base/").expect("good"), "http://127.0.0.1:8080/base");
        for bad in ["", "hf.example", "ftp://x", "https://", "https://u:hunter2@x", "https://x?y"] {
            let e = hub_url(bad).expect_err(bad);
            assert!(!e.to_string().contains("hunter2"), "{e}");
        }
    }
}
