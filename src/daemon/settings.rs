//! Settings of the volume that may change while it is mounted (`hfmount config`): looked at every few seconds.

use std::time::Duration;

use crate::config::Volume;
use crate::error::Result;
use crate::meta::Meta;

/// How late a change is followed.
const EVERY: Duration = Duration::from_secs(3);

/// Takes over what the settings say.
pub(super) async fn apply(meta: &Meta, volume: &Volume) -> Result<()> {
    let limits = volume.limits();
    if meta.limits() != limits {
        tracing::info!(?limits, "what the volume may hold");
        meta.set_limits(limits);
    }
    meta.set_bin_ttl(volume.trash());
    if limits.bytes.is_some() {
        // So that writes know about what room there is.
        meta.usage().await?;
    }
    Ok(())
}

/// Follows the settings, until it is aborted.
pub(super) async fn follow(meta: Meta) {
    loop {
        tokio::time::sleep(EVERY).await;
        let followed = async {
            match Volume::read(&**meta.kv()).await? {
                Some((volume, _)) => apply(&meta, &volume).await,
                None => Ok(()),
            }
        };
        if let Err(e) = followed.await {
            tracing::debug!("settings of the volume: {e}");
        }
    }
}
