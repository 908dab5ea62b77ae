//! Brings everything new beside the tree: single entries under mirrored directories, whole new
//! directories as they will be, so that each becomes visible by one rename and its index rows are ready.
//!
//! One thread walks the plan and makes directories and links; a few copy files. A new directory counts
//! what is still open in it and gets its attributes when the last piece is in, deepest first.

mod dirs;
mod files;
mod partial;
mod walk;

use std::cmp::Ordering as Order;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::RenameFlags;
use rustix::io::Errno;

use super::commit::CLOCK_STEP;
use super::control::{Control, DONE_STAGE, OLD_STAGE, PARTIAL, STAGE};
use super::file::{Writer, is_promised};
use super::journal::{Ident, Journal, JournalWriter, Record, SetAttrs};
use super::mirror::Mirror;
use super::ops::no_flags;
use crate::disk::{
    Dir, FileKind, FsClass, Owners, Stat, chmod_fd, chown_fd, now, remove_tree, set_mtime_fd, stat_fd,
};
use crate::error::{Class, Context as _, Error, PathError, Result, lock};
use crate::model::{
    Content, Digest, Entry, Kind, LocalId, Mtime, Node, Object, RootHeader, Source, TreePath, Wanted, escape,
};
use crate::plan::{Diff, Filter, Item, Moves, Op, Side, Step};
use crate::scan::{DirRow, EntryId, Index, ROOT_ID, StatHasher, hash_fd, hash_first, hash_into};

const BATCH_FILES: usize = 128;
const BATCH_BYTES: u64 = 4 << 20;
/// Directories that a batch from a network keeps open.
const BATCH_DIRS: usize = 32;
/// What is smaller is fetched again from its start.
const PARTIAL_FROM: u64 = 4 << 20;
/// Batches that wait for a thread.
const QUEUE: usize = 16;
/// A file that changes while it is copied is copied again so often.
const TRIES: u32 = 3;

use dirs::{NewDir, root_dir};
use walk::Walk;

/// Progress of staging; read it from another thread.
#[derive(Debug, Default)]
pub struct StageCounters {
    /// Files copied.
    pub files: AtomicU64,
    /// Bytes copied.
    pub bytes: AtomicU64,
    /// Files found whole in what an interrupted run had staged.
    pub resumed: AtomicU64,
    /// Files that vanished from the source meanwhile.
    pub vanished: AtomicU64,
}

/// What the files copied had and the copies have not.
#[derive(Debug, Default)]
pub struct Dropped {
    /// Files with extended attributes or ACLs.
    pub xattrs: AtomicU64,
}

/// Stages a plan.
pub struct Stager<'a> {
    /// The tree to change.
    pub control: &'a Control,
    /// Where content comes from.
    pub source: &'a dyn Source,
    /// The tree's index; gets the rows of new directories.
    pub index: &'a Index,
    /// What is excluded must not be displaced.
    pub filter: &'a Filter,
    /// What comes into place after everything else.
    pub order: Option<&'a Filter>,
    /// The host's names.
    pub owners: &'a Owners,
    /// Counts as it goes.
    pub counters: &'a StageCounters,
    /// What is not carried over.
    pub dropped: &'a Dropped,
    /// Set to end.
    pub cancel: &'a AtomicBool,
    /// Threads that copy.
    pub threads: usize,
    /// Few changes: sync every file, so that nobody else's dirty data is waited for.
    pub sync_each: bool,
    /// Content comes over a network: files of many directories are asked for at once, and a large file that was
    /// cut short goes on where it stopped.
    pub remote: bool,
}

/// A staged plan, its journal not yet decided.
pub struct Staged {
    pub(crate) journal: JournalWriter,
    /// Paths that could not be staged; they stay as they are.
    pub errors: Vec<PathError>,
    /// Steps to leave out of the report: failed or vanished.
    pub skipped: BTreeSet<TreePath>,
    /// Files that changed since the scan, and came over as they are now.
    pub renewed: BTreeSet<TreePath>,
    /// Files whose content arrived and was not what its digest says.
    pub mismatched: BTreeSet<TreePath>,
    /// What lies at these paths now is in no published state: what of it is displaced goes to the trash as drift,
    /// also when nothing else is kept.
    pub aside: BTreeSet<TreePath>,
    /// Directories in which names change.
    pub(crate) touched: BTreeSet<TreePath>,
    /// When the last new directory was staged; its files' times are in the index already.
    pub(crate) at: Option<Mtime>,
    /// All of it is durable.
    pub(crate) synced: bool,
}

#[derive(Clone)]
enum Place {
    New(Arc<NewDir>),
    Mirror(Arc<Dir>),
}

/// A directory that files of a batch are for.
struct Piece {
    dir: TreePath,
    place: Place,
}

/// Files that are brought in one go, with the index of their piece.
#[derive(Default)]
struct Batch {
    pieces: Vec<Piece>,
    files: Vec<(usize, Entry, Option<Ident>)>,
    bytes: u64,
}

/// What the threads share.
struct Shared<'s> {
    to: &'s Stager<'s>,
    writer: Writer<'s>,
    old_stage: Option<Dir>,
    /// Where large files grow, each under its digest.
    partial: Option<Dir>,
    growing: Mutex<BTreeSet<Digest>>,
    new_dirs: AtomicBool,
    mismatched: Mutex<BTreeSet<TreePath>>,
    journal: Mutex<JournalWriter>,
    errors: Mutex<Vec<PathError>>,
    skipped: Mutex<BTreeSet<TreePath>>,
    renewed: Mutex<BTreeSet<TreePath>>,
    failed: Mutex<Option<Error>>,
    stop: AtomicBool,
    root: bool,
}

fn interrupted() -> Error {
    Error::new(Class::Interrupted, "interrupted")
}

/// Errors of one path, which leave the others alone; what else goes wrong while we write ends the run.
fn is_of_path(e: &Error) -> bool {
    matches!(
        e.errno(),
        Some(
            Errno::NAMETOOLONG
                | Errno::INVAL
                | Errno::ILSEQ
                | Errno::OPNOTSUPP
                | Errno::PERM
                | Errno::OVERFLOW
        )
    )
}

impl Stager<'_> {
    /// Stages all that `diff` says, and, with `root`, the root's own attributes.
    ///
    /// # Errors
    /// [`Class::Interrupted`], or what makes going on pointless (a full disk); what is staged then stays
    /// for a later run. Single paths that fail are in [`Staged::errors`].
    pub fn stage<N: Side>(
        &self,
        diff: &Diff<'_, impl Side<Handle = i64>, N>,
        moves: &Moves,
        seq: u64,
        tree_id: &str,
        root: Option<&RootHeader>,
    ) -> Result<Staged> {
        self.run(diff, moves, seq, tree_id, &Target::Tree(root))
    }

    /// Builds a complete new tree with this header in the given directory (see [`super::Swap`]).
    ///
    /// # Errors
    /// As [`Stager::stage`].
    pub fn stage_whole<N: Side>(
        &self,
        diff: &Diff<'_, impl Side<Handle = i64>, N>,
        seq: u64,
        tree_id: &str,
        whole: (&Dir, &RootHeader),
    ) -> Result<Staged> {
        self.run(diff, &Moves::default(), seq, tree_id, &Target::Whole(whole.0, whole.1))
    }

    fn run<N: Side>(
        &self,
        diff: &Diff<'_, impl Side<Handle = i64>, N>,
        moves: &Moves,
        seq: u64,
        tree_id: &str,
        target: &Target<'_>,
    ) -> Result<Staged> {
        Journal::refuse_pending(&self.control.dir)?;
        let home = self.control.stage_home();
        let old_stage = if matches!(target, Target::Tree(_)) { keep_old_stage(home)? } else { None };
        let mut journal = JournalWriter::create(&self.control.dir)?;
        let staging = self.control.staging_path();
        journal.add(&Record::Begin { tree: tree_id.to_owned(), seq, staging })?;
        let shared = Shared {
            to: self,
            writer: Writer {
                owners: self.owners,
                sync_each: self.sync_each || self.control.class == FsClass::Fuse,
                cancel: self.cancel,
            },
            old_stage,
            partial: self
                .remote
                .then(|| home.ensure_dir(PARTIAL, 0o700))
                .transpose()
                .context(|| "make the directory for partly received files".into())?,
            growing: Mutex::default(),
            new_dirs: AtomicBool::new(false),
            mismatched: Mutex::default(),
            journal: Mutex::new(journal),
            errors: Mutex::default(),
            skipped: Mutex::default(),
            renewed: Mutex::default(),
            failed: Mutex::default(),
            stop: AtomicBool::new(false),
            root: rustix::process::geteuid().is_root(),
        };
        let (send, receive) = sync_channel(QUEUE);
        let receive = Mutex::new(receive);
        let walked = std::thread::scope(|scope| {
            for _ in 0..self.threads {
                scope.spawn(|| shared.copy_batches(&receive));
            }
            let walked = self.walk(&shared, send, diff, moves, target);
            if walked.is_err() {
                shared.stop.store(true, Ordering::Relaxed);
            }
            walked
        });
        if let Some(e) = lock(&shared.failed).take() {
            return Err(e);
        }
        let (touched, attrs) = walked?;
        let mut journal = shared.journal.into_inner().unwrap_or_else(PoisonError::into_inner);
        // deepest first: what is done in a directory moves its mtime
        for (path, attrs) in attrs.into_iter().rev() {
            journal.add(&Record::Attrs { path, id: None, digest: None, attrs })?;
        }
        let mut errors = shared.errors.into_inner().unwrap_or_else(PoisonError::into_inner);
        errors.sort();
        let renewed = shared.renewed.into_inner().unwrap_or_else(PoisonError::into_inner);
        let skipped = shared.skipped.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mismatched = shared.mismatched.into_inner().unwrap_or_else(PoisonError::into_inner);
        let at = shared.new_dirs.into_inner().then(now);
        let aside = BTreeSet::new();
        Ok(Staged {
            journal,
            errors,
            skipped,
            renewed,
            mismatched,
            aside,
            touched,
            at,
            synced: self.sync_each,
        })
    }

    fn walk<N: Side>(
        &self,
        shared: &Shared<'_>,
        send: SyncSender<Batch>,
        diff: &Diff<'_, impl Side<Handle = i64>, N>,
        moves: &Moves,
        target: &Target<'_>,
    ) -> Result<(BTreeSet<TreePath>, BTreeMap<TreePath, SetAttrs>)> {
        let home = self.control.stage_home();
        let stage = home.ensure_dir(STAGE, 0o700).context(|| "make the staging directory".into())?;
        let mut walk = Walk {
            shared,
            mirror: Mirror::new(&self.control.root, stage)?,
            send,
            stack: Vec::new(),
            batch: Batch::default(),
            touched: BTreeSet::new(),
            prepared: BTreeSet::new(),
            attrs: BTreeMap::new(),
        };
        match target {
            Target::Whole(dir, header) => walk.stack.push(Arc::new(root_dir(dir, header)?)),
            Target::Tree(Some(header)) => {
                let (uid, gid) = self.owners.ids(&header.owner);
                let attrs = SetAttrs { mode: Some(header.mode), mtime: None, uid, gid };
                walk.attrs.insert(TreePath::root(), attrs);
            }
            Target::Tree(None) => {}
        }
        let conflicts = diff.walk(moves, &mut |step| walk.step(&step))?;
        lock(&shared.errors).extend(conflicts);
        walk.flush()?;
        while let Some(dir) = walk.stack.pop() {
            shared.close(dir)?;
        }
        Ok((walk.touched, walk.attrs))
    }
}

/// What is staged for.
enum Target<'t> {
    /// Changes of the tree that is there, with the root's own attributes when they change.
    Tree(Option<&'t RootHeader>),
    /// A new tree in a directory of its own.
    Whole(&'t Dir, &'t RootHeader),
}

impl Staged {
    /// Directories in which names or attributes change.
    pub fn touched(&self) -> impl Iterator<Item = &TreePath> {
        self.touched.iter()
    }
}

/// Whether a commit that failed was never decided: what it staged is still staged, and no journal speaks of it.
///
/// # Errors
/// The journal cannot be read.
pub fn is_undecided(control: &Control) -> Result<bool> {
    Ok(Journal::pending(&control.dir)?.is_none() && control.stage_home().stat(STAGE).is_ok())
}

/// Whether a crash cut off a commit before it was decided: it is all still staged, and its journal was never whole.
///
/// # Errors
/// The journal cannot be read.
pub fn was_never_decided(control: &Control) -> Result<bool> {
    Ok(control.stage_home().stat(STAGE).is_ok() && Journal::was_never_whole(&control.dir)?)
}

/// Removes what was staged for a commit that was never decided.
///
/// # Errors
/// The operating system's.
pub fn discard_stage(control: &Control) -> Result<()> {
    Journal::refuse_pending(&control.dir)?;
    let home = control.stage_home();
    for name in [STAGE, OLD_STAGE, DONE_STAGE] {
        remove_tree(home, name).context(|| format!("empty the staging directory of {}", control.shown()))?;
    }
    Journal::remove_undecided(&control.dir)
}

/// Removes what was received of large files that nobody wants any more.
///
/// # Errors
/// The operating system's.
pub fn discard_partial(control: &Control) -> Result<()> {
    remove_tree(control.stage_home(), PARTIAL)
        .context(|| format!("remove partly received files of {}", control.shown()))
}

/// What an interrupted run had staged is kept aside: whole files in it are used again, the rest goes.
fn keep_old_stage(home: &Dir) -> Result<Option<Dir>> {
    let cannot = || "put an interrupted run's staging directory aside".to_owned();
    match home.stat(STAGE) {
        Err(Errno::NOENT) => {}
        Err(e) => return Err(e).context(cannot),
        Ok(_) => {
            remove_tree(home, OLD_STAGE).context(cannot)?;
            home.rename(STAGE, home, OLD_STAGE).context(cannot)?;
        }
    }
    match home.open_child(OLD_STAGE) {
        Ok(dir) => Ok(Some(dir)),
        Err(Errno::NOENT) => Ok(None),
        // no directory of ours
        Err(Errno::NOTDIR | Errno::LOOP) => remove_tree(home, OLD_STAGE).context(cannot).map(|()| None),
        Err(e) => Err(e).context(cannot),
    }
}

impl Place {
    fn dir(&self) -> &Dir {
        match self {
            Self::New(new) => &new.dir,
            Self::Mirror(dir) => dir,
        }
    }
}
