//! Reading a whole volume while mounts go on writing, without ever holding the server up.
//!
//! While the flag `@export` is there, each commit notes the places (map and field) that it touches, in the same script. All
//! maps are read in bounded pages, whatever changes meanwhile; then the touched places are read again, and again, until one
//! round finds no more left than it may read: at that moment everything that was told is as it is, and the same script
//! takes the flag away.

use std::sync::{Arc, LazyLock};

use ::redis::{Cmd, Script, Value, cmd};
use bytes::Bytes;

use super::bytes;
use super::link::Link;
use crate::error::{Error, Kind, Result};
use crate::meta::export::{Export, Feed, Gather, Unread};
use crate::meta::kv::Piece;
use crate::types::SessionId;

/// How long the flag outlives a reader that says nothing, ms. Longer than an operation may take.
const TTL_MS: u64 = 120_000;
/// How many keys the server looks at for a page of names.
const KEYS_AT_ONCE: usize = 1000;
/// How many maps are read at once, and how many fields a map may have for that: what has more comes in pages.
const MAPS_AT_ONCE: usize = 64;
const SMALL: usize = 64;
const PAGE: usize = 500;
/// How many places are read again at once, at first and at most.
const PLACES: usize = 1000;
const PLACES_MOST: usize = 16_000;
/// With so many touched places they are not left for the end.
const TOUCHED_MANY: i64 = 20_000;

static BEGIN: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("export_begin.lua")));
static READ: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("export_read.lua")));
static PAGES: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("export_page.lua")));
static DRAIN: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("export_drain.lua")));
static END: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("export_end.lua")));

/// Begins an export. [`Kind::Busy`] if another one is on.
pub(super) async fn start(link: Arc<Link>, base: String) -> Result<Export> {
    let token = SessionId::random().to_string();
    let servers = *link.replaced.borrow();
    let (feed, export) = Export::new();
    let reading = Reading {
        link,
        base,
        token,
        feed,
        round: 0,
        most: PLACES,
        left: 0,
        large: Vec::new(),
        gather: Gather::default(),
    };
    let mut request = reading.request(&BEGIN);
    request.arg(TTL_MS);
    if reading.link.run_script(&BEGIN, &request).await? != Value::Int(1) {
        let words = format!("{}: another export is on", reading.link.options);
        return Err(Error::new(Kind::Busy, words));
    }
    tokio::spawn(reading.run(servers));
    Ok(export)
}

struct Reading {
    link: Arc<Link>,
    base: String,
    token: String,
    feed: Feed,
    /// Of reading touched places.
    round: u64,
    /// Places of the next round.
    most: usize,
    /// Places that the last round left.
    left: i64,
    /// Maps to be read in pages.
    large: Vec<String>,
    gather: Gather,
}

/// Why reading stopped.
enum Stop {
    Unread,
    Failed(Error),
}

impl From<Unread> for Stop {
    fn from(_: Unread) -> Self {
        Stop::Unread
    }
}

impl From<Error> for Stop {
    fn from(e: Error) -> Self {
        Stop::Failed(e)
    }
}

impl Reading {
    async fn run(mut self, servers: u64) {
        let mut done = self.read_all().await;
        if done.is_ok() && *self.link.replaced.borrow() != servers {
            let words = format!("{}: the server was replaced meanwhile, begin again", self.link.options);
            done = Err(Stop::Failed(Error::new(Kind::Unavailable, words)));
        }
        if done.is_err() {
            // If this does not get through, the flag runs out by itself.
            let _ = self.link.run_script(&END, &self.request(&END)).await;
        }
        match done {
            Ok(()) => self.feed.end(Ok(())).await,
            Err(Stop::Failed(e)) => self.feed.end(Err(e)).await,
            Err(Stop::Unread) => {}
        }
    }

    async fn read_all(&mut self) -> Result<(), Stop> {
        let prefix = format!("{}:", self.base);
        let mut cursor = Bytes::from_static(b"0");
        loop {
            let mut request = cmd("SCAN");
            request.arg(&cursor[..]).arg("MATCH").arg(format!("{prefix}*")).arg("COUNT").arg(KEYS_AT_ONCE);
            let (next, keys) = match self.link.run(&request).await? {
                Value::Array(answer) => self.pair(answer)?,
                other => return Err(self.strange(&other).into()),
            };
            let names = keys.iter().map(|key| self.map_name(key.get(prefix.len()..).unwrap_or_default()));
            let names = names.collect::<Result<Vec<String>>>()?;
            for some in names.chunks(MAPS_AT_ONCE) {
                self.small_maps(some).await?;
            }
            self.large_maps().await?;
            cursor = next;
            if cursor == b"0"[..] {
                break;
            }
        }
        while !self.round(true).await? {
            self.large_maps().await?;
        }
        self.flush().await?;
        Ok(())
    }

    /// Reads maps that are not large, and notes those that are.
    async fn small_maps(&mut self, names: &[String]) -> Result<(), Stop> {
        let mut request = self.request(&READ);
        request.arg(TTL_MS).arg(SMALL);
        names.iter().for_each(|name| {
            request.arg(name);
        });
        let mut answer = match self.link.run_script(&READ, &request).await? {
            Value::Array(answer) if answer.len() == names.len() + 1 => answer.into_iter(),
            other => return Err(self.strange(&other).into()),
        };
        let touched = answer.next().unwrap_or(Value::Nil);
        for (name, rows) in names.iter().zip(answer) {
            match rows {
                Value::Array(rows) => self.rows(name, rows).await?,
                _ => self.large.push(name.clone()),
            }
        }
        self.relieve(&touched).await
    }

    async fn large_maps(&mut self) -> Result<(), Stop> {
        while let Some(map) = self.large.pop() {
            let mut from = Bytes::from_static(b"0");
            loop {
                let mut request = self.request(&PAGES);
                request.arg(TTL_MS).arg(&map).arg(&from[..]).arg(PAGE);
                let mut answer = match self.link.run_script(&PAGES, &request).await? {
                    Value::Array(answer) if answer.len() == 3 => answer.into_iter(),
                    other => return Err(self.strange(&other).into()),
                };
                let touched = answer.next().unwrap_or(Value::Nil);
                from = answer.next().and_then(bytes).unwrap_or_else(|| Bytes::from_static(b"0"));
                if let Some(Value::Array(rows)) = answer.next() {
                    self.rows(&map, rows).await?;
                }
                self.relieve(&touched).await?;
                if from == b"0"[..] {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Reads touched places again before they become too many.
    async fn relieve(&mut self, touched: &Value) -> Result<(), Stop> {
        let mut many = matches!(touched, Value::Int(n) if *n > TOUCHED_MANY);
        while many {
            self.round(false).await?;
            many = self.left > TOUCHED_MANY / 2;
        }
        Ok(())
    }

    /// Reads touched places again. With `last`, everything else was read: true if these were all, and it has ended.
    async fn round(&mut self, last: bool) -> Result<bool, Stop> {
        self.round += 1;
        let mut request = self.request(&DRAIN);
        request.arg(TTL_MS).arg(self.round).arg(self.most).arg(SMALL).arg(u8::from(last));
        let mut answer = match self.link.run_script(&DRAIN, &request).await? {
            Value::Array(answer) if answer.len() == 3 => answer.into_iter(),
            other => return Err(self.strange(&other).into()),
        };
        let done = answer.next() == Some(Value::Int(1));
        let left = match answer.next() {
            Some(Value::Int(left)) => left,
            _ => 0,
        };
        if let Some(Value::Array(places)) = answer.next() {
            for place in places {
                self.place(place).await?;
            }
        }
        if left > self.left {
            // Others are faster.
            self.most = (self.most * 2).min(PLACES_MOST);
        }
        self.left = left;
        Ok(done)
    }

    async fn place(&mut self, place: Value) -> Result<(), Stop> {
        let mut parts = match place {
            Value::Array(parts) => parts.into_iter(),
            other => return Err(self.strange(&other).into()),
        };
        let map = self.map_name(&parts.next().and_then(bytes).unwrap_or_default())?;
        match (parts.next(), parts.next().and_then(bytes)) {
            (Some(Value::Array(rows)), _) => {
                self.tell(Piece::DelMap { map: map.clone() }).await?;
                self.rows(&map, rows).await
            }
            (Some(Value::Int(_)), _) => {
                self.tell(Piece::DelMap { map: map.clone() }).await?;
                self.large.push(map);
                Ok(())
            }
            (Some(field), Some(value)) => self.row(&map, bytes(field).unwrap_or_default(), value).await,
            (Some(field), None) => {
                let fields = vec![bytes(field).unwrap_or_default()];
                self.tell(Piece::Del { map, fields }).await
            }
            (None, _) => Err(self.strange(&Value::Nil).into()),
        }
    }

    async fn rows(&mut self, map: &str, rows: Vec<Value>) -> Result<(), Stop> {
        let mut rows = rows.into_iter().filter_map(bytes);
        while let (Some(field), Some(value)) = (rows.next(), rows.next()) {
            self.row(map, field, value).await?;
        }
        Ok(())
    }

    async fn row(&mut self, map: &str, field: Bytes, value: Bytes) -> Result<(), Stop> {
        match self.gather.push(map, field, value) {
            Some(piece) => Ok(self.feed.piece(piece).await?),
            None => Ok(()),
        }
    }

    async fn tell(&mut self, piece: Piece) -> Result<(), Stop> {
        self.flush().await?;
        Ok(self.feed.piece(piece).await?)
    }

    async fn flush(&mut self) -> Result<(), Stop> {
        match self.gather.take() {
            Some(piece) => Ok(self.feed.piece(piece).await?),
            None => Ok(()),
        }
    }

    fn request(&self, script: &Script) -> Cmd {
        let mut request = cmd("EVALSHA");
        request.arg(script.get_hash()).arg(1).arg(&self.base).arg(&self.token);
        request
    }

    /// A cursor and a list, as the SCAN family answers.
    fn pair(&self, answer: Vec<Value>) -> Result<(Bytes, Vec<Bytes>)> {
        let mut answer = answer.into_iter();
        match (answer.next().and_then(bytes), answer.next()) {
            (Some(cursor), Some(Value::Array(list))) => {
                Ok((cursor, list.into_iter().filter_map(bytes).collect()))
            }
            _ => Err(self.strange(&Value::Nil)),
        }
    }

    fn map_name(&self, name: &[u8]) -> Result<String> {
        let name = std::str::from_utf8(name).map_err(|e| {
            let words = format!("{}: map {:?}", self.link.options, name.escape_ascii().to_string());
            Error::with_source(Kind::Corrupt, words, e)
        })?;
        Ok(name.to_owned())
    }

    fn strange(&self, reply: &Value) -> Error {
        let kind = if matches!(reply, Value::Array(_)) { "an array" } else { "something" };
        Error::new(Kind::Internal, format!("{} answered {kind} to an export", self.link.options))
    }
}
