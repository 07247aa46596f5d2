//! What is agreed with the kernel when the mount begins.

use fuser::{InitFlags, KernelConfig};

/// Requests that the kernel may have under way for nobody in particular (readahead, releases), and from how many on it
/// starts no more readahead. The kernel's own default of 12 starves readahead over a network.
pub(super) const MAX_BACKGROUND: u16 = 64;
const CONGESTION: u16 = 56;

/// The largest write in one request. The kernel allows no more by itself; where an administrator raised its limit, a
/// larger one gains nothing and costs memory.
const MAX_WRITE: u32 = 1024 * 1024;

/// Asked for one by one: a kernel that lacks one has the others.
const WANTED: &[(InitFlags, &str)] = &[
    (InitFlags::FUSE_PARALLEL_DIROPS, "lookups in one directory do not wait for each other"),
    (InitFlags::FUSE_DO_READDIRPLUS, "listings carry attributes …"),
    (InitFlags::FUSE_READDIRPLUS_AUTO, "… where they are wanted"),
    (InitFlags::FUSE_CACHE_SYMLINKS, "links of snapshots are read once"),
    // Versions decide at open what is kept. Between opens this one drops pages when a size or mtime is seen to change:
    // a file that grows on another mount must not show zeros where its old end was.
    (InitFlags::FUSE_AUTO_INVAL_DATA, "pages go when size or mtime changed"),
    (InitFlags::FUSE_FLOCK_LOCKS, "flock is ours: cluster-wide"),
    (InitFlags::FUSE_ASYNC_DIO, "direct I/O in parallel"),
];

/// Sets up the connection. Nothing here fails a mount: what the kernel lacks is done without.
/// Not wanted: the kernel's write-back cache (it would own sizes and times, and rules out passthrough), POSIX locks
/// (see `locks`), and O_TRUNC with the open (the kernel looks only afterwards whether the file is being executed, and the
/// program would be gone though the open fails).
/// Whether the kernel may read files by itself that lie on file systems stacked `depth` high, fewer than the kernel allows (0:
/// it is not asked).
pub(super) fn configure(config: &mut KernelConfig, depth: u32) -> bool {
    for (flag, what) in WANTED {
        if config.add_capabilities(*flag).is_err() {
            tracing::info!("this kernel lacks: {what}");
        }
    }
    let refused = [
        ("max_write", config.set_max_write(MAX_WRITE).err()),
        ("max_background", config.set_max_background(MAX_BACKGROUND).err().map(u32::from)),
        ("congestion_threshold", config.set_congestion_threshold(CONGESTION).err().map(u32::from)),
    ];
    for (setting, nearest) in refused.into_iter().filter_map(|(s, n)| Some((s, n?))) {
        tracing::warn!("the kernel refused {setting}; the nearest that it allows is {nearest}");
    }
    depth > 0
        && config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok()
        && config.set_max_stack_depth(depth).is_ok()
}
