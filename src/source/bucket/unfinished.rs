//! Uploads that broke off. On a server they leave nothing: an object is one request. In a folder they leave a file beside
//! the object's place, which no listing shows.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Bucket, Listed};
use crate::blocking::blocking;
use crate::error::{Error, Kind, Result, ResultExt};
use crate::types::Timestamp;

/// Whether the store gave a file this name while it was being written: `<object>#<number>`.
fn is_unfinished(name: &str) -> bool {
    name.rsplit_once('#').is_some_and(|(object, number)| {
        !object.is_empty() && !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())
    })
}

impl Bucket {
    fn folder(&self) -> Option<PathBuf> {
        let folders = self.shared.folders.as_ref()?;
        let mut top = folders.top.clone();
        top.extend(self.shared.root.parts().map(|p| p.as_ref().to_owned()));
        Some(top)
    }

    /// Files of uploads that are going on or broke off; their age tells which.
    pub async fn unfinished(&self) -> Result<Vec<Listed>> {
        let Some(top) = self.folder() else { return Ok(Vec::new()) };
        blocking(move || {
            let mut found = Vec::new();
            let mut dirs = vec![top.clone()];
            while let Some(dir) = dirs.pop() {
                let entries = match fs::read_dir(&dir) {
                    Ok(entries) => entries,
                    Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
                    Err(e) => return Err(e).context(|| format!("folder {}", dir.display())),
                };
                for entry in entries.filter_map(|e| e.ok()) {
                    if entry.file_type().is_ok_and(|t| t.is_dir()) {
                        dirs.push(entry.path());
                    } else if entry.file_name().to_str().is_some_and(is_unfinished) {
                        found.extend(listed(&top, &entry.path()));
                    }
                }
            }
            Ok(found)
        })
        .await
    }

    /// Deletes one of those.
    pub async fn delete_unfinished(&self, listed: &Listed) -> Result<()> {
        let (Some(top), true) = (self.folder(), is_unfinished(&listed.name)) else {
            return Err(Error::new(Kind::Invalid, format!("{} is no unfinished upload", listed.name)));
        };
        let path = top.join(&listed.name);
        blocking(move || match fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(e).context(|| format!("file {}", path.display()))
            }
            _ => Ok(()),
        })
        .await
    }
}

/// `None`: it went meanwhile.
fn listed(top: &Path, path: &Path) -> Option<Listed> {
    let meta = fs::symlink_metadata(path).ok()?;
    let name = path.strip_prefix(top).ok()?.to_str()?.to_owned();
    Some(Listed { name, size: meta.len(), modified: Timestamp::from(meta.modified().ok()?) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::storage::StorageOptions;

    #[tokio::test]
    async fn what_a_broken_upload_leaves_in_a_folder_is_found_and_deleted() {
        let dir = tempfile::tempdir().expect("a directory");
        let url = format!("file://{}", dir.path().display()).parse().expect("a URL");
        let bucket = Bucket::open(&url, &StorageOptions::default(), "vol").await.expect("a folder opens");
        assert_eq!(bucket.unfinished().await.expect("nothing yet"), []);
        let place = dir.path().join("vol/chunks/0000000000000005");
        fs::create_dir_all(&place).expect("folder");
        for name in ["7", "7#1", "8#12", "9#", "#1", "a#b"] {
            fs::write(place.join(name), name).expect("file");
        }
        let mut found = bucket.unfinished().await.expect("a list");
        found.sort_by(|a, b| a.name.cmp(&b.name));
        let names: Vec<&str> = found.iter().map(|l| l.name.as_str()).collect();
        assert_eq!(names, ["chunks/0000000000000005/7#1", "chunks/0000000000000005/8#12"]);
        assert_eq!(found[1].size, 4);
        bucket.delete_unfinished(&found[1]).await.expect("deleted");
        bucket.delete_unfinished(&found[1]).await.expect("gone already");
        assert!(!place.join("8#12").exists() && place.join("7#1").exists());
        let object = Listed { name: "chunks/0000000000000005/7".to_owned(), ..found[0].clone() };
        assert!(bucket.delete_unfinished(&object).await.is_err() && place.join("7").exists());
    }
}
