//! Connections of the public port: how many there may be, how long they may take, and HTTP/1 on one.
//!
//! A health check must always come through. So nobody is turned away: when all places are taken the one who has been
//! idle longest goes, first among those of the address that holds most of them.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::http::header::CONNECTION;
use axum::http::{HeaderValue, Request, Response};
use hyper::body::{Body as _, Incoming};
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::answers;
use crate::error::lock;

/// From a request's first byte to the end of its head.
const HEAD: Duration = Duration::from_secs(5);
/// For an answer, until the other side has taken it.
const ANSWER: Duration = Duration::from_secs(10);
/// Between requests.
const IDLE: Duration = Duration::from_secs(30);
/// Time-outs are looked at so often.
const TICK: Duration = Duration::from_millis(500);
const HEAD_BYTES: usize = 8 * 1024;
const HEADERS: usize = 32;

/// What a connection is at, and since when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doing {
    Waits,
    Asks,
    IsAnswered,
    /// The answer is there and is being sent.
    Takes,
}

struct Phase(Mutex<(Doing, Instant)>);

impl Phase {
    fn enter(&self, doing: Doing) {
        *lock(&self.0) = (doing, Instant::now());
    }

    /// Goes from one to the next, and nowhere else.
    fn step(&self, from: Doing, to: Doing) {
        let mut phase = lock(&self.0);
        if phase.0 == from {
            // sending belongs to the time of the answer
            let since = if to == Doing::Takes { phase.1 } else { Instant::now() };
            *phase = (to, since);
        }
    }

    fn is_over(&self) -> bool {
        let (doing, since) = *lock(&self.0);
        let limit = match doing {
            Doing::Waits => IDLE,
            Doing::Asks => HEAD,
            Doing::IsAnswered | Doing::Takes => ANSWER,
        };
        since.elapsed() > limit
    }
}

struct Entry {
    ip: IpAddr,
    phase: Arc<Phase>,
    cancel: CancellationToken,
}

/// All connections.
pub(super) struct Table {
    most: usize,
    entries: Mutex<(u64, HashMap<u64, Entry>)>,
}

/// A connection's place in the table, given back when dropped.
pub(super) struct Place {
    table: Arc<Table>,
    number: u64,
    phase: Arc<Phase>,
    cancel: CancellationToken,
}

impl Table {
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, entries: Mutex::default() })
    }

    /// A place for a new connection; another one may have to go for it.
    pub(super) fn place(self: &Arc<Self>, ip: IpAddr) -> Place {
        let phase = Arc::new(Phase(Mutex::new((Doing::Waits, Instant::now()))));
        let cancel = CancellationToken::new();
        let mut entries = lock(&self.entries);
        let (last, all) = &mut *entries;
        if all.len() >= self.most
            && let Some(victim) = victim(all)
            && let Some(entry) = all.remove(&victim)
        {
            entry.cancel.cancel();
        }
        *last += 1;
        let number = *last;
        all.insert(number, Entry { ip, phase: phase.clone(), cancel: cancel.clone() });
        Place { table: self.clone(), number, phase, cancel }
    }

    /// Ends all connections.
    pub(super) fn end(&self) {
        lock(&self.entries).1.values().for_each(|entry| entry.cancel.cancel());
    }
}

/// Of the address with most connections the one that waits or asks for longest, or else is answered for longest.
fn victim(all: &HashMap<u64, Entry>) -> Option<u64> {
    let mut counts: HashMap<IpAddr, usize> = HashMap::new();
    for entry in all.values() {
        *counts.entry(entry.ip).or_default() += 1;
    }
    let rank = |(number, entry): (&u64, &Entry)| {
        let (doing, since) = *lock(&entry.phase.0);
        let idle = matches!(doing, Doing::Waits | Doing::Asks);
        let count = counts.get(&entry.ip).copied().unwrap_or(0);
        (count, idle, std::cmp::Reverse(since), *number)
    };
    all.iter().map(rank).max().map(|(.., number)| number)
}

impl Place {
    /// When the connection has to end: it took too long, or somebody needs its place.
    pub(super) async fn is_over(&self) {
        loop {
            tokio::select! {
                () = self.cancel.cancelled() => return,
                () = tokio::time::sleep(TICK) => {}
            }
            if self.phase.is_over() {
                return;
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.table.entries).1.remove(&self.number);
    }
}

/// Answers on one connection until it ends.
pub(super) async fn serve(stream: TcpStream, place: Place, router: Router) {
    // answers are small, and must not wait for more
    let _ = stream.set_nodelay(true);
    let io = TokioIo::new(Watched { stream, phase: place.phase.clone(), at: At::Between });
    let phase = place.phase.clone();
    let conn = http1::Builder::new()
        // the phases have time-outs of their own
        .header_read_timeout(None)
        // simple checkers close their side after the request; the phases bound how long one may be gone
        .half_close(true)
        .max_header_size(HEAD_BYTES)
        .max_headers(HEADERS)
        .serve_connection(io, service_fn(move |request| answer(phase.clone(), router.clone(), request)));
    let conn = pin!(conn);
    tokio::select! {
        // how a connection ends is nobody's concern
        _ = conn => {}
        () = place.is_over() => {}
    }
}

async fn answer(
    phase: Arc<Phase>,
    router: Router,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    phase.enter(Doing::IsAnswered);
    if !request.body().is_end_stream() {
        let mut response = answers::no_body().await;
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        phase.step(Doing::IsAnswered, Doing::Takes);
        return Ok(response);
    }
    let response = TowerToHyperService::new(router).call(request).await?;
    phase.step(Doing::IsAnswered, Doing::Takes);
    Ok(response)
}

/// Where in the heads of requests the bytes that were read end. There is nothing but heads: the connection ends with the
/// first body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// Before a head; the empty lines that may be there count as nothing.
    Between,
    Method {
        lower: bool,
    },
    Line,
    LineStart,
}

impl At {
    /// Goes on over these bytes. Some configurations of load balancers have the method in lower case, which strictly is
    /// another method, and one that hyper would not know as HEAD: it is put into upper case on the way.
    fn over(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            if *self == Self::Between && !matches!(*byte, b'\r' | b'\n') {
                *self = Self::Method { lower: byte.is_ascii_lowercase() };
            }
            *self = match (*self, *byte) {
                (Self::LineStart | Self::Between, b'\n') => Self::Between,
                (_, b'\n') => Self::LineStart,
                (Self::Between | Self::LineStart, b'\r') => *self,
                (Self::Method { .. }, b' ') => Self::Line,
                (Self::Method { lower }, _) => {
                    if lower {
                        byte.make_ascii_uppercase();
                    }
                    *self
                }
                _ => Self::Line,
            };
        }
    }
}

/// Notes when a request begins and when an answer has gone.
struct Watched {
    stream: TcpStream,
    phase: Arc<Phase>,
    at: At,
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if let Some(new) = buf.filled_mut().get_mut(before..).filter(|new| !new.is_empty()) {
            self.at.over(new);
            self.phase.step(Doing::Waits, Doing::Asks);
        }
        read
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// Called when everything was written.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        if matches!(flushed, Poll::Ready(Ok(()))) {
            // the beginning of the next request may have come with the one before
            let next = if self.at == At::Between { Doing::Waits } else { Doing::Asks };
            self.phase.step(Doing::Takes, next);
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    #[test]
    fn who_holds_most_places_gives_one_up_first_the_idle_one() {
        let table = Table::new(4);
        let balancer = table.place(ip(1));
        let greedy: Vec<Place> = (0..3).map(|_| table.place(ip(2))).collect();
        greedy[0].phase.enter(Doing::IsAnswered);
        let newcomer = table.place(ip(3));
        assert!(!balancer.cancel.is_cancelled() && !newcomer.cancel.is_cancelled());
        let gone: Vec<bool> = greedy.iter().map(|place| place.cancel.is_cancelled()).collect();
        assert_eq!(gone, [false, true, false]);
        assert_eq!(lock(&table.entries).1.len(), 4);
        drop((balancer, greedy, newcomer));
        assert!(lock(&table.entries).1.is_empty());
    }

    #[test]
    fn heads_are_told_apart_and_methods_are_as_hyper_knows_them() {
        for (sent, read, between) in [
            ("head / HTTP/1.1\r\n\r\n", "HEAD / HTTP/1.1\r\n\r\n", true),
            ("get /a HTTP/1.0\n\n", "GET /a HTTP/1.0\n\n", true),
            (
                "\r\nget /a HTTP/1.0\r\nx: get \r\n\r\nhead /",
                "\r\nGET /a HTTP/1.0\r\nx: get \r\n\r\nHEAD /",
                false,
            ),
            ("Get /a b HTTP/1.0\r\n", "Get /a b HTTP/1.0\r\n", false),
            ("GET / HTTP/1.1\r\nhost: x\r\n\r\n\r\n", "GET / HTTP/1.1\r\nhost: x\r\n\r\n\r\n", true),
            ("GET / HTTP/1.1\r\n\r\ng", "GET / HTTP/1.1\r\n\r\nG", false),
            ("get\nhead\n\nget", "GET\nhead\n\nGET", false),
        ] {
            for size in [1, 3, 1_000] {
                let (mut at, mut bytes) = (At::Between, sent.to_owned().into_bytes());
                bytes.chunks_mut(size).for_each(|part| at.over(part));
                assert_eq!(String::from_utf8(bytes).unwrap(), read);
                assert_eq!(at == At::Between, between, "{sent:?}: {at:?}");
            }
        }
    }

    #[test]
    fn each_phase_has_its_limit() {
        let since = |ms| Instant::now().checked_sub(Duration::from_millis(ms)).unwrap();
        for (doing, ms, over) in [
            (Doing::Waits, 29_000, false),
            (Doing::Waits, 30_100, true),
            (Doing::Asks, 4_900, false),
            (Doing::Asks, 5_100, true),
            (Doing::IsAnswered, 9_000, false),
            (Doing::Takes, 10_100, true),
        ] {
            let phase = Phase(Mutex::new((doing, since(ms))));
            assert_eq!(phase.is_over(), over, "{doing:?} for {ms} ms");
        }
        let phase = Phase(Mutex::new((Doing::Asks, since(4_900))));
        phase.step(Doing::Waits, Doing::Asks);
        assert_eq!(lock(&phase.0).0, Doing::Asks);
        std::thread::sleep(Duration::from_millis(150));
        assert!(phase.is_over(), "more bytes do not give more time");
    }
}
