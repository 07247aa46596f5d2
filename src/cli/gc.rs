//! `hfmount gc`: what lies in the storage for nothing.

use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::show::{Table, show};
use super::volume::{Opened, Steps};
use super::{Failure, MetaArgs, small_runtime};
use crate::admin::gc::{GcOptions, GcReport, Sum, gc, outcome};
use crate::config::Home;
use crate::config::units::{duration, human_duration, human_size};
use crate::error::Result;
use crate::meta::url::MetaUrl;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  # What would be deleted
  hfmount gc

  # Delete it
  hfmount gc --delete redis://redis.internal/1

  # From cron
  hfmount gc --delete --grace 1d --json

Garbage is what no file refers to: uploads of a mount that crashed before it could say what they
are, and chunks of Hub files that were deleted everywhere (they come from the Hub again if somebody
wants them). What users deleted and can restore is not garbage, nor is what a mount is writing,
however long that takes, nor what waits in a --writeback journal.

It works while the volume is mounted. META must be the metadata that the mounts use: an old copy
does not know what is needed. After a dump was loaded elsewhere and mounted, the old copy is refused.
The keys of the bucket are given as to mount.")]
pub(super) struct GcArgs {
    /// The metadata URL, as for --meta.
    #[arg(value_name = "META", conflicts_with = "meta")]
    url: Option<String>,

    #[command(flatten)]
    meta: MetaArgs,

    /// Delete what is found. Without this nothing is changed.
    #[arg(long)]
    delete: bool,

    /// Leave alone what is younger, by the storage's clock.
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = duration)]
    grace: Duration,

    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl GcArgs {
    pub(super) fn run(self) -> Result<(), Failure> {
        let home = Home::from_env()?;
        let meta = MetaArgs { meta: self.url.clone().or(self.meta.meta.clone()) }.url(&home)?;
        let (volume, report) = small_runtime()?.block_on(self.collect(&meta))?;
        if self.json {
            show(&format!("{:#}\n", as_json(&report, self.delete)))?;
        } else {
            show(&as_text(&volume, &report, &self))?;
        }
        Ok(outcome(&report)?)
    }

    async fn collect(&self, meta: &MetaUrl) -> Result<(String, GcReport)> {
        let opened = Opened::new(meta).await?;
        opened.need_current()?;
        let session = if self.delete { Some(opened.session("gc").await?) } else { None };
        let steps = Steps::default();
        let options = GcOptions { delete: session.clone(), grace: self.grace };
        let report = gc(&opened.place, options, &|progress| steps.tell(progress)).await;
        steps.end();
        if let Some(session) = session {
            let closed = session.close().await;
            return Ok((opened.volume.name, report.and_then(|report| closed.map(|()| report))?));
        }
        Ok((opened.volume.name, report?))
    }
}

fn sum_json(sum: Sum) -> Value {
    json!({ "objects": sum.objects, "bytes": sum.bytes })
}

fn as_json(report: &GcReport, delete: bool) -> Value {
    json!({
        "deleting": delete,
        "objects": sum_json(report.seen),
        "garbage": {
            "chunks": sum_json(report.chunks),
            "blobs": report.blobs,
            "blob_chunks": sum_json(report.blob_chunks),
            "tests": sum_json(report.tests),
            "unfinished": sum_json(report.unfinished),
            "publications": report.staged,
            "tombstones": report.tombstones,
            "total": sum_json(report.garbage()),
        },
        "left": sum_json(report.left),
        "unknown": sum_json(report.strange),
        "deleted": sum_json(report.deleted),
        "failed": report.failed,
        "at_rest": !report.restless,
    })
}

fn words(sum: Sum) -> String {
    format!("{} objects, {}", sum.objects, human_size(sum.bytes))
}

fn as_text(volume: &str, report: &GcReport, args: &GcArgs) -> String {
    let mut table = Table::default();
    table.row("volume", volume);
    table.row("storage", words(report.seen));
    table.row("file data", words(report.chunks));
    table.row("hub files", format!("{} of {} files", words(report.blob_chunks), report.blobs));
    for (name, sum) in [("tests", report.tests), ("broken uploads", report.unfinished)] {
        if sum.objects > 0 {
            table.row(name, words(sum));
        }
    }
    for (name, n) in [("publications", report.staged), ("tombstones", report.tombstones)] {
        if n > 0 {
            table.row(name, n.to_string());
        }
    }
    if report.left.objects > 0 {
        let why = format!("younger than {}, or of mounts that may need them", human_duration(args.grace));
        table.row("left alone", format!("{}: {why}", words(report.left)));
    }
    if report.strange.objects > 0 {
        table.row("unknown", format!("{}: not of hfmount, never deleted", words(report.strange)));
    }
    let garbage = words(report.garbage());
    match (args.delete, report.garbage().objects) {
        (true, _) => table.row("deleted", words(report.deleted)),
        (false, 0) => table.row("garbage", "none"),
        (false, _) => table.row("garbage", format!("{garbage}: --delete deletes them")),
    };
    table.to_string()
}
