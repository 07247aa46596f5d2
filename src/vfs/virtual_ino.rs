//! Inodes that exist in this mount only. Their numbers say what they are, so that most need no table: the kernel may
//! ask about one at any time, also long after the path that led to it is forgotten.
//!
//! ```text
//! 2^60 + 1, 2^60 + 2     the hidden `hub` link; the empty file that says "not in this commit"
//! 2^61 | inode           `.no_exist/<commit>/…` beside a directory that the commit has
//! 2^62 | 61-bit hash     `.no_exist/<commit>/…` where the commit has no directory
//! 2^63 | counter         a file or directory of one user on this node (see `private`)
//! ```

use crate::types::Ino;

/// The symbolic link `hub` → `.` in the root.
pub const HUB_LINK: Ino = Ino(Ino::FIRST_VIRTUAL | 1);
/// Every file of `.no_exist`: the same empty, read-only file under all its names.
pub const ABSENT_FILE: Ino = Ino(Ino::FIRST_VIRTUAL | 2);

const MIRROR: u64 = 1 << 61;
const NOWHERE: u64 = 1 << 62;
const PRIVATE: u64 = 1 << 63;

/// What a number stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// An inode of the metadata.
    Real,
    HubLink,
    AbsentFile,
    /// The names that the given directory of a commit does not have.
    Mirror(Ino),
    /// A directory of names in a place that the commit does not have at all.
    Nowhere,
    Private,
    /// A number that nobody gave out.
    Unknown,
}

/// Reads a number.
#[must_use]
pub fn which(ino: Ino) -> Which {
    match ino.0 {
        n if n & PRIVATE != 0 => Which::Private,
        n if n & NOWHERE != 0 => Which::Nowhere,
        n if n & MIRROR != 0 => Which::Mirror(Ino(n & !MIRROR)),
        _ if !ino.is_virtual() => Which::Real,
        _ if ino == HUB_LINK => Which::HubLink,
        _ if ino == ABSENT_FILE => Which::AbsentFile,
        _ => Which::Unknown,
    }
}

/// The directory of the names that `dir` does not have.
#[must_use]
pub fn mirror_of(dir: Ino) -> Ino {
    Ino(MIRROR | dir.0)
}

/// The directory `name` in `parent`, where the commit has no directory of that name. The kernel wants one number a
/// path; with 61 bits, no two of a mount's paths meet.
#[must_use]
pub fn nowhere(parent: Ino, name: &[u8]) -> Ino {
    let mut hash = blake3::Hasher::new();
    hash.update(&parent.0.to_be_bytes());
    hash.update(name);
    let mut first = [0; 8];
    first.copy_from_slice(&hash.finalize().as_bytes()[..8]);
    Ino(NOWHERE | (u64::from_be_bytes(first) & (MIRROR - 1)))
}

/// The `n`th private inode of this mount.
#[must_use]
pub fn private(n: u64) -> Ino {
    Ino(PRIVATE | n)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_say_what_they_are() {
        assert_eq!(which(Ino::ROOT), Which::Real);
        assert_eq!(which(HUB_LINK), Which::HubLink);
        assert_eq!(which(ABSENT_FILE), Which::AbsentFile);
        assert_eq!(which(mirror_of(Ino(77))), Which::Mirror(Ino(77)));
        assert_eq!(which(nowhere(mirror_of(Ino(77)), b"onnx")), Which::Nowhere);
        assert_eq!(which(private(3)), Which::Private);
        assert_eq!(which(Ino(Ino::FIRST_VIRTUAL | 9)), Which::Unknown);
        assert_ne!(nowhere(Ino(1), b"a"), nowhere(Ino(2), b"a"));
    }
}
