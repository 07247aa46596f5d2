use std::fs;

use super::*;
use crate::types::{Commit, Origin, RepoId};

fn want(blob: BlobId, size: u64, origins: Vec<Origin>) -> Want {
    Want {
        blob,
        size,
        origins: origins.into(),
        first: 0,
        count: 1 << 20,
        chunk_size: 4096,
        stored: Arc::from([]),
        holders: Arc::from([]),
    }
}

async fn collect(seed: &Seed, want: &Want) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut stream = seed.fetch(want).await?;
    while let Some(piece) = stream.next().await {
        bytes.extend_from_slice(&piece?);
    }
    Ok(bytes)
}

fn put(root: &Path, repo: &str, blob: BlobId, bytes: &[u8]) {
    let blobs = root.join(repo).join("blobs");
    fs::create_dir_all(&blobs).expect("mkdir");
    fs::write(blobs.join(blob.etag()), bytes).expect("write");
}

#[tokio::test]
async fn blobs_are_found_by_name_in_any_repository_and_read_by_ranges() {
    let tmp = tempfile::tempdir().expect("dir");
    let (a, b, late) = (BlobId::Sha256([1; 32]), BlobId::Git([2; 20]), BlobId::Git([3; 20]));
    let bytes: Vec<u8> = (0..1_200_000u32).map(|i| i as u8).collect();
    put(&tmp.path().join("hub"), "models--x--y", a, &bytes);
    put(tmp.path(), "datasets--z", b, b"small");
    let seed = Seed::open(tmp.path()).await.expect("opens");
    seed.listed().await;
    assert_eq!(seed.blobs(), 2);
    assert_eq!(collect(&seed, &want(a, bytes.len() as u64, vec![])).await.expect("all"), bytes);
    let part = Want { first: 100, count: 3, ..want(a, bytes.len() as u64, vec![]) };
    assert_eq!(collect(&seed, &part).await.expect("a part"), bytes[409_600..421_888]);
    assert_eq!(collect(&seed, &want(b, 5, vec![])).await.expect("small"), b"small");
    let none = |e: Error| e.kind() == Kind::NotFound;
    assert!(collect(&seed, &want(b, 6, vec![])).await.is_err_and(none), "another size is not it");
    assert!(collect(&seed, &want(late, 4, vec![])).await.is_err_and(none));
    // Not listed yet, but it lies where the Hub has it.
    put(tmp.path(), "models--new", late, b"late");
    let repo = RepoId::from_folder("models--new").expect("a repository");
    let origin = Origin { repo, commit: Commit([0; 20]), path: "f".to_owned() };
    assert_eq!(collect(&seed, &want(late, 4, vec![origin])).await.expect("late"), b"late");
}

#[tokio::test]
async fn what_was_wrong_or_cut_is_not_asked_for_again() {
    let tmp = tempfile::tempdir().expect("dir");
    let (a, b) = (BlobId::Sha256([1; 32]), BlobId::Sha256([2; 32]));
    put(tmp.path(), "models--x", a, &[7; 2_000_000]);
    put(tmp.path(), "models--x", b, b"b");
    let seed = Seed::open(tmp.path()).await.expect("opens");
    seed.listed().await;
    assert!(seed.is_near(a) && seed.is_near(b));
    seed.wrong(b);
    assert!(!seed.is_near(b));
    assert!(collect(&seed, &want(b, 1, vec![])).await.is_err_and(|e| e.kind() == Kind::NotFound));
    let mut stream = seed.fetch(&want(a, 2_000_000, vec![])).await.expect("begins");
    assert!(stream.next().await.expect("a piece").is_ok());
    let path = tmp.path().join("models--x/blobs").join(a.etag());
    fs::File::options().write(true).open(path).expect("open").set_len(600_000).expect("cut");
    let rest: Vec<_> = stream.collect().await;
    assert!(rest.last().is_some_and(|r| r.as_ref().is_err_and(|e| e.kind() == Kind::Unavailable)));
    assert!(!seed.is_near(a));
}

#[tokio::test]
async fn a_folder_that_is_not_there_is_refused() {
    let tmp = tempfile::tempdir().expect("dir");
    let missing = Seed::open(&tmp.path().join("none")).await.expect_err("not there");
    assert_eq!(missing.kind(), Kind::Config);
    assert!(Seed::open(tmp.path()).await.is_ok(), "an empty one is not an error");
}
