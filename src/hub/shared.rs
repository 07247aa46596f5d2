//! What several clients of one Hub tell each other: how long it wants to be left alone, and where it said files are. Who
//! carries that between them is not this room's affair.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use reqwest::Url;

use super::pace::Bucket;
use crate::types::BlobId;

/// Where a blob is, as the others know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A signed URL, good for so long from now.
    Known { url: String, lasts: Duration },
    /// Nobody knows: this client is to ask the Hub, and to give the ticket back with the answer.
    Ask(u64),
    /// The others cannot be asked, or are too slow: each for itself.
    Alone,
}

/// The other clients. All of it may fail: then each client does what it would do alone. Signed URLs are shared by those
/// only who have the same rights, and are never logged.
#[async_trait]
pub trait Shared: Debug + Send + Sync + 'static {
    /// How long the Hub still wants to be left alone; zero: it may be asked. Brief.
    async fn paused(&self, bucket: Bucket) -> Duration;

    /// It asked to be left alone for so long. Does not wait.
    fn pause(&self, bucket: Bucket, wait: Duration);

    /// Where a blob is. Waits for another client that is asking, no longer than `limit`.
    async fn locate(&self, blob: BlobId, limit: Duration) -> Place;

    /// The answer for a ticket: a URL, and how long it is good; or that there is none to share. Does not wait.
    fn located(&self, blob: BlobId, ticket: u64, found: Option<(&str, Duration)>);

    /// This URL was refused: nobody is given it any more.
    async fn refused(&self, blob: BlobId, url: &str);
}

/// The duty to say what came of asking. Dropped without a word, it says that nothing did.
pub(super) struct Ticket {
    shared: Arc<dyn Shared>,
    blob: BlobId,
    number: Option<u64>,
}

impl Ticket {
    pub fn new(shared: Arc<dyn Shared>, blob: BlobId, number: u64) -> Self {
        Ticket { shared, blob, number: Some(number) }
    }

    pub fn found(mut self, url: &Url, lasts: Duration) {
        if let Some(number) = self.number.take() {
            self.shared.located(self.blob, number, Some((url.as_str(), lasts)));
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(number) = self.number.take() {
            self.shared.located(self.blob, number, None);
        }
    }
}
