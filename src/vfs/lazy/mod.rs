//! The lazy Hub cache: what a missing name in a Hub directory stands for is asked of the Hub, once, and published into
//! the metadata; from then on it is ordinary POSIX.
//!
//! Each question is a *flight*: one task for all who ask the same, which goes on when they give up. A lookup in the root
//! waits for it only briefly and then shows a *provisional* directory, because the kernel holds the root's lock during a
//! lookup; whoever goes inside waits there. A refusal (401, 403, 404) is remembered for a while on this mount; a failure
//! is remembered for a moment, and is never told as "no such file".

mod materialise;
mod refs;

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use lru::LruCache;

use super::orders::Invalidations;
use crate::chunk::Files;
use crate::error::{Error, Kind, Result};
use crate::hub::HubClient;
use crate::meta::Meta;
use crate::types::{Commit, Ino, RepoId};

/// How long a lookup in the root may hold the root's lock for the Hub.
const ROOT_PATIENCE: Duration = Duration::from_millis(500);
/// How long a lookup of a known but old branch waits for a newer answer before it takes the known one.
const REF_PATIENCE: Duration = Duration::from_millis(500);
/// How long a refusal is remembered.
const REFUSED: Duration = Duration::from_secs(30);
/// How long a failure is remembered, so that a crowd of lookups does not become a crowd of requests.
const FAILED: Duration = Duration::from_secs(2);
/// How many answers are remembered at most, of each sort.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");
/// How many questions may be open at once; more are answered "unavailable".
const MAX_FLIGHTS: usize = 1024;

/// A question to the Hub.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Question {
    /// The repository and its main branch, to be published in the root.
    Repo(RepoId),
    /// A commit, into the repository directory.
    Commit(Ino, RepoId, Commit),
    /// What a branch, tag or pull request points to.
    Ref(Ino, RepoId, String),
    /// Which branches and tags there are.
    Names(RepoId),
}

/// What the Hub's answer came to.
#[derive(Clone, Debug)]
enum Landed {
    /// The directory of the repository.
    Repo(Ino),
    /// The metadata has now what was asked for.
    Published,
    Names(Arc<[String]>),
    /// The Hub does not have it, or not for this daemon's token.
    Refused,
}

type Flight = Shared<BoxFuture<'static, Result<Landed, Arc<Error>>>>;

/// What a name that the metadata does not have came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Look again: it is in the metadata now.
    Published,
    /// A directory that is still being asked for, under the number that it will have.
    Provisional(Ino),
    Absent,
}

/// Settings of the lazy cache.
#[derive(Clone, Debug)]
pub struct LazyOptions {
    /// A branch older than this is asked for again.
    pub ref_ttl: Duration,
    /// The longest that anyone waits for a flight.
    pub io_timeout: Duration,
}

/// The lazy Hub cache of one mount.
#[derive(Debug)]
pub struct Lazy {
    meta: Meta,
    files: Files,
    hub: HubClient,
    opts: LazyOptions,
    invalidations: Invalidations,
    state: Mutex<State>,
}

struct State {
    flights: HashMap<Question, Flight>,
    answered: LruCache<Question, (Instant, Result<Landed, Arc<Error>>)>,
    /// Directories that were shown before the Hub had answered.
    provisional: HashMap<Ino, Flight>,
    /// Numbers reserved for repositories: the next question for the same folder shows the same number.
    reserved: LruCache<RepoId, Ino>,
    /// When a branch was last asked for: (its directory, its name).
    checked: LruCache<(Ino, Bytes), Instant>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State")
            .field("flights", &self.flights.keys())
            .field("provisional", &self.provisional.keys())
            .finish_non_exhaustive()
    }
}

impl Lazy {
    /// A lazy cache that asks `hub` and publishes through `meta`.
    #[must_use]
    pub fn new(
        meta: Meta,
        files: Files,
        hub: HubClient,
        opts: LazyOptions,
        invalidations: Invalidations,
    ) -> Arc<Self> {
        let state = State {
            flights: HashMap::new(),
            answered: LruCache::new(REMEMBERED),
            provisional: HashMap::new(),
            reserved: LruCache::new(REMEMBERED),
            checked: LruCache::new(REMEMBERED),
        };
        Arc::new(Lazy { meta, files, hub, opts, invalidations, state: Mutex::new(state) })
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A name in the root that the metadata does not have.
    pub async fn repo(self: &Arc<Self>, name: &[u8]) -> Result<Answer> {
        let Some(repo) = std::str::from_utf8(name).ok().and_then(RepoId::from_folder) else {
            return Ok(Answer::Absent);
        };
        if self.meta.tombstone(name).await?.is_some() {
            return Ok(Answer::Absent);
        }
        let ino = self.reserve(&repo).await?;
        let flight = self.ask(Question::Repo(repo.clone()))?;
        match tokio::time::timeout(ROOT_PATIENCE, flight.clone()).await {
            Ok(landed) => settled(landed),
            Err(_) => {
                self.show_provisional(ino, name, flight);
                Ok(Answer::Provisional(ino))
            }
        }
    }

    /// The number that the repository's directory will have if this mount is the first to publish it.
    async fn reserve(&self, repo: &RepoId) -> Result<Ino> {
        if let Some(ino) = self.state().reserved.get(repo) {
            return Ok(*ino);
        }
        let ino = self.meta.reserve_ino().await?;
        Ok(*self.state().reserved.get_or_insert(repo.clone(), || ino))
    }

    /// A commit that the repository in the directory `dir` does not have; `asked` is the directory in which the name is
    /// missing (`snapshots` or `trees`).
    pub async fn commit(
        self: &Arc<Self>,
        dir: Ino,
        asked: Ino,
        repo: &RepoId,
        name: &[u8],
    ) -> Result<Answer> {
        let Some(commit) = std::str::from_utf8(name).ok().and_then(Commit::parse) else {
            return Ok(Answer::Absent);
        };
        if self.meta.tombstone(&tombstone_of(asked, name)).await?.is_some() {
            return Ok(Answer::Absent);
        }
        self.wait(self.ask(Question::Commit(dir, repo.clone(), commit))?).await.and_then(settled)
    }

    /// Waits for a provisional directory to be one thing or the other. `Ok`: the inode is in the metadata (or was never
    /// provisional); `NotFound`: the Hub does not have it; `Stale`: it is there under another number.
    pub async fn settle(&self, ino: Ino) -> Result<()> {
        let flight = self.state().provisional.get(&ino).cloned();
        let Some(flight) = flight else { return Ok(()) };
        match self.wait(flight).await?.map_err(|e| e.share())? {
            Landed::Repo(real) if real == ino => Ok(()),
            Landed::Repo(_) => Err(Error::new(Kind::Stale, format!("inode {ino}"))),
            _ => Err(Error::new(Kind::NotFound, "repository")),
        }
    }

    /// Whether the Hub has not answered yet for this directory.
    #[must_use]
    pub fn is_provisional(&self, ino: Ino) -> bool {
        self.state().provisional.contains_key(&ino)
    }

    /// Somebody makes the name themselves, or it was deleted: earlier answers about it no longer hold.
    pub fn forget_repo(&self, repo: &RepoId) {
        let mut state = self.state();
        state.reserved.pop(repo);
        state.answered.pop(&Question::Repo(repo.clone()));
    }

    /// The push channel was lost or the metadata went back: drop what is remembered.
    pub fn forget_all(&self) {
        let mut state = self.state();
        state.answered.clear();
        state.checked.clear();
        state.reserved.clear();
    }

    async fn wait(&self, flight: Flight) -> Result<Result<Landed, Arc<Error>>> {
        tokio::time::timeout(self.opts.io_timeout, flight)
            .await
            .map_err(|_| Error::new(Kind::TimedOut, "question to the Hub"))
    }

    /// The flight for a question: one that is in the air, one that landed a moment ago, or a new one.
    fn ask(self: &Arc<Self>, question: Question) -> Result<Flight> {
        let mut state = self.state();
        if let Some(flight) = state.flights.get(&question) {
            return Ok(flight.clone());
        }
        if let Some((until, answer)) = state.answered.get(&question) {
            if Instant::now() < *until {
                let answer = answer.clone();
                return Ok(futures::future::ready(answer).boxed().shared());
            }
            state.answered.pop(&question);
        }
        if state.flights.len() >= MAX_FLIGHTS {
            return Err(Error::new(Kind::Unavailable, "too many questions to the Hub at once"));
        }
        let lazy = Arc::clone(self);
        let asked = question.clone();
        let task = tokio::spawn(async move {
            let answer = lazy.answer(&asked).await.map_err(Arc::new);
            lazy.land(asked, &answer);
            answer
        });
        let flight = async move {
            task.await.unwrap_or_else(|e| {
                Err(Arc::new(Error::with_source(Kind::Internal, "question to the Hub", e)))
            })
        };
        let flight = flight.boxed().shared();
        state.flights.insert(question, flight.clone());
        Ok(flight)
    }

    fn land(&self, question: Question, answer: &Result<Landed, Arc<Error>>) {
        let keep = match answer {
            Ok(Landed::Refused | Landed::Names(_)) => Some(REFUSED),
            Ok(_) => None,
            Err(e) => {
                tracing::warn!("the Hub was asked for {question:?}: {e}");
                Some(FAILED)
            }
        };
        let mut state = self.state();
        state.flights.remove(&question);
        if let Some(keep) = keep {
            state.answered.put(question, (Instant::now() + keep, answer.clone()));
        }
    }

    fn show_provisional(self: &Arc<Self>, ino: Ino, name: &[u8], flight: Flight) {
        if self.state().provisional.insert(ino, flight.clone()).is_some() {
            return;
        }
        let lazy = Arc::clone(self);
        let name = Bytes::copy_from_slice(name);
        tokio::spawn(async move {
            let _landed = flight.await;
            // Those who wait inside still hold the flight; those who come later find the real directory or nothing.
            lazy.state().provisional.remove(&ino);
            lazy.invalidations.entry(Ino::ROOT, name);
        });
    }

    async fn answer(&self, question: &Question) -> Result<Landed> {
        let answer = match question {
            Question::Repo(repo) => self.materialise_repo(repo).await,
            Question::Commit(dir, repo, commit) => self.materialise_commit(*dir, repo, *commit).await,
            Question::Ref(dir, repo, name) => self.materialise_ref(*dir, repo, name).await,
            Question::Names(repo) => {
                let refs = self.hub.refs(repo, false).await;
                refs.map(|refs| Landed::Names(refs.into_iter().map(|r| r.revision).collect()))
            }
        };
        match answer {
            Err(e) if matches!(e.kind(), Kind::NotFound | Kind::Access) => {
                tracing::debug!("the Hub refuses {question:?}: {e}");
                Ok(Landed::Refused)
            }
            other => other,
        }
    }
}

fn settled(landed: Result<Landed, Arc<Error>>) -> Result<Answer> {
    match landed {
        Ok(Landed::Repo(_) | Landed::Published) => Ok(Answer::Published),
        Ok(Landed::Refused | Landed::Names(_)) => Ok(Answer::Absent),
        Err(e) => Err(e.share()),
    }
}

/// The tombstone of a name in a Hub directory below the root; that of a repository is its folder.
#[must_use]
pub fn tombstone_of(dir: Ino, name: &[u8]) -> Vec<u8> {
    let mut key = format!("{dir}/").into_bytes();
    key.extend_from_slice(name);
    key
}
