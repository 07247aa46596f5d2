//! Chunks that this node may not fetch: it may not call the Hub, or the Hub does not let it in. Another node is asked to
//! fetch them; then it holds them, and gives them like any other.

use std::sync::Arc;

use super::super::flight::Flights;
use crate::chunk::blob::Blob;
use crate::chunk::lock;
use crate::error::{Error, Kind, Result};
use crate::peer::Peers;

/// Nodes that are asked for one chunk.
const MOST_ASKED: usize = 3;

/// While it lives, other nodes are asked for the chunk: who of them asks this one in turn is told at once that it is in the
/// same plight, or the two would wait for each other.
struct Asking {
    blob: Arc<Blob>,
    idx: u64,
}

impl Asking {
    fn new(blob: &Arc<Blob>, idx: u64) -> Self {
        lock(&blob.state).asking.insert(idx);
        Asking { blob: blob.clone(), idx }
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        lock(&self.blob.state).asking.remove(&self.idx);
    }
}

/// Has the first chunk of the run filled by another node, from where it is still to be fetched. `refused`: why this node
/// did not get it.
pub(super) async fn fill(flights: &mut Flights, peers: &Arc<Peers>, refused: Option<Error>) -> Result<()> {
    let blob = flights.blob.clone();
    let idx = flights.left.start;
    let refused = refused.or_else(|| blob.refusal());
    let limit = blob.shared.options.source_timeout;
    let _asking = Asking::new(&blob, idx);
    let (mut asked, mut refusals) = (0, 0);
    let mut last = None;
    for node in peers.who_reach_the_hub(blob.id, idx).into_iter().take(MOST_ASKED) {
        asked += 1;
        match peers.client().ask_fill(&node, blob.id, blob.size, idx, limit).await {
            Ok(()) => return Ok(()),
            Err(e) => {
                tracing::debug!(blob = %blob.id, chunk = idx, node = %node.node, error = %e, "not filled");
                refusals += usize::from(matches!(e.kind(), Kind::Access | Kind::NotFound));
                last = Some(e);
            }
        }
    }
    match (refused, last) {
        // Nobody is let in.
        (Some(e), _) if refusals == asked => Err(e),
        (None, Some(e)) if refusals == asked => Err(e),
        (_, Some(e)) => Err(e.with_kind(Kind::Unavailable)),
        (_, None) => {
            peers.need(blob.id, blob.size, idx).await;
            Err(Error::new(Kind::Unavailable, "no node that may call the Hub is there"))
        }
    }
}
