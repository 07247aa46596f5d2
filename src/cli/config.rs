//! `hfmount config`: shows and changes those settings of a volume that may change while it is in use.

use std::time::Duration;

use clap::Args;
use serde_json::json;

use super::show::{Table, show};
use super::{Failure, MetaArgs, small_runtime};
use crate::config::units::{days, human_duration, human_size, limit, size};
use crate::config::{Home, Volume};
use crate::daemon::need_volume;
use crate::error::{Error, Kind, Result};
use crate::meta::read_usage;
use crate::meta::url::MetaUrl;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  # What is set
  hfmount config

  # At most 2 TiB of files of users; those that come from the Hub do not count
  hfmount config --meta redis://redis.internal/1 --capacity 2T

  # What is deleted can be brought back for a week
  hfmount config --trash-days 7

  # No limit any more
  hfmount config --capacity none --inodes none

Mounts that are running follow within seconds. What is over a limit already stays; nothing can be added until enough of it
was deleted.")]
pub(super) struct ConfigArgs {
    #[command(flatten)]
    meta: MetaArgs,

    #[command(flatten)]
    changes: Changes,

    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// The settings that may change at any time. For `format` as well.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct Changes {
    /// How much users may put into the volume, by the sizes of their files; 0 or none = no limit. What comes from the
    /// Hub does not count.
    #[arg(long, value_name = "SIZE", value_parser = capacity_of)]
    capacity: Option<Limit>,

    /// How many files, directories and links users may make; 0 or none = no limit.
    #[arg(long, value_name = "N", value_parser = count_of)]
    inodes: Option<Limit>,

    /// How long what users delete can be brought back with `hfmount restore`, in days; 0 = not at all. What the Hub has
    /// is not kept, nor are temporary files. Default: 1.
    #[arg(long, value_name = "DAYS", value_parser = days)]
    trash_days: Option<u64>,
}

/// `None`: no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Limit(Option<u64>);

fn capacity_of(text: &str) -> Result<Limit, String> {
    limit(text, size).map(Limit)
}

fn count_of(text: &str) -> Result<Limit, String> {
    limit(text, |t| t.parse().map_err(|_| format!("{t:?} is no number"))).map(Limit)
}

impl Changes {
    /// Puts what was given into `volume`; the names of the settings that are other than before.
    pub(super) fn apply(&self, volume: &mut Volume) -> Vec<&'static str> {
        let before = volume.clone();
        if let Some(Limit(capacity)) = self.capacity {
            volume.capacity = capacity;
        }
        if let Some(Limit(inodes)) = self.inodes {
            volume.inodes = inodes;
        }
        if let Some(seconds) = self.trash_days {
            volume.trash_seconds = seconds;
        }
        let differ = [
            ("capacity", volume.capacity != before.capacity),
            ("inodes", volume.inodes != before.inodes),
            ("trash", volume.trash_seconds != before.trash_seconds),
        ];
        differ.into_iter().filter(|(_, differs)| *differs).map(|(name, _)| name).collect()
    }
}

impl ConfigArgs {
    pub(super) fn run(self) -> Result<(), Failure> {
        let meta = self.meta.url(&Home::from_env()?)?;
        let (volume, changed, notice) = small_runtime()?.block_on(self.change(&meta))?;
        if self.json {
            let settings = json!({
                "capacity": volume.capacity,
                "inodes": volume.inodes,
                "trash_seconds": volume.trash_seconds,
            });
            show(&format!("{:#}\n", json!({ "changed": changed, "settings": settings })))?;
        } else {
            let mut table = Table::default();
            table.row("volume", &volume.name);
            rows(&mut table, &volume);
            if !changed.is_empty() {
                table.row("changed", changed.join(", "));
            }
            show(&table.to_string())?;
        }
        if let Some(notice) = notice {
            eprintln!("note: {notice}");
        }
        Ok(())
    }

    async fn change(&self, meta: &MetaUrl) -> Result<(Volume, Vec<&'static str>, Option<String>)> {
        let (kv, _) = need_volume(meta).await?;
        // Read again: the one that is written must be the one that was read.
        let Some((mut volume, old)) = Volume::read(&*kv).await? else {
            return Err(Error::new(Kind::Config, format!("there is no volume at {meta}")));
        };
        let changed = self.changes.apply(&mut volume);
        if changed.is_empty() {
            return Ok((volume, changed, None));
        }
        if !volume.write(&*kv, Some(&old)).await? {
            return Err(Error::new(Kind::Busy, "somebody else changed the settings at the same time"));
        }
        let used = read_usage(&*kv).await?;
        let over = |limit: Option<u64>, used: u64| limit.is_some_and(|limit| used > limit);
        let over = over(volume.capacity, used.bytes) || over(volume.inodes, used.inodes);
        let notice = over.then(|| "the volume holds more than that: nothing can be added for now".to_owned());
        Ok((volume, changed, notice))
    }
}

/// The settings, for people.
pub(super) fn rows(table: &mut Table, volume: &Volume) {
    let none = || "no limit".to_owned();
    table.row("capacity", volume.capacity.map_or_else(none, human_size));
    table.row("inodes", volume.inodes.map_or_else(none, |n| n.to_string()));
    let kept = match volume.trash() {
        Duration::ZERO => "nothing that is deleted is kept".to_owned(),
        time => format!("what is deleted is kept for {}", human_duration(time)),
    };
    table.row("trash", kept);
}
