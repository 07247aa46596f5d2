//! The other nodes, as the store of chunks knows them: who has what, who fetches what, and the way to them.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lru::LruCache;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::adverts::Adverts;
use super::tracker::{Lock, Need, Tracker, bitmap};
use super::{Claim, Claimed, Client, Holder, Leases, NodeId, PeerOptions, Registry, Token};
use crate::error::Result;
use crate::types::BlobId;

/// Blobs that this node checks at a time, at most: what is forgotten is asked for again.
const MAX_VERIFYING: NonZeroUsize = NonZeroUsize::new(256).expect("not zero");
/// Chunks that are tried again as this node's; the others wait until the minute is over.
const MAX_STORING: NonZeroUsize = NonZeroUsize::new(1024).expect("not zero");
/// Nodes that are remembered to have given nothing, and for how long.
const MAX_SILENT: NonZeroUsize = NonZeroUsize::new(1024).expect("not zero");
const SILENT_FOR: Duration = Duration::from_secs(60);
/// How long a node may be silent about a blob that it checks, or a chunk that it puts into the bucket.
const VERIFY_TTL: Duration = Duration::from_secs(30);
const STORE_TTL: Duration = Duration::from_secs(60);

/// The other nodes of the volume. Nothing here is needed for correctness: all of it may fail or be forgotten.
#[derive(Debug)]
pub struct Peers {
    tracker: Tracker,
    registry: Arc<Registry>,
    leases: Arc<Leases>,
    client: Client,
    options: PeerOptions,
    adverts: Arc<Adverts>,
    verifying: Mutex<LruCache<BlobId, (Instant, Token)>>,
    /// Chunks that this node puts into the bucket, or did lately.
    storing: Mutex<LruCache<(BlobId, u64), Token>>,
    /// Nodes that gave nothing though they should, and when.
    silent: Mutex<LruCache<NodeId, Instant>>,
    runtime: Handle,
    task: JoinHandle<()>,
}

impl Drop for Peers {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Peers {
    /// # Panics
    /// Outside a tokio runtime.
    #[must_use]
    pub fn new(
        tracker: Tracker,
        registry: Arc<Registry>,
        leases: Arc<Leases>,
        client: Client,
        options: PeerOptions,
    ) -> Arc<Self> {
        let adverts = Arc::new(Adverts::new(options.role.serves()));
        let task = tokio::spawn(adverts.clone().run(tracker.clone()));
        Arc::new(Peers {
            tracker,
            registry,
            leases,
            client,
            options,
            adverts,
            verifying: Mutex::new(LruCache::new(MAX_VERIFYING)),
            storing: Mutex::new(LruCache::new(MAX_STORING)),
            silent: Mutex::new(LruCache::new(MAX_SILENT)),
            runtime: Handle::current(),
            task,
        })
    }

    /// This node.
    #[must_use]
    pub fn me(&self) -> NodeId {
        self.tracker.me()
    }

    #[must_use]
    pub fn options(&self) -> &PeerOptions {
        &self.options
    }

    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    #[must_use]
    pub fn leases(&self) -> &Leases {
        &self.leases
    }

    #[must_use]
    pub fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    #[must_use]
    pub fn tracker(&self) -> &Tracker {
        &self.tracker
    }

    /// Asks who has some chunks; leases that are granted are kept up until [`Peers::landed`] or [`Peers::give_up`].
    pub async fn claim(&self, claim: &Claim) -> Result<Claimed> {
        self.leases.claim(claim).await
    }

    /// A chunk is on the disk here: the others learn of it within moments, at once if they wait for it.
    pub fn landed(&self, blob: BlobId, idx: u64) {
        self.adverts.add(blob, idx, self.leases.done(blob, idx));
    }

    /// Whichever of these chunks this node has a lease of may be fetched by others.
    pub fn give_up(&self, blob: BlobId, run: Range<u64>) {
        let left: Vec<_> = run.filter_map(|idx| Some((idx, self.leases.done(blob, idx)?))).collect();
        if left.is_empty() {
            return;
        }
        let tracker = self.tracker.clone();
        self.runtime.spawn(async move {
            if let Err(e) = tracker.release(blob, &left).await {
                tracing::debug!(%blob, error = %e, "leases end by themselves");
            }
        });
    }

    /// These chunks, or all, are about to leave the disk.
    pub async fn withdraw(&self, blob: BlobId, chunks: Option<Range<u64>>) {
        // What is still to be told of them would follow otherwise.
        self.adverts.forget(blob, chunks.as_ref());
        let gone = match chunks {
            Some(run) => self.tracker.withdraw(blob, &run.collect::<Vec<_>>()).await,
            None => self.tracker.withdraw_all(blob).await,
        };
        if let Err(e) = gone {
            tracing::debug!(%blob, error = %e, "an advertisement stays until somebody asks in vain");
        }
    }

    /// Tells that these chunks are on the disk here.
    pub async fn tell(&self, blob: BlobId, runs: impl IntoIterator<Item = Range<u64>>) -> Result<()> {
        self.tracker.advertise(&[(blob, bitmap(runs.into_iter().flatten()))]).await
    }

    /// The same of several blobs at once, each of so many chunks, all of which are here.
    pub async fn tell_whole(&self, blobs: impl IntoIterator<Item = (BlobId, u64)>) -> Result<()> {
        let held: Vec<_> = blobs.into_iter().map(|(blob, chunks)| (blob, bitmap(0..chunks))).collect();
        self.tracker.advertise(&held).await
    }

    /// Changes when all that is held here is to be told again.
    #[must_use]
    pub fn to_advertise(&self) -> watch::Receiver<u64> {
        self.registry.forgotten()
    }

    /// A chunk came from a node with bytes that differ from what is recorded; finally so if the blob is verified.
    pub async fn gave_wrong(&self, blob: BlobId, idx: u64, verified: bool) {
        let nodes = self.client.wrong(blob, idx);
        for node in &nodes {
            self.not_held(blob, idx, *node).await;
        }
        // If they were several it is not known which.
        if let ([node], true) = (&nodes[..], verified)
            && let Err(e) = self.registry.report(*node, blob, idx).await
        {
            tracing::debug!(%node, error = %e, "not reported");
        }
    }

    /// A node does not have what is said of it.
    pub async fn not_held(&self, blob: BlobId, idx: u64, node: NodeId) {
        if let Err(e) = self.tracker.not_held(blob, idx, node).await {
            tracing::debug!(%blob, error = %e, "a wrong advertisement stays");
        }
    }

    /// The recorded hash of a chunk was wrong: what the nodes hold of it is not offered any more.
    pub async fn was_wrong(&self, blob: BlobId, idx: u64) {
        match self.tracker.holdings(blob).await {
            Ok(holders) => {
                for held in holders {
                    self.not_held(blob, idx, held.holder.node).await;
                }
            }
            Err(e) => tracing::debug!(%blob, error = %e, "wrong advertisements stay"),
        }
    }

    /// Other nodes that may call the Hub, in another order for each chunk: not all work is one node's.
    #[must_use]
    pub fn who_reach_the_hub(&self, blob: BlobId, idx: u64) -> Vec<Holder> {
        self.registry.live(blob, idx, |node| node.hub)
    }

    /// Other nodes that were alive when the tracker last answered.
    #[must_use]
    pub fn last_seen(&self, blob: BlobId, idx: u64) -> Vec<Holder> {
        self.registry.live(blob, idx, |node| node.role.serves())
    }

    /// These nodes gave nothing for long, though they live and hold what was asked for: for a while they are not waited for.
    pub fn gave_nothing(&self, nodes: &[Holder]) {
        let mut silent = lock(&self.silent);
        nodes.iter().for_each(|holder| _ = silent.put(holder.node, Instant::now()));
    }

    /// Whether all of these are such nodes.
    #[must_use]
    pub fn give_nothing(&self, nodes: &[Holder]) -> bool {
        let mut silent = lock(&self.silent);
        let mut is_silent = |node| silent.get(&node).is_some_and(|at| at.elapsed() < SILENT_FOR);
        !nodes.is_empty() && nodes.iter().all(|holder| is_silent(holder.node))
    }

    /// No node is there that may call the Hub: the next one to come shall fetch this.
    pub async fn need(&self, blob: BlobId, size: u64, idx: u64) {
        if let Err(e) = self.tracker.need(&Need { blob, size, chunks: vec![idx] }).await {
            tracing::debug!(%blob, error = %e, "nobody is told what is needed");
        }
    }

    /// Whether this node is the one to put the chunk into the bucket; for a minute, and again when it tries again. Without the
    /// tracker everybody is.
    pub async fn may_store(&self, blob: BlobId, idx: u64) -> bool {
        let name = Lock::named(&format!("store {blob} {idx}"));
        let before = lock(&self.storing).pop(&(blob, idx));
        let token = match before {
            Some(token) => match self.tracker.relock(&name, token, STORE_TTL).await {
                Ok(true) => Ok(Some(token)),
                Ok(false) => self.tracker.lock(&name, STORE_TTL).await,
                Err(e) => Err(e),
            },
            None => self.tracker.lock(&name, STORE_TTL).await,
        };
        match token {
            Ok(Some(token)) => {
                lock(&self.storing).put((blob, idx), token);
                true
            }
            Ok(None) => false,
            Err(_) => true,
        }
    }

    /// Whether this node is the one to check the blob as a whole. Without the tracker everybody is.
    pub async fn may_verify(&self, blob: BlobId) -> bool {
        let (now, name) = (Instant::now(), Lock::verify(blob));
        let mine = lock(&self.verifying).get(&blob).copied();
        let token = match mine {
            Some((at, _)) if now.duration_since(at) < VERIFY_TTL / 3 => return true,
            Some((_, token)) => match self.tracker.relock(&name, token, VERIFY_TTL).await {
                Ok(true) => Some(token),
                Ok(false) => None,
                Err(_) => return true,
            },
            None => match self.tracker.lock(&name, VERIFY_TTL).await {
                Ok(token) => token,
                Err(_) => return true,
            },
        };
        match token {
            Some(token) => _ = lock(&self.verifying).put(blob, (now, token)),
            None => _ = lock(&self.verifying).pop(&blob),
        }
        token.is_some()
    }

    /// Says goodbye: leases end, and nobody asks here any more.
    pub async fn leave(&self) {
        self.adverts.flush(&self.tracker).await;
        self.leases.end().await;
        self.registry.leave().await;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
