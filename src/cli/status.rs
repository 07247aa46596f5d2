//! `hfmount status`: tells about a volume.

use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::show::{Table, show};
use super::{Failure, MetaArgs, small_runtime};
use crate::config::units::{human_duration, human_size};
use crate::config::{Home, Volume};
use crate::daemon::{check_marker, need_volume, open_bucket};
use crate::error::{Error, Kind, Result};
use crate::meta::kv::EngineInfo;
use crate::meta::url::MetaUrl;
use crate::meta::{SessionStatus, Usage, list_sessions, read_usage};
use crate::source::bucket::Patience;
use crate::types::Timestamp;

/// How long the storage may take to show that it answers.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hfmount status
  hfmount status redis://redis.internal/1
  hfmount status --json | jq '.sessions[] | select(.alive) | .mountpoint'")]
pub(super) struct StatusArgs {
    /// The metadata URL, as for --meta.
    #[arg(value_name = "META", conflicts_with = "meta")]
    url: Option<String>,

    #[command(flatten)]
    meta: MetaArgs,

    /// Print JSON.
    #[arg(long)]
    json: bool,
}

struct Report {
    volume: Volume,
    engine: EngineInfo,
    used: Usage,
    sessions: Vec<SessionStatus>,
    /// `Err`: why the storage cannot be used from here.
    storage: Result<()>,
}

impl StatusArgs {
    pub(super) fn run(self) -> Result<(), Failure> {
        let home = Home::from_env()?;
        let meta = MetaArgs { meta: self.url.or(self.meta.meta) }.url(&home)?;
        let report = small_runtime()?.block_on(look(&meta))?;
        if self.json {
            show(&format!("{:#}\n", as_json(&meta, &report)))?;
        } else {
            show(&as_text(&meta, &report))?;
        }
        Ok(())
    }
}

async fn look(meta: &MetaUrl) -> Result<Report> {
    let (kv, volume) = need_volume(meta).await?;
    let engine = kv.info().await?;
    let used = read_usage(&*kv).await?;
    let sessions = list_sessions(&*kv).await?;
    let storage = match tokio::time::timeout(PATIENCE, storage(&volume)).await {
        Ok(answer) => answer,
        Err(_) => Err(Error::new(Kind::TimedOut, volume.storage.to_string())),
    };
    Ok(Report { volume, engine, used, sessions, storage })
}

async fn storage(volume: &Volume) -> Result<()> {
    let bucket = open_bucket(volume).await?.with_patience(Patience::short());
    check_marker(&bucket, volume).await
}

/// What may be told of a volume: everything but keys.
pub(super) fn volume_json(volume: &Volume) -> Value {
    json!({
        "name": volume.name,
        "uuid": volume.uuid,
        "schema_version": volume.schema_version,
        "min_client": volume.min_client,
        "created": seconds(volume.created),
        "chunk_size": volume.chunk_size,
        "storage": volume.storage,
        "endpoint": volume.endpoint,
        "region": volume.region,
        "capacity": volume.capacity,
        "inodes": volume.inodes,
        "store_hub_blobs": volume.store_hub_blobs,
        "hub_endpoint": volume.hub_endpoint,
        "keys_sealed": volume.sealed_keys.is_some(),
    })
}

fn seconds(time: Timestamp) -> i64 {
    time.0.div_euclid(1_000_000_000)
}

fn age(since: Timestamp) -> Duration {
    let nanos = Timestamp::now().0.saturating_sub(since.0);
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(0))
}

fn as_json(meta: &MetaUrl, report: &Report) -> Value {
    let sessions: Vec<Value> = report
        .sessions
        .iter()
        .map(|s| {
            json!({
                "id": s.id.to_string(),
                "host": s.info.host,
                "pid": s.info.pid,
                "mountpoint": s.info.mountpoint,
                "version": s.info.version,
                "read_only": s.info.read_only,
                "started": seconds(s.info.started),
                "age_seconds": age(s.info.started).as_secs(),
                "alive": s.alive,
            })
        })
        .collect();
    json!({
        "volume": volume_json(&report.volume),
        "used": { "bytes": report.used.bytes, "inodes": report.used.inodes },
        "meta": { "url": meta.to_string(), "engine": report.engine.name, "warnings": report.engine.warnings },
        "storage": {
            "url": report.volume.storage,
            "ok": report.storage.is_ok(),
            "error": report.storage.as_ref().err().map(ToString::to_string),
        },
        "sessions": sessions,
    })
}

fn as_text(meta: &MetaUrl, report: &Report) -> String {
    let volume = &report.volume;
    let mut table = Table::default();
    table.row("volume", format!("{} ({})", volume.name, volume.uuid));
    table.row("metadata", format!("{meta} ({})", report.engine.name));
    let storage = match &report.storage {
        Ok(()) => "ok".to_owned(),
        Err(e) => format!("NOT USABLE FROM HERE: {e}"),
    };
    table.row("storage", format!("{} ({storage})", volume.storage));
    table.row("chunk size", human_size(volume.chunk_size.into()));
    let of = |limit: Option<String>| limit.map_or_else(String::new, |limit| format!(" of {limit}"));
    table.row("used", human_size(report.used.bytes) + &of(volume.capacity.map(human_size)));
    table.row("inodes", report.used.inodes.to_string() + &of(volume.inodes.map(|n| n.to_string())));
    table.row("hub", &volume.hub_endpoint);
    for warning in &report.engine.warnings {
        table.row("warning", warning);
    }
    let mut text = table.to_string();
    if report.sessions.is_empty() {
        text.push_str("\nnot mounted anywhere\n");
        return text;
    }
    text.push('\n');
    for s in &report.sessions {
        let info = &s.info;
        text.push_str(&format!(
            "{} {}:{} pid {}, for {}{}{}\n",
            if s.alive { "mounted" } else { "SILENT " },
            info.host,
            info.mountpoint,
            info.pid,
            human_duration(age(info.started)),
            if info.read_only { ", read-only" } else { "" },
            if info.version == env!("CARGO_PKG_VERSION") {
                String::new()
            } else {
                format!(", version {}", info.version)
            },
        ));
    }
    text
}
