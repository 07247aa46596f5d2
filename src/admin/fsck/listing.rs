//! All objects of the bucket, 16 bytes each.

use crate::admin::{Progress, Tell};
use crate::error::Result;
use crate::source::bucket::{Bucket, Object};

/// Names and lengths of objects, as the bucket had them when it was listed. What came later is not in it.
#[derive(Debug)]
pub(super) struct Listing(Vec<([u8; 12], u32)>);

/// 96 bits of a name's hash: of a billion objects two are alike with a chance of one in 10^11.
fn key(object: &Object) -> [u8; 12] {
    let mut key = [0; 12];
    key.copy_from_slice(&blake3::hash(object.to_string().as_bytes()).as_bytes()[..12]);
    key
}

impl Listing {
    pub async fn new(bucket: &Bucket, tell: Tell<'_>) -> Result<Self> {
        let mut all = Vec::new();
        tell(Progress { what: "objects", done: 0, of: None });
        bucket
            .each("", |listed| {
                if let Some(object) = Object::parse(&listed.name) {
                    all.push((key(&object), u32::try_from(listed.size).unwrap_or(u32::MAX)));
                }
                if all.len().is_multiple_of(1000) {
                    tell(Progress { what: "objects", done: all.len() as u64, of: None });
                }
            })
            .await?;
        all.sort_unstable();
        Ok(Listing(all))
    }

    /// The object's length.
    pub fn len_of(&self, object: &Object) -> Option<u64> {
        // Only the first 8 bytes of a blob chunk's hash are in its name.
        let at = self.0.binary_search_by_key(&key(object), |(key, _)| *key).ok()?;
        Some(self.0[at].1.into())
    }
}
