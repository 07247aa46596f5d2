use super::*;
use crate::types::ObjectId;
use crate::types::RepoKind;

fn row() -> InodeRow {
    InodeRow {
        kind: FileType::File,
        mode: 0o644,
        uid: 1,
        gid: 2,
        hub: true,
        restricted: false,
        nlink: 1,
        rdev: 0,
        size: 1 << 40,
        atime: Timestamp(-5),
        mtime: Timestamp(1),
        ctime: Timestamp(i64::MAX),
        version: Version { session: SessionId(u64::MAX >> 1), seq: 9 },
        content: Content::None,
        role: None,
        parent: Ino::ROOT,
        mode_set: true,
        chunks: 7,
        xattrs: true,
        uncounted: true,
        layout: Layout { data: Some(5), grouped: true, under: Some(under()) },
        proven: Some(Proven(BlobId::Sha256([0xfd; 32]))),
    }
}

fn under() -> Under {
    Under { blob: BlobId::Git([0xfe; 20]), size: 1 << 40, len: 3 }
}

fn round_trip(row: &InodeRow) -> InodeRow {
    decode_row(Ino(5), &encode(row).expect("encode")).expect("decode")
}

#[test]
fn rows_come_back() {
    let repo = RepoId { kind: RepoKind::Dataset, id: "a/b".to_owned() };
    let commit = Commit([0xab; 20]);
    let contents = [
        Content::None,
        Content::Inline(Bytes::from(vec![0xff; INLINE_MAX])),
        Content::Extents,
        Content::Blob(BlobId::Sha256([0xfe; 32])),
        Content::Blob(BlobId::Git([0xfe; 20])),
        Content::Symlink(Bytes::from_static(b"../\xff")),
    ];
    for content in contents {
        let row = InodeRow { content, ..row() };
        assert_eq!(round_trip(&row), row);
    }
    let roles = [
        Role::Root,
        Role::Repo(repo.clone()),
        Role::Refs { repo: repo.clone(), prefix: "feature/".to_owned() },
        Role::Snapshot { repo: repo.clone(), commit },
        Role::NoExist(repo),
        Role::Locks,
    ];
    for role in roles {
        let row = InodeRow { role: Some(role), ..row() };
        assert_eq!(round_trip(&row), row);
    }
}

/// A file costs a cluster of millions of them this much memory each.
#[test]
fn rows_are_small() {
    let content = Content::Blob(BlobId::Sha256([0xfe; 32]));
    let row = InodeRow { content, layout: Layout::default(), proven: None, ..row() };
    let len = encode(&row).expect("encode").len();
    assert!(len <= 150, "{len} bytes");
}

/// What a binary wrote that did not know the last fields is read with their defaults.
#[test]
fn fields_that_are_missing_at_the_end_have_defaults() {
    let row = InodeRow { layout: Layout::default(), proven: None, ..row() };
    let mut value = encode(&row).expect("encode").to_vec();
    // The array's length, five values of one byte each, and one of four.
    assert_eq!(value[..3], [0xdc, 0, 22]);
    value[2] = 16;
    value.truncate(value.len() - 9);
    let old = decode_row(Ino(5), &value).expect("decode");
    assert_eq!(
        old,
        InodeRow {
            mode_set: false,
            chunks: 0,
            xattrs: false,
            uncounted: false,
            layout: Layout::default(),
            ..row
        }
    );
}

#[test]
fn what_is_no_row_is_corrupt() {
    for value in [&b""[..], b"\x91", b"hello"] {
        let error = decode_row(Ino(5), value).expect_err("no row");
        assert_eq!(error.kind(), Kind::Corrupt);
        assert!(error.to_string().contains("inode 5"), "{error}");
    }
    assert_eq!(parse_entry(b"12345678").expect_err("short").kind(), Kind::Corrupt);
    assert_eq!(parse_entry(b"12345678\x07").expect_err("no type").kind(), Kind::Corrupt);
    assert_eq!(trash_object(b"12345678").expect_err("short").kind(), Kind::Corrupt);
    assert_eq!(value_time(b"1").expect_err("short").kind(), Kind::Corrupt);
}

#[test]
fn entries_and_keys_come_back() {
    let kinds = [
        FileType::File,
        FileType::Dir,
        FileType::Symlink,
        FileType::Fifo,
        FileType::Socket,
        FileType::CharDevice,
        FileType::BlockDevice,
    ];
    for kind in kinds {
        let ino = Ino((1 << 53) - 1);
        assert_eq!(parse_entry(&entry_value(ino, kind)).expect("entry"), (ino, kind));
    }
    let object = ObjectId { session: SessionId(3), seq: 1 << 60 };
    assert_eq!(trash_object(&trash_key(object).field).expect("object"), object);
    assert_eq!(value_time(&time_value(Timestamp(-9))).expect("time"), Timestamp(-9));
}
