//! What the verbs for administrators have in common: a volume's metadata and bucket, a session to change it with, and a bar.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use indicatif::ProgressBar;

use super::progress::bar;
use crate::admin::{Place, Progress};
use crate::config::Volume;
use crate::daemon::{Standing, check_marker, need_volume, open_bucket, superseded};
use crate::error::{Error, Kind, Result};
use crate::meta::kv::Kv;
use crate::meta::survey::Survey;
use crate::meta::url::MetaUrl;
use crate::meta::{Meta, SessionInfo};
use crate::types::Timestamp;

/// How long the verb may be silent before mounts take it for dead.
const TTL: Duration = Duration::from_secs(30);

/// A volume and its bucket, which is known to be its own.
pub(super) struct Opened {
    pub kv: Arc<dyn Kv>,
    pub volume: Volume,
    pub place: Place,
    /// Whether these metadata are the ones that go on.
    pub standing: Standing,
}

impl Opened {
    pub(super) async fn new(meta: &MetaUrl) -> Result<Self> {
        let (kv, volume) = need_volume(meta).await?;
        let bucket = open_bucket(&volume).await?;
        // What another volume keeps there would be garbage to this one.
        let standing = check_marker(&bucket, &volume).await?;
        let place = Place { survey: Survey::new(kv.clone()), bucket, chunk_size: volume.chunk_size };
        Ok(Opened { kv, volume, place, standing })
    }

    /// That these metadata are the ones that know what is needed of the bucket.
    pub(super) fn need_current(&self) -> Result<()> {
        match self.standing {
            Standing::Current => Ok(()),
            Standing::Superseded => Err(superseded(&self.place.bucket, &self.volume)),
            Standing::Fresh => Err(Error::new(
                Kind::Config,
                format!(
                    "volume {} was loaded from a dump and not mounted since: what another copy of its metadata needs \
                     would be garbage. Mount it first, not read-only: then this copy is the one that goes on",
                    self.volume.name
                ),
            )),
        }
    }

    /// Registers a session; `status` shows it as `verb`. To be closed.
    pub(super) async fn session(&self, verb: &str) -> Result<Meta> {
        session(self.kv.clone(), verb).await
    }
}

/// Registers a session in these metadata; `status` shows it as `verb`. To be closed.
pub(super) async fn session(kv: Arc<dyn Kv>, verb: &str) -> Result<Meta> {
    let info = SessionInfo {
        host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        pid: std::process::id(),
        mountpoint: format!("({verb})"),
        started: Timestamp::now(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        read_only: false,
    };
    Meta::open(kv, info, TTL).await
}

/// A bar that follows a tool from one step to the next. Clones are the same bar.
#[derive(Clone, Default)]
pub(super) struct Steps(Arc<Mutex<Option<(&'static str, ProgressBar)>>>);

impl Steps {
    pub(super) fn tell(&self, Progress { what, done, of }: Progress) {
        self.count(what, done, of, false);
    }

    /// `done` of `of`, if that is known; bytes or things.
    pub(super) fn count(&self, what: &'static str, done: u64, of: Option<u64>, bytes: bool) {
        let mut step = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if step.as_ref().is_none_or(|(now, _)| *now != what) {
            if let Some((_, old)) = step.take() {
                old.finish_and_clear();
            }
            *step = Some((what, bar(what, of, bytes)));
        }
        if let Some((_, bar)) = &*step {
            if let Some(of) = of {
                bar.set_length(of.max(done));
            }
            bar.set_position(done);
        }
    }

    /// Does something with standard output that the bar must not mix with.
    pub(super) fn aside<T>(&self, act: impl FnOnce() -> T) -> T {
        match &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Some((_, bar)) => bar.suspend(act),
            None => act(),
        }
    }

    pub(super) fn end(&self) {
        if let Some((_, bar)) = self.0.lock().unwrap_or_else(PoisonError::into_inner).take() {
            bar.finish_and_clear();
        }
    }
}
