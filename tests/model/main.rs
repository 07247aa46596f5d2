//! Three nodes of a cluster against a reference: operations made up by chance, one after the other and two at once, with
//! remounts, nodes that are killed, and metadata and a bucket that fail, must answer what a tree of names and the rules of
//! close-to-open allow.
//!
//! `HFMOUNT_TEST_ROUNDS` does more (default 40 in memory, fewer elsewhere), `HFMOUNT_TEST_SEED` repeats what a failure
//! printed, `HFMOUNT_TEST_STORY` tells every case. A failure is made as short as it gets, and told step by step.

mod node;
mod op;
#[path = "../support/redis.rs"]
mod redis_server;
mod regressions;
mod run;
mod view;
mod world;

use node::Engine;
use op::Op;
use proptest::test_runner::{Config, RngSeed, TestCaseError, TestError, TestRunner};
use redis_server::RedisServer;

/// Operations of a case.
const OPS: usize = 80;

fn rounds(usual: u64) -> u64 {
    let set = std::env::var("HFMOUNT_TEST_ROUNDS").ok();
    set.map_or(usual, |n| n.parse().expect("HFMOUNT_TEST_ROUNDS is a number"))
}

fn seeds(usual: u64) -> Vec<u64> {
    match std::env::var("HFMOUNT_TEST_SEED") {
        Ok(seed) => vec![seed.parse().expect("HFMOUNT_TEST_SEED is a number")],
        Err(_) => {
            let first = u64::from(rand::random::<u32>());
            (first..first + rounds(usual)).collect()
        }
    }
}

fn agree<'a>(usual: u64, engine: impl Fn() -> Engine<'a>) {
    for seed in seeds(usual) {
        let config = Config {
            cases: 1,
            rng_seed: RngSeed::Fixed(seed),
            failure_persistence: None,
            max_shrink_iters: 1500,
            ..Config::default()
        };
        let ops = proptest::collection::vec(op::op(), 1..OPS);
        let outcome = TestRunner::new(config).run(&ops, |ops: Vec<Op>| {
            // Whatever panics here is a failure of the case as well.
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run::case(engine(), &ops)));
            match done {
                Ok(done) => done.map_err(TestCaseError::fail),
                Err(_) => Err(TestCaseError::fail("a panic, see above")),
            }
        });
        match outcome {
            Ok(()) => {}
            Err(TestError::Fail(why, ops)) => panic!("HFMOUNT_TEST_SEED={seed}: {ops:#?}\n{why}"),
            Err(TestError::Abort(why)) => panic!("HFMOUNT_TEST_SEED={seed}: {why}"),
        }
    }
}

#[test]
fn nodes_agree_with_the_reference_in_memory() {
    agree(40, Engine::memory);
}

#[test]
fn nodes_agree_with_the_reference_on_sqlite() {
    agree(10, Engine::sqlite);
}

#[test]
fn nodes_agree_with_the_reference_on_redis() {
    let server = RedisServer::start_with(&[]);
    agree(15, || {
        server.ask(&["FLUSHALL"]);
        Engine::Redis(&server)
    });
}
