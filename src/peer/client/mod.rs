//! The asking side. What a server says is checked before it is handed on, every wait ends, and an answer that was not
//! read to its end never leaks into the next one: its connection goes.

mod answer;
mod bulk;
mod judge;
mod lane;
mod link;

use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::http::header::{HOST, RETRY_AFTER};
use axum::http::{Method, Request, Response, StatusCode};
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use rustls::ClientConfig;

use super::wire::{self, H_CLUSTER, H_NODE, H_PROTOCOL, Head, MAX_PATHS, PROTOCOL, Sought};
use crate::error::{Class, Error, Result, lock};
use crate::model::{Digest, GenId, NodeId, Report, TreePath};

pub use bulk::{Fetched, Want};
use link::{Link, NoAnswer, within};

/// From a request to the head of its answer.
const ANSWER: Duration = Duration::from_secs(30);
/// A head is about a kilobyte.
const HEAD_BODY: usize = 64 * 1024;
/// Connections kept for the calls that are not bulk: the long poll, and reports meanwhile.
const IDLE: usize = 2;

/// Where a source is.
#[derive(Clone)]
pub enum Address {
    /// Over TLS; `host` is a name or an address.
    Tcp {
        /// Its name or address.
        host: String,
        /// Its port.
        port: u16,
        /// Certificates, and whom to trust.
        tls: Arc<ClientConfig>,
    },
    /// A Unix socket's path.
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port, .. } if host.contains(':') => write!(f, "https://[{host}]:{port}"),
            Self::Tcp { host, port, .. } => write!(f, "https://{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Asks one source for one tree; clones share its connections.
///
/// Errors say what to do: [`Class::Transient`] (network, time-outs, an overloaded or stopping source) try again;
/// [`Class::Refused`] the source says no, and why; [`Class::Config`] it speaks another protocol version;
/// [`Class::Integrity`] it sent garbage or lied.
#[derive(Clone)]
pub struct Client(Arc<Inner>);

struct Inner {
    address: Address,
    node: NodeId,
    cluster: String,
    tree: String,
    idle: Mutex<Vec<Link>>,
    lanes: lane::Lanes,
}

/// A request, as often as it has to be sent.
struct Ask {
    method: Method,
    uri: String,
    body: Bytes,
    what: String,
}

/// What a request led to.
enum Begun {
    Answer(Link, Response<Incoming>),
    /// Too much is under way; again after so long.
    Busy(Error, Duration),
    /// The source, or its tree, is just being started or stopped.
    NotYet(Error),
}

impl Client {
    /// A client of `tree` for `node`. Connects when it is asked something.
    pub fn new(address: Address, node: NodeId, cluster: String, tree: String) -> Self {
        let (idle, lanes) = (Mutex::default(), lane::Lanes::default());
        Self(Arc::new(Inner { address, node, cluster, tree, idle, lanes }))
    }

    /// Waits up to `wait` (at most 60 s) for a generation that is not `seen`; then gives the newest one. `known`
    /// is the newest generation that is here completely, `sought` the last round of seeking that was dealt with, 0 for
    /// none: another one ends the wait. `None` when nothing is published yet.
    ///
    /// # Errors
    /// As described at [`Client`]; [`Class::Refused`] also when the source is older than `known` or `seen`. [`Class::Busy`]:
    /// the source says that it is not ready yet (it starts or stops, or sets the tree up anew), so all is as it should be.
    pub async fn head(
        &self,
        known: Option<GenId>,
        seen: Option<(GenId, Digest)>,
        sought: u64,
        wait: Duration,
    ) -> Result<Option<Head>> {
        let mut query = format!("?wait={}&sought={sought}", wait.as_secs().min(wire::MAX_WAIT));
        if let Some(known) = known {
            query.push_str(&format!("&known={known}"));
        }
        if let Some((id, root)) = seen {
            query.push_str(&format!("&seen={id}&root={root}"));
        }
        let ask = Ask::new(&self.0, Method::GET, "head", &query, Bytes::new());
        let Some(body) = self.0.call_as(&ask, wait + ANSWER, HEAD_BODY, Class::Busy).await? else {
            return Ok(None);
        };
        let garbage = |e| Error::integrity(format!("{}: not the head of a tree: {e}", ask.what));
        serde_json::from_slice(&body).map(Some).map_err(garbage)
    }

    /// Tells the source how this node's tree is doing.
    ///
    /// # Errors
    /// As described at [`Client`].
    pub async fn report(&self, report: &Report) -> Result<()> {
        let mut report = report.clone();
        wire::clip(&mut report);
        let encode = |report: &Report| {
            let failed = |e| Error::new(Class::Permanent, format!("cannot encode a report: {e}"));
            serde_json::to_vec(report).map_err(failed)
        };
        let mut body = encode(&report)?;
        while body.len() > wire::REPORT_BODY && !report.converged.is_empty() {
            report.converged.drain(..report.converged.len().div_ceil(2));
            body = encode(&report)?;
        }
        let ask = Ask::new(&self.0, Method::POST, "report", "", body.into());
        self.0.call(&ask, ANSWER, 0).await.map(drop)
    }

    /// Tells the source that these files' contents were not what their digests say.
    ///
    /// # Errors
    /// As described at [`Client`].
    pub async fn suspect(&self, paths: &[TreePath]) -> Result<()> {
        // half as many as may be, so that long paths fit as well
        for some in paths.chunks(MAX_PATHS / 2) {
            let body = wire::encode(&some.iter().map(TreePath::as_bytes).collect::<Vec<_>>())?;
            let ask = Ask::new(&self.0, Method::POST, "suspect", "", body.into());
            self.0.call(&ask, ANSWER, 0).await?;
        }
        Ok(())
    }
}

impl Client {
    /// What the source seeks among its mirrors, from place `from` on: a part of it, empty at the end; `None` when that round
    /// is over.
    ///
    /// # Errors
    /// As described at [`Client`].
    pub async fn sought(&self, round: u64, from: usize) -> Result<Option<Vec<Sought>>> {
        let query = format!("?round={round}&from={from}");
        let ask = Ask::new(&self.0, Method::GET, "sought", &query, Bytes::new());
        self.0.call(&ask, ANSWER, wire::SOUGHT_BODY).await?.map(|body| wire::sought(&body)).transpose()
    }

    /// Tells the source which places of its list are found here, and whether all were looked for. Gives which it wants to be
    /// sent; `None` when the round is over.
    ///
    /// # Errors
    /// As described at [`Client`].
    pub async fn found(&self, round: u64, found: &[u32], done: bool) -> Result<Option<Vec<u32>>> {
        let query = format!("?round={round}&done={done}");
        let ask = Ask::new(&self.0, Method::POST, "found", &query, wire::encode(&found)?.into());
        self.0.call(&ask, ANSWER, wire::FOUND_BODY).await?.map(|body| wire::places(&body)).transpose()
    }

    /// Sends a piece of a content, of at most [`wire::PIECE`] bytes; an empty one says that it cannot be sent.
    ///
    /// # Errors
    /// As described at [`Client`].
    pub async fn piece(&self, round: u64, index: u32, from: u64, bytes: Bytes) -> Result<()> {
        let query = format!("?round={round}&index={index}&from={from}");
        let ask = Ask::new(&self.0, Method::POST, "piece", &query, bytes);
        self.0.call(&ask, ANSWER, 0).await.map(drop)
    }
}

impl Ask {
    fn new(of: &Inner, method: Method, what: &str, query: &str, body: Bytes) -> Self {
        let uri = format!("/sync/1/{}/{what}{query}", in_path(&of.tree));
        let what = format!("{what} of tree `{}` at {}", of.tree, of.address);
        Self { method, uri, body, what }
    }
}

/// A body of at most `most` bytes.
async fn whole(link: &mut Link, mut body: Incoming, most: usize) -> Result<Bytes> {
    let mut all = Vec::new();
    while let Some(bytes) = link.frame(&mut body, None).await? {
        if bytes.len() > most - all.len() {
            return Err(Error::integrity(format!("the source sent an answer of more than {most} bytes")));
        }
        all.extend_from_slice(&bytes);
    }
    Ok(all.into())
}

/// A tree's name as one part of a path.
fn in_path(name: &str) -> String {
    let plain = |b: &u8| b.is_ascii_alphanumeric() || b"-._~".contains(b);
    let part = |b: u8| if plain(&b) { char::from(b).to_string() } else { format!("%{b:02X}") };
    name.bytes().map(part).collect()
}

impl Inner {
    /// A whole short answer; `None` for 204.
    async fn call(&self, ask: &Ask, limit: Duration, most: usize) -> Result<Option<Bytes>> {
        self.call_as(ask, limit, most, Class::Transient).await
    }

    /// The same; what the source is not ready for yet is an error of the class `not_yet`.
    async fn call_as(
        &self,
        ask: &Ask,
        limit: Duration,
        most: usize,
        not_yet: Class,
    ) -> Result<Option<Bytes>> {
        let idle = lock(&self.idle).pop();
        let (mut link, response) = match self.begin(idle, ask, limit, None).await? {
            Begun::Answer(link, response) => (link, response),
            Begun::Busy(e, _) => return Err(e),
            Begun::NotYet(e) => return Err(Error { class: not_yet, ..e }),
        };
        let nothing = response.status() == StatusCode::NO_CONTENT;
        let late = format!("{}: no whole answer", ask.what);
        let all = within(ANSWER, None, &late, whole(&mut link, response.into_body(), most)).await??;
        let mut idle = lock(&self.idle);
        if idle.len() < IDLE {
            idle.push(link);
        }
        Ok((!nothing).then_some(all))
    }

    /// Asks over `idle`, or a new connection when that one is dead, and judges the status of the answer.
    async fn begin(
        &self,
        idle: Option<Link>,
        ask: &Ask,
        limit: Duration,
        cancel: Option<&AtomicBool>,
    ) -> Result<Begun> {
        if let Some(mut link) = idle.filter(Link::is_fresh) {
            match link.ask(self.request(ask)?, &ask.what, limit, cancel).await {
                Ok(response) => return self.judge(link, response, ask, cancel).await,
                Err(NoAnswer::Failed(e)) => return Err(e),
                // every request may be asked twice
                Err(NoAnswer::Dead(e)) => tracing::debug!("connecting anew: {e}"),
            }
        }
        let mut link = Link::open(&self.address, cancel).await?;
        match link.ask(self.request(ask)?, &ask.what, limit, cancel).await {
            Ok(response) => self.judge(link, response, ask, cancel).await,
            Err(NoAnswer::Failed(e) | NoAnswer::Dead(e)) => Err(e),
        }
    }

    async fn judge(
        &self,
        mut link: Link,
        response: Response<Incoming>,
        ask: &Ask,
        cancel: Option<&AtomicBool>,
    ) -> Result<Begun> {
        if response.status().is_success() {
            if response.headers().get(H_PROTOCOL).is_none_or(|v| v != PROTOCOL) {
                return Err(Error::integrity(format!("{}: that is no syncagent", ask.what)));
            }
            return Ok(Begun::Answer(link, response));
        }
        let busy = response.status() == StatusCode::TOO_MANY_REQUESTS;
        let later = response.headers().get(RETRY_AFTER).and_then(|v| v.to_str().ok()?.parse().ok());
        let not_yet = response.status() == StatusCode::SERVICE_UNAVAILABLE && later.is_some();
        let e = judge::refused(&ask.what, &mut link, response, cancel).await;
        if not_yet {
            return Ok(Begun::NotYet(e));
        }
        if busy { Ok(Begun::Busy(e, Duration::from_secs(later.unwrap_or(1).clamp(1, 5)))) } else { Err(e) }
    }

    fn request(&self, ask: &Ask) -> Result<Request<Full<Bytes>>> {
        let host = match &self.address {
            Address::Tcp { .. } => self.address.to_string().split_off("https://".len()),
            Address::Unix(_) => "localhost".to_owned(),
        };
        Request::builder()
            .method(&ask.method)
            .uri(&ask.uri)
            .header(HOST, host)
            .header(H_PROTOCOL, PROTOCOL)
            .header(H_NODE, self.node.as_str())
            .header(H_CLUSTER, &self.cluster)
            .body(Full::new(ask.body.clone()))
            .map_err(|e| Error::new(Class::Config, format!("{}: no valid request: {e}", ask.what)))
    }
}
