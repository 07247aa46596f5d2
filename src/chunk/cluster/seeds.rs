//! Blobs on other disks of this machine: the other nodes are told of them as of what is in the cache, so that nothing is
//! downloaded that lies on a disk of the cluster. Whoever asks for one has it taken into the cache here first, checked like all
//! that comes from anywhere.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use crate::chunk::cache::{CacheDir, ContentKey};
use crate::chunk::shared::Shared;
use crate::error::Result;
use crate::peer::Peers;
use crate::source::Source;
use crate::types::BlobId;

/// Blobs that the others are told of: the largest. Each takes some 300 bytes of Redis.
const MOST: usize = 16 << 10;
/// How many of them in one call, and the pause after it.
const TOGETHER: usize = 64;
const PACE: Duration = Duration::from_millis(20);
/// How often it is looked what lies there; until that is known at all.
const LOOK: Duration = Duration::from_mins(1);
const SOON: Duration = Duration::from_millis(200);
/// After the tracker did not answer.
const AGAIN: Duration = Duration::from_secs(10);

/// Tells what lies there: when that is known, when it has changed, and whenever the tracker has lost what it knew or is about to.
pub(in crate::chunk) async fn tell(shared: Arc<Shared>, peers: Arc<Peers>) {
    let (sources, cache) = (shared.sources.clone(), shared.cache.clone());
    let chunk_size = u64::from(shared.options.chunk_size);
    drop(shared);
    let mut again = peers.to_advertise();
    let mut told: HashSet<BlobId> = HashSet::new();
    loop {
        let pause = match all_near(&sources) {
            None => SOON,
            Some(all) => match tell_new(&peers, &cache, chunk_size, &all, &mut told).await {
                Ok(()) => LOOK,
                Err(e) => {
                    tracing::debug!(error = %e, "the other nodes are not told of seeds");
                    AGAIN
                }
            },
        };
        tokio::select! {
            changed = again.changed() => match changed {
                Ok(()) => told.clear(),
                Err(_) => return,
            },
            () = sleep(pause) => {}
        }
    }
}

fn all_near(sources: &[Arc<dyn Source>]) -> Option<Vec<(BlobId, u64)>> {
    let mut all = Vec::new();
    for source in sources {
        all.extend(source.all_near(MOST)?);
    }
    all.truncate(MOST);
    Some(all)
}

async fn tell_new(
    peers: &Peers,
    cache: &CacheDir,
    chunk_size: u64,
    all: &[(BlobId, u64)],
    told: &mut HashSet<BlobId>,
) -> Result<()> {
    let new: Vec<&(BlobId, u64)> = all.iter().filter(|(blob, _)| !told.contains(blob)).collect();
    for some in new.chunks(TOGETHER) {
        peers.tell_whole(some.iter().map(|(blob, size)| (*blob, size.div_ceil(chunk_size)))).await?;
        told.extend(some.iter().map(|(blob, _)| *blob));
        sleep(PACE).await;
    }
    if told.len() > all.len() {
        let here: HashSet<BlobId> = all.iter().map(|(blob, _)| *blob).collect();
        let gone: Vec<BlobId> = told.difference(&here).copied().collect();
        for blob in gone {
            // What is in the cache is there still.
            if !cache.knows(&ContentKey::Blob(blob)) {
                peers.withdraw(blob, None).await;
            }
            told.remove(&blob);
        }
    }
    Ok(())
}
