//! Open files while the metadata do not answer.
//!
//! Before a read the kernel asks for the attributes of the file again when its own have run out. With a server that is away
//! that question would hold up a read of data that is here, and fail it in the end. Of an open file close-to-open promises
//! nothing newer than what its open saw, so such a question is answered with what was last seen of it: reads of open
//! files go on. Everything else — names, opens, changes, what is not open — waits for the metadata, and fails when the
//! engine's time is over.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::Vfs;
use crate::error::Result;
use crate::meta::Attr;
use crate::types::Ino;

/// How long one question waits before the metadata are taken to be away. Those after it do not wait.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long the kernel may rely on such an answer, at most.
pub(super) const ASK_AGAIN: Duration = Duration::from_secs(1);
/// How often it is tried whether the metadata are back.
const PROBE: Duration = Duration::from_millis(500);

/// Whether the metadata are away, as far as questions about open files found out.
#[derive(Debug, Default)]
pub(super) struct Outage(AtomicBool);

/// Attributes, and where they are from.
#[derive(Debug)]
pub(super) enum Known {
    /// The metadata.
    Now(Attr),
    /// Memory, of an open file.
    LastSeen(Attr),
}

impl Known {
    pub fn into_attr(self) -> Attr {
        match self {
            Known::Now(attr) | Known::LastSeen(attr) => attr,
        }
    }
}

impl Vfs {
    /// The attributes of an inode; of one that is open here, what was last seen if the metadata do not answer.
    pub(super) async fn attributes(self: &Arc<Self>, ino: Ino) -> Result<Known> {
        if self.outage.0.load(Ordering::Relaxed)
            && let Some(attr) = self.handles.last_seen(ino)
        {
            return Ok(Known::LastSeen(attr));
        }
        let asked = self.meta.getattr(ino);
        tokio::pin!(asked);
        let answer = match timeout(PATIENCE, &mut asked).await {
            Ok(answer) if !matches!(&answer, Err(e) if e.kind().is_transient()) => {
                return answer.map(Known::Now);
            }
            answer => answer,
        };
        if let Some(attr) = self.handles.last_seen(ino) {
            self.away();
            return Ok(Known::LastSeen(attr));
        }
        match answer {
            Ok(answer) => answer.map(Known::Now),
            Err(_) => asked.await.map(Known::Now),
        }
    }

    /// The metadata are taken to be away until they answer.
    fn away(self: &Arc<Self>) {
        if self.outage.0.swap(true, Ordering::Relaxed) {
            return;
        }
        tracing::warn!("the metadata do not answer: open files are read as they were last seen");
        let vfs = Arc::downgrade(self);
        tokio::spawn(async move {
            loop {
                sleep(PROBE).await;
                let Some(vfs) = vfs.upgrade() else { return };
                // Whatever it says: it answers.
                let answer = vfs.meta.getattr(Ino::ROOT).await;
                if !matches!(answer, Err(e) if e.kind().is_transient()) {
                    vfs.outage.0.store(false, Ordering::Relaxed);
                    tracing::info!("the metadata answer again");
                    return;
                }
            }
        });
    }
}
