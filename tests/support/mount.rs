//! The real program: run with an environment of its own, and mounted by a child process, since a process that ends with a
//! file open on its own mount hangs.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// How long anything here may take before a test fails.
const PATIENCE: Duration = Duration::from_secs(60);

/// A folder for everything that one test's programs keep, with an environment that knows no other place.
#[derive(Debug)]
pub struct Home {
    dir: TempDir,
    env: Vec<(String, String)>,
}

#[allow(dead_code, reason = "each test binary uses its part")]
impl Home {
    pub fn new() -> Self {
        let dir = TempDir::with_prefix("hfmount-test-").expect("temporary folder");
        Home { dir, env: Vec::new() }
    }

    /// A home with a volume in it.
    pub fn formatted(args: &[&str]) -> Self {
        let home = Home::new();
        home.run_ok(&[&["format"], args].concat());
        home
    }

    /// For all programs from now on.
    pub fn set_env(&mut self, name: &str, value: &str) {
        self.env.retain(|(n, _)| n != name);
        self.env.push((name.into(), value.into()));
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A new directory in it.
    pub fn dir(&self, name: &str) -> PathBuf {
        let dir = self.dir.path().join(name);
        std::fs::create_dir_all(&dir).expect("directory");
        dir
    }

    /// `hfmount` with these arguments, not started yet.
    pub fn command(&self, args: &[&str]) -> Command {
        // `HFMOUNT_BIN`: another build, for measurements.
        let program = std::env::var_os("HFMOUNT_BIN").unwrap_or_else(|| env!("CARGO_BIN_EXE_hfmount").into());
        let mut command = Command::new(program);
        command.args(args).env_clear().stdin(Stdio::null());
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("HOME", self.path()).env("HFMOUNT_HOME", self.path().join("hfmount"));
        command.envs(self.env.iter().map(|(n, v)| (n, v)));
        command
    }

    /// Runs it to its end.
    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("hfmount runs")
    }

    /// Runs it to its end, which must be a good one; what it printed.
    pub fn run_ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "hfmount {args:?}: {}\n{out}{err}", output.status);
        out
    }

    /// Mounts in the foreground of a child process on the directory `name` of this home, and waits until it answers.
    pub fn mount(&self, name: &str, args: &[&str]) -> Mount {
        let point = self.path().join(name);
        // A dead mount may lie on it, which nobody is to look at.
        if !is_mounted(&point) {
            self.dir(name);
        }
        let log = self.path().join(format!("{name}.log"));
        let output = File::create(&log).expect("log");
        let place = point.to_str().expect("UTF-8");
        let mut command = self.command(&[&["mount", place], args].concat());
        command.stdout(output.try_clone().expect("log")).stderr(output);
        let child = command.spawn().expect("hfmount runs");
        let mut mount = Mount { child, point, log };
        mount.wait_until_it_answers();
        mount
    }
}

/// Whether real mounts are to be tested. Without `/dev/fuse` this fails the test, unless the user said to skip.
#[allow(dead_code, reason = "each test binary uses its part")]
pub fn can_mount() -> bool {
    if std::env::var_os("HFMOUNT_TESTS_SKIP_MOUNT").is_some_and(|v| v == "1") {
        eprintln!("skipped: HFMOUNT_TESTS_SKIP_MOUNT=1");
        return false;
    }
    if let Err(e) = File::options().read(true).write(true).open("/dev/fuse") {
        panic!("/dev/fuse: {e}. These tests mount; HFMOUNT_TESTS_SKIP_MOUNT=1 leaves them out");
    }
    true
}

/// A program that ^C ends. What runs these tests may ignore SIGINT, as shells make their background jobs do, and children
/// inherit that.
#[allow(dead_code, reason = "each test binary uses its part")]
pub fn heeding_interrupts(program: &str) -> Command {
    let mut command = Command::new(program);
    // SAFETY: signal() may be called between fork and exec.
    unsafe {
        command.pre_exec(|| {
            libc::signal(libc::SIGINT, libc::SIG_DFL);
            Ok(())
        });
    }
    command
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What the kernel's table says is mounted on `point`.
#[allow(dead_code, reason = "each test binary uses its part")]
pub fn is_mounted(point: &Path) -> bool {
    let table = std::fs::read_to_string("/proc/self/mounts").expect("mounts");
    let name = point.to_str().expect("UTF-8");
    table.lines().any(|l| l.split(' ').nth(1) == Some(name))
}

/// Waits until `done`, and fails the test when that takes too long.
#[allow(dead_code, reason = "each test binary uses its part")]
pub fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < end, "waited too long: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A mount and the child process that serves it. Dropped, the process is told to end and the mount is taken off.
#[derive(Debug)]
pub struct Mount {
    child: Child,
    point: PathBuf,
    log: PathBuf,
}

#[allow(dead_code, reason = "each test binary uses its part")]
impl Mount {
    pub fn path(&self) -> &Path {
        &self.point
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where a client finds the files of a repository's branch `main`: it reads which commit that is.
    pub fn snapshot(&self, repo: &str) -> PathBuf {
        let dir = self.path().join(repo);
        let commit = std::fs::read_to_string(dir.join("refs/main")).expect("the branch");
        dir.join("snapshots").join(commit)
    }

    /// What the daemon has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn signal(&self, signal: i32) {
        let pid = i32::try_from(self.pid()).expect("pid");
        // SAFETY: kill touches no memory; the child has not been waited for, so the number is its own.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0, "signal {signal}");
    }

    /// Tells the daemon to end, and waits until it has.
    pub fn stop(mut self) -> ExitStatus {
        self.signal(libc::SIGTERM);
        self.wait()
    }

    /// Waits until the daemon has ended.
    pub fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        wait_for("the daemon's end", || {
            status = self.child.try_wait().expect("wait");
            status.is_some()
        });
        status.expect("ended")
    }

    /// Ends the daemon as a crash would. The dead mount stays.
    pub fn crash(&mut self) {
        self.child.kill().expect("kill");
        self.child.wait().expect("wait");
    }

    fn wait_until_it_answers(&mut self) {
        let end = Instant::now() + PATIENCE;
        // Its own word first: what answers may still be a dead mount that it is about to replace.
        while !(self.log().contains("is mounted on") && answers(&self.point)) {
            if let Some(status) = self.child.try_wait().expect("wait") {
                panic!("the daemon ended: {status}\n{}", self.log());
            }
            assert!(Instant::now() < end, "no answer:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Asked by another process: one that hangs can be left behind.
fn answers(point: &Path) -> bool {
    let stat = Command::new("timeout").args(["5", "stat", "-t"]).arg(point).stdout(Stdio::null()).status();
    stat.is_ok_and(|s| s.success())
}

impl Drop for Mount {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.signal(libc::SIGTERM);
            let end = Instant::now() + Duration::from_secs(15);
            while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(10));
            }
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if is_mounted(&self.point) {
            let _ = Command::new("umount").arg("-l").arg(&self.point).status();
        }
        if std::thread::panicking() {
            eprintln!("--- log of {}\n{}", self.point.display(), self.log());
        }
    }
}
