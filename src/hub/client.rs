//! The machinery under every call: connections, the token, redirects, tries and their pace.

use std::future::Future;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, LOCATION};
use reqwest::{Client, Response, Url, redirect};
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout, timeout_at};

use super::answer::{Failure, Next, refusal};
use super::flow::Flow;
use super::locations::Locations;
use super::options::HubOptions;
use super::pace::{Bucket, Pauses, asked_wait, backoff};
use super::shared::Shared;
use super::urls::Urls;
use crate::error::{Error, Kind, Result};

/// Tries of one call, when nothing else ends it.
const TRIES: u32 = 6;
const REDIRECTS: usize = 5;
/// Far above a page of a tree or the file list of a large repository.
const LARGEST_JSON: usize = 64 << 20;

/// A client of the Hub's API. Cheap to clone; all clones share connections, limits and what they have learnt.
#[derive(Clone, Debug)]
pub struct HubClient(pub(super) Arc<Inner>);

#[derive(Debug)]
pub(super) struct Inner {
    pub options: HubOptions,
    pub urls: Urls,
    /// For the API.
    api: Client,
    /// For bytes: HTTP/1.1, since one HTTP/2 connection carries less than several plain ones.
    pub data: Client,
    authorization: Option<HeaderValue>,
    calls: Semaphore,
    pub transfers: Arc<Semaphore>,
    pub flow: Flow,
    pauses: Pauses,
    shared: OnceLock<Arc<dyn Shared>>,
    pub locations: Locations,
}

/// An answer to keep: a success, or a redirect to another origin.
#[derive(Debug)]
pub(super) struct Answer {
    pub response: Response,
    /// The URL that answered, after redirects within the Hub.
    pub url: Url,
    /// Where the Hub sends to.
    pub elsewhere: Option<Url>,
    /// Content's name as the Hub gave it on the way: `X-Linked-Etag`, else the ETag of its own answer; unquoted.
    pub etag: Option<String>,
}

impl HubClient {
    /// A client. No connection is made yet.
    ///
    /// # Errors
    /// [`Kind::Config`] for an endpoint that is not an http(s) URL, or when the system's certificates cannot be loaded.
    pub fn new(options: HubOptions) -> Result<Self> {
        // An error says that one is installed already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let urls = Urls::new(&options.endpoint)?;
        let client = |builder: reqwest::ClientBuilder| {
            builder
                .user_agent(&options.user_agent)
                // By hand: the token must not follow, and signed URLs are kept.
                .redirect(redirect::Policy::none())
                .retry(reqwest::retry::never())
                .connect_timeout(options.connect_timeout)
                .tcp_nodelay(true)
                .tcp_keepalive(Duration::from_secs(30))
                .pool_idle_timeout(Duration::from_secs(60))
                .build()
        };
        let api = || Client::builder();
        let data = || Client::builder().http1_only().pool_max_idle_per_host(options.transfers);
        let built = client(api()).and_then(|api| Ok((api, client(data())?)));
        let (api, data) = match built {
            // A slim container without certificates can still use a mirror over plain http.
            Err(_) if urls.is_plain() => client(api().tls_certs_only([]))
                .and_then(|api| Ok((api, client(data().tls_certs_only([]))?)))
                .map_err(|e| Error::with_source(Kind::Config, "HTTP client", e))?,
            Err(e) => {
                let hint = "HTTP client (are certificates installed, or SSL_CERT_FILE set?)";
                return Err(Error::with_source(Kind::Config, hint, e));
            }
            Ok(clients) => clients,
        };
        let authorization = options.token.as_ref().map(|token| {
            let value = HeaderValue::try_from(format!("Bearer {}", token.expose()));
            value.map_err(|_| Error::new(Kind::Config, "the Hub token cannot be sent in a header"))
        });
        let authorization = authorization.transpose()?.map(|mut value| {
            value.set_sensitive(true);
            value
        });
        Ok(HubClient(Arc::new(Inner {
            urls,
            api,
            data,
            authorization,
            calls: Semaphore::new(options.concurrency.max(1)),
            transfers: Arc::new(Semaphore::new(options.transfers.max(1))),
            flow: Flow::new(options.transfers),
            pauses: Pauses::default(),
            shared: OnceLock::new(),
            locations: Locations::default(),
            options,
        })))
    }

    /// From now on pauses and places of files are shared with other clients. Once in a client's life.
    pub fn share(&self, shared: Arc<dyn Shared>) {
        let _ = self.0.shared.set(shared);
    }

    /// The endpoint, without a slash at the end.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        self.0.urls.endpoint()
    }

    /// Whether no call does any I/O.
    #[must_use]
    pub fn is_offline(&self) -> bool {
        self.0.options.offline
    }

    /// Whether calls carry a token.
    #[must_use]
    pub fn has_token(&self) -> bool {
        self.0.authorization.is_some()
    }

    /// The longest time without a byte, see [`HubOptions::deadline`].
    #[must_use]
    pub fn deadline(&self) -> Duration {
        self.0.options.deadline
    }

    /// How many bodies of files are worth having under way at once now, if some of them are not waited for: as many as it takes
    /// to use the link, and few after refusals.
    #[must_use]
    pub fn transfers(&self) -> usize {
        self.0.flow.limit()
    }

    /// A JSON answer, and the URL that gave it and its headers.
    pub(super) async fn json<T: DeserializeOwned>(
        &self,
        what: &str,
        url: &Url,
    ) -> Result<(T, Url, HeaderMap)> {
        let inner = &*self.0;
        let tried = inner.with_tries(|| async {
            let _permit =
                inner.calls.acquire().await.map_err(|_| Failure::give_up(Kind::Internal, "limit"))?;
            let answer = inner.ask(&inner.api, Bucket::Api, url.clone(), &HeaderMap::new()).await?;
            if let Some(elsewhere) = answer.elsewhere {
                let to = elsewhere.origin().ascii_serialization();
                return Err(Failure::give_up(
                    Kind::Config,
                    format!("the Hub endpoint sends to {to}: set it to that"),
                ));
            }
            let headers = answer.response.headers().clone();
            let body = inner.body(answer.response).await?;
            let value = serde_json::from_slice(&body)
                .map_err(|e| Failure::from(Error::with_source(Kind::Corrupt, "JSON of the Hub", e)))?;
            Ok((value, answer.url, headers))
        });
        tried.await.map_err(|e| e.context(what.to_owned()))
    }
}

impl Inner {
    pub fn shared(&self) -> Option<&Arc<dyn Shared>> {
        self.shared.get()
    }

    /// The Hub wants to be left alone, by everybody.
    fn pause(&self, bucket: Bucket, wait: Duration) {
        self.pauses.pause(bucket, wait);
        if let Some(shared) = self.shared() {
            shared.pause(bucket, wait);
        }
    }

    /// Until when it does, whoever was told so.
    async fn paused(&self, bucket: Bucket) -> Option<Instant> {
        if let Some(until) = self.pauses.until(bucket) {
            return Some(until);
        }
        let left = self.shared()?.paused(bucket).await;
        if left.is_zero() {
            return None;
        }
        self.pauses.pause(bucket, left);
        self.pauses.until(bucket)
    }

    /// Tries until it succeeds, cannot succeed, or the deadline is near.
    pub async fn with_tries<T, F>(&self, mut attempt: impl FnMut() -> F) -> Result<T>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        if self.options.offline {
            return Err(Error::new(Kind::Unavailable, "offline"));
        }
        let deadline = Instant::now() + self.options.deadline;
        let mut tries = 0;
        loop {
            let failure = match timeout_at(deadline, attempt()).await {
                Ok(Ok(value)) => return Ok(value),
                Ok(Err(failure)) => failure,
                Err(_) => {
                    let seconds = self.options.deadline.as_secs_f32();
                    return Err(Error::new(
                        Kind::TimedOut,
                        format!("no answer of the Hub within {seconds} s"),
                    ));
                }
            };
            tries += 1;
            let is_patient = self.options.patient || (failure.next == Next::Again && tries < TRIES);
            if !is_patient {
                return Err(failure.error);
            }
            let wait = match failure.next {
                Next::GiveUp => return Err(failure.error),
                Next::Again => Duration::ZERO,
                Next::Retry => backoff(tries - 1),
                // At least the backoff: some servers ask for 0 s and mean "not yet".
                Next::Wait(asked) => asked.max(backoff(0)),
            };
            let is_late = Instant::now() + wait >= deadline;
            match failure.next {
                Next::Wait(_) if is_late => {
                    return Err(failure.error.context(format!("not before another {} s", wait.as_secs())));
                }
                // Waits that were asked for end with the deadline, not with a number of tries.
                Next::Wait(_) => {}
                _ if is_late || tries >= TRIES => return Err(failure.error),
                _ => {}
            }
            tracing::debug!(error = %failure.error, ?wait, "trying the Hub again");
            tokio::time::sleep(wait).await;
        }
    }

    /// One GET of the Hub's own, with the token; redirects within the Hub are followed.
    pub async fn ask(
        &self,
        client: &Client,
        bucket: Bucket,
        mut url: Url,
        headers: &HeaderMap,
    ) -> Result<Answer, Failure> {
        if let Some(until) = self.paused(bucket).await {
            // Those who waited do not all come at the same moment.
            let wait = until.saturating_duration_since(Instant::now()) + backoff(0);
            let error = Error::new(Kind::Unavailable, "the Hub's rate limit is used up");
            return Err(Failure { error, next: Next::Wait(wait) });
        }
        let mut etag = None;
        for _ in 0..=REDIRECTS {
            let response = self.send(client, url.clone(), headers, self.authorization.as_ref()).await?;
            let status = response.status();
            let text = |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok());
            let plain = |tag: &str| tag.trim_start_matches("W/").trim_matches('"').to_owned();
            etag = etag.or_else(|| text("x-linked-etag").map(plain));
            if status.is_success() {
                let etag = etag.or_else(|| text("etag").map(plain));
                if let Some(wait) = asked_wait(response.headers()) {
                    // The last request that was allowed: the next ones wait here instead of being refused there.
                    self.pause(bucket, wait);
                }
                return Ok(Answer { response, url, elsewhere: None, etag });
            }
            if !matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308) {
                let failure = refusal(status, response.headers(), self.authorization.is_some());
                if let Next::Wait(wait) = failure.next {
                    self.pause(bucket, wait);
                }
                return Err(failure);
            }
            let Some(to) = text(LOCATION.as_str()).and_then(|location| url.join(location).ok()) else {
                return Err(Failure::retry(
                    Kind::Unavailable,
                    format!("a redirect ({status}) without a target"),
                ));
            };
            if !self.urls.is_hub(&to) {
                return Ok(Answer { response, url, elsewhere: Some(to), etag });
            }
            url = to;
        }
        Err(Failure::give_up(Kind::Unavailable, "too many redirects"))
    }

    /// One GET. `authorization` is refused for any origin but the Hub's.
    pub async fn send(
        &self,
        client: &Client,
        url: Url,
        headers: &HeaderMap,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response, Failure> {
        let mut request = client.get(url.clone()).headers(headers.clone());
        if let Some(value) = authorization
            && self.urls.is_hub(&url)
        {
            request = request.header(AUTHORIZATION, value.clone());
        }
        let most = self.options.connect_timeout + self.options.read_timeout;
        match timeout(most, request.send()).await {
            Ok(sent) => Ok(sent?),
            Err(_) => Err(Failure::retry(Kind::TimedOut, format!("no answer for {} s", most.as_secs_f32()))),
        }
    }

    async fn body(&self, mut response: Response) -> Result<Vec<u8>, Failure> {
        let mut body = Vec::new();
        loop {
            match timeout(self.options.read_timeout, response.chunk()).await {
                Ok(Ok(Some(bytes))) => body.extend_from_slice(&bytes),
                Ok(Ok(None)) => return Ok(body),
                Ok(Err(e)) => return Err(e.into()),
                Err(_) => return Err(Failure::retry(Kind::TimedOut, "an answer stopped half way")),
            }
            if body.len() > LARGEST_JSON {
                return Err(Failure::give_up(Kind::Corrupt, "an answer of the Hub has no end"));
            }
        }
    }
}
