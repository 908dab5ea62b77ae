//! What a rollback brings back: staged, and put in place.

use super::super::engine::{Engine, Session};
use super::super::retain::drop_kept;
use super::super::seek::open_sought;
use super::contents::Old;
use super::record::Phase;
use crate::apply::{Committed, Control, Dropped, StageCounters, Stager, commit, discard_stage, next_number};
use crate::error::{Class, Error, Result};
use crate::model::{Node, TreePath, counted_as};
use crate::plan::{Counted, Diff};
use crate::scan::{Objects, OldTree};
use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

const CHANGED: &str =
    "somebody wrote meanwhile to what was to be brought back; nothing was changed, try again";
/// Fewer steps and bytes than this are synced one by one.
const FEW_STEPS: u64 = 64;
const FEW_BYTES: u64 = 64 << 20;

impl Engine {
    /// Stages and commits. Gives the commit's number, the directories in which something changed, and what came of it.
    pub(super) fn bring_back(
        &mut self,
        s: &Session,
        control: &Control,
        source: &Old<'_>,
        (diff, aside): (&Diff<'_, OldTree<'_>, Objects<'_>>, BTreeSet<TreePath>),
        plan: &Counted,
        header: Option<&crate::model::RootHeader>,
    ) -> Result<(u64, BTreeSet<TreePath>, Committed)> {
        let t = &plan.tally;
        let steps = t.created + t.updated + t.attrs + t.moved + t.deleted;
        let marker = control.marker()?.unwrap_or_default();
        let seq = next_number(control, marker.seq)?;
        let (counters, dropped) = (StageCounters::default(), Dropped::default());
        let stager = Stager {
            control,
            source,
            index: &s.index,
            filter: &self.filter,
            order: None,
            owners: &self.owners,
            counters: &counters,
            dropped: &dropped,
            cancel: &self.tree.stop,
            threads: self.threads,
            sync_each: steps <= FEW_STEPS && t.bytes <= FEW_BYTES,
            remote: false,
        };
        s.index.begin()?;
        let staged = stager.stage(diff, &plan.moves, seq, &marker.id, header);
        let staged = staged.and_then(|staged| {
            let vanished = counters.vanished.load(Ordering::Relaxed);
            let wrong = staged.renewed.iter().chain(&staged.mismatched).next();
            if let Some(path) = wrong {
                if !self.drop_damaged(source, staged.renewed.iter().chain(&staged.mismatched)) {
                    return Err(Error::new(Class::Transient, CHANGED));
                }
                let what = format!(
                    "the kept content of {path} is damaged (it is forgotten now); nothing was changed"
                );
                return Err(Error::new(Class::Permanent, what));
            }
            if let Some(e) = staged.errors.first() {
                let what = format!("{}: {}; nothing was changed", e.path, e.error);
                return Err(Error::new(Class::Permanent, what));
            }
            if vanished > 0 || !staged.skipped.is_empty() {
                return Err(Error::new(Class::Transient, CHANGED));
            }
            Ok(staged)
        });
        let mut staged = match staged {
            Ok(staged) => staged,
            Err(e) => {
                // the index keeps nothing of what was staged
                s.index.begin()?;
                s.index.commit()?;
                discard_stage(control)?;
                return Err(e);
            }
        };
        let touched: BTreeSet<TreePath> = staged.touched().cloned().collect();
        s.index.commit()?;
        staged.aside = aside;
        self.enter(Phase::Staged)?;
        let done = commit(control, staged, &s.index, seq, self.tree.config.keep > 0)?;
        if !done.drift.is_empty() {
            tracing::warn!(
                tree = self.name(),
                "{} changed during the rollback; what was there is in the trash of commit {seq}",
                counted_as(done.drift.len(), "path", ("was", "were"))
            );
        }
        Ok((seq, touched, done))
    }

    /// Forgets the kept contents that these paths were to get; says whether there were any.
    fn drop_damaged<'p>(&self, source: &Old<'_>, paths: impl Iterator<Item = &'p TreePath>) -> bool {
        let Some(keep) = &source.keep else { return false };
        let mut any = false;
        for path in paths {
            let entry = self.tree.store.find(&source.root.object, path).map(|e| e.node);
            if let Some(Node::File { digest, .. }) = entry
                && source.sought.as_ref().is_none_or(|dir| open_sought(dir, &digest).is_err())
                && !source.found.get().is_some_and(|found| found.contains_key(&digest))
            {
                drop_kept(keep, &digest);
                self.tree.retain.dropped();
                any = true;
            }
        }
        any
    }
}
