//! `hfmount fsck`: whether a volume is whole.

use clap::Args;
use serde_json::{Value, json};

use super::show::show;
use super::volume::{Opened, Steps};
use super::{Failure, MetaArgs, small_runtime};
use crate::admin::fsck::{Finding, Fix, FsckOptions, FsckReport, fsck};
use crate::config::Home;
use crate::config::units::human_size;
use crate::error::Result;
use crate::meta::url::MetaUrl;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hfmount fsck
  hfmount fsck redis://redis.internal/1 --repair

  # Read every byte in the storage, and compare it with its checksum
  hfmount fsck --deep

  # What is wrong with which file, for scripts
  hfmount fsck --json | jq -r 'select(.path) | .path'

It works while the volume is mounted. A problem is one line, with path and inode; with --json one
object a line, and a last one with the counts. What --repair changes takes nothing from anybody:
what has no name any more gets one in lost+found, counts are counted, and bytes that the Hub has are
fetched again. Lost bytes of a file are told and left.

Exit codes: 0 nothing is wrong (any more), 1 something is, or it could not be checked, 2 wrong
command line.")]
pub(super) struct FsckArgs {
    /// The metadata URL, as for --meta.
    #[arg(value_name = "META", conflicts_with = "meta")]
    url: Option<String>,

    #[command(flatten)]
    meta: MetaArgs,

    /// Repair what can be repaired without loss.
    #[arg(long)]
    repair: bool,

    /// Read everything in the storage that the metadata names, and verify it. This downloads the whole volume.
    #[arg(long)]
    deep: bool,

    /// Print JSON, one object a line.
    #[arg(long)]
    json: bool,
}

impl FsckArgs {
    pub(super) fn run(self) -> Result<(), Failure> {
        let home = Home::from_env()?;
        let meta = MetaArgs { meta: self.url.clone().or(self.meta.meta.clone()) }.url(&home)?;
        let report = small_runtime()?.block_on(self.check(&meta))?;
        if self.json {
            show(&format!("{}\n", as_json(&report)))?;
        } else {
            show(&as_text(&report, self.deep))?;
        }
        match (report.left(), report.repairable) {
            (0, _) => Ok(()),
            (1, 1) => Err(Failure::said("1 problem; --repair repairs it".to_owned())),
            (1, _) => Err(Failure::said("1 problem".to_owned())),
            (n, 0) => Err(Failure::said(format!("{n} problems"))),
            (n, some) => Err(Failure::said(format!("{n} problems; --repair repairs {some} of them"))),
        }
    }

    async fn check(&self, meta: &MetaUrl) -> Result<FsckReport> {
        let opened = Opened::new(meta).await?;
        let session = if self.repair { Some(opened.session("fsck").await?) } else { None };
        let steps = Steps::default();
        let options = FsckOptions { deep: self.deep, repair: session.clone(), below: None };
        let (beside, json) = (steps.clone(), self.json);
        // A reader that has seen enough, or a full disk, is found out by the last line.
        let mut out = |finding: &Finding| {
            let line = if json { finding_json(finding).to_string() } else { finding.to_string() };
            let _ = beside.aside(|| show(&(line + "\n")));
        };
        let report = fsck(&opened.place, options, &|progress| steps.tell(progress), &mut out).await;
        steps.end();
        if let Some(session) = session {
            let closed = session.close().await;
            return report.and_then(|report| closed.map(|()| report));
        }
        report
    }
}

fn finding_json(finding: &Finding) -> Value {
    let (repaired, repair) = match finding.fix {
        Fix::Done => (true, None),
        Fix::Possible(how) => (false, Some(how)),
        Fix::None => (false, None),
    };
    json!({
        "problem": finding.class,
        "inode": finding.ino.map(|ino| ino.0),
        "path": finding.path,
        "what": finding.what,
        "repaired": repaired,
        "repair": repair,
    })
}

fn as_json(report: &FsckReport) -> Value {
    json!({
        "problems": report.left(),
        "found": report.found,
        "repaired": report.repaired,
        "repairable": report.repairable,
        "inodes": report.inodes,
        "names": report.entries,
        "files_with_data": report.files,
        "hub_files": report.blobs,
        "objects": report.objects,
        "bytes_read": report.read,
        "not_at_rest": report.restless,
        "usage_checked": !report.uncounted,
    })
}

fn as_text(report: &FsckReport, deep: bool) -> String {
    let mut text = format!(
        "{} inodes, {} names, {} files with data, {} hub files, {} objects",
        report.inodes, report.entries, report.files, report.blobs, report.objects
    );
    if deep {
        text.push_str(&format!(", {} read", human_size(report.read)));
    }
    text.push('\n');
    if report.restless > 0 {
        text.push_str(&format!("{} inodes changed all the time and were not judged\n", report.restless));
    }
    if report.uncounted {
        text.push_str("the volume's usage changed all the time and was not compared\n");
    }
    text.push_str(&match (report.left(), report.repaired) {
        (0, 0) => "clean\n".to_owned(),
        (0, n) => format!("clean: {n} repaired\n"),
        (left, n) => format!("{left} problems, {n} repaired\n"),
    });
    text
}
