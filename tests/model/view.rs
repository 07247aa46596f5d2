//! The data of a file: what was committed, one version after the other, and what a node sees of it that has it open.

use std::sync::Arc;

/// What was committed, oldest first; the last is what an open sees.
#[derive(Clone, Debug, PartialEq)]
pub struct History {
    versions: Vec<Arc<Vec<u8>>>,
    /// The latest when operations began that run at this moment: an open among them may see either.
    settled: usize,
}

impl Default for History {
    fn default() -> Self {
        History { versions: vec![Arc::default()], settled: 0 }
    }
}

impl History {
    pub fn latest(&self) -> &Arc<Vec<u8>> {
        self.versions.last().expect("never empty")
    }

    fn end(&self) -> usize {
        self.versions.len() - 1
    }

    /// Nothing runs at this moment.
    pub fn settle(&mut self) {
        self.settled = self.end();
    }
}

/// What one node sees of a file that it has open, or has something new in.
#[derive(Clone, Debug, PartialEq)]
pub struct View {
    /// The version that it is based on, or a later one.
    base: usize,
    /// What was written here and is not committed.
    own: Vec<Option<u8>>,
    /// The smallest size since the last commit, if the file was cut.
    floor: Option<usize>,
    /// One past the last byte written or added since the last commit, unless cut off.
    end: usize,
    pub modified: bool,
    /// The commit sets the time of last change.
    pub touched: bool,
}

impl View {
    /// As an open finds it.
    pub fn new(history: &History) -> Self {
        View { base: history.settled, own: Vec::new(), floor: None, end: 0, modified: false, touched: false }
    }

    /// Somebody opened or locked the file: what is not changed here is what it is now.
    pub fn refresh(&mut self, history: &History) {
        if !self.modified {
            *self = View::new(history);
        }
    }

    /// Whether it is not known how large this node takes the file to be.
    pub fn is_vague(&self, history: &History) -> bool {
        self.sizes(history).windows(2).any(|two| two[0] != two[1])
    }

    fn size_over(&self, base: &[u8]) -> usize {
        match (self.modified, self.floor) {
            (false, _) => base.len(),
            (true, None) => base.len().max(self.end),
            (true, Some(floor)) => base.len().min(floor).max(self.end),
        }
    }

    /// The size, if there is no doubt.
    pub fn size(&self, history: &History) -> usize {
        self.size_over(&history.versions[self.base])
    }

    /// Sizes that it may have: a read may bring in what others committed meanwhile.
    pub fn sizes(&self, history: &History) -> Vec<usize> {
        history.versions[self.base..].iter().map(|v| self.size_over(v)).collect()
    }

    pub fn write(&mut self, at: usize, data: &[u8]) {
        self.change();
        if self.own.len() < at + data.len() {
            self.own.resize(at + data.len(), None);
        }
        for (place, byte) in self.own[at..].iter_mut().zip(data) {
            *place = Some(*byte);
        }
        self.end = self.end.max(at + data.len());
    }

    pub fn truncate(&mut self, size: usize, history: &History) {
        let old = self.size(history);
        self.change();
        if size < old {
            self.floor = Some(self.floor.map_or(size, |f| f.min(size)));
            self.own.truncate(size);
            self.end = self.end.min(size);
        }
        // Also a cut leaves the file at least so long, whatever others do meanwhile.
        self.end = self.end.max(size);
    }

    fn change(&mut self) {
        self.modified = true;
        self.touched = true;
    }

    /// What is new here lies over what was committed last.
    pub fn commit(&mut self, history: &mut History) {
        let latest = history.latest();
        let size = self.size_over(latest);
        let kept = self.floor.map_or(latest.len(), |f| f.min(latest.len()));
        let byte = |i: usize| match self.own.get(i) {
            Some(Some(own)) => *own,
            _ if i < kept => latest[i],
            _ => 0,
        };
        let merged = (0..size).map(byte).collect();
        history.versions.push(Arc::new(merged));
        *self = View {
            base: history.end(),
            own: Vec::new(),
            floor: None,
            end: 0,
            modified: false,
            touched: false,
        };
    }

    /// Whether a read at `at` of `len` bytes may have answered `got`: each byte what was written here, else what was
    /// there when the file was opened, or newer.
    pub fn admits(&self, history: &History, at: usize, len: usize, got: &[u8]) -> Result<(), String> {
        let window = &history.versions[self.base..];
        let lengths: Vec<usize> =
            self.sizes(history).iter().map(|s| (at + len).min(*s).saturating_sub(at)).collect();
        if !lengths.contains(&got.len()) {
            return Err(format!("read {} bytes at {at}, expected {lengths:?}", got.len()));
        }
        for (i, &byte) in got.iter().enumerate().map(|(i, byte)| (at + i, byte)) {
            let cut = self.floor.is_some_and(|f| i >= f);
            let good = match self.own.get(i) {
                Some(Some(own)) => byte == *own,
                _ if cut => byte == 0,
                _ => window.iter().any(|v| v.get(i).copied().unwrap_or(0) == byte),
            };
            if !good {
                let own = self.own.get(i).copied().flatten();
                let old: Vec<_> = window.iter().map(|v| v.get(i).copied()).collect();
                return Err(format!("byte {i} is {byte}; own: {own:?}, cut: {cut}, committed: {old:?}"));
            }
        }
        Ok(())
    }
}
