//! `GET /metrics` for Prometheus, at an address.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::serve::{Door, run};
use crate::error::{Error, Kind, Result};

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
        Ok(MetricsServer { address, task: tokio::spawn(run(listener, Arc::new(page))) })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Door for TcpListener {
    type Stream = TcpStream;

    async fn next(&self) -> io::Result<TcpStream> {
        self.accept().await.map(|(stream, _)| stream)
    }
}

impl Drop for MetricsServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
    use std::time::Duration;
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
