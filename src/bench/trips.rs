//! Round trips to a volume's object store and metadata engine, from a client of its own: no mount and no cache lies between.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{StreamExt, stream};
use tokio_util::sync::CancellationToken;

use super::laps::Laps;
use super::{Progress, Row, Tell, Unit, interrupted};
use crate::error::{Error, Kind, Result};
use crate::meta::Meta;
use crate::meta::kv::{Key, SESSIONS, session_field};
use crate::source::bucket::{Bucket, Object};

/// A large object, bytes: as large as a chunk is unless the volume was formatted otherwise.
const LARGE: usize = 4 << 20;
/// A small one.
const SMALL: usize = 1 << 10;
/// How many of each, if that takes no longer than [`BUDGET`].
const LARGE_ROUNDS: u64 = 16;
const SMALL_ROUNDS: u64 = 64;
const READS: u64 = 400;
const COMMITS: u64 = 200;
/// No round of one kind begins after that.
const BUDGET: Duration = Duration::from_secs(10);
/// Objects that are deleted at a time.
const DELETES: usize = 16;

/// Puts and gets objects of 4 MiB and of 1 KiB, `threads` at a time. They are deleted before it returns.
pub async fn store(
    bucket: &Bucket,
    threads: usize,
    stop: &CancellationToken,
    tell: Tell<'_>,
) -> Result<Vec<Row>> {
    let made = Mutex::new(Vec::new());
    let rows = objects(bucket, threads, stop, tell, &made).await;
    let made = made.into_inner().unwrap_or_else(PoisonError::into_inner);
    let mut deleted = Ok(());
    let mut deletes = stream::iter(&made).map(|object| bucket.delete(object)).buffer_unordered(DELETES);
    while let Some(result) = deletes.next().await {
        // `gc` takes what is left.
        deleted = deleted.and(result);
    }
    rows.and_then(|rows| deleted.map(|()| rows))
}

async fn objects(
    bucket: &Bucket,
    threads: usize,
    stop: &CancellationToken,
    tell: Tell<'_>,
    made: &Mutex<Vec<Object>>,
) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (size, rounds, names, what, unit) in [
        (LARGE, LARGE_ROUNDS, ["put", "get"], ["put objects of 4 MiB", "get objects of 4 MiB"], Unit::Mib),
        (
            SMALL,
            SMALL_ROUNDS,
            ["put_small", "get_small"],
            ["put objects of 1 KiB", "get objects of 1 KiB"],
            Unit::Operations,
        ),
    ] {
        let mut data = vec![0; size];
        rand::fill(&mut data[..]);
        let data = Bytes::from(data);
        let mine = Mutex::new(Vec::new());
        let put = async |_: u64| {
            let object = Object::Test(rand::random());
            // Before it is there: what was begun may come to its end.
            made.lock().unwrap_or_else(PoisonError::into_inner).push(object.clone());
            bucket.put(&object, data.clone()).await?;
            mine.lock().unwrap_or_else(PoisonError::into_inner).push(object);
            Ok(())
        };
        let times = rounds_of(what[0], rounds, threads, stop, tell, put).await?;
        let bytes = times.0.count() * size as u64;
        rows.push(Row::new(names[0], what[0], unit, bytes, times));

        let mine = mine.into_inner().unwrap_or_else(PoisonError::into_inner);
        let get = async |n: u64| {
            let object = &mine[n as usize];
            if bucket.get(object, None).await? != data {
                let why = "it is not what was put there";
                return Err(Error::with_source(
                    Kind::Corrupt,
                    format!("{object} in {}", bucket.place()),
                    why,
                ));
            }
            Ok(())
        };
        let times = rounds_of(what[1], mine.len() as u64, threads, stop, tell, get).await?;
        let bytes = times.0.count() * size as u64;
        rows.push(Row::new(names[1], what[1], unit, bytes, times));
    }
    Ok(rows)
}

/// Reads a row and commits a change of it, `threads` at a time. The row is the session's own, and goes with it.
pub async fn engine(
    meta: &Meta,
    threads: usize,
    stop: &CancellationToken,
    tell: Tell<'_>,
) -> Result<Vec<Row>> {
    let kv = &**meta.kv();
    let key = Key::new(SESSIONS, session_field(meta.session()));
    let gone = || Error::new(Kind::Fenced, "the session of the benchmark");
    let read = async |_: u64| kv.get(std::slice::from_ref(&key)).await?.pop().flatten().ok_or_else(gone);
    let reads =
        rounds_of("metadata read", READS, threads, stop, tell, async |n| read(n).await.map(drop)).await?;
    let commit = async |n: u64| meta.rewrite_row(Duration::from_nanos(n)).await;
    let commits = rounds_of("metadata commit", COMMITS, threads, stop, tell, commit).await?;
    Ok(vec![
        Row::new("meta_read", "metadata read", Unit::Operations, 0, reads),
        Row::new("meta_commit", "metadata commit", Unit::Operations, 0, commits),
    ])
}

/// Does `work` as often as there is time for, with each number once. What was begun is brought to its end, also when told to
/// stop.
async fn rounds_of(
    what: &'static str,
    rounds: u64,
    threads: usize,
    stop: &CancellationToken,
    tell: Tell<'_>,
    work: impl AsyncFn(u64) -> Result<()>,
) -> Result<(Laps, Duration)> {
    let begun = Instant::now();
    let done = AtomicU64::new(0);
    let failed = Mutex::new(None);
    let laps = Mutex::new(Laps::default());
    tell(Progress { what, done: 0, of: rounds, bytes: false });
    let over = |n: u64| {
        let failed = failed.lock().unwrap_or_else(PoisonError::into_inner).is_some();
        failed || stop.is_cancelled() || (n > 0 && begun.elapsed() > BUDGET)
    };
    let round = async |n: u64| {
        if over(n) {
            return;
        }
        let begun = Instant::now();
        match work(n).await {
            Ok(()) => laps.lock().unwrap_or_else(PoisonError::into_inner).note(begun.elapsed()),
            Err(e) => _ = failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(e),
        }
        tell(Progress { what, done: done.fetch_add(1, Relaxed) + 1, of: rounds, bytes: false });
    };
    stream::iter(0..rounds).map(round).buffer_unordered(threads).collect::<()>().await;
    let took = begun.elapsed();
    match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(e) => Err(e),
        None if stop.is_cancelled() => Err(interrupted()),
        None => Ok((laps.into_inner().unwrap_or_else(PoisonError::into_inner), took)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::SessionInfo;
    use crate::meta::memory::MemoryKv;
    use crate::types::Timestamp;

    #[tokio::test]
    async fn objects_come_and_go() {
        let bucket = Bucket::in_memory("v");
        let rows = store(&bucket, 3, &CancellationToken::new(), &|_| ()).await.expect("done");
        let of: Vec<_> = rows.iter().map(|row| (row.name, row.count, row.bytes)).collect();
        assert_eq!(
            of,
            [
                ("put", 16, 64 << 20),
                ("get", 16, 64 << 20),
                ("put_small", 64, 64 << 10),
                ("get_small", 64, 64 << 10)
            ]
        );
        assert!(bucket.list("", None, 10).await.expect("listed").is_empty());

        let stop = CancellationToken::new();
        let tell = |p: Progress| {
            if p.what.contains("1 KiB") && p.done == 5 {
                stop.cancel();
            }
        };
        let stopped = store(&bucket, 3, &stop, &tell).await.expect_err("stopped");
        assert_eq!(stopped.kind(), Kind::Interrupted);
        assert!(bucket.list("", None, 10).await.expect("listed").is_empty());
    }

    #[tokio::test]
    async fn the_engine_reads_and_commits() {
        let info = SessionInfo {
            host: "h".into(),
            pid: 1,
            mountpoint: "(bench)".into(),
            started: Timestamp::now(),
            version: "1".into(),
            read_only: false,
        };
        let meta = Meta::open(MemoryKv::new(), info, Duration::from_secs(30)).await.expect("opened");
        let rows = engine(&meta, 2, &CancellationToken::new(), &|_| ()).await.expect("done");
        let of: Vec<_> = rows.iter().map(|row| (row.name, row.count)).collect();
        assert_eq!(of, [("meta_read", 400), ("meta_commit", 200)]);
        let sessions = meta.sessions().await.expect("listed");
        assert_eq!((sessions.len(), sessions[0].info.mountpoint.as_str()), (1, "(bench)"));
        meta.close().await.expect("closed");
        let fenced = engine(&meta, 2, &CancellationToken::new(), &|_| ()).await.expect_err("no session");
        assert_eq!(fenced.kind(), Kind::Fenced);
    }
}
