//! What files consist of.

use super::*;

#[tokio::test]
async fn chunks_against_the_file() {
    let world = volume().await;
    let data = ino(&world, "data").await;
    let path = format!("/data (inode {data}): ");
    world.change_row(data, |row| row.chunks = 1).await;
    let what = format!("{path}it has a row for chunk 1 and says that there are 1 [--repair: counts them]");
    repairs(&world, &[&what]).await;

    // Two over each other: they stand for the same bytes in order.
    let raw = world.get(&map(data), b"c0").await.expect("a row");
    let list: Vec<Extent> = rmp_serde::from_slice(&raw).expect("decoded");
    let piece = pattern(9, 10);
    let object = world.meta.next_object();
    world.put(object, &piece).await;
    world.set_row(&map(data), b"c0", &vec![list[0], extent(object, 50, &piece)]).await;
    world.change_row(data, |row| row.layout.data = Some(1134)).await;
    let what =
        format!("{path}chunk 0: its extents overlap or are not in order [--repair: puts them in order]");
    repairs(&world, &[&what]).await;
    let raw = world.get(&map(data), b"c0").await.expect("a row");
    let ordered: Vec<Extent> = rmp_serde::from_slice(&raw).expect("decoded");
    assert_eq!(ordered.iter().map(|e| (e.start, e.len)).collect::<Vec<_>>(), [(0, 50), (50, 10), (60, 964)]);

    world.change_row(data, |row| row.size = 1100).await;
    let usage = world.look().await;
    let what = format!("{path}chunk 1: it has 100 bytes, and 76 are the file's");
    assert_eq!(usage[0], what);
    world.change_row(data, |row| row.size = 1124).await;

    let past = Extent { len: CHUNK, start: 10, ..list[0] };
    world.set_row(&map(data), b"c0", &vec![past]).await;
    stays(&world, &[&format!("{path}chunk 0: an extent of 1024 bytes at 10 in 1024 bytes")]).await;

    world.set(&map(data), b"c0", Bytes::from_static(b"\xc1")).await;
    let found = world.look().await;
    assert!(found.len() == 1 && found[0].starts_with(&format!("{path}chunk 0: ")), "{found:?}");
}

#[tokio::test]
async fn objects_that_several_files_name() {
    let world = volume().await;
    let (a, objects) = world.file("a", &[pattern(3, 1024), pattern(4, 1024)]).await;
    // As a copy by reference writes it.
    let b = world.make(Ino::ROOT, "b", FileType::File).await;
    let (attr, rows) = world.meta.attr_and_chunk_rows(a, &[0]).await.expect("read");
    let copy = DataChange {
        size: 1024,
        chunks: vec![(0, rows[0].clone().expect("a row"))],
        source: Some((a, attr.version)),
        ..DataChange::default()
    };
    let done = world.meta.commit_data(b.ino, b.version, copy).await.expect("commit");
    assert!(matches!(done, Committed::Applied(_)), "{done:?}");
    assert_eq!(world.look_deep().await, Vec::<String>::new());

    let field = [objects[0].session.0.to_be_bytes(), objects[0].seq.to_be_bytes()].concat();
    assert_eq!(world.get("shared/", &field).await.as_deref(), Some(&b"1"[..]));
    world.del("shared/", &field).await;
    let what = format!(
        "/a (inode {a}): {} is named by 2 chunks, and 1 are counted [--repair: counts them]",
        Object::FileChunk(objects[0])
    );
    repairs(&world, &[&what]).await;
    assert_eq!(world.get("shared/", &field).await.as_deref(), Some(&b"1"[..]));

    // The first file that goes does not take it along.
    world.meta.unlink(Ino::ROOT, b"a").await.expect("unlink");
    world.meta.reap_orphans(crate::types::Timestamp(i64::MAX)).await.expect("reaped");
    assert_eq!(
        world.gc(true).await.garbage(),
        crate::admin::gc::Sum::default(),
        "in the trash for its grace"
    );
    assert_eq!(world.look_deep().await, Vec::<String>::new());
}

#[tokio::test]
async fn bytes_of_chunks() {
    let world = volume().await;
    let data = ino(&world, "data").await;
    world.change_row(data, |row| row.layout.data = Some(3)).await;
    let what = "its chunks give 1124 bytes, and it says 3 [--repair: counts them]";
    repairs(&world, &[&format!("/data (inode {data}): {what}")]).await;
    world.change_row(data, |row| row.layout.data = None).await;
    assert_eq!(world.look().await, Vec::<String>::new(), "by a version that did not count");
}

#[tokio::test]
async fn chunks_far_out() {
    let world = volume().await;
    let made = world.make(Ino::ROOT, "far", FileType::File).await;
    let far = (1_u64 << 57) / u64::from(CHUNK) - 1;
    let (object, data) = (world.meta.next_object(), pattern(4, 100));
    world.put(object, &data).await;
    let change = DataChange {
        size: far * u64::from(CHUNK) + 100,
        chunks: vec![(far, vec![extent(object, 0, &data)])],
        ..DataChange::default()
    };
    let done = world.meta.commit_data(made.ino, made.version, change).await.expect("commit");
    assert!(matches!(done, Committed::Applied(_)));
    assert_eq!(world.look_deep().await, Vec::<String>::new());
    world.place.bucket.delete(&Object::FileChunk(object)).await.expect("deleted");
    let found = world.look().await;
    assert!(
        found.len() == 1 && found[0].starts_with("/far ") && found[0].ends_with("is not there"),
        "{found:?}"
    );
}

#[tokio::test]
async fn a_blob_under_a_file() {
    let world = volume().await;
    let data = ino(&world, "data").await;
    let under = crate::meta::Under { blob: BlobId::Git([1; 20]), size: 5000, len: 1124 };
    world.change_row(data, |row| row.layout.under = Some(under)).await;
    let found = world.look().await;
    assert!(found.len() == 1 && found[0].ends_with("nothing is known of it"), "{found:?}");
    world.meta.blobs().introduce(under.blob, under.size, None).await.expect("introduced");
    assert_eq!(world.look().await, Vec::<String>::new());
}

#[tokio::test]
async fn objects_that_are_gone_short_or_wrong() {
    let world = volume().await;
    let (data, objects) = world.file("more", &[pattern(3, 1024), pattern(4, 1024), pattern(5, 1024)]).await;
    let path = format!("/more (inode {data}): ");
    let name = |at: usize| Object::FileChunk(objects[at]).to_string();
    world.place.bucket.delete(&Object::FileChunk(objects[0])).await.expect("deleted");
    world.put(objects[1], &pattern(4, 1000)).await;
    world.put(objects[2], &pattern(6, 1024)).await;
    let gone = format!("{path}bytes 0 to 1023: {} is not there", name(0));
    let short = format!("{path}bytes 1024 to 2047: {} has 1000 bytes, and 1024 are needed", name(1));
    let wrong = format!("{path}bytes 2048 to 3071: {} holds other bytes than were stored", name(2));
    let mut found = world.look().await;
    found.sort();
    assert_eq!(found, [gone.clone(), short.clone()], "a look at the lengths");
    let mut found = world.look_deep().await;
    found.sort();
    assert_eq!(found, [gone, short, wrong], "a look at the bytes");
    assert_eq!(world.repair().await.len(), 3, "nobody has them any more");
}

#[tokio::test]
async fn objects_without_a_checksum_are_measured() {
    let world = volume().await;
    let (data, objects) = world.file("old", &[pattern(3, 1024)]).await;
    let old = Extent { start: 0, len: 1024, object: objects[0], object_offset: 0, sum: None };
    world.set_row(&map(data), b"c0", &vec![old]).await;
    assert_eq!(world.look_deep().await, Vec::<String>::new());
    world.put(objects[0], &pattern(3, 1023)).await;
    assert_eq!(world.look().await.len(), 1);
}

#[tokio::test]
async fn blobs_against_the_bucket() {
    let world = volume().await;
    let data = pattern(8, 2500);
    let mut digest = crate::chunk::digest::Digest::new(&BlobId::Sha256([0; 32]), 2500);
    digest.update(&data);
    let id = digest.finish();
    let objects = world.hub_file(id, &data).await;
    assert_eq!(world.look_deep().await, Vec::<String>::new());

    let again = "[--repair: has it fetched again from the Hub]";
    world.place.bucket.delete(&objects[0]).await.expect("deleted");
    world.place.bucket.put(&objects[2], pattern(8, 3)).await.expect("put");
    let found = world.look().await;
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].starts_with(&format!("/models--a/blobs/{} ", id.etag())), "{found:?}");
    assert!(found[0].ends_with(&format!("chunk 0 is said to be in the bucket, and is not there {again}")));
    assert!(found[1].ends_with(&format!("chunk 2 has 3 bytes in the bucket instead of 452 {again}")));
    assert_eq!(world.repair().await, Vec::<String>::new());
    assert_eq!(world.look_deep().await, Vec::<String>::new());
    assert_eq!(world.get(&format!("b{id}"), b"s0").await, None, "the Hub is asked again");

    let objects = world.fill(id, &data).await;
    world.place.bucket.put(&objects[1], pattern(9, 1024)).await.expect("put");
    assert_eq!(world.look().await, Vec::<String>::new(), "of the right length");
    let found = world.look_deep().await;
    assert!(found.len() == 1 && found[0].contains("chunk 1 holds other bytes"), "{found:?}");
    assert_eq!(world.repair().await, Vec::<String>::new());

    // All as recorded, and together not what the name says.
    world.fill(id, &pattern(9, 2500)).await;
    let found = world.look_deep().await;
    assert!(found.len() == 1 && found[0].contains("together they are not what its name says"), "{found:?}");
    assert_eq!(world.repair().await, Vec::<String>::new());
    assert_eq!(world.look_deep().await, Vec::<String>::new());
    assert_eq!(world.get(&format!("b{id}"), b"h1").await, None);

    world.del(&format!("b{id}"), b"a").await;
    let found = world.look().await;
    assert!(found.len() == 1 && found[0].contains("nothing is known of it"), "{found:?}");
}
