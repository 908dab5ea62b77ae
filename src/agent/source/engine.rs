//! The thread of a source tree: events and time in, scans and publications out.
//!
//! A session lasts as long as the tree's root is the directory that was opened. Whatever goes wrong with the
//! disk ends it; the next one opens everything anew and begins with a full scan, so nothing that happened
//! in between is missed.

use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use super::publish::Published;
use super::{Inbox, Order, SourceTree, lock};
use crate::agent::role::{HoldOrder, Reply};
use crate::agent::target::{Target, recover_source};
use crate::agent::{paths, pin};
use crate::apply::{Keep, Pin, discard_stage};
use crate::disk::{Dir, HighWater, Lock, MountId, OwnerPolicy, Owners, Stat, boot_ms};
use crate::error::{Class, Context as _, Error, Result};
use crate::model::{
    Cause, Digest, Entry, GenId, Generation, HeldPath, State, TreePath, WatchStatus, escaped,
};
use crate::plan::{Filter, PlanId};
use crate::scan::{Counters, Gate, Index, Only, Scanned, Spec, Store, scan};
use crate::watch::{Settle, Watcher, unfinished};

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
/// Held files that status names.
const MAX_HELD: usize = 100;

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

/// Which files a scan describes as they were published.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Gated {
    /// Those that are not finished, or changed shortly ago.
    Fully,
    /// Those that are not finished, whatever their times are.
    ByUse,
    /// None: all are described as they are. What is not finished is judged anew by the next scan.
    Not,
}

/// Which files are not finished, and what was published of them.
struct Looked<'a> {
    settle: &'a Settle,
    quiet: Option<Duration>,
    store: &'a Store,
    base: Option<Digest>,
    /// Whoever wrote says that it is done: quiet time is not waited for.
    done: bool,
    only_marks: bool,
}

impl Gate for Looked<'_> {
    fn unfinished(&self, path: &TreePath, fd: BorrowedFd<'_>, stat: &Stat) -> Option<String> {
        let changed = |ms: u128| Some(format!("it changed {ms} ms ago"));
        let now = Instant::now();
        let busy = if self.done { self.settle.is_open(path, now) } else { self.settle.is_busy(path, now) };
        if let Some(quiet) = busy {
            return changed(quiet.as_millis());
        }
        let age = crate::disk::now().nanos() - stat.id.ctime.max(stat.mtime).nanos();
        if !self.done && self.quiet.is_some_and(|quiet| (0..quiet.as_nanos() as i128).contains(&age)) {
            return changed(age.unsigned_abs() / 1_000_000);
        }
        unfinished(fd, path.split().1, stat.size).map(|why| why.to_string())
    }

    fn published(&self, path: &TreePath) -> Option<Entry> {
        self.store.find(&self.base?, path)
    }

    fn only_marks(&self) -> bool {
        self.only_marks
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
        self.tree.shared().lock = None;
        self.control = None;
        let index = Index::open(&self.tree.state.file("source.db"))?;
        let (own_high, lock) = match Target::open(&path, false, Duration::ZERO, &AtomicBool::new(false)) {
            Ok(Target { control: Some(control), lock, .. }) => {
                // it may have been a mirror before
                let recovered = recover_source(&control, &index, self.trash_keep())?;
                if recovered.is_some() {
                    tracing::info!(tree = self.name(), "finished what was under way");
                }
                self.resume_rollback(recovered)?;
                // what a rollback had staged that was never decided
                discard_stage(&control)?;
                self.tree.seek.clean(&control.dir)?;
                let applied = control.marker()?.and_then(|m| m.applied).and_then(|a| a.generation);
                self.high.raise(applied.map_or_else(GenId::default, |(id, _)| id))?;
                let own_high = HighWater::open(&control.dir, HIGH)?;
                self.control = Some(control.dir);
                (Some(own_high), lock)
            }
            Err(e) if e.class == Class::Busy => {
                self.tree.shared().lock = Some(e.what.clone());
                return Err(e);
            }
            Ok(_) => (None, None),
            Err(e) => {
                tracing::info!(tree = self.name(), "the tree holds no record of its generations: {e}");
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

    /// How old the oldest unpublished change is, and whether anything waits to settle.
    fn show_pending(&self, s: &Session) {
        let now = Instant::now();
        let age = s.settle.unpublished_age(now);
        // what is flagged waits for itself alone
        let waits =
            s.settle.due().is_some() && (s.settle.held().count() == 0 || s.settle.held().any(|h| !h.flagged));
        let mut shared = self.tree.shared();
        shared.unpublished_since =
            age.map(|age| boot_ms().saturating_sub(u64::try_from(age.as_millis()).unwrap_or(0)));
        if shared.state == State::Current && waits {
            shared.state = State::Settling;
        }
    }

    /// Scans what may have changed, and publishes what is finished; when `asked` to, also what is not quiet yet.
    pub(super) fn look(&mut self, s: &mut Session, asked: bool) -> Result<()> {
        self.gather(s);
        s.settle.started();
        let asked = asked || self.is_publishing_hold();
        let flush = self.tree.shared().flush.0;
        let begun = Instant::now();
        let dirty = std::mem::take(&mut s.dirty);
        let only = (!std::mem::take(&mut s.full)).then(|| {
            let mut dirs = dirty.to_list();
            dirs.extend(s.settle.held().filter_map(|held| held.path.parent()));
            Only::new(dirs.iter(), dirty.deep.into_iter().collect())
        });
        if only.is_none() {
            s.next_full = begun + self.tree.role.scan_interval;
            s.flush = flush;
        }
        let scanned = match self.scan(s, only.as_ref()) {
            Ok(scanned) => scanned,
            Err(e) => {
                // the next session begins with everything
                self.tree.woken.store(false, Ordering::Release);
                return Err(e);
            }
        };
        s.look_took = begun.elapsed();
        // what happened meanwhile may be the second half of what the scan saw
        self.gather(s);
        let now = Instant::now();
        s.looked = now;
        let finished = s.settle.scanned(&scanned.held, now);
        let may_publish = finished && (asked || s.settle.is_quiet(now));
        self.show(s);
        if !may_publish {
            self.show_pending(s);
            return Ok(());
        }
        let published = self.publish(s, &scanned, only.is_none())?;
        self.hold_ended(&scanned, &published);
        match published {
            Published::Yes | Published::Unchanged => {
                s.settle.published();
                let mut shared = self.tree.shared();
                // what cannot be read is not published either; a part says nothing of what lies elsewhere
                let unread = !scanned.errors.is_empty() || only.is_some() && s.unreadable;
                if scanned.held.is_empty() && !unread {
                    shared.flush.1 = shared.flush.1.max(s.flush);
                }
                shared.state = State::Current;
                shared.plan = None;
                match scanned.errors.first() {
                    // a part says nothing of what cannot be read elsewhere
                    None if only.is_some() && s.unreadable => {}
                    None => shared.trouble.clear(),
                    Some(e) => {
                        let more = scanned.errors.len() - 1;
                        let more = if more > 0 { format!(" (and {more} more)") } else { String::new() };
                        shared.trouble.set(format!("{}: {}{more}", e.path, e.error));
                    }
                }
                if only.is_none() {
                    s.unreadable = !scanned.errors.is_empty();
                    drop(shared);
                    let now = pin::of(&s.dir, &s.path, &s.mount, &scanned.mounts)?;
                    if self.tree.state.read::<Pin>(PIN).as_ref() != Some(&now) {
                        self.tree.state.write(PIN, &now)?;
                    }
                }
            }
            // tried again when something changes, and with every full scan
            Published::Not => {}
        }
        self.show_pending(s);
        Ok(())
    }

    fn scan(&self, s: &mut Session, only: Option<&Only>) -> Result<Scanned> {
        self.scan_as(s, only, Gated::Fully)
    }

    /// As `gated` says, files that are not finished are described as they were published.
    pub(super) fn scan_as(&self, s: &mut Session, only: Option<&Only>, gated: Gated) -> Result<Scanned> {
        self.check_mounts(s)?;
        let looked = Looked {
            settle: &s.settle,
            // without events only the times tell
            quiet: s.watcher.degraded().filter(|_| gated != Gated::ByUse).map(|_| self.tree.role.settle),
            store: &self.tree.store,
            base: self.base.as_ref().map(|b| b.root.object),
            done: self.is_publishing_hold(),
            only_marks: gated == Gated::Not,
        };
        let entering = |dir: &TreePath| s.watcher.watch(dir);
        let spec = Spec {
            root: &s.dir,
            shown: &escaped(&s.path),
            index: &s.index,
            filter: &self.filter,
            policy: &self.policy,
            owners: &self.owners,
            rehash: std::mem::take(&mut s.distrust),
            setid: self.tree.config.setid,
            gate: Some(&looked),
            entering: Some(&entering),
            only,
            known: None,
            counters: &Counters::default(),
        };
        s.index.begin()?;
        let scanned = scan(&[spec], self.threads, &self.tree.stop)?.pop();
        s.index.commit()?;
        self.check_mounts(s)?;
        let scanned = scanned.ok_or_else(|| Error::integrity("the scan lost a tree"))?;
        if only.is_none() {
            let now = pin::of(&s.dir, &s.path, &s.mount, &scanned.mounts)?;
            if let Some(old) = self.tree.state.read::<Pin>(PIN) {
                pin::check_below(&old, &now, &self.remedy())?;
            }
            s.mounts = scanned.mounts.iter().cloned().zip(now.mounts.into_iter().map(|m| m.mount)).collect();
        }
        Ok(scanned)
    }

    /// The tree is where it was, and so is everything that is mounted in it.
    fn check_mounts(&self, s: &Session) -> Result<()> {
        pin::check_again(&s.dir, &s.path, &s.mount)?;
        pin::check_mounts(&s.dir, &s.mounts, &self.remedy())
    }

    /// Puts what the look found where status reads it.
    fn show(&self, s: &Session) {
        let mut held: Vec<HeldPath> = s
            .settle
            .held()
            .map(|h| HeldPath {
                path: h.path.to_string(),
                why: h.why.to_owned(),
                for_ms: u64::try_from(h.since.elapsed().as_millis()).unwrap_or(0),
            })
            .collect();
        let reason = s.watcher.degraded();
        let watch = WatchStatus {
            native: reason.is_none(),
            directories: s.watcher.count() as u64,
            reason: reason.clone(),
        };
        let count = held.len() as u64;
        held.truncate(MAX_HELD);
        let before = {
            let mut shared = self.tree.shared();
            (shared.held_count, shared.held) = (count, held);
            std::mem::replace(&mut shared.watch, watch)
        };
        // not under the lock: who reads the log may hang
        if let Some(reason) = &reason
            && before.reason.as_ref() != Some(reason)
        {
            tracing::warn!(tree = self.name(), "{reason}");
        }
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
