//! Both sides over real sockets; and each side against peers that lie.

mod decode;
mod hostile_client;
mod hostile_server;
mod serve;
mod speed;

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, UnixListener};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::disk::Dir;
use crate::error::{Class, Error, Result};
use crate::model::{Digest, GenId, Generation, Name, NodeId, Report, Root, RootHeader, TreePath};

pub(super) fn path(p: &str) -> TreePath {
    TreePath::new(p.as_bytes()).unwrap()
}

pub(super) fn name(n: &str) -> Name {
    Name::new(n.as_bytes()).unwrap()
}

pub(super) fn node(n: &str) -> NodeId {
    NodeId::new(n).unwrap()
}

/// Waits for what another thread is about to do; fails when it does not.
pub(super) fn eventually(what: &str, holds: impl FnMut() -> bool) {
    within(Duration::from_secs(20), what, holds);
}

pub(super) fn within(limit: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < limit, "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A tree in a temporary directory.
pub(super) struct Tree {
    pub(super) at: tempfile::TempDir,
    root: Arc<Dir>,
    pub(super) head: watch::Sender<Option<Arc<Generation>>>,
    pub(super) objects: Mutex<HashMap<Digest, Vec<u8>>>,
    pub(super) published: Mutex<HashMap<TreePath, Digest>>,
    pub(super) reports: Mutex<Vec<Report>>,
    pub(super) suspects: Mutex<Vec<TreePath>>,
    pub(super) connected: Mutex<HashMap<NodeId, i32>>,
    pub(super) superseded: AtomicBool,
    pub(super) heard: AtomicUsize,
    pub(super) seeks: watch::Sender<u64>,
    pub(super) pieces: Mutex<Vec<(Piece, Vec<u8>)>>,
}

impl Tree {
    pub(super) fn new() -> Arc<Self> {
        let at = tempfile::tempdir().unwrap();
        Arc::new(Self {
            root: Arc::new(Dir::open_root(at.path()).unwrap()),
            at,
            head: watch::Sender::new(None),
            objects: Mutex::default(),
            published: Mutex::default(),
            reports: Mutex::default(),
            suspects: Mutex::default(),
            connected: Mutex::default(),
            superseded: AtomicBool::new(false),
            heard: AtomicUsize::new(0),
            seeks: watch::Sender::new(0),
            pieces: Mutex::default(),
        })
    }

    /// Writes a file and publishes it. Gives its digest.
    pub(super) fn file(&self, at: &str, content: &[u8]) -> Digest {
        let file = self.at.path().join(at);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, content).unwrap();
        let digest = Digest::of(content);
        self.published.lock().unwrap().insert(path(at), digest);
        digest
    }

    pub(super) fn object(&self, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        self.objects.lock().unwrap().insert(digest, bytes.to_vec());
        digest
    }

    pub(super) fn publish(&self, number: u64) -> Generation {
        let generation = generation(number);
        self.head.send_replace(Some(Arc::new(generation.clone())));
        generation
    }
}

pub(super) fn generation(number: u64) -> Generation {
    let object = Digest::of(&number.to_le_bytes());
    Generation {
        id: GenId { epoch: 1, number },
        root: Root { object, content: object, header: RootHeader::default() },
        filter: Digest::of(b"filter"),
        origin: node("source"),
        at_ms: 1,
        files: 1,
        changes: Default::default(),
        judged: true,
        approved: None,
        cause: Default::default(),
    }
}

impl Serve for Tree {
    fn allows(&self, node: &NodeId) -> bool {
        node.as_str() != "stranger"
    }

    fn head(&self) -> watch::Receiver<Option<Arc<Generation>>> {
        self.head.subscribe()
    }

    fn heard(&self, _: &NodeId, _: Option<GenId>) {}

    fn behind(&self, _: &NodeId, known: Option<GenId>, _: Option<(GenId, Digest)>) -> Result<Behind> {
        self.heard.fetch_add(1, Ordering::SeqCst);
        if self.superseded.load(Ordering::SeqCst) {
            return Err(Error::new(Class::Refused, "the source is older than its mirror"));
        }
        let newest = self.head.borrow().as_ref().map_or(0, |g| g.id.number);
        let behind = newest - known.map_or(0, |k| k.number).min(newest);
        let oldest = (behind > 0).then_some((GenId { epoch: 1, number: newest - behind + 1 }, 7));
        Ok(Behind { age_ms: 5, oldest, behind })
    }

    fn objects(&self, want: &[Digest]) -> Result<Vec<Option<Vec<u8>>>> {
        let objects = self.objects.lock().unwrap();
        Ok(want.iter().map(|d| objects.get(d).cloned()).collect())
    }

    fn root(&self) -> Result<Arc<Dir>> {
        Ok(Arc::clone(&self.root))
    }

    fn publishes(&self, dir: &TreePath, name: &Name, digest: &Digest) -> bool {
        self.published.lock().unwrap().get(&dir.join(name)) == Some(digest)
    }

    fn seeks(&self) -> Option<watch::Receiver<u64>> {
        Some(self.seeks.subscribe())
    }

    fn sought(&self, _: &NodeId, round: u64, from: usize) -> Option<Vec<Sought>> {
        let all = || {
            (0..MAX_SOUGHT).map(|i| Sought {
                digest: Digest::of(&i.to_le_bytes()),
                size: i as u64 + 1,
                path: path(&format!("{}{i}", "long/".repeat(700))),
            })
        };
        (round == *self.seeks.borrow()).then(|| all().skip(from).collect())
    }

    fn found(&self, _: &NodeId, round: u64, found: &[u32], done: bool) -> Option<Vec<u32>> {
        (round == *self.seeks.borrow()).then(|| if done { found.to_vec() } else { Vec::new() })
    }

    fn piece(&self, _: &NodeId, piece: Piece, bytes: &[u8]) -> Result<()> {
        self.pieces.lock().unwrap().push((piece, bytes.to_vec()));
        Ok(())
    }

    fn report(&self, _: &NodeId, report: Report) {
        assert_ne!(report.zone.as_deref(), Some("bug"), "a bug of the agent");
        self.reports.lock().unwrap().push(report);
    }

    fn suspect(&self, _: &NodeId, paths: Vec<TreePath>) {
        self.suspects.lock().unwrap().extend(paths);
    }

    fn connected(&self, node: &NodeId, delta: i32) {
        *self.connected.lock().unwrap().entry(node.clone()).or_default() += delta;
    }
}

/// A certificate authority and the certificates of `source` and `mirror`.
pub(super) struct Pki {
    pub(super) source: Arc<rustls::ServerConfig>,
    ca: CertificateDer<'static>,
    mirror: (CertificateDer<'static>, Vec<u8>),
}

pub(super) fn pki() -> &'static Pki {
    static PKI: OnceLock<Pki> = OnceLock::new();
    PKI.get_or_init(|| {
        let ca_key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca = params.self_signed(&ca_key).unwrap().der().clone();
        let issuer = rcgen::Issuer::new(params, ca_key);
        let issue = |names: Vec<String>| {
            let key = rcgen::KeyPair::generate().unwrap();
            let cert = rcgen::CertificateParams::new(names).unwrap().signed_by(&key, &issuer).unwrap();
            (cert.der().clone(), key.serialize_der())
        };
        let source = issue(vec!["source".into(), "localhost".into()]);
        let mirror = issue(vec!["mirror".into()]);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
            Arc::new(roots(&ca)),
            Arc::clone(&provider),
        );
        let source = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier.build().unwrap())
            .with_single_cert(vec![source.0], PrivateKeyDer::try_from(source.1).unwrap())
            .unwrap();
        Pki { source: Arc::new(source), ca, mirror }
    })
}

fn roots(ca: &CertificateDer<'static>) -> rustls::RootCertStore {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca.clone()).unwrap();
    roots
}

impl Pki {
    pub(super) fn client(&self, certificate: bool) -> Arc<rustls::ClientConfig> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots(&self.ca));
        let (cert, key) = self.mirror.clone();
        Arc::new(match certificate {
            true => config.with_client_auth_cert(vec![cert], PrivateKeyDer::try_from(key).unwrap()).unwrap(),
            false => config.with_no_client_auth(),
        })
    }
}

/// A server of the tree `t` on a Unix socket and on TLS.
pub(super) struct Rig {
    pub(super) runtime: Runtime,
    pub(super) tree: Arc<Tree>,
    pub(super) server: Arc<Server>,
    pub(super) stop: CancellationToken,
    pub(super) socket: std::path::PathBuf,
    pub(super) port: u16,
    run: Vec<tokio::task::JoinHandle<()>>,
    _dir: tempfile::TempDir,
}

impl Rig {
    pub(super) fn new() -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (dir, tree) = (tempfile::tempdir().unwrap(), Tree::new());
        let server = Server::new(node("source"), "test".into(), Some(Arc::clone(&pki().source)));
        server.set_trees(HashMap::from([("t".to_owned(), Arc::clone(&tree) as Arc<dyn Serve>)]));
        let mut rig = Self {
            tree,
            server,
            stop: CancellationToken::new(),
            socket: dir.path().join("socket"),
            port: 0,
            run: Vec::new(),
            _dir: dir,
            runtime,
        };
        rig.listen();
        let _entered = rig.runtime.enter();
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        tcp.set_nonblocking(true).unwrap();
        let tcp = TcpListener::from_std(tcp).unwrap();
        rig.port = tcp.local_addr().unwrap().port();
        let run = Arc::clone(&rig.server).run(Listener::Tcp(tcp), rig.stop.clone());
        rig.run.push(rig.runtime.spawn(run));
        drop(_entered);
        rig
    }

    /// Listens on the Unix socket.
    pub(super) fn listen(&mut self) {
        let _ = std::fs::remove_file(&self.socket);
        let _entered = self.runtime.enter();
        let unix = UnixListener::bind(&self.socket).unwrap();
        let run = Arc::clone(&self.server).run(Listener::Unix(unix), self.stop.clone());
        self.run.push(self.runtime.spawn(run));
    }

    /// Ends all listeners.
    pub(super) fn end(&mut self) {
        self.stop.cancel();
        for run in std::mem::take(&mut self.run) {
            self.runtime.block_on(run).unwrap();
        }
        self.stop = CancellationToken::new();
    }

    pub(super) fn tcp(&self, certificate: bool) -> Address {
        Address::Tcp { host: "localhost".into(), port: self.port, tls: pki().client(certificate) }
    }

    pub(super) fn unix(&self) -> Address {
        Address::Unix(self.socket.clone())
    }

    pub(super) fn client_of(&self, address: Address, node_id: &str, cluster: &str, tree: &str) -> Client {
        Client::new(address, node(node_id), cluster.into(), tree.into())
    }

    /// The mirror over TLS.
    pub(super) fn client(&self) -> Client {
        self.client_of(self.tcp(true), "mirror", "test", "t")
    }

    pub(super) fn refused(&self, reason: Reason) -> u64 {
        self.server.counters().refused.get(&reason).copied().unwrap_or(0)
    }
}

/// What is wanted, owning its parts.
pub(super) struct Wanted {
    dir: TreePath,
    name: Name,
    size: u64,
    digest: Digest,
    from: u64,
}

pub(super) fn wanted(at: &str, size: u64, digest: Digest) -> Wanted {
    let at = path(at);
    Wanted { dir: at.parent().unwrap(), name: at.name().unwrap(), size, digest, from: 0 }
}

impl Wanted {
    pub(super) fn from(mut self, from: u64) -> Self {
        self.from = from;
        self
    }

    pub(super) fn want(&self) -> Want<'_> {
        Want { dir: &self.dir, name: &self.name, size: self.size, digest: &self.digest, from: self.from }
    }
}

/// How each file came.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Came {
    Whole(Vec<u8>),
    Cut(std::io::ErrorKind),
    Gone,
    Unreadable(String),
}

/// Fetches and reads everything.
pub(super) fn fetch(client: &Client, want: &[Wanted]) -> (Vec<Came>, Result<()>) {
    let mut came = Vec::new();
    let want: Vec<_> = want.iter().map(Wanted::want).collect();
    let result = client.contents(&want, &AtomicBool::new(false), &mut |i, fetched| {
        assert_eq!(i, came.len(), "in order");
        came.push(match fetched {
            Fetched::Gone => Came::Gone,
            Fetched::Unreadable(why) => Came::Unreadable(why),
            Fetched::Stream(read) => {
                let mut all = Vec::new();
                match read.read_to_end(&mut all) {
                    Ok(_) => Came::Whole(all),
                    Err(e) => Came::Cut(e.kind()),
                }
            }
        });
        Ok(())
    });
    (came, result)
}

/// A connection that says what it is told to.
pub(super) fn raw(socket: &Path, bytes: &[u8]) -> UnixStream {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(40))).unwrap();
    stream.write_all(bytes).unwrap();
    stream
}

/// A request as the protocol wants it.
pub(super) fn request(method: &str, what: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "{method} /sync/1/t/{what} HTTP/1.1\r\nhost: x\r\nsyncagent-protocol: 1\r\nsyncagent-node: mirror\r\n\
         syncagent-cluster: test\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// The first bytes of the answer, up to the end of its head.
pub(super) fn answer(stream: &mut UnixStream) -> String {
    let mut all = Vec::new();
    let mut byte = [0];
    while !all.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() == 1 {
        all.push(byte[0]);
    }
    String::from_utf8(all).unwrap()
}
