//! Whose volume lies at a place, and whether the place works.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Bucket, Object};
use crate::error::{Error, Kind, Result, ResultExt};
use crate::types::Timestamp;

/// The object that says whose volume this is: `<volume>/hfmount.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marker {
    /// The volume's identity, the same as in its metadata.
    pub uuid: String,
    pub name: String,
    /// Bytes of a chunk.
    pub chunk_size: u32,
    /// Which of several copies of the metadata goes on with what lies here: the one that was loaded from a dump then.
    /// `None`: the one that `format` made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loaded: Option<Timestamp>,
}

/// What [`Bucket::claim`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Claim {
    /// Nothing was there; it is this volume's now.
    Made,
    /// It was this volume's already.
    Ours,
}

impl Bucket {
    /// Puts, gets, compares and deletes a test object. The error says what the user must change.
    pub async fn check(&self) -> Result<()> {
        let object = Object::Test(rand::random());
        let data = Bytes::from(format!("hfmount was here: {object}"));
        self.put(&object, data.clone()).await?;
        let got = self.get(&object, None).await;
        let deleted = self.delete(&object).await;
        if got? != data {
            return Err(Error::with_source(
                Kind::Config,
                self.place().to_owned(),
                "a test object came back changed: is this an S3 server?",
            ));
        }
        deleted
    }

    /// The marker of the volume that lies here, if one does.
    pub async fn volume_marker(&self) -> Result<Option<Marker>> {
        let bytes = match self.get(&Object::Marker, None).await {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == Kind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        let marker = serde_json::from_slice(&bytes).map_err(|e| {
            Error::with_source(Kind::Corrupt, format!("{} in {}", Object::Marker, self.place()), e)
        })?;
        Ok(Some(marker))
    }

    /// Makes the place this volume's, or finds that it is. [`Kind::Exists`]: another volume's, or objects lie there that
    /// no volume accounts for. Two formats at once are told apart by reading the marker again; whoever wrote last has it.
    pub async fn claim(&self, marker: &Marker) -> Result<Claim> {
        if let Some(found) = self.volume_marker().await? {
            return self.compare(marker, &found).map(|()| Claim::Ours);
        }
        let strangers = self.list("", None, 1).await?;
        if let Some(stranger) = strangers.first() {
            let why =
                format!("it holds {:?} and no volume: choose an empty prefix or another name", stranger.name);
            return Err(Error::with_source(Kind::Exists, self.place().to_owned(), why));
        }
        self.put_marker(marker).await?;
        let found = self.volume_marker().await?.ok_or_else(|| {
            Error::with_source(Kind::Unavailable, self.place().to_owned(), "the volume marker vanished")
        })?;
        self.compare(marker, &found).map(|()| Claim::Made).context(|| "another format was faster")
    }

    /// Makes the place that of another copy of its volume's metadata.
    pub async fn hand_over(&self, marker: &Marker) -> Result<()> {
        let found = self.volume_marker().await?;
        found.map_or(Ok(()), |found| self.compare(marker, &found))?;
        self.put_marker(marker).await?;
        match self.volume_marker().await? {
            Some(found) if found.loaded == marker.loaded => Ok(()),
            _ => Err(Error::with_source(
                Kind::Busy,
                self.place().to_owned(),
                "another copy of the volume's metadata was mounted at the same time",
            )),
        }
    }

    async fn put_marker(&self, marker: &Marker) -> Result<()> {
        let bytes = serde_json::to_vec_pretty(marker)
            .map_err(|e| Error::with_source(Kind::Internal, "volume marker", e))?;
        self.put(&Object::Marker, bytes.into()).await
    }

    fn compare(&self, ours: &Marker, found: &Marker) -> Result<()> {
        if ours.uuid == found.uuid {
            return Ok(());
        }
        let why = format!("it holds another volume, {} ({})", found.name, found.uuid);
        Err(Error::with_source(Kind::Exists, self.place().to_owned(), why))
    }
}
