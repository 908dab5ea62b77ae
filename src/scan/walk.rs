//! The parallel scan. Every directory is listed and its entries are looked at; a listing that is what
//! the index knows is not even decoded, and only files whose inode, size, mtime or ctime changed are
//! read.
//!
//! Ordering: a directory's object digest needs those of its subdirectories, so each directory counts what
//! is still open below it and the last to finish computes its parent. The walk has no recursion.
//!
//! The racy rule (after git's): a file that changed within the clock's step of the look at it may change
//! again without its ctime moving. Such an entry is marked, and is read again next time. On local
//! file systems the clock is this host's; on others, an entry counts only after it was seen unchanged in
//! two scans that lie seconds apart.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use rustix::io::Errno;

use super::entry::Seen;
use super::hash::hash_stable;
use super::index::{Index, ROOT_ID, listed_name};
use super::list::Listing;
use super::pool::Pool;
use super::row::{Bitmap, DirRow, EntryId, StatHash};
use crate::disk::{Dir, FileKind, FsClass, OwnerPolicy, Owners, Stat, now};
use crate::error::{Class, Context as _, Error, PathError, Result, lock};
use crate::model::{
    Digest, Entry, Kind, Mtime, Name, Node, Object, Owner, Root, RootHeader, TreePath, root_content,
};
use crate::plan::Filter;

/// A clock that counts in nanoseconds moves at least every jiffy (10 ms at 100 Hz); twice that.
const FINE_STEP_NS: i128 = 20_000_000;
/// Times without a fraction come from a clock of one (FAT: two) seconds.
const COARSE_STEP_NS: i128 = 2_100_000_000;
/// So many directories are looked at on the calling thread.
const FEW_DIRS: usize = 64;
/// Files per hashing job, and the bytes above which a file is a job of its own.
const BATCH_FILES: usize = 64;
const BATCH_BYTES: u64 = 4 << 20;

/// Digests that are known from elsewhere (what this run wrote itself), by directory, name and state.
pub type Known<'a> = dyn Fn(&TreePath, &[u8], &Stat) -> Option<Digest> + Sync + 'a;

/// Asked of every file that was read: one that is not finished stays described as it was, or is left out, and is looked
/// at again next time.
pub trait Gate: Sync {
    /// Why the file must not be described as it is yet; `None` when it is finished.
    fn unfinished(&self, path: &TreePath, fd: BorrowedFd<'_>, stat: &Stat) -> Option<String>;

    /// How it stays described.
    fn published(&self, path: &TreePath) -> Option<Entry>;

    /// Whether all files are described as they are in this scan; those that are not finished are only looked at again
    /// next time.
    fn only_marks(&self) -> bool {
        false
    }
}

/// Directories to look at; the others are as the index says.
#[derive(Clone, Debug, Default)]
pub struct Only {
    list: HashSet<TreePath>,
    /// These and all directories above them.
    visit: HashSet<TreePath>,
    deep: Vec<TreePath>,
}

impl Only {
    /// Lists `dirs`, and `deep` with everything below; the directories above are passed through.
    pub fn new<'p>(dirs: impl Iterator<Item = &'p TreePath>, deep: Vec<TreePath>) -> Self {
        let list: HashSet<TreePath> = dirs.cloned().collect();
        let mut visit = HashSet::from([TreePath::root()]);
        for path in list.iter().chain(&deep) {
            for path in path.ancestors() {
                if !visit.insert(path) {
                    break;
                }
            }
        }
        Self { list, visit, deep }
    }

    fn is_deep(&self, path: &TreePath) -> bool {
        self.deep.iter().any(|deep| path.is_within(deep))
    }

    pub(super) fn lists(&self, path: &TreePath) -> bool {
        self.list.contains(path) || self.is_deep(path)
    }

    pub(super) fn has(&self, path: &TreePath) -> bool {
        self.visit.contains(path) || self.is_deep(path)
    }
}

/// One directory to scan.
pub struct Spec<'a> {
    /// The tree's root.
    pub root: &'a Dir,
    /// Its path, for messages.
    pub shown: &'a str,
    /// What is known of it; updated.
    pub index: &'a Index,
    /// What belongs to it.
    pub filter: &'a Filter,
    /// How owners are described.
    pub policy: &'a OwnerPolicy,
    /// The host's names.
    pub owners: &'a Owners,
    /// Trust no digest of the index.
    pub rehash: bool,
    /// Files keep their setuid and setgid bits.
    pub setid: bool,
    /// Which files are not finished.
    pub gate: Option<&'a dyn Gate>,
    /// Called before a directory is listed: a watch that is set first misses nothing.
    pub entering: Option<&'a (dyn Fn(&TreePath) + Sync + 'a)>,
    /// Look at these directories only.
    pub only: Option<&'a Only>,
    /// Digests known from elsewhere.
    pub known: Option<&'a Known<'a>>,
    /// Counts as it goes.
    pub counters: &'a Counters,
}

/// Progress of a scan; read it from another thread.
#[derive(Debug, Default)]
pub struct Counters {
    /// Files and links seen.
    pub files: AtomicU64,
    /// Directories seen.
    pub dirs: AtomicU64,
    /// Bytes of the files seen.
    pub bytes: AtomicU64,
    /// Files read.
    pub hashed: AtomicU64,
    /// Bytes read.
    pub hashed_bytes: AtomicU64,
}

/// What a scan found.
#[derive(Debug)]
pub struct Scanned {
    /// The state of the tree.
    pub root: Root,
    /// Files and links.
    pub files: u64,
    /// Entries of all kinds.
    pub entries: u64,
    /// Fifos, sockets and devices, which are left out.
    pub specials: u64,
    /// Names that the filter leaves out.
    pub excluded: u64,
    /// Files with more than one name.
    pub hard_links: u64,
    /// Files with holes (or compressed by the file system).
    pub sparse: u64,
    /// Something in it is excluded, special or unreadable.
    pub keeps: bool,
    /// What could not be read.
    pub errors: Vec<PathError>,
    /// Directories on which another file system is mounted.
    pub mounts: Vec<TreePath>,
    /// Files that are not finished, and why.
    pub held: Vec<(TreePath, String)>,
}

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
    at: usize,
    stat: Stat,
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

pub(super) struct Scan<'a> {
    pub(super) trees: Vec<Tree<'a>>,
    pub(super) pool: Pool<Job>,
    pub(super) cancel: &'a AtomicBool,
}

/// Scans the directories side by side on `threads` threads, and brings their indexes up to date.
///
/// # Errors
/// A root cannot be read, an index cannot be written, or `cancel` was set ([`Class::Interrupted`]). What
/// cannot be read below a root is in [`Scanned::errors`].
pub fn scan(specs: &[Spec<'_>], threads: usize, cancel: &AtomicBool) -> Result<Vec<Scanned>> {
    let trees = specs.iter().map(Tree::new).collect::<Result<Vec<_>>>()?;
    let jobs = trees.iter().enumerate().map(|(i, t)| t.start(i)).collect::<Result<Vec<_>>>()?;
    let scan = Scan { trees, pool: Pool::new(jobs), cancel };
    // a few directories are no work for more than one
    let few =
        specs.iter().all(|s| s.only.is_some_and(|only| only.deep.is_empty() && only.visit.len() <= FEW_DIRS));
    scan.pool.run(if few { 1 } else { threads }, |job| scan.work(job))?;
    scan.trees.into_iter().map(Tree::finish).collect()
}

impl<'a> Tree<'a> {
    fn new(spec: &'a Spec<'a>) -> Result<Self> {
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

    fn finish(self) -> Result<Scanned> {
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

/// Names the filter and the owner policy that a row's object was made with.
fn view(spec: &Spec<'_>) -> Digest {
    let owners = format!("{:?}", spec.policy);
    let setid = if spec.setid { "" } else { "\0no setid" };
    Digest::of(format!("{}\0{owners}{setid}", spec.filter.id()).as_bytes())
}

pub(super) fn owner_of(spec: &Spec<'_>, stat: &Stat) -> Owner {
    match spec.policy {
        OwnerPolicy::Preserve => spec.owners.names(stat.uid, stat.gid),
        OwnerPolicy::Ignore => Owner::default(),
        OwnerPolicy::Fixed(owner) => {
            let own = spec.owners.names(stat.uid, stat.gid);
            let or = |fixed: &Arc<str>, own| if fixed.is_empty() { own } else { fixed.clone() };
            Owner { user: or(&owner.user, own.user), group: or(&owner.group, own.group) }
        }
    }
}

/// A file's mode as the tree describes it.
pub(super) fn file_mode(spec: &Spec<'_>, stat: &Stat) -> u16 {
    if spec.setid { stat.mode } else { stat.mode & !0o6000 }
}

impl Scan<'_> {
    fn work(&self, job: Job) -> Result<()> {
        if self.cancel.load(Ordering::Relaxed) {
            return Err(Error::new(Class::Interrupted, "interrupted"));
        }
        match job {
            Job::Dir(dir) => self.dir(&dir),
            Job::Hash(dir, handle, files) => {
                self.hash(&dir, &handle, &files)?;
                self.close(dir)
            }
        }
    }

    fn dir(&self, dir: &Arc<Dirent>) -> Result<()> {
        let tree = &self.trees[dir.tree];
        if let Some(entering) = tree.spec.entering {
            entering(&dir.path);
        }
        let looked = now();
        let opened = tree.spec.root.open(&dir.path).and_then(|handle| Ok((handle.stat_self()?, handle)));
        if let Ok((stat, handle)) = &opened
            && let Some(kids) = self.pass_through(dir, handle, stat)?
        {
            self.note_mount(dir, stat);
            dir.open.fetch_add(kids.len(), Ordering::AcqRel);
            self.pool.push(kids);
            return self.close(dir.clone());
        }
        let read = opened.and_then(|(stat, handle)| {
            let listing = Listing::read(&handle, &dir.path, tree.spec.filter, tree.class != FsClass::Fuse)?;
            Ok((handle, stat, listing))
        });
        let (handle, stat, listing) = match read {
            Ok(read) => read,
            Err(e) => {
                let gone = matches!(e, Errno::NOENT | Errno::NOTDIR | Errno::LOOP) && !dir.path.is_root();
                if !gone {
                    tree.error(dir.path.clone(), "read the directory", e);
                }
                let kid = if gone { Kid::Vanished } else { Kid::Unreadable };
                return self.report(dir, kid).map_or(Ok(()), |parent| self.close(parent));
            }
        };
        let mounted = self.note_mount(dir, &stat);
        tree.specials.fetch_add(listing.specials, Ordering::Relaxed);
        tree.excluded.fetch_add(listing.excluded, Ordering::Relaxed);
        tree.hard_links.fetch_add(listing.hard_links, Ordering::Relaxed);
        tree.sparse.fetch_add(listing.sparse, Ordering::Relaxed);
        let mut state = State {
            ino: if tree.class == FsClass::Fuse { 0 } else { stat.id.ino },
            stat: listing.stat_hash(),
            // what is mounted here can neither go nor be renamed with a directory above
            keeps: mounted || listing.specials + listing.excluded > 0,
            ..State::default()
        };
        let distrust = dir.distrust.load(Ordering::Relaxed);
        let trusted = !tree.spec.rehash && !distrust;
        state.clean = trusted
            && tree.same_view
            && dir.old.as_ref().is_some_and(|old| old.stat == state.stat && !old.racy)
            && listing.entries.iter().all(|e| e.stat.is_ok());
        let mut to_hash = Vec::new();
        if state.clean {
            state.kids = subdirs(&listing)?;
        } else {
            let known = match (&dir.old, distrust) {
                (Some(old), false) => tree.spec.index.body(old.id)?,
                _ => None,
            };
            to_hash = self.resolve(dir, &handle, &listing, known, looked, &mut state)?;
        }
        count(tree, &listing);
        let kids = self.kids(dir, &mut state)?;
        *lock(&dir.state) = state;
        self.start(dir, handle, kids, to_hash)
    }

    /// Notes which mount a directory is on; says whether it is where one begins.
    fn note_mount(&self, dir: &Dirent, stat: &Stat) -> bool {
        let above = match &dir.parent {
            Some((parent, _)) => parent.mount.load(Ordering::Relaxed),
            None => stat.mount,
        };
        dir.mount.store(stat.mount, Ordering::Relaxed);
        let mounted = stat.mount != above;
        if mounted {
            lock(&self.trees[dir.tree].mounts).push(dir.path.clone());
        }
        mounted
    }

    /// Describes every listed entry from what is known of it; gives the files that must be read.
    fn resolve(
        &self,
        dir: &Dirent,
        handle: &Dir,
        listing: &Listing,
        known: Option<(Object, Vec<EntryId>)>,
        looked: Mtime,
        state: &mut State,
    ) -> Result<Vec<ToHash>> {
        let tree = &self.trees[dir.tree];
        let (object, ids) = known.unwrap_or_default();
        let long_ago = dir.old.as_ref().is_some_and(|old| looked.sec - old.seen >= 3);
        let mut old = object.entries.into_iter().zip(ids).peekable();
        let mut to_hash = Vec::new();
        for e in &listing.entries {
            let name = listing.name(e);
            while old.next_if(|(entry, _)| &*entry.name < name).is_some() {}
            let before = old.next_if(|(entry, _)| &*entry.name == name);
            let at = state.entries.len();
            let mut seen = Seen { tree, handle, dir: &dir.path, looked, long_ago, to_hash: None };
            let Some((entry, id)) = seen.entry(name, e, before)? else {
                continue;
            };
            if let Some(stat) = seen.to_hash {
                to_hash.push(ToHash { at, stat });
            }
            match entry.node {
                Node::Dir { .. } => state.kids.push((entry.name.clone(), id.id.ino, Kid::Open)),
                Node::Unreadable { .. } => state.keeps = true,
                _ => {}
            }
            state.racy |= id.racy || !entry.is_readable();
            state.entries.push(entry);
            state.ids.push(id);
        }
        Ok(to_hash)
    }

    /// Finds the rows of the subdirectories: by name and inode, else, renamed, by inode alone. Gives the
    /// jobs for those that must be looked at.
    fn kids(&self, dir: &Arc<Dirent>, state: &mut State) -> Result<Vec<Job>> {
        if state.kids.is_empty() {
            return Ok(Vec::new());
        }
        let tree = &self.trees[dir.tree];
        let index = tree.spec.index;
        let rows = if dir.old.is_some() { index.children(dir.row)? } else { Vec::new() };
        let mut by_name: HashMap<(Vec<u8>, u64), DirRow> =
            rows.into_iter().map(|r| ((r.name.clone(), r.ino), r)).collect();
        let mut jobs = Vec::new();
        for (i, (name, ino, kid)) in state.kids.iter_mut().enumerate() {
            let mut old = by_name.remove(&(name.to_vec(), *ino));
            let mut by_name_or_staged = true;
            if old.is_none() {
                let found = index.by_ino(*ino)?;
                let live = lock(&tree.live);
                // the newest: rows of directories that are gone stay for a while, and inodes are used again
                old = found.into_iter().filter(|r| !live.has(r.id)).max_by_key(|r| r.id);
                // only one that this commit staged is known without a look
                by_name_or_staged = old.as_ref().is_some_and(|r| r.parent == -1);
            }
            old = old.filter(|r| lock(&tree.live).add(r.id));
            let row = old.as_ref().map_or_else(|| index.new_id(), |r| r.id);
            if old.is_none() {
                lock(&tree.live).add(row);
            }
            let path = dir.path.join(name);
            if let (Some(only), Some(old)) = (tree.spec.only, &old)
                && by_name_or_staged
                && !only.has(&path)
            {
                let moved = DirRow { parent: dir.row, name: name.to_vec(), ..old.clone() };
                if moved != *old {
                    index.put_head(&moved)?;
                }
                *kid = Kid::Done { object: old.object, content: old.content, keeps: old.keeps, row: old.id };
                continue;
            }
            let kid = Dirent {
                tree: dir.tree,
                path,
                parent: Some((dir.clone(), i)),
                old,
                row,
                open: AtomicUsize::new(1),
                mount: AtomicU64::new(0),
                distrust: AtomicBool::new(false),
                state: Mutex::default(),
            };
            jobs.push(Job::Dir(Arc::new(kid)));
        }
        jobs.reverse();
        Ok(jobs)
    }

    pub(super) fn start(
        &self,
        dir: &Arc<Dirent>,
        handle: Dir,
        kids: Vec<Job>,
        to_hash: Vec<ToHash>,
    ) -> Result<()> {
        let handle = Arc::new(handle);
        let mut jobs = kids;
        let total: u64 = to_hash.iter().map(|f| f.stat.size).sum();
        if to_hash.len() <= BATCH_FILES && total <= BATCH_BYTES {
            self.hash(dir, &handle, &to_hash)?;
        } else {
            let mut batch = Vec::new();
            let mut bytes = 0;
            for file in to_hash {
                bytes += file.stat.size;
                batch.push(file);
                if batch.len() >= BATCH_FILES || bytes >= BATCH_BYTES {
                    jobs.push(Job::Hash(dir.clone(), handle.clone(), std::mem::take(&mut batch)));
                    bytes = 0;
                }
            }
            if !batch.is_empty() {
                jobs.push(Job::Hash(dir.clone(), handle.clone(), batch));
            }
        }
        dir.open.fetch_add(jobs.len(), Ordering::AcqRel);
        self.pool.push(jobs);
        self.close(dir.clone())
    }

    fn hash(&self, dir: &Dirent, handle: &Dir, files: &[ToHash]) -> Result<()> {
        let tree = &self.trees[dir.tree];
        for ToHash { at, stat } in files {
            if self.cancel.load(Ordering::Relaxed) {
                return Err(Error::new(Class::Interrupted, "interrupted"));
            }
            let name = lock(&dir.state).entries[*at].name.clone();
            let path = dir.path.join(&name);
            let hashed = hash_stable(handle, &path, &name, self.cancel);
            tree.spec.counters.hashed.fetch_add(1, Ordering::Relaxed);
            tree.spec.counters.hashed_bytes.fetch_add(stat.size, Ordering::Relaxed);
            let unfinished = match (&hashed, tree.spec.gate) {
                (Ok(Some((fd, now, _))), Some(gate)) => gate.unfinished(&path, fd.as_fd(), now),
                (Err(e), Some(_)) if e.class == Class::Transient => {
                    Some("it changes while it is read".into())
                }
                _ => None,
            };
            let as_it_is = tree.spec.gate.is_some_and(Gate::only_marks);
            let marked = as_it_is && unfinished.is_some();
            let unfinished = unfinished.filter(|_| !as_it_is);
            let before = unfinished.as_ref().and_then(|_| tree.spec.gate?.published(&path));
            let mut state = lock(&dir.state);
            if let Some(why) = unfinished {
                // looked at again next time
                state.racy = true;
                state.ids[*at].racy = true;
                match before.filter(|entry| entry.kind() == Kind::File) {
                    Some(before) => state.entries[*at] = before,
                    None => state.gone.push(*at),
                }
                lock(&tree.held).push((path, why));
                continue;
            }
            match hashed {
                Ok(Some((_, now, digest))) => {
                    let entry = &mut state.entries[*at];
                    entry.node = Node::File { size: now.size, digest };
                    entry.mode = file_mode(tree.spec, &now);
                    entry.mtime = now.mtime;
                    if marked {
                        state.ids[*at].racy = true;
                        state.racy = true;
                    }
                    if !now.same_state(stat) && tree.class != FsClass::Fuse {
                        // it changed after the listing: the listing's digest is not this state's
                        state.ids[*at].id = now.id;
                        state.ids[*at].racy = true;
                        state.racy = true;
                    }
                }
                Ok(None) => state.gone.push(*at),
                Err(e) if e.class == Class::Interrupted => return Err(e),
                Err(e) => {
                    // looked at again next time, and named again
                    state.ids[*at].racy = true;
                    state.racy = true;
                    state.entries[*at].node = Node::Unreadable { kind: Kind::File };
                    state.keeps = true;
                    let error = e.to_string();
                    lock(&tree.errors).push(PathError { path, error });
                }
            }
        }
        Ok(())
    }

    /// One open piece less; the last one finishes the directory, and all parents that waited for
    /// nothing else.
    pub(super) fn close(&self, mut dir: Arc<Dirent>) -> Result<()> {
        while dir.open.fetch_sub(1, Ordering::AcqRel) == 1 {
            let Some(kid) = self.conclude(&dir)? else {
                // the row's entries are damaged: look at everything again
                dir.distrust.store(true, Ordering::Relaxed);
                dir.open.store(1, Ordering::Release);
                self.pool.push([Job::Dir(dir)]);
                return Ok(());
            };
            match self.report(&dir, kid) {
                Some(parent) => dir = parent,
                None => return Ok(()),
            }
        }
        Ok(())
    }

    /// Hands a directory's result to its parent, which has one open piece less then.
    pub(super) fn report(&self, dir: &Dirent, kid: Kid) -> Option<Arc<Dirent>> {
        let Some((parent, i)) = &dir.parent else {
            *lock(&self.trees[dir.tree].top) = kid;
            return None;
        };
        lock(&parent.state).kids[*i].2 = kid;
        Some(parent.clone())
    }
}

fn count(tree: &Tree<'_>, listing: &Listing) {
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

fn subdirs(listing: &Listing) -> Result<Vec<(Name, u64, Kid)>> {
    let dirs = listing.entries.iter().filter_map(|e| {
        let stat = e.stat.as_ref().ok().filter(|s| s.kind == FileKind::Dir)?;
        Some(listed_name(listing.name(e)).map(|name| (name, stat.id.ino, Kid::Open)))
    });
    dirs.collect()
}
