//! Carrying out a plan that the guard let through, wherever the content comes from: staged, committed,
//! reported, index and marker brought up to date.

use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

use super::sync::rfc3339_now;
use crate::apply::{
    Committed, Control, Dropped, Keep, Marker, Pin, StageCounters, Staged, Stager, Swap, SyncMark,
    check_swap, commit, discard_partial, discard_stage, next_number, prune,
};
use crate::disk::{OwnerPolicy, Owners};
use crate::error::{Class, Error, PathError, Result};
use crate::model::{Digest, GenId, Kind, Mtime, Root, Source, TreePath, escaped};
use crate::plan::{
    Counted, Diff, Filter, MaxDelete, Moves, Op, Options, PlanId, Refusal, Step, Tally, count,
};
use crate::scan::{Counters, Index, Objects, OldTree, Only, ROOT_ID, Scanned, Spec, scan};

/// Fewer steps and bytes than this are synced one by one: that waits for nobody else's dirty data.
const FEW_STEPS: u64 = 64;
const FEW_BYTES: u64 = 64 << 20;

/// How a new state becomes visible.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activate {
    /// Path by path, by renames.
    #[default]
    InPlace,
    /// The whole directory at once.
    Swap,
}

/// What shall become of a tree, wherever its content comes from.
#[derive(Clone, Debug)]
pub struct TreeOptions {
    /// What belongs to the tree.
    pub filter: Filter,
    /// What comes into place after everything else.
    pub order: Option<Filter>,
    /// Delete nothing.
    pub no_delete: bool,
    /// The guard's limit.
    pub max_delete: MaxDelete,
    /// Lets exactly these losses through.
    pub approve: Option<PlanId>,
    /// Takes over a directory that was never managed.
    pub adopt: bool,
    /// How it becomes visible.
    pub activate: Activate,
    /// Stage here instead of in the tree.
    pub staging: Option<PathBuf>,
    /// What is kept of what goes.
    pub keep: Keep,
    /// What becomes of owners.
    pub owner: OwnerPolicy,
    /// Threads for scanning and copying.
    pub threads: usize,
}

impl TreeOptions {
    /// How the tree's own owners are described, so that they can be compared with the source's.
    pub(super) fn tree_policy(&self) -> OwnerPolicy {
        if self.owner == OwnerPolicy::Ignore { OwnerPolicy::Ignore } else { OwnerPolicy::Preserve }
    }
}

/// Where a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Waiting for the lock, finishing what a crash left.
    Starting,
    /// Looking at both trees.
    Scanning,
    /// Counting and judging.
    Planning,
    /// Bringing content.
    Staging,
    /// Renaming.
    Committing,
    /// Index, marker, trash.
    Finishing,
}

/// Progress of a run; read it from another thread.
#[derive(Debug, Default)]
pub struct Progress {
    phase: AtomicU8,
    /// The source's scan.
    pub source: Counters,
    /// The tree's scan.
    pub tree: Counters,
    /// The staging.
    pub stage: StageCounters,
    /// Files to copy.
    pub files: AtomicU64,
    /// Bytes to copy.
    pub bytes: AtomicU64,
}

impl Progress {
    /// Where the run is.
    pub fn phase(&self) -> Phase {
        use Phase::{Committing, Finishing, Planning, Scanning, Staging, Starting};
        let all = [Starting, Scanning, Planning, Staging, Committing, Finishing];
        all.get(usize::from(self.phase.load(Ordering::Relaxed))).copied().unwrap_or(Finishing)
    }

    pub(super) fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Relaxed);
    }
}

/// What a run tells while it goes on.
pub trait Monitor: Sync {
    /// An operation of the plan (dry run) or that was done, in the plan's order.
    ///
    /// # Errors
    /// Output failed; the run has done its work by then.
    fn step(&self, step: &Step<'_, i64>) -> Result<()>;

    /// Everything is staged; nothing is visible yet.
    ///
    /// # Errors
    /// The commit shall not be; what is staged stays for the next run.
    fn staged(&self, _vanished: u64) -> Result<()> {
        Ok(())
    }

    /// Everything is staged but for `paths`, which failed (`errors`) or vanished. Comes before [`Monitor::staged`].
    ///
    /// # Errors
    /// As [`Monitor::staged`].
    fn lacks(&self, _paths: &BTreeSet<TreePath>, _errors: &[PathError]) -> Result<()> {
        Ok(())
    }

    /// The commit is done and durable; `failed` and `vanished` paths are not in place.
    fn committed(&self, _failed: usize, _vanished: u64) {}

    /// Whether anybody listens to the steps.
    fn wants_steps(&self) -> bool {
        true
    }

    /// The root directory's own attributes change, or did.
    ///
    /// # Errors
    /// As [`Monitor::step`].
    fn root_attrs(&self) -> Result<()>;
}

/// What a run did, or (dry run, refusal) would do.
#[derive(Debug)]
pub struct Outcome {
    /// Counts of the plan.
    pub tally: Tally,
    /// Content files and bytes copied from the source.
    pub copied: (u64, u64),
    /// Names this plan's losses.
    pub plan_id: PlanId,
    /// Why it was refused.
    pub refusal: Option<Refusal>,
    /// Paths that could not be brought over.
    pub errors: Vec<PathError>,
    /// Those of them whose content arrived and was not what its digest says.
    pub mismatched: Vec<TreePath>,
    /// Paths where the commit displaced what it did not expect; kept in the trash.
    pub drift: Vec<TreePath>,
    /// Fifos, sockets, devices in the source.
    pub specials: u64,
    /// What is not carried over.
    pub dropped: NotCarried,
    /// The destination's content digest now; of a dry run, what it would be.
    pub content: Digest,
    /// What the destination is after a commit.
    pub root: Option<Root>,
    /// Directories that were listed after it.
    pub touched: BTreeSet<TreePath>,
    /// A crash's leftovers were finished first.
    pub recovered: bool,
    /// Files that vanished from the source meanwhile.
    pub vanished: u64,
}

/// Counts of what the copies do not have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NotCarried {
    /// Files with more than one name in the source: copied as separate files.
    pub hard_links: u64,
    /// Files with holes in the source: copied without.
    pub sparse: u64,
    /// Copied files with extended attributes or ACLs.
    pub xattrs: u64,
}

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
        if let Err(e) = prune(control, o.keep) {
            // the work is done; the trash is tried again next time
            tracing::warn!("{e}");
        }
        Ok(())
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
        let committed = commit(home, staged, trees.tree_index, seq, self.o.keep.generations > 0)?;
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
    pub(super) fn name_differences(
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
    pub(super) fn rescan(
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

    /// Whether the new tree is the one that was planned: nothing vanished or changed on the way.
    pub(super) fn is_whole(&self, next: &Index, trees: &Trees<'_>) -> Result<bool> {
        Ok(next.row(ROOT_ID)?.is_some_and(|row| row.object == trees.root.object))
    }

    pub(super) fn check_swap(&self, trees: &Trees<'_>) -> Result<()> {
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
        let keep = self.o.keep.generations > 0;
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
    fn is_empty(&self) -> bool {
        self.paths.is_empty() && self.trees.is_empty() && self.attrs.is_empty()
    }

    pub(super) fn has(&self, step: &Step<'_, i64>) -> bool {
        if self.paths.contains(step.path) || step.op == Op::Attrs && self.attrs.contains(step.path) {
            return true;
        }
        !self.trees.is_empty() && step.path.ancestors().any(|path| self.trees.contains(&path))
    }
}
