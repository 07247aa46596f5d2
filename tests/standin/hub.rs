//! The stand-in Hub: two listeners (the Hub and its CDN are different origins), one dispatcher.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, Request, Response, StatusCode, header};
use futures::FutureExt;
use futures::future::BoxFuture;
use hyper::body::Incoming;
use tokio::runtime::Runtime;

use super::counters::{Counters, Counts};
use super::faults::{Fate, Faults, Switches, Target};
use super::http::{self, Connection, Hangup, json};
use super::repos::Repos;
use super::throttle::Bucket;
use super::{api, cdn, resolve};

/// How a stand-in is to behave; the default is a fast and friendly Hub on free ports.
#[derive(Clone, Debug)]
pub struct Options {
    pub listen: SocketAddr,
    pub cdn_listen: SocketAddr,
    /// Bytes of files per second, all connections together.
    pub rate: Option<u64>,
    /// Bytes of files per second of each connection.
    pub conn_rate: Option<u64>,
    /// Every answer comes this much later.
    pub delay: Duration,
    /// Entries of a page of a tree at most; the Hub's is 1,000.
    pub page: usize,
    /// How long a signed URL lasts.
    pub signed_for: Duration,
    /// The tokens that exist; any other is answered 401. `None`: every token is a user's.
    pub tokens: Option<Vec<String>>,
    /// Redirect git files to `/api/resolve-cache/…` on the same origin, as the Hub itself does.
    pub resolve_cache: bool,
}

impl Default for Options {
    fn default() -> Self {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        Options {
            listen: any,
            cdn_listen: any,
            rate: None,
            conn_rate: None,
            delay: Duration::ZERO,
            page: 1_000,
            signed_for: Duration::from_secs(3_600),
            tokens: None,
            resolve_cache: false,
        }
    }
}

/// What the handlers share.
#[derive(Debug)]
pub struct Shared {
    pub options: Options,
    pub repos: Repos,
    pub counters: Counters,
    pub switches: Switches,
    pub bucket: Option<Arc<Bucket>>,
    pub cdn: String,
    pub signer: Mutex<cdn::Signer>,
}

impl Shared {
    /// The caps on one transfer.
    pub fn buckets(&self, connection: &Connection) -> Vec<Arc<Bucket>> {
        self.bucket.iter().chain(&connection.bucket).cloned().collect()
    }
}

/// A running Hub. Dropping it closes its ports and every connection.
#[derive(Debug)]
pub struct StandIn {
    shared: Arc<Shared>,
    endpoint: String,
    addresses: (SocketAddr, SocketAddr),
    runtime: Option<Runtime>,
}

impl StandIn {
    /// Serves the repositories under `root`. Returns when both ports are open.
    pub fn start(root: impl AsRef<Path>, options: Options) -> io::Result<Self> {
        let hub = bind(options.listen)?;
        let other = bind(options.cdn_listen)?;
        let addresses = (hub.local_addr()?, other.local_addr()?);
        let shared = Arc::new(Shared {
            repos: Repos::new(root.as_ref()),
            counters: Counters::default(),
            switches: Switches::default(),
            bucket: options.rate.map(|rate| Arc::new(Bucket::new(rate))),
            cdn: format!("http://{}", addresses.1),
            signer: Mutex::new(cdn::Signer::new()),
            options,
        });
        let runtime = runtime("standin-hub")?;
        let guard = runtime.enter();
        let hub = tokio::net::TcpListener::from_std(hub)?;
        let other = tokio::net::TcpListener::from_std(other)?;
        drop(guard);
        let (counters, rate) = (shared.counters.clone(), shared.options.conn_rate);
        runtime.spawn(http::serve(hub, Arc::new(Hub(shared.clone())), counters.clone(), rate));
        runtime.spawn(http::serve(other, Arc::new(Cdn(shared.clone())), counters, rate));
        Ok(StandIn { shared, endpoint: format!("http://{}", addresses.0), addresses, runtime: Some(runtime) })
    }

    /// The value for `HF_ENDPOINT`: no slash at the end.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The origin of the CDN.
    pub fn cdn(&self) -> &str {
        &self.shared.cdn
    }

    /// The ports of the Hub and of the CDN, to start again on the same ones.
    pub fn addresses(&self) -> (SocketAddr, SocketAddr) {
        self.addresses
    }

    /// What has been asked so far.
    pub fn counters(&self) -> Counts {
        self.shared.counters.get()
    }

    /// Sets all counters to zero.
    pub fn reset(&self) {
        self.shared.counters.reset();
    }

    /// Changes the faults: `hub.faults(|f| f.unavailable = 2)`.
    pub fn faults(&self, f: impl FnOnce(&mut Faults)) -> Faults {
        self.shared.switches.set(f)
    }

    /// Makes the CDN refuse every URL signed so far.
    pub fn expire_urls(&self) {
        *cdn::lock(&self.shared.signer) = cdn::Signer::new();
    }

    /// The commit that a revision of a repository is at (`models`, `org/name`, `main`).
    pub fn commit(&self, plural: &str, id: &str, revision: &str) -> Option<String> {
        let repo = self.shared.repos.open(plural, id)?;
        self.shared.repos.resolve(&repo, revision).ok().flatten().map(|tree| tree.commit.clone())
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A listener for a server on another thread.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Threads of its own for a server.
pub fn runtime(name: &str) -> io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).thread_name(name).enable_all().build()
}

struct Hub(Arc<Shared>);
struct Cdn(Arc<Shared>);

impl http::Handler for Hub {
    fn answer(
        self: Arc<Self>,
        connection: Connection,
        request: Request<Incoming>,
    ) -> BoxFuture<'static, Result<Response<Body>, Hangup>> {
        async move {
            let shared = &self.0;
            let path = request.uri().path();
            if path == "/_standin/expire" {
                *cdn::lock(&shared.signer) = cdn::Signer::new();
                return Ok(json(StatusCode::OK, &serde_json::json!({})));
            }
            if path.starts_with("/_standin/") {
                return Ok(control(&shared.counters, &shared.switches, request).await);
            }
            let is_api = path.starts_with("/api/") && !path.starts_with("/api/resolve-cache/");
            let target = if is_api { Target::Api } else { Target::Resolve };
            let is_head = request.method() == Method::HEAD;
            if let Some(response) = fate(&shared.switches, target, shared.options.delay).await? {
                shared.counters.request("failed", request.headers());
                shared.counters.status(response.status().as_u16());
                return Ok(if is_head { http::without_body(response) } else { response });
            }
            let response = if is_api {
                api::answer(shared, request).await
            } else {
                resolve::answer(shared, &connection, request).await
            };
            shared.counters.status(response.status().as_u16());
            Ok(if is_head { http::without_body(response) } else { response })
        }
        .boxed()
    }
}

impl http::Handler for Cdn {
    fn answer(
        self: Arc<Self>,
        connection: Connection,
        request: Request<Incoming>,
    ) -> BoxFuture<'static, Result<Response<Body>, Hangup>> {
        async move {
            let shared = &self.0;
            let response = match fate(&shared.switches, Target::Cdn, shared.options.delay).await? {
                Some(response) => response,
                None => cdn::answer(shared, &connection, &request),
            };
            shared.counters.status(response.status().as_u16());
            Ok(if request.method() == Method::HEAD { http::without_body(response) } else { response })
        }
        .boxed()
    }
}

/// Carries out what the switches decide: `Some` is the answer instead of the real one.
pub async fn fate(
    switches: &Switches,
    target: Target,
    delay: Duration,
) -> Result<Option<Response<Body>>, Hangup> {
    let (fate, more) = switches.request(target);
    if delay + more > Duration::ZERO {
        tokio::time::sleep(delay + more).await;
    }
    match fate {
        Fate::Pass => Ok(None),
        Fate::Refuse => Err(Hangup),
        Fate::Hang => std::future::pending().await,
        Fate::Unavailable => Ok(Some(json(
            StatusCode::SERVICE_UNAVAILABLE,
            &serde_json::json!({"error": "Service Unavailable"}),
        ))),
        Fate::TooMany { retry_after, ratelimit_t } => {
            let text = serde_json::json!({"error": "Too many requests"});
            let mut response = json(StatusCode::TOO_MANY_REQUESTS, &text);
            let bucket = if target == Target::Api { "api" } else { "resolvers" };
            if let Some(seconds) = retry_after {
                http::set(&mut response, header::RETRY_AFTER, &seconds.to_string());
            }
            if let Some(t) = ratelimit_t {
                http::set(&mut response, "ratelimit", &format!("\"{bucket}\";r=0;t={t}"));
                let policy = format!("\"fixed window\";\"{bucket}\";q=500;w=300");
                http::set(&mut response, "ratelimit-policy", &policy);
            }
            Ok(Some(response))
        }
    }
}

/// `GET /_standin/counters`, `POST /_standin/reset`, `GET|POST /_standin/faults`. (The Hub has `POST /_standin/expire`
/// as well: the URLs signed so far are refused.)
pub async fn control(counters: &Counters, switches: &Switches, request: Request<Incoming>) -> Response<Body> {
    let value = match (request.method().clone(), request.uri().path()) {
        (Method::GET, "/_standin/counters") => serde_json::to_value(counters.get()),
        (Method::POST, "/_standin/reset") => {
            counters.reset();
            Ok(serde_json::json!({}))
        }
        (Method::GET, "/_standin/faults") => serde_json::to_value(switches.get()),
        (Method::POST, "/_standin/faults") => {
            match axum::body::to_bytes(Body::new(request.into_body()), 1 << 20).await {
                Ok(bytes) => switches.merge(&bytes).and_then(serde_json::to_value),
                Err(e) => Ok(serde_json::json!({"error": e.to_string()})),
            }
        }
        _ => return json(StatusCode::NOT_FOUND, &serde_json::json!({"error": "no such control"})),
    };
    match value {
        Ok(value) => json(StatusCode::OK, &value),
        Err(e) => json(StatusCode::BAD_REQUEST, &serde_json::json!({"error": e.to_string()})),
    }
}
