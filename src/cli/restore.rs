//! `hfmount restore`: what was deleted, and getting it back.

mod places;

use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use serde_json::{Value, json};

use self::places::{Place, find};
use super::show::show;
use super::volume::Steps;
use super::{Failure, MetaArgs, small_runtime};
use crate::config::units::{duration, human_duration, human_size};
use crate::config::{Home, Volume};
use crate::daemon::need_volume;
use crate::error::{Error, Kind, Result};
use crate::meta::url::MetaUrl;
use crate::meta::{Binned, Lost, Meta, Restored, SessionInfo, Wanted};
use crate::types::{FileType, Ino, Timestamp};

/// How long this session may be silent before mounts clean up after it.
const SESSION_TTL: Duration = Duration::from_secs(30);

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  # What was deleted and can be brought back
  hfmount restore /mnt/hf

  # A tree, with all that was in it, to where it was
  hfmount restore /mnt/hf/runs/step-100

  # What a rm of the last ten minutes took
  hfmount restore --all --newer 10m /mnt/hf

  # Every checkpoint that was there an hour ago, beside what is there now; first only what would happen
  hfmount restore --older 1h --to /mnt/hf/rescued --dry-run '/mnt/hf/runs/*/last.pt'

  # One of several versions that had the same name: the list tells their inodes
  hfmount restore --meta redis://redis.internal/1 --inode 4711

  # Give the room back at once
  hfmount restore --empty /mnt/hf

A file comes into the trash when its last name is removed, or when another file is renamed over it, and stays for as long
as `hfmount config --trash-days` says. Nothing that is there now is ever replaced. Of several things that had the same
path the one deleted last is restored, once; directories come back as they were, extended attributes of theirs excepted.
What lies in the trash does not count for --capacity; what is restored does again. Not kept: what the Hub has, files that
were never written, and names that programs give to files of the moment (*.incomplete, *.lock, *.tmp, *.temp, *.part, *.swp,
*~, .tmp*, .nfs*, tmp_*, and tmp with eight random letters).")]
pub(super) struct RestoreArgs {
    /// What to restore: paths in a mount, or in the volume of --meta; `*`, `?` and `[…]` match within a name. Directories are
    /// meant with all that was in them. A mount point or a metadata URL alone lists all there is.
    #[arg(value_name = "PATH")]
    paths: Vec<String>,

    #[command(flatten)]
    meta: MetaArgs,

    /// Restore everything there is in the trash.
    #[arg(long, conflicts_with_all = ["inode", "empty"])]
    all: bool,

    /// What to restore, by the number that the list shows; may be given several times.
    #[arg(long, value_name = "N")]
    inode: Vec<u64>,

    /// Only what was deleted in that last time.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    newer: Option<Duration>,

    /// Only what was deleted longer ago than that.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    older: Option<Duration>,

    /// Put it into this directory, which is made if need be, instead of where it was.
    #[arg(long, value_name = "DIR")]
    to: Option<String>,

    /// List what there is; restore nothing.
    #[arg(long, conflicts_with_all = ["all", "to", "empty"])]
    list: bool,

    /// Delete it for good instead of restoring it: all of the trash, or what is named. The room is free some minutes
    /// later, when a mount has let go of it.
    #[arg(long, conflicts_with = "to")]
    empty: bool,

    /// Change nothing; tell what would be done.
    #[arg(long)]
    dry_run: bool,

    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What became of what was asked for.
enum Done {
    Listed(Vec<Lost>),
    Restored(Vec<Restored>),
    Emptied { things: u64, bytes: u64 },
}

impl RestoreArgs {
    pub(super) fn run(self) -> Result<(), Failure> {
        let home = Home::from_env()?;
        let Place { meta, volume, paths, to } = find(&home, &self.meta, &self.paths, self.to.as_deref())?;
        let (volume, now, done) =
            small_runtime()?.block_on(self.work(&meta, volume.as_deref(), paths, to))?;
        let text = match (&done, self.json) {
            (done, true) => format!("{:#}\n", self.as_json(&volume, done)),
            (Done::Listed(lost), false) => listed(&volume, lost, now),
            (Done::Restored(all), false) => self.restored(all),
            (Done::Emptied { things, bytes }, false) => {
                let would = if self.dry_run { "would be " } else { "" };
                format!("{things} things ({}) {would}deleted for good\n", human_size(*bytes))
            }
        };
        show(&text)?;
        let Done::Restored(all) = done else { return Ok(()) };
        let refused: Vec<_> = all.iter().filter_map(|one| Some((one, one.result.as_ref().err()?))).collect();
        for (one, error) in &refused {
            if !self.json {
                eprintln!("hfmount: {}: {}", one.lost.shown(), reason(one, error));
            }
        }
        match (all.len(), refused.len()) {
            (0, _) => Err(Failure::said("nothing like that is in the trash".into())),
            (_, 0) => Ok(()),
            (all, refused) => Err(Failure::said(format!("{refused} of {all} stay in the trash"))),
        }
    }

    async fn work(
        &self,
        url: &MetaUrl,
        uuid: Option<&str>,
        under: Vec<Vec<Bytes>>,
        to: Option<Vec<Bytes>>,
    ) -> Result<(Volume, Timestamp, Done)> {
        let (kv, volume) = need_volume(url).await?;
        if uuid.is_some_and(|uuid| uuid != volume.uuid) {
            return Err(Error::new(Kind::Config, format!("the mount is of another volume than {url}")));
        }
        let meta = Meta::open(kv, session_info(), SESSION_TTL).await?;
        meta.set_limits(volume.limits());
        let now = meta.now();
        let ago = |span: Duration| {
            Timestamp(now.0.saturating_sub_unsigned(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)))
        };
        let steps = Steps::default();
        steps.count("trash", 0, None, false);
        let nothing_named = under.is_empty() && self.inode.is_empty();
        let wanted = Wanted {
            under,
            inos: self.inode.iter().map(|n| Ino(*n)).collect(),
            since: self.newer.map(ago),
            before: self.older.map(ago),
        };
        let done = if self.empty {
            self.empty(&meta, &wanted, &steps).await
        } else if self.list || (nothing_named && !self.all) {
            let mut found = Vec::new();
            let each = |lost| {
                found.push(lost);
                steps.count("trash", found.len() as u64, None, false);
            };
            meta.lost(&wanted, each).await.map(|()| Done::Listed(found))
        } else {
            let mut all = Vec::new();
            let each = |one| {
                all.push(one);
                steps.count("restore", all.len() as u64, None, false);
            };
            let restored = meta.restore(&wanted, to.as_deref(), self.dry_run, each).await;
            restored.map(|()| Done::Restored(all))
        };
        let closed = meta.close().await;
        steps.end();
        let done = done?;
        closed?;
        Ok((volume, now, done))
    }

    async fn empty(&self, meta: &Meta, wanted: &Wanted, steps: &Steps) -> Result<Done> {
        let mut items: Vec<Binned> = Vec::new();
        let (mut things, mut bytes) = (0, 0u64);
        let mut count = |item: &Binned| {
            things += u64::from(item.became.is_none());
            steps.count("trash", things, None, false);
            bytes = bytes.saturating_add(item.size);
        };
        if *wanted == Wanted::default() {
            // Nothing is asked of where things were: page by page.
            let mut after = 0;
            loop {
                let page = meta.binned(after).await?;
                let Some(last) = page.last() else { break };
                after = last.id;
                page.iter().for_each(&mut count);
                if !self.dry_run {
                    meta.purge(&page).await?;
                }
            }
        } else {
            meta.lost(wanted, |lost| items.push(lost.item)).await?;
            items.iter().for_each(&mut count);
            if !self.dry_run {
                meta.purge(&items).await?;
            }
        }
        Ok(Done::Emptied { things, bytes })
    }

    fn restored(&self, all: &[Restored]) -> String {
        let done = if self.dry_run { "would be restored" } else { "restored" };
        let mut text = String::new();
        for one in all.iter().filter(|one| one.result.is_ok()) {
            let to = if one.to == one.lost.path { String::new() } else { format!(" to {}", one.shown()) };
            text.push_str(&format!("{done}: {}{to}\n", shown(&one.lost)));
        }
        text
    }

    fn as_json(&self, volume: &Volume, done: &Done) -> Value {
        match done {
            Done::Listed(lost) => json!({
                "volume": volume.name,
                "trash_seconds": volume.trash_seconds,
                "files": files(lost).count(),
                "bytes": files(lost).map(|l| l.item.size).sum::<u64>(),
                "trash": lost.iter().map(lost_json).collect::<Vec<_>>(),
            }),
            Done::Restored(all) => {
                let (mut restored, mut refused) = (Vec::new(), Vec::new());
                for one in all {
                    let mut row = lost_json(&one.lost);
                    row["to"] = joined(&one.to).into();
                    match &one.result {
                        Ok(()) => restored.push(row),
                        Err(error) => {
                            row["error"] = reason(one, error).into();
                            refused.push(row);
                        }
                    }
                }
                json!({ "dry_run": self.dry_run, "restored": restored, "refused": refused })
            }
            Done::Emptied { things, bytes } => {
                json!({ "dry_run": self.dry_run, "deleted": things, "bytes": bytes })
            }
        }
    }
}

fn session_info() -> SessionInfo {
    SessionInfo {
        host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        pid: std::process::id(),
        mountpoint: "(hfmount restore)".into(),
        started: Timestamp::now(),
        version: env!("CARGO_PKG_VERSION").into(),
        read_only: false,
    }
}

fn reason(one: &Restored, error: &Error) -> String {
    match error.kind() {
        Kind::Exists => format!("{} is there now; --to DIR puts it elsewhere", one.shown()),
        _ => error.to_string(),
    }
}

fn files(lost: &[Lost]) -> impl Iterator<Item = &Lost> {
    lost.iter().filter(|l| l.item.kind == FileType::File)
}

/// The path; of a directory with a slash at its end.
fn shown(lost: &Lost) -> String {
    let end = if lost.item.kind == FileType::Dir { "/" } else { "" };
    lost.shown() + end
}

fn joined(path: &[Bytes]) -> String {
    path.iter().map(|name| String::from_utf8_lossy(name)).collect::<Vec<_>>().join("/")
}

fn seconds(time: Timestamp) -> i64 {
    time.0.div_euclid(1_000_000_000)
}

fn between(from: Timestamp, to: Timestamp) -> String {
    let nanos = u64::try_from(to.0.saturating_sub(from.0)).unwrap_or(0);
    human_duration(Duration::from_nanos(nanos))
}

fn lost_json(lost: &Lost) -> Value {
    let kind = match lost.item.kind {
        FileType::File => "file",
        FileType::Dir => "directory",
        FileType::Symlink => "link",
        _ => "other",
    };
    json!({
        "path": joined(&lost.path),
        "inode": lost.item.ino.0,
        "kind": kind,
        "size": lost.item.size,
        "deleted": seconds(lost.item.deleted),
        "until": seconds(lost.item.until),
        "directory_known": !lost.adrift,
    })
}

fn listed(volume: &Volume, lost: &[Lost], now: Timestamp) -> String {
    let mut text = String::new();
    if !lost.is_empty() {
        text.push_str(&format!(
            "{:>10}  {:>10}  {:>10}  {:>8}  path\n",
            "deleted", "kept for", "size", "inode"
        ));
    }
    for one in lost {
        let item = &one.item;
        let size = if item.kind == FileType::File { human_size(item.size) } else { "-".to_owned() };
        text.push_str(&format!(
            "{:>10}  {:>10}  {size:>10}  {:>8}  {}\n",
            between(item.deleted, now),
            between(now, item.until),
            item.ino.0,
            shown(one)
        ));
    }
    let bytes = files(lost).map(|l| l.item.size).sum();
    text.push_str(&format!("{} files, {}", files(lost).count(), human_size(bytes)));
    if volume.trash().is_zero() {
        text.push_str("; what is deleted now is not kept (--trash-days 0)");
    }
    text.push('\n');
    text
}
