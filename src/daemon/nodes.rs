//! This mount as one node of the volume: what it takes from the others, and what it serves them.

use std::sync::{Arc, Weak};

use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::metrics::Extra;
use crate::chunk::{BlobShelf, Chunks};
use crate::config::Volume;
use crate::error::Result;
use crate::meta::kv::Kv;
use crate::metrics::Text;
use crate::peer::auth::PeerKey;
use crate::peer::tracker::{State, Tracker};
use crate::peer::{
    Beat, Client, ClientOptions, Leases, NodeId, NodeInfo, PeerOptions, Peers, Registry, Server,
    ServerOptions, ServerStats, Shelf, advertised,
};
use crate::types::Timestamp;

/// Blobs that are fetched for others at a time.
const NEEDS: usize = 4;

/// The way to the other nodes, before there is anything to serve.
pub(super) fn known(
    kv: &dyn Kv,
    volume: &Volume,
    options: Option<&PeerOptions>,
) -> Result<Option<Arc<Peers>>> {
    let Some(options) = options else { return Ok(None) };
    let me = NodeId::random();
    // On one machine there is nobody else.
    let Some(tracker) = Tracker::new(kv, me, options) else { return Ok(None) };
    let registry = Registry::new(tracker.clone());
    let key = PeerKey::from_hex(&volume.peer_key)?;
    let client = Client::new(ClientOptions::from(options), me, key, registry.clone())?;
    let leases = Leases::new(tracker.clone());
    Ok(Some(Peers::new(tracker, registry, leases, client, options.clone())))
}

/// What `/metrics` says of the other nodes, and of what this one serves them.
pub(super) fn figures(serving: &Serving) -> Extra {
    let (peers, server) = (Arc::downgrade(&serving.peers), Arc::downgrade(&serving.server));
    Arc::new(move |text: &mut Text| {
        if let Some(peers) = peers.upgrade() {
            others(&peers, text);
        }
        if let Some(stats) = server.upgrade().map(|server| server.stats()) {
            served(&stats, text);
        }
    })
}

fn others(peers: &Peers, text: &mut Text) {
    let roster = peers.registry().roster();
    let count = |is: fn(&State) -> bool| roster.nodes.iter().filter(|node| is(&node.state)).count();
    text.gauge("hfmount_peers", "Nodes of the volume as last heard of, this one included, by state.")
        .sample(&[("state", "active")], count(|state| matches!(state, State::Active)))
        .sample(&[("state", "stale")], count(|state| matches!(state, State::Stale)))
        .sample(&[("state", "blocked")], count(|state| matches!(state, State::Blocked(_))));
    text.gauge("hfmount_quarantines", "Nodes that are put out, for wrong bytes or by hand.")
        .sample(&[], roster.blocks.len());
    text.gauge("hfmount_leases", "Chunks that this node is fetching for all.")
        .sample(&[], peers.leases().count());
    let away = peers.registry().away().map_or(0.0, |away| away.as_secs_f64());
    text.gauge("hfmount_tracker_away_seconds", "For how long the tracker has not answered; 0: it does.")
        .sample(&[], away);
    let (mut chunks, mut busy, mut absent, mut failed, mut wrong) = (0, 0, 0, 0, 0);
    for (_, one) in peers.client().stats() {
        chunks += one.chunks;
        busy += one.busy;
        absent += one.absent;
        failed += one.failures;
        wrong += one.wrong;
    }
    text.gauge("hfmount_peer_answers", "What the nodes that are known now answered when asked for chunks.")
        .sample(&[("answer", "chunk")], chunks)
        .sample(&[("answer", "busy")], busy)
        .sample(&[("answer", "absent")], absent)
        .sample(&[("answer", "failed")], failed)
        .sample(&[("answer", "wrong")], wrong);
}

fn served(stats: &ServerStats, text: &mut Text) {
    text.counter("hfmount_peer_sent_bytes_total", "Bytes of chunks sent to other nodes.")
        .sample(&[], stats.bytes_up);
    text.counter("hfmount_peer_requests_total", "What other nodes asked here, by what became of it.")
        .sample(&[("outcome", "chunk")], stats.chunks)
        .sample(&[("outcome", "absent")], stats.absent)
        .sample(&[("outcome", "busy")], stats.busy)
        .sample(&[("outcome", "redirected")], stats.redirected)
        .sample(&[("outcome", "filled")], stats.fills)
        .sample(&[("outcome", "failed")], stats.failed)
        .sample(&[("outcome", "refused")], stats.refused)
        .sample(&[("outcome", "replayed")], stats.replays)
        .sample(&[("outcome", "blocked")], stats.blocked);
    text.counter("hfmount_peer_passed_on_total", "Chunks that were sent to other nodes while they came in.")
        .sample(&[], stats.passed_on);
    text.gauge("hfmount_peer_slots_free", "Upload slots that are free.").sample(&[], stats.slots_free);
}

/// This node at work for the others.
pub(super) struct Serving {
    peers: Arc<Peers>,
    server: Arc<Server>,
    /// The server does not keep it.
    _shelf: Arc<BlobShelf>,
    helping: Option<JoinHandle<()>>,
}

/// Fetches what nodes asked for that may not call the Hub, when nobody was there who may.
async fn help(peers: Weak<Peers>, shelf: Weak<BlobShelf>) {
    loop {
        let Some(every) = peers.upgrade().map(|peers| peers.options().timing.beat) else { return };
        sleep(every).await;
        let (Some(peers), Some(shelf)) = (peers.upgrade(), shelf.upgrade()) else { return };
        if peers.registry().needs() == 0 {
            continue;
        }
        let needed = peers.tracker().needed(NEEDS).await.unwrap_or_default();
        for need in needed {
            for chunk in need.chunks {
                if let Err(e) = shelf.fill(need.blob, need.size, chunk).await {
                    tracing::debug!(blob = %need.blob, chunk, error = %e, "not fetched for another node");
                    break;
                }
            }
        }
    }
}

impl Serving {
    /// Begins to serve, and makes this node known.
    pub(super) async fn start(peers: Arc<Peers>, volume: &Volume, chunks: &Arc<Chunks>) -> Result<Self> {
        let options = peers.options();
        let shelf = Arc::new(chunks.shelf());
        let weak: Weak<dyn Shelf> = Arc::downgrade(&(shelf.clone() as Arc<dyn Shelf>));
        let key = PeerKey::from_hex(&volume.peer_key)?;
        let server =
            Server::start(ServerOptions::from(options), peers.me(), key, weak, peers.registry().clone())
                .await?;
        let addr = advertised(peers.tracker(), options, server.addr()).await?;
        let info = NodeInfo {
            id: peers.me(),
            addr,
            zone: options.zone.clone(),
            role: options.role,
            hub: options.hub,
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            version: env!("CARGO_PKG_VERSION").into(),
            started: Timestamp::now(),
        };
        let server = Arc::new(server);
        let beat = {
            let (server, client) = (Arc::downgrade(&server), peers.client().clone());
            let chunks = Arc::downgrade(chunks);
            move || {
                let stats = server.upgrade().map(|server| server.stats());
                Beat {
                    slots_free: stats.as_ref().map_or(0, |stats| stats.slots_free),
                    up_bps: stats.as_ref().map_or(0, |stats| stats.up_bps),
                    down_bps: client.received().1,
                    held_bytes: chunks.upgrade().map_or(0, |chunks| chunks.cache().blob_bytes()),
                }
            }
        };
        peers.registry().start(info, Arc::new(beat), Some(Arc::new(peers.client().clone()))).await;
        tracing::info!("node {} serves the volume's other nodes at {addr}", peers.me());
        let helping = options.hub.then(|| tokio::spawn(help(Arc::downgrade(&peers), Arc::downgrade(&shelf))));
        Ok(Serving { peers, server, _shelf: shelf, helping })
    }

    /// Says farewell, then serves no more. Before the store of chunks ends.
    pub(super) async fn stop(self) {
        if let Some(helping) = &self.helping {
            helping.abort();
        }
        self.peers.leave().await;
        if let Some(server) = Arc::into_inner(self.server) {
            server.stop().await;
        }
    }
}
