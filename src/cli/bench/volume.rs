//! The volume that a directory lies on, and its round trips.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::bench::{Row, Tell, engine, store};
use crate::cli::MetaArgs;
use crate::cli::mounts::mount_of;
use crate::cli::volume::session;
use crate::config::Home;
use crate::daemon::{RunFile, check_marker, need_volume, open_bucket};
use crate::error::{Error, Kind, Result};
use crate::fuse::mounts;
use crate::metrics::{Page, ask};
use crate::source::bucket::Patience;

/// What is known of the volume.
pub(super) struct Found {
    pub name: String,
    pub engine: String,
    pub meta: String,
    pub storage: String,
}

/// What came out.
#[derive(Default)]
pub(super) struct Measured {
    /// `None`: the directory is on no mount of hfmount, or nothing can be said of it.
    pub found: Option<Found>,
    pub rows: Vec<Row>,
    pub notes: Vec<String>,
}

/// How long the daemon may take to tell its figures: they are not worth more.
const FIGURES: Duration = Duration::from_secs(5);

/// The note of the mount that `dir` lies on.
pub(super) fn note_of(home: &Home, dir: &Path) -> Option<RunFile> {
    mount_of(&RunFile::all(home), dir).filter(|note| is_of(note, dir))
}

/// What the daemon has counted, if it tells.
pub(super) async fn figures(note: &RunFile) -> Option<Page> {
    let text = timeout(FIGURES, ask(note.socket.as_deref()?)).await.ok()?.ok()?;
    Some(Page::read(&text))
}

/// What the daemon did between two looks at its figures.
pub(super) fn counted(before: &Page, after: &Page, took: Duration) -> impl Iterator<Item = Row> {
    let grown = |name: String| after.sum(&name).unwrap_or(0.0) - before.sum(&name).unwrap_or(0.0);
    let row = |name, what, family: &str| {
        Row::counted(name, what, took, grown(format!("{family}_count")), grown(format!("{family}_sum")))
    };
    let fuse = row("fuse", "requests of the kernel", "hfmount_fuse_request_seconds");
    let meta = row("meta", "metadata operations", "hfmount_meta_operation_seconds");
    fuse.into_iter().chain(meta)
}

/// Measures the store and the engine of the volume that is mounted where `dir` is. What cannot be measured from here is noted.
pub(super) async fn measure(
    home: &Home,
    meta: &MetaArgs,
    (dir, note): (&Path, Option<RunFile>),
    threads: usize,
    stop: &CancellationToken,
    tell: Tell<'_>,
) -> Result<Measured> {
    let mut measured = Measured::default();
    let Some(note) = note else {
        if on_hfmount(dir)? {
            let words = "object store and metadata engine were not measured: the mount is another user's, or of \
                         another HFMOUNT_HOME";
            measured.notes.push(words.to_owned());
        }
        return Ok(measured);
    };
    let mut url = meta.url(home)?;
    // The mount knows best; unless it is the same place, which may have been given with a password.
    if !note.meta.is_empty() && note.meta != url.to_string() {
        url = MetaArgs { meta: Some(note.meta.clone()) }.url(home)?;
    }
    let opened = async {
        let (kv, volume) = need_volume(&url).await?;
        if volume.uuid != note.volume {
            let words = format!("{} shows another volume than {url} has", note.mount_point.display());
            return Err(Error::new(Kind::Config, words));
        }
        let engine = kv.info().await?.name;
        Ok((kv, volume, engine))
    };
    let (kv, volume, name) = match opened.await {
        Ok(opened) => opened,
        Err(e) => {
            measured.notes.push(format!("object store and metadata engine were not measured: {e}"));
            return Ok(measured);
        }
    };
    measured.found = Some(Found {
        name: volume.name.clone(),
        engine: name,
        meta: url.to_string(),
        storage: volume.storage.to_string(),
    });
    let objects = async {
        let bucket = open_bucket(&volume).await?.with_patience(Patience::short());
        // What belongs to somebody else is left alone; which copy of the metadata goes on does not matter here.
        let _ = check_marker(&bucket, &volume).await?;
        store(&bucket, threads, stop, tell).await
    };
    let trips = async {
        let session = session(kv, "bench").await?;
        let rows = engine(&session, threads, stop, tell).await;
        let closed = session.close().await;
        rows.and_then(|rows| closed.map(|()| rows))
    };
    measured.take("object store", objects.await)?;
    measured.take("metadata engine", trips.await)?;
    Ok(measured)
}

impl Measured {
    fn take(&mut self, what: &str, rows: Result<Vec<Row>>) -> Result<()> {
        match rows {
            Ok(rows) => self.rows.extend(rows),
            Err(e) if e.kind() == Kind::Interrupted => return Err(e),
            Err(e) => self.notes.push(format!("{what} was not measured: {e}")),
        }
        Ok(())
    }
}

/// What is mounted within the mount is not its own.
fn is_of(note: &RunFile, dir: &Path) -> bool {
    let device = |path: &Path| fs::symlink_metadata(path).map(|m| m.dev()).ok();
    device(dir).is_some_and(|dev| device(&note.mount_point) == Some(dev))
}

fn on_hfmount(dir: &Path) -> Result<bool> {
    let all = mounts::all()?.into_iter().filter(|mount| dir.starts_with(&mount.point));
    // Of several on one point the last one is on top.
    Ok(all.max_by_key(|mount| mount.point.as_os_str().len()).is_some_and(|mount| mount.is_hfmount()))
}
