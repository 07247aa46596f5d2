//! The `hfmount` program.

fn main() -> std::process::ExitCode {
    // Before any thread: glibc gives each of them an arena of its own, and buffers of a megabyte that wander between
    // threads leave holes in all of them (measured: 195 MB instead of 67 MB after a gigabyte written and read).
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt(3) sets a number of the allocator and is called while there is one thread.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
    hfmount::cli::run()
}
