//! What is not worth keeping: what programs make for a moment, and what the Hub has.

use crate::meta::schema::{Content, InodeRow};
use crate::types::{BlobId, FileType, Timestamp};

/// What holds no bytes and is younger than this was made for a moment: markers, probes, files that were never written.
const MOMENT: i64 = 60 * 1_000_000_000;

/// Whether something that loses its last name is kept. `filled`: bytes of it are on the way.
pub(super) fn is_worth_it(row: &InodeRow, name: &[u8], filled: bool, now: Timestamp) -> bool {
    let is_dir = row.kind == FileType::Dir;
    // The last: what came from the Hub and nobody wrote to since.
    if (is_temporary(name) && !is_dir) || (row.uncounted && !filled) {
        return false;
    }
    let lasted = now.0.saturating_sub(row.mtime.0) >= MOMENT;
    match (row.kind, &row.content) {
        (FileType::File, Content::Blob(_)) => false,
        (FileType::File, Content::None) => filled || lasted,
        (FileType::File, _) => true,
        (FileType::Symlink, Content::Symlink(target)) => lasted && !row.hub && !points_to_blob(target),
        // Without them nobody could tell where the files in them were.
        (FileType::Dir, _) => !row.hub && row.role.is_none(),
        _ => false,
    }
}

/// As the Hub's libraries link snapshots to blobs: `../../blobs/<etag>`.
fn points_to_blob(target: &[u8]) -> bool {
    std::str::from_utf8(target)
        .ok()
        .and_then(|target| target.rsplit_once('/'))
        .is_some_and(|(dir, name)| dir.ends_with("blobs") && BlobId::from_etag(name).is_some())
}

/// Whether programs give such names to what they are about to delete: unfinished downloads, locks, editors' and Python's
/// temporary files.
#[must_use]
pub fn is_temporary(name: &[u8]) -> bool {
    const ENDS: [&[u8]; 8] =
        [b".incomplete", b".lock", b".tmp", b".temp", b".part", b".swp", b".shared", b"~"];
    const BEGINNINGS: [&[u8]; 6] = [b".tmp", b".#", b".nfs", b".fuse_hidden", b".~lock", b"tmp_"];
    ENDS.iter().any(|end| name.ends_with(end))
        || BEGINNINGS.iter().any(|begin| name.starts_with(begin))
        || is_mkstemp(name)
}

/// Python's `tempfile`: `tmp` and eight of `a-z0-9_`, perhaps with an ending.
fn is_mkstemp(name: &[u8]) -> bool {
    let Some(rest) = name.strip_prefix(b"tmp") else { return false };
    let random = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'_';
    rest.split_at_checked(8)
        .is_some_and(|(chance, end)| chance.iter().all(random) && (end.is_empty() || end.starts_with(b".")))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::meta::schema::{Layout, Role};
    use crate::types::{Ino, RepoId, RepoKind, SessionId, Version};

    #[test]
    fn names_of_the_moment() {
        for name in [
            "abc.0123abcd.incomplete",
            "x.lock",
            ".tmpAbc",
            "a.tmp",
            "notes.txt~",
            ".#notes",
            ".nfs0001",
            "tmp_3f",
            "tmpab12_x9z",
            "tmpab12_x9z.json",
            ".fuse_hidden0001",
            ".abc.ff.shared",
            ".x.swp",
        ] {
            assert!(is_temporary(name.as_bytes()), "{name}");
        }
        for name in [
            "a",
            "tmp",
            "tmpfile",
            "template.txt",
            "tmp-results.csv",
            "lock",
            "model.safetensors",
            "tmpABCDEFGH",
        ] {
            assert!(!is_temporary(name.as_bytes()), "{name}");
        }
    }

    fn row(kind: FileType, content: Content, age: i64) -> InodeRow {
        let then = Timestamp(NOW.0 - age * 1_000_000_000);
        InodeRow {
            kind,
            mode: 0o644,
            uid: 1,
            gid: 1,
            hub: false,
            restricted: false,
            nlink: 1,
            rdev: 0,
            size: 0,
            atime: then,
            mtime: then,
            ctime: then,
            version: Version { session: SessionId(1), seq: 1 },
            content,
            role: None,
            parent: Ino::ROOT,
            mode_set: false,
            chunks: 0,
            xattrs: false,
            uncounted: false,
            layout: Layout::default(),
            proven: None,
        }
    }

    const NOW: Timestamp = Timestamp(1 << 60);

    #[test]
    fn what_is_kept() {
        let keeps = |row: &InodeRow| is_worth_it(row, b"name", false, NOW);
        let link =
            |target: &str, age| row(FileType::Symlink, Content::Symlink(Bytes::from(target.to_owned())), age);
        assert!(keeps(&row(FileType::File, Content::Inline("x".into()), 0)));
        let written = InodeRow { size: 5, ..row(FileType::File, Content::Extents, 0) };
        assert!(keeps(&written));
        assert!(!is_worth_it(&written, b"x.incomplete", false, NOW));
        assert!(!keeps(&InodeRow { uncounted: true, ..written.clone() }), "the Hub's");
        assert!(keeps(&InodeRow { hub: true, ..written }), "the Hub's once, written to since");
        assert!(!keeps(&row(FileType::File, Content::Blob(BlobId::Git([0; 20])), 900)));
        assert!(
            !keeps(&row(FileType::File, Content::None, 5)) && keeps(&row(FileType::File, Content::None, 60))
        );
        assert!(!keeps(&link("a", 5)) && keeps(&link("a", 60)) && keeps(&link("../blobs/a", 60)));
        assert!(!keeps(&link(&format!("../../blobs/{}", "0a".repeat(32)), 600)));
        let dir = row(FileType::Dir, Content::None, 0);
        assert!(keeps(&dir));
        let repo = RepoId { kind: RepoKind::Model, id: "a/b".to_owned() };
        assert!(!keeps(&InodeRow { role: Some(Role::Blobs(repo)), ..dir.clone() }));
        assert!(!keeps(&InodeRow { hub: true, ..dir }));
        assert!(!keeps(&row(FileType::Fifo, Content::None, 600)));
    }
}
