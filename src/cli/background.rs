//! `mount -d`: the daemon is this program once more, started anew with its output in a log file, and tells through a pipe
//! when the mount answers or why it does not. Started anew rather than forked: threads and runtimes do not survive a fork.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use super::Failure;
use super::progress::waiting;
use crate::error::{Error, Kind, Result, ResultExt};

/// The number of the pipe's descriptor, in the daemon's environment.
const READY_FD: &str = "HFMOUNT_READY_FD";
/// What it says first when the mount answers; notices follow, one a line.
const READY: &str = "ready\n";

/// Starts the daemon and returns when it says that the mount answers. The error is the daemon's own.
pub(super) fn start(log: &Path) -> Result<(), Failure> {
    let output = open_log(log)?;
    let (mut reader, writer) = std::io::pipe().map_err(|e| Error::with_source(Kind::Internal, "pipe", e))?;
    let own = std::env::current_exe().map_err(|e| Error::with_source(Kind::Internal, "this program", e))?;
    let stderr = output.try_clone().context(|| log.display().to_string())?;
    let fd = writer.as_raw_fd();
    let mut command = Command::new(own);
    command.args(foreground_args(std::env::args_os().skip(1).collect()));
    command.env(READY_FD, fd.to_string());
    command.stdin(Stdio::null()).stdout(output).stderr(stderr);
    // SAFETY: only setsid and fcntl are called between fork and exec; both are async-signal-safe, and `fd` is open.
    unsafe {
        command.pre_exec(move || {
            // Out of the terminal's reach: its ^C is for the foreground, and it may close.
            if libc::setsid() == -1 || libc::fcntl(fd, libc::F_SETFD, 0) == -1 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        });
    }
    let mut child =
        command.spawn().map_err(|e| Error::with_source(Kind::Internal, "starting the daemon", e))?;
    drop(writer);
    let mut said = String::new();
    // Ends when the daemon has spoken, or is dead.
    let read = {
        let _waiting = waiting("until the mount answers");
        reader.read_to_string(&mut said)
    };
    if let Some(notices) = said.strip_prefix(READY) {
        for notice in notices.lines().filter(|l| !l.is_empty()) {
            eprintln!("note: {notice}");
        }
        return Ok(());
    }
    match said.trim_end() {
        "" => {
            let status = child.wait().map(|s| s.to_string()).unwrap_or_default();
            let why = read.err().map(|e| format!(", {e}")).unwrap_or_default();
            Err(Failure::said(format!(
                "the daemon ended without a word ({status}{why}): see {}",
                log.display()
            )))
        }
        reason => {
            // It has said why; its end is near.
            let _ = child.wait();
            Err(Failure::said(reason.to_owned()))
        }
    }
}

fn open_log(log: &Path) -> Result<File> {
    let named = || format!("log file {}", log.display());
    if let Some(dir) = log.parent().filter(|d| !d.as_os_str().is_empty()) {
        std::fs::create_dir_all(dir).context(named)?;
    }
    OpenOptions::new().create(true).append(true).open(log).context(named)
}

/// The same command line without `-d`.
fn foreground_args(args: Vec<OsString>) -> Vec<OsString> {
    let mut options = true;
    args.into_iter()
        .filter_map(|arg| {
            options &= arg != "--";
            let Some(text) = arg.to_str().filter(|_| options) else { return Some(arg) };
            if matches!(text, "-d" | "--daemon") { None } else { Some(arg) }
        })
        .collect()
}

/// The daemon's end of the pipe: open until something was said, since the parent reads to its end.
#[derive(Debug)]
pub(super) struct Ready(Mutex<Option<OwnedFd>>);

/// The pipe, if this process was started by [`start`].
pub(super) fn ready_channel() -> Option<Ready> {
    let fd: i32 = std::env::var(READY_FD).ok()?.parse().ok()?;
    // SAFETY: fcntl on a number is safe whatever it is; it fails if nothing is open there.
    if fd <= 2 || unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } == -1 {
        return None;
    }
    // SAFETY: the parent opened it for this process alone and names it to nobody else.
    Some(Ready(Mutex::new(Some(unsafe { OwnedFd::from_raw_fd(fd) }))))
}

impl Ready {
    /// The mount answers, and what its user should know.
    pub(super) fn ready(&self, notices: &[String]) {
        self.say(&format!("{READY}{}\n", notices.join("\n")));
    }

    /// It will not, and why.
    pub(super) fn failed(&self, why: &Failure) {
        self.say(&why.to_string());
    }

    /// Only the first word counts.
    fn say(&self, words: &str) {
        let fd = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(fd) = fd {
            // Nobody may be listening any more.
            let _ = File::from(fd).write_all(words.as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_daemon_gets_the_same_words_but_one() {
        let strip = |args: &[&str]| -> Vec<String> {
            foreground_args(args.iter().map(OsString::from).collect())
                .into_iter()
                .map(|a| a.into_string().expect("utf-8"))
                .collect()
        };
        assert_eq!(strip(&["mount", "-d", "/mnt"]), ["mount", "/mnt"]);
        assert_eq!(strip(&["mount", "--offline", "/mnt", "--daemon"]), ["mount", "--offline", "/mnt"]);
        assert_eq!(strip(&["mount", "-d", "--", "-d"]), ["mount", "--", "-d"]);
    }
}
