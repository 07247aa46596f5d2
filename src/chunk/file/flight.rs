//! One flight per chunk: whoever wants the same work done meanwhile waits for it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};

use super::Shared as Files;
use crate::error::{Error, Kind, Result};

type Landing = Shared<BoxFuture<'static, Result<(), Arc<Error>>>>;

/// Work under way, by chunk.
#[derive(Debug, Default)]
pub(super) struct Flights(Arc<Mutex<HashMap<u64, Landing>>>);

impl Flights {
    /// Begins `work` for chunk `idx` unless it is under way already (and perhaps almost over), and gives back what to
    /// wait for. The work goes on though nobody waits.
    pub fn board<F>(&self, files: &Files, idx: u64, work: impl FnOnce() -> F) -> Boarded
    where
        F: Future<Output = Result<()>> + Send + 'static,
    {
        let mut flights = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(landing) = flights.get(&idx) {
            return Boarded { landing: landing.clone(), began: false };
        }
        let (all, work) = (self.0.clone(), work());
        let task = files.spawn(async move {
            // Also when the work panics.
            let _over = Over(all, idx);
            work.await.map_err(Arc::new)
        });
        let landing = task
            .map(|joined| {
                joined.unwrap_or_else(|e| Err(Arc::new(Error::with_source(Kind::Internal, "a transfer", e))))
            })
            .boxed()
            .shared();
        flights.insert(idx, landing.clone());
        Boarded { landing, began: true }
    }
}

struct Over(Arc<Mutex<HashMap<u64, Landing>>>, u64);

impl Drop for Over {
    fn drop(&mut self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.1);
    }
}

/// A place on a flight.
pub(super) struct Boarded {
    landing: Landing,
    /// Whether it began with this one: everything that was to be done before is part of it.
    pub began: bool,
}

impl Boarded {
    pub async fn landed(self) -> Result<()> {
        self.landing.await.map_err(|e| e.share())
    }
}
