//! Extended attributes.

use super::*;

fn get(path: &Path, name: &str) -> Result<Vec<u8>, Errno> {
    let mut value = vec![0; 70_000];
    let len = lgetxattr(path, name, &mut value[..])?;
    value.truncate(len);
    Ok(value)
}

fn set(path: &Path, name: &str, value: &[u8]) -> Result<(), Errno> {
    lsetxattr(path, name, value, XattrFlags::empty())
}

fn list(path: &Path) -> Result<BTreeSet<String>, Errno> {
    let mut names = vec![0; 70_000];
    let len = llistxattr(path, &mut names[..])?;
    let own = names[..len].split(|b| *b == 0).filter(|n| !n.is_empty());
    // What a policy of the machine puts on every file is nobody's doing here.
    Ok(own.map(|n| String::from_utf8_lossy(n).into_owned()).filter(|n| !n.starts_with("security.")).collect())
}

#[test]
fn extended_attributes_are_as_on_a_plain_directory() {
    if !can_mount() {
        return;
    }
    let both = Both::new(&[]);
    for kind in ["file", "dir"] {
        let _ = both.same(&format!("attributes of a {kind}"), |place| {
            let path = place.join(kind);
            match kind {
                "file" => drop(File::create(&path).expect("create")),
                _ => fs::create_dir(&path).expect("mkdir"),
            }
            let mut outcomes = vec![
                get(&path, "user.a").map(|v| v.len()),
                set(&path, "user.a", b"1").map(|()| 0),
                set(&path, "user.empty", b"").map(|()| 0),
                get(&path, "user.a").map(|v| v.len()),
                get(&path, "user.empty").map(|v| v.len()),
                lsetxattr(&path, "user.a", b"22", XattrFlags::CREATE).map(|()| 0),
                lsetxattr(&path, "user.a", b"22", XattrFlags::REPLACE).map(|()| 0),
                lsetxattr(&path, "user.b", b"22", XattrFlags::REPLACE).map(|()| 0),
                lsetxattr(&path, "user.b", b"\0\xff\n", XattrFlags::CREATE).map(|()| 0),
                // Asking how long it is, and with too little room.
                lgetxattr(&path, "user.b", &mut [0u8; 0][..]),
                lgetxattr(&path, "user.b", &mut [0u8; 2][..]),
                llistxattr(&path, &mut [0u8; 3][..]),
                set(&path, "user.", b"x").map(|()| 0),
                set(&path, "no.such.space", b"x").map(|()| 0),
                set(&path, "user.large", &vec![0; 65_537]).map(|()| 0),
                set(&path, &format!("user.{}", "n".repeat(251)), b"x").map(|()| 0),
                set(&path, &format!("user.{}", "n".repeat(250)), b"x").map(|()| 0),
                lremovexattr(&path, "user.none").map(|()| 0),
                lremovexattr(&path, "user.empty").map(|()| 0),
                get(&path, "user.none").map(|v| v.len()),
                get(&path, "user.empty").map(|v| v.len()),
            ];
            if root() {
                outcomes.push(set(&path, "trusted.t", b"t").map(|()| 0));
                outcomes.push(get(&path, "trusted.t").map(|v| v.len()));
            }
            (outcomes, get(&path, "user.b"), list(&path))
        });
    }
    // User attributes are for files and directories only.
    let _ = both.same("attributes of others", |place| {
        std::os::unix::fs::symlink("file", place.join("link")).expect("symlink");
        mknodat(CWD, place.join("fifo"), FileType::Fifo, Mode::RUSR, 0).expect("mkfifo");
        let refused = ["link", "fifo"].map(|name| set(&place.join(name), "user.x", b"x"));
        let trusted = ["link", "fifo"].map(|name| root().then(|| set(&place.join(name), "trusted.x", b"x")));
        (refused, trusted, ["link", "fifo"].map(|name| list(&place.join(name))))
    });
    // They go with the inode, and their change is a change of it.
    let _ = both.same("attributes of a file that moves", |place| {
        let (file, link) = (place.join("file"), place.join("dir/link"));
        let ctime = |path: &Path| {
            let stat = fs::metadata(path).expect("stat");
            (stat.ctime(), stat.ctime_nsec())
        };
        fs::hard_link(&file, &link).expect("link");
        fs::rename(&file, place.join("moved")).expect("rename");
        let before = ctime(&link);
        std::thread::sleep(Duration::from_millis(20));
        set(&place.join("moved"), "user.new", b"n").expect("set");
        let moved = ctime(&link) > before;
        fs::write(place.join("moved"), vec![b'x'; 100_000]).expect("write");
        fs::remove_file(place.join("moved")).expect("unlink");
        (moved, list(&link), get(&link, "user.new"))
    });
    // Through an open file without a name.
    let _ = both
        .same("attributes of a file without a name", |place| {
            let path = place.join("temporary");
            let file =
                OpenOptions::new().create_new(true).read(true).write(true).open(&path).expect("create");
            fs::remove_file(&path).expect("unlink");
            rustix::fs::fsetxattr(&file, "user.x", b"x", XattrFlags::empty())?;
            let mut value = [0u8; 10];
            rustix::fs::fgetxattr(&file, "user.x", &mut value[..])
        })
        .expect("kept");
    // What takes its value whole: 64 KiB, as on the most generous of the local file systems.
    let path = both.mount.path().join("dir");
    set(&path, "user.large", &vec![7; 60_000]).expect("set");
    assert_eq!(get(&path, "user.large").expect("get"), vec![7; 60_000]);
    assert_eq!(set(&path, "user.larger", &vec![7; 6_000]), Err(Errno::NOSPC));
    if root() {
        assert_eq!(set(&path, "security.label", b"x"), Err(Errno::OPNOTSUPP));
        let _ = both.same("who sees and sets what", |place| {
            fs::set_permissions(place.join("dir"), PermissionsExt::from_mode(0o755)).expect("chmod");
            let see =
                "import os,sys; sys.exit(any(n.startswith('trusted.') for n in os.listxattr(sys.argv[1])))";
            let set = "import os,sys; os.setxattr(sys.argv[1], b'user.mine', b'')";
            let refused = as_nobody(set, &place.join("dir"));
            fs::create_dir(place.join("sticky")).expect("mkdir");
            fs::set_permissions(place.join("sticky"), PermissionsExt::from_mode(0o1777)).expect("chmod");
            (as_nobody(see, &place.join("dir")), refused, as_nobody(set, &place.join("sticky")))
        });
    }
}

#[test]
fn extended_attributes_follow_to_another_mount() {
    if !can_mount() {
        return;
    }
    let home = Home::formatted(&[]);
    let (one, two) = (home.mount("one", &["--offline"]), home.mount("two", &["--offline"]));
    let (here, there) = (one.path().join("f"), two.path().join("f"));
    for n in 0..20u8 {
        fs::write(&here, [n]).expect("write");
        set(&here, "user.n", &[n]).expect("set");
        let mut file = File::open(&there).expect("open");
        let mut byte = Vec::new();
        file.read_to_end(&mut byte).expect("read");
        let mut value = [0u8; 4];
        let len = rustix::fs::fgetxattr(&file, "user.n", &mut value[..]).expect("get");
        assert_eq!((&value[..len], &byte[..]), (&[n][..], &[n][..]));
    }
    // Python's and cp's way of copying them.
    fs::set_permissions(&here, PermissionsExt::from_mode(0o640)).expect("chmod");
    let status = Command::new("cp").arg("-a").arg(&there).arg(two.path().join("copy")).status();
    assert!(status.expect("cp").success());
    assert_eq!(get(&one.path().join("copy"), "user.n"), Ok(vec![19]));
}

/// The kernel asks for `security.capability` before every write: it must cost no more than the way to the daemon.
#[test]
fn small_writes_ask_the_metadata_nothing() {
    if !can_mount() {
        return;
    }
    let server = RedisServer::start_with(&[]);
    let mut home = Home::new();
    home.set_env("HFMOUNT_META", &server.url());
    home.run_ok(&["format"]);
    let mount = home.mount("mnt", &["--offline"]);
    let path: PathBuf = mount.path().join("f");
    let file = File::create(&path).expect("create");
    file.write_all_at(b"first", 0).expect("write");
    let calls = || server.calls("evalsha") + server.calls("hmget") + server.calls("hget");
    let before = calls();
    for n in 0..500 {
        file.write_all_at(b"again", n * 5).expect("write");
    }
    // Heartbeats and the like go on.
    assert!(calls() - before < 50, "{} requests for 500 writes", calls() - before);
    assert!(file.as_raw_fd() > 0);
}
