//! Objects of file data on their way out of the bucket: whole, and held to their checksums before a byte is used.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;

use super::Shared;
use crate::blocking::blocking;
use crate::error::{Error, Kind, Result};
use crate::source::bucket::Object;
use crate::types::{Extent, ObjectId, ObjectSum};

/// Up to so many bytes of objects are hashed where one is.
const SMALL: usize = 64 << 10;
/// Bytes of [`Recent`] objects, besides the last one.
const RECENT: usize = 8 << 20;

/// The objects that were fetched last. A reader whom the local disk cannot serve asks for one object again and again, a
/// piece at a time.
#[derive(Debug, Default)]
pub(super) struct Recent(Mutex<VecDeque<(ObjectId, Bytes)>>);

impl Recent {
    fn get(&self, object: ObjectId) -> Option<Bytes> {
        let recent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        recent.iter().find(|(o, _)| *o == object).map(|(_, bytes)| bytes.clone())
    }

    fn keep(&self, object: ObjectId, bytes: &Bytes) {
        let mut recent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        recent.retain(|(o, _)| *o != object);
        recent.push_back((object, bytes.clone()));
        let mut all: usize = recent.iter().map(|(_, b)| b.len()).sum();
        while all > RECENT && recent.len() > 1 {
            all -= recent.pop_front().map_or(0, |(_, b)| b.len());
        }
    }
}

impl Shared {
    /// All of an object, as it was stored. What does not match its checksum is asked for once more (it may have been
    /// spoiled on the way) and then refused with [`Kind::Corrupt`]; [`Kind::NotFound`] if it is gone. `again`: it is kept
    /// in memory for a moment.
    pub(super) async fn whole_object(&self, id: ObjectId, sum: ObjectSum, again: bool) -> Result<Bytes> {
        if let Some(bytes) = self.recent.get(id) {
            return Ok(bytes);
        }
        let object = Object::FileChunk(id);
        let mut first = None;
        loop {
            let got = match self.bucket.get(&object, None).await {
                Ok(bytes) => check(&object, bytes, sum).await,
                Err(e) => Err(e),
            };
            match got {
                Ok(bytes) => {
                    if again {
                        self.recent.keep(id, &bytes);
                    }
                    return Ok(bytes);
                }
                Err(e) if e.kind() == Kind::Corrupt && first.is_none() => {
                    tracing::warn!(error = %e, "bytes from the bucket are not what was stored: asking once more");
                    first = Some(e);
                }
                Err(e) => return Err(e),
            }
        }
    }
}

async fn check(object: &Object, bytes: Bytes, sum: ObjectSum) -> Result<Bytes> {
    let corrupt = |why: String| Err(Error::with_source(Kind::Corrupt, object.to_string(), why));
    if bytes.len() != sum.len as usize {
        return corrupt(format!("{} bytes for {}", bytes.len(), sum.len));
    }
    let now = if bytes.len() <= SMALL {
        ObjectSum::of(&bytes)
    } else {
        let bytes = bytes.clone();
        blocking(move || Ok(ObjectSum::of(&bytes))).await?
    };
    match now == sum {
        true => Ok(bytes),
        false => corrupt(format!("BLAKE3 {} for {}", hex::encode(now.hash), hex::encode(sum.hash))),
    }
}

/// The bytes of an extent out of its whole object.
pub(super) fn slice(whole: &Bytes, e: &Extent) -> Result<Bytes> {
    let end = u64::from(e.object_offset) + u64::from(e.len);
    if end > whole.len() as u64 {
        let why = format!("an extent ends at {end} of {} bytes", whole.len());
        return Err(Error::with_source(Kind::Corrupt, Object::FileChunk(e.object).to_string(), why));
    }
    Ok(whole.slice(e.object_offset as usize..end as usize))
}
