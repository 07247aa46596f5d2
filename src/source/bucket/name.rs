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

impl Object {
    /// The object that a listed name stands for; `None` for a name that no version writes. Of a blob chunk's hash only the
    /// first 8 bytes are known; the rest are zeros, and name the same object.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        let parts: Vec<&str> = name.split('/').collect();
        let object = match parts[..] {
            ["chunks", session, seq] => {
                Object::FileChunk(ObjectId { session: session.parse().ok()?, seq: seq.parse().ok()? })
            }
            ["blobs", _, etag, chunk] => {
                let (index, digits) = chunk.split_once('-')?;
                let mut hash = [0; 32];
                hex::decode_to_slice(digits, &mut hash[..8]).ok()?;
                Object::BlobChunk { blob: BlobId::from_etag(etag)?, index: index.parse().ok()?, hash }
            }
            ["hfmount.json"] => Object::Marker,
            [test] => Object::Test(u64::from_str_radix(test.strip_prefix("test-")?, 16).ok()?),
            _ => return None,
        };
        // One object, one name.
        (object.parts().join("/") == name).then_some(object)
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

    #[test]
    fn listed_names_are_understood() {
        let mut hash = [0; 32];
        hash[..8].copy_from_slice(&[7; 8]);
        let id = ObjectId { session: SessionId(0x1f), seq: 7 };
        for object in [
            Object::BlobChunk { blob: BlobId::Git([1; 20]), index: 3, hash },
            Object::BlobChunk { blob: BlobId::Sha256([1; 32]), index: 0, hash },
            Object::FileChunk(id),
            Object::Marker,
            Object::Test(9),
        ] {
            assert_eq!(Object::parse(&object.parts().join("/")), Some(object));
        }
        for name in
            ["chunks/1f/7", "chunks/000000000000001f/07", "chunks/x/7/y", "blobs/aa/bb/1-2", "other", ""]
        {
            assert_eq!(Object::parse(name), None, "{name}");
        }
    }
}
