use bytes::Bytes;

use super::*;
use crate::types::{SessionId, Version};

const LONG: Duration = Duration::from_secs(60);
const DIR: Ino = Ino(7);
const FILE: Ino = Ino(8);

fn attr(ino: Ino, kind: FileType, mtime: i64) -> Attr {
    let time = Timestamp(mtime);
    Attr {
        ino,
        kind,
        mode: 0o644,
        uid: 1,
        gid: 1,
        hub: false,
        restricted: false,
        mode_set: false,
        xattrs: false,
        uncounted: false,
        nlink: 2,
        rdev: 0,
        size: 5,
        blocks: 1,
        atime: time,
        mtime: time,
        ctime: time,
        version: Version { session: SessionId(1), seq: 1 },
        content: Content::Inline(Bytes::from_static(b"bytes")),
        role: None,
        parent: Ino::ROOT,
        chunks: 0,
        layout: crate::meta::Layout::default(),
        proven: None,
    }
}

fn row_set(ino: Ino) -> Write {
    Write::Set(schema::attr_key(ino), Bytes::from_static(b"row"))
}

fn names_changed(dir: Ino, at: u64) -> Write {
    Write::Max(schema::changed_key(dir), at)
}

fn known(recent: &Recent, ino: Ino) -> Option<Attr> {
    recent.get(ino, LONG).map(|(attr, _)| attr)
}

fn mtime(recent: &Recent, ino: Ino) -> Option<i64> {
    known(recent, ino).map(|attr| attr.mtime.0)
}

#[test]
fn what_was_read_is_answered_for_a_while() {
    let recent = Recent::new();
    recent.learn(recent.ticket(), &attr(FILE, FileType::File, 3));
    let (found, age) = recent.get(FILE, LONG).expect("known");
    assert_eq!((found.mtime, found.content, age < LONG), (Timestamp(3), Content::None, true));
    assert!(recent.get(FILE, Duration::ZERO).is_none(), "with no time to live all is asked");
    std::thread::sleep(Duration::from_millis(5));
    assert!(recent.get(FILE, Duration::from_millis(5)).is_none());
    assert!(known(&recent, DIR).is_none());
}

#[test]
fn an_answer_that_a_change_overtook_does_not_come_in() {
    let recent = Recent::new();
    let changes: [&dyn Fn(&Recent); 5] = [
        &|r| r.heard(&[Change::Inode { ino: FILE }]),
        &|r| r.heard(&[Change::Entry { parent: FILE, name: Bytes::new() }]),
        &Recent::clear,
        &|r| r.begin(&[row_set(FILE)]).applied(None),
        // A commit of which nobody knows what became of it.
        &|r| drop(r.begin(&[row_set(FILE)])),
    ];
    for (n, change) in changes.iter().enumerate() {
        recent.learn(recent.ticket(), &attr(FILE, FileType::File, 1));
        assert_eq!(mtime(&recent, FILE), Some(1), "{n}");
        let early = recent.ticket();
        change(&recent);
        assert_eq!(mtime(&recent, FILE), None, "{n}: dropped");
        recent.learn(early, &attr(FILE, FileType::File, 2));
        assert_eq!(mtime(&recent, FILE), None, "{n}: too early");
    }
}

#[test]
fn what_a_commit_made_is_known_after_it() {
    let recent = Recent::new();
    let early = recent.ticket();
    let pending = recent.begin(&[row_set(FILE)]);
    pending.applied(Some(&attr(FILE, FileType::File, 9)));
    assert_eq!(mtime(&recent, FILE), Some(9));
    recent.learn(early, &attr(FILE, FileType::File, 2));
    assert_eq!(mtime(&recent, FILE), Some(9));
    // Two at once: which came last is not known.
    let (one, two) = (recent.begin(&[row_set(FILE)]), recent.begin(&[row_set(FILE)]));
    two.applied(Some(&attr(FILE, FileType::File, 10)));
    one.applied(Some(&attr(FILE, FileType::File, 11)));
    assert_eq!(mtime(&recent, FILE), None);
    // A read meanwhile may have seen what somebody else did since.
    let pending = recent.begin(&[row_set(FILE)]);
    recent.learn(recent.ticket(), &attr(FILE, FileType::File, 13));
    pending.applied(Some(&attr(FILE, FileType::File, 12)));
    assert_eq!(mtime(&recent, FILE), None);
    // Refused: nothing is taken for granted, and nothing is wrong.
    let pending = recent.begin(&[row_set(FILE)]);
    pending.refused();
    recent.learn(recent.ticket(), &attr(FILE, FileType::File, 14));
    assert_eq!(mtime(&recent, FILE), Some(14));
}

#[test]
fn names_made_here_move_the_time_of_their_directory() {
    let recent = Recent::new();
    recent.learn(recent.ticket(), &attr(DIR, FileType::Dir, 5));
    recent.begin(&[row_set(FILE), names_changed(DIR, 8)]).applied(None);
    assert_eq!(mtime(&recent, DIR), Some(8));
    recent.begin(&[row_set(FILE), names_changed(DIR, 6)]).applied(None);
    assert_eq!(mtime(&recent, DIR), Some(8), "never back");
    // A read that began before and ends after may have missed it.
    let read = recent.ticket();
    recent.begin(&[names_changed(DIR, 20)]).applied(None);
    recent.learn(read, &attr(DIR, FileType::Dir, 8));
    assert_eq!(mtime(&recent, DIR), Some(20));
    // One that began later has not.
    recent.heard(&[Change::Inode { ino: DIR }]);
    recent.learn(recent.ticket(), &attr(DIR, FileType::Dir, 4));
    assert_eq!(mtime(&recent, DIR), Some(4), "utimens may set it back");
}

#[test]
fn subdirectories_are_counted_only_where_that_is_certain() {
    let recent = Recent::new();
    let mkdir = [names_changed(DIR, 8), Write::Add(schema::subdirs_key(DIR), 1)];
    recent.learn(recent.ticket(), &attr(DIR, FileType::Dir, 5));
    recent.begin(&mkdir).applied(None);
    let found = known(&recent, DIR).expect("known");
    assert_eq!((found.nlink, found.mtime.0), (3, 8));
    // A read meanwhile may have counted it already.
    let pending = recent.begin(&mkdir);
    recent.learn(recent.ticket(), &attr(DIR, FileType::Dir, 8));
    pending.applied(None);
    assert!(known(&recent, DIR).is_none());
    // So may one that began before and ended after.
    let read = recent.ticket();
    recent.begin(&mkdir).applied(None);
    recent.learn(read, &attr(DIR, FileType::Dir, 8));
    assert!(known(&recent, DIR).is_none());
}

#[test]
fn many_directories_are_forgotten_without_harm() {
    let recent = Recent::new();
    let read = recent.ticket();
    for n in 0..=TOUCHED.get() as u64 {
        recent.begin(&[names_changed(Ino(1000 + n), 9)]).applied(None);
    }
    recent.learn(read, &attr(Ino(1000), FileType::Dir, 5));
    assert!(known(&recent, Ino(1000)).is_none(), "it is not known any more that it was touched");
    recent.learn(recent.ticket(), &attr(Ino(1000), FileType::Dir, 9));
    assert!(known(&recent, Ino(1000)).is_some());
}

#[test]
fn what_writes_do_to_inodes() {
    let writes = [
        row_set(FILE),
        Write::Set(crate::meta::kv::Key::new("d7/", "name"), Bytes::new()),
        names_changed(DIR, 8),
        Write::Add(schema::subdirs_key(DIR), -1),
        Write::DelMap("i9".to_owned()),
        Write::Add(crate::meta::kv::Key::new("ids", "ino"), 1),
    ];
    let found: Vec<_> = effects(&writes).iter().map(|e| (e.ino.0, e.other, e.names, e.subdirs)).collect();
    assert_eq!(found, [(8, true, None, 0), (7, false, Some(Timestamp(8)), -1), (9, true, None, 0)]);
}
