//! Who is there, as this node last heard: its own heartbeats, and the list of the others that every one of them brings back.
//!
//! While Redis is away the list stays: those who were there then are asked still.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};

use super::tracker::{HubBucket, Node, Roster, State, Target, Tracker};
use super::types::{Advertise, Beat, Holder, NodeId, NodeInfo};
use crate::error::Result;
use crate::types::Timestamp;

/// How long a node that was added by hand may take to say who it is, and how many are asked at most.
const PING: Duration = Duration::from_secs(2);
const PINGED: usize = 64;
/// After so many of its heartbeats without an answer such a node is not asked for chunks.
const SILENT_FOR: u32 = 3;
/// How many nodes are distrusted at one time.
const DISTRUSTED: usize = 1024;

/// Asks a node that Redis does not know who it is.
#[async_trait]
pub trait Ping: Send + Sync + 'static {
    /// What the node at `place` says of itself. Bounded by the caller.
    async fn ping(&self, place: &Advertise) -> Result<NodeInfo>;
}

/// The nodes of a volume, as one of them sees them.
pub struct Registry {
    tracker: Tracker,
    ping: Option<Arc<dyn Ping>>,
    view: Mutex<View>,
    /// Bytes from them were wrong, here.
    distrusted: Mutex<HashMap<NodeId, Instant>>,
    /// Counts how often all possession is to be told anew.
    advertise: watch::Sender<u64>,
    me: Mutex<Option<Me>>,
    task: Mutex<Option<JoinHandle<()>>>,
}

/// What this node says of itself.
#[derive(Clone)]
struct Me {
    info: NodeInfo,
    beat: Arc<dyn Fn() -> Beat + Send + Sync>,
}

/// What was heard last.
struct View {
    roster: Arc<Roster>,
    /// When the answer came that brought it. `None`: none came yet.
    heard: Option<Instant>,
    began: Instant,
    incarnation: Option<String>,
    /// Nodes that were added by hand and said who they are: what they said, and when.
    added: HashMap<Advertise, (NodeInfo, Instant)>,
}

impl Registry {
    /// Knows nobody yet and says nothing: see [`Registry::start`].
    #[must_use]
    pub fn new(tracker: Tracker, ping: Option<Arc<dyn Ping>>) -> Arc<Self> {
        Arc::new(Registry {
            tracker,
            ping,
            view: Mutex::new(View {
                roster: Arc::default(),
                heard: None,
                began: Instant::now(),
                incarnation: None,
                added: HashMap::new(),
            }),
            distrusted: Mutex::default(),
            advertise: watch::Sender::new(0),
            me: Mutex::default(),
            task: Mutex::default(),
        })
    }

    /// Sends the first heartbeat, and from then on one every few seconds, until [`Registry::stop`]. `beat` is asked for each.
    /// A first one that fails is logged: the next may come through.
    pub async fn start(self: &Arc<Self>, info: NodeInfo, beat: Arc<dyn Fn() -> Beat + Send + Sync>) {
        let forgotten = self.tracker.forgotten();
        *lock(&self.me) = Some(Me { info, beat });
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

    /// No heartbeat follows, and the others are told so.
    ///
    /// # Errors
    /// If they could not be told: then they find out when the last heartbeat has run out.
    pub async fn stop(&self) -> Result<()> {
        if let Some(task) = lock(&self.task).take() {
            task.abort();
            // What it was about to say must not follow the farewell.
            let _ = task.await;
        }
        *lock(&self.me) = None;
        self.tracker.leave().await
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
        self.advertise.send_modify(|times| *times += 1);
    }

    async fn ask_added(&self) {
        let Some(ping) = &self.ping else { return };
        let roster = self.roster();
        let known: HashSet<SocketAddr> = roster.nodes.iter().map(|node| node.info.addr).collect();
        // Those that have a heartbeat need not be asked.
        let unknown = |place: &&Advertise| !place.to_string().parse().is_ok_and(|addr| known.contains(&addr));
        let mut asked: FuturesUnordered<_> = roster
            .added
            .iter()
            .filter(unknown)
            .take(PINGED)
            .map(|place| async move { (place, timeout(PING, ping.ping(place)).await) })
            .collect();
        while let Some((place, answer)) = asked.next().await {
            match answer {
                Ok(Ok(info)) => {
                    lock(&self.view).added.insert(place.clone(), (info, Instant::now()));
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

    /// Changes when all that this node holds is to be told again ([`Tracker::advertise`]): Redis lost its data, or was another
    /// one for a moment, or the time is half over after which it forgets.
    #[must_use]
    pub fn to_advertise(&self) -> watch::Receiver<u64> {
        self.advertise.subscribe()
    }

    /// The other nodes that may be asked: alive when last heard of, serving, blocked neither by all nor by this one.
    /// Those that were added by hand and answer are among them.
    #[must_use]
    pub fn live(&self) -> Vec<Holder> {
        self.usable().filter(|node| node.info.role.serves()).map(|node| node.holder()).collect()
    }

    /// Of those, the ones that may call the Hub.
    #[must_use]
    pub fn with_hub(&self) -> Vec<Holder> {
        self.usable()
            .filter(|node| node.info.hub && node.info.role.serves())
            .map(|node| node.holder())
            .collect()
    }

    /// Nodes that were added by hand, have no heartbeat and answer: nothing says what they hold, so they are asked.
    #[must_use]
    pub fn added(&self) -> Vec<Holder> {
        let known: HashSet<NodeId> = self.roster().nodes.iter().map(|node| node.info.id).collect();
        self.usable().filter(|node| !known.contains(&node.info.id)).map(|node| node.holder()).collect()
    }

    /// A node by its id, if it may be asked.
    #[must_use]
    pub fn node(&self, id: NodeId) -> Option<Holder> {
        self.usable().find(|node| node.info.id == id).map(|node| node.holder())
    }

    fn usable(&self) -> impl Iterator<Item = Seen> {
        let mut seen: Vec<Seen> = Vec::new();
        let silent = self.tracker.timing().beat * SILENT_FOR;
        {
            let view = lock(&self.view);
            let active = view.roster.nodes.iter().filter(|node| node.state == State::Active);
            seen.extend(active.map(|node| Seen { info: node.info.clone(), beat: node.beat.unwrap_or_default() }));
            let answering = view.added.values().filter(|(_, when)| when.elapsed() <= silent);
            for (info, _) in answering {
                if !view.roster.nodes.iter().any(|node| node.info.id == info.id) {
                    seen.push(Seen { info: info.clone(), beat: Beat::default() });
                }
            }
        }
        let me = self.tracker.me();
        seen.retain(|node| node.info.id != me && !self.is_blocked(node.info.id, Some(node.info.addr)));
        seen.into_iter()
    }

    /// Whether nobody should deal with a node: blocked by all, or distrusted by this one.
    #[must_use]
    pub fn is_blocked(&self, id: NodeId, addr: Option<SocketAddr>) -> bool {
        if lock(&self.distrusted).get(&id).is_some_and(|until| *until > Instant::now()) {
            return true;
        }
        let roster = self.roster();
        if roster.blocks.is_empty() {
            return false;
        }
        let addr = addr.or_else(|| find(&roster, id).map(|node| node.info.addr));
        let now = self.server_time();
        roster.blocks.iter().filter(|block| block.until > now).any(|block| match block.target {
            Target::Node(node) => node == id,
            Target::Addr(blocked) => Some(blocked) == addr,
        })
    }

    /// Bytes of a node were not those of a hash: it is not asked for `time`. If the hash is `verified`, that is if the whole
    /// blob was checked, it is reported too: enough such reports block it everywhere.
    pub async fn wrong_bytes(&self, node: NodeId, verified: bool, time: Duration) -> Result<()> {
        {
            let (mut distrusted, now) = (lock(&self.distrusted), Instant::now());
            if distrusted.len() >= DISTRUSTED {
                distrusted.retain(|_, until| *until > now);
            }
            if distrusted.len() < DISTRUSTED {
                distrusted.insert(node, now + time);
            }
        }
        if verified && self.tracker.report(node).await? {
            tracing::error!("node {node} is blocked: several nodes got wrong bytes from it");
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

struct Seen {
    info: NodeInfo,
    beat: Beat,
}

impl Seen {
    fn holder(&self) -> Holder {
        let Seen { info, beat } = self;
        Holder { node: info.id, addr: info.addr, zone: info.zone.clone(), slots_free: beat.slots_free }
    }
}

fn find(roster: &Roster, id: NodeId) -> Option<&Node> {
    let at = roster.nodes.binary_search_by_key(&id, |node| node.info.id).ok()?;
    roster.nodes.get(at)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
