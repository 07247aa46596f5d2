//! Which opens of a file the kernel serves by itself, out of a file on this machine's disk (passthrough), and which go
//! through its pages and this daemon. Of one inode the kernel takes either the one or the other at a time, and only one
//! file behind it: an answer that does not fit fails the program's open with EIO, after the fact. So every file has two
//! *faces*, two inodes of the kernel: its own number and, only if need be, its *twin*. Each is idle, cached or native.
//!
//! Who comes to a face that is taken by the other kind is told to look the name up again (ESTALE, upon which the kernel
//! does so by itself), and is shown the other face then. So a blob that was opened while it filled is native for those who
//! open it later, and a blob that is native can be opened for writing. At most one face is native: there is always one for
//! who must not be.
//!
//! `st_ino` is the file's own number all the same: only the answer to a lookup names the twin, and says that its attributes
//! are to be asked for.

use std::collections::HashMap;
use std::io;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use lru::LruCache;

use crate::types::Ino;

/// What the number of a twin has beside the file's. Inodes of the metadata are counted from 1 and never come so far.
const TWIN: u64 = 1 << 59;
/// Threads that were told to look again and are remembered.
const SENT: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");
/// The kernel comes again at once, if it does at all.
const AGAIN: Duration = Duration::from_secs(10);

/// One of the two inodes that the kernel may have of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Node {
    pub(super) ino: Ino,
    twin: bool,
}

impl Node {
    /// Of the number that the kernel names.
    pub(super) fn of(number: u64) -> Self {
        let twin = number & TWIN != 0 && !Ino(number).is_virtual();
        Node { ino: Ino(if twin { number & !TWIN } else { number }), twin }
    }

    /// The inode of the file's own number.
    pub(super) fn own(ino: Ino) -> Self {
        Node { ino, twin: false }
    }

    /// The number for the kernel.
    pub(super) fn number(self) -> u64 {
        if self.twin { self.ino.0 | TWIN } else { self.ino.0 }
    }

    pub(super) fn is_twin(self) -> bool {
        self.twin
    }

    fn other(self) -> Self {
        Node { twin: !self.twin, ..self }
    }

    fn face(self) -> usize {
        usize::from(self.twin)
    }
}

/// What becomes of an open.
#[derive(Debug)]
pub(super) enum Granted<B> {
    /// Through the kernel's pages and the daemon. Counted until its release.
    Cached,
    /// Out of this file. Counted until its release.
    Native(Arc<B>),
    /// ESTALE: the kernel looks the name up again, and finds the other face. Not counted.
    LookAgain,
    /// There is no name to look up, and this face cannot serve it. Not counted.
    Taken,
}

/// What the kernel can do with a file of the cache.
#[derive(Clone, Copy, Debug)]
pub(super) struct Able {
    /// Open it for direct I/O.
    pub(super) direct: bool,
}

#[derive(Debug)]
struct Face<B> {
    opens: u64,
    /// If so, all of the opens are native.
    native: Option<Arc<B>>,
}

impl<B> Default for Face<B> {
    fn default() -> Self {
        Face { opens: 0, native: None }
    }
}

#[derive(Debug)]
struct File<B> {
    faces: [Face<B>; 2],
    /// Which one is shown to who looks the file up.
    shown: bool,
}

#[derive(Debug)]
struct Table<B> {
    /// Files that are open. Not more than the kernel has open.
    files: HashMap<Ino, File<B>>,
    /// Lookups of twins that the kernel has not forgotten: as many as it keeps inodes.
    twins: HashMap<Ino, u64>,
    /// Threads that were told to look again lately, until they come.
    sent: LruCache<(u32, Ino), Sent>,
}

/// A thread was sent from one face to the other.
#[derive(Clone, Copy, Debug)]
struct Sent {
    from: bool,
    /// It must find that face not native.
    cached: bool,
    /// It was to have the file, which had all that there was to be read when it asked.
    native: bool,
    at: Instant,
}

impl Sent {
    fn is_fresh(&self) -> bool {
        self.at.elapsed() < AGAIN
    }
}

/// The faces of all files of a mount. `B` stands for a file that the kernel was given.
#[derive(Debug)]
pub(super) struct Faces<B> {
    able: OnceLock<Able>,
    table: Mutex<Table<B>>,
    /// How many twins there are, for a look without the lock.
    twins: AtomicUsize,
}

impl<B> Default for Faces<B> {
    fn default() -> Self {
        let table = Table { files: HashMap::new(), twins: HashMap::new(), sent: LruCache::new(SENT) };
        Faces { able: OnceLock::new(), table: Mutex::new(table), twins: AtomicUsize::new(0) }
    }
}

impl<B> Faces<B> {
    /// The kernel can. To be said before the first request; without it every open is cached, and nothing is counted.
    pub(super) fn enable(&self, able: Able) {
        let _once = self.able.set(able);
    }

    /// Whether an open with these flags may be native. Never one that may write: the kernel would write to the file itself.
    pub(super) fn may_be_native(&self, flags: i32) -> bool {
        flags & libc::O_ACCMODE == libc::O_RDONLY
            && flags & libc::O_TRUNC == 0
            && self.able.get().is_some_and(|able| able.direct || flags & libc::O_DIRECT == 0)
    }

    fn table(&self) -> MutexGuard<'_, Table<B>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An open of `node` with `flags` by the thread `tid` (0 = unknown) is about to be answered. `file` gives the kernel the
    /// file, and is there if the open may be native; when it fails the open is cached. The answer must be sent as it is granted.
    pub(super) fn open(
        &self,
        tid: u32,
        node: Node,
        flags: i32,
        file: Option<impl FnOnce() -> io::Result<B>>,
    ) -> Granted<B> {
        if self.able.get().is_none() || node.ino.is_virtual() {
            return Granted::Cached;
        }
        let mut table = self.table();
        let table = &mut *table;
        // The kernel looks once. Who comes to the same face again has no name to look up.
        let told = table.sent.pop(&(tid, node.ino)).filter(Sent::is_fresh);
        // What is remembered may be of an open that came to nothing, and the thread may want to write by now.
        let told_native = told.is_some_and(|sent| sent.native) && self.may_be_native(flags);
        let wanted = file.is_some();
        let (told, promised) = (told.is_some(), wanted && table.is_promised(node));
        let open = table
            .files
            .entry(node.ino)
            .or_insert_with(|| File { faces: Default::default(), shown: node.twin });
        let (here, there) = (node.face(), node.other().face());
        let granted = match (file, &open.faces[here]) {
            (Some(_), Face { native: Some(file), .. }) => Granted::Native(file.clone()),
            (Some(file), Face { opens: 0, .. }) if open.faces[there].native.is_none() && !promised => {
                match file() {
                    Ok(file) => Granted::Native(Arc::new(file)),
                    Err(e) => {
                        tracing::debug!(ino = %node.ino, "the kernel does not take the file: {e}");
                        Granted::Cached
                    }
                }
            }
            // Taken by a cached open or for one, or the other face is native.
            (Some(_), _) if tid != 0 && !told && open.faces[there].serves_natively() => Granted::LookAgain,
            (Some(_), _) | (None, Face { native: None, .. }) => Granted::Cached,
            // Somebody opened it to write since; the open began before he can have closed it.
            (None, Face { native: Some(file), .. }) if told_native => Granted::Native(file.clone()),
            (None, _) if !told => Granted::LookAgain,
            (None, _) => Granted::Taken,
        };
        let cached = open.faces[here].native.is_some();
        let face = &mut open.faces[here];
        match &granted {
            Granted::Cached => face.opens += 1,
            Granted::Native(file) => {
                face.opens += 1;
                face.native = Some(file.clone());
                open.shown = node.twin;
            }
            Granted::LookAgain => {
                open.shown = !node.twin;
                table.send(tid, node, cached, wanted);
            }
            Granted::Taken => {}
        }
        table.tidy(node.ino);
        granted
    }

    /// The file system wants the thread to look again, for reasons of its own: if `node` is native, what it finds then is the
    /// other face, since the kernel does not look twice.
    pub(super) fn looks_again(&self, tid: u32, node: Node) {
        let mut table = self.table();
        if let Some(open) = table.files.get_mut(&node.ino)
            && open.faces[node.face()].native.is_some()
        {
            open.shown = !node.twin;
            table.send(tid, node, true, false);
        }
    }

    /// The kernel released an open that was granted. What it was given is let go with the last one.
    pub(super) fn release(&self, node: Node) {
        if self.able.get().is_none() || node.ino.is_virtual() {
            return;
        }
        let mut table = self.table();
        let mut last = None;
        if let Some(open) = table.files.get_mut(&node.ino) {
            let face = &mut open.faces[node.face()];
            face.opens = face.opens.saturating_sub(1);
            if face.opens == 0 {
                last = face.native.take();
            }
        }
        table.tidy(node.ino);
        drop(table);
        drop(last);
    }

    /// The inode that `ino` is shown as to a thread that looks it up. Counts as a lookup.
    pub(super) fn look_up(&self, tid: u32, ino: Ino) -> Node {
        if self.able.get().is_none() || ino.is_virtual() {
            return Node::own(ino);
        }
        let mut table = self.table();
        let twin = match table.sent.peek(&(tid, ino)).filter(|sent| sent.is_fresh()) {
            Some(sent) => !sent.from,
            None => table.files.get(&ino).is_some_and(|open| open.shown),
        };
        let node = Node { ino, twin };
        self.looked_up(&mut table, node);
        node
    }

    /// The inode that `ino` is shown as to whoever lists it; [`Faces::shown`] counts the lookup.
    pub(super) fn face(&self, ino: Ino) -> Node {
        let twin = self.twins.load(Ordering::SeqCst) > 0
            && self.table().files.get(&ino).is_some_and(|open| open.shown);
        Node { ino, twin }
    }

    /// The kernel is shown `node` once more.
    pub(super) fn shown(&self, node: Node) {
        if node.twin {
            self.looked_up(&mut self.table(), node);
        }
    }

    fn looked_up(&self, table: &mut Table<B>, node: Node) {
        if node.twin {
            *table.twins.entry(node.ino).or_insert(0) += 1;
            self.twins.store(table.twins.len(), Ordering::SeqCst);
        }
    }

    /// The kernel forgot `count` lookups of `node`. Whether it may have lost the file altogether.
    pub(super) fn forget(&self, node: Node, count: u64) -> bool {
        if self.able.get().is_none() || node.ino.is_virtual() {
            return true;
        }
        let mut table = self.table();
        if node.twin
            && let Some(lookups) = table.twins.get_mut(&node.ino)
        {
            *lookups = lookups.saturating_sub(count);
            if *lookups == 0 {
                table.twins.remove(&node.ino);
                self.twins.store(table.twins.len(), Ordering::SeqCst);
            }
        }
        !table.twins.contains_key(&node.ino) && !table.files.contains_key(&node.ino)
    }

    /// The twin, if the kernel may have it.
    pub(super) fn twin(&self, ino: Ino) -> Option<Node> {
        let known = self.twins.load(Ordering::SeqCst) > 0 && self.table().twins.contains_key(&ino);
        known.then_some(Node { ino, twin: true })
    }

    /// All that the kernel may have of a file.
    pub(super) fn nodes(&self, ino: Ino) -> impl Iterator<Item = Node> {
        std::iter::once(Node::own(ino)).chain(self.twin(ino))
    }

    /// What else the kernel may have of the file.
    pub(super) fn other(&self, node: Node) -> Option<Node> {
        self.twin(node.ino).map(|_| node.other())
    }
}

impl<B> Face<B> {
    fn serves_natively(&self) -> bool {
        self.opens == 0 || self.native.is_some()
    }
}

impl<B> Table<B> {
    /// A thread without a number cannot be told from others.
    fn send(&mut self, tid: u32, from: Node, cached: bool, native: bool) {
        if tid != 0 {
            // Who did not come counts for nothing, and every open that may be native looks through all of them.
            while self.sent.peek_lru().is_some_and(|(_, sent)| !sent.is_fresh()) {
                self.sent.pop_lru();
            }
            self.sent.put((tid, from.ino), Sent { from: from.twin, cached, native, at: Instant::now() });
        }
    }

    /// Whether somebody was sent to this face who must find it not native.
    fn is_promised(&self, node: Node) -> bool {
        let here = |sent: &Sent| sent.cached && sent.from != node.twin && sent.is_fresh();
        self.sent.iter().any(|((_, ino), sent)| *ino == node.ino && here(sent))
    }

    fn tidy(&mut self, ino: Ino) {
        if self.files.get(&ino).is_some_and(|open| open.faces.iter().all(|face| face.opens == 0)) {
            self.files.remove(&ino);
        }
    }
}

#[cfg(test)]
mod tests;
