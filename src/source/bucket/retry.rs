//! What the store's errors mean, and how long to try again.

use std::error::Error as StdError;
use std::time::Duration;

use object_store::client::{HttpError, HttpErrorKind};
use tokio::time::Instant;

use crate::error::{Error, Kind};

/// How long to wait for a store that does not answer, or answers that it cannot now.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// One try is given up after this long without a byte of progress.
    pub progress: Duration,
    /// No new try begins this long after the first began.
    pub total: Duration,
}

impl Default for Patience {
    /// Long enough for a server that is being restarted.
    fn default() -> Self {
        Patience { progress: Duration::from_secs(30), total: Duration::from_secs(60) }
    }
}

impl Patience {
    /// For somebody who waits at a terminal, or has other places to ask: 10 s without progress, 5 s of new tries.
    #[must_use]
    pub fn short() -> Self {
        Patience { progress: Duration::from_secs(10), total: Duration::from_secs(5) }
    }

    /// The bound of one upload of `bytes`: its progress cannot be seen, so the slowest useful line (128 KiB/s) is
    /// allowed for.
    pub(super) fn upload(&self, bytes: usize) -> Duration {
        self.progress + Duration::from_millis(bytes as u64 * 1000 / (128 << 10))
    }
}

/// The pauses between tries: doubling from 50 ms to 5 s, each between half and the whole of that at random.
#[derive(Debug)]
pub(super) struct Backoff {
    end: Instant,
    next: Duration,
}

impl Backoff {
    pub fn new(patience: &Patience) -> Self {
        Backoff { end: Instant::now() + patience.total, next: Duration::from_millis(50) }
    }

    /// Waits before the next try, or gives `error` back if another try is pointless or too late.
    pub async fn pause(&mut self, error: Error) -> Result<(), Error> {
        let pause = self.next.mul_f64(rand::random_range(0.5..1.0));
        if !error.kind().is_transient() || Instant::now() + pause > self.end {
            return Err(error);
        }
        self.next = (self.next * 2).min(Duration::from_secs(5));
        tracing::debug!(%error, ?pause, "trying again");
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

/// Gives the store's error its kind. `place` names the store in the advice that goes with what the user must change.
pub(super) fn translate(error: object_store::Error, object: &str, place: &str) -> Error {
    use object_store::Error as E;
    let text = chain(&error);
    let (kind, advice) = match &error {
        // A reader must not take a missing bucket for a missing object.
        _ if text.contains("NoSuchBucket") => (Kind::Config, "there is no such bucket"),
        E::NotFound { .. } => (Kind::NotFound, ""),
        E::AlreadyExists { .. } => (Kind::Exists, ""),
        E::Unauthenticated { .. } => (Kind::Config, KEYS),
        E::PermissionDenied { .. } => match text.as_str() {
            t if REFUSED.iter().any(|code| t.contains(code)) => (Kind::Config, KEYS),
            t if t.contains("RequestTimeTooSkewed") => (Kind::Config, "set this machine's clock"),
            t if t.contains("ExpiredToken") => (Kind::Config, "the temporary keys have expired"),
            _ => (Kind::Access, "the keys must allow reading, writing, deleting and listing"),
        },
        E::InvalidPath { .. } | E::UnknownConfigurationKey { .. } => (Kind::Config, ""),
        E::NotSupported { .. } | E::NotImplemented { .. } => (Kind::NotSupported, ""),
        E::JoinError { .. } => (Kind::Internal, ""),
        _ => generic(&error, &text),
    };
    let object = if advice.is_empty() { object.to_owned() } else { format!("{object} in {place}: {advice}") };
    Error::with_source(kind, object, text)
}

const KEYS: &str = "the keys were refused: check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY";

/// What servers call keys that they do not know or whose signature is wrong.
const REFUSED: [&str; 4] = ["InvalidAccessKeyId", "SignatureDoesNotMatch", "NotSignedUp", "InvalidToken"];

fn generic(error: &object_store::Error, text: &str) -> (Kind, &'static str) {
    let causes = || std::iter::successors(error.source(), |e: &&(dyn StdError + 'static)| (*e).source());
    for cause in causes() {
        if let Some(io) = cause.downcast_ref::<std::io::Error>() {
            match io.raw_os_error() {
                Some(libc::ENOSPC | libc::EDQUOT) => return (Kind::NoSpace, ""),
                Some(libc::EACCES | libc::EPERM | libc::EROFS) => {
                    return (Kind::Access, "the folder must be writable");
                }
                _ => {}
            }
        }
        if let Some(http) = cause.downcast_ref::<HttpError>() {
            return match http.kind() {
                HttpErrorKind::Connect => (Kind::Unavailable, "no connection"),
                HttpErrorKind::Timeout => (Kind::TimedOut, ""),
                _ => (Kind::Unavailable, ""),
            };
        }
    }
    match status(text) {
        Some(301 | 307 | 308) => {
            (Kind::Config, "the bucket is in another region: check --region and --endpoint")
        }
        // It asks for more than the object has.
        Some(416) => (Kind::Corrupt, ""),
        Some(400) if text.contains("AuthorizationHeaderMalformed") => {
            (Kind::Config, "the bucket is in another region: check --region")
        }
        Some(408 | 429 | 500..) => (Kind::Unavailable, ""),
        Some(_) => (Kind::Config, "the server refuses the request: check --endpoint and the bucket's name"),
        None if text.contains("without LOCATION") => {
            (Kind::Config, "the bucket is in another region: check --region and --endpoint")
        }
        None if causes().any(|c| c.is::<std::io::Error>()) => (Kind::Disk, ""),
        None => (Kind::Unavailable, ""),
    }
}

/// The status in the text of an error: its type is private to the store.
fn status(text: &str) -> Option<u16> {
    let (_, rest) = text.split_once("status code: ")?;
    rest.get(..3)?.parse().ok()
}

/// The messages of an error and its causes, each said once, without line breaks and without end.
fn chain(error: &object_store::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(e) = cause {
        let more = e.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = e.source();
    }
    let mut text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some((end, _)) = text.char_indices().nth(600) {
        text.truncate(end);
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the crate words it: the status, then the body.
    fn answer(status: &str, body: &str) -> Box<dyn StdError + Send + Sync> {
        format!(
            "Error performing GET http://s/b/o in 1ms - Server returned non-2xx status code: {status}: {body}"
        )
        .into()
    }

    #[test]
    fn answers_of_servers_have_the_kind_that_callers_need() {
        use object_store::Error as E;
        let path = || "b/o".to_owned();
        let missing = |body| E::NotFound { path: path(), source: answer("404 Not Found", body) };
        let denied = |body| E::PermissionDenied { path: path(), source: answer("403 Forbidden", body) };
        let other = |status, body| E::Generic { store: "S3", source: answer(status, body) };
        for (error, kind, words) in [
            (missing("<Code>NoSuchKey</Code>"), Kind::NotFound, ""),
            (missing("<Code>NoSuchBucket</Code>"), Kind::Config, "no such bucket"),
            (denied("<Code>AccessDenied</Code>"), Kind::Access, "must allow"),
            (denied("<Code>InvalidAccessKeyId</Code>"), Kind::Config, "AWS_ACCESS_KEY_ID"),
            (denied("<Code>RequestTimeTooSkewed</Code>"), Kind::Config, "clock"),
            (other("503 Service Unavailable", "SlowDown"), Kind::Unavailable, ""),
            (other("500 Internal Server Error", ""), Kind::Unavailable, ""),
            (other("429 Too Many Requests", ""), Kind::Unavailable, ""),
            (other("301 Moved Permanently", "PermanentRedirect"), Kind::Config, "region"),
            (other("400 Bad Request", "AuthorizationHeaderMalformed"), Kind::Config, "region"),
            (other("405 Method Not Allowed", ""), Kind::Config, "endpoint"),
            (other("416 Range Not Satisfiable", ""), Kind::Corrupt, ""),
        ] {
            let e = translate(error, "object o", "s3://b at http://s");
            assert_eq!(e.kind(), kind, "{e}");
            assert!(e.to_string().starts_with("object o"), "{e}");
            assert!(e.to_string().contains(words), "{e}");
            assert!(!e.to_string().contains('\n'));
        }
    }

    #[test]
    fn a_full_disk_is_no_fault_of_the_network() {
        let source = Box::new(std::io::Error::from_raw_os_error(libc::ENOSPC));
        let e = translate(object_store::Error::Generic { store: "Local", source }, "object o", "file:///x");
        assert_eq!(e.kind(), Kind::NoSpace);
    }
}
