//! What a mirror does while a run is under way: between staging, commit and their end.

use super::super::MirrorTree;
use super::super::back::lacking;
use crate::agent::apply::Monitor;
use crate::error::{Class, Error, PathError, Result, lock};
use crate::model::{Generation, State, TreePath};
use crate::plan::{Filter, Step};
use crate::refresh::Changed;
use crate::watch::{Changes, Watcher};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// After content was gone, a newer generation is waited for so long.
const NEWER_WAIT: Duration = Duration::from_secs(3);

/// How long the parts of a run took.
pub(super) struct Took {
    pub(super) fetch: Duration,
    pub(super) plan: Duration,
    pub(super) stage: Duration,
    pub(super) commit: Duration,
    pub(super) rest: Duration,
}

/// A run, as the engine below tells of it.
pub(super) struct Bringing<'a> {
    pub(super) tree: &'a MirrorTree,
    pub(super) newest: &'a Generation,
    pub(super) watcher: Arc<Watcher>,
    /// What happened in the tree until the commit was done.
    pub(super) seen: Mutex<Changes>,
    /// What of that counts: not what is excluded.
    pub(super) filter: &'a Filter,
    pub(super) staged: OnceLock<Instant>,
    pub(super) committed: OnceLock<Instant>,
    /// For the local server.
    pub(super) changed: Mutex<Changed>,
    /// From here on the tree changes.
    pub(super) staged_all: AtomicBool,
    /// It is an older generation: all of it, or nothing.
    pub(super) goes_back: bool,
    /// Why that cannot be.
    pub(super) lacking: Mutex<Option<String>>,
}

impl Bringing<'_> {
    /// The commit begins: what the local server has is no longer what is there.
    fn begins(&self) -> Result<()> {
        // from here on nothing tells the commit's own events from others': whoever wrote here until now has to be known
        self.note();
        self.tree.enter(State::Committing);
        self.tree.note_complete();
        self.staged_all.store(true, Ordering::Relaxed);
        self.tree.refresher.get().map_or(Ok(()), |refresher| refresher.expect(self.newest.id))
    }

    /// Takes what happened in the tree. Until it was looked at, nobody can say that all is as it should be.
    fn note(&self) {
        let changes = self.tree.take_counted(&self.watcher, self.filter);
        if !changes.is_empty() {
            self.tree.shared().unjudged = true;
            lock(&self.seen).merge(changes);
        }
    }
}

impl Monitor for Bringing<'_> {
    fn step(&self, step: &Step<'_, i64>) -> Result<()> {
        let mut changed = lock(&self.changed);
        changed.add(step.path);
        if let Some(from) = step.from {
            changed.add(&from.path);
        }
        Ok(())
    }

    fn root_attrs(&self) -> Result<()> {
        Ok(())
    }

    fn lacks(&self, paths: &BTreeSet<TreePath>, errors: &[PathError]) -> Result<()> {
        if !self.goes_back {
            return Ok(());
        }
        let why = lacking(self.newest.id, paths, errors);
        *lock(&self.lacking) = Some(why.clone());
        Err(Error::new(Class::Transient, why))
    }

    /// Content that is gone at the source belongs to a newer generation; what is staged is used by that.
    fn staged(&self, vanished: u64) -> Result<()> {
        self.staged.get_or_init(Instant::now);
        if vanished == 0 {
            return self.begins();
        }
        let shared = self.tree.shared();
        let waiting = |s: &mut super::super::Shared| {
            s.newest.as_ref().is_none_or(|n| n.id <= self.newest.id) && !self.tree.stopped()
        };
        let (shared, timeout) = self
            .tree
            .arrived
            .wait_timeout_while(shared, NEWER_WAIT, waiting)
            .unwrap_or_else(PoisonError::into_inner);
        drop(shared);
        if timeout.timed_out() {
            // nothing newer: all but these paths comes into place
            self.begins()
        } else {
            Err(Error::new(Class::Interrupted, "superseded"))
        }
    }

    fn wants_steps(&self) -> bool {
        self.tree.refresher.get().is_some()
    }

    fn committed(&self, failed: usize, vanished: u64) {
        self.committed.get_or_init(Instant::now);
        // before all of it counts as in place
        self.note();
        if failed == 0 && vanished == 0 {
            self.tree.mark_applied(self.newest);
        }
    }
}
