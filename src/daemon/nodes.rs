//! This mount as one node of the volume: what it takes from the others, and what it serves them.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Instant;

use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::chunk::{BlobShelf, Chunks};
use crate::config::Volume;
use crate::error::Result;
use crate::meta::kv::Kv;
use crate::peer::auth::PeerKey;
use crate::peer::tracker::Tracker;
use crate::peer::{
    Beat, Client, ClientOptions, Leases, NodeId, NodeInfo, PeerOptions, Peers, Registry, Server,
    ServerOptions, Shelf, advertised,
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

/// This node at work for the others.
pub(super) struct Serving {
    peers: Arc<Peers>,
    server: Arc<Server>,
    /// The server does not keep it.
    _shelf: Arc<BlobShelf>,
    helping: Option<JoinHandle<()>>,
}

/// Bytes a second since the last time.
fn rate(last: &Mutex<(Instant, u64)>, bytes: u64) -> u64 {
    let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
    let (at, before) = std::mem::replace(&mut *last, (Instant::now(), bytes));
    let seconds = at.elapsed().as_secs_f64().max(0.001);
    (bytes.saturating_sub(before) as f64 / seconds) as u64
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
            let last = Mutex::new((Instant::now(), 0));
            move || {
                let stats = server.upgrade().map(|server| server.stats());
                let up = stats.as_ref().map_or(0, |stats| stats.bytes_up);
                Beat {
                    slots_free: stats.map_or(0, |stats| stats.slots_free),
                    up_bps: rate(&last, up),
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
