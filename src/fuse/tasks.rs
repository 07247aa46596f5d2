//! Runs what cannot be answered on the kernel's loop thread: a task a request, bounded in number, given up when the
//! caller is.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use super::interrupt::{Heed, Interrupts, PATIENCE};
use crate::error::{Error, Kind, Result};
use crate::types::Ino;

/// Requests in work at one time. Those beyond wait their turn, holding no more than what they were called with; the
/// kernel never sends more than one for each thread that waits, and `init::MAX_BACKGROUND` for nobody in particular.
/// Far above what any healthy mount needs, so that requests stuck on one dead server do not use it up.
const IN_WORK: usize = 2048;
/// Waits for locks at one time, which are counted apart: they may last for ever.
const LOCK_WAITS: usize = 8192;

/// What is being done for whom.
#[derive(Clone, Copy, Debug)]
pub(super) struct Job {
    pub(super) op: &'static str,
    pub(super) ino: Ino,
    /// The calling thread; 0 = unknown.
    pub(super) tid: u32,
    pub(super) heed: Heed,
    /// What happens to the work when the caller gives up.
    pub(super) abandoned: Abandoned,
}

/// What happens to work whose caller has gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Abandoned {
    /// It stops where it is: it changes nothing.
    Stops,
    /// It goes on, since it may be half done; its caller is told EINTR at once.
    GoesOn,
}

/// Starts the tasks.
#[derive(Clone, Debug)]
pub(super) struct Tasks {
    runtime: Handle,
    in_work: Arc<Semaphore>,
    lock_waits: Arc<Semaphore>,
    interrupts: Arc<Interrupts>,
}

impl Tasks {
    pub(super) fn new(runtime: Handle) -> Result<Self> {
        Ok(Tasks {
            runtime,
            in_work: Arc::new(Semaphore::new(IN_WORK)),
            lock_waits: Arc::new(Semaphore::new(LOCK_WAITS)),
            interrupts: Arc::new(Interrupts::start()?),
        })
    }

    /// Does `work`, then gives `answer` its outcome, or [`Kind::Interrupted`] as soon as the caller gives up.
    pub(super) fn spawn<T, W, A>(&self, job: Job, work: W, answer: A)
    where
        T: Send + 'static,
        W: Future<Output = Result<T>> + Send + 'static,
        A: FnOnce(Result<T>) + Send + 'static,
    {
        self.spawn_with_leftover(job, work, answer, |_| ());
    }

    /// As [`Tasks::spawn`]; what the work yields after its caller gave up (an open file that nobody will close) goes to
    /// `leftover`.
    pub(super) fn spawn_with_leftover<T, W, A, L>(&self, job: Job, work: W, answer: A, leftover: L)
    where
        T: Send + 'static,
        W: Future<Output = Result<T>> + Send + 'static,
        A: FnOnce(Result<T>) + Send + 'static,
        L: FnOnce(T) + Send + 'static,
    {
        let turns = if job.heed == Heed::Any { self.lock_waits.clone() } else { self.in_work.clone() };
        let interrupts = self.interrupts.clone();
        self.runtime.spawn(async move {
            let mut work = pin!(async move {
                let _turn = turns.acquire_owned().await.map_err(closed)?;
                work.await
            });
            if let Ok(outcome) = tokio::time::timeout(PATIENCE, &mut work).await {
                return answer(outcome);
            }
            tokio::select! {
                outcome = &mut work => return answer(outcome),
                () = interrupts.signalled(job.tid, job.heed) => {}
            }
            answer(Err(Kind::Interrupted.into()));
            tracing::debug!(op = job.op, ino = %job.ino, tid = job.tid, "the caller gave up");
            if job.abandoned == Abandoned::GoesOn {
                match work.await {
                    Ok(value) => leftover(value),
                    // Nobody is left to hear it; it may be what a user later wonders about.
                    Err(e) => tracing::warn!(ino = %job.ino, "{}, after its caller gave up: {e}", job.op),
                }
            }
        });
    }
}

fn closed<E: std::error::Error + Send + Sync + 'static>(e: E) -> Error {
    Error::with_source(Kind::Internal, "semaphore of requests", e)
}
