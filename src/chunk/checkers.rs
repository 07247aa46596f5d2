//! Threads for the checks of whole blobs. A check takes more of a processor than anything else about a fill, and nobody waits
//! for it: on a machine that has nothing to spare it goes after the fill.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};

use tokio::sync::{Semaphore, oneshot};

use super::lock;
use crate::error::{Error, Kind, Result};

/// Checks at a time.
pub(super) const CHECKERS: usize = 2;
/// Jobs that wait: few, since who gives one waits for it.
const QUEUE: usize = 64;
/// A tenth of what others get, while there are others.
const NICE: i32 = 10;

type Job = Box<dyn FnOnce() + Send>;

/// The threads; started with the first check, ended with this.
#[derive(Debug)]
pub(super) struct Checkers {
    jobs: Mutex<Option<SyncSender<Job>>>,
    /// As many as there are threads: who has one finds room in the queue.
    turns: Semaphore,
    nice: bool,
}

impl Checkers {
    /// `nice`: they give way.
    pub(super) fn new(nice: bool) -> Self {
        Checkers { jobs: Mutex::default(), turns: Semaphore::new(CHECKERS), nice }
    }

    /// Runs `work` there. A panic in it is an error here.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let failed = |e| Error::with_source(Kind::Internal, "checking a blob", e);
        let _turn = self.turns.acquire().await.map_err(failed)?;
        let (done, answer) = oneshot::channel();
        // Who gave up on it needs no answer.
        let job: Job = Box::new(move || drop(done.send(work())));
        self.give(job)?;
        answer.await.map_err(|e| Error::with_source(Kind::Internal, "checking a blob", e))?
    }

    fn give(&self, job: Job) -> Result<()> {
        let mut jobs = lock(&self.jobs);
        let sender = match &mut *jobs {
            Some(sender) => sender,
            none => none.insert(start(self.nice)?),
        };
        sender
            .try_send(job)
            .map_err(|e| Error::with_source(Kind::Internal, "a thread for checks", e.to_string()))
    }
}

fn start(nice: bool) -> Result<SyncSender<Job>> {
    // A job may still run whose caller gave up, and its turn with it.
    let (sender, receiver) = sync_channel(QUEUE);
    let receiver = Arc::new(Mutex::new(receiver));
    for _ in 0..CHECKERS {
        let receiver = receiver.clone();
        let thread = std::thread::Builder::new().name("hfmount-check".into());
        let started = thread.spawn(move || {
            // Of this thread alone. If that is not allowed it works like the others.
            if nice && let Err(e) = rustix::process::setpriority_process(None, NICE) {
                tracing::debug!(error = %e, "checks do not give way");
            }
            work(&receiver);
        });
        started.map_err(|e| Error::with_source(Kind::Internal, "a thread for checks", e))?;
    }
    Ok(sender)
}

fn work(jobs: &Mutex<Receiver<Job>>) {
    loop {
        // Those who wait for the lock wait for a job too.
        let Ok(job) = lock(jobs).recv() else { return };
        // Whoever gave it finds no answer.
        let _panicked = catch_unwind(AssertUnwindSafe(job));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_is_done_elsewhere_and_a_panic_ends_nothing() {
        let checkers = Checkers::new(true);
        let nice = || Ok(rustix::process::getpriority_process(None).expect("a priority"));
        let mine = nice().expect("known");
        for _ in 0..2 * CHECKERS {
            let failed = checkers.run(|| -> Result<()> { panic!("as told") }).await;
            assert_eq!(failed.expect_err("a panic").kind(), Kind::Internal);
        }
        assert!(checkers.run(nice).await.expect("it goes on") >= NICE);
        assert_eq!(nice().expect("known"), mine, "of the others nothing is changed");
        let thread = checkers.run(|| Ok(std::thread::current().name().map(str::to_owned))).await;
        assert_eq!(thread.expect("run").as_deref(), Some("hfmount-check"));
    }
}
