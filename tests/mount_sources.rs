//! Real mounts with other places than the Hub to get bytes from: seeds, mirrors; where the bytes came from is told, the end
//! of what is wrong is held back, and figures move.

#[path = "support/figures.rs"]
mod figures;
#[path = "support/hub.rs"]
mod hub;
#[path = "support/mount.rs"]
mod mount;
#[path = "standin/mod.rs"]
mod standin;

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mount::{Home, Mount, can_mount, wait_for};
use sha2::{Digest, Sha256};
use standin::model::{put, random_bytes};
use standin::{Options, StandIn};

const BIG: usize = 9_000_000;
const CHUNKS: u64 = 9;

struct World {
    home: Home,
    hub: StandIn,
    mirror: StandIn,
    big: Vec<u8>,
}

fn world() -> World {
    let hub::World { home, hub, big } = hub::World::new(BIG, |root, big| {
        put(root, "models/org/one/main/config.json", "{\"a\": 1}");
        put(root, "models/org/one/main/model.safetensors", big);
    });
    let mirror = StandIn::start(home.path().join("hub"), Options::default()).expect("free ports");
    World { home, hub, mirror, big }
}

fn model(mount: &Mount) -> PathBuf {
    hub::snapshot(mount, "one").join("model.safetensors")
}

/// What `user.hfmount.source` says.
fn source(path: &Path) -> serde_json::Value {
    let path = CString::new(path.to_str().expect("UTF-8")).expect("no zero");
    let mut value = vec![0_u8; 4096];
    // SAFETY: both strings end with a zero, and the buffer is as long as is said.
    let n = unsafe {
        libc::getxattr(path.as_ptr(), c"user.hfmount.source".as_ptr(), value.as_mut_ptr().cast(), value.len())
    };
    assert!(n > 0, "{}", std::io::Error::last_os_error());
    value.truncate(n as usize);
    serde_json::from_slice(&value).expect("JSON")
}

/// A cache as the libraries make it, with the given content under the name of the model.
fn cache(dir: &Path, name_of: &[u8], content: &[u8]) {
    let blobs = dir.join("models--someone--else/blobs");
    fs::create_dir_all(&blobs).expect("mkdir");
    fs::write(blobs.join(hex::encode(Sha256::digest(name_of))), content).expect("write");
}

#[test]
fn what_lies_on_a_seed_is_not_downloaded() {
    if !can_mount() {
        return;
    }
    let w = world();
    // The folder that the mount hides.
    let point = w.home.dir("mnt");
    cache(&point.join("hub"), &w.big, &w.big);
    let seed = point.to_str().expect("UTF-8").to_owned();
    let mount = w.home.mount("mnt", &["--seed", &seed]);
    let file = model(&mount);
    assert_eq!(source(&file)["missing"]["chunks"], CHUNKS);
    assert!(fs::read(&file).expect("read") == w.big);
    let counts = w.hub.counters();
    assert_eq!(
        (counts.bytes, counts.of("resolve_get"), counts.of("cdn_get")),
        (0, 0, 0),
        "nothing was downloaded"
    );
    let told = source(&file);
    assert_eq!(told["from"], serde_json::json!({"seed": {"chunks": CHUNKS, "bytes": BIG}}), "{told}");
    assert_eq!((&told["missing"]["bytes"], &told["all"]["bytes"]), (&0.into(), &BIG.into()));
    wait_for("the line in the log", || mount.log().contains("9 chunks from seeds"));
    assert_eq!(mount.log().matches("complete:").count(), 1, "{}", mount.log());
    assert_eq!(mount.stop().code(), Some(0));
    assert!(point.join("hub/models--someone--else").is_dir(), "it is as it was");
}

#[test]
fn a_seed_with_other_bytes_is_found_out() {
    if !can_mount() {
        return;
    }
    let w = world();
    let seed = w.home.dir("seed");
    let mut wrong = w.big.clone();
    wrong[5_000_000] ^= 1;
    cache(&seed, &w.big, &wrong);
    let mount = w.home.mount("mnt", &["--strict", "--seed", seed.to_str().expect("UTF-8")]);
    let file = model(&mount);
    let e = fs::read(&file).expect_err("its end is not shown");
    assert_eq!(e.raw_os_error(), Some(libc::EIO));
    assert!(fs::read(&file).expect("who opens it again gets it from the Hub") == w.big);
    assert_eq!(source(&file)["from"]["hub"]["chunks"], CHUNKS);
    assert!(mount.log().contains("the seed has other bytes"), "{}", mount.log());
}

#[test]
fn a_mirror_is_asked_before_the_hub_and_the_hub_without_it() {
    if !can_mount() {
        return;
    }
    let w = world();
    let mount = w.home.mount("mnt", &["--mirror", w.mirror.endpoint()]);
    let file = model(&mount);
    let half = File::open(&file).expect("open");
    let mut buf = vec![0; 3_000_000];
    half.read_exact_at(&mut buf, 0).expect("read");
    assert!(buf == w.big[..buf.len()]);
    assert_eq!(w.hub.counters().bytes, 0, "the mirror has it");
    let counts = w.mirror.counters();
    assert!(
        counts.bytes > 0 && counts.of("revision") + counts.of("tree") + counts.of("info") == 0,
        "bytes alone"
    );
    // It goes down while the rest is read.
    w.mirror.faults(|f| f.refuse = true);
    assert!(fs::read(&file).expect("read") == w.big);
    let told = source(&file);
    assert!(told["from"]["mirror"]["chunks"].as_u64() >= Some(3), "{told}");
    assert_eq!(told["missing"]["chunks"], 0);
}

#[test]
fn offline_asks_no_mirror() {
    if !can_mount() {
        return;
    }
    let w = world();
    let first = w.home.mount("mnt", &[]);
    let name = model(&first).strip_prefix(first.path()).expect("below").to_owned();
    assert_eq!(first.stop().code(), Some(0));
    let mount = w.home.mount("mnt", &["--offline", "--io-timeout", "2s", "--mirror", w.mirror.endpoint()]);
    assert!(fs::read(mount.path().join(name)).is_err(), "nobody has it");
    assert_eq!(w.mirror.counters().total(), 0);
}

#[test]
fn with_strict_nobody_reads_wrong_bytes_to_their_end() {
    if !can_mount() {
        return;
    }
    let w = world();
    let mount = w.home.mount("mnt", &["--strict", "--io-timeout", "60s"]);
    let file = model(&mount);
    w.hub.faults(|f| f.wrong = 1_000_000);
    let open = File::open(&file).expect("open");
    let mut one = [0];
    open.read_exact_at(&mut one, 0).expect("what comes first is shown as it comes");
    for _ in 0..2 {
        let e = open.read_exact_at(&mut one, BIG as u64 - 1).expect_err("the end is not");
        assert_eq!(e.raw_os_error(), Some(libc::EIO));
        let e = fs::read(&file).expect_err("nor for others");
        assert_eq!(e.raw_os_error(), Some(libc::EIO));
    }
    w.hub.faults(|f| f.wrong = 0);
    let good = || fs::read(&file).is_ok_and(|bytes| bytes == w.big);
    wait_for("the Hub's bytes are right again", good);
}

#[test]
fn with_strict_the_end_alone_may_be_read() {
    if !can_mount() {
        return;
    }
    let w = world();
    let mount = w.home.mount("mnt", &["--strict"]);
    let open = File::open(model(&mount)).expect("open");
    let mut end = [0; 100];
    open.read_exact_at(&mut end, BIG as u64 - 100).expect("after all of it has come");
    assert_eq!(end, w.big[BIG - 100..]);
    assert_eq!(source(&model(&mount))["verified"], true);
}

#[test]
fn info_tells_where_chunks_came_from() {
    if !can_mount() {
        return;
    }
    let w = world();
    let mount = w.home.mount("mnt", &[]);
    let file = model(&mount);
    let mut head = [0; 10];
    File::open(&file).expect("open").read_exact(&mut head).expect("read");
    let path = file.to_str().expect("UTF-8");
    let info: serde_json::Value =
        serde_json::from_str(&w.home.run_ok(&["info", "--json", path])).expect("JSON");
    let (here, missing) = (&info["blob"]["from"]["hub"], &info["blob"]["missing"]);
    assert!(here["chunks"].as_u64() >= Some(1), "{info}");
    let sum = |what: &str| here[what].as_u64().expect("n") + missing[what].as_u64().expect("n");
    assert_eq!((sum("chunks"), sum("bytes")), (CHUNKS, BIG as u64));
    assert_eq!(info["chunks"][0]["from"], "hub");
    let text = w.home.run_ok(&["info", path]);
    assert!(text.contains("came from") && text.contains("hub: "), "{text}");
    // Of other files there is nothing to tell.
    let own = mount.path().join("own.txt");
    fs::write(&own, "x").expect("write");
    let name = CString::new(own.to_str().expect("UTF-8")).expect("no zero");
    // SAFETY: both strings end with a zero, and no buffer is given.
    let n =
        unsafe { libc::getxattr(name.as_ptr(), c"user.hfmount.source".as_ptr(), std::ptr::null_mut(), 0) };
    assert_eq!((n, std::io::Error::last_os_error().raw_os_error()), (-1, Some(libc::ENODATA)));
}

/// The figures at an address, by name and labels.
fn scrape(address: &str) -> BTreeMap<String, f64> {
    let page = figures::page(address);
    let (mut figures, mut family, mut seen) = (BTreeMap::new(), String::new(), Vec::new());
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a kind");
            assert!(!seen.contains(&name.to_owned()), "{name} twice");
            assert!(matches!(kind, "counter" | "gauge" | "histogram"), "{line}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            seen.push(name.to_owned());
            family = name.to_owned();
        } else if let Some(rest) = line.strip_prefix("# HELP ") {
            assert!(rest.contains(' '), "{line}");
        } else {
            let (name, value) = line.rsplit_once(' ').expect("a value");
            let bare = name.split('{').next().expect("a name");
            assert!(bare.starts_with(&family), "{line} under {family}");
            assert_eq!(name.contains('{'), name.ends_with('}'), "{line}");
            assert!(
                figures.insert(name.to_owned(), value.parse().expect("a number")).is_none(),
                "{line} twice"
            );
        }
    }
    figures
}

#[test]
fn figures_move_when_something_is_read() {
    if !can_mount() {
        return;
    }
    let w = world();
    let port = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound");
    let address = port.to_string();
    let mount = w.home.mount("mnt", &["--metrics", &address, "--mirror", w.mirror.endpoint()]);
    let before = scrape(&address);
    let of = |figures: &BTreeMap<String, f64>, name: &str| {
        *figures.get(name).unwrap_or_else(|| panic!("no {name} in {figures:#?}"))
    };
    assert_eq!(of(&before, "hfmount_source_bytes_total{source=\"mirror\"}"), 0.0);
    assert!(fs::read(model(&mount)).expect("read") == w.big);
    assert!(fs::remove_dir(mount.path().join("models--org--one")).is_err(), "it is not empty");
    fs::write(mount.path().join("own.bin"), random_bytes(1, 300_000)).expect("write");
    let after = scrape(&address);
    assert!(of(&after, "hfmount_source_bytes_total{source=\"mirror\"}") >= BIG as f64);
    assert_eq!(of(&after, "hfmount_source_bytes_total{source=\"hub\"}"), 0.0);
    assert!(of(&after, "hfmount_source_seconds_total{source=\"mirror\"}") > 0.0);
    assert_eq!(of(&after, "hfmount_chunks_filled_total"), CHUNKS as f64);
    assert_eq!(of(&after, "hfmount_chunks_wrong_total"), 0.0);
    assert!(of(&after, "hfmount_cache_bytes") >= BIG as f64);
    assert_eq!(of(&after, &format!("hfmount_mirror_up{{mirror=\"{}\"}}", w.mirror.endpoint())), 1.0);
    assert!(of(&after, "hfmount_fuse_request_seconds_count{op=\"read\"}") > 0.0);
    assert!(of(&after, "hfmount_fuse_request_seconds_sum{op=\"read\"}") > 0.0);
    assert!(of(&after, "hfmount_fuse_errors_total{op=\"rmdir\"}") >= 1.0);
    assert!(
        of(&after, "hfmount_meta_operation_seconds_count{op=\"commit\"}")
            > of(&before, "hfmount_meta_operation_seconds_count{op=\"commit\"}")
    );
    assert!(of(&after, "hfmount_object_requests_total{op=\"put\"}") >= 1.0);
    assert!(of(&after, "hfmount_object_bytes_total{direction=\"up\"}") >= 300_000.0);
    assert!(of(&after, "hfmount_object_request_seconds_count{op=\"put\"}") >= 1.0);
    assert!(of(&after, "process_resident_memory_bytes") > 1e6);
    for (name, value) in &before {
        let grows = name.contains("_total") || name.contains("_count") || name.contains("_bucket");
        assert!(!grows || of(&after, name) >= *value, "{name} went down");
    }
    // Who asks slowly, or nonsense, keeps nobody.
    let mut slow = TcpStream::connect(&address).expect("connects");
    slow.write_all(b"GET /met").expect("sent");
    let begun = Instant::now();
    scrape(&address);
    assert!(begun.elapsed() < Duration::from_secs(5));
    let taken = w.home.dir("other");
    let said = w.home.run(&["mount", taken.to_str().expect("UTF-8"), "--metrics", &address]);
    assert!(!said.status.success() && mount::text(&said.stderr).contains("--metrics"), "{said:?}");
}
