//! Publishing the tree of a commit: everything is written under inodes that nobody can reach, and appears with one
//! transaction and one event. Two who publish the same at once agree: the slower one adopts what the faster one made.

mod existing;
mod fresh;
mod stage;
mod tree;

use bytes::Bytes;

use self::stage::Stage;
use self::tree::{Pointer, Tree};
use super::blobs::Blobs;
use super::data::objects;
use super::retry::Tries;
use super::schema::{self, Content, INLINE_MAX, InodeRow, Role};
use super::txn::Build;
use super::{Meta, check_name};
use crate::error::{Error, Kind, Result, ResultExt};
use crate::types::{BlobId, Commit, Extent, FileType, Ino, Origin, RepoId, Timestamp};

/// How many blobs are handled at once.
const BLOBS_AT_ONCE: usize = 400;
/// Of files under `trees/`.
const TREES_MODE: u16 = 0o644;
/// Of blobs.
const BLOB_MODE: u16 = 0o444;

/// A file of a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanFile {
    /// The names on the way to it, its own the last. At least one.
    pub path: Vec<Bytes>,
    pub blob: BlobId,
    /// Bytes.
    pub size: u64,
    /// The path as the Hub writes it.
    pub repo_path: String,
}

/// The data of a file that is published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InodeContent {
    /// At most [`INLINE_MAX`](super::INLINE_MAX) bytes.
    Inline(Bytes),
    /// Uploaded already.
    Extents {
        /// Bytes.
        size: u64,
        chunks: Vec<(u64, Vec<Extent>)>,
    },
}

/// What is to be published.
#[derive(Clone, Debug)]
pub struct CommitPlan {
    pub repo: RepoId,
    /// The name in the root, if the repository is not there yet.
    pub folder: Bytes,
    /// The directory of the repository, wherever it lies now; or a number of [`Meta::reserve_ino`] that it shall get if
    /// it is not there yet.
    pub repo_ino: Option<Ino>,
    pub commit: Commit,
    /// The mtime of what is made.
    pub last_modified: Timestamp,
    /// The repository is private or gated.
    pub restricted: bool,
    pub files: Vec<PlanFile>,
    /// `trees/<commit>.json`.
    pub trees_json: InodeContent,
    /// The names under `refs/` that point to the commit from now on.
    pub refs: Vec<String>,
}

/// Where a published commit is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    pub repo_dir: Ino,
    pub snapshot: Ino,
    /// By this call: nobody had published it before.
    pub created: bool,
}

impl Meta {
    /// Publishes a commit: its blobs, its snapshot, `trees/<commit>.json`, then the refs that name it; with the whole
    /// repository if it is not there yet. Memory is bounded by the plan, transactions by 1,000 writes.
    ///
    /// What somebody else put under a name before stays, a snapshot as well: `created` says whether this call made it.
    /// [`Kind::Exists`] if the folder is something other than this repository, [`Kind::NotFound`] while the folder has a
    /// tombstone, [`Kind::Stale`] if the repository's directory is gone, [`Kind::Invalid`] for a plan that cannot be a tree. After any error what was written is dropped, or
    /// noted to be dropped when the session ends.
    pub async fn publish_commit(&self, plan: CommitPlan) -> Result<Published> {
        let words = || format!("publishing {} at {}", plan.repo, plan.commit);
        self.publish(&plan).await.context(words)
    }

    async fn publish(&self, plan: &CommitPlan) -> Result<Published> {
        if matches!(&plan.trees_json, InodeContent::Inline(bytes) if bytes.len() > INLINE_MAX) {
            return Err(Error::new(Kind::Invalid, "too many inline bytes"));
        }
        check_name(&plan.folder)?;
        let mut tries = Tries::new();
        loop {
            let published = match self.existing_repo(plan).await? {
                Some(repo) => self.publish_into(plan, repo).await?,
                None => self.publish_repo(plan).await?,
            };
            if let Some((published, used_trees)) = published {
                if !used_trees {
                    self.discard(&plan.trees_json).await?;
                }
                return Ok(published);
            }
            tries.again().await?;
        }
    }

    /// The repository's directory if it is there.
    async fn existing_repo(&self, plan: &CommitPlan) -> Result<Option<Ino>> {
        let this = Some(Role::Repo(plan.repo.clone()));
        if let Some(ino) = plan.repo_ino {
            // The row of a repository is written by the transaction that publishes it: if it is there, so is the name.
            let raw = self.kv().get(&[schema::attr_key(ino)]).await?.pop().flatten();
            if let Some(raw) = raw {
                let row = schema::decode_row(ino, &raw)?;
                let same = row.role == this;
                return if same { Ok(Some(ino)) } else { Err(other_folder(plan)) };
            }
        }
        match self.find(Ino::ROOT, &plan.folder, true).await? {
            Some(found) if found.row.role == this => Ok(Some(found.ino)),
            Some(_) => Err(other_folder(plan)),
            None => Ok(None),
        }
    }

    /// Makes the blobs of some files known, with this repository as an origin.
    async fn introduce_blobs(&self, plan: &CommitPlan, files: &[&PlanFile]) -> Result<()> {
        let origin = |file: &PlanFile| Origin {
            repo: plan.repo.clone(),
            commit: plan.commit,
            path: file.repo_path.clone(),
        };
        let blobs: Vec<_> = files.iter().map(|f| (f.blob, f.size, Some(origin(f)))).collect();
        let rows: Blobs = self.blobs();
        rows.introduce_all(&blobs).await
    }

    fn blob_row(&self, plan: &CommitPlan, dir: Ino, file: &PlanFile) -> InodeRow {
        InodeRow {
            size: file.size,
            content: Content::Blob(file.blob),
            ..self.hub_row(FileType::File, BLOB_MODE, dir, plan.last_modified, plan.restricted)
        }
    }

    /// Gives the directories their numbers and writes them. The top one lies in `above`; without one it has its number
    /// already, and gets its row when it is published.
    async fn stage_dirs(
        &self,
        stage: &mut Stage<'_>,
        plan: &CommitPlan,
        tree: &mut Tree,
        above: Option<Ino>,
    ) -> Result<()> {
        for at in 0..tree.dirs.len() {
            let parent = match tree.dirs[at].parent {
                Some(parent) => tree.dirs[parent].ino,
                None => match above {
                    Some(above) => above,
                    None => continue,
                },
            };
            tree.dirs[at].ino = stage.ino()?;
            let row = self.dir_row_of(plan, parent, tree.dirs[at].role.clone());
            stage.inode(tree.dirs[at].ino, &row, tree.dirs[at].subdirs).await?;
        }
        for dir in &tree.dirs {
            if let Some(parent) = dir.parent {
                stage.entry(tree.dirs[parent].ino, &dir.name, dir.ino, FileType::Dir).await?;
            }
        }
        Ok(())
    }

    fn dir_row_of(&self, plan: &CommitPlan, parent: Ino, role: Option<Role>) -> InodeRow {
        let mode = super::hub_rows::DIR_MODE;
        InodeRow { role, ..self.hub_row(FileType::Dir, mode, parent, plan.last_modified, plan.restricted) }
    }

    /// Writes the symlinks of a snapshot.
    async fn stage_pointers(
        &self,
        stage: &mut Stage<'_>,
        plan: &CommitPlan,
        tree: &Tree,
        pointers: Vec<Pointer>,
    ) -> Result<()> {
        for pointer in pointers {
            let dir = tree.dirs[pointer.dir].ino;
            let ino = stage.ino()?;
            let row = InodeRow {
                size: pointer.target.len() as u64,
                content: Content::Symlink(pointer.target),
                ..self.hub_row(FileType::Symlink, 0o777, dir, plan.last_modified, plan.restricted)
            };
            stage.inode(ino, &row, 0).await?;
            stage.entry(dir, &pointer.name, ino, FileType::Symlink).await?;
        }
        Ok(())
    }

    /// Writes the inode of `trees/<commit>.json`, without its name.
    async fn stage_trees_json(&self, stage: &mut Stage<'_>, plan: &CommitPlan, dir: Ino) -> Result<Ino> {
        let ino = stage.ino()?;
        let mut row = self.hub_row(FileType::File, TREES_MODE, dir, plan.last_modified, plan.restricted);
        match &plan.trees_json {
            InodeContent::Inline(bytes) if bytes.is_empty() => {}
            InodeContent::Inline(bytes) => {
                row.size = bytes.len() as u64;
                row.content = Content::Inline(bytes.clone());
            }
            InodeContent::Extents { size, chunks } => {
                row.size = *size;
                row.content = Content::Extents;
                row.chunks = chunks.iter().map(|(index, _)| index + 1).max().unwrap_or(0);
                let extents = chunks.iter().flat_map(|(_, list)| list);
                row.layout.data = Some(extents.map(|e| u64::from(e.len)).sum());
            }
        }
        stage.inode(ino, &row, 0).await?;
        if let InodeContent::Extents { chunks, .. } = &plan.trees_json {
            for (index, list) in chunks {
                stage.chunk(ino, *index, list).await?;
            }
        }
        Ok(ino)
    }

    /// Data that was uploaded and is not needed, since somebody else was faster.
    async fn discard(&self, content: &InodeContent) -> Result<()> {
        let InodeContent::Extents { chunks, .. } = content else { return Ok(()) };
        let mut build: Build = self.build();
        for object in chunks.iter().flat_map(|(_, list)| objects(list)) {
            build.set(schema::trash_key(object), schema::time_value(self.now()));
        }
        // Without an expectation there is nothing to lose to.
        let _ = self.commit(build).await?;
        Ok(())
    }
}

fn trees_name(plan: &CommitPlan) -> Bytes {
    Bytes::from(format!("{}.json", plan.commit))
}

fn snapshot_role(plan: &CommitPlan) -> Role {
    Role::Snapshot { repo: plan.repo.clone(), commit: plan.commit }
}

fn other_folder(plan: &CommitPlan) -> Error {
    let words = format!("folder \"{}\" is something else", plan.folder.escape_ascii());
    Error::new(Kind::Exists, words)
}
