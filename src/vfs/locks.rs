//! flock(2), for the whole cluster. Taking a lock revalidates the file, releasing it writes the file out: two programs that
//! lock around what they do see each other's data, wherever they run.
//!
//! Who waits is woken by the push, and asks again by itself now and then. Who has waited for [`PATIENCE`] goes first in
//! line, so that a program that takes the lock again the moment it released it lets others in.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::runtime::Handle as Runtime;
use tokio::sync::Notify;

use super::Vfs;
use super::handles::{Data, Handle};
use super::private;
use super::types::Flock;
use crate::error::{Error, Kind, Result};
use crate::meta::LockKind;
use crate::types::Ino;

/// A waiter asks again after so long even if nobody told it that the lock is free: the push is a hint, and a holder's node
/// may have died.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// How long a waiter takes its chance with all others before it goes first in line.
const PATIENCE: Duration = Duration::from_millis(200);
/// Between two tries to give a lock back.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Who is first in line says so every [`ASK_AGAIN`]. One that has not for so long is gone.
const TICKET_STALE: Duration = Duration::from_secs(5);

/// The locks of this mount: who waits, who holds.
#[derive(Debug, Default)]
pub struct Locks {
    waiting: Mutex<HashMap<Ino, Arc<Notify>>>,
    /// By inode and owner. As many as programs hold.
    held: Mutex<HashMap<(Ino, u64), Held>>,
    /// Locks that their programs let go of, and the metadata could not be told. Nobody else gets them until it is.
    owed: Mutex<HashSet<(Ino, u64)>>,
    /// Held while one of these is given back, so that nobody takes it again meanwhile.
    giving: tokio::sync::Mutex<()>,
}

/// A lock that a program of this mount has.
#[derive(Clone, Copy, Debug)]
struct Held {
    kind: LockKind,
    /// Who took it; 0: not known.
    pid: u32,
}

impl Locks {
    fn bell(&self, ino: Ino) -> Arc<Notify> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        // Bells of inodes that nobody waits for any more.
        if waiting.len() > 1024 {
            waiting.retain(|_, bell| Arc::strong_count(bell) > 1);
        }
        Arc::clone(waiting.entry(ino).or_default())
    }

    /// A lock on the inode was released somewhere.
    pub fn wake(&self, ino: Ino) {
        let bell = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).get(&ino).cloned();
        if let Some(bell) = bell {
            bell.notify_waiters();
        }
    }

    /// Releases may have been missed.
    pub fn wake_all(&self) {
        for bell in self.waiting.lock().unwrap_or_else(PoisonError::into_inner).values() {
            bell.notify_waiters();
        }
    }

    fn held(&self) -> MutexGuard<'_, HashMap<(Ino, u64), Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn owed(&self) -> MutexGuard<'_, HashSet<(Ino, u64)>> {
        self.owed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Vfs {
    /// Takes or releases the lock of `owner` (the kernel's name for an open file description). Without `wait`, a lock that
    /// another holds is [`Kind::WouldBlock`]. Dropping the future gives up waiting, and the lock if it was there already.
    ///
    /// `drop_pages` is awaited if the kernel has pages of an older version: when this answers they are gone.
    pub async fn flock(
        self: &Arc<Self>,
        fh: u64,
        owner: u64,
        kind: Flock,
        wait: bool,
        drop_pages: impl Future<Output = ()>,
    ) -> Result<()> {
        self.flock_by(0, fh, owner, kind, wait, drop_pages).await
    }

    /// The same for the process `pid`, which the log names should the lock be lost.
    pub async fn flock_by(
        self: &Arc<Self>,
        pid: u32,
        fh: u64,
        owner: u64,
        kind: Flock,
        wait: bool,
        drop_pages: impl Future<Output = ()>,
    ) -> Result<()> {
        let handle = self.handles.get(fh)?;
        let lock = match (&handle.data, kind) {
            (Data::Private(file), kind) => return self.flock_private(file, kind, wait).await,
            (Data::Empty, _) => return Ok(()),
            (_, Flock::Unlock) => {
                match &handle.data {
                    Data::File(file) if handle.writable() && file.is_dirty() => self.write_out(file).await?,
                    _ => {}
                }
                return self.unlock(handle.ino, owner).await;
            }
            (_, Flock::Shared) => LockKind::Shared,
            (_, Flock::Exclusive) => LockKind::Exclusive,
        };
        // Or what is given back late would be the new one.
        self.give_back(handle.ino, owner).await?;
        let mut undo = Undo { vfs: Arc::clone(self), ino: handle.ino, owner, armed: true };
        // A conversion that has to wait has lost what it had.
        self.locks.held().remove(&(handle.ino, owner));
        if wait {
            self.wait_for_lock(handle.ino, owner, lock).await?;
        } else if !self.meta.try_lock(handle.ino, owner, lock).await? {
            undo.armed = false;
            return Err(Error::new(Kind::WouldBlock, format!("lock of inode {}", handle.ino)));
        }
        if !self.revalidate(&handle).await? {
            drop_pages.await;
        }
        self.locks.held().insert((handle.ino, owner), Held { kind: lock, pid });
        undo.armed = false;
        Ok(())
    }

    async fn wait_for_lock(&self, ino: Ino, owner: u64, lock: LockKind) -> Result<()> {
        let bell = self.locks.bell(ino);
        let began = Instant::now();
        let mut first: Option<(Bytes, Instant)> = None;
        loop {
            let rung = bell.notified();
            tokio::pin!(rung);
            // Listening before asking: a release in between is not missed.
            rung.as_mut().enable();
            if self.meta.try_lock(ino, owner, lock).await? {
                return Ok(());
            }
            if began.elapsed() < PATIENCE {
                let _rung_or_late = tokio::time::timeout(PATIENCE, rung).await;
                continue;
            }
            let stale = first.as_ref().filter(|(_, since)| since.elapsed() >= TICKET_STALE);
            let ticket = self.meta.queue_for_lock(ino, owner, stale.map(|(raw, _)| raw)).await?;
            first = match (ticket, first) {
                (Some(raw), Some((old, since))) if raw == old => Some((old, since)),
                (Some(raw), _) => Some((raw, Instant::now())),
                (None, _) => None,
            };
            let _rung_or_late = tokio::time::timeout(ASK_AGAIN, rung).await;
        }
    }

    async fn flock_private(&self, file: &Arc<std::fs::File>, kind: Flock, wait: bool) -> Result<()> {
        loop {
            match private::flock(file, kind) {
                Err(e) if e.kind() == Kind::WouldBlock && wait => {
                    tokio::time::sleep(Duration::from_millis(20)).await
                }
                done => return done,
            }
        }
    }

    /// What the file is now, before its new holder reads it. Whether the kernel's pages are of that.
    async fn revalidate(&self, handle: &Handle) -> Result<bool> {
        let file = match &handle.data {
            Data::File(file) => Some(file),
            Data::Blob(_) if handle.backed.is_some() => None,
            _ => return Ok(true),
        };
        let attr = self.meta.getattr(handle.ino).await?;
        let now = match file {
            Some(file) => {
                file.refresh(&attr);
                file.version()
            }
            // If it is another one, reads go by that from now on.
            None => attr.version,
        };
        Ok(self.attrs.tell(handle.ino, now) == Some(now))
    }

    pub(super) async fn unlock(&self, ino: Ino, owner: u64) -> Result<()> {
        self.locks.held().remove(&(ino, owner));
        self.meta.unlock(ino, owner).await?;
        self.locks.wake(ino);
        Ok(())
    }

    /// As [`Vfs::unlock`], for who will not try again: if the metadata does not answer now, the lock is given back behind.
    pub(super) async fn let_go(self: &Arc<Self>, ino: Ino, owner: u64) -> Result<()> {
        let unlocked = self.unlock(ino, owner).await;
        if let Err(e) = &unlocked
            && e.kind().is_transient()
            && self.locks.owed().insert((ino, owner))
        {
            tracing::warn!(%ino, "a lock is given back later: {e}");
            tokio::spawn(pay(Arc::downgrade(self), ino, owner));
        }
        unlocked
    }

    /// Gives back what this owner let go of and the metadata does not know of yet.
    async fn give_back(&self, ino: Ino, owner: u64) -> Result<()> {
        if !self.locks.owed().contains(&(ino, owner)) {
            return Ok(());
        }
        let _one = self.locks.giving.lock().await;
        if self.locks.owed().contains(&(ino, owner)) {
            self.meta.unlock(ino, owner).await?;
            self.locks.owed().remove(&(ino, owner));
            self.locks.wake(ino);
        }
        Ok(())
    }

    /// The session was lost, and with it every lock. They are taken again where nobody else has them now; their holders
    /// cannot be told that others may have had them in between, so the log says it.
    pub(super) async fn retake_locks(&self) {
        let held: Vec<((Ino, u64), Held)> = self.locks.held().iter().map(|(k, h)| (*k, *h)).collect();
        for ((ino, owner), Held { kind, pid }) in held {
            let lost = "a lock was lost with the session of this mount: other mounts may have held it since.";
            match self.meta.try_lock(ino, owner, kind).await {
                Ok(true) => tracing::error!(%ino, pid, "{lost} It is held again now"),
                Ok(false) => tracing::error!(%ino, pid, "{lost} Another holds it now"),
                Err(error) => tracing::error!(%ino, pid, %error, "{lost} It cannot be taken again"),
            }
            // Released by its program meanwhile, which found nothing to release.
            if !self.locks.held().contains_key(&(ino, owner))
                && let Err(error) = self.unlock(ino, owner).await
            {
                tracing::warn!(%ino, %error, "a lock that nobody wants stays until the end of this mount");
            }
        }
    }
}

/// Tries until the lock is given back, or the mount is gone and its session with it.
async fn pay(vfs: Weak<Vfs>, ino: Ino, owner: u64) {
    let mut pause = FIRST_PAUSE;
    loop {
        tokio::time::sleep(pause).await;
        let Some(vfs) = vfs.upgrade() else { return };
        match vfs.give_back(ino, owner).await {
            Ok(()) => return,
            Err(e) if e.kind().is_transient() => pause = (pause * 2).min(LONGEST_PAUSE),
            Err(e) => {
                vfs.locks.owed().remove(&(ino, owner));
                tracing::warn!(%ino, "a lock cannot be given back: {e}");
                return;
            }
        }
    }
}

/// Gives a lock back whose taker is told that he has not got it: an error, or he stopped waiting.
struct Undo {
    vfs: Arc<Vfs>,
    ino: Ino,
    owner: u64,
    armed: bool,
}

impl Drop for Undo {
    fn drop(&mut self) {
        // Without a runtime the mount is ending, and its session lets go of all it holds.
        let Some(runtime) = self.armed.then(Runtime::try_current).and_then(Result::ok) else { return };
        let (vfs, ino, owner) = (Arc::clone(&self.vfs), self.ino, self.owner);
        runtime.spawn(async move {
            // Said by `let_go`, which goes on.
            let _ = vfs.let_go(ino, owner).await;
        });
    }
}
