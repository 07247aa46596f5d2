//! The log of changes: what commits tell one another lies in a string of the server, and each engine reads what is new in it.
//!
//! A message to each subscriber for each commit costs the server a write and the subscriber a wake-up, so that what many
//! mounts tell one another grows with the square of their number. Here a commit appends a few bytes; a reader takes all that
//! came since it looked last in one piece, and looks again after [`PAUSE`]. Who finds nothing says so, in the same script, and
//! sleeps; the next commit then rings for all (`@events`). So a change after a quiet moment is heard at once, and while much
//! changes nobody is woken more often than the pauses allow.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use ::redis::{Script, Value, cmd};
use bytes::Bytes;

use super::bytes;
use super::link::Link;
use crate::error::{Error, Kind, Result};
use crate::meta::events::decode;
use crate::meta::kv::Event;

/// How long a reader that found something waits before it looks again. A look costs the server and the reader together some
/// 35 µs, as much as a dozen changes heard.
pub(super) const PAUSE: Duration = Duration::from_millis(10);
/// What a commit rings with; at the second readers do not finish their pause. Neither is a message, so a mount of a version
/// that knows no log takes it for a loss.
pub(super) const SOON: &[u8] = b".";
pub(super) const AT_ONCE: &[u8] = b"!";

static LOG: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("log.lua")));

/// A place in the log of one server.
pub(super) struct Log {
    link: Arc<Link>,
    base: String,
    name: Bytes,
    read: u64,
    /// How often the server had been another one: a place means nothing to the next.
    strangers: u64,
}

impl Log {
    /// The place of now. What is told from now on is read, and rung for.
    pub(super) async fn begin(link: Arc<Link>, base: String) -> Result<Self> {
        let strangers = link.strangers();
        let mut log = Log { link, base, name: Bytes::from_static(b"?"), read: 0, strangers };
        log.read().await?;
        Ok(log)
    }

    /// Whether the connection for commits leads to the server that this is a place of.
    pub(super) fn is_here(&self) -> bool {
        self.link.strangers() == self.strangers
    }

    /// What was told since the last call. If that is nothing, the next thing is rung for.
    ///
    /// [`Kind::Unavailable`] if the server is another one by now.
    pub(super) async fn read(&mut self) -> Result<Vec<Event>> {
        let mut request = cmd("EVALSHA");
        request.arg(LOG.get_hash()).arg(1).arg(&self.base).arg(&self.name[..]).arg(self.read);
        let reply = self.link.run_script(&LOG, &request).await?;
        // After the reply: this may have been the request that connected anew.
        if !self.is_here() {
            return Err(Error::new(Kind::Unavailable, format!("{}: another server", self.link.options)));
        }
        let mut parts = match reply {
            Value::Array(parts) => parts.into_iter(),
            _ => Vec::new().into_iter(),
        };
        let (Some(told), Some(name), Some(Value::Int(read))) =
            (parts.next(), parts.next().and_then(bytes), parts.next())
        else {
            let words = format!("{} answered nonsense to a script", self.link.options);
            return Err(Error::new(Kind::Internal, words));
        };
        (self.name, self.read) = (name, u64::try_from(read).unwrap_or(0));
        Ok(match bytes(told) {
            Some(told) => decode(told),
            None => vec![Event::Lost],
        })
    }
}
