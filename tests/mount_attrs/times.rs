//! Times, and what moves them.

use super::*;

/// stat, with all that a time consists of.
fn times(path: &Path) -> [(i64, i64); 2] {
    let stat = fs::symlink_metadata(path).expect("stat");
    [(stat.atime(), stat.atime_nsec()), (stat.mtime(), stat.mtime_nsec())]
}

fn set_times(path: &Path, atime: (i64, i64), mtime: (i64, i64)) {
    let spec = |(tv_sec, tv_nsec)| rustix::fs::Timespec { tv_sec, tv_nsec };
    let times = rustix::fs::Timestamps { last_access: spec(atime), last_modification: spec(mtime) };
    rustix::fs::utimensat(CWD, path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).expect("utimensat");
}

#[test]
fn times_are_kept_to_the_nanosecond() {
    if !can_mount() {
        return;
    }
    let both = Both::new(&[]);
    let cases = [
        ((0, 0), (0, 1)),
        ((1_700_000_000, 123_456_789), (1_700_000_000, 999_999_999)),
        // Before 1970: the seconds are negative, the nanoseconds go forward from there.
        ((-1, 750_000_001), (-1_000_000_000, 1)),
        ((-1, 0), (-2, 999_999_999)),
        // Beyond what 32 bits hold.
        ((1 << 31, 5), ((1 << 32) + 7, 999_999_999)),
        ((1 << 33, 1), (8_000_000_000, 2)),
    ];
    let _ = both.same("times", |place| {
        let mut seen = Vec::new();
        for (n, (atime, mtime)) in cases.into_iter().enumerate() {
            let (file, dir) = (place.join(format!("f{n}")), place.join(format!("d{n}")));
            fs::write(&file, "x").expect("write");
            fs::create_dir(&dir).expect("mkdir");
            for path in [&file, &dir] {
                set_times(path, atime, mtime);
                seen.push(times(path));
                assert_eq!(times(path), [atime, mtime], "{}", path.display());
            }
        }
        seen
    });
    // What no 64 bits of nanoseconds hold becomes the nearest that they do.
    let path = both.mount.path().join("f0");
    set_times(&path, (1 << 40, 0), (-(1 << 40), 0));
    assert_eq!(times(&path), [(9_223_372_036, 854_775_807), (-9_223_372_037, 145_224_192)]);
    // They come back after a remount.
    let Both { home, mount } = both;
    assert_eq!(mount.stop().code(), Some(0));
    let mount = home.mount("mnt", &["--offline"]);
    for (n, (atime, mtime)) in cases.into_iter().enumerate().skip(1) {
        assert_eq!(times(&mount.path().join(format!("f{n}"))), [atime, mtime]);
    }
}

fn atime(path: &Path) -> SystemTime {
    fs::symlink_metadata(path).expect("stat").accessed().expect("atime")
}

#[test]
fn reading_moves_atime_only_where_it_is_wanted() {
    if !can_mount() {
        return;
    }
    let home = Home::formatted(&[]);
    let (on, off) =
        (home.mount("on", &["--offline", "--atime", "relatime"]), home.mount("off", &["--offline"]));
    let read_only = home.mount("ro", &["--offline", "--atime", "relatime", "--read-only"]);
    let week_ago = {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("clock").as_secs();
        (i64::try_from(now).expect("seconds") - 7 * 24 * 3600, 123)
    };
    let names = ["file", "dir", "link"];
    let at = |mount: &Mount, name: &str| mount.path().join(name);
    fs::write(at(&on, "file"), vec![b'x'; 300_000]).expect("write");
    fs::create_dir(at(&on, "dir")).expect("mkdir");
    std::os::unix::fs::symlink("file", at(&on, "link")).expect("symlink");
    let read = |mount: &Mount| {
        assert_eq!(fs::read(at(mount, "file")).expect("read").len(), 300_000);
        assert_eq!(fs::read_dir(at(mount, "dir")).expect("list").count(), 0);
        assert_eq!(fs::read_link(at(mount, "link")).expect("readlink"), Path::new("file"));
    };
    for name in names {
        set_times(&at(&on, name), week_ago, (1_000_000_000, 0));
        assert_eq!(times(&at(&on, name)), [week_ago, (1_000_000_000, 0)]);
    }
    let old = atime(&at(&on, "file"));
    for mount in [&off, &read_only] {
        read(mount);
        assert_eq!(atime(&at(mount, "file")), old);
    }
    let before = SystemTime::now();
    read(&on);
    for name in names {
        assert!(atime(&at(&on, name)) >= before, "{name} at once");
    }
    let seen = atime(&at(&on, "file"));
    read(&on);
    assert_eq!(atime(&at(&on, "file")), seen, "it is younger than a day");
    // Elsewhere soon; nobody's data or other times moved.
    wait_for("the other mounts see it", || names.iter().all(|name| atime(&at(&off, name)) >= before));
    assert_eq!(times(&at(&off, "file"))[1], (1_000_000_000, 0));
    // Written through one handle, read through another whose pages the kernel kept.
    OpenOptions::new().append(true).open(at(&on, "file")).expect("open").write_all(b"y").expect("write");
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(fs::read(at(&on, "file")).expect("read").len(), 300_001);
    let stat = fs::metadata(at(&on, "file")).expect("stat");
    assert!(stat.accessed().expect("atime") > stat.modified().expect("mtime"));
    // What was noted last is recorded at the end.
    let last = stat.accessed().expect("atime");
    assert_eq!(on.stop().code(), Some(0));
    wait_for("the last read is recorded", || atime(&at(&off, "file")) == last);
}
