//! The signals that end the daemon.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::error::{Error, Kind, Result};

/// SIGTERM, SIGINT and SIGHUP, from now on caught. SIGHUP comes when the terminal of a mount in the foreground closes.
#[derive(Debug)]
pub(super) struct Signals {
    term: Signal,
    int: Signal,
    hup: Signal,
}

impl Signals {
    pub(super) fn listen() -> Result<Self> {
        let on = |kind| signal(kind).map_err(|e| Error::with_source(Kind::Internal, "catching signals", e));
        Ok(Signals {
            term: on(SignalKind::terminate())?,
            int: on(SignalKind::interrupt())?,
            hup: on(SignalKind::hangup())?,
        })
    }

    /// The name of the next one.
    pub(super) async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.term.recv() => "SIGTERM",
            _ = self.int.recv() => "SIGINT",
            _ = self.hup.recv() => "SIGHUP",
        }
    }
}
