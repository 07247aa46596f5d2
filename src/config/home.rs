//! Where things lie on this machine unless the user says otherwise.

use std::path::{Path, PathBuf};

use crate::error::{Error, Kind, Result};

/// The folder of this program for one user: `$HFMOUNT_HOME`, else `~/.local/share/hfmount`. Nothing is made by naming it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Home(PathBuf);

impl Home {
    /// As the environment says. [`Kind::Config`] if it says neither a home nor `HFMOUNT_HOME`.
    pub fn from_env() -> Result<Self> {
        Self::find(|name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from))
    }

    fn find(lookup: impl Fn(&str) -> Option<PathBuf>) -> Result<Self> {
        let home = match (lookup("HFMOUNT_HOME"), lookup("HOME")) {
            (Some(own), _) => own,
            (None, Some(user)) => user.join(".local/share/hfmount"),
            (None, None) => {
                return Err(Error::new(Kind::Config, "neither HFMOUNT_HOME nor HOME is set"));
            }
        };
        if !home.is_absolute() {
            return Err(Error::new(Kind::Config, format!("{} is not an absolute path", home.display())));
        }
        Ok(Home(home))
    }

    /// The folder itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The metadata of the default volume.
    #[must_use]
    pub fn sqlite(&self) -> PathBuf {
        self.0.join("meta.db")
    }

    /// The objects of the default volume.
    #[must_use]
    pub fn storage(&self) -> PathBuf {
        self.0.join("storage")
    }

    /// What a volume's mounts keep on this disk of what they read and write.
    #[must_use]
    pub fn cache(&self, volume: &str) -> PathBuf {
        self.0.join("cache").join(volume)
    }

    /// What belongs to single users of a volume's mounts on this node.
    #[must_use]
    pub fn private(&self, volume: &str) -> PathBuf {
        self.0.join("private").join(volume)
    }

    /// The log of a mount in the background: named after the directory that is mounted on, `mnt-hf.log`.
    #[must_use]
    pub fn log(&self, mount_point: &Path) -> PathBuf {
        self.0.join("logs").join(format!("{}.log", flat(mount_point)))
    }

    /// A note about the running mount on a directory.
    #[must_use]
    pub fn run_file(&self, mount_point: &Path) -> PathBuf {
        self.run_dir().join(format!("{}.json", flat(mount_point)))
    }

    /// The socket on which the process `pid` that began at `start` (clock ticks) gives its figures.
    #[must_use]
    pub fn socket(&self, pid: i32, start: u64) -> PathBuf {
        self.run_dir().join(format!("{pid}-{start}.sock"))
    }

    /// Where those notes and sockets lie.
    #[must_use]
    pub fn run_dir(&self) -> PathBuf {
        self.0.join("run")
    }
}

/// A path as one file name: readable, and different for different paths.
fn flat(path: &Path) -> String {
    let text = path.to_string_lossy();
    let name: String = text
        .trim_matches('/')
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_') { c } else { '-' })
        .collect();
    let name: String = name.chars().take(100).collect();
    let hash = blake3::hash(text.as_bytes()).to_hex();
    // A plain name needs no hash to be told from others.
    if text == format!("/{}", name.replace('-', "/")) { name } else { format!("{name}-{}", &hash[..8]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_variable_goes_before_the_users_home() {
        let find = |env: &[(&str, &str)]| {
            Home::find(|n| env.iter().find(|(k, _)| *k == n).map(|(_, v)| PathBuf::from(v)))
        };
        let home = find(&[("HOME", "/home/u")]).expect("home");
        assert_eq!(home.sqlite(), Path::new("/home/u/.local/share/hfmount/meta.db"));
        let own = find(&[("HOME", "/home/u"), ("HFMOUNT_HOME", "/srv/hf")]).expect("home");
        assert_eq!(own.storage(), Path::new("/srv/hf/storage"));
        assert!(find(&[]).is_err() && find(&[("HFMOUNT_HOME", "rel")]).is_err());
    }

    #[test]
    fn paths_become_names() {
        assert_eq!(flat(Path::new("/mnt/hf")), "mnt-hf");
        let names: Vec<String> =
            ["/mnt-hf", "/mnt/hf", "/mnt/h f", "/mnt/h,f"].iter().map(|p| flat(Path::new(p))).collect();
        for (i, name) in names.iter().enumerate() {
            assert!(!names[..i].contains(name), "{names:?}");
        }
    }
}
