//! The whole directory at once.

use super::{Apply, Outcome, Phase, TreeDiff, Trees, Undone};
use crate::apply::{Control, Dropped, Marker, Swap, check_swap, discard_stage, next_number};
use crate::error::{Class, Error, Result};
use crate::plan::{Diff, Moves};
use crate::scan::{Index, ROOT_ID};

impl Apply<'_> {
    /// Whether the new tree is the one that was planned: nothing vanished or changed on the way.
    fn is_whole(&self, next: &Index, trees: &Trees<'_>) -> Result<bool> {
        Ok(next.row(ROOT_ID)?.is_some_and(|row| row.object == trees.root.object))
    }

    pub(in crate::agent) fn check_swap(&self, trees: &Trees<'_>) -> Result<()> {
        let Some(tree) = trees.tree.filter(|t| t.entries > 0) else { return Ok(()) };
        for (what, errors) in [("in the destination", &tree.errors[..]), ("in the source", trees.unreadable)]
        {
            if let Some(e) = errors.first() {
                let what = format!("cannot swap, {what} not all can be read: {}: {}", e.path, e.error);
                return Err(Error::new(Class::Permanent, what));
            }
        }
        check_swap(self.dst, tree.keeps)
    }

    #[allow(clippy::too_many_arguments)]
    pub(super) fn swap(
        &self,
        control: &Control,
        trees: &Trees<'_>,
        diff: &TreeDiff<'_, '_>,
        moves: &Moves,
        marker: &mut Marker,
        outcome: &mut Outcome,
    ) -> Result<Control> {
        self.check_swap(trees)?;
        let next_index_path = trees.tree_index.path().with_file_name("next.db");
        Index::forget(&next_index_path)?;
        let next_index = Index::open(&next_index_path)?;
        next_index.copy_view(trees.tree_index)?;
        next_index.set_header(&trees.root.header)?;
        next_index.begin()?;
        let swap = Swap::prepare(control)?;
        let whole = Diff {
            old: diff.old,
            old_root: None,
            new: diff.new,
            new_root: diff.new_root,
            options: diff.options,
        };
        self.progress.enter(Phase::Staging);
        let seq = next_number(control, marker.seq)?;
        let dropped = Dropped::default();
        let staged = self.stager(control, trees, &next_index, &dropped, false).stage_whole(
            &whole,
            seq,
            &marker.id,
            (&swap.next, &trees.root.header),
        );
        if let Ok(staged) = &staged
            && !staged.skipped.is_empty()
            && let Err(e) = self.monitor.lacks(&staged.skipped, &staged.errors)
        {
            swap.withdraw(control);
            return Err(e);
        }
        let mut staged = match staged {
            Ok(staged) if staged.errors.is_empty() && self.is_whole(&next_index, trees)? => staged,
            Ok(staged) if staged.errors.is_empty() => {
                swap.withdraw(control);
                let what = "cannot swap: the source changed while it was copied; run again";
                return Err(Error::new(Class::Transient, what));
            }
            Ok(staged) => {
                swap.withdraw(control);
                let e = &staged.errors[0];
                let what = format!("cannot swap: the new tree would be incomplete: {}: {}", e.path, e.error);
                return Err(Error::new(Class::Permanent, what));
            }
            Err(e) => {
                swap.withdraw(control);
                return Err(e);
            }
        };
        next_index.commit()?;
        self.count(&mut staged, &dropped, outcome);
        if let Err(e) = self.monitor.staged(outcome.vanished) {
            swap.withdraw(control);
            return Err(e);
        }
        self.progress.enter(Phase::Committing);
        staged.aside.clone_from(&self.aside);
        marker.seq = seq;
        let keep = self.keeps();
        let pin = self.pin.as_ref();
        let (new, drift) = swap.exchange(control, &staged, trees.tree_index, marker, pin, keep)?;
        self.monitor.committed(0, 0);
        outcome.drift.extend(drift);
        discard_stage(&new)?;
        self.report(diff, moves, trees.root_attrs(), &Undone::default())?;
        next_index.replace(trees.tree_index)?;
        Ok(new)
    }
}
