//! Answers one kind of client that asks now and then: `GET /metrics`. What it may cost is bounded; what it tells is figures
//! only. Over which kind of socket, its caller knows.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Connections at one time; others wait to be accepted.
const CONNECTIONS: usize = 16;
/// For a request to come.
const HEADERS: Duration = Duration::from_secs(5);
/// A connection is closed after that, whatever it does: scrapers open another one.
const LIFE: Duration = Duration::from_secs(300);
/// After a failure to accept.
const PAUSE: Duration = Duration::from_millis(100);
const HEAD: usize = 8 << 10;

/// What is served: asked for each time, must not block.
pub(super) type Page = Arc<dyn Fn() -> String + Send + Sync>;

/// Where clients come in.
pub(super) trait Door: Send + Sync {
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// The next one that may ask.
    fn next(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

/// Serves who comes in, until it is dropped; its connections go with it.
pub(super) async fn run(door: impl Door, page: Page) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    // Dropped with this task, and the connections with it.
    let mut connections = JoinSet::new();
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        while connections.try_join_next().is_some() {}
        let stream = match door.next().await {
            Ok(stream) => stream,
            Err(error) => {
                tracing::debug!(%error, "a connection for metrics was not taken");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let page = page.clone();
        connections.spawn(async move {
            let _place = place;
            let _ = tokio::time::timeout(LIFE, serve(stream, page)).await;
        });
    }
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin>(stream: S, page: Page) {
    let service = service_fn(|request| {
        let answer = answer(&request, &page);
        async move { Ok::<_, Infallible>(answer) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS)
        .max_buf_size(HEAD)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a connection for metrics");
    }
}

fn answer(request: &Request<Incoming>, page: &Page) -> Response<String> {
    let plain = |status: StatusCode, text: &'static str| {
        let mut response = Response::new(text.to_owned());
        *response.status_mut() = status;
        response
    };
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "GET /metrics\n");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match request.uri().path() {
        "/metrics" => {
            let mut response = Response::new(page());
            let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
            response.headers_mut().insert(CONTENT_TYPE, kind);
            response
        }
        _ => plain(StatusCode::NOT_FOUND, "GET /metrics\n"),
    }
}
