//! What the objects of a volume are called: the one place.

use std::fmt;

use crate::types::{BlobId, ObjectId};

/// The name of an object, relative to the volume.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Object {
    /// `blobs/<aa>/<oid>/<index>-<blake3, first 16 hex digits>`: the name says what must be in it, so that a wrong
    /// fill never stands in the way of the right one.
    BlobChunk { blob: BlobId, index: u64, hash: [u8; 32] },
    /// `chunks/<session>/<n>`: file data.
    FileChunk(ObjectId),
    /// `hfmount.json`: whose volume this is.
    Marker,
    /// `test-<16 hex digits>`: made and deleted to see that it works.
    Test(u64),
}

impl Object {
    pub(super) fn parts(&self) -> Vec<String> {
        match self {
            Object::BlobChunk { blob, index, hash } => {
                let etag = blob.etag();
                vec![
                    "blobs".into(),
                    etag[..2].to_owned(),
                    etag,
                    format!("{index}-{}", hex::encode(&hash[..8])),
                ]
            }
            Object::FileChunk(id) => vec!["chunks".into(), id.session.to_string(), id.seq.to_string()],
            Object::Marker => vec!["hfmount.json".into()],
            Object::Test(n) => vec![format!("test-{n:016x}")],
        }
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "object {}", self.parts().join("/"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::SessionId;

    #[test]
    fn names_are_as_documented() {
        let blob = BlobId::Git([0x3f; 20]);
        let mut hash = [0xab; 32];
        hash[8] = 0;
        assert_eq!(
            Object::BlobChunk { blob, index: 12, hash }.to_string(),
            format!("object blobs/3f/{}/12-abababababababab", "3f".repeat(20))
        );
        let id = ObjectId { session: SessionId(0x1f), seq: 7 };
        assert_eq!(Object::FileChunk(id).to_string(), "object chunks/000000000000001f/7");
    }
}
