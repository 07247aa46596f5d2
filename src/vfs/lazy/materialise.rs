//! Turning a commit of the Hub into rows of the metadata.

use bytes::Bytes;

use super::{Landed, Lazy};
use crate::error::{Error, Kind, Result};
use crate::hub::{self, RevisionInfo, TreeFile};
use crate::meta::{CommitPlan, INLINE_MAX, InodeContent, PlanFile};
use crate::types::{Commit, Ino, Origin, RepoId};

impl Lazy {
    /// The repository with its main branch, into the root.
    pub(super) async fn materialise_repo(&self, repo: &RepoId) -> Result<Landed> {
        let info = self.hub.revision(repo, "main").await?;
        let ino = self.reserve(repo).await?;
        let dir = self.publish(repo, &info, ino, &["main"]).await?;
        // From now on the number is the directory's: if that is deleted, the next one gets another.
        self.state().reserved.pop(repo);
        Ok(Landed::Repo(dir))
    }

    /// A commit that is asked for by its name.
    pub(super) async fn materialise_commit(&self, dir: Ino, repo: &RepoId, commit: Commit) -> Result<Landed> {
        let info = self.hub.revision(repo, &commit.to_string()).await?;
        if info.commit != commit {
            let what = format!("{repo} at {commit}: the Hub answers {}", info.commit);
            return Err(Error::new(Kind::NotFound, what));
        }
        self.publish(repo, &info, dir, &[]).await?;
        Ok(Landed::Published)
    }

    /// What a branch, tag or pull request points to now. The tree of a known commit is not asked for again.
    pub(super) async fn materialise_ref(&self, dir: Ino, repo: &RepoId, name: &str) -> Result<Landed> {
        let info = self.hub.revision(repo, name).await?;
        let commit = info.commit.to_string();
        let known = match self.meta.lookup(dir, b"snapshots").await? {
            Some(snapshots) => self.meta.lookup(snapshots.ino, commit.as_bytes()).await?.is_some(),
            None => false,
        };
        match self.meta.lookup(dir, b"refs").await? {
            Some(refs) if known => {
                self.meta.set_ref(refs.ino, name, info.commit).await?;
            }
            _ => {
                self.publish(repo, &info, dir, &[name]).await?;
            }
        }
        Ok(Landed::Published)
    }

    /// Fetches the tree of the commit and publishes it into the directory `dir`, which is made in the root if it is not
    /// there. Returns the directory that the repository has: that of whoever was first.
    async fn publish(&self, repo: &RepoId, info: &RevisionInfo, dir: Ino, refs: &[&str]) -> Result<Ino> {
        let files = self.hub.tree_files(repo, info.commit).await?;
        if info.gated {
            self.check_admission(repo, info.commit, &files).await?;
        }
        let json = Bytes::from(hub::tree_json(&files));
        let trees_json = if json.len() <= INLINE_MAX {
            InodeContent::Inline(json)
        } else {
            let size = json.len() as u64;
            InodeContent::Extents { size, chunks: self.files.put(json).await? }
        };
        let plan = CommitPlan {
            repo: repo.clone(),
            folder: Bytes::from(repo.folder()),
            repo_ino: Some(dir),
            commit: info.commit,
            last_modified: info.last_modified,
            restricted: info.private || info.gated,
            files: files.into_iter().map(plan_file).collect(),
            trees_json,
            refs: refs.iter().map(|r| (*r).to_owned()).collect(),
        };
        let count = plan.files.len();
        let published = self.meta.publish_commit(plan).await?;
        // The kernel may remember that the commit was not there.
        if let Some(snapshots) = self.meta.lookup(published.repo_dir, b"snapshots").await? {
            self.invalidations.entry(snapshots.ino, Bytes::from(info.commit.to_string()));
        }
        if published.created {
            tracing::info!("{repo} at {} is in the volume: {count} files", info.commit);
        }
        Ok(published.repo_dir)
    }

    /// The names of a gated repository are public, its bytes are not. One that this daemon may not read is no repository
    /// here ([`Kind::Access`]), so that a client that was admitted can download it with its own token.
    async fn check_admission(&self, repo: &RepoId, commit: Commit, files: &[TreeFile]) -> Result<()> {
        let Some(smallest) = files.iter().filter(|f| f.size > 0).min_by_key(|f| f.size) else {
            return Ok(());
        };
        let origin = Origin { repo: repo.clone(), commit, path: smallest.path.clone() };
        self.hub.open_range(&origin, smallest.blob, smallest.size, 0..1).await.map(drop)
    }
}

fn plan_file(file: TreeFile) -> PlanFile {
    let path = file.path.split('/').map(|name| Bytes::copy_from_slice(name.as_bytes())).collect();
    PlanFile { path, blob: file.blob, size: file.size, repo_path: file.path }
}
