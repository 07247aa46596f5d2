//! A note that a running daemon leaves about itself, so that `umount` can wait for its end. A hint: nothing fails
//! without it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::Home;

/// Who serves a mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunFile {
    pub pid: i32,
    /// In clock ticks since the machine started: tells a process from a later one of the same number.
    start: u64,
}

impl RunFile {
    /// Leaves the note of this process. Removed when the guard is dropped.
    pub(super) fn write(home: &Home, mount_point: &Path) -> io::Result<RunGuard> {
        let path = home.run_file(mount_point);
        let pid = std::process::id().cast_signed();
        let start = start_of(pid).ok_or_else(|| io::Error::other("no start time in /proc"))?;
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        let text = serde_json::to_vec(&RunFile { pid, start }).map_err(io::Error::other)?;
        let new = path.with_extension(format!("{pid}"));
        fs::write(&new, text)?;
        fs::rename(&new, &path)?;
        Ok(RunGuard(path))
    }

    /// The note of the daemon that serves `mount_point`, if there is one.
    #[must_use]
    pub fn read(home: &Home, mount_point: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(home.run_file(mount_point)).ok()?).ok()
    }

    /// Whether the process still runs.
    #[must_use]
    pub fn is_running(&self) -> bool {
        start_of(self.pid) == Some(self.start)
    }
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
pub(super) struct RunGuard(PathBuf);

impl Drop for RunGuard {
    fn drop(&mut self) {
        // Absent or not, it does no harm.
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_runs_until_it_ends() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("sleep");
        let pid = child.id().cast_signed();
        let run = RunFile { pid, start: start_of(pid).expect("start") };
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
