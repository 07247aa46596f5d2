//! While the tracker does not answer: what known nodes hold is still fetched from them; whether anything is fetched from
//! elsewhere, perhaps by several nodes, is `--redis-down`.

use std::sync::Arc;

use super::{PATIENCE, for_each_chunk};
use crate::chunk::fill;
use crate::chunk::flight::{AheadPlace, Flights};
use crate::chunk::pour::{self, From};
use crate::error::{Error, Result};
use crate::peer::{Holder, Peers, RedisDown};
use crate::source::peer::PeerSource;

/// Nodes that are asked whether they have a chunk.
const MOST_ASKED: usize = 8;

/// One round of a run without the tracker. `error`: what it said, if anything.
pub(super) async fn round(
    flights: &mut Flights,
    place: &mut AheadPlace,
    peers: &Arc<Peers>,
    error: Error,
) -> Result<()> {
    let blob = flights.blob.clone();
    let nodes: Vec<Holder> =
        peers.last_seen(blob.id, flights.left.start).into_iter().take(MOST_ASKED).collect();
    let task = fill::task_without_records(&blob, flights);
    if !nodes.is_empty() {
        let holders = for_each_chunk(flights, nodes);
        let source = PeerSource::new(peers.client().clone(), PATIENCE).recorded();
        let counters = &blob.shared.counters.peers;
        let from = From { source: &source, counters, is_origin: false, holders };
        match pour::pour(flights, &task, &from, place).await {
            Ok(()) => return Ok(()),
            Err(e) => {
                tracing::debug!(blob = %blob.id, error = %e, "no bytes from the nodes that were last seen")
            }
        }
    }
    match peers.options().redis_down {
        RedisDown::Direct => fill::from_these_sources(flights, &task, place).await,
        RedisDown::Wait => Err(error),
    }
}
