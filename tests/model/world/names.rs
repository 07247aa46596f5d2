//! Steps that change names.

use super::*;

impl World {
    /// Steps that change names: whether they must succeed, or how they may fail. `None`: it is another step.
    pub(super) fn names_step(&mut self, step: &Step) -> Option<Result<(), Vec<Kind>>> {
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
}
