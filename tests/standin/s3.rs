//! An S3 store over a folder: s3s-fs, with what it lacks for tests of correctness. Conditional PUTs are atomic, GET
//! honours If-Match, large objects are sent in large pieces, and requests are counted and fail on demand.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, Method, Request, Response, StatusCode, header};
use futures::FutureExt;
use futures::future::BoxFuture;
use hyper::body::Incoming;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s_fs::FileSystem;
use tokio::runtime::Runtime;
use tokio::sync::RwLock;

use super::api::decode;
use super::body::{self, Flow};
use super::counters::{Counters, Counts};
use super::faults::{Faults, Switches, Target};
use super::http::{self, Connection, Hangup};
use super::hub::{bind, control, fate, runtime};
use super::throttle::Bucket;

/// Bodies from this size on are sent by us; s3s-fs reads 4 KiB at a time.
const LARGE: u64 = 64 << 10;
/// A conditional PUT is taken in whole before it waits for its turn.
const CONDITIONAL_MAX: usize = 256 << 20;

/// How the store is to behave.
#[derive(Clone, Debug)]
pub struct S3Options {
    pub listen: SocketAddr,
    pub bucket: String,
    pub access_key: String,
    pub secret_key: String,
    /// Bytes per second that leave it, all connections together.
    pub rate: Option<u64>,
    pub conn_rate: Option<u64>,
    /// Every answer comes this much later.
    pub delay: Duration,
}

impl Default for S3Options {
    fn default() -> Self {
        S3Options {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            bucket: "test".to_owned(),
            access_key: "standin".to_owned(),
            secret_key: "standin-secret".to_owned(),
            rate: None,
            conn_rate: None,
            delay: Duration::ZERO,
        }
    }
}

/// A running store. Dropping it closes its port and every connection; the objects stay in their folder.
#[derive(Debug)]
pub struct S3 {
    options: S3Options,
    address: SocketAddr,
    endpoint: String,
    counters: Counters,
    switches: Switches,
    runtime: Option<Runtime>,
}

impl S3 {
    /// A store with one bucket, `test`, whose objects lie in `dir`.
    pub fn start(dir: impl AsRef<Path>) -> io::Result<Self> {
        Self::start_with(dir, S3Options::default())
    }

    /// The same with options. The bucket is made if it does not exist.
    pub fn start_with(dir: impl AsRef<Path>, options: S3Options) -> io::Result<Self> {
        let dir = dir.as_ref();
        std::fs::create_dir_all(dir.join(&options.bucket))?;
        let files = FileSystem::new(dir).map_err(|e| io::Error::other(format!("{e:?}")))?;
        let mut builder = S3ServiceBuilder::new(files);
        builder.set_auth(SimpleAuth::from_single(options.access_key.as_str(), options.secret_key.as_str()));
        let listener = bind(options.listen)?;
        let address = listener.local_addr()?;
        let (counters, switches) = (Counters::default(), Switches::default());
        let store = Arc::new(Store {
            root: dir.to_owned(),
            inner: builder.build(),
            turn: RwLock::new(()),
            counters: counters.clone(),
            switches: switches.clone(),
            bucket: options.rate.map(|rate| Arc::new(Bucket::new(rate))),
            delay: options.delay,
        });
        let runtime = runtime("standin-s3")?;
        let guard = runtime.enter();
        let listener = tokio::net::TcpListener::from_std(listener)?;
        drop(guard);
        runtime.spawn(http::serve(listener, store, counters.clone(), options.conn_rate));
        let endpoint = format!("http://{address}");
        Ok(S3 { options, address, endpoint, counters, switches, runtime: Some(runtime) })
    }

    /// For path-style requests: `<endpoint>/<bucket>/<key>`.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn bucket(&self) -> &str {
        &self.options.bucket
    }

    pub fn access_key(&self) -> &str {
        &self.options.access_key
    }

    pub fn secret_key(&self) -> &str {
        &self.options.secret_key
    }

    /// What has been asked so far.
    pub fn counters(&self) -> Counts {
        self.counters.get()
    }

    /// Sets all counters to zero.
    pub fn reset(&self) {
        self.counters.reset();
    }

    /// Changes the faults: `s3.faults(|f| f.unavailable = 2)`.
    pub fn faults(&self, f: impl FnOnce(&mut Faults)) -> Faults {
        self.switches.set(f)
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

struct Store {
    root: PathBuf,
    inner: S3Service,
    /// Conditional writes have it alone, other writes share it.
    turn: RwLock<()>,
    counters: Counters,
    switches: Switches,
    bucket: Option<Arc<Bucket>>,
    delay: Duration,
}

impl http::Handler for Store {
    fn answer(
        self: Arc<Self>,
        connection: Connection,
        request: Request<Incoming>,
    ) -> BoxFuture<'static, Result<Response<Body>, Hangup>> {
        async move {
            if request.uri().path().starts_with("/_standin/") {
                return Ok(control(&self.counters, &self.switches, request).await);
            }
            let (kind, target) = kind(&request);
            self.counters.request(kind, request.headers());
            let is_head = request.method() == Method::HEAD;
            let lost_reply = target == Target::Put && self.switches.lost_reply();
            let response = match fate(&self.switches, target, self.delay).await? {
                Some(response) => response,
                None => self.carry_out(&connection, request).await,
            };
            if lost_reply {
                return Err(Hangup);
            }
            self.counters.status(response.status().as_u16());
            Ok(if is_head { http::without_body(response) } else { response })
        }
        .boxed()
    }
}

impl Store {
    async fn carry_out(&self, connection: &Connection, request: Request<Incoming>) -> Response<Body> {
        let method = request.method().clone();
        let key = decode(request.uri().path().trim_start_matches('/'));
        let get = |name: &str| request.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
        let if_match = get("if-match");
        let is_conditional = if_match.is_some() || get("if-none-match").is_some();
        let length = get("x-amz-decoded-content-length").or_else(|| get("content-length"));
        let length: u64 = length.and_then(|l| l.parse().ok()).unwrap_or(0);
        if method == Method::PUT {
            self.counters.taken(length);
        }
        let response = if method == Method::PUT && is_conditional {
            let (parts, body) = request.into_parts();
            let bytes = match axum::body::to_bytes(Body::new(body), CONDITIONAL_MAX).await {
                Ok(bytes) => bytes,
                Err(e) => return fail(StatusCode::BAD_REQUEST, "IncompleteBody", &e.to_string()),
            };
            let _turn = self.turn.write().await;
            self.inner.call(Request::from_parts(parts, s3s::Body::from(bytes))).await
        } else if matches!(method, Method::PUT | Method::POST | Method::DELETE) {
            let _turn = self.turn.read().await;
            self.inner.call(request.map(s3s::Body::from)).await
        } else {
            self.inner.call(request.map(s3s::Body::from)).await
        };
        let response = match response {
            Ok(response) => response.map(Body::new),
            Err(e) => return fail(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", &format!("{e:?}")),
        };
        if method != Method::GET || !response.status().is_success() {
            return response;
        }
        let etag = text(response.headers(), "etag");
        if let (Some(wanted), Some(etag)) = (if_match, etag)
            && wanted != "*"
            && !wanted.contains(etag)
        {
            return fail(StatusCode::PRECONDITION_FAILED, "PreconditionFailed", "ETag does not match");
        }
        self.send(connection, &key, response)
    }

    /// Counts the body of an object and, when it is large, sends it from the file.
    fn send(&self, connection: &Connection, key: &str, response: Response<Body>) -> Response<Body> {
        let headers = response.headers();
        let length = text(headers, "content-length").and_then(|l| l.parse::<u64>().ok());
        // Without an ETag it is a listing, not an object.
        let (Some(length), Some(_)) = (length, text(headers, "etag")) else { return response };
        let (start, size) = match text(headers, "content-range").and_then(content_range) {
            Some(range) => range,
            None => (0, length),
        };
        let meter =
            self.counters.transfer(key, start, start + length, &HeaderMap::new()).from(connection.peer);
        let spoil = self.switches.body(Target::Get);
        let buckets: Vec<_> = self.bucket.iter().chain(&connection.bucket).cloned().collect();
        let plain = buckets.is_empty() && spoil == Default::default();
        if plain && length < LARGE {
            meter.sent(length);
            return response;
        }
        match std::fs::File::open(self.root.join(key)) {
            // Otherwise it has been replaced since the headers were made.
            Ok(file) if file.metadata().is_ok_and(|m| m.len() == size) => {
                let body = body::file(file, start..start + length, Flow { buckets, spoil, meter });
                response.map(|_| body)
            }
            _ => {
                meter.sent(length);
                response
            }
        }
    }
}

fn kind(request: &Request<Incoming>) -> (&'static str, Target) {
    let query = request.uri().query().unwrap_or("");
    let is_list = query.split('&').any(|p| p.starts_with("list-type=") || p.starts_with("prefix="));
    match *request.method() {
        Method::GET if is_list => ("list", Target::List),
        Method::GET => ("get", Target::Get),
        Method::HEAD => ("head", Target::Get),
        Method::PUT => ("put", Target::Put),
        Method::DELETE => ("delete", Target::Delete),
        _ => ("post", Target::Delete),
    }
}

/// `bytes 5-9/20` → where it begins and how long the whole is.
fn content_range(value: &str) -> Option<(u64, u64)> {
    let (range, size) = value.strip_prefix("bytes ")?.split_once('/')?;
    Some((range.split_once('-')?.0.parse().ok()?, size.parse().ok()?))
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|v| v.to_str().ok())
}

fn fail(status: StatusCode, code: &str, message: &str) -> Response<Body> {
    let text =
        format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>{message}</Message></Error>");
    let mut response = Response::new(Body::from(text.clone()));
    *response.status_mut() = status;
    http::set(&mut response, header::CONTENT_TYPE, "application/xml");
    http::set(&mut response, header::CONTENT_LENGTH, &text.len().to_string());
    response
}
