//! One connection. Whoever waits for an answer drives it, so no other task wakes up per frame; while it idles
//! nobody does, and that the server closed it shows at the next request.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::http::{Request, Response};
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, BufReader};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::{Address, judge};
use crate::error::{Class, Error, Result};

const CONNECT: Duration = Duration::from_secs(10);
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Not a byte of a body for so long: the server stalls.
const STALL: Duration = Duration::from_secs(30);
/// How often a wait looks whether it was cancelled.
const TICK: Duration = Duration::from_millis(200);
/// Records are read from here: rustls asks the socket for 4 KiB at a time.
const RECORDS: usize = 128 * 1024;
/// The server closes idle connections after 120 s.
const KEEP: Duration = Duration::from_secs(90);

/// What moves a connection's bytes; then how it ended.
enum Drive {
    Runs(Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>),
    Ended(Option<hyper::Error>),
}

/// An open connection.
pub(super) struct Link {
    send: SendRequest<Full<Bytes>>,
    drive: Drive,
    used: Instant,
}

/// Why there is no answer.
pub(super) enum NoAnswer {
    /// The connection was dead before an answer began: another one may do.
    Dead(Error),
    Failed(Error),
}

/// Waits for `work`, but not for longer than `limit`, nor for longer than a tick after `cancel` was set.
pub(super) async fn within<T>(
    limit: Duration,
    cancel: Option<&AtomicBool>,
    what: &str,
    work: impl Future<Output = T>,
) -> Result<T> {
    let mut work = pin!(work);
    let began = Instant::now();
    loop {
        if cancel.is_some_and(|c| c.load(Ordering::Relaxed)) {
            return Err(Error::new(Class::Interrupted, "interrupted"));
        }
        let left = limit.saturating_sub(began.elapsed());
        if let Ok(done) = timeout(cancel.map_or(left, |_| left.min(TICK)), work.as_mut()).await {
            return Ok(done);
        }
        if began.elapsed() >= limit {
            return Err(Error::new(Class::Transient, format!("{what} within {} s", limit.as_secs())));
        }
    }
}

/// Lets `time` pass, unless `cancel` is set meanwhile.
pub(super) async fn pause(time: Duration, cancel: &AtomicBool) -> Result<()> {
    match within(time, Some(cancel), "", std::future::pending::<()>()).await {
        Err(e) if e.class == Class::Interrupted => Err(e),
        _ => Ok(()),
    }
}

impl Link {
    pub(super) async fn open(address: &Address, cancel: Option<&AtomicBool>) -> Result<Self> {
        match address {
            Address::Unix(path) => {
                let late = format!("cannot connect to {address}: no answer");
                let stream = within(CONNECT, cancel, &late, UnixStream::connect(path)).await?;
                Self::over(stream.map_err(|e| unreachable(address, e))?, address).await
            }
            Address::Tcp { host, port, tls } => {
                let late = format!("cannot connect to {address}: no answer");
                let connect = TcpStream::connect((host.as_str(), *port));
                let stream = within(CONNECT, cancel, &late, connect).await?;
                let stream = stream.map_err(|e| unreachable(address, e))?;
                super::super::socket::tune(&stream).map_err(|e| unreachable(address, e.into()))?;
                let bad = |e| Error::new(Class::Config, format!("`{host}` is no host name: {e}"));
                let name = ServerName::try_from(host.clone()).map_err(bad)?;
                let stream = BufReader::with_capacity(RECORDS, stream);
                let shake = TlsConnector::from(std::sync::Arc::clone(tls)).connect(name, stream);
                let late = format!("no TLS handshake with {address}");
                let stream = within(HANDSHAKE, cancel, &late, shake).await?;
                let failed = |e| judge::broken(&format!("the TLS handshake with {address} failed"), &e);
                Self::over(stream.map_err(failed)?, address).await
            }
        }
    }

    async fn over<S>(stream: S, address: &Address) -> Result<Self>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let failed = |e| judge::broken(&address.to_string(), &e);
        let (send, drive) = http1::Builder::new().handshake(TokioIo::new(stream)).await.map_err(failed)?;
        Ok(Self { send, drive: Drive::Runs(Box::pin(drive)), used: Instant::now() })
    }

    /// Whether it is worth a try.
    pub(super) fn is_fresh(&self) -> bool {
        matches!(self.drive, Drive::Runs(_)) && self.used.elapsed() < KEEP
    }

    /// Sends a request and waits for the head of its answer.
    pub(super) async fn ask(
        &mut self,
        request: Request<Full<Bytes>>,
        what: &str,
        limit: Duration,
        cancel: Option<&AtomicBool>,
    ) -> std::result::Result<Response<Incoming>, NoAnswer> {
        let late = format!("{what}: no answer");
        let Self { send, drive, .. } = self;
        let answer = async {
            driven(drive, |cx| send.poll_ready(cx)).await?;
            let mut answer = pin!(send.send_request(request));
            driven(drive, |cx| answer.as_mut().poll(cx)).await
        };
        match within(limit, cancel, &late, answer).await.map_err(NoAnswer::Failed)? {
            Ok(response) => Ok(response),
            Err(e) if e.is_parse() => Err(NoAnswer::Failed(judge::broken(what, &e))),
            Err(e) => {
                // why the connection broke says more than that it did
                let cause = if let Drive::Ended(cause) = &self.drive { cause.as_ref() } else { None };
                Err(NoAnswer::Dead(judge::broken(what, cause.unwrap_or(&e))))
            }
        }
    }

    /// The next bytes of a body; `None` at its proper end.
    pub(super) async fn frame(
        &mut self,
        body: &mut Incoming,
        cancel: Option<&AtomicBool>,
    ) -> Result<Option<Bytes>> {
        loop {
            let next = driven(&mut self.drive, |cx| Pin::new(&mut *body).poll_frame(cx));
            let next = within(STALL, cancel, "an answer stalled: not a byte", next).await?;
            match next.transpose().map_err(|e| judge::broken("an answer was cut off", &e))? {
                None => {
                    self.used = Instant::now();
                    return Ok(None);
                }
                Some(frame) => {
                    if let Ok(bytes) = frame.into_data() {
                        return Ok(Some(bytes));
                    }
                }
            }
        }
    }
}

/// Waits for `poll` while it drives the connection that `poll` waits on.
async fn driven<T>(drive: &mut Drive, mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>) -> T {
    poll_fn(|cx| {
        if let Poll::Ready(done) = poll(cx) {
            return Poll::Ready(done);
        }
        if let Drive::Runs(runs) = drive
            && let Poll::Ready(ended) = runs.as_mut().poll(cx)
        {
            *drive = Drive::Ended(ended.err());
        }
        poll(cx)
    })
    .await
}

fn unreachable(address: &Address, e: std::io::Error) -> Error {
    Error::new(Class::Transient, format!("cannot connect to {address}: {e}"))
}
