//! A TCP proxy before a Redis, which loses requests or replies when told to.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::{JoinHandle, JoinSet};

/// What happens to an EVALSHA whose turn it is. When something is lost, the connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It never reaches the server.
    LoseRequest,
    /// The server answers, and nobody hears it.
    LoseReply,
    /// It waits, and all that follows it on its connection, until [`Proxy::release`].
    HoldRequest,
}

pub struct Proxy {
    pub address: SocketAddr,
    state: Arc<State>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct State {
    /// EVALSHA seen since the last fault was set.
    seen: AtomicU64,
    /// Every so many of them meet the fault, while any is left.
    every: AtomicU64,
    left: AtomicU64,
    fault: Mutex<Option<Fault>>,
    released: Notify,
    /// Where new connections lead.
    server: Mutex<Option<SocketAddr>>,
    faults: AtomicU64,
}

impl Proxy {
    pub async fn before(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("free port");
        let address = listener.local_addr().expect("local address");
        let state = Arc::new(State::default());
        *state.server.lock().expect("not poisoned") = Some(server);
        let task = tokio::spawn(accept(listener, state.clone()));
        Proxy { address, state, task }
    }

    /// Lets every `every`-th EVALSHA from now on meet `fault`, `times` times.
    pub fn set(&self, fault: Fault, every: u64, times: u64) {
        *self.state.fault.lock().expect("not poisoned") = Some(fault);
        self.state.seen.store(0, Ordering::SeqCst);
        self.state.every.store(every, Ordering::SeqCst);
        self.state.left.store(times, Ordering::SeqCst);
    }

    /// Leads new connections to another server, as a moved address does; those that are open stay where they are.
    pub fn lead_to(&self, server: SocketAddr) {
        *self.state.server.lock().expect("not poisoned") = Some(server);
    }

    /// Lets those that are held go on.
    pub fn release(&self) {
        self.state.released.notify_waiters();
    }

    /// How many met it so far.
    pub fn faults(&self) -> u64 {
        self.state.faults.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, state: Arc<State>) {
    // Dropped with this task: the connections go with the proxy.
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        let state = state.clone();
        let server = state.server.lock().expect("not poisoned").expect("set at the start");
        connections.spawn(async move {
            if let Ok(server) = TcpStream::connect(server).await {
                carry(client, server, &state).await;
            }
        });
        while connections.try_join_next().is_some() {}
    }
}

/// Until one side hangs up, or a fault hangs up both.
async fn carry(client: TcpStream, server: TcpStream, state: &State) {
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let deaf = AtomicBool::new(false);
    let requests = async {
        let mut piece = vec![0; 64 << 10];
        // The end of the last piece: a word may lie across two.
        let mut seen = Vec::new();
        while let Ok(n @ 1..) = from_client.read(&mut piece).await {
            seen.extend_from_slice(&piece[..n]);
            let evals = seen.windows(9).filter(|window| window == b"EVALSHA\r\n").count() as u64;
            seen.drain(..seen.len().saturating_sub(8));
            let before = state.seen.fetch_add(evals, Ordering::SeqCst);
            let every = state.every.load(Ordering::SeqCst);
            let left =
                || state.left.try_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok();
            if every > 0 && (before + evals) / every > before / every && left() {
                state.faults.fetch_add(1, Ordering::SeqCst);
                let fault = *state.fault.lock().expect("not poisoned");
                match fault {
                    Some(Fault::LoseReply) => deaf.store(true, Ordering::SeqCst),
                    Some(Fault::HoldRequest) => state.released.notified().await,
                    Some(Fault::LoseRequest) | None => return,
                }
            }
            if to_server.write_all(&piece[..n]).await.is_err() {
                return;
            }
        }
    };
    let replies = async {
        let mut piece = vec![0; 64 << 10];
        while let Ok(n @ 1..) = from_server.read(&mut piece).await {
            if deaf.load(Ordering::SeqCst) || to_client.write_all(&piece[..n]).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = requests => {}
        () = replies => {}
    }
}
