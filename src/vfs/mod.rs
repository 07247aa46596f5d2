//! POSIX behaviour: names, open files, reads, writes, locks. Answers values and errors, never kernel replies.
pub mod types;
pub use types::*;
