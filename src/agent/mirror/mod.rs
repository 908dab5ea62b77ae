//! A mirror of a tree: hears of new generations, fetches, applies, reports.
//!
//! Two async tasks talk to the source (`contact`), one thread does the disk work (`engine`). They share what
//! is here behind short locks, so that a slow disk never makes the mirror deaf, and a slow network never holds
//! up a commit.

mod bring;
mod contact;
mod engine;
mod remote;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::health::Limits;
use super::role::{Reply, Role, Trouble};
use super::history::{History as Happened, HistoryEntry, RECENT, Ring};
use super::role::{NOT_OPEN, Reply, Role, Trouble, have_done};
use super::state::TreeState;
use super::trash::{self, Into, Trash, TrashAnswer, TrashOrder};
use crate::config;
use crate::disk::{boot_ms, wall_ms};
use crate::error::{Class, Error, Result};
use crate::lag::{History, Lag};
use crate::model::{
    Digest, GenId, Generation, NodeId, NodeStatus, RefusedPlan, Report, RoleName, State, TreePath,
    TreeStatus, WatchStatus, escaped,
};
use crate::peer::Client;
use crate::plan::PlanId;

/// What the engine's thread is asked to do.
enum Order {
    /// There is a newer generation, or something happened in the tree.
    Wake,
    /// Let this plan through.
    Approve(PlanId, Reply),
    /// Something else that needs the open tree.
    Job(Job),
    Stop,
}

/// Done in the engine's thread; without a session when the tree is not open.
type Job = Box<dyn FnOnce(Option<&engine::Session>) + Send>;

/// A mirrored tree.
pub(super) struct MirrorTree {
    config: config::Tree,
    role: config::MirrorRole,
    node: NodeId,
    zone: Option<String>,
    state: TreeState,
    client: Client,
    /// What the node's health is judged by.
    limits: Arc<Limits>,
    happened: Happened,
    orders: Sender<Order>,
    woken: AtomicBool,
    /// The whole mirror ends.
    stop: Arc<AtomicBool>,
    /// The run under way ends: a newer generation takes its place.
    supersede: Arc<AtomicBool>,
    cancel: CancellationToken,
    /// Something to report.
    news: Notify,
    /// The question under way is asked again.
    again: Notify,
    shared: Mutex<Shared>,
    /// The newest generation changed.
    arrived: Condvar,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
}

struct Shared {
    state: State,
    /// What is wrong with the disk, or with what was sent.
    trouble: Trouble,
    /// What is wrong with the way to the source.
    contact: Trouble,
    plan: Option<RefusedPlan>,
    /// The newest generation that was heard of.
    newest: Option<Arc<Generation>>,
    /// The newest one that is completely in place.
    applied: Option<GenId>,
    /// The source's root object of that.
    applied_object: Option<Digest>,
    content: Option<Digest>,
    files: u64,
    drift: u64,
    watch: WatchStatus,
    lag: Lag,
    behind: Option<u64>,
    lock: Option<String>,
    history: History,
    /// The newest generations that were applied.
    recent: Ring,
    /// How long the last one took from its publication.
    converged_last: Option<(GenId, u64)>,
    /// Convergence times not reported yet.
    converged: Vec<(GenId, u64)>,
    connected: bool,
    /// Files whose content arrived and was not what its digest says; the source is told.
    suspects: Vec<TreePath>,
    /// When the run under way began to fetch, boot time.
    fetching_since: Option<u64>,
    /// A newer generation interrupts a run only when it is older than this, in ms; doubles each time, so that a
    /// long first copy ends although its source never rests.
    patience: u64,
}

impl Shared {
    /// How many generations `newest` is ahead of what is applied, by their numbers; the source knows it exactly.
    fn ahead_of_applied(&self, newest: GenId) -> u64 {
        match self.applied {
            Some(applied) if applied.epoch == newest.epoch => newest.number.saturating_sub(applied.number),
            _ => newest.number,
        }
    }
}

impl MirrorTree {
    /// Starts the tree.
    ///
    /// # Errors
    /// The state directory cannot be used.
    pub(super) fn start(
        config: &config::Tree,
        role: &config::MirrorRole,
        node: &config::Node,
        state_dir: &std::path::Path,
        client: Client,
        limits: Arc<Limits>,
        threads: usize,
    ) -> Result<Arc<Self>> {
        let path = super::paths::destination(&config.path)?;
        let state = TreeState::open(state_dir, &path)?;
        let (orders, inbox) = channel();
        let happened = Happened::open(&state.file("history.db"));
        let (now, wall) = (boot_ms() as i64, wall_ms());
        let mut recent = Ring::default();
        for a in happened.all_applied(RECENT).into_iter().rev() {
            let since = (wall - a.at_ms).max(0) + a.converged_ms.unwrap_or(0) as i64;
            recent.push(&a.generation, now - since);
        }
        let tree = Arc::new(Self {
            config: config::Tree { path, ..config.clone() },
            role: role.clone(),
            node: node.id.clone(),
            zone: node.zone.clone(),
            state,
            client,
            limits,
            happened,
            orders,
            woken: AtomicBool::new(false),
            stop: Arc::default(),
            supersede: Arc::default(),
            cancel: CancellationToken::new(),
            news: Notify::new(),
            again: Notify::new(),
            shared: Mutex::new(Shared {
                state: State::Starting,
                trouble: Trouble::default(),
                contact: Trouble::default(),
                plan: None,
                newest: None,
                applied: None,
                applied_object: None,
                content: None,
                files: 0,
                drift: 0,
                watch: WatchStatus::default(),
                lag: Lag::default(),
                behind: None,
                lock: None,
                history: History::default(),
                recent,
                converged_last: None,
                converged: Vec::new(),
                connected: false,
                suspects: Vec::new(),
                fetching_since: None,
                patience: FIRST_PATIENCE,
            }),
            arrived: Condvar::new(),
            thread: Mutex::new(None),
        });
        let engine = engine::Engine::new(tree.clone(), inbox, threads)?;
        let name = format!("mirror {}", tree.config.name);
        let thread = std::thread::Builder::new().name(name).spawn(move || engine.run());
        let thread = thread.map_err(|e| Error::io(e, "cannot start a thread"))?;
        *lock(&tree.thread) = Some(thread);
        tokio::spawn(contact::listen(tree.clone()));
        tokio::spawn(contact::report(tree.clone()));
        Ok(tree)
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        lock(&self.shared)
    }

    fn wake(&self) {
        if !self.woken.swap(true, Ordering::AcqRel) {
            // an engine that ended needs no waking
            let _ = self.orders.send(Order::Wake);
        }
    }

    fn name(&self) -> &str {
        &self.config.name
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// A newer generation was heard of. Inside a runtime.
    fn arrived(self: &Arc<Self>, generation: Arc<Generation>) {
        let mut shared = self.shared();
        shared.newest = Some(generation);
        if let Some(since) = shared.fetching_since {
            let left = shared.patience.saturating_sub(boot_ms().saturating_sub(since));
            tokio::spawn(self.clone().lose_patience(since, Duration::from_millis(left)));
        }
        drop(shared);
        self.arrived.notify_all();
        self.wake();
    }

    /// Ends the run that began at `since` when it still goes on after `left`.
    async fn lose_patience(self: Arc<Self>, since: u64, left: Duration) {
        tokio::time::sleep(left).await;
        if self.shared().fetching_since == Some(since) {
            self.supersede.store(true, Ordering::Relaxed);
        }
    }

    /// What the source is told.
    fn report_now(&self) -> Report {
        let own = self.status().nodes.into_iter().next();
        let faults = own.map(|own| self.limits.faults(&self.config, &own)).unwrap_or_default();
        let now = boot_ms();
        let mut shared = self.shared();
        let converged = std::mem::take(&mut shared.converged);
        Report {
            state: shared.state,
            applied: shared.applied,
            in_place: shared.applied,
            content: shared.content,
            lag_ms: shared.lag.lag_ms(now),
            drift: shared.drift,
            plan: shared.plan.clone(),
            error: shared.trouble.report(now),
            faults,
            converged,
            zone: self.zone.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Report::default()
        }
    }
}

const FIRST_PATIENCE: u64 = 3_000;

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Role for MirrorTree {
    fn status(&self) -> TreeStatus {
        let now = boot_ms();
        let shared = self.shared();
        let convergence = Some(shared.history.summary(now));
        let state = match shared.state {
            _ if self.has_ended() && !self.stopped() => State::Failed,
            State::Current if !shared.connected => State::Disconnected,
            state => state,
        };
        let own = NodeStatus {
            zone: self.zone.clone(),
            state,
            generation: shared.applied,
            applied: shared.applied,
            behind: shared.behind,
            lag_ms: shared.lag.lag_ms(now),
            contact_age_ms: shared.lag.contact_age_ms(now),
            confirmed_age_ms: None,
            drift: shared.drift,
            plan: shared.plan.clone(),
            error: shared.trouble.report(now).or_else(|| shared.contact.report(now)),
            convergence,
            version: Some(env!("CARGO_PKG_VERSION").to_owned()),
            connected: shared.connected,
            ..NodeStatus::new(self.node.clone(), RoleName::Mirror)
        };
        TreeStatus {
            name: self.config.name.clone(),
            path: escaped(&self.config.path),
            head: shared.newest.as_ref().map(|g| g.id),
            head_age_ms: None,
            content: shared.content,
            files: Some(shared.files),
            watch: shared.watch.clone(),
            unpublished_age_ms: None,
            held: Vec::new(),
            held_count: 0,
            lock: shared.lock.clone(),
            convergence,
            recent: shared.recent.list(now),
            nodes: vec![own],
            ..TreeStatus::new("", "")
        }
    }

    fn approve(&self, id: PlanId) -> Result<String> {
        super::role::ask(&self.orders, |reply| Order::Approve(id, reply))
    }

    fn reset(&self) -> Result<String> {
        let what = format!("this node is a mirror of {}; the reset belongs on its source", self.name());
        Err(Error::new(Class::Config, what))
    }

    fn trash(&self, order: TrashOrder) -> Result<TrashAnswer> {
        let generation = |commit| self.happened.generation_of(commit);
        if order.reads_only() {
            // waits for nothing that is under way
            return trash::read_only(&self.config.path, &order, &generation);
        }
        let into =
            format!("{} is a mirror here: what is put into it is drift, and taken out again", self.name());
        have_done(&self.orders, |reply| {
            Order::Job(Box::new(move |open| {
                let done = match open {
                    Some(s) => {
                        let (root, control) = (&s.control.root, &s.control.dir);
                        Trash { root, control, generation: &|_| None, into: Into::Refused(into) }
                            .carry_out(&order)
                    }
                    None => Err(Error::new(Class::Transient, NOT_OPEN)),
                };
                // who asked may have gone
                let _ = reply.send(done);
            }))
        })
    }

    fn history(&self, limit: usize) -> Result<Vec<HistoryEntry>> {
        Ok(self.happened.of_mirror(&self.node, limit))
    }

    fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        self.supersede.store(true, Ordering::Relaxed);
        self.cancel.cancel();
        self.arrived.notify_all();
        let _ = self.orders.send(Order::Stop);
    }

    fn has_ended(&self) -> bool {
        lock(&self.thread).as_ref().is_none_or(std::thread::JoinHandle::is_finished)
    }
}

type Inbox = Receiver<Order>;
