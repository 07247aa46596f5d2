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
/// Jobs that wait for each kind of thread: few, since who gives one waits for it.
const QUEUE: usize = 64;
/// A tenth of what others get, while there are others.
const NICE: i32 = 10;

type Job = Box<dyn FnOnce() + Send>;

/// How much a check gives way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Haste {
    /// Not at all: somebody waits for it.
    Awaited,
    /// A tenth of what others get.
    Soon,
    /// Only what is left over (`SCHED_IDLE`): the rest of the blob is still coming. Who wakes up on a processor that does
    /// nothing else has it at once, which a mere `nice` does not give.
    Idle,
}

/// The threads; those of a kind are started with its first check, all ended with this.
#[derive(Debug)]
pub(super) struct Checkers {
    lanes: [Mutex<Option<SyncSender<Job>>>; 3],
    /// As many as there are threads of a kind: who has one finds room in any queue.
    turns: Semaphore,
}

impl Checkers {
    pub(super) fn new() -> Self {
        Checkers { lanes: Default::default(), turns: Semaphore::new(CHECKERS) }
    }

    /// Runs `work` there. A panic in it is an error here.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        haste: Haste,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let failed = |e| Error::with_source(Kind::Internal, "checking a blob", e);
        let _turn = self.turns.acquire().await.map_err(failed)?;
        let (done, answer) = oneshot::channel();
        // Who gave up on it needs no answer.
        let job: Job = Box::new(move || drop(done.send(work())));
        self.give(haste, job)?;
        answer.await.map_err(|e| Error::with_source(Kind::Internal, "checking a blob", e))?
    }

    fn give(&self, haste: Haste, job: Job) -> Result<()> {
        let mut lane = lock(&self.lanes[haste as usize]);
        let sender = match &mut *lane {
            Some(sender) => sender,
            none => none.insert(start(haste)?),
        };
        sender
            .try_send(job)
            .map_err(|e| Error::with_source(Kind::Internal, "a thread for checks", e.to_string()))
    }
}

fn start(haste: Haste) -> Result<SyncSender<Job>> {
    // A job may still run whose caller gave up, and its turn with it.
    let (sender, receiver) = sync_channel(QUEUE);
    let receiver = Arc::new(Mutex::new(receiver));
    for _ in 0..CHECKERS {
        let receiver = receiver.clone();
        let thread = std::thread::Builder::new().name("hfmount-check".into());
        let started = thread.spawn(move || {
            give_way(haste);
            work(&receiver);
        });
        started.map_err(|e| Error::with_source(Kind::Internal, "a thread for checks", e))?;
    }
    Ok(sender)
}

/// Of this thread alone. What is not allowed is left: it works like the others then.
fn give_way(haste: Haste) {
    if haste == Haste::Awaited {
        return;
    }
    if let Err(e) = rustix::process::setpriority_process(None, NICE) {
        tracing::debug!(error = %e, "checks do not give way");
    }
    if haste == Haste::Idle {
        // SAFETY: sched_param is a plain struct of numbers, of which zero is the only priority that SCHED_IDLE has.
        let param: libc::sched_param = unsafe { std::mem::zeroed() };
        // SAFETY: `param` outlives the call, which reads it; 0 is the calling thread.
        if unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const param) } == -1 {
            tracing::debug!(error = %std::io::Error::last_os_error(), "checks are not idle work");
        }
    }
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
        let checkers = Checkers::new();
        let nice = || Ok(rustix::process::getpriority_process(None).expect("a priority"));
        let mine = nice().expect("known");
        for _ in 0..2 * CHECKERS {
            let failed = checkers.run(Haste::Soon, || -> Result<()> { panic!("as told") }).await;
            assert_eq!(failed.expect_err("a panic").kind(), Kind::Internal);
        }
        assert!(checkers.run(Haste::Soon, nice).await.expect("it goes on") >= NICE);
        assert_eq!(checkers.run(Haste::Awaited, nice).await.expect("run"), mine);
        // SAFETY: it reads the policy of the calling thread.
        let policy = || Ok(unsafe { libc::sched_getscheduler(0) });
        assert_eq!(checkers.run(Haste::Idle, policy).await.expect("run"), libc::SCHED_IDLE);
        assert_eq!(checkers.run(Haste::Soon, policy).await.expect("run"), libc::SCHED_OTHER);
        assert_eq!(nice().expect("known"), mine, "of the others nothing is changed");
        let thread = checkers.run(Haste::Idle, || Ok(std::thread::current().name().map(str::to_owned))).await;
        assert_eq!(thread.expect("run").as_deref(), Some("hfmount-check"));
    }
}
