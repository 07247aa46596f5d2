//! The server of a node: it gives chunks to the other nodes of the volume, and to nobody else.
//!
//! # The protocol
//! HTTP/1.1, keep-alive, one request at a time on a connection. In what follows, "hex" is lower-case hex digits, numbers are
//! decimal without leading zeros, `\n` is one line feed, and K is the volume's `peer_key`, 32 bytes.
//!
//! ## Requests
//! | request | meaning |
//! |---|---|
//! | `GET /v1/blobs/<etag>/<chunk>[?from=BYTES][&wait=MS[&live=1[&size=BYTES]]]` | chunk number `<chunk>` of the blob (40 or 64 hex), from byte `from` of the chunk on. With `wait`, if a transfer of it is under way here or all slots are taken, the answer may take so long (at most 30 s); with `live=1` it begins when the chunk's first bytes have come here; with `size`, the blob's, this node begins to fetch the chunk if nothing of it is here |
//! | `POST /v1/fill?wait=MS` | fetch a chunk from the Hub, for a node that may not. Body, at most 4 KiB: `{"blob":"sha256:<hex>"\|"git:<hex>","size":BYTES,"chunk":N}` |
//! | `GET /v1/ping` | says who answers. `{"slots":N}` |
//!
//! The query's parts come in any order, each once. Every request has
//!
//! * `Authorization: HFM1 <node> <to> <time> <nonce> <mac>`, one space between two parts: who asks and who is asked (16 hex
//!   each; `<to>` may be sixteen zeros for a ping), milliseconds since 1970 by the clock of the metadata server, 16 random
//!   bytes in hex, and the MAC in hex;
//! * `hfm-body: <hex>`, the BLAKE3 of its body, if it has one.
//!
//! The MAC is the keyed BLAKE3, under `derive_key("hfmount 2026 peer requests v1", K)`, of
//! `hfm1 request\n<method>\n<path and query>\n<node>\n<to>\n<time>\n<nonce>\n<hfm-body, or ->`.
//!
//! ## Answers
//! | status | meaning |
//! |---|---|
//! | 200 | the chunk's bytes, with `hfm-hash` (BLAKE3 of the whole chunk, hex) and `hfm-verified` (`1`: the blob was checked against its name; `0`: not yet), and without `hfm-hash` if it is still coming in (`live=1`): its end follows when it was checked against the cluster's record; or the fill is done; or the ping's JSON |
//! | 400 | the request makes no sense, or `from` lies beyond the chunk |
//! | 401 | not signed with K, a time more than 60 s off, or a request that was here before. Without a body, a MAC or a reason, whatever was asked; the connection is closed |
//! | 403 | the asker is put out |
//! | 404 | not held, and no transfer of it is under way (or the one that was has failed) |
//! | 421 | `<to>` is not this node: it was started anew |
//! | 500 | this node's disk failed |
//! | 502 | the fill failed: `{"kind":"access","message":"…"}` |
//! | 503 | busy, with `Retry-After`: `{"holders":[{"node":"<hex>","addr":"IP:PORT","zone":"…","slots":N}]}` have the chunk or are receiving it: ask them, with `wait` |
//! | 504 | the wait is over and the transfer is still under way: ask again |
//!
//! All but 401 carry `hfm-node`, `Content-Length`, `hfm-hash` if there is a body (its BLAKE3; of a chunk: the whole chunk's),
//! and `hfm-mac`: the keyed BLAKE3, under `derive_key("hfmount 2026 peer answers v1", K)`, in hex, of
//! `hfm1 answer\n<nonce of the request>\n<status>\n<hfm-node>\n<Content-Length>\n<hfm-hash, or ->\n<hfm-verified, or ->`.
//! A chunk's bytes have no MAC of their own: they are to be hashed. A body that ends early means that the node failed.
//!
//! ## Crowds
//! A chunk is sent to one node at one time, those counted that wait for it here. Others get 503 with that one, and ask it
//! with `wait`: it has the chunk's transfer under way, passes it on as it comes, and does the same, so that a crowd forms a
//! chain. Of every eight that were sent on one more is served here, and so is who comes back because it got nothing there;
//! three at most. Nodes that serve nobody do not count, nor does who takes nothing for a second. Who was told 504 keeps the
//! place for a second.
//!
//! # Bounds
//! Head of a request 8 KiB and 5 s, its body 4 KiB and 5 s, 60 s between requests, 20 s for taking 16 KiB of an answer; so
//! many connections, strangers dropped first and then those idle longest; so many chunks at one time, each with two pieces
//! of at most 512 KiB in memory. Nonces: 65,536.

mod accept;
mod answer;
mod body;
mod shelf;
mod stats;
mod uploads;
mod watched;

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::auth::{PeerKey, Window};
use super::limits::Limit;
use super::protocol::Directory;
use super::types::{NodeId, PeerOptions};
use crate::error::{Error, Kind, Result};
use accept::Table;
use stats::Counters;
use uploads::Uploads;

pub use shelf::{Shelf, Shelved, Waited};
pub use stats::ServerStats;
pub use watched::Patience;

/// The most bytes that are handed to a connection at once.
const MAX_PIECE: usize = 512 << 10;
/// The longest wait for a transfer, whatever the asker says.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// The longest fill for another node.
const LONGEST_FILL: Duration = Duration::from_secs(120);
/// How long the disk may take for a chunk's beginning, and for a piece.
const LONGEST_LOOK: Duration = Duration::from_secs(20);
/// What is under way when the server stops may go on so long.
const GRACE: Duration = Duration::from_secs(2);

/// How a server is to behave.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// `None`: all addresses of the machine, a free port.
    pub listen: Option<SocketAddr>,
    /// Chunks that are sent at one time.
    pub slots: u32,
    /// For all uploads together.
    pub limit: Option<Arc<Limit>>,
    /// At most so many connections at one time.
    pub connections: usize,
    pub patience: Patience,
}

impl ServerOptions {
    /// With `slots` upload slots, and no limit on bytes a second.
    #[must_use]
    pub fn new(listen: Option<SocketAddr>, slots: u32) -> Self {
        let connections = 4 * slots as usize + 64;
        ServerOptions { listen, slots: slots.max(1), limit: None, connections, patience: Patience::default() }
    }
}

impl From<&PeerOptions> for ServerOptions {
    fn from(options: &PeerOptions) -> Self {
        let limit = options.upload_limit.map(|rate| Arc::new(Limit::new(rate)));
        ServerOptions { limit, ..Self::new(options.listen, options.upload_slots) }
    }
}

/// A server at work. Dropping it cuts all connections.
#[derive(Debug)]
pub struct Server {
    addr: SocketAddr,
    inner: Arc<Inner>,
    /// No more requests are taken.
    stopping: CancellationToken,
    /// Connections are cut.
    stopped: CancellationToken,
    tasks: TaskTracker,
}

#[derive(Debug)]
struct Inner {
    node: NodeId,
    key: PeerKey,
    shelf: Weak<dyn Shelf>,
    directory: Arc<dyn Directory>,
    window: Window,
    uploads: Arc<Uploads>,
    fills: Semaphore,
    limit: Option<Arc<Limit>>,
    patience: Patience,
    slots: u32,
    counters: Arc<Counters>,
    connections: Table,
}

impl Server {
    /// Begins to serve what `shelf` holds, in the name of `node`. Ends with the shelf: once that is gone nothing is held.
    ///
    /// # Errors
    /// [`Kind::Config`] if the address cannot be listened on.
    pub async fn start(
        options: ServerOptions,
        node: NodeId,
        key: PeerKey,
        shelf: Weak<dyn Shelf>,
        directory: Arc<dyn Directory>,
    ) -> Result<Self> {
        let listener = listen(options.listen).await?;
        let addr = listener
            .local_addr()
            .map_err(|e| Error::with_source(Kind::Config, "the address that peers are served at", e))?;
        let inner = Arc::new(Inner {
            node,
            key,
            shelf,
            directory,
            window: Window::default(),
            uploads: Arc::new(Uploads::new(options.slots)),
            fills: Semaphore::new(options.slots as usize),
            limit: options.limit,
            patience: options.patience,
            slots: options.slots,
            counters: Arc::default(),
            connections: Table::new(options.connections.max(1)),
        });
        let server = Server {
            addr,
            inner: inner.clone(),
            stopping: CancellationToken::new(),
            stopped: CancellationToken::new(),
            tasks: TaskTracker::new(),
        };
        let (stopping, stopped) = (server.stopping.clone(), server.stopped.clone());
        server.tasks.spawn(accept::run(inner, listener, stopping, stopped, server.tasks.clone()));
        Ok(server)
    }

    /// Where it listens: the real port, and an unspecified address if it listens on all.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Upload slots that are free now.
    #[must_use]
    pub fn slots_free(&self) -> u32 {
        self.inner.uploads.free()
    }

    /// What it did so far.
    #[must_use]
    pub fn stats(&self) -> ServerStats {
        ServerStats {
            connections: self.inner.connections.len() as u64,
            slots_free: self.slots_free(),
            slots: self.inner.slots,
            ..self.inner.counters.show()
        }
    }

    /// Bytes of chunks that nodes were sent; of the 4096 that asked last.
    #[must_use]
    pub fn sent_to(&self) -> Vec<(NodeId, u64)> {
        self.inner.counters.sent_to()
    }

    /// Takes no more requests, lets what is being sent go on for two seconds, then cuts it.
    pub async fn stop(self) {
        self.stopping.cancel();
        self.tasks.close();
        if tokio::time::timeout(GRACE, self.tasks.wait()).await.is_err() {
            self.stopped.cancel();
            // What is cut ends at its next step.
            let _ = tokio::time::timeout(GRACE, self.tasks.wait()).await;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stopping.cancel();
        self.stopped.cancel();
    }
}

async fn listen(addr: Option<SocketAddr>) -> Result<TcpListener> {
    let bad =
        |addr: SocketAddr, e| Error::with_source(Kind::Config, format!("listening for peers on {addr}"), e);
    if let Some(addr) = addr {
        return TcpListener::bind(addr).await.map_err(|e| bad(addr, e));
    }
    // A machine without IPv6 refuses the first.
    if let Ok(listener) = TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0))).await {
        return Ok(listener);
    }
    let addr = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    TcpListener::bind(addr).await.map_err(|e| bad(addr, e))
}
