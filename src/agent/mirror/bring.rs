//! Bringing the tree to a generation: directories fetched, judged, staged, committed. The same steps put drift
//! back, with the generation that is there already.

mod done;
mod drift;
mod fetch;
mod monitor;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::Instant;

use drift::name_drift;
use fetch::GONE;
use monitor::{Bringing, Took};

use super::engine::{End, Engine, Session};
use super::remote::Remote;
use crate::agent::apply::{Activate, Apply, NotCarried, Outcome, Phase, Progress, Trees};
use crate::apply::Journal;
use crate::config::DriftPolicy;
use crate::disk::{Owners, boot_ms};
use crate::error::{Class, Error, Result, lock};
use crate::model::{Digest, Generation, Object, Root, Source as _, State, counted_as};
use crate::plan::{Facts, Tally, judge};
use crate::refresh::Changed;
use crate::scan::{Objects, OldTree};

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
            shared.mended.take_if(|_| drifted > 0);
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
            filter: &options.filter,
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
        let mut seen = std::mem::take(&mut *lock(&run.seen));
        if done.is_ok() {
            // what the commit's own renames raised was looked at after them
            seen.forget_in(&outcome.touched);
        }
        // of a run that failed as well: nobody would look at it otherwise
        self.note(s, seen);
        done?;
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
