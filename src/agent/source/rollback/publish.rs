//! Publishing what a rollback brought, at once or after a crash.

use std::collections::{BTreeSet, HashSet};
use std::time::Instant;

use rustix::io::Errno;

use super::super::engine::{Engine, Gated, Session};
use super::super::publish::Published;
use super::order::unfinished;
use super::partly;
use super::record::{FILE, Phase, Rolling};
use crate::apply::{Committed, Journal};
use crate::disk::Dir;
use crate::error::{Class, Context as _, Error, PathError, Result};
use crate::model::{Cause, GenId, State, TreePath};
use crate::plan::{CONTROL_DIR, PlanId};
use crate::scan::{Only, Scanned};
use crate::watch::Settle;

impl Engine {
    /// Publishes what is in the tree, without waiting for it to be quiet: what happened last in it was our own work.
    pub(super) fn publish_now(
        &mut self,
        s: &mut Session,
        touched: &BTreeSet<TreePath>,
        approved: Option<PlanId>,
    ) -> Result<Published> {
        let mut seen = s.watcher.take();
        s.settle = Settle::new(self.tree.role.settle, self.tree.role.settle_max);
        s.distrust = false;
        s.dirty = Default::default();
        seen.forget_in(touched);
        s.settle.add(&seen, Instant::now());
        let mut dirs: HashSet<TreePath> = seen.to_list();
        dirs.extend(touched.iter().cloned());
        let only = Only::new(dirs.iter(), seen.deep.iter().cloned().collect());
        s.settle.started();
        let scanned = self.scan_as(s, Some(&only), Gated::ByUse)?;
        s.settle.scanned(&scanned.held, Instant::now());
        self.approved = approved;
        let published = self.publish(s, &scanned, false)?;
        if !matches!(published, Published::Not) {
            s.settle.published();
            let mut shared = self.tree.shared();
            shared.state = State::Current;
            shared.plan = None;
            shared.unpublished_since = None;
            match scanned.errors.first() {
                // a part says nothing of what cannot be read elsewhere
                None if s.unreadable => {}
                // what was refused before is not there any more
                None => shared.trouble.clear(),
                Some(e) => drop(shared.trouble.set(format!("{}: {}", e.path, e.error))),
            }
        }
        // new directories are watched, and what was missed is found
        s.be_thorough();
        s.next_full = Instant::now();
        Ok(published)
    }

    /// After the start: `recovered` is what was decided before the crash, and carried out now; `undecided` whether something
    /// was staged by which nothing was done; `own` the newest generation by the tree's own word.
    pub(in crate::agent::source) fn resume_rollback(
        &mut self,
        recovered: Option<Committed>,
        undecided: bool,
        own: GenId,
    ) -> Result<()> {
        self.rolling = self.resumed(own, undecided)?;
        self.rolled = false;
        match &self.rolling {
            // what only began, and what is over
            None => self.tree.state.remove(FILE)?,
            // what tells that the later one did nothing is removed next
            Some(before) if undecided => self.tree.state.write(FILE, before)?,
            Some(_) => {}
        }
        match (&self.rolling, recovered) {
            (rolling, Some(done)) if !done.errors.is_empty() => {
                match rolling {
                    Some(rolling) => self.came_partly(rolling.to, &done.errors)?,
                    // the state directory was lost, or it was a mirror before
                    None => self.hold_by_rollback("a commit", unfinished(&done.errors))?,
                }
                self.forget_rollback()?;
            }
            (Some(rolling), recovered) if recovered.is_some() || rolling.phase == Phase::Done => {
                self.rolled = true;
                self.enter(Phase::Done)?;
                self.end_hold_by_rollback()?;
            }
            // it was decided, or not, and nobody knows how it ended
            (Some(_), _) | (None, _) => {}
        }
        Ok(())
    }

    /// The tree cannot be written to now: nothing may be published of what was under way, and of what is held.
    pub(in crate::agent::source) fn check_nothing_is_under_way(&self, root: &Dir, why: &str) -> Result<()> {
        let rolls =
            self.resumed(GenId::default(), false)?.is_some_and(|rolling| rolling.phase == Phase::Staged);
        let cannot = || "look for what was under way in .syncagent".to_owned();
        let (commits, held) = match root.open_child(CONTROL_DIR) {
            Ok(control) => (Journal::pending(&control)?.is_some(), self.is_marked(&control)?),
            Err(Errno::NOENT) => (false, false),
            Err(e) => return Err(e).context(cannot),
        };
        if !rolls && !commits && !held {
            return Ok(());
        }
        let what = if held { "a hold" } else { "a commit that was cut off" };
        let what = format!(
            "{why}; .syncagent tells of {what}, and nothing is published before the tree can be written to, so that it can be \
             finished"
        );
        Err(Error::new(Class::Transient, what))
    }

    /// The tree is a mixture: nothing is published until somebody decides.
    pub(super) fn came_partly(&self, to: GenId, errors: &[PathError]) -> Result<()> {
        self.hold_by_rollback(&format!("rollback to {to}"), partly(to, errors))
    }

    /// Whether a rollback was cut off, and the tree is neither what it was before nor what it was to become.
    pub(in crate::agent::source) fn is_unclear(&mut self, scanned: &Scanned) -> Result<bool> {
        let Some(rolling) = self.rolling.as_ref().filter(|_| !self.rolled) else { return Ok(false) };
        if scanned.root.object == rolling.root.object {
            return Ok(false);
        }
        if self.is_publishing_hold() {
            // a job that came later says that all is whole
            self.forget_rollback()?;
            return Ok(false);
        }
        let why = format!(
            "a rollback to {} was cut off, and the tree is neither as it was before nor as in that generation",
            rolling.to
        );
        self.hold_by_rollback(&format!("rollback to {}", rolling.to), why)?;
        self.forget_rollback()?;
        Ok(true)
    }

    /// Whether the scanned state is what a rollback under way brings; with a plan, also whether that was approved. A plan's
    /// id names what is lost, so what was written meanwhile is no part of it.
    pub(in crate::agent::source) fn rolled_back(&self, scanned: &Scanned, plan: Option<PlanId>) -> bool {
        let approved = |r: &Rolling| plan.is_none_or(|plan| r.approved == Some(plan.to_string()));
        self.rolling.as_ref().is_some_and(|r| (self.rolled || r.root == scanned.root) && approved(r))
    }

    /// How the next generation comes about, when it is a rollback's.
    pub(in crate::agent::source) fn rollback_to(&self, scanned: &Scanned) -> Option<Cause> {
        let rolling = self.rolling.as_ref().filter(|_| self.rolled_back(scanned, None))?;
        Some(Cause::Rollback { to: rolling.to })
    }
}
