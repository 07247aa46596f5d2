//! `hfmount mount`: shows a volume in a directory.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::peer_args::PeerArgs;
use super::{Failure, MetaArgs, background, format};
use crate::config::units::{duration, ratio, size, umask};
use crate::config::{Home, MountOptions};
use crate::daemon::{self, LogFormat, LogSettings};
use crate::error::{Error, Kind, Result};
use crate::meta::url::MetaUrl;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  # In the foreground, until ^C
  hfmount mount /mnt/hf

  # In the background; returns when the mount answers
  hfmount mount -d --meta redis://redis.internal/1 /mnt/hf

  # Over the cache of a user who keeps all paths as they are
  hfmount mount -d ~/.cache/huggingface

  # On a node with a large scratch disk, for jobs that must not call out
  hfmount mount -d --offline --cache-dir /scratch/hfmount --cache-size 2T --free-space-ratio 5% /mnt/hf

  # What the folder held before is not downloaded again, and a mirror is asked before the Hub
  hfmount mount -d --seed ~/.cache/huggingface --mirror https://hf.internal ~/.cache/huggingface

  # On a node that may not reach the Hub, in a rack of its own
  hfmount mount -d --hub deny --zone rack-7 --meta redis://redis.internal/1 /mnt/hf

  # Close at the speed of the local disk, upload behind
  hfmount mount -d --writeback --cache-dir /nvme/hfmount /mnt/hf

The Hub token is read at the start, from --token-file, HF_TOKEN, HF_TOKEN_PATH, $HF_HOME/token or
~/.cache/huggingface/token, and is kept in memory only. The bucket's keys come from AWS_ACCESS_KEY_ID and
AWS_SECRET_ACCESS_KEY (or HFMOUNT_ACCESS_KEY and HFMOUNT_SECRET_KEY[_FILE]), or from the metadata with
HFMOUNT_PASSPHRASE[_FILE]. HFMOUNT_LOG=debug logs more.")]
pub(super) struct MountArgs {
    /// The directory to mount on. It must exist; what is in it is hidden meanwhile.
    dir: PathBuf,

    #[command(flatten)]
    meta: MetaArgs,

    /// Run in the background. Returns when the mount answers, or with the reason why not.
    #[arg(long, short)]
    daemon: bool,

    /// Write the log to this file. Default with -d: $HFMOUNT_HOME/logs/<dir>.log; otherwise standard error.
    #[arg(long, value_name = "FILE")]
    log_file: Option<PathBuf>,

    /// How log lines look.
    #[arg(long, value_enum, default_value = "text")]
    log_format: LogStyle,

    /// Where to keep what was read and what is being written. Default: $HFMOUNT_HOME/cache/<volume>.
    #[arg(long, value_name = "DIR", env = "HFMOUNT_CACHE_DIR", hide_env_values = true)]
    cache_dir: Option<PathBuf>,

    /// How much of the disk the cache may take.
    #[arg(long, value_name = "SIZE", default_value = "100GiB", value_parser = size, env = "HFMOUNT_CACHE_SIZE", hide_env_values = true)]
    cache_size: u64,

    /// The share of the disk that the cache leaves free, whatever its size.
    #[arg(long, value_name = "SHARE", default_value = "0.1", value_parser = ratio)]
    free_space_ratio: f64,

    /// Refuse all changes.
    #[arg(long, alias = "ro")]
    read_only: bool,

    /// Let close and fsync answer when the data is safe on this machine's disk. It is uploaded behind, and other mounts see it
    /// then; after a crash the next mount with this cache directory goes on.
    #[arg(long, conflicts_with = "read_only")]
    writeback: bool,

    /// Never call the Hub: only what is in the volume already.
    #[arg(long, env = "HFMOUNT_OFFLINE", hide_env_values = true, value_parser = clap::builder::FalseyValueParser::new())]
    offline: bool,

    /// A file with the Hub token.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,

    /// Where the Hub is. Default: as the volume says.
    #[arg(long, value_name = "URL", env = "HFMOUNT_HUB_ENDPOINT", hide_env_values = true)]
    hub_endpoint: Option<String>,

    /// A mirror of the Hub to get bytes from, before the Hub is asked; may be given again. It never sees the token, and what
    /// it gives is checked. Names and branches come from the Hub alone.
    #[arg(long, value_name = "URL", env = "HFMOUNT_MIRROR", value_delimiter = ',', hide_env_values = true)]
    mirror: Vec<String>,

    /// A Hugging Face cache on a disk of this machine, such as the one that this mount hides; may be given again. What lies
    /// there is not downloaded. It is only read, and checked like a download; who may read the mount may read it.
    #[arg(long, value_name = "DIR", env = "HFMOUNT_SEED", hide_env_values = true)]
    seed: Vec<PathBuf>,

    /// Hold back the end of each file of the Hub until all of it was checked against its hash.
    #[arg(long)]
    strict: bool,

    /// Do not let the kernel read complete files of the Hub from the cache by itself, as it does where it can: for finding
    /// faults, and for comparing.
    #[arg(long)]
    no_passthrough: bool,

    /// Serve figures for Prometheus at http://ADDR/metrics. Without a host: for this machine only.
    #[arg(long, value_name = "ADDR", env = "HFMOUNT_METRICS", value_parser = metrics_address, hide_env_values = true)]
    metrics: Option<SocketAddr>,

    /// Ask the Hub again where a branch is when the answer is older than this.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration)]
    ref_ttl: Duration,

    /// How long the kernel may rely on attributes. An open looks in any case.
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = duration)]
    attr_ttl: Duration,

    /// How long the kernel may rely on names, if a change elsewhere is not pushed; 0 = strict.
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = duration)]
    entry_ttl: Duration,

    /// The longest that one request may take before it fails.
    #[arg(long, value_name = "TIME", default_value = "15m", value_parser = duration)]
    io_timeout: Duration,

    /// How long an operation waits for a metadata server that does not answer, or fails over, before it fails (EIO).
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration)]
    meta_timeout: Duration,

    /// Whether reading moves a file's time of last access: never, or if it is older than the last change or
    /// a day (relatime).
    #[arg(long, value_enum, value_name = "POLICY", default_value = "noatime")]
    atime: Atime,

    /// How long a deleted repository does not come back from the Hub by itself.
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = duration)]
    tombstone_ttl: Duration,

    /// How long this mount may be silent before the others take it for dead, and its locks are free.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration, env = "HFMOUNT_SESSION_TTL", hide = true, hide_env_values = true)]
    session_ttl: Duration,

    /// Let other users in: the default for root. Others need user_allow_other in /etc/fuse.conf.
    #[arg(long, overrides_with = "no_allow_other")]
    allow_other: bool,

    /// Keep other users out, root included.
    #[arg(long)]
    no_allow_other: bool,

    /// The owner of files that come from the Hub. Default: whoever mounts.
    #[arg(long, value_name = "UID")]
    uid: Option<u32>,

    /// Their group.
    #[arg(long, value_name = "GID")]
    gid: Option<u32>,

    /// Bits that their modes do not have. Default: 022; 000 for root, whose mount is for all users of the machine.
    #[arg(long, value_name = "OCTAL", value_parser = umask)]
    umask: Option<u16>,

    #[command(flatten)]
    peer: PeerArgs,
}

/// `127.0.0.1:9567`, `[::1]:9567`, `:9567` or `9567`.
fn metrics_address(text: &str) -> Result<SocketAddr, String> {
    let port = text.strip_prefix(':').unwrap_or(text);
    match (port.parse::<u16>(), text.parse::<SocketAddr>()) {
        (Ok(port), _) => Ok((Ipv4Addr::LOCALHOST, port).into()),
        (_, Ok(address)) => Ok(address),
        _ => Err("it should look like 127.0.0.1:9567".to_owned()),
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogStyle {
    Text,
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Atime {
    Noatime,
    Relatime,
}

impl MountArgs {
    pub(super) fn run(self: Box<Self>) -> Result<(), Failure> {
        let home = Home::from_env()?;
        let options = self.options(&home)?;
        if self.daemon {
            let point = crate::fuse::absolute(&options.dir)?;
            let log = self.log_file.clone().unwrap_or_else(|| home.log(&point));
            return background::start(&log);
        }
        let ready = background::ready_channel();
        let logs = LogSettings {
            // In the background standard error is the log file already.
            file: self.log_file.clone().filter(|_| ready.is_none()),
            format: match self.log_format {
                LogStyle::Text => LogFormat::Text,
                LogStyle::Json => LogFormat::Json,
            },
        };
        let result = daemon::run(&home, options, &logs, |notices| {
            if let Some(ready) = &ready {
                ready.ready(notices);
            }
        });
        result.map_err(|e| {
            let failure = Failure::from(e);
            if let Some(ready) = &ready {
                ready.failed(&failure);
            }
            failure
        })
    }

    fn mirrors(&self) -> Result<Vec<String>> {
        let given = self.mirror.iter().map(|url| url.trim()).filter(|url| !url.is_empty());
        given.map(|url| format::http_url("--mirror", url)).collect()
    }

    /// The defaults that depend on who mounts are filled in here.
    fn options(&self, home: &Home) -> Result<MountOptions> {
        let root = rustix::process::geteuid().is_root();
        let given = |path: &Option<PathBuf>| path.clone().filter(|p| !p.as_os_str().is_empty());
        if self.io_timeout.is_zero() {
            return Err(Error::new(Kind::Config, "--io-timeout 0: nothing could ever be read"));
        }
        let meta = self.meta.url(home)?.with_timeout(self.meta_timeout);
        let shared = matches!(meta, MetaUrl::Redis(_));
        Ok(MountOptions {
            hub_fetch: self.peer.hub_fetch(),
            hub_limit: self.peer.hub_limit(),
            peer: self.peer.options(self.offline).filter(|_| shared),
            meta,
            dir: self.dir.clone(),
            cache_dir: given(&self.cache_dir),
            cache_size: self.cache_size,
            free_space_ratio: self.free_space_ratio,
            read_only: self.read_only,
            writeback: self.writeback,
            offline: self.offline,
            token_file: given(&self.token_file),
            hub_endpoint: self.hub_endpoint.as_deref().map(format::hub_url).transpose()?,
            mirrors: self.mirrors()?,
            seeds: self.seed.iter().filter(|dir| !dir.as_os_str().is_empty()).cloned().collect(),
            strict: self.strict,
            passthrough: !self.no_passthrough,
            metrics: self.metrics,
            ref_ttl: self.ref_ttl,
            attr_ttl: self.attr_ttl,
            entry_ttl: self.entry_ttl,
            io_timeout: self.io_timeout,
            tombstone_ttl: self.tombstone_ttl,
            relatime: self.atime == Atime::Relatime,
            // Below that a busy machine would take itself for dead.
            session_ttl: self.session_ttl.max(Duration::from_secs(1)),
            allow_other: self.allow_other || (root && !self.no_allow_other),
            uid: self.uid.unwrap_or_else(|| rustix::process::geteuid().as_raw()),
            gid: self.gid.unwrap_or_else(|| rustix::process::getegid().as_raw()),
            umask: self.umask.unwrap_or(if root { 0 } else { 0o022 }),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_metrics_are_served() {
        let of = |text| metrics_address(text).map(|a| a.to_string());
        assert_eq!(of("127.0.0.1:9567").as_deref(), Ok("127.0.0.1:9567"));
        assert_eq!(of("0.0.0.0:1").as_deref(), Ok("0.0.0.0:1"));
        assert_eq!(of("[::1]:9567").as_deref(), Ok("[::1]:9567"));
        assert_eq!(of(":9567").as_deref(), Ok("127.0.0.1:9567"));
        assert_eq!(of("9567").as_deref(), Ok("127.0.0.1:9567"));
        for bad in ["", "localhost", "127.0.0.1", "1.2.3.4:99999", "http://x:1"] {
            assert!(of(bad).is_err(), "{bad}");
        }
    }
}
