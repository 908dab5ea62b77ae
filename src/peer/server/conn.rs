//! One connection: who speaks, whether it may, and what it is told otherwise. Everything that a connection holds
//! goes with it, also when its task panics.

use std::convert::Infallible;
use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::http::header::CONNECTION;
use axum::http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use axum::response::IntoResponse as _;
use bytes::Bytes;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

use super::limits::{NODE_CONNECTIONS, NODE_REQUESTS, Slot, What};
use super::paced::{Busy, Paced, Phase};
use super::refuse::{Reason, Refusal, not_now};
use super::{Server, Tree, lock};
use crate::model::{NodeId, escape};
use crate::peer::wire::{H_CLUSTER, H_NODE, H_PROTOCOL, PROTOCOL};

/// An idle connection is kept for so long; clients forget theirs earlier.
const KEEP_ALIVE: Duration = Duration::from_secs(120);
/// A request's head: five short headers and a query.
const HEAD_BYTES: usize = 16 * 1024;

/// The other side of a connection.
pub(super) struct Peer {
    pub(super) server: Arc<Server>,
    pub(super) stop: CancellationToken,
    /// What its certificate carries; `None` on a Unix socket.
    ids: Option<Vec<NodeId>>,
    /// Its address, for people.
    at: String,
    phase: Arc<Phase>,
    claim: Mutex<Claim>,
}

/// What the connection turned out to be for.
#[derive(Default)]
struct Claim {
    slot: Option<Slot>,
    trees: Vec<Arc<Tree>>,
}

/// Who asks, for the handlers.
#[derive(Clone)]
pub(super) struct Caller {
    pub(super) peer: Arc<Peer>,
    pub(super) node: NodeId,
}

/// Serves one connection until it ends, fails, idles too long, or `stop` is set and its request answered.
pub(super) async fn serve(
    server: Arc<Server>,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    ids: Option<Vec<NodeId>>,
    at: String,
    stop: CancellationToken,
) {
    let (phase, claim) = (Phase::new(), Mutex::default());
    let io = TokioIo::new(Paced::new(stream, Arc::clone(&phase)));
    let peer = Arc::new(Peer { server, stop, ids, at, phase, claim });
    let asked = Arc::clone(&peer);
    let conn = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(KEEP_ALIVE)
        .max_header_size(HEAD_BYTES)
        .max_headers(32)
        .serve_connection(io, service_fn(move |request| answer(Arc::clone(&asked), request)));
    let mut conn = pin!(conn);
    let done = tokio::select! {
        done = conn.as_mut() => done,
        () = peer.stop.cancelled() => {
            conn.as_mut().graceful_shutdown();
            conn.await
        }
    };
    if let Err(e) = done {
        peer.ended(&e);
    }
}

async fn answer(peer: Arc<Peer>, mut request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let busy = peer.phase.busy();
    let mut response = match peer.admit(request.headers()) {
        Ok(node) => {
            request.extensions_mut().insert(Caller { peer: Arc::clone(&peer), node });
            TowerToHyperService::new(peer.server.router.clone()).call(request).await?
        }
        Err(refusal) => {
            // it counts for no node, so it must not stay
            let mut response = refusal.into_response();
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            response
        }
    };
    match response.extensions().get::<Refusal>() {
        Some(refusal) => peer.refused(refusal.reason, &refusal.text),
        // what the router itself turns away
        None if !response.status().is_success() => {
            peer.refused(Reason::Malformed, response.status().as_str())
        }
        None => {}
    }
    response.headers_mut().insert(H_PROTOCOL, HeaderValue::from_static(PROTOCOL));
    Ok(response.map(|body| Body::new(Ending { body, _busy: busy })))
}

impl Peer {
    /// The node that asks, if it may ask here at all.
    fn admit(&self, headers: &HeaderMap) -> Result<NodeId, Refusal> {
        let header = |name| headers.get(name).map(|v| escape(v.as_bytes()));
        let asked = header(H_PROTOCOL).unwrap_or_else(|| "none".to_owned());
        if asked != PROTOCOL {
            let text = format!("protocol {PROTOCOL} is spoken here, not {asked}; update the older side");
            return Err(Refusal::new(StatusCode::UPGRADE_REQUIRED, Reason::Protocol, text));
        }
        let cluster = header(H_CLUSTER).unwrap_or_default();
        if cluster != self.server.cluster {
            let text = format!("this is cluster `{}`, not `{cluster}`", self.server.cluster);
            return Err(Refusal::new(StatusCode::FORBIDDEN, Reason::Cluster, text));
        }
        let named = header(H_NODE).unwrap_or_default();
        let not_named = |text: String| Refusal::new(StatusCode::FORBIDDEN, Reason::Node, text);
        let node = NodeId::new(&named).map_err(|e| not_named(e.to_string()))?;
        if self.ids.as_ref().is_some_and(|ids| !ids.contains(&node)) {
            return Err(not_named(format!("the certificate does not carry the node id `{node}`")));
        }
        self.claim(&node)?;
        Ok(node)
    }

    /// The first request says which node the connection counts for.
    fn claim(&self, node: &NodeId) -> Result<(), Refusal> {
        let mut claim = lock(&self.claim);
        match &claim.slot {
            Some(slot) if slot.node == *node => return Ok(()),
            Some(slot) => {
                let text = format!("this connection speaks for `{}`, not for `{node}`", slot.node);
                return Err(Refusal::new(StatusCode::FORBIDDEN, Reason::Node, text));
            }
            None => {}
        }
        claim.slot = self.server.limits.take(node, What::Connection);
        if claim.slot.is_some() {
            return Ok(());
        }
        let text = format!("node `{node}` has {NODE_CONNECTIONS} connections already");
        Err(Refusal::new(StatusCode::TOO_MANY_REQUESTS, Reason::Connections, text))
    }

    fn refused(&self, reason: Reason, text: &str) {
        let node = lock(&self.claim).slot.as_ref().map(|slot| slot.node.clone());
        self.server.ledger.refused(node.as_ref().map_or(&self.at, |node| node.as_str()), reason, text);
    }

    /// Judges why a connection broke. One that went away, or idled, is nobody's fault.
    fn ended(&self, e: &hyper::Error) {
        let cause = std::error::Error::source(e);
        let io = cause.and_then(|e| e.downcast_ref::<io::Error>());
        if let Some(slow) = io.filter(|e| e.kind() == io::ErrorKind::TimedOut) {
            self.refused(Reason::Slow, &slow.to_string());
        } else if e.is_parse_too_large() {
            self.refused(Reason::TooLarge, "the head of a request is too large");
        } else if e.is_parse() {
            self.refused(Reason::Malformed, &e.to_string());
        } else {
            tracing::debug!(peer = self.at, "connection ended: {e}");
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let claim = std::mem::take(&mut *lock(&self.claim));
        if let Some(slot) = claim.slot {
            claim.trees.iter().for_each(|tree| tree.serve.connected(&slot.node, -1));
        }
    }
}

impl Caller {
    /// The tree of that name, if the node may read it.
    pub(super) fn tree(&self, name: &str) -> Result<Arc<Tree>, Refusal> {
        let server = &self.peer.server;
        let tree = server.tree(name).ok_or_else(|| {
            if server.is_expected(name) {
                return not_now(format!("the source is starting: tree `{name}` is not ready yet"));
            }
            let text = format!("there is no tree `{}` here", escape(name.as_bytes()));
            Refusal::new(StatusCode::NOT_FOUND, Reason::Tree, text)
        })?;
        if !tree.serve.allows(&self.node) {
            let text = format!("node `{}` may not read tree `{name}`; see its `allow`", self.node);
            return Err(Refusal::new(StatusCode::FORBIDDEN, Reason::Forbidden, text));
        }
        let mut claim = lock(&self.peer.claim);
        let gone: Vec<_> = claim.trees.extract_if(.., |t| t.gone.is_cancelled()).collect();
        let new = !claim.trees.iter().any(|t| Arc::ptr_eq(t, &tree));
        if new {
            claim.trees.push(Arc::clone(&tree));
        }
        drop(claim);
        gone.iter().for_each(|tree| tree.serve.connected(&self.node, -1));
        if new {
            tree.serve.connected(&self.node, 1);
        }
        Ok(tree)
    }

    /// A place among the node's requests that read from disk.
    pub(super) fn slot(&self) -> Result<Slot, Refusal> {
        self.peer.server.limits.take(&self.node, What::Request).ok_or_else(|| {
            let text = format!("node `{}` has {NODE_REQUESTS} requests under way already", self.node);
            Refusal::new(StatusCode::TOO_MANY_REQUESTS, Reason::Busy, text)
        })
    }
}

/// A body that says when it is over.
struct Ending {
    body: Body,
    _busy: Busy,
}

impl hyper::body::Body for Ending {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
