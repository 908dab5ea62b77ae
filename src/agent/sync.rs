//! `sync SRC DST`: one run from scan to commit.
//!
//! Order: source checked and pinned → lock → what a crash left is finished → both trees scanned → source
//! checked again → plan counted → guard → staged → committed → reported → index and marker brought up to
//! date. Nothing in DST changes before the guard agreed.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::apply::{
    Activate, Apply, Monitor, NotCarried, Outcome, Phase, Progress, TreeDiff, TreeOptions, Trees, Undone,
};
use super::paths;
use super::pin;
use super::state::{Info, Pending, TreeState};
use super::target::{Target, recover_all};
use crate::apply::{Control, Pin, prune};
use crate::disk::{Dir, MountId, OwnerPolicy, Owners};
use crate::error::{Class, Context as _, Error, Result};
use crate::model::escaped;
use crate::plan::{Facts, Moves, Op, PlanId, Refusal, judge};
use crate::scan::{Index, LocalSource, Objects, OldTree, Scanned, Spec, scan};

/// What a run shall do.
#[derive(Clone, Debug)]
pub struct SyncOptions {
    /// Source.
    pub src: PathBuf,
    /// Destination.
    pub dst: PathBuf,
    /// Where state is kept.
    pub state_dir: PathBuf,
    /// Change nothing.
    pub dry_run: bool,
    /// Trust no index.
    pub checksum: bool,
    /// How long to wait for the lock.
    pub lock_wait: Duration,
    /// What becomes of the destination.
    pub tree: TreeOptions,
}

/// Runs.
///
/// # Errors
/// By class: [`Class::Config`] for paths and options that make no sense, [`Class::Refused`] for a source
/// that is missing or not where it was, [`Class::Busy`] for a held lock, [`Class::Interrupted`]; others
/// for what failed. A plan that a guard refused is no error but [`Outcome::refusal`].
pub fn sync(
    options: &SyncOptions,
    monitor: &dyn Monitor,
    progress: &Progress,
    cancel: &AtomicBool,
) -> Result<Outcome> {
    let src = paths::source(&options.src)?;
    let dst = paths::destination(&options.dst)?;
    paths::check_apart(&src, &dst)?;
    let staging = options.tree.staging.as_deref().map(std::path::absolute).transpose();
    let staging = staging.context(|| "resolve the staging path".into())?;
    for (tree, root) in [("source", &src), ("destination", &dst)] {
        paths::check_outside("state directory (--state-dir)", &options.state_dir, tree, root)?;
        if let Some(staging) = &staging {
            paths::check_outside("staging path", staging, tree, root)?;
        }
    }
    let source = Dir::open_root(&src).context(|| format!("open the source {}", escaped(&src)))?;
    let mount = MountId::of(&source).context(|| format!("find the file system of {}", escaped(&src)))?;
    let target = Target::open(&dst, options.dry_run, options.lock_wait, cancel)?;
    let run = Run { o: options, src: &src, dst: &dst, source: &source, mount, monitor, progress, cancel };
    run.check_pin(target.control.as_ref())?;
    let result = run.go(&target);
    if let Some(control) = &target.control
        && !options.dry_run
        && !matches!(&result, Ok(o) if o.refusal.is_none())
    {
        control.withdraw();
    }
    result
}

struct Run<'a> {
    o: &'a SyncOptions,
    src: &'a Path,
    dst: &'a Path,
    source: &'a Dir,
    mount: MountId,
    monitor: &'a dyn Monitor,
    progress: &'a Progress,
    cancel: &'a AtomicBool,
}

impl Run<'_> {
    /// What is done when the source has really moved.
    fn remedy(&self) -> String {
        format!("{}/.syncagent/source", escaped(self.dst))
    }

    fn pinned(control: Option<&Control>) -> Result<Option<Pin>> {
        Ok(control.map(Control::pin).transpose()?.flatten())
    }

    /// The source must be on the file system that it was on.
    fn check_pin(&self, control: Option<&Control>) -> Result<()> {
        match Self::pinned(control)? {
            Some(pin) => pin::check(&pin, "source", self.src, &self.mount, &self.remedy()),
            None => Ok(()),
        }
    }

    fn check_mounts(&self, control: Option<&Control>, source: &Scanned) -> Result<()> {
        match Self::pinned(control)? {
            Some(old) => pin::check_below(&old, &self.pin(source)?, &self.remedy()),
            None => Ok(()),
        }
    }

    fn pin(&self, source: &Scanned) -> Result<Pin> {
        pin::of(self.source, self.src, &self.mount, &source.mounts)
    }

    fn open_index(&self, state: Option<&TreeState>, name: &str) -> Result<Index> {
        match state {
            Some(state) => Index::open(&state.file(name)),
            None => Index::temporary(),
        }
    }

    /// One attempt; another one with new indexes when they turn out to be damaged.
    fn go(&self, target: &Target) -> Result<Outcome> {
        match self.attempt(target, false) {
            Err(e) if e.class == Class::Integrity => {
                tracing::warn!("{e}; trying again with everything hashed");
                self.attempt(target, true)
            }
            result => result,
        }
    }

    fn attempt(&self, target: &Target, forget: bool) -> Result<Outcome> {
        let o = self.o;
        let state = match TreeState::open(&o.state_dir, self.dst) {
            Ok(state) => Some(state),
            Err(e) if o.dry_run => {
                tracing::debug!("no state: {e}");
                None
            }
            Err(e) => return Err(e),
        };
        if let (true, Some(state)) = (forget, &state) {
            Index::forget(&state.file("source.db"))?;
            Index::forget(&state.file("tree.db"))?;
        }
        let source_index = self.open_index(state.as_ref(), "source.db")?;
        let tree_index = self.open_index(state.as_ref(), "tree.db")?;
        let mut recovered = None;
        if let (Some(control), false) = (&target.control, o.dry_run) {
            recovered = recover_all(control, &tree_index, o.tree.keep)?;
        }
        self.progress.enter(Phase::Scanning);
        let owners = Owners::default();
        source_index.begin()?;
        tree_index.begin()?;
        let (source, tree) = self.scan(target, &source_index, &tree_index, &owners)?;
        source_index.commit()?;
        // what was applied last time stays what `verify` compares with until something is applied; before the
        // first time there is nothing to lose, and much to hash
        if target.control.as_ref().is_none_or(|c| matches!(c.marker(), Ok(None))) {
            tree_index.commit()?;
            tree_index.begin()?;
        }
        pin::check_again(self.source, self.src, &self.mount)?;
        self.check_mounts(target.control.as_ref(), &source)?;
        let local = LocalSource { dir: self.source, index: &source_index, scanned: &source };
        let trees = Trees {
            source: &local,
            root: source.root.clone(),
            unreadable: &source.errors,
            tree: tree.as_ref(),
            tree_index: &tree_index,
            owners: &owners,
        };
        let mut outcome = self.planned(target, &source, &trees, state.as_ref())?;
        if let Some(recovered) = recovered {
            outcome.recovered = true;
            outcome.drift.extend(recovered.drift);
        }
        Ok(outcome)
    }

    fn scan(
        &self,
        target: &Target,
        source_index: &Index,
        tree_index: &Index,
        owners: &Owners,
    ) -> Result<(Scanned, Option<Scanned>)> {
        let (src, dst) = (escaped(self.src), escaped(self.dst));
        let spec = |root, shown, index, counters, policy| Spec {
            root,
            shown,
            index,
            filter: &self.o.tree.filter,
            setid: true,
            gate: None,
            entering: None,
            policy,
            owners,
            rehash: self.o.checksum,
            only: None,
            known: None,
            counters,
        };
        let options = &self.o.tree;
        let tree_policy = options.tree_policy();
        let mut specs = vec![spec(self.source, &*src, source_index, &self.progress.source, &options.owner)];
        if let Some(root) = &target.root {
            specs.push(spec(root, &*dst, tree_index, &self.progress.tree, &tree_policy));
        }
        let mut found = scan(&specs, options.threads, self.cancel)?.into_iter();
        match (found.next(), found.next()) {
            (Some(source), tree) => Ok((source, tree)),
            (None, _) => Err(Error::integrity("the scan lost a tree")),
        }
    }

    /// Counts, judges, and carries out.
    fn planned(
        &self,
        target: &Target,
        source: &Scanned,
        trees: &Trees<'_>,
        state: Option<&TreeState>,
    ) -> Result<Outcome> {
        self.progress.enter(Phase::Planning);
        let o = &self.o.tree;
        let marker = target.control.as_ref().map(Control::marker).transpose()?.flatten();
        let taken_over = o.adopt || marker.as_ref().is_some_and(|m| m.taken_over);
        let unmanaged = !taken_over && trees.tree.is_some_and(|t| t.entries > 0);
        let (old, new) = (OldTree(trees.tree_index), Objects(trees.source));
        let diff = trees.diff(&old, &new, o.no_delete);
        let plan = trees.plan(&diff, unmanaged)?;
        self.progress.files.store(plan.tally.files, Ordering::Relaxed);
        self.progress.bytes.store(plan.tally.bytes, Ordering::Relaxed);
        let plan_id = plan.tally.plan_id();
        let there = trees.tree.map_or(0, |t| t.files);
        let facts = Facts { there, source_is_empty: source.entries == 0, unmanaged };
        let refusal = judge(&plan.tally, facts, o.max_delete).filter(|_| o.approve != Some(plan_id));
        let mut errors = source.errors.clone();
        errors.extend(trees.tree.iter().flat_map(|t| t.errors.clone()));
        let mut outcome = Outcome {
            tally: plan.tally,
            copied: (0, 0),
            plan_id,
            refusal,
            errors,
            mismatched: Vec::new(),
            drift: Vec::new(),
            specials: source.specials,
            dropped: NotCarried { hard_links: source.hard_links, sparse: source.sparse, xattrs: 0 },
            content: source.root.content,
            root: None,
            touched: Default::default(),
            recovered: false,
            vanished: 0,
        };
        let pin = match &target.control {
            Some(_) if !self.o.dry_run && outcome.refusal.is_none() => Some(self.pin(source)?),
            _ => None,
        };
        let apply = Apply {
            o,
            dst: self.dst,
            monitor: self.monitor,
            progress: self.progress,
            cancel: self.cancel,
            pin,
            root_mtime: self.source.stat_self().ok().map(|s| s.mtime),
            remote: false,
            generation: None,
            aside: Default::default(),
        };
        if self.o.dry_run {
            outcome.errors.extend(plan.conflicts);
            let attrs = trees.root_attrs() && trees.tree.is_some();
            apply.report(&diff, &plan.moves, attrs, &Undone::default())?;
            if o.activate == Activate::Swap {
                apply.check_swap(trees)?;
            }
            outcome.errors.sort();
            return Ok(outcome);
        }
        let (Some(control), Some(state)) = (&target.control, state) else {
            return Ok(outcome);
        };
        if let Some(refusal) = &outcome.refusal {
            state.set_pending(Some(&pending(&diff, &plan.moves, plan_id, refusal)?))?;
            return Ok(outcome);
        }
        apply.carry_out(control, trees, &diff, &plan.moves, marker, &mut outcome)?;
        // a swap made another directory the tree
        if let Err(e) = Control::open(self.dst).and_then(|control| prune(&control, o.keep)) {
            // the work is done; the trash is tried again next time
            tracing::warn!("{e}");
        }
        state.set_pending(None)?;
        let info = Info {
            source: Some(escaped(self.src)),
            tree: escaped(self.dst),
            filter: o.filter.lines().to_vec(),
            owners_ignored: o.owner == OwnerPolicy::Ignore,
            last_run: Some(rfc3339_now()),
        };
        state.set_info(&info)?;
        outcome.errors.sort();
        outcome.errors.dedup();
        Ok(outcome)
    }
}

pub(super) fn pending(
    diff: &TreeDiff<'_, '_>,
    moves: &Moves,
    id: PlanId,
    refusal: &Refusal,
) -> Result<Pending> {
    let mut losses = Vec::new();
    diff.walk(moves, &mut |step| {
        if matches!(step.op, Op::Delete | Op::Update) && losses.len() < 100_000 {
            losses.push(step.to_string());
        }
        Ok(())
    })?;
    Ok(Pending { plan_id: id.to_string(), reason: refusal.to_string(), at: rfc3339_now(), losses })
}

pub(super) fn rfc3339_now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
