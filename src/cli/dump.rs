//! `hfmount dump`: the metadata of a volume as a file.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use serde_json::{Value, json};

use super::progress::bar;
use super::show::{Table, show};
use super::{Failure, MetaArgs};
use crate::config::Home;
use crate::config::units::human_size;
use crate::daemon::need_volume;
use crate::error::{Error, Kind, Result, ResultExt};
use crate::meta::dump::{Dumped, dump};
use crate::meta::read_usage;
use crate::meta::url::MetaUrl;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hfmount dump /backup/team-cache.jsonl
  hfmount dump --meta redis://redis.internal/1 | zstd > /backup/team-cache.jsonl.zst

  # From SQLite to Redis: unmount everywhere, then
  hfmount dump --meta /srv/hf/meta.db - | hfmount load --meta redis://redis.internal/1 -

The dump holds names, attributes, where each byte lies in the storage, and the settings; no bytes of files but those of
the smallest, which lie in the metadata. It is the state of one instant, though mounts write meanwhile; all of them must
run this version or a later one. A dump is as secret as the metadata: it has the key by which the volume's mounts know
each other, and the bucket's keys if they are sealed in the metadata, sealed. The file is readable by its owner only.")]
pub(super) struct DumpArgs {
    /// Where to write it; - is standard output, the default.
    #[arg(value_name = "FILE", default_value = "-", hide_default_value = true)]
    file: PathBuf,

    #[command(flatten)]
    meta: MetaArgs,

    /// Print the summary as JSON: on standard output, or on standard error if the dump goes there.
    #[arg(long)]
    json: bool,
}

impl DumpArgs {
    pub(super) fn run(self) -> Result<(), Failure> {
        let meta = self.meta.url(&Home::from_env()?)?;
        let begun = Instant::now();
        let to_stdout = self.file == Path::new("-");
        // Its writes may block; the engine works on the other threads meanwhile.
        let runtime = super::wide_runtime()?;
        let done = if to_stdout {
            let mut out = BufWriter::new(std::io::stdout().lock());
            runtime.block_on(write(&meta, &mut out))?
        } else {
            to_file(&self.file, |out| runtime.block_on(write(&meta, out)))?
        };
        let seconds = begun.elapsed().as_secs_f64();
        let text = if self.json {
            let file = (!to_stdout).then(|| self.file.display().to_string());
            format!("{:#}\n", as_json(&done, &meta, file, seconds))
        } else {
            let mut table = Table::default();
            table.row("volume", format!("{} ({})", done.header.volume, done.header.uuid));
            table.row("metadata", format!("{meta} ({})", done.header.engine));
            table.row("dump", format!("{} rows, {}, in {seconds:.1} s", done.rows, human_size(done.bytes)));
            table.to_string()
        };
        if !to_stdout {
            show(&text)?;
        } else if self.json {
            eprint!("{text}");
        }
        Ok(())
    }
}

async fn write(meta: &MetaUrl, out: &mut dyn Write) -> Result<Dumped> {
    let (kv, _) = need_volume(meta).await?;
    // A row or two for each inode, its name another.
    let about = read_usage(&*kv).await?.inodes * 2;
    let bar = bar("dump", Some(about), false);
    let done = dump(&*kv, out, |progress| {
        bar.set_length(about.max(progress.rows));
        bar.set_position(progress.rows);
    })
    .await;
    bar.finish_and_clear();
    done
}

/// The file has its name when it is whole, and is on the disk.
fn to_file(path: &Path, write: impl FnOnce(&mut dyn Write) -> Result<Dumped>) -> Result<Dumped> {
    let name = || format!("file {}", path.display());
    let mut unnamed = path.as_os_str().to_owned();
    unnamed.push(format!(".{:08x}.new", rand::random::<u32>()));
    let unnamed = PathBuf::from(unnamed);
    if path.is_dir() {
        return Err(Error::new(Kind::IsDirectory, name()));
    }
    let file = File::options().write(true).create_new(true).mode(0o600).open(&unnamed).context(name)?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    let done = write(&mut out).and_then(|done| {
        out.flush().and_then(|()| out.get_ref().sync_all()).context(name)?;
        fs::rename(&unnamed, path).context(name)?;
        Ok(done)
    });
    if done.is_err() {
        // What is left of it is of no use; the error that counts is the first one.
        let _ = fs::remove_file(&unnamed);
    }
    done
}

fn as_json(done: &Dumped, meta: &MetaUrl, file: Option<String>, seconds: f64) -> Value {
    json!({
        "result": "dumped",
        "volume": done.header.volume,
        "uuid": done.header.uuid,
        "meta": meta.to_string(),
        "engine": done.header.engine,
        "file": file,
        "lines": done.lines,
        "rows": done.rows,
        "bytes": done.bytes,
        "seconds": seconds,
    })
}
