//! `hfmount umount`: takes a mount out of the tree.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;

use super::Failure;
use super::progress::waiting;
use crate::chunk::cache::Waiting;
use crate::config::Home;
use crate::config::units::{duration, human_size};
use crate::daemon::RunFile;
use crate::error::Kind;
use crate::fuse;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hfmount umount /mnt/hf
  hfmount umount --lazy /mnt/hf     # programs that use it keep it until they end
  hfmount umount --force /mnt/hf    # its daemon hangs or is dead")]
pub(super) struct UmountArgs {
    /// The directory that is mounted on.
    dir: PathBuf,

    /// Also when it is in use: it vanishes from the tree, and ends when the last program lets go of it.
    #[arg(long, short)]
    lazy: bool,

    /// As --lazy, and requests that hang in it fail. What was not written is lost.
    #[arg(long, short)]
    force: bool,

    /// How long to wait for the daemon to write what is open and to end.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration)]
    timeout: Duration,
}

impl UmountArgs {
    pub(super) fn run(self) -> Result<(), Failure> {
        let dir = fuse::absolute(&self.dir)?;
        let shown = dir.display();
        // Read first: the daemon removes it when it ends.
        let daemon = Home::from_env().ok().and_then(|home| RunFile::read(&home, &dir));
        match fuse::mounted_at(&dir)? {
            Some(true) => {}
            Some(false) => return Err(Failure::said(format!("what is mounted on {shown} is no hfmount"))),
            None => return Err(Failure::said(format!("nothing is mounted on {shown}"))),
        }
        let result = match (self.force, self.lazy) {
            (true, _) => fuse::force(&dir),
            (false, true) => fuse::detach(&dir),
            (false, false) => fuse::unmount(&dir),
        };
        match result {
            Ok(_) => {}
            Err(e) if e.kind() == Kind::Busy => {
                let words =
                    format!("{shown} is in use (by whom: `fuser -vm {shown}`); with --lazy they may keep it");
                return Err(Failure::said(words));
            }
            Err(e) => return Err(e.into()),
        }
        if self.force || self.lazy {
            return Ok(());
        }
        let Some(daemon) = daemon else { return Ok(()) };
        let end = Instant::now() + self.timeout;
        let waiting = waiting("until the daemon has written what was open");
        while daemon.is_running() {
            if Instant::now() > end {
                let words =
                    format!("{shown} is unmounted, but its daemon (pid {}) is still writing", daemon.pid);
                return Err(Failure::said(words));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        drop(waiting);
        if let Ok(waiting) = Waiting::in_dir(&daemon.cache_dir)
            && waiting.files > 0
        {
            eprintln!(
                "note: {} files ({}) are not uploaded yet: they are safe in {}, and go on when it is mounted again",
                waiting.files,
                human_size(waiting.bytes),
                daemon.cache_dir.display()
            );
        }
        Ok(())
    }
}
