//! Taking in what is not kept yet, the smallest files first.

use std::collections::{BinaryHeap, HashSet};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::io::Errno;

use super::store::{is_kept, put};
use super::{KEEP, Keeper};
use crate::agent::source::lock;
use crate::apply::write_all;
use crate::disk::{Dir, FileKind, remove_tree, stat_fd};
use crate::error::{Context as _, Result};
use crate::model::{Digest, Generation, Node, TreePath};
use crate::plan::CONTROL_DIR;
use crate::scan::{hash_fd, read_full, with_buffer};

/// Files that are taken in one pass; more are taken in the next one. A bound on memory.
const PASS: usize = 100_000;
/// What is taken before that: files of so many bytes, so many bytes together, in directories with so many entries together.
const SMALL: u64 = 256 << 10;
const AT_ONCE: u64 = 4 << 20;
const ENTRIES: usize = 4_096;

/// A file of the current generation that is not kept yet; the largest one first in a heap.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Want {
    pub(super) size: u64,
    pub(super) digest: Digest,
    pub(super) path: TreePath,
}

impl Keeper {
    /// Keeps the small files of a small change.
    pub(super) fn take_small(&mut self) -> Result<()> {
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
    pub(super) fn missing(
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
    pub(super) fn take(&mut self, root: &Dir, keep: &Dir, want: &Want) -> Result<bool> {
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
}
