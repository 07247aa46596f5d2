//! What the client of the other nodes asks about them, and tells of them.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::time::Instant;

use super::{Registry, find, holder, lock};
use crate::peer::protocol::Directory;
use crate::peer::types::{Holder, NodeId};
use crate::peer::{Claim, Decision};
use crate::types::BlobId;

/// How often the tracker is told of one node that nobody listens at its place, and how many of them are remembered.
const ASKED_EACH: Duration = Duration::from_millis(500);
pub(super) const MOST_REFUSED: NonZeroUsize = NonZeroUsize::new(256).expect("not zero");

impl Directory for Registry {
    fn now_ms(&self) -> u64 {
        u64::try_from(self.server_time().0 / 1_000_000).unwrap_or(0)
    }

    fn holder(&self, node: NodeId) -> Option<Holder> {
        let roster = self.roster();
        match find(&roster, node) {
            Some(found) => self.may_be_asked(&roster, found).then(|| holder(found)),
            None => self.added().into_iter().find(|holder| holder.node == node),
        }
    }

    fn is_blocked(&self, node: NodeId) -> bool {
        let roster = self.roster();
        if roster.blocks.is_empty() {
            return false;
        }
        // Whom nobody knows cannot be blocked by an address that it says itself.
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        self.blocks(&roster, node, find(&roster, node).map_or(nowhere, |found| found.info.addr))
    }

    fn not_held(&self, node: NodeId, blob: BlobId, idx: u64) {
        let tracker = self.tracker.clone();
        aside(async move {
            if let Err(e) = tracker.not_held(blob, idx, node).await {
                tracing::debug!("a wrong advertisement stays: {e}");
            }
        });
    }

    fn refused(&self, node: NodeId) {
        let now = Instant::now();
        {
            let mut refused = lock(&self.refused);
            if refused.get(&node).is_some_and(|at| now - *at < ASKED_EACH) {
                return;
            }
            refused.put(node, now);
        }
        let tracker = self.tracker.clone();
        aside(async move {
            match tracker.refused(node).await {
                Ok(true) => tracing::info!("node {node} is gone: nobody listens at its place any more"),
                Ok(false) => {}
                Err(e) => tracing::debug!("node {node} is dead when its heartbeat has run out: {e}"),
            }
        });
    }

    fn holders(&self, blob: BlobId, idx: u64) -> BoxFuture<'_, Vec<Holder>> {
        Box::pin(async move {
            match self.tracker.claim(&Claim::look(blob, vec![idx])).await.map(|claimed| claimed.decisions) {
                Ok(mut decisions) => match decisions.pop() {
                    Some(Decision::Held(holders)) => holders,
                    _ => Vec::new(),
                },
                Err(e) => {
                    tracing::debug!(%blob, idx, error = %e, "cannot ask who has it by now");
                    Vec::new()
                }
            }
        })
    }
}

/// Tells the tracker what is only a hint: nobody waits for it.
fn aside(task: impl Future<Output = ()> + Send + 'static) {
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        runtime.spawn(task);
    }
}
