//! The trash of a mirror is pruned by a thread of its own, after the local server was told: to delete what the last big
//! change displaced takes as long as the disk wants, and no server is to wait for that.
//!
//! The engine's thread asks for it after each run, with the newest commit that is over. Commits go on beside it: they
//! only add to the trash, under higher numbers. For everything else that touches the trash (a swap, an order, the end of the session)
//! the engine ends it first. What a crash or an end left is pruned when the tree is opened.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::MirrorTree;
use super::engine::Engine;
use crate::apply::{Control, Keep, Pruner};
use crate::disk::Dir;
use crate::error::{Error, Result, lock};
use crate::model::TreePath;

/// A server that cannot be told is waited for no longer: the trash must not grow for its sake.
const PATIENCE: Duration = Duration::from_secs(10);
/// While it is waited for it is looked at so often.
const LOOK: Duration = Duration::from_millis(50);
/// Somebody who wants something wakes it.
const IDLE: Duration = Duration::from_secs(3600);

/// What is to be pruned, and whether the thread is at it.
#[derive(Default)]
pub(super) struct Pruning {
    state: Mutex<Asked>,
    changed: Condvar,
    /// What is under way ends.
    cancel: AtomicBool,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Default)]
struct Asked {
    wanted: Option<Wanted>,
    busy: bool,
    /// The disk is full: now, whoever has not been told.
    hurry: bool,
    /// Sizes that are remembered may be wrong.
    forget: bool,
}

struct Wanted {
    /// The tree's `.syncagent`.
    control: Dir,
    upto: u64,
    since: Instant,
}

impl Pruning {
    fn asked(&self) -> MutexGuard<'_, Asked> {
        lock(&self.state)
    }

    fn wait<'a>(&self, asked: MutexGuard<'a, Asked>, limit: Duration) -> MutexGuard<'a, Asked> {
        self.changed.wait_timeout(asked, limit).unwrap_or_else(PoisonError::into_inner).0
    }

    fn ask(&self, control: Dir, upto: u64) {
        let mut asked = self.asked();
        // what was asked for longest ago says how long it has waited
        let since = asked.wanted.as_ref().map_or_else(Instant::now, |wanted| wanted.since);
        asked.wanted = Some(Wanted { control, upto, since });
        self.changed.notify_all();
    }

    /// Ends what is under way and forgets what is wanted; the trash is the caller's until he asks again.
    pub(super) fn halt(&self) {
        let mut asked = self.asked();
        asked.wanted = None;
        asked.forget = true;
        self.cancel.store(true, Ordering::Relaxed);
        while asked.busy {
            asked = self.wait(asked, LOOK);
        }
        self.cancel.store(false, Ordering::Relaxed);
    }

    /// Waits until all that is wanted is done, at once. Gives whether there was anything.
    fn finish(&self, stopped: &dyn Fn() -> bool) -> bool {
        let mut asked = self.asked();
        let any = asked.busy || asked.wanted.is_some();
        asked.hurry = true;
        self.changed.notify_all();
        while (asked.busy || asked.wanted.is_some()) && !stopped() {
            asked = self.wait(asked, LOOK);
        }
        asked.hurry = false;
        any
    }

    /// The thread looks whether it has to end.
    pub(super) fn wake(&self) {
        drop(self.asked());
        self.changed.notify_all();
    }

    pub(super) fn has_ended(&self) -> bool {
        lock(&self.thread).as_ref().is_none_or(JoinHandle::is_finished)
    }
}

/// Starts the thread.
///
/// # Errors
/// The operating system's.
pub(super) fn start(tree: &Arc<MirrorTree>, keep: Keep) -> Result<()> {
    let name = format!("trash {}", tree.name());
    let of = tree.clone();
    let thread = std::thread::Builder::new().name(name).spawn(move || of.prune(keep));
    *lock(&tree.pruning.thread) = Some(thread.map_err(|e| Error::io(e, "cannot start a thread"))?);
    Ok(())
}

impl MirrorTree {
    fn prune(&self, keep: Keep) {
        // of this thread only; whoever applies goes first
        let _ = rustix::process::setpriority_process(None, 19);
        let mut pruner = Pruner::default();
        let mut said = None;
        while let Some((wanted, forget)) = self.next_to_prune() {
            if forget {
                pruner.forget();
            }
            let stop = || self.stopped() || self.pruning.cancel.load(Ordering::Relaxed);
            // whoever waits for it must not wait for ever
            let done = catch_unwind(AssertUnwindSafe(|| {
                pruner.prune(&wanted.control, keep, wanted.upto, &stop).err()
            }));
            let error = done.unwrap_or(Some(Errno::NOTRECOVERABLE)).filter(|e| *e != Errno::CANCELED);
            if let Some(e) = error.filter(|_| said != error) {
                let what = "cannot prune the trash; it is tried again after the next commit";
                tracing::warn!(tree = self.name(), "{what}: {}", std::io::Error::from(e));
            }
            said = error;
            self.pruning.asked().busy = false;
            self.pruning.changed.notify_all();
        }
    }

    /// Waits until something is to be pruned, and may be; with whether the sizes are to be forgotten.
    fn next_to_prune(&self) -> Option<(Wanted, bool)> {
        loop {
            // it has locks of its own
            let refreshing = self.is_refreshing();
            let mut asked = self.pruning.asked();
            if self.stopped() {
                return None;
            }
            let hurry = asked.hurry;
            let due = |wanted: &mut Wanted| !refreshing || hurry || wanted.since.elapsed() >= PATIENCE;
            if let Some(wanted) = asked.wanted.take_if(due) {
                asked.busy = true;
                return Some((wanted, std::mem::take(&mut asked.forget)));
            }
            // what ends the waiting for a server does not tell of itself
            let limit = if asked.wanted.is_some() { LOOK } else { IDLE };
            drop(self.pruning.wait(asked, limit));
        }
    }

    /// Has the trash pruned, of all commits that are over.
    pub(super) fn prune_trash(&self, control: &Control) {
        let seq = control.marker().map(|marker| marker.map_or(0, |marker| marker.seq));
        match (seq, control.dir.open(&TreePath::root())) {
            (Ok(seq), Ok(dir)) => self.pruning.ask(dir, seq),
            (Err(e), _) => tracing::warn!(tree = self.name(), "the trash is not pruned: {e}"),
            (_, Err(e)) => tracing::warn!(tree = self.name(), "the trash is not pruned: {e}"),
        }
    }
}

/// Whether the disk, or what somebody may have of it, is full.
pub(super) fn is_full(e: &Error) -> bool {
    matches!(e.errno(), Some(Errno::NOSPC | Errno::DQUOT))
}

impl Engine {
    /// Where the disk is full, what is to be pruned is pruned now. Gives whether it is worth to try again.
    pub(super) fn made_room(&self, e: &Error) -> bool {
        is_full(e) && self.tree.pruning.finish(&|| self.tree.stopped())
    }

    /// The session is over. What a commit that failed half way needs to be finished is room.
    pub(super) fn end_pruning(&self, e: Option<&Error>) {
        let _ = e.is_some_and(|e| self.made_room(e));
        self.tree.pruning.halt();
    }
}
