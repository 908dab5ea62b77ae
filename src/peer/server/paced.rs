//! A connection's bytes with time-outs. A peer that trickles the head of a request, or that stops reading, keeps
//! a connection and buffers; hyper bounds only the time from one request to the next, idle or not.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

/// From the first byte of a request's head to its last; a head is one packet.
const HEAD: Duration = Duration::from_secs(10);
/// Not one byte taken for so long: the reader stalls.
const STALL: Duration = Duration::from_secs(30);

const IDLE: u8 = 0;
const IN_HEAD: u8 = 1;
const BUSY: u8 = 2;

/// What a connection is at; the handler sets it, the stream reads it.
#[derive(Debug)]
pub(super) struct Phase(AtomicU8);

impl Phase {
    /// A new connection owes a request at once.
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self(AtomicU8::new(IN_HEAD)))
    }

    /// A request is here; until the guard goes, none is waited for.
    pub(super) fn busy(self: &Arc<Self>) -> Busy {
        self.0.store(BUSY, Ordering::Relaxed);
        Busy(Arc::clone(self))
    }
}

/// While it lives a request is being answered.
#[derive(Debug)]
pub(super) struct Busy(Arc<Phase>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.0.store(IDLE, Ordering::Relaxed);
    }
}

/// A stream that fails with `TimedOut` when its peer is too slow.
#[derive(Debug)]
pub(super) struct Paced<S> {
    stream: S,
    phase: Arc<Phase>,
    head: Pin<Box<Sleep>>,
    stall: Pin<Box<Sleep>>,
    stalled: bool,
}

impl<S> Paced<S> {
    pub(super) fn new(stream: S, phase: Arc<Phase>) -> Self {
        Self { stream, phase, head: Box::pin(sleep(HEAD)), stall: Box::pin(sleep(STALL)), stalled: false }
    }

    fn written<T>(&mut self, cx: &mut Context<'_>, done: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if done.is_ready() {
            self.stalled = false;
            return done;
        }
        if !self.stalled {
            self.stalled = true;
            self.stall.as_mut().reset(Instant::now() + STALL);
        }
        self.stall.as_mut().poll(cx).map(|()| Err(too_slow("took not a byte of the answer for 30 s")))
    }
}

fn too_slow(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, what)
}

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let done = Pin::new(&mut self.stream).poll_read(cx, buf);
        match self.phase.0.load(Ordering::Relaxed) {
            IDLE if buf.filled().len() > before => {
                self.phase.0.store(IN_HEAD, Ordering::Relaxed);
                self.head.as_mut().reset(Instant::now() + HEAD);
            }
            IN_HEAD if done.is_pending() && self.head.as_mut().poll(cx).is_ready() => {
                return Poll::Ready(Err(too_slow("sent no whole request within 10 s")));
            }
            _ => {}
        }
        done
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let done = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.written(cx, done)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let done = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.written(cx, done)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let done = Pin::new(&mut self.stream).poll_flush(cx);
        self.written(cx, done)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let done = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.written(cx, done)
    }
}
