//! What to fetch before it is asked for. Pure: told of reads, it says which chunks are worth having.
//!
//! The kernel cannot provide the parallelism that a distant source needs (it keeps two or three windows of 128 KiB in
//! flight), so the daemon follows the readers of a content itself. They are told apart by place, not by handle, since
//! mappings and threads share one. A reader begins with no window: who looks at one header gets the chunk it is in. As it
//! makes its way through chunks its window doubles, until it is all the rest. Who has read the first chunk whole and goes on is
//! a loader, and gets at once what fills a link. Faults of a mapping come as small reads out
//! of order: a step back within the window changes nothing. What is nowhere near a known reader is a new one; random
//! reads are many new ones, none of which ever makes its way.

use std::ops::Range;

/// Readers of one content told apart at a time.
const MAX_STREAMS: usize = 8;
/// A reader may step back this many chunks, however small its window.
const MIN_BACK: u64 = 4;
/// Chunks taken one after the other show a reader's way, however little it reads of each.
const STEPS: u32 = 3;
/// How far ahead of what was given out a node looks for chunks that are its own to fetch.
const MINE_WITHIN: u64 = 256;
/// The window that a new reader may inherit from others of the same content, in chunks.
const MAX_TRUST: u64 = 8;
/// The window of who begins at the start and leaves no more than a quarter of it out, in chunks.
const LOADER: u64 = 16;
/// Towards the end of a content so many transfers share what is left.
const TAIL: u64 = 16;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Stream {
    /// The first chunk beyond all that were read.
    frontier: u64,
    /// The first chunk not yet given out.
    next: u64,
    /// Chunks wanted from the frontier on.
    window: u64,
    /// Bytes read since the window last grew.
    bytes: u64,
    /// Chunks entered in order since the window last grew.
    steps: u32,
    /// The chunk it began with.
    first: u64,
    /// Bytes read since then.
    total: u64,
    /// Nobody reads here yet: a reader of what comes before is expected.
    expected: bool,
}

impl Stream {
    fn at(chunk: u64) -> Self {
        Stream {
            frontier: chunk,
            next: chunk,
            window: 0,
            bytes: 0,
            steps: 0,
            first: chunk,
            total: 0,
            expected: false,
        }
    }

    /// Whether it reads the content from its start, as far as it has come all of it but a quarter.
    fn loads(&self, chunk_size: u64) -> bool {
        let behind = self.frontier.saturating_mul(chunk_size);
        self.first == 0 && self.frontier > 0 && self.total >= behind - behind / 4
    }

    /// Goes on where `other` is, which began further on.
    fn meet(&mut self, other: &Stream) {
        self.frontier = self.frontier.max(other.frontier);
        self.next = self.next.max(other.next);
        self.window = self.window.max(other.window);
        self.total = self.total.saturating_add(other.total);
        self.expected = false;
    }

    fn end(&self) -> u64 {
        self.frontier.saturating_add(self.window)
    }

    fn covers(&self, chunk: u64) -> bool {
        let back = self.window.max(MIN_BACK);
        (self.frontier.saturating_sub(back)..=self.end()).contains(&chunk)
    }
}

/// Follows the readers of one content. Bounded memory, whatever the content's size.
#[derive(Clone, Debug)]
pub struct Readahead {
    chunk_size: u64,
    chunks: u64,
    max_window: u64,
    /// The latest first.
    streams: Vec<Stream>,
    /// With how much a new reader begins, in chunks: readers of tensors jump, and go on as before.
    trust: u64,
}

impl Readahead {
    /// For a content of `chunks` chunks, of which at most `max_window` are wanted ahead of a reader.
    #[must_use]
    pub fn new(chunk_size: u32, chunks: u64, max_window: u64) -> Self {
        Readahead { chunk_size: u64::from(chunk_size), chunks, max_window, streams: Vec::new(), trust: 0 }
    }

    /// Somebody reads `len` bytes at `offset`; within the content.
    pub fn access(&mut self, offset: u64, len: u64) {
        if len == 0 {
            return;
        }
        let (first, last) = (offset / self.chunk_size, (offset + len - 1) / self.chunk_size);
        // Of several the nearest; of those that are as near the latest.
        let covering = self.streams.iter().enumerate().filter(|(_, s)| s.covers(first));
        let nearest = covering.min_by_key(|(_, s)| s.frontier.abs_diff(first + 1)).map(|(at, _)| at);
        let mut stream = match nearest {
            Some(at) => self.streams.remove(at),
            None => {
                let window = self.trust.min(self.max_window);
                self.trust /= 2;
                self.streams.truncate(MAX_STREAMS - 1);
                Stream { window, ..Stream::at(first) }
            }
        };
        stream.expected = false;
        // Its second read may be here before its first.
        stream.first = stream.first.min(first);
        if last >= stream.frontier {
            // It enters a chunk. What counts is what it read before.
            if stream.bytes >= self.chunk_size / 4 || stream.steps >= STEPS {
                self.grow(&mut stream);
            }
            if stream.loads(self.chunk_size) {
                stream.window = stream.window.max(LOADER.min(self.max_window));
            }
            stream.steps += u32::from(first <= stream.frontier);
            stream.frontier = last + 1;
        } else if stream.window == 0 && stream.bytes + len >= self.chunk_size / 2 {
            // Half-way through its first chunk: the next one is wanted when it gets there.
            self.grow(&mut stream);
        }
        stream.bytes = stream.bytes.saturating_add(len);
        stream.total = stream.total.saturating_add(len);
        // The kernel sends what one reader wants in any order: two that meet are one.
        let meets = |s: &Stream| s.first > stream.first && s.first <= stream.frontier;
        if let Some(at) = self.streams.iter().position(meets) {
            stream.meet(&self.streams.remove(at));
        }
        self.streams.insert(0, stream);
    }

    fn grow(&mut self, stream: &mut Stream) {
        stream.window = (stream.window * 2).max(1).min(self.max_window);
        stream.bytes = 0;
        stream.steps = 0;
        self.trust = self.trust.max(stream.window / 4).min(MAX_TRUST);
    }

    /// The next run of chunks to fetch ahead, of at most `segment` chunks, all of them `missing`; each chunk is given out
    /// once for a reader. Small windows are cut finer, so that what is fetched is fetched in parallel.
    pub fn next(&mut self, segment: u64, missing: impl FnMut(u64) -> bool) -> Option<Range<u64>> {
        self.next_within(u64::MAX, segment, missing)
    }

    /// The same no further than `near` chunks ahead of a reader, or half as many as it has behind it.
    pub fn next_within(
        &mut self,
        near: u64,
        segment: u64,
        mut missing: impl FnMut(u64) -> bool,
    ) -> Option<Range<u64>> {
        for stream in &mut self.streams {
            let near = near.max(stream.frontier / 2);
            let end = stream.end().min(stream.frontier.saturating_add(near)).min(self.chunks);
            while stream.next < end {
                let first = stream.next;
                stream.next += 1;
                if !missing(first) {
                    continue;
                }
                let longest = longest(stream.window, segment, self.chunks - first);
                while stream.next < end && stream.next - first < longest && missing(stream.next) {
                    stream.next += 1;
                }
                return Some(first..stream.next);
            }
        }
        None
    }

    /// The same among chunks that are `mine`, wherever they lie in the next part of a reader's window: several nodes that
    /// read the same begin each with other chunks. They look as many times as far as there are `nodes`, for each of them
    /// fetches a share of that. What is given out here has to be not `missing` from then on.
    pub fn next_mine(
        &self,
        nodes: u64,
        segment: u64,
        mut missing: impl FnMut(u64) -> bool,
        mine: impl Fn(u64) -> bool,
    ) -> Option<Range<u64>> {
        for stream in &self.streams {
            let end = stream.frontier.saturating_add(stream.window.saturating_mul(nodes));
            let end = end.min(self.chunks).min(stream.next.saturating_add(MINE_WITHIN));
            let mut wanted = |idx| mine(idx) && missing(idx);
            if let Some(first) = (stream.next..end).find(|idx| wanted(*idx)) {
                let mut run = first..first + 1;
                let longest = longest(stream.window, segment, self.chunks - first);
                while run.end < end && run.end - run.start < longest && wanted(run.end) {
                    run.end += 1;
                }
                return Some(run);
            }
        }
        None
    }

    /// The same no further than [`Readahead::next_within`], of chunks that others fetch: those that are not `wanted` are still
    /// given out later.
    pub fn next_of_others(
        &self,
        near: u64,
        segment: u64,
        wanted: impl Fn(u64) -> bool,
    ) -> Option<Range<u64>> {
        for stream in &self.streams {
            let near = near.max(stream.frontier / 2);
            let end = stream.end().min(stream.frontier.saturating_add(near)).min(self.chunks);
            if let Some(first) = (stream.next..end).find(|idx| wanted(*idx)) {
                let longest = longest(stream.window, segment, self.chunks - first);
                let end = end.min(first + longest);
                let end = (first + 1..end).find(|idx| !wanted(*idx)).unwrap_or(end);
                return Some(first..end);
            }
        }
        None
    }

    /// Somebody who reads something else is expected to read this next, from its start: `window` chunks of it are wanted
    /// before.
    pub fn expect(&mut self, window: u64) {
        let window = window.min(self.max_window);
        match self.streams.iter_mut().find(|s| s.covers(0)) {
            // It had a look at the start.
            Some(stream) => {
                stream.expected |= stream.window == 0;
                stream.window = stream.window.max(window.saturating_sub(stream.frontier));
            }
            None => {
                self.streams.truncate(MAX_STREAMS - 1);
                self.streams.push(Stream { window, expected: true, ..Stream::at(0) });
            }
        }
    }

    /// Whether a loader wants all the rest, and nothing near that is `wanted` any more.
    #[must_use]
    pub fn is_out(&self, wanted: impl Fn(u64) -> bool) -> bool {
        let near =
            |s: &Stream| s.end() >= self.chunks && self.chunks - s.next.min(self.chunks) <= MINE_WITHIN;
        self.loaders().any(|s| near(s) && !(s.next..self.chunks).any(&wanted))
    }

    /// Whether all that expected readers may want was given out.
    #[must_use]
    pub fn expects_no_more(&self) -> bool {
        self.streams.iter().all(|s| !s.expected || s.next >= s.end().min(self.chunks))
    }

    /// Whether all readers are only expected.
    #[must_use]
    pub fn is_expected(&self) -> bool {
        self.streams.iter().all(|s| s.expected)
    }

    /// Whether somebody begins with it, or is expected to: beyond its first chunk nothing was read.
    #[must_use]
    pub fn is_begun(&self) -> bool {
        self.streams.iter().any(|s| s.first == 0 && s.frontier <= 1)
    }

    /// Whether a loader's window is all the rest, whatever of it was given out.
    #[must_use]
    pub fn is_read_whole(&self) -> bool {
        self.loaders().any(|s| s.end() >= self.chunks)
    }

    /// Whether a loader's window is all the rest, and all of that was given out: what it reads next is something else.
    #[must_use]
    pub fn is_used_up(&self) -> bool {
        self.loaders().any(|s| s.next >= self.chunks)
    }

    /// Who has shown that he reads all of it; of something small nobody has.
    fn loaders(&self) -> impl Iterator<Item = &Stream> {
        // Reads that come in any order may show it no sooner than at the end.
        let shown = |s: &Stream| s.window >= LOADER || (s.frontier >= self.chunks && self.chunks >= LOADER);
        self.streams.iter().filter(move |s| !s.expected && shown(s) && s.loads(self.chunk_size))
    }

    /// Chunks from `first` on were given out and did not come: readers near there want them again.
    pub fn failed(&mut self, first: u64) {
        for stream in self.streams.iter_mut().filter(|s| s.covers(first)) {
            stream.next = stream.next.min(first);
        }
    }

    /// Nobody reads any more: nothing is wanted.
    pub fn stop(&mut self) {
        self.streams.clear();
        self.trust = 0;
    }
}

/// The length of a run: the smaller the window, and the less is left, the finer.
fn longest(window: u64, segment: u64, left: u64) -> u64 {
    (window / 8).min(left / TAIL).clamp(1, segment.max(1))
}

#[cfg(test)]
mod tests;
