//! Bodies that blocking reads produce. Each frame is one hop to a blocking thread, under a permit that ends with
//! the hop: a reader that stalls holds two frames, never a thread.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::http::Response;
use bytes::Bytes;
use hyper::body::Frame;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;

use super::limits::Slot;
use super::refuse::Refusal;
use crate::error::{Class, Error, Result};
use crate::peer::wire::CHUNK;

/// One frame on its way into the socket, one ready behind it.
const DEPTH: usize = 2;
/// A reader that does not make room for a frame within so long is cut off: 9 kB/s is no line to mirror over.
const SEND: Duration = Duration::from_secs(30);

/// Makes a body, frame by frame, on blocking threads.
pub(super) trait Produce: Send + 'static {
    /// The next bytes, of about 256 KiB; `None` at the end.
    fn next(&mut self) -> Result<Option<Bytes>>;
}

/// Answers with what `from` makes. The first frame is made before the answer begins, so that an error of the
/// tree as a whole is said with a status.
pub(super) async fn respond(
    from: impl Produce,
    reads: Arc<Semaphore>,
    slot: Slot,
) -> Result<Response<Body>, Refusal> {
    let (from, first) = hop(from, &reads).await?;
    let (send, receive) = mpsc::channel(DEPTH);
    tokio::spawn(async move {
        // the slot is the request's, until its last byte is handed over
        let _slot = slot;
        pump(from, first, &reads, &send).await
    });
    Ok(Response::new(Body::new(Frames(receive))))
}

/// Gives up without a word: the channel then closes without an end, which the reader sees as a cut.
async fn pump(
    mut from: impl Produce,
    mut next: Option<Bytes>,
    reads: &Arc<Semaphore>,
    send: &mpsc::Sender<Option<Bytes>>,
) -> Option<()> {
    while let Some(mut bytes) = next {
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(2 * CHUNK));
            timeout(SEND, send.send(Some(piece))).await.ok()?.ok()?;
        }
        (from, next) =
            hop(from, reads).await.inspect_err(|e| tracing::warn!("an answer was cut off: {e}")).ok()?;
    }
    timeout(SEND, send.send(None)).await.ok()?.ok()
}

async fn hop<P: Produce>(mut from: P, reads: &Arc<Semaphore>) -> Result<(P, Option<Bytes>)> {
    let stopped = || Error::new(Class::Transient, "the source is stopping");
    let permit = Arc::clone(reads).acquire_owned().await.map_err(|_| stopped())?;
    let read = tokio::task::spawn_blocking(move || {
        // the permit stays with the thread, even if nobody waits for it any more
        let _permit = permit;
        let next = from.next();
        next.map(|next| (from, next))
    });
    match read.await {
        Ok(read) => read,
        Err(e) if e.is_panic() => Err(Error::new(Class::Permanent, "reading failed by a bug of the source")),
        Err(_) => Err(stopped()),
    }
}

/// The reading end of a body; `None` in the channel is its proper end.
struct Frames(mpsc::Receiver<Option<Bytes>>);

impl hyper::body::Body for Frames {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        self.0.poll_recv(cx).map(|item| match item {
            Some(Some(bytes)) => Some(Ok(Frame::data(bytes))),
            Some(None) => None,
            None => Some(Err(io::Error::other("cut off"))),
        })
    }
}
