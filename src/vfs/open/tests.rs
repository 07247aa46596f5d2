//! What an open may answer.

use super::*;

const KEEP: Grant = Grant { keep_cache: true, drop_attrs: false };
const DROP: Grant = Grant { keep_cache: false, drop_attrs: true };

fn version(seq: u64) -> Version {
    Version { session: crate::types::SessionId(7), seq }
}

#[test]
fn what_the_kernel_keeps_at_open() {
    use libc::{O_APPEND, O_DIRECT, O_RDONLY, O_RDWR, O_TRUNC, O_WRONLY};
    let (old, new) = (version(1), version(2));
    let cases = [
        ("never opened before, or forgotten", None, new, O_RDONLY, DROP),
        ("as it was", Some(new), new, O_RDONLY, KEEP),
        ("as it was, to write", Some(new), new, O_RDWR, KEEP),
        ("as it was, to append", Some(new), new, O_WRONLY | O_APPEND, KEEP),
        ("as it was, past the pages", Some(new), new, O_RDONLY | O_DIRECT, KEEP),
        ("another mount wrote", Some(old), new, O_RDONLY, DROP),
        ("another mount wrote, to write", Some(old), new, O_RDWR, DROP),
        ("another mount wrote, past the pages", Some(old), new, O_RDWR | O_DIRECT, DROP),
        ("versions are not ordered", Some(new), old, O_RDONLY, DROP),
        (
            "the same number of another session",
            Some(Version { session: crate::types::SessionId(8), ..new }),
            new,
            O_RDONLY,
            DROP,
        ),
        ("emptied by the open", Some(new), new, O_WRONLY | O_TRUNC, DROP),
        ("emptied though opened to read", Some(new), new, O_RDONLY | O_TRUNC, DROP),
        ("emptied, and another mount wrote", Some(old), new, O_RDWR | O_TRUNC, DROP),
    ];
    for (case, told, now, flags, expected) in cases {
        assert_eq!(grant(Opening { immutable: false, told, now, flags }), expected, "{case}");
    }
    for told in [None, Some(old), Some(new)] {
        for flags in [O_RDONLY, O_RDONLY | O_DIRECT] {
            let blob = Opening { immutable: true, told, now: new, flags };
            assert_eq!(grant(blob), KEEP, "a blob is what it was: {blob:?}");
        }
    }
}

/// What is told is moved along by this mount's own commits and by nothing else.
#[test]
fn what_the_kernel_keeps_of_what_was_written_here() {
    let attrs = crate::vfs::attr_cache::AttrCache::default();
    let (ino, flags) = (Ino(9), libc::O_RDWR);
    let open = |now| grant(Opening { immutable: false, told: attrs.tell(ino, now), now, flags });
    assert_eq!(open(version(1)), DROP);
    assert_eq!(open(version(1)), KEEP, "dirty: still the version that was written over");
    attrs.told_moves(ino, version(1), version(2));
    assert_eq!(open(version(2)), KEEP, "an own write");
    attrs.told_moves(ino, version(1), version(3));
    assert_eq!(open(version(3)), DROP, "its pages were of another version than the one written over");
    assert_eq!(open(version(4)), DROP, "merged with another mount's: not moved");
    attrs.clear();
    assert_eq!(open(version(4)), DROP, "the push was lost");
}

#[test]
fn who_is_sent_back_to_look_again() {
    let attrs = crate::vfs::attr_cache::AttrCache::default();
    let (ino, page) = (Ino(9), 4096);
    let opens = |tid, seq, size| attrs.sends_back(tid, ino, version(seq), size);
    assert!(!opens(1, 1, 9 * page), "the kernel was shown nothing");
    attrs.showed(ino, page);
    attrs.tell(ino, version(1));
    assert!(!opens(1, 1, 9 * page), "made longer here");
    assert!(!opens(1, 2, page) && !opens(1, 2, 1), "not longer");
    assert!(opens(1, 2, page + 1), "the kernel would not map the second page");
    assert!(opens(2, 2, page + 1), "nor for another thread");
    assert!(!opens(1, 2, page + 1), "it looked, by a path without names");
    assert!(opens(1, 2, page + 1), "another open");
    attrs.showed(ino, page + 1);
    assert!(!opens(1, 2, page + 1) && !opens(2, 2, 2 * page), "the size that the kernel found");
    attrs.showed(ino, page + 100);
    assert!(!opens(3, 3, 2 * page), "of its last page it maps all");
}

#[test]
fn when_the_metadata_are_asked() {
    use libc::{O_DIRECT, O_RDONLY, O_RDWR, O_TRUNC, O_WRONLY};
    for flags in [O_RDONLY, O_RDONLY | O_DIRECT] {
        assert!(!must_ask(true, true, flags), "a blob that is known, and the push is alive");
        assert!(must_ask(true, false, flags), "somebody may have replaced it");
        assert!(must_ask(false, true, flags) && must_ask(false, false, flags), "data is strict");
    }
    for flags in [O_WRONLY, O_RDWR, O_RDONLY | O_TRUNC] {
        for (known, push) in [(true, true), (true, false), (false, true), (false, false)] {
            assert!(must_ask(known, push, flags), "it is about to become a file of its own");
        }
    }
}

#[test]
fn what_is_left_of_a_mode() {
    assert_eq!(without_set_id(0o6777), 0o777);
    assert_eq!(without_set_id(0o4755), 0o755);
    // Without the right to execute it, the bit for the group means locks that are mandatory.
    assert_eq!(without_set_id(0o6767), 0o2767);
    assert_eq!(without_set_id(0o1644), 0o1644);
}

#[test]
fn opens_that_write() {
    assert!(!writes(libc::O_RDONLY));
    assert!(writes(libc::O_WRONLY));
    assert!(writes(libc::O_RDWR | libc::O_APPEND));
    assert!(writes(libc::O_RDONLY | libc::O_TRUNC));
}
