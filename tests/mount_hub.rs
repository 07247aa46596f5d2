//! A real mount over a stand-in Hub: what programs see of repositories that nobody downloaded, and what they do not have to
//! suffer when the Hub hangs.

#[path = "support/hub.rs"]
mod hub;
#[path = "support/mount.rs"]
mod mount;
#[path = "standin/mod.rs"]
mod standin;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hub::{World, snapshot};
use mount::{Home, can_mount, heeding_interrupts, text, wait_for};
use standin::model::put;
use standin::{StandIn, Target};

const BIG: usize = 9_000_000;
const CHUNK: u64 = 1 << 20;

fn world() -> World {
    World::new(BIG, |root, big| {
        for repo in ["one", "two"] {
            put(root, &format!("models/org/{repo}/main/config.json"), "{\"a\": 1}");
            put(root, &format!("models/org/{repo}/main/sub dir/größe #1.txt"), "odd names");
            put(root, &format!("models/org/{repo}/main/model.safetensors"), big);
        }
    })
}

#[test]
fn a_repository_is_there_when_it_is_asked_for() {
    if !can_mount() {
        return;
    }
    let world = world();
    let mount = world.home.mount("mnt", &[]);
    assert_eq!(fs::read_dir(mount.path()).expect("list").count(), 0, "nothing was asked for yet");
    assert_eq!(world.hub.counters().requests.values().sum::<u64>(), 0, "a listing asks nobody");
    let snapshot = snapshot(&mount, "one");
    assert_eq!(fs::read_to_string(snapshot.join("config.json")).expect("read"), "{\"a\": 1}");
    assert_eq!(fs::read_to_string(snapshot.join("sub dir/größe #1.txt")).expect("read"), "odd names");
    let big = snapshot.join("model.safetensors");
    assert_eq!(fs::metadata(&big).expect("stat").len(), BIG as u64);
    assert!(fs::symlink_metadata(&big).expect("stat").is_symlink());
    assert!(fs::read(&big).expect("read") == world.big);
    assert!(!snapshot.join("none.bin").exists());
    assert!(!mount.path().join("models--org--none").exists());
    // The same tree as a home of the libraries.
    assert!(mount.path().join("hub/models--org--one/refs/main").is_file());
    assert_eq!(mount.stop().code(), Some(0));
}

#[test]
fn what_was_read_once_needs_no_hub() {
    if !can_mount() {
        return;
    }
    let world = world();
    let mount = world.home.mount("mnt", &[]);
    let file = snapshot(&mount, "one").join("model.safetensors");
    assert!(fs::read(&file).expect("read") == world.big);
    assert_eq!(mount.stop().code(), Some(0));
    world.hub.faults(|f| f.refuse = true);
    world.hub.reset();
    let mount = world.home.mount("mnt", &["--offline"]);
    let file = snapshot(&mount, "one").join("model.safetensors");
    assert!(fs::read(&file).expect("read") == world.big);
    assert_eq!(world.hub.counters().connections, 0, "offline never calls out");
    assert!(!mount.path().join("models--org--two").exists());
}

#[test]
fn only_what_is_read_is_fetched() {
    if !can_mount() {
        return;
    }
    let world = world();
    let mount = world.home.mount("mnt", &[]);
    let path = snapshot(&mount, "one").join("model.safetensors");
    let file = File::open(&path).expect("open");
    let mut bytes = [0; 100];
    file.read_exact_at(&mut bytes, 5_000_000).expect("read");
    assert_eq!(bytes[..], world.big[5_000_000..5_000_100]);
    let fetched = world.hub.counters().bytes;
    assert!(fetched <= 4 * CHUNK, "{fetched} bytes for 100");
    let meta = file.metadata().expect("stat");
    assert!(meta.blocks() * 512 < BIG as u64, "st_blocks tells what is here: {}", meta.blocks());
}

/// Runs to its end in a second, whatever else hangs.
fn at_once(what: &str, program: &str, args: &[&str]) -> String {
    let begun = Instant::now();
    let output = Command::new("timeout").args(["10", program]).args(args).output().expect("runs");
    let took = begun.elapsed();
    assert!(output.status.success(), "{what}: {}", text(&output.stderr));
    assert!(took < Duration::from_millis(1500), "{what} took {took:?}");
    text(&output.stdout)
}

fn reader(path: &Path) -> Child {
    let mut command = heeding_interrupts("cat");
    command.arg(path).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("cat")
}

fn dies_at_once(mut child: Child, signal: i32) {
    std::thread::sleep(Duration::from_millis(700));
    assert!(child.try_wait().expect("wait").is_none(), "it waits for the Hub");
    let pid = i32::try_from(child.id()).expect("pid");
    let begun = Instant::now();
    // SAFETY: kill touches no memory; the child has not been waited for.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    wait_for("it ends", || child.try_wait().expect("wait").is_some());
    let status = child.wait().expect("wait");
    assert_eq!(status.signal(), Some(signal), "{status}");
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
}

#[test]
fn a_hub_that_hangs_holds_up_only_who_asked() {
    if !can_mount() {
        return;
    }
    let world = world();
    let mount = world.home.mount("mnt", &[]);
    let warm = snapshot(&mount, "one").join("config.json");
    assert_eq!(fs::read_to_string(&warm).expect("read"), "{\"a\": 1}");
    world.hub.faults(|f| f.hang = u32::MAX);

    // A repository that nobody knows yet, and bytes of one that is known.
    let unknown = reader(&mount.path().join("models--org--two/refs/main"));
    let cold = reader(&snapshot(&mount, "one").join("model.safetensors"));
    std::thread::sleep(Duration::from_millis(300));
    let root = mount.path().to_str().expect("UTF-8");
    for round in 0..3 {
        at_once("ls", "ls", &["-l", root]);
        at_once("mkdir", "mkdir", &[&format!("{root}/dir{round}")]);
        at_once("stat", "stat", &[&format!("{root}/dir{round}")]);
        assert_eq!(at_once("a warm file", "cat", &[warm.to_str().expect("UTF-8")]), "{\"a\": 1}");
    }
    dies_at_once(unknown, libc::SIGTERM);
    dies_at_once(cold, libc::SIGINT);
    dies_at_once(reader(&mount.path().join("models--org--two/refs/main")), libc::SIGKILL);
    dies_at_once(reader(&snapshot(&mount, "one").join("model.safetensors")), libc::SIGKILL);

    // And when the Hub is back, all is well.
    world.hub.faults(|f| f.hang = 0);
    assert!(world.hub.faults(|f| f.only = Target::Any).hang == 0);
    let begun = Instant::now();
    loop {
        match fs::read(snapshot(&mount, "one").join("model.safetensors")) {
            Ok(bytes) => break assert!(bytes == world.big),
            Err(e) => assert!(begun.elapsed() < Duration::from_secs(90), "{e}"),
        }
    }
    let begun = Instant::now();
    assert_eq!(mount.stop().code(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
}

const SUM_OF_PAGES: &str = "import mmap,sys\nf=open(sys.argv[1],'rb')\nm=mmap.mmap(f.fileno(),0,prot=mmap.PROT_READ)\n\
                            print(sum(m[i] for i in range(0,len(m),4096)))";

#[test]
fn mapped_files_are_filled_page_by_page() {
    if !can_mount() {
        return;
    }
    let world = world();
    let mount = world.home.mount("mnt", &[]);
    let path = snapshot(&mount, "one").join("model.safetensors");
    let output = Command::new("python3").args(["-c", SUM_OF_PAGES]).arg(&path).output().expect("python3");
    let expected: u64 = world.big.iter().step_by(4096).map(|b| u64::from(*b)).sum();
    assert_eq!(text(&output.stdout).trim(), expected.to_string(), "{}", text(&output.stderr));
    let path = snapshot(&mount, "two").join("model.safetensors");
    world.hub.faults(|f| f.hang = u32::MAX);
    // Another name for the same bytes: they are here already.
    let output = Command::new("python3").args(["-c", SUM_OF_PAGES]).arg(&path).output().expect("python3");
    assert_eq!(text(&output.stdout).trim(), expected.to_string(), "one content, however many names");
}

#[test]
fn who_waits_for_a_page_can_be_killed() {
    if !can_mount() {
        return;
    }
    let world = world();
    let mount = world.home.mount("mnt", &[]);
    let path = snapshot(&mount, "one").join("model.safetensors");
    world.hub.faults(|f| f.hang = u32::MAX);
    for signal in [libc::SIGKILL, libc::SIGTERM] {
        let mut command = Command::new("python3");
        command.args(["-c", SUM_OF_PAGES]).arg(&path).stdout(Stdio::null()).stderr(Stdio::null());
        dies_at_once(command.spawn().expect("python3"), signal);
    }
}

/// A model in shards of 20 chunks.
fn in_shards() -> (Home, StandIn) {
    let World { home, hub, .. } = World::new(0, |root, _| {
        let model = standin::model::Model { size: 60 * CHUNK, shards: 3, seed: 3 };
        standin::model::write(&root.join("models/org/one/main"), &model).expect("written");
    });
    (home, hub)
}

fn sent(hub: &StandIn, name: &str) -> u64 {
    hub.counters().paths.get(&format!("models/org/one/{name}")).map_or(0, |counts| counts.bytes)
}

#[test]
fn the_shards_that_an_index_names_follow_the_one_that_is_read() {
    if !can_mount() {
        return;
    }
    let (home, hub) = in_shards();
    let mount = home.mount("mnt", &[]);
    let folder = snapshot(&mount, "one");
    let names = [1, 2, 3].map(|n| format!("model-0000{n}-of-00003.safetensors"));
    let sizes = names.each_ref().map(|name| fs::metadata(folder.join(name)).expect("stat").len());

    // A header, and one in the middle of the next file: nothing follows.
    let mut bytes = vec![0; 4096];
    File::open(folder.join(&names[0])).expect("open").read_exact_at(&mut bytes, 0).expect("read");
    File::open(folder.join(&names[1])).expect("open").read_exact_at(&mut bytes, 9 * CHUNK).expect("read");
    std::thread::sleep(Duration::from_millis(300));
    assert!(sent(&hub, &names[0]) <= 2 * CHUNK, "a header: {}", sent(&hub, &names[0]));
    assert!(sent(&hub, &names[1]) <= 4 * CHUNK && sent(&hub, &names[2]) == 0);

    assert_eq!(fs::read(folder.join(&names[0])).expect("read").len() as u64, sizes[0]);
    wait_for("the others come by themselves", || (1..3).all(|n| sent(&hub, &names[n]) == sizes[n]));
    let root = home.dir("hub/models/org/one/main");
    for name in &names {
        assert!(fs::read(folder.join(name)).expect("read") == fs::read(root.join(name)).expect("read"));
    }
    assert_eq!([0, 1, 2].map(|n| sent(&hub, &names[n])), sizes, "each byte once");
    assert_eq!(mount.stop().code(), Some(0));
}

#[test]
fn nothing_follows_where_the_hub_is_not_asked_for_bytes() {
    if !can_mount() {
        return;
    }
    let (home, hub) = in_shards();
    let first = "model-00001-of-00003.safetensors";
    let mount = home.mount("mnt", &[]);
    let size = fs::metadata(snapshot(&mount, "one").join(first)).expect("stat").len();
    assert_eq!(mount.stop().code(), Some(0));
    // The bucket has none of it, a mirror does.
    let mount = home.mount("mnt", &["--hub", "deny", "--mirror", hub.endpoint()]);
    assert_eq!(fs::read(snapshot(&mount, "one").join(first)).expect("read").len() as u64, size);
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(sent(&hub, "model-00002-of-00003.safetensors"), 0);
    assert_eq!(mount.stop().code(), Some(0));
}
