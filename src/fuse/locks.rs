//! flock(2). POSIX locks are the kernel's own affair, local to this machine: with both kinds on, fuser cannot tell them
//! apart.

use fuser::{Errno, INodeNo, ReplyEmpty, Request};

use super::adapter::{Adapter, asking, unattended};
use super::faces::Node;
use super::interrupt::Heed;
use super::names::answer_empty;
use super::tasks::Job;
use crate::types::Ino;
use crate::vfs::Flock;

impl Adapter {
    pub(super) fn lock_file(
        &self,
        req: &Request,
        ino: Ino,
        (fh, owner): (u64, u64),
        typ: i32,
        wait: bool,
        reply: ReplyEmpty,
    ) {
        let kind = match typ {
            libc::F_RDLCK => Flock::Shared,
            libc::F_WRLCK => Flock::Exclusive,
            libc::F_UNLCK => Flock::Unlock,
            _ => return reply.error(Errno::EINVAL),
        };
        let (vfs, faces, notifier, pid) =
            (self.vfs.clone(), self.faces.clone(), self.notifier.clone(), req.pid());
        let drop_pages = async move {
            // Waits for reads of these pages that are under way.
            let dropped = tokio::task::spawn_blocking(move || {
                let notifier = notifier.get();
                let mut drop =
                    |node: Node| notifier.map_or(Ok(()), |n| n.inval_inode(INodeNo(node.number()), 0, -1));
                faces.nodes(ino).try_for_each(&mut drop)
            });
            if let Ok(Err(e)) = dropped.await {
                tracing::debug!(%ino, "dropping pages: {e}");
            }
        };
        let work = async move { vfs.flock_by(pid, fh, owner, kind, wait, drop_pages).await };
        let job = match (kind, wait) {
            // An unlock that is begun is finished.
            (Flock::Unlock, _) => unattended("flock", ino),
            (_, true) => Job { heed: Heed::Any, ..asking("flock", ino, req) },
            (_, false) => asking("flock", ino, req),
        };
        self.tasks.spawn(job, work, move |result| answer_empty("flock", ino, result, reply));
    }
}
