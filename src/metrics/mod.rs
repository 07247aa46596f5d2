//! Figures for Prometheus and for the tools: counting them cheaply, writing them down, serving and reading them. Knows nothing
//! of what is counted.
//!
//! | file | what |
//! |---|---|
//! | `histogram` | how often, how long, how often in vain |
//! | `text` | the text format |
//! | `page` | the text format, read |
//! | `serve` | `GET /metrics` |
//! | `server` | the same at an address, for Prometheus |
//! | `local` | the same on a unix socket, for the tools of the user who mounted |

mod histogram;
mod local;
mod page;
mod serve;
mod server;
mod text;

pub use histogram::{BOUNDS, Histogram};
pub use local::{LocalServer, ask};
pub use page::Page;
pub use server::MetricsServer;
pub use text::{Family, Text};
