//! The agent of a node: its trees, its data port, its local socket; started, reloaded and ended as one.

mod operate;
mod wait;

pub use wait::{Scope, Wait, Waited};

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::net::{TcpListener, UnixListener};
use tokio_util::sync::CancellationToken;

use super::health;
use super::history::HistoryEntry;
use super::mirror::MirrorTree;
use super::orders::Ordered;
use super::role::{HoldOrder, Role};
use super::source::{Retention, RollbackAnswer, RollbackOrder, SourceTree};
use super::trash::{TrashAnswer, TrashOrder};
use crate::config::{Config, Endpoint, Role as RoleConfig, Tree, Upstream};
use crate::disk::{boot_ms, wall_ms};
use crate::error::{Class, Context as _, Error, Result, lock};
use crate::model::{Digest, NodeId, NodeStatus, RoleName, State, Status, TreeStatus, Trouble, escaped};
use crate::peer::tls::{Identity, TlsFiles};
use crate::peer::{Address, Client, Listener, Reason, Serve, Server};
use crate::plan::PlanId;
use crate::refresh::Refresher;

/// A start waits so long for a tree.
const START: Duration = Duration::from_secs(10);
/// An end takes no longer than this, whatever hangs.
const END: Duration = Duration::from_secs(4);
/// The public port's first answer waits so long for the trees, so that it is right.
const FIRST: Duration = Duration::from_millis(500);

/// The main loop shows so often that it goes round.
const BEAT: Duration = Duration::from_secs(1);

/// A running agent.
pub struct Agent {
    config: Mutex<Config>,
    state_dir: PathBuf,
    started: u64,
    server: Arc<Server>,
    identity: Mutex<Option<Identity>>,
    /// Digest of the certificate files, so that a reload sees whether they were renewed.
    certificates: Mutex<Option<Digest>>,
    trees: Mutex<BTreeMap<String, Running>>,
    /// Held while the data port is told of its trees: the last to tell tells of all.
    telling: Mutex<()>,
    /// What the node's health is judged by.
    limits: Arc<health::Limits>,
    /// When the main loop last went round, boot time in ms.
    heartbeat: Arc<AtomicU64>,
    data: Option<SocketAddr>,
    /// How the public port shows this agent, where there is one.
    pictures: Mutex<Option<operate::Pictures>>,
    stop: CancellationToken,
}

struct Running {
    config: Tree,
    role: Arc<dyn Role>,
    /// What the data port serves of it.
    serve: Option<Arc<dyn Serve>>,
    /// It could not be started.
    failed: bool,
}

impl Agent {
    /// Starts everything that `config` names. To be called inside a runtime.
    ///
    /// # Errors
    /// A certificate, an address or the state directory cannot be used. What is wrong with a single tree is
    /// no error here but its status.
    pub async fn start(config: Config) -> Result<Arc<Self>> {
        let state_dir = config.state_dir.clone().map_or_else(super::default_state_dir, Ok)?;
        let identity = load_identity(&config)?;
        let tls = identity.as_ref().map(Identity::server_config);
        let server = Server::new(config.node.id.clone(), config.cluster.name.clone(), tls);
        server.set_expected(sources(&config));
        let stop = CancellationToken::new();
        let mut data = None;
        match &config.listen.data {
            None => {}
            Some(Endpoint::Tcp(address)) => {
                let cannot = || format!("listen on {address} (listen.data)");
                let listener = TcpListener::bind(address).await.context(cannot)?;
                data = Some(listener.local_addr().context(cannot)?);
                tokio::spawn(server.clone().run(Listener::Tcp(listener), stop.clone()));
            }
            Some(Endpoint::Unix(path)) => {
                let listener = bind_unix(path, "listen.data")?;
                tokio::spawn(server.clone().run(Listener::Unix(listener), stop.clone()));
            }
        }
        let socket = bind_unix(&config.listen.socket, "listen.socket")?;
        let ports = crate::serve::Ports::bind(config.listen.public, config.listen.agent_check)?;
        let agent = Arc::new(Self {
            started: boot_ms(),
            server,
            identity: Mutex::new(identity),
            certificates: Mutex::new(certificates(&config)),
            trees: Mutex::default(),
            telling: Mutex::default(),
            limits: Arc::new(health::Limits::new(config.health.clone(), operate::read_drained(&state_dir)?)),
            heartbeat: Arc::new(AtomicU64::new(boot_ms())),
            data,
            pictures: Mutex::default(),
            state_dir,
            stop,
            config: Mutex::new(config),
        });
        tokio::spawn(beat(agent.heartbeat.clone(), agent.stop.clone()));
        let trees = lock(&agent.config).trees.clone();
        let all = agent.clone();
        let mut starting = std::pin::pin!(async move { all.start_trees(trees).await });
        let started = tokio::time::timeout(FIRST, &mut starting).await.is_ok();
        // answers while the trees start, also when one of them hangs
        if let Err(e) = ports.serve(&agent, &agent.stop) {
            agent.stop().await;
            return Err(e);
        }
        if !started {
            starting.await;
        }
        tokio::spawn(crate::serve::local(socket, agent.clone(), agent.stop.clone()));
        Ok(agent)
    }

    /// Starts trees side by side. One whose disk hangs is waited for a while, and comes when it comes.
    async fn start_trees(self: &Arc<Self>, trees: Vec<Tree>) {
        let start = |tree: Tree| {
            let agent = self.clone();
            // opening state may touch a disk that hangs
            tokio::task::spawn_blocking(move || agent.start_tree(tree))
        };
        let starting: Vec<_> = trees.into_iter().map(start).collect();
        let all = async {
            for one in starting {
                // a panic in it is in the log
                let _ = one.await;
            }
        };
        if tokio::time::timeout(START, all).await.is_err() {
            tracing::warn!("a tree does not start: its disk hangs");
        }
    }

    /// Starts a tree; what is wrong with it is its status.
    fn start_tree(&self, tree: Tree) {
        let started = self.role_of(&tree);
        let failed = started.is_err();
        let (role, serve) = started.unwrap_or_else(|e| {
            tracing::error!(tree = tree.name, "{e}");
            let failed: Arc<dyn Role> =
                Arc::new(FailedTree { config: tree.clone(), node: lock(&self.config).node.id.clone(), e });
            (failed, None)
        });
        if self.stop.is_cancelled() {
            role.stop();
        }
        let before =
            lock(&self.trees).insert(tree.name.clone(), Running { config: tree, role, serve, failed });
        // closing what it had open may touch a disk: not under the lock
        drop(before);
        self.set_served();
    }

    #[allow(clippy::type_complexity)]
    fn role_of(&self, tree: &Tree) -> Result<(Arc<dyn Role>, Option<Arc<dyn Serve>>)> {
        let config = lock(&self.config).clone();
        let threads = std::thread::available_parallelism().map_or(2, |n| n.get().clamp(2, 8));
        Ok(match &tree.role {
            RoleConfig::Source(role) => {
                let source = SourceTree::start(tree, role, &config.node, &self.state_dir, threads)?;
                (source.clone(), Some(source))
            }
            RoleConfig::Mirror(role) => {
                let address = match (&role.upstream, &role.source_id) {
                    (Upstream::Unix(path), _) => Address::Unix(path.clone()),
                    (Upstream::Https { host, port }, Some(id)) => {
                        let identity = lock(&self.identity).clone();
                        let tls = identity.ok_or_else(|| missing("[tls]", &tree.name))?.client_config(id);
                        Address::Tcp { host: host.clone(), port: *port, tls }
                    }
                    (Upstream::Https { .. }, None) => return Err(missing("source-id", &tree.name)),
                };
                let (node, cluster) = (config.node.id.clone(), config.cluster.name.clone());
                let client = Client::new(address, node, cluster, tree.name.clone());
                let limits = self.limits.clone();
                (MirrorTree::start(tree, role, &config.node, &self.state_dir, client, limits, threads)?, None)
            }
        })
    }

    /// Tells the data port which trees there are, and which there will be.
    fn set_served(&self) {
        let _one = lock(&self.telling);
        let of = |(name, t): (&String, &Running)| Some((name.clone(), t.serve.clone()?));
        let mut expected = sources(&lock(&self.config));
        let served = {
            let trees = lock(&self.trees);
            // one that cannot be started is not on its way
            expected.retain(|name| trees.get(name).is_none_or(|t| !t.failed));
            trees.iter().filter_map(of).collect()
        };
        self.server.set_expected(expected);
        self.server.set_trees(served);
    }

    /// Where the data port really listens (a port of 0 is replaced by a free one).
    pub fn data_address(&self) -> Option<SocketAddr> {
        self.data
    }

    /// When the main loop last went round, in milliseconds of the boot clock; a second ago at most while it is well.
    pub fn heartbeat(&self) -> Arc<AtomicU64> {
        self.heartbeat.clone()
    }

    /// As everything is now; from memory: no lock that it takes is ever held while a disk or a peer is waited for.
    pub fn status(&self) -> Status {
        let config = lock(&self.config).clone();
        let up = boot_ms().saturating_sub(self.started);
        let days =
            lock(&self.identity).as_ref().map(|i| (i.not_after() - wall_ms() / 1000).div_euclid(86_400));
        let trees = lock(&self.trees);
        let counters = self.server.counters();
        // our own failures are nobody's refusal, nor is a source that waits for a reset, which status says itself
        let ours = |why: &Reason| matches!(why, Reason::Failed | Reason::Superseded);
        let refused = counters.refused.iter().filter(|(why, _)| !ours(why)).map(|(_, n)| n).sum();
        let drained = self.limits.drained();
        let judged = |tree: &Tree, mut status: TreeStatus| {
            if let Some(own) = status.nodes.first_mut() {
                own.drained = drained.clone();
                own.faults = self.limits.faults(tree, own);
            }
            status
        };
        let of = |t: &Running| {
            let refused_peers = if t.serve.is_some() { refused } else { 0 };
            judged(&t.config, TreeStatus { refused_peers, ..t.role.status() })
        };
        // one that is being started (again), and perhaps waits for its disk, is not forgotten
        let absent = config.trees.iter().filter(|t| !trees.contains_key(&t.name));
        let since = self.limits.up().trees;
        let mut all: Vec<TreeStatus> = trees.values().map(of).collect();
        all.extend(absent.map(|t| judged(t, starting(&config, t, since, self.limits.was_empty(t)))));
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            schema: Status::SCHEMA,
            node: config.node.id.clone(),
            zone: config.node.zone.clone(),
            cluster: config.cluster.name.clone(),
            started_ms_ago: up,
            certificate_days_left: days,
            drained,
            trees: all,
        }
    }

    fn role(&self, tree: &str) -> Result<Arc<dyn Role>> {
        let trees = lock(&self.trees);
        let known = || trees.keys().cloned().collect::<Vec<_>>().join(", ");
        let none =
            || Error::new(Class::Config, format!("this node has no tree `{tree}`; it has: {}", known()));
        trees.get(tree).map(|t| t.role.clone()).ok_or_else(none)
    }

    /// Lets a refused plan through. Blocking.
    ///
    /// # Errors
    /// There is no such tree or plan.
    pub fn approve(&self, tree: &str, id: PlanId) -> Result<String> {
        self.role(tree)?.approve(id)
    }

    /// Lists, restores or frees what commits displaced in a tree. Blocking.
    ///
    /// # Errors
    /// There is no such tree, or what [`Role::trash`] says.
    pub fn trash(&self, tree: &str, order: TrashOrder) -> Result<TrashAnswer> {
        self.role(tree)?.trash(order)
    }

    /// The newest `limit` generations of a tree, newest first. Blocking.
    ///
    /// # Errors
    /// There is no such tree, or its history cannot be read.
    pub fn history(&self, tree: &str, limit: usize) -> Result<Vec<HistoryEntry>> {
        self.role(tree)?.history(limit)
    }

    /// What is kept of a tree for rollbacks; from memory.
    ///
    /// # Errors
    /// There is no such tree.
    pub fn retention(&self, tree: &str) -> Result<Option<Retention>> {
        Ok(self.role(tree)?.retention())
    }

    /// Publishes an older generation's content again. Blocking.
    ///
    /// # Errors
    /// There is no such tree, or what [`Role::rollback`] says.
    pub fn rollback(&self, tree: &str, order: RollbackOrder, gone: &AtomicBool) -> Result<RollbackAnswer> {
        self.role(tree)?.rollback(order, gone)
    }

    /// Begins a new epoch at a source. Blocking.
    ///
    /// # Errors
    /// There is no such tree, or this node is not its source.
    pub fn reset(&self, tree: &str) -> Result<String> {
        self.role(tree)?.reset()
    }

    /// Takes over what a new configuration changes. Gives what needs a restart instead.
    ///
    /// # Errors
    /// The certificates cannot be read: nothing changed. A tree cannot be started.
    pub async fn reload(self: &Arc<Self>, new: Config) -> Result<Vec<&'static str>> {
        let old = lock(&self.config).clone();
        let restart = old.needs_restart(&new);
        let identity = load_identity(&new)?;
        let certificates = certificates(&new);
        self.limits.set(new.health.clone());
        let renewed = std::mem::replace(&mut *lock(&self.certificates), certificates) != certificates;
        self.server.set_tls(identity.as_ref().map(Identity::server_config));
        *lock(&self.identity) = identity;
        *lock(&self.config) = Config {
            node: old.node,
            listen: old.listen,
            cluster: old.cluster,
            state_dir: old.state_dir,
            ..new.clone()
        };
        // a mirror's connections carry the certificate; what was in the way of a start may be gone
        let stays = |t: &Running| {
            !t.failed
                && new.trees.contains(&t.config)
                && !(renewed && matches!(t.config.role, RoleConfig::Mirror(_)))
        };
        let ended = {
            let mut trees = lock(&self.trees);
            let (kept, ended): (BTreeMap<_, _>, BTreeMap<_, _>) =
                std::mem::take(&mut *trees).into_iter().partition(|(_, t)| stays(t));
            // until it is started again, what is known of it holds
            ended.values().for_each(|t| self.limits.ends(&t.config, &t.role.status()));
            *trees = kept;
            ended
        };
        self.set_served();
        let roles: Vec<_> = ended.values().map(|t| t.role.clone()).collect();
        end(&roles).await;
        for name in ended.keys() {
            let again = new.trees.iter().any(|t| t.name == *name);
            tracing::info!(
                tree = name,
                "{}",
                if again { "restarts with its new configuration" } else { "ended" }
            );
        }
        let known: Vec<String> = lock(&self.trees).keys().cloned().collect();
        self.start_trees(new.trees.into_iter().filter(|t| !known.contains(&t.name)).collect()).await;
        Ok(restart)
    }

    /// Ends everything at a consistent point, within 5 s; what hangs on a dead disk is left behind.
    pub async fn stop(&self) {
        self.stop.cancel();
        // the thread that takes them ends when nobody asks any more
        *lock(&self.pictures) = None;
        let trees = std::mem::take(&mut *lock(&self.trees));
        let roles: Vec<_> = trees.into_values().map(|t| t.role).collect();
        end(&roles).await;
        let config = lock(&self.config).clone();
        let sockets = [
            Some(config.listen.socket),
            match config.listen.data {
                Some(Endpoint::Unix(path)) => Some(path),
                _ => None,
            },
        ];
        for socket in sockets.into_iter().flatten() {
            // a leftover is replaced at the next start
            let _ = std::fs::remove_file(socket);
        }
    }
}

/// The names of the trees of which this node is to be the source.
fn sources(config: &Config) -> HashSet<String> {
    let sources = config.trees.iter().filter(|t| matches!(t.role, RoleConfig::Source(_)));
    sources.map(|t| t.name.clone()).collect()
}

fn missing(what: &str, tree: &str) -> Error {
    Error::new(Class::Config, format!("tree.{tree} needs {what} for a source over https"))
}

/// Stops trees side by side, and waits for them.
async fn end(roles: &[Arc<dyn Role>]) {
    roles.iter().for_each(|role| role.stop());
    let begun = std::time::Instant::now();
    while !roles.iter().all(|role| role.has_ended()) && begun.elapsed() < END {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    if !roles.iter().all(|role| role.has_ended()) {
        tracing::warn!(
            "a tree did not end within {END:?}: its disk hangs; what is under way is finished at the next start"
        );
    }
}

fn certificates(config: &Config) -> Option<Digest> {
    let tls = config.tls.as_ref()?;
    let mut all = blake3::Hasher::new();
    for file in [&tls.cert, &tls.key, &tls.ca] {
        all.update(&std::fs::read(file).unwrap_or_default());
    }
    Some(all.finalize().into())
}

/// A tree that could not be started.
struct FailedTree {
    config: Tree,
    node: NodeId,
    e: Error,
}

fn role_name(tree: &Tree) -> RoleName {
    match tree.role {
        RoleConfig::Source(_) => RoleName::Source,
        RoleConfig::Mirror(_) => RoleName::Mirror,
    }
}

/// A tree that is being started since `since_ms`, with what is known of its being empty.
fn starting(config: &Config, tree: &Tree, since_ms: u64, empty: Option<bool>) -> TreeStatus {
    let hangs = Duration::from_millis(since_ms) > START + END;
    let what =
        || "the tree does not start: the disk that it, or the state directory, lies on hangs".to_owned();
    let own = NodeStatus {
        state: if hangs { State::Failed } else { State::Starting },
        error: hangs.then(|| Trouble { what: what(), for_ms: since_ms }),
        zone: config.node.zone.clone(),
        empty,
        ..NodeStatus::new(config.node.id.clone(), role_name(tree))
    };
    TreeStatus { nodes: vec![own], ..TreeStatus::new(&tree.name, &escaped(&tree.path)) }
}

/// Shows that the main loop goes round.
async fn beat(heartbeat: Arc<AtomicU64>, stop: CancellationToken) {
    while !stop.is_cancelled() {
        heartbeat.store(boot_ms(), Ordering::Relaxed);
        tokio::time::sleep(BEAT).await;
    }
}

impl Role for FailedTree {
    fn status(&self) -> TreeStatus {
        let role = role_name(&self.config);
        let error = Trouble { what: self.e.to_string(), for_ms: 0 };
        let own = NodeStatus {
            state: State::Failed,
            error: Some(error),
            ..NodeStatus::new(self.node.clone(), role)
        };
        TreeStatus { nodes: vec![own], ..TreeStatus::new(&self.config.name, &escaped(&self.config.path)) }
    }

    fn approve(&self, _id: PlanId) -> Result<String> {
        Err(Error::new(self.e.class, self.e.to_string()))
    }

    fn reset(&self) -> Result<String> {
        Err(Error::new(self.e.class, self.e.to_string()))
    }

    fn pause(&self, _by: Ordered) -> Result<String> {
        Err(Error::new(self.e.class, self.e.to_string()))
    }

    fn resume(&self) -> Result<String> {
        Err(Error::new(self.e.class, self.e.to_string()))
    }

    fn hold(&self, _order: HoldOrder) -> Result<String> {
        Err(Error::new(self.e.class, self.e.to_string()))
    }

    fn flush(&self) -> u64 {
        0
    }

    fn is_flushed(&self, _token: u64) -> bool {
        false
    }

    fn has_looked(&self, _token: u64) -> bool {
        true
    }

    fn refresher(&self) -> Option<Arc<Refresher>> {
        None
    }

    fn stop(&self) {}

    fn has_ended(&self) -> bool {
        true
    }
}

fn load_identity(config: &Config) -> Result<Option<Identity>> {
    let Some(tls) = &config.tls else { return Ok(None) };
    let files = TlsFiles { cert: tls.cert.clone(), key: tls.key.clone(), ca: tls.ca.clone() };
    Identity::load(&files, &config.node.id).map(Some)
}

/// Binds a socket file. One that nobody listens on any more is replaced.
fn bind_unix(path: &Path, what: &str) -> Result<UnixListener> {
    use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
    let cannot = || format!("listen on {} ({what})", escaped(path));
    if let Some(parent) = path.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o755).create(parent).context(cannot)?;
    }
    let bound = match UnixListener::bind(path) {
        Err(e) if e.kind() == std::io::ErrorKind::AddrInUse => {
            if std::os::unix::net::UnixStream::connect(path).is_ok() {
                let what = format!("another agent listens on {} ({what}) already", escaped(path));
                return Err(Error::new(Class::Busy, what));
            }
            std::fs::remove_file(path).context(cannot)?;
            UnixListener::bind(path)
        }
        bound => bound,
    };
    let listener = bound.context(cannot)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).context(cannot)?;
    Ok(listener)
}
