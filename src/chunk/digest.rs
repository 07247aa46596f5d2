//! The digest that a blob is named by.

use sha1::Digest as _;

use crate::types::BlobId;

/// A digest being computed, in the order of the bytes. Cheap to clone.
#[derive(Clone, Debug)]
pub enum Digest {
    Sha256(sha2::Sha256),
    Git(sha1::Sha1),
}

impl Digest {
    /// Begins the digest that a blob with this kind of name and this size has.
    #[must_use]
    pub fn new(id: &BlobId, size: u64) -> Self {
        match id {
            BlobId::Sha256(_) => Digest::Sha256(sha2::Sha256::new()),
            BlobId::Git(_) => Digest::Git(sha1::Sha1::new_with_prefix(format!("blob {size}\0"))),
        }
    }

    /// The next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Digest::Sha256(d) => d.update(bytes),
            Digest::Git(d) => d.update(bytes),
        }
    }

    /// The name of what was seen.
    #[must_use]
    pub fn finish(self) -> BlobId {
        match self {
            Digest::Sha256(d) => BlobId::Sha256(d.finalize().into()),
            Digest::Git(d) => BlobId::Git(d.finalize().into()),
        }
    }

    /// The name of `bytes`, of the same kind as `id`.
    #[must_use]
    pub fn of(id: &BlobId, bytes: &[u8]) -> BlobId {
        let mut digest = Digest::new(id, bytes.len() as u64);
        digest.update(bytes);
        digest.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_git_and_of_lfs() {
        let git = BlobId::Git([0; 20]);
        // `printf 'hello\n' | git hash-object --stdin`, `git hash-object /dev/null`
        assert_eq!(Digest::of(&git, b"hello\n").etag(), "ce013625030ba8dba906f756967f9e9ca394464a");
        assert_eq!(Digest::of(&git, b"").etag(), "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391");
        let sha = Digest::of(&BlobId::Sha256([0; 32]), b"abc").etag();
        assert_eq!(sha, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
