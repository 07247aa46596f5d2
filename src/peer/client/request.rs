//! One request to one node, and its answer: checked to come from a node with the key, and to be this request's.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reqwest::header::{AUTHORIZATION, CONTENT_LENGTH, HeaderMap, HeaderValue};
use reqwest::{Method, Response, StatusCode};
use tokio::time::{Instant, timeout};

use super::Inner;
use super::scores::Outcome;
use crate::error::{Error, Kind, Result, ResultExt};
use crate::peer::auth::{Answer, Pass, Signed};
use crate::peer::protocol::{
    BODY, ChunkAsk, Elsewhere, Failure, HASH, MAC, MAX_JSON, NODE, Route, VERIFIED, parse_hash,
};
use crate::peer::types::{Holder, NodeId};

/// A node's answer to a request for a chunk.
#[derive(Debug)]
pub(super) enum Answered {
    Chunk(Opened),
    /// Busy: these have it or are getting it.
    Elsewhere(Vec<Holder>),
    Absent,
    /// The wait is over; the transfer is not.
    Underway,
}

/// A node's answer to a request for a fill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Filled {
    Done,
    /// The wait is over; the fill goes on.
    Underway,
}

/// A chunk's bytes, about to come.
#[derive(Debug)]
pub(super) struct Opened {
    pub holder: Holder,
    /// `None`: it passes on what comes to it, and does not know yet.
    pub hash: Option<[u8; 32]>,
    pub verified: bool,
    /// Where in the chunk the body begins.
    pub from: u32,
    /// Bytes that are still to come.
    pub left: u32,
    response: Box<Response>,
}

impl Opened {
    /// The next piece; `None` after the last. Nothing is lost if the future is dropped.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        while self.left > 0 {
            let piece = match self.response.chunk().await {
                Ok(Some(piece)) => piece,
                Ok(None) => {
                    return Err(Error::new(Kind::Unavailable, format!("{} bytes too few", self.left)));
                }
                Err(e) => return Err(translate(e)),
            };
            if piece.len() > self.left as usize {
                return Err(Error::new(Kind::Corrupt, "more bytes than announced"));
            }
            self.left -= piece.len() as u32;
            if !piece.is_empty() {
                return Ok(Some(piece));
            }
        }
        Ok(None)
    }
}

/// An answer whose MAC is right.
struct Checked {
    status: StatusCode,
    node: NodeId,
    len: u64,
    hash: Option<[u8; 32]>,
    verified: Option<bool>,
    response: Response,
}

/// As errors and logs name a node.
pub(super) fn name(holder: &Holder) -> String {
    format!("node {} at {}", holder.node, holder.addr)
}

/// What went wrong, without the URL: the name of the node stands beside it.
fn translate(error: reqwest::Error) -> Error {
    let kind = if error.is_timeout() { Kind::TimedOut } else { Kind::Unavailable };
    Error::with_source(kind, "no bytes", error.without_url())
}

/// Whether the machine is there and says that nobody listens at that port.
fn is_refused(error: &reqwest::Error) -> bool {
    let first = std::error::Error::source(error);
    let mut causes = std::iter::successors(first, |cause| cause.source());
    let refused = |io: &std::io::Error| io.kind() == std::io::ErrorKind::ConnectionRefused;
    error.is_connect() && causes.any(|cause| cause.downcast_ref().is_some_and(refused))
}

impl Inner {
    /// Asks `holder` for `len` bytes of a chunk, less those before `ask.from`.
    pub async fn ask_chunk(&self, holder: &Holder, ask: ChunkAsk, len: u32) -> Result<Answered> {
        self.scores.asked(holder.node);
        let started = Instant::now();
        let answered = self.try_chunk(holder, ask, len).await.context(|| name(holder));
        match &answered {
            Ok(Answered::Chunk(_)) => {
                // Time spent in waiting for a transfer says nothing about the node.
                self.scores.began(holder.node, ask.wait.is_none().then(|| started.elapsed()));
            }
            Ok(Answered::Elsewhere(_)) => self.scores.outcome(holder.node, Outcome::Busy),
            Ok(Answered::Absent) => self.scores.outcome(holder.node, Outcome::Absent),
            Ok(Answered::Underway) => {}
            Err(_) => self.scores.outcome(holder.node, Outcome::Failed),
        }
        answered
    }

    async fn try_chunk(&self, holder: &Holder, ask: ChunkAsk, len: u32) -> Result<Answered> {
        let limit = self.times.answer + ask.wait.unwrap_or_default();
        let route = Route::Chunk(ask);
        let answer = self.send(holder.addr, holder.node, &route, None, limit).await?;
        let status = answer.status;
        match status {
            StatusCode::OK => {
                let (hash, Some(verified)) = (answer.hash, answer.verified) else {
                    return Err(Error::new(Kind::Corrupt, "an answer without a word of what it is"));
                };
                if hash.is_none() && !ask.live {
                    return Err(Error::new(Kind::Corrupt, "an answer without a hash"));
                }
                let left = len.saturating_sub(ask.from);
                if answer.len != u64::from(left) {
                    let why = format!("{} bytes instead of {left}", answer.len);
                    return Err(Error::with_source(Kind::Corrupt, "a chunk of another length", why));
                }
                let response = Box::new(answer.response);
                Ok(Answered::Chunk(Opened {
                    holder: holder.clone(),
                    hash,
                    verified,
                    from: ask.from,
                    left,
                    response,
                }))
            }
            StatusCode::NOT_FOUND | StatusCode::MISDIRECTED_REQUEST => Ok(Answered::Absent),
            StatusCode::SERVICE_UNAVAILABLE => {
                let mut others = Elsewhere::parse(&self.body(answer).await?);
                others.retain(|h| h.node != self.node && h.node != holder.node);
                Ok(Answered::Elsewhere(others))
            }
            StatusCode::GATEWAY_TIMEOUT => Ok(Answered::Underway),
            status => Err(refusal(status)),
        }
    }

    /// Sends a request and checks the answer. `to` 0: whoever it is. The body of the answer is not read.
    async fn send(
        &self,
        addr: SocketAddr,
        to: NodeId,
        route: &Route,
        body: Option<Bytes>,
        limit: Duration,
    ) -> Result<Checked> {
        let target = route.target();
        let method = if body.is_some() { Method::POST } else { Method::GET };
        let hash = body.as_ref().map(|b| *blake3::hash(b).as_bytes());
        let signed = Signed { method: method.as_str(), target: &target, body: hash };
        let mut again = true;
        loop {
            let pass = Pass::issue(&self.key, self.node, to, self.directory.now_ms(), &signed);
            let mut authorization = HeaderValue::try_from(pass.header())
                .map_err(|e| Error::with_source(Kind::Internal, "a request to a peer", e))?;
            authorization.set_sensitive(true);
            let mut request = self
                .http
                .request(method.clone(), format!("http://{addr}{target}"))
                .header(AUTHORIZATION, authorization);
            if let (Some(body), Some(hash)) = (&body, hash) {
                request = request.header(BODY, hex::encode(hash)).body(body.clone());
            }
            let sent = timeout(limit, request.send()).await;
            match sent
                .map_err(|_| Error::new(Kind::TimedOut, format!("no answer for {} s", limit.as_secs_f32())))?
            {
                Ok(response) => return self.check(response, &pass),
                // A kept connection may have been closed there just when it was used here.
                Err(e) if again && e.is_request() && !e.is_connect() && !e.is_timeout() => again = false,
                Err(e) => {
                    if is_refused(&e) && to != NodeId(0) {
                        self.directory.refused(to);
                    }
                    return Err(translate(e));
                }
            }
        }
    }

    fn check(&self, response: Response, pass: &Pass) -> Result<Checked> {
        let status = response.status();
        if status == StatusCode::UNAUTHORIZED {
            let why = "it does not know this volume's key, or the clocks differ";
            return Err(Error::with_source(Kind::Unavailable, "the request was refused", why));
        }
        let headers = response.headers();
        let read = || {
            let hash = optional(headers, HASH, parse_hash)?;
            let verified = optional(headers, VERIFIED, |v| match v {
                "0" => Some(false),
                "1" => Some(true),
                _ => None,
            })?;
            let node = text(headers, NODE)?.parse().ok()?;
            let len = text(headers, CONTENT_LENGTH.as_str())?.parse().ok()?;
            let answer = Answer { nonce: pass.nonce, status: status.as_u16(), node, len, hash, verified };
            let right = answer.has_mac(&self.key, text(headers, MAC)?);
            (right && (pass.to == NodeId(0) || node == pass.to || status == StatusCode::MISDIRECTED_REQUEST))
                .then_some((node, len, hash, verified))
        };
        match read() {
            Some((node, len, hash, verified)) => Ok(Checked { status, node, len, hash, verified, response }),
            None => Err(Error::new(Kind::Unavailable, "the answer is not signed by a node of this volume")),
        }
    }

    /// A short body, as its MAC has it.
    async fn body(&self, mut answer: Checked) -> Result<BytesMut> {
        let mut body = BytesMut::new();
        if answer.len > MAX_JSON as u64 {
            return Err(Error::new(Kind::Corrupt, "an answer that is too long"));
        }
        let read = async {
            while let Some(piece) = answer.response.chunk().await.map_err(translate)? {
                if body.len() + piece.len() > MAX_JSON {
                    return Err(Error::new(Kind::Corrupt, "an answer that is too long"));
                }
                body.extend_from_slice(&piece);
            }
            Ok(())
        };
        timeout(self.times.answer, read)
            .await
            .map_err(|_| Error::new(Kind::TimedOut, "an answer stopped half way"))??;
        let right = match answer.hash {
            Some(hash) => blake3::hash(&body) == hash,
            None => body.is_empty(),
        };
        if right { Ok(body) } else { Err(Error::new(Kind::Corrupt, "an answer was changed on its way")) }
    }

    /// Asks who is at `addr`.
    pub async fn ping(&self, addr: SocketAddr) -> Result<NodeId> {
        let answer = self.send(addr, NodeId(0), &Route::Ping, None, self.times.answer).await?;
        let (node, status) = (answer.node, answer.status);
        self.body(answer).await?;
        if status == StatusCode::OK { Ok(node) } else { Err(refusal(status)) }
    }

    /// Asks a node to fetch a chunk from the Hub, and waits for it so long.
    pub async fn fill(&self, holder: &Holder, body: Bytes, limit: Duration) -> Result<Filled> {
        let route = Route::Fill(limit);
        let answer =
            self.send(holder.addr, holder.node, &route, Some(body), limit + self.times.answer).await?;
        match answer.status {
            StatusCode::OK => self.body(answer).await.map(|_| Filled::Done),
            StatusCode::BAD_GATEWAY => Err(Failure::parse(&self.body(answer).await?)),
            StatusCode::GATEWAY_TIMEOUT => Ok(Filled::Underway),
            StatusCode::SERVICE_UNAVAILABLE => {
                Err(Error::new(Kind::Unavailable, "it has no place for fills"))
            }
            StatusCode::NOT_FOUND | StatusCode::MISDIRECTED_REQUEST => {
                Err(Error::new(Kind::Unavailable, "it was started anew or is ending"))
            }
            status => Err(refusal(status)),
        }
    }
}

fn refusal(status: StatusCode) -> Error {
    match status {
        StatusCode::FORBIDDEN => Error::new(Kind::Unavailable, "this node is put out"),
        status => Error::new(Kind::Unavailable, format!("it answered {}", status.as_u16())),
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// `Some(None)`: it is not there. `None`: it makes no sense.
fn optional<T>(headers: &HeaderMap, name: &str, parse: impl Fn(&str) -> Option<T>) -> Option<Option<T>> {
    match headers.get(name) {
        None => Some(None),
        Some(value) => parse(value.to_str().ok()?).map(Some),
    }
}
