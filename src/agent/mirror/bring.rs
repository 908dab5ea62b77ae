//! Bringing the tree to a generation: directories fetched, judged, staged, committed. The same steps put drift
//! back, with the generation that is there already.

mod monitor;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use monitor::{Bringing, Took};

use super::MirrorTree;
use super::engine::{End, Engine, Session};
use super::remote::{Remote, check};
use crate::agent::apply::{Activate, Apply, NotCarried, Outcome, Phase, Progress, TreeDiff, Trees};
use crate::agent::history::Applied;
use crate::agent::unpublished::{Unpublished, unpublished};
use crate::apply::Journal;
use crate::config::DriftPolicy;
use crate::disk::{OwnerPolicy, Owners, boot_ms, wall_ms};
use crate::error::{Class, Error, Result, lock};
use crate::lag::Lag;
use crate::model::{
    Digest, Entry, GenId, Generation, Kind, Object, Owner, RefusedPlan, Root, RootHeader, Source as _, State,
    counted, counted_as, root_content,
};
use crate::plan::{Facts, Moves, Op, Refusal, Tally, judge};
use crate::refresh::Changed;
use crate::scan::{Objects, OldTree};

/// What the source does not keep any more.
const GONE: &str = "the source does not have any more the directory";
/// What drifted is named in the log up to so many paths.
const NAMED: u64 = 20;
/// What only older generations had goes after so many.
const SWEEP_EVERY: u64 = 64;

impl Engine {
    /// Makes the tree what `newest` says.
    pub(super) fn bring(&mut self, s: &mut Session, newest: &Generation) -> Result<Option<End>> {
        let tree = self.tree.clone();
        tree.supersede.store(false, Ordering::Relaxed);
        // a pause that came since the step began to look has just been overwritten: it is asked for after, as it sets it after
        let paused = tree.shared().orders.paused.is_some();
        if tree.stopped() || paused {
            return Err(Error::new(Class::Interrupted, "interrupted"));
        }
        let begun = Instant::now();
        let persisted = s.control.marker()?.and_then(|m| m.applied).and_then(|a| a.generation);
        let is_new = persisted.map(|(id, _)| id) != Some(newest.id);
        // a disk has failed until it does what it is asked to, not until that is tried again
        let failed = self.disk_failed && tree.shared().state == State::Failed;
        if is_new && !failed {
            tree.enter(State::Fetching);
        }
        tree.shared().fetching_since = Some(boot_ms());
        self.lacking = None;
        let mut done = self.bring_now(s, newest, is_new, begun);
        if done.as_ref().is_err_and(|e| self.made_room(e)) && Journal::pending(&s.control.dir)?.is_none() {
            done = self.bring_now(s, newest, is_new, begun);
        }
        if matches!(done, Ok(None)) {
            tree.prune_trash(&s.control);
        }
        if let (Err(_), Some(why)) = (&done, self.lacking.take())
            && self.give_up_back(newest.id, &why)?
        {
            tree.shared().fetching_since = None;
            s.settled = None;
            return Ok(None);
        }
        let mut shared = tree.shared();
        shared.fetching_since = None;
        match &done {
            Ok(_) => shared.patience = super::FIRST_PATIENCE,
            Err(e) if e.class == Class::Interrupted => shared.patience = shared.patience.saturating_mul(2),
            Err(_) => {}
        }
        done
    }

    fn bring_now(
        &mut self,
        s: &mut Session,
        newest: &Generation,
        is_new: bool,
        begun: Instant,
    ) -> Result<Option<End>> {
        let tree = self.tree.clone();
        // what a peer sends is no damage of ours
        let root = self.fetch(s, &newest.root).map_err(|e| {
            self.lacking = e.what.contains(GONE).then(|| e.to_string());
            match e.class {
                Class::Permanent | Class::Refused => Error { class: Class::Transient, ..e },
                _ => e,
            }
        })?;
        if newest.root.content != root.content {
            let what = format!("the source's generation {} is not what its content digest says", newest.id);
            return Err(Error::new(Class::Transient, what));
        }
        let fetched = begun.elapsed();
        if Self::is_dirty(s) {
            self.look(s, false)?;
        }
        let goes_back = tree.shared().back().is_some_and(|back| back.to.id == newest.id);
        let remote = if goes_back { Remote::back_to } else { Remote::of }(&tree, s, root.clone());
        let marker = s.control.marker()?;
        let mut options = self.options.clone();
        options.approve = self.approved;
        let taken_over = options.adopt || marker.as_ref().is_some_and(|m| m.taken_over);
        let unmanaged = !taken_over && s.scanned.entries > 0;
        let trees = s.against(&remote, &self.owners);
        let (old, new) = (OldTree(&s.index), Objects(&remote));
        let diff = trees.diff(&old, &new, false);
        let plan = trees.plan(&diff, unmanaged)?;
        let applied = marker.as_ref().and_then(|m| m.applied.as_ref()).and_then(|a| a.generation);
        let whole = (&diff, &plan.tally);
        let drift = if unmanaged { None } else { self.drift(s, applied, newest, whole)? };
        let is_empty = newest.root.object == Digest::of(&Object::default().encode());
        let facts = Facts { there: s.scanned.files, source_is_empty: is_empty, unmanaged };
        let judge = |tally: &Tally| judge(tally, facts, options.max_delete);
        // of a managed tree only what drift loses is judged here, when the source judged the rest; and drift loses no more
        // than the plan does
        let refusal = match &drift {
            _ if unmanaged || !newest.judged => judge(&plan.tally),
            Some((drift, _)) => judge(drift).and(judge(&plan.tally)),
            None => None,
        };
        let id = plan.tally.plan_id();
        if let Some(refusal) = refusal.filter(|_| self.approved != Some(id)) {
            s.settle(newest);
            self.refuse(&id.to_string(), &refusal, plan.tally.lost);
            return Ok(None);
        }
        options.approve = self.approved;
        let drifted =
            drift.as_ref().map_or(0, |(d, _)| d.created + d.updated + d.attrs + d.moved + d.deleted);
        {
            let mut shared = tree.shared();
            let unjudged = Self::is_dirty(s);
            let was = (shared.drift, std::mem::replace(&mut shared.unjudged, unjudged));
            shared.drift = drifted;
            shared.deferred.let_through();
            let (refreshing, before) = (tree.is_refreshing(), shared.sound);
            shared.sound.judged(drifted > 0, refreshing);
            if before != shared.sound || was != (drifted, unjudged) {
                tree.news.notify_one();
            }
        }
        if !is_new && drifted > 0 {
            name_drift(tree.name(), &diff)?;
            if tree.role.drift == DriftPolicy::Report {
                s.settle(newest);
                self.trouble(
                    State::Drift,
                    format!(
                        "{} changed here; `drift = \"report\"` leaves that so until the next generation",
                        counted_as(drifted, "path", ("was", "were"))
                    ),
                );
                return Ok(None);
            }
        }
        let progress = Progress::default();
        let mut outcome = outcome(plan.tally, &root);
        let run = Bringing {
            watcher: s.watcher.clone(),
            seen: Mutex::default(),
            tree: &tree,
            newest,
            staged: OnceLock::new(),
            committed: OnceLock::new(),
            changed: Mutex::default(),
            staged_all: AtomicBool::new(false),
            goes_back,
            lacking: Mutex::default(),
        };
        let planned = Instant::now();
        let apply = Apply {
            o: &options,
            dst: &tree.config.path,
            monitor: &run,
            progress: &progress,
            cancel: &tree.supersede,
            pin: None,
            root_mtime: None,
            remote: true,
            generation: Some((newest.id, newest.root.object)),
            aside: drift.map(|(_, written)| written.paths).unwrap_or_default(),
        };
        outcome.errors.extend(plan.conflicts);
        let swaps = options.activate == Activate::Swap && (!trees.same() || trees.root_attrs());
        if swaps {
            // the whole trash goes over into another directory
            tree.pruning.halt();
        }
        let done = apply.carry_out(&s.control, &trees, &diff, &plan.moves, marker, &mut outcome);
        let changes = run.staged_all.load(Ordering::Relaxed);
        // of a run that failed after it began to commit nobody knows what came into place
        let changed = if done.is_err() && changes {
            Changed::Everything
        } else {
            std::mem::take(&mut *lock(&run.changed))
        };
        self.untold = std::mem::take(&mut self.untold).union(changed);
        self.lacking = lock(&run.lacking).take();
        self.expected |= changes;
        done?;
        // what the commit's own renames raised was looked at after them
        let mut seen = std::mem::take(&mut *lock(&run.seen));
        seen.forget_in(&outcome.touched);
        self.note(s, seen);
        progress.enter(Phase::Finishing);
        let now = Instant::now();
        let staged = *run.staged.get().unwrap_or(&now);
        let committed = *run.committed.get().unwrap_or(&now);
        let took = Took {
            fetch: fetched,
            plan: planned - begun - fetched,
            stage: staged - planned,
            commit: committed - staged,
            rest: now - committed,
        };
        self.finish(s, newest, outcome, (took, root.object), is_new, drifted)?;
        Ok(swaps.then_some(End::Reopen))
    }

    /// Fetches the directories that are missing, and describes them as this node does.
    fn fetch(&self, s: &Session, root: &Root) -> Result<Root> {
        let tree = &self.tree;
        let setid = tree.config.setid;
        let peers =
            |e: Error| if e.class == Class::Integrity { Error { class: Class::Permanent, ..e } } else { e };
        s.store.take_in(&root.object, &mut |want| {
            let mut out: Vec<Vec<u8>> = Vec::with_capacity(want.len());
            tree.client
                .objects(want, &mut |digest, body| {
                    let gone = || Error::new(Class::Transient, format!("{GONE} {digest}"));
                    let body = body.ok_or_else(gone)?;
                    Object::decode(&body).and_then(|object| check(&object, setid)).map_err(peers)?;
                    out.push(body);
                    Ok(())
                })
                .map_err(peers)?;
            Ok(out)
        })?;
        let described = self.described(s, root)?;
        // what is applied is proven against this in the end
        let content = root_content(root.header.mode, &s.store.object(&described.object)?.content());
        Ok(Root { content, ..described })
    }

    /// A root whose directories are there, as this node describes it.
    fn described(&self, s: &Session, root: &Root) -> Result<Root> {
        let policy = &self.options.owner;
        if *policy == OwnerPolicy::Preserve {
            return Ok(root.clone());
        }
        let name = Digest::of(format!("{policy:?}").as_bytes());
        let change = |entry: &mut Entry| entry.owner = owner_by(policy, &entry.owner);
        let object = s.store.translate(&root.object, &name, &change)?;
        let header = RootHeader { mode: root.header.mode, owner: owner_by(policy, &root.header.owner) };
        Ok(Root { object, content: root.content, header })
    }

    /// What was changed here since `applied` came into place, and what of that was written here; `None` when nothing
    /// was changed.
    fn drift(
        &self,
        s: &Session,
        applied: Option<(GenId, Digest)>,
        newest: &Generation,
        (diff, whole): (&TreeDiff<'_, '_>, &Tally),
    ) -> Result<Option<(Tally, Unpublished)>> {
        let Some((id, object)) = applied else {
            // managed by a sync before: nothing of it is known to be a generation's, nor to be written here
            return Ok((whole.lost > 0).then(|| (whole.clone(), Unpublished::default())));
        };
        let everything = || Ok(Some((whole.clone(), unpublished(diff)?)));
        if id == newest.id {
            let changed = whole.created + whole.updated + whole.attrs + whole.moved + whole.deleted;
            return if changed > 0 { everything() } else { Ok(None) };
        }
        let root = Root { object, ..newest.root.clone() };
        if s.store.has(&object)? && self.described(s, &root)?.object == s.scanned.root.object {
            return Ok(None);
        }
        let was = match self.fetch(s, &root) {
            Ok(was) => was,
            Err(e) if matches!(e.class, Class::Interrupted | Class::Integrity) => return Err(e),
            Err(e) if e.what.contains(GONE) => {
                // nobody knows any more what was applied: everything is judged
                return everything();
            }
            Err(e) => return Err(Error { class: Class::Transient, ..e }),
        };
        if was.object == s.scanned.root.object {
            return Ok(None);
        }
        let remote = Remote::of(&self.tree, s, was);
        let trees = s.against(&remote, &self.owners);
        let (old, new) = (OldTree(&s.index), Objects(&remote));
        let diff = trees.diff(&old, &new, false);
        name_drift(self.tree.name(), &diff)?;
        Ok(Some((trees.plan(&diff, false)?.tally, unpublished(&diff)?)))
    }

    fn refuse(&self, id: &str, refusal: &Refusal, lost: u64) {
        let reason = match refusal {
            Refusal::Takeover { lost, replaced } => format!(
                "the tree here was never managed by syncagent (or holds excluded content that nobody handed over), is not \
                 empty, and would lose {} by deletion and {replaced} by replacement",
                counted(*lost, "file")
            ),
            Refusal::TooManyDeletions { lost, there, limit } => format!(
                "{lost} of {there} files that were added or changed here would be lost, more than max-delete = {limit} allows"
            ),
            refusal @ Refusal::EmptySource { .. } => refusal.to_string(),
        };
        let name = self.tree.name();
        let hint =
            format!("{reason}. To let exactly this through, on this node: syncagent approve {name} {id}");
        self.tree.shared().plan = Some(RefusedPlan { id: id.to_owned(), reason, lost });
        self.trouble(State::Refused, hint);
    }

    fn finish(
        &mut self,
        s: &mut Session,
        newest: &Generation,
        outcome: Outcome,
        (took, wanted): (Took, Digest),
        is_new: bool,
        drifted: u64,
    ) -> Result<()> {
        let tree = self.tree.clone();
        if let Some(root) = &outcome.root {
            s.scanned.root = root.clone();
        }
        s.scanned.files = newest.files;
        s.scanned.entries = s.scanned.entries.max(newest.files);
        tree.shared().plan = None;
        if !outcome.mismatched.is_empty() {
            tree.shared().suspects = outcome.mismatched.clone();
            tree.news.notify_one();
        }
        let failed = outcome.errors.len() as u64 + outcome.vanished;
        if failed > 0 {
            let persisted = s.control.marker()?.and_then(|m| m.applied).and_then(|a| a.generation);
            {
                let mut shared = tree.shared();
                shared.applied = persisted.map(|(id, _)| id);
                shared.complete = shared.complete.min(shared.applied);
            }
            let first = outcome.errors.first().map(|e| format!("{}: {}", e.path, e.error));
            let first = first.unwrap_or_else(|| "the source does not have their content any more".into());
            let what = format!(
                "generation {}: {} not in place: {first}",
                newest.id,
                counted_as(failed, "path", ("is", "are"))
            );
            s.retry(&Error::new(Class::Transient, what.clone()), newest.id);
            self.trouble(State::Incomplete, what);
            return Ok(());
        }
        if s.scanned.root.object == wanted {
            s.settle(newest);
        } else {
            // somebody wrote into it during the commit: looked at as drift
            tree.shared().unjudged = true;
            s.retry(&Error::new(Class::Transient, "the tree changed during the commit"), newest.id);
        }
        {
            let mut shared = tree.shared();
            shared.files = newest.files;
            shared.content = Some(outcome.content);
            shared.drift = 0;
            shared.trouble.clear();
        }
        tree.mark_applied(newest);
        self.tell(newest.id, is_new)?;
        if !tree.is_refreshing() {
            tree.shared().told();
            tree.news.notify_one();
        }
        tree.is_past(newest.id);
        tree.enter(State::Current);
        tree.remember(s, newest, &took, is_new);
        if newest.id.number.is_multiple_of(SWEEP_EVERY) {
            self.sweep(s, newest);
        }
        let t = &outcome.tally;
        if is_new || drifted > 0 {
            tracing::info!(
                tree = tree.name(),
                generation = %newest.id,
                files = outcome.copied.0,
                bytes = outcome.copied.1,
                moved = t.moved,
                deleted = t.deleted,
                fetch_ms = ms(took.fetch),
                plan_ms = ms(took.plan),
                stage_ms = ms(took.stage),
                commit_ms = ms(took.commit),
                rest_ms = ms(took.rest),
                drift = drifted + outcome.drift.len() as u64,
                "{}",
                if is_new { "applied" } else { "drift put back; what was there is in the trash" }
            );
        }
        Ok(())
    }
}

impl Session {
    /// What is here, against what shall be.
    fn against<'a>(&'a self, remote: &'a Remote<'_>, owners: &'a Owners) -> Trees<'a> {
        Trees {
            source: remote,
            root: remote.root(),
            unreadable: &[],
            tree: Some(&self.scanned),
            tree_index: &self.index,
            owners,
        }
    }
}

impl Engine {
    /// Forgets the directories that only older generations had.
    fn sweep(&self, s: &Session, newest: &Generation) {
        let described = s.scanned.root.object;
        // what the node may have to go back to
        let before = self.tree.refresher.get().and_then(|_| self.tree.happened.complete_before(newest));
        let before = before.into_iter().map(|before| before.root.object);
        let roots: Vec<Digest> = before.chain([newest.root.object, described]).collect();
        if let Err(e) = s.store.sweep(&roots) {
            tracing::warn!(tree = self.tree.name(), "{e}");
        }
    }
}

impl MirrorTree {
    /// Writes down what was applied, and which commit did it.
    fn remember(&self, s: &Session, generation: &Generation, took: &Took, is_new: bool) {
        if let Ok(Some(marker)) = s.control.marker() {
            self.happened.commit(marker.seq, generation.id);
        }
        // when it came first is what counts
        let again = self.shared().gone_back().is_some_and(|back| back.to.id == generation.id);
        if is_new && !again {
            let converged = self.shared().converged_last.filter(|(id, _)| *id == generation.id);
            let all = took.fetch + took.plan + took.stage + took.commit;
            self.happened.applied(&Applied {
                generation: generation.clone(),
                at_ms: wall_ms(),
                took_ms: u64::try_from(all.as_millis()).unwrap_or(u64::MAX),
                converged_ms: converged.map(|(_, ms)| ms),
            });
        }
    }

    /// A generation is completely in place.
    pub(super) fn mark_applied(&self, generation: &Generation) {
        let now = boot_ms();
        let mut shared = self.shared();
        shared.empty = Some(false);
        if shared.applied == Some(generation.id) {
            return;
        }
        let age = shared.lag.lag_ms(now).unwrap_or(0);
        shared.applied = Some(generation.id);
        shared.applied_object = Some(generation.root.object);
        if shared.complete > shared.applied {
            // it went back, and begins to count anew
            shared.complete = shared.applied;
            shared.lag = Lag::default();
            let _ = shared.lag.applied(generation.id, now);
            self.again.notify_one();
        }
        shared.forgive(now);
        shared.recent.push(generation, now as i64 - age as i64);
        drop(shared);
        // where a server is told, it must have it, too
        if self.refresher.get().is_none() {
            self.mark_complete(|| Some(generation.id));
        }
    }

    /// A generation is in place, and the local server has it where one is told. Which one is asked for under the lock: of two
    /// threads that tell of it at once the later one must not say what was true before.
    pub(super) fn mark_complete(&self, id: impl FnOnce() -> Option<GenId>) {
        let now = boot_ms();
        let mut shared = self.shared();
        // what it went back from is not here any more
        let id = id().min(shared.applied);
        let Some(id) = id.filter(|_| shared.complete != id) else { return };
        shared.complete = Some(id);
        shared.behind = shared.newest.as_ref().map(|n| shared.ahead_of_complete(n.id));
        if let Some(took) = shared.lag.applied(id, now) {
            shared.history.add(id, took, now);
            shared.converged.push((id, took));
            shared.converged_last = Some((id, took));
        }
        drop(shared);
        self.news.notify_one();
    }
}

/// An owner as this node's policy describes it.
fn owner_by(policy: &OwnerPolicy, own: &Owner) -> Owner {
    match policy {
        OwnerPolicy::Preserve => own.clone(),
        OwnerPolicy::Ignore => Owner::default(),
        OwnerPolicy::Fixed(fixed) => {
            let or = |fixed: &Arc<str>, own: &Arc<str>| {
                if fixed.is_empty() { own.clone() } else { fixed.clone() }
            };
            Owner { user: or(&fixed.user, &own.user), group: or(&fixed.group, &own.group) }
        }
    }
}

fn name_drift(tree: &str, diff: &TreeDiff<'_, '_>) -> Result<()> {
    let mut count = 0;
    diff.walk(&Moves::default(), &mut |step| {
        count += 1;
        if count <= NAMED {
            let how = match step.op {
                Op::Create => "was removed here",
                Op::Delete => "was added here",
                Op::Attrs if step.kind() == Kind::Dir => return Ok(()),
                _ => "was changed here",
            };
            tracing::warn!(tree, "drift: {} {how}", step.path);
        }
        Ok(())
    })?;
    if count > NAMED {
        tracing::warn!(tree, "drift: and {} more", counted(count - NAMED, "path"));
    }
    Ok(())
}

fn outcome(tally: Tally, root: &Root) -> Outcome {
    Outcome {
        plan_id: tally.plan_id(),
        tally,
        copied: (0, 0),
        refusal: None,
        errors: Vec::new(),
        mismatched: Vec::new(),
        drift: Vec::new(),
        specials: 0,
        dropped: NotCarried::default(),
        content: root.content,
        root: None,
        touched: Default::default(),
        recovered: false,
        vanished: 0,
    }
}

/// Milliseconds, to the tenth.
fn ms(d: Duration) -> f64 {
    (d.as_secs_f64() * 10_000.0).round() / 10.0
}
