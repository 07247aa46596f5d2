//! What users delete is kept for a while, and comes back as it was.

use std::time::Duration;

use bytes::Bytes;
use hfmount::error::Kind;
use hfmount::meta::dump::{dump, load};
use hfmount::meta::kv::Kv;
use hfmount::meta::memory::MemoryKv;
use hfmount::meta::{
    Attr, BinUsage, Content, DataChange, Keep, Limits, Lost, Meta, RenameMode, SetAttr, Wanted, bin_usage,
    write_settings,
};
use hfmount::types::{FileType, Ino, Timestamp};

use crate::data::write;
use crate::publish::small_plan;
use crate::world::*;

const ROOT: Ino = Ino::ROOT;
const DAY: Duration = Duration::from_secs(86_400);
/// Later than any hold.
const LATER: Timestamp = Timestamp(i64::MAX);

async fn mount(world: &World) -> Meta {
    let meta = world.mount().await;
    meta.set_bin_ttl(DAY);
    meta
}

async fn inline(meta: &Meta, dir: Ino, name: &str, text: &'static str) -> Ino {
    let ino = file(meta, dir, name).await;
    fill(meta, ino, text).await;
    ino
}

async fn fill(meta: &Meta, ino: Ino, text: &'static str) {
    let base = meta.getattr(ino).await.expect("getattr").version;
    let inline = Some(Bytes::from_static(text.as_bytes()));
    let change = DataChange { size: text.len() as u64, inline, ..DataChange::default() };
    let _ = meta.commit_data(ino, base, change).await.expect("write");
}

/// `rm name`; whether the bin has it.
async fn rm(meta: &Meta, dir: Ino, name: &str) -> bool {
    meta.unlink_keeping(dir, name.as_bytes(), Keep::Yes).await.expect("unlink").binned
}

async fn rmdir(meta: &Meta, dir: Ino, name: &str) -> bool {
    meta.rmdir_keeping(dir, name.as_bytes(), Keep::Yes).await.expect("rmdir").binned
}

/// `rm -r path`.
async fn rm_r(meta: &Meta, path: &str) {
    let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
    let parent = walk(meta, above).await.ino;
    let dir = find(meta, parent, name).await.ino;
    for entry in list(meta, dir).await {
        if find(meta, dir, &entry).await.kind == FileType::Dir {
            Box::pin(rm_r(meta, &format!("{path}/{entry}"))).await;
        } else {
            rm(meta, dir, &entry).await;
        }
    }
    rmdir(meta, parent, name).await;
}

fn under(paths: &[&str]) -> Wanted {
    let names = |path: &&str| path.split('/').map(|n| Bytes::copy_from_slice(n.as_bytes())).collect();
    Wanted { under: paths.iter().map(names).collect(), ..Wanted::default() }
}

async fn found(meta: &Meta, wanted: &Wanted) -> Vec<Lost> {
    let mut found = Vec::new();
    meta.lost(wanted, |lost| found.push(lost)).await.expect("the bin");
    found
}

async fn paths(meta: &Meta, wanted: &Wanted) -> Vec<String> {
    let mut paths: Vec<_> = found(meta, wanted).await.iter().map(Lost::shown).collect();
    paths.sort();
    paths
}

/// What was restored, as paths, and what was refused, and why.
async fn restore(meta: &Meta, wanted: &Wanted, to: Option<&str>) -> (Vec<String>, Vec<(String, Kind)>) {
    let to: Option<Vec<Bytes>> =
        to.map(|to| to.split('/').map(|n| Bytes::copy_from_slice(n.as_bytes())).collect());
    let mut rehearsed = Vec::new();
    let tell = |one: hfmount::meta::Restored| (one.shown(), one.result.err().map(|e| e.kind()));
    meta.restore(wanted, to.as_deref(), true, |one| rehearsed.push(tell(one))).await.expect("rehearse");
    let mut done = Vec::new();
    meta.restore(wanted, to.as_deref(), false, |one| done.push(tell(one))).await.expect("restore");
    assert_eq!(done, rehearsed, "as rehearsed");
    let (good, bad): (Vec<_>, Vec<_>) = done.into_iter().partition(|(_, error)| error.is_none());
    let good = good.into_iter().map(|(path, _)| path).collect();
    (good, bad.into_iter().filter_map(|(path, error)| Some((path, error?))).collect())
}

async fn text(meta: &Meta, path: &str) -> Bytes {
    match walk(meta, path).await.content {
        Content::Inline(text) => text,
        other => panic!("{path} is {other:?}"),
    }
}

pub async fn trees_come_back(world: &World) {
    let (meta, other) = (mount(world).await, mount(world).await);
    let top = dir(&meta, ROOT, "top").await;
    let sub = dir(&meta, top, "sub").await;
    let empty = dir(&meta, sub, "empty").await;
    let set = SetAttr { mode: Some(0o2750), uid: Some(7), ..SetAttr::default() };
    meta.setattr(sub, set).await.expect("chmod");
    inline(&meta, top, "small", "bytes").await;
    let (big, object) = {
        let ino = file(&meta, sub, "big").await;
        (ino, write(&meta, ino, 100).await.1)
    };
    meta.set_xattr(big, b"user.x", b"1", hfmount::meta::SetXattr::Any).await.expect("setxattr");
    let link = meta.make(sub, b"link", new_symlink("../small")).await.expect("symlink").ino;
    let old = Timestamp(Timestamp::now().0 - 3_600_000_000_000);
    meta.setattr(link, SetAttr { mtime: Some(old), ..SetAttr::default() }).await.expect("touch");
    let before = (meta.getattr(big).await.expect("big"), meta.usage().await.expect("usage"));

    rm_r(&meta, "top").await;
    assert!(is_absent(&other, ROOT, "top").await);
    assert_eq!(meta.usage().await.expect("usage").bytes, 0, "there is room at once");
    let all = ["top", "top/small", "top/sub", "top/sub/big", "top/sub/empty", "top/sub/link"];
    assert_eq!(paths(&other, &Wanted::default()).await, all);
    assert_eq!(paths(&other, &under(&["top/sub"])).await, all[2..]);
    assert_eq!(meta.reap_orphans(LATER).await.expect("reap"), [], "they are no orphans");

    let (restored, refused) = restore(&other, &Wanted::default(), None).await;
    assert_eq!((restored, refused), (all.map(str::to_owned).to_vec(), vec![]));
    assert_eq!(text(&meta, "top/small").await, "bytes");
    let sub = walk(&meta, "top/sub").await;
    assert_eq!((sub.mode, sub.uid, sub.nlink), (0o2750, 7, 3));
    assert_ne!(walk(&meta, "top/sub/empty").await.ino, empty, "a directory gets another number");
    assert_eq!(walk(&meta, "top").await.nlink, 3);
    let back = walk(&meta, "top/sub/big").await;
    assert_eq!((back.ino, back.version, back.nlink), (big, before.0.version, 1));
    assert_eq!(back.mtime, before.0.mtime);
    assert_eq!(meta.xattrs(big).await.expect("xattrs").get(b"user.x").map(|v| &v[..]), Some(&b"1"[..]));
    assert_eq!(meta.extents(big, &[0]).await.expect("extents")[0][0].object, object);
    assert_eq!(walk(&meta, "top/sub/link").await.content, Content::Symlink("../small".into()));
    assert_eq!(meta.usage().await.expect("usage"), before.1);
    assert_eq!(found(&meta, &Wanted::default()).await, []);
    // And once more: what came back is as good as new.
    rm_r(&meta, "top").await;
    assert_eq!(paths(&other, &Wanted::default()).await, all);
}

pub async fn one_file_brings_its_directories(world: &World) {
    let meta = mount(world).await;
    let a = dir(&meta, ROOT, "a").await;
    meta.setattr(a, SetAttr { mode: Some(0o700), ..SetAttr::default() }).await.expect("chmod");
    let b = dir(&meta, a, "b").await;
    inline(&meta, b, "f", "f").await;
    inline(&meta, b, "g", "g").await;
    inline(&meta, a, "h", "h").await;
    rm_r(&meta, "a").await;
    let (restored, refused) = restore(&meta, &under(&["a/b/f"]), None).await;
    assert_eq!((restored, refused), (vec!["a".into(), "a/b".into(), "a/b/f".into()], vec![]));
    assert_eq!(walk(&meta, "a").await.mode, 0o700);
    // What stayed knows where its directory is now, also when that is called something else.
    assert_eq!(paths(&meta, &Wanted::default()).await, ["a/b/g", "a/h"]);
    meta.rename(ROOT, b"a", ROOT, b"z", RenameMode::Replace).await.expect("rename");
    assert_eq!(paths(&meta, &Wanted::default()).await, ["z/b/g", "z/h"]);
    assert_eq!(restore(&meta, &under(&["z/b"]), None).await.0, ["z/b/g"]);
    assert_eq!(text(&meta, "z/b/g").await, "g");
    // A directory that users made again is the one.
    rm_r(&meta, "z").await;
    dir(&meta, ROOT, "z").await;
    let (restored, refused) = restore(&meta, &Wanted::default(), None).await;
    assert_eq!((restored.len(), refused), (5, vec![]), "z, b, f, g, h");
    assert_eq!(list(&meta, walk(&meta, "z/b").await.ino).await, ["f", "g"]);
}

pub async fn what_is_there_stays(world: &World) {
    let meta = mount(world).await;
    let d = dir(&meta, ROOT, "d").await;
    inline(&meta, d, "f", "old").await;
    assert!(rm(&meta, d, "f").await);
    inline(&meta, d, "f", "new").await;
    let (restored, refused) = restore(&meta, &Wanted::default(), None).await;
    assert_eq!((restored, refused), (vec![], vec![("d/f".to_owned(), Kind::Exists)]));
    assert_eq!(text(&meta, "d/f").await, "new");
    let (restored, refused) = restore(&meta, &under(&["d"]), Some("saved/here")).await;
    assert_eq!((restored, refused), (vec!["saved/here/d/f".to_owned()], vec![]));
    assert_eq!(text(&meta, "saved/here/d/f").await, "old");
    assert_eq!(found(&meta, &Wanted::default()).await, []);
    // A file where a directory is needed.
    rm_r(&meta, "saved").await;
    inline(&meta, ROOT, "saved", "in the way").await;
    let (restored, refused) = restore(&meta, &under(&["saved/here/d"]), None).await;
    assert_eq!(restored, [""; 0]);
    assert_eq!(refused[0], ("saved".to_owned(), Kind::Exists));
    assert!(refused.len() == 4 && refused[1..].iter().all(|(_, kind)| *kind == Kind::NotDirectory));
}

pub async fn versions_of_one_name(world: &World) {
    let meta = mount(world).await;
    let first = inline(&meta, ROOT, "f", "first").await;
    rm(&meta, ROOT, "f").await;
    inline(&meta, ROOT, "f", "second").await;
    inline(&meta, ROOT, "new", "third").await;
    let replaced = meta.rename_keeping(ROOT, b"new", ROOT, b"f", RenameMode::Replace, Keep::Yes).await;
    assert!(replaced.expect("rename").replaced.expect("one").binned);
    rm(&meta, ROOT, "f").await;
    assert_eq!(paths(&meta, &under(&["f"])).await, ["f", "f", "f"]);
    assert_eq!(restore(&meta, &under(&["f"]), None).await.0, ["f"]);
    assert_eq!(text(&meta, "f").await, "third", "the one that was deleted last");
    let by_number = Wanted { inos: vec![first], ..Wanted::default() };
    assert_eq!(restore(&meta, &by_number, Some("old")).await.0, ["old/f"]);
    assert_eq!(text(&meta, "old/f").await, "first");
    assert_eq!(restore(&meta, &under(&["f"]), Some("mid")).await.0, ["mid/f"]);
    assert_eq!(text(&meta, "mid/f").await, "second");
    // Exchanged, nothing is lost.
    let exchanged = meta.rename_keeping(ROOT, b"f", ROOT, b"old", RenameMode::Exchange, Keep::Yes).await;
    assert_eq!(exchanged.expect("exchange").replaced, None);
    assert_eq!(found(&meta, &Wanted::default()).await, []);
}

pub async fn only_the_last_name_counts(world: &World) {
    let meta = mount(world).await;
    let f = inline(&meta, ROOT, "f", "data").await;
    meta.link(f, ROOT, b"g").await.expect("link");
    let usage = meta.usage().await.expect("usage");
    assert!(!rm(&meta, ROOT, "f").await);
    assert_eq!(found(&meta, &Wanted::default()).await, []);
    assert!(rm(&meta, ROOT, "g").await);
    assert_eq!(kind(meta.link(f, ROOT, b"h").await), Kind::NotFound, "not by this way");
    assert_eq!(restore(&meta, &Wanted::default(), None).await.0, ["g"]);
    assert_eq!((nlink(&meta, f).await, meta.usage().await.expect("usage")), (1, usage));
    meta.link(f, ROOT, b"h").await.expect("as any other");
}

pub async fn what_is_not_kept(world: &World) {
    let meta = mount(world).await;
    for name in ["x.incomplete", "x.lock", "a.tmp", "tmpab12cd34"] {
        inline(&meta, ROOT, name, "bytes").await;
        assert!(!rm(&meta, ROOT, name).await, "{name}");
    }
    file(&meta, ROOT, "never written").await;
    assert!(!rm(&meta, ROOT, "never written").await);
    file(&meta, ROOT, "on its way").await;
    let removed = meta.unlink_keeping(ROOT, b"on its way", Keep::Filled).await.expect("unlink");
    assert!(removed.binned, "its bytes come later");
    fill(&meta, removed.attr.ino, "late").await;
    inline(&meta, ROOT, "f", "bytes").await;
    assert!(!meta.unlink(ROOT, b"f").await.expect("unlink").binned, "not asked for");
    meta.set_bin_ttl(Duration::ZERO);
    inline(&meta, ROOT, "g", "bytes").await;
    assert!(!rm(&meta, ROOT, "g").await, "there is no bin");
    meta.set_bin_ttl(DAY);
    assert_eq!(paths(&meta, &Wanted::default()).await, ["on its way"]);
    restore(&meta, &Wanted::default(), None).await;
    assert_eq!(text(&meta, "on its way").await, "late");
    assert_eq!(meta.usage().await.expect("usage").bytes, 4);

    // What the Hub has, whoever deletes it, and however.
    meta.publish_commit(small_plan("org/repo", 1)).await.expect("publish");
    let repo = list(&meta, ROOT).await.into_iter().find(|n| n.starts_with("models--")).expect("a folder");
    rm_r(&meta, &repo).await;
    assert_eq!(found(&meta, &Wanted::default()).await, []);
}

pub async fn it_is_let_go_after_its_time(world: &World) {
    let (meta, other) = (mount(world).await, mount(world).await);
    let f = file(&meta, ROOT, "f").await;
    let (_, object) = write(&meta, f, 100).await;
    rm(&meta, ROOT, "f").await;
    other.set_bin_ttl(2 * DAY);
    inline(&meta, ROOT, "g", "young").await;
    rm(&other, ROOT, "g").await;
    let now = meta.now();
    let after = |span: Duration| Timestamp(now.0 + i64::try_from(span.as_nanos()).expect("small"));
    let expire = async |meta: &Meta, at| meta.expire_bin(at).await.expect("expire");
    assert_eq!(expire(&other, after(DAY / 2)).await, 0);
    // Somebody has it open: it is an orphan then as any other.
    assert_eq!(expire(&other, after(DAY + DAY / 2)).await, 1);
    assert_eq!(paths(&meta, &Wanted::default()).await, ["g"]);
    other.hold_orphans(&[f]).await.expect("hold");
    assert_eq!(meta.reap_orphans(meta.now()).await.expect("reap"), []);
    let reaped = meta.reap_orphans(LATER).await.expect("reap");
    assert_eq!((reaped.len(), &reaped[0].objects[..]), (1, &[object][..]));
    let gone = Wanted { inos: vec![f], ..Wanted::default() };
    assert_eq!(restore(&meta, &gone, None).await, (vec![], vec![]), "it does not come back");
    // Who keeps things for less time than before means what is there too.
    assert_eq!(expire(&meta, after(DAY + DAY / 2)).await, 1);
    assert_eq!(found(&meta, &Wanted::default()).await, []);

    // Thousands, in pieces; nothing else goes.
    for n in 0..1_300 {
        inline(&meta, ROOT, &format!("many {n}"), "x").await;
        rm(&meta, ROOT, &format!("many {n}")).await;
    }
    inline(&meta, ROOT, "there", "x").await;
    let kv = world.kv().await;
    let usage = bin_usage(&*kv, 10_000).await.expect("usage");
    assert_eq!(usage, BinUsage { files: 1_300, bytes: 1_300, more: false });
    assert!(bin_usage(&*kv, 1_000).await.expect("usage").more);
    assert_eq!(expire(&meta, after(DAY * 2)).await, 1_300);
    assert_eq!(expire(&meta, after(DAY * 2)).await, 0);
    assert_eq!(list(&meta, ROOT).await, ["there"]);
    assert_eq!(meta.reap_orphans(LATER).await.expect("reap").len(), 1_301, "and g");
}

pub async fn restored_or_gone_but_never_both(world: &World) {
    let (meta, other) = (mount(world).await, mount(world).await);
    for n in 0..40 {
        let name = format!("f{n}");
        let f = file(&meta, ROOT, &name).await;
        write(&meta, f, 100).await;
        rm(&meta, ROOT, &name).await;
        let item = meta.binned(0).await.expect("the bin").remove(0);
        let lot = [item.clone()];
        let (purged, restored, twice) = tokio::join!(
            other.purge(&lot),
            meta.unbin(&item, ROOT, name.as_bytes()),
            other.unbin(&item, ROOT, b"another name")
        );
        let purged = purged.expect("purge") == 1;
        let winners = usize::from(purged) + [&restored, &twice].iter().filter(|r| r.is_ok()).count();
        assert_eq!(winners, 1, "{purged} {restored:?} {twice:?}");
        for lost in [&restored, &twice].into_iter().filter_map(|r| r.as_ref().err()) {
            assert_eq!(lost.kind(), Kind::NotFound);
        }
        let reaped = meta.reap_orphans(LATER).await.expect("reap").len();
        assert_eq!(reaped, usize::from(purged));
        if !purged {
            assert_eq!(nlink(&meta, f).await, 1);
            let there: Vec<Attr> = restored.into_iter().chain(twice).collect();
            assert_eq!(there[0].ino, f);
            let name = if is_absent(&meta, ROOT, &name).await { "another name" } else { &name };
            meta.unlink(ROOT, name.as_bytes()).await.expect("unlink");
            meta.reap_orphans(LATER).await.expect("reap");
        }
        assert_eq!(kind(meta.getattr(f).await), Kind::Stale);
    }
}

pub async fn what_comes_back_needs_room(world: &World) {
    let meta = mount(world).await;
    meta.set_limits(Limits { bytes: Some(1_000), inodes: Some(3) });
    let f = file(&meta, ROOT, "f").await;
    write(&meta, f, 900).await;
    rm(&meta, ROOT, "f").await;
    // A full volume can be emptied, and filled again.
    let g = file(&meta, ROOT, "g").await;
    write(&meta, g, 900).await;
    let (restored, refused) = {
        let mut done = Vec::new();
        let all = Wanted::default();
        meta.restore(&all, None, false, |one| done.push(one)).await.expect("restore");
        done.into_iter().partition::<Vec<_>, _>(|one| one.result.is_ok())
    };
    assert_eq!((restored.len(), refused.len()), (0, 1));
    assert_eq!(refused[0].result.as_ref().expect_err("full").kind(), Kind::NoSpace);
    assert!(is_absent(&meta, ROOT, "f").await);
    meta.unlink(ROOT, b"g").await.expect("unlink");
    assert_eq!(restore(&meta, &Wanted::default(), None).await.0, ["f"]);
    assert_eq!(meta.usage().await.expect("usage").bytes, 900);
}

pub async fn what_is_looked_for(world: &World) {
    let meta = mount(world).await;
    for name in ["step-1.pt", "step-2.pt", "notes"] {
        inline(&meta, ROOT, name, "x").await;
        rm(&meta, ROOT, name).await;
    }
    tokio::time::sleep(Duration::from_millis(20)).await;
    let between = meta.now();
    tokio::time::sleep(Duration::from_millis(20)).await;
    inline(&meta, ROOT, "step-3.pt", "x").await;
    rm(&meta, ROOT, "step-3.pt").await;
    assert_eq!(paths(&meta, &under(&["step-*.pt"])).await, ["step-1.pt", "step-2.pt", "step-3.pt"]);
    assert_eq!(paths(&meta, &under(&["step-[12].*", "notes"])).await, ["notes", "step-1.pt", "step-2.pt"]);
    let newer = Wanted { since: Some(between), ..Wanted::default() };
    assert_eq!(paths(&meta, &newer).await, ["step-3.pt"]);
    let older = Wanted { before: Some(between), ..under(&["*.pt"]) };
    assert_eq!(paths(&meta, &older).await, ["step-1.pt", "step-2.pt"]);

    // A directory that nothing is known of: its files are listed, and go where they are told.
    let d = dir(&meta, ROOT, "d").await;
    inline(&meta, d, "adrift", "x").await;
    rm(&meta, d, "adrift").await;
    meta.rmdir(ROOT, b"d").await.expect("rmdir");
    let lost = found(&meta, &Wanted::default()).await.pop().expect("the last");
    assert!(lost.adrift && lost.shown() == format!("?{d}/adrift"), "{}", lost.shown());
    let by_number = Wanted { inos: vec![lost.item.ino], ..Wanted::default() };
    let (_, refused) = restore(&meta, &by_number, None).await;
    assert_eq!(refused, [(format!("?{d}/adrift"), Kind::NotFound)]);
    assert_eq!(restore(&meta, &by_number, Some("found")).await.0, ["found/adrift"]);
}

pub async fn a_dump_has_it(world: &World) {
    let meta = mount(world).await;
    let d = dir(&meta, ROOT, "d").await;
    inline(&meta, d, "f", "data").await;
    rm_r(&meta, "d").await;
    let kv: std::sync::Arc<dyn Kv> = match world {
        World::Memory(kv) => kv.clone(),
        _ => world.kv().await,
    };
    let settings = serde_json::json!({ "name": "team", "uuid": "00ff" });
    assert!(write_settings(&*kv, None, &settings).await.expect("settings"));
    let mut bytes = Vec::new();
    dump(&*kv, &mut bytes, |_| {}).await.expect("dump");
    let copy = MemoryKv::new();
    load(&*copy, &mut &bytes[..], |_| {}).await.expect("load");
    let copy: std::sync::Arc<dyn Kv> = copy;
    let there = mount_on(copy, Duration::from_secs(60)).await;
    assert_eq!(paths(&there, &Wanted::default()).await, ["d", "d/f"]);
    assert_eq!(restore(&there, &Wanted::default(), None).await.0, ["d", "d/f"]);
    assert_eq!(text(&there, "d/f").await, "data");
}
