//! `hfmount load`: makes a volume of a dump.

use std::fs::File;
use std::io::{BufRead, BufReader, Seek};
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use serde_json::{Value, json};

use super::progress::bar;
use super::show::{Table, show};
use super::{Failure, MetaArgs};
use crate::config::Home;
use crate::config::units::human_size;
use crate::error::{Result, ResultExt};
use crate::meta::dump::{Loaded, check, load};
use crate::meta::sqlite::Missing;
use crate::meta::url::{MetaUrl, open_engine};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hfmount load --meta redis://redis.internal/1 /backup/team-cache.jsonl
  zstd -dc /backup/team-cache.jsonl.zst | hfmount load --meta /srv/hf/meta.db -

The metadata must hold nothing; there is no option to write over a volume. Nobody can mount the volume before it is loaded
to its end. A load that broke off is begun again with the same command, over what it left.

The storage stays where it is and must hold what it held when the dump was made: of what was deleted or replaced since,
the bytes may be gone. Never mount the volume from two metadata engines at once: each would delete the other's bytes.
The first mount of what was loaded, unless it is --read-only, makes it the metadata that go on: mounts and gc of older
copies are refused from then on. To only look at a backup, mount it --read-only.")]
pub(super) struct LoadArgs {
    /// The dump; - is standard input, the default.
    #[arg(value_name = "FILE", default_value = "-", hide_default_value = true)]
    file: PathBuf,

    #[command(flatten)]
    meta: MetaArgs,

    /// Print the summary as JSON.
    #[arg(long)]
    json: bool,
}

impl LoadArgs {
    pub(super) fn run(self) -> Result<(), Failure> {
        let meta = self.meta.url(&Home::from_env()?)?;
        let begun = Instant::now();
        let done = if self.file == Path::new("-") {
            self.load(&meta, &mut std::io::stdin().lock(), None)?
        } else {
            let name = || format!("file {}", self.file.display());
            let file = File::open(&self.file).context(name)?;
            let size = file.metadata().context(name)?.len();
            let mut input = BufReader::with_capacity(1 << 20, file);
            // Whether it is whole, before anything is written.
            let bar = bar("check", Some(size), true);
            let checked = check(&mut input, |progress| bar.set_position(progress.bytes));
            bar.finish_and_clear();
            checked.context(name)?;
            input.rewind().context(name)?;
            self.load(&meta, &mut input, Some(size))?
        };
        let seconds = begun.elapsed().as_secs_f64();
        if self.json {
            show(&format!("{:#}\n", as_json(&done, &meta, seconds)))?;
        } else {
            show(&as_text(&done, &meta, seconds, self.meta.meta.is_some()))?;
        }
        Ok(())
    }

    fn load(&self, meta: &MetaUrl, input: &mut dyn BufRead, size: Option<u64>) -> Result<Loaded> {
        super::wide_runtime()?.block_on(async {
            let kv = open_engine(meta, Missing::Create).await?;
            let bar = bar("load", size, true);
            let done = load(&*kv, input, |progress| bar.set_position(progress.bytes)).await;
            bar.finish_and_clear();
            done
        })
    }
}

fn as_text(done: &Loaded, meta: &MetaUrl, seconds: f64, given: bool) -> String {
    let mut table = Table::default();
    table.row("volume", format!("{} ({})", done.header.volume, done.header.uuid));
    table.row("metadata", meta.to_string());
    table.row("loaded", format!("{} rows, {}, in {seconds:.1} s", done.rows, human_size(done.bytes)));
    if done.replaced {
        table.row("note", "a load that had broken off was replaced");
    }
    let option = if given { format!("--meta {meta} ") } else { String::new() };
    format!("{table}\nMount it: hfmount mount {option}-d DIR\n")
}

fn as_json(done: &Loaded, meta: &MetaUrl, seconds: f64) -> Value {
    json!({
        "result": "loaded",
        "volume": done.header.volume,
        "uuid": done.header.uuid,
        "meta": meta.to_string(),
        "replaced": done.replaced,
        "lines": done.lines,
        "rows": done.rows,
        "bytes": done.bytes,
        "seconds": seconds,
    })
}
