//! Runs what cannot be answered on the kernel's loop thread: a task a request, bounded in number, given up when the
//! caller is.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use super::interrupt::{Heed, Interrupts, PATIENCE};
use super::requests::Requests;
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
    /// Begun on the kernel's loop thread: it is often over at once, and never works long before its first wait.
    pub(super) inline: bool,
}

/// What happens to work whose caller has gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Abandoned {
    /// It stops where it is: it changes nothing.
    Stops,
    /// It goes on, since it may be half done; its caller is told EINTR at once.
    GoesOn,
}

type BoxedWork<T> = Pin<Box<dyn Future<Output = Result<T>> + Send>>;

/// Starts the tasks.
#[derive(Clone, Debug)]
pub(super) struct Tasks {
    runtime: Handle,
    in_work: Arc<Semaphore>,
    lock_waits: Arc<Semaphore>,
    interrupts: Arc<Interrupts>,
    pub(super) requests: Arc<Requests>,
}

impl Tasks {
    pub(super) fn new(runtime: Handle) -> Result<Self> {
        Ok(Tasks {
            runtime,
            in_work: Arc::new(Semaphore::new(IN_WORK)),
            lock_waits: Arc::new(Semaphore::new(LOCK_WAITS)),
            interrupts: Arc::new(Interrupts::start()?),
            requests: Arc::default(),
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
        let (requests, begun) = (self.requests.clone(), Instant::now());
        let answer = move |outcome: Result<T>| {
            requests.note(job.op, begun.elapsed(), outcome.is_err());
            answer(outcome);
        };
        let turns = if job.heed == Heed::Any { self.lock_waits.clone() } else { self.in_work.clone() };
        let mut work: BoxedWork<T> = Box::pin(async move {
            let _turn = turns.acquire_owned().await.map_err(closed)?;
            work.await
        });
        if job.inline
            && let Some(outcome) = self.begin(job, &mut work)
        {
            return answer(outcome);
        }
        let interrupts = self.interrupts.clone();
        self.runtime.spawn(async move {
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

    /// Takes the first step here and now: what is in memory is answered without a change of threads. Its outcome, if that
    /// was all; else a task goes on with it, whose first step is this one again.
    fn begin<T>(&self, job: Job, work: &mut BoxedWork<T>) -> Option<Result<T>> {
        let _context = self.runtime.enter();
        let mut nobody = Context::from_waker(Waker::noop());
        match guarded(job.op, job.ino, || work.as_mut().poll(&mut nobody)) {
            Ok(Poll::Ready(outcome)) => Some(outcome),
            Ok(Poll::Pending) => None,
            Err(e) => Some(Err(e)),
        }
    }
}

/// Runs `work` on a loop thread: a panic there would end the mount, so it becomes the failure of one request.
pub(super) fn guarded<T>(op: &'static str, ino: Ino, work: impl FnOnce() -> T) -> Result<T> {
    // What the panic left half done is dropped with the request, as in a task.
    catch_unwind(AssertUnwindSafe(work))
        .map_err(|_| Error::new(Kind::Internal, format!("panic in {op} of inode {ino}")))
}

fn closed<E: std::error::Error + Send + Sync + 'static>(e: E) -> Error {
    Error::with_source(Kind::Internal, "semaphore of requests", e)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, sync_channel};
    use std::thread::ThreadId;
    use std::time::Duration;
    use tokio::runtime::{Builder, Runtime};

    const LIMIT: Duration = Duration::from_secs(10);

    fn tasks() -> (Runtime, Tasks) {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("runtime");
        let tasks = Tasks::new(runtime.handle().clone()).expect("tasks");
        (runtime, tasks)
    }

    fn job(inline: bool) -> Job {
        Job { op: "test", ino: Ino(1), tid: 0, heed: Heed::Stop, abandoned: Abandoned::Stops, inline }
    }

    /// The outcome of `work`, and the thread that answered.
    fn outcome<T: Send + 'static>(
        tasks: &Tasks,
        job: Job,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Receiver<(Result<T>, ThreadId)> {
        let (tx, rx) = sync_channel(1);
        tasks.spawn(job, work, move |r| tx.send((r, std::thread::current().id())).expect("heard"));
        rx
    }

    #[test]
    fn what_is_at_hand_is_answered_on_the_spot() {
        let (_runtime, tasks) = tasks();
        let (value, thread) =
            outcome(&tasks, job(true), async { Ok(7) }).recv_timeout(LIMIT).expect("answer");
        assert_eq!((value.expect("ok"), thread), (7, std::thread::current().id()));
        let (_, thread) = outcome(&tasks, job(false), async { Ok(7) }).recv_timeout(LIMIT).expect("answer");
        assert_ne!(thread, std::thread::current().id());
    }

    #[test]
    fn what_has_to_wait_goes_on_in_a_task() {
        let (_runtime, tasks) = tasks();
        let (go, wait) = tokio::sync::oneshot::channel();
        let answer = outcome(&tasks, job(true), async move {
            tokio::time::sleep(Duration::from_millis(5)).await;
            wait.await.map_err(closed)
        });
        assert!(answer.try_recv().is_err(), "nothing blocked");
        go.send(3).expect("still wanted");
        assert_eq!(answer.recv_timeout(LIMIT).expect("answer").0.expect("ok"), 3);
    }

    #[test]
    fn a_panic_fails_one_request_only() {
        let (_runtime, tasks) = tasks();
        let answer = outcome::<()>(&tasks, job(true), async { panic!("on purpose") });
        let (result, _) = answer.recv_timeout(LIMIT).expect("answer");
        assert_eq!(result.expect_err("failed").kind(), Kind::Internal);
        assert!(outcome(&tasks, job(true), async { Ok(()) }).recv_timeout(LIMIT).expect("answer").0.is_ok());
    }

    #[test]
    fn work_that_is_half_done_goes_on_without_its_caller() {
        let (_runtime, tasks) = tasks();
        let mut caller = std::process::Command::new("sleep").arg("60").spawn().expect("sleep");
        let gone = Job { tid: caller.id(), abandoned: Abandoned::GoesOn, ..job(true) };
        let (go, wait) = tokio::sync::oneshot::channel();
        let (tx, answer) = sync_channel(1);
        let (left, leftover) = sync_channel(1);
        tasks.spawn_with_leftover(
            gone,
            async move { wait.await.map_err(closed) },
            move |r: Result<u8>| tx.send(r).expect("heard"),
            move |value| left.send(value).expect("heard"),
        );
        caller.kill().expect("kill");
        caller.wait().expect("wait");
        let answered = answer.recv_timeout(LIMIT).expect("answer");
        assert_eq!(answered.expect_err("given up").kind(), Kind::Interrupted);
        go.send(9).expect("the work goes on");
        assert_eq!(leftover.recv_timeout(LIMIT).expect("leftover"), 9);
    }
}
