//! When to try again: backoff with jitter, and what the Hub says about its rate limits, remembered for all calls.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use reqwest::header::{HeaderMap, RETRY_AFTER};
use tokio::time::Instant;

/// The Hub's windows last five minutes; nobody may ask for much more.
const LONGEST_PAUSE: Duration = Duration::from_secs(330);
const FIRST: Duration = Duration::from_millis(200);
const MOST: Duration = Duration::from_secs(8);

/// The Hub counts requests in buckets that fill apart from each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bucket {
    Api,
    Resolvers,
}

/// Until when the Hub asked to be left alone, by bucket.
#[derive(Debug, Default)]
pub struct Pauses {
    api: Mutex<Option<Instant>>,
    resolvers: Mutex<Option<Instant>>,
}

impl Pauses {
    fn slot(&self, bucket: Bucket) -> &Mutex<Option<Instant>> {
        match bucket {
            Bucket::Api => &self.api,
            Bucket::Resolvers => &self.resolvers,
        }
    }

    /// The end of the pause, if there is one now.
    pub fn until(&self, bucket: Bucket) -> Option<Instant> {
        let slot = self.slot(bucket).lock().unwrap_or_else(PoisonError::into_inner);
        slot.filter(|until| *until > Instant::now())
    }

    /// Pauses for `wait` from now; a longer pause that is under way stays.
    pub fn pause(&self, bucket: Bucket, wait: Duration) {
        let mut slot = self.slot(bucket).lock().unwrap_or_else(PoisonError::into_inner);
        let until = Instant::now() + wait.min(LONGEST_PAUSE);
        *slot = Some(slot.map_or(until, |old| old.max(until)));
    }
}

/// How long the answer asks to wait: `Retry-After: 17`, or `RateLimit: "api";r=0;t=55`.
pub fn asked_wait(headers: &HeaderMap) -> Option<Duration> {
    let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok());
    let retry_after = text(RETRY_AFTER.as_str()).and_then(|v| v.trim().parse::<u64>().ok());
    let limit = || {
        let fields = text("ratelimit")?;
        let field = |name: &str| {
            fields
                .split(';')
                .find_map(|f| f.trim().strip_prefix(name)?.strip_prefix('=')?.parse::<u64>().ok())
        };
        // With requests left there is nothing to wait for.
        (field("r") == Some(0)).then(|| field("t"))?
    };
    // A date in Retry-After is possible; the backoff serves for it.
    Some(Duration::from_secs(retry_after.or_else(limit)?).min(LONGEST_PAUSE))
}

/// The wait before try number `attempt + 1`: doubles, and differs from that of others who failed at the same moment.
pub fn backoff(attempt: u32) -> Duration {
    let full = FIRST.saturating_mul(1 << attempt.min(10)).min(MOST);
    full.mul_f64(rand::random_range(0.5..1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use reqwest::header::HeaderValue;

    fn headers(name: &'static str, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(
            reqwest::header::HeaderName::from_static(name),
            HeaderValue::from_static(value),
        )])
    }

    #[test]
    fn waits_that_servers_ask_for() {
        let wait = |n, v| asked_wait(&headers(n, v)).map(|d| d.as_secs());
        assert_eq!(wait("retry-after", "17"), Some(17));
        assert_eq!(wait("retry-after", "Wed, 21 Oct 2026 07:28:00 GMT"), None);
        assert_eq!(wait("retry-after", "99999999"), Some(330));
        assert_eq!(wait("ratelimit", "\"api\";r=0;t=55"), Some(55));
        assert_eq!(wait("ratelimit", "\"api\";r=12;t=55"), None);
        assert_eq!(wait("x-other", "1"), None);
    }

    #[tokio::test]
    async fn a_pause_is_per_bucket_and_ends() {
        let pauses = Pauses::default();
        let begun = Instant::now();
        pauses.pause(Bucket::Api, Duration::from_millis(60));
        pauses.pause(Bucket::Api, Duration::from_millis(1));
        assert!(pauses.until(Bucket::Resolvers).is_none());
        let until = pauses.until(Bucket::Api).expect("a pause");
        assert!(until - begun >= Duration::from_millis(60));
        tokio::time::sleep_until(until).await;
        assert!(pauses.until(Bucket::Api).is_none());
    }

    #[test]
    fn backoff_grows_and_is_bounded() {
        assert!(backoff(0) <= FIRST);
        assert!(backoff(3) >= FIRST * 4);
        assert!(backoff(60) <= MOST);
    }
}
