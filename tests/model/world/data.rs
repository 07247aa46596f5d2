//! Steps about what is in files, and those that only look.

use super::*;

impl World {
    pub(super) fn data_step(
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
