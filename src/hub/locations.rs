//! Where the CDN has files: the signed URLs that the Hub redirected to, remembered until they run out.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lru::LruCache;
use reqwest::Url;
use tokio::sync::OnceCell;
use tokio::time::Instant;

use crate::types::Origin;

const CAPACITY: NonZeroUsize = NonZeroUsize::new(4_096).expect("not zero");
/// For URLs that do not say how long they are good, and no longer than that for any.
const UNKNOWN_LIFE: Duration = Duration::from_secs(600);

/// Where the bytes of one file come from.
#[derive(Clone, Debug)]
pub enum Located {
    /// The Hub answers them itself.
    Hub,
    Cdn {
        url: Url,
        until: Instant,
    },
}

impl Located {
    /// A place on another origin.
    pub fn cdn(url: Url) -> Self {
        let lasts = life(&url, SystemTime::now());
        Self::cdn_for(url, lasts)
    }

    /// The same, known to be good for so long.
    pub fn cdn_for(url: Url, lasts: Duration) -> Self {
        Located::Cdn { url, until: Instant::now() + lasts.min(UNKNOWN_LIFE) }
    }

    fn is_over(&self) -> bool {
        matches!(self, Located::Cdn { until, .. } if *until <= Instant::now())
    }
}

/// One file's place. Whoever comes first finds it out; the others of the same moment wait for the answer, so that
/// reading ahead with many requests asks the Hub once.
pub type Cell = Arc<OnceCell<Located>>;

/// The places of the files read last.
#[derive(Debug)]
pub struct Locations(Mutex<LruCache<Origin, Cell>>);

impl Default for Locations {
    fn default() -> Self {
        Locations(Mutex::new(LruCache::new(CAPACITY)))
    }
}

impl Locations {
    /// The cell of a file: a fresh one if the URL in it has run out.
    pub fn cell(&self, origin: &Origin) -> Cell {
        let mut cells = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match cells.get(origin) {
            Some(cell) if !cell.get().is_some_and(Located::is_over) => cell.clone(),
            _ => {
                let cell = Cell::default();
                cells.put(origin.clone(), cell.clone());
                cell
            }
        }
    }

    /// Whether this is still the file's place.
    pub fn has(&self, origin: &Origin, cell: &Cell) -> bool {
        let cells = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        cells.peek(origin).is_some_and(|known| Arc::ptr_eq(known, cell))
    }

    /// Drops the place that was refused, unless somebody has put a new one there.
    pub fn forget(&self, origin: &Origin, refused: &Cell) {
        let mut cells = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if cells.peek(origin).is_some_and(|cell| Arc::ptr_eq(cell, refused)) {
            cells.pop(origin);
        }
    }
}

/// How long a signed URL may be used from now on: a tenth less than what it says itself (`X-Amz-Expires` is a
/// duration, `Expires` a moment).
fn life(url: &Url, now: SystemTime) -> Duration {
    let number = |name: &str| url.query_pairs().find(|(k, _)| k == name)?.1.parse::<u64>().ok();
    let now = now.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    // A moment in the past means that one of two clocks is wrong: the CDN will say.
    let moment = number("Expires").map(|at| at.saturating_sub(now)).filter(|left| *left > 0);
    let told = [number("X-Amz-Expires"), moment].into_iter().flatten().min();
    told.map_or(UNKNOWN_LIFE, |s| Duration::from_secs(s).mul_f64(0.9).min(UNKNOWN_LIFE))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Commit, RepoId, RepoKind};

    fn url(query: &str) -> Url {
        Url::parse(&format!("https://cdn.example/x?{query}")).expect("valid")
    }

    #[test]
    fn how_long_urls_are_good() {
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
        let life = |query| life(&url(query), now).as_secs();
        assert_eq!(life("X-Amz-Date=20240101T000000Z&X-Amz-Expires=100"), 90);
        assert_eq!(life("Expires=1000050&Signature=x"), 45);
        assert_eq!(life("X-Amz-Expires=100&Expires=1000050"), 45);
        assert_eq!(life("Expires=5"), 600);
        assert_eq!(life("X-Amz-Expires=99999"), 600);
        assert_eq!(life(""), 600);
    }

    #[test]
    fn a_refused_place_is_forgotten_once() {
        let repo = RepoId { kind: RepoKind::Model, id: "a/b".to_owned() };
        let origin = Origin { repo, commit: Commit([0; 20]), path: "x".to_owned() };
        let locations = Locations::default();
        let old = locations.cell(&origin);
        old.set(Located::cdn(url("X-Amz-Expires=100"))).expect("empty");
        assert!(Arc::ptr_eq(&old, &locations.cell(&origin)));
        locations.forget(&origin, &old);
        let new = locations.cell(&origin);
        assert!(!Arc::ptr_eq(&old, &new));
        locations.forget(&origin, &old);
        assert!(Arc::ptr_eq(&new, &locations.cell(&origin)));
        new.set(Located::Cdn { url: url(""), until: Instant::now() }).expect("empty");
        assert!(!Arc::ptr_eq(&new, &locations.cell(&origin)), "a URL that has run out is not used");
    }
}
