//! A source in memory that counts what it is asked and fails as told.

use std::collections::{HashMap, VecDeque};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, stream};
use hfmount::error::{Error, Kind, Result};
use hfmount::source::{Fetched, Source, Want};
use hfmount::types::BlobId;

/// What happens to one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    None,
    /// It fails before the first byte.
    Refuse(Kind),
    /// It breaks off after this many bytes.
    Break(usize),
    /// It ends too early, without an error.
    Short(usize),
    /// One byte is another.
    Wrong(usize),
    /// Nothing ever comes.
    Hang,
    /// Nothing comes after this many bytes.
    Stall(usize),
}

#[derive(Debug)]
pub struct Memory {
    pub name: &'static str,
    blobs: Mutex<HashMap<BlobId, Bytes>>,
    faults: Mutex<VecDeque<Fault>>,
    /// What happens when the list of faults is used up.
    pub always: Mutex<Fault>,
    /// Bytes of the pieces that it gives.
    pub piece: usize,
    pub delay: Mutex<Duration>,
    /// Before each piece.
    pub pace: Mutex<Duration>,
    /// How many transfers ahead it bears, if it says so.
    pub ahead: Option<usize>,
    /// Blobs of which nothing ever comes.
    hanging: Mutex<Vec<BlobId>>,
    requests: Mutex<Vec<(u64, u64)>>,
    open: AtomicU64,
    pub most_open: AtomicU64,
}

impl Memory {
    pub fn new(name: &'static str) -> Self {
        Memory {
            name,
            blobs: Mutex::default(),
            faults: Mutex::default(),
            always: Mutex::new(Fault::None),
            piece: 10_000,
            delay: Mutex::default(),
            pace: Mutex::default(),
            ahead: None,
            hanging: Mutex::default(),
            requests: Mutex::default(),
            open: AtomicU64::new(0),
            most_open: AtomicU64::new(0),
        }
    }

    pub fn put(&self, id: BlobId, bytes: Bytes) {
        self.blobs.lock().unwrap().insert(id, bytes);
    }

    pub fn fault(&self, faults: &[Fault]) {
        self.faults.lock().unwrap().extend(faults);
    }

    pub fn set_always(&self, fault: Fault) {
        *self.always.lock().unwrap() = fault;
    }

    pub fn set_delay(&self, delay: Duration) {
        *self.delay.lock().unwrap() = delay;
    }

    pub fn hang(&self, id: BlobId) {
        self.hanging.lock().unwrap().push(id);
    }

    /// First chunk and number of chunks of each request.
    pub fn requests(&self) -> Vec<(u64, u64)> {
        self.requests.lock().unwrap().clone()
    }

    /// How often each chunk was asked for, in the order of chunks.
    pub fn times(&self) -> Vec<u64> {
        let mut times = Vec::new();
        for (first, count) in self.requests() {
            times.resize(times.len().max((first + count) as usize), 0);
            times[first as usize..(first + count) as usize].iter_mut().for_each(|n| *n += 1);
        }
        times
    }

    pub fn chunks_asked(&self) -> u64 {
        self.requests().iter().map(|(_, count)| count).sum()
    }
}

#[async_trait::async_trait]
impl Source for Memory {
    fn name(&self) -> &'static str {
        self.name
    }

    fn ahead(&self) -> Option<usize> {
        self.ahead
    }

    async fn fetch(&self, want: &Want) -> Result<Fetched> {
        self.requests.lock().unwrap().push((want.first, want.count));
        let open = self.open.fetch_add(1, SeqCst) + 1;
        self.most_open.fetch_max(open, SeqCst);
        let delay = *self.delay.lock().unwrap();
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        self.open.fetch_sub(1, SeqCst);
        if self.hanging.lock().unwrap().contains(&want.blob) {
            std::future::pending::<()>().await;
        }
        let fault = self.faults.lock().unwrap().pop_front().unwrap_or(*self.always.lock().unwrap());
        match fault {
            Fault::Refuse(kind) => return Err(Error::new(kind, "as told")),
            Fault::Hang => std::future::pending().await,
            _ => {}
        }
        let Some(bytes) = self.blobs.lock().unwrap().get(&want.blob).cloned() else {
            return Err(Error::new(Kind::NotFound, want.blob.to_string()));
        };
        assert_eq!(bytes.len() as u64, want.size);
        let range = want.range();
        let mut bytes = bytes.slice(range.start as usize..range.end as usize);
        let mut end = None;
        let stalls = matches!(fault, Fault::Stall(_));
        match fault {
            Fault::Stall(at) | Fault::Short(at) => bytes.truncate(at),
            Fault::Break(at) => {
                bytes.truncate(at);
                end = Some(Err(Error::new(Kind::Unavailable, "reset")));
            }
            Fault::Wrong(at) => {
                let mut wrong = bytes.to_vec();
                wrong[at] ^= 1;
                bytes = wrong.into();
            }
            _ => {}
        }
        let pieces: Vec<Result<Bytes>> = (0..bytes.len())
            .step_by(self.piece)
            .map(|at| Ok(bytes.slice(at..bytes.len().min(at + self.piece))))
            .collect();
        let pace = *self.pace.lock().unwrap();
        let pieces = stream::iter(pieces.into_iter().chain(end));
        if stalls {
            return Ok(pieces.chain(stream::pending()).boxed());
        }
        if pace.is_zero() {
            return Ok(pieces.boxed());
        }
        Ok(pieces
            .then(move |piece| async move {
                tokio::time::sleep(pace).await;
                piece
            })
            .boxed())
    }
}
