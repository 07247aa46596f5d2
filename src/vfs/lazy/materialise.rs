//! Turning a commit of the Hub into rows of the metadata.

use super::{Landed, Lazy};
use crate::error::{Error, Kind, Result};
use crate::hub::{self, RevisionInfo};
use crate::meta::{Attr, CommitPlan, Content, PlanFile, Target};
use crate::types::{Commit, Ino, RepoId};

impl Lazy {
    /// The repository with its main branch, into the root.
    pub(super) async fn materialise_repo(&self, repo: &RepoId) -> Result<Landed> {
        let info = self.hub.revision(repo, "main").await?;
        let reserved = self.state().reserved.get(repo).copied();
        let ino = match reserved {
            Some(ino) => ino,
            None => self.meta.reserve_ino().await?,
        };
        let target = Target::New { folder: repo.folder(), ino };
        let dir = self.publish(repo, &info, target, &["main"]).await?;
        Ok(Landed::Repo(dir))
    }

    /// A commit that is asked for by its name.
    pub(super) async fn materialise_commit(&self, dir: Ino, repo: &RepoId, commit: Commit) -> Result<Landed> {
        let info = self.hub.revision(repo, &commit.to_string()).await?;
        if info.commit != commit {
            return Err(Error::new(
                Kind::NotFound,
                format!("{repo} at {commit}: the Hub answers {}", info.commit),
            ));
        }
        self.publish(repo, &info, Target::Existing(dir), &[]).await?;
        Ok(Landed::Published)
    }

    /// What a branch, tag or pull request points to now. Known commits are not asked for again.
    pub(super) async fn materialise_ref(&self, dir: Ino, repo: &RepoId, name: &str) -> Result<Landed> {
        let info = self.hub.revision(repo, name).await?;
        let known = match self.meta.lookup(dir, b"snapshots").await? {
            Some(snapshots) => self.meta.lookup(snapshots.ino, info.commit.to_string().as_bytes()).await?,
            None => None,
        };
        if known.is_some() {
            self.meta.set_ref(dir, repo, name, info.commit).await?;
        } else {
            self.publish(repo, &info, Target::Existing(dir), &[name]).await?;
        }
        Ok(Landed::Published)
    }

    /// Fetches the tree of the commit and publishes it. Returns the repository's directory.
    async fn publish(
        &self,
        repo: &RepoId,
        info: &RevisionInfo,
        target: Target,
        refs: &[&str],
    ) -> Result<Ino> {
        let tree = self.hub.tree(repo, info.commit).await?;
        let json = hub::trees_json(&tree);
        let json_size = json.len() as u64;
        let trees_json = self.chunks.put_bytes(json).await?;
        let files = tree.into_iter().map(|f| PlanFile { path: f.path, blob: f.blob, size: f.size }).collect();
        let plan = CommitPlan {
            repo: repo.clone(),
            target,
            commit: info.commit,
            last_modified: info.last_modified,
            restricted: info.private || info.gated,
            files,
            trees_json,
            trees_json_size: json_size,
            refs: refs.iter().map(|r| (*r).to_owned()).collect(),
        };
        let published = self.meta.publish_commit(plan).await?;
        let name = info.commit.to_string().into();
        // The kernel may remember that the commit was not there.
        if let Some(Attr { ino, content: Content::None, .. }) =
            self.meta.lookup(published.repo_dir, b"snapshots").await?
        {
            self.invalidations.entry(ino, name);
        }
        tracing::info!("{repo} at {} is in the volume", info.commit);
        Ok(published.repo_dir)
    }
}
