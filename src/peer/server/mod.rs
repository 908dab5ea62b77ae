//! The serving side. One connection's trouble is its own: each has its task, its time-outs and its share, and
//! the loop that accepts ends only when it is told to.

mod conn;
mod content;
mod limits;
mod paced;
mod refuse;
mod routes;
mod stream;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use axum::Router;
use rustls::ServerConfig;
use serde::Serialize;
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::tls::explain;
use super::wire::Sought;
use crate::disk::Dir;
use crate::error::{Class, Error, Result, lock};
use crate::model::{Digest, GenId, Generation, Name, NodeId, Report, TreePath};

use limits::Limits;
pub use refuse::Reason;

/// All connections together: 200 mirrors with all their connections, and file descriptors stay below the usual limit.
const CONNECTIONS: usize = 4096;
/// Threads that read one tree: they keep a disk busy, and a hung mount pins no more of them.
const READERS: usize = 4;
/// A handshake is two round trips.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// What is under way at the end gets so long.
const GRACE: Duration = Duration::from_millis(1800);
/// After a failed accept (no descriptors left) the loop waits; the queue of the kernel keeps who comes.
const BACK_OFF: Duration = Duration::from_millis(200);

/// What the head answer says beside the generation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Behind {
    /// Milliseconds since the newest generation was published, by the boot clock.
    pub age_ms: u64,
    /// The oldest published generation that the mirror lacks, and its age in milliseconds.
    pub oldest: Option<(GenId, u64)>,
    /// Published generations that the mirror lacks.
    pub behind: u64,
}

/// Which part of a sought content a mirror sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The round of seeking.
    pub round: u64,
    /// Its place in the list of what is sought.
    pub index: u32,
    /// The offset of its first byte.
    pub from: u64,
}

/// One tree, as the agent offers it.
pub trait Serve: Send + Sync + 'static {
    /// Whether `node` may read it.
    fn allows(&self, node: &NodeId) -> bool;

    /// The newest generation; the sender side is the agent's.
    fn head(&self) -> watch::Receiver<Option<Arc<Generation>>>;

    /// A mirror asks, and says what it has completely.
    fn heard(&self, node: &NodeId, known: Option<GenId>);

    /// How far behind a mirror with `known` is now, which may be long after its question; `seen` is the newest
    /// generation that it has heard of.
    ///
    /// # Errors
    /// [`Class::Refused`]: this source is superseded.
    fn behind(&self, node: &NodeId, known: Option<GenId>, seen: Option<(GenId, Digest)>) -> Result<Behind>;

    /// Blocking. Encoded directory objects, one per digest; `None` when it is not there any more.
    ///
    /// # Errors
    /// The source's own data cannot be read.
    fn objects(&self, want: &[Digest]) -> Result<Vec<Option<Vec<u8>>>>;

    /// Blocking. The tree's root directory.
    ///
    /// # Errors
    /// It is not there.
    fn root(&self) -> Result<Arc<Dir>>;

    /// Blocking. Whether a large file at this path is published with this digest (small ones are proven by hashing).
    fn publishes(&self, dir: &TreePath, name: &Name, digest: &Digest) -> bool;

    /// Blocking. A published content that is kept though its file is another one by now: open, of this size.
    fn kept(&self, _digest: &Digest, _size: u64) -> Option<std::os::fd::OwnedFd> {
        None
    }

    /// The number of the round in which contents are sought among the mirrors, 0 while there is none; `None`: never are.
    fn seeks(&self) -> Option<watch::Receiver<u64>> {
        None
    }

    /// What is sought, from place `from` on, a part of it; `None` when the round is over. From memory.
    fn sought(&self, _node: &NodeId, _round: u64, _from: usize) -> Option<Vec<Sought>> {
        None
    }

    /// A mirror has found these, and looks for no more when it is `done`. Gives which it shall send; `None` when the
    /// round is over. From memory.
    fn found(&self, _node: &NodeId, _round: u64, _found: &[u32], _done: bool) -> Option<Vec<u32>> {
        None
    }

    /// Blocking. A mirror sends what it was asked for.
    ///
    /// # Errors
    /// Nobody asked it, the round is over, or it cannot be written.
    fn piece(&self, _node: &NodeId, _piece: Piece, _bytes: &[u8]) -> Result<()> {
        Err(Error::new(Class::Permanent, "nothing is sought here"))
    }

    /// A mirror reports.
    fn report(&self, node: &NodeId, report: Report);

    /// The contents of these files were not what their digests say.
    fn suspect(&self, node: &NodeId, paths: Vec<TreePath>);

    /// A connection of this node that asks for this tree came (1) or went (-1).
    fn connected(&self, node: &NodeId, delta: i32);
}

/// A tree and its share of reading threads.
struct Tree {
    serve: Arc<dyn Serve>,
    reads: Arc<Semaphore>,
    /// Set when it was replaced or taken away.
    gone: CancellationToken,
}

/// Where connections come from.
#[derive(Debug)]
pub enum Listener {
    /// TLS only.
    Tcp(TcpListener),
    /// Without TLS: the socket file's rights are the authority.
    Unix(UnixListener),
}

/// What a server did so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// Connections open now.
    pub open: usize,
    /// Connections accepted.
    pub accepted: u64,
    /// What was turned away, by reason.
    pub refused: BTreeMap<Reason, u64>,
}

/// Serves trees on any number of listeners.
pub struct Server {
    node: NodeId,
    cluster: String,
    trees: RwLock<HashMap<String, Arc<Tree>>>,
    /// The trees that should be here: one of them that is not is just being started.
    expected: RwLock<HashSet<String>>,
    tls: RwLock<Option<Arc<ServerConfig>>>,
    router: Router,
    limits: Arc<Limits>,
    ledger: refuse::Ledger,
    open: AtomicUsize,
    accepted: AtomicU64,
}

impl Server {
    /// A server of no trees yet. Without `tls` it refuses everything that comes over TCP.
    pub fn new(node: NodeId, cluster: String, tls: Option<Arc<ServerConfig>>) -> Arc<Self> {
        Arc::new(Self {
            node,
            cluster,
            trees: RwLock::default(),
            expected: RwLock::default(),
            tls: RwLock::new(tls),
            router: routes::router(),
            limits: Arc::default(),
            ledger: refuse::Ledger::default(),
            open: AtomicUsize::new(0),
            accepted: AtomicU64::new(0),
        })
    }

    /// Replaces all trees; one that is offered by the same [`Serve`] as before stays undisturbed. Of the others, long polls
    /// end at once, and other requests finish with what they began with.
    pub fn set_trees(&self, trees: HashMap<String, Arc<dyn Serve>>) {
        let mut now = self.trees.write().unwrap_or_else(PoisonError::into_inner);
        let mut old = std::mem::take(&mut *now);
        for (name, serve) in trees {
            let tree = match old.remove(&name) {
                Some(same) if Arc::ptr_eq(&same.serve, &serve) => same,
                other => {
                    old.extend(other.map(|tree| (name.clone(), tree)));
                    let (reads, gone) = (Arc::new(Semaphore::new(READERS)), CancellationToken::new());
                    Arc::new(Tree { serve, reads, gone })
                }
            };
            now.insert(name, tree);
        }
        drop(now);
        old.values().for_each(|tree| tree.gone.cancel());
    }

    /// Replaces the names of the trees that are here or will be: who asks for one that is not here yet is told to ask again.
    pub fn set_expected(&self, names: HashSet<String>) {
        *self.expected.write().unwrap_or_else(PoisonError::into_inner) = names;
    }

    /// Replaces the certificate for connections to come.
    pub fn set_tls(&self, tls: Option<Arc<ServerConfig>>) {
        *self.tls.write().unwrap_or_else(PoisonError::into_inner) = tls;
    }

    /// What happened so far.
    pub fn counters(&self) -> Counters {
        Counters {
            open: self.open.load(Ordering::Relaxed),
            accepted: self.accepted.load(Ordering::Relaxed),
            refused: self.ledger.counts(),
        }
    }

    fn tree(&self, name: &str) -> Option<Arc<Tree>> {
        self.trees.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    fn is_expected(&self, name: &str) -> bool {
        self.expected.read().unwrap_or_else(PoisonError::into_inner).contains(name)
    }

    /// Accepts until `stop` is set; then ends within 2 s, cutting off what is not finished by then.
    pub async fn run(self: Arc<Self>, listener: Listener, stop: CancellationToken) {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                Some(ended) = connections.join_next() => self.ended(ended),
                came = self.accept(&listener, &stop) => match came {
                    Ok(Some(connection)) => {
                        connections.spawn(connection);
                    }
                    Ok(None) => {}
                    Err(e) => {
                        self.ledger.refused("listener", Reason::Failed, &format!("cannot accept: {e}"));
                        tokio::select! {
                            () = stop.cancelled() => {}
                            () = tokio::time::sleep(BACK_OFF) => {}
                        }
                    }
                },
            }
        }
        drop(listener);
        let all = async { while connections.join_next().await.is_some() {} };
        // whoever is left is cut off with the set
        let _ = timeout(GRACE, all).await;
        connections.shutdown().await;
    }

    /// The next connection, as what serves it; `None` when it was turned away.
    async fn accept(
        self: &Arc<Self>,
        listener: &Listener,
        stop: &CancellationToken,
    ) -> io::Result<Option<impl Future<Output = ()> + Send + 'static>> {
        let (stream, at) = match listener {
            Listener::Tcp(tcp) => {
                let (stream, at) = tcp.accept().await?;
                (Stream::Tcp(stream), at.ip().to_string())
            }
            Listener::Unix(unix) => (Stream::Unix(unix.accept().await?.0), "unix socket".to_owned()),
        };
        self.accepted.fetch_add(1, Ordering::Relaxed);
        let open = Open(Arc::clone(self));
        if self.open.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS {
            self.ledger.refused(&at, Reason::Connections, "all connections are taken");
            return Ok(None);
        }
        let (server, stop) = (Arc::clone(self), stop.clone());
        Ok(Some(async move {
            let _open = open;
            match stream {
                Stream::Unix(stream) => conn::serve(server, stream, None, at, stop).await,
                Stream::Tcp(stream) => server.secure(stream, at, stop).await,
            }
        }))
    }

    async fn secure(self: Arc<Self>, stream: TcpStream, at: String, stop: CancellationToken) {
        let refused = |text: &str| self.ledger.refused(&at, Reason::Handshake, text);
        if let Err(e) = super::socket::tune(&stream) {
            return tracing::debug!(peer = at, "went at once: {e}");
        }
        let tls = self.tls.read().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(tls) = tls else { return refused("no certificate is configured") };
        let stream = match timeout(HANDSHAKE, TlsAcceptor::from(tls).accept(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(e)) => return refused(&format!("the TLS handshake failed: {}", explain(&e))),
            Err(_) => return refused("no TLS handshake within 10 s"),
        };
        let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        let ids = certificate.map(super::tls::node_ids).unwrap_or_default();
        if ids.is_empty() {
            return refused("its certificate carries no node id");
        }
        conn::serve(Arc::clone(&self), stream, Some(ids), at.clone(), stop).await;
    }

    fn ended(&self, ended: std::result::Result<(), tokio::task::JoinError>) {
        if let Err(e) = ended {
            self.ledger.refused("server", Reason::Failed, &format!("a connection's task failed: {e}"));
        }
    }
}

enum Stream {
    Tcp(TcpStream),
    Unix(tokio::net::UnixStream),
}

/// Counts an open connection while it lives.
struct Open(Arc<Server>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}
