//! What a scan knows while it goes on: of each tree, and of each directory that is not done yet.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use rustix::io::Errno;

use super::index::ROOT_ID;
use super::list::Listing;
use super::row::{Bitmap, DirRow, EntryId, StatHash};
use super::spec::{Scanned, Spec, owner_of, view};
use crate::disk::{Dir, FileKind, FsClass, Stat};
use crate::error::{Class, Context as _, Error, PathError, Result, lock};
use crate::model::{Digest, Entry, Mtime, Name, Root, RootHeader, TreePath, root_content};

/// A clock that counts in nanoseconds moves at least every jiffy (10 ms at 100 Hz); twice that.
const FINE_STEP_NS: i128 = 20_000_000;
/// Times without a fraction come from a clock of one (FAT: two) seconds.
const COARSE_STEP_NS: i128 = 2_100_000_000;

#[derive(Clone, Copy)]
pub(super) enum Kid {
    Open,
    Done { object: Digest, content: Digest, keeps: bool, row: i64 },
    Unreadable,
    Vanished,
}

/// A directory on its way through the scan.
pub(super) struct Dirent {
    pub(super) tree: usize,
    pub(super) path: TreePath,
    /// The directory above, and which of its subdirectories this is.
    pub(super) parent: Option<(Arc<Dirent>, usize)>,
    /// The row that describes it, when there is one.
    pub(super) old: Option<DirRow>,
    pub(super) row: i64,
    /// Subdirectories and hashing jobs still open, and one for the listing itself.
    pub(super) open: AtomicUsize,
    /// The mount that it is on.
    pub(super) mount: AtomicU64,
    /// The index's row turned out to be damaged.
    pub(super) distrust: AtomicBool,
    pub(super) state: Mutex<State>,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) ino: u64,
    pub(super) stat: StatHash,
    /// The listing is what the row says; `entries` is empty.
    pub(super) clean: bool,
    pub(super) keeps: bool,
    pub(super) racy: bool,
    pub(super) entries: Vec<Entry>,
    pub(super) ids: Vec<EntryId>,
    /// Indices into `entries` of files that vanished while they were hashed.
    pub(super) gone: Vec<usize>,
    pub(super) kids: Vec<(Name, u64, Kid)>,
}

/// A piece of the scan.
pub(super) enum Job {
    Dir(Arc<Dirent>),
    Hash(Arc<Dirent>, Arc<Dir>, Vec<ToHash>),
}

/// A file to read.
pub(super) struct ToHash {
    /// Its place in the directory's entries.
    pub(super) at: usize,
    pub(super) stat: Stat,
}

pub(super) struct Tree<'a> {
    pub(super) spec: &'a Spec<'a>,
    pub(super) class: FsClass,
    /// The index was written with the same filter and owner policy.
    pub(super) same_view: bool,
    pub(super) live: Mutex<Bitmap>,
    pub(super) errors: Mutex<Vec<PathError>>,
    pub(super) mounts: Mutex<Vec<TreePath>>,
    pub(super) held: Mutex<Vec<(TreePath, String)>>,
    pub(super) files: AtomicU64,
    pub(super) entries: AtomicU64,
    pub(super) specials: AtomicU64,
    pub(super) excluded: AtomicU64,
    pub(super) hard_links: AtomicU64,
    pub(super) sparse: AtomicU64,
    pub(super) top: Mutex<Kid>,
    pub(super) header: RootHeader,
}

impl<'a> Tree<'a> {
    pub(super) fn new(spec: &'a Spec<'a>) -> Result<Self> {
        let stat = spec.root.stat_self().context(|| format!("stat {}", spec.shown))?;
        let view = view(spec);
        let same_view = spec.index.meta("view")?.as_deref() == Some(&view.0[..]);
        if !same_view {
            spec.index.set_meta("view", &view.0)?;
        }
        Ok(Self {
            class: FsClass::of(spec.root),
            same_view,
            live: Mutex::default(),
            errors: Mutex::default(),
            mounts: Mutex::default(),
            held: Mutex::default(),
            files: AtomicU64::new(0),
            entries: AtomicU64::new(0),
            specials: AtomicU64::new(0),
            excluded: AtomicU64::new(0),
            hard_links: AtomicU64::new(0),
            sparse: AtomicU64::new(0),
            top: Mutex::new(Kid::Open),
            header: RootHeader { mode: stat.mode, owner: owner_of(spec, &stat) },
            spec,
        })
    }

    pub(super) fn start(&self, tree: usize) -> Result<Job> {
        let old = self.spec.index.row(ROOT_ID)?;
        lock(&self.live).add(ROOT_ID);
        let top = Dirent {
            tree,
            path: TreePath::root(),
            parent: None,
            old,
            row: ROOT_ID,
            open: AtomicUsize::new(1),
            mount: AtomicU64::new(0),
            distrust: AtomicBool::new(false),
            state: Mutex::default(),
        };
        Ok(Job::Dir(Arc::new(top)))
    }

    pub(super) fn finish(self) -> Result<Scanned> {
        let (object, content, keeps) = match *lock(&self.top) {
            Kid::Done { object, content, keeps, .. } => (object, content, keeps),
            _ => {
                let cause = lock(&self.errors).pop().map_or_else(|| "it vanished".to_owned(), |e| e.error);
                return Err(Error::new(
                    Class::Permanent,
                    format!("cannot scan {}: {cause}", self.spec.shown),
                ));
            }
        };
        if self.spec.only.is_none() {
            self.spec.index.retain(&lock(&self.live))?;
        }
        self.spec.index.set_header(&self.header)?;
        let mut errors = std::mem::take(&mut *lock(&self.errors));
        errors.sort();
        let mut mounts = std::mem::take(&mut *lock(&self.mounts));
        mounts.sort();
        Ok(Scanned {
            root: Root { object, content: root_content(self.header.mode, &content), header: self.header },
            files: self.files.into_inner(),
            entries: self.entries.into_inner(),
            specials: self.specials.into_inner(),
            excluded: self.excluded.into_inner(),
            hard_links: self.hard_links.into_inner(),
            sparse: self.sparse.into_inner(),
            keeps,
            errors,
            mounts,
            held: std::mem::take(&mut *lock(&self.held)),
        })
    }

    pub(super) fn error(&self, path: TreePath, attempt: &str, e: Errno) {
        let error = format!("cannot {attempt}: {}", std::io::Error::from(e));
        lock(&self.errors).push(PathError { path, error });
    }

    /// Whether times this close to the look prove nothing.
    pub(super) fn racy(&self, id: &Stat, looked: Mtime, seen_before: bool) -> bool {
        if self.class != FsClass::Local {
            return !seen_before;
        }
        let step = if id.id.ctime.nsec == 0 { COARSE_STEP_NS } else { FINE_STEP_NS };
        id.id.ctime.nanos() + step >= looked.nanos()
    }
}

pub(super) fn count(tree: &Tree<'_>, listing: &Listing) {
    let (mut files, mut dirs, mut bytes) = (0, 0, 0);
    for stat in listing.entries.iter().filter_map(|e| e.stat.as_ref().ok()) {
        match stat.kind {
            FileKind::Dir => dirs += 1,
            _ => files += 1,
        }
        if stat.kind == FileKind::File {
            bytes += stat.size;
        }
    }
    tree.files.fetch_add(files, Ordering::Relaxed);
    tree.entries.fetch_add(files + dirs, Ordering::Relaxed);
    tree.spec.counters.files.fetch_add(files, Ordering::Relaxed);
    tree.spec.counters.dirs.fetch_add(dirs, Ordering::Relaxed);
    tree.spec.counters.bytes.fetch_add(bytes, Ordering::Relaxed);
}
