//! The contract of `Kv`, case by case.

mod rows;
mod sessions;
mod together;

pub use rows::*;
pub use sessions::*;
pub use together::*;
