//! The thread of a source tree: events and time in, scans and publications out.
//!
//! A session lasts as long as the tree's root is the directory that was opened. Whatever goes wrong with the
//! disk ends it; the next one opens everything anew and begins with a full scan, so nothing that happened
//! in between is missed.

mod gate;
mod look;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

pub(super) use gate::Gated;

use super::{Inbox, Order, SourceTree, lock};
use crate::agent::role::{HoldOrder, Reply};
use crate::agent::target::{Target, recover_source};
use crate::agent::{paths, pin};
use crate::apply::{Keep, Pin, discard_stage, was_never_decided};
use crate::disk::{Dir, HighWater, Lock, MountId, OwnerPolicy, Owners};
use crate::error::{Class, Context as _, Error, Result};
use crate::model::{Cause, GenId, Generation, State, TreePath, escaped};
use crate::plan::{Filter, PlanId};
use crate::scan::Index;
use crate::watch::{Settle, Watcher};

const PIN: &str = "pin.json";
/// The highest generation, in the state directory and in the tree.
const HIGH: &str = "generation";
/// After an error the tree is opened again, at first soon.
const RETRY: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// Without events the tree is looked at so often at least, and so many times the duration of a look apart.
const POLL: Duration = Duration::from_secs(2);
const POLL_FACTOR: u32 = 10;
/// The register of nodes is written down so often.
const NODES_EVERY: Duration = Duration::from_secs(5);
/// Files that mirrors call wrong are read again so often at most.
const SUSPECT_EVERY: Duration = Duration::from_secs(10);

pub(super) struct Engine {
    pub(super) tree: Arc<SourceTree>,
    pub(super) inbox: Inbox,
    pub(super) threads: usize,
    pub(super) filter: Filter,
    pub(super) policy: OwnerPolicy,
    pub(super) owners: Owners,
    pub(super) high: HighWater,
    /// Lets one refused plan through.
    pub(super) approved: Option<PlanId>,
    /// How the next generation comes about, when it is not by a change of the tree alone.
    pub(super) cause: Option<Cause>,
    /// A rollback that was under way when the agent ended, or is.
    pub(super) rolling: Option<super::rollback::Rolling>,
    /// All of that is known to be in place.
    pub(super) rolled: bool,
    /// What was published last, as far as it is known: what the guard compares with. Not always announced.
    pub(super) base: Option<Generation>,
    kept: Instant,
    /// Who waits for what a hold wrote to be published.
    pub(super) ending: Option<Reply>,
    /// The tree's own directory, where a hold is marked; `None` where the tree cannot be written to.
    pub(super) control: Option<Dir>,
}

/// The tree, open.
pub(super) struct Session {
    pub(super) path: PathBuf,
    pub(super) dir: Arc<Dir>,
    mount: MountId,
    pub(super) index: Index,
    pub(super) watcher: Arc<Watcher>,
    pub(super) settle: Settle,
    /// The tree's own copy of the highest generation; `None` where the tree cannot be written to.
    pub(super) own_high: Option<HighWater>,
    _lock: Option<Lock>,
    /// What is mounted in it.
    mounts: Vec<(TreePath, MountId)>,
    pub(super) next_full: Instant,
    next_suspect: Instant,
    looked: Instant,
    /// Something could not be read in the last full scan.
    pub(super) unreadable: bool,
    pub(super) look_took: Duration,
    /// A full scan is due now.
    pub(super) full: bool,
    /// Everything in the dirty directories is read, whatever the index says.
    /// The newest flush that a full scan covers.
    flush: u64,
    pub(super) distrust: bool,
    pub(super) dirty: crate::watch::Changes,
}

impl Session {
    /// The next look is at everything.
    pub(super) fn be_thorough(&mut self) {
        self.full = true;
    }
}

/// Whether a path is left out, whatever it is by now.
fn is_excluded(filter: &Filter, path: &TreePath) -> bool {
    let (parent, name) = (path.parent().unwrap_or_default(), path.split().1);
    [false, true].iter().all(|is_dir| filter.excludes(&parent, name, *is_dir))
}

enum Next {
    Look,
    Stop,
}

impl Engine {
    pub(super) fn new(tree: Arc<SourceTree>, inbox: Inbox, threads: usize) -> Result<Self> {
        let high = HighWater::open(tree.state.dir(), HIGH)?;
        let filter = tree.config.filter()?;
        let policy = OwnerPolicy::parse("owner", tree.config.owner.as_deref())?;
        let mut base = tree.store.newest()?;
        if let Some(newest) = &base
            && !tree.store.has(&newest.root.object)?
        {
            base = None;
        }
        if let Some(newest) = &base
            && newest.id >= high.get()
        {
            // served before the first scan: mirrors that are behind need not wait for it
            tree.announce(newest.clone());
        }
        tree.shared().high = high.get();
        let owners = Owners::default();
        let kept = Instant::now();
        Ok(Self {
            tree,
            inbox,
            threads,
            filter,
            policy,
            owners,
            high,
            approved: None,
            cause: None,
            base,
            kept,
            ending: None,
            control: None,
            rolling: None,
            rolled: false,
        })
    }

    pub(super) fn run(mut self) {
        let mut wait = RETRY;
        while !self.stopped() {
            let begun = Instant::now();
            // a bug in one tree must neither end the agent nor pass for a working tree
            match std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.session())) {
                Ok(Ok(())) => break,
                Ok(Err(e)) if self.stopped() => tracing::debug!(tree = self.name(), "ended: {e}"),
                Ok(Err(e)) => {
                    self.trouble(State::Failed, e.to_string());
                    if e.class == Class::Integrity {
                        self.forget();
                    }
                }
                Err(_) => {
                    self.trouble(State::Failed, "an internal error, see the log; it is tried again".into())
                }
            }
            *lock(&self.tree.root) = None;
            wait = if begun.elapsed() > RETRY_MAX { RETRY } else { (wait * 2).min(RETRY_MAX) };
            self.pause(wait);
        }
        self.keep_nodes();
    }

    /// Our own data is damaged: everything is read again, and judged by the mirrors where the past is lost.
    fn forget(&mut self) {
        self.base = None;
        let _ = Index::forget(&self.tree.state.file("source.db"));
        if let Err(e) = self.tree.store.start_anew() {
            tracing::warn!(tree = self.name(), "{e}");
        }
    }

    pub(super) fn stopped(&self) -> bool {
        self.tree.stop.load(Ordering::Relaxed)
    }

    pub(super) fn name(&self) -> &str {
        &self.tree.config.name
    }

    pub(super) fn trouble(&self, state: State, what: String) {
        let mut shared = self.tree.shared();
        shared.state = state;
        if shared.trouble.set(what.clone()) {
            drop(shared);
            tracing::warn!(tree = self.name(), "{what}");
        }
    }

    /// Waits, and refuses what needs an open tree.
    fn pause(&mut self, wait: Duration) {
        let end = Instant::now() + wait;
        while !self.stopped() {
            self.keep_nodes();
            match self.inbox.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(Order::Hold(HoldOrder::Fail { id, why }, reply)) => {
                    self.fail(&id, &why);
                    let _ = reply.send(Ok(format!("{} stays held: {why}", self.name())));
                }
                Ok(Order::HolderEnded(id)) => self.fail(&id, super::hold::DIED),
                Ok(Order::Approve(_, reply) | Order::Reset(reply) | Order::Hold(_, reply)) => {
                    let what = "the tree cannot be read at present; see `syncagent status`";
                    let _ = reply.send(Err(Error::new(Class::Transient, what)));
                }
                Ok(Order::Stop) | Err(_) => return,
                Ok(Order::Wake) => self.tree.woken.store(false, Ordering::Release),
                Ok(Order::Suspect(_) | Order::Again) => {}
                Ok(Order::Job(job)) => drop(job(None)),
            }
        }
    }

    /// The tree from being opened until something about it changed that needs opening it again.
    fn session(&mut self) -> Result<()> {
        let mut s = self.open()?;
        self.restore_hold()?;
        self.tell_of_what_is_published()?;
        self.look(&mut s, false)?;
        loop {
            match self.wait(&mut s)? {
                Next::Stop => return Ok(()),
                Next::Look => self.look(&mut s, false)?,
            }
        }
    }

    fn open(&mut self) -> Result<Session> {
        let path = paths::source(self.tree.path())?;
        let dir = Dir::open_root(&path).context(|| format!("open {}", escaped(&path)))?;
        let mount = MountId::of(&dir).context(|| format!("find the file system of {}", escaped(&path)))?;
        if let Some(old) = self.tree.state.read::<Pin>(PIN) {
            pin::check(&old, "source", &path, &mount, &self.remedy())?;
        }
        {
            let mut shared = self.tree.shared();
            (shared.lock, shared.unwritable) = (None, None);
        }
        self.control = None;
        let index = Index::open(&self.tree.state.file("source.db"))?;
        let (own_high, lock) = match Target::open(&path, false, Duration::ZERO, &AtomicBool::new(false)) {
            Ok(Target { control: Some(control), lock, .. }) => {
                let undecided = was_never_decided(&control)?;
                // it may have been a mirror before
                let recovered = recover_source(&control, &index, self.trash_keep())?;
                if recovered.is_some() {
                    tracing::info!(tree = self.name(), "finished what was under way");
                }
                let own_high = HighWater::open(&control.dir, HIGH)?;
                self.resume_rollback(recovered, undecided, own_high.get())?;
                // what a rollback had staged that was never decided
                discard_stage(&control)?;
                self.tree.seek.clean(&control.dir)?;
                let applied = control.marker()?.and_then(|m| m.applied).and_then(|a| a.generation);
                self.high.raise(applied.map_or_else(GenId::default, |(id, _)| id))?;
                self.control = Some(control.dir);
                (Some(own_high), lock)
            }
            Err(e) if e.class == Class::Busy => {
                self.tree.shared().lock = Some(e.what.clone());
                return Err(e);
            }
            Ok(_) => {
                self.check_nothing_is_under_way(&dir, "the tree cannot be written to")?;
                (None, None)
            }
            Err(e) => {
                self.check_nothing_is_under_way(&dir, &e.to_string())?;
                tracing::info!(tree = self.name(), "the tree holds no record of its generations: {e}");
                self.tree.shared().unwritable = Some(e.to_string());
                (None, None)
            }
        };
        if let Some(own) = &own_high {
            // the state directory was lost: what the tree itself says still counts
            self.high.raise(own.get())?;
        }
        {
            let mut shared = self.tree.shared();
            (shared.high, shared.opened) = (self.high.get(), true);
        }
        let waker = self.tree.clone();
        let watcher = Arc::new(Watcher::new(&path, move || waker.wake())?);
        let dir = Arc::new(dir);
        *super::lock(&self.tree.root) = Some(dir.clone());
        self.tree.retain.trash_changed();
        Ok(Session {
            path,
            dir,
            mount,
            index,
            watcher,
            settle: Settle::new(self.tree.role.settle, self.tree.role.settle_max),
            own_high,
            _lock: lock,
            mounts: Vec::new(),
            next_full: Instant::now(),
            next_suspect: Instant::now(),
            looked: Instant::now(),
            unreadable: false,
            look_took: Duration::ZERO,
            full: true,
            distrust: false,
            dirty: crate::watch::Changes::default(),
            flush: 0,
        })
    }

    /// What the tree's trash keeps.
    pub(super) fn trash_keep(&self) -> Keep {
        super::retain::trash_keep(self.tree.config.keep, self.tree.config.keep_bytes)
    }

    fn remedy(&self) -> String {
        escaped(&self.tree.state.file(PIN))
    }

    /// Waits until there is something to look at.
    fn wait(&mut self, s: &mut Session) -> Result<Next> {
        loop {
            let now = Instant::now();
            let polls = s.watcher.degraded().is_some();
            let due = match s.settle.due() {
                // what is not settled is not looked at for another reason either
                Some(settled) => settled,
                None if s.distrust => now,
                None if polls => s.next_full.min(s.looked + self.poll(s)),
                None => s.next_full,
            };
            if due <= now {
                s.full |= now >= s.next_full || s.settle.due().is_none() && !s.distrust;
                return Ok(Next::Look);
            }
            self.keep_nodes();
            let wait = due.saturating_duration_since(now).min(NODES_EVERY);
            match self.inbox.recv_timeout(wait) {
                Ok(Order::Wake) => self.gather(s),
                Ok(Order::Stop) | Err(RecvTimeoutError::Disconnected) => return Ok(Next::Stop),
                Ok(Order::Suspect(paths)) if now >= s.next_suspect => {
                    // reading everything again costs much, and peers may say anything
                    s.next_suspect = now + SUSPECT_EVERY;
                    self.tree.forget_kept(&paths);
                    s.distrust = true;
                    s.dirty.dirs.extend(paths.iter().filter_map(TreePath::parent));
                }
                Ok(Order::Suspect(_)) => {}
                Ok(Order::Approve(id, reply)) => self.approve(s, id, &reply)?,
                Ok(Order::Reset(reply)) => self.reset(s, &reply)?,
                Ok(Order::Hold(order, reply)) => self.hold(s, order, reply)?,
                Ok(Order::HolderEnded(id)) => self.fail(&id, super::hold::DIED),
                Ok(Order::Again) => {
                    s.full = true;
                    return Ok(Next::Look);
                }
                Ok(Order::Job(job)) => job(Some((self, s)))?,
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    fn poll(&self, s: &Session) -> Duration {
        POLL.max(s.look_took * POLL_FACTOR).min(self.tree.role.scan_interval)
    }

    /// Takes the watcher's events over.
    pub(super) fn gather(&mut self, s: &mut Session) {
        self.tree.woken.store(false, Ordering::Release);
        self.is_superseded();
        let mut changes = s.watcher.take();
        let hold_file = self.tree.role.hold_file.as_ref();
        changes.retain(|path| hold_file == Some(path) || !is_excluded(&self.filter, path));
        if changes.is_empty() {
            return;
        }
        s.full |= changes.all;
        s.settle.add(&changes, Instant::now());
        s.dirty.merge(changes);
        self.show_pending(s);
    }

    /// Writes the register of nodes down, now and then.
    fn keep_nodes(&mut self) {
        let news = self.tree.shared().nodes.has_news();
        if self.kept.elapsed() < NODES_EVERY && !news && !self.stopped() {
            return;
        }
        self.kept = Instant::now();
        self.tree.history.flush();
        if let Err(e) = self.tree.write_nodes() {
            tracing::warn!(tree = self.name(), "{e}");
        }
    }
}
