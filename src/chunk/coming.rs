//! How much of a chunk has come while the rest of it is on its way: what a node passes on meanwhile. Nothing of that is
//! checked yet; who passes it on keeps the end back until the chunk has landed ([`Follow::landed`]).

use std::sync::Arc;

use tokio::sync::watch;

use super::flight::Landing;
use crate::error::{Error, Kind, Result};

/// What is on the disk of a chunk that is coming in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Come {
    /// Raised whenever it begins anew: what came before that may be other bytes.
    attempt: u64,
    bytes: u32,
}

/// Tells how far a chunk is. Goes with its flight.
#[derive(Clone, Debug, Default)]
pub(super) struct Coming(Arc<watch::Sender<Come>>);

impl Coming {
    /// A transfer of the chunk, which has `len` bytes, begins.
    pub fn begin(&self, len: u32) -> Mark {
        self.0.send_modify(|come| *come = Come { attempt: come.attempt + 1, bytes: 0 });
        Mark { coming: self.0.clone(), attempt: self.0.borrow().attempt, len }
    }

    /// For who passes the chunk on. `flight` is its flight's.
    pub fn follow(&self, flight: watch::Receiver<Option<Landing>>) -> Follow {
        Follow { come: self.0.subscribe(), flight, attempt: 0 }
    }
}

/// One transfer of one chunk. When it is dropped before all has come, those who follow hear that it was in vain.
#[derive(Debug)]
pub(super) struct Mark {
    coming: Arc<watch::Sender<Come>>,
    attempt: u64,
    len: u32,
}

impl Mark {
    /// Whether somebody follows.
    pub fn is_followed(&self) -> bool {
        self.coming.receiver_count() > 0
    }

    /// So many bytes are on the disk now.
    pub fn wrote(&self, bytes: usize) {
        self.coming.send_if_modified(|come| {
            let ours = come.attempt == self.attempt;
            if ours {
                come.bytes = bytes as u32;
            }
            ours
        });
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        self.coming.send_if_modified(|come| {
            let cut = come.attempt == self.attempt && come.bytes < self.len;
            if cut {
                *come = Come { attempt: come.attempt + 1, bytes: 0 };
            }
            cut
        });
    }
}

/// Follows a chunk that is coming in. As long as it lives, somebody waits for the chunk.
#[derive(Debug)]
pub(super) struct Follow {
    come: watch::Receiver<Come>,
    flight: watch::Receiver<Option<Landing>>,
    /// That is followed.
    attempt: u64,
}

impl Follow {
    /// Waits for the first bytes: `None`. Or until the flight has ended without them.
    pub async fn begun(&mut self) -> Option<Landing> {
        let Follow { come, flight, attempt } = self;
        tokio::select! {
            biased;
            landing = landing(flight) => Some(landing),
            first = come.wait_for(|come| come.bytes > 0) => {
                match first.map(|come| come.attempt) {
                    Ok(first) => {
                        *attempt = first;
                        None
                    }
                    Err(_) => Some(Landing::Failed(Arc::new(Error::from(Kind::Unavailable)))),
                }
            }
        }
    }

    /// Waits until more than `at` bytes are there; how many are.
    ///
    /// # Errors
    /// [`Kind::Unavailable`]: the transfer began anew, or failed.
    pub async fn beyond(&mut self, at: u32) -> Result<u32> {
        loop {
            let come = *self.come.borrow_and_update();
            if come.attempt != self.attempt {
                return Err(Error::new(Kind::Unavailable, "the transfer that was passed on failed"));
            }
            if come.bytes > at {
                return Ok(come.bytes);
            }
            if self.come.changed().await.is_err() {
                return Err(Error::new(Kind::Unavailable, "the transfer that was passed on ended early"));
            }
        }
    }

    /// Waits until the chunk has landed: it is what the cluster's record says.
    ///
    /// # Errors
    /// [`Kind::Unavailable`]: it did not come about, or not on the disk, or with other bytes than those that were followed.
    pub async fn landed(&mut self) -> Result<()> {
        let landing = landing(&mut self.flight).await;
        let same = self.come.borrow().attempt == self.attempt;
        match landing {
            Landing::Cached if same => Ok(()),
            _ => Err(Error::new(Kind::Unavailable, "the chunk that was passed on did not land")),
        }
    }
}

async fn landing(flight: &mut watch::Receiver<Option<Landing>>) -> Landing {
    match flight.wait_for(Option::is_some).await.as_deref() {
        Ok(Some(landing)) => landing.clone(),
        _ => Landing::Failed(Arc::new(Error::new(Kind::Unavailable, "the transfer was given up"))),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    const SOON: Duration = Duration::from_millis(20);

    fn chunk() -> (Coming, watch::Sender<Option<Landing>>, Follow) {
        let (coming, flight) = (Coming::default(), watch::Sender::new(None));
        let follow = coming.follow(flight.subscribe());
        (coming, flight, follow)
    }

    #[tokio::test]
    async fn who_follows_sees_all_that_comes_and_then_that_it_landed() {
        let (coming, flight, mut follow) = chunk();
        assert!(timeout(SOON, follow.begun()).await.is_err(), "nothing has come");
        let mark = coming.begin(100);
        assert!(timeout(SOON, follow.begun()).await.is_err(), "no byte has come");
        mark.wrote(30);
        assert!(follow.begun().await.is_none());
        assert_eq!(follow.beyond(0).await.expect("some"), 30);
        assert!(timeout(SOON, follow.beyond(30)).await.is_err(), "no more");
        mark.wrote(100);
        drop(mark);
        assert_eq!(follow.beyond(30).await.expect("all"), 100);
        assert!(timeout(SOON, follow.landed()).await.is_err(), "it is not settled");
        flight.send_replace(Some(Landing::Cached));
        follow.landed().await.expect("landed");
    }

    #[tokio::test]
    async fn a_transfer_that_begins_anew_is_not_taken_for_the_same() {
        let (coming, flight, mut follow) = chunk();
        let first = coming.begin(100);
        first.wrote(60);
        assert!(follow.begun().await.is_none());
        drop(first);
        assert_eq!(follow.beyond(50).await.expect_err("cut").kind(), Kind::Unavailable);
        coming.begin(100).wrote(100);
        assert_eq!(follow.beyond(50).await.expect_err("other bytes").kind(), Kind::Unavailable);
        flight.send_replace(Some(Landing::Cached));
        assert_eq!(follow.landed().await.expect_err("other bytes").kind(), Kind::Unavailable);
        // Who comes now follows the second.
        let mut late = coming.follow(flight.subscribe());
        assert!(matches!(late.begun().await, Some(Landing::Cached)));
    }

    #[tokio::test]
    async fn whole_and_wrong_is_never_landed() {
        let (coming, flight, mut follow) = chunk();
        let mark = coming.begin(10);
        mark.wrote(10);
        assert!(follow.begun().await.is_none());
        assert_eq!(follow.beyond(0).await.expect("all"), 10);
        drop(mark);
        flight.send_replace(Some(Landing::Failed(Arc::new(Error::from(Kind::Corrupt)))));
        assert!(follow.landed().await.is_err());
        drop(flight);
        assert!(follow.landed().await.is_err());
    }
}
