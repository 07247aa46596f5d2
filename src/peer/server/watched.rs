//! A connection that is cut when its other end is too slow: in the head of a request, between two requests, or in taking
//! an answer.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::CancellationToken;

/// Bytes that a slow reader must take within [`Patience::write`].
const PROGRESS: usize = 16 << 10;

/// How long the other end may take.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// From the first byte of a request's head to its last; and for a request's body.
    pub head: Duration,
    /// From one request to the next.
    pub idle: Duration,
    /// Without taking 16 KiB of an answer.
    pub write: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Patience {
            head: Duration::from_secs(5),
            idle: Duration::from_secs(60),
            write: Duration::from_secs(20),
        }
    }
}

/// What a connection is doing.
const IDLE: u8 = 0;
const HEAD: u8 = 1;
const BUSY: u8 = 2;

/// What others may know of a connection.
#[derive(Debug)]
pub(super) struct Watch {
    phase: AtomicU8,
    /// When the phase began, milliseconds after `start`.
    since: AtomicU64,
    start: Instant,
    /// A request with a right MAC came over it.
    known: AtomicBool,
    /// Cuts it.
    pub cut: CancellationToken,
}

impl Watch {
    pub fn new(start: Instant, cut: CancellationToken) -> Self {
        let watch = Watch {
            phase: AtomicU8::new(IDLE),
            since: AtomicU64::new(0),
            start,
            known: AtomicBool::new(false),
            cut,
        };
        watch.enter(IDLE);
        watch
    }

    fn enter(&self, phase: u8) {
        self.since.store(u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX), Relaxed);
        self.phase.store(phase, Relaxed);
    }

    fn since(&self) -> Instant {
        self.start + Duration::from_millis(self.since.load(Relaxed))
    }

    /// A request is being answered, until the guard goes.
    pub fn busy(self: &Arc<Self>) -> Busy {
        self.enter(BUSY);
        Busy(self.clone())
    }

    /// Somebody with the key is at the other end.
    pub fn is_known(&self) {
        self.known.store(true, Relaxed);
    }

    /// How willingly this one is dropped for another: strangers first, then those that have been idle longest. `None`: it
    /// is being answered.
    pub fn dispensable(&self) -> Option<(bool, Instant)> {
        (self.phase.load(Relaxed) != BUSY).then(|| (self.known.load(Relaxed), self.since()))
    }
}

/// See [`Watch::busy`].
#[derive(Debug)]
pub(super) struct Busy(Arc<Watch>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.enter(IDLE);
    }
}

/// The connection.
#[derive(Debug)]
pub(super) struct Watched {
    stream: TcpStream,
    watch: Arc<Watch>,
    patience: Patience,
    read_timer: Pin<Box<Sleep>>,
    write_timer: Pin<Box<Sleep>>,
    /// The write timer runs; bytes taken since it was started.
    blocked: Option<usize>,
}

impl Watched {
    pub fn new(stream: TcpStream, watch: Arc<Watch>, patience: Patience) -> Self {
        let timer = || Box::pin(tokio::time::sleep(patience.idle));
        Watched { stream, watch, patience, read_timer: timer(), write_timer: timer(), blocked: None }
    }

    fn late(what: &str) -> io::Error {
        io::Error::new(io::ErrorKind::TimedOut, what)
    }

    /// Judges a try to write `len` bytes.
    fn wrote(
        &mut self,
        cx: &mut Context<'_>,
        write: Poll<io::Result<usize>>,
        len: usize,
    ) -> Poll<io::Result<usize>> {
        match write {
            Poll::Ready(Ok(n)) => {
                let taken = self.blocked.map_or(0, |before| before + n);
                self.blocked = self.blocked.map(|_| taken).filter(|_| taken < PROGRESS && n < len);
                Poll::Ready(Ok(n))
            }
            Poll::Ready(Err(e)) => Poll::Ready(Err(e)),
            Poll::Pending => {
                if self.blocked.is_none() {
                    self.blocked = Some(0);
                    self.write_timer.as_mut().reset(Instant::now() + self.patience.write);
                }
                ready!(self.write_timer.as_mut().poll(cx));
                Poll::Ready(Err(Self::late("the other end does not take the answer")))
            }
        }
    }
}

impl AsyncRead for Watched {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        if let Poll::Ready(read) = Pin::new(&mut this.stream).poll_read(cx, buf) {
            if buf.filled().len() > before && this.watch.phase.load(Relaxed) == IDLE {
                this.watch.enter(HEAD);
            }
            return Poll::Ready(read);
        }
        let limit = match this.watch.phase.load(Relaxed) {
            IDLE => this.patience.idle,
            HEAD => this.patience.head,
            // The answer has bounds of its own.
            _ => return Poll::Pending,
        };
        let deadline = this.watch.since() + limit;
        if this.read_timer.deadline() != deadline {
            this.read_timer.as_mut().reset(deadline);
        }
        ready!(this.read_timer.as_mut().poll(cx));
        Poll::Ready(Err(Self::late("no request came")))
    }
}

impl AsyncWrite for Watched {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let write = Pin::new(&mut this.stream).poll_write(cx, buf);
        this.wrote(cx, write, buf.len())
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let write = Pin::new(&mut this.stream).poll_write_vectored(cx, bufs);
        this.wrote(cx, write, bufs.iter().map(|b| b.len()).sum())
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
