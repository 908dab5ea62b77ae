//! Carrying out a plan that the guard let through, wherever the content comes from: staged, committed,
//! reported, index and marker brought up to date.

mod options;
mod outcome;
mod place;
mod progress;
mod swap;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

pub use options::{Activate, TreeOptions};
pub(super) use outcome::Undone;
pub use outcome::{NotCarried, Outcome};
pub use progress::{Monitor, Phase, Progress};

use super::sync::rfc3339_now;
use crate::apply::{Control, Dropped, Marker, Pin, Staged, Stager, SyncMark, discard_partial, discard_stage};
use crate::disk::Owners;
use crate::error::{Class, Error, PathError, Result};
use crate::model::{Digest, GenId, Mtime, Root, Source, TreePath, escaped};
use crate::plan::{Counted, Diff, Moves, Options, Tally, count};
use crate::scan::{Index, Objects, OldTree, ROOT_ID, Scanned};

/// A tree's two states.
pub(super) struct Trees<'a> {
    /// Where the new one comes from.
    pub(super) source: &'a dyn Source,
    /// The new one.
    pub(super) root: Root,
    /// What of it could not be read.
    pub(super) unreadable: &'a [PathError],
    /// What is there.
    pub(super) tree: Option<&'a Scanned>,
    pub(super) tree_index: &'a Index,
    pub(super) owners: &'a Owners,
}

/// What is there against what shall be.
pub(super) type TreeDiff<'a, 'b> = Diff<'a, OldTree<'b>, Objects<'b>>;

impl Trees<'_> {
    pub(super) fn root_attrs(&self) -> bool {
        self.tree.is_none_or(|tree| tree.root.header != self.root.header)
    }

    pub(super) fn same(&self) -> bool {
        self.tree.is_some_and(|tree| tree.root.object == self.root.object)
    }

    pub(super) fn diff<'d, 'i>(
        &self,
        old: &'d OldTree<'i>,
        new: &'d Objects<'i>,
        no_delete: bool,
    ) -> TreeDiff<'d, 'i> {
        let old_root = self.tree.map(|_| ROOT_ID);
        Diff { old, old_root, new, new_root: self.root.object, options: Options { no_delete } }
    }

    /// Finds the moves and counts the steps. `unmanaged`: what is replaced counts as lost, too.
    pub(super) fn plan(&self, diff: &TreeDiff<'_, '_>, unmanaged: bool) -> Result<Counted> {
        let mut counted = if self.same() {
            Counted { moves: Moves::default(), tally: Tally::new(unmanaged), conflicts: Vec::new() }
        } else {
            count(diff, unmanaged)?
        };
        counted.tally.attrs += u64::from(self.root_attrs() && self.tree.is_some());
        Ok(counted)
    }
}

/// Carries out.
pub(super) struct Apply<'a> {
    pub(super) o: &'a TreeOptions,
    pub(super) dst: &'a Path,
    pub(super) monitor: &'a dyn Monitor,
    pub(super) progress: &'a Progress,
    pub(super) cancel: &'a AtomicBool,
    /// A local source, to be recognised next time.
    pub(super) pin: Option<Pin>,
    /// The source root's own mtime, when it is known.
    pub(super) root_mtime: Option<Mtime>,
    /// Content comes over a network.
    pub(super) remote: bool,
    /// The generation that is applied, and the digest of the source's root object.
    pub(super) generation: Option<(GenId, Digest)>,
    /// What was written here and is in no published state.
    pub(super) aside: BTreeSet<TreePath>,
}

impl Apply<'_> {
    /// Reports the plan's steps, but those that were not done; counts what was.
    pub(super) fn report(
        &self,
        diff: &TreeDiff<'_, '_>,
        moves: &Moves,
        root_attrs: bool,
        undone: &Undone,
    ) -> Result<Tally> {
        let mut tally = Tally::new(false);
        if root_attrs && !undone.attrs.contains(&TreePath::root()) {
            tally.attrs += 1;
            self.monitor.root_attrs()?;
        }
        diff.walk(moves, &mut |step| {
            if undone.has(&step) {
                return Ok(());
            }
            tally.add(&step);
            self.monitor.step(&step)
        })?;
        Ok(tally)
    }

    /// The trash is left as the commit makes it: whoever is waited for by nobody prunes it.
    pub(super) fn carry_out(
        &self,
        control: &Control,
        trees: &Trees<'_>,
        diff: &TreeDiff<'_, '_>,
        moves: &Moves,
        marker: Option<Marker>,
        outcome: &mut Outcome,
    ) -> Result<()> {
        let o = self.o;
        let root_attrs = trees.root_attrs();
        let had_files = trees.tree.is_some_and(|t| t.files > 0);
        let mut marker = marker.unwrap_or_else(|| Marker { had_files, ..Marker::new() });
        if marker.seq == 0 && marker.applied.is_none() {
            // before anything of ours is in it: after a crash it must not pass for somebody else's
            marker.taken_over |= self.is_ours_from_the_start(trees, outcome);
            control.set_marker(&marker)?;
        }
        if let Some(pin) = &self.pin
            && control.pin()?.as_ref() != Some(pin)
        {
            control.set_pin(pin)?;
        }
        let mut home = Control::open(self.dst)?;
        if !home.is_same(control)? {
            let what = format!(
                "{} was replaced by another directory meanwhile; nothing was changed",
                escaped(self.dst)
            );
            return Err(Error::new(Class::Transient, what));
        }
        if let Some(path) = &o.staging {
            home.stage_at(path, &marker.id)?;
        }
        home.note_staging()?;
        let mut content = trees.tree.map_or(outcome.content, |t| t.root.content);
        let mut swapped = None;
        if trees.same() && !root_attrs {
            trees.tree_index.commit()?;
            discard_stage(&home)?;
        } else if o.activate == Activate::Swap && trees.tree.is_some_and(|t| t.entries > 0) {
            swapped = Some(self.swap(control, trees, diff, moves, &mut marker, outcome)?);
            content = trees.root.content;
            outcome.root = Some(trees.root.clone());
        } else {
            content = self.in_place(&home, trees, diff, moves, &mut marker, outcome)?;
        }
        let control = swapped.as_ref().unwrap_or(control);
        self.progress.enter(Phase::Finishing);
        if !marker.taken_over && self.is_taken_over(trees, outcome) {
            marker.taken_over = true;
            control.set_marker(&marker)?;
        }
        let clean = outcome.errors.is_empty() && outcome.vanished == 0;
        if clean && self.remote {
            discard_partial(control)?;
        }
        outcome.content = content;
        let content = content.to_string();
        let known = |a: &SyncMark| a.content == content && a.generation == self.generation;
        if clean && !marker.applied.as_ref().is_some_and(known) {
            let generation = self.generation;
            marker.applied = Some(SyncMark { content, at: rfc3339_now(), generation });
            control.set_marker(&marker)?;
        }
        self.root_mtime(control);
        Ok(())
    }

    /// Whether what is displaced goes to the trash. Of a mirror also what nothing keeps: its server is not to wait until that
    /// is gone, and it is pruned like the rest.
    pub(super) fn keeps(&self) -> bool {
        self.o.keep.generations > 0 || self.remote
    }

    /// Whether all that will be in the tree comes from us, or was handed over.
    fn is_ours_from_the_start(&self, trees: &Trees<'_>, outcome: &Outcome) -> bool {
        let nothing_hidden = trees.tree.is_none_or(|t| t.excluded == 0 && t.errors.is_empty());
        let is_empty = trees.tree.is_none_or(|t| t.entries == 0);
        self.o.adopt || self.o.approve == Some(outcome.plan_id) || nothing_hidden && is_empty
    }

    /// Whether nothing foreign can be left in the tree that nobody handed over.
    pub(super) fn is_taken_over(&self, trees: &Trees<'_>, outcome: &Outcome) -> bool {
        let nothing_hidden = trees.tree.is_none_or(|t| t.excluded == 0 && t.errors.is_empty());
        let is_equal = !self.o.no_delete && outcome.errors.is_empty();
        self.is_ours_from_the_start(trees, outcome) || nothing_hidden && is_equal
    }

    /// The root's own mtime is not part of a tree; it is set so that other tools find nothing to do.
    pub(super) fn root_mtime(&self, control: &Control) {
        if let (Some(want), Ok(now)) = (self.root_mtime, control.root.stat_self())
            && want != now.mtime
        {
            let _ = control.root.set_mtime(b".", want);
        }
    }

    pub(super) fn stager<'s>(
        &'s self,
        control: &'s Control,
        trees: &'s Trees<'_>,
        index: &'s Index,
        dropped: &'s Dropped,
        few: bool,
    ) -> Stager<'s> {
        Stager {
            control,
            source: trees.source,
            index,
            filter: &self.o.filter,
            order: self.o.order.as_ref(),
            owners: trees.owners,
            counters: &self.progress.stage,
            dropped,
            cancel: self.cancel,
            threads: self.o.threads,
            sync_each: few,
            remote: self.remote,
        }
    }

    pub(super) fn count(&self, staged: &mut Staged, dropped: &Dropped, outcome: &mut Outcome) {
        let at = &self.progress.stage;
        outcome.copied = (at.files.load(Ordering::Relaxed), at.bytes.load(Ordering::Relaxed));
        outcome.vanished = at.vanished.load(Ordering::Relaxed);
        outcome.dropped.xattrs = dropped.xattrs.load(Ordering::Relaxed);
        outcome.errors.append(&mut staged.errors);
        outcome.mismatched = std::mem::take(&mut staged.mismatched).into_iter().collect();
    }
}
