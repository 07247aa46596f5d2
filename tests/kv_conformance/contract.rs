//! The contract of `Kv`, case by case.

mod export;
mod rows;
mod sessions;
mod together;

pub use export::*;
pub use rows::*;
pub use sessions::*;
pub use together::*;
