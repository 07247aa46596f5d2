//! The numbers of all inodes, by the names of their keys.

use ::redis::{Value, cmd};
use bytes::Bytes;

use super::bytes;
use super::link::Link;
use crate::error::{Error, Kind, Result};
use crate::meta::kv::{InodePage, map_inode};

/// How many keys the server looks at for a page: about a millisecond.
const KEYS_AT_ONCE: usize = 1000;

/// A page of SCAN. Its cursors mean something to the server that gave them and to no other: so `from` also says how often
/// the server had been another one.
pub(super) async fn page(link: &Link, base: &str, from: Option<&Bytes>) -> Result<InodePage> {
    let place = from.and_then(|from| {
        let (servers, cursor) = std::str::from_utf8(from).ok()?.split_once(' ')?;
        Some((servers.parse::<u64>().ok()?, cursor.to_owned()))
    });
    let (servers, cursor) = place.unwrap_or_else(|| (link.strangers(), "0".to_owned()));
    let prefix = format!("{base}:");
    let mut request = cmd("SCAN");
    request.arg(&cursor).arg("MATCH").arg(format!("{prefix}i[0-9]*")).arg("COUNT").arg(KEYS_AT_ONCE);
    let reply = link.run(&request).await?;
    // After the reply: this may have been the request that connected anew.
    if link.strangers() != servers {
        let words = format!("{}: the server was replaced meanwhile, begin again", link.options);
        return Err(Error::new(Kind::Unavailable, words));
    }
    let mut parts = match reply {
        Value::Array(parts) => parts.into_iter(),
        _ => Vec::new().into_iter(),
    };
    let (Some(next), Some(Value::Array(keys))) = (parts.next().and_then(bytes), parts.next()) else {
        return Err(Error::new(Kind::Internal, format!("{} answered nonsense to SCAN", link.options)));
    };
    let number = |key: Bytes| map_inode(std::str::from_utf8(key.get(prefix.len()..)?).ok()?);
    let numbers = keys.into_iter().filter_map(bytes).filter_map(number).collect();
    let next = (next != b"0"[..]).then(|| format!("{servers} {}", String::from_utf8_lossy(&next)).into());
    Ok(InodePage { numbers, next })
}
