//! Attributes that this mount saw a moment ago, for requests that may be answered with what is that old: the kernel relies
//! on attributes for a time of its own, and asks again at once after whatever it changed itself.
//!
//! Unlike the hints these are answers, so they must be what the metadata said when it was asked, or what this mount made of
//! it since. A read takes a ticket before it is sent; whatever changes the inode meanwhile, here or elsewhere, makes the
//! ticket worthless, so that an old answer never comes in after a new one. What a commit of this mount changes is taken from
//! the commit itself ([`super::txn::Build`]), so no verb can forget to say so.

use std::num::NonZeroUsize;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lru::LruCache;

use super::attr::Attr;
use super::kv::{Change, Key, Write};
use super::schema::{self, Content};
use crate::types::{FileType, Ino, Timestamp};

/// A few hundred bytes each.
const KNOWN: NonZeroUsize = NonZeroUsize::new(16_384).expect("above 0");
/// Directories whose latest change of names is remembered.
const TOUCHED: NonZeroUsize = NonZeroUsize::new(1024).expect("above 0");
/// Inodes share these marks: a change of one also spoils reads of the others that are under way, which costs a read.
const MARKS: usize = 1024;
/// Contents longer than this are not worth the memory.
const LONGEST: usize = 512;

pub(super) struct Recent(Mutex<State>);

struct State {
    /// Counts changes and tickets.
    clock: u64,
    known: LruCache<Ino, Known>,
    /// When an inode with this number, modulo their number, last changed.
    marks: Box<[u64; MARKS]>,
    /// When this mount last changed the names in a directory, by both clocks.
    touched: LruCache<Ino, (u64, Timestamp)>,
    /// Touches up to here may be forgotten.
    forgotten: u64,
    /// Everything known before is worthless.
    cleared: u64,
}

struct Known {
    attr: Attr,
    /// When the read behind it was sent, by both clocks.
    clock: u64,
    at: Instant,
}

/// Taken before a read is sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ticket {
    clock: u64,
    at: Instant,
}

/// What a commit does to one inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Effect {
    ino: Ino,
    /// More than the two below.
    other: bool,
    names: Option<Timestamp>,
    subdirs: i64,
}

/// A commit that is under way. Dropped without [`Pending::applied`], its outcome is unknown.
pub(super) struct Pending<'a> {
    recent: &'a Recent,
    effects: Vec<Effect>,
    ticket: Ticket,
    open: bool,
}

impl Recent {
    pub fn new() -> Self {
        Recent(Mutex::new(State {
            clock: 0,
            known: LruCache::new(KNOWN),
            marks: Box::new([0; MARKS]),
            touched: LruCache::new(TOUCHED),
            forgotten: 0,
            cleared: 0,
        }))
    }

    /// To be called before a read is sent.
    pub fn ticket(&self) -> Ticket {
        self.lock().ticket()
    }

    /// What a read found.
    pub fn learn(&self, ticket: Ticket, attr: &Attr) {
        self.lock().learn(ticket, attr);
    }

    /// The attributes, if they are at most `age` old, and how old they are. The content may be left out.
    pub fn get(&self, ino: Ino, age: Duration) -> Option<(Attr, Duration)> {
        let mut state = self.lock();
        let known = state.known.get(&ino)?;
        let old = known.at.elapsed();
        (old < age).then(|| (known.attr.clone(), old))
    }

    /// Other mounts changed something, all at this moment as far as is known here.
    pub fn heard(&self, changes: &[Change]) {
        let mut state = self.lock();
        let mut last = None;
        for change in changes {
            match change {
                // Neighbours are often names of one directory.
                Change::Entry { parent: ino, .. } | Change::Inode { ino } if last != Some(*ino) => {
                    state.spoil(*ino);
                    last = Some(*ino);
                }
                _ => {}
            }
        }
    }

    /// Anything may have changed.
    pub fn clear(&self) {
        let mut state = self.lock();
        state.cleared = state.tick();
        state.known.clear();
    }

    /// To be called before a commit is sent.
    pub fn begin(&self, writes: &[Write]) -> Pending<'_> {
        let effects = effects(writes);
        let mut state = self.lock();
        let ticket = state.ticket();
        for effect in &effects {
            if effect.other {
                state.known.pop(&effect.ino);
            }
        }
        Pending { recent: self, effects, ticket, open: true }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pending<'_> {
    /// It was applied. `made`: the attributes that one of the inodes has by it.
    pub fn applied(mut self, made: Option<&Attr>) {
        self.open = false;
        let mut state = self.recent.lock();
        for effect in &self.effects {
            let made = made.filter(|attr| attr.ino == effect.ino);
            state.change(self.ticket, *effect, made);
        }
    }

    /// Nothing was written.
    pub fn refused(mut self) {
        self.open = false;
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        if self.open {
            let mut state = self.recent.lock();
            for effect in &self.effects {
                state.spoil(effect.ino);
            }
        }
    }
}

impl State {
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    fn ticket(&mut self) -> Ticket {
        Ticket { clock: self.tick(), at: Instant::now() }
    }

    fn mark(&mut self, ino: Ino) -> &mut u64 {
        &mut self.marks[(ino.0 % MARKS as u64) as usize]
    }

    /// Whether nothing that spoils happened to the inode since the ticket was taken.
    fn holds(&mut self, ticket: Ticket, ino: Ino) -> bool {
        self.cleared < ticket.clock && *self.mark(ino) < ticket.clock
    }

    fn spoil(&mut self, ino: Ino) {
        let now = self.tick();
        *self.mark(ino) = now;
        self.known.pop(&ino);
        self.touched.pop(&ino);
    }

    fn learn(&mut self, ticket: Ticket, attr: &Attr) {
        if !self.holds(ticket, attr.ino) || self.known.peek(&attr.ino).is_some_and(|k| k.clock > ticket.clock)
        {
            return;
        }
        let Some(mut attr) = worth_keeping(attr) else { return };
        if attr.kind == FileType::Dir {
            // The read may have overtaken a change of names, whose time is never set back by another one.
            match self.touched.peek(&attr.ino) {
                Some((clock, at)) if *clock > ticket.clock => raise(&mut attr, *at),
                None if self.forgotten > ticket.clock => return,
                _ => {}
            }
        }
        self.known.put(attr.ino, Known { attr, clock: ticket.clock, at: ticket.at });
    }

    fn change(&mut self, ticket: Ticket, effect: Effect, made: Option<&Attr>) {
        let Effect { ino, other, names, subdirs } = effect;
        let alone = self.holds(ticket, ino);
        if other || subdirs != 0 {
            // Reads under way may be from before or after: what is known must be from before, to be counted on.
            let before = self.known.pop(&ino);
            // Or it may have seen what somebody else did after this commit.
            let alone = alone && before.as_ref().is_none_or(|k| k.clock < ticket.clock);
            self.spoil(ino);
            if !alone {
                return self.touch_if(ino, names);
            }
            let clock = self.clock;
            if let Some(attr) = made.and_then(worth_keeping) {
                // True from when it was sent, at the earliest.
                self.known.put(ino, Known { attr, clock, at: ticket.at });
            } else if let Some(mut known) = before.filter(|_| !other) {
                let links = i64::from(known.attr.nlink) + subdirs;
                known.attr.nlink = u32::try_from(links).unwrap_or(known.attr.nlink);
                self.known.put(ino, known);
            }
        }
        self.touch_if(ino, names);
    }

    fn touch_if(&mut self, dir: Ino, at: Option<Timestamp>) {
        if let Some(at) = at {
            self.touch(dir, at);
        }
    }

    /// The names in a directory changed here.
    fn touch(&mut self, dir: Ino, at: Timestamp) {
        let now = self.tick();
        if let Some(known) = self.known.peek_mut(&dir) {
            raise(&mut known.attr, at);
        }
        let at = self.touched.peek(&dir).map_or(at, |(_, latest)| at.max(*latest));
        if let Some((gone, (clock, _))) = self.touched.push(dir, (now, at))
            && gone != dir
        {
            self.forgotten = self.forgotten.max(clock);
        }
    }
}

/// A directory's names changed at `at`.
fn raise(attr: &mut Attr, at: Timestamp) {
    attr.mtime = attr.mtime.max(at);
    attr.ctime = attr.ctime.max(at);
}

/// The attributes without a content that would take much room; `None` if they are no use then.
fn worth_keeping(attr: &Attr) -> Option<Attr> {
    match &attr.content {
        // Nobody reads a file from here.
        Content::Inline(_) => Some(Attr { content: Content::None, ..attr.clone() }),
        Content::Symlink(target) if target.len() > LONGEST => None,
        _ => Some(attr.clone()),
    }
}

/// What the writes do to inodes, each once.
fn effects(writes: &[Write]) -> Vec<Effect> {
    let mut effects: Vec<Effect> = Vec::new();
    for write in writes {
        let (map, other, names, subdirs) = match write {
            Write::Max(key, at) if is(key, schema::CHANGED) => {
                (&key.map, false, i64::try_from(*at).ok().map(Timestamp), 0)
            }
            Write::Add(key, n) if is(key, schema::SUBDIRS) => (&key.map, false, None, *n),
            Write::Set(key, _)
            | Write::Del(key)
            | Write::Max(key, _)
            | Write::Add(key, _)
            | Write::AddBounded(key, ..) => (&key.map, true, None, 0),
            Write::DelMap(map) => (map, true, None, 0),
            // Counts objects.
            Write::Release(..) => continue,
        };
        let Some(ino) = map.strip_prefix('i').and_then(|n| n.parse().ok()).map(Ino) else { continue };
        match effects.iter_mut().rev().take(8).find(|e| e.ino == ino) {
            Some(effect) => {
                effect.other |= other;
                effect.names = effect.names.max(names);
                effect.subdirs += subdirs;
            }
            None => effects.push(Effect { ino, other, names, subdirs }),
        }
    }
    effects
}

fn is(key: &Key, field: &[u8]) -> bool {
    key.field[..] == *field
}

#[cfg(test)]
mod tests;
