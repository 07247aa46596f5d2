//! File data against the in-memory metadata and a store that fails on demand, on one and on several mounts.

mod data;
mod disk;
mod faults;
mod journal;
mod kv;
mod model;
mod objects;
mod power;
mod room;
mod space;
mod stall;
mod state;
mod transfer;
mod world;
mod writeback;

/// What the tasks of a mount need.
fn _can_be_spawned(node: &world::Node, file: &std::sync::Arc<super::FileContent>) {
    fn spawnable<T: Send>(_: T) {}
    spawnable(file.flush());
    spawnable(file.save());
    spawnable(node.files.resume());
    spawnable(file.read(0, 1));
    spawnable(file.write(0, bytes::Bytes::new()));
    spawnable(file.append(bytes::Bytes::new()));
    spawnable(file.truncate(0));
    spawnable(file.allocate(0, 1, super::Allocate { zero: true, keep_size: true }));
    spawnable(file.next_data(0));
    spawnable(file.copy_from(file, 0, 0, 0));
    spawnable(node.files.flush_all());
    spawnable(node.files.sweep(super::GRACE));
}
