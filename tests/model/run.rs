//! Does the steps on real nodes, and holds the answers against all worlds that are possible.

mod perform;
mod resolve;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hfmount::error::{Error, Kind, Result};
use hfmount::meta::faulty::{Fault, On};
use hfmount::types::{FileType, Ino, Timestamp};
use hfmount::vfs::{Entry, Flock, Lookup, SetAttr, Stat, TimeOrNow, Vfs};

use self::perform::perform;
use crate::node::{CALLER, Cluster, Engine, Node, read_all};
use crate::op::{Id, Locking, NAMES, NODES, Op, Pick, Step, Trouble, Verb};
use crate::world::{Answer, Found, TOP, World, Wrong};

/// Worlds at one time, beyond which nothing is done whose outcome is open.
const WORLDS: usize = 24;

/// How often a lock is asked for that should be free, a second apart.
const LOCK_TRIES: usize = 20;

/// What is what on the real nodes.
#[derive(Clone, Debug, Default)]
struct Known {
    inos: BTreeMap<Id, Ino>,
    /// With the file that is open.
    handles: BTreeMap<Id, (u64, Id)>,
}

/// A case under way.
pub struct Run<'a> {
    cluster: &'a Cluster<'a>,
    nodes: Vec<Node>,
    disks: Vec<String>,
    worlds: Vec<World>,
    known: Known,
    next: Id,
    log: Vec<String>,
}

/// Does all of it on a new cluster. `Err` is the story of what went wrong.
pub fn case(engine: Engine<'_>, ops: &[Op]) -> Result<(), Wrong> {
    let cluster = Cluster::new(engine);
    let mut run = Run::new(&cluster);
    let mut done = run.begin();
    for op in ops {
        done = done.and_then(|()| run.op(op));
    }
    let done = done.and_then(|()| run.verify());
    if std::env::var_os("HFMOUNT_TEST_STORY").is_some() {
        eprintln!("{}", run.log.join("\n"));
    }
    done.map_err(|wrong| format!("{}\n{wrong}", run.log.join("\n")))
}

impl<'a> Run<'a> {
    fn new(cluster: &'a Cluster<'a>) -> Self {
        let disks: Vec<String> = (0..NODES).map(|n| format!("disk-{n}")).collect();
        let nodes = disks.iter().map(|disk| cluster.node(disk)).collect();
        Run {
            cluster,
            nodes,
            disks,
            worlds: vec![World::new()],
            known: Known::default(),
            next: 1,
            log: Vec::new(),
        }
    }

    fn begin(&mut self) -> Result<(), Wrong> {
        let vfs = self.nodes[0].vfs().clone();
        let made = self.nodes[0].run(async move { vfs.mkdir(&CALLER, Ino::ROOT, b"top", 0o755).await });
        self.known.inos.insert(TOP, made.map_err(|e| e.to_string())?.stat.ino);
        Ok(())
    }

    fn op(&mut self, op: &Op) -> Result<(), Wrong> {
        match op {
            Op::One(verb) => self.verb(verb),
            Op::Both(one, two) => {
                let one = self.resolve(one);
                let two = self.resolve(two);
                match (one, two) {
                    (Some(one), Some(two)) if one.node() != two.node() && self.worlds.len() <= WORLDS => {
                        self.both(&one, &two)
                    }
                    (Some(one), two) => {
                        self.step(&one)?;
                        // It may mean something else now.
                        two.filter(|t| t.node() != one.node()).map_or(Ok(()), |t| self.step(&t))
                    }
                    (None, Some(two)) => self.step(&two),
                    (None, None) => Ok(()),
                }
            }
            Op::KillDuring(verb, micros, fresh) => match self.resolve(verb) {
                Some(step) if self.worlds.len() <= WORLDS => self.kill_during(&step, *micros, *fresh),
                _ => Ok(()),
            },
            Op::Faulty(verb, trouble) => match self.resolve(verb) {
                Some(step) if self.worlds.len() <= WORLDS => self.faulty(&step, *trouble),
                _ => Ok(()),
            },
            Op::Slow(node, ms) => {
                let node = usize::from(*node) % NODES;
                self.log.push(format!("node {node} is slow, {ms} ms"));
                self.nodes[node].kv().next(On::Any, 4, Fault::Delay(Duration::from_millis((*ms).into())));
                Ok(())
            }
            Op::Remount(node, fresh) => self.remount(usize::from(*node) % NODES, *fresh),
            Op::Kill(node, fresh) => {
                let node = usize::from(*node) % NODES;
                self.log
                    .push(format!("kill node {node}, {}", if *fresh { "empty disk" } else { "same disk" }));
                self.restart(node, *fresh);
                Ok(())
            }
            Op::Evict(node) => {
                let node = usize::from(*node) % NODES;
                self.log.push(format!("evict on node {node}"));
                self.nodes[node].evict();
                Ok(())
            }
        }
    }

    fn verb(&mut self, verb: &Verb) -> Result<(), Wrong> {
        self.resolve(verb).map_or(Ok(()), |step| self.step(&step))
    }

    /// One step, with nothing else under way.
    fn step(&mut self, step: &Step) -> Result<(), Wrong> {
        let got = self.perform(step);
        let got = self.settled(step, got);
        let (mut next, mut wrong) = (Vec::new(), Vec::new());
        for mut world in std::mem::take(&mut self.worlds) {
            match world.take(step, Some(&got), &self.known.inos) {
                Ok(()) => next.push(world),
                Err(w) => wrong.push(w),
            }
        }
        self.accept(next, wrong)
    }

    fn perform(&mut self, step: &Step) -> Answer {
        let node = &self.nodes[step.node()];
        let outcome = node.run(perform(node.vfs().clone(), step.clone(), self.known.clone()));
        let got = self.learn(step, outcome);
        self.log.push(format!("{:3} {} -> {}", self.next, step.short(), got.short()));
        got
    }

    fn is_explained(&self, step: &Step, got: &Answer) -> bool {
        self.worlds.iter().any(|world| world.clone().take(step, Some(got), &self.known.inos).is_ok())
    }

    /// The answer, or the one of a little later where it may be one of a moment ago: attributes until the push arrives, a lock
    /// whose holder closed its file while the metadata did not answer until it is given back.
    fn settled(&mut self, step: &Step, mut got: Answer) -> Answer {
        let tries = match (step, &got) {
            (Step::Fstat { .. }, Answer::Found(_)) => 1,
            (Step::Flock { .. }, Answer::Failed(Kind::WouldBlock)) => LOCK_TRIES,
            _ => 0,
        };
        for _ in 0..tries {
            if self.is_explained(step, &got) {
                break;
            }
            got = self.ask_again(step);
        }
        got
    }

    /// Whether the answer may be one of a moment ago, or of several: a name that moves while a directory is listed may be in
    /// the listing twice, or not at all.
    fn may_differ(step: &Step) -> bool {
        matches!(step, Step::Fstat { .. } | Step::List { .. })
    }

    /// The answer when no push can be under way any more.
    fn ask_again(&mut self, step: &Step) -> Answer {
        std::thread::sleep(self.cluster.lag());
        self.log.push("    which may be of before what another node did; when its time is over:".into());
        self.perform(step)
    }

    fn accept(&mut self, next: Vec<World>, mut wrong: Vec<Wrong>) -> Result<(), Wrong> {
        let mut worlds: Vec<World> = Vec::new();
        for mut world in next {
            world.settle();
            if !worlds.contains(&world) {
                worlds.push(world);
            }
        }
        if worlds.is_empty() {
            wrong.dedup();
            return Err(wrong.join("\n or: "));
        }
        self.worlds = worlds;
        Ok(())
    }

    /// Two steps at the same time: one of the two orders must explain both answers.
    fn both(&mut self, one: &Step, two: &Step) -> Result<(), Wrong> {
        let steps = [one, two];
        let tasks = steps.map(|step| {
            let node = &self.nodes[step.node()];
            node.start(perform(node.vfs().clone(), step.clone(), self.known.clone()))
        });
        let mut got = Vec::new();
        for (step, task) in steps.iter().zip(tasks) {
            let outcome = self.nodes[step.node()].join(task);
            got.push(self.learn(step, outcome));
        }
        for (n, (step, got)) in steps.iter().zip(&got).enumerate() {
            let sign = if n == 0 { "/" } else { "\\" };
            self.log.push(format!("{:3} {sign} {} -> {}", self.next, step.short(), got.short()));
        }
        let (mut next, mut wrong) = self.either_order(steps, &got);
        if next.is_empty() && steps.into_iter().any(Self::may_differ) {
            for n in 0..2 {
                if Self::may_differ(steps[n]) {
                    got[n] = self.ask_again(steps[n]);
                }
            }
            (next, wrong) = self.either_order(steps, &got);
        }
        self.accept(next, wrong)
    }

    /// The worlds after both steps, one after the other, and why the others are none.
    fn either_order(&self, steps: [&Step; 2], got: &[Answer]) -> (Vec<World>, Vec<Wrong>) {
        let (mut next, mut wrong) = (Vec::new(), Vec::new());
        for world in &self.worlds {
            // The second may have looked at the file before the first was done with it, or after.
            for (order, after) in [([0, 1], false), ([1, 0], false), ([0, 1], true), ([1, 0], true)] {
                let mut world = world.clone();
                let taken = order.iter().try_for_each(|&n| {
                    world.take(steps[n], Some(&got[n]), &self.known.inos)?;
                    if after {
                        world.settle();
                    }
                    Ok(())
                });
                match taken {
                    Ok(()) => next.push(world),
                    Err(w) => wrong.push(w),
                }
            }
        }
        (next, wrong)
    }

    /// The node dies while it does the step: it was done, or it was not.
    fn kill_during(&mut self, step: &Step, micros: u16, fresh: bool) -> Result<(), Wrong> {
        let node = step.node();
        self.log.push(format!(
            "{:3} {} and node {node} is killed after {micros} us",
            self.next,
            step.short()
        ));
        let task =
            self.nodes[node].start(perform(self.nodes[node].vfs().clone(), step.clone(), self.known.clone()));
        std::thread::sleep(Duration::from_micros(micros.into()));
        drop(task);
        let (mut next, mut wrong) = (Vec::new(), Vec::new());
        for world in &self.worlds {
            let mut after = world.clone();
            match after.take(step, None, &self.known.inos) {
                Ok(()) => next.push(after),
                Err(w) => wrong.push(w),
            }
            next.push(world.clone());
        }
        self.accept(next, wrong)?;
        self.restart(node, fresh);
        self.look_what_became(step)
    }

    /// Something fails on the node while it does the step. An answer that is none of the trouble's is as right as any. After
    /// an error the step was done, or it was not, and data that was to be committed is still there.
    fn faulty(&mut self, step: &Step, trouble: Trouble) -> Result<(), Wrong> {
        let node = step.node();
        self.log.push(format!("    node {node} meets {trouble:?}"));
        self.nodes[node].trouble(trouble);
        let place = &self.nodes[node];
        let outcome = place.run(perform(place.vfs().clone(), step.clone(), self.known.clone()));
        place.kv().heal();
        place.store().heal();
        let got = self.learn(step, outcome);
        self.log.push(format!("{:3} {} -> {}", self.next, step.short(), got.short()));
        let got = self.settled(step, got);
        let excused = match &got {
            Answer::Failed(Kind::WouldBlock) => false,
            Answer::Failed(Kind::Corrupt) => matches!(trouble, Trouble::Flipped(_) | Trouble::Cut(_)),
            Answer::Failed(kind) => kind.is_transient(),
            _ => false,
        };
        let (mut next, mut wrong) = (Vec::new(), Vec::new());
        for mut world in std::mem::take(&mut self.worlds) {
            if excused {
                next.extend(world.failed(step, &self.known.inos));
            } else {
                match world.take(step, Some(&got), &self.known.inos) {
                    Ok(()) => next.push(world),
                    Err(w) => wrong.push(w),
                }
            }
        }
        self.accept(next, wrong)?;
        if !excused {
            return Ok(());
        }
        // What its caches say, and what others see. Who has not heard of it yet would tell of another world.
        std::thread::sleep(self.cluster.push());
        if matches!(step, Step::TruncatePath { .. }) {
            // It may be cut here and not committed yet.
            self.bring_home(step)?;
        }
        self.look_from(node, step)?;
        self.look_what_became(step)?;
        self.bring_home(step)
    }

    /// Data whose commit failed was kept, and goes with the next.
    fn bring_home(&mut self, step: &Step) -> Result<(), Wrong> {
        let node = step.node();
        let file = match step {
            Step::Open { file, .. } | Step::TruncatePath { file, .. } | Step::Cat { file, .. } => *file,
            Step::Close { handle, .. } | Step::Flush { handle, .. } | Step::Fsync { handle, .. } => {
                match self.known.handles.get(handle) {
                    Some((_, file)) => *file,
                    None => return Ok(()),
                }
            }
            _ => return Ok(()),
        };
        // Not if it was being deleted: then nobody cares.
        if !self.worlds.iter().all(|world| world.files().contains(&file)) {
            return Ok(());
        }
        let id = self.next;
        self.next += 1;
        self.step(&Step::Open { node, file, flags: libc::O_RDWR, id })?;
        self.step(&Step::Fsync { node, handle: id })?;
        self.step(&Step::Close { node, handle: id })?;
        self.step(&Step::Cat { node: (node + 1) % NODES, file })
    }

    /// Another node looks at what a dead one was doing.
    fn look_what_became(&mut self, step: &Step) -> Result<(), Wrong> {
        self.look_from((step.node() + 1) % NODES, step)
    }

    fn look_from(&mut self, node: usize, step: &Step) -> Result<(), Wrong> {
        match *step {
            Step::Create { dir, name, id, .. }
            | Step::Mkdir { dir, name, id, .. }
            | Step::Symlink { dir, name, id, .. } => {
                let look = Step::Lookup { node, dir, name };
                let outcome = self.nodes[node].run(perform(
                    self.nodes[node].vfs().clone(),
                    look.clone(),
                    self.known.clone(),
                ));
                if let Answer::Found(Found { ino, .. }) = outcome.0
                    && !self.known.inos.values().any(|i| *i == ino)
                {
                    self.known.inos.insert(id, ino);
                }
                self.step(&look)
            }
            Step::Remove { dir, name, .. } | Step::Link { dir, name, .. } => {
                self.step(&Step::Lookup { node, dir, name })
            }
            Step::Rename { from, to, .. } => {
                self.step(&Step::Lookup { node, dir: from.0, name: from.1 })?;
                self.step(&Step::Lookup { node, dir: to.0, name: to.1 })
            }
            Step::TruncatePath { file, .. } => self.step(&Step::Cat { node, file }),
            _ => Ok(()),
        }
    }

    /// A new daemon in the place of the one that is dropped here.
    fn restart(&mut self, node: usize, fresh: bool) {
        if fresh {
            self.disks[node] = format!("disk-{node}-{}", self.next);
            self.next += 1;
        }
        // The old one first: its disk is locked while it lives.
        let place = self.nodes.remove(node);
        drop(place);
        self.nodes.insert(node, self.cluster.node(&self.disks[node]));
        for world in &mut self.worlds {
            world.killed(node);
        }
    }

    fn close_all(&mut self, node: usize) -> Result<(), Wrong> {
        let open: Vec<Id> =
            self.worlds[0].handles.iter().filter(|(_, h)| h.node == node).map(|(id, _)| *id).collect();
        for handle in open {
            self.step(&Step::Close { node, handle })?;
        }
        Ok(())
    }

    fn remount(&mut self, node: usize, fresh: bool) -> Result<(), Wrong> {
        self.close_all(node)?;
        self.log.push(format!("remount node {node}, {}", if fresh { "empty disk" } else { "same disk" }));
        self.nodes.remove(node).stop().map_err(|e| format!("the node does not end well: {e}"))?;
        if fresh {
            self.disks[node] = format!("disk-{node}-{}", self.next);
            self.next += 1;
        }
        self.nodes.insert(node, self.cluster.node(&self.disks[node]));
        for world in &mut self.worlds {
            world.killed(node);
        }
        Ok(())
    }

    /// In the end everything is closed, and all nodes, one that is new among them, see all of what the reference has.
    fn verify(&mut self) -> Result<(), Wrong> {
        for node in 0..NODES {
            self.close_all(node)?;
        }
        self.nodes.push(self.cluster.node("disk-of-the-last"));
        for node in 0..self.nodes.len() {
            for dir in self.worlds[0].dirs() {
                self.step(&Step::List { node, dir })?;
                for name in NAMES {
                    self.step(&Step::Lookup { node, dir, name })?;
                }
            }
            for file in self.worlds[0].files() {
                self.step(&Step::Cat { node, file })?;
            }
        }
        while let Some(node) = self.nodes.pop() {
            node.stop().map_err(|e| format!("the node does not end well: {e}"))?;
        }
        Ok(())
    }

    fn learn(&mut self, step: &Step, (answer, fh): (Answer, Option<u64>)) -> Answer {
        self.next += 1;
        match (step, &answer) {
            (
                Step::Create { id, .. } | Step::Mkdir { id, .. } | Step::Symlink { id, .. },
                Answer::Made(ino),
            ) => {
                self.known.inos.insert(*id, *ino);
                self.known.handles.extend(fh.map(|fh| (*id, (fh, *id))));
            }
            (Step::Open { id, file, .. }, Answer::Done) => {
                self.known.handles.extend(fh.map(|fh| (*id, (fh, *file))));
            }
            _ => {}
        }
        answer
    }
}
