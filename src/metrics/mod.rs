//! Figures for Prometheus: counting them cheaply, writing them down, and serving them. Knows nothing of what is counted.
//!
//! | file | what |
//! |---|---|
//! | `histogram` | how often, how long, how often in vain |
//! | `text` | the text format |
//! | `server` | `GET /metrics` |

mod histogram;
mod server;
mod text;

pub use histogram::{BOUNDS, Histogram};
pub use server::MetricsServer;
pub use text::{Family, Text};
