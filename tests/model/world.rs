//! The reference: a tree of names, the committed data, and what each node sees, with the rules of close-to-open.
//!
//! A world takes a step together with what was answered, and says whether that may be. Of steps whose order is not known
//! there are several worlds, and one of them must agree.

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

    /// Steps that change names: whether they must succeed, or how they may fail. `None`: it is another step.
    fn names_step(&mut self, step: &Step) -> Option<Result<(), Vec<Kind>>> {
        let gone = Some(Err(vec![Kind::Stale, Kind::NotFound]));
        let fail = |kind| Some(Err(vec![kind]));
        match *step {
            Step::Create { dir, name, .. }
            | Step::Mkdir { dir, name, .. }
            | Step::Symlink { dir, name, .. } => {
                if self.names(dir).is_none() {
                    return gone;
                }
                if self.get(dir, name).is_some() {
                    return fail(Kind::Exists);
                }
                self.make(step);
                Some(Ok(()))
            }
            Step::Link { file, dir, name, .. } => {
                if self.names(dir).is_none() {
                    return gone;
                }
                let living = matches!(self.inodes[&file], Inode::File { nlink: 1.., .. });
                match (living, self.get(dir, name).is_some()) {
                    (true, true) => return fail(Kind::Exists),
                    (false, true) => return Some(Err(vec![Kind::Exists, Kind::Stale, Kind::NotFound])),
                    (false, false) => return gone,
                    (true, false) => {}
                }
                self.names_mut(dir).insert(name, file);
                self.link_up(file);
                Some(Ok(()))
            }
            Step::Remove { node, dir, name, rmdir } => {
                let Some(id) = self.get(dir, name) else {
                    return gone;
                };
                match (self.is_dir(id), rmdir) {
                    (true, false) => return fail(Kind::IsDirectory),
                    (false, true) => return fail(Kind::NotDirectory),
                    (true, true) if !self.is_empty(id) => return fail(Kind::NotEmpty),
                    _ => {}
                }
                self.names_mut(dir).remove(name);
                self.unlinked(node, id);
                Some(Ok(()))
            }
            Step::Rename { node, from, to, flags } => Some(self.rename(node, from, to, flags)),
            _ => None,
        }
    }

    fn make(&mut self, step: &Step) {
        match *step {
            Step::Create { node, dir, name, append, id } => {
                self.names_mut(dir).insert(name, id);
                let file = Inode::File { data: History::default(), nlink: 1, mode: 0o644, mtime: None };
                self.inodes.insert(id, file);
                let flags = libc::O_RDWR | if append { libc::O_APPEND } else { 0 };
                self.handles.insert(id, Handle { node, file: id, flags });
                self.open_view(node, id);
            }
            Step::Mkdir { dir, name, id, .. } => {
                self.names_mut(dir).insert(name, id);
                let new = Inode::Dir { parent: dir, names: BTreeMap::new(), mode: 0o755, gone: false };
                self.inodes.insert(id, new);
            }
            Step::Symlink { dir, name, id, .. } => {
                self.names_mut(dir).insert(name, id);
                self.inodes.insert(id, Inode::Link { nlink: 1 });
            }
            _ => unreachable!("makes nothing: {step:?}"),
        }
    }

    fn rename(
        &mut self,
        node: usize,
        (from, name): (Id, &'static str),
        (to, new): (Id, &'static str),
        flags: u32,
    ) -> Result<(), Vec<Kind>> {
        let Some(source) = self.get(from, name) else { return Err(vec![Kind::NotFound, Kind::Stale]) };
        if self.names(to).is_none() {
            return Err(vec![Kind::Stale, Kind::NotFound]);
        }
        let target = self.get(to, new);
        let exchange = flags == libc::RENAME_EXCHANGE;
        let fail = |kind| Err(vec![kind]);
        let dirs = (self.is_dir(source), target.map(|t| self.is_dir(t)));
        if flags == libc::RENAME_NOREPLACE && target.is_some() {
            return fail(Kind::Exists);
        }
        if exchange && target.is_none() {
            return fail(Kind::NotFound);
        }
        if flags == 0 {
            match dirs {
                (false, Some(true)) => return fail(Kind::IsDirectory),
                // Which of the two is told is anybody's choice.
                (true, Some(false)) if self.is_below(source, to) => {
                    return Err(vec![Kind::NotDirectory, Kind::Invalid]);
                }
                (true, Some(false)) => return fail(Kind::NotDirectory),
                _ => {}
            }
        }
        if target == Some(source) {
            return Ok(());
        }
        if dirs.0 && self.is_below(source, to) {
            return fail(Kind::Invalid);
        }
        if let (Some(target), Some(true)) = (target, dirs.1) {
            if exchange && self.is_below(target, from) {
                return fail(Kind::Invalid);
            }
            if !exchange && !self.is_empty(target) {
                return fail(Kind::NotEmpty);
            }
        }
        self.names_mut(from).remove(name);
        self.names_mut(to).insert(new, source);
        self.moved(source, to);
        match target {
            Some(target) if exchange => {
                self.names_mut(from).insert(name, target);
                self.moved(target, from);
            }
            Some(target) => self.unlinked(node, target),
            None => {}
        }
        Ok(())
    }

    fn moved(&mut self, id: Id, to: Id) {
        if let Some(Inode::Dir { parent, .. }) = self.inodes.get_mut(&id) {
            *parent = to;
        }
    }

    fn data_step(
        &mut self,
        step: &Step,
        got: Option<&Answer>,
        inos: &BTreeMap<Id, Ino>,
    ) -> Result<(), Wrong> {
        let done = |got: Option<&Answer>| got.map_or(Ok(()), |got| equals(&Answer::Done, got));
        match step {
            Step::Open { node, file, flags, id } => {
                let living = matches!(self.inodes[file], Inode::File { nlink: 1.., .. });
                // What was removed in the same moment may be opened still.
                if let Some(Answer::Failed(kind)) = got {
                    let good = !living && matches!(kind, Kind::Stale | Kind::NotFound);
                    return check(good, || "success".into(), &Answer::Failed(*kind));
                }
                self.open_view(*node, *file);
                if flags & libc::O_TRUNC != 0 {
                    self.cut(*node, *file, 0);
                }
                self.handles.insert(*id, Handle { node: *node, file: *file, flags: *flags });
                done(got)
            }
            Step::Close { node, handle } => {
                let Handle { file, .. } = self.handles[handle];
                self.flush(*handle);
                self.handles.remove(handle);
                // As of one that may have had a lock: whoever gets that next sees all.
                if !self.removed.contains(&(*node, file)) {
                    self.commit(*node, file);
                }
                self.let_go(*node, file);
                self.locks.entry(file).or_default().remove(handle);
                done(got)
            }
            Step::Flush { handle, .. } => {
                self.flush(*handle);
                done(got)
            }
            Step::Fsync { node, handle } => {
                let file = self.handles[handle].file;
                self.commit(*node, file);
                done(got)
            }
            Step::Write { node, handle, at, data } => {
                let Handle { file, .. } = self.handles[handle];
                let appends = self.handles[handle].appends();
                let history = self.data(file).clone();
                let view = self.views.get_mut(&(*node, file)).expect("open");
                let at = if appends { view.size(&history) } else { *at as usize };
                view.write(at, data);
                done(got)
            }
            Step::Read { node, handle, at, len } => {
                let file = self.handles[handle].file;
                match got {
                    Some(Answer::Bytes(bytes)) => {
                        self.views[&(*node, file)].admits(self.data(file), *at as usize, *len as usize, bytes)
                    }
                    Some(other) => Err(format!("expected bytes, got {}", other.short())),
                    None => Ok(()),
                }
            }
            Step::Truncate { node, handle, size } => {
                let file = self.handles[handle].file;
                self.cut(*node, file, *size as usize);
                done_or_attributes(got)
            }
            Step::TruncatePath { node, file, size } => {
                if !matches!(self.inodes[file], Inode::File { nlink: 1.., .. })
                    && matches!(got, Some(Answer::Failed(Kind::Stale | Kind::NotFound)))
                {
                    return Ok(());
                }
                self.open_view(*node, *file);
                self.cut(*node, *file, *size as usize);
                self.commit(*node, *file);
                self.let_go(*node, *file);
                done_or_attributes(got)
            }
            Step::Cat { node, file } => {
                self.open_view(*node, *file);
                let checked = match got {
                    Some(Answer::Bytes(bytes)) => {
                        self.views[&(*node, *file)].admits(self.data(*file), 0, usize::MAX / 2, bytes)
                    }
                    Some(Answer::Failed(Kind::Stale | Kind::NotFound))
                        if !matches!(self.inodes[file], Inode::File { nlink: 1.., .. }) =>
                    {
                        Ok(())
                    }
                    Some(other) => Err(format!("expected bytes, got {}", other.short())),
                    None => Ok(()),
                };
                self.last_close(*node, *file);
                self.let_go(*node, *file);
                checked
            }
            Step::Fstat { node, handle } => {
                let file = self.handles[handle].file;
                self.attributes(*node, file, got, inos)
            }
            Step::Mode { inode, mode, .. } => {
                if self.vanished(*inode) && matches!(got, Some(Answer::Failed(Kind::Stale | Kind::NotFound)))
                {
                    return Ok(());
                }
                if let Some(Inode::Dir { mode: m, .. } | Inode::File { mode: m, .. }) =
                    self.inodes.get_mut(inode)
                {
                    *m = *mode;
                }
                done(got)
            }
            Step::Mtime { node, inode, seconds } => {
                if self.vanished(*inode) && matches!(got, Some(Answer::Failed(Kind::Stale | Kind::NotFound)))
                {
                    return Ok(());
                }
                let (_, _, _, mtime) = self.file_mut(*inode);
                *mtime = Some(*seconds);
                if let Some(view) = self.views.get_mut(&(*node, *inode)) {
                    view.touched = false;
                }
                done(got)
            }
            Step::Lookup { node, dir, name } => match (self.get(*dir, name), got) {
                (_, None) => Ok(()),
                (None, Some(got)) => {
                    let living = self.names(*dir).is_some();
                    let good = *got == Answer::Absent || (!living && *got == Answer::Failed(Kind::Stale));
                    check(good, || "no such name".into(), got)
                }
                (Some(id), got) => self.attributes(*node, id, got, inos),
            },
            Step::List { dir, .. } => match (self.names(*dir), got) {
                (_, None) => Ok(()),
                (None, Some(got)) => {
                    let good = matches!(got, Answer::Failed(Kind::Stale | Kind::NotFound))
                        || *got == Answer::Names(BTreeMap::new());
                    check(good, || "a directory that is gone".into(), got)
                }
                (Some(names), Some(got)) => {
                    let kind = |id: &Id| match self.inodes[id] {
                        Inode::Dir { .. } => FileType::Dir,
                        Inode::File { .. } => FileType::File,
                        Inode::Link { .. } => FileType::Symlink,
                    };
                    let entry = |(name, id): (&&str, &Id)| ((*name).to_owned(), (inos[id], kind(id)));
                    equals(&Answer::Names(names.iter().map(entry).collect()), got)
                }
            },
            Step::Flock { node, handle, kind } => self.flock(*node, *handle, *kind, got),
            _ => unreachable!("a step with names: {step:?}"),
        }
    }

    fn vanished(&self, id: Id) -> bool {
        match self.inodes[&id] {
            Inode::Dir { gone, .. } => gone,
            Inode::File { nlink, .. } | Inode::Link { nlink } => nlink == 0,
        }
    }

    fn cut(&mut self, node: usize, file: Id, size: usize) {
        let history = self.data(file).clone();
        self.views.get_mut(&(node, file)).expect("open").truncate(size, &history);
    }

    /// A close without a lock writes out what is new, though the file was opened for reading, unless somebody is writing it.
    fn last_close(&mut self, node: usize, file: Id) {
        let writing = self.handles.values().any(|h| (h.node, h.file) == (node, file) && h.may_change());
        if !writing && !self.removed.contains(&(node, file)) {
            self.commit(node, file);
        }
    }

    fn flush(&mut self, handle: Id) {
        let Handle { node, file, .. } = self.handles[&handle];
        if self.handles[&handle].may_change() && !self.removed.contains(&(node, file)) {
            self.commit(node, file);
        }
    }

    fn flock(&mut self, node: usize, handle: Id, kind: Locking, got: Option<&Answer>) -> Result<(), Wrong> {
        let Handle { file, .. } = self.handles[&handle];
        let writes = self.handles[&handle].writes();
        let held = self.locks.entry(file).or_default();
        let exclusive = kind == Locking::Exclusive;
        let expected = match kind {
            Locking::Unlock => {
                held.remove(&handle);
                if writes {
                    self.commit(node, file);
                }
                Answer::Done
            }
            _ if held.iter().any(|(other, excludes)| *other != handle && (exclusive || *excludes)) => {
                Answer::Failed(Kind::WouldBlock)
            }
            _ => {
                held.insert(handle, exclusive);
                let data = self.data(file).clone();
                self.views.get_mut(&(node, file)).expect("open").refresh(&data);
                Answer::Done
            }
        };
        got.map_or(Ok(()), |got| equals(&expected, got))
    }

    fn attributes(
        &self,
        node: usize,
        id: Id,
        got: Option<&Answer>,
        inos: &BTreeMap<Id, Ino>,
    ) -> Result<(), Wrong> {
        let found = match got {
            Some(Answer::Found(found)) => found,
            Some(other) => return Err(format!("expected the attributes of {id}, got {}", other.short())),
            None => return Ok(()),
        };
        let sizes: Vec<u64>;
        let (kind, nlink, mode, mtime) = match &self.inodes[&id] {
            Inode::Dir { names, mode, .. } => {
                sizes = vec![found.size];
                (FileType::Dir, 2 + names.values().filter(|i| self.is_dir(**i)).count() as u32, *mode, None)
            }
            Inode::File { data, nlink, mode, mtime } => {
                let view = self.views.get(&(node, id));
                let now = vec![data.latest().len() as u64];
                sizes = match view {
                    Some(view) if view.modified => view.sizes(data).into_iter().map(|s| s as u64).collect(),
                    _ => now,
                };
                let sure = view.is_none_or(|v| !v.touched);
                (FileType::File, *nlink, *mode, mtime.filter(|_| sure))
            }
            Inode::Link { nlink } => {
                sizes = vec![found.size];
                (FileType::Symlink, *nlink, 0o777, None)
            }
        };
        let good = inos.get(&id).is_none_or(|ino| *ino == found.ino)
            && (found.kind, found.nlink, found.mode) == (kind, nlink, mode)
            && sizes.contains(&found.size)
            && mtime.is_none_or(|m| m == found.mtime);
        let expected =
            || format!("{id}: {kind:?}, {nlink} links, mode {mode:o}, size {sizes:?}, mtime {mtime:?}");
        check(good, expected, &Answer::Found(*found))
    }
}

fn done_or_attributes(got: Option<&Answer>) -> Result<(), Wrong> {
    got.map_or(Ok(()), |got| equals(&Answer::Done, got))
}
