//! The reference: a tree of names, the committed data, and what each node sees, with the rules of close-to-open.
//!
//! A world takes a step together with what was answered, and says whether that may be. Of steps whose order is not known
//! there are several worlds, and one of them must agree.

mod data;
mod names;

use std::collections::{BTreeMap, BTreeSet};

use hfmount::error::Kind;
use hfmount::types::{FileType, Ino};

use crate::op::{Id, Locking, Step};
use crate::view::{History, View};

/// What a node answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Done,
    Made(Ino),
    Found(Found),
    Absent,
    Bytes(Vec<u8>),
    Names(BTreeMap<String, (Ino, FileType)>),
    Failed(Kind),
}

impl Answer {
    pub fn short(&self) -> String {
        match self {
            Answer::Bytes(bytes) => format!("{} bytes", bytes.len()),
            other => format!("{other:?}"),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    pub ino: Ino,
    pub kind: FileType,
    pub size: u64,
    pub nlink: u32,
    pub mode: u16,
    pub mtime: i64,
}

/// What is wrong.
pub type Wrong = String;

#[derive(Clone, Debug, PartialEq)]
pub enum Inode {
    Dir { parent: Id, names: BTreeMap<&'static str, Id>, mode: u16, gone: bool },
    File { data: History, nlink: u32, mode: u16, mtime: Option<i64> },
    Link { nlink: u32 },
}

#[derive(Clone, Debug, PartialEq)]
pub struct Handle {
    pub node: usize,
    pub file: Id,
    pub flags: i32,
}

impl Handle {
    pub fn reads(&self) -> bool {
        self.flags & libc::O_ACCMODE != libc::O_WRONLY
    }

    pub fn writes(&self) -> bool {
        self.flags & libc::O_ACCMODE != libc::O_RDONLY
    }

    /// Written to, or emptied by the open.
    pub fn may_change(&self) -> bool {
        self.writes() || self.flags & libc::O_TRUNC != 0
    }

    pub fn appends(&self) -> bool {
        self.flags & libc::O_APPEND != 0
    }
}

/// The directory that everything happens in.
pub const TOP: Id = 0;

#[derive(Clone, Debug, PartialEq)]
pub struct World {
    pub inodes: BTreeMap<Id, Inode>,
    pub handles: BTreeMap<Id, Handle>,
    views: BTreeMap<(usize, Id), View>,
    /// Files whose last name was removed on that node.
    removed: BTreeSet<(usize, Id)>,
    /// By file: the handle, and whether it excludes others. Handles of killed nodes stay.
    locks: BTreeMap<Id, BTreeMap<Id, bool>>,
}

fn check(good: bool, expected: impl FnOnce() -> String, got: &Answer) -> Result<(), Wrong> {
    if good { Ok(()) } else { Err(format!("expected {}, got {}", expected(), got.short())) }
}

fn equals(expected: &Answer, got: &Answer) -> Result<(), Wrong> {
    check(expected == got, || expected.short(), got)
}

impl World {
    pub fn new() -> Self {
        let top = Inode::Dir { parent: TOP, names: BTreeMap::new(), mode: 0o755, gone: false };
        World {
            inodes: BTreeMap::from([(TOP, top)]),
            handles: BTreeMap::new(),
            views: BTreeMap::new(),
            removed: BTreeSet::new(),
            locks: BTreeMap::new(),
        }
    }

    fn names(&self, dir: Id) -> Option<&BTreeMap<&'static str, Id>> {
        match self.inodes.get(&dir) {
            Some(Inode::Dir { names, gone: false, .. }) => Some(names),
            _ => None,
        }
    }

    fn names_mut(&mut self, dir: Id) -> &mut BTreeMap<&'static str, Id> {
        match self.inodes.get_mut(&dir) {
            Some(Inode::Dir { names, gone: false, .. }) => names,
            other => panic!("{dir} is no living directory: {other:?}"),
        }
    }

    pub fn get(&self, dir: Id, name: &str) -> Option<Id> {
        self.names(dir)?.get(name).copied()
    }

    pub fn is_dir(&self, id: Id) -> bool {
        matches!(self.inodes.get(&id), Some(Inode::Dir { .. }))
    }

    fn is_empty(&self, id: Id) -> bool {
        self.names(id).is_none_or(BTreeMap::is_empty)
    }

    fn is_below(&self, ancestor: Id, mut dir: Id) -> bool {
        loop {
            if dir == ancestor {
                return true;
            }
            if dir == TOP {
                return false;
            }
            let Some(Inode::Dir { parent, .. }) = self.inodes.get(&dir) else { return false };
            dir = *parent;
        }
    }

    /// Directories with a name.
    pub fn dirs(&self) -> Vec<Id> {
        let living =
            |(id, inode): (&Id, &Inode)| matches!(inode, Inode::Dir { gone: false, .. }).then_some(*id);
        self.inodes.iter().filter_map(living).collect()
    }

    /// Files with a name.
    pub fn files(&self) -> Vec<Id> {
        let living =
            |(id, inode): (&Id, &Inode)| matches!(inode, Inode::File { nlink: 1.., .. }).then_some(*id);
        self.inodes.iter().filter_map(living).collect()
    }

    pub fn data(&self, file: Id) -> &History {
        match self.inodes.get(&file) {
            Some(Inode::File { data, .. }) => data,
            other => panic!("{file} is no file: {other:?}"),
        }
    }

    fn file_mut(&mut self, file: Id) -> (&mut History, &mut u32, &mut u16, &mut Option<i64>) {
        match self.inodes.get_mut(&file) {
            Some(Inode::File { data, nlink, mode, mtime }) => (data, nlink, mode, mtime),
            other => panic!("{file} is no file: {other:?}"),
        }
    }

    pub fn view(&self, handle: Id) -> &View {
        let handle = &self.handles[&handle];
        &self.views[&(handle.node, handle.file)]
    }

    /// Nothing runs at this moment.
    pub fn settle(&mut self) {
        for inode in self.inodes.values_mut() {
            if let Inode::File { data, .. } = inode {
                data.settle();
            }
        }
    }

    /// The node is gone with what it had not committed. What it locked stays locked.
    pub fn killed(&mut self, node: usize) {
        self.handles.retain(|_, h| h.node != node);
        self.views.retain(|(n, _), _| *n != node);
        self.removed.retain(|(n, _)| *n != node);
    }

    fn link_up(&mut self, id: Id) {
        match self.inodes.get_mut(&id) {
            Some(Inode::File { nlink, .. } | Inode::Link { nlink }) => *nlink += 1,
            other => panic!("{id} cannot be linked: {other:?}"),
        }
    }

    /// A name of it was removed on `node`.
    fn unlinked(&mut self, node: usize, id: Id) {
        match self.inodes.get_mut(&id) {
            Some(Inode::Dir { gone, .. }) => *gone = true,
            Some(Inode::File { nlink, .. }) => {
                *nlink -= 1;
                if *nlink == 0 {
                    self.removed.insert((node, id));
                }
            }
            Some(Inode::Link { nlink }) => *nlink -= 1,
            None => panic!("{id} is not there"),
        }
    }

    fn commit(&mut self, node: usize, file: Id) {
        let Some(mut view) = self.views.remove(&(node, file)) else { return };
        if view.modified {
            let touched = view.touched;
            let (data, _, _, mtime) = self.file_mut(file);
            view.commit(data);
            if touched {
                *mtime = None;
            }
        }
        self.views.insert((node, file), view);
    }

    fn is_open(&self, node: usize, file: Id) -> bool {
        self.handles.values().any(|h| h.node == node && h.file == file)
    }

    /// The view of a node is gone when nobody has the file open there.
    fn let_go(&mut self, node: usize, file: Id) {
        if !self.is_open(node, file) {
            self.views.remove(&(node, file));
        }
    }

    fn open_view(&mut self, node: usize, file: Id) {
        let data = self.data(file).clone();
        self.views.entry((node, file)).or_insert_with(|| View::new(&data)).refresh(&data);
    }

    /// Takes the step if the answer is right. `inos` says which inodes are which; `None`: nobody heard the answer, and the
    /// step is taken as if it had ended well.
    pub fn take(&mut self, step: &Step, got: Option<&Answer>, inos: &BTreeMap<Id, Ino>) -> Result<(), Wrong> {
        let expected = self.names_step(step);
        match (expected, got) {
            (Some(Err(kinds)), Some(got)) => {
                let good = matches!(got, Answer::Failed(kind) if kinds.contains(kind));
                check(good, || format!("one of {kinds:?}"), got)
            }
            (Some(Ok(())), Some(got)) => {
                check(matches!(got, Answer::Done | Answer::Made(_)), || "success".into(), got)
            }
            (Some(_), None) => Ok(()),
            (None, got) => self.data_step(step, got, inos),
        }
    }

    /// The step failed because something was broken: what may be now. It was done or it was not, but nobody got what it opens,
    /// and what is closed is closed.
    pub fn failed(&self, step: &Step, inos: &BTreeMap<Id, Ino>) -> Vec<World> {
        let mut done = self.clone();
        let fits = done.take(step, None, inos).is_ok();
        match *step {
            Step::Create { node, id, .. } | Step::Open { node, id, .. } => {
                // What an open cut off stays cut until it is committed.
                if let Some(handle) = done.handles.remove(&id) {
                    done.commit(node, handle.file);
                    done.let_go(node, handle.file);
                }
            }
            // What is new was kept, and is committed before anybody else looks.
            Step::Close { .. } | Step::Flush { .. } | Step::Fsync { .. } | Step::Cat { .. } => {
                return vec![done];
            }
            _ => {}
        }
        let mut worlds = vec![self.clone()];
        if fits {
            // It need not know that a last name went.
            let mut unaware = done.clone();
            unaware.removed.clone_from(&self.removed);
            if unaware != done {
                worlds.push(unaware);
            }
            worlds.push(done);
        }
        worlds
    }
}
