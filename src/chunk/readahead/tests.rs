//! Readers of all kinds, and what comes for them.

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
fn who_reads_the_only_chunk_is_no_loader() {
    let mut w = World::new(1);
    for _ in 0..3 {
        w.sequential(0, CHUNK, 4096).sequential(0, CHUNK, MIB);
        assert!(!w.readahead.is_read_whole() && !w.readahead.is_used_up());
    }
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
    assert!(!w.readahead.is_begun());
    w.readahead.expect(30);
    assert!(w.readahead.is_expected() && w.readahead.is_begun() && !w.readahead.expects_no_more());
    let mut given = Vec::new();
    while let Some(run) = w.readahead.next(4, |_| true) {
        given.extend(run);
    }
    assert_eq!(given, (0..30).collect::<Vec<_>>());
    assert!(w.readahead.expects_no_more());
    w.there.extend(given);
    // He comes, and looks at the header first.
    w.read(0, 8).read(8, 100_000);
    assert!(!w.readahead.is_expected() && w.readahead.is_begun());
    assert_eq!(w.count(), 31, "the window moves on by the chunk that he entered");
    w.sequential(100_008, 5 * CHUNK, MIB);
    assert!(!w.readahead.is_begun());
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
    assert!(!w.readahead.is_read_whole());
    w.sequential(4 * CHUNK, 7 * CHUNK, MIB);
    assert!(w.readahead.is_used_up(), "all is given out");
    assert!(w.readahead.is_read_whole());
    // In the order in which the kernel may send it.
    let mut w = World::new(40);
    w.read(0, 4096).read(3 * CHUNK, MIB);
    w.sequential(4096, 3 * CHUNK, MIB).sequential(3 * CHUNK + MIB, 20 * CHUNK, MIB);
    assert!(w.readahead.is_used_up(), "one reader");
    let mut w = World::new(40);
    w.read(CHUNK, MIB).read(0, MIB);
    w.sequential(MIB, CHUNK, MIB).sequential(CHUNK + MIB, 20 * CHUNK, MIB);
    assert!(w.readahead.is_used_up(), "the second read came first");
    // All came before he asked for it.
    let mut readahead = Readahead::new(CHUNK as u32, 100, u64::MAX);
    (0..7 * CHUNK / MIB).for_each(|n| readahead.access(n * MIB, MIB));
    assert!(readahead.is_read_whole() && !readahead.is_used_up());
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
fn what_others_fetch_may_go_before_what_is_mine() {
    let mut w = World::new(400);
    w.sequential(0, 5 * CHUNK + 1, MIB);
    let mut r = w.readahead.clone();
    let frontier = r.streams[0].frontier;
    (r.streams[0].next, r.streams[0].window) = (frontier, 64);
    // The first two are mine, and so is the sixth.
    let theirs = |idx: u64| ![0, 1, 5].contains(&(idx - frontier));
    assert_eq!(r.next_of_others(8, 4, theirs), Some(frontier + 2..frontier + 5));
    let rest = |idx: u64| theirs(idx) && idx >= frontier + 5;
    assert_eq!(r.next_of_others(8, 4, rest), Some(frontier + 6..frontier + 8), "no further than it is near");
    assert_eq!(r.next_of_others(6, 4, rest), None);
    assert_eq!(r.next_within(8, 1, |_| true), Some(frontier..frontier + 1), "mine are still to be had");
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

#[test]
fn the_own_part_is_out_before_all_is() {
    let mut readahead = Readahead::new(CHUNK as u32, 40, u64::MAX);
    let even = |idx: u64| idx.is_multiple_of(2);
    assert!(!readahead.is_out(|_| false), "nobody reads");
    let there = BTreeSet::from_iter((0..40).filter(|idx| even(*idx)));
    // With its fourth chunk the window, which doubles from 16 on, is all the rest.
    for at in (0..3 * CHUNK).step_by(MIB as usize) {
        assert!(!readahead.is_out(|_| false), "he has not shown that he reads all: {at}");
        readahead.access(at, MIB);
    }
    (3 * CHUNK..8 * CHUNK).step_by(MIB as usize).for_each(|at| readahead.access(at, MIB));
    let missing = |idx: u64| !there.contains(&idx);
    assert!(readahead.is_out(|idx| missing(idx) && even(idx)), "of the even ones nothing is wanted any more");
    assert!(!readahead.is_out(|idx| missing(idx) && !even(idx)) && !readahead.is_used_up());
    // Of a large one the end is too far away to be looked at.
    let mut large = Readahead::new(CHUNK as u32, 40_000, u64::MAX);
    (0..40 * CHUNK).step_by(MIB as usize).for_each(|at| large.access(at, MIB));
    assert!(!large.is_out(|_| false));
}
