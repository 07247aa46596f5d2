//! What nodes are asked to do: made up by chance ([`Op`]), then said of what there is ([`Step`]).

use proptest::prelude::*;

/// Names in a directory: few, so that paths meet.
pub const NAMES: [&str; 4] = ["a", "b", "c", "d"];
/// Nodes of a cluster.
pub const NODES: usize = 3;

/// What was made by the step of this number: an inode or an open file.
pub type Id = usize;

/// A choice among what there is, by its remainder.
pub type Pick = u8;

/// An operation by chance. Its choices mean something once it is known what there is, so that a shorter list of them is a
/// list as well.
#[derive(Clone, Debug)]
pub enum Op {
    One(Verb),
    /// Both at the same time, on different nodes.
    Both(Verb, Verb),
    /// The node is killed so many microseconds after it began.
    KillDuring(Verb, u16, bool),
    /// Something fails on the node meanwhile; afterwards nothing does.
    Faulty(Verb, Trouble),
    /// What the node asks of the metadata next takes so many milliseconds longer.
    Slow(Pick, u8),
    /// Unmounted and mounted again; true: on an empty disk.
    Remount(Pick, bool),
    Kill(Pick, bool),
    /// The local disk drops what it can.
    Evict(Pick),
}

/// What fails, and how many times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Commits are not done.
    Commits(u8),
    /// A commit is done and answered with an error, after so many that are not.
    LostReply(u8),
    /// The metadata cannot be read, after so many reads.
    Reads(u8, u8),
    /// Uploads fail.
    Puts(u8),
    /// Uploads are done and answered with an error.
    LostPuts(u8),
    Gets(u8),
    /// What comes from the bucket breaks off, or has one bit changed.
    Cut(u8),
    Flipped(u8),
}

#[derive(Clone, Debug)]
pub enum Verb {
    Create(Pick, Pick, Pick, bool),
    Mkdir(Pick, Pick, Pick),
    Symlink(Pick, Pick, Pick),
    Link(Pick, Pick, Pick, Pick),
    Unlink(Pick, Pick, Pick),
    Rmdir(Pick, Pick, Pick),
    Rename(Pick, (Pick, Pick), (Pick, Pick), u32),
    Open(Pick, Pick, i32),
    Close(Pick),
    Flush(Pick),
    Fsync(Pick),
    Write(Pick, u32, u16, u8),
    Read(Pick, u32, u16),
    Truncate(Pick, u32),
    TruncatePath(Pick, Pick, u32),
    Fstat(Pick),
    Mode(Pick, Pick, u16),
    Mtime(Pick, Pick, u32),
    Lookup(Pick, Pick, Pick),
    List(Pick, Pick),
    Cat(Pick, Pick),
    Flock(Pick, Locking),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Locking {
    Shared,
    Exclusive,
    Unlock,
}

/// An operation on what there is.
#[derive(Clone, Debug)]
pub enum Step {
    /// Makes a file and opens it as `id`, which the inode is called as well.
    Create {
        node: usize,
        dir: Id,
        name: &'static str,
        append: bool,
        id: Id,
    },
    Mkdir {
        node: usize,
        dir: Id,
        name: &'static str,
        id: Id,
    },
    Symlink {
        node: usize,
        dir: Id,
        name: &'static str,
        id: Id,
    },
    Link {
        node: usize,
        file: Id,
        dir: Id,
        name: &'static str,
    },
    Remove {
        node: usize,
        dir: Id,
        name: &'static str,
        rmdir: bool,
    },
    Rename {
        node: usize,
        from: (Id, &'static str),
        to: (Id, &'static str),
        flags: u32,
    },
    Open {
        node: usize,
        file: Id,
        flags: i32,
        id: Id,
    },
    Close {
        node: usize,
        handle: Id,
    },
    Flush {
        node: usize,
        handle: Id,
    },
    Fsync {
        node: usize,
        handle: Id,
    },
    Write {
        node: usize,
        handle: Id,
        at: u64,
        data: Vec<u8>,
    },
    Read {
        node: usize,
        handle: Id,
        at: u64,
        len: u32,
    },
    Truncate {
        node: usize,
        handle: Id,
        size: u64,
    },
    TruncatePath {
        node: usize,
        file: Id,
        size: u64,
    },
    Fstat {
        node: usize,
        handle: Id,
    },
    Mode {
        node: usize,
        inode: Id,
        mode: u16,
    },
    Mtime {
        node: usize,
        inode: Id,
        seconds: i64,
    },
    Lookup {
        node: usize,
        dir: Id,
        name: &'static str,
    },
    List {
        node: usize,
        dir: Id,
    },
    Cat {
        node: usize,
        file: Id,
    },
    Flock {
        node: usize,
        handle: Id,
        kind: Locking,
    },
}

impl Step {
    pub fn node(&self) -> usize {
        match self {
            Step::Create { node, .. }
            | Step::Mkdir { node, .. }
            | Step::Symlink { node, .. }
            | Step::Link { node, .. }
            | Step::Remove { node, .. }
            | Step::Rename { node, .. }
            | Step::Open { node, .. }
            | Step::Close { node, .. }
            | Step::Flush { node, .. }
            | Step::Fsync { node, .. }
            | Step::Write { node, .. }
            | Step::Read { node, .. }
            | Step::Truncate { node, .. }
            | Step::TruncatePath { node, .. }
            | Step::Fstat { node, .. }
            | Step::Mode { node, .. }
            | Step::Mtime { node, .. }
            | Step::Lookup { node, .. }
            | Step::List { node, .. }
            | Step::Cat { node, .. }
            | Step::Flock { node, .. } => *node,
        }
    }

    /// For a report: without the bytes.
    pub fn short(&self) -> String {
        match self {
            Step::Write { node, handle, at, data } => {
                let (len, first) = (data.len(), data.first().copied().unwrap_or(0));
                format!(
                    "Write {{ node: {node}, handle: {handle}, at: {at}, len: {len}, first byte: {first} }}"
                )
            }
            other => format!("{other:?}"),
        }
    }
}

/// Where things happen: around what lies in a row, in a chunk, in several.
fn offset() -> impl Strategy<Value = u32> {
    let edges = [0u32, 100, 4096, 16 << 10, 32 << 10, 40_000];
    prop_oneof![
        3 => 0u32..200,
        2 => proptest::sample::select(edges.to_vec()).prop_flat_map(|e| e.saturating_sub(60)..e + 60),
        1 => 0u32..60_000,
    ]
}

fn length() -> impl Strategy<Value = u16> {
    prop_oneof![4 => 1u16..100, 2 => 1u16..6000, 1 => Just(16 << 10), 1 => 1u16..40_000]
}

fn verb() -> impl Strategy<Value = Verb> {
    let p = any::<Pick>;
    let open_flags = proptest::sample::select(vec![
        libc::O_RDONLY,
        libc::O_RDWR,
        libc::O_RDWR,
        libc::O_WRONLY,
        libc::O_RDWR | libc::O_APPEND,
        libc::O_RDWR | libc::O_TRUNC,
    ]);
    let rename_flags = proptest::sample::select(vec![0, 0, libc::RENAME_NOREPLACE, libc::RENAME_EXCHANGE]);
    let locking = proptest::sample::select(vec![Locking::Shared, Locking::Exclusive, Locking::Unlock]);
    let names = prop_oneof![
        8 => (p(), p(), p(), any::<bool>()).prop_map(|(n, d, a, b)| Verb::Create(n, d, a, b)),
        3 => (p(), p(), p()).prop_map(|(n, d, a)| Verb::Mkdir(n, d, a)),
        1 => (p(), p(), p()).prop_map(|(n, d, a)| Verb::Symlink(n, d, a)),
        3 => (p(), p(), p(), p()).prop_map(|(n, f, d, a)| Verb::Link(n, f, d, a)),
        4 => (p(), p(), p()).prop_map(|(n, d, a)| Verb::Unlink(n, d, a)),
        2 => (p(), p(), p()).prop_map(|(n, d, a)| Verb::Rmdir(n, d, a)),
        6 => (p(), (p(), p()), (p(), p()), rename_flags).prop_map(|(n, f, t, m)| Verb::Rename(n, f, t, m)),
    ];
    let data = prop_oneof![
        10 => (p(), p(), open_flags).prop_map(|(n, f, g)| Verb::Open(n, f, g)),
        7 => p().prop_map(Verb::Close),
        4 => p().prop_map(Verb::Flush),
        3 => p().prop_map(Verb::Fsync),
        16 => (p(), offset(), length(), p()).prop_map(|(h, o, l, s)| Verb::Write(h, o, l, s)),
        8 => (p(), offset(), length()).prop_map(|(h, o, l)| Verb::Read(h, o, l)),
        4 => (p(), offset()).prop_map(|(h, s)| Verb::Truncate(h, s)),
        2 => (p(), p(), offset()).prop_map(|(n, f, s)| Verb::TruncatePath(n, f, s)),
        3 => p().prop_map(Verb::Fstat),
        5 => (p(), p()).prop_map(|(n, f)| Verb::Cat(n, f)),
        4 => (p(), locking).prop_map(|(h, l)| Verb::Flock(h, l)),
    ];
    let rest = prop_oneof![
        1 => (p(), p(), 0u16..0o10000).prop_map(|(n, i, m)| Verb::Mode(n, i, m)),
        1 => (p(), p(), any::<u32>()).prop_map(|(n, i, t)| Verb::Mtime(n, i, t)),
        2 => (p(), p(), p()).prop_map(|(n, d, a)| Verb::Lookup(n, d, a)),
        1 => (p(), p()).prop_map(|(n, d)| Verb::List(n, d)),
    ];
    prop_oneof![5 => names, 12 => data, 2 => rest]
}

fn trouble() -> impl Strategy<Value = Trouble> {
    prop_oneof![
        6 => (1u8..4).prop_map(Trouble::Commits),
        8 => (0u8..2).prop_map(Trouble::LostReply),
        4 => (0u8..3, 1u8..4).prop_map(|(skip, n)| Trouble::Reads(skip, n)),
        3 => (1u8..6).prop_map(Trouble::Puts),
        1 => Just(Trouble::Puts(100)),
        2 => (1u8..3).prop_map(Trouble::LostPuts),
        2 => (1u8..8).prop_map(Trouble::Gets),
        1 => (1u8..4).prop_map(Trouble::Cut),
        1 => (1u8..4).prop_map(Trouble::Flipped),
    ]
}

/// One operation of a case.
pub fn op() -> impl Strategy<Value = Op> {
    let p = any::<Pick>;
    prop_oneof![
        70 => verb().prop_map(Op::One),
        20 => (verb(), verb()).prop_map(|(a, b)| Op::Both(a, b)),
        10 => (verb(), trouble()).prop_map(|(v, t)| Op::Faulty(v, t)),
        3 => (p(), 1u8..20).prop_map(|(n, ms)| Op::Slow(n, ms)),
        2 => (verb(), 0u16..3000, any::<bool>()).prop_map(|(v, t, f)| Op::KillDuring(v, t, f)),
        1 => (p(), any::<bool>()).prop_map(|(n, f)| Op::Remount(n, f)),
        1 => (p(), any::<bool>()).prop_map(|(n, f)| Op::Kill(n, f)),
        2 => p().prop_map(Op::Evict),
    ]
}
