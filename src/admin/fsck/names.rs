//! Names against inodes: entries that lead nowhere, inodes that no entry leads to, counts, and where directories lie.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;

use super::seen::Seen;
use super::{Finding, Fix, Fsck};
use crate::admin::inodes::each_of;
use crate::admin::paths::{path_of, shown};
use crate::error::Result;
use crate::meta::survey::{Named, Surveyed};
use crate::types::{FileType, Ino, Timestamp};

/// How often what looks wrong is looked at again while it changes.
const ROUNDS: usize = 3;
/// Deeper than any path.
const DEEPEST: usize = 4096;

/// What was counted of an inode that is in doubt.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    names: u32,
    /// 0: no name was seen.
    dir: u64,
    dirs: u32,
}

impl Fsck<'_> {
    /// All directories; then what is in doubt once more.
    pub(super) async fn look_at_names(&mut self) -> Result<()> {
        let kept = self.kept().await?;
        self.read_dirs().await?;
        let doubtful: Vec<u64> =
            self.seen.iter().filter(|s| s.is_doubtful(kept.contains(s.ino))).map(|s| s.ino).collect();
        self.settle(doubtful).await?;
        self.look_for_cycles().await
    }

    /// Of a part of the tree only what its directories themselves can tell: entries that lead nowhere, and counts.
    pub(super) async fn look_at_names_below(&mut self) -> Result<()> {
        self.read_dirs().await?;
        let wrong: Vec<u64> =
            self.seen.iter().filter(|s| s.is_dir() && s.subdirs != s.dirs).map(|s| s.ino).collect();
        self.settle(wrong).await
    }

    async fn read_dirs(&mut self) -> Result<()> {
        let dirs: Vec<usize> = (0..self.seen.len()).filter(|&at| self.seen[at].is_dir()).collect();
        for (n, at) in dirs.iter().enumerate() {
            self.tell("directories", n as u64, dirs.len() as u64);
            let dir = Ino(self.seen[*at].ino);
            let mut after = 0;
            loop {
                let page = self.place.survey.names(dir, after).await?;
                let Some(last) = page.last() else { break };
                after = last.id;
                for named in page {
                    self.report.entries += 1;
                    if self.look_at_entry(dir, named).await? {
                        self.seen[*at].dirs += 1;
                    }
                }
            }
        }
        Ok(())
    }

    /// Counts an entry; whether it is one of a directory.
    async fn look_at_entry(&mut self, dir: Ino, named: Named) -> Result<bool> {
        let (ino, kind) = match &named.target {
            Ok(target) => *target,
            Err(error) => {
                self.found_entry("entry", dir, &named.name, format!("it cannot be read: {error}"), Fix::None)
                    .await?;
                return Ok(false);
            }
        };
        let is_dir = kind == FileType::Dir;
        let known = self.seen.binary_search_by_key(&ino.0, |s| s.ino);
        if let Ok(at) = known {
            self.seen[at].names += 1;
            self.seen[at].dir = dir.0;
            if self.seen[at].kind.is_none_or(|k| k == kind) {
                return Ok(is_dir);
            }
        }
        // Both of one moment: what is wrong now is wrong.
        let (value, inode) = self.place.survey.entry_and_inode(dir, &named.name, ino).await?;
        if value.as_ref() != Some(&named.value) {
            return Ok(is_dir);
        }
        let survey = &self.place.survey;
        if inode.is_none() {
            let what = format!("it leads to inode {ino}, which is not there");
            let done = self.repairs() && survey.drop_dangling(dir, &named.name, &named.value).await?;
            let fix = self.fix("removes the name", done);
            self.found_entry("dangling", dir, &named.name, what, fix).await?;
            return Ok(is_dir && !done);
        }
        let Some(inode) = survey.inode(ino).await? else { return Ok(is_dir) };
        match &inode.row {
            Ok(row) if row.kind != kind => {
                let what = format!("it says that inode {ino} is a {kind:?}, and that is a {:?}", row.kind);
                let now_dir = row.kind == FileType::Dir;
                let done =
                    self.repairs() && survey.set_entry_kind(dir, &named.name, &named.value, &inode).await?;
                let fix = self.fix("says what it is", done);
                self.found_entry("kind", dir, &named.name, what, fix).await?;
                Ok(if done { now_dir } else { is_dir })
            }
            _ => Ok(is_dir),
        }
    }

    async fn found_entry(
        &mut self,
        class: &'static str,
        dir: Ino,
        name: &[u8],
        what: String,
        fix: Fix,
    ) -> Result<()> {
        let above = path_of(&self.place.survey, dir, self.dir_of(dir)).await?;
        let above = above.unwrap_or_else(|| format!("(inode {dir})"));
        let path = Some(format!("{}/{}", above.trim_end_matches('/'), shown(name)));
        self.say(Finding { class, ino: None, path, what, fix });
        Ok(())
    }

    /// Looks again at inodes that are in doubt, with all directories, until they stay the same meanwhile.
    async fn settle(&mut self, mut doubtful: Vec<u64>) -> Result<()> {
        for _ in 0..ROUNDS {
            if doubtful.is_empty() {
                return Ok(());
            }
            let before = self.rows(&doubtful).await?;
            // After the rows: what lost its name before them is among these.
            let kept = self.kept().await?;
            let tallies = self.count(&doubtful).await?;
            let after = self.rows(&doubtful).await?;
            let mut again = Vec::new();
            for ino in doubtful {
                // One that went has no fault any more.
                let Some((inode, was)) = after.get(&ino).zip(before.get(&ino)) else { continue };
                if inode.raw != was.raw || inode.subdirs_raw != was.subdirs_raw {
                    again.push(ino);
                    continue;
                }
                let tally = tallies.get(&ino).copied().unwrap_or_default();
                self.judge(inode, tally, kept.contains(ino)).await?;
            }
            doubtful = again;
        }
        self.report.restless += doubtful.len() as u64;
        Ok(())
    }

    async fn rows(&self, numbers: &[u64]) -> Result<HashMap<u64, Surveyed>> {
        let mut rows = HashMap::new();
        for some in numbers.chunks(300) {
            rows.extend(self.place.survey.inodes(some).await?.into_iter().map(|i| (i.ino.0, i)));
        }
        Ok(rows)
    }

    /// Counts the names of some inodes, and the directories in them, once more.
    async fn count(&self, doubtful: &[u64]) -> Result<HashMap<u64, Tally>> {
        let mut tallies: HashMap<u64, Tally> = doubtful.iter().map(|ino| (*ino, Tally::default())).collect();
        let mut dirs: Vec<u64> = self.seen.iter().filter(|s| s.is_dir()).map(|s| s.ino).collect();
        if self.options.below.is_none() {
            // Directories that were made since may have them now.
            let mut newer = self.place.survey.numbers(|_| {}).await?;
            newer.retain(|ino| self.seen.binary_search_by_key(ino, |s| s.ino).is_err());
            each_of(&self.place.survey, &newer, "inodes", self.tell, async |inode: Surveyed| {
                if inode.row.is_ok_and(|row| row.kind == FileType::Dir) {
                    dirs.push(inode.ino.0);
                }
                Ok(())
            })
            .await?;
        }
        for (n, dir) in dirs.iter().enumerate() {
            self.tell("directories again", n as u64, dirs.len() as u64);
            let mut after = 0;
            loop {
                let page = self.place.survey.names(Ino(*dir), after).await?;
                let Some(last) = page.last() else { break };
                after = last.id;
                for (ino, kind) in page.iter().filter_map(|named| named.target.as_ref().ok()) {
                    if let Some(tally) = tallies.get_mut(&ino.0) {
                        tally.names += 1;
                        tally.dir = *dir;
                    }
                    if *kind == FileType::Dir
                        && let Some(tally) = tallies.get_mut(dir)
                    {
                        tally.dirs += 1;
                    }
                }
            }
        }
        Ok(tallies)
    }

    /// Reports what is wrong with an inode that stayed the same while its names were counted.
    async fn judge(&mut self, inode: &Surveyed, tally: Tally, kept: bool) -> Result<()> {
        let Ok(row) = &inode.row else { return Ok(()) };
        let (ino, survey) = (inode.ino, self.place.survey.clone());
        let dir = if tally.names > 0 { Ino(tally.dir) } else { row.parent };
        let (is_dir, top) = (row.kind == FileType::Dir, ino == Ino::ROOT);
        let whole = self.options.below.is_none();
        if whole && tally.names == 0 && !top && !kept {
            let done = self.reconnect(inode).await?;
            let fix = self.fix("gives it one in lost+found", done);
            let what = format!("a {:?} of {} bytes has no name", row.kind, row.size);
            self.say(Finding { class: "lost", ino: Some(ino), path: None, what, fix });
        } else if whole && top && tally.names > 0 {
            self.found("root", ino, dir, "the root has a name".to_owned(), Fix::None).await?;
        } else if whole && is_dir && tally.names > 1 {
            let what = format!("a directory with {} names", tally.names);
            self.found("names", ino, dir, what, Fix::None).await?;
        } else if whole && is_dir && tally.names == 1 && row.parent != dir {
            let what = format!("it lies in inode {dir} and says in inode {}", row.parent);
            let done = self.repairs() && survey.set_parent(inode, dir).await?;
            self.found("parent", ino, dir, what, self.fix("says where it lies", done)).await?;
        } else if whole && !is_dir && tally.names > 0 && row.nlink != tally.names {
            let what = format!("it has {} names and says {}", tally.names, row.nlink);
            let done = self.repairs() && survey.set_nlink(inode, tally.names).await?;
            self.found("nlink", ino, dir, what, self.fix("counts them", done)).await?;
        }
        let said = inode.subdirs.as_ref().copied().unwrap_or(-1);
        if is_dir && said != i64::from(tally.dirs) {
            let what = format!("it has {} subdirectories and says {said}", tally.dirs);
            // What was repaired above changed the row.
            let now = survey.inode(ino).await?;
            let done = match now {
                Some(now) if self.repairs() => survey.set_subdirs(&now, tally.dirs).await?,
                _ => false,
            };
            self.found("subdirs", ino, dir, what, self.fix("counts them", done)).await?;
        }
        Ok(())
    }

    /// Directories that lie in themselves: they have a name, and no way leads to them.
    async fn look_for_cycles(&mut self) -> Result<()> {
        let mut good: HashSet<u64> = HashSet::from([Ino::ROOT.0]);
        for at in 0..self.seen.len() {
            let Seen { ino, .. } = self.seen[at];
            if !self.seen[at].is_dir() || good.contains(&ino) {
                continue;
            }
            let (mut way, mut up) = (vec![ino], ino);
            let round = loop {
                let Ok(at) = self.seen.binary_search_by_key(&up, |s| s.ino) else { break false };
                up = self.seen[at].dir;
                if good.contains(&up) {
                    break false;
                }
                if way.contains(&up) || way.len() > DEEPEST {
                    break true;
                }
                way.push(up);
            };
            good.extend(way);
            if round && self.lies_in_itself(Ino(ino)).await? {
                let what = "it lies in itself: no path leads to it".to_owned();
                self.say(Finding { class: "cycle", ino: Some(Ino(ino)), path: None, what, fix: Fix::None });
            }
        }
        Ok(())
    }

    async fn lies_in_itself(&self, dir: Ino) -> Result<bool> {
        let mut way = HashSet::new();
        let mut at = dir;
        while at != Ino::ROOT {
            if !way.insert(at) {
                return Ok(true);
            }
            match self.place.survey.inode(at).await? {
                Some(Surveyed { row: Ok(row), .. }) => at = row.parent,
                _ => return Ok(false),
            }
        }
        Ok(false)
    }

    /// Inodes that may be without a name now.
    async fn kept(&self) -> Result<Kept> {
        let survey = &self.place.survey;
        // In the order in which they go from one to the other.
        let mut inos: HashSet<u64> = survey.binned().await?.iter().map(|ino| ino.0).collect();
        inos.extend(survey.orphans().await?.iter().map(|o| o.ino.0));
        let staged = survey.staged().await?;
        Ok(Kept { inos, staged: staged.into_iter().map(|(_, _, range, _)| range).collect() })
    }

    /// Deleted files that are kept for who has them open: that there is a file, and that it has no name.
    pub(super) async fn look_at_orphans(&mut self) -> Result<()> {
        let survey = self.place.survey.clone();
        let wrong = async |list: Vec<crate::meta::survey::Orphan>| -> Result<Vec<(Ino, Option<Surveyed>)>> {
            let mut wrong = Vec::new();
            let list: Vec<_> = list.into_iter().filter(|o| !o.reaping).collect();
            for some in list.chunks(300) {
                let numbers: Vec<u64> = some.iter().map(|o| o.ino.0).collect();
                let mut rows: HashMap<u64, Surveyed> =
                    survey.inodes(&numbers).await?.into_iter().map(|i| (i.ino.0, i)).collect();
                for orphan in some {
                    match rows.remove(&orphan.ino.0) {
                        None => wrong.push((orphan.ino, None)),
                        Some(inode) if inode.row.as_ref().is_ok_and(|r| r.nlink > 0) => {
                            wrong.push((orphan.ino, Some(inode)));
                        }
                        Some(_) => {}
                    }
                }
            }
            Ok(wrong)
        };
        let first = wrong(survey.orphans().await?).await?;
        if first.is_empty() {
            return Ok(());
        }
        let suspects: HashSet<Ino> = first.iter().map(|(ino, _)| *ino).collect();
        // Which are on the list still, after their inode was seen to be gone or named.
        let still = survey.orphans().await?.into_iter().filter(|o| suspects.contains(&o.ino)).collect();
        for (ino, inode) in wrong(still).await? {
            let raw: Option<&Bytes> = inode.as_ref().map(|i| &i.raw);
            let what = match &inode {
                None => "it is kept for who has it open, and is not there",
                Some(_) => "it is on the list of deleted files, and has a name",
            };
            let done = self.repairs() && survey.forget_orphan(ino, raw).await?;
            let fix = self.fix("takes it off the list", done);
            self.found("orphan", ino, self.dir_of(ino), what.to_owned(), fix).await?;
        }
        Ok(())
    }

    /// What sessions left that nobody remembers.
    pub(super) async fn look_at_leftovers(&mut self) -> Result<()> {
        let staged = self.place.survey.staged().await?;
        self.sessions.extend(self.place.survey.known_sessions().await?);
        for (session, since, numbers, _) in staged {
            if self.sessions.contains(&session) {
                continue;
            }
            let days = (Timestamp::now().0 - since.0).max(0) / 86_400_000_000_000;
            let what = format!(
                "session {session}, which does not exist, left a publication of {} inodes, {days} days ago",
                numbers.end - numbers.start
            );
            let done = match &self.options.repair {
                Some(meta) => meta.clean_up(session).await.is_ok(),
                None => false,
            };
            let fix = self.fix("drops it", done);
            self.say(Finding { class: "staging", ino: None, path: None, what, fix });
        }
        Ok(())
    }
}

/// Inodes that are kept without a name.
struct Kept {
    inos: HashSet<u64>,
    staged: Vec<std::ops::Range<u64>>,
}

impl Kept {
    fn contains(&self, ino: u64) -> bool {
        self.inos.contains(&ino) || self.staged.iter().any(|range| range.contains(&ino))
    }
}
