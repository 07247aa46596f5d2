//! What an answer of the Hub means: the one table from status and headers to [`Kind`], and to "try again".

use std::time::Duration;

use reqwest::StatusCode;
use reqwest::header::HeaderMap;

use super::pace::asked_wait;
use crate::error::{Error, Kind};

/// Error texts come from outside: no more than this of one reaches a log.
const LONGEST_TEXT: usize = 200;

/// Why one try failed, and what is to be done.
#[derive(Debug)]
pub struct Failure {
    pub error: Error,
    pub next: Next,
}

/// What to do after a failed try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    GiveUp,
    /// At once: something that was remembered has been found stale, and forgotten.
    Again,
    /// After a backoff.
    Retry,
    /// The server named the time to wait.
    Wait(Duration),
}

impl Failure {
    pub fn give_up(kind: Kind, text: impl Into<std::borrow::Cow<'static, str>>) -> Self {
        Failure { error: Error::new(kind, text), next: Next::GiveUp }
    }

    pub fn retry(kind: Kind, text: impl Into<std::borrow::Cow<'static, str>>) -> Self {
        Failure { error: Error::new(kind, text), next: Next::Retry }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure { error, next: Next::GiveUp }
    }
}

/// The request did not get an answer. URLs are left out: signed ones are secrets.
impl From<reqwest::Error> for Failure {
    fn from(e: reqwest::Error) -> Self {
        let (kind, next) = match () {
            () if e.is_builder() => (Kind::Config, Next::GiveUp),
            () if e.is_timeout() => (Kind::TimedOut, Next::Retry),
            () => (Kind::Unavailable, Next::Retry),
        };
        Failure { error: Error::with_source(kind, "request", e.without_url()), next }
    }
}

/// The meaning of an answer that is neither a success nor a redirect.
pub fn refusal(status: StatusCode, headers: &HeaderMap, with_token: bool) -> Failure {
    let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok());
    let code = text("x-error-code").unwrap_or("");
    let message = text("x-error-message").map_or_else(
        || status.canonical_reason().unwrap_or("unknown status").to_owned(),
        |m| m.chars().take(LONGEST_TEXT).filter(|c| !c.is_control()).collect(),
    );
    let context = format!("the Hub answered {} {code}: {message}", status.as_u16());
    match status.as_u16() {
        429 => {
            let next = asked_wait(headers).map_or(Next::Retry, Next::Wait);
            return Failure { error: Error::new(Kind::Unavailable, context), next };
        }
        408 | 500..=599 => {
            let next = asked_wait(headers).map_or(Next::Retry, Next::Wait);
            return Failure { error: Error::new(Kind::Unavailable, context), next };
        }
        _ => {}
    }
    let kind = match (code, status.as_u16()) {
        // 401 without a token, 404 with one: the Hub does not tell strangers what exists.
        ("RepoNotFound" | "RevisionNotFound" | "EntryNotFound", _) => Kind::NotFound,
        ("GatedRepo", _) => Kind::Access,
        (_, 401) if with_token => {
            return Failure::give_up(Kind::Access, format!("{context} (is the token valid?)"));
        }
        (_, 401 | 403 | 451) => Kind::Access,
        (_, 404 | 410) => Kind::NotFound,
        // The range was made from the size that the Hub itself told.
        (_, 416) => Kind::Corrupt,
        // Whatever this is, it does not say that the name does not exist.
        _ => Kind::Unavailable,
    };
    Failure::give_up(kind, context)
}

#[cfg(test)]
mod tests {
    use super::*;
    use reqwest::header::{HeaderName, HeaderValue};

    fn meaning(status: u16, headers: &[(&'static str, &'static str)], with_token: bool) -> (Kind, Next) {
        let headers = headers
            .iter()
            .map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v)))
            .collect::<HeaderMap>();
        let failure = refusal(StatusCode::from_u16(status).expect("valid"), &headers, with_token);
        (failure.error.kind(), failure.next)
    }

    #[test]
    fn answers_and_their_meaning() {
        let code = |c| [("x-error-code", c)];
        let no = Next::GiveUp;
        assert_eq!(meaning(401, &code("RepoNotFound"), false), (Kind::NotFound, no));
        assert_eq!(meaning(404, &code("RepoNotFound"), true), (Kind::NotFound, no));
        assert_eq!(meaning(404, &code("EntryNotFound"), true), (Kind::NotFound, no));
        assert_eq!(meaning(401, &code("GatedRepo"), false), (Kind::Access, no));
        assert_eq!(meaning(403, &code("GatedRepo"), true), (Kind::Access, no));
        assert_eq!(meaning(401, &[], true), (Kind::Access, no));
        assert_eq!(meaning(400, &[], true), (Kind::Unavailable, no));
        assert_eq!(meaning(503, &[], true), (Kind::Unavailable, Next::Retry));
        assert_eq!(meaning(429, &[], true), (Kind::Unavailable, Next::Retry));
        let wait = Next::Wait(Duration::from_secs(55));
        assert_eq!(meaning(429, &[("ratelimit", "\"api\";r=0;t=55")], true), (Kind::Unavailable, wait));
    }

    #[test]
    fn only_the_hub_can_say_that_a_name_does_not_exist() {
        for status in (400..600).filter(|s| ![404, 410].contains(s)) {
            assert_ne!(meaning(status, &[], false).0, Kind::NotFound, "{status}");
        }
    }
}
