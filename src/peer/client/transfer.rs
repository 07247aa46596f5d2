//! A chunk's bytes on their way: if the node that gives them stalls, is slow or fails, another one goes on where it stopped.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::time::{Instant, timeout};

use super::Inner;
use super::request::{Answered, Opened, name};
use super::scores::Outcome;
use crate::error::{Error, Kind, Result};
use crate::peer::protocol::ChunkAsk;
use crate::peer::types::{Holder, NodeId};
use crate::types::BlobId;

/// So long a transfer must have been waited for before it can be called slow.
const SLOW: Duration = Duration::from_secs(1);
/// Who else has it by now is asked of the tracker so often.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How long a rival may take until it is its turn.
const TURN: Duration = Duration::from_millis(500);
/// A rival is given up when the first one has made so much way since.
const RECOVERED: u64 = 512 << 10;

/// The transfer of one chunk.
pub(super) struct Transfer {
    inner: Arc<Inner>,
    blob: BlobId,
    idx: u64,
    len: u32,
    /// Bytes given to the caller.
    at: u32,
    current: Giver,
    rival: Option<Rival>,
    others: Vec<Holder>,
    /// Before then nobody is looked for who is not among them.
    look: Instant,
    /// The longest time for one piece.
    longest: Duration,
}

/// Who gives the bytes now. Tells the scores when it ends.
struct Giver {
    inner: Arc<Inner>,
    opened: Opened,
    bytes: u64,
    /// For bytes; not for the reader.
    waited: Duration,
    whole: bool,
}

impl Drop for Giver {
    fn drop(&mut self) {
        let (node, live) = (self.opened.holder.node, self.is_live());
        self.inner.scores.ended(node, self.bytes, self.waited, self.whole, live);
    }
}

/// Another one, that is being asked for the rest.
struct Rival {
    opening: BoxFuture<'static, Result<(Giver, Bytes)>>,
    /// Where the first one was then.
    at: u32,
}

enum Step {
    Piece(Result<Option<Bytes>>),
    Rival(Result<(Giver, Bytes)>),
    Stalled,
}

impl Transfer {
    pub fn new(
        inner: &Arc<Inner>,
        blob: BlobId,
        idx: u64,
        len: u32,
        opened: Opened,
        others: Vec<Holder>,
    ) -> Self {
        let current = Giver::new(inner, opened);
        Transfer {
            inner: inner.clone(),
            blob,
            idx,
            len,
            at: 0,
            current,
            rival: None,
            others,
            look: Instant::now() + SLOW,
            longest: Duration::ZERO,
        }
    }

    fn node(&self) -> NodeId {
        self.current.opened.holder.node
    }

    /// The next piece, and the transfer for the one after it.
    pub async fn next(mut self) -> Result<Option<(Bytes, Self)>> {
        if self.at == self.len {
            self.current.whole = true;
            if !self.current.is_live() {
                self.inner.scores.paused(self.longest);
            }
            return Ok(None);
        }
        let asked = Instant::now();
        let deadline = asked + self.inner.times.progress;
        let mut before = asked;
        let piece = loop {
            let stall = self.inner.scores.stall(self.inner.times.hedge, self.inner.times.progress / 2);
            let wake = match self.rival.is_some() {
                true => deadline,
                // What is passed on comes no faster than it comes there; but somebody may have it whole by now.
                false if self.others.is_empty() || self.current.is_live() => (before + stall).max(self.look),
                false => before + stall,
            };
            let step = {
                let rival = async {
                    match &mut self.rival {
                        Some(rival) => (&mut rival.opening).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    biased;
                    piece = self.current.opened.next() => Step::Piece(piece),
                    rival = rival => Step::Rival(rival),
                    () = tokio::time::sleep_until(wake.min(deadline)) => Step::Stalled,
                }
            };
            match step {
                Step::Piece(Ok(Some(piece))) => break piece,
                Step::Piece(Ok(None)) => {
                    return Err(self.error(Error::new(Kind::Internal, "a chunk ended early")));
                }
                Step::Piece(Err(error)) => {
                    self.inner.scores.outcome(self.node(), Outcome::Failed);
                    if error.kind() == Kind::Corrupt {
                        self.inner.scores.wrong(self.node());
                    }
                    let error = self.error(error);
                    break self.take_over(error, deadline).await?;
                }
                Step::Rival(Ok((giver, piece))) => match self.switch(giver, piece).await? {
                    Some(piece) => break piece,
                    None => continue,
                },
                Step::Rival(Err(error)) => {
                    tracing::debug!(blob = %self.blob, idx = self.idx, %error, "a second peer gives nothing");
                    self.rival = None;
                    before = Instant::now();
                }
                Step::Stalled if Instant::now() >= deadline => {
                    self.inner.scores.outcome(self.node(), Outcome::Failed);
                    let seconds = self.inner.times.progress.as_secs_f32();
                    return Err(self.error(Error::new(Kind::TimedOut, format!("no bytes for {seconds} s"))));
                }
                Step::Stalled => {
                    before = Instant::now();
                    self.begin_rival(true);
                }
            }
        };
        self.took(asked.elapsed(), piece.len());
        let node = self.node();
        self.inner.scores.gave(node, piece.len());
        self.inner.down.add(piece.len());
        if let Some(limit) = &self.inner.limit {
            limit.take(piece.len()).await;
        }
        Ok(Some((piece, self)))
    }

    /// Notes a piece, and looks whether the giver keeps up.
    fn took(&mut self, waited: Duration, bytes: usize) {
        self.longest = self.longest.max(waited);
        self.at += bytes as u32;
        self.current.bytes += bytes as u64;
        self.current.waited += waited;
        let recovered = |rival: &Rival| u64::from(self.at - rival.at) >= RECOVERED && !self.is_slow();
        if self.rival.as_ref().is_some_and(recovered) {
            self.rival = None;
        }
        if self.rival.is_none() && self.is_slow() && (!self.others.is_empty() || Instant::now() >= self.look)
        {
            self.begin_rival(true);
        }
    }

    fn is_slow(&self) -> bool {
        let Giver { waited, bytes, .. } = self.current;
        waited >= SLOW && self.inner.scores.is_slow(bytes, waited)
    }

    /// One of the others is asked for the rest; if there is none, of those who have got it since. If it is a `second` transfer
    /// beside the first, not when there were too many lately.
    fn begin_rival(&mut self, second: bool) {
        let (inner, at, giver) = (self.inner.clone(), self.at, self.node());
        let (blob, idx, len) = (self.blob, self.idx, self.len);
        self.look = Instant::now() + LOOK_AGAIN;
        if second && !self.others.is_empty() && !inner.scores.may_hedge() {
            return;
        }
        let mut others = std::mem::take(&mut self.others);
        let opening = async move {
            if others.is_empty() {
                others = inner.directory.holders(blob, idx).await;
                others.retain(|holder| holder.node != giver);
                if others.is_empty() || !inner.scores.may_hedge() {
                    return Err(Error::new(Kind::NotFound, "no other peer"));
                }
            }
            let ask = ChunkAsk { blob, idx, from: at, wait: Some(TURN), live: false, size: None };
            rival(inner, others, ask, len).await
        };
        self.rival = Some(Rival { opening: opening.boxed(), at });
    }

    /// The giver has failed: the next piece comes from another one or not at all.
    async fn take_over(&mut self, error: Error, deadline: Instant) -> Result<Bytes> {
        if self.rival.is_none() && !self.others.is_empty() {
            self.begin_rival(false);
        }
        let Some(mut opening) = self.rival.take().map(|r| r.opening) else { return Err(error) };
        match tokio::time::timeout_at(deadline, &mut opening).await {
            Ok(Ok((giver, piece))) => self.switch(giver, piece).await?.ok_or(error),
            Ok(Err(other)) => {
                tracing::debug!(blob = %self.blob, idx = self.idx, error = %other, "no second peer goes on");
                Err(error)
            }
            Err(_) => Err(error),
        }
    }

    /// Goes on with what the rival gives, if it says that it gives the same. `None`: it does not.
    async fn switch(&mut self, mut giver: Giver, mut piece: Bytes) -> Result<Option<Bytes>> {
        self.rival = None;
        let (new, old) = (giver.opened.hash, self.current.opened.hash);
        if new.is_some() && old.is_some() && new != old {
            tracing::warn!(
                blob = %self.blob, idx = self.idx, a = %name(&self.current.opened.holder), b = %name(&giver.opened.holder),
                "two peers have different bytes of one chunk"
            );
            return Ok(None);
        }
        // The first one made some way meanwhile.
        let mut skip = (self.at - giver.opened.from) as usize;
        let limit = self.inner.times.progress;
        while piece.len() <= skip {
            skip -= piece.len();
            let more = timeout(limit, giver.opened.next()).await;
            piece = match more {
                Ok(Ok(Some(piece))) => piece,
                _ => return Ok(None),
            };
        }
        let _ = piece.split_to(skip);
        tracing::debug!(
            blob = %self.blob, idx = self.idx, from = %name(&self.current.opened.holder), to = %name(&giver.opened.holder),
            at = self.at, "another peer goes on"
        );
        self.inner.note(self.blob, self.idx, &giver.opened);
        self.current = giver;
        Ok(Some(piece))
    }

    fn error(&self, error: Error) -> Error {
        // What a peer sends is never proof that the content is bad: another one, or the Hub, has it right.
        let kind = if error.kind() == Kind::Corrupt { Kind::Unavailable } else { error.kind() };
        error.with_kind(kind).context(name(&self.current.opened.holder))
    }
}

impl Giver {
    fn new(inner: &Arc<Inner>, opened: Opened) -> Self {
        Giver { inner: inner.clone(), opened, bytes: 0, waited: Duration::ZERO, whole: false }
    }

    /// It passes on what comes to it.
    fn is_live(&self) -> bool {
        self.opened.hash.is_none()
    }
}

/// The first of `others` that gives bytes.
async fn rival(inner: Arc<Inner>, others: Vec<Holder>, ask: ChunkAsk, len: u32) -> Result<(Giver, Bytes)> {
    let mut last = Error::new(Kind::NotFound, "no other peer");
    for holder in inner.choose(&others, len) {
        let opened = match inner.ask_chunk(&holder, ask, len).await {
            Ok(Answered::Chunk(opened)) => opened,
            Ok(_) => continue,
            Err(e) => {
                last = e;
                continue;
            }
        };
        let mut giver = Giver::new(&inner, opened);
        match timeout(inner.times.progress, giver.opened.next()).await {
            Ok(Ok(Some(piece))) => return Ok((giver, piece)),
            Ok(Ok(None)) => {}
            Ok(Err(e)) => {
                inner.scores.outcome(holder.node, Outcome::Failed);
                last = e;
            }
            Err(_) => inner.scores.outcome(holder.node, Outcome::Failed),
        }
    }
    Err(last)
}
