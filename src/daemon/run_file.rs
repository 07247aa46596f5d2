//! A note that a running daemon leaves about itself, so that `umount` can wait for its end. A hint: nothing fails
//! without it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::Home;
use crate::fuse::Mounted;
use crate::meta::url::MetaUrl;

/// Who serves a mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunFile {
    pub pid: i32,
    /// In clock ticks since the machine started: tells a process from a later one of the same number.
    start: u64,
    #[serde(default)]
    pub mount_point: PathBuf,
    /// The uuid of its volume.
    #[serde(default)]
    pub volume: String,
    /// The URL of its metadata, without a password.
    #[serde(default)]
    pub meta: String,
    #[serde(default)]
    pub cache_dir: PathBuf,
    /// The mount's number in the kernel's table, such as `0:52`.
    #[serde(default)]
    pub device: Option<String>,
    /// Where it gives its figures.
    #[serde(default)]
    pub socket: Option<PathBuf>,
    /// Why its cache's disk is not used any more.
    #[serde(default)]
    pub disk_error: Option<String>,
    /// Why what is journalled cannot be uploaded now.
    #[serde(default)]
    pub upload_error: Option<String>,
    /// Whether the kernel reads complete blobs by itself; `None`: an older daemon, which does not say.
    #[serde(default)]
    pub passthrough: Option<bool>,
    /// Why it does not.
    #[serde(default)]
    pub passthrough_off: Option<String>,
}

impl RunFile {
    /// Leaves the note of this process. Removed when the guard is dropped.
    pub(super) fn write(
        home: &Home,
        mounted: &Mounted,
        volume: &str,
        meta: &MetaUrl,
        cache_dir: &Path,
        socket: Option<&Path>,
    ) -> io::Result<RunGuard> {
        let mount_point = mounted.path();
        let path = home.run_file(mount_point);
        let (pid, start) = this_process()?;
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        let note = RunFile {
            pid,
            start,
            mount_point: mount_point.to_owned(),
            volume: volume.to_owned(),
            meta: meta.to_string(),
            cache_dir: cache_dir.to_owned(),
            device: mounted.device().map(str::to_owned),
            socket: socket.map(Path::to_owned),
            disk_error: None,
            upload_error: None,
            passthrough: Some(mounted.not_native().is_none()),
            passthrough_off: mounted.not_native().map(str::to_owned),
        };
        let guard = RunGuard { path, note };
        guard.store()?;
        Ok(guard)
    }

    /// The notes of all daemons of this home, also of some that are dead.
    #[must_use]
    pub fn all(home: &Home) -> Vec<Self> {
        let entries = fs::read_dir(home.run_dir()).into_iter().flatten().flatten();
        let notes = entries.map(|e| e.path()).filter(|p| p.extension().is_some_and(|x| x == "json"));
        notes.filter_map(|path| serde_json::from_slice(&fs::read(path).ok()?).ok()).collect()
    }

    /// The note of the daemon that serves `mount_point`, if there is one.
    #[must_use]
    pub fn read(home: &Home, mount_point: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(home.run_file(mount_point)).ok()?).ok()
    }

    /// Whether the daemon that made the mount with this number on `mount_point` has ended. False if there is no note of it.
    #[must_use]
    pub(super) fn tells_end(home: &Home, mount_point: &Path, device: &str) -> bool {
        Self::read(home, mount_point).is_some_and(|n| n.device.as_deref() == Some(device) && !n.is_running())
    }

    /// Whether the process still runs.
    #[must_use]
    pub fn is_running(&self) -> bool {
        start_of(self.pid) == Some(self.start)
    }
}

/// The number of this process and its start.
pub(super) fn this_process() -> io::Result<(i32, u64)> {
    let pid = std::process::id().cast_signed();
    let start = start_of(pid).ok_or_else(|| io::Error::other("no start time in /proc"))?;
    Ok((pid, start))
}

/// Field 22 of `/proc/<pid>/stat`; a zombie has ended.
fn start_of(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the name in parentheses, which may hold anything.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?;
    if state == "Z" || state == "X" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[derive(Debug)]
pub(super) struct RunGuard {
    path: PathBuf,
    note: RunFile,
}

impl RunGuard {
    fn store(&self) -> io::Result<()> {
        let text = serde_json::to_vec(&self.note).map_err(io::Error::other)?;
        let new = self.path.with_extension(format!("{}", self.note.pid));
        fs::write(&new, text)?;
        fs::rename(&new, &self.path)
    }

    /// Says what is wrong now, if that is something else than before: then `true`.
    pub(super) fn troubles(&mut self, disk: Option<String>, upload: Option<String>) -> bool {
        if self.note.disk_error == disk && self.note.upload_error == upload {
            return false;
        }
        (self.note.disk_error, self.note.upload_error) = (disk, upload);
        if let Err(e) = self.store() {
            tracing::debug!("the note about this daemon stays as it was: {e}");
        }
        true
    }
}

impl Drop for RunGuard {
    fn drop(&mut self) {
        // Absent or not, it does no harm.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_runs_until_it_ends() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("sleep");
        let pid = child.id().cast_signed();
        let run = RunFile {
            pid,
            start: start_of(pid).expect("start"),
            mount_point: PathBuf::new(),
            volume: String::new(),
            meta: String::new(),
            cache_dir: PathBuf::new(),
            device: None,
            socket: None,
            disk_error: None,
            upload_error: None,
            passthrough: None,
            passthrough_off: None,
        };
        assert!(run.is_running());
        assert!(
            !RunFile { start: run.start + 1, ..run.clone() }.is_running(),
            "a later process of that number"
        );
        child.kill().expect("kill");
        child.wait().expect("wait");
        assert!(!run.is_running());
    }
}
