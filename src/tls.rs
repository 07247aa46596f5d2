//! The one choice of a TLS provider for the whole process.

use std::sync::Once;

/// Makes ring the provider of every TLS connection of this process. Call it before the first client is built; calling it
/// again changes nothing.
pub fn install_ring() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // An error says that somebody installed one before us, which serves as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
}
