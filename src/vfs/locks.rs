//! flock(2), for the whole cluster. Taking a lock revalidates the file, releasing it writes the file out: two programs that
//! lock around what they do see each other's data, wherever they run.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

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

/// Who waits for which inode's lock.
#[derive(Debug, Default)]
pub struct Locks {
    waiting: Mutex<HashMap<Ino, Arc<Notify>>>,
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
}

impl Vfs {
    /// Takes or releases the lock of `owner` (the kernel's name for an open file description). Without `wait`, a lock that
    /// another holds is [`Kind::WouldBlock`]. Dropping the future gives up waiting.
    pub async fn flock(self: &Arc<Self>, fh: u64, owner: u64, kind: Flock, wait: bool) -> Result<()> {
        let handle = self.handles.get(fh)?;
        let lock = match (&handle.data, kind) {
            (Data::Private(file), kind) => return self.flock_private(file, kind, wait).await,
            (Data::Empty, _) => return Ok(()),
            (_, Flock::Unlock) => {
                self.write_out(&handle).await?;
                return self.unlock(handle.ino, owner).await;
            }
            (_, Flock::Shared) => LockKind::Shared,
            (_, Flock::Exclusive) => LockKind::Exclusive,
        };
        let bell = self.locks.bell(handle.ino);
        loop {
            let rung = bell.notified();
            tokio::pin!(rung);
            // Listening before asking: a release in between is not missed.
            rung.as_mut().enable();
            if self.meta.try_lock(handle.ino, owner, lock).await? {
                break;
            }
            if !wait {
                return Err(Error::new(Kind::WouldBlock, format!("lock of inode {}", handle.ino)));
            }
            let _rung_or_late = tokio::time::timeout(ASK_AGAIN, rung).await;
        }
        if let Err(e) = self.revalidate(&handle).await {
            self.unlock(handle.ino, owner).await?;
            return Err(e);
        }
        Ok(())
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

    /// What the file is now, before its new holder reads it.
    async fn revalidate(&self, handle: &Handle) -> Result<()> {
        let Data::File(file) = &handle.data else { return Ok(()) };
        let attr = self.meta.getattr(handle.ino).await?;
        file.refresh(&attr);
        if !self.attrs.tell(handle.ino, attr.version) {
            self.invalidations.pages(handle.ino);
        }
        Ok(())
    }

    async fn write_out(&self, handle: &Handle) -> Result<()> {
        match &handle.data {
            Data::File(file) if handle.writable() && file.is_dirty() => self.commit(file).await,
            _ => Ok(()),
        }
    }

    pub(super) async fn unlock(&self, ino: Ino, owner: u64) -> Result<()> {
        self.meta.unlock(ino, owner).await?;
        self.locks.wake(ino);
        Ok(())
    }
}
