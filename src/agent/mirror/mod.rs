//! A mirror of a tree: hears of new generations, fetches, applies, reports.
//!
//! Two async tasks talk to the source (`contact`), one thread does the disk work (`engine`). They share what
//! is here behind short locks, so that a slow disk never makes the mirror deaf, and a slow network never holds
//! up a commit.

mod back;
mod bring;
mod contact;
mod deferral;
mod empty;
mod engine;
mod prune;
mod remote;
mod role;
mod seek;
mod sound;
mod tell;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::health::Limits;
use super::history::{History as Happened, RECENT, Ring};
use super::orders::Orders;
use super::role::{Reply, Trouble, refresh_of};
use super::state::TreeState;
use crate::config;
use crate::disk::{boot_ms, wall_ms};
use crate::error::{Error, Result, lock};
use crate::lag::{History, Lag};
use crate::model::{
    Digest, GenId, Generation, NodeId, NodeStatus, RefusedPlan, Report, RoleName, State, TreePath,
    WatchStatus,
};
use crate::peer::Client;
use crate::plan::PlanId;
use crate::refresh::{Refresher, Setup};
use sound::Sound;

/// What the engine's thread is asked to do.
enum Order {
    /// There is a newer generation, or something happened in the tree.
    Wake,
    /// Let this plan through.
    Approve(PlanId, Reply),
    /// What was settled is looked at again.
    Again,
    /// The local server does not see this generation: back to the one before.
    Back(GenId),
    /// Something else that needs the open tree.
    Job(Job),
    Stop,
}

/// Done in the engine's thread; without a session when the tree is not open.
type Job = Box<dyn FnOnce(Option<(&MirrorTree, &engine::Session)>) + Send>;

/// A mirrored tree.
pub(super) struct MirrorTree {
    config: config::Tree,
    role: config::MirrorRole,
    node: NodeId,
    zone: Option<String>,
    state: TreeState,
    client: Client,
    happened: Happened,
    /// What the node's health is judged by.
    limits: Arc<Limits>,
    orders: Sender<Order>,
    woken: AtomicBool,
    /// Something was written here since the engine's thread last asked the watcher.
    touched: AtomicBool,
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
    ordering: Mutex<()>,
    /// The newest generation changed.
    arrived: Condvar,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
    /// Writes down when the tree was deferred.
    keeper: Mutex<Option<std::thread::JoinHandle<()>>>,
    /// Tells the local server, where one is told.
    refresher: OnceLock<Arc<Refresher>>,
    pruning: prune::Pruning,
}

struct Shared {
    state: State,
    /// What is wrong with the disk, or with what was sent.
    trouble: Trouble,
    /// What is wrong with the way to the source.
    contact: Trouble,
    /// Why the node could not go back, and from which generation.
    stays: Trouble,
    stays_at: Option<GenId>,
    plan: Option<RefusedPlan>,
    /// The newest generation that was heard of.
    newest: Option<Arc<Generation>>,
    /// The newest one that is completely in place.
    applied: Option<GenId>,
    /// The newest one that is in place and that the local server has, where one is told: what lag and the source count.
    complete: Option<GenId>,
    /// The source's root object of that.
    applied_object: Option<Digest>,
    content: Option<Digest>,
    files: u64,
    /// Nothing was ever completely applied here, and there were no files before; `None` when nobody can tell.
    empty: Option<bool>,
    drift: u64,
    /// Something was written here, and nobody looked yet whether that is drift.
    unjudged: bool,
    /// What is known of what is in place.
    sound: Sound,
    /// The generation that came into place without an edit while `sound` was [`Sound::Edited`], and what was complete then.
    mended: Option<(GenId, Option<GenId>)>,
    watch: WatchStatus,
    lag: Lag,
    /// When what is published was not late, but deferred.
    deferred: deferral::Deferral,
    orders: Orders,
    /// When the source was last asked, of the answers that came; boot time.
    answered: u64,
    /// When somebody wanted to know the newest generation for sure; boot time.
    wanted: u64,
    behind: Option<u64>,
    lock: Option<String>,
    /// Why the tree cannot be written.
    unwritable: Option<String>,
    history: History,
    /// The newest generations that were applied.
    recent: Ring,
    /// How long the last one took from its publication.
    converged_last: Option<(GenId, u64)>,
    /// Convergence times not reported yet.
    converged: Vec<(GenId, u64)>,
    connected: bool,
    /// The last round of seeking that was dealt with, and who does.
    sought: u64,
    helps: Option<AbortOnDropHandle<()>>,
    /// Files whose content arrived and was not what its digest says; the source is told.
    suspects: Vec<TreePath>,
    /// When the run under way began to fetch, boot time.
    fetching_since: Option<u64>,
    /// A newer generation interrupts a run only when it is older than this, in ms; doubles each time, so that a
    /// long first copy ends although its source never rests.
    patience: u64,
}

impl Shared {
    /// How many generations `newest` is ahead of what is complete, by their numbers; the source knows it exactly.
    fn ahead_of_complete(&self, newest: GenId) -> u64 {
        match self.complete {
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
        let (orders_to, inbox) = channel();
        let mut orders = Orders::read(&state);
        back::drop_unless_configured(&mut orders, &config.refresh);
        // what cannot be looked at is the engine's to complain of
        let empty = config.filter().and_then(|filter| empty::is_empty(&path, &filter)).ok();
        let (deferred, woken) = deferral::Deferral::read(&state, orders.paused.as_ref());
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
            orders: orders_to,
            happened,
            limits,
            woken: AtomicBool::new(false),
            touched: AtomicBool::new(false),
            stop: Arc::default(),
            supersede: Arc::default(),
            cancel: CancellationToken::new(),
            news: Notify::new(),
            again: Notify::new(),
            shared: Mutex::new(Shared {
                state: State::Starting,
                trouble: Trouble::default(),
                contact: Trouble::default(),
                stays: Trouble::default(),
                stays_at: None,
                plan: None,
                newest: None,
                applied: None,
                applied_object: None,
                content: None,
                files: 0,
                empty,
                drift: 0,
                unjudged: false,
                sound: Sound::Unknown,
                mended: None,
                watch: WatchStatus::default(),
                complete: None,
                lag: Lag::default(),
                deferred,
                orders,
                answered: 0,
                wanted: 0,
                behind: None,
                lock: None,
                unwritable: None,
                history: History::default(),
                recent,
                converged_last: None,
                converged: Vec::new(),
                connected: false,
                sought: 0,
                helps: None,
                suspects: Vec::new(),
                fetching_since: None,
                patience: FIRST_PATIENCE,
            }),
            ordering: Mutex::new(()),
            arrived: Condvar::new(),
            thread: Mutex::new(None),
            keeper: Mutex::new(None),
            refresher: OnceLock::new(),
            pruning: prune::Pruning::default(),
        });
        tree.start_refresher()?;
        let engine = engine::Engine::new(tree.clone(), inbox, threads)?;
        prune::start(&tree, engine.options.keep)?;
        let name = format!("mirror {}", tree.config.name);
        let thread = std::thread::Builder::new().name(name).spawn(move || engine.run());
        let thread = thread.map_err(|e| Error::io(e, "cannot start a thread"))?;
        *lock(&tree.thread) = Some(thread);
        *lock(&tree.keeper) = deferral::keep(&tree, woken);
        tokio::spawn(contact::listen(tree.clone()));
        tokio::spawn(contact::report(tree.clone()));
        Ok(tree)
    }

    fn start_refresher(self: &Arc<Self>) -> Result<()> {
        if self.config.refresh.is_empty() {
            return Ok(());
        }
        let tree = Arc::downgrade(self);
        let news = move || {
            if let Some(tree) = tree.upgrade() {
                tree.refreshed();
            }
        };
        let tree = Arc::downgrade(self);
        let go_back = move |from| {
            if let Some(tree) = tree.upgrade() {
                tree.go_back(from);
            }
        };
        let refresher = Refresher::start(Setup {
            news: Arc::new(news),
            on_rollback: Some(Arc::new(go_back)),
            ..refresh_of(&self.config, &self.node, &self.state)
        })?;
        // nobody else sets it
        let _ = self.refresher.set(refresher);
        Ok(())
    }

    /// The local server was told, or could not be.
    fn refreshed(&self) {
        if let Some(refresher) = self.refresher.get() {
            self.mark_complete(|| refresher.complete());
            let mut shared = self.shared();
            if !refresher.is_open() {
                shared.forget_stay();
                shared.told();
            } else if shared.is_told_of_the_mended() {
                shared.told();
            }
            drop(shared);
            self.news.notify_one();
        }
    }

    /// Whether the local server may lack something of what is in place.
    fn is_refreshing(&self) -> bool {
        self.refresher.get().is_some_and(|r| r.is_open())
    }

    fn thread_has_ended(&self) -> bool {
        lock(&self.thread).as_ref().is_none_or(std::thread::JoinHandle::is_finished)
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

    /// What the tree is doing, as it is shown.
    fn state_of(&self, shared: &Shared) -> State {
        match shared.state {
            _ if self.thread_has_ended() && !self.stopped() => State::Failed,
            State::Failed => State::Failed,
            _ if shared.orders.paused.is_some() => State::Paused,
            State::Current if self.is_refreshing() => State::Refreshing,
            State::Current if shared.gone_back().is_some() => State::RolledBack,
            state => state,
        }
    }

    /// Whether all that is known to be published is here, and nobody edited anything.
    fn is_consistent(&self, shared: &Shared) -> bool {
        self.state_of(shared) == State::Current
            && shared.newest.as_ref().is_some_and(|n| Some(n.id) == shared.complete)
            && shared.applied == shared.complete
            && shared.drift == 0
            && !shared.unjudged
    }

    /// What is wrong here, but for the way to the source.
    fn error(&self, shared: &Shared, now: u64) -> Option<crate::model::Trouble> {
        shared.trouble.report(now).or_else(|| shared.back_error(self.name(), now))
    }

    /// This node's row, but for the convergence times: to sum those up costs more than the rest.
    fn own(&self, shared: &Shared, now: u64) -> NodeStatus {
        let (wall, refresher) = (wall_ms(), self.refresher.get());
        let state = match self.state_of(shared) {
            State::Current if !shared.connected => State::Disconnected,
            state => state,
        };
        NodeStatus {
            zone: self.zone.clone(),
            state,
            generation: shared.complete,
            applied: shared.applied,
            refreshed: refresher.and_then(|r| r.refreshed()),
            verified: refresher.filter(|r| r.has_verify()).and_then(|r| r.verified()),
            refresh: refresher.map(|r| r.status()),
            consistent: shared.connected && self.is_consistent(shared),
            intact: Some(self.is_intact(shared)),
            paused: shared.orders.paused.as_ref().map(|o| o.mark(wall)),
            drained: self.limits.drained(),
            empty: shared.empty,
            behind: shared.behind,
            lag_ms: shared.lag_ms(now),
            contact_age_ms: shared.lag.contact_age_ms(now),
            confirmed_age_ms: None,
            drift: shared.drift,
            plan: shared.plan.clone(),
            error: self.error(shared, now).or_else(|| shared.contact.report(now)),
            version: Some(env!("CARGO_PKG_VERSION").to_owned()),
            connected: shared.connected,
            ..NodeStatus::new(self.node.clone(), RoleName::Mirror)
        }
    }

    /// Changes what is ordered; written down before it counts.
    fn order(&self, change: impl FnOnce(&mut Orders) -> Result<()>) -> Result<()> {
        // one change after the other, and no lock that status needs is held while the disk works
        let _one = lock(&self.ordering);
        let now = self.shared().orders.clone();
        let orders = now.changed(&self.state, change)?;
        let mut shared = self.shared();
        shared.orders = orders;
        shared.defer(boot_ms());
        drop(shared);
        self.news.notify_one();
        Ok(())
    }

    /// What the source is told.
    fn report_now(&self) -> Report {
        let now = boot_ms();
        let mut shared = self.shared();
        let converged = std::mem::take(&mut shared.converged);
        let own = self.own(&shared, now);
        Report {
            // a report that arrives is itself a sign of a connection
            state: self.state_of(&shared),
            consistent: self.is_consistent(&shared),
            intact: own.intact,
            error: self.error(&shared, now),
            faults: self.limits.faults(&self.config, &own),
            applied: own.generation,
            in_place: own.applied,
            refreshed: own.refreshed,
            verified: own.verified,
            refresh: own.refresh,
            paused: own.paused,
            drained: own.drained,
            content: shared.content,
            lag_ms: own.lag_ms,
            drift: own.drift,
            plan: own.plan,
            converged,
            zone: own.zone,
            version: own.version.unwrap_or_default(),
        }
    }
}

const FIRST_PATIENCE: u64 = 3_000;

type Inbox = Receiver<Order>;
