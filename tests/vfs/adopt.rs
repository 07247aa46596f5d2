//! Files that clients download through the mount become blobs, and go on being files.

use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hfmount::admin::fsck::{FsckOptions, fsck};
use hfmount::admin::gc::{GcOptions, GcReport, gc};
use hfmount::admin::{Place, info};
use hfmount::chunk::cache::ContentKey;
use hfmount::chunk::digest::Digest;
use hfmount::meta::memory::MemoryKv;
use hfmount::meta::survey::Survey;
use hfmount::meta::{Content, RenameMode, dump, write_settings};
use hfmount::source::bucket::Object;
use hfmount::types::{BlobId, Ino, Timestamp};
use hfmount::vfs::SetAttr;

use crate::node::{CHUNK, Cluster, Node, ROOT, Settings};
use crate::standin::model::{put, random_bytes};

const REPO: &str = "models--org--mine";
const BIG: usize = 3_500_000;
const LATER: Timestamp = Timestamp(i64::MAX);

fn sha(data: &[u8]) -> BlobId {
    Digest::of(&BlobId::Sha256([0; 32]), data)
}

fn git(data: &[u8]) -> BlobId {
    Digest::of(&BlobId::Git([0; 20]), data)
}

fn place_of(blob: BlobId) -> String {
    format!("{REPO}/blobs/{}", blob.etag())
}

async fn repository(node: &Node) {
    for dir in [REPO.to_owned(), format!("{REPO}/blobs")] {
        node.mkdir(&dir).await.expect("mkdir");
    }
}

/// As huggingface_hub does: into a temporary file, which then gets the name.
async fn download(node: &Node, blob: BlobId, data: &[u8]) -> Ino {
    let temporary = format!("{}.0a1b2c3d.incomplete", place_of(blob));
    node.put(&temporary, data).await.expect("put");
    rename(node, &temporary, &place_of(blob)).await;
    node.walk(&place_of(blob)).await.expect("walk").stat.ino
}

async fn rename(node: &Node, from: &str, to: &str) {
    let (from, to) = (node.parent(from).await.expect("parent"), node.parent(to).await.expect("parent"));
    node.vfs.rename(&ROOT, from, to, 0).await.expect("rename");
}

async fn proven(node: &Node, ino: Ino) -> Option<BlobId> {
    node.meta.getattr(ino).await.expect("getattr").proven
}

async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !done().await {
        assert!(Instant::now() < end, "not within a minute: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn becomes(node: &Node, ino: Ino, blob: BlobId) {
    until("it is a blob", async || proven(node, ino).await == Some(blob)).await;
    // The node that proved it has it as one, and none of it as a file.
    until("the cache has it as one", async || {
        let cache = node.chunks.cache();
        cache.knows(&ContentKey::Blob(blob)) && !cache.knows(&ContentKey::File(ino))
    })
    .await;
}

/// A blob that is one on `node`.
async fn adopted(node: &Node, data: &[u8]) -> (Ino, BlobId) {
    let blob = sha(data);
    let ino = download(node, blob, data).await;
    becomes(node, ino, blob).await;
    (ino, blob)
}

/// Whether who opens it now can have the kernel read it, and what that file has.
async fn native(node: &Node, ino: Ino) -> Option<Vec<u8>> {
    let opened = node.vfs.open(ino, libc::O_RDONLY).await.expect("open");
    let bytes = node.vfs.native(opened.fh).await.map(|native| {
        let file = native.file();
        let mut bytes = vec![0; file.metadata().expect("stat").len() as usize];
        file.read_exact_at(&mut bytes, 0).expect("read");
        bytes
    });
    node.vfs.release(opened.fh, None).await.expect("release");
    bytes
}

async fn read_fh(node: &Node, fh: u64, len: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while bytes.len() < len {
        let piece = node.vfs.read(fh, bytes.len() as u64, 128 << 10).await.expect("read");
        assert!(!piece.is_empty(), "{} of {len} bytes", bytes.len());
        bytes.extend_from_slice(&piece);
    }
    bytes
}

async fn overwrite(node: &Node, ino: Ino, offset: u64, data: &'static [u8]) {
    let opened = node.vfs.open(ino, libc::O_RDWR).await.expect("open");
    node.vfs.write(opened.fh, offset, data.into()).await.expect("write");
    node.vfs.flush(opened.fh).await.expect("flush");
    node.vfs.release(opened.fh, None).await.expect("release");
}

fn place(cluster: &Cluster) -> Place {
    Place { survey: Survey::new(cluster.kv.clone()), bucket: cluster.bucket.clone(), chunk_size: CHUNK }
}

/// What a look at every byte finds.
async fn faults(cluster: &Cluster) -> Vec<String> {
    let mut found = Vec::new();
    let options = FsckOptions { deep: true, ..FsckOptions::default() };
    fsck(&place(cluster), options, &|_| {}, &mut |one| found.push(one.to_string())).await.expect("fsck");
    found
}

async fn collect(cluster: &Cluster, node: &Node) -> GcReport {
    let options = GcOptions { delete: Some(node.meta.clone()), grace: Duration::ZERO };
    gc(&place(cluster), options, &|_| {}).await.expect("gc")
}

/// Requests for bytes that reached the Hub.
fn asked(cluster: &Cluster) -> u64 {
    let counts = cluster.hub.counters();
    counts.of("resolve_get") + counts.of("cdn_get")
}

#[tokio::test]
async fn what_a_client_downloaded_becomes_a_blob() {
    let cluster = Cluster::new(|_| {});
    let node = cluster.node().await;
    repository(&node).await;
    let (big, small) = (random_bytes(1, BIG), random_bytes(2, 20_000));
    for (data, blob) in [(&big, sha(&big)), (&small, git(&small))] {
        let ino = download(&node, blob, data).await;
        let before = node.meta.getattr(ino).await.expect("getattr");
        becomes(&node, ino, blob).await;
        let after = node.meta.getattr(ino).await.expect("getattr");
        assert_eq!((after.version, after.mtime, after.ctime), (before.version, before.mtime, before.ctime));
        assert_eq!(after.content, Content::Extents, "its rows stay what they were");
        assert!(native(&node, ino).await.expect("native at once") == *data, "to its end and no further");
        assert_eq!(node.cat(&place_of(blob)).await.expect("cat"), *data);

        let told = node.vfs.getxattr(ino, b"user.hfmount.source").await.expect("source");
        let told: serde_json::Value = serde_json::from_slice(&told).expect("json");
        assert_eq!((&told["blob"], &told["verified"]), (&blob.to_string().into(), &true.into()));
        assert_eq!(told["from"]["file"]["bytes"], data.len());
        let caches = [node.chunks.cache().path().to_owned()];
        let known = info::info(&place(&cluster), ino, &caches, true).await.expect("info");
        assert!(known.blob.is_some_and(|known| known.id == blob && known.verified_here));
        let chunks = data.len().div_ceil(CHUNK as usize);
        let here = known.chunks.iter().filter(|chunk| !chunk.cached.is_empty() && chunk.stored == Some(true));
        assert_eq!(here.count(), chunks);
        let row = node.meta.blobs().get(blob).await.expect("row").expect("known in the cluster");
        assert!(row.verified && row.size == data.len() as u64);
    }
    assert_eq!(asked(&cluster), 0);
    assert_eq!(faults(&cluster).await, Vec::<String>::new());
}

#[tokio::test]
async fn by_a_link_or_written_under_the_name_it_becomes_one_too() {
    let cluster = Cluster::new(|_| {});
    let node = cluster.node().await;
    repository(&node).await;
    let (linked, written) = (random_bytes(1, BIG), random_bytes(2, BIG));
    node.put(&format!("{REPO}/blobs/tmp"), &linked).await.expect("put");
    let ino = node.walk(&format!("{REPO}/blobs/tmp")).await.expect("walk").stat.ino;
    let (dir, _) = node.parent(&place_of(sha(&linked))).await.expect("parent");
    node.vfs.link(ino, dir, sha(&linked).etag().as_bytes()).await.expect("link");
    becomes(&node, ino, sha(&linked)).await;
    node.put(&place_of(sha(&written)), &written).await.expect("put");
    let ino = node.walk(&place_of(sha(&written))).await.expect("walk").stat.ino;
    becomes(&node, ino, sha(&written)).await;
    // Written anew, with what it was not before and what it was.
    node.put(&place_of(sha(&written)), &linked).await.expect("put");
    assert_eq!(proven(&node, ino).await, None);
    assert_eq!(node.cat(&place_of(sha(&written))).await.expect("cat"), linked);
    node.put(&place_of(sha(&written)), &written).await.expect("put");
    becomes(&node, ino, sha(&written)).await;
    assert!(native(&node, ino).await.expect("native") == written);
}

#[tokio::test]
async fn what_is_not_what_its_name_says_stays_a_file() {
    let cluster = Cluster::new(|_| {});
    let node = cluster.node().await;
    repository(&node).await;
    let data = random_bytes(1, BIG);
    let wrong = download(&node, sha(b"something else"), &data).await;
    let short = download(&node, sha(&data), &data[..BIG - 1]).await;
    // Of a user's own file that is called so nobody asks what it is; nor of what lies in the metadata.
    node.mkdir("mine").await.expect("mkdir");
    let own = format!("mine/{}", sha(&data).etag());
    node.put(&own, &data).await.expect("put");
    let tiny = download(&node, sha(b"tiny"), b"tiny").await;
    // They are taken in their order.
    let last = random_bytes(2, BIG);
    adopted(&node, &last).await;
    let own = node.walk(&own).await.expect("walk").stat.ino;
    for ino in [wrong, short, own, tiny] {
        assert_eq!(proven(&node, ino).await, None);
        assert!(native(&node, ino).await.is_none());
    }
    assert_eq!(node.read_all(wrong).await.expect("read"), data);
    assert_eq!(node.read_all(short).await.expect("read"), data[..BIG - 1]);
    assert_eq!(node.read_all(tiny).await.expect("read"), &b"tiny"[..]);
}

#[tokio::test]
async fn what_is_written_to_is_a_file_again() {
    let cluster = Cluster::new(|_| {});
    let (a, b) = (cluster.node().await, cluster.node().await);
    repository(&a).await;
    let mut data = random_bytes(1, BIG);
    let (ino, blob) = adopted(&a, &data).await;
    let reader = a.vfs.open(ino, libc::O_RDONLY).await.expect("open");
    let elsewhere = b.vfs.open(ino, libc::O_RDONLY).await.expect("open");
    assert!(read_fh(&b, elsewhere.fh, BIG).await == data);
    let writer = a.vfs.open(ino, libc::O_RDWR).await.expect("open");
    a.vfs.write(writer.fh, 1_200_000, Bytes::from_static(b"written over")).await.expect("write");
    let before = data.clone();
    data[1_200_000..1_200_012].copy_from_slice(b"written over");
    // Here it shows at once, also to who has it open; elsewhere when it is closed.
    assert!(read_fh(&a, reader.fh, BIG).await == data);
    assert!(native(&a, ino).await.is_none());
    assert_eq!(a.read_all(ino).await.expect("read"), data);
    assert_eq!(b.read_all(ino).await.expect("read"), before);
    assert_eq!(proven(&a, ino).await, Some(blob), "nothing is committed");
    a.vfs.flush(writer.fh).await.expect("flush");
    a.vfs.release(writer.fh, None).await.expect("release");
    assert_eq!(proven(&a, ino).await, None);
    for node in [&a, &b] {
        assert_eq!(node.read_all(ino).await.expect("read"), data);
        assert!(native(node, ino).await.is_none());
    }
    assert!(read_fh(&a, reader.fh, BIG).await == data);
    a.vfs.release(reader.fh, None).await.expect("release");
    b.vfs.release(elsewhere.fh, None).await.expect("release");
    assert_eq!(faults(&cluster).await, Vec::<String>::new());
}

#[tokio::test]
async fn who_opens_it_to_write_reads_what_is_here() {
    let cluster = Cluster::new(|_| {});
    let node = cluster.node().await;
    repository(&node).await;
    let mut data = random_bytes(1, BIG);
    let (ino, _) = adopted(&node, &data).await;
    // The bucket has nothing of it any more.
    for list in node.meta.extents(ino, &[0, 1, 2, 3]).await.expect("extents") {
        for extent in list {
            cluster.bucket.delete(&Object::FileChunk(extent.object)).await.expect("delete");
        }
    }
    let opened = node.vfs.open(ino, libc::O_RDWR).await.expect("open");
    node.vfs.write(opened.fh, 7, Bytes::from_static(b"over it")).await.expect("write");
    data[7..14].copy_from_slice(b"over it");
    assert!(read_fh(&node, opened.fh, BIG).await == data);
    node.vfs.release(opened.fh, None).await.expect("release");
}

#[tokio::test]
async fn any_change_of_the_data_makes_it_a_file_again() {
    let cluster = Cluster::new(|_| {});
    let (a, b) = (cluster.node().await, cluster.node().await);
    repository(&a).await;
    let mut expected = Vec::new();
    for seed in 0..5 {
        let mut data = random_bytes(seed, BIG);
        let (ino, _) = adopted(&a, &data).await;
        match seed {
            0 => {
                let set = SetAttr { size: Some(2_000_000), ..SetAttr::default() };
                a.vfs.setattr(ino, None, set).await.expect("truncate");
                data.truncate(2_000_000);
            }
            1 => {
                let set = SetAttr { size: Some(4_000_000), ..SetAttr::default() };
                a.vfs.setattr(ino, None, set).await.expect("truncate");
                data.resize(4_000_000, 0);
            }
            2 => {
                let opened = a.vfs.open(ino, libc::O_RDWR).await.expect("open");
                let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                a.vfs.fallocate(opened.fh, 1_000_000, 1_500_000, punch).await.expect("punch");
                a.vfs.flush(opened.fh).await.expect("flush");
                a.vfs.release(opened.fh, None).await.expect("release");
                data[1_000_000..2_500_000].fill(0);
            }
            3 => {
                // Whole chunks of another file are shared by reference.
                let other = random_bytes(77, BIG);
                a.put("other", &other).await.expect("put");
                let from = a.walk("other").await.expect("walk").stat.ino;
                let (from, to) =
                    (a.vfs.open(from, libc::O_RDONLY).await, a.vfs.open(ino, libc::O_RDWR).await);
                let (from, to) = (from.expect("open").fh, to.expect("open").fh);
                let unit = u64::from(CHUNK);
                let copied = a.vfs.copy_file_range((from, 0), (to, unit), unit).await.expect("copy");
                assert_eq!(copied, CHUNK);
                for fh in [from, to] {
                    a.vfs.flush(fh).await.expect("flush");
                    a.vfs.release(fh, None).await.expect("release");
                }
                data[CHUNK as usize..2 * CHUNK as usize].copy_from_slice(&other[..CHUNK as usize]);
            }
            _ => {
                overwrite(&b, ino, 3_499_999, b"longer by some bytes").await;
                data.truncate(3_499_999);
                data.extend_from_slice(b"longer by some bytes");
            }
        }
        assert_eq!(proven(&a, ino).await, None, "change {seed}");
        expected.push((ino, data));
    }
    for (n, (ino, data)) in expected.iter().enumerate() {
        for node in [&a, &b] {
            assert_eq!(node.read_all(*ino).await.expect("read"), *data, "change {n}");
        }
    }
    assert_eq!(faults(&cluster).await, Vec::<String>::new());
}

#[tokio::test]
async fn names_and_attributes_change_nothing() {
    let cluster = Cluster::new(|_| {});
    let node = cluster.node().await;
    repository(&node).await;
    let data = random_bytes(1, BIG);
    let (ino, blob) = adopted(&node, &data).await;
    let set = SetAttr { mode: Some(0o400), mtime: Some(hfmount::vfs::TimeOrNow::Now), ..SetAttr::default() };
    node.vfs.setattr(ino, None, set).await.expect("chmod");
    rename(&node, &place_of(blob), "moved").await;
    node.vfs.link(ino, Ino::ROOT, b"linked").await.expect("link");
    assert_eq!(proven(&node, ino).await, Some(blob));
    assert!(native(&node, ino).await.expect("native") == data);

    // A copy by reference is a file of its own, and costs nothing.
    node.put("copy", b"").await.expect("put");
    let copy = node.walk("copy").await.expect("walk").stat.ino;
    let from = node.vfs.open(ino, libc::O_RDONLY).await.expect("open");
    let to = node.vfs.open(copy, libc::O_RDWR).await.expect("open");
    let mut done = 0;
    while done < BIG as u64 {
        let left = BIG as u64 - done;
        done +=
            u64::from(node.vfs.copy_file_range((from.fh, done), (to.fh, done), left).await.expect("copy"));
    }
    node.vfs.flush(to.fh).await.expect("flush");
    for fh in [from.fh, to.fh] {
        node.vfs.release(fh, None).await.expect("release");
    }
    let objects = async |ino| -> Vec<_> {
        let lists = node.meta.extents(ino, &[0, 1, 2]).await.expect("extents");
        lists.iter().map(|list| list[0].object).collect()
    };
    assert_eq!(objects(copy).await, objects(ino).await);
    assert_eq!((proven(&node, copy).await, proven(&node, ino).await), (None, Some(blob)));
    assert_eq!(node.cat("copy").await.expect("cat"), data);

    // Without a name it is read on, and then all of it goes.
    let reader = node.vfs.open(ino, libc::O_RDONLY).await.expect("open");
    for name in ["moved", "linked", "copy", "copy of nothing"] {
        let removed = node.vfs.unlink(&ROOT, Ino::ROOT, name.as_bytes()).await;
        assert_eq!(removed.is_ok(), name != "copy of nothing");
    }
    node.chunks.cache().remove(&ContentKey::Blob(blob)).expect("evict");
    assert!(read_fh(&node, reader.fh, BIG).await == data);
    node.vfs.release(reader.fh, None).await.expect("release");
    assert_eq!(node.meta.reap_orphans(LATER).await.expect("reap").len(), 2);
    node.files.sweep(Duration::ZERO).await.expect("sweep");
    let report = collect(&cluster, &node).await;
    assert_eq!((report.seen.objects, report.chunks.objects), (0, 0), "nothing is left of it: {report:?}");
    assert_eq!(faults(&cluster).await, Vec::<String>::new());
}

#[tokio::test]
async fn what_was_evicted_comes_back_from_the_bucket() {
    let cluster = Cluster::new(|_| {});
    // Blobs of the Hub are kept in the bucket; this one is there already.
    let node = cluster.node_with(Settings { store_hub_blobs: true, ..Settings::default() }).await;
    repository(&node).await;
    let data = random_bytes(1, BIG);
    let (ino, blob) = adopted(&node, &data).await;
    for _ in 0..2 {
        node.chunks.cache().remove(&ContentKey::Blob(blob)).expect("evict");
        assert!(native(&node, ino).await.is_none());
        assert_eq!(node.read_all(ino).await.expect("read"), data);
        until("native again", async || native(&node, ino).await.as_ref() == Some(&data)).await;
        assert!(!node.chunks.cache().knows(&ContentKey::File(ino)), "not twice");
    }
    let stats = node.chunks.stats();
    assert_eq!((stats.uploads_waiting, stats.uploads_done), (0, 0));
    assert_eq!(asked(&cluster), 0);
    let report = collect(&cluster, &node).await;
    assert_eq!(report.seen.objects, BIG.div_ceil(CHUNK as usize) as u64, "one copy of each chunk");
}

#[tokio::test]
async fn on_other_nodes_it_is_a_blob_once_it_is_there() {
    let cluster = Cluster::new(|_| {});
    let (a, b) = (cluster.node().await, cluster.node().await);
    repository(&a).await;
    let data = random_bytes(1, BIG);
    let blob = sha(&data);
    // Read there as a file before anybody knew.
    a.put("unknown", &data).await.expect("put");
    let ino = a.walk("unknown").await.expect("walk").stat.ino;
    assert_eq!(b.read_all(ino).await.expect("read"), data);
    assert!(b.chunks.cache().knows(&ContentKey::File(ino)));
    rename(&a, "unknown", &place_of(blob)).await;
    becomes(&a, ino, blob).await;
    let gets = |node: &Node| node.chunks.stats().sources.iter().find(|s| s.name == "file").map(|s| s.bytes);
    assert_eq!(b.cat(&place_of(blob)).await.expect("cat"), data);
    until("native there too", async || native(&b, ino).await.as_ref() == Some(&data)).await;
    until("and only once", async || {
        native(&b, ino).await;
        !b.chunks.cache().knows(&ContentKey::File(ino))
    })
    .await;
    assert_eq!((gets(&a), gets(&b)), (None, Some(BIG as u64)));

    // Who has it open there while it is written to here reads one or the other, and what is opened then is new.
    let c = cluster.node().await;
    let reader = c.vfs.open(ino, libc::O_RDONLY).await.expect("open");
    let mut now = data.clone();
    now[5..12].copy_from_slice(b"changed");
    overwrite(&a, ino, 5, b"changed").await;
    let seen = read_fh(&c, reader.fh, BIG).await;
    assert!(seen == data || seen == now);
    for node in [&a, &b, &c] {
        assert_eq!(node.read_all(ino).await.expect("read"), now);
    }
    c.vfs.release(reader.fh, None).await.expect("release");
    assert_eq!(asked(&cluster), 0);
}

#[tokio::test]
async fn what_the_hub_has_too_is_one_content() {
    let data = random_bytes(1, BIG);
    let cluster = Cluster::new(|root| put(root, "models/org/lazy/main/model.safetensors", &data));
    let node = cluster.node().await;
    repository(&node).await;
    let (ino, blob) = adopted(&node, &data).await;
    let commit = cluster.hub.commit("models", "org/lazy", "main").expect("commit");
    let lazy = format!("models--org--lazy/snapshots/{commit}/model.safetensors");
    assert_eq!(node.cat(&lazy).await.expect("cat"), data);
    assert_eq!(asked(&cluster), 0, "it is here");
    let lazy = node.walk(&format!("models--org--lazy/blobs/{}", blob.etag())).await.expect("walk").stat.ino;
    assert!(native(&node, lazy).await.expect("native") == data);

    // The other way round: the Hub's is here when a client downloads it all the same.
    let other = cluster.node().await;
    assert_eq!(other.read_all(lazy).await.expect("read"), data);
    until("checked", async || native(&other, lazy).await.is_some()).await;
    let before = asked(&cluster);
    let again = format!("{}.again", place_of(blob));
    other.put(&again, &data).await.expect("put");
    rename(&other, &again, &place_of(blob)).await;
    let replaced = other.walk(&place_of(blob)).await.expect("walk").stat.ino;
    assert_ne!(replaced, ino);
    becomes(&other, replaced, blob).await;
    assert!(native(&other, replaced).await.expect("native") == data);
    assert_eq!(asked(&cluster), before);
}

#[tokio::test]
async fn who_has_it_open_since_before_does_not_keep_it_from_being_native() {
    let cluster = Cluster::new(|_| {});
    let node = cluster.node().await;
    repository(&node).await;
    let data = random_bytes(1, BIG);
    node.put("early", &data).await.expect("put");
    let ino = node.walk("early").await.expect("walk").stat.ino;
    let reader = node.vfs.open(ino, libc::O_RDONLY).await.expect("open");
    rename(&node, "early", &place_of(sha(&data))).await;
    until("native though it is open", async || native(&node, ino).await.as_ref() == Some(&data)).await;
    assert!(read_fh(&node, reader.fh, BIG).await == data);
    node.vfs.release(reader.fh, None).await.expect("release");
    until("one copy is let go of", async || {
        native(&node, ino).await;
        !node.chunks.cache().knows(&ContentKey::File(ino))
    })
    .await;
    assert_eq!(asked(&cluster), 0);
}

#[tokio::test]
async fn what_waits_for_its_upload_is_one_when_it_is_uploaded() {
    let cluster = Cluster::new(|_| {});
    let node = cluster.node_with(Settings { writeback: true, ..Settings::default() }).await;
    repository(&node).await;
    let data = random_bytes(1, BIG);
    let (ino, blob) = adopted(&node, &data).await;
    assert!(native(&node, ino).await.expect("native") == data);
    // Written to, and read before it is uploaded.
    overwrite(&node, ino, 1_000_000, b"over it").await;
    let mut now = data.clone();
    now[1_000_000..1_000_007].copy_from_slice(b"over it");
    assert_eq!(node.read_all(ino).await.expect("read"), now);
    until("uploaded", async || proven(&node, ino).await.is_none()).await;
    assert_eq!(node.read_all(ino).await.expect("read"), now);
    let other = cluster.node().await;
    assert_eq!(other.cat(&place_of(blob)).await.expect("cat"), now);
}

#[tokio::test]
async fn what_was_downloaded_before_is_found_by_its_name() {
    let cluster = Cluster::new(|_| {});
    let node = cluster.node().await;
    repository(&node).await;
    let data = random_bytes(1, BIG);
    node.put("early", &data).await.expect("put");
    let ino = node.walk("early").await.expect("walk").stat.ino;
    // As an earlier version did it, which knew nothing of this.
    let blob = sha(&data);
    let place = place_of(blob);
    let (dir, name) = node.parent(&place).await.expect("parent");
    let renamed = node.meta.rename(Ino::ROOT, b"early", dir, name, RenameMode::Replace).await;
    assert_eq!(renamed.expect("rename").moved.ino, ino);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(proven(&node, ino).await, None, "nobody has asked for it");
    node.walk(&place).await.expect("walk");
    becomes(&node, ino, blob).await;
    assert!(native(&node, ino).await.expect("native") == data);
}

#[tokio::test]
async fn a_dump_has_it() {
    let mut cluster = Cluster::new(|_| {});
    let settings = serde_json::json!({ "name": "team", "uuid": "00ff" });
    assert!(write_settings(&*cluster.kv, None, &settings).await.expect("settings"));
    let node = cluster.node().await;
    repository(&node).await;
    let data = random_bytes(1, BIG);
    let (ino, blob) = adopted(&node, &data).await;
    let mut dumped = Vec::new();
    dump::dump(&*cluster.kv, &mut dumped, |_| {}).await.expect("dump");
    let copy = MemoryKv::new();
    dump::load(&*copy, &mut &dumped[..], |_| {}).await.expect("load");
    cluster.kv = copy;
    let other = cluster.node().await;
    assert_eq!(proven(&other, ino).await, Some(blob));
    assert_eq!(other.cat(&place_of(blob)).await.expect("cat"), data);
    until("native there", async || native(&other, ino).await.as_ref() == Some(&data)).await;
    assert_eq!(faults(&cluster).await, Vec::<String>::new());
    let report = collect(&cluster, &other).await;
    assert_eq!(report.chunks.objects, 0, "{report:?}");
    assert_eq!(asked(&cluster), 0);
}

/// A simple sequence of numbers that look random.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }
}

/// What waits for its upload other nodes do not see yet.
async fn uploaded(nodes: &[Node]) {
    for node in nodes {
        until("uploaded", async || node.files.waiting().0.files == 0).await;
    }
}

/// What is closed is what anybody opens then, whatever became a blob or a file in between, and wherever its bytes are.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn whatever_is_done_to_it_each_open_sees_what_was_closed() {
    const SIZE: usize = 1_300_000;
    let seed: u64 = std::env::var("HFMOUNT_TEST_SEED").map_or(1, |s| s.parse().expect("a number"));
    let rounds = std::env::var("HFMOUNT_TEST_ROUNDS").map_or(150, |s| s.parse().expect("a number"));
    let cluster = Cluster::new(|_| {});
    let behind = Settings { writeback: seed.is_multiple_of(2), ..Settings::default() };
    let nodes = [cluster.node_with(behind.clone()).await, cluster.node_with(behind).await];
    repository(&nodes[0]).await;
    let original = random_bytes(seed, SIZE);
    let blob = sha(&original);
    let ino = download(&nodes[0], blob, &original).await;
    uploaded(&nodes).await;
    let (mut now, mut dice, mut was_native) = (original.clone(), Dice(seed), 0);
    let mut held: Vec<(usize, u64)> = Vec::new();
    for round in 0..rounds {
        let who = dice.roll(2);
        let node = &nodes[who];
        let what = dice.roll(10);
        match what {
            0..=2 => {
                // To what it was, as a client that goes on with a download.
                let opened = node.vfs.open(ino, libc::O_RDWR).await.expect("open");
                for (n, piece) in original.chunks(400_000).enumerate() {
                    let piece = Bytes::copy_from_slice(piece);
                    node.vfs.write(opened.fh, n as u64 * 400_000, piece).await.expect("write");
                }
                let set = SetAttr { size: Some(SIZE as u64), ..SetAttr::default() };
                node.vfs.setattr(ino, Some(opened.fh), set).await.expect("truncate");
                node.vfs.flush(opened.fh).await.expect("flush");
                node.vfs.release(opened.fh, None).await.expect("release");
                now.clone_from(&original);
            }
            3 => {
                let at = dice.roll(SIZE - 20);
                overwrite(node, ino, at as u64, b"some other bytes").await;
                now.resize(now.len().max(at + 16), 0);
                now[at..at + 16].copy_from_slice(b"some other bytes");
            }
            4 => {
                let size = SIZE / 2 + dice.roll(SIZE);
                let set = SetAttr { size: Some(size as u64), ..SetAttr::default() };
                node.vfs.setattr(ino, None, set).await.expect("truncate");
                now.resize(size, 0);
            }
            5 => {
                let cache = node.chunks.cache();
                let key = [ContentKey::Blob(blob), ContentKey::File(ino)][dice.roll(2)];
                cache.remove_idle(&key).expect("evict");
            }
            6 => held.push((who, node.vfs.open(ino, libc::O_RDONLY).await.expect("open").fh)),
            7 if !held.is_empty() => {
                let (who, fh) = held.swap_remove(dice.roll(held.len()));
                nodes[who].vfs.read(fh, 0, 100_000).await.expect("read");
                nodes[who].vfs.release(fh, None).await.expect("release");
            }
            8 => {
                node.walk(&place_of(blob)).await.expect("walk");
                tokio::time::sleep(Duration::from_millis(dice.roll(300) as u64)).await;
            }
            _ => {
                if let Some(bytes) = native(node, ino).await {
                    assert!(bytes == now, "round {round} of seed {seed}");
                    was_native += 1;
                }
            }
        }
        uploaded(&nodes).await;
        let reader = &nodes[dice.roll(2)];
        let seen = reader.read_all(ino).await.expect("read");
        if seen != now {
            let differ = |(a, b): (&u8, &u8)| a != b;
            let first = seen.iter().zip(&now).position(differ).unwrap_or(0);
            let last = seen.iter().zip(&now).rposition(differ).unwrap_or(0);
            panic!(
                "round {round} of seed {seed}: after {what}, {} of {} bytes; {first} to {last}: {:?}, not {:?}",
                seen.len(),
                now.len(),
                &seen[first..seen.len().min(first + 20)],
                &now[first..now.len().min(first + 20)],
            );
        }
    }
    for (who, fh) in held {
        nodes[who].vfs.release(fh, None).await.expect("release");
    }
    assert!(was_native > 0 || rounds < 100, "it was a blob at times");
    assert_eq!(faults(&cluster).await, Vec::<String>::new());
}
