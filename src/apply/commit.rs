//! Carries out a journal: every record is a rename or a change of attributes that can be repeated, so a
//! crash in the middle of them is healed by carrying the whole journal out again. Once all are done that
//! is over (see [`super::finish`]): what somebody writes after that is not the commit's.
//!
//! Order: new names, moves, replacements, what shall come last (`order`), removals, attributes (directories last, deepest first); then a
//! sync; then a look at everything that was displaced. What is not what the plan expected is drift and
//! goes to the trash under that name, and so does what the plan knew to be in no published state. Between the first and the last rename nothing else is done: that is
//! the time in which a reader can see a mix.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use rustix::io::Errno;

use super::control::{Control, DONE_STAGE, STAGE};
use super::journal::{Ident, Journal, Record};
use super::ops::Ops;
use super::stage::Staged;
use super::unplaced::Unplaced;
use crate::disk::{Dir, FsClass, Stat, now, sync_dirs};
use crate::error::{Class, Context as _, Error, PathError, Result};
use crate::model::{Digest, Kind, Name, TreePath};
use crate::scan::{Index, changed_within};

/// More files than this are looked at again by hashing after a commit (a bound on memory).
const MAX_KNOWN: usize = 100_000;
/// A longer journal is read once per phase instead of being held in memory.
const MAX_IN_MEMORY: u64 = 50_000;
/// A later change gets another ctime when it comes this much later.
pub(super) const CLOCK_STEP: Duration = Duration::from_millis(25);

/// A file that a commit put in place, moved, or set attributes of.
#[derive(Debug)]
pub(crate) struct KnownFile {
    id: Ident,
    /// Where the file was looked at afterwards: nothing may have changed since.
    ctime: Option<crate::model::Mtime>,
    digest: Digest,
}

/// A finished commit.
#[derive(Debug, Default)]
pub struct Committed {
    /// Paths at which something was displaced that the plan did not expect; it is in the trash.
    pub drift: Vec<TreePath>,
    /// Paths at which the commit failed; they may be old or new, never half.
    pub errors: Vec<PathError>,
    /// Those of them whose name is not what it should be, with all below.
    pub failed: BTreeSet<TreePath>,
    /// Digests of what was put in place one by one.
    pub(crate) known: HashMap<TreePath, KnownFile>,
    /// When the last rename was done.
    pub(super) at: crate::model::Mtime,
}

impl Committed {
    /// Waits until a later change would get another ctime than the commit's renames.
    pub fn wait_for_clock(&self) {
        wait_for_clock(self.at);
    }

    /// The digest of a file that this commit put in place, if it still is that file.
    pub fn digest(&self, dir: &TreePath, name: &[u8], stat: &Stat) -> Option<Digest> {
        let path = dir.join(&Name::new(name).ok()?);
        self.known
            .get(&path)
            .filter(|k| k.id.is(stat) && k.ctime.is_none_or(|ctime| ctime == stat.id.ctime))
            .map(|k| k.digest)
    }
}

/// Makes a staged plan visible.
///
/// # Errors
/// Before the journal is durable: the tree is as it was. After: the next start carries it out to its end.
pub fn commit(
    control: &Control,
    mut staged: Staged,
    index: &Index,
    seq: u64,
    keep: bool,
) -> Result<Committed> {
    for path in std::mem::take(&mut staged.aside) {
        staged.journal.add(&Record::Aside { path })?;
    }
    if !staged.synced {
        control.dir.sync_fs().context(|| format!("sync the file system of {}", control.shown()))?;
    }
    // there `syncfs` may not reach the store
    if staged.synced || control.class == FsClass::Fuse {
        sync_names(control, &staged.touched)
            .context(|| format!("sync the staging directory of {}", control.shown()))?;
    } else {
        control.dir.sync().context(|| format!("sync {}/.syncagent", control.shown()))?;
    }
    let mut journal = staged.journal.finish()?;
    let mut run = Run::new(control, &mut journal, None)?;
    run.before()?;
    if let Some(at) = staged.at {
        wait_for_clock(at);
    }
    run.renames()?;
    run.finish(Some(index), seq, keep, staged.synced)
}

/// What becomes of what somebody wrote, after a commit was decided, at a path that a crash kept it from reaching.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Late {
    /// The commit goes on as if there had been no crash: what it did not expect is displaced, as drift.
    Displaced,
    /// It stays in the tree. What the commit would have put there is dropped, with an error of that path.
    Stays,
}

/// Carries out the journal that a crash left, when there is one. What was done before the crash is not done
/// again. Gives its errors too, those of before the crash included, also when all that was left was to hand
/// them on: what was decided is then not completely in place.
///
/// # Errors
/// As [`commit`]; the journal then stays.
pub fn recover(
    control: &Control,
    index: Option<&Index>,
    marker_seq: u64,
    keep: bool,
    late: Late,
) -> Result<Option<Committed>> {
    let Some(mut journal) = Journal::pending(&control.dir)? else {
        return Unplaced::take(control, marker_seq);
    };
    let mut seq = None;
    journal.each(&mut |record| {
        if let Record::Begin { seq: s, .. } = record {
            seq = Some(s);
        }
        Ok(())
    })?;
    let seq = seq.ok_or_else(|| Error::integrity("the journal does not say whose it is"))?;
    if seq <= marker_seq {
        Journal::remove(&control.dir)?;
        return Unplaced::take(control, seq);
    }
    let mut run = Run::new(control, &mut journal, Some(late))?;
    if run.renamed {
        run.unplaced(Unplaced::read(control, seq));
    } else {
        run.protect(index)?;
        run.renames()?;
    }
    run.finish(index, seq, keep, false).map(Some)
}

pub(super) fn wait_for_clock(since: crate::model::Mtime) {
    let now = now();
    let passed = now.nanos() - since.nanos();
    let step = CLOCK_STEP.as_nanos() as i128;
    if (0..step).contains(&passed) {
        std::thread::sleep(Duration::from_nanos((step - passed) as u64));
    }
}

/// Makes the names in the staged `dirs` durable, those of the directories above them, and the journal's.
fn sync_names(control: &Control, dirs: &BTreeSet<TreePath>) -> rustix::io::Result<()> {
    let home = control.stage_home();
    let stage = home.open_child(STAGE)?;
    let staged: BTreeSet<TreePath> = dirs.iter().flat_map(TreePath::ancestors).collect();
    let mut all: Vec<_> = staged.into_iter().map(|path| (&stage, path)).collect();
    all.push((&control.dir, TreePath::root()));
    if !std::ptr::eq(home, &control.dir) {
        all.push((home, TreePath::root()));
    }
    sync_dirs(&all)
}

/// The last directory opened below a root.
pub(super) struct Cached<'a> {
    pub(super) root: &'a Dir,
    pub(super) last: Option<(Vec<u8>, Dir)>,
}

impl<'a> Cached<'a> {
    pub(super) fn new(root: &'a Dir) -> Self {
        Self { root, last: None }
    }

    pub(super) fn at(&mut self, parent: &[u8]) -> rustix::io::Result<&Dir> {
        if self.last.as_ref().is_none_or(|(at, _)| at != parent) {
            let path = TreePath::new(parent).map_err(|_| Errno::INVAL)?;
            self.last = Some((parent.to_vec(), self.root.open(&path)?));
        }
        self.last.as_ref().map(|(_, dir)| dir).ok_or(Errno::NOENT)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    New,
    Move,
    Replace,
    Last,
    Remove,
    Attrs,
}

const PHASES: [Phase; 7] =
    [Phase::Open, Phase::New, Phase::Move, Phase::Replace, Phase::Last, Phase::Remove, Phase::Attrs];

fn phase_of(record: &Record) -> Option<Phase> {
    Some(match record {
        Record::Begin { .. } | Record::End { .. } | Record::Aside { .. } => return None,
        Record::Open { .. } => Phase::Open,
        Record::Put { last: true, .. } => Phase::Last,
        Record::Put { old: None, .. } => Phase::New,
        Record::Put { old: Some(_), .. } => Phase::Replace,
        Record::Move { .. } => Phase::Move,
        Record::Remove { .. } => Phase::Remove,
        Record::Attrs { .. } => Phase::Attrs,
    })
}

pub(super) struct Run<'a> {
    pub(super) control: &'a Control,
    pub(super) journal: &'a mut Journal,
    /// What is staged or displaced; `None`: all of it is put away.
    pub(super) stage: Option<Dir>,
    pub(super) home: Dir,
    /// All renames are done, before a crash.
    pub(super) renamed: bool,
    /// After a crash.
    pub(super) again: Option<Late>,
    /// Directories that shall go and have something in them that came since.
    grown: BTreeSet<TreePath>,
    pub(super) drift: BTreeSet<TreePath>,
    /// In no published state.
    pub(super) aside: BTreeSet<TreePath>,
    pub(super) errors: Vec<PathError>,
    pub(super) failed: BTreeSet<TreePath>,
    pub(super) known: HashMap<TreePath, KnownFile>,
    records: u64,
}

impl<'a> Run<'a> {
    fn new(control: &'a Control, journal: &'a mut Journal, again: Option<Late>) -> Result<Self> {
        let mut staging = None;
        let mut aside = BTreeSet::new();
        let mut count = 0;
        journal.each(&mut |record| {
            count += u64::from(phase_of(&record).is_some());
            match record {
                Record::Begin { staging: s, .. } => staging = s,
                Record::Aside { path } => drop(aside.insert(path)),
                _ => {}
            }
            Ok(())
        })?;
        let home = control.stage_home_of(staging.as_deref())?;
        let open = |name| match home.open_child(name) {
            Ok(stage) => Ok(Some(stage)),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(e).context(|| "open the staging directory".into()),
        };
        let (stage, renamed) = match open(STAGE)? {
            None => (open(DONE_STAGE)?, true),
            stage => (stage, false),
        };
        Ok(Self {
            control,
            journal,
            stage,
            home,
            renamed,
            again,
            grown: BTreeSet::new(),
            drift: BTreeSet::new(),
            aside,
            errors: Vec::new(),
            failed: BTreeSet::new(),
            known: HashMap::new(),
            records: count,
        })
    }

    /// Looks once more at what will be displaced: a change since the scan is drift.
    fn before(&mut self) -> Result<()> {
        let mut tree = Cached::new(&self.control.root);
        let drift = &mut self.drift;
        self.journal.each(&mut |record| {
            if let Record::Put { path, old: Some(old), .. } | Record::Remove { path, old, .. } = record {
                let (parent, name) = path.split();
                let stat = tree.at(parent).and_then(|dir| dir.stat(name));
                if stat.is_ok_and(|stat| !old.is_untouched(&stat)) {
                    drift.insert(path);
                }
            }
            Ok(())
        })
    }

    /// Takes over what is known of the errors of before the crash.
    fn unplaced(&mut self, before: Option<Unplaced>) {
        let committed = before.map(Committed::from).unwrap_or_default();
        self.errors = committed.errors;
        self.failed = committed.failed;
    }

    /// Where late content stays: finds the directories that shall go and have some in them.
    fn protect(&mut self, index: Option<&Index>) -> Result<()> {
        let (Some(Late::Stays), Some(index)) = (self.again, index) else {
            return Ok(());
        };
        let mut dirs = Vec::new();
        self.journal.each(&mut |record| {
            if let Record::Remove { path, old, row } | Record::Put { path, old: Some(old), row, .. } = record
                && old.kind == Kind::Dir
                && row != 0
            {
                dirs.push((path, old, row));
            }
            Ok(())
        })?;
        let mut tree = Cached::new(&self.control.root);
        for (path, old, row) in dirs {
            let (parent, name) = path.split();
            // another directory is none of ours in any case; of one that the index does not know nothing can be said
            if index.row(row)?.is_some()
                && tree.at(parent).and_then(|dir| dir.stat(name)).is_ok_and(|stat| old.is(&stat))
                && !changed_within(&self.control.root, &path, row, index)?.is_empty()
            {
                self.grown.insert(path);
            }
        }
        Ok(())
    }

    fn renames(&mut self) -> Result<()> {
        let Some(stage) = &self.stage else {
            return Ok(());
        };
        let mut ops = Ops {
            tree: Cached::new(&self.control.root),
            stage: Cached::new(stage),
            again: self.again.is_some(),
            late_stays: self.again == Some(Late::Stays),
            grown: &self.grown,
            drift: &mut self.drift,
        };
        // decoded once, ordered by phase: nothing but renames happens in between
        let mut phases: [Vec<Record>; PHASES.len()] = Default::default();
        let small = self.records <= MAX_IN_MEMORY;
        if small {
            self.journal.each(&mut |record| {
                if let Some(phase) = phase_of(&record) {
                    phases[phase as usize].push(record);
                }
                Ok(())
            })?;
        }
        let control = self.control;
        let errors = &mut self.errors;
        let failures = &mut self.failed;
        let known = &mut self.known;
        for phase in PHASES {
            let mut one = |record: Record| {
                if phase_of(&record) != Some(phase) {
                    return Ok(());
                }
                match ops.run(&record) {
                    Ok(after) => {
                        remember(known, record, after);
                        Ok(())
                    }
                    Err(e) => {
                        let path = failed(control, errors, &record, e)?;
                        if !matches!(record, Record::Attrs { .. } | Record::Open { .. }) {
                            failures.extend(path);
                        }
                        Ok(())
                    }
                }
            };
            if small {
                for record in std::mem::take(&mut phases[phase as usize]) {
                    one(record)?;
                }
            } else {
                self.journal.each(&mut one)?;
            }
        }
        Ok(())
    }
}

/// Keeps the digest of what a record put in place, `after` being its state when that was looked at.
fn remember(known: &mut HashMap<TreePath, KnownFile>, record: Record, after: Option<Stat>) {
    if known.len() >= MAX_KNOWN {
        return;
    }
    match (record, after) {
        (Record::Put { path, new, digest: Some(digest), .. }, _) => {
            known.insert(path, KnownFile { id: new, ctime: None, digest });
        }
        (
            Record::Move { path, digest: Some(digest), .. }
            | Record::Attrs { path, digest: Some(digest), .. },
            Some(stat),
        ) => {
            known.insert(path, KnownFile { id: Ident::of(&stat), ctime: Some(stat.id.ctime), digest });
        }
        _ => {}
    }
}

/// An error of one path leaves the others alone; what concerns the whole file system ends the run, and
/// the next one carries the journal out.
fn failed(
    control: &Control,
    errors: &mut Vec<PathError>,
    record: &Record,
    e: Errno,
) -> Result<Option<TreePath>> {
    let path = match record {
        Record::Put { path, .. }
        | Record::Move { path, .. }
        | Record::Remove { path, .. }
        | Record::Open { path }
        | Record::Attrs { path, .. } => path.clone(),
        Record::Begin { .. } | Record::End { .. } | Record::Aside { .. } => return Ok(None),
    };
    let cause = std::io::Error::from(e);
    if !control.is_writable() {
        // not this path's trouble but the file system's: all is decided, and goes on next time
        let shown = if path.is_root() { control.shown() } else { path.to_string() };
        let what = format!("the commit stopped at {shown}; the next run carries it out to its end");
        return Err(Error { class: Class::Permanent, what, source: Some(cause) });
    }
    let error = match e {
        Errno::AGAIN => "somebody changed it meanwhile, and it was left alone; run again".to_owned(),
        Errno::XDEV => {
            format!("{cause}: another file system is mounted there; exclude it, or sync it by itself")
        }
        _ => format!("cannot put in place: {cause}"),
    };
    errors.push(PathError { path: path.clone(), error });
    Ok(Some(path))
}
