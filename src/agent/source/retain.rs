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

mod bounds;
mod store;
mod sweep;
mod take;

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use bounds::beside;
pub(super) use bounds::trash_keep;
use store::{Used, count};
pub(super) use store::{drop_if_damaged, drop_kept, open_kept};

use super::{SourceTree, lock};
use crate::apply::trash_bytes;
use crate::disk::{Dir, remove_tree};
use crate::error::{Context as _, Error, Result};
use crate::model::{Digest, GenId, Generation};
use crate::plan::CONTROL_DIR;

pub(super) const KEEP: &[u8] = b"keep";
/// After a publication so much time is left to whoever fetches it.
const AFTER: Duration = Duration::from_millis(50);
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
}
