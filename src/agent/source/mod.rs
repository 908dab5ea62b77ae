//! The source of a tree: watches it, waits until what changed is finished, judges, publishes; and answers
//! the mirrors.
//!
//! One thread does the disk work (`engine`); what it shares with the rest of the agent is here, behind short
//! locks, so that an answer never waits for a disk or a mirror.

mod engine;
mod forget;
mod hold;
mod mark;
mod nodes;
mod publish;
mod retain;
mod rollback;
mod seek;
mod serve;
mod trash;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use tokio::sync::watch;

use super::history::{self, History, HistoryEntry, Ring};
use super::orders::{Ordered, Orders, Phase};
use super::role::{HoldOrder, Reply, Role, Trouble, refresh_of};
use super::state::TreeState;
use super::trash::{TrashAnswer, TrashOrder};
use crate::config;
use crate::disk::{Dir, boot_ms, wall_ms};
use crate::error::{Class, Error, Result, lock};
use crate::lag::{Behind, Published};
use crate::model::{
    self, GenId, Generation, HeldPath, NodeId, NodeStatus, RefusedPlan, RoleName, State, TreeStatus,
    WatchStatus, escaped,
};
use crate::plan::PlanId;
use crate::refresh::Refresher;
use crate::scan::Store;
use nodes::Nodes;
use retain::Retain;

/// What the engine's thread is asked to do.
enum Order {
    /// Something happened in the tree.
    Wake,
    /// Look at these directories again, and read the files in them.
    Suspect(Vec<model::TreePath>),
    /// Let this plan through.
    Approve(PlanId, Reply),
    /// Begin a new epoch above everything that is known.
    Reset(Reply),
    /// A deploy job begins, ends, or is overruled.
    Hold(HoldOrder, Reply),
    /// The process of the hold with this id ended.
    HolderEnded(String),
    /// Look at everything, and publish what may be.
    Again,
    /// Something else that needs the open tree.
    Job(Job),
    Stop,
}

/// Done in the engine's thread; without a session when the tree is not open. An error ends the session.
type Job = Box<dyn FnOnce(Option<(&mut engine::Engine, &mut engine::Session)>) -> Result<()> + Send>;

/// A source tree.
pub(super) struct SourceTree {
    config: config::Tree,
    role: config::SourceRole,
    node: NodeId,
    zone: Option<String>,
    state: TreeState,
    store: Arc<Store>,
    history: History,
    retain: Retain,
    seek: seek::Seek,
    head: watch::Receiver<Option<Arc<Generation>>>,
    /// `None` after the end: who waits for news is told to ask again.
    announcer: Mutex<Option<watch::Sender<Option<Arc<Generation>>>>>,
    orders: Sender<Order>,
    /// An order to look is under way already.
    woken: AtomicBool,
    stop: AtomicBool,
    shared: Mutex<Shared>,
    ordering: Mutex<()>,
    /// One writes the register of nodes at a time, so that what is forgotten is not written again.
    keeping: Mutex<()>,
    /// The hold of which a thread tells when its process ends.
    watched: Mutex<Option<String>>,
    root: Mutex<Option<Arc<Dir>>>,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
    /// Tells the local server, where one is told.
    refresher: OnceLock<Arc<Refresher>>,
}

/// What the answers are made from.
struct Shared {
    state: State,
    trouble: Trouble,
    plan: Option<RefusedPlan>,
    held: Vec<HeldPath>,
    held_count: u64,
    watch: WatchStatus,
    /// When the oldest change was seen that is not published yet, boot time.
    unpublished_since: Option<u64>,
    /// The highest generation that this source ever named.
    high: GenId,
    /// The tree was opened, so that `high` counts what the tree itself says, too.
    opened: bool,
    /// A mirror has a generation that this source never made.
    superseded: Option<(GenId, NodeId)>,
    published: Published,
    nodes: Nodes,
    /// The newest generations.
    recent: Ring,
    lock: Option<String>,
    /// Why the tree cannot be written.
    unwritable: Option<String>,
    orders: Orders,
    /// Flushes asked for, and those that are done.
    flush: (u64, u64),
    /// The newest of them that a full scan covers, whatever could be published of it.
    looked: u64,
}

impl SourceTree {
    /// Starts the tree; it serves what was published last at once, and looks at the disk in its own thread.
    ///
    /// # Errors
    /// The state directory cannot be used.
    pub(super) fn start(
        config: &config::Tree,
        role: &config::SourceRole,
        node: &config::Node,
        state_dir: &std::path::Path,
        threads: usize,
    ) -> Result<Arc<Self>> {
        let path = std::path::absolute(&config.path)
            .map_err(|e| Error::io(e, format!("cannot resolve {}", escaped(&config.path))))?;
        let state = TreeState::open(state_dir, &path)?;
        let store = Arc::new(Store::open(&state.file("published.db"))?);
        let (orders_to, inbox) = channel();
        let now = (boot_ms(), wall_ms());
        let generations = store.generations(publish::KEPT)?;
        let ages = generations.iter().map(|g| (g.id, u64::try_from(now.1 - g.at_ms).unwrap_or(0)));
        let published = Published::new(ages, now.0);
        let nodes = Nodes::restored(&state, now);
        let orders = Orders::read(&state);
        let history = History::open(&state.file("history.db"));
        let mut recent = Ring::default();
        for g in generations.iter().take(history::RECENT).rev() {
            recent.push(g, now.0 as i64 - (now.1 - g.at_ms).max(0));
        }
        let (announcer, head) = watch::channel(None);
        let tree = Arc::new(Self {
            config: config::Tree { path, ..config.clone() },
            role: role.clone(),
            node: node.id.clone(),
            zone: node.zone.clone(),
            state,
            store,
            history,
            retain: Retain::default(),
            seek: seek::Seek::default(),
            head,
            announcer: Mutex::new(Some(announcer)),
            orders: orders_to,
            woken: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            shared: Mutex::new(Shared {
                state: State::Starting,
                trouble: Trouble::default(),
                plan: None,
                held: Vec::new(),
                held_count: 0,
                watch: WatchStatus::default(),
                unpublished_since: None,
                high: GenId::default(),
                opened: false,
                superseded: None,
                published,
                nodes,
                recent,
                lock: None,
                unwritable: None,
                orders,
                // above every token of the agent before this one
                flush: (now.0, 0),
                looked: 0,
            }),
            ordering: Mutex::new(()),
            keeping: Mutex::new(()),
            watched: Mutex::new(None),
            root: Mutex::new(None),
            thread: Mutex::new(None),
            refresher: OnceLock::new(),
        });
        tree.start_refresher()?;
        let engine = engine::Engine::new(tree.clone(), inbox, threads)?;
        let name = format!("source {}", tree.config.name);
        let thread = std::thread::Builder::new().name(name).spawn(move || engine.run());
        let thread = thread.map_err(|e| Error::io(e, "cannot start a thread"))?;
        *lock(&tree.thread) = Some(thread);
        retain::start(tree.clone())?;
        Ok(tree)
    }

    fn start_refresher(&self) -> Result<()> {
        if self.config.refresh.is_empty() {
            return Ok(());
        }
        // status asks for what is new
        let refresher = Refresher::start(refresh_of(&self.config, &self.node, &self.state))?;
        // nobody else sets it
        let _ = self.refresher.set(refresher);
        Ok(())
    }

    fn thread_has_ended(&self) -> bool {
        lock(&self.thread).as_ref().is_none_or(std::thread::JoinHandle::is_finished)
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        lock(&self.shared)
    }

    /// Asks the engine to look, unless it was asked already.
    fn wake(&self) {
        if !self.woken.swap(true, Ordering::AcqRel) {
            // an engine that ended needs no waking
            let _ = self.orders.send(Order::Wake);
        }
    }

    /// Tells the mirrors.
    fn announce(&self, generation: Generation) {
        if let Some(announcer) = &*lock(&self.announcer) {
            announcer.send_replace(Some(Arc::new(generation)));
        }
    }

    /// Changes what is ordered; written down before it counts.
    fn order(&self, change: impl FnOnce(&mut Orders) -> Result<()>) -> Result<()> {
        // one change after the other, and no lock that status needs is held while the disk works
        let _one = lock(&self.ordering);
        let now = self.shared().orders.clone();
        let orders = now.changed(&self.state, change)?;
        self.shared().orders = orders;
        Ok(())
    }

    fn root_handle(&self) -> Result<Arc<Dir>> {
        lock(&self.root).clone().ok_or_else(|| {
            Error::new(Class::Transient, format!("{} is not open", escaped(&self.config.path)))
        })
    }

    fn path(&self) -> &PathBuf {
        &self.config.path
    }
}

impl Role for SourceTree {
    fn status(&self) -> TreeStatus {
        let now = boot_ms();
        let head = self.head.borrow().clone();
        let shared = self.shared();
        let behind = |id: Option<GenId>| shared.published.behind(id, now);
        let wall = wall_ms();
        let hold = shared.orders.hold.as_ref().filter(|h| h.phase != Phase::Publishing);
        let state = match shared.state {
            _ if self.thread_has_ended() && !self.stop.load(Ordering::Relaxed) => State::Failed,
            State::Failed => State::Failed,
            _ if shared.orders.paused.is_some() => State::Paused,
            _ if hold.is_some() => State::Held,
            state => state,
        };
        let failed_hold = hold.map(|h| h.show(wall)).and_then(|h| Some((h.failed.clone()?, h.since_ms())));
        let failed_hold = failed_hold.map(|(why, for_ms)| model::Trouble {
            what: format!(
                "held, because {why}; nothing is published until {} or `syncagent hold {} --release`",
                if shared.orders.hold.as_ref().is_some_and(hold::is_rollback) {
                    "the rollback is repeated"
                } else {
                    "a hold succeeds"
                },
                self.config.name
            ),
            for_ms,
        });
        let unpublished = shared.unpublished_since.is_some();
        let published = head.as_ref().map(|g| g.id);
        let refresher = self.refresher.get();
        let complete = match refresher {
            Some(refresher) => refresher.complete().min(published),
            None => published,
        };
        let late = if complete == published { Behind::default() } else { behind(complete) };
        let state = match state {
            State::Current if refresher.is_some_and(|r| r.is_open()) => State::Refreshing,
            state => state,
        };
        let own = NodeStatus {
            zone: self.zone.clone(),
            state,
            generation: complete,
            applied: published,
            refreshed: refresher.and_then(|r| r.refreshed()),
            verified: refresher.filter(|r| r.has_verify()).and_then(|r| r.verified()),
            refresh: refresher.map(|r| r.status()),
            behind: Some(late.count),
            lag_ms: Some(late.oldest.map_or(0, |(_, age)| age)),
            plan: shared.plan.clone(),
            error: shared.trouble.report(now).or(failed_hold),
            paused: shared.orders.paused.as_ref().map(|o| o.mark(wall)),
            consistent: head.is_some() && state == State::Current && !unpublished && complete == published,
            // what is written here next takes nothing away from what was published
            intact: Some(
                complete.is_some()
                    && !matches!(state, State::Starting | State::Failed | State::Superseded)
                    && refresher.is_none_or(|r| !r.has_new_question() && r.status().error.is_none()),
            ),
            version: Some(env!("CARGO_PKG_VERSION").to_owned()),
            connected: true,
            ..NodeStatus::new(self.node.clone(), RoleName::Source)
        };
        let mut nodes = vec![own];
        // what a source never made (it was restored from a backup) is not what it has published
        let ours = |row: NodeStatus| {
            let ours = row.generation <= published;
            NodeStatus { consistent: row.consistent && ours, intact: row.intact.map(|i| i && ours), ..row }
        };
        nodes.extend(shared.nodes.status(now, &behind).into_iter().map(ours));
        TreeStatus {
            head: head.as_ref().map(|g| g.id),
            head_age_ms: shared.published.head(now).map(|(_, age)| age),
            content: head.as_ref().map(|g| g.root.content),
            files: head.as_ref().map(|g| g.files),
            watch: shared.watch.clone(),
            unpublished_age_ms: shared.unpublished_since.map(|since| now.saturating_sub(since)),
            held: shared.held.clone(),
            held_count: shared.held_count,
            lock: shared.lock.clone(),
            unwritable: shared.unwritable.clone(),
            convergence: Some(shared.nodes.convergence(now)),
            hold: shared.orders.hold.as_ref().map(|h| h.show(wall)),
            recent: shared.recent.list(now),
            nodes,
            ..TreeStatus::new(&self.config.name, &escaped(self.path()))
        }
    }

    fn approve(&self, id: PlanId) -> Result<String> {
        super::role::ask(&self.orders, |reply| Order::Approve(id, reply))
    }

    fn reset(&self) -> Result<String> {
        super::role::ask(&self.orders, Order::Reset)
    }

    fn pause(&self, by: Ordered) -> Result<String> {
        self.order(|orders| {
            orders.paused = Some(by);
            Ok(())
        })?;
        Ok(format!("{} is paused: nothing is published until `syncagent resume {0}`", self.config.name))
    }

    fn resume(&self) -> Result<String> {
        self.order(|orders| orders.resume(format!("{} is not paused", self.config.name)))?;
        // an engine that ended needs no waking
        let _ = self.orders.send(Order::Again);
        Ok(format!("{} goes on", self.config.name))
    }

    fn hold(&self, order: HoldOrder) -> Result<String> {
        super::role::ask(&self.orders, |reply| Order::Hold(order, reply))
    }

    fn flush(&self) -> u64 {
        let token = {
            let mut shared = self.shared();
            shared.flush.0 += 1;
            shared.flush.0
        };
        let _ = self.orders.send(Order::Again);
        token
    }

    fn is_flushed(&self, token: u64) -> bool {
        self.shared().flush.1 >= token
    }

    fn has_looked(&self, token: u64) -> bool {
        let shared = self.shared();
        shared.looked >= token || shared.state == State::Failed || self.thread_has_ended()
    }

    fn refresher(&self) -> Option<Arc<Refresher>> {
        self.refresher.get().cloned()
    }

    fn forget(&self, node: &NodeId) -> Result<String> {
        self.forget_node(node)
    }

    fn trash(&self, order: TrashOrder) -> Result<TrashAnswer> {
        self.trashed(order)
    }

    fn rollback(&self, order: RollbackOrder, gone: &AtomicBool) -> Result<RollbackAnswer> {
        self.roll_back(&order, gone)
    }

    fn retention(&self) -> Option<Retention> {
        Some(self.retain.status())
    }

    fn history(&self, limit: usize) -> Result<Vec<HistoryEntry>> {
        Ok(self.history.of_source(self.store.generations(limit.min(publish::KEPT))?))
    }

    fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        *lock(&self.announcer) = None;
        if let Some(refresher) = self.refresher.get() {
            refresher.stop();
        }
        self.retain.wake();
        let _ = self.orders.send(Order::Stop);
    }

    fn has_ended(&self) -> bool {
        self.thread_has_ended() && self.refresher.get().is_none_or(|r| r.has_ended())
    }
}

type Inbox = Receiver<Order>;

pub use retain::Retention;
pub use rollback::{RollbackAnswer, RollbackOrder};
