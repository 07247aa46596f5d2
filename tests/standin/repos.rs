//! Repositories in folders: `<root>/{models,datasets,spaces}/<org>/<name>/<revision>/files…`, with an optional
//! `repo.json` beside the revisions. Commits, git ids and sha256 follow from the files' bytes alone, so they are the
//! same on every run.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use sha1::Sha1;
use sha2::{Digest, Sha256};

/// Trees with more files than this are walked again only when the last walk is older than [`REWALK`].
const LARGE: usize = 2_000;
const REWALK: Duration = Duration::from_secs(10);
/// Hashes of files from this size on are kept on disk, for the next run.
const KEEP: u64 = 8 << 20;
const KEPT: &str = ".standin-hashes.json";

/// `repo.json`: all optional.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct RepoJson {
    /// Readable with one of `tokens` only; for all others it does not exist.
    pub private: bool,
    /// `false`, `"auto"` or `"manual"`: the file list is public, the files are for `tokens`.
    pub gated: serde_json::Value,
    pub tokens: Vec<String>,
    pub disabled: bool,
    /// `2024-05-06T07:08:09.000Z`; otherwise the time of the newest file.
    pub last_modified: Option<String>,
    /// Name → folder. None given: every folder is a branch of its own name.
    pub branches: BTreeMap<String, String>,
    pub tags: BTreeMap<String, String>,
    /// Number → folder: `refs/pr/<number>`.
    pub pr: BTreeMap<String, String>,
    /// The repository was renamed to this id, or all of the Hub moved to this `http://…`: 307.
    pub moved_to: Option<String>,
    /// The id that the API answers with when it differs from the one asked for, without a redirect.
    pub canonical_id: Option<String>,
    pub lfs: Lfs,
    /// Say that LFS files are in Xet storage.
    pub xet: bool,
}

/// Which files are LFS files.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Lfs {
    pub threshold: u64,
    /// Matched against the whole path; `*` matches anything.
    pub globs: Vec<String>,
}

impl Default for Lfs {
    fn default() -> Self {
        const BINARY: &[&str] = &[
            "safetensors",
            "bin",
            "pt",
            "pth",
            "gguf",
            "onnx",
            "h5",
            "msgpack",
            "parquet",
            "arrow",
            "npz",
            "zip",
        ];
        Lfs { threshold: 10 << 20, globs: BINARY.iter().map(|e| format!("*.{e}")).collect() }
    }
}

/// One repository.
#[derive(Clone, Debug)]
pub struct Repo {
    pub plural: String,
    pub id: String,
    pub dir: PathBuf,
    pub json: RepoJson,
}

/// One name for a commit: `refs/heads/main`, `main`, its folder.
#[derive(Clone, Debug)]
pub struct Ref {
    pub full: String,
    pub name: String,
    pub folder: String,
}

impl Repo {
    /// The folders of revisions, sorted.
    pub fn folders(&self) -> Vec<String> {
        let mut folders: Vec<String> = fs::read_dir(&self.dir)
            .into_iter()
            .flatten()
            .filter_map(|e| e.ok())
            .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
            .filter_map(|e| e.file_name().into_string().ok())
            .filter(|name| !name.starts_with('.'))
            .collect();
        folders.sort();
        folders
    }

    /// Branches, tags and pull requests, in this order.
    pub fn refs(&self) -> Vec<Ref> {
        let named = |prefix: &str, names: &BTreeMap<String, String>, short: bool| -> Vec<Ref> {
            let name = |n: &String| if short { n.clone() } else { format!("{prefix}{n}") };
            names
                .iter()
                .map(|(n, folder)| Ref {
                    full: format!("{prefix}{n}"),
                    name: name(n),
                    folder: folder.clone(),
                })
                .collect()
        };
        let mut refs = named("refs/heads/", &self.json.branches, true);
        if refs.is_empty() {
            let taken: Vec<&String> = self.json.tags.values().chain(self.json.pr.values()).collect();
            let folders = self.folders().into_iter().filter(|f| !taken.contains(&f));
            refs.extend(folders.map(|f| Ref { full: format!("refs/heads/{f}"), name: f.clone(), folder: f }));
        }
        refs.extend(named("refs/tags/", &self.json.tags, true));
        refs.extend(named("refs/pr/", &self.json.pr, false));
        refs
    }

    /// What `tree` URLs call it: `models/org/name`.
    pub fn label(&self) -> String {
        format!("{}/{}", self.plural, self.id)
    }
}

/// A commit's files and directories, sorted by path.
#[derive(Debug)]
pub struct Tree {
    pub commit: String,
    pub entries: Vec<Entry>,
    /// Nanoseconds since 1970 of the newest file.
    pub newest: i128,
    stamp: Vec<(String, u64, i128)>,
}

/// A file, or a directory (`size` 0, no `disk`).
#[derive(Clone, Debug)]
pub struct Entry {
    pub path: String,
    pub size: u64,
    /// Git's id: of the bytes, of the LFS pointer, of the directory.
    pub oid: String,
    pub lfs: Option<LfsEntry>,
    pub disk: Option<PathBuf>,
}

#[derive(Clone, Debug)]
pub struct LfsEntry {
    pub sha256: String,
    pub pointer_size: usize,
}

impl Tree {
    /// The entry at exactly this path.
    pub fn get(&self, path: &str) -> Option<&Entry> {
        self.entries.binary_search_by(|e| e.path.as_str().cmp(path)).ok().map(|i| &self.entries[i])
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Hashed {
    mtime: i128,
    size: u64,
    sha256: bool,
    hash: String,
}

/// All repositories under a root.
#[derive(Debug)]
pub struct Repos {
    root: PathBuf,
    /// Held while hashing: nothing is hashed twice.
    hashes: Mutex<HashMap<String, Hashed>>,
    trees: Mutex<HashMap<PathBuf, (Instant, Arc<Tree>)>>,
    /// LFS files by sha256, as far as a tree named them.
    by_sha256: Mutex<HashMap<String, PathBuf>>,
}

impl Repos {
    /// Repositories under `root`.
    pub fn new(root: &Path) -> Self {
        let kept = fs::read(root.join(KEPT)).ok().and_then(|b| serde_json::from_slice(&b).ok());
        Repos {
            root: root.to_owned(),
            hashes: Mutex::new(kept.unwrap_or_default()),
            trees: Mutex::default(),
            by_sha256: Mutex::default(),
        }
    }

    /// The file with this content, if a tree that was asked for has it.
    pub fn find(&self, sha256: &str) -> Option<PathBuf> {
        lock(&self.by_sha256).get(sha256).cloned()
    }

    /// The repository, if its folder exists.
    pub fn open(&self, plural: &str, id: &str) -> Option<Repo> {
        if id.split('/').any(|p| p.is_empty() || p.starts_with('.')) {
            return None;
        }
        let dir = self.root.join(plural).join(id);
        let json = match fs::read(dir.join("repo.json")) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|e| panic!("{id}: repo.json: {e}")),
            // A folder of repositories (`models/org`) is not one: its children hold revisions, not files.
            Err(_) if id.contains('/') && dir.is_dir() => RepoJson::default(),
            Err(_) => return None,
        };
        Some(Repo { plural: plural.to_owned(), id: id.to_owned(), dir, json })
    }

    /// The tree that a revision names: a ref, short or full, or a commit.
    pub fn resolve(&self, repo: &Repo, revision: &str) -> io::Result<Option<Arc<Tree>>> {
        if let Some(r) = repo.refs().iter().find(|r| r.full == revision || r.name == revision) {
            return self.tree(repo, &r.folder).map(Some);
        }
        if revision.len() == 40 {
            for folder in repo.folders() {
                let tree = self.tree(repo, &folder)?;
                if tree.commit == revision {
                    return Ok(Some(tree));
                }
            }
        }
        Ok(None)
    }

    /// The tree in a folder.
    pub fn tree(&self, repo: &Repo, folder: &str) -> io::Result<Arc<Tree>> {
        let dir = repo.dir.join(folder);
        let known = lock(&self.trees).get(&dir).cloned();
        if let Some((walked, tree)) = &known
            && tree.stamp.len() > LARGE
            && walked.elapsed() < REWALK
        {
            return Ok(tree.clone());
        }
        let mut stamp = Vec::new();
        walk(&dir, "", &mut stamp)?;
        stamp.sort();
        let tree = match known {
            Some((_, tree)) if tree.stamp == stamp => tree,
            _ => Arc::new(self.build(repo, &dir, stamp)?),
        };
        lock(&self.trees).insert(dir, (Instant::now(), tree.clone()));
        Ok(tree)
    }

    fn build(&self, repo: &Repo, dir: &Path, stamp: Vec<(String, u64, i128)>) -> io::Result<Tree> {
        let mut entries = Vec::with_capacity(stamp.len());
        let mut dirs: BTreeMap<String, Sha1> = BTreeMap::new();
        let mut commit = Sha1::new();
        commit.update(format!("commit {}\n", repo.label()));
        let mut keep = false;
        for (path, size, mtime) in &stamp {
            let disk = dir.join(path);
            let is_lfs =
                *size >= repo.json.lfs.threshold || repo.json.lfs.globs.iter().any(|g| glob(g, path));
            let hash = self.hash(&disk, *size, *mtime, is_lfs)?;
            keep |= *size >= KEEP;
            let (oid, lfs) = if is_lfs {
                let pointer =
                    format!("version https://git-lfs.github.com/spec/v1\noid sha256:{hash}\nsize {size}\n");
                let oid = git_id(pointer.as_bytes());
                lock(&self.by_sha256).insert(hash.clone(), disk.clone());
                (oid, Some(LfsEntry { sha256: hash, pointer_size: pointer.len() }))
            } else {
                (hash, None)
            };
            commit.update(format!("{oid} {path}\n"));
            for (at, _) in path.match_indices('/') {
                dirs.entry(path[..at].to_owned()).or_default().update(format!("{oid} {path}\n"));
            }
            entries.push(Entry { path: path.clone(), size: *size, oid, lfs, disk: Some(disk) });
        }
        entries.extend(dirs.into_iter().map(|(path, hash)| Entry {
            path,
            size: 0,
            oid: hex::encode(hash.finalize()),
            lfs: None,
            disk: None,
        }));
        entries.sort_by(|a, b| a.path.cmp(&b.path));
        if keep {
            self.keep();
        }
        let newest = stamp.iter().map(|s| s.2).max().unwrap_or(0);
        Ok(Tree { commit: hex::encode(commit.finalize()), entries, newest, stamp })
    }

    fn hash(&self, disk: &Path, size: u64, mtime: i128, sha256: bool) -> io::Result<String> {
        let key = disk.to_string_lossy().into_owned();
        let mut hashes = lock(&self.hashes);
        if let Some(h) = hashes.get(&key)
            && (h.mtime, h.size, h.sha256) == (mtime, size, sha256)
        {
            return Ok(h.hash.clone());
        }
        let mut file = fs::File::open(disk)?;
        let hash = if sha256 {
            hash_file(&mut file, Sha256::new())?
        } else {
            hash_file(&mut file, Sha1::new_with_prefix(format!("blob {size}\0")))?
        };
        hashes.insert(key, Hashed { mtime, size, sha256, hash: hash.clone() });
        Ok(hash)
    }

    /// Best effort: a root that cannot be written only costs time at the next start.
    fn keep(&self) {
        let kept: HashMap<String, Hashed> = lock(&self.hashes)
            .iter()
            .filter(|(_, h)| h.size >= KEEP)
            .map(|(k, h)| (k.clone(), h.clone()))
            .collect();
        let tmp = self.root.join(format!("{KEPT}.tmp"));
        if serde_json::to_vec(&kept).is_ok_and(|json| fs::write(&tmp, json).is_ok()) {
            fs::rename(&tmp, self.root.join(KEPT)).ok();
        }
    }
}

/// Git's id of a blob with these bytes.
pub fn git_id(bytes: &[u8]) -> String {
    let mut hash = Sha1::new_with_prefix(format!("blob {}\0", bytes.len()));
    hash.update(bytes);
    hex::encode(hash.finalize())
}

fn hash_file<D: Digest>(file: &mut fs::File, mut hash: D) -> io::Result<String> {
    let mut buffer = vec![0; 1 << 20];
    loop {
        match io::Read::read(file, &mut buffer)? {
            0 => return Ok(hex::encode(hash.finalize())),
            n => hash.update(&buffer[..n]),
        }
    }
}

fn walk(dir: &Path, prefix: &str, out: &mut Vec<(String, u64, i128)>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let path = format!("{prefix}{name}");
        // Follows symlinks: a bench may point at a file elsewhere.
        let meta = fs::metadata(entry.path())?;
        if meta.is_dir() {
            walk(&entry.path(), &format!("{path}/"), out)?;
        } else {
            out.push((
                path,
                meta.len(),
                i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec()),
            ));
        }
    }
    Ok(())
}

fn glob(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((head, rest)) => text
            .strip_prefix(head)
            .is_some_and(|tail| (0..=tail.len()).any(|i| tail.is_char_boundary(i) && glob(rest, &tail[i..]))),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
