//! What a program was told: the names that it made and the bytes whose fsync or close returned. Kept outside the mount,
//! and held against it after each disaster.

use std::collections::BTreeMap;
use std::sync::Arc;

const PAGE: usize = 4096;

pub type Content = Arc<Vec<u8>>;

/// What is known of a file's data.
#[derive(Clone, Debug, Default)]
pub struct File {
    /// The bytes of the last fsync or close that returned.
    pub acked: Content,
    /// What it was after each change since, the last one as programs see it now on the mount that changed it. Any of it may be
    /// there after a crash: a commit may have been under way.
    pub states: Vec<Content>,
    /// The mount that has what is not acknowledged.
    pub home: Option<usize>,
}

impl File {
    /// As the mount that changed it shows it.
    pub fn now(&self) -> &Content {
        self.states.last().unwrap_or(&self.acked)
    }

    /// An fsync or close returned. With `here` only its mount must have the bytes so far.
    pub fn ack(&mut self, here: bool) {
        let home = self.home.filter(|_| here);
        self.settle(self.now().clone());
        self.home = home;
    }

    /// It is known to be this.
    pub fn settle(&mut self, content: Content) {
        *self = File { acked: content, states: Vec::new(), home: None };
    }

    pub fn change(&mut self, mount: usize, change: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = (**self.now()).clone();
        change(&mut bytes);
        self.states.push(Arc::new(bytes));
        self.home = Some(mount);
    }

    /// Whether these bytes can be what is left of it. Each that was not written since the last acknowledgement is what was
    /// acknowledged. Writes since may be there or not, also in part: the kernel may cut them at pages, and who dies between two
    /// requests has done one of them.
    pub fn may_be(&self, found: &[u8]) -> bool {
        let known: Vec<&[u8]> =
            std::iter::once(&self.acked).chain(&self.states).map(|state| state.as_slice()).collect();
        let shortest = known.iter().map(|state| state.len()).min().unwrap_or(0);
        let longest = known.iter().map(|state| state.len()).max().unwrap_or(0);
        if found.len() < shortest || found.len() > longest {
            return false;
        }
        // Most often it is one of them, and a page is.
        if known.contains(&found) {
            return true;
        }
        (0..found.len()).step_by(PAGE).all(|at| {
            let page = &found[at..found.len().min(at + PAGE)];
            known.iter().any(|state| state.get(at..at + page.len()) == Some(page))
                || (at..at + page.len())
                    .all(|i| known.iter().any(|state| state.get(i).copied().unwrap_or(0) == found[i]))
        })
    }

    /// For a report.
    pub fn describe(&self, found: &[u8]) -> String {
        let differs = |s: &Content| {
            let at =
                s.iter().zip(found).position(|(a, b)| a != b).unwrap_or_else(|| s.len().min(found.len()));
            let byte = |v: &[u8]| v.get(at).map_or("end".to_owned(), |b| format!("{b:#04x}"));
            format!("{} bytes, first difference at {at}: {} instead of {}", s.len(), byte(found), byte(s))
        };
        let last = self.states.len().saturating_sub(12);
        let states: Vec<String> = self.states[last..].iter().map(differs).collect();
        format!("found {} bytes; acknowledged: {}; since: {states:?}", found.len(), differs(&self.acked))
    }
}

#[derive(Clone, Debug)]
pub enum Entry {
    Dir,
    File(File),
}

/// An operation whose answer was lost: it was done, or it was not.
#[derive(Clone, Debug)]
pub enum Pending {
    Make(String, Entry),
    Remove(String),
    Rename(String, String),
}

/// All names below one program's directory. Paths are relative to it.
#[derive(Clone, Debug, Default)]
pub struct Manifest {
    pub entries: BTreeMap<String, Entry>,
    pub pending: Option<Pending>,
}

impl Manifest {
    pub fn files(&self) -> Vec<String> {
        self.of(|entry| matches!(entry, Entry::File(_)))
    }

    pub fn dirs(&self) -> Vec<String> {
        self.of(|entry| matches!(entry, Entry::Dir))
    }

    fn of(&self, wanted: impl Fn(&Entry) -> bool) -> Vec<String> {
        self.entries.iter().filter(|(_, entry)| wanted(entry)).map(|(path, _)| path.clone()).collect()
    }

    /// Files of several MiB.
    pub fn large(&self) -> usize {
        let large = |entry: &Entry| matches!(entry, Entry::File(file) if file.now().len() > 4 << 20);
        self.of(large).len()
    }

    pub fn file(&mut self, path: &str) -> &mut File {
        match self.entries.get_mut(path) {
            Some(Entry::File(file)) => file,
            other => panic!("{path} is no file of the manifest: {other:?}"),
        }
    }

    pub fn is_empty_dir(&self, path: &str) -> bool {
        let prefix = format!("{path}/");
        !self.entries.keys().any(|other| other.starts_with(&prefix))
    }

    pub fn make(&mut self, path: &str, entry: Entry) {
        self.entries.insert(path.to_owned(), entry);
    }

    pub fn remove(&mut self, path: &str) {
        self.entries.remove(path);
    }

    /// With all that is below it.
    pub fn rename(&mut self, from: &str, to: &str) {
        let below = format!("{from}/");
        let moved: Vec<String> =
            self.entries.keys().filter(|p| *p == from || p.starts_with(&below)).cloned().collect();
        for path in moved {
            let entry = self.entries.remove(&path).expect("listed");
            self.entries.insert(format!("{to}{}", &path[from.len()..]), entry);
        }
    }
}
