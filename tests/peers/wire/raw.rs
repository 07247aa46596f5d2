//! Requests by hand: what a client of one's own would send, and what no client would.

use std::time::Duration;

use hfmount::peer::NodeId;
use hfmount::peer::auth::{Pass, PeerKey, Signed};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{BLOB, Node, key, now_ms};

/// A request, before it is written down.
#[derive(Clone, Debug)]
pub struct Raw {
    pub key: PeerKey,
    pub node: NodeId,
    pub to: NodeId,
    pub time_ms: u64,
    pub method: &'static str,
    pub target: String,
    pub body: Vec<u8>,
    /// What is said of the body, if not the truth.
    pub body_hash: Option<[u8; 32]>,
}

impl Raw {
    pub fn chunk(to: &Node, idx: u64) -> Self {
        let target = format!("/v1/blobs/{}/{idx}", BLOB.etag());
        Raw {
            key: key(),
            node: NodeId(1),
            to: to.id,
            time_ms: now_ms(),
            method: "GET",
            target,
            body: Vec::new(),
            body_hash: None,
        }
    }

    pub fn text(&self) -> Vec<u8> {
        let hash =
            self.body_hash.or_else(|| (!self.body.is_empty()).then(|| *blake3::hash(&self.body).as_bytes()));
        let signed = Signed { method: self.method, target: &self.target, body: hash };
        let pass = Pass::issue(&self.key, self.node, self.to, self.time_ms, &signed);
        let mut text = format!(
            "{} {} HTTP/1.1\r\nHost: x\r\nAuthorization: {}\r\n",
            self.method,
            self.target,
            pass.header()
        );
        if let Some(hash) = hash {
            let hash: String = hash.iter().map(|b| format!("{b:02x}")).collect();
            text += &format!("hfm-body: {hash}\r\nContent-Length: {}\r\n", self.body.len());
        }
        text += "\r\n";
        [text.into_bytes(), self.body.clone()].concat()
    }
}

pub async fn connect(to: &Node) -> TcpStream {
    TcpStream::connect(to.server.addr()).await.expect("a connection")
}

/// The head of the next answer and as much of its body as it announces; what came if the connection ends.
pub async fn answer(stream: &mut TcpStream) -> (u16, String, Vec<u8>) {
    let mut all = Vec::new();
    let mut buf = [0; 16 << 10];
    loop {
        if let Some(end) = all.windows(4).position(|w| w == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&all[..end]).to_ascii_lowercase();
            let len =
                head.lines().find_map(|l| l.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0usize);
            if all.len() >= end + 4 + len {
                let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).expect("a status");
                return (status, head, all[end + 4..].to_vec());
            }
        }
        let read = timeout(Duration::from_secs(10), stream.read(&mut buf)).await.expect("in time");
        match read {
            Ok(0) | Err(_) => return (0, String::new(), all),
            Ok(n) => all.extend_from_slice(&buf[..n]),
        }
    }
}

/// One request over a connection of its own.
pub async fn send(to: &Node, text: &[u8]) -> (u16, String, Vec<u8>) {
    let mut stream = connect(to).await;
    stream.write_all(text).await.expect("sent");
    answer(&mut stream).await
}

/// Whether the other end closes the connection in time.
pub async fn is_closed(stream: &mut TcpStream, within: Duration) -> bool {
    let mut buf = [0; 64 << 10];
    let closed = async {
        while let Ok(n) = stream.read(&mut buf).await {
            if n == 0 {
                break;
            }
        }
    };
    timeout(within, closed).await.is_ok()
}
