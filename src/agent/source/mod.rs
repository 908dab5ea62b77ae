//! The source of a tree: watches it, waits until what changed is finished, judges, publishes; and answers
//! the mirrors.
//!
//! One thread does the disk work (`engine`); what it shares with the rest of the agent is here, behind short
//! locks, so that an answer never waits for a disk or a mirror.

mod engine;
mod nodes;
mod publish;
mod retain;
mod rollback;
mod serve;
mod trash;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::history::{self, History, HistoryEntry, Ring};
use super::role::{NOT_OPEN, Reply, Role, Trouble, have_done};
use super::state::TreeState;
use super::trash::{TrashAnswer, TrashOrder};
use crate::config;
use crate::disk::{Dir, boot_ms, wall_ms};
use crate::error::{Class, Error, Result};
use crate::lag::Published;
use crate::model::{
    GenId, Generation, HeldPath, NodeId, NodeStatus, RefusedPlan, RoleName, State, TreeStatus, WatchStatus,
    escaped,
};
use crate::plan::PlanId;
use crate::scan::Store;
use nodes::Nodes;
use retain::Retain;

/// What the engine's thread is asked to do.
enum Order {
    /// Something happened in the tree.
    Wake,
    /// Look at these directories again, and read the files in them.
    Suspect(Vec<crate::model::TreePath>),
    /// Let this plan through.
    Approve(PlanId, Reply),
    /// Begin a new epoch above everything that is known.
    Reset(Reply),
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
    head: watch::Receiver<Option<Arc<Generation>>>,
    /// `None` after the end: who waits for news is told to ask again.
    announcer: Mutex<Option<watch::Sender<Option<Arc<Generation>>>>>,
    orders: Sender<Order>,
    /// An order to look is under way already.
    woken: AtomicBool,
    stop: AtomicBool,
    shared: Mutex<Shared>,
    root: Mutex<Option<Arc<Dir>>>,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
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
    /// A mirror has a generation that this source never made.
    superseded: Option<(GenId, NodeId)>,
    published: Published,
    nodes: Nodes,
    /// The newest generations.
    recent: Ring,
    lock: Option<String>,
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
        let (orders, inbox) = channel();
        let now = (boot_ms(), wall_ms());
        let generations = store.generations(publish::KEPT)?;
        let ages = generations.iter().map(|g| (g.id, u64::try_from(now.1 - g.at_ms).unwrap_or(0)));
        let published = Published::new(ages, now.0);
        let nodes = Nodes::restored(&state, now);
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
            head,
            announcer: Mutex::new(Some(announcer)),
            orders,
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
                superseded: None,
                published,
                nodes,
                recent,
                lock: None,
            }),
            root: Mutex::new(None),
            thread: Mutex::new(None),
        });
        let engine = engine::Engine::new(tree.clone(), inbox, threads)?;
        let name = format!("source {}", tree.config.name);
        let thread = std::thread::Builder::new().name(name).spawn(move || engine.run());
        let thread = thread.map_err(|e| Error::io(e, "cannot start a thread"))?;
        *lock(&tree.thread) = Some(thread);
        retain::start(tree.clone())?;
        Ok(tree)
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

    fn root_handle(&self) -> Result<Arc<Dir>> {
        lock(&self.root).clone().ok_or_else(|| {
            Error::new(Class::Transient, format!("{} is not open", escaped(&self.config.path)))
        })
    }

    fn path(&self) -> &PathBuf {
        &self.config.path
    }
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Role for SourceTree {
    fn status(&self) -> TreeStatus {
        let now = boot_ms();
        let head = self.head.borrow().clone();
        let shared = self.shared();
        let behind = |id: Option<GenId>| shared.published.behind(id, now);
        let state =
            if self.has_ended() && !self.stop.load(Ordering::Relaxed) { State::Failed } else { shared.state };
        let own = NodeStatus {
            zone: self.zone.clone(),
            state,
            generation: head.as_ref().map(|g| g.id),
            applied: head.as_ref().map(|g| g.id),
            behind: Some(0),
            lag_ms: Some(0),
            plan: shared.plan.clone(),
            error: shared.trouble.report(now),
            version: Some(env!("CARGO_PKG_VERSION").to_owned()),
            connected: true,
            ..NodeStatus::new(self.node.clone(), RoleName::Source)
        };
        let mut nodes = vec![own];
        nodes.extend(shared.nodes.status(now, &behind));
        TreeStatus {
            name: self.config.name.clone(),
            path: escaped(self.path()),
            head: head.as_ref().map(|g| g.id),
            head_age_ms: shared.published.head(now).map(|(_, age)| age),
            content: head.as_ref().map(|g| g.root.content),
            files: head.as_ref().map(|g| g.files),
            watch: shared.watch.clone(),
            unpublished_age_ms: shared.unpublished_since.map(|since| now.saturating_sub(since)),
            held: shared.held.clone(),
            held_count: shared.held_count,
            lock: shared.lock.clone(),
            convergence: Some(shared.nodes.convergence(now)),
            recent: shared.recent.list(now),
            nodes,
            ..TreeStatus::new("", "")
        }
    }

    fn approve(&self, id: PlanId) -> Result<String> {
        super::role::ask(&self.orders, |reply| Order::Approve(id, reply))
    }

    fn reset(&self) -> Result<String> {
        super::role::ask(&self.orders, Order::Reset)
    }

    fn trash(&self, order: TrashOrder) -> Result<TrashAnswer> {
        self.trashed(order)
    }

    fn rollback(&self, order: RollbackOrder) -> Result<RollbackAnswer> {
        have_done(&self.orders, |reply| {
            Order::Job(Box::new(move |open| match open {
                Some((engine, s)) => engine.roll_back(s, &order, &reply),
                None => {
                    // who asked may have gone
                    let _ = reply.send(Err(Error::new(Class::Transient, NOT_OPEN)));
                    Ok(())
                }
            }))
        })
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
        self.retain.wake();
        let _ = self.orders.send(Order::Stop);
    }

    fn has_ended(&self) -> bool {
        lock(&self.thread).as_ref().is_none_or(std::thread::JoinHandle::is_finished)
    }
}

type Inbox = Receiver<Order>;

pub use retain::Retention;
pub use rollback::{RollbackAnswer, RollbackOrder};
