//! The namespace against a plain tree in memory: the same random verbs on both, the same answers, the same tree.

use std::collections::BTreeMap;

use hfmount::error::Kind;
use hfmount::meta::{Meta, RenameMode};
use hfmount::types::{FileType, Ino};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngSeed, TestRunner};

use crate::world::*;

const ROOT: Ino = Ino::ROOT;
const NAMES: [&str; 4] = ["a", "b", "c", "d"];

/// A place: a directory among those that were ever made (modulo their number), and a name.
type Place = (u8, u8);

#[derive(Clone, Debug)]
enum Verb {
    Mkdir(Place),
    Create(Place),
    Symlink(Place),
    Link(Place, Place),
    Unlink(Place),
    Rmdir(Place),
    Rename(Place, Place, RenameMode),
}

fn verbs() -> impl Strategy<Value = Vec<(bool, Verb)>> {
    let place = || (0..6_u8, 0..NAMES.len() as u8);
    let mode = prop_oneof![
        3 => Just(RenameMode::Replace), 1 => Just(RenameMode::NoReplace), 2 => Just(RenameMode::Exchange),
    ];
    let verb = prop_oneof![
        4 => place().prop_map(Verb::Mkdir),
        3 => place().prop_map(Verb::Create),
        1 => place().prop_map(Verb::Symlink),
        2 => (place(), place()).prop_map(|(a, b)| Verb::Link(a, b)),
        2 => place().prop_map(Verb::Unlink),
        2 => place().prop_map(Verb::Rmdir),
        8 => (place(), place(), mode).prop_map(|(a, b, mode)| Verb::Rename(a, b, mode)),
    ];
    proptest::collection::vec((any::<bool>(), verb), 1..60)
}

/// The reference.
#[derive(Default)]
struct Plain {
    /// By number; `None`: gone.
    dirs: Vec<Option<Dir>>,
    links: BTreeMap<usize, u32>,
    next_file: usize,
}

struct Dir {
    parent: usize,
    names: BTreeMap<&'static str, Node>,
}

#[derive(Clone, Copy, PartialEq)]
enum Node {
    Dir(usize),
    /// A file or symlink, by number.
    Leaf(usize),
}

impl Plain {
    fn new() -> Self {
        let root = Dir { parent: 0, names: BTreeMap::new() };
        Plain { dirs: vec![Some(root)], ..Plain::default() }
    }

    fn dir(&mut self, n: usize) -> Result<&mut Dir, Kind> {
        self.dirs[n].as_mut().ok_or(Kind::Stale)
    }

    fn get(&self, dir: usize, name: &str) -> Option<Node> {
        self.dirs[dir].as_ref()?.names.get(name).copied()
    }

    fn insert(&mut self, dir: usize, name: &'static str, node: Node) -> Result<(), Kind> {
        let names = &mut self.dir(dir)?.names;
        if names.contains_key(name) {
            return Err(Kind::Exists);
        }
        names.insert(name, node);
        Ok(())
    }

    fn is_empty(&self, dir: usize) -> bool {
        self.dirs[dir].as_ref().is_none_or(|d| d.names.is_empty())
    }

    fn is_below(&self, ancestor: usize, mut dir: usize) -> bool {
        loop {
            if dir == ancestor {
                return true;
            }
            if dir == 0 {
                return false;
            }
            dir = self.dirs[dir].as_ref().expect("living").parent;
        }
    }

    fn drop_node(&mut self, node: Node) {
        match node {
            Node::Dir(n) => self.dirs[n] = None,
            Node::Leaf(n) => *self.links.get_mut(&n).expect("leaf") -= 1,
        }
    }

    fn mkdir(&mut self, dir: usize, name: &'static str) -> Result<usize, Kind> {
        let n = self.dirs.len();
        self.insert(dir, name, Node::Dir(n))?;
        self.dirs.push(Some(Dir { parent: dir, names: BTreeMap::new() }));
        Ok(n)
    }

    fn create(&mut self, dir: usize, name: &'static str) -> Result<usize, Kind> {
        let n = self.next_file;
        self.insert(dir, name, Node::Leaf(n))?;
        self.next_file += 1;
        self.links.insert(n, 1);
        Ok(n)
    }

    fn remove(&mut self, dir: usize, name: &str, want_dir: bool) -> Result<(), Kind> {
        let node = self.get(dir, name).ok_or(Kind::NotFound)?;
        match (node, want_dir) {
            (Node::Dir(_), false) => return Err(Kind::IsDirectory),
            (Node::Leaf(_), true) => return Err(Kind::NotDirectory),
            (Node::Dir(n), true) if !self.is_empty(n) => return Err(Kind::NotEmpty),
            _ => {}
        }
        self.dir(dir)?.names.remove(name);
        self.drop_node(node);
        Ok(())
    }

    fn rename(
        &mut self,
        (from, name): (usize, &'static str),
        (to, new): (usize, &'static str),
        mode: RenameMode,
    ) -> Result<(), Kind> {
        self.dir(to)?;
        let source = self.get(from, name).ok_or(Kind::NotFound)?;
        let target = self.get(to, new);
        match (source, target, mode) {
            (_, Some(_), RenameMode::NoReplace) => return Err(Kind::Exists),
            (_, None, RenameMode::Exchange) => return Err(Kind::NotFound),
            (Node::Leaf(_), Some(Node::Dir(_)), RenameMode::Replace) => return Err(Kind::IsDirectory),
            (Node::Dir(_), Some(Node::Leaf(_)), RenameMode::Replace) => return Err(Kind::NotDirectory),
            _ => {}
        }
        if target == Some(source) {
            return Ok(());
        }
        if let Node::Dir(n) = source
            && self.is_below(n, to)
        {
            return Err(Kind::Invalid);
        }
        if let (Some(Node::Dir(n)), RenameMode::Exchange) = (target, mode)
            && self.is_below(n, from)
        {
            return Err(Kind::Invalid);
        }
        if let (Some(Node::Dir(n)), RenameMode::Replace) = (target, mode)
            && !self.is_empty(n)
        {
            return Err(Kind::NotEmpty);
        }
        self.dir(from)?.names.remove(name);
        self.dir(to)?.names.insert(new, source);
        if let Node::Dir(n) = source {
            self.dir(n)?.parent = to;
        }
        match target {
            Some(target) if mode == RenameMode::Exchange => {
                self.dir(from)?.names.insert(name, target);
                if let Node::Dir(n) = target {
                    self.dir(n)?.parent = from;
                }
            }
            Some(target) => self.drop_node(target),
            None => {}
        }
        Ok(())
    }
}

/// Both, with the inode numbers of what the reference numbers.
struct Pair {
    plain: Plain,
    dirs: Vec<Ino>,
    leaves: Vec<Ino>,
}

impl Pair {
    fn place(&self, (dir, name): Place) -> (usize, Ino, &'static str) {
        let n = usize::from(dir) % self.dirs.len();
        (n, self.dirs[n], NAMES[usize::from(name)])
    }

    async fn make(&mut self, meta: &Meta, place: Place, kind: FileType) {
        let (n, dir, name) = self.place(place);
        let new = if kind == FileType::Symlink { new_symlink("x") } else { new(kind, 0o755) };
        let made = meta.make(dir, name.as_bytes(), new).await;
        let is_dir = kind == FileType::Dir;
        let expected = if is_dir { self.plain.mkdir(n, name) } else { self.plain.create(n, name) };
        assert_eq!(made.as_ref().map(|_| ()).map_err(|e| e.kind()), expected.map(|_| ()));
        if let Ok(attr) = made {
            if is_dir { &mut self.dirs } else { &mut self.leaves }.push(attr.ino);
        }
    }

    async fn run(&mut self, meta: &Meta, verb: Verb) {
        match verb {
            Verb::Mkdir(place) => self.make(meta, place, FileType::Dir).await,
            Verb::Create(place) => self.make(meta, place, FileType::File).await,
            Verb::Symlink(place) => self.make(meta, place, FileType::Symlink).await,
            Verb::Link(of, to) => {
                let (n, _, name) = self.place(of);
                let Some(Node::Leaf(leaf)) = self.plain.get(n, name) else { return };
                let (n, dir, name) = self.place(to);
                let linked = meta.link(self.leaves[leaf], dir, name.as_bytes()).await;
                let expected = self.plain.insert(n, name, Node::Leaf(leaf));
                if expected.is_ok() {
                    *self.plain.links.get_mut(&leaf).expect("leaf") += 1;
                }
                assert_eq!(linked.map(|_| ()).map_err(|e| e.kind()), expected);
            }
            Verb::Unlink(place) => {
                let (n, dir, name) = self.place(place);
                let removed = meta.unlink(dir, name.as_bytes()).await;
                assert_eq!(removed.map(|_| ()).map_err(|e| e.kind()), self.plain.remove(n, name, false));
            }
            Verb::Rmdir(place) => {
                let (n, dir, name) = self.place(place);
                let removed = meta.rmdir(dir, name.as_bytes()).await;
                assert_eq!(removed.map(|_| ()).map_err(|e| e.kind()), self.plain.remove(n, name, true));
            }
            Verb::Rename(from, to, mode) => {
                let ((n, dir, name), (m, into, new)) = (self.place(from), self.place(to));
                let moved = meta.rename(dir, name.as_bytes(), into, new.as_bytes(), mode).await;
                let moved = moved.map(|_| ()).map_err(|e| e.kind());
                let both_missing = self.plain.get(n, name).is_none() && self.plain.dirs[m].is_none();
                let expected = self.plain.rename((n, name), (m, new), mode);
                if both_missing {
                    assert!(matches!(moved, Err(Kind::Stale | Kind::NotFound)), "{moved:?}");
                } else {
                    assert_eq!(moved, expected);
                }
            }
        }
    }

    /// Everything that can be seen.
    async fn compare(&self, meta: &Meta) {
        for (n, (dir, ino)) in self.plain.dirs.iter().zip(&self.dirs).enumerate() {
            let Some(dir) = dir else {
                assert_eq!(kind(meta.getattr(*ino).await), Kind::Stale, "directory {n} is gone");
                continue;
            };
            let attr = meta.getattr(*ino).await.expect("getattr");
            let subdirs = dir.names.values().filter(|node| matches!(node, Node::Dir(_))).count();
            // The parent of the round's own directory is the volume's root.
            let parent = if n == 0 { ROOT } else { self.dirs[dir.parent] };
            assert_eq!((attr.nlink as usize, attr.parent), (2 + subdirs, parent));
            let mut listed = BTreeMap::new();
            for entry in meta.readdir(*ino, 0, 100).await.expect("readdir") {
                listed.insert(String::from_utf8(entry.name.to_vec()).expect("UTF-8"), entry.ino);
            }
            let number = |node: &Node| match node {
                Node::Dir(n) => self.dirs[*n],
                Node::Leaf(n) => self.leaves[*n],
            };
            let expected: BTreeMap<_, _> =
                dir.names.iter().map(|(name, node)| ((*name).to_owned(), number(node))).collect();
            assert_eq!(listed, expected, "directory {n}");
        }
        for (leaf, links) in &self.plain.links {
            match meta.getattr(self.leaves[*leaf]).await {
                Ok(attr) => assert_eq!(attr.nlink, *links),
                Err(e) => assert!(e.kind() == Kind::Stale && *links == 0),
            }
        }
    }
}

/// Random verbs from two mounts in turn. A failure prints the verbs; they are the same in each run.
pub async fn agrees_with_a_plain_tree(world: &World) {
    let mounts = [world.mount().await, world.mount().await];
    let config = Config { rng_seed: RngSeed::Fixed(20_240_817), ..Config::default() };
    let mut runner = TestRunner::new(config);
    for round in 0..40 {
        let verbs = verbs().new_tree(&mut runner).expect("verbs").current();
        println!("round {round}: {verbs:?}");
        let top = dir(&mounts[0], ROOT, &format!("round{round}")).await;
        let mut pair = Pair { plain: Plain::new(), dirs: vec![top], leaves: Vec::new() };
        for (second, verb) in verbs {
            pair.run(&mounts[usize::from(second)], verb).await;
        }
        for meta in &mounts {
            pair.compare(meta).await;
        }
    }
    crate::races::check_counts(&mounts[1]).await;
}
