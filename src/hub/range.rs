//! Bytes of files: one range, one request, checked on the way.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use reqwest::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_RANGE, HeaderMap, HeaderValue, RANGE};
use reqwest::{Response, StatusCode, Url};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout};

use super::answer::{Failure, Next, refusal};
use super::client::{Answer, HubClient, Inner};
use super::flow;
use super::locations::{Cell, Located};
use super::pace::Bucket;
use super::shared::{Place, Shared, Ticket};
use crate::error::{Error, Kind, Result, ResultExt};
use crate::types::{BlobId, Origin};

/// Some servers ignore Range for small files: so much is read and thrown away, not more.
const MOST_SKIPPED: u64 = 32 << 20;

/// The bytes of a range, in order: exactly as many as asked for, or an error at the end.
pub type RangeStream = BoxStream<'static, Result<Bytes>>;

/// What is wanted, for checks and messages.
struct Ask<'a> {
    origin: &'a Origin,
    blob: BlobId,
    size: u64,
    range: Range<u64>,
}

impl HubClient {
    /// Opens `range` of the file at `origin`, which must be `blob` with `size` bytes.
    ///
    /// Bounded by the deadline until the first byte, and by the read timeout between bytes; a body that breaks off is
    /// not resumed here. The length is exact; the bytes are not hashed.
    ///
    /// # Errors
    /// [`Kind::NotFound`], [`Kind::Access`] as the Hub says; [`Kind::Corrupt`] when it has another content or another
    /// size there; [`Kind::Invalid`] for a range outside of `0..size`.
    pub async fn open_range(
        &self,
        origin: &Origin,
        blob: BlobId,
        size: u64,
        range: Range<u64>,
    ) -> Result<RangeStream> {
        let what = || format!("{origin} bytes {}..{}", range.start, range.end);
        if range.start > range.end || range.end > size {
            return Err(Error::new(Kind::Invalid, what()));
        }
        if range.is_empty() {
            return Ok(stream::empty().boxed());
        }
        let ask = Ask { origin, blob, size, range: range.clone() };
        let inner = &*self.0;
        let opened = inner.with_tries(|| async {
            let permit = inner.transfers.clone().acquire_owned().await;
            let permit = permit.map_err(|_| Failure::give_up(Kind::Internal, "limit"))?;
            let mut open = inner.flow.open();
            let response = inner.open(&ask).await.inspect_err(|failure| {
                if matches!(failure.next, Next::Retry | Next::Wait(_)) {
                    inner.flow.refused();
                }
            })?;
            open.begins();
            let under_way = UnderWay { flow: inner.flow.clone(), _open: open, _permit: permit };
            ask.check(response, under_way, inner.options.read_timeout)
        });
        opened.await.context(what)
    }
}

impl Inner {
    /// The answer that carries the bytes, from the Hub or from its CDN.
    async fn open(&self, ask: &Ask<'_>) -> Result<Response, Failure> {
        let cell = self.locations.cell(ask.origin);
        let mut was_known = cell.initialized();
        let mut direct = None;
        let located = cell.get_or_try_init(async || {
            let ticket = match self.place(ask).await {
                Err(located) => {
                    was_known = true;
                    return Ok(located);
                }
                Ok(ticket) => ticket,
            };
            let (located, response) = self.resolve(ask).await?;
            direct = response;
            if let (Some(ticket), Located::Cdn { url, until }) = (ticket, &located) {
                ticket.found(url, until.saturating_duration_since(Instant::now()));
            }
            Ok::<_, Failure>(located)
        });
        let located = located.await?.clone();
        match (direct, located) {
            (Some(response), _) => Ok(response),
            (None, Located::Hub) => match self.resolve(ask).await? {
                (_, Some(response)) => Ok(response),
                (_, None) => {
                    self.locations.forget(ask.origin, &cell);
                    Err(Failure {
                        error: Error::new(Kind::Unavailable, "the file moved to the CDN"),
                        next: Next::Again,
                    })
                }
            },
            (None, Located::Cdn { url, .. }) => {
                let asked = Instant::now();
                let sent = self.send(&self.data, url.clone(), &headers(&ask.range), None).await;
                let answer = match sent {
                    Ok(response) => {
                        self.flow.answered(asked.elapsed());
                        self.cdn_answer(ask, &cell, was_known, response)
                    }
                    Err(failure) => {
                        // Perhaps that host is gone: the Hub may name another.
                        self.locations.forget(ask.origin, &cell);
                        Err(failure)
                    }
                };
                if answer.is_err()
                    && !self.locations.has(ask.origin, &cell)
                    && let Some(shared) = self.shared_for(ask.blob)
                {
                    shared.refused(ask.blob, url.as_str()).await;
                }
                answer
            }
        }
    }

    /// The other clients, for blobs that the Hub does not send itself.
    fn shared_for(&self, blob: BlobId) -> Option<&Arc<dyn Shared>> {
        self.shared().filter(|_| matches!(blob, BlobId::Sha256(_)))
    }

    /// What the other clients know of the place; else this one asks, and owes them the answer if there is a ticket.
    async fn place(&self, ask: &Ask<'_>) -> Result<Option<Ticket>, Located> {
        let Some(shared) = self.shared_for(ask.blob) else { return Ok(None) };
        let limit = self.options.connect_timeout + self.options.read_timeout;
        match shared.locate(ask.blob, limit.min(self.options.deadline / 2)).await {
            Place::Known { url, lasts } => match Url::parse(&url) {
                // What others say is not believed as far as to carry anything to the Hub itself.
                Ok(url) if matches!(url.scheme(), "http" | "https") && !self.urls.is_hub(&url) => {
                    Err(Located::cdn_for(url, lasts))
                }
                _ => Ok(None),
            },
            Place::Ask(number) => Ok(Some(Ticket::new(shared.clone(), ask.blob, number))),
            Place::Alone => Ok(None),
        }
    }

    /// Asks the Hub; it answers the bytes or says where they are.
    async fn resolve(&self, ask: &Ask<'_>) -> Result<(Located, Option<Response>), Failure> {
        let Origin { repo, commit, path } = ask.origin;
        let url = self.urls.resolve(repo, &commit.to_string(), path)?;
        let Answer { response, elsewhere, etag, .. } =
            self.ask(&self.data, Bucket::Resolvers, url, &headers(&ask.range)).await?;
        // Mirrors may leave it out; what is there must fit.
        if let Some(other) = etag.and_then(|tag| BlobId::from_etag(&tag)).filter(|other| *other != ask.blob) {
            return Err(Failure::give_up(
                Kind::Corrupt,
                format!("the Hub has {other} where {} was", ask.blob),
            ));
        }
        Ok(match elsewhere {
            Some(url) => (Located::cdn(url), None),
            None => (Located::Hub, Some(response)),
        })
    }

    fn cdn_answer(
        &self,
        ask: &Ask<'_>,
        cell: &Cell,
        was_known: bool,
        response: Response,
    ) -> Result<Response, Failure> {
        let status = response.status();
        if status.is_success() || status == StatusCode::RANGE_NOT_SATISFIABLE {
            return Ok(response);
        }
        if !matches!(status.as_u16(), 400..=407 | 410) {
            return Err(refusal(status, response.headers(), false));
        }
        // The signature has run out, or whatever else: the Hub can sign anew. What a CDN refuses says nothing about
        // the caller's rights or about what exists: only the Hub can say that.
        self.locations.forget(ask.origin, cell);
        let next = if was_known { Next::Again } else { Next::Retry };
        let error =
            Error::new(Kind::Unavailable, format!("the CDN answered {} to a signed URL", status.as_u16()));
        Err(Failure { error, next })
    }
}

fn headers(range: &Range<u64>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if let Ok(value) = HeaderValue::try_from(format!("bytes={}-{}", range.start, range.end - 1)) {
        headers.insert(RANGE, value);
    }
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    headers
}

impl Ask<'_> {
    /// Turns an answer into bytes, if it is what was asked for.
    fn check(
        &self,
        response: Response,
        under_way: UnderWay,
        read_timeout: Duration,
    ) -> Result<RangeStream, Failure> {
        let text = |name| response.headers().get(name).and_then(|v: &HeaderValue| v.to_str().ok());
        let corrupt = |text: String| Failure::give_up(Kind::Corrupt, text);
        if let Some(encoding) = text(CONTENT_ENCODING).filter(|e| !e.eq_ignore_ascii_case("identity")) {
            return Err(Failure::give_up(
                Kind::Unavailable,
                format!("bytes come encoded ({encoding}), unasked"),
            ));
        }
        let mut skip = 0;
        match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let told = text(CONTENT_RANGE).unwrap_or("");
                let (range, total) =
                    content_range(told).ok_or_else(|| corrupt(format!("Content-Range {told:?}")))?;
                if range != self.range || total.is_some_and(|total| total != self.size) {
                    return Err(corrupt(format!("Content-Range {told:?} of a file of {} bytes", self.size)));
                }
            }
            StatusCode::OK => {
                if response.content_length().is_some_and(|length| length != self.size) {
                    let length = response.content_length().unwrap_or_default();
                    return Err(corrupt(format!("{length} bytes instead of {}", self.size)));
                }
                skip = self.range.start;
                if skip > MOST_SKIPPED {
                    return Err(Failure::give_up(Kind::Unavailable, "the server ignores Range"));
                }
            }
            StatusCode::RANGE_NOT_SATISFIABLE => {
                return Err(corrupt(format!("the file is shorter than {} bytes", self.size)));
            }
            status => return Err(corrupt(format!("status {status} to a request for a range"))),
        }
        let body = Body {
            response,
            skip,
            left: self.range.end - self.range.start,
            name: format!("{} bytes {}..{}", self.origin, self.range.start, self.range.end),
            read_timeout,
            under_way,
        };
        Ok(stream::try_unfold(body, Body::next).boxed())
    }
}

/// `bytes 5-9/20` → `5..10`, 20; the total may be `*`.
fn content_range(text: &str) -> Option<(Range<u64>, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let total = if total == "*" { None } else { Some(total.parse().ok()?) };
    Some((first.parse().ok()?..last.parse::<u64>().ok()?.checked_add(1)?, total))
}

/// What a body takes of what its client has.
struct UnderWay {
    flow: flow::Flow,
    _open: flow::Open,
    _permit: OwnedSemaphorePermit,
}

/// A body on its way.
struct Body {
    response: Response,
    /// Bytes before the range that a server sent although not asked to.
    skip: u64,
    left: u64,
    name: String,
    read_timeout: Duration,
    under_way: UnderWay,
}

impl Body {
    async fn next(mut self) -> Result<Option<(Bytes, Self)>> {
        while self.left > 0 {
            let chunk = match timeout(self.read_timeout, self.response.chunk()).await {
                Err(_) => Err(Error::new(Kind::TimedOut, "no bytes")),
                Ok(Err(e)) => Err(Failure::from(e).error),
                Ok(Ok(None)) => Err(Error::new(Kind::Unavailable, format!("{} bytes too few", self.left))),
                Ok(Ok(Some(chunk))) => Ok(chunk),
            };
            let mut chunk = chunk.context(|| self.name.clone())?;
            self.under_way.flow.took(chunk.len());
            let skipped = self.skip.min(chunk.len() as u64);
            self.skip -= skipped;
            chunk = chunk.slice(usize::try_from(skipped).expect("at most its length")..);
            if let Ok(left) = usize::try_from(self.left) {
                chunk.truncate(left);
            }
            if !chunk.is_empty() {
                self.left -= chunk.len() as u64;
                return Ok(Some((chunk, self)));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges() {
        assert_eq!(content_range("bytes 5-9/20"), Some((5..10, Some(20))));
        assert_eq!(content_range("bytes 0-0/*"), Some((0..1, None)));
        for bad in ["", "bytes */20", "bytes 5-/20", "items 5-9/20", "bytes 5-9"] {
            assert_eq!(content_range(bad), None, "{bad}");
        }
    }
}
