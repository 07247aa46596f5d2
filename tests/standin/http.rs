//! A small HTTP/1.1 server: keep-alive, no routing, and a way to close a connection without an answer.

use std::convert::Infallible;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderName, Request, Response, StatusCode, header};
use futures::future::BoxFuture;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use super::counters::Counters;
use super::throttle::Bucket;

/// A request's connection.
#[derive(Clone, Debug)]
pub struct Connection {
    /// Who is at its other end.
    pub peer: Option<IpAddr>,
    /// The cap on this connection.
    pub bucket: Option<Arc<Bucket>>,
}

/// Close the connection instead of answering.
#[derive(Debug)]
pub struct Hangup;

impl fmt::Display for Hangup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("connection closed on purpose")
    }
}

impl std::error::Error for Hangup {}

/// What answers requests.
pub trait Handler: Send + Sync + 'static {
    fn answer(
        self: Arc<Self>,
        connection: Connection,
        request: Request<Incoming>,
    ) -> BoxFuture<'static, Result<Response<Body>, Hangup>>;
}

/// Serves connections until the runtime ends. `conn_rate`: bytes per second of each connection.
pub async fn serve<H: Handler>(
    listener: TcpListener,
    handler: Arc<H>,
    counters: Counters,
    conn_rate: Option<u64>,
) -> Infallible {
    loop {
        let Ok((socket, peer)) = listener.accept().await else {
            // Out of descriptors: the others must finish first.
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        counters.connection();
        // Without it a small answer waits for the client's delayed acknowledgement.
        socket.set_nodelay(true).ok();
        let connection =
            Connection { peer: Some(peer.ip()), bucket: conn_rate.map(|rate| Arc::new(Bucket::new(rate))) };
        let handler = handler.clone();
        tokio::spawn(async move {
            let service = hyper::service::service_fn(move |request| {
                handler.clone().answer(connection.clone(), request)
            });
            // A client that goes away is no event here.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(socket), service)
                .await;
        });
    }
}

/// A JSON answer.
pub fn json(status: StatusCode, value: &serde_json::Value) -> Response<Body> {
    let text = value.to_string();
    let mut response = Response::new(Body::from(text.clone()));
    *response.status_mut() = status;
    set(&mut response, header::CONTENT_TYPE, "application/json; charset=utf-8");
    set(&mut response, header::CONTENT_LENGTH, &text.len().to_string());
    response
}

/// Sets a header; values come from file names too, so what no header can hold is left out.
pub fn set(response: &mut Response<Body>, name: impl TryInto<HeaderName>, value: &str) {
    if let (Ok(name), Ok(value)) = (name.try_into(), value.parse()) {
        response.headers_mut().insert(name, value);
    }
}

/// The same answer to HEAD: all headers, no body.
pub fn without_body(response: Response<Body>) -> Response<Body> {
    response.map(|_| Body::empty())
}

/// A byte range of a file of `size` bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ranged {
    Whole,
    Part(std::ops::Range<u64>),
    Unsatisfiable,
}

/// Reads a Range header with one range; anything else counts as absent, as the standard allows.
pub fn range(header: Option<&str>, size: u64) -> Ranged {
    let Some(spec) = header.and_then(|h| h.strip_prefix("bytes=")) else { return Ranged::Whole };
    let Some((from, to)) = spec.split_once('-') else { return Ranged::Whole };
    let (from, to) = (from.trim(), to.trim());
    let part = match (from.parse::<u64>(), to.parse::<u64>()) {
        (Ok(a), Ok(b)) if a <= b => a..b.saturating_add(1).min(size),
        (Ok(a), Err(_)) if to.is_empty() => a..size,
        (Err(_), Ok(n)) if from.is_empty() => size.saturating_sub(n)..size,
        _ => return Ranged::Whole,
    };
    if part.start < part.end { Ranged::Part(part) } else { Ranged::Unsatisfiable }
}
