//! `sync SRC DST`: one run from scan to commit.
//!
//! Order: source checked and pinned → lock → what a crash left is finished → both trees scanned → source
//! checked again → plan counted → guard → staged → committed → reported → index and marker brought up to
//! date. Nothing in DST changes before the guard agreed.

mod carry;

use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use super::paths;
use super::state::{Info, Pending, TreeState};
use crate::apply::{
    Committed, Control, Dropped, Keep, Marker, Pin, PinnedMount, StageCounters, Staged, Stager, Swap,
    SyncMark, check_swap, commit, discard_stage, next_number, prune, recover, recover_swap,
};
use crate::disk::{Dir, Lock, Locked, MountId, OwnerPolicy, Owners, ensure_dir_all};
use crate::error::{Class, Context as _, Error, PathError, Result};
use crate::model::{Digest, Kind, Source as _, TreePath, escaped};
use crate::plan::{
    CONTROL_DIR, Diff, Facts, Filter, MaxDelete, Moves, Op, Options, PlanId, Refusal, Step, Tally,
    find_moves, judge,
};
use crate::scan::{Counters, Index, LocalSource, Objects, OldTree, ROOT_ID, Scanned, Spec, scan};

use carry::Undone;

/// How a new state becomes visible.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activate {
    /// Path by path, by renames.
    #[default]
    InPlace,
    /// The whole directory at once.
    Swap,
}

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
    /// What belongs to the tree.
    pub filter: Filter,
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
    /// Trust no index.
    pub checksum: bool,
    /// How long to wait for the lock.
    pub lock_wait: Duration,
    /// Threads for scanning and copying.
    pub threads: usize,
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

    fn enter(&self, phase: Phase) {
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
    /// Paths where the commit displaced what it did not expect; kept in the trash.
    pub drift: Vec<TreePath>,
    /// Fifos, sockets, devices in the source.
    pub specials: u64,
    /// What is not carried over.
    pub dropped: NotCarried,
    /// The destination's content digest now; of a dry run, what it would be.
    pub content: Digest,
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
    let staging = options.staging.as_deref().map(std::path::absolute).transpose();
    let staging = staging.context(|| "resolve the staging path".into())?;
    for (tree, root) in [("source", &src), ("destination", &dst)] {
        paths::check_outside("state directory (--state-dir)", &options.state_dir, tree, root)?;
        if let Some(staging) = &staging {
            paths::check_outside("staging path", staging, tree, root)?;
        }
    }
    let source = Dir::open_root(&src).context(|| format!("open the source {}", escaped(&src)))?;
    let mount = MountId::of(&source).context(|| format!("find the file system of {}", escaped(&src)))?;
    let target = Target::open(options, &dst, cancel)?;
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

/// The destination, locked.
struct Target {
    /// `None` in a dry run on a directory that was never managed.
    control: Option<Control>,
    /// `None` in a dry run without a destination.
    root: Option<Dir>,
    _lock: Option<Lock>,
}

impl Target {
    fn open(o: &SyncOptions, dst: &Path, cancel: &AtomicBool) -> Result<Self> {
        let shown = escaped(dst);
        let exists = |path: &Path| match std::fs::metadata(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
            found => found.map(|_| true).context(|| format!("look at {}", escaped(path))),
        };
        let there = exists(dst)?;
        let managed = there && exists(&dst.join(std::str::from_utf8(CONTROL_DIR).unwrap_or_default()))?;
        if o.dry_run && !managed {
            let root = there.then(|| Dir::open_root(dst)).transpose().context(|| format!("open {shown}"))?;
            return Ok(Self { control: None, root, _lock: None });
        }
        if !there {
            ensure_dir_all(dst, 0o755).context(|| format!("make the destination {shown}"))?;
        }
        let (control, lock) = Self::lock(o, dst, cancel)?;
        let root = control.root.open(&TreePath::root()).context(|| format!("open {shown}"))?;
        Ok(Self { control: Some(control), root: Some(root), _lock: lock })
    }
}

impl Target {
    /// Opens and locks the tree. While we waited, a swap may have put another one in its place, or a run that
    /// was refused may have taken its control directory away: then again.
    fn lock(o: &SyncOptions, dst: &Path, cancel: &AtomicBool) -> Result<(Control, Option<Lock>)> {
        let shown = escaped(dst);
        let name = format!("{shown}/.syncagent/lock");
        let ino = |dir: &Dir| dir.stat_self().map(|s| s.id.ino).ok();
        loop {
            let control = Control::open(dst)?;
            let lock = match Lock::acquire(&control.dir, "lock", o.lock_wait, &name, cancel) {
                Ok(Locked::Yes(lock)) => lock,
                Ok(Locked::No(holder)) => return Err(busy(&shown, holder)),
                // a dry run also works where nothing can be written
                Err(e) if o.dry_run && e.errno() == Some(rustix::io::Errno::ROFS) => {
                    return Ok((control, None));
                }
                Err(e) if e.errno() == Some(rustix::io::Errno::NOENT) && ino_changed(&control, dst) => {
                    continue;
                }
                Err(e) => return Err(e),
            };
            let now = Control::open(dst)?;
            if ino(&now.root) == ino(&control.root) && ino(&now.dir) == ino(&control.dir) {
                return Ok((control, Some(lock)));
            }
        }
    }
}

/// Whether the tree's control directory is another one by now, or gone.
fn ino_changed(control: &Control, dst: &Path) -> bool {
    let ino = |dir: &Dir| dir.stat_self().map(|s| s.id.ino).ok();
    Control::open(dst).is_ok_and(|now| ino(&now.dir) != ino(&control.dir))
}

fn busy(shown: &str, holder: Option<crate::disk::Holder>) -> Error {
    let by = holder.map_or_else(
        || "by a process that left no record".to_owned(),
        |h| format!("by process {} on {} since {} ({})", h.pid, h.host, h.since, h.command),
    );
    Error::new(Class::Busy, format!("{shown} is locked {by}"))
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

/// Both trees, as the scan found them.
struct Trees<'a> {
    source: &'a Scanned,
    tree: Option<&'a Scanned>,
    source_index: &'a Index,
    tree_index: &'a Index,
    owners: &'a Owners,
}

impl Trees<'_> {
    fn root_attrs(&self) -> bool {
        self.tree.is_none_or(|tree| tree.root.header != self.source.root.header)
    }

    fn same(&self) -> bool {
        self.tree.is_some_and(|tree| tree.root.object == self.source.root.object)
    }
}

impl Run<'_> {
    fn refused(what: String) -> Error {
        Error::new(Class::Refused, what)
    }

    /// The source must be on the file system that it was on.
    fn check_pin(&self, control: Option<&Control>) -> Result<()> {
        let Some(pin) = control.map(Control::pin).transpose()?.flatten() else {
            return Ok(());
        };
        if pin.path == escaped(self.src) && !self.mount.is(&pin.mount) {
            return Err(Self::refused(format!(
                "the source {} is not on the file system it was on: it is on {}, and was on {}; nothing was changed. \
                 Mount it. If it has really moved, remove {}/.syncagent/source",
                pin.path,
                self.mount,
                pin.mount,
                escaped(self.dst)
            )));
        }
        Ok(())
    }

    fn check_mounts(&self, control: Option<&Control>, source: &Scanned) -> Result<()> {
        let Some(pin) = control.map(Control::pin).transpose()?.flatten() else {
            return Ok(());
        };
        let now = self.mounts_below(source)?;
        let gone = pin.mounts.iter().find(|m| {
            let same = |n: &&PinnedMount| n.path == m.path && n.mount.is(&m.mount);
            pin.path == escaped(self.src) && !now.iter().any(|n| same(&n))
        });
        match gone {
            Some(gone) => Err(Self::refused(format!(
                "{} in the source {} was a mount of {}, and is not any more; nothing was changed. Mount it. If it is \
                 really gone, remove {}/.syncagent/source",
                gone.path,
                pin.path,
                gone.mount,
                escaped(self.dst)
            ))),
            None => Ok(()),
        }
    }

    /// What is mounted below the source.
    fn mounts_below(&self, source: &Scanned) -> Result<Vec<PinnedMount>> {
        let of = |path: &TreePath| {
            let dir = self.source.open(path).context(|| format!("open {path} in the source"))?;
            let mount = MountId::of(&dir).context(|| format!("find the file system of {path}"))?;
            Ok(PinnedMount { path: path.to_string(), mount })
        };
        source.mounts.iter().map(of).collect()
    }

    /// After the scan: the path still leads to the directory that was scanned.
    fn check_source_again(&self) -> Result<()> {
        let gone = |why: &str| {
            Self::refused(format!(
                "the source {} {why} during the scan; nothing was changed",
                escaped(self.src)
            ))
        };
        let cannot = || format!("look at the source {} again", escaped(self.src));
        let again = match Dir::open_root(self.src) {
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Err(gone("vanished")),
            again => again.context(cannot)?,
        };
        let (before, after) = (self.source.stat_self().context(cannot)?, again.stat_self().context(cannot)?);
        let unchanged = before.dev == after.dev && before.id.ino == after.id.ino;
        let mount = MountId::of(&again).context(cannot)?;
        if unchanged && mount.is(&self.mount) { Ok(()) } else { Err(gone("was replaced or unmounted")) }
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
            recovered = self.recover(control, &tree_index)?;
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
        self.check_source_again()?;
        self.check_mounts(target.control.as_ref(), &source)?;
        let trees = Trees {
            source: &source,
            tree: tree.as_ref(),
            source_index: &source_index,
            tree_index: &tree_index,
            owners: &owners,
        };
        let mut outcome = self.planned(target, &trees, state.as_ref())?;
        if let Some(recovered) = recovered {
            outcome.recovered = true;
            outcome.drift.extend(recovered.drift);
        }
        Ok(outcome)
    }

    fn recover(&self, control: &Control, index: &Index) -> Result<Option<Committed>> {
        let keep = self.o.keep.generations > 0;
        let swapped = recover_swap(control, index, keep)?;
        let seq = control.marker()?.map_or(0, |m| m.seq);
        let done = recover(control, Some(index), seq, keep)?;
        Ok(done.or_else(|| swapped.then(Committed::default)))
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
            filter: &self.o.filter,
            policy,
            owners,
            rehash: self.o.checksum,
            only: None,
            known: None,
            counters,
        };
        let tree_policy = match &self.o.owner {
            OwnerPolicy::Ignore => &OwnerPolicy::Ignore,
            _ => &OwnerPolicy::Preserve,
        };
        let mut specs = vec![spec(self.source, &*src, source_index, &self.progress.source, &self.o.owner)];
        if let Some(root) = &target.root {
            specs.push(spec(root, &*dst, tree_index, &self.progress.tree, tree_policy));
        }
        let mut found = scan(&specs, self.o.threads, self.cancel)?.into_iter();
        match (found.next(), found.next()) {
            (Some(source), tree) => Ok((source, tree)),
            (None, _) => Err(Error::integrity("the scan lost a tree")),
        }
    }

    /// Counts, judges, and carries out.
    fn planned(&self, target: &Target, trees: &Trees<'_>, state: Option<&TreeState>) -> Result<Outcome> {
        self.progress.enter(Phase::Planning);
        let o = self.o;
        let old = OldTree(trees.tree_index);
        let local = LocalSource {
            dir: self.source,
            index: trees.source_index,
            scanned: trees.source,
            cancel: self.cancel,
        };
        let new = Objects(&local);
        let diff = Diff {
            old: &old,
            old_root: trees.tree.map(|_| ROOT_ID),
            new: &new,
            new_root: local.root().object,
            options: Options { no_delete: o.no_delete },
        };
        let marker = target.control.as_ref().map(Control::marker).transpose()?.flatten();
        let there = trees.tree.map_or(0, |t| t.files);
        let taken_over = o.adopt || marker.as_ref().is_some_and(|m| m.taken_over);
        let unmanaged = !taken_over && trees.tree.is_some_and(|t| t.entries > 0);
        let mut tally = Tally::new(unmanaged);
        let moves = if trees.same() { Moves::default() } else { find_moves(&diff)? };
        let mut conflicts = Vec::new();
        if !trees.same() {
            conflicts = diff.walk(&moves, &mut |step| {
                tally.add(&step);
                Ok(())
            })?;
        }
        let root_attrs = trees.root_attrs();
        tally.attrs += u64::from(root_attrs && trees.tree.is_some());
        self.progress.files.store(tally.files, Ordering::Relaxed);
        self.progress.bytes.store(tally.bytes, Ordering::Relaxed);
        let plan_id = tally.plan_id();
        let facts = Facts { there, source_is_empty: trees.source.entries == 0, unmanaged };
        let refusal = judge(&tally, facts, o.max_delete).filter(|_| o.approve != Some(plan_id));
        let mut errors = trees.source.errors.clone();
        errors.extend(trees.tree.iter().flat_map(|t| t.errors.clone()));
        let mut outcome = Outcome {
            tally,
            copied: (0, 0),
            plan_id,
            refusal,
            errors,
            drift: Vec::new(),
            specials: trees.source.specials,
            dropped: NotCarried {
                hard_links: trees.source.hard_links,
                sparse: trees.source.sparse,
                xattrs: 0,
            },
            content: trees.source.root.content,
            recovered: false,
            vanished: 0,
        };
        if o.dry_run {
            outcome.errors.extend(conflicts);
            self.report(&diff, &moves, root_attrs && trees.tree.is_some(), &Undone::default())?;
            if o.activate == Activate::Swap {
                self.check_swap(trees)?;
            }
            outcome.errors.sort();
            return Ok(outcome);
        }
        let (Some(control), Some(state)) = (&target.control, state) else {
            return Ok(outcome);
        };
        if let Some(refusal) = &outcome.refusal {
            state.set_pending(Some(&pending(&diff, &moves, plan_id, refusal)?))?;
            return Ok(outcome);
        }
        self.carry_out(control, trees, &diff, &moves, marker, &mut outcome)?;
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

type LocalDiff<'a, 'b> = Diff<'a, OldTree<'b>, Objects<'b>>;

fn pending(diff: &LocalDiff<'_, '_>, moves: &Moves, id: PlanId, refusal: &Refusal) -> Result<Pending> {
    let mut losses = Vec::new();
    diff.walk(moves, &mut |step| {
        if matches!(step.op, Op::Delete | Op::Update) && losses.len() < 100_000 {
            losses.push(step.to_string());
        }
        Ok(())
    })?;
    Ok(Pending { plan_id: id.to_string(), reason: refusal.to_string(), at: rfc3339_now(), losses })
}

fn with_parents<'p>(paths: impl Iterator<Item = &'p TreePath>) -> HashSet<TreePath> {
    let mut out = HashSet::from([TreePath::root()]);
    for path in paths {
        let mut at = Some(path.clone());
        while let Some(path) = at {
            at = path.parent();
            if !out.insert(path) {
                break;
            }
        }
    }
    out
}

fn rfc3339_now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
