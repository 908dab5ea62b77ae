//! Publishing what a rollback brought, at once or after a crash.

use std::collections::{BTreeSet, HashSet};
use std::time::Instant;

use super::super::engine::{Engine, Gated, Session};
use super::super::publish::Published;
use super::{FILE, Rolling};
use crate::error::Result;
use crate::model::{Cause, State, TreePath};
use crate::plan::PlanId;
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

    /// Whether the scanned state is what a rollback under way brings; with a plan, also whether that was approved.
    pub(in crate::agent::source) fn rolled_back(&self, scanned: &Scanned, plan: Option<PlanId>) -> bool {
        let approved = |r: &Rolling| plan.is_none_or(|plan| r.approved == Some(plan.to_string()));
        self.rolling.as_ref().is_some_and(|r| r.root == scanned.root && approved(r))
    }

    /// How the next generation comes about, when it is a rollback's.
    pub(in crate::agent::source) fn rollback_to(&self, scanned: &Scanned) -> Option<Cause> {
        let rolling = self.rolling.as_ref().filter(|_| self.rolled_back(scanned, None))?;
        Some(Cause::Rollback { to: rolling.to })
    }

    /// It is published, or something else is.
    pub(in crate::agent::source) fn forget_rollback(&mut self) {
        if self.rolling.take().is_some() {
            let _ = std::fs::remove_file(self.tree.state.file(FILE));
        }
    }
}
