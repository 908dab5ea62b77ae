//! The thread of a mirrored tree: opens it, keeps its index true, applies what arrives, puts drift back.
//!
//! A session lasts as long as the tree's root is the directory that was opened and the disk does what it is
//! asked to. The next one recovers what a crash or an error left and begins with a full scan.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::prune::is_full;
use super::sound::Sound;
use super::{Inbox, MirrorTree, Order, empty};
use crate::agent::apply::{Activate, TreeOptions};
use crate::agent::pin;
use crate::agent::target::{Target, recover_all};
use crate::apply::{Committed, Control, Journal, Keep, Pin, prune};
use crate::config;
use crate::disk::{Dir, Lock, MountId, OwnerPolicy, Owners, boot_ms};
use crate::error::{Class, Context as _, Error, Result};
use crate::lag::Lag;
use crate::model::{Digest, GenId, State, TreePath, WatchStatus, counted_as, escaped};
use crate::plan::{CONTROL_DIR, Filter, PlanId};
use crate::refresh::Changed;
use crate::scan::{Counters, Index, Only, Scanned, Spec, Store, scan};
use crate::watch::{Changes, Watcher};

const RETRY: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(60);
/// What somebody writes here is looked at when it has been quiet for so long.
const DRIFT_QUIET: Duration = Duration::from_secs(1);
/// And when it never is, after so long.
const DRIFT_MAX: Duration = Duration::from_secs(10);
const PIN: &str = "pin.json";
const POLL: Duration = Duration::from_secs(2);
const POLL_FACTOR: u32 = 10;
/// The thread looks up so often, whatever happens.
const TICK: Duration = Duration::from_secs(5);

pub(super) struct Engine {
    pub(super) tree: Arc<MirrorTree>,
    inbox: Inbox,
    pub(super) options: TreeOptions,
    pub(super) owners: Owners,
    pub(super) approved: Option<PlanId>,
    /// What came into place, and the local server was not told of yet.
    pub(super) untold: Changed,
    /// The refresher was told to expect a change.
    pub(super) expected: bool,
    /// The local server does not see this generation, and that was not looked into yet.
    back: Option<GenId>,
    /// Why the last run did not get all that it wanted.
    pub(super) lacking: Option<String>,
    /// The last failure was this host's disk: the tree's, or that of the state directory.
    pub(super) disk_failed: bool,
}

/// The tree, open and locked.
pub(super) struct Session {
    pub(super) control: Control,
    _lock: Option<Lock>,
    pub(super) index: Index,
    pub(super) store: Store,
    pub(super) watcher: Arc<Watcher>,
    /// What is there, as the last full scan counted it and the last look found it.
    pub(super) scanned: Scanned,
    dirty: Changes,
    dirty_at: Option<Instant>,
    dirty_since: Option<Instant>,
    full_at: Instant,
    look_took: Duration,
    retry_at: Option<Instant>,
    retry_for: Option<GenId>,
    retry_wait: Duration,
    /// It refuses, or reports drift, for this root of the tree and this generation.
    pub(super) settled: Option<(Digest, Digest, GenId)>,
}

/// Why a session went on to its end.
pub(super) enum End {
    Stop,
    /// The tree's root is another directory now.
    Reopen,
}

impl Engine {
    pub(super) fn new(tree: Arc<MirrorTree>, inbox: Inbox, threads: usize) -> Result<Self> {
        let c = &tree.config;
        let options = TreeOptions {
            filter: c.filter()?,
            order: (!tree.role.order.is_empty()).then(|| Filter::new(tree.role.order.clone())).transpose()?,
            no_delete: false,
            max_delete: c.max_delete,
            approve: None,
            adopt: tree.role.adopt,
            activate: match tree.role.activate {
                config::Activate::InPlace => Activate::InPlace,
                config::Activate::Swap => Activate::Swap,
            },
            staging: tree.role.staging.clone(),
            keep: Keep { generations: c.keep, bytes: c.keep_bytes },
            owner: OwnerPolicy::parse("owner", c.owner.as_deref())?,
            threads,
        };
        Ok(Self {
            tree,
            inbox,
            options,
            owners: Owners::default(),
            approved: None,
            untold: Changed::default(),
            expected: false,
            back: None,
            lacking: None,
            disk_failed: false,
        })
    }

    pub(super) fn run(mut self) {
        let mut wait = RETRY;
        while !self.tree.stopped() {
            let begun = Instant::now();
            // a bug in one tree must neither end the agent nor pass for a working tree
            let session = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.session()));
            // a session that broke down has not
            self.tree.pruning.halt();
            match session {
                Ok(Ok(End::Stop)) => return,
                Ok(Ok(End::Reopen)) => continue,
                Ok(Err(e)) if self.tree.stopped() => tracing::debug!(tree = self.tree.name(), "ended: {e}"),
                Ok(Err(e)) => {
                    self.disk_failed = is_of_a_disk(&e);
                    self.trouble(State::Failed, e.to_string());
                    if e.class == Class::Integrity {
                        let _ = Index::forget(&self.tree.state.file("tree.db"));
                        let _ = Index::forget(&self.tree.state.file("fetched.db"));
                    }
                }
                Err(_) => {
                    self.trouble(State::Failed, "an internal error, see the log; it is tried again".into())
                }
            }
            wait = if begun.elapsed() > RETRY_MAX { RETRY } else { (wait * 2).min(RETRY_MAX) };
            self.pause(wait);
        }
    }

    pub(super) fn trouble(&self, state: State, what: String) {
        let news = self.tree.shared().trouble.set(what.clone());
        if news {
            tracing::warn!(tree = self.tree.name(), "{what}");
        }
        self.tree.enter(state);
    }

    fn pause(&mut self, wait: Duration) {
        let end = Instant::now() + wait;
        while !self.tree.stopped() {
            match self.inbox.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(Order::Approve(_, reply)) => {
                    let what = "the tree cannot be used at present; see `syncagent status`";
                    let _ = reply.send(Err(Error::new(Class::Transient, what)));
                }
                Ok(Order::Job(job)) => job(None),
                Ok(Order::Wake) => self.tree.woken.store(false, Ordering::Release),
                Ok(Order::Back(from)) => self.back = Some(from),
                Ok(Order::Again) => {}
                Ok(Order::Stop) | Err(_) => return,
            }
        }
    }

    fn session(&mut self) -> Result<End> {
        let mut s = self.open()?;
        self.tree.prune_trash(&s.control);
        let end = loop {
            match self.step(&mut s).and_then(|end| if end.is_some() { Ok(end) } else { self.wait(&mut s) }) {
                Ok(None) => {}
                Ok(Some(end)) => break Ok(end),
                Err(e) => break Err(e),
            }
        };
        // before the lock is given back
        self.end_pruning(end.as_ref().err());
        end
    }

    fn open(&mut self) -> Result<Session> {
        let tree = self.tree.clone();
        let path = &tree.config.path;
        {
            let mut shared = tree.shared();
            (shared.lock, shared.unwritable) = (None, None);
            // nobody looked yet at what is here now
            shared.sound = Sound::Unknown;
        }
        let target = Target::open(path, false, Duration::ZERO, &tree.stop).inspect_err(|e| {
            if e.class == Class::Busy {
                tree.shared().lock = Some(e.what.clone());
            }
            if matches!(e.errno(), Some(Errno::ROFS | Errno::ACCESS | Errno::PERM)) {
                tree.shared().unwritable = Some(e.to_string());
            }
        })?;
        let Some(control) = target.control else {
            return Err(Error::integrity(format!("{} cannot be managed", escaped(path))));
        };
        let index = Index::open(&tree.state.file("tree.db"))?;
        let store = Store::open(&tree.state.file("fetched.db"))?;
        let recovered = self.recover(&control, &index)?;
        if let Some(done) = &recovered {
            tracing::info!(tree = tree.name(), drift = done.drift.len(), "finished what was under way");
        }
        let applied = control.marker()?.and_then(|m| m.applied);
        let generation = applied.as_ref().and_then(|a| a.generation);
        {
            let mut shared = tree.shared();
            // what this tree says of itself counts, not what another one said that was here before
            let known = generation.map(|(id, _)| id);
            shared.applied = known;
            let complete = known.and_then(|id| match tree.refresher.get() {
                Some(refresher) => refresher.complete().map(|c| c.min(id)),
                None => Some(id),
            });
            if std::mem::replace(&mut shared.complete, complete) > complete {
                shared.lag = Lag::default();
                tree.again.notify_one();
            }
            shared.applied_object = generation.map(|(_, object)| object);
            if known.is_some() && tree.refresher.get().is_some_and(|r| r.in_place().is_none()) {
                // refreshes are new in the configuration, as a rule on all nodes at once: what is here was served until now
                shared.deferred.begin_anew(boot_ms());
            }
            // the source may have been asked before this was known
            let _ = complete.map(|id| shared.lag.applied(id, boot_ms()));
            shared.forgive(boot_ms());
            shared.behind = shared.newest.as_ref().map(|n| shared.ahead_of_complete(n.id));
            shared.content = applied.and_then(|a| a.content.parse().ok());
        }
        match recovered.as_ref().and_then(|done| Some((done.errors.first()?, done.errors.len()))) {
            None => self.tell_of_what_is_there(generation.map(|(id, _)| id), recovered.is_some())?,
            Some((e, paths)) => {
                // until a run has brought all of it, and with no refresh before that
                self.untold = Changed::Everything;
                let paths = counted_as(paths, "path", ("is", "are"));
                let what = format!("of a commit that was interrupted {paths} not in place");
                self.trouble(State::Incomplete, format!("{what}: {}: {}", e.path, e.error));
            }
        }
        // the agent may have ended before it went back
        self.back = self.back.or(tree.refresher.get().and_then(|refresher| refresher.rolls_back()));
        let mount =
            MountId::of(&control.root).context(|| format!("find the file system of {}", escaped(path)))?;
        let remedy = escaped(&tree.state.file(PIN));
        let pin = pin::of(&control.root, path, &mount, &[])?;
        match tree.state.read::<Pin>(PIN) {
            Some(old) => pin::check(&old, "tree", path, &mount, &remedy)?,
            None => tree.state.write(PIN, &pin)?,
        }
        // not of what a lost mount has uncovered
        let empty = empty::is_empty(path, &self.options.filter)?;
        tree.shared().empty = Some(empty);
        let waker = tree.clone();
        let watcher = Arc::new(Watcher::new(path, move || {
            waker.is_touched();
            waker.wake();
        })?);
        let begun = Instant::now();
        let scanned = self.scan(&control, &index, &watcher, None)?;
        tree.shared().files = scanned.files;
        self.found(&control, scanned.files, true)?;
        Ok(Session {
            control,
            _lock: target.lock,
            index,
            store,
            watcher,
            scanned,
            dirty: Changes::default(),
            dirty_at: None,
            dirty_since: None,
            full_at: begun + tree.role.scan_interval,
            look_took: begun.elapsed(),
            retry_at: None,
            retry_for: None,
            retry_wait: RETRY,
            settled: None,
        })
    }

    /// Finishes what a crash left.
    fn recover(&self, control: &Control, index: &Index) -> Result<Option<Committed>> {
        let finish = || recover_all(control, index, self.options.keep);
        finish().or_else(|e| {
            if !is_full(&e) {
                return Err(e);
            }
            // what was to be pruned when the agent ended may be what it lacks
            prune(control, self.options.keep)?;
            finish()
        })
    }

    fn scan(
        &self,
        control: &Control,
        index: &Index,
        watcher: &Watcher,
        only: Option<&Only>,
    ) -> Result<Scanned> {
        let entering = |dir: &TreePath| watcher.watch(dir);
        let spec = Spec {
            root: &control.root,
            shown: &control.shown(),
            index,
            filter: &self.options.filter,
            policy: &self.options.tree_policy(),
            owners: &self.owners,
            rehash: false,
            setid: true,
            gate: None,
            entering: Some(&entering),
            only,
            known: None,
            counters: &Counters::default(),
        };
        index.begin()?;
        let scanned = scan(&[spec], self.options.threads, &self.tree.stop)?.pop();
        index.commit()?;
        let reason = watcher.degraded();
        self.tree.shared().watch =
            WatchStatus { native: reason.is_none(), directories: watcher.count() as u64, reason };
        scanned.ok_or_else(|| Error::integrity("the scan lost a tree"))
    }

    /// Brings the index up to date where something happened, or everywhere.
    pub(super) fn look(&self, s: &mut Session, everywhere: bool) -> Result<()> {
        s.dirty_since = None;
        let begun = Instant::now();
        let dirty = std::mem::take(&mut s.dirty);
        s.dirty_at = None;
        if everywhere || dirty.all {
            s.full_at = begun + self.tree.role.scan_interval;
            s.scanned = self.scan(&s.control, &s.index, &s.watcher, None)?;
            self.tree.shared().files = s.scanned.files;
            self.found(&s.control, s.scanned.files, true)?;
        } else {
            let only = Only::new(dirty.to_list().iter(), dirty.deep.into_iter().collect());
            let part = self.scan(&s.control, &s.index, &s.watcher, Some(&only))?;
            s.scanned.root = part.root;
            s.scanned.keeps = part.keeps;
            s.scanned.errors = part.errors;
            s.scanned.entries = s.scanned.entries.max(part.entries);
            self.found(&s.control, part.files, false)?;
        }
        s.look_took = begun.elapsed();
        Ok(())
    }

    /// So many files are there, or in the part that was looked at. Where nothing is managed yet that says whether the tree is empty.
    fn found(&self, control: &Control, files: u64, everywhere: bool) -> Result<()> {
        let known = self.tree.shared().empty;
        if known != Some(files == 0) && (files > 0 || everywhere) {
            let empty = empty::judged(control.marker()?.as_ref(), || Ok(files > 0))?;
            self.tree.shared().empty = Some(empty);
            self.tree.news.notify_one();
        }
        Ok(())
    }

    pub(super) fn gather(&self, s: &mut Session) {
        self.tree.woken.store(false, Ordering::Release);
        let changes = self.tree.take_counted(&s.watcher, &self.options.filter);
        self.note(s, changes);
    }

    /// Remembers what must be looked at.
    pub(super) fn note(&self, s: &mut Session, changes: Changes) {
        if changes.is_empty() {
            return;
        }
        if !std::mem::replace(&mut self.tree.shared().unjudged, true) {
            // until it was looked at, nobody can say that all is as it should be
            self.tree.news.notify_one();
        }
        s.dirty_at = Some(Instant::now());
        s.dirty_since = s.dirty_since.or(s.dirty_at);
        s.dirty.merge(changes);
    }

    /// Whether somebody wrote into the tree since it was looked at.
    pub(super) fn is_dirty(s: &Session) -> bool {
        s.dirty_at.is_some()
    }

    /// One thing after the other, whichever is due.
    fn step(&mut self, s: &mut Session) -> Result<Option<End>> {
        self.gather(s);
        let now = Instant::now();
        let quiet = s.dirty_at.is_some_and(|at| now >= at + DRIFT_QUIET)
            || s.dirty_since.is_some_and(|since| now >= since + DRIFT_MAX);
        let full = now >= s.full_at;
        if !is_still(&s.control) {
            return Ok(Some(End::Reopen));
        }
        let newest = {
            let shared = self.tree.shared();
            shared.target().filter(|_| shared.orders.paused.is_none())
        };
        let Some(newest) = newest else {
            // nothing to compare with yet, or not now; drift is judged when the source was heard
            self.begun_alone();
            if full || quiet {
                self.look(s, full)?;
                self.found_as_judged(s);
            }
            return Ok(None);
        };
        if let Some(from) = self.back.take() {
            self.begin_back(s, from)?;
            return Ok(None);
        }
        let waits = s.retry_at.is_some_and(|at| now < at) && s.retry_for == Some(newest.id);
        if full || quiet {
            self.look(s, full)?;
        } else if waits || s.retry_at.is_none() && s.settled_for(&newest) {
            return Ok(None);
        }
        s.retry_at = None;
        match self.bring(s, &newest) {
            Ok(end) => {
                if s.retry_at.is_none() {
                    s.retry_wait = RETRY;
                }
                Ok(end)
            }
            Err(e) if e.class == Class::Interrupted && !self.tree.stopped() => {
                // a newer generation takes its place
                Ok(None)
            }
            // a commit that was decided is carried out by the next session
            Err(e) if e.class == Class::Transient && Journal::pending(&s.control.dir)?.is_none() => {
                s.retry(&e, newest.id);
                self.disk_failed = is_of_a_disk(&e);
                // what the source or the way to it did not give is no failure here
                let here = e.source.is_some();
                self.trouble(if here { State::Failed } else { State::Fetching }, e.to_string());
                self.look(s, false)?;
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }

    /// While nothing is compared: a tree that is as it was when it was judged last needs no other judgement. Otherwise a late
    /// event of a commit would make a paused node one of which nobody knows, for as long as it is paused.
    fn found_as_judged(&self, s: &Session) {
        let judged = s.settled.as_ref().is_some_and(|(root, ..)| *root == s.scanned.root.object);
        if judged && !Self::is_dirty(s) && std::mem::take(&mut self.tree.shared().unjudged) {
            self.tree.news.notify_one();
        }
    }

    /// All that is here was looked at, and the source does not answer: that is no start any more.
    fn begun_alone(&self) {
        let alone = {
            let shared = self.tree.shared();
            shared.state == State::Starting && shared.contact.report(boot_ms()).is_some()
        };
        if alone {
            self.tree.enter(State::Disconnected);
        }
    }

    fn wait(&mut self, s: &mut Session) -> Result<Option<End>> {
        let newest = {
            let shared = self.tree.shared();
            shared.target().filter(|_| shared.orders.paused.is_none())
        };
        if newest.is_some_and(|n| !s.settled_for(&n) && (s.retry_at.is_none() || s.retry_for != Some(n.id))) {
            return Ok(None);
        }
        let now = Instant::now();
        let mut due = (now + TICK).min(s.full_at);
        due = s.retry_at.map_or(due, |at| due.min(at));
        due = s.dirty_at.map_or(due, |at| due.min(at + DRIFT_QUIET));
        if s.watcher.degraded().is_some() {
            let poll = POLL.max(s.look_took * POLL_FACTOR).min(self.tree.role.scan_interval);
            let last = s.full_at - self.tree.role.scan_interval;
            s.full_at = s.full_at.min(last + poll);
            due = due.min(s.full_at);
        }
        match self.inbox.recv_timeout(due.saturating_duration_since(now)) {
            Ok(Order::Stop) | Err(RecvTimeoutError::Disconnected) => Ok(Some(End::Stop)),
            Ok(Order::Approve(id, reply)) => self.approve(s, id, &reply),
            Ok(Order::Again) => {
                (s.settled, s.retry_at) = (None, None);
                Ok(None)
            }
            Ok(Order::Back(from)) => {
                self.back = Some(from);
                Ok(None)
            }
            Ok(Order::Job(job)) => {
                job(Some((&self.tree, s)));
                Ok(None)
            }
            Ok(Order::Wake) | Err(RecvTimeoutError::Timeout) => Ok(None),
        }
    }

    fn approve(
        &mut self,
        s: &mut Session,
        id: PlanId,
        reply: &std::sync::mpsc::Sender<Result<String>>,
    ) -> Result<Option<End>> {
        let (waiting, newest, paused) = {
            let shared = self.tree.shared();
            (shared.plan.clone(), shared.target(), shared.orders.paused.is_some())
        };
        let (end, answer) = match (waiting, newest) {
            _ if paused => {
                let name = self.tree.name();
                let what = format!("{name} is paused on this node; first: syncagent resume {name}");
                (None, Err(Error::new(Class::Config, what)))
            }
            (Some(plan), Some(newest)) if plan.id == id.to_string() => {
                self.approved = Some(id);
                let done = self.bring(s, &newest);
                self.approved = None;
                match done {
                    Ok(end) if self.tree.shared().applied == Some(newest.id) => {
                        (end, Ok(format!("generation {} is in place", newest.id)))
                    }
                    Ok(end) => {
                        let what = "the tree changed meanwhile; see `syncagent status`";
                        (end, Err(Error::new(Class::Transient, what)))
                    }
                    Err(e) => {
                        let _ = reply.send(Err(Error::new(e.class, e.to_string())));
                        return Err(e);
                    }
                }
            }
            (Some(plan), _) => {
                let what = format!("plan {id} does not wait (any more); {} does: {}", plan.id, plan.reason);
                (None, Err(Error::new(Class::Config, what)))
            }
            (None, _) => {
                let what = format!("no plan of {} waits for an approval", self.tree.name());
                (None, Err(Error::new(Class::Config, what)))
            }
        };
        // who asked may have gone
        let _ = reply.send(answer);
        Ok(end)
    }
}

/// Whether a disk is full, or cannot be written or read.
fn is_of_a_disk(e: &Error) -> bool {
    is_full(e) || matches!(e.errno(), Some(Errno::ROFS | Errno::IO))
}

/// Whether the tree's path still leads to what is open.
fn is_still(control: &Control) -> bool {
    // a directory without ours in it is another one: it is not to be touched by a look
    let there = Dir::open_root(&control.path).is_ok_and(|root| root.open_child(CONTROL_DIR).is_ok());
    there && Control::open(&control.path).and_then(|now| now.is_same(control)).unwrap_or(false)
}

impl Session {
    /// Whether nothing about this generation can change until the tree or the generation does.
    fn settled_for(&self, newest: &crate::model::Generation) -> bool {
        self.settled == Some((self.scanned.root.object, newest.root.object, newest.id))
    }

    pub(super) fn settle(&mut self, newest: &crate::model::Generation) {
        self.settled = Some((self.scanned.root.object, newest.root.object, newest.id));
    }

    /// Tries again later.
    pub(super) fn retry(&mut self, e: &Error, generation: GenId) {
        if self.retry_for.replace(generation) != Some(generation) {
            // a newer one is tried at once in any case
            self.retry_wait = RETRY;
        }
        tracing::debug!("again in {:?}: {e}", self.retry_wait);
        self.retry_at = Some(Instant::now() + self.retry_wait);
        self.retry_wait = (self.retry_wait * 2).min(RETRY_MAX);
    }
}
