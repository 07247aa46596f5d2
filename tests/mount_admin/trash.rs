//! What is in the trash, for `gc`, `fsck`, `dump` and `restore`.

use super::*;

fn what_can_be_restored_is_needed(world: &World) {
    let mount = world.mount("mnt");
    let (a, b) = (random_bytes(1, 2 * CHUNK + 5), random_bytes(2, 300_000));
    fs::create_dir(mount.path().join("dir")).expect("mkdir");
    fs::write(mount.path().join("dir/a"), &a).expect("write");
    fs::write(mount.path().join("b"), &b).expect("write");
    let objects = world.chunks();
    assert_eq!(objects.len(), 4);
    fs::remove_dir_all(mount.path().join("dir")).expect("rm -r");
    fs::remove_file(mount.path().join("b")).expect("rm");
    assert_eq!(fs::read_dir(mount.path()).expect("a list").count(), 0);
    // It counts for nothing, has no name, and is needed.
    world.is_clean();
    assert_eq!(mount.stop().code(), Some(0));
    let report = world.gc(&["--delete"]);
    assert_eq!(
        (&report["garbage"]["total"]["objects"], &report["failed"]),
        (&0.into(), &0.into()),
        "{report}"
    );
    assert_eq!(world.chunks(), objects);
    world.is_clean();

    let dump = world.home.path().join("volume.jsonl");
    world.home.run_ok(&["dump", path(&dump)]);
    let other = world.home.path().join("other.db");
    let other = path(&other);
    world.home.run_ok(&["load", "--meta", other, path(&dump)]);
    assert_eq!(world.fsck(&["--deep", "--meta", other]), (Some(0), Vec::new()), "of the copy");

    let cold = cold_mount(world, "cold", &[]);
    world.home.run_ok(&["restore", "--all", path(cold.path())]);
    let restored = || fs::read(cold.path().join("dir/a")).is_ok_and(|bytes| bytes == a);
    wait_for("the mount to hear of it", restored);
    assert!(fs::read(cold.path().join("b")).expect("read") == b);
    world.is_clean();
    assert_eq!(world.gc(&["--delete"])["garbage"]["total"]["objects"], 0);
    assert_eq!(world.chunks(), objects);
}

#[test]
fn what_can_be_restored_is_needed_in_a_folder() {
    if can_mount() {
        what_can_be_restored_is_needed(&World::local());
    }
}

#[test]
fn what_can_be_restored_is_needed_on_a_server() {
    if can_mount() {
        what_can_be_restored_is_needed(&World::servers());
    }
}
