//! What the cases are written with.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hfmount::error::Result;
use hfmount::meta::kv::{Entry, Event, Expect, Key, Kv, Outcome, Txn, Watch, Write};
use hfmount::meta::redis::{RedisAddress, RedisOptions};

/// A volume of some engine, empty at first.
#[async_trait::async_trait]
pub trait World: Sync {
    /// A handle on it, as another process would have one where the engine allows that.
    async fn open(&self) -> Arc<dyn Kv>;
}

/// The options of a Redis on this machine.
pub fn redis_options(address: SocketAddr) -> RedisOptions {
    RedisOptions::new(RedisAddress::Tcp { host: address.ip().to_string(), port: address.port(), tls: false })
}

pub fn key(map: &str, field: impl AsRef<[u8]>) -> Key {
    Key::new(map, Bytes::copy_from_slice(field.as_ref()))
}

pub fn set(map: &str, field: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Write {
    Write::Set(key(map, field), Bytes::copy_from_slice(value.as_ref()))
}

pub fn del(map: &str, field: impl AsRef<[u8]>) -> Write {
    Write::Del(key(map, field))
}

/// A transaction without a session.
pub fn txn(expect: Vec<Expect>, write: Vec<Write>) -> Txn {
    Txn { expect, write, ..Txn::default() }
}

pub async fn write(kv: &dyn Kv, write: Vec<Write>) {
    assert_eq!(kv.commit(txn(vec![], write)).await.expect("commit"), Outcome::Applied);
}

pub async fn attempt(kv: &dyn Kv, expect: Vec<Expect>, write: Vec<Write>) -> Result<Outcome> {
    kv.commit(txn(expect, write)).await
}

/// The value as text; `None` if it is absent.
pub async fn value(kv: &dyn Kv, map: &str, field: impl AsRef<[u8]>) -> Option<String> {
    let mut values = kv.get(&[key(map, field)]).await.expect("get");
    assert_eq!(values.len(), 1);
    values.remove(0).map(|value| String::from_utf8_lossy(&value).into_owned())
}

/// The whole of an ordered map, read in pages.
pub async fn scan_all(kv: &dyn Kv, map: &str, page: usize) -> Vec<Entry> {
    let mut all: Vec<Entry> = Vec::new();
    loop {
        let after = all.last().map_or(0, |entry| entry.id);
        let more = kv.scan(map, after, page).await.expect("scan");
        assert!(more.len() <= page);
        if more.is_empty() {
            return all;
        }
        all.extend(more);
    }
}

/// The next event, which must come soon.
pub async fn next(watch: &mut Watch) -> Event {
    tokio::time::timeout(Duration::from_secs(10), watch.next())
        .await
        .expect("an event in time")
        .expect("open")
}

/// That nothing is heard for a while.
pub async fn silence(watch: &mut Watch) {
    if let Ok(event) = tokio::time::timeout(Duration::from_millis(200), watch.next()).await {
        panic!("unexpected event: {event:?}");
    }
}
