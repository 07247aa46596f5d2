//! Ends waits that nobody wants any more.
//!
//! fuser answers the kernel's own INTERRUPT messages with ENOSYS, and then a process inside a slow request cannot be
//! killed until the request ends. So a request that has lasted [`PATIENCE`] puts its thread on a list, and one thread
//! of the daemon looks every [`PERIOD`] whether a signal waits for any of them. The caller's request then fails with
//! EINTR.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use super::signals::{Pending, pending};
use crate::error::{Error, Kind, Result};

/// How old a request is before anybody looks at its caller's signals.
pub(super) const PATIENCE: Duration = Duration::from_millis(100);
/// How often they are looked at.
const PERIOD: Duration = Duration::from_millis(50);
/// Callers looked at in one period. A status costs some 30 µs; with more waiting, each waits more periods.
const BATCH: usize = 256;

/// Which signals end a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heed {
    /// None: nobody waits for the answer.
    Nothing,
    /// Those that end the process. What changes something is not interrupted by others: a program that tries again would
    /// do it twice.
    Fatal,
    /// Those that end the process, and the ones by which users ask it to stop, caught or not. Disk I/O is not
    /// interrupted by others, and programs do not expect it to be.
    Stop,
    /// As `Stop`, if the caller is in a system call; in a page fault only those that end the process: EINTR there
    /// becomes SIGBUS.
    Read,
    /// Any that is delivered: for waits that may last for ever, as for a lock.
    Any,
}

/// The list of waiting callers and the thread that looks at them. The thread ends when this is dropped.
#[derive(Debug)]
pub(super) struct Interrupts(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    waiting: BTreeMap<u64, Waiter>,
    closed: bool,
}

#[derive(Clone, Debug)]
struct Waiter {
    tid: u32,
    heed: Heed,
    signalled: Arc<Notify>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Interrupts {
    /// Starts the thread.
    pub(super) fn start() -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let watched = shared.clone();
        std::thread::Builder::new()
            .name("hfmount-signals".into())
            .spawn(move || watch(&watched))
            .map_err(|e| Error::with_source(Kind::Internal, "thread that watches signals", e))?;
        Ok(Interrupts(shared))
    }

    /// Returns when the thread `tid` has a signal that `heed` names, or is gone. Never returns for callers that cannot
    /// be looked at (0: another pid namespace). Dropping the future ends the watch.
    pub(super) async fn signalled(&self, tid: u32, heed: Heed) {
        if tid == 0 || heed == Heed::Nothing {
            return std::future::pending().await;
        }
        let signalled = Arc::new(Notify::new());
        let id = {
            let mut state = self.0.lock();
            state.next += 1;
            let id = state.next;
            state.waiting.insert(id, Waiter { tid, heed, signalled: signalled.clone() });
            id
        };
        self.0.wake.notify_one();
        let _listed = Listed { shared: &self.0, id };
        signalled.notified().await;
    }
}

impl Drop for Interrupts {
    fn drop(&mut self) {
        self.0.lock().closed = true;
        self.0.wake.notify_all();
    }
}

struct Listed<'a> {
    shared: &'a Shared,
    id: u64,
}

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        self.shared.lock().waiting.remove(&self.id);
    }
}

fn watch(shared: &Shared) {
    let mut last = 0;
    loop {
        let batch = {
            let mut state = shared.lock();
            while state.waiting.is_empty() && !state.closed {
                state = shared.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if state.closed {
                return;
            }
            let after = state.waiting.range(last + 1..).take(BATCH);
            let batch: Vec<(u64, Waiter)> = after.map(|(id, w)| (*id, w.clone())).collect();
            last = if batch.len() < BATCH { 0 } else { batch.last().map_or(0, |(id, _)| *id) };
            batch
        };
        for (_, waiter) in batch {
            if gives_up(waiter.tid, waiter.heed) {
                waiter.signalled.notify_one();
            }
        }
        std::thread::sleep(PERIOD);
    }
}

fn gives_up(tid: u32, heed: Heed) -> bool {
    let pending = match fs::read_to_string(format!("/proc/{tid}/status")) {
        Ok(status) => pending(&status),
        Err(e) => return is_gone(&e),
    };
    ends(heed, pending, || in_system_call(tid))
}

/// Whether what waits for a thread ends a wait of the kind `heed`.
fn ends(heed: Heed, pending: Pending, in_system_call: impl FnOnce() -> bool) -> bool {
    match (heed, pending) {
        (Heed::Nothing, _) => false,
        (_, Pending::Fatal) => true,
        (_, Pending::None) | (Heed::Fatal, _) | (Heed::Stop | Heed::Read, Pending::Other) => false,
        (Heed::Any, _) | (Heed::Stop, Pending::Stop) => true,
        (Heed::Read, Pending::Stop) => in_system_call(),
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH))
}

/// Whether the thread is in a system call, as far as this process may know (root always may). A thread in a page fault
/// reads `-1 …`.
fn in_system_call(tid: u32) -> bool {
    fs::read_to_string(format!("/proc/{tid}/syscall"))
        .is_ok_and(|s| s.starts_with(|c: char| c.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command};

    #[test]
    fn which_signals_end_which_waits() {
        use Pending::{Fatal, None, Other, Stop};
        let table = [
            (Heed::Nothing, [false, false, false, false]),
            (Heed::Fatal, [false, false, false, true]),
            (Heed::Stop, [false, false, true, true]),
            (Heed::Read, [false, false, true, true]),
            (Heed::Any, [false, true, true, true]),
        ];
        for (heed, expected) in table {
            assert_eq!([None, Other, Stop, Fatal].map(|p| ends(heed, p, || true)), expected, "{heed:?}");
        }
        assert!(!ends(Heed::Read, Stop, || false), "EINTR in a page fault would be SIGBUS");
        assert!(ends(Heed::Read, Fatal, || false));
    }

    /// A process in a plain system call; killed at the end.
    struct Sleeper(Child);
    impl Drop for Sleeper {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn a_wait_ends_when_the_caller_is_gone_and_not_before() {
        let interrupts = Interrupts::start().expect("thread");
        let mut sleeper = Sleeper(Command::new("sleep").arg("60").spawn().expect("sleep"));
        let tid = sleeper.0.id();
        let early = tokio::time::timeout(Duration::from_millis(200), interrupts.signalled(tid, Heed::Stop));
        assert!(early.await.is_err(), "nothing happened to the caller");
        assert!(interrupts.0.lock().waiting.is_empty(), "the watch ended with its future");
        sleeper.0.kill().expect("kill");
        sleeper.0.wait().expect("reaped");
        let late = tokio::time::timeout(Duration::from_secs(5), interrupts.signalled(tid, Heed::Read));
        assert!(late.await.is_ok(), "the caller is gone");
    }

    #[tokio::test]
    async fn callers_of_other_namespaces_are_never_given_up() {
        let interrupts = Interrupts::start().expect("thread");
        let wait = tokio::time::timeout(Duration::from_millis(150), interrupts.signalled(0, Heed::Any));
        assert!(wait.await.is_err());
    }
}
