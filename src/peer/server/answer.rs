//! From a request to its answer.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hyper::body::{Body, Incoming};
use hyper::header::{AUTHORIZATION, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::{Request, Response, StatusCode};
use tokio::time::{Instant, timeout, timeout_at};

use super::body::{Reply, Upload};
use super::shelf::{Shelf, Waited};
use super::uploads::FIRST;
use super::watched::Watch;
use super::{Inner, LONGEST_FILL, LONGEST_LOOK, LONGEST_WAIT};
use crate::error::{Error, Kind, Result};
use crate::peer::auth::{Answer, Pass, Refused, Signed};
use crate::peer::protocol::{
    BODY, ChunkAsk, Elsewhere, Failure, FillAsk, HASH, MAC, MAX_ASK, MAX_CHUNK, NODE, Route, VERIFIED,
    parse_hash,
};
use crate::peer::types::{Holder, NodeId};
use crate::types::BlobId;

/// What is to be answered, before it is signed.
struct Said {
    status: StatusCode,
    reply: Reply,
    hash: Option<[u8; 32]>,
    verified: Option<bool>,
}

impl Said {
    fn nothing(status: StatusCode) -> Self {
        Said { status, reply: Reply::whole(Bytes::new()), hash: None, verified: None }
    }

    fn json(status: StatusCode, value: &impl serde::Serialize) -> Self {
        let Ok(text) = serde_json::to_vec(value) else {
            return Self::nothing(StatusCode::INTERNAL_SERVER_ERROR);
        };
        let hash = Some(*blake3::hash(&text).as_bytes());
        Said { status, reply: Reply::whole(text.into()), hash, verified: None }
    }

    fn elsewhere(holders: &[Holder]) -> Self {
        Self::json(StatusCode::SERVICE_UNAVAILABLE, &Elsewhere::of(holders))
    }
}

/// Answers one request.
pub(super) async fn answer(
    inner: Arc<Inner>,
    watch: Arc<Watch>,
    request: Request<Incoming>,
) -> Response<Reply> {
    let busy = watch.busy();
    let Some(pass) = check(&inner, &request) else {
        // To strangers all requests look alike.
        let mut response = Response::new(Reply::whole(Bytes::new()).during(busy));
        *response.status_mut() = StatusCode::UNAUTHORIZED;
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        return response;
    };
    watch.is_known();
    inner.counters.requests.fetch_add(1, Relaxed);
    let said = say(&inner, &pass, request).await;
    sign(&inner, &pass, said, busy)
}

/// The pass of a request that may be answered.
fn check<B>(inner: &Inner, request: &Request<B>) -> Option<Pass> {
    let text = |name: &str| request.headers().get(name).and_then(|v| v.to_str().ok());
    let admitted = || {
        let pass = Pass::parse(text(AUTHORIZATION.as_str())?)?;
        let body = match request.headers().get(BODY) {
            Some(_) => Some(parse_hash(text(BODY)?)?),
            None => None,
        };
        let target = request.uri().path_and_query()?.as_str();
        let signed = Signed { method: request.method().as_str(), target, body };
        pass.is_for(&inner.key, &signed).then_some(pass)
    };
    let Some(pass) = admitted() else {
        inner.counters.refused.fetch_add(1, Relaxed);
        return None;
    };
    match inner.window.admit(&pass, inner.directory.now_ms()) {
        Ok(()) => Some(pass),
        Err(Refused::Time) => {
            inner.counters.refused.fetch_add(1, Relaxed);
            tracing::debug!(node = %pass.node, "a peer's request has a time that is off");
            None
        }
        Err(Refused::Replay) => {
            inner.counters.replays.fetch_add(1, Relaxed);
            // Whoever recorded it may send it a thousand times: no line for each.
            tracing::debug!(node = %pass.node, "a peer's request came a second time");
            None
        }
    }
}

async fn say(inner: &Arc<Inner>, pass: &Pass, request: Request<Incoming>) -> Said {
    if inner.directory.is_blocked(pass.node) {
        inner.counters.blocked.fetch_add(1, Relaxed);
        return Said::nothing(StatusCode::FORBIDDEN);
    }
    let target = request.uri().path_and_query().map_or("", |t| t.as_str());
    let Some(route) = Route::parse(request.method().as_str(), target) else {
        return Said::nothing(StatusCode::BAD_REQUEST);
    };
    if pass.to != inner.node && (pass.to != NodeId(0) || route != Route::Ping) {
        return Said::nothing(StatusCode::MISDIRECTED_REQUEST);
    }
    let Some(shelf) = inner.shelf.upgrade() else { return Said::nothing(StatusCode::NOT_FOUND) };
    match route {
        Route::Ping => Said::json(StatusCode::OK, &serde_json::json!({ "slots": inner.uploads.free() })),
        Route::Chunk(ask) => chunk(inner, pass.node, &*shelf, ask).await,
        Route::Fill(wait) => fill(inner, &*shelf, request, wait).await,
    }
}

fn sign(inner: &Inner, pass: &Pass, said: Said, busy: super::watched::Busy) -> Response<Reply> {
    let Said { status, reply, hash, verified } = said;
    let len = reply.len();
    let answer = Answer { nonce: pass.nonce, status: status.as_u16(), node: inner.node, len, hash, verified };
    let mut response = Response::new(reply.during(busy));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    let mut set = |name: &'static str, value: String| {
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(name, value);
        }
    };
    set(NODE, inner.node.to_string());
    set(MAC, answer.mac(&inner.key));
    if let Some(hash) = hash {
        set(HASH, hex::encode(hash));
    }
    if let Some(verified) = verified {
        set(VERIFIED, u8::from(verified).to_string());
    }
    headers.insert(CONTENT_LENGTH, HeaderValue::from(len));
    let kind = if verified.is_some() { "application/octet-stream" } else { "application/json" };
    if len > 0 {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    }
    if status == StatusCode::SERVICE_UNAVAILABLE {
        headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

async fn chunk(inner: &Arc<Inner>, node: NodeId, shelf: &dyn Shelf, ask: ChunkAsk) -> Said {
    let ChunkAsk { blob, idx, from, wait, live, size } = ask;
    let counters = &inner.counters;
    let directory = &*inner.directory;
    let deadline = wait.map(|wait| Instant::now() + wait.min(LONGEST_WAIT));
    let seat = match inner.uploads.sit(blob, idx, node, directory) {
        Ok(seat) => seat,
        Err(seated) => {
            counters.redirected.fetch_add(1, Relaxed);
            return Said::elsewhere(&seated);
        }
    };
    let mut waited = false;
    loop {
        let busy = || {
            counters.busy.fetch_add(1, Relaxed);
            Said::elsewhere(&inner.uploads.others(blob, idx, node, directory))
        };
        let shelved = match timeout(LONGEST_LOOK, shelf.chunk(blob, idx)).await {
            Ok(Ok(Some(shelved))) => shelved,
            Ok(Ok(None)) => {
                let Some(deadline) = deadline.filter(|_| !waited) else { break };
                waited = true;
                counters.waits.fetch_add(1, Relaxed);
                if let Some(size) = size.filter(|size| makes_sense(*size, idx)) {
                    let begun = timeout_at(deadline, shelf.begin(blob, size, idx)).await;
                    if let Ok(Err(error)) = begun {
                        tracing::debug!(%blob, idx, %error, "not begun for a peer");
                    }
                }
                match timeout_at(deadline, shelf.wait(blob, idx, live)).await {
                    Ok(Waited::Landed) => continue,
                    Ok(Waited::Absent) => break,
                    Ok(Waited::Coming(shelved)) => {
                        counters.passed_on.fetch_add(1, Relaxed);
                        shelved
                    }
                    Err(_) => {
                        seat.again();
                        return Said::nothing(StatusCode::GATEWAY_TIMEOUT);
                    }
                }
            }
            Ok(Err(error)) if error.kind() == Kind::Busy => return busy(),
            Ok(Err(error)) => {
                counters.failed.fetch_add(1, Relaxed);
                tracing::warn!(%blob, idx, %error, "a chunk cannot be given to a peer");
                return Said::nothing(StatusCode::INTERNAL_SERVER_ERROR);
            }
            Err(_) => {
                counters.failed.fetch_add(1, Relaxed);
                tracing::warn!(%blob, idx, "the disk gives no chunk for a peer in time");
                return Said::nothing(StatusCode::INTERNAL_SERVER_ERROR);
            }
        };
        if from >= shelved.len {
            return Said::nothing(StatusCode::BAD_REQUEST);
        }
        // What is passed on comes as fast as it comes here.
        let turn = match shelved.hash {
            Some(_) if idx != FIRST => match inner.uploads.turn(deadline).await {
                None => return busy(),
                turn => turn,
            },
            _ => None,
        };
        let Some(slot) = inner.uploads.slot(deadline).await else { return busy() };
        let (hash, verified) = (shelved.hash, Some(shelved.verified));
        let upload = Upload {
            skip: from,
            left: shelved.len - from,
            shelved,
            piece: Bytes::new(),
            _slot: slot,
            _turn: turn,
            goes: inner.uploads.goes(idx),
            seat,
            limit: inner.limit.clone(),
            counters: counters.clone(),
            to: node,
        };
        return Said { status: StatusCode::OK, reply: Reply::chunk(upload), hash, verified };
    }
    counters.absent.fetch_add(1, Relaxed);
    Said::nothing(StatusCode::NOT_FOUND)
}

async fn fill(inner: &Arc<Inner>, shelf: &dyn Shelf, request: Request<Incoming>, wait: Duration) -> Said {
    let Ok(_place) = inner.fills.try_acquire() else {
        inner.counters.busy.fetch_add(1, Relaxed);
        return Said::elsewhere(&[]);
    };
    let Ok(Some((blob, ask))) = timeout(inner.patience.head, fill_ask(request)).await else {
        return Said::nothing(StatusCode::BAD_REQUEST);
    };
    let failed = |error: Error| Said::json(StatusCode::BAD_GATEWAY, &Failure::of(&error));
    match timeout(wait.min(LONGEST_FILL), shelf.fill(blob, ask.size, ask.chunk)).await {
        Ok(Ok(())) => {
            inner.counters.fills.fetch_add(1, Relaxed);
            Said::nothing(StatusCode::OK)
        }
        Ok(Err(error)) => {
            tracing::debug!(%blob, idx = ask.chunk, %error, "cannot fill for a peer");
            failed(error)
        }
        Err(_) => Said::nothing(StatusCode::GATEWAY_TIMEOUT),
    }
}

/// Reads the body of a fill: `None` if it is not what the MAC covers, or makes no sense.
async fn fill_ask(request: Request<Incoming>) -> Option<(BlobId, FillAsk)> {
    let told = request.headers().get(BODY).and_then(|v| parse_hash(v.to_str().ok()?))?;
    let body = read(request.into_body()).await.ok()?;
    if blake3::hash(&body) != told {
        return None;
    }
    let ask: FillAsk = serde_json::from_slice(&body).ok()?;
    let blob: BlobId = ask.blob.parse().ok()?;
    makes_sense(ask.size, ask.chunk).then_some((blob, ask))
}

/// No chunk is so large that there could be more of them than the blob has bytes; none of an empty blob is asked for.
fn makes_sense(size: u64, chunk: u64) -> bool {
    chunk < size && size <= u64::from(MAX_CHUNK).saturating_mul(1 << 32)
}

async fn read(mut body: Incoming) -> Result<BytesMut> {
    let mut all = BytesMut::new();
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        let frame = frame.map_err(|e| Error::with_source(Kind::Unavailable, "the body of a request", e))?;
        if let Ok(data) = frame.into_data() {
            if all.len() + data.len() > MAX_ASK {
                return Err(Error::new(Kind::TooLarge, "the body of a request"));
            }
            all.extend_from_slice(&data);
        }
    }
    Ok(all)
}
