//! Branches, tags and pull requests: files of `refs/` that hold a commit.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use super::{Answer, Landed, Lazy, Question, REF_PATIENCE, settled, tombstone_of};
use crate::error::Result;
use crate::meta::Role;
use crate::types::{Commit, Ino, RepoId, Timestamp};

/// What a missing name below `refs/` may be.
#[derive(Debug, PartialEq, Eq)]
enum Guess {
    /// Never asked for: a commit (which the libraries probe all the time), a temporary name.
    Never,
    /// `refs`, `refs/pr`, `refs/convert`: directories of what is not listed among the branches.
    Directory,
    /// `refs/pr/1`: asked for by itself.
    Unlisted,
    /// A branch, a tag, or the beginning of the name of one.
    Branch,
}

fn guess(full: &str) -> Guess {
    let last = full.rsplit('/').next().unwrap_or(full);
    if Commit::parse(last).is_some()
        || last.starts_with('.')
        || last.ends_with(".tmp")
        || last.ends_with(".lock")
    {
        return Guess::Never;
    }
    match full.strip_prefix("refs") {
        Some("" | "/pr" | "/convert") => Guess::Directory,
        Some(rest) if rest.starts_with("/pr/") => match rest[4..].parse::<u32>() {
            Ok(_) => Guess::Unlisted,
            Err(_) => Guess::Never,
        },
        // Datasets as the Hub converted them: `refs/convert/parquet`.
        Some(rest) if rest.starts_with("/convert/") => Guess::Unlisted,
        Some(rest) if rest.starts_with('/') => Guess::Never,
        _ => Guess::Branch,
    }
}

impl Lazy {
    /// A name that `refs` (or a directory below it, at `prefix`, which ends in `/` unless empty) does not have.
    /// `dir` is the repository's directory, `refs` the one in which the name is missing.
    pub async fn reference(
        self: &Arc<Self>,
        dir: Ino,
        refs: Ino,
        repo: &RepoId,
        prefix: &str,
        name: &[u8],
    ) -> Result<Answer> {
        let Ok(name) = std::str::from_utf8(name) else { return Ok(Answer::Absent) };
        let full = format!("{prefix}{name}");
        let guess = guess(&full);
        if guess == Guess::Never || self.meta.tombstone(&tombstone_of(refs, name.as_bytes())).await?.is_some()
        {
            return Ok(Answer::Absent);
        }
        match guess {
            Guess::Never => Ok(Answer::Absent),
            Guess::Directory => self.refs_dir(refs, repo, &full, name).await,
            Guess::Unlisted => self.ask_ref(dir, repo, full).await,
            Guess::Branch => {
                let names = match self.wait(self.ask(Question::Names(repo.clone()))?).await? {
                    Ok(Landed::Names(names)) => names,
                    other => return settled(other),
                };
                let below = format!("{full}/");
                if names.iter().any(|n| **n == full) {
                    self.ask_ref(dir, repo, full).await
                } else if names.iter().any(|n| n.starts_with(&below)) {
                    self.refs_dir(refs, repo, &full, name).await
                } else {
                    Ok(Answer::Absent)
                }
            }
        }
    }

    async fn ask_ref(self: &Arc<Self>, dir: Ino, repo: &RepoId, full: String) -> Result<Answer> {
        self.wait(self.ask(Question::Ref(dir, repo.clone(), full))?).await.and_then(settled)
    }

    async fn refs_dir(&self, refs: Ino, repo: &RepoId, full: &str, name: &str) -> Result<Answer> {
        let role = Role::Refs { repo: repo.clone(), prefix: format!("{full}/") };
        let restricted = self.meta.getattr(refs).await?.restricted;
        self.meta.ensure_hub_dir(refs, name.as_bytes(), Some(role), restricted).await?;
        Ok(Answer::Published)
    }

    /// Asks again for a branch that is known, when the answer is older than `--ref-ttl`. Waits briefly; a Hub that does not
    /// answer changes nothing. Whether it was asked: the branch may be another commit then.
    /// `known` is when the file last changed or was last found to be true.
    pub async fn refresh(
        self: &Arc<Self>,
        dir: Ino,
        refs: Ino,
        repo: &RepoId,
        prefix: &str,
        name: &[u8],
        known: Timestamp,
    ) -> bool {
        let age = Timestamp::now().0.saturating_sub(known.0);
        if (0..i64::try_from(self.opts.ref_ttl.as_nanos()).unwrap_or(i64::MAX)).contains(&age) {
            return false;
        }
        let Ok(text) = std::str::from_utf8(name) else { return false };
        let full = format!("{prefix}{text}");
        if !matches!(guess(&full), Guess::Branch | Guess::Unlisted) {
            return false;
        }
        let key = (refs, Bytes::copy_from_slice(name));
        {
            let mut state = self.state();
            let now = Instant::now();
            match state.checked.get(&key) {
                Some(at) if now.duration_since(*at) < self.opts.ref_ttl => return false,
                _ => state.checked.put(key, now),
            };
        }
        let Ok(flight) = self.ask(Question::Ref(dir, repo.clone(), full)) else { return false };
        // A slow answer still lands in the metadata, for the next lookup.
        let _late = tokio::time::timeout(REF_PATIENCE, flight).await;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_below_refs() {
        for branch in ["main", "feature/x", "v1.0", "refsx", "release"] {
            assert_eq!(guess(branch), Guess::Branch, "{branch}");
        }
        for dir in ["refs", "refs/pr", "refs/convert"] {
            assert_eq!(guess(dir), Guess::Directory, "{dir}");
        }
        for unlisted in ["refs/pr/12", "refs/convert/parquet"] {
            assert_eq!(guess(unlisted), Guess::Unlisted, "{unlisted}");
        }
        let commit = "0123456789abcdef0123456789abcdef01234567";
        for never in [commit, "main.1f2e3d4c.tmp", ".main", "refs/pr/x", "refs/heads"] {
            assert_eq!(guess(never), Guess::Never, "{never}");
        }
    }
}
