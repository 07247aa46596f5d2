//! From verbs made up by chance to steps that mean something in this world.

use super::*;

impl Run<'_> {
    /// What an operation means here and now. `None`: nothing.
    pub(super) fn resolve(&mut self, verb: &Verb) -> Option<Step> {
        let world = &self.worlds[0];
        let node = |n: &Pick| usize::from(*n) % NODES;
        let name = |n: &Pick| NAMES[usize::from(*n) % NAMES.len()];
        let pick = |from: Vec<Id>, n: &Pick| {
            let len = from.len();
            from.into_iter().nth(if len == 0 { 0 } else { usize::from(*n) % len })
        };
        // In every possible world.
        let known = |id: &Id| {
            self.known.inos.contains_key(id) && self.worlds.iter().all(|w| w.inodes.contains_key(id))
        };
        let dir = |n: &Pick| pick(world.dirs().into_iter().filter(known).collect(), n);
        let file = |n: &Pick| pick(world.files().into_iter().filter(known).collect(), n);
        let handle = |n: &Pick, fits: fn(&crate::world::Handle) -> bool| {
            let open = world.handles.iter().filter(|(_, h)| fits(h)).map(|(id, _)| *id).collect();
            pick(open, n).map(|id| (world.handles[&id].node, id))
        };
        let vague = |id: Id| self.worlds.iter().any(|w| w.view(id).is_vague(w.data(w.handles[&id].file)));
        let id = self.next;
        let step = match verb {
            Verb::Create(n, d, a, append) => {
                Step::Create { node: node(n), dir: dir(d)?, name: name(a), append: *append, id }
            }
            Verb::Mkdir(n, d, a) => Step::Mkdir { node: node(n), dir: dir(d)?, name: name(a), id },
            Verb::Symlink(n, d, a) => Step::Symlink { node: node(n), dir: dir(d)?, name: name(a), id },
            Verb::Link(n, f, d, a) => {
                Step::Link { node: node(n), file: file(f)?, dir: dir(d)?, name: name(a) }
            }
            Verb::Unlink(n, d, a) => {
                Step::Remove { node: node(n), dir: dir(d)?, name: name(a), rmdir: false }
            }
            Verb::Rmdir(n, d, a) => Step::Remove { node: node(n), dir: dir(d)?, name: name(a), rmdir: true },
            Verb::Rename(n, f, t, flags) => Step::Rename {
                node: node(n),
                from: (dir(&f.0)?, name(&f.1)),
                to: (dir(&t.0)?, name(&t.1)),
                flags: *flags,
            },
            Verb::Open(n, f, flags) => Step::Open { node: node(n), file: file(f)?, flags: *flags, id },
            Verb::Close(h) => handle(h, |_| true).map(|(node, handle)| Step::Close { node, handle })?,
            Verb::Flush(h) => handle(h, |_| true).map(|(node, handle)| Step::Flush { node, handle })?,
            Verb::Fsync(h) => handle(h, |_| true).map(|(node, handle)| Step::Fsync { node, handle })?,
            Verb::Write(h, at, len, seed) => {
                let (node, handle) = handle(h, crate::world::Handle::writes)?;
                if world.handles[&handle].appends() && vague(handle) {
                    return None;
                }
                let byte = |n: u16| seed.wrapping_add((n % 251) as u8) | 1;
                Step::Write { node, handle, at: (*at).into(), data: (0..*len).map(byte).collect() }
            }
            Verb::Read(h, at, len) => {
                let (node, handle) = handle(h, crate::world::Handle::reads)?;
                Step::Read { node, handle, at: (*at).into(), len: (*len).into() }
            }
            Verb::Truncate(h, size) => {
                let (node, handle) = handle(h, crate::world::Handle::writes)?;
                if vague(handle) {
                    return None;
                }
                Step::Truncate { node, handle, size: (*size).into() }
            }
            Verb::TruncatePath(n, f, size) => {
                Step::TruncatePath { node: node(n), file: file(f)?, size: (*size).into() }
            }
            Verb::Fstat(h) => handle(h, |_| true).map(|(node, handle)| Step::Fstat { node, handle })?,
            Verb::Mode(n, i, mode) => {
                let inodes: Vec<Id> = world.files().into_iter().chain(world.dirs()).filter(known).collect();
                Step::Mode { node: node(n), inode: pick(inodes, i)?, mode: *mode & 0o777 }
            }
            Verb::Mtime(n, i, t) => Step::Mtime { node: node(n), inode: file(i)?, seconds: (*t).into() },
            Verb::Lookup(n, d, a) => Step::Lookup { node: node(n), dir: dir(d)?, name: name(a) },
            Verb::List(n, d) => Step::List { node: node(n), dir: dir(d)? },
            Verb::Cat(n, f) => Step::Cat { node: node(n), file: file(f)? },
            Verb::Flock(h, kind) => {
                handle(h, |_| true).map(|(node, handle)| Step::Flock { node, handle, kind: *kind })?
            }
        };
        // Two steps at once must not be called the same.
        self.next += 1;
        Some(step)
    }
}
