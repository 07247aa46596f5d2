//! A mount from its beginning to its end.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use fuser::{BackingId, Config, Session, SessionACL};
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::adapter::Adapter;
use super::faces::Faces;
use super::fusermount::Access;
use super::mountpoint::MountPoint;
use super::requests::Requests;
use super::tasks::Tasks;
use super::{fusermount, invalidate, mountpoint, mounts, probe};
use crate::error::{Error, Kind, Result, ResultExt};
use crate::vfs::{Orders, Vfs};

/// With more, requests of one client change threads more often, and handlers never block: two are for two cores.
const LOOPS: usize = 2;
/// What the kernel reads ahead: the size of the largest request. More would only amplify random page faults.
const READ_AHEAD_KB: &str = "1024";

/// How a mount is made.
#[derive(Clone, Debug)]
pub struct MountSettings {
    /// Users other than the one who mounts may use it.
    pub allow_other: bool,
    /// The kernel refuses all writes.
    pub read_only: bool,
    /// Where the files lie that the kernel may read by itself. `None`: it is not to.
    pub native: Option<PathBuf>,
}

/// A live mount. Dropping it detaches the mount.
#[derive(Debug)]
pub struct Mounted {
    path: PathBuf,
    device: Option<String>,
    ended: watch::Receiver<bool>,
    thread: Option<JoinHandle<()>>,
    requests: Arc<Requests>,
    not_native: Option<String>,
}

/// Mounts `vfs` on `point`; what `invalidations` yields is forgotten by the kernel. On return the kernel's requests are being answered, by tasks on `runtime`. Blocks: to be called
/// from a thread where that does no harm.
pub fn mount(
    vfs: Arc<Vfs>,
    invalidations: Orders,
    point: &MountPoint,
    settings: MountSettings,
    runtime: Handle,
) -> Result<Mounted> {
    let path = point.path().to_path_buf();
    let named = || format!("mounting on {}", path.display());
    let notifier = Arc::new(OnceLock::new());
    let tasks = Tasks::new(runtime)?;
    let requests = tasks.requests.clone();
    let (faces, may_pass) = (Arc::<Faces<BackingId>>::default(), Arc::<AtomicBool>::default());
    let adapter = Adapter {
        vfs,
        tasks,
        notifier: notifier.clone(),
        opens: Arc::default(),
        faces: faces.clone(),
        stack_depth: settings.native.as_deref().map_or(0, probe::stack_depth),
        may_pass: may_pass.clone(),
    };

    let access = Access { allow_other: settings.allow_other, read_only: settings.read_only };
    let fd = fusermount::mount(&path, access)?;
    // From here on an error must not leave a dead mount behind.
    let guard = Detach(path.clone());

    let device = fd.try_clone();
    let mut config = Config::default();
    config.n_threads = Some(LOOPS);
    // Each loop on a descriptor of its own; they come from the device, which an ordinary user may not be able to open.
    config.clone_fd = OpenOptions::new().read(true).write(true).open("/dev/fuse").is_ok();
    let acl = if settings.allow_other { SessionACL::All } else { SessionACL::Owner };
    let session = Session::from_fd(adapter, fd, acl, config)
        .map_err(|e| Error::with_source(Kind::Internal, named(), e))?;
    let _ = notifier.set(session.notifier());
    invalidate::start(invalidations, &session.notifier(), &faces)?;
    let able = match (&settings.native, device, may_pass.load(Ordering::SeqCst)) {
        (None, ..) => Err("--no-passthrough".to_owned()),
        (Some(_), _, false) => Err("this kernel cannot".to_owned()),
        (Some(_), Err(e), _) => Err(e.to_string()),
        (Some(cache), Ok(device), true) => probe::probe(device.as_fd(), cache),
    };
    let not_native = match able {
        Ok(able) => {
            faces.enable(able);
            None
        }
        Err(why) => {
            tracing::info!("the kernel reads no file of the cache by itself: {why}");
            Some(why)
        }
    };

    let (ending, ended) = watch::channel(false);
    let thread = std::thread::Builder::new()
        .name("hfmount-fuse".into())
        .spawn(move || {
            log_end(session.run());
            let _ = ending.send(true);
        })
        .map_err(|e| Error::with_source(Kind::Internal, named(), e))?;
    std::mem::forget(guard);

    let device = mounts::at(&path)?.filter(mounts::Mount::is_hfmount).map(|m| m.device);
    if let Some(device) = &device {
        read_ahead(device);
    }
    Ok(Mounted { path, device, ended, thread: Some(thread), requests, not_native })
}

/// Only root may; without it the kernel reads 128 KiB ahead.
fn read_ahead(device: &str) {
    let knob = format!("/sys/class/bdi/{device}/read_ahead_kb");
    if let Err(e) = std::fs::write(&knob, READ_AHEAD_KB) {
        tracing::debug!("{knob}: {e}; reads ahead stay at 128 KiB");
    }
}

fn log_end(result: io::Result<()>) {
    match result {
        Ok(()) => tracing::debug!("the kernel ended the mount"),
        // Aborted by an administrator, or by the kernel when the last user of a forced unmount went.
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENODEV | libc::ECONNABORTED | libc::ENOTCONN)) => {}
        Err(e) => tracing::error!("the connection to the kernel broke: {e}"),
    }
}

impl Mounted {
    /// Its number in the kernel's table of mounts, such as `0:52`.
    #[must_use]
    pub fn device(&self) -> Option<&str> {
        self.device.as_deref()
    }

    /// Why the kernel does not read complete blobs by itself; `None`: it does.
    #[must_use]
    pub fn not_native(&self) -> Option<&str> {
        self.not_native.as_deref()
    }

    /// What the kernel asked so far.
    #[must_use]
    pub fn requests(&self) -> &Arc<Requests> {
        &self.requests
    }

    /// Where, absolute and without links.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Asks the mount for its root through the kernel, as a user would. Blocks, at most for `limit`.
    pub fn answers(&self, limit: Duration) -> Result<()> {
        match mountpoint::ask(&self.path, limit) {
            Some(answer) => answer.map_err(io::Error::from).context(|| self.path.display().to_string()),
            None => Err(Error::new(Kind::TimedOut, format!("first look at {}", self.path.display()))),
        }
    }

    /// Returns when the kernel has ended the mount: unmounted, and no process uses it any more.
    pub async fn ended(&self) {
        let mut ended = self.ended.clone();
        // An error means that the thread is gone, which is the end as well.
        let _ = ended.wait_for(|ended| *ended).await;
    }

    /// Takes the mount out of the tree; processes that use it keep it until they end. No error if somebody else did so
    /// before. Blocks.
    pub fn detach(&self) -> Result<()> {
        // Never another mount that came to lie on the path since.
        let ours =
            mounts::at(&self.path)?.is_some_and(|m| self.device.as_ref().is_none_or(|d| *d == m.device));
        if ours {
            mountpoint::detach(&self.path)?;
        }
        Ok(())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let ended = *self.ended.borrow();
        if !ended && let Err(e) = self.detach() {
            tracing::warn!("{e}");
        }
        if let Some(thread) = self.thread.take().filter(JoinHandle::is_finished) {
            let _ = thread.join();
        }
    }
}

/// Takes a half-made mount off again.
struct Detach(PathBuf);

impl Drop for Detach {
    fn drop(&mut self) {
        if let Err(e) = mountpoint::detach(&self.0) {
            tracing::warn!("{e}");
        }
    }
}
