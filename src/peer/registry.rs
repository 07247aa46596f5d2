//! Who is there, as this node last heard: its own heartbeats, and the list of the others that every one of them brings back.
//!
//! While Redis is away the list stays: those who were there then are asked still.

mod directory;

use std::collections::{HashMap, HashSet};
use std::hash::{Hash, Hasher};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::{FuturesUnordered, StreamExt};
use lru::LruCache;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};

use super::client::Client;
use super::tracker::{HubBucket, Node, Roster, State, Target, Tracker};
use super::types::{Advertise, Beat, Holder, NodeId, NodeInfo};
use crate::error::{Error, Kind, Result};
use crate::types::{BlobId, Timestamp};

/// How long a node that was added by hand may take to say who it is, and how many are asked at most.
const PING: Duration = Duration::from_secs(2);
const PINGED: usize = 64;
/// After so many of its heartbeats without an answer such a node is not asked for chunks.
const SILENT_FOR: u32 = 3;

/// Asks a node that Redis does not know who it is. Bounded in time.
#[async_trait]
pub trait Ping: Send + Sync + 'static {
    async fn ping(&self, addr: SocketAddr) -> Result<NodeId>;
}

#[async_trait]
impl Ping for Client {
    async fn ping(&self, addr: SocketAddr) -> Result<NodeId> {
        Client::ping(self, addr).await
    }
}

/// The nodes of a volume, as one of them sees them.
pub struct Registry {
    tracker: Tracker,
    view: Mutex<View>,
    /// Counts how often all possession is to be told anew.
    forgotten: watch::Sender<u64>,
    me: Mutex<Option<Me>>,
    /// Nodes at whose place nobody listens, and when the tracker was told.
    refused: Mutex<LruCache<NodeId, Instant>>,
    task: Mutex<Option<JoinHandle<()>>>,
}

/// What this node says of itself, and how it asks those whom Redis does not know.
#[derive(Clone)]
struct Me {
    info: NodeInfo,
    beat: Arc<dyn Fn() -> Beat + Send + Sync>,
    ping: Option<Arc<dyn Ping>>,
}

/// What was heard last.
struct View {
    roster: Arc<Roster>,
    /// When the answer came that brought it. `None`: none came yet.
    heard: Option<Instant>,
    began: Instant,
    incarnation: Option<String>,
    /// Nodes that were added by hand and said who they are, and when.
    added: HashMap<Advertise, (Holder, Instant)>,
}

impl Registry {
    /// Knows nobody yet and says nothing: see [`Registry::start`].
    #[must_use]
    pub fn new(tracker: Tracker) -> Arc<Self> {
        Arc::new(Registry {
            tracker,
            view: Mutex::new(View {
                roster: Arc::default(),
                heard: None,
                began: Instant::now(),
                incarnation: None,
                added: HashMap::new(),
            }),
            forgotten: watch::Sender::new(0),
            me: Mutex::default(),
            refused: Mutex::new(LruCache::new(directory::MOST_REFUSED)),
            task: Mutex::default(),
        })
    }

    /// Sends the first heartbeat, and from then on one every few seconds, until [`Registry::leave`]. `beat` is asked for
    /// each; `ping` is used for nodes that were added by hand. A first one that fails is logged: the next may come through.
    pub async fn start(
        self: &Arc<Self>,
        info: NodeInfo,
        beat: Arc<dyn Fn() -> Beat + Send + Sync>,
        ping: Option<Arc<dyn Ping>>,
    ) {
        let forgotten = self.tracker.forgotten();
        *lock(&self.me) = Some(Me { info, beat, ping });
        if let Err(e) = self.refresh().await {
            tracing::warn!("the other nodes are not known yet: {e}");
        }
        let (weak, timing) = (Arc::downgrade(self), self.tracker.timing());
        let task = tokio::spawn(async move {
            let mut forgotten = forgotten;
            let mut ticks = interval(timing.beat);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            // That was the first heartbeat.
            ticks.tick().await;
            let mut again = Instant::now() + timing.possession / 2;
            loop {
                tokio::select! {
                    _ = ticks.tick() => {}
                    Ok(()) = forgotten.changed() => {
                        let Some(registry) = weak.upgrade() else { return };
                        tracing::info!("Redis has forgotten this node: it tells again what it holds");
                        registry.tell_again();
                        continue;
                    }
                    // Before it runs out.
                    () = sleep_until(again) => {
                        again = Instant::now() + timing.possession / 2;
                        let Some(registry) = weak.upgrade() else { return };
                        registry.tell_again();
                        continue;
                    }
                }
                let Some(registry) = weak.upgrade() else { return };
                if let Err(e) = registry.refresh().await {
                    tracing::debug!("{e}");
                }
                registry.ask_added().await;
            }
        });
        if let Some(before) = lock(&self.task).replace(task) {
            before.abort();
        }
    }

    /// No heartbeat follows, and the others are told so; if they cannot be told they find out when the last one has run out.
    pub async fn leave(&self) {
        let task = lock(&self.task).take();
        if let Some(task) = task {
            task.abort();
            // What it was about to say must not follow the farewell.
            let _ = task.await;
        }
        *lock(&self.me) = None;
        if let Err(e) = self.tracker.leave().await {
            tracing::debug!("the other nodes were not told of the end: {e}");
        }
    }

    /// Asks for the list now: with a heartbeat, if this node sends them.
    pub async fn refresh(&self) -> Result<()> {
        let me = lock(&self.me).clone();
        let roster = match me {
            Some(me) => self.tracker.beat(&me.info, &(me.beat)()).await?,
            None => self.tracker.nodes().await?,
        };
        let (known, incarnation) = (roster.known, self.tracker.scripts().incarnation());
        let (before, restarted) = {
            let mut view = lock(&self.view);
            let restarted =
                view.heard.is_some() && view.incarnation.is_some() && view.incarnation != incarnation;
            view.heard = Some(Instant::now());
            view.incarnation = incarnation;
            view.added.retain(|place, _| roster.added.contains(place));
            (std::mem::replace(&mut view.roster, Arc::new(roster)), restarted)
        };
        self.tell_blocks(&before);
        // It has its data, but maybe not the latest. Without them it is the tracker that noticed.
        if restarted && known {
            self.tell_again();
        }
        Ok(())
    }

    /// The operator should know who is blocked.
    fn tell_blocks(&self, before: &Roster) {
        let now = self.roster();
        let told: HashSet<&Target> = before.blocks.iter().map(|block| &block.target).collect();
        for block in now.blocks.iter().filter(|block| !told.contains(&block.target)) {
            if block.target == Target::Node(self.tracker.me()) {
                tracing::error!("this node is blocked by the others: {}", block.why);
            } else {
                tracing::warn!("node {} is blocked: {}", block.target, block.why);
            }
        }
    }

    fn tell_again(&self) {
        self.forgotten.send_modify(|times| *times += 1);
    }

    async fn ask_added(&self) {
        let Some(ping) = lock(&self.me).as_ref().and_then(|me| me.ping.clone()) else { return };
        let (roster, ping) = (self.roster(), &*ping);
        let known: HashSet<String> = roster.nodes.iter().map(|node| node.info.addr.to_string()).collect();
        let mut asked: FuturesUnordered<_> = roster
            .added
            .iter()
            // Those that have a heartbeat need not be asked.
            .filter(|place| !known.contains(&place.to_string()))
            .take(PINGED)
            .map(|place| async move { (place, timeout(PING, who_is_at(ping, place)).await) })
            .collect();
        while let Some((place, answer)) = asked.next().await {
            match answer {
                Ok(Ok(holder)) => {
                    lock(&self.view).added.insert(place.clone(), (holder, Instant::now()));
                }
                Ok(Err(e)) => tracing::debug!("node {place}: {e}"),
                Err(_) => tracing::debug!("node {place} does not answer"),
            }
        }
    }

    /// All that was heard last.
    #[must_use]
    pub fn roster(&self) -> Arc<Roster> {
        lock(&self.view).roster.clone()
    }

    /// This node.
    #[must_use]
    pub fn me(&self) -> NodeId {
        self.tracker.me()
    }

    /// Changes when all that this node holds is to be told again ([`Tracker::advertise`]): Redis lost its data, or was another
    /// one for a moment, or the time is half over after which it forgets.
    #[must_use]
    pub fn forgotten(&self) -> watch::Receiver<u64> {
        self.forgotten.subscribe()
    }

    /// The other nodes that may be asked and are as `is` says: alive when last heard of, serving, not blocked. Each node that
    /// asks, and each chunk that it asks for, has them in another order.
    pub fn live(&self, blob: BlobId, idx: u64, is: impl Fn(&NodeInfo) -> bool) -> Vec<Holder> {
        let roster = self.roster();
        let mut order = std::hash::DefaultHasher::new();
        (self.me(), blob, idx).hash(&mut order);
        let order = order.finish();
        let usable = roster.nodes.iter().filter(|node| self.may_be_asked(&roster, node) && is(&node.info));
        let mut live: Vec<Holder> = usable.map(holder).collect();
        live.sort_by_cached_key(|holder| {
            let mut rank = std::hash::DefaultHasher::new();
            (order, holder.node).hash(&mut rank);
            rank.finish()
        });
        live
    }

    fn may_be_asked(&self, roster: &Roster, node: &Node) -> bool {
        node.info.id != self.me()
            && node.info.role.serves()
            && match &node.state {
                State::Active => true,
                State::Stale => false,
                // The list is older than the end of it.
                State::Blocked(_) => {
                    node.beat.is_some() && !self.blocks(roster, node.info.id, node.info.addr)
                }
            }
    }

    /// Nodes that were added by hand, have no heartbeat and answer: nothing says what they hold, so they are asked.
    #[must_use]
    pub fn added(&self) -> Vec<Holder> {
        let silent = self.tracker.timing().beat * SILENT_FOR;
        let (roster, mut added) = {
            let view = lock(&self.view);
            let answering = view.added.values().filter(|(_, when)| when.elapsed() <= silent);
            (view.roster.clone(), answering.map(|(holder, _)| holder.clone()).collect::<Vec<_>>())
        };
        added.retain(|holder| {
            holder.node != self.me()
                && find(&roster, holder.node).is_none()
                && !self.blocks(&roster, holder.node, holder.addr)
        });
        added.sort_unstable_by_key(|holder| holder.node);
        added.dedup_by_key(|holder| holder.node);
        added
    }

    fn blocks(&self, roster: &Roster, id: NodeId, addr: SocketAddr) -> bool {
        let now = self.server_time();
        roster.blocks.iter().any(|block| {
            let meant = match block.target {
                Target::Node(node) => node == id,
                Target::Addr(blocked) => blocked == addr,
            };
            meant && block.until > now
        })
    }

    /// Bytes of a node were not those of a *verified* hash. Three nodes that say so block it everywhere.
    pub async fn report(&self, node: NodeId, blob: BlobId, idx: u64) -> Result<()> {
        tracing::warn!("node {node} gave wrong bytes of blob {blob} chunk {idx}");
        if self.tracker.report(node).await? {
            self.refresh().await?;
        }
        Ok(())
    }

    /// The server's clock, as far as it is known: it goes on from the last answer by this machine's monotonic clock. Before
    /// the first answer it is this machine's clock.
    #[must_use]
    pub fn server_time(&self) -> Timestamp {
        let view = lock(&self.view);
        let Some(heard) = view.heard else { return Timestamp::now() };
        let since = i64::try_from(heard.elapsed().as_nanos()).unwrap_or(i64::MAX);
        Timestamp(view.roster.server_time.0.saturating_add(since))
    }

    /// For how long heartbeats have not been answered, if that is longer than it should be.
    #[must_use]
    pub fn away(&self) -> Option<Duration> {
        let view = lock(&self.view);
        let silent = view.heard.unwrap_or(view.began).elapsed();
        (silent > self.tracker.timing().beat * 2).then_some(silent)
    }

    /// How long the Hub wants to be left alone still, as of the last heartbeat. `None`: it may be asked.
    #[must_use]
    pub fn paused(&self, host: &str, bucket: HubBucket) -> Option<Duration> {
        let view = lock(&self.view);
        let since = view.heard?.elapsed();
        let pause = view.roster.pauses.iter().find(|(h, b, _)| h == host && *b == bucket)?;
        pause.2.checked_sub(since).filter(|left| !left.is_zero())
    }

    /// How many blobs nodes wait for that may not call the Hub, as of the last heartbeat.
    #[must_use]
    pub fn needs(&self) -> u64 {
        lock(&self.view).roster.needs
    }
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").field("tracker", &self.tracker).finish_non_exhaustive()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        if let Some(task) = lock(&self.task).take() {
            task.abort();
        }
    }
}

async fn who_is_at(ping: &dyn Ping, place: &Advertise) -> Result<Holder> {
    let found = || format!("node {place}");
    let port = place.port.ok_or_else(|| Error::new(Kind::Invalid, found()))?;
    let mut last = Error::new(Kind::NotFound, found());
    let addrs = tokio::net::lookup_host((place.host.as_str(), port)).await;
    for addr in addrs.map_err(|e| Error::with_source(Kind::Unavailable, found(), e))? {
        match ping.ping(addr).await {
            // How busy it is nobody says.
            Ok(node) => return Ok(Holder { node, addr, zone: String::new(), slots_free: 1 }),
            Err(e) => last = e,
        }
    }
    Err(last)
}

fn holder(node: &Node) -> Holder {
    Holder {
        node: node.info.id,
        addr: node.info.addr,
        zone: node.info.zone.clone(),
        slots_free: node.beat.map_or(0, |beat| beat.slots_free),
    }
}

fn find(roster: &Roster, id: NodeId) -> Option<&Node> {
    let at = roster.nodes.binary_search_by_key(&id, |node| node.info.id).ok()?;
    roster.nodes.get(at)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
