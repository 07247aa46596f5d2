//! A few connections for reading, each used by one blocking task at a time.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rusqlite::Connection;
use tokio::sync::Semaphore;

use super::file;
use crate::error::{Error, Kind, Result};

/// Reads last microseconds; more connections than this only fight for the cores.
const READERS: usize = 4;

pub(super) struct Readers {
    path: PathBuf,
    timeout: Duration,
    idle: Mutex<Vec<Connection>>,
    permits: Arc<Semaphore>,
}

impl Readers {
    pub(super) fn new(path: PathBuf, timeout: Duration) -> Arc<Self> {
        let permits = Arc::new(Semaphore::new(READERS));
        Arc::new(Readers { path, timeout, idle: Mutex::default(), permits })
    }

    /// Runs `read` on a connection of its own, off the async workers. Bounded by the engine's timeout, the wait for a
    /// free connection included; a read that is given up still ends by itself.
    pub(super) async fn run<T: Send + 'static>(
        self: &Arc<Self>,
        read: impl FnOnce(&Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let readers = self.clone();
        let task = async move {
            let permit = readers.permits.clone().acquire_owned().await;
            let permit = permit.map_err(|_| Error::new(Kind::Internal, "the readers are closed"))?;
            let task = tokio::task::spawn_blocking(move || {
                let _permit = permit;
                let idle = readers.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
                let db = match idle {
                    Some(db) => db,
                    None => file::connect(&readers.path)?,
                };
                let result = read(&db);
                readers.idle.lock().unwrap_or_else(PoisonError::into_inner).push(db);
                result
            });
            task.await.map_err(|e| Error::with_source(Kind::Internal, "read of the metadata file", e))?
        };
        match tokio::time::timeout(self.timeout, task).await {
            Ok(result) => result,
            Err(_) => Err(Error::new(Kind::TimedOut, "read of the metadata file")),
        }
    }
}
