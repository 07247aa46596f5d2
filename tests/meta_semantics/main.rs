//! What the metadata promises to the layers above, on every engine.

mod attrs;
mod bin;
mod data;
mod decorators;
mod fencing;
mod locks;
mod model;
mod names;
mod publish;
mod races;
#[path = "../support/redis.rs"]
mod redis_server;
mod rename;
mod renewal;
mod rows;
mod world;

/// Every case on every engine.
macro_rules! on_all_engines {
    ($($module:ident :: { $($case:ident),* $(,)? })*) => {
        mod on_memory {
            $(mod $module {
                $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() { crate::$module::$case(&crate::world::World::memory()).await; })*
            })*
        }
        mod on_sqlite {
            $(mod $module {
                $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() { crate::$module::$case(&crate::world::World::sqlite()).await; })*
            })*
        }
        mod on_redis {
            $(mod $module {
                $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() { crate::$module::$case(&crate::world::World::redis()).await; })*
            })*
        }
    };
}

on_all_engines! {
    names::{
        what_is_made_is_found,
        names_that_cannot_be,
        parents_that_cannot_be,
        links_are_counted,
        removing_the_wrong_kind,
        directories_must_be_empty,
        a_removed_directory_keeps_its_time,
        set_group_id_is_handed_down,
        locks_are_for_everybody,
        times_of_directories,
        attributes_change_as_posix_says,
        owners_of_what_is_from_the_hub,
        listings_go_on_where_they_ended,
        another_mount_is_never_misled_by_hints,
        usage_counts,
        tombstones,
    }
    rename::{
        to_a_free_name,
        over_what_is_there,
        onto_itself,
        without_replacing,
        in_exchange,
        directories_keep_their_parents_and_counts,
        never_into_itself,
        between_two_links_of_one_file,
    }
    data::{
        commits_are_conditional,
        content_follows_the_change,
        replaced_objects_go_to_the_trash,
        inline_bytes_are_bounded,
        orphans_live_while_held,
        orphans_take_data,
        big_orphans_are_reaped_in_pieces,
    }
    attrs::{
        xattrs_are_kept,
        xattrs_are_bounded,
        xattrs_stay_with_the_inode,
        two_mounts_set_xattrs_at_once,
        reads_are_recorded,
        many_reads_are_recorded_while_files_change,
        inodes_are_bounded,
        bytes_are_bounded,
        quotas_hold_against_races,
        what_the_hub_brings_counts_nothing,
        huge_sizes_add_up,
    }
    bin::{
        trees_come_back,
        one_file_brings_its_directories,
        what_is_there_stays,
        versions_of_one_name,
        only_the_last_name_counts,
        what_is_not_kept,
        it_is_let_go_after_its_time,
        restored_or_gone_but_never_both,
        what_comes_back_needs_room,
        what_is_looked_for,
        a_dump_has_it,
    }
    locks::{
        shared_and_exclusive,
        conversions,
        released_with_an_event,
        many_owners_one_at_a_time,
        who_waited_long_comes_first,
        a_place_in_the_line_is_given_up,
    }
    renewal::{
        it_goes_on_under_another_session,
        heartbeats_notice_by_themselves,
        all_who_notice_at_once_get_one_session,
        what_others_wrote_meanwhile_counts,
        locks_are_lost_with_the_session,
        a_server_may_forget_a_session,
        a_server_that_does_not_answer_is_no_reason_to_give_up,
        clocks_that_are_off_delete_nothing_early,
        a_clock_that_jumps_takes_no_open_file_away,
        numbers_are_not_reused_after_the_server_went_back,
    }
    fencing::{
        sessions_are_listed,
        a_closed_session_holds_nothing,
        a_silent_session_is_declared_dead,
        one_mount_is_elected,
        regression_who_is_a_little_behind_is_not_elected,
        settings_are_compared_and_set,
        newer_layouts_are_refused,
        older_layouts_are_raised,
    }
    rows::{
        hashes_are_recorded_once,
        marks_of_blobs,
        origins_are_kept,
        refs_are_replaced,
    }
    races::{
        creates_in_one_directory,
        one_of_many_creates_a_name,
        links_of_one_file,
        creates_against_rmdir,
        renames_among_few_names,
        moves_of_directories_make_no_cycle,
    }
    publish::{
        a_new_repository,
        nested_refs_and_paths,
        another_commit,
        the_same_commit_again,
        two_publish_the_same_repository,
        many_publish_many_commits,
        the_trees_file_may_be_large,
        plans_that_cannot_be,
        what_users_put_there_stays,
        a_tombstone_stands_in_the_way,
        a_failure_anywhere_leaves_nothing,
        a_lost_reply_at_the_end_is_no_harm,
        the_staging_of_the_dead_is_swept,
        ten_thousand_files,
    }
    model::{
        agrees_with_a_plain_tree,
    }
}
