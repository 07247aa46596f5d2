//! `GET /metrics`: a server for one kind of client that asks now and then. What it may cost is bounded; what it tells is
//! figures only.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};

use crate::error::{Error, Kind, Result};

/// Connections at one time; others wait to be accepted.
const CONNECTIONS: usize = 16;
/// For a request to come.
const HEADERS: Duration = Duration::from_secs(5);
/// A connection is closed after that, whatever it does: scrapers open another one.
const LIFE: Duration = Duration::from_secs(300);
/// After a failure to accept.
const PAUSE: Duration = Duration::from_millis(100);
const HEAD: usize = 8 << 10;

type Page = Arc<dyn Fn() -> String + Send + Sync>;

/// Serves until it is dropped.
#[derive(Debug)]
pub struct MetricsServer {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl MetricsServer {
    /// Listens on `address`; each `GET /metrics` is answered with what `page` says then. `page` must not block.
    ///
    /// # Errors
    /// [`Kind::Config`] if the address cannot be listened on.
    pub async fn start(
        address: SocketAddr,
        page: impl Fn() -> String + Send + Sync + 'static,
    ) -> Result<Self> {
        let failed = |e| Error::with_source(Kind::Config, format!("--metrics {address}"), e);
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let page: Page = Arc::new(page);
        Ok(MetricsServer { address, task: tokio::spawn(run(listener, page)) })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for MetricsServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run(listener: TcpListener, page: Page) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    // Dropped with this task, and the connections with it.
    let mut connections = JoinSet::new();
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        while connections.try_join_next().is_some() {}
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
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

async fn serve(stream: TcpStream, page: Page) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.expect("connects");
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("answered");
        answer
    }

    #[tokio::test]
    async fn one_page_and_nothing_else() {
        let count = AtomicU64::new(0);
        let page = move || format!("x_total {}\n", count.fetch_add(1, Relaxed));
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let server = MetricsServer::start(any, page).await.expect("starts");
        let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        let address = server.address();
        let first = ask(address, &get("/metrics")).await;
        assert!(first.starts_with("HTTP/1.1 200") && first.ends_with("x_total 0\n"), "{first}");
        assert!(first.contains("text/plain; version=0.0.4"), "{first}");
        assert!(ask(address, &get("/metrics?x=1")).await.ends_with("x_total 1\n"));
        assert!(ask(address, &get("/")).await.starts_with("HTTP/1.1 404"));
        let post = "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        assert!(ask(address, post).await.starts_with("HTTP/1.1 405"));
        assert!(ask(address, "what\r\n\r\n").await.starts_with("HTTP/1.1 400"));
        let taken = MetricsServer::start(address, String::new).await.expect_err("taken");
        assert_eq!(taken.kind(), Kind::Config);
        drop(server);
        let end = tokio::time::Instant::now() + Duration::from_secs(10);
        while TcpStream::connect(address).await.is_ok() {
            assert!(tokio::time::Instant::now() < end, "it still listens");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}
