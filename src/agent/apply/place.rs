//! Path by path: staged, committed, and the index brought up to date.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{Apply, Outcome, Phase, TreeDiff, Trees, Undone};
use crate::apply::{Committed, Control, Dropped, Marker, commit, discard_stage, next_number};
use crate::error::{Class, Error, PathError, Result};
use crate::model::{Digest, Kind, TreePath};
use crate::plan::{Moves, Op};
use crate::scan::{Counters, Only, Scanned, Spec, scan};

/// Fewer steps and bytes than this are synced one by one: that waits for nobody else's dirty data.
const FEW_STEPS: u64 = 64;
const FEW_BYTES: u64 = 64 << 20;

impl Apply<'_> {
    pub(super) fn in_place(
        &self,
        home: &Control,
        trees: &Trees<'_>,
        diff: &TreeDiff<'_, '_>,
        moves: &Moves,
        marker: &mut Marker,
        outcome: &mut Outcome,
    ) -> Result<Digest> {
        let root_attrs = trees.root_attrs();
        let seq = next_number(home, marker.seq)?;
        let dropped = Dropped::default();
        self.progress.enter(Phase::Staging);
        let header = root_attrs.then_some(&trees.root.header);
        let t = &outcome.tally;
        let steps = t.created + t.updated + t.attrs + t.moved + t.deleted;
        let few = steps <= FEW_STEPS && t.bytes <= FEW_BYTES;
        let stager = self.stager(home, trees, trees.tree_index, &dropped, few);
        let staged = stager.stage(diff, moves, seq, &marker.id, header);
        let mut staged = match staged {
            Ok(staged) => staged,
            Err(e) => {
                if matches!(e.errno(), Some(rustix::io::Errno::NOSPC | rustix::io::Errno::DQUOT)) {
                    // give the space back; there is nothing that a later run could use
                    let _ = discard_stage(home);
                }
                return Err(e);
            }
        };
        self.count(&mut staged, &dropped, outcome);
        let listed: BTreeSet<TreePath> = staged.touched().cloned().collect();
        let touched = Only::new(listed.iter(), Vec::new());
        let mut undone = Undone { paths: staged.skipped.iter().cloned().collect(), ..Undone::default() };
        let renewed = staged.renewed.clone();
        if self.cancel.load(Ordering::Relaxed) {
            return Err(Error::new(Class::Interrupted, "interrupted"));
        }
        if !staged.skipped.is_empty() {
            self.monitor.lacks(&staged.skipped, &outcome.errors)?;
        }
        self.monitor.staged(outcome.vanished)?;
        self.progress.enter(Phase::Committing);
        trees.tree_index.commit()?;
        staged.aside.clone_from(&self.aside);
        let committed = commit(home, staged, trees.tree_index, seq, self.keeps())?;
        marker.seq = seq;
        undone.attrs.extend(committed.errors.iter().map(|e| e.path.clone()));
        undone.trees.clone_from(&committed.failed);
        outcome.errors.extend(committed.errors.iter().cloned());
        outcome.drift.extend(committed.drift.iter().cloned());
        self.monitor.committed(outcome.errors.len(), outcome.vanished);
        let reported = if self.monitor.wants_steps() || !undone.is_empty() {
            self.report(diff, moves, root_attrs && trees.tree.is_some(), &undone)
        } else {
            Ok(outcome.tally.clone())
        };
        self.progress.enter(Phase::Finishing);
        let rescanned = self.rescan(home, trees, &touched, &committed, few)?;
        let done = reported?;
        let plan = &mut outcome.tally;
        (plan.created, plan.updated, plan.attrs) = (done.created, done.updated, done.attrs);
        (plan.moved, plan.deleted) = (done.moved, done.deleted);
        outcome.errors.extend(rescanned.errors.iter().cloned());
        if rescanned.root.object != trees.root.object && outcome.errors.is_empty() {
            self.name_differences(diff, &renewed, outcome)?;
        }
        let content = rescanned.root.content;
        outcome.root = Some(rescanned.root);
        outcome.touched = listed;
        Ok(content)
    }

    /// The tree is not what it should be, although nothing failed: never call that done. What only the tree
    /// has is a matter for the next run; what it should have and has not is named.
    fn name_differences(
        &self,
        diff: &TreeDiff<'_, '_>,
        renewed: &BTreeSet<TreePath>,
        outcome: &mut Outcome,
    ) -> Result<()> {
        let vanished = outcome.vanished > 0;
        let errors = &mut outcome.errors;
        diff.walk(&Moves::default(), &mut |step| {
            // content that changed in the source during the run, and came over in its newer state, is right
            let expected = renewed.contains(step.path) || vanished && matches!(step.op, Op::Create | Op::Update);
            let mtime_only = step.op == Op::Attrs
                && step.kind() == Kind::Dir
                && matches!((step.old, step.new), (Some(o), Some(n)) if o.entry.mode == n.mode && o.entry.owner == n.owner);
            if step.op != Op::Delete && !expected && !mtime_only {
                let error = format!("it is not as in the source after the commit ({}); run again", step.op.word());
                errors.push(PathError { path: step.path.clone(), error });
            }
            Ok(())
        })?;
        Ok(())
    }

    /// Brings the index up to date in the directories that the commit touched.
    fn rescan(
        &self,
        control: &Control,
        trees: &Trees<'_>,
        touched: &Only,
        done: &Committed,
        few: bool,
    ) -> Result<Scanned> {
        let policy = self.o.tree_policy();
        let counters = Counters::default();
        let known = |dir: &TreePath, name: &[u8], stat: &crate::disk::Stat| done.digest(dir, name, stat);
        let spec = Spec {
            root: &control.root,
            shown: &control.shown(),
            index: trees.tree_index,
            filter: &self.o.filter,
            setid: true,
            gate: None,
            entering: None,
            policy: &policy,
            owners: trees.owners,
            rehash: false,
            only: Some(touched),
            known: Some(&known),
            counters: &counters,
        };
        if !few {
            // the few are hashed again next time
            done.wait_for_clock();
        }
        trees.tree_index.begin()?;
        // the work is done: an interruption now would only cost the next run a rehash
        let scanned = scan(&[spec], self.o.threads, &AtomicBool::new(false))?.pop();
        trees.tree_index.commit()?;
        scanned.ok_or_else(|| Error::integrity("the scan lost a tree"))
    }
}
