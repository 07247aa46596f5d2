//! The kinds of places that bytes come from.

use std::fmt;

use serde::Serialize;

/// From what kind of place bytes came into this node. Kept with each chunk in the cache as a number, which stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Provider {
    /// Nobody noted it: a version before this was noted, or data that programs wrote here.
    #[default]
    Unknown = 0,
    Bucket = 1,
    Hub = 2,
    Mirror = 3,
    Seed = 4,
    Peer = 5,
    /// A file of the volume that has the same bytes.
    File = 6,
}

impl Provider {
    /// All that are known by name.
    pub const ALL: [Provider; 7] = [
        Provider::Seed,
        Provider::Peer,
        Provider::Bucket,
        Provider::Mirror,
        Provider::Hub,
        Provider::File,
        Provider::Unknown,
    ];

    /// What a source calls itself, see [`Source::name`](super::Source::name).
    #[must_use]
    pub fn of(name: &str) -> Self {
        Self::ALL.into_iter().find(|p| p.name() == name).unwrap_or(Provider::Unknown)
    }

    /// The number's meaning; a number of a later version is [`Provider::Unknown`].
    #[must_use]
    pub fn from_number(number: u8) -> Self {
        Self::ALL.into_iter().find(|p| *p as u8 == number).unwrap_or(Provider::Unknown)
    }

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Provider::Unknown => "unknown",
            Provider::Bucket => "bucket",
            Provider::Hub => "hub",
            Provider::Mirror => "mirror",
            Provider::Seed => "seed",
            Provider::Peer => "peer",
            Provider::File => "file",
        }
    }

    /// In a sentence: `12 chunks from …`.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Provider::Unknown => "an unknown place",
            Provider::Bucket => "the storage",
            Provider::Hub => "the Hub",
            Provider::Mirror => "mirrors",
            Provider::Seed => "seeds",
            Provider::Peer => "peers",
            Provider::File => "a file of the volume",
        }
    }
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names_round_trip() {
        for provider in Provider::ALL {
            assert_eq!(Provider::from_number(provider as u8), provider);
            assert_eq!(Provider::of(provider.name()), provider);
        }
        assert_eq!(Provider::from_number(77), Provider::Unknown);
        assert_eq!(Provider::of("moon"), Provider::Unknown);
    }
}
