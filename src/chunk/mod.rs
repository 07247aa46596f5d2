//! (under construction)
pub mod extents;
pub mod ranges;
