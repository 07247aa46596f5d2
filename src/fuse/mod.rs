//! The kernel adapter: decodes requests, calls [`crate::vfs`], replies. The only place that names the `fuser` crate.
//!
//! A request whose answer is in memory is answered on the kernel's loop thread; any other becomes a task, so that a loop
//! thread never waits. Knows nothing of metadata, chunks or the Hub.

mod adapter;
mod attrs;
mod convert;
mod data;
mod dirs;
mod faces;
mod fusermount;
mod init;
mod interrupt;
mod invalidate;
mod locks;
mod mountpoint;
pub(crate) mod mounts;
mod names;
mod opens;
mod probe;
mod reply;
mod requests;
mod session;
mod signals;
mod space;
mod tasks;
mod xattr;

pub(crate) use mountpoint::absolute;
pub use mountpoint::{MountPoint, detach, force, mounted_at, unmount};
pub use requests::Requests;
pub use session::{MountSettings, Mounted, mount};
