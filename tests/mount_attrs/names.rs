//! Special files, names, links, renames with flags.

use super::*;

#[test]
fn special_files_and_set_group_id_directories() {
    if !can_mount() || !root() {
        return;
    }
    let both = Both::new(&[]);
    let _ = both.same("special files", |place| {
        let kinds = [
            (FileType::Fifo, 0),
            (FileType::Socket, 0),
            (FileType::CharacterDevice, rustix::fs::makedev(1, 3)),
            (FileType::BlockDevice, rustix::fs::makedev(250, 70_000)),
        ];
        kinds.map(|(kind, device)| {
            let path = place.join(format!("{kind:?}"));
            mknodat(CWD, &path, kind, Mode::from_raw_mode(0o640), device).expect("mknod");
            let stat = fs::symlink_metadata(&path).expect("stat");
            (stat.mode(), stat.rdev(), stat.nlink(), stat.size())
        })
    });
    // The mount is nodev, as a mount that users write to should be.
    let null = both.mount.path().join("CharacterDevice");
    let refused = OpenOptions::new().read(true).open(null).expect_err("nodev");
    assert_eq!(refused.raw_os_error(), Some(libc::EACCES));
    // A fifo works between processes, a socket can be bound.
    let fifo = both.mount.path().join("fifo");
    mknodat(CWD, &fifo, FileType::Fifo, Mode::from_raw_mode(0o600), 0).expect("mkfifo");
    let reader = std::thread::spawn({
        let fifo = fifo.clone();
        move || fs::read(fifo).expect("read")
    });
    fs::write(&fifo, "through").expect("write");
    assert_eq!(reader.join().expect("reader"), b"through");
    let socket = std::os::unix::net::UnixListener::bind(both.mount.path().join("s")).expect("bind");
    assert!(fs::symlink_metadata(both.mount.path().join("s")).expect("stat").file_type().is_socket());
    drop(socket);

    let _ = both.same("set-group-id", |place| {
        let dir = place.join("dir");
        fs::create_dir(&dir).expect("mkdir");
        std::os::unix::fs::chown(&dir, None, Some(4321)).expect("chown");
        fs::set_permissions(&dir, PermissionsExt::from_mode(0o2777)).expect("chmod");
        fs::create_dir(dir.join("sub")).expect("mkdir");
        fs::create_dir(dir.join("sub/sub")).expect("mkdir");
        fs::write(dir.join("file"), "x").expect("write");
        std::os::unix::fs::symlink("x", dir.join("link")).expect("symlink");
        let by_other = "import os,sys; os.umask(0); p=sys.argv[1]; os.mkdir(p+'/theirs'); \
                        os.close(os.open(p+'/their-file', os.O_CREAT, 0o2775))";
        assert!(as_nobody(by_other, &dir));
        ["sub", "sub/sub", "file", "link", "theirs", "their-file"].map(|name| {
            let stat = fs::symlink_metadata(dir.join(name)).expect("stat");
            (name, stat.mode(), stat.uid(), stat.gid())
        })
    });
    let _ = both.same("sticky directories", |place| {
        let dir = place.join("sticky");
        fs::create_dir(&dir).expect("mkdir");
        fs::set_permissions(&dir, PermissionsExt::from_mode(0o1777)).expect("chmod");
        fs::write(dir.join("mine"), "x").expect("write");
        let remove = "import os,sys; os.remove(sys.argv[1]+'/mine')";
        let rename = "import os,sys; os.rename(sys.argv[1]+'/mine', sys.argv[1]+'/theirs')";
        let own = "import os,sys; open(sys.argv[1]+'/own','w'); os.remove(sys.argv[1]+'/own')";
        let did = [remove, rename, own].map(|script| as_nobody(script, &dir));
        (did, fs::metadata(&dir).expect("stat").mode())
    });
}

#[test]
fn names_links_and_renames_with_flags() {
    if !can_mount() {
        return;
    }
    let both = Both::new(&[]);
    let _ = both.same("long names", |place| {
        let name = |len: usize| place.join("ä".repeat(len / 2) + if len % 2 == 1 { "x" } else { "" });
        let errno = |r: std::io::Result<()>| r.err().and_then(|e| e.raw_os_error());
        fs::write(name(255), "long").expect("255 bytes");
        fs::rename(name(255), name(254)).expect("rename");
        fs::rename(name(254), name(255)).expect("rename");
        let listed = fs::read_dir(place).expect("list").any(|e| e.expect("entry").file_name().len() == 255);
        (
            listed,
            fs::read(name(255)).expect("read"),
            errno(File::create(name(256)).map(drop)),
            errno(fs::create_dir(name(256))),
            errno(std::os::unix::fs::symlink("x", name(256))),
            errno(fs::rename(name(255), name(256))),
            errno(fs::hard_link(name(255), name(257))),
            errno(fs::metadata(name(256)).map(drop)),
            errno(std::os::unix::fs::symlink("t".repeat(4096), place.join("too-long"))),
        )
    });
    let _ = both.same("renames", |place| {
        let dir = |name: &str| fs::create_dir(place.join(name)).expect("mkdir");
        let file = |name: &str| fs::write(place.join(name), name).expect("write");
        ["a", "a/sub", "b", "b/full", "b/full/x"].into_iter().for_each(dir);
        ["a/f", "b/g", "top"].into_iter().for_each(file);
        let mut outcomes = Vec::new();
        let mut rename = |from: &str, to: &str, flags| {
            outcomes
                .push((renameat_with(CWD, place.join(from), CWD, place.join(to), flags), from.to_owned()));
        };
        let (no, swap) = (RenameFlags::NOREPLACE, RenameFlags::EXCHANGE);
        rename("top", "a/f", no);
        rename("top", "a/new", no);
        rename("a/sub", "b/full", no);
        rename("a/sub", "b/sub", no);
        rename("a/f", "b/full", swap);
        rename("a", "b/sub", swap);
        rename("b/sub", "b/sub/deeper", RenameFlags::empty());
        rename("b", "b/sub/f", swap);
        rename("b/none", "b/g", swap);
        rename("b/g", "b/none", swap);
        rename("b/g", "b/g", no);
        rename("b/g", "b/g", swap);
        rename("b/g", "b/h", no | swap);
        let mut tree = Vec::new();
        walk(place, place, &mut tree);
        (outcomes, tree)
    });
    // 1,000 names of one inode here; how many there may be at most is tested without a kernel.
    let _ = both.same("links", |place| {
        let first = place.join("many");
        fs::create_dir(place.join("links")).expect("mkdir");
        fs::write(&first, "x").expect("write");
        for n in 1..1_000 {
            fs::hard_link(&first, place.join(format!("links/{n}"))).expect("link");
        }
        let before = fs::metadata(&first).expect("stat").nlink();
        fs::remove_dir_all(place.join("links")).expect("remove");
        (before, fs::metadata(&first).expect("stat").nlink())
    });
}

/// Every name below `dir` with its kind, its number of links and what it holds.
fn walk(top: &Path, dir: &Path, tree: &mut Vec<String>) {
    let mut entries: Vec<_> = fs::read_dir(dir).expect("list").map(|e| e.expect("entry").path()).collect();
    entries.sort();
    for path in entries {
        let stat = fs::symlink_metadata(&path).expect("stat");
        let name = path.strip_prefix(top).expect("below").display().to_string();
        if name.len() > 200 {
            continue;
        }
        let held = if stat.is_file() { fs::read_to_string(&path).expect("read") } else { String::new() };
        tree.push(format!("{name} {:o} {} {held}", stat.mode(), stat.nlink()));
        if stat.is_dir() {
            walk(top, &path, tree);
        }
    }
}

/// The kernel's way of making files without a name is not there: programs are told so, and make one and remove it.
#[test]
fn unnamed_temporary_files_are_refused_as_programs_expect() {
    if !can_mount() {
        return;
    }
    let home = Home::formatted(&[]);
    let mount = home.mount("mnt", &["--offline"]);
    let unnamed = OpenOptions::new().read(true).write(true).custom_flags(libc::O_TMPFILE).open(mount.path());
    assert_eq!(unnamed.expect_err("refused").raw_os_error(), Some(libc::EOPNOTSUPP));
    let script = "import sys,tempfile\nwith tempfile.TemporaryFile(dir=sys.argv[1]) as f:\n \
                  f.write(b'x'*9000); f.seek(0); assert len(f.read()) == 9000\n";
    let status = Command::new("python3").args(["-c", script]).arg(mount.path()).status();
    assert!(status.expect("python3").success());
    assert_eq!(fs::read_dir(mount.path()).expect("list").count(), 0);
}
