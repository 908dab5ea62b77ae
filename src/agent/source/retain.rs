//! What the source keeps of published contents, so that they are there after its users wrote over them: a clone or a
//! copy of each file under its digest, in `TREE/.syncagent/keep/xx/DIGEST`, on the same file system.
//!
//! A thread of its own fills it after each publication, the smallest files first, and never holds a publication up: a few
//! small files at once, before anybody has had the time to write over them, the rest when the mirrors had theirs. A
//! file is in it only when its content was right when it was taken; one that changed meanwhile is passed over. Without
//! clones everything counts against `keep-bytes` and against half of what is free; with clones only what the
//! current generation does not have any more, because a clone costs nothing until its file is overwritten. Nothing here
//! is synced: a crash may lose some, and what is taken out again is verified.
//!
//! `keep-bytes` is one budget for this and the tree's trash: the trash has half of it at most, and what it has is not
//! taken here.

mod store;

use std::collections::{BinaryHeap, HashSet};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use store::{Used, count, each_kept, put};
pub(super) use store::{drop_if_damaged, drop_kept, is_kept, open_kept};

use super::{SourceTree, lock};
use crate::apply::{Keep, trash_bytes, write_all};
use crate::disk::{Dir, FileKind, remove_tree, stat_fd};
use crate::error::{Context as _, Error, Result};
use crate::model::{Digest, GenId, Generation, Node, TreePath};
use crate::plan::CONTROL_DIR;
use crate::scan::{Store, hash_fd, read_full, with_buffer};

pub(super) const KEEP: &[u8] = b"keep";
/// Files that are taken in one pass; more are taken in the next one. A bound on memory.
const PASS: usize = 100_000;
/// What no generation needs is looked for so often at most, and so many times its duration apart.
const SWEEP: Duration = Duration::from_secs(60);
const SWEEP_FACTOR: u32 = 20;
/// After a publication so much time is left to whoever fetches it.
const AFTER: Duration = Duration::from_millis(50);
/// What is taken before that: files of so many bytes, so many bytes together, in directories with so many entries together.
const SMALL: u64 = 256 << 10;
const AT_ONCE: u64 = 4 << 20;
const ENTRIES: usize = 4_096;
/// So many different things are said of what is passed over.
const TOLD: usize = 100;
/// The tree may not be open yet.
const LOOK: Duration = Duration::from_secs(2);
const REST: Duration = Duration::from_secs(3600);

/// How the retention of a source stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retention {
    /// Generations before the current one whose content is kept; 0: none is.
    pub generations: u64,
    /// By clones, which cost nothing until a file is overwritten; else by copies.
    pub clones: bool,
    /// Files kept.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The bound on bytes (of clones: of those that the current generation has not).
    pub limit: u64,
    /// Bytes in the tree's trash, which are no part of the bound: both share `keep-bytes`.
    #[serde(default)]
    pub trash: u64,
    /// Files of the current generation that are not kept: too much, or changed before they could be.
    pub left_out: u64,
    /// Their bytes.
    pub left_out_bytes: u64,
    /// The newest generation of which all was looked at.
    pub up_to: Option<GenId>,
    /// Why nothing is kept.
    pub error: Option<String>,
}

/// What the thread shares with the tree.
#[derive(Default)]
pub(super) struct Retain {
    news: Mutex<bool>,
    wake: Condvar,
    /// Something that was kept is not any more.
    lost: AtomicBool,
    status: Mutex<Retention>,
    /// The trash is as it was when its size was looked at last.
    measured: AtomicBool,
}

impl Retain {
    /// There is something new to keep, or the tree ends.
    pub(super) fn wake(&self) {
        *lock(&self.news) = true;
        self.wake.notify_all();
    }

    /// A kept content turned out to be damaged: what the tree still has of it is taken in again.
    pub(super) fn dropped(&self) {
        self.lost.store(true, Ordering::Relaxed);
        self.wake();
    }

    /// There is more or less in the trash than before.
    pub(super) fn trash_changed(&self) {
        self.measured.store(false, Ordering::Release);
        self.wake();
    }

    pub(super) fn status(&self) -> Retention {
        lock(&self.status).clone()
    }

    fn wait(&self, limit: Duration) {
        let news = lock(&self.news);
        let waited = self.wake.wait_timeout_while(news, limit, |news| !*news);
        *waited.unwrap_or_else(PoisonError::into_inner).0 = false;
    }
}

/// What the trash of a source keeps: half of the budget at most, and all of it where nothing else is kept.
pub(super) fn trash_keep(generations: u64, budget: u64) -> Keep {
    Keep { generations, bytes: if generations == 0 { budget } else { budget / 2 } }
}

/// What is left of the budget for published contents: half of it at least.
fn beside(trash: u64, budget: u64) -> u64 {
    budget - trash.min(budget / 2)
}

/// Starts the thread.
///
/// # Errors
/// The operating system's.
pub(super) fn start(tree: Arc<SourceTree>) -> Result<()> {
    let name = format!("keep {}", tree.config.name);
    let keeper = Keeper {
        generations: tree.config.keep,
        budget: tree.config.keep_bytes,
        trash: 0,
        tree,
        considered: HashSet::new(),
        used: None,
        tried: false,
        told: HashSet::new(),
        swept: None,
        next_sweep: Instant::now(),
    };
    let started = std::thread::Builder::new().name(name).spawn(move || keeper.run());
    started.map(drop).map_err(|e| Error::io(e, "cannot start a thread"))
}

/// A file of the current generation that is not kept yet; the largest one first in a heap.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Want {
    size: u64,
    digest: Digest,
    path: TreePath,
}

struct Keeper {
    tree: Arc<SourceTree>,
    generations: u64,
    /// For this and the trash.
    budget: u64,
    /// Bytes in the trash.
    trash: u64,
    /// Directory objects of which everything is kept, or cannot be.
    considered: HashSet<Digest>,
    used: Option<Used>,
    /// Whether the file system can clone is known.
    tried: bool,
    /// What was passed over, said once each.
    told: HashSet<String>,
    /// The generation for which was swept last.
    swept: Option<GenId>,
    next_sweep: Instant,
}

impl Keeper {
    fn run(mut self) {
        let mut last: Option<String> = None;
        // of this thread only; whoever publishes or serves goes first
        let _ = rustix::process::setpriority_process(None, 19);
        while !self.stopped() {
            let done = self.round();
            let error = done.as_ref().err().map(ToString::to_string);
            if let Some(e) = error.as_ref().filter(|e| last.as_ref() != Some(*e)) {
                tracing::warn!(tree = self.tree.config.name, "contents are not kept for a rollback: {e}");
            }
            lock(&self.tree.retain.status).error.clone_from(&error);
            last = error;
            let rest = match done {
                Ok(true) if self.generations == 0 => REST,
                Ok(true) if self.swept_for_head() => REST,
                Ok(true) => {
                    self.next_sweep.saturating_duration_since(Instant::now()).max(Duration::from_millis(10))
                }
                Ok(false) | Err(_) => LOOK,
            };
            self.tree.retain.wait(rest);
            // what goes wrong here goes wrong again below, and is told there
            let _ = self.take_small();
            // the mirrors come first
            std::thread::sleep(AFTER);
        }
    }

    /// Says once what does not keep the rest from being kept.
    fn tell(&mut self, what: String) {
        if self.told.len() < TOLD && self.told.insert(what.clone()) {
            tracing::warn!(tree = self.tree.config.name, "contents kept for a rollback: {what}");
        }
    }

    fn stopped(&self) -> bool {
        self.tree.stop.load(Ordering::Relaxed)
    }

    fn head(&self) -> Option<Arc<Generation>> {
        self.tree.head.borrow().clone()
    }

    fn swept_for_head(&self) -> bool {
        self.head().is_none_or(|head| self.swept == Some(head.id))
    }

    /// One look at the newest generation. Gives whether the tree could be looked at.
    fn round(&mut self) -> Result<bool> {
        // open only while the engine has the tree, and its lock
        let Ok(root) = self.tree.root_handle() else { return Ok(false) };
        let Some(head) = self.head() else { return Ok(false) };
        let Ok(control) = root.open_child(CONTROL_DIR) else { return Ok(false) };
        let cannot = || "keep published contents in .syncagent/keep".to_owned();
        if self.generations == 0 {
            remove_tree(&control, KEEP).context(cannot)?;
            return Ok(true);
        }
        let keep = control.ensure_dir(KEEP, 0o700).context(cannot)?;
        if self.tree.retain.lost.swap(false, Ordering::Relaxed) {
            self.considered.clear();
            self.used = None;
        }
        if self.used.is_none() {
            self.used = Some(count(&keep).context(cannot)?);
        }
        self.measure(&control);
        if Instant::now() >= self.next_sweep && !self.swept_for_head() {
            self.sweep(&keep, &head)?;
        }
        let begun = Instant::now();
        let left_out = self.take_in(&root, &keep, &head)?;
        let used = self.used.unwrap_or_default();
        let mut status = lock(&self.tree.retain.status);
        status.generations = self.generations;
        (status.files, status.bytes) = (used.files, used.bytes);
        status.limit = beside(self.trash, self.budget);
        status.trash = self.trash;
        if !self.stopped() {
            status.up_to = Some(head.id);
        }
        if let Some((files, bytes)) = left_out {
            (status.left_out, status.left_out_bytes) = (files, bytes);
        }
        drop(status);
        tracing::debug!(tree = self.tree.config.name, generation = %head.id, took = ?begun.elapsed(), "kept");
        Ok(true)
    }

    /// How much the trash leaves; when that is not what it was, something has to go, or has a place now.
    fn measure(&mut self, control: &Dir) {
        if self.tree.retain.measured.swap(true, Ordering::Acquire) {
            return;
        }
        // what is not there is empty
        let trash = trash_bytes(control).unwrap_or(0);
        if trash != self.trash {
            self.trash = trash;
            self.swept = None;
            self.next_sweep = Instant::now();
        }
    }

    /// Keeps what the generation has and the store has not. Gives what was left out of what was looked at; `None`
    /// when nothing was new.
    fn take_in(&mut self, root: &Dir, keep: &Dir, head: &Generation) -> Result<Option<(u64, u64)>> {
        if self.considered.contains(&head.root.object) {
            return Ok(None);
        }
        loop {
            let mut left_out = (0, 0);
            let (mut want, visited, cut) = self.missing(keep, head, usize::MAX)?;
            let wanted = want.len() as u64;
            want.sort();
            for w in want {
                if self.stopped() {
                    return Ok(None);
                }
                if !self.take(root, keep, &w)? {
                    left_out.0 += 1;
                    left_out.1 += w.size;
                }
            }
            if !cut || left_out.0 == wanted {
                // when none of the smallest ones could be kept, the larger ones cannot either
                self.considered.extend(visited);
                return Ok(Some(left_out));
            }
        }
    }

    /// Keeps the small files of a small change.
    fn take_small(&mut self) -> Result<()> {
        // the first generation is large, and without the trash's size nobody knows the bound
        if self.used.is_none() || !self.tried || !self.tree.retain.measured.load(Ordering::Acquire) {
            return Ok(());
        }
        let Ok(root) = self.tree.root_handle() else { return Ok(()) };
        let Some(head) = self.head() else { return Ok(()) };
        let Ok(keep) = root.open_child(CONTROL_DIR).and_then(|control| control.open_child(KEEP)) else {
            return Ok(());
        };
        let (mut want, ..) = self.missing(&keep, &head, ENTRIES)?;
        want.sort();
        let mut left = AT_ONCE;
        for w in want.iter().take_while(|w| w.size <= SMALL) {
            if w.size > left || self.stopped() {
                break;
            }
            left -= w.size;
            self.take(&root, &keep, w)?;
        }
        Ok(())
    }

    /// The smallest files that are not kept, the directories that were read, and whether there are more. Ends early when
    /// the directories have more than so many entries.
    fn missing(
        &self,
        keep: &Dir,
        head: &Generation,
        mut entries: usize,
    ) -> Result<(Vec<Want>, Vec<Digest>, bool)> {
        let mut heap: BinaryHeap<Want> = BinaryHeap::new();
        let mut cut = false;
        let mut asked: HashSet<Digest> = HashSet::new();
        let mut visited = HashSet::new();
        let mut stack = vec![(head.root.object, TreePath::root())];
        while let Some((object, path)) = stack.pop() {
            if self.considered.contains(&object) || !visited.insert(object) || self.stopped() {
                continue;
            }
            let listed = self.tree.store.object(&object)?.entries;
            let Some(left) = entries.checked_sub(listed.len()) else { break };
            entries = left;
            for entry in listed {
                match entry.node {
                    Node::Dir { object, .. } => stack.push((object, path.join(&entry.name))),
                    Node::File { size, digest } if size > 0 && !is_kept(keep, &digest, size) => {
                        if asked.len() < PASS * 2 && !asked.insert(digest) {
                            continue;
                        }
                        heap.push(Want { size, digest, path: path.join(&entry.name) });
                        if heap.len() > PASS {
                            heap.pop();
                            cut = true;
                        }
                    }
                    _ => {}
                }
            }
        }
        Ok((heap.into_vec(), visited.into_iter().collect(), cut))
    }

    /// Keeps one file; says whether it is kept now.
    fn take(&mut self, root: &Dir, keep: &Dir, want: &Want) -> Result<bool> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let clones = lock(&self.tree.retain.status).clones;
        if self.tried && !clones && !self.fits(keep, want.size) || !self.has_names(keep) {
            return Ok(false);
        }
        let Ok(from) = root.open_file_at(&want.path) else { return Ok(false) };
        if !stat_fd(&from).is_ok_and(|s| s.kind == FileKind::File && s.size == want.size) {
            return Ok(false);
        }
        let tmp = format!("new-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let tmp = tmp.as_bytes();
        // a leftover of a crash
        let _ = remove_tree(keep, tmp);
        let cannot = || format!("keep the content of {}", want.path);
        let to = keep.create_file(tmp, 0o400).context(cannot)?;
        self.tried = true;
        let filled = self.fill(keep, &from, &to, want);
        let placed = matches!(filled, Ok(true)).then(|| put(keep, tmp, &want.digest));
        if !matches!(placed, Some(Ok(()))) {
            let _ = keep.unlink(tmp);
        }
        match (filled, placed) {
            (_, Some(Ok(()))) => {
                let used = self.used.get_or_insert_default();
                used.files += 1;
                used.bytes += want.size;
                Ok(true)
            }
            // what is full now may have space again later; a limit of a file's size is for that file
            (Err(e), _) | (_, Some(Err(e)))
                if matches!(e, Errno::NOSPC | Errno::DQUOT | Errno::CANCELED | Errno::FBIG) =>
            {
                Ok(false)
            }
            // one place in the store that cannot be had is no reason to keep nothing else
            (_, Some(Err(e))) => {
                self.tell(format!("{} is passed over: {e}", want.path));
                Ok(false)
            }
            (Ok(_), None) => Ok(false),
            (Err(e), None) => Err(e).context(cannot),
        }
    }

    /// Clones or copies, and says whether it is the right content; of what cannot be read it is not. Errors are the
    /// store's.
    fn fill(&self, keep: &Dir, from: &OwnedFd, to: &OwnedFd, want: &Want) -> rustix::io::Result<bool> {
        let cloned = rustix::fs::ioctl_ficlone(to, from).is_ok();
        lock(&self.tree.retain.status).clones = cloned;
        if cloned {
            return Ok(hash_fd(to, want.size, &self.tree.stop).is_ok_and(|of| of == (want.digest, want.size)));
        }
        if !self.fits(keep, want.size) {
            return Ok(false);
        }
        let digest = with_buffer(|buf| {
            let mut hasher = blake3::Hasher::new();
            let mut total = 0;
            loop {
                if self.stopped() {
                    return Err(Errno::CANCELED);
                }
                let Ok(n) = read_full(from, buf) else { return Ok(None) };
                total += n as u64;
                // it grew: not what was published
                if total > want.size {
                    return Ok(None);
                }
                hasher.update(&buf[..n]);
                write_all(to, &buf[..n])?;
                if n < buf.len() {
                    return Ok(Some(Digest::from(hasher.finalize())));
                }
            }
        })?;
        Ok(digest == Some(want.digest))
    }

    /// Whether there is a name for one more: at most half of those that are free are taken, where they are counted.
    fn has_names(&self, keep: &Dir) -> bool {
        let used = self.used.unwrap_or_default().files;
        rustix::fs::fstatvfs(keep).is_ok_and(|s| s.f_files == 0 || used < half(used, s.f_favail))
    }

    /// Whether a copy of so many bytes is within the bounds.
    fn fits(&self, keep: &Dir, size: u64) -> bool {
        let used = self.used.unwrap_or_default().bytes;
        let free = rustix::fs::fstatvfs(keep).map_or(0, |s| s.f_bavail.saturating_mul(s.f_frsize));
        used + size <= beside(self.trash, self.budget) && used + size <= half(used, free)
    }

    /// Removes what none of the kept generations has, and the oldest ones' contents while it is too much.
    fn sweep(&mut self, keep: &Dir, head: &Generation) -> Result<()> {
        let begun = Instant::now();
        let clones = lock(&self.tree.retain.status).clones;
        let count = usize::try_from(self.generations).unwrap_or(usize::MAX).saturating_add(1);
        let kept = self.tree.store.generations(count.min(super::publish::KEPT))?;
        let mut seen: HashSet<Digest> = HashSet::new();
        let mut visited = HashSet::new();
        let mut order = Vec::new();
        for generation in &kept {
            let free = clones && generation.id == head.id;
            each_file(&self.tree.store, generation, &mut visited, &mut |digest, size| {
                if !seen.contains(digest) && is_kept(keep, digest, size) {
                    seen.insert(*digest);
                    order.push((*digest, if free { 0 } else { size }));
                }
            });
            if self.stopped() {
                return Ok(());
            }
        }
        // what clones hold is no longer free, and what was copied when there was space may be in the way now
        let free = rustix::fs::fstatvfs(keep).map_or(0, |s| s.f_bavail.saturating_mul(s.f_frsize));
        let live = within(&order, beside(self.trash, self.budget), free);
        let mut used = Used::default();
        let cannot = || "sweep .syncagent/keep".to_owned();
        let passed = each_kept(keep, &mut |dir, name, digest, stat| {
            let removed =
                if live.contains(digest) { Ok(false) } else { remove_tree(dir, name).map(|()| true) };
            // what cannot be removed still has its space
            if removed != Ok(true) && stat.kind == FileKind::File {
                used.files += 1;
                used.bytes += stat.size;
            }
            removed.map(drop)
        })
        .context(cannot)?;
        if let Some(text) = passed.text() {
            self.tell(text);
        }
        self.used = Some(used);
        // what was left out may have a place now
        self.considered.clear();
        self.swept = Some(head.id);
        self.next_sweep = Instant::now() + SWEEP.max(begun.elapsed() * SWEEP_FACTOR);
        Ok(())
    }
}

/// Half of what is taken and what is free together.
fn half(taken: u64, free: u64) -> u64 {
    taken.saturating_add(free) / 2
}

/// Of contents and what they cost, the most wanted first, those that stay within the budget and half of what is free.
fn within(order: &[(Digest, u64)], budget: u64, free: u64) -> HashSet<Digest> {
    let all = order.iter().map(|(_, charge)| charge).sum();
    let most = budget.min(half(all, free));
    let mut charged = 0u64;
    let fits = |(digest, charge): &(Digest, u64)| {
        let fits = charged + charge <= most;
        charged += if fits { *charge } else { 0 };
        fits.then_some(*digest)
    };
    order.iter().filter_map(fits).collect()
}

/// Calls `each` for the files of a generation whose directories were not visited yet.
fn each_file(
    store: &Store,
    generation: &Generation,
    visited: &mut HashSet<Digest>,
    each: &mut dyn FnMut(&Digest, u64),
) {
    let mut stack = vec![generation.root.object];
    while let Some(object) = stack.pop() {
        if !visited.insert(object) {
            continue;
        }
        // of an old generation the directories may be gone: nothing can be brought back to it then
        let Ok(object) = store.object(&object) else { continue };
        for entry in &object.entries {
            match &entry.node {
                Node::Dir { object, .. } => stack.push(*object),
                Node::File { size, digest } => each(digest, *size),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_trash_and_what_is_kept_share_one_budget_and_each_has_half() {
        for budget in [0, 1, 7, 1000, u64::MAX] {
            let most = trash_keep(1, budget).bytes;
            for trash in [0, 1, most / 2, most, budget] {
                let kept = beside(trash, budget);
                assert!(kept >= budget / 2, "{trash} of {budget}");
                assert!(trash > most || trash.checked_add(kept) == Some(budget), "{trash} of {budget}");
            }
        }
        assert_eq!(trash_keep(0, 1000).bytes, 1000);
    }

    #[test]
    fn what_is_kept_yields_when_the_disk_fills() {
        let named = |name: &str| Digest::of(name.as_bytes());
        let order = [(named("current"), 0), (named("new"), 60), (named("old"), 40), (named("small"), 10)];
        let kept = |budget, free| within(&order, budget, free).len();
        assert_eq!(kept(1000, 1000), 4);
        assert_eq!(kept(70, 1000), 3, "the budget");
        assert_eq!(kept(1000, 30), 3, "half of 110 taken and 30 free: 60 and 10");
        assert_eq!(kept(1000, 0), 3, "40 and 10, for 60 are too much");
        assert!(within(&order, 0, 0).contains(&named("current")), "it costs nothing");
    }
}
