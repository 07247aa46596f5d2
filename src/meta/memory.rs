//! The metadata engine of tests: everything in memory, gone with the last handle. It is also what the conformance suite
//! takes as the reference for the engines that keep things.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::Instant;

use super::apply::{Rows, apply, check_ordered, leading_number};
use super::export::{Feed, Gather, Unread};
use super::kv::{
    EngineInfo, Entry, Event, Export, Followed, InodePage, Key, Kv, Outcome, Txn, Watch, inode_map, map_inode,
};
use super::watchers::Watchers;
use crate::error::Result;
use crate::types::SessionId;
/// How many inodes are told at once.
const INODES: usize = 1000;

/// An engine in memory. Mounts that share one volume in a test share one `Arc` of it.
pub struct MemoryKv {
    /// Never held across an await.
    state: Mutex<State>,
    events: Watchers,
}

#[derive(Default)]
struct State {
    maps: BTreeMap<String, Map>,
    last_id: u64,
    alive: HashMap<SessionId, Instant>,
}

/// A field of an unordered map has an id as well; nobody asks for it.
#[derive(Clone, Default)]
struct Map {
    fields: BTreeMap<Bytes, (u64, Bytes)>,
    order: BTreeMap<u64, Bytes>,
}

impl MemoryKv {
    /// An empty engine.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(MemoryKv { state: Mutex::default(), events: Watchers::default() })
    }

    /// Tells all watchers that events may have been missed, as a cut connection would.
    pub fn lose_events(&self) {
        self.events.tell(Event::Lost);
    }

    /// Every row of every map, for tests that compare or search the whole.
    #[must_use]
    pub fn dump(&self) -> BTreeMap<String, BTreeMap<Bytes, Bytes>> {
        let fields = |map: &Map| map.fields.iter().map(|(f, (_, v))| (f.clone(), v.clone())).collect();
        self.lock().maps.iter().map(|(name, map)| (name.clone(), fields(map))).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for MemoryKv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryKv").field("maps", &self.lock().maps.len()).finish_non_exhaustive()
    }
}

impl State {
    fn value(&self, map: &str, field: &Bytes) -> Option<Bytes> {
        self.maps.get(map)?.fields.get(field).map(|(_, value)| value.clone())
    }

    /// Puts a field with a known id, or takes it away; answers what was there.
    fn replace(&mut self, key: &Key, row: Option<(u64, Bytes)>) -> Option<(u64, Bytes)> {
        let map = self.maps.entry(key.map.clone()).or_default();
        let old = map.fields.remove(&key.field);
        if let Some((id, _)) = &old {
            map.order.remove(id);
        }
        if let Some((id, value)) = row {
            map.order.insert(id, key.field.clone());
            map.fields.insert(key.field.clone(), (id, value));
        }
        if map.fields.is_empty() {
            self.maps.remove(&key.map);
        }
        old
    }
}

enum Undo {
    Row(Key, Option<(u64, Bytes)>),
    Map(String, Map),
}

/// The state under a transaction, with the way back.
struct Changing<'a> {
    state: &'a mut State,
    undo: Vec<Undo>,
}

impl Changing<'_> {
    fn roll_back(self) {
        for step in self.undo.into_iter().rev() {
            match step {
                Undo::Row(key, row) => drop(self.state.replace(&key, row)),
                Undo::Map(name, map) => drop(self.state.maps.insert(name, map)),
            }
        }
    }
}

impl Rows for Changing<'_> {
    fn value(&mut self, key: &Key) -> Result<Option<Bytes>> {
        Ok(self.state.value(&key.map, &key.field))
    }

    fn is_empty(&mut self, map: &str) -> Result<bool> {
        Ok(!self.state.maps.contains_key(map))
    }

    fn set(&mut self, key: &Key, value: Bytes) -> Result<()> {
        let old = self.state.maps.get(&key.map).and_then(|map| map.fields.get(&key.field));
        let id = match old {
            Some((id, _)) => *id,
            None => {
                self.state.last_id += 1;
                self.state.last_id
            }
        };
        let old = self.state.replace(key, Some((id, value)));
        self.undo.push(Undo::Row(key.clone(), old));
        Ok(())
    }

    fn delete(&mut self, key: &Key) -> Result<()> {
        if let Some(old) = self.state.replace(key, None) {
            self.undo.push(Undo::Row(key.clone(), Some(old)));
        }
        Ok(())
    }

    fn delete_map(&mut self, map: &str) -> Result<()> {
        if let Some(old) = self.state.maps.remove(map) {
            self.undo.push(Undo::Map(map.to_owned(), old));
        }
        Ok(())
    }
}

#[async_trait]
impl Kv for MemoryKv {
    async fn get(&self, keys: &[Key]) -> Result<Vec<Option<Bytes>>> {
        let state = self.lock();
        Ok(keys.iter().map(|key| state.value(&key.map, &key.field)).collect())
    }

    async fn follow(&self, key: &Key, fields: &[Bytes]) -> Result<Option<Followed>> {
        let state = self.lock();
        let Some(value) = state.value(&key.map, &key.field) else { return Ok(None) };
        let map = inode_map(leading_number(key, &value)?);
        let fields = fields.iter().map(|field| state.value(&map, field)).collect();
        Ok(Some(Followed { value, fields }))
    }

    async fn scan(&self, map: &str, after: u64, limit: usize) -> Result<Vec<Entry>> {
        check_ordered(map)?;
        let state = self.lock();
        let Some(map) = state.maps.get(map) else { return Ok(Vec::new()) };
        let row = |(id, field): (&u64, &Bytes)| {
            map.fields.get(field).map(|(_, value)| Entry {
                id: *id,
                field: field.clone(),
                value: value.clone(),
            })
        };
        Ok(map.order.range(after.saturating_add(1)..).filter_map(row).take(limit).collect())
    }

    async fn commit(&self, txn: Txn) -> Result<Outcome> {
        let mut state = self.lock();
        let mut rows = Changing { state: &mut state, undo: Vec::new() };
        let outcome = apply(&mut rows, &txn);
        if !matches!(outcome, Ok(Outcome::Applied)) {
            rows.roll_back();
            return outcome;
        }
        let by = txn.session;
        self.events.tell_all(txn.publish.into_iter().map(|change| Event::Changed { change, by }).collect());
        outcome
    }

    async fn watch(&self) -> Result<Watch> {
        Ok(self.events.subscribe())
    }

    async fn beat(&self, session: SessionId, ttl: Duration) -> Result<()> {
        let now = Instant::now();
        let mut state = self.lock();
        state.alive.retain(|_, until| *until > now);
        state.alive.insert(session, now + ttl);
        Ok(())
    }

    async fn alive(&self, sessions: &[SessionId]) -> Result<Vec<bool>> {
        let now = Instant::now();
        let state = self.lock();
        Ok(sessions.iter().map(|s| state.alive.get(s).is_some_and(|until| *until > now)).collect())
    }

    fn heard_until(&self) -> Option<Instant> {
        Some(Instant::now())
    }

    async fn info(&self) -> Result<EngineInfo> {
        let warnings = vec!["All metadata is in memory and gone at the end.".to_owned()];
        Ok(EngineInfo { name: "memory".to_owned(), warnings })
    }

    async fn inodes(&self, from: Option<&Bytes>) -> Result<InodePage> {
        use std::ops::Bound::{Excluded, Unbounded};
        let after = from.map_or("i".into(), |from| String::from_utf8_lossy(from));
        let state = self.lock();
        let some = state.maps.range::<str, _>((Excluded(after.as_ref()), Unbounded));
        let maps: Vec<&String> =
            some.map(|(name, _)| name).take_while(|name| name.starts_with('i')).take(INODES).collect();
        Ok(InodePage {
            numbers: maps.iter().filter_map(|name| map_inode(name)).collect(),
            next: (maps.len() == INODES).then(|| Bytes::from(maps[INODES - 1].clone())),
        })
    }

    async fn export(&self) -> Result<Export> {
        // Values are shared, not copied.
        let maps = self.lock().maps.clone();
        let (feed, export) = Export::new();
        tokio::spawn(async move {
            if feed_all(&feed, &maps).await.is_ok() {
                feed.end(Ok(())).await;
            }
        });
        Ok(export)
    }
}

async fn feed_all(feed: &Feed, maps: &BTreeMap<String, Map>) -> Result<(), Unread> {
    let mut gather = Gather::default();
    for (name, map) in maps {
        for field in map.order.values() {
            let Some((_, value)) = map.fields.get(field) else { continue };
            if let Some(piece) = gather.push(name, field.clone(), value.clone()) {
                feed.piece(piece).await?;
            }
        }
    }
    match gather.take() {
        Some(piece) => feed.piece(piece).await,
        None => Ok(()),
    }
}
