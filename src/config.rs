//! What users set: the volume (once, by `format`) and the mount (each time), and how they write it.

mod home;
mod options;
pub mod units;
mod volume;

pub use home::Home;
pub use options::MountOptions;
pub use volume::{
    CLIENT, PUBLIC_HUB, StorageKeys, StoreHubBlobs, VOLUME_SCHEMA, Volume, a_day, check_chunk_size,
    check_name,
};
