//! The command line: one verb a file.
//!
//! | exit code | meaning |
//! |---|---|
//! | 0 | done |
//! | 1 | it failed; the reason is on standard error |
//! | 2 | the command line is wrong |

mod background;
mod bench;
mod colours;
mod conceal;
mod config;
mod dump;
mod format;
mod fsck;
mod gc;
mod info;
mod load;
mod mount;
mod mounts;
mod peer;
mod peer_args;
mod progress;
mod restore;
mod show;
mod stats;
mod status;
mod umount;
mod volume;

use std::fmt;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::Home;
use crate::error::{Error, Kind, Result};
use crate::meta::url::{MetaUrl, PasswordSource};
use crate::secrets;

/// The password of the metadata engine, if it is not in the URL; also `HFMOUNT_META_PASSWORD_FILE`.
pub(crate) const META_PASSWORD: &str = "HFMOUNT_META_PASSWORD";
/// The password of the sentinels; also `HFMOUNT_SENTINEL_PASSWORD_FILE`.
const SENTINEL_PASSWORD: &str = "HFMOUNT_SENTINEL_PASSWORD";

/// One shared Hugging Face cache for every machine of a team, as a file system.
///
/// `hfmount format` makes a volume, `hfmount mount DIR` shows it. Unmodified Hub clients find every repository in it;
/// only the chunks that are read are fetched, once, and shared.
#[derive(Debug, Parser)]
#[command(name = "hfmount", version, max_term_width = 100, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

const EXAMPLES: &str = "\
Examples:
  hfmount format
  hfmount mount -d /mnt/hf
  HF_HUB_CACHE=/mnt/hf python -c 'from transformers import AutoModel; AutoModel.from_pretrained(\"gpt2\")'
  hfmount umount /mnt/hf

Exit codes: 0 done, 1 failed, 2 wrong command line.";

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make a volume, or change the settings of one.
    Format(format::FormatArgs),
    /// Show or change the settings that may change while a volume is in use.
    Config(config::ConfigArgs),
    /// Show a volume in a directory.
    Mount(Box<mount::MountArgs>),
    /// Take a mount out of the tree and wait until its daemon has written everything.
    #[command(visible_alias = "unmount")]
    Umount(umount::UmountArgs),
    /// Tell about a volume: its settings, its engine, who has it mounted.
    Status(status::StatusArgs),
    /// Show what a mount does, one line a second: requests, metadata, cache, object store, peers, Hub.
    Stats(stats::StatsArgs),
    /// Measure how fast a directory is, and the object store and metadata engine behind it if it is on a mount.
    Bench(bench::BenchArgs),
    /// List the nodes that share a volume's content, block one, or name one.
    Peer(peer::PeerVerb),
    /// Tell where a file is: its inode, its chunks, and which of them are on this machine, in the storage, at the Hub.
    Info(info::InfoArgs),
    /// Find what lies in the storage for nothing, and delete it.
    Gc(gc::GcArgs),
    /// Check a volume: the metadata against itself and against the storage.
    Fsck(fsck::FsckArgs),
    /// List what was deleted from a volume, and bring it back.
    Restore(restore::RestoreArgs),
    /// Write the whole metadata of a volume into a file, whoever has it mounted.
    Dump(dump::DumpArgs),
    /// Make a volume of a dump, in any metadata engine.
    Load(load::LoadArgs),
}

/// Where the metadata is: common to most verbs.
#[derive(Clone, Debug, Args)]
struct MetaArgs {
    /// Metadata engine: redis://[user@]host[:port][/db], rediss://…, redis+unix:///socket,
    /// redis+sentinel://[user@]host[:port][,host…]/master-name[/db], sqlite:///path. A password comes from
    /// HFMOUNT_META_PASSWORD or HFMOUNT_META_PASSWORD_FILE, that of sentinels from HFMOUNT_SENTINEL_PASSWORD[_FILE]. Default: SQLite in $HFMOUNT_HOME
    /// (~/.local/share/hfmount).
    #[arg(long, value_name = "URL", env = "HFMOUNT_META", hide_env_values = true)]
    meta: Option<String>,
}

impl MetaArgs {
    fn url(&self, home: &Home) -> Result<MetaUrl> {
        let Some(text) = self.meta.as_deref().filter(|t| !t.is_empty()) else {
            return Ok(MetaUrl::Sqlite(home.sqlite()));
        };
        let password = secrets::from_env(META_PASSWORD)?;
        let value = password.map(|p| p.expose().to_owned());
        let sentinel = secrets::from_env(SENTINEL_PASSWORD)?.map(|p| p.expose().to_owned());
        MetaUrl::parse(text)
            .map_err(|e| e.context("--meta"))?
            .with_sentinel_password(sentinel)
            .with_password(&PasswordSource { value, file: None })
    }
}

/// Runs the command line of this process.
#[must_use]
pub fn run() -> ExitCode {
    // Before anything else: what others can see of this process.
    conceal::conceal_password();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            // 0 for --help and --version, 2 for mistakes. Nothing can be done if the terminal is gone.
            let _ = e.print();
            return ExitCode::from(u8::try_from(e.exit_code()).unwrap_or(2));
        }
    };
    let result = match cli.verb {
        Verb::Format(args) => args.run(),
        Verb::Config(args) => args.run(),
        Verb::Mount(args) => args.run(),
        Verb::Umount(args) => args.run(),
        Verb::Status(args) => args.run(),
        Verb::Stats(args) => args.run(),
        Verb::Bench(args) => args.run(),
        Verb::Peer(args) => args.run(),
        Verb::Info(args) => args.run(),
        Verb::Gc(args) => args.run(),
        Verb::Fsck(args) => args.run(),
        Verb::Restore(args) => args.run(),
        Verb::Dump(args) => args.run(),
        Verb::Load(args) => args.run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("hfmount: {e}");
            ExitCode::FAILURE
        }
    }
}

/// Why a verb failed, in words for its user.
#[derive(Debug)]
struct Failure(String);

impl Failure {
    fn said(words: String) -> Self {
        Failure(words)
    }
}

impl From<Error> for Failure {
    fn from(e: Error) -> Self {
        let words = e.to_string();
        Failure(match e.kind() {
            // The reason itself says that it is the user's to change.
            Kind::Config => words.replace("bad configuration: ", "").replace(": bad configuration", ""),
            _ => words,
        })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A runtime for a verb that asks a few questions and ends.
fn small_runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Error::with_source(Kind::Internal, "starting", e))
}

/// A runtime whose threads go on while the verb itself blocks on a file or a pipe.
fn wide_runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|e| Error::with_source(Kind::Internal, "starting", e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_verb_helps_with_examples() {
        fn check(verb: &mut clap::Command) {
            let help = verb.render_long_help().to_string();
            assert!(help.contains("Examples:"), "{} has none", verb.get_name());
            verb.get_subcommands_mut().filter(|verb| verb.get_name() != "help").for_each(check);
        }
        Cli::command().get_subcommands_mut().for_each(check);
    }

    #[test]
    fn help_tells_no_value_of_the_environment() {
        let mut cli = Cli::command();
        cli.build();
        for verb in cli.get_subcommands().flat_map(|v| v.get_subcommands().chain(std::iter::once(v))) {
            for arg in verb.get_arguments().filter(|a| a.get_env().is_some()) {
                assert!(arg.is_hide_env_values_set(), "{} --{}", verb.get_name(), arg.get_id());
            }
        }
    }
}
