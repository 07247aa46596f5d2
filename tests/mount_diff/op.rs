//! What programs do to files, made up by chance.

use rand::RngExt;
use rand::rngs::StdRng;
use rustix::fs::{FallocateFlags, OFlags, RenameFlags};

/// Open files at one time.
pub const SLOTS: usize = 6;
/// The same few names at each depth, so that paths meet.
const NAMES: [&str; 4] = ["a", "b", "c", "d"];
/// Where things happen: the end of what lies in a row, of a page, of a chunk.
const EDGES: [u64; 6] = [0, 100, 4096, 8192, 1 << 20, (2 << 20) + 5000];

/// One operation. Paths are relative to the directory that is compared.
#[derive(Clone, Debug)]
pub enum Op {
    Mkdir {
        path: String,
        mode: u32,
    },
    /// Fifos.
    Mknod {
        path: String,
        mode: u32,
    },
    Open {
        slot: usize,
        path: String,
        flags: OFlags,
        mode: u32,
    },
    Close {
        slot: usize,
    },
    Dup {
        from: usize,
        to: usize,
    },
    Pwrite {
        slot: usize,
        offset: u64,
        len: usize,
        seed: u8,
    },
    /// At the position of the descriptor, or at the end with `O_APPEND`.
    Write {
        slot: usize,
        len: usize,
        seed: u8,
    },
    Pread {
        slot: usize,
        offset: u64,
        len: usize,
    },
    Ftruncate {
        slot: usize,
        size: u64,
    },
    Truncate {
        path: String,
        size: u64,
    },
    Fallocate {
        slot: usize,
        flags: FallocateFlags,
        offset: u64,
        len: u64,
    },
    /// Where data and holes begin.
    Seek {
        slot: usize,
        offset: u64,
    },
    Fsync {
        slot: usize,
    },
    Fstat {
        slot: usize,
    },
    Fchmod {
        slot: usize,
        mode: u32,
    },
    MapRead {
        slot: usize,
        offset: u64,
        len: usize,
    },
    MapWrite {
        slot: usize,
        offset: u64,
        len: usize,
        seed: u8,
    },
    CopyRange {
        from: usize,
        to: usize,
        offset: u64,
        len: usize,
    },
    Rename {
        from: String,
        to: String,
        flags: RenameFlags,
    },
    Symlink {
        target: String,
        path: String,
    },
    Readlink {
        path: String,
    },
    Link {
        from: String,
        to: String,
    },
    Unlink {
        path: String,
    },
    Rmdir {
        path: String,
    },
    Chmod {
        path: String,
        mode: u32,
    },
    Chown {
        path: String,
        uid: u32,
        gid: u32,
    },
    Utimens {
        path: String,
        mtime: i64,
    },
    Stat {
        path: String,
    },
    List {
        path: String,
    },
    ReadFile {
        path: String,
    },
}

/// The next one.
pub fn random(rng: &mut StdRng) -> Op {
    let slot = rng.random_range(0..SLOTS);
    match rng.random_range(0..100) {
        0..6 => Op::Mkdir { path: path(rng), mode: mode(rng) },
        6 => Op::Mknod { path: path(rng), mode: mode(rng) },
        7..22 => Op::Open { slot, path: path(rng), flags: flags(rng), mode: mode(rng) },
        22..26 => Op::Close { slot },
        26 => Op::Dup { from: slot, to: rng.random_range(0..SLOTS) },
        27..37 => Op::Pwrite { slot, offset: offset(rng), len: len(rng), seed: rng.random() },
        37..42 => Op::Write { slot, len: len(rng), seed: rng.random() },
        42..45 => Op::Fallocate { slot, flags: allocation(rng), offset: offset(rng), len: len(rng) as u64 },
        45 => Op::Seek { slot, offset: offset(rng) },
        46..48 => Op::Pread { slot, offset: offset(rng), len: len(rng) },
        48..52 => Op::Ftruncate { slot, size: offset(rng) },
        52..54 => Op::Truncate { path: path(rng), size: offset(rng) },
        54 => Op::Fsync { slot },
        55..58 => Op::Fstat { slot },
        58 => Op::Fchmod { slot, mode: mode(rng) },
        59..61 => Op::MapRead { slot, offset: offset(rng), len: len(rng) },
        61..64 => Op::MapWrite { slot, offset: offset(rng), len: len(rng), seed: rng.random() },
        64 => {
            Op::CopyRange { from: slot, to: rng.random_range(0..SLOTS), offset: offset(rng), len: len(rng) }
        }
        65..74 => Op::Rename { from: path(rng), to: path(rng), flags: rename_flags(rng) },
        74..76 => Op::Symlink { target: path(rng), path: path(rng) },
        76 => Op::Readlink { path: path(rng) },
        77..80 => Op::Link { from: path(rng), to: path(rng) },
        80..84 => Op::Unlink { path: path(rng) },
        84..87 => Op::Rmdir { path: path(rng) },
        87 => Op::Chmod { path: path(rng), mode: mode(rng) },
        88 => Op::Chown { path: path(rng), uid: rng.random_range(0..3), gid: rng.random_range(0..3) },
        89..91 => Op::Utimens { path: path(rng), mtime: rng.random_range(0..1_000_000_000) },
        91..94 => Op::Stat { path: path(rng) },
        94..96 => Op::List { path: path(rng) },
        _ => Op::ReadFile { path: path(rng) },
    }
}

fn path(rng: &mut StdRng) -> String {
    if rng.random_range(0..200) == 0 {
        return "n".repeat(rng.random_range(254..258));
    }
    let depth = [1, 1, 1, 2, 2, 3][rng.random_range(0..6)];
    let names: Vec<&str> = (0..depth).map(|_| NAMES[rng.random_range(0..NAMES.len())]).collect();
    names.join("/")
}

fn mode(rng: &mut StdRng) -> u32 {
    match rng.random_range(0..4) {
        0 => rng.random_range(0..0o10000),
        _ => [0o644, 0o755, 0o600][rng.random_range(0..3)],
    }
}

fn flags(rng: &mut StdRng) -> OFlags {
    let mut flags = [OFlags::RDONLY, OFlags::WRONLY, OFlags::RDWR, OFlags::RDWR][rng.random_range(0..4)];
    for (flag, one_in) in [
        (OFlags::CREATE, 2),
        (OFlags::EXCL, 6),
        (OFlags::TRUNC, 4),
        (OFlags::APPEND, 4),
        (OFlags::NOFOLLOW, 5),
        (OFlags::DIRECTORY, 20),
        (OFlags::SYNC, 20),
    ] {
        if rng.random_range(0..one_in) == 0 {
            flags |= flag;
        }
    }
    // What an exclusive open without creation means is not defined.
    if !flags.contains(OFlags::CREATE) {
        flags.remove(OFlags::EXCL);
    }
    if flags.contains(OFlags::CREATE) {
        flags.remove(OFlags::DIRECTORY);
    }
    // Of a fifo.
    flags | OFlags::NONBLOCK | OFlags::CLOEXEC
}

fn allocation(rng: &mut StdRng) -> FallocateFlags {
    let keep = FallocateFlags::KEEP_SIZE;
    [
        FallocateFlags::empty(),
        keep,
        FallocateFlags::PUNCH_HOLE | keep,
        FallocateFlags::ZERO_RANGE,
        FallocateFlags::ZERO_RANGE | keep,
    ][rng.random_range(0..5)]
}

fn rename_flags(rng: &mut StdRng) -> RenameFlags {
    match rng.random_range(0..6) {
        0 => RenameFlags::NOREPLACE,
        1 => RenameFlags::EXCHANGE,
        _ => RenameFlags::empty(),
    }
}

fn offset(rng: &mut StdRng) -> u64 {
    // Mostly small: what is large is compared as a whole again and again.
    let edges = if rng.random_range(0..8) == 0 { EDGES.len() } else { 4 };
    let edge = EDGES[rng.random_range(0..edges)];
    match rng.random_range(0..3) {
        0 => edge,
        1 => edge.saturating_sub(rng.random_range(0..50)),
        _ => edge + rng.random_range(0..3000),
    }
}

fn len(rng: &mut StdRng) -> usize {
    match rng.random_range(0..20) {
        0 => 300_000,
        1 => 0,
        2..6 => 4096,
        _ => rng.random_range(1..6000),
    }
}
