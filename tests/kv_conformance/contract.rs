//! The contract of `Kv`, case by case.

mod export;
mod inodes;
mod release;
mod rows;
mod sessions;
mod together;

pub use export::*;
pub use inodes::*;
pub use release::*;
pub use rows::*;
pub use sessions::*;
pub use together::*;
