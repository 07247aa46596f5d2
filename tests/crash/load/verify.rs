//! What must be there afterwards.

use super::*;

impl Program {
    /// Holds the manifest against the mount: every name and every acknowledged byte is there, and nothing that never was.
    /// What was under way is known afterwards. `dead`: the mounts whose daemons were killed since; what only they had is
    /// gone. `root` may be another mount of the volume than those that the program uses. With `at_home` each file is read
    /// on the mount that has it all.
    pub fn verify(&mut self, root: &Path, dead: &[usize], at_home: bool) -> Result<(), String> {
        let base = root.join(&self.name);
        let here = |path: &str| fs::symlink_metadata(base.join(path)).is_ok();
        match self.manifest.pending.take() {
            Some(Pending::Make(path, entry)) if here(&path) => self.manifest.make(&path, entry),
            Some(Pending::Remove(path)) if !here(&path) => self.manifest.remove(&path),
            Some(Pending::Rename(from, to)) if !here(&from) => {
                self.manifest.remove(&to);
                self.manifest.rename(&from, &to);
            }
            _ => {}
        }
        let mut found = Vec::new();
        walk(&base, "", &mut found).map_err(|e| format!("{}: listing: {e}", self.name))?;
        found.sort();
        let expected: Vec<String> = self.manifest.entries.keys().cloned().collect();
        if found != expected {
            let missing: Vec<_> = expected.iter().filter(|p| !found.contains(p)).collect();
            let more: Vec<_> = found.iter().filter(|p| !expected.contains(p)).collect();
            return Err(format!("{}: missing: {missing:?}; never made: {more:?}", self.name));
        }
        for path in self.manifest.files() {
            let home = self.manifest.file(&path).home.filter(|_| at_home);
            let at = home.map_or_else(|| base.join(&path), |home| self.at(home, &path));
            let bytes = fs::read(&at).map_err(|e| format!("{}: {}: {e}", self.name, at.display()))?;
            let name = self.name.clone();
            self.checked += 1;
            let file = self.manifest.file(&path);
            if !file.may_be(&bytes) {
                return Err(format!("{name}: {path}, changed on {:?}: {}", file.home, file.describe(&bytes)));
            }
            if file.home.is_none_or(|home| dead.contains(&home)) {
                file.settle(Arc::new(bytes));
            }
        }
        Ok(())
    }

    /// Something failed and no daemon died: the data of what was not acknowledged is still there, and can be brought home
    /// now that nothing is broken.
    pub fn bring_home(&mut self) -> Result<(), String> {
        let paths: Vec<String> = self.manifest.files();
        for path in paths {
            let Some(home) = self.manifest.file(&path).home else { continue };
            let at = self.at(home, &path);
            let name = self.name.clone();
            let failed =
                |e: io::Error| format!("{name}: {path} on mount {home}, nothing is broken any more: {e}");
            let file = OpenOptions::new().read(true).write(true).open(&at).map_err(failed)?;
            let found = fs::read(&at).map_err(failed)?;
            file.sync_all().map_err(failed)?;
            close(file).map_err(failed)?;
            let known = self.manifest.file(&path);
            if !known.may_be(&found) {
                return Err(format!("{name}: {path} on its mount {home}: {}", known.describe(&found)));
            }
            known.settle(Arc::new(found));
        }
        Ok(())
    }
}
