//! The one error type of the crate, and the only two tables that give an error its meaning outside: [`Kind::errno`]
//! for the kernel and [`Kind::level`] for the log.
//!
//! An error says what kind it is, which objects it befell (`context`, outermost first) and what caused it (`source`).
//! `Display` is one line: `blob sha256:3f…c1 chunk 7: bucket timed out after 10 s`.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;

/// What went wrong, as far as callers must tell cases apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// The name or object is known not to exist. Never used for "could not find out": that is [`Kind::Unavailable`].
    NotFound,
    Exists,
    NotDirectory,
    IsDirectory,
    NotEmpty,
    Invalid,
    /// The caller's (or the daemon's token's) rights do not reach that far.
    Access,
    NotPermitted,
    ReadOnly,
    /// The inode is gone; the kernel should walk the path again.
    Stale,
    NoSpace,
    Quota,
    NameTooLong,
    TooManyLinks,
    TooLarge,
    /// A file is being used in a way that excludes this one.
    Busy,
    TextBusy,
    CrossDevice,
    BadHandle,
    /// An extended attribute that is not set.
    NoData,
    /// Nothing of what was looked for lies at or behind the offset.
    Beyond,
    NotSupported,
    /// The operation does not exist here at all; the kernel need not ask again.
    NotImplemented,
    WouldBlock,
    Interrupted,
    /// A bounded wait ended. Retrying may help.
    TimedOut,
    /// A server did not answer or answered that it cannot now (5xx, 429, reset). Retrying may help.
    Unavailable,
    /// Bytes that do not match their recorded checksum or length, or metadata that cannot be decoded.
    Corrupt,
    /// This session was declared dead by the others: nothing may be written under it any more.
    Fenced,
    /// The user must change a setting: bad URL, wrong credentials, unsuitable directory.
    Config,
    /// The local disk failed.
    Disk,
    /// A broken invariant of hfmount itself.
    Internal,
}

impl Kind {
    /// The errno that the kernel gets for this kind.
    #[must_use]
    pub fn errno(self) -> i32 {
        match self {
            Kind::NotFound => libc::ENOENT,
            Kind::Exists => libc::EEXIST,
            Kind::NotDirectory => libc::ENOTDIR,
            Kind::IsDirectory => libc::EISDIR,
            Kind::NotEmpty => libc::ENOTEMPTY,
            Kind::Invalid => libc::EINVAL,
            Kind::Access => libc::EACCES,
            Kind::NotPermitted => libc::EPERM,
            Kind::ReadOnly => libc::EROFS,
            Kind::Stale => libc::ESTALE,
            Kind::NoSpace => libc::ENOSPC,
            Kind::Quota => libc::EDQUOT,
            Kind::NameTooLong => libc::ENAMETOOLONG,
            Kind::TooManyLinks => libc::EMLINK,
            Kind::TooLarge => libc::EFBIG,
            Kind::Busy => libc::EBUSY,
            Kind::TextBusy => libc::ETXTBSY,
            Kind::CrossDevice => libc::EXDEV,
            Kind::BadHandle => libc::EBADF,
            Kind::NoData => libc::ENODATA,
            Kind::Beyond => libc::ENXIO,
            Kind::NotSupported => libc::EOPNOTSUPP,
            Kind::NotImplemented => libc::ENOSYS,
            Kind::WouldBlock => libc::EAGAIN,
            Kind::Interrupted => libc::EINTR,
            Kind::TimedOut
            | Kind::Unavailable
            | Kind::Corrupt
            | Kind::Fenced
            | Kind::Config
            | Kind::Disk
            | Kind::Internal => libc::EIO,
        }
    }

    /// How loud the log is about an error that reached the kernel. What programs provoke every day is DEBUG; what an
    /// operator should see is WARN; what should never happen is ERROR.
    #[must_use]
    pub fn level(self) -> tracing::Level {
        match self {
            Kind::TimedOut | Kind::Unavailable | Kind::NoSpace | Kind::Quota | Kind::Access => {
                tracing::Level::WARN
            }
            Kind::Corrupt | Kind::Fenced | Kind::Config | Kind::Disk | Kind::Internal => {
                tracing::Level::ERROR
            }
            _ => tracing::Level::DEBUG,
        }
    }

    /// Whether the same request may succeed later without anybody changing anything.
    #[must_use]
    pub fn is_transient(self) -> bool {
        matches!(self, Kind::TimedOut | Kind::Unavailable | Kind::WouldBlock | Kind::Interrupted)
    }

    fn words(self) -> &'static str {
        match self {
            Kind::NotFound => "not found",
            Kind::Exists => "exists already",
            Kind::NotDirectory => "not a directory",
            Kind::IsDirectory => "is a directory",
            Kind::NotEmpty => "directory not empty",
            Kind::Invalid => "invalid",
            Kind::Access => "access denied",
            Kind::NotPermitted => "not permitted",
            Kind::ReadOnly => "read-only",
            Kind::Stale => "gone",
            Kind::NoSpace => "no space left",
            Kind::Quota => "quota exceeded",
            Kind::NameTooLong => "name too long",
            Kind::TooManyLinks => "too many links",
            Kind::TooLarge => "too large",
            Kind::Busy => "busy",
            Kind::TextBusy => "in use",
            Kind::CrossDevice => "on another device",
            Kind::BadHandle => "bad handle",
            Kind::NoData => "no such attribute",
            Kind::Beyond => "beyond the end",
            Kind::NotSupported => "not supported",
            Kind::NotImplemented => "not implemented",
            Kind::WouldBlock => "would block",
            Kind::Interrupted => "interrupted",
            Kind::TimedOut => "timed out",
            Kind::Unavailable => "unavailable",
            Kind::Corrupt => "corrupt",
            Kind::Fenced => "session fenced",
            Kind::Config => "bad configuration",
            Kind::Disk => "disk error",
            Kind::Internal => "internal error",
        }
    }
}

/// An error of any layer. One pointer wide, so that `Result<u64>` stays small.
pub struct Error(Box<Inner>);

struct Inner {
    kind: Kind,
    /// Outermost first.
    context: Vec<Cow<'static, str>>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of `kind` about the object that `context` names.
    pub fn new(kind: Kind, context: impl Into<Cow<'static, str>>) -> Self {
        Error(Box::new(Inner { kind, context: vec![context.into()], source: None }))
    }

    /// The same, caused by `source`.
    pub fn with_source(
        kind: Kind,
        context: impl Into<Cow<'static, str>>,
        source: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> Self {
        Error(Box::new(Inner { kind, context: vec![context.into()], source: Some(source.into()) }))
    }

    /// What kind it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// Puts the name of a larger object in front.
    #[must_use]
    pub fn context(mut self, context: impl Into<Cow<'static, str>>) -> Self {
        self.0.context.insert(0, context.into());
        self
    }

    /// The same error with another kind: for the layer that knows what it means.
    #[must_use]
    pub fn with_kind(mut self, kind: Kind) -> Self {
        self.0.kind = kind;
        self
    }

    /// A copy for another waiter of the same flight. The source is kept as its text.
    #[must_use]
    pub fn share(&self) -> Self {
        let source = self.0.source.as_ref().map(|s| s.to_string().into());
        Error(Box::new(Inner { kind: self.0.kind, context: self.0.context.clone(), source }))
    }

    /// The errno that the kernel gets.
    #[must_use]
    pub fn errno(&self) -> i32 {
        self.kind().errno()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for context in &self.0.context {
            write!(f, "{context}: ")?;
        }
        f.write_str(self.0.kind.words())?;
        let mut source = self.0.source.as_deref().map(|s| s as &dyn StdError);
        // reqwest and object_store keep the reason ("connection refused") several causes down.
        while let Some(cause) = source {
            write!(f, ": {cause}")?;
            source = cause.source();
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.0.kind)
            .field("context", &self.0.context)
            .field("source", &self.0.source)
            .finish()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|s| s as &(dyn StdError + 'static))
    }
}

impl From<Kind> for Error {
    fn from(kind: Kind) -> Self {
        Error(Box::new(Inner { kind, context: Vec::new(), source: None }))
    }
}

/// Names the object of a failure at the place where the name is known.
pub trait ResultExt<T> {
    /// Adds the name; built only when there is an error.
    fn context<C: Into<Cow<'static, str>>>(self, context: impl FnOnce() -> C) -> Result<T>;
}

impl<T> ResultExt<T> for Result<T> {
    fn context<C: Into<Cow<'static, str>>>(self, context: impl FnOnce() -> C) -> Result<T> {
        self.map_err(|e| e.context(context()))
    }
}

/// Local I/O: ENOSPC and EDQUOT keep their meaning, all else is the disk's fault.
impl<T> ResultExt<T> for std::io::Result<T> {
    fn context<C: Into<Cow<'static, str>>>(self, context: impl FnOnce() -> C) -> Result<T> {
        self.map_err(|e| {
            let kind = match e.raw_os_error() {
                Some(libc::ENOSPC | libc::EDQUOT) => Kind::NoSpace,
                Some(libc::ENOENT) => Kind::NotFound,
                Some(libc::EACCES | libc::EPERM) => Kind::Access,
                _ => Kind::Disk,
            };
            Error::with_source(kind, context(), e)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_is_one_line_outermost_first() {
        let io = std::io::Error::other("connection reset");
        let e = Error::with_source(Kind::Unavailable, "chunk 7", io).context("blob sha256:3f");
        assert_eq!(e.to_string(), "blob sha256:3f: chunk 7: unavailable: connection reset");
        assert_eq!(e.errno(), libc::EIO);
        assert_eq!(e.share().to_string(), e.to_string());
    }

    #[test]
    fn a_transient_failure_is_never_no_such_file() {
        for kind in [Kind::TimedOut, Kind::Unavailable, Kind::Corrupt, Kind::Fenced, Kind::Disk] {
            assert_ne!(kind.errno(), libc::ENOENT);
        }
    }
}
