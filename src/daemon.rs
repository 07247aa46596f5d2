//! The running mount: builds the layers from the bottom up, waits for its end, and takes them down in order.

mod layers;
mod logging;
mod metrics;
mod nodes;
mod notify;
mod places;
mod run_file;
mod settings;
mod shared_hub;
mod siblings;
mod signals;
mod volume;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::runtime::{Builder, Runtime};
use tokio::task::spawn_blocking;

pub use logging::{LogFormat, LogSettings};
pub use run_file::RunFile;
pub use shared_hub::SharedHub;
pub use volume::{Standing, check_marker, marker_of, need_volume, open_bucket, storage_keys, superseded};

use crate::config::{Home, MountOptions};
use crate::error::{Error, Kind, Result};
use crate::fuse::{self, MountPoint, MountSettings, Mounted};
use crate::metrics::{LocalServer, MetricsServer};
use layers::Layers;
use notify::Manager;
use signals::Signals;

/// How long a fresh mount may take to answer for its root.
const FIRST_ANSWER: Duration = Duration::from_secs(30);
/// How often the note about this daemon is brought up to date.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How long programs that use the mount may keep the daemon from ending. They then find it gone.
const LET_GO: Duration = Duration::from_secs(5);

/// Mounts and serves until it is unmounted or told to end; `ready` is called when the mount answers, with what its user
/// should know. Blocks.
///
/// SIGTERM and SIGINT end it in order: the mount vanishes from the tree, what is open is written, locks are released. A
/// second one ends it at once.
pub fn run(
    home: &Home,
    options: MountOptions,
    logs: &LogSettings,
    ready: impl FnOnce(&[String]),
) -> Result<()> {
    logging::start(logs)?;
    let ended = |path: &Path, device: &str| RunFile::tells_end(home, path, device);
    let point = Arc::new(MountPoint::prepare(&options.dir, ended)?);
    if let Some(file) = &logs.file {
        places::check(point.path(), &[("log file", file)])?;
    }
    raise_open_files();
    let runtime = Builder::new_multi_thread()
        .thread_name("hfmount")
        .enable_all()
        .build()
        .map_err(|e| Error::with_source(Kind::Internal, "starting", e))?;
    let result = runtime.block_on(serve(&runtime, home, &options, point, ready));
    // What still waits for a server that does not answer must not keep the process.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

/// Every open file of a program is two descriptors here; the limit that a shell sets is for programs of another kind.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, ..limit };
    if let Err(e) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!("at most {:?} open files: {e}", limit.current);
    }
}

async fn serve(
    runtime: &Runtime,
    home: &Home,
    options: &MountOptions,
    point: Arc<MountPoint>,
    ready: impl FnOnce(&[String]),
) -> Result<()> {
    let mut signals = Signals::listen()?;
    let manager = Manager::from_env();
    let layers = tokio::select! {
        layers = Layers::build(home, options, &point) => layers?,
        signal = signals.next() => return Err(Error::new(Kind::Interrupted, signal)),
    };
    // Before anything is mounted: the address may be taken.
    let metrics = match serve_metrics(options, &layers).await {
        Ok(metrics) => metrics,
        Err(e) => {
            layers.stop().await.unwrap_or_else(|e| tracing::warn!("{e}"));
            return Err(e);
        }
    };
    let (layers, mounted) = match mount(runtime, options, &point, layers).await {
        (layers, Ok(mounted)) => (layers, mounted),
        (layers, Err(e)) => {
            layers.stop().await.unwrap_or_else(|e| tracing::warn!("{e}"));
            return Err(e);
        }
    };
    let _ = layers.figures.requests.set(mounted.requests().clone());
    let (volume, cache_dir) = layers.places();
    let local =
        serve_local(home, &layers).await.map_err(|e| tracing::warn!("`hfmount stats` shows nothing: {e}"));
    let socket = local.as_ref().ok().map(LocalServer::path);
    let run_file = RunFile::write(home, &mounted, volume, &options.meta, cache_dir, socket);
    let mut run_file = run_file.map_err(|e| tracing::debug!("no note about this daemon: {e}"));
    let notices: Vec<String> = point.notice().into_iter().chain(layers.notices.iter().cloned()).collect();
    for notice in &notices {
        tracing::warn!("{notice}");
    }
    tracing::info!("{} is mounted on {}", layers.name(), mounted.path().display());
    ready(&notices);
    let served = format!("{} on {}", layers.name(), mounted.path().display());
    manager.ready(&served);
    manager.watch();

    let mut look = tokio::time::interval(LOOK_EVERY);
    loop {
        tokio::select! {
            signal = signals.next() => {
                tracing::info!("{signal}: unmounting {}", mounted.path().display());
                manager.stopping(&format!("{signal}: writing what is open on {}", mounted.path().display()));
                break;
            }
            () = mounted.ended() => {
                tracing::info!("{} was unmounted", mounted.path().display());
                manager.stopping(&format!("{} was unmounted: writing what was open", mounted.path().display()));
                break;
            }
            _ = look.tick() => {
                if let Ok(note) = &mut run_file {
                    let (disk, upload) = layers.troubles();
                    if note.troubles(disk.clone(), upload.clone()) {
                        let troubles: Vec<String> = [disk, upload].into_iter().flatten().collect();
                        manager.status(&[std::slice::from_ref(&served), &troubles].concat().join("; "));
                    }
                }
            }
        }
    }
    drop((metrics, local));
    tokio::select! {
        result = end(mounted, layers) => result,
        signal = signals.next() => Err(Error::new(Kind::Interrupted, format!("{signal} again: not everything was written"))),
    }
}

async fn serve_metrics(options: &MountOptions, layers: &Layers) -> Result<Option<MetricsServer>> {
    let Some(address) = options.metrics else { return Ok(None) };
    let figures = layers.figures.clone();
    let server = MetricsServer::start(address, move || figures.page()).await?;
    tracing::info!("metrics at http://{}/metrics", server.address());
    Ok(Some(server))
}

/// The same for the tools of whoever mounts, without being asked for.
async fn serve_local(home: &Home, layers: &Layers) -> io::Result<LocalServer> {
    let (pid, start) = run_file::this_process()?;
    LocalServer::sweep(&home.run_dir()).await;
    let figures = layers.figures.clone();
    LocalServer::start(&home.socket(pid, start), move || figures.page())
}

async fn mount(
    runtime: &Runtime,
    options: &MountOptions,
    point: &Arc<MountPoint>,
    mut layers: Layers,
) -> (Layers, Result<Mounted>) {
    let Some(invalidations) = layers.invalidations.take() else {
        return (layers, Err(Error::new(Kind::Internal, "mounted twice")));
    };
    let settings = MountSettings {
        allow_other: options.allow_other,
        read_only: options.read_only,
        native: options.passthrough.then(|| layers.places().1.to_owned()),
    };
    let (vfs, handle, place) = (layers.vfs.clone(), runtime.handle().clone(), point.clone());
    let mounted = spawn_blocking(move || {
        let mounted = fuse::mount(vfs, invalidations, &place, settings, handle)?;
        mounted.answers(FIRST_ANSWER)?;
        Ok(mounted)
    });
    let mounted = mounted.await.unwrap_or_else(|e| Err(Error::with_source(Kind::Internal, "mounting", e)));
    (layers, mounted)
}

/// The end in order. What is open is written while the kernel still waits for answers, so that a close that is under way
/// tells its program the truth.
async fn end(mounted: Mounted, layers: Layers) -> Result<()> {
    let mounted = Arc::new(mounted);
    let detached = mounted.clone();
    if let Err(e) = spawn_blocking(move || detached.detach()).await.unwrap_or(Ok(())) {
        tracing::warn!("{e}");
    }
    let _ = tokio::time::timeout(LET_GO, mounted.ended()).await.map_err(|_| {
        tracing::warn!("programs still use {}: they lose it now", mounted.path().display());
    });
    layers.stop().await
}
