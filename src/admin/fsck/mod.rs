//! Whether a volume is whole: the metadata against itself, and against the bucket.
//!
//! Mounts may go on working. What looks wrong is looked at again before it is reported: either all that makes it wrong is
//! read in one step, of one moment, or the inode's row is found to be the same before and after, which means that no name,
//! attribute or byte of it changed in between. What never rests is not reported but counted as such.
//!
//! A repair is one transaction that expects what was found. None takes a byte from a user: an inode without a name gets one
//! in `lost+found`, and data whose object is gone is reported and left as it is.
//!
//! Memory: 56 bytes for each inode, 16 for each object and for each chunk of a file, about 100 for each blob.

mod bin;
mod blobs;
mod counters;
mod data;
mod inodes;
mod listing;
mod names;
mod seen;
mod shared;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::fmt;

use self::listing::Listing;
use self::seen::Seen;
use super::paths::path_of;
use super::{Place, Progress, Tell};
use crate::error::Result;
use crate::meta::survey::Surveyed;
use crate::meta::{Meta, New};
use crate::types::{BlobId, FileType, Ino, ObjectId, SessionId};

/// The directory in the root where inodes without a name get one.
pub const LOST_AND_FOUND: &str = "lost+found";

/// What to do.
#[derive(Clone, Debug, Default)]
pub struct FsckOptions {
    /// Reads every object and compares it with its checksum.
    pub deep: bool,
    /// Repairs what can be repaired without loss, as this session.
    pub repair: Option<Meta>,
    /// Only what lies at and below this inode: names and counters of the whole are not judged then.
    pub below: Option<Ino>,
}

/// What became of something wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fix {
    /// It is right now.
    Done,
    /// `--repair` would do this.
    Possible(&'static str),
    /// Nothing can be done without loss.
    None,
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// One word for scripts.
    pub class: &'static str,
    pub ino: Option<Ino>,
    /// From the root, if the inode has a name.
    pub path: Option<String>,
    /// In words.
    pub what: String,
    pub fix: Fix,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.path, self.ino) {
            (Some(path), Some(ino)) => write!(f, "{path} (inode {ino}): ")?,
            (Some(path), None) => write!(f, "{path}: ")?,
            (None, Some(ino)) => write!(f, "inode {ino}: ")?,
            (None, None) => {}
        }
        write!(f, "{}", self.what)?;
        match self.fix {
            Fix::Done => write!(f, " [repaired]"),
            Fix::Possible(how) => write!(f, " [--repair: {how}]"),
            Fix::None => Ok(()),
        }
    }
}

/// What was looked at and found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FsckReport {
    pub inodes: u64,
    pub entries: u64,
    pub files: u64,
    pub blobs: u64,
    /// Objects that rows name; each as often as it is named.
    pub objects: u64,
    /// Bytes that were read and compared.
    pub read: u64,
    pub found: u64,
    pub repaired: u64,
    /// That are not, since nobody asked for it.
    pub repairable: u64,
    /// What changed whenever it was looked at.
    pub restless: u64,
    /// Where the counters were not compared, since the volume never rested.
    pub uncounted: bool,
}

impl FsckReport {
    /// Findings that are still there.
    #[must_use]
    pub fn left(&self) -> u64 {
        self.found - self.repaired
    }
}

struct Fsck<'a> {
    place: &'a Place,
    options: FsckOptions,
    tell: Tell<'a>,
    out: &'a mut (dyn FnMut(&Finding) + Send),
    report: FsckReport,
    /// In the order of numbers.
    seen: Vec<Seen>,
    /// Registered, or being cleaned up.
    sessions: HashSet<SessionId>,
    /// Size and an inode of each.
    blobs: HashMap<BlobId, (u64, Ino)>,
    /// Objects, each as often as a chunk row names it.
    references: Vec<ObjectId>,
    listing: Option<Listing>,
    lost_and_found: Option<Ino>,
}

/// Checks a volume; each finding goes to `out` as soon as it is certain.
pub async fn fsck(
    place: &Place,
    options: FsckOptions,
    tell: Tell<'_>,
    out: &mut (dyn FnMut(&Finding) + Send),
) -> Result<FsckReport> {
    let mut fsck = Fsck {
        place,
        options,
        tell,
        out,
        report: FsckReport::default(),
        seen: Vec::new(),
        sessions: HashSet::new(),
        blobs: HashMap::new(),
        references: Vec::new(),
        listing: None,
        lost_and_found: None,
    };
    fsck.run().await?;
    Ok(fsck.report)
}

impl Fsck<'_> {
    async fn run(&mut self) -> Result<()> {
        self.sessions = self.place.survey.known_sessions().await?.into_iter().collect();
        match self.options.below {
            None => {
                self.listing = Some(Listing::new(&self.place.bucket, self.tell).await?);
                self.look_at_inodes().await?;
                self.look_at_names().await?;
                self.begin("orphans");
                self.look_at_orphans().await?;
                self.begin("trash");
                self.look_at_bin().await?;
                self.begin("leftovers");
                self.look_at_leftovers().await?;
            }
            Some(top) => {
                let below = self.below(top).await?;
                self.look_at_some(&below).await?;
                self.look_at_names_below().await?;
            }
        }
        self.look_at_data().await?;
        self.begin("shared objects");
        self.look_at_shared().await?;
        self.look_at_blobs().await?;
        if self.options.below.is_none() {
            self.look_at_counters().await?;
        }
        Ok(())
    }

    /// A step of which nobody knows how long it is.
    fn begin(&self, what: &'static str) {
        (self.tell)(Progress { what, done: 0, of: None });
    }

    fn tell(&self, what: &'static str, done: u64, of: u64) {
        (self.tell)(Progress { what, done, of: Some(of) });
    }

    /// Reports something about an inode, called by the name that it has in `dir`.
    async fn found(&mut self, class: &'static str, ino: Ino, dir: Ino, what: String, fix: Fix) -> Result<()> {
        let path = path_of(&self.place.survey, ino, dir).await?;
        self.say(Finding { class, ino: Some(ino), path, what, fix });
        Ok(())
    }

    fn say(&mut self, finding: Finding) {
        self.report.found += 1;
        self.report.repaired += u64::from(finding.fix == Fix::Done);
        self.report.repairable += u64::from(matches!(finding.fix, Fix::Possible(_)));
        (self.out)(&finding);
    }

    /// What to say of a repair that is `how` in words and `done` if it was tried.
    fn fix(&self, how: &'static str, done: bool) -> Fix {
        match (&self.options.repair, done) {
            (Some(_), true) => Fix::Done,
            (Some(_), false) => Fix::None,
            (None, _) => Fix::Possible(how),
        }
    }

    fn repairs(&self) -> bool {
        self.options.repair.is_some()
    }

    /// A directory in which the inode was seen.
    fn dir_of(&self, ino: Ino) -> Ino {
        self.seen.binary_search_by_key(&ino.0, |s| s.ino).map_or(Ino::ROOT, |at| Ino(self.seen[at].dir))
    }

    /// Gives an inode without a name one.
    async fn reconnect(&mut self, inode: &Surveyed) -> Result<bool> {
        let Some(meta) = self.options.repair.clone() else { return Ok(false) };
        let dir = match self.lost_and_found {
            Some(dir) => dir,
            None => {
                let name = LOST_AND_FOUND.as_bytes();
                let found = match meta.lookup(Ino::ROOT, name).await? {
                    Some(found) => found,
                    None => meta.make(Ino::ROOT, name, New::plain(FileType::Dir, 0o700, 0, 0)).await?,
                };
                *self.lost_and_found.insert(found.ino)
            }
        };
        self.place.survey.reconnect(inode, dir, inode.ino.to_string().as_bytes()).await
    }
}
