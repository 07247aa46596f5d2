//! The bookkeeping alone, where what befalls is too rare for anything larger to hit it.

use super::world::{CHUNK, World};
use crate::chunk::file::state::{Part, State, Step, Upload};
use crate::meta::Content;
use crate::types::{Extent, ObjectId, SessionId, Timestamp, Version};

fn object(seq: u64) -> ObjectId {
    ObjectId { session: SessionId(5), seq }
}

fn version(session: u64, seq: u64) -> Version {
    Version { session: SessionId(session), seq }
}

/// What may be waiting for its deletion is written anew, though a second commit ends without an answer in between; and what
/// rows may name is not deleted, however it is written over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn regression_what_may_be_in_rows_is_neither_named_again_nor_deleted() {
    let world = World::new();
    let a = world.node().await;
    let ino = a.create("f").await;
    let file = a.open(ino).await;
    judge(&mut file.state());
    file.abandon().await;
}

fn judge(state: &mut State) {
    let upload = |state: &mut State, idx: u64, seq: u64| {
        let start = idx * u64::from(CHUNK);
        state.wrote(start..start + u64::from(CHUNK), Timestamp::now());
        let Upload::Ranges { id, .. } = state.begin_upload(idx) else { panic!("something is new") };
        let extent = Extent { start: 0, len: CHUNK, object: object(seq), object_offset: 0, sum: None };
        state.landed(idx, id, &[extent], None);
    };
    upload(state, 0, 1);
    // A commit without an answer, then somebody else's: it may have replaced what ours had made.
    let size = state.size;
    let plan = state.plan(10, size);
    assert_eq!(plan.kind, Step::Last);
    state.begin_commit(&plan);
    state.commit_unknown(&plan, version(5, 100), true);
    let mut attr = state.attr.clone();
    attr.version = version(9, 1);
    state.rebase(attr.clone(), false);
    assert!(state.must_store(0), "it is to be written anew");
    // Another chunk befalls the same.
    upload(state, 1, 2);
    let size = state.size;
    let mut plan = state.plan(10, size);
    plan.sent.retain(|(idx, _)| *idx == 1);
    plan.chunks.retain(|(idx, _)| *idx == 1);
    state.begin_commit(&plan);
    state.commit_unknown(&plan, version(5, 101), true);
    attr.version = version(9, 2);
    state.rebase(attr.clone(), false);
    assert!(state.must_store(0), "it still is");
    assert!(state.must_store(1));
    upload(state, 0, 3);
    upload(state, 1, 4);
    assert!(!state.must_store(0) && !state.must_store(1));
    assert_eq!(state.take_discarded(), [], "rows may name what they replace");

    // Of two chunks that an unheard commit has brought into rows the next one names only the first.
    let size = state.size;
    let plan = state.plan(10, size);
    state.begin_commit(&plan);
    state.commit_unknown(&plan, version(5, 102), true);
    attr.version = version(5, 102);
    attr.size = size;
    state.rebase(attr.clone(), true);
    assert!(!state.must_store(0) && !state.must_store(1), "it was the last change, so nobody replaced them");
    let plan = state.plan(1, size);
    assert_eq!((plan.kind, plan.sent.len()), (Step::Some, 1));
    state.begin_commit(&plan);
    attr.version = version(5, 103);
    let upto = state.changes;
    state.end_commit_applied(attr.clone(), &plan, upto);
    upload(state, 1, 5);
    assert_eq!(state.take_discarded(), [], "the row of the second names it");
    attr.version = version(9, 3);
    upload(state, 1, 6);
    assert_eq!(state.take_discarded(), [object(5)], "what no commit ever named goes at once");
}

/// Another mount cuts a chunk off and makes the file longer again, and this one hears of both at once: what the local disk has of
/// the chunk is not what it is now.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn regression_what_others_cut_off_does_not_come_back() {
    let world = World::new();
    let a = world.node().await;
    let ino = a.create("f").await;
    let file = a.open(ino).await;
    {
        let state = &mut *file.state();
        let size = 2 * u64::from(CHUNK);
        state.wrote(0..size, Timestamp::now());
        for idx in 0..2 {
            let Upload::Ranges { id, .. } = state.begin_upload(idx) else { panic!("something is new") };
            let extent = Extent { start: 0, len: CHUNK, object: object(idx), object_offset: 0, sum: None };
            state.landed(idx, id, &[extent], None);
        }
        let plan = state.plan(10, size);
        state.begin_commit(&plan);
        let (mut attr, upto) = (state.attr.clone(), state.changes);
        (attr.version, attr.size, attr.content, attr.chunks) = (version(5, 1), size, Content::Extents, 2);
        state.end_commit_applied(attr.clone(), &plan, upto);
        assert_eq!(state.parts(1, 0..CHUNK), [Part::Local(0..CHUNK)]);
        (attr.version, attr.chunks) = (version(9, 1), 1);
        state.rebase(attr, false);
        assert!(!state.needs_rows(1), "it has none");
        assert_eq!(state.parts(1, 0..CHUNK), [Part::Zeros(0..CHUNK)]);
    }
    file.abandon().await;
}
