//! Contents that a rollback needs and this host has no more are sought among the mirrors, which may have them in their
//! trash.
//!
//! A *round* names them all. Every connected mirror hears of it by its long poll, says which it has found, and comes back
//! until the round is over. Nothing is sent before everything is offered by somebody; then each content is asked of one
//! mirror that offered it, and of the next one when that fails. What arrives is checked, and lies in
//! `.syncagent/sought` until the rollback has ended.

mod round;

use std::collections::{BTreeMap, HashMap};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use tokio::sync::watch;

use super::rollback::{Again, RollbackAnswer, RollbackOrder, Tried, gone_text};
use super::{Order, SourceTree};
use crate::agent::role::{NOT_OPEN, have_done};
use crate::apply::write_all;
use crate::disk::{Dir, remove_tree, wall_ms};
use crate::error::{Class, Context as _, Error, Result, lock};
use crate::model::{Digest, NodeId, counted, listed};
use crate::peer::{Piece, Sought};
use crate::plan::CONTROL_DIR;
use round::{Accepted, Ended, Got, Round};

/// In `.syncagent`; one file per content, named by its digest.
pub(super) const SOUGHT: &[u8] = b"sought";
const LOOK: Duration = Duration::from_millis(100);
/// Plans of one rollback: the tree may change while contents are sought.
const PLANS: usize = 3;

/// What is sought at present.
pub(super) struct Seek {
    number: watch::Sender<u64>,
    round: Mutex<Option<Round>>,
    told: Condvar,
    /// Held for a whole rollback's seeking, and while what an earlier one left is removed.
    one: Mutex<()>,
}

/// What became of the mirrors that were asked.
#[derive(Debug, Default)]
pub(super) struct Asked {
    nodes: BTreeMap<NodeId, Ended>,
    /// Mirrors that are not connected.
    away: Vec<NodeId>,
}

impl Default for Seek {
    fn default() -> Self {
        Self {
            number: watch::channel(0).0,
            round: Mutex::default(),
            told: Condvar::new(),
            one: Mutex::default(),
        }
    }
}

impl Seek {
    /// For the long polls.
    pub(super) fn number(&self) -> watch::Receiver<u64> {
        self.number.subscribe()
    }

    /// Removes what a crash left of seeking.
    pub(super) fn clean(&self, control: &Dir) -> Result<()> {
        let one = match self.one.try_lock() {
            Ok(one) => one,
            Err(TryLockError::Poisoned(one)) => one.into_inner(),
            // it is of use to somebody
            Err(TryLockError::WouldBlock) => return Ok(()),
        };
        let done = remove_tree(control, SOUGHT).context(|| "remove .syncagent/sought".to_owned());
        drop(one);
        done
    }

    fn with<T>(&self, number: u64, work: impl FnOnce(&mut Round) -> T) -> Option<T> {
        let mut round = lock(&self.round);
        let round = round.as_mut().filter(|round| round.number == number)?;
        let done = work(round);
        self.told.notify_all();
        Some(done)
    }

    /// What is sought in this round, from place `from` on: a part of it, empty at the end.
    pub(super) fn sought(&self, node: &NodeId, number: u64, from: usize) -> Option<Vec<Sought>> {
        self.with(number, |round| round.page(node, from))
    }

    /// A mirror has these; gives which it shall send.
    pub(super) fn found(&self, node: &NodeId, number: u64, found: &[u32], done: bool) -> Option<Vec<u32>> {
        self.with(number, |round| round.found(node, found, done))
    }

    /// A mirror sends a piece. Blocks; no lock is held while the disk works.
    pub(super) fn piece(&self, node: &NodeId, piece: Piece, bytes: &[u8]) -> Result<()> {
        let over = || Error::new(Class::Transient, "that is not sought any more");
        let accepted = self.with(piece.round, |round| round.accept(node, piece, bytes.len() as u64));
        let (dir, what, ask, got) = match accepted.ok_or_else(over)?? {
            Accepted::Known => return Ok(()),
            Accepted::Write { dir, what, ask, got } => (dir, what, ask, got),
        };
        let cannot = || format!("write a content of {} that {node} sends to .syncagent/sought", what.path);
        let tmp = format!("new-{}-{ask}", piece.index);
        let write = || -> rustix::io::Result<Got> {
            let mut got = match got {
                Some(got) => *got,
                None => Got {
                    file: dir.create_file(tmp.as_bytes(), 0o600)?,
                    bytes: 0,
                    hasher: blake3::Hasher::new(),
                },
            };
            write_all(&got.file, bytes)?;
            got.hasher.update(bytes);
            got.bytes += bytes.len() as u64;
            Ok(got)
        };
        let written = write();
        let whole = written.as_ref().is_ok_and(|got| got.bytes == what.size);
        let right =
            !whole || written.as_ref().is_ok_and(|got| Digest::from(got.hasher.finalize()) == what.digest);
        let written = written.and_then(|got| {
            if whole && right {
                dir.rename(tmp.as_bytes(), &dir, what.digest.to_string().as_bytes())?;
            }
            Ok(got)
        });
        if written.is_err() || !right {
            let _ = dir.unlink(tmp.as_bytes());
        }
        let failed = written.as_ref().err().copied();
        let got = written.ok().filter(|_| right).map(Box::new);
        self.with(piece.round, |round| {
            if let Some(e) = failed {
                // no other mirror can help with that
                round.fail(Err::<(), _>(e).context(cannot).err());
            }
            round.wrote(node, piece.index, ask, got);
        });
        match failed {
            Some(e) => Err(e).context(cannot),
            None if right => Ok(()),
            None => Err(Error::integrity(format!("it is not the content of {} that was sought", what.path))),
        }
    }
}

/// Opens a content that was sought and found.
pub(super) fn open_sought(dir: &Dir, digest: &Digest) -> rustix::io::Result<OwnedFd> {
    dir.open_file(digest.to_string().as_bytes())
}

/// Seeking for one rollback; whatever was fetched goes at its end.
struct Seeking<'a> {
    tree: &'a SourceTree,
    control: Dir,
    /// `None`: only who has what is asked.
    dir: Option<Arc<Dir>>,
    asked: Asked,
    /// Whoever ordered it has left.
    gone: &'a AtomicBool,
    _one: MutexGuard<'a, ()>,
}

impl Drop for Seeking<'_> {
    fn drop(&mut self) {
        if self.dir.is_some()
            && let Err(e) = remove_tree(&self.control, SOUGHT)
        {
            tracing::warn!(tree = self.tree.config.name, "cannot remove .syncagent/sought: {e}");
        }
    }
}

impl<'a> Seeking<'a> {
    fn begin(tree: &'a SourceTree, fetch: bool, gone: &'a AtomicBool) -> Result<Self> {
        let one = match tree.seek.one.try_lock() {
            Ok(one) => one,
            Err(TryLockError::Poisoned(one)) => one.into_inner(),
            Err(TryLockError::WouldBlock) => {
                let what =
                    format!("another rollback of {} seeks contents among the mirrors", tree.config.name);
                return Err(Error::new(Class::Busy, what));
            }
        };
        let cannot = || "keep what the mirrors send in .syncagent/sought".to_owned();
        let control = tree.root_handle()?.open_child(CONTROL_DIR).context(cannot)?;
        // from here on it is removed at the end
        let mut seeking = Seeking { tree, control, dir: None, asked: Asked::default(), gone, _one: one };
        if fetch {
            remove_tree(&seeking.control, SOUGHT).context(cannot)?;
            seeking.dir = Some(Arc::new(seeking.control.ensure_dir(SOUGHT, 0o700).context(cannot)?));
        }
        Ok(seeking)
    }

    /// There is room for all of it: here, and once more where it is staged, unless that can be cloned.
    fn check_space(&self, what: &[Sought]) -> Result<()> {
        let Ok(fs) = rustix::fs::fstatvfs(&self.control) else { return Ok(()) };
        let times = if self.tree.retain.status().clones { 1 } else { 2 };
        let bytes = what.iter().map(|sought| sought.size).sum::<u64>().saturating_mul(times);
        let names = (what.len() as u64).saturating_mul(2);
        let free = fs.f_bavail.saturating_mul(fs.f_frsize);
        if bytes <= free && (fs.f_files == 0 || names <= fs.f_favail) {
            return Ok(());
        }
        let what = format!(
            "the content of {} would have to come from the mirrors, which takes {bytes} bytes and {names} inodes here \
             until it is in place; {free} bytes and {} inodes are free. Nothing was changed",
            counted(what.len(), "file"),
            fs.f_favail
        );
        Err(Error::new(Class::Refused, what))
    }

    /// Seeks these; gives which mirror has, or has sent, which of them. When somebody has all that is needed nobody has,
    /// nothing is sent.
    fn find(&mut self, what: &[Sought]) -> Result<HashMap<Digest, NodeId>> {
        if self.dir.is_some() {
            self.check_space(what)?;
        }
        let seek = &self.tree.seek;
        let (connected, away) = self.tree.shared().nodes.by_connection();
        self.asked.away = away;
        let number = (*seek.number.borrow() + 1).max(u64::try_from(wall_ms()).unwrap_or(0));
        tracing::info!(
            tree = self.tree.config.name,
            contents = what.len(),
            mirrors = connected.len(),
            "contents for a rollback are sought among the mirrors"
        );
        *lock(&seek.round) = Some(Round::new(number, self.dir.clone(), what, connected));
        seek.number.send_replace(number);
        let mut now = lock(&seek.round);
        let stopped = loop {
            let stopped = self.tree.stop.load(Ordering::Relaxed) || self.gone.load(Ordering::Relaxed);
            if stopped || now.as_mut().is_none_or(Round::is_over) {
                break stopped;
            }
            now = seek.told.wait_timeout(now, LOOK).unwrap_or_else(PoisonError::into_inner).0;
        };
        let round = now.take();
        drop(now);
        seek.number.send_replace(0);
        if stopped {
            return Err(Error::new(Class::Interrupted, "interrupted; nothing was changed"));
        }
        let Some(round) = round else { return Ok(HashMap::new()) };
        let (found, nodes) = round.end()?;
        self.asked.nodes = nodes;
        Ok(found)
    }
}

impl Asked {
    /// For people.
    pub(super) fn said(&self) -> String {
        let of = |how: Ended| -> Vec<&NodeId> {
            self.nodes.iter().filter(|(_, ended)| **ended == how).map(|(node, _)| node).collect()
        };
        let parts = [
            (of(Ended::Looked), "asked, and without it, too"),
            (of(Ended::Failed), "had some of it, and failed to send it"),
            (of(Ended::Silent), "asked, and did not answer"),
            (self.away.iter().collect(), "not connected"),
        ];
        let said: Vec<String> = parts
            .into_iter()
            .filter(|(nodes, _)| !nodes.is_empty())
            .map(|(nodes, how)| format!("{how}: {}", listed(nodes.into_iter(), 10, ", ")))
            .collect();
        if said.is_empty() { "no mirror is known that might have it".to_owned() } else { said.join("; ") }
    }
}

impl SourceTree {
    /// Rolls back; what is not here is sought among the mirrors first. Nothing is begun any more once `gone` is set.
    pub(super) fn roll_back(&self, order: &RollbackOrder, gone: &AtomicBool) -> Result<RollbackAnswer> {
        let mut again = Again::default();
        let mut order = order.clone();
        let mut seeking: Option<Seeking<'_>> = None;
        for _ in 0..PLANS {
            if gone.load(Ordering::Relaxed) {
                return Err(Error::new(Class::Interrupted, "interrupted; nothing was changed"));
            }
            let (to, head, lacks) = match self.try_rollback(&order, again.clone())? {
                Tried::Done(answer) => return Ok(*answer),
                Tried::Lacks { to, head, lacks } => (to, head, lacks),
            };
            // whatever is published meanwhile: it is this that was ordered, and against that
            (order.to, again.head) = (Some(to), Some(head));
            let seeking = match &mut seeking {
                Some(seeking) => seeking,
                none => none.insert(Seeking::begin(self, !order.dry_run, gone)?),
            };
            again.sought.extend(seeking.find(&lacks)?);
            let nowhere = lacks.into_iter().filter(|lack| !again.sought.contains_key(&lack.digest));
            let mut nowhere: Vec<_> = nowhere.map(|lack| lack.path).collect();
            if !nowhere.is_empty() {
                nowhere.sort();
                let (kept, asked) = (self.retain.status(), seeking.asked.said());
                let what = gone_text(&self.config.name, to, &nowhere, &kept, &asked);
                return Err(Error::new(Class::Refused, what));
            }
        }
        let what = "somebody wrote all the while, so that always something else was needed; nothing was changed, try again";
        Err(Error::new(Class::Transient, what))
    }

    fn try_rollback(&self, order: &RollbackOrder, again: Again) -> Result<Tried> {
        let order = order.clone();
        have_done(&self.orders, |reply| {
            Order::Job(Box::new(move |open| match open {
                Some((engine, s)) => engine.roll_back(s, &order, &again, &reply),
                None => {
                    // who asked may have gone
                    let _ = reply.send(Err(Error::new(Class::Transient, NOT_OPEN)));
                    Ok(())
                }
            }))
        })
    }
}

#[cfg(test)]
mod tests;
