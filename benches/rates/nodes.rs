//! Mounts without a kernel, in this process: each has its own session and connections, they share one Redis. What a kernel
//! asks for each operation is asked here too: the name first, then what is done with it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hfmount::chunk::cache::{CacheDir, CacheLimits};
use hfmount::chunk::{Chunks, ChunksOptions, Files};
use hfmount::meta::sqlite::Missing;
use hfmount::meta::url::{MetaUrl, open_engine};
use hfmount::meta::{Meta, SessionInfo};
use hfmount::source::bucket::{Bucket, BucketSource};
use hfmount::types::{Ino, Timestamp};
use hfmount::vfs::{Caller, Lookup, Private, Vfs, VfsOptions};
use tokio::task::JoinSet;

use crate::Outcome;
use crate::laps::{Laps, summary};

const CALLER: Caller = Caller { uid: 0, gid: 0, pid: 0 };
const TTL: Duration = Duration::from_secs(1);

#[derive(Debug, clap::Args)]
pub struct Args {
    #[arg(long)]
    redis: String,
    #[arg(long, default_value_t = 4)]
    nodes: usize,
    /// Of all nodes together
    #[arg(long, default_value_t = 16)]
    tasks: usize,
    /// Operations of each kind, of all tasks together
    #[arg(long, default_value_t = 8000)]
    count: usize,
}

struct Node {
    vfs: Arc<Vfs>,
    meta: Meta,
    _dir: tempfile::TempDir,
}

#[derive(Clone, Copy)]
enum What {
    Create,
    Stat,
    Unlink,
}

pub async fn run(args: Args) -> Outcome {
    let client = redis::Client::open(args.redis.as_str())?;
    let mut server = client.get_multiplexed_async_connection().await?;
    let mut nodes = Vec::new();
    for _ in 0..args.nodes {
        nodes.push(node(&args.redis).await?);
    }
    let name = format!("rates-{}-{}", std::process::id(), args.nodes);
    let dir = nodes[0].vfs.mkdir(&CALLER, Ino::ROOT, name.as_bytes(), 0o755).await?.stat.ino;
    let mut answer = serde_json::Map::new();
    for (what, title) in [(What::Create, "create"), (What::Stat, "stat"), (What::Unlink, "unlink")] {
        let before = processor(&mut server).await?;
        let mut done = phase(&nodes, dir, what, &args).await?;
        let used = processor(&mut server).await? - before;
        done["cpu"] = (used * 1e6 / args.count.max(1) as f64).into();
        answer.insert(title.into(), done);
    }
    nodes[0].vfs.rmdir(&CALLER, Ino::ROOT, name.as_bytes()).await?;
    for node in &nodes {
        node.meta.close().await?;
    }
    Ok(answer.into())
}

/// Seconds of processor that this process and the server have used.
async fn processor(server: &mut redis::aio::MultiplexedConnection) -> Result<f64, redis::RedisError> {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    let info: redis::InfoDict = redis::cmd("INFO").arg("cpu").query_async(server).await?;
    let theirs: f64 = ["used_cpu_sys", "used_cpu_user"].iter().filter_map(|name| info.get::<f64>(name)).sum();
    Ok(theirs + used.tv_sec as f64 + used.tv_nsec as f64 / 1e9)
}

async fn phase(nodes: &[Node], dir: Ino, what: What, args: &Args) -> Outcome {
    let each = (args.count / args.tasks).max(1);
    let began = Instant::now();
    let mut running = JoinSet::new();
    for task in 0..args.tasks {
        let vfs = nodes[task % nodes.len()].vfs.clone();
        // What was made on one node is looked at on the next.
        let owner = if matches!(what, What::Stat) { (task + 1) % args.tasks } else { task };
        running.spawn(async move {
            let mut laps = Laps::default();
            for n in 0..each {
                let name = format!("file-{owner}-{n}");
                let began = Instant::now();
                operation(&vfs, dir, name.as_bytes(), what).await?;
                laps.note(began);
            }
            Ok::<_, hfmount::error::Error>(laps)
        });
    }
    let mut laps = Vec::new();
    while let Some(done) = running.join_next().await {
        laps.push(done??);
    }
    Ok(summary(laps, began.elapsed()))
}

async fn operation(vfs: &Arc<Vfs>, dir: Ino, name: &[u8], what: What) -> hfmount::error::Result<()> {
    let found = vfs.lookup(&CALLER, dir, name).await?;
    match (what, found) {
        (What::Create, _) => {
            let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL;
            let (_, opened) = vfs.create(&CALLER, dir, name, 0o644, flags).await?;
            vfs.flush(opened.fh).await?;
            vfs.release(opened.fh, None).await
        }
        (What::Stat, Lookup::Found(_)) => Ok(()),
        (What::Stat, Lookup::Absent { .. }) => Err(hfmount::error::Kind::NotFound.into()),
        (What::Unlink, _) => vfs.unlink(&CALLER, dir, name).await,
    }
}

async fn node(redis: &str) -> Result<Node, Box<dyn std::error::Error + Send + Sync>> {
    let dir = tempfile::TempDir::with_prefix("hfmount-rates-")?;
    let kv = open_engine(&MetaUrl::parse(redis)?, Missing::Create).await?;
    let info = SessionInfo {
        host: "rates".into(),
        pid: std::process::id(),
        mountpoint: dir.path().display().to_string(),
        started: Timestamp::now(),
        version: env!("CARGO_PKG_VERSION").into(),
        read_only: false,
    };
    let meta = Meta::open(kv, info, Duration::from_secs(60)).await?;
    let limits = CacheLimits { free_ratio: 0.0, ..CacheLimits::default() };
    let cache = CacheDir::open(&dir.path().join("cache"), "rates", limits)?;
    let bucket = Bucket::in_memory("rates");
    let options = ChunksOptions::default();
    let chunk_size = options.chunk_size;
    let chunks = Arc::new(Chunks::new(
        options,
        cache.clone(),
        meta.blobs(),
        vec![Arc::new(BucketSource::new(&bucket))],
        Some(bucket.clone()),
    ));
    let files = Files::new(meta.clone(), cache, bucket, chunks.clone(), chunk_size);
    let (orders, kernel) = Vfs::invalidation_queue();
    // What a kernel would be told costs it nothing here.
    std::thread::spawn(move || while kernel.next().is_some() {});
    let private = Private::open(dir.path().join("private"))?;
    let opts = VfsOptions {
        uid: 0,
        gid: 0,
        umask: 0,
        read_only: false,
        relatime: false,
        entry_ttl: TTL,
        attr_ttl: TTL,
        tombstone_ttl: Duration::from_secs(3600),
        store_path: None,
    };
    let vfs = Vfs::new(meta.clone(), chunks, files, None, private, orders, opts);
    Ok(Node { vfs, meta, _dir: dir })
}
