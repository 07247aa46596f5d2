//! A repository that is not there yet: all of it is staged, and published by its name in the root.

use bytes::Bytes;

use super::super::kv::{Change, Expect, Outcome};
use super::super::schema::{self, Role};
use super::super::{Meta, attr};
use super::stage::Stage;
use super::tree::{Pointer, Tree, unique_blobs};
use super::{BLOBS_AT_ONCE, CommitPlan, PlanFile, Published, snapshot_role, trees_name};
use crate::error::{Error, Kind, Result};
use crate::types::{FileType, Ino, Timestamp};

/// A repository laid out.
struct Layout<'a> {
    tree: Tree,
    blobs: usize,
    trees: usize,
    snapshot: usize,
    pointers: Vec<Pointer>,
    /// Directory and name.
    refs: Vec<(usize, Bytes)>,
    unique: Vec<&'a PlanFile>,
}

impl<'a> Layout<'a> {
    fn new(plan: &'a CommitPlan) -> Result<Self> {
        let repo = || plan.repo.clone();
        let mut tree = Tree::new(Role::Repo(repo()));
        let name = Bytes::from_static;
        let blobs = tree.dir(0, &name(b"blobs"), Some(Role::Blobs(repo())))?;
        let refs_role = |prefix: String| Some(Role::Refs { repo: repo(), prefix });
        let refs_dir = tree.dir(0, &name(b"refs"), refs_role(String::new()))?;
        let snapshots = tree.dir(0, &name(b"snapshots"), Some(Role::Snapshots(repo())))?;
        tree.dir(0, &name(b".no_exist"), Some(Role::NoExist(repo())))?;
        let trees = tree.dir(0, &name(b"trees"), Some(Role::Trees(repo())))?;
        let commit = Bytes::from(plan.commit.to_string());
        let snapshot = tree.dir(snapshots, &commit, Some(snapshot_role(plan)))?;
        let pointers = tree.pointers(snapshot, &plan.files)?;
        let mut refs = Vec::with_capacity(plan.refs.len());
        for name in &plan.refs {
            let (path, last) = name.rsplit_once('/').unwrap_or(("", name));
            let (mut dir, mut prefix) = (refs_dir, String::new());
            for part in path.split('/').filter(|part| !part.is_empty()) {
                prefix = format!("{prefix}{part}/");
                dir = tree.dir(dir, &Bytes::copy_from_slice(part.as_bytes()), refs_role(prefix.clone()))?;
            }
            let last = Bytes::copy_from_slice(last.as_bytes());
            tree.file(dir, &last)?;
            refs.push((dir, last));
        }
        Ok(Layout { tree, blobs, trees, snapshot, pointers, refs, unique: unique_blobs(&plan.files)? })
    }

    /// Of the inodes below the repository's directory.
    fn inodes(&self) -> u64 {
        let files = self.pointers.len() + self.refs.len() + self.unique.len() + 1;
        self.tree.below_top() + files as u64
    }
}

impl Meta {
    /// Publishes the whole repository. `None`: somebody else did something in the root meanwhile; look again. The flag
    /// says whether the uploaded `trees/<commit>.json` is in use.
    pub(super) async fn publish_repo(&self, plan: &CommitPlan) -> Result<Option<(Published, bool)>> {
        let tombstone = self.kv().get(&[schema::tombstone_key(&plan.folder)]).await?.pop().flatten();
        if let Some(until) = &tombstone
            && schema::value_time(until)? > self.now()
        {
            return Err(Error::new(Kind::NotFound, "it was deleted not long ago"));
        }
        let mut layout = Layout::new(plan)?;
        let repo_dir = match plan.repo_ino {
            Some(ino) if self.is_reserved(ino) => ino,
            Some(gone) => return Err(attr::gone(gone)),
            None => self.alloc_ino().await?,
        };
        layout.tree.dirs[0].ino = repo_dir;
        let mut stage = Stage::new(self, layout.inodes(), Some(repo_dir)).await?;
        let published = match self.stage_repo(&mut stage, plan, &mut layout).await {
            Ok(()) => self.show_repo(&mut stage, plan, &layout, tombstone).await,
            Err(error) => Err(error),
        };
        match published {
            Ok(true) => self.use_reserved(repo_dir),
            _ => stage.abandon().await,
        }
        let snapshot = layout.tree.dirs[layout.snapshot].ino;
        Ok(published?.then_some((Published { repo_dir, snapshot, created: true }, true)))
    }

    async fn stage_repo(
        &self,
        stage: &mut Stage<'_>,
        plan: &CommitPlan,
        layout: &mut Layout<'_>,
    ) -> Result<()> {
        self.stage_dirs(stage, plan, &mut layout.tree, None).await?;
        let tree = &layout.tree;
        let blobs = tree.dirs[layout.blobs].ino;
        for some in layout.unique.chunks(BLOBS_AT_ONCE) {
            self.introduce_blobs(plan, some).await?;
            for file in some {
                let ino = stage.ino()?;
                stage.inode(ino, &self.blob_row(plan, blobs, file), 0).await?;
                stage.entry(blobs, file.blob.etag().as_bytes(), ino, FileType::File).await?;
            }
        }
        let pointers = std::mem::take(&mut layout.pointers);
        self.stage_pointers(stage, plan, tree, pointers).await?;
        let trees = tree.dirs[layout.trees].ino;
        let json = self.stage_trees_json(stage, plan, trees).await?;
        stage.entry(trees, &trees_name(plan), json, FileType::File).await?;
        for (dir, name) in &layout.refs {
            let dir = tree.dirs[*dir].ino;
            let ino = stage.ino()?;
            stage.inode(ino, &self.ref_row(dir, plan.commit, plan.restricted), 0).await?;
            stage.entry(dir, name, ino, FileType::File).await?;
        }
        Ok(())
    }

    /// The one transaction. `false`: there is such a name by now, or a tombstone.
    async fn show_repo(
        &self,
        stage: &mut Stage<'_>,
        plan: &CommitPlan,
        layout: &Layout<'_>,
        tombstone: Option<Bytes>,
    ) -> Result<bool> {
        let top = &layout.tree.dirs[0];
        let row = self.dir_row_of(plan, Ino::ROOT, top.role.clone());
        let entry = schema::entry_key(Ino::ROOT, &plan.folder);
        let grave = schema::tombstone_key(&plan.folder);
        let mut build = stage.finish().await?;
        build.expect(Expect::Present(schema::attr_key(Ino::ROOT)));
        build.expect(Expect::Absent(entry.clone()));
        build.expect(Expect::Absent(schema::attr_key(top.ino)));
        match tombstone {
            Some(expired) => {
                build.equals(grave.clone(), &expired);
                build.del(grave);
            }
            None => {
                build.expect(Expect::Absent(grave));
            }
        }
        build.set(entry, schema::entry_value(top.ino, FileType::Dir));
        build.set_row(top.ino, &row)?;
        build.add(schema::subdirs_key(top.ino), top.subdirs);
        build.touch_dir(Ino::ROOT, Timestamp::now(), 1);
        build.0.publish.push(Change::Entry { parent: Ino::ROOT, name: plan.folder.clone() });
        Ok(self.commit(build).await? == Outcome::Applied)
    }
}
