//! Where the log goes and what it leaves out.

use std::fs::OpenOptions;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;

use tracing_subscriber::filter::Directive;
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::{EnvFilter, fmt};

use crate::error::{Result, ResultExt};

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    /// One object a line.
    Json,
}

/// Where the log goes and how.
#[derive(Clone, Debug)]
pub struct LogSettings {
    /// `None`: standard error.
    pub file: Option<PathBuf>,
    pub format: LogFormat,
}

/// What is wanted if `HFMOUNT_LOG` and `RUST_LOG` say nothing.
const DEFAULT: &str = "info";
/// After an unmount every answer to a request under way fails, one line each.
const QUIET: [&str; 3] = ["fuser::reply=off", "fuser=warn", "object_store=warn"];

/// Starts logging. A second call in one process changes nothing.
pub(super) fn start(settings: &LogSettings) -> Result<()> {
    let writer = match &settings.file {
        None => BoxMakeWriter::new(std::io::stderr),
        Some(path) => {
            let named = || format!("log file {}", path.display());
            if let Some(dir) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
                std::fs::create_dir_all(dir).context(named)?;
            }
            let file = OpenOptions::new().create(true).append(true).open(path).context(named)?;
            BoxMakeWriter::new(Arc::new(file))
        }
    };
    let colours = settings.file.is_none() && std::io::stderr().is_terminal();
    let lines = fmt().with_env_filter(filter()).with_writer(writer).with_ansi(colours);
    // It fails if there is a logger already: that one serves.
    let _ = match settings.format {
        LogFormat::Text => lines.try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    };
    Ok(())
}

fn filter() -> EnvFilter {
    let wanted =
        ["HFMOUNT_LOG", "RUST_LOG"].iter().find_map(|n| std::env::var(n).ok().filter(|v| !v.is_empty()));
    let wanted = wanted.as_deref().unwrap_or(DEFAULT);
    let mut filter = EnvFilter::builder().parse_lossy(wanted);
    for quiet in QUIET {
        let target = quiet.split('=').next().unwrap_or(quiet);
        // Who names the target wants to see it.
        if !wanted.contains(target)
            && let Ok(directive) = quiet.parse::<Directive>()
        {
            filter = filter.add_directive(directive);
        }
    }
    filter
}
