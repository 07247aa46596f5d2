//! Connections: how many there may be, and which one goes when there are too many.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Inner;
use super::answer::answer;
use super::watched::{Watch, Watched};

/// The longest head of a request; also what is written ahead of a connection before it takes more.
const HEAD: usize = 8 << 10;
const HEADERS: usize = 32;
/// After a failure to accept: no descriptors are left, and others must end first.
const PAUSE: Duration = Duration::from_millis(50);

/// The connections that are open.
#[derive(Debug)]
pub(super) struct Table {
    most: usize,
    next: AtomicU64,
    open: Mutex<HashMap<u64, Arc<Watch>>>,
    start: Instant,
}

impl Table {
    pub fn new(most: usize) -> Self {
        Table { most, next: AtomicU64::new(0), open: Mutex::default(), start: Instant::now() }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<Watch>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Makes a place, if need be by cutting another one; `None` if all are being answered. The flag: one was cut.
    fn admit(&self, cut: CancellationToken) -> (Option<Admitted>, bool) {
        let mut open = self.lock();
        let mut made_room = false;
        if open.len() >= self.most {
            let victim = open.iter().filter_map(|(id, w)| Some((w.dispensable()?, *id))).min();
            let Some(victim) = victim.and_then(|(_, id)| open.remove(&id)) else { return (None, false) };
            victim.cut.cancel();
            made_room = true;
        }
        let id = self.next.fetch_add(1, Relaxed);
        let watch = Arc::new(Watch::new(self.start, cut));
        open.insert(id, watch.clone());
        (Some(Admitted { id, watch }), made_room)
    }
}

/// A place among the connections.
struct Admitted {
    id: u64,
    watch: Arc<Watch>,
}

/// Accepts until it is stopped.
pub(super) async fn run(
    inner: Arc<Inner>,
    listener: TcpListener,
    stopping: CancellationToken,
    stopped: CancellationToken,
    tasks: TaskTracker,
) {
    loop {
        let accepted = tokio::select! {
            () = stopping.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "a peer's connection was not taken");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let (admitted, cut_one) = inner.connections.admit(stopped.child_token());
        if cut_one || admitted.is_none() {
            inner.counters.cut.fetch_add(1, Relaxed);
        }
        if let Some(admitted) = admitted {
            let place = Place { inner: inner.clone(), id: admitted.id };
            tasks.spawn(serve(place, stream, admitted.watch, stopping.clone()));
        }
    }
}

/// Gives the place back, whatever became of the connection.
struct Place {
    inner: Arc<Inner>,
    id: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.inner.connections.lock().remove(&self.id);
    }
}

async fn serve(place: Place, stream: TcpStream, watch: Arc<Watch>, stopping: CancellationToken) {
    let inner = &place.inner;
    // Without it a small answer waits for the other's delayed acknowledgement.
    let _ = stream.set_nodelay(true);
    let (cut, patience) = (watch.cut.clone(), inner.patience);
    let io = TokioIo::new(Watched::new(stream, watch.clone(), patience));
    let service = {
        let inner = inner.clone();
        service_fn(move |request| {
            let (inner, watch) = (inner.clone(), watch.clone());
            async move { Ok::<_, Infallible>(answer(inner, watch, request).await) }
        })
    };
    let connection = http1::Builder::new()
        // The bounds of time are those of `Watched`: hyper's own counts the pause between two requests as a slow head.
        .max_buf_size(HEAD)
        .max_headers(HEADERS)
        .writev(true)
        .auto_date_header(false)
        .serve_connection(io, service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended.is_ok(),
        () = cut.cancelled() => true,
        () = stopping.cancelled() => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                ended = connection.as_mut() => ended.is_ok(),
                () = cut.cancelled() => true,
            }
        }
    };
    if !ended {
        inner.counters.cut.fetch_add(1, Relaxed);
    }
}
