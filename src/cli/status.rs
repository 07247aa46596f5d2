//! `hfmount status`: tells about a volume.

use std::path::Path;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::progress::waiting;
use super::show::{Table, show};
use super::{Failure, MetaArgs, small_runtime};
use crate::chunk::cache::Waiting;
use crate::config::units::{human_duration, human_size};
use crate::config::{Home, Volume};
use crate::daemon::{RunFile, Standing, check_marker, need_volume, open_bucket, superseded};
use crate::error::{Error, Kind, Result};
use crate::meta::kv::EngineInfo;
use crate::meta::url::MetaUrl;
use crate::meta::{
    BinUsage, JournalRow, SessionStatus, Usage, bin_usage, list_journals, list_sessions, read_usage,
};
use crate::source::bucket::Patience;
use crate::types::{SessionId, Timestamp};

/// How long the storage may take to show that it answers.
const PATIENCE: Duration = Duration::from_secs(10);
/// How much of the trash is counted.
const TRASH_ROWS: usize = 100_000;

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
    trash: BinUsage,
    waiting: Vec<Journal>,
    failed_disks: Vec<RunFile>,
    /// The mounts of this machine.
    here: Vec<RunFile>,
}

/// Data that some mount acknowledged and has not uploaded yet.
struct Journal {
    session: SessionId,
    row: JournalRow,
    /// Whether its cache directory is in use: on its way, rather than waiting for a mount.
    mounted: bool,
    /// How much it is; only what lies on this machine can be told.
    waiting: Option<Waiting>,
    last_error: Option<String>,
}

impl StatusArgs {
    pub(super) fn run(self) -> Result<(), Failure> {
        let home = Home::from_env()?;
        let meta = MetaArgs { meta: self.url.or(self.meta.meta) }.url(&home)?;
        let report = {
            let _waiting = waiting(format!("for {meta} and its storage"));
            small_runtime()?.block_on(look(&home, &meta))?
        };
        if self.json {
            show(&format!("{:#}\n", as_json(&meta, &report)))?;
        } else {
            show(&as_text(&meta, &report))?;
        }
        Ok(())
    }
}

async fn look(home: &Home, meta: &MetaUrl) -> Result<Report> {
    let (kv, volume) = need_volume(meta).await?;
    let engine = kv.info().await?;
    let used = read_usage(&*kv).await?;
    let sessions = list_sessions(&*kv).await?;
    let storage = match tokio::time::timeout(PATIENCE, storage(&volume)).await {
        Ok(answer) => answer,
        Err(_) => Err(Error::new(Kind::TimedOut, volume.storage.to_string())),
    };
    let trash = bin_usage(&*kv, TRASH_ROWS).await?;
    let notes: Vec<RunFile> =
        RunFile::all(home).into_iter().filter(|n| n.volume == volume.uuid && n.is_running()).collect();
    let waiting = list_journals(&*kv).await?.into_iter().map(|(session, row)| journal(session, row, &notes));
    let waiting = waiting.filter(|j| !j.mounted || j.waiting != Some(Waiting::default())).collect();
    let failed_disks = notes.iter().filter(|n| n.disk_error.is_some()).cloned().collect();
    Ok(Report { volume, engine, used, sessions, storage, trash, waiting, failed_disks, here: notes })
}

fn journal(session: SessionId, row: JournalRow, notes: &[RunFile]) -> Journal {
    let here = row.host == rustix::system::uname().nodename().to_string_lossy();
    let note = notes.iter().find(|n| here && n.cache_dir == Path::new(&row.dir));
    let waiting = here.then(|| Waiting::in_dir(Path::new(&row.dir)).ok()).flatten();
    let last_error = note.and_then(|n| n.upload_error.clone());
    Journal { session, row, mounted: note.is_some(), waiting, last_error }
}

async fn storage(volume: &Volume) -> Result<()> {
    let bucket = open_bucket(volume).await?.with_patience(Patience::short());
    match check_marker(&bucket, volume).await? {
        Standing::Superseded => Err(superseded(&bucket, volume)),
        Standing::Current | Standing::Fresh => Ok(()),
    }
}

/// What may be told of a volume: everything but keys.
pub(super) fn volume_json(volume: &Volume) -> Value {
    json!({
        "name": volume.name,
        "uuid": volume.uuid,
        "schema_version": volume.schema_version,
        "min_client": volume.min_client,
        "created": seconds(volume.created),
        "loaded": volume.loaded.map(seconds),
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
        "trash": {
            "files": report.trash.files,
            "bytes": report.trash.bytes,
            "complete": !report.trash.more,
            "seconds": report.volume.trash_seconds,
        },
        "waiting": report.waiting.iter().map(journal_json).collect::<Vec<_>>(),
        "failed_disks": report
            .failed_disks
            .iter()
            .map(|n| json!({ "mountpoint": n.mount_point, "cache_dir": n.cache_dir, "error": n.disk_error }))
            .collect::<Vec<_>>(),
        "passthrough": report
            .here
            .iter()
            .filter_map(|n| Some((n, n.passthrough?)))
            .map(|(n, on)| json!({ "mountpoint": n.mount_point, "on": on, "why_not": n.passthrough_off }))
            .collect::<Vec<_>>(),
    })
}

fn journal_json(journal: &Journal) -> Value {
    let waiting = journal.waiting.as_ref();
    json!({
        "session": journal.session.to_string(),
        "host": journal.row.host,
        "cache_dir": journal.row.dir,
        "since": seconds(journal.row.since),
        "mounted": journal.mounted,
        "files": waiting.map(|w| w.files),
        "bytes": waiting.map(|w| w.bytes),
        "oldest_seconds": waiting.and_then(|w| w.oldest).map(|since| age(since).as_secs()),
        "unusable": waiting.map(|w| w.bad),
        "last_error": journal.last_error,
    })
}

fn journal_text(journal: &Journal) -> String {
    let mut text = match &journal.waiting {
        Some(w) => {
            let oldest =
                w.oldest.map_or_else(String::new, |o| format!(", the oldest for {}", human_duration(age(o))));
            format!("{} files ({}) to be uploaded{oldest}", w.files, human_size(w.bytes))
        }
        None => format!("files to be uploaded, for {}", human_duration(age(journal.row.since))),
    };
    if !journal.mounted {
        text.push_str(", when it is mounted again");
    }
    if let Some(bad) = journal.waiting.map(|w| w.bad).filter(|bad| *bad > 0) {
        text.push_str(&format!(", {bad} that cannot be used"));
    }
    if let Some(error) = &journal.last_error {
        text.push_str(&format!(": {error}"));
    }
    format!("waiting {}:{} {text}\n", journal.row.host, journal.row.dir)
}

fn trash_text(volume: &Volume, trash: &BinUsage) -> String {
    let more = if trash.more { "more than " } else { "" };
    let holds = format!("{more}{} files, {}", trash.files, human_size(trash.bytes));
    match volume.trash() {
        Duration::ZERO => format!("{holds}; what is deleted now is not kept"),
        time => format!("{holds}; what is deleted is kept for {}", human_duration(time)),
    }
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
    table.row("trash", trash_text(volume, &report.trash));
    table.row("hub", &volume.hub_endpoint);
    for warning in &report.engine.warnings {
        table.row("warning", warning);
    }
    let mut text = table.to_string();
    text.push('\n');
    for note in &report.failed_disks {
        let error = note.disk_error.as_deref().unwrap_or_default();
        text.push_str(&format!("FAILED DISK of {}: {error}\n", note.mount_point.display()));
    }
    for note in &report.here {
        if let Some(why) = &note.passthrough_off {
            text.push_str(&format!("no passthrough on {}: {why}\n", note.mount_point.display()));
        }
    }
    report.waiting.iter().for_each(|journal| text.push_str(&journal_text(journal)));
    if report.sessions.is_empty() {
        text.push_str("not mounted anywhere\n");
        return text;
    }
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
