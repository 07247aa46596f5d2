//! One suite for every metadata engine, and what is peculiar to each.

mod contract;
mod model;
mod proxy;
mod redis;
mod redis_faults;
mod redis_log;
#[path = "../support/redis.rs"]
mod redis_server;
mod redis_tls;
mod sqlite;
mod times;
mod world;

use std::sync::Arc;

use hfmount::meta::kv::Kv;
use hfmount::meta::memory::MemoryKv;
use hfmount::meta::redis::RedisKv;
use hfmount::meta::sqlite::{Missing, SqliteKv};

use redis_server::RedisServer;
use world::{World, redis_options};

struct Memory(Arc<MemoryKv>);

#[async_trait::async_trait]
impl World for Memory {
    async fn open(&self) -> Arc<dyn Kv> {
        self.0.clone()
    }
}

struct Sqlite(tempfile::TempDir);

#[async_trait::async_trait]
impl World for Sqlite {
    /// Another engine on the same file, as another process has one.
    async fn open(&self) -> Arc<dyn Kv> {
        SqliteKv::open(self.0.path().join("sub/volume.db"), Missing::Create).await.expect("open")
    }
}

struct Redis(RedisServer);

#[async_trait::async_trait]
impl World for Redis {
    async fn open(&self) -> Arc<dyn Kv> {
        RedisKv::open(redis_options(self.0.address())).await.expect("open")
    }
}

/// Every case on every engine.
macro_rules! conformance {
    ($($case:ident),* $(,)?) => {
        mod on_memory {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() { super::contract::$case(&super::Memory(super::MemoryKv::new())).await; })*
        }
        mod on_sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                super::contract::$case(&super::Sqlite(tempfile::tempdir().expect("temporary folder"))).await;
            })*
        }
        mod on_redis {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() { super::contract::$case(&super::Redis(super::RedisServer::start())).await; })*
        }
    };
}

conformance!(
    empty_requests_are_answered,
    values_are_byte_strings,
    a_map_exists_while_it_holds_a_field,
    expectations_hold_or_nothing_happens,
    writes_apply_in_order,
    a_late_failure_leaves_nothing,
    numbers_are_exact,
    numbers_that_are_none_are_corrupt,
    bounds_are_met_or_nothing_happens,
    get_reads_many_maps_in_order,
    follow_reads_the_inode_behind_a_name,
    scan_pages_in_the_order_of_ids,
    entry_ids_stay_and_are_not_reused,
    scan_sees_what_stays_exactly_once,
    big_transactions,
    increments_from_many_tasks,
    creates_from_many_tasks_do_not_collide,
    one_creator_wins,
    a_moment_is_never_half_a_transaction,
    the_fence_keeps_the_dead_out,
    watchers_hear_commits_of_all_handles,
    conflicts_publish_nothing,
    slow_watchers_hear_lost,
    heartbeats_run_out,
    info_names_the_engine,
    one_clock_for_all,
    what_was_heard_is_known,
    export_tells_everything,
    export_is_of_one_instant,
    an_export_can_be_given_up,
    inodes_are_told_by_their_numbers,
    inodes_that_stay_are_seen,
    the_last_reference_leaves_the_object_to_the_trash,
    releases_of_one_transaction_and_of_many_tasks,
);
