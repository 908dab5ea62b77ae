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

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use rustix::io::Errno;

use super::entry::Seen;
use super::index::listed_name;
use super::list::Listing;
use super::pool::Pool;
use super::row::{DirRow, EntryId};
use super::spec::{Scanned, Spec};
use super::state::{Dirent, Job, Kid, State, ToHash, Tree, count};
use crate::disk::{Dir, FileKind, FsClass, Stat, now};
use crate::error::{Class, Error, Result, lock};
use crate::model::{Mtime, Name, Node, Object};

/// So many directories are looked at on the calling thread.
const FEW_DIRS: usize = 64;
/// Files per hashing job, and the bytes above which a file is a job of its own.
const BATCH_FILES: usize = 64;
const BATCH_BYTES: u64 = 4 << 20;

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

fn subdirs(listing: &Listing) -> Result<Vec<(Name, u64, Kid)>> {
    let dirs = listing.entries.iter().filter_map(|e| {
        let stat = e.stat.as_ref().ok().filter(|s| s.kind == FileKind::Dir)?;
        Some(listed_name(listing.name(e)).map(|name| (name, stat.id.ino, Kid::Open)))
    });
    dirs.collect()
}
