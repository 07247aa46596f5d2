use super::*;

fn world() -> (tempfile::TempDir, Private, Caller, Caller) {
    let dir = tempfile::tempdir().expect("temp dir");
    let private = Private::open(dir.path().join("private")).expect("open");
    (dir, private, Caller { uid: 1001, gid: 1001, pid: 1 }, Caller { uid: 1002, gid: 1002, pid: 2 })
}

#[test]
fn names_that_belong_to_the_caller() {
    for yes in ["token", "stored_tokens", "stored_tokens.1f.tmp", "xet", ".check_for_update_done", ".netrc"] {
        assert!(is_private(yes.as_bytes()), "{yes}");
    }
    for no in ["tokens", "tokenizer.json", ".locks", "models--a--b", "hub", "xets", "CACHEDIR.TAG"] {
        assert!(!is_private(no.as_bytes()), "{no}");
    }
}

#[test]
fn each_user_sees_only_their_own() {
    let (_dir, private, a, b) = world();
    let (made, file) = private.create(&a, Ino::ROOT, b"token", 0o600, libc::O_WRONLY).expect("create");
    file.write_all_at(b"hf_a", 0).expect("write");
    assert_eq!(made.mode, 0o600);
    assert_eq!(private.lookup(&b, Ino::ROOT, b"token").expect("lookup"), None);
    let other = private.create(&b, Ino::ROOT, b"token", 0o600, libc::O_WRONLY).expect("create").0;
    assert_ne!(made.ino, other.ino);
    let mine = private.lookup(&a, Ino::ROOT, b"token").expect("lookup").expect("mine");
    assert_eq!((mine.ino, mine.size), (made.ino, 4));
    private.unlink(&a, Ino::ROOT, b"token", false).expect("unlink");
    assert_eq!(private.lookup(&a, Ino::ROOT, b"token").expect("lookup"), None);
    assert!(private.lookup(&b, Ino::ROOT, b"token").expect("lookup").is_some());
}

#[test]
fn directories_follow_a_rename() {
    let (_dir, private, a, _) = world();
    let dir = private.mkdir(&a, Ino::ROOT, b"xet", 0o755).expect("mkdir");
    let file = private.create(&a, dir.ino, b"log", 0o644, libc::O_RDWR).expect("create").0;
    private.rename(&a, (dir.ino, b"log"), (dir.ino, b"log.1"), 0).expect("rename");
    assert_eq!(private.getattr(file.ino, None).expect("same inode").ino, file.ino);
    assert!(private.rename(&a, (dir.ino, b"log"), (dir.ino, b"x"), 0).is_err());
    let listed = private.readdir(dir.ino, 0, true).expect("readdir");
    assert_eq!(listed.len(), 1);
    assert_eq!(
        (&listed[0].name[..], listed[0].entry.expect("attributes").stat.ino),
        (&b"log.1"[..], file.ino)
    );
    let plain = private.readdir(dir.ino, 0, false).expect("readdir");
    assert_eq!((plain[0].ino, plain[0].entry), (file.ino, None));
}

#[test]
fn forgotten_inodes_leave_the_table() {
    let (_dir, private, a, _) = world();
    let file = private.create(&a, Ino::ROOT, b"token", 0o600, libc::O_WRONLY).expect("create").0;
    private.lookup(&a, Ino::ROOT, b"token").expect("lookup");
    private.forget(file.ino, 2);
    assert!(private.nodes.lock().expect("lock").by_ino.is_empty());
    assert!(private.nodes.lock().expect("lock").by_path.is_empty());
}

#[test]
fn tokens_of_the_hidden_folder_are_taken_once() {
    let (_dir, private, a, _) = world();
    private.adopt(a.uid, a.gid, &[("token", b"hf_old".to_vec())]).expect("adopt");
    assert_eq!(private.lookup(&a, Ino::ROOT, b"token").expect("lookup").expect("there").size, 6);
    private.unlink(&a, Ino::ROOT, b"token", false).expect("logout");
    private.adopt(a.uid, a.gid, &[("token", b"hf_old".to_vec())]).expect("adopt");
    assert_eq!(private.lookup(&a, Ino::ROOT, b"token").expect("lookup"), None);
}
