//! Another commit of a repository that is there: its missing blobs first, then the snapshot, then the refs.

use bytes::Bytes;

use super::super::Meta;
use super::super::kv::{Change, Expect, Outcome};
use super::super::retry::Tries;
use super::super::schema::{self, Role};
use super::stage::Stage;
use super::tree::{Tree, unique_blobs};
use super::{BLOBS_AT_ONCE, CommitPlan, PlanFile, Published, snapshot_role, trees_name};
use crate::error::{Error, Kind, Result, ResultExt};
use crate::types::{FileType, Ino, Timestamp};

/// The directories of a repository.
struct Dirs {
    blobs: Ino,
    refs: Ino,
    snapshots: Ino,
    trees: Ino,
}

impl Meta {
    /// Publishes a commit into a repository. `None`: somebody else was there at the same time; look again.
    pub(super) async fn publish_into(
        &self,
        plan: &CommitPlan,
        repo_dir: Ino,
    ) -> Result<Option<(Published, bool)>> {
        let dirs = self.repo_dirs(plan, repo_dir).await?;
        let name = plan.commit.to_string();
        let mut used_trees = false;
        let mut snapshot = None;
        let created = match self.find(dirs.snapshots, name.as_bytes(), true).await? {
            Some(found) if found.row.kind == FileType::Dir => {
                snapshot = Some(found.ino);
                false
            }
            Some(_) => return Err(Error::new(Kind::NotDirectory, format!("snapshot {name}"))),
            None => {
                for some in unique_blobs(&plan.files)?.chunks(BLOBS_AT_ONCE) {
                    self.introduce_blobs(plan, some).await?;
                    self.add_blobs(plan, dirs.blobs, some).await?;
                }
                if let Some((ino, used)) = self.publish_snapshot(plan, &dirs).await? {
                    snapshot = Some(ino);
                    used_trees = used;
                }
                true
            }
        };
        let Some(snapshot) = snapshot else { return Ok(None) };
        for name in &plan.refs {
            self.set_ref(dirs.refs, name, plan.commit).await?;
        }
        Ok(Some((Published { repo_dir, snapshot, created }, used_trees)))
    }

    /// The directories of the repository; those that somebody removed are made again.
    async fn repo_dirs(&self, plan: &CommitPlan, repo_dir: Ino) -> Result<Dirs> {
        let repo = || plan.repo.clone();
        let ensure = |name: &'static str, role| async move {
            self.ensure_hub_dir(repo_dir, name.as_bytes(), Some(role), plan.restricted).await
        };
        let (blobs, refs, snapshots, trees, _) = futures::try_join!(
            ensure("blobs", Role::Blobs(repo())),
            ensure("refs", Role::Refs { repo: repo(), prefix: String::new() }),
            ensure("snapshots", Role::Snapshots(repo())),
            ensure("trees", Role::Trees(repo())),
            ensure(".no_exist", Role::NoExist(repo())),
        )?;
        Ok(Dirs { blobs, refs, snapshots, trees })
    }

    /// Adds those blobs that have no name in `blobs/` yet. One event for all: nobody waits for a blob that no snapshot
    /// names.
    async fn add_blobs(&self, plan: &CommitPlan, blobs: Ino, files: &[&PlanFile]) -> Result<()> {
        let entries: Vec<_> =
            files.iter().map(|f| schema::entry_key(blobs, f.blob.etag().as_bytes())).collect();
        let mut tries = Tries::new();
        loop {
            let seen = self.kv().get(&entries).await?;
            let missing: Vec<_> =
                files.iter().zip(&entries).zip(seen).filter(|(_, seen)| seen.is_none()).collect();
            if missing.is_empty() {
                return Ok(());
            }
            let first = self.take_inos(missing.len() as u64).await?;
            let mut build = self.build();
            build.expect(Expect::Present(schema::attr_key(blobs)));
            for (number, ((file, entry), _)) in (first.0..).zip(missing) {
                let ino = Ino(number);
                build.expect(Expect::Absent(entry.clone()));
                build.expect(Expect::Absent(schema::attr_key(ino)));
                build.set(entry.clone(), schema::entry_value(ino, FileType::File));
                build.set_row(ino, &self.blob_row(plan, blobs, file))?;
            }
            build.touch_dir(blobs, Timestamp::now(), 0);
            build.inode_changed(blobs);
            if self.commit(build).await? == Outcome::Applied {
                return Ok(());
            }
            tries.again().await.context(|| format!("blobs of {}", plan.repo))?;
        }
    }

    /// Stages the snapshot and shows it. `None`: a name is there by now. The flag says whether `trees/<commit>.json` is
    /// the plan's.
    async fn publish_snapshot(&self, plan: &CommitPlan, dirs: &Dirs) -> Result<Option<(Ino, bool)>> {
        let mut tree = Tree::new(snapshot_role(plan));
        let pointers = tree.pointers(0, &plan.files)?;
        let with_trees = self.find(dirs.trees, &trees_name(plan), true).await?.is_none();
        let count = tree.below_top() + pointers.len() as u64 + 1 + u64::from(with_trees);
        let mut stage = Stage::new(self, count, None).await?;
        let shown = async {
            self.stage_dirs(&mut stage, plan, &mut tree, Some(dirs.snapshots)).await?;
            self.stage_pointers(&mut stage, plan, &tree, pointers).await?;
            let json = match with_trees {
                true => Some(self.stage_trees_json(&mut stage, plan, dirs.trees).await?),
                false => None,
            };
            self.show_snapshot(&mut stage, plan, dirs, tree.dirs[0].ino, json).await
        }
        .await;
        if !matches!(shown, Ok(true)) {
            stage.abandon().await;
        }
        Ok(shown?.then_some((tree.dirs[0].ino, with_trees)))
    }

    async fn show_snapshot(
        &self,
        stage: &mut Stage<'_>,
        plan: &CommitPlan,
        dirs: &Dirs,
        snapshot: Ino,
        trees_json: Option<Ino>,
    ) -> Result<bool> {
        let now = Timestamp::now();
        let name = Bytes::from(plan.commit.to_string());
        let mut build = stage.finish().await?;
        build.expect(Expect::Present(schema::attr_key(dirs.snapshots)));
        build.expect(Expect::Absent(schema::entry_key(dirs.snapshots, &name)));
        build.set(schema::entry_key(dirs.snapshots, &name), schema::entry_value(snapshot, FileType::Dir));
        build.touch_dir(dirs.snapshots, now, 1);
        build.0.publish.push(Change::Entry { parent: dirs.snapshots, name });
        if let Some(json) = trees_json {
            let name = trees_name(plan);
            build.expect(Expect::Present(schema::attr_key(dirs.trees)));
            build.expect(Expect::Absent(schema::entry_key(dirs.trees, &name)));
            build.set(schema::entry_key(dirs.trees, &name), schema::entry_value(json, FileType::File));
            build.touch_dir(dirs.trees, now, 0);
            build.0.publish.push(Change::Entry { parent: dirs.trees, name });
        }
        Ok(self.commit(build).await? == Outcome::Applied)
    }
}
