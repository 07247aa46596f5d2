//! What an error of Redis means, and what to do about it.

use std::error::Error as StdError;
use std::sync::Arc;

use ::redis::{ErrorKind, RedisError, ServerErrorKind};

use crate::error::{Error, Kind};

/// What to do after a failed try, time permitting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// The connection is of no use any more.
    Reconnect,
    /// The server will do it later.
    Wait,
    GiveUp,
}

/// An error with its remedy.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) error: Error,
    pub(super) next: Next,
}

impl Failure {
    pub(super) fn new(kind: Kind, next: Next, text: &'static str) -> Self {
        Failure { error: Error::new(kind, text), next }
    }

    /// The same for another who waits for it.
    pub(super) fn share(&self) -> Self {
        Failure { error: self.error.share(), next: self.next }
    }
}

impl From<RedisError> for Failure {
    fn from(e: RedisError) -> Self {
        let (kind, next, text) = judge(&e);
        // The crate's errors name neither passwords nor values. As text, because their sources say the same again.
        Failure { error: Error::with_source(kind, text, e.to_string()), next }
    }
}

fn judge(e: &RedisError) -> (Kind, Next, &'static str) {
    if e.is_timeout() {
        return (Kind::TimedOut, Next::Reconnect, "connection");
    }
    if is_certificate(e) {
        return (Kind::Config, Next::GiveUp, "certificate of the server");
    }
    match (e.kind(), e.code().unwrap_or_default()) {
        (ErrorKind::AuthenticationFailed, _) | (_, "NOAUTH" | "WRONGPASS") => {
            (Kind::Config, Next::GiveUp, "user name or password")
        }
        (ErrorKind::Server(ServerErrorKind::NoPerm), _) => (Kind::Config, Next::GiveUp, "rights of the user"),
        (ErrorKind::InvalidClientConfig, _) => (Kind::Config, Next::GiveUp, "address"),
        (ErrorKind::RESP3NotSupported, _) => (Kind::Config, Next::GiveUp, "server is older than Redis 6"),
        (
            ErrorKind::Server(ServerErrorKind::Moved | ServerErrorKind::Ask | ServerErrorKind::CrossSlot),
            _,
        ) => (Kind::Config, Next::GiveUp, "a Redis Cluster is not supported"),
        (_, "LOADING" | "BUSY" | "TRYAGAIN" | "MASTERDOWN" | "CLUSTERDOWN" | "MISCONF" | "NOREPLICAS") => {
            (Kind::Unavailable, Next::Wait, "server")
        }
        // The primary has become a replica: the address may lead to the new one.
        (_, "READONLY") => (Kind::Unavailable, Next::Reconnect, "server"),
        (_, "OOM") => (Kind::NoSpace, Next::GiveUp, "maxmemory of the server"),
        (_, "HFSHORT") => (Kind::Corrupt, Next::GiveUp, "metadata"),
        // The flag of an export ran out, or the server forgot it.
        (_, "HFGONE") => (Kind::Unavailable, Next::GiveUp, "begin again"),
        // Only a request that was given up can meet it; its outcome stays unknown.
        (_, "HFOLD") => (Kind::TimedOut, Next::GiveUp, "request"),
        (ErrorKind::Server(ServerErrorKind::ResponseError), _)
            if e.detail().is_some_and(|text| text.contains("max number of clients")) =>
        {
            (Kind::Unavailable, Next::Reconnect, "server")
        }
        (ErrorKind::Server(_) | ErrorKind::Extension, _) => (Kind::Internal, Next::GiveUp, "server"),
        _ => (Kind::Unavailable, Next::Reconnect, "connection"),
    }
}

fn is_certificate(e: &RedisError) -> bool {
    // The crate keeps the I/O error in an Arc, and the I/O error keeps what it was made of out of its own source.
    let io = e.source().and_then(|cause| cause.downcast_ref::<Arc<dyn StdError + Send + Sync>>());
    let made_of = io.and_then(|io| io.downcast_ref::<std::io::Error>()?.get_ref());
    matches!(made_of.and_then(|cause| cause.downcast_ref()), Some(rustls::Error::InvalidCertificate(_)))
}
