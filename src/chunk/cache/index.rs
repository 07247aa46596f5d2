//! The format of an index file: one header, then one record per chunk at a fixed place, 64 bytes each.
//!
//! A record is written after the chunk's data and cleared before that data is touched. Each carries a check over itself
//! and its number, so that a torn or misplaced record reads as "not there".

use crate::error::{Error, Kind, Result};
use crate::source::Provider;

/// Bytes of the header and of each record.
pub const RECORD_LEN: u64 = 64;
const MAGIC: [u8; 8] = *b"hfmidx\x00\x01";

/// What the holder of a content compares to know that a chunk is the one it means: for file data a digest of the
/// chunk's extents, for blobs (whose name says it all) zeros.
pub type Tag = [u8; 16];

/// The tag of every chunk of a blob.
pub const BLOB_TAG: Tag = [0; 16];

/// What one chunk of a cache file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    pub tag: Tag,
    /// BLAKE3 of the chunk's first `len` bytes.
    pub hash: [u8; 32],
    /// Bytes of the chunk that count, from its start.
    pub len: u32,
    /// The run of the daemon that wrote the data or checked it last.
    pub epoch: u32,
    /// Known to be in the bucket.
    pub stored: bool,
    /// Where the bytes came from when they came to this disk.
    pub from: Provider,
}

impl Record {
    /// The 64 bytes of the record of chunk `idx`.
    #[must_use]
    pub fn encode(&self, idx: u64) -> [u8; 64] {
        let mut b = [0; 64];
        b[0] = 1;
        b[1] = u8::from(self.stored);
        b[2] = self.from as u8;
        b[4..8].copy_from_slice(&self.len.to_le_bytes());
        b[8..24].copy_from_slice(&self.tag);
        b[24..56].copy_from_slice(&self.hash);
        b[56..60].copy_from_slice(&self.epoch.to_le_bytes());
        seal(&mut b, idx);
        b
    }

    /// The record, or `None` when the chunk is absent or the bytes are not what was written for chunk `idx`.
    #[must_use]
    pub fn decode(b: &[u8; 64], idx: u64) -> Option<Self> {
        if b[0] != 1 || !sealed(b, idx) {
            return None;
        }
        Some(Record {
            tag: array(&b[8..24]),
            hash: array(&b[24..56]),
            len: u32::from_le_bytes(array(&b[4..8])),
            epoch: u32::from_le_bytes(array(&b[56..60])),
            stored: b[1] & 1 != 0,
            from: Provider::from_number(b[2]),
        })
    }
}

/// What holds for the whole content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub chunk_size: u32,
    /// Bytes of the content.
    pub size: u64,
    /// The inode number of the data file on its disk: another one means that the pair was copied or mixed up.
    pub data_ino: u64,
    /// The data file was handed to the kernel once: it is never punched, truncated or written again.
    pub passthrough: bool,
    /// The hashes in the records belong to a content whose whole digest was checked.
    pub verified: bool,
}

/// The number that the header is sealed with; no chunk has it.
const HEADER_IDX: u64 = u64::MAX;

impl Header {
    /// The 64 bytes of the header.
    #[must_use]
    pub fn encode(&self) -> [u8; 64] {
        let mut b = [0; 64];
        b[..8].copy_from_slice(&MAGIC);
        b[8..12].copy_from_slice(&self.chunk_size.to_le_bytes());
        b[12] = u8::from(self.passthrough) | u8::from(self.verified) << 1;
        b[16..24].copy_from_slice(&self.size.to_le_bytes());
        b[24..32].copy_from_slice(&self.data_ino.to_le_bytes());
        seal(&mut b, HEADER_IDX);
        b
    }

    /// The header; [`Kind::Corrupt`] when the bytes are none of this version.
    pub fn decode(b: &[u8; 64]) -> Result<Self> {
        if b[..8] != MAGIC || !sealed(b, HEADER_IDX) {
            return Err(Error::new(Kind::Corrupt, "index header"));
        }
        Ok(Header {
            chunk_size: u32::from_le_bytes(array(&b[8..12])),
            size: u64::from_le_bytes(array(&b[16..24])),
            data_ino: u64::from_le_bytes(array(&b[24..32])),
            passthrough: b[12] & 1 != 0,
            verified: b[12] & 2 != 0,
        })
    }
}

/// Where the record of chunk `idx` lies in the index file.
#[must_use]
pub fn record_offset(idx: u64) -> u64 {
    (idx + 1) * RECORD_LEN
}

fn array<const N: usize>(b: &[u8]) -> [u8; N] {
    b.try_into().expect("the range has N bytes")
}

fn check(b: &[u8; 64], idx: u64) -> [u8; 4] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&b[..60]).update(&idx.to_le_bytes());
    array(&hasher.finalize().as_bytes()[..4])
}

fn seal(b: &mut [u8; 64], idx: u64) {
    let check = check(b, idx);
    b[60..].copy_from_slice(&check);
}

fn sealed(b: &[u8; 64], idx: u64) -> bool {
    b[60..] == check(b, idx)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORD: Record =
        Record { tag: [7; 16], hash: [9; 32], len: 4096, epoch: 3, stored: true, from: Provider::Peer };

    #[test]
    fn records_round_trip_and_know_their_place() {
        let b = RECORD.encode(5);
        assert_eq!(Record::decode(&b, 5), Some(RECORD));
        assert_eq!(Record::decode(&b, 6), None, "misplaced");
        assert_eq!(Record::decode(&[0; 64], 5), None, "a hole");
    }

    #[test]
    fn a_torn_record_is_absent() {
        let b = RECORD.encode(5);
        for cut in [8, 24, 32, 60] {
            let mut torn = [0; 64];
            torn[..cut].copy_from_slice(&b[..cut]);
            assert_eq!(Record::decode(&torn, 5), None, "cut at {cut}");
        }
        for byte in 0..64 {
            let mut bad = b;
            bad[byte] ^= 0x10;
            assert_eq!(Record::decode(&bad, 5), None, "byte {byte}");
        }
    }

    #[test]
    fn headers_round_trip() {
        let h =
            Header { chunk_size: 4 << 20, size: 1 << 40, data_ino: 77, passthrough: false, verified: true };
        assert_eq!(Header::decode(&h.encode()).expect("as encoded"), h);
        assert!(Header::decode(&[0; 64]).is_err());
        assert!(Header::decode(&RECORD.encode(0)).is_err());
    }
}
