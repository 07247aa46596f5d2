//! Tells the kernel what to forget, from threads of their own.
//!
//! Dropping an entry takes the lock of its directory, and dropping pages waits for reads under way: done from inside a
//! lookup or a read they would wait for themselves. One that waits for a slow request must not hold back the others
//! either, hence several threads; one queue feeds them all, and order does not matter.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fuser::{INodeNo, Notifier};

use crate::error::{Error, Kind, Result};
use crate::vfs::Invalidation;

const THREADS: usize = 4;
/// After so many a thread pauses: each takes locks that users' requests want too.
const BURST: u32 = 256;
const PAUSE: Duration = Duration::from_millis(2);

/// Starts the threads. They end when the queue's other end is dropped.
pub(super) fn start(queue: Receiver<Invalidation>, notifier: &Notifier) -> Result<()> {
    let queue = Arc::new(Mutex::new(queue));
    for n in 0..THREADS {
        let (queue, notifier) = (queue.clone(), notifier.clone());
        std::thread::Builder::new()
            .name(format!("hfmount-inval-{n}"))
            .spawn(move || drain(&queue, &notifier))
            .map_err(|e| Error::with_source(Kind::Internal, "thread for invalidations", e))?;
    }
    Ok(())
}

fn drain(queue: &Mutex<Receiver<Invalidation>>, notifier: &Notifier) {
    let mut burst = 0;
    loop {
        // Whoever holds the lock waits for the next; the others wait for the lock.
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(next) = next else { return };
        let result = match &next {
            // The kernel forgets the directory's times and links with a name only if it knows the name.
            Invalidation::Entry { parent, name } => notifier
                .inval_entry(INodeNo(parent.0), OsStr::from_bytes(name))
                .and(notifier.inval_inode(INodeNo(parent.0), -1, 0)),
            Invalidation::Attrs { ino } => notifier.inval_inode(INodeNo(ino.0), -1, 0),
            Invalidation::Pages { ino } => notifier.inval_inode(INodeNo(ino.0), 0, -1),
        };
        if let Err(e) = result {
            // The mount is going, or the name is that of a mount point.
            tracing::debug!("{next:?}: {e}");
        }
        burst += 1;
        if burst == BURST {
            burst = 0;
            std::thread::sleep(PAUSE);
        }
    }
}
