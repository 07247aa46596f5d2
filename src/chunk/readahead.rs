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
        let mut stream = match self.streams.iter().position(|s| s.covers(first)) {
            Some(at) => self.streams.remove(at),
            None => {
                let window = self.trust.min(self.max_window);
                self.trust /= 2;
                self.streams.truncate(MAX_STREAMS - 1);
                Stream { window, ..Stream::at(first) }
            }
        };
        stream.expected = false;
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

    /// Whether a loader's window is all the rest, and all of that was given out: what it reads next is something else.
    #[must_use]
    pub fn is_used_up(&self) -> bool {
        let loads = |s: &&Stream| !s.expected && s.window >= LOADER && s.loads(self.chunk_size);
        self.streams.iter().filter(loads).any(|s| s.next >= self.chunks)
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
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const MIB: u64 = 1 << 20;
    const CHUNK: u64 = 4 * MIB;

    /// A content whose chunks are there at once when somebody asks for them.
    struct World {
        readahead: Readahead,
        there: BTreeSet<u64>,
    }

    impl World {
        fn new(chunks: u64) -> Self {
            World { readahead: Readahead::new(CHUNK as u32, chunks, u64::MAX), there: BTreeSet::new() }
        }

        fn read(&mut self, offset: u64, len: u64) -> &mut Self {
            self.readahead.access(offset, len);
            self.there.extend(offset / CHUNK..=(offset + len - 1) / CHUNK);
            while let Some(run) = self.readahead.next(4, |c| !self.there.contains(&c)) {
                assert!(!run.is_empty() && run.end - run.start <= 4);
                self.there.extend(run);
            }
            self
        }

        fn sequential(&mut self, from: u64, to: u64, step: u64) -> &mut Self {
            (from..to).step_by(step as usize).for_each(|at| _ = self.read(at, step.min(to - at)));
            self
        }

        fn count(&self) -> usize {
            self.there.len()
        }
    }

    #[test]
    fn who_reads_a_header_gets_its_chunk() {
        let mut w = World::new(1000);
        w.read(0, 8).read(8, 100_000);
        assert_eq!(w.count(), 1);
        // As mapped: whole windows of the kernel, and once more.
        w.sequential(0, MIB, 128 << 10).sequential(0, MIB / 2, 128 << 10);
        assert_eq!(w.count(), 1);
        w.sequential(0, 3 * MIB, 128 << 10);
        assert_eq!(w.count(), 2, "a long header may be a beginning");
        // The same page over and over is no progress.
        (0..10_000).for_each(|_| _ = w.read(4096, 4096));
        assert_eq!(w.count(), 2);
    }

    #[test]
    fn the_window_doubles_up_to_the_rest() {
        let mut w = World::new(2000);
        // Chunk entered, and what is there then beside the first thousand: it, those before, the window.
        let begin = 1000;
        for (chunk, there) in [(1, 2 + 2), (2, 3 + 4), (3, 4 + 8), (4, 5 + 16), (5, 6 + 32), (6, 7 + 64)] {
            w.sequential((begin + chunk - 1) * CHUNK, (begin + chunk) * CHUNK + 1, 128 << 10);
            assert_eq!(w.count(), there, "chunk {chunk}");
        }
        w.sequential((begin + 6) * CHUNK, (begin + 14) * CHUNK, MIB);
        assert_eq!(w.count(), 1000);
    }

    #[test]
    fn a_loader_gets_what_fills_a_link_from_its_second_chunk_on() {
        for step in [128 << 10, MIB, 16 * MIB] {
            let mut w = World::new(1000);
            w.sequential(0, CHUNK, step);
            assert!(w.count() <= 2, "a long header may be a beginning: {step}");
            for (chunk, window) in [(1, 16), (2, 32), (3, 64)] {
                w.sequential(chunk * CHUNK, (chunk + 1) * CHUNK, step);
                assert_eq!(w.count() as u64, chunk + 1 + window, "steps of {step}");
            }
        }
        // Who leaves out half of it is none.
        let mut w = World::new(1000);
        (0..3 * CHUNK / (512 << 10)).for_each(|n| _ = w.read(n * (512 << 10), 256 << 10));
        assert!(w.count() <= 3 + 4, "{}", w.count());
    }

    #[test]
    fn who_is_expected_gets_a_window_and_no_more() {
        let mut w = World::new(100);
        assert!(w.readahead.is_expected() && w.readahead.expects_no_more() && !w.readahead.is_used_up());
        w.readahead.expect(30);
        assert!(w.readahead.is_expected() && !w.readahead.expects_no_more());
        let mut given = Vec::new();
        while let Some(run) = w.readahead.next(4, |_| true) {
            given.extend(run);
        }
        assert_eq!(given, (0..30).collect::<Vec<_>>());
        assert!(w.readahead.expects_no_more());
        w.there.extend(given);
        // He comes, and looks at the header first.
        w.read(0, 8).read(8, 100_000);
        assert!(!w.readahead.is_expected());
        assert_eq!(w.count(), 31, "the window moves on by the chunk that he entered");
        w.sequential(100_008, 5 * CHUNK, MIB);
        assert_eq!(w.count(), 100);
        assert!(w.readahead.is_used_up());

        // Who had a look before.
        let mut w = World::new(100);
        w.read(0, 100);
        w.readahead.expect(30);
        assert!(w.readahead.is_expected());
        w.read(100, 100);
        assert!(!w.readahead.is_expected());
        assert_eq!(w.count(), 30);
    }

    #[test]
    fn what_is_used_up_was_read_by_a_loader() {
        let mut w = World::new(100);
        w.sequential(0, 4 * CHUNK, MIB);
        assert!(!w.readahead.is_used_up());
        w.sequential(4 * CHUNK, 7 * CHUNK, MIB);
        assert!(w.readahead.is_used_up(), "all is given out");
        let mut w = World::new(100);
        w.sequential(50 * CHUNK, 100 * CHUNK, MIB);
        assert!(!w.readahead.is_used_up(), "half of it is no whole");
        let mut w = World::new(100);
        (0..100).for_each(|c| _ = w.read(c * CHUNK, 4096));
        assert!(!w.readahead.is_used_up(), "nor is a look at every chunk");
    }

    #[test]
    fn the_end_is_cut_finer() {
        assert_eq!([1, 8, 32, 64, 1000].map(|window| longest(window, 4, 1000)), [1, 1, 4, 4, 4]);
        assert_eq!([64, 63, 33, 31, 16, 1].map(|left| longest(1000, 4, left)), [4, 3, 2, 1, 1, 1]);
        assert_eq!(longest(1000, 0, 1000), 1);
    }

    #[test]
    fn large_reads_count_as_much_as_small_ones() {
        let mut w = World::new(1000);
        w.sequential(0, 12 * CHUNK, 8 * MIB);
        assert!(w.count() > 20, "{}", w.count());
    }

    #[test]
    fn random_small_reads_pull_little_else() {
        let mut w = World::new(2560);
        let mut seed = 7_u64;
        let mut asked = BTreeSet::new();
        for _ in 0..500 {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let at = (seed >> 20) % (2560 * CHUNK - 4096);
            asked.insert(at / CHUNK);
            w.read(at, 4096);
        }
        assert!(w.count() <= asked.len() + asked.len() / 5, "{} for {}", w.count(), asked.len());
    }

    #[test]
    fn random_faults_of_a_mapping_pull_little_else() {
        let mut w = World::new(2560);
        let mut seed = 3_u64;
        let mut asked = BTreeSet::new();
        for _ in 0..300 {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let at = (seed >> 20) % (2560 * CHUNK - 2 * MIB) / 4096 * 4096;
            asked.extend(at / CHUNK..=(at + (128 << 10) - 1) / CHUNK);
            w.read(at, 128 << 10);
        }
        assert!(w.count() <= asked.len() + asked.len() / 5, "{} for {}", w.count(), asked.len());
    }

    #[test]
    fn faults_out_of_order_are_one_reader() {
        let mut w = World::new(400);
        // Each chunk's 128 KiB windows in a shuffled order, now and then one of the chunk before.
        for chunk in 0..12_u64 {
            for i in 0..32_u64 {
                let slot = (i * 13 + chunk) % 32;
                w.read(chunk * CHUNK + slot * (128 << 10), 128 << 10);
                if chunk > 0 && i % 8 == 0 {
                    w.read((chunk - 1) * CHUNK + slot * (128 << 10), 128 << 10);
                }
            }
        }
        assert_eq!(w.readahead.streams.len(), 1);
        assert_eq!(w.count(), 400);
    }

    #[test]
    fn two_readers_do_not_disturb_each_other() {
        let mut w = World::new(4000);
        for i in 0..(6 * CHUNK / MIB) {
            w.read(i * MIB, MIB);
            w.read(2000 * CHUNK + i * MIB, MIB);
        }
        assert_eq!(w.readahead.streams.len(), 2);
        assert!(w.there.contains(&30) && w.there.contains(&2030) && !w.there.contains(&1000));
    }

    #[test]
    fn a_reader_of_tensors_that_jumps_starts_wider_and_a_random_one_loses_that() {
        let mut w = World::new(4000);
        w.sequential(0, 8 * CHUNK, MIB);
        let before = w.count();
        w.read(3000 * CHUNK, 4096);
        assert!(w.count() > before + 4, "inherited");
        for i in 1..10 {
            w.read(3000 * CHUNK + i * 50 * CHUNK, 4096);
        }
        let before = w.count();
        w.read(3700 * CHUNK, 4096);
        assert_eq!(w.count(), before + 1);
    }

    #[test]
    fn strides_through_every_chunk_are_a_way_too() {
        let mut w = World::new(300);
        (0..20).for_each(|c| _ = w.read(c * CHUNK + 777, 4096));
        assert!(w.count() > 25, "{}", w.count());
    }

    #[test]
    fn what_is_mine_comes_first_and_only_within_the_window() {
        let mut w = World::new(800);
        w.sequential(100 * CHUNK, 105 * CHUNK + 1, MIB);
        let there = w.there.clone();
        let (next, end) = (w.readahead.streams[0].next, w.readahead.streams[0].end());
        w.readahead.streams[0].window = 64;
        let missing = |idx: u64| !there.contains(&idx);
        let run = w.readahead.next_mine(1, 4, missing, |idx| idx >= next + 10).expect("a run");
        assert_eq!(run, next + 10..next + 14);
        let end = end.max(w.readahead.streams[0].end());
        assert_eq!(w.readahead.next_mine(1, 4, missing, |idx| idx >= end), None);
        assert_eq!(w.readahead.next_mine(3, 4, missing, |idx| idx >= end), Some(end..end + 4));
        assert_eq!(w.readahead.next_mine(3, 4, |_| false, |_| true), None);
        assert_eq!(w.readahead.next(4, missing), Some(next..next + 4), "the order of the rest is as it was");
    }

    #[test]
    fn what_is_not_near_is_given_out_when_it_is() {
        let mut w = World::new(400);
        w.sequential(0, 5 * CHUNK + 1, MIB);
        let mut r = w.readahead.clone();
        let frontier = r.streams[0].frontier;
        (r.streams[0].next, r.streams[0].window) = (frontier, 64);
        let mut given = BTreeSet::new();
        while let Some(run) = r.next_within(4, 4, |_| true) {
            given.extend(run);
        }
        assert_eq!(given, (frontier..frontier + 4).collect());
        r.access(frontier * CHUNK, MIB);
        assert_eq!(r.next_within(4, 4, |_| true), Some(frontier + 4..frontier + 5));
        assert_eq!(r.next(4, |_| true), Some(frontier + 5..frontier + 9), "alone it is all the window");
    }

    #[test]
    fn windows_are_bounded_and_nothing_is_given_out_twice() {
        let mut r = Readahead::new(CHUNK as u32, 1000, 16);
        let mut given = BTreeSet::new();
        for at in (0..40 * CHUNK).step_by(MIB as usize) {
            r.access(at, MIB);
            while let Some(run) = r.next(4, |_| true) {
                for c in run {
                    assert!(given.insert(c), "chunk {c} twice");
                    assert!(c <= at / CHUNK + 17);
                }
            }
        }
        r.failed(50);
        assert_eq!(r.next(4, |_| true), Some(50..52));
        r.stop();
        assert_eq!(r.next(4, |_| true), None);
    }
}
