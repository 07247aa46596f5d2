//! What the cases are written with.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hfmount::meta::kv::Kv;
use hfmount::meta::redis::{RedisAddress, RedisKv, RedisOptions};
use hfmount::peer::tracker::Tracker;
use hfmount::peer::{Beat, Claim, Decision, NodeId, NodeInfo, PeerOptions, Role, Timing, Token};
use hfmount::types::{BlobId, Timestamp};

use crate::redis_server::RedisServer;

/// Times short enough to wait for, and long enough for a busy machine.
pub fn short() -> Timing {
    Timing { beat: Duration::from_millis(300), ttl: Duration::from_millis(1500), ..Timing::default() }
}

/// A server that keeps nothing, for a test of its own.
pub fn server() -> RedisServer {
    RedisServer::start_with(&[])
}

pub async fn engine(server: &RedisServer) -> Arc<RedisKv> {
    let address = server.address();
    let address = RedisAddress::Tcp { host: address.ip().to_string(), port: address.port(), tls: false };
    RedisKv::open(RedisOptions::new(address)).await.expect("open")
}

/// A node without a server: its address is made of its number.
#[derive(Clone, Debug)]
pub struct Node {
    pub tracker: Tracker,
    pub info: NodeInfo,
    pub kv: Arc<RedisKv>,
}

impl Node {
    pub async fn new(server: &RedisServer, number: u8, options: &PeerOptions) -> Self {
        let node = Self::silent(server, number, options).await;
        node.beat().await;
        node
    }

    /// One that has not said anything yet.
    pub async fn silent(server: &RedisServer, number: u8, options: &PeerOptions) -> Self {
        let kv = engine(server).await;
        let id = NodeId(u64::from(number) + 1);
        let tracker = Tracker::new(&*kv as &dyn Kv, id, options).expect("Redis has a tracker");
        let info = NodeInfo {
            id,
            addr: address(number),
            zone: options.zone.clone(),
            role: options.role,
            hub: options.hub,
            host: format!("host-{number}"),
            version: "1.2.3".into(),
            started: Timestamp(1_000_000_000),
        };
        Node { tracker, info, kv }
    }

    /// With 15 seconds to live.
    pub async fn steady(server: &RedisServer, number: u8) -> Self {
        Self::new(server, number, &PeerOptions::default()).await
    }

    pub async fn with_role(server: &RedisServer, number: u8, role: Role) -> Self {
        Self::new(server, number, &PeerOptions { role, ..PeerOptions::default() }).await
    }

    pub fn id(&self) -> NodeId {
        self.info.id
    }

    pub async fn beat(&self) {
        let beat = Beat { slots_free: 4, up_bps: 1, down_bps: 2, held_bytes: 3 };
        self.tracker.beat(&self.info, &beat).await.expect("heartbeat");
    }

    pub async fn fill(&self, chunks: &[u64]) -> Vec<Decision> {
        self.ask(&Claim::fill(blob(0), chunks.to_vec(), u32::MAX)).await
    }

    pub async fn look(&self, chunks: &[u64]) -> Vec<Decision> {
        self.ask(&Claim::look(blob(0), chunks.to_vec())).await
    }

    pub async fn ask(&self, claim: &Claim) -> Vec<Decision> {
        self.tracker.claim(claim).await.expect("claim").decisions
    }

    /// The token of a lease that must be granted.
    pub async fn take(&self, chunk: u64) -> Token {
        match &self.fill(&[chunk]).await[..] {
            [Decision::Granted(token)] => *token,
            other => panic!("{other:?}"),
        }
    }
}

pub fn address(number: u8) -> SocketAddr {
    ([10, 0, 0, number], 9000).into()
}

pub fn blob(number: u8) -> BlobId {
    BlobId::Sha256([number; 32])
}

/// Who holds it, sorted.
pub fn held(decision: &Decision) -> Vec<NodeId> {
    match decision {
        Decision::Held(holders) => {
            let mut ids: Vec<NodeId> = holders.iter().map(|holder| holder.node).collect();
            ids.sort_unstable();
            ids
        }
        other => panic!("{other:?}"),
    }
}

/// Who has the lease of it.
pub fn leased(decision: &Decision) -> NodeId {
    match decision {
        Decision::Leased { owner, .. } => owner.node,
        other => panic!("{other:?}"),
    }
}

/// Waits, a minute at most, until it is so.
pub async fn until<F: Future<Output = bool>>(what: &str, mut is: impl FnMut() -> F) {
    for _ in 0..600 {
        if is().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("never: {what}");
}
