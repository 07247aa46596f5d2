//! `hfmount info`: where a file is.

use super::*;

#[test]
fn where_a_file_of_a_user_is() {
    if !can_mount() {
        return;
    }
    let world = World::local();
    let mount = world.mount("mnt");
    let file = mount.path().join("file");
    fs::write(&file, random_bytes(1, CHUNK + 10)).expect("write");
    std::os::unix::fs::symlink("file", mount.path().join("link")).expect("symlink");
    let info = |args: &[&str]| world.json(&[&["info", "--json"], args].concat());

    let told = info(&[path(&file)]);
    assert_eq!((&told["path"], &told["size"]), (&"/file".into(), &(CHUNK as u64 + 10).into()), "{told}");
    assert_eq!(told["inode"], fs::metadata(&file).expect("stat").ino());
    assert_eq!(told["chunks"].as_array().map(Vec::len), Some(2));
    assert_eq!(told["chunks"][1]["where"], serde_json::json!(["cache", "storage"]), "{told}");
    let object = told["chunks"][1]["extents"][0]["object"].as_str().expect("a name");
    assert_eq!(fs::metadata(world.objects.join(object)).expect("it lies there").len(), 10);

    for same in [path(&mount.path().join("link")), "volume:/file", "volume:link"] {
        assert_eq!(info(&[same])["chunks"], told["chunks"], "{same}");
    }
    let link = info(&["--no-follow", path(&mount.path().join("link"))]);
    assert_eq!((&link["kind"], &link["target"]), (&"symlink".into(), &"file".into()), "{link}");
    let number = format!("inode:{}", told["inode"]);
    assert_eq!(info(&[&number])["path"], "/file");
    fs::remove_file(world.objects.join(object)).expect("unlink");
    assert_eq!(info(&["--check", "volume:/file"])["chunks"][1]["where"], serde_json::json!(["cache"]));
    let text = world.home.run_ok(&["info", "--chunks", path(&file)]);
    assert!(text.contains("on this machine  2 of 2 chunks") && text.contains(object), "{text}");

    for (wrong, why) in [("/", "on no hfmount mount"), ("volume:/none", "none"), ("inode:x", "a number")] {
        let output = world.home.run(&["info", wrong]);
        let err = mount::text(&output.stderr);
        assert!(output.status.code() == Some(1) && err.contains(why), "{wrong}: {err}");
    }
}

#[test]
fn where_a_file_of_the_hub_is() {
    if !can_mount() {
        return;
    }
    let always = ["--store-hub-blobs", "always"];
    let hub::World { home, hub: _hub, .. } =
        hub::World::in_home(Home::new(), &always, 3 * CHUNK, |root, big| {
            put(root, "models/org/m/main/model.bin", big);
        });
    let objects = home.path().join("hfmount/storage/default");
    let world = World { home, objects, _servers: None };
    let mount = world.home.mount("mnt", &[]);
    let repo = mount.path().join("models--org--m");
    let file = hub::snapshot(&mount, "m").join("model.bin");
    fs::metadata(&file).expect("stat");
    let told = || world.json(&["info", "--json", path(&file)]);
    assert_eq!(told()["chunks"][2]["where"], serde_json::json!(["hub"]), "{}", told());
    assert!(told()["blob"]["origins"][0].as_str().is_some_and(|o| o.ends_with("/model.bin")), "{}", told());

    assert_eq!(fs::read(&file).expect("read").len(), 3 * CHUNK);
    let all = serde_json::json!(["cache", "storage"]);
    let at_both = |chunk: &Value| chunk["where"] == all;
    wait_for("uploads", || told()["chunks"].as_array().expect("chunks").iter().all(at_both));
    wait_for("verification", || told()["blob"]["verified"] == true);
    let text = world.home.run_ok(&["info", path(&file)]);
    assert!(text.contains("in the storage") && text.contains("3 of 3 chunks"), "{text}");
    world.is_clean();

    // Lost in the storage: it comes from the Hub again.
    let name = fs::canonicalize(&file).expect("a blob");
    let etag = name.file_name().and_then(|n| n.to_str()).expect("an id").to_owned();
    let blobs = world.objects.join("blobs").join(&etag[..2]).join(&etag);
    let lost = fs::read_dir(&blobs).expect("chunks").next().expect("one").expect("one").path();
    fs::remove_file(lost).expect("unlink");
    let (code, found) = world.fsck(&[]);
    assert_eq!((code, found.len()), (Some(1), 1), "{found:?}");
    let (code, found) = world.fsck(&["--repair"]);
    assert!(code == Some(0) && found[0]["repaired"] == true, "{found:?}");
    world.is_clean();
    let cold = world.home.path().join("cold");
    let other = world.home.mount("other", &["--cache-dir", path(&cold)]);
    let inside = file.strip_prefix(mount.path()).expect("within");
    assert!(fs::read(other.path().join(inside)).expect("read") == fs::read(&file).expect("read"));

    // Deleted everywhere: an hour later it goes. It was introduced just now.
    fs::remove_dir_all(&repo).expect("rm -r");
    let report = world.gc(&["--delete"]);
    assert_eq!(report["garbage"]["blobs"], 0, "{report}");
    world.is_clean();
}
