//! Tells the kernel what to forget, from threads of their own.
//!
//! Dropping an entry takes the lock of its directory, and dropping pages waits for reads under way: done from inside a
//! lookup or a read they would wait for themselves. One that waits for a slow request must not hold back the others
//! either, hence several threads; one queue feeds them all, and order does not matter.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::Duration;

use fuser::{BackingId, INodeNo, Notifier};

use super::faces::Faces;
use crate::error::{Error, Kind, Result};
use crate::types::Ino;
use crate::vfs::{Invalidation, Orders};

const THREADS: usize = 4;
/// After so many a thread pauses: each takes locks that users' requests want too.
const BURST: usize = 256;
const PAUSE: Duration = Duration::from_millis(2);

/// Starts the threads. They end when the queue's other end is dropped.
pub(super) fn start(orders: Orders, notifier: &Notifier, faces: &Arc<Faces<BackingId>>) -> Result<()> {
    let orders = Arc::new(orders);
    for n in 0..THREADS {
        let (orders, notifier, faces) = (orders.clone(), notifier.clone(), faces.clone());
        std::thread::Builder::new()
            .name(format!("hfmount-inval-{n}"))
            .spawn(move || drain(&orders, &notifier, &faces))
            .map_err(|e| Error::with_source(Kind::Internal, "thread for invalidations", e))?;
    }
    Ok(())
}

fn drain(orders: &Orders, notifier: &Notifier, faces: &Faces<BackingId>) {
    let mut burst = 0;
    while let Some(batch) = orders.next() {
        burst += batch.len();
        for order in &batch {
            let result = match order {
                Invalidation::Entry { parent, name } => {
                    notifier.inval_entry(INodeNo(parent.0), OsStr::from_bytes(name))
                }
                Invalidation::Attrs { ino } => forget(notifier, faces, *ino, (-1, 0)),
                Invalidation::Pages { ino } => forget(notifier, faces, *ino, (0, -1)),
            };
            note(order, result);
        }
        // The kernel forgets the directory's times and links with a name only if it knows the name.
        if let Some(order @ Invalidation::Entry { parent, .. }) = batch.first() {
            note(order, notifier.inval_inode(INodeNo(parent.0), -1, 0));
        }
        if burst >= BURST {
            burst = 0;
            std::thread::sleep(PAUSE);
        }
    }
}

/// Drops a range of all that the kernel has of a file.
fn forget(
    notifier: &Notifier,
    faces: &Faces<BackingId>,
    ino: Ino,
    (from, len): (i64, i64),
) -> std::io::Result<()> {
    faces.nodes(ino).try_for_each(|node| notifier.inval_inode(INodeNo(node.number()), from, len))
}

/// A failure: the mount is going, or the name is that of a mount point.
fn note(order: &Invalidation, result: std::io::Result<()>) {
    if let Err(e) = result {
        tracing::debug!("{order:?}: {e}");
    }
}
