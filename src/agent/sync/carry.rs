//! Carrying out a plan that the guard let through.

use super::*;

impl Run<'_> {
    /// Reports the plan's steps, but those that were not done; counts what was.
    pub(super) fn report(
        &self,
        diff: &LocalDiff<'_, '_>,
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

    pub(super) fn carry_out(
        &self,
        control: &Control,
        trees: &Trees<'_>,
        diff: &LocalDiff<'_, '_>,
        moves: &Moves,
        marker: Option<Marker>,
        outcome: &mut Outcome,
    ) -> Result<()> {
        let o = self.o;
        let root_attrs = trees.root_attrs();
        let mut marker = marker.unwrap_or_default();
        let pin = Pin {
            path: escaped(self.src),
            mount: self.mount.clone(),
            mounts: self.mounts_below(trees.source)?,
        };
        if marker.seq == 0 && marker.applied.is_none() {
            control.set_marker(&marker)?;
        }
        if control.pin()?.as_ref() != Some(&pin) {
            control.set_pin(&pin)?;
        }
        let mut home = Control::open(self.dst)?;
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
            swapped = Some(self.swap(control, trees, diff, moves, &mut marker, &pin, outcome)?);
            content = trees.source.root.content;
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
        outcome.content = content;
        let content = content.to_string();
        if clean && marker.applied.as_ref().is_none_or(|a| a.content != content) {
            marker.applied = Some(SyncMark { content, at: rfc3339_now() });
            control.set_marker(&marker)?;
        }
        self.root_mtime(control);
        if let Err(e) = prune(control, o.keep) {
            // the work is done; the trash is tried again next time
            tracing::warn!("{e}");
        }
        Ok(())
    }

    /// Whether nothing foreign can be left in the tree that nobody handed over.
    pub(super) fn is_taken_over(&self, trees: &Trees<'_>, outcome: &Outcome) -> bool {
        let nothing_hidden = trees.tree.is_none_or(|t| t.excluded == 0 && t.errors.is_empty());
        let was_empty = trees.tree.is_none_or(|t| t.entries == 0);
        let approved = self.o.adopt || self.o.approve == Some(outcome.plan_id);
        let is_equal = !self.o.no_delete && outcome.errors.is_empty();
        approved || nothing_hidden && (was_empty || is_equal)
    }

    /// The root's own mtime is not part of a tree; it is set so that other tools find nothing to do.
    pub(super) fn root_mtime(&self, control: &Control) {
        if let (Ok(want), Ok(now)) = (self.source.stat_self(), control.root.stat_self())
            && want.mtime != now.mtime
        {
            let _ = control.root.set_mtime(b".", want.mtime);
        }
    }

    pub(super) fn stager<'s>(
        &'s self,
        control: &'s Control,
        source: &'s LocalSource<'s>,
        index: &'s Index,
        owners: &'s Owners,
        dropped: &'s Dropped,
    ) -> Stager<'s> {
        Stager {
            control,
            source,
            index,
            filter: &self.o.filter,
            owners,
            counters: &self.progress.stage,
            dropped,
            cancel: self.cancel,
            threads: self.o.threads,
        }
    }

    pub(super) fn count(&self, staged: &mut Staged, dropped: &Dropped, outcome: &mut Outcome) {
        let at = &self.progress.stage;
        outcome.copied = (at.files.load(Ordering::Relaxed), at.bytes.load(Ordering::Relaxed));
        outcome.vanished = at.vanished.load(Ordering::Relaxed);
        outcome.dropped.xattrs = dropped.xattrs.load(Ordering::Relaxed);
        outcome.errors.append(&mut staged.errors);
    }

    pub(super) fn in_place(
        &self,
        home: &Control,
        trees: &Trees<'_>,
        diff: &LocalDiff<'_, '_>,
        moves: &Moves,
        marker: &mut Marker,
        outcome: &mut Outcome,
    ) -> Result<Digest> {
        let root_attrs = trees.root_attrs();
        let seq = next_number(home, marker.seq)?;
        let local = LocalSource {
            dir: self.source,
            index: trees.source_index,
            scanned: trees.source,
            cancel: self.cancel,
        };
        let dropped = Dropped::default();
        self.progress.enter(Phase::Staging);
        let header = root_attrs.then_some(&trees.source.root.header);
        let stager = self.stager(home, &local, trees.tree_index, trees.owners, &dropped);
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
        let touched = with_parents(staged.touched());
        let mut undone = Undone { paths: staged.skipped.iter().cloned().collect(), ..Undone::default() };
        let renewed = staged.renewed.clone();
        if self.cancel.load(Ordering::Relaxed) {
            return Err(Error::new(Class::Interrupted, "interrupted"));
        }
        self.progress.enter(Phase::Committing);
        trees.tree_index.commit()?;
        let committed = commit(home, staged, trees.tree_index, seq, self.o.keep.generations > 0)?;
        marker.seq = seq;
        undone.attrs.extend(committed.errors.iter().map(|e| e.path.clone()));
        undone.trees.clone_from(&committed.failed);
        outcome.errors.extend(committed.errors.iter().cloned());
        outcome.drift.extend(committed.drift.iter().cloned());
        let reported = self.report(diff, moves, root_attrs && trees.tree.is_some(), &undone);
        self.progress.enter(Phase::Finishing);
        let rescanned = self.rescan(home, trees, &touched, &committed)?;
        let done = reported?;
        let plan = &mut outcome.tally;
        (plan.created, plan.updated, plan.attrs) = (done.created, done.updated, done.attrs);
        (plan.moved, plan.deleted) = (done.moved, done.deleted);
        outcome.errors.extend(rescanned.errors.iter().cloned());
        if rescanned.root.object != trees.source.root.object && outcome.errors.is_empty() {
            self.name_differences(diff, &renewed, outcome)?;
        }
        Ok(rescanned.root.content)
    }

    /// The tree is not what it should be, although nothing failed: never call that done. What only the tree
    /// has is a matter for the next run; what it should have and has not is named.
    pub(super) fn name_differences(
        &self,
        diff: &LocalDiff<'_, '_>,
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
    pub(super) fn rescan(
        &self,
        control: &Control,
        trees: &Trees<'_>,
        touched: &HashSet<TreePath>,
        done: &Committed,
    ) -> Result<Scanned> {
        let policy =
            if self.o.owner == OwnerPolicy::Ignore { OwnerPolicy::Ignore } else { OwnerPolicy::Preserve };
        let counters = Counters::default();
        let known = |dir: &TreePath, name: &[u8], stat: &crate::disk::Stat| done.digest(dir, name, stat);
        let spec = Spec {
            root: &control.root,
            shown: &control.shown(),
            index: trees.tree_index,
            filter: &self.o.filter,
            policy: &policy,
            owners: trees.owners,
            rehash: false,
            only: Some(touched),
            known: Some(&known),
            counters: &counters,
        };
        done.wait_for_clock();
        trees.tree_index.begin()?;
        // the work is done: an interruption now would only cost the next run a rehash
        let scanned = scan(&[spec], self.o.threads, &AtomicBool::new(false))?.pop();
        trees.tree_index.commit()?;
        scanned.ok_or_else(|| Error::integrity("the scan lost a tree"))
    }

    /// Whether the new tree is the one that was planned: nothing vanished or changed on the way.
    pub(super) fn is_whole(&self, next: &Index, trees: &Trees<'_>) -> Result<bool> {
        Ok(next.row(ROOT_ID)?.is_some_and(|row| row.object == trees.source.root.object))
    }

    pub(super) fn check_swap(&self, trees: &Trees<'_>) -> Result<()> {
        let Some(tree) = trees.tree.filter(|t| t.entries > 0) else { return Ok(()) };
        for (what, scanned) in [("in the destination", tree), ("in the source", trees.source)] {
            if let Some(e) = scanned.errors.first() {
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
        diff: &LocalDiff<'_, '_>,
        moves: &Moves,
        marker: &mut Marker,
        pin: &Pin,
        outcome: &mut Outcome,
    ) -> Result<Control> {
        self.check_swap(trees)?;
        let next_index_path = trees.tree_index.path().with_file_name("next.db");
        for suffix in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(format!("{}{suffix}", next_index_path.display()));
        }
        let next_index = Index::open(&next_index_path)?;
        next_index.copy_view(trees.tree_index)?;
        next_index.set_header(&trees.source.root.header)?;
        next_index.begin()?;
        let local = LocalSource {
            dir: self.source,
            index: trees.source_index,
            scanned: trees.source,
            cancel: self.cancel,
        };
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
        let staged = self.stager(control, &local, &next_index, trees.owners, &dropped).stage_whole(
            &whole,
            seq,
            &marker.id,
            (&swap.next, &trees.source.root.header),
        );
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
        self.progress.enter(Phase::Committing);
        marker.seq = seq;
        let keep = self.o.keep.generations > 0;
        let (new, drift) = swap.exchange(control, &staged, trees.tree_index, marker, pin, keep)?;
        outcome.drift.extend(drift);
        discard_stage(&new)?;
        self.report(diff, moves, trees.root_attrs(), &Undone::default())?;
        next_index.replace(trees.tree_index)?;
        Ok(new)
    }
}

/// What of a plan was not done.
#[derive(Debug, Default)]
pub(super) struct Undone {
    /// These paths were not staged.
    pub(super) paths: HashSet<TreePath>,
    /// These did not get into place, with all below.
    pub(super) trees: BTreeSet<TreePath>,
    /// These did not get their attributes.
    pub(super) attrs: HashSet<TreePath>,
}

impl Undone {
    pub(super) fn has(&self, step: &Step<'_, i64>) -> bool {
        if self.paths.contains(step.path) || step.op == Op::Attrs && self.attrs.contains(step.path) {
            return true;
        }
        let mut at = (!self.trees.is_empty()).then(|| step.path.clone());
        while let Some(path) = at {
            if self.trees.contains(&path) {
                return true;
            }
            at = path.parent();
        }
        false
    }
}
