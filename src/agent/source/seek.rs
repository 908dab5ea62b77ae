//! Contents that a rollback needs and this host has no more are sought among the mirrors, which may have them in their
//! trash.
//!
//! A round names up to [`MAX_SOUGHT`] of them. Every connected mirror hears of it by its long poll, says which it has
//! found, and is asked for those that nobody was asked for before. What arrives is checked and lies in `.syncagent/sought`
//! until the rollback has ended. A round is over when everything is here, or nobody is left who might have the rest.
//! Of mirrors that fail in the middle the rest is sought again among all.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::rollback::{RollbackAnswer, RollbackOrder, Tried, gone_text};
use super::{Order, SourceTree};
use crate::agent::role::{NOT_OPEN, have_done};
use crate::apply::write_all;
use crate::disk::{Dir, remove_tree, wall_ms};
use crate::error::{Class, Context as _, Error, Result, lock};
use crate::model::{Digest, NodeId};
use crate::peer::{MAX_SOUGHT, Piece, Sought};
use crate::plan::CONTROL_DIR;

/// In `.syncagent`; one file per content, named by its digest.
pub(super) const SOUGHT: &[u8] = b"sought";
/// A mirror that was not heard for so long since the round began does not answer.
const HEAR: Duration = Duration::from_secs(10);
/// Nor does one that fell silent for so long; a mirror that looks or sends says something every few seconds.
const SILENT: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(200);
/// Rounds for the same contents.
const ROUNDS: usize = 3;
/// Plans of one rollback: the tree may change while contents are sought.
const PLANS: usize = 3;

/// What is sought at present, and by whom it is answered.
pub(super) struct Seek {
    number: watch::Sender<u64>,
    round: Mutex<Option<Round>>,
    told: Condvar,
    one: Mutex<()>,
    running: AtomicBool,
}

struct Round {
    number: u64,
    /// Where contents are written to; without it only who has them is asked.
    dir: Option<Arc<Dir>>,
    items: Vec<Item>,
    nodes: BTreeMap<NodeId, Heard>,
}

struct Item {
    what: Sought,
    at: At,
}

enum At {
    Nowhere,
    /// This mirror shall send it.
    Asked(NodeId, Receiving),
    /// It had it, or sent it.
    Found(NodeId),
    /// It said that it had it, and did not send it.
    Failed(NodeId),
}

enum Receiving {
    NotYet,
    /// A piece is being written.
    Writes,
    Has(Box<Got>),
}

struct Got {
    file: OwnedFd,
    bytes: u64,
    hasher: blake3::Hasher,
}

struct Heard {
    /// It said something in this round.
    ever: bool,
    last: Instant,
    done: bool,
}

/// What became of the mirrors that were asked.
#[derive(Debug, Default)]
pub(super) struct Asked {
    /// Whether each of them answered.
    nodes: BTreeMap<NodeId, bool>,
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
            running: AtomicBool::new(false),
        }
    }
}

impl Heard {
    /// Whether it may still say something.
    fn is_awaited(&self) -> bool {
        !self.done && self.last.elapsed() < if self.ever { SILENT } else { HEAR }
    }
}

impl Round {
    fn hear(&mut self, node: &NodeId) -> &mut Heard {
        let heard = self.nodes.entry(node.clone()).or_insert_with(Heard::new);
        (heard.ever, heard.last) = (true, Instant::now());
        heard
    }

    /// Whether nothing more will come.
    fn is_over(&mut self) -> bool {
        for item in &mut self.items {
            if let At::Asked(node, _) = &item.at
                && self.nodes.get(node).is_none_or(|heard| heard.last.elapsed() >= SILENT)
            {
                item.at = At::Failed(node.clone());
            }
        }
        let any = |at: fn(&At) -> bool| self.items.iter().any(|item| at(&item.at));
        let under_way = any(|at| matches!(at, At::Asked(..)));
        let open = any(|at| matches!(at, At::Nowhere | At::Failed(_)));
        !under_way && (!open || !self.nodes.values().any(Heard::is_awaited))
    }
}

impl Heard {
    fn new() -> Self {
        Self { ever: false, last: Instant::now(), done: false }
    }
}

impl Seek {
    /// For the long polls.
    pub(super) fn number(&self) -> watch::Receiver<u64> {
        self.number.subscribe()
    }

    /// Whether what lies in [`SOUGHT`] is of use to somebody.
    pub(super) fn is_running(&self) -> bool {
        self.running.load(Ordering::Relaxed)
    }

    fn round(&self) -> MutexGuard<'_, Option<Round>> {
        lock(&self.round)
    }

    /// What is sought in this round.
    pub(super) fn sought(&self, node: &NodeId, number: u64) -> Option<Vec<Sought>> {
        let mut round = self.round();
        let round = round.as_mut().filter(|round| round.number == number)?;
        round.hear(node);
        Some(round.items.iter().map(|item| item.what.clone()).collect())
    }

    /// A mirror has these; gives which it shall send.
    pub(super) fn found(&self, node: &NodeId, number: u64, found: &[u32], done: bool) -> Option<Vec<u32>> {
        let mut round = self.round();
        let round = round.as_mut().filter(|round| round.number == number)?;
        round.hear(node).done |= done;
        let mut send = Vec::new();
        for index in found {
            let Some(item) = round.items.get_mut(*index as usize) else { continue };
            let free = match &item.at {
                At::Nowhere => true,
                At::Failed(by) => by != node,
                At::Asked(..) | At::Found(_) => false,
            };
            if free && round.dir.is_some() {
                item.at = At::Asked(node.clone(), Receiving::NotYet);
                send.push(*index);
            } else if free {
                item.at = At::Found(node.clone());
            }
        }
        self.told.notify_all();
        Some(send)
    }

    /// A mirror sends a piece. Blocks.
    pub(super) fn piece(&self, node: &NodeId, piece: Piece, bytes: &[u8]) -> Result<()> {
        let over = || Error::new(Class::Transient, "that is not sought any more");
        let unasked = || Error::new(Class::Permanent, "this node was not asked for that");
        let (mut got, what) = {
            let mut round = self.round();
            let round = round.as_mut().filter(|round| round.number == piece.round).ok_or_else(over)?;
            round.hear(node);
            let dir = round.dir.clone().ok_or_else(unasked)?;
            let item = round.items.get_mut(piece.index as usize).ok_or_else(unasked)?;
            let receiving = match &mut item.at {
                At::Asked(by, receiving) if by == node => receiving,
                // the answer to its last piece was lost
                At::Found(by) if by == node => return Ok(()),
                _ => return Err(unasked()),
            };
            if bytes.is_empty() {
                item.at = At::Failed(node.clone());
                self.told.notify_all();
                return Ok(());
            }
            let end = piece.from.checked_add(bytes.len() as u64).filter(|end| *end <= item.what.size);
            let Some(end) = end else {
                item.at = At::Failed(node.clone());
                self.told.notify_all();
                return Err(Error::new(Class::Permanent, "it is larger than what was asked for"));
            };
            let got = match std::mem::replace(receiving, Receiving::Writes) {
                Receiving::NotYet if piece.from == 0 => begin(&dir, &item.what.digest),
                Receiving::Has(got) if got.bytes == piece.from => Ok(*got),
                // sent again, because the answer was lost
                Receiving::Has(got) if end <= got.bytes => {
                    *receiving = Receiving::Has(got);
                    return Ok(());
                }
                other => {
                    *receiving = other;
                    return Err(Error::new(Class::Permanent, "the pieces come in another order"));
                }
            };
            match got {
                Ok(got) => (got, item.what.clone()),
                Err(e) => {
                    item.at = At::Failed(node.clone());
                    self.told.notify_all();
                    return Err(e);
                }
            }
        };
        let written = write_all(&got.file, bytes);
        got.hasher.update(bytes);
        got.bytes += bytes.len() as u64;
        let whole = got.bytes == what.size;
        let right = !whole || Digest::from(got.hasher.finalize()) == what.digest;
        let mut round = self.round();
        let round = round.as_mut().filter(|round| round.number == piece.round).ok_or_else(over)?;
        let item = round.items.get_mut(piece.index as usize).ok_or_else(unasked)?;
        self.told.notify_all();
        item.at = match (&written, right) {
            (Ok(()), true) if whole => At::Found(node.clone()),
            (Ok(()), true) => At::Asked(node.clone(), Receiving::Has(Box::new(got))),
            _ => At::Failed(node.clone()),
        };
        written.context(|| format!("write a content of {} that {node} sends", what.path))?;
        if !right {
            return Err(Error::integrity(format!("it is not the content of {} that was sought", what.path)));
        }
        Ok(())
    }
}

fn begin(dir: &Dir, digest: &Digest) -> Result<Got> {
    let name = digest.to_string();
    // what another mirror did not send to its end
    let _ = dir.unlink(name.as_bytes());
    let file = dir.create_file(name.as_bytes(), 0o600).context(|| "write a sought content".into())?;
    Ok(Got { file, bytes: 0, hasher: blake3::Hasher::new() })
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
    _one: MutexGuard<'a, ()>,
}

impl Drop for Seeking<'_> {
    fn drop(&mut self) {
        if self.dir.is_some()
            && let Err(e) = remove_tree(&self.control, SOUGHT)
        {
            tracing::warn!(tree = self.tree.config.name, "cannot remove .syncagent/sought: {e}");
        }
        self.tree.seek.running.store(false, Ordering::Relaxed);
    }
}

impl Seeking<'_> {
    fn begin(tree: &SourceTree, fetch: bool) -> Result<Seeking<'_>> {
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
        tree.seek.running.store(true, Ordering::Relaxed);
        // from here on it is removed at the end
        let mut seeking = Seeking { tree, control, dir: None, asked: Asked::default(), _one: one };
        if fetch {
            remove_tree(&seeking.control, SOUGHT).context(cannot)?;
            seeking.dir = Some(Arc::new(seeking.control.ensure_dir(SOUGHT, 0o700).context(cannot)?));
        }
        Ok(seeking)
    }

    /// Seeks these; gives which mirror has, or has sent, which of them.
    fn find(&mut self, what: &[Sought]) -> Result<HashMap<Digest, NodeId>> {
        let bytes: u64 = what.iter().map(|sought| sought.size).sum();
        let free =
            rustix::fs::fstatvfs(&self.control).map_or(u64::MAX, |s| s.f_bavail.saturating_mul(s.f_frsize));
        if self.dir.is_some() && bytes > free {
            let what = format!(
                "the content of {} files ({bytes} bytes) would have to come from the mirrors, and only {free} bytes are \
                 free here; nothing was changed",
                what.len()
            );
            return Err(Error::new(Class::Refused, what));
        }
        let mut found = HashMap::new();
        for some in what.chunks(MAX_SOUGHT) {
            let mut left = some.to_vec();
            for _ in 0..ROUNDS {
                let again = self.round(&mut left, &mut found)?;
                if left.is_empty() || !again {
                    break;
                }
            }
        }
        Ok(found)
    }

    /// One round. Takes what was found out of `left`; says whether another round may find more.
    fn round(&mut self, left: &mut Vec<Sought>, found: &mut HashMap<Digest, NodeId>) -> Result<bool> {
        let (seek, shared) = (&self.tree.seek, self.tree.shared());
        let (connected, away) = shared.nodes.by_connection();
        drop(shared);
        self.asked.away = away;
        let number = (*seek.number.borrow() + 1).max(u64::try_from(wall_ms()).unwrap_or(0));
        let round = Round {
            number,
            dir: self.dir.clone(),
            items: left.iter().map(|what| Item { what: what.clone(), at: At::Nowhere }).collect(),
            nodes: connected.into_iter().map(|id| (id, Heard::new())).collect(),
        };
        let name = &self.tree.config.name;
        tracing::info!(
            tree = name,
            contents = round.items.len(),
            mirrors = round.nodes.len(),
            "contents for a rollback are sought among the mirrors"
        );
        *seek.round() = Some(round);
        seek.number.send_replace(number);
        let mut now = seek.round();
        let stopped = loop {
            let stopped = self.tree.stop.load(Ordering::Relaxed);
            if stopped || now.as_mut().is_none_or(Round::is_over) {
                break stopped;
            }
            now = seek.told.wait_timeout(now, LOOK).unwrap_or_else(PoisonError::into_inner).0;
        };
        let round = now.take();
        drop(now);
        seek.number.send_replace(0);
        if stopped {
            return Err(Error::new(Class::Transient, "the tree is being stopped; try again"));
        }
        let mut again = false;
        left.clear();
        for (node, heard) in round.iter().flat_map(|round| &round.nodes) {
            self.asked.nodes.insert(node.clone(), heard.ever && (heard.done || heard.is_awaited()));
        }
        for item in round.into_iter().flat_map(|round| round.items) {
            match item.at {
                At::Found(node) => {
                    found.insert(item.what.digest, node);
                    continue;
                }
                At::Failed(node) => {
                    tracing::warn!(tree = name, %node, "did not send the content of {}", item.what.path);
                    again = true;
                }
                At::Nowhere | At::Asked(..) => {}
            }
            left.push(item.what);
        }
        Ok(again)
    }
}

impl Asked {
    /// For people.
    pub(super) fn said(&self) -> String {
        let list = |nodes: Vec<&NodeId>| {
            let named: Vec<&str> = nodes.iter().take(10).map(|node| node.as_str()).collect();
            let more = nodes.len().saturating_sub(10);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            format!("{}{more}", named.join(", "))
        };
        let of = |answered: bool| -> Vec<&NodeId> {
            self.nodes.iter().filter(|(_, a)| **a == answered).map(|(node, _)| node).collect()
        };
        let parts = [
            (of(true), "asked, and without it, too"),
            (of(false), "asked, and did not answer"),
            (self.away.iter().collect(), "not connected"),
        ];
        let said: Vec<String> = parts
            .into_iter()
            .filter(|(nodes, _)| !nodes.is_empty())
            .map(|(nodes, how)| format!("{how}: {}", list(nodes)))
            .collect();
        if said.is_empty() { "no mirror is known that might have it".to_owned() } else { said.join("; ") }
    }
}

impl SourceTree {
    /// Rolls back; what is not here is sought among the mirrors first.
    pub(super) fn roll_back(&self, order: &RollbackOrder) -> Result<RollbackAnswer> {
        let mut here: HashMap<Digest, NodeId> = HashMap::new();
        let mut seeking: Option<Seeking<'_>> = None;
        for _ in 0..PLANS {
            let (to, lacks) = match self.try_rollback(order, here.clone())? {
                Tried::Done(answer) => return Ok(*answer),
                Tried::Lacks(to, lacks) => (to, lacks),
            };
            let seeking = match &mut seeking {
                Some(seeking) => seeking,
                none => none.insert(Seeking::begin(self, !order.dry_run)?),
            };
            here.extend(seeking.find(&lacks)?);
            let gone = lacks.into_iter().filter(|lack| !here.contains_key(&lack.digest));
            let mut gone: Vec<_> = gone.map(|lack| lack.path).collect();
            if !gone.is_empty() {
                gone.sort();
                let (kept, asked) = (self.retain.status(), seeking.asked.said());
                let what = gone_text(&self.config.name, to, &gone, &kept, &asked);
                return Err(Error::new(Class::Refused, what));
            }
        }
        let what = "somebody wrote all the while, so that always something else was needed; nothing was changed, try again";
        Err(Error::new(Class::Transient, what))
    }

    fn try_rollback(&self, order: &RollbackOrder, sought: HashMap<Digest, NodeId>) -> Result<Tried> {
        let order = order.clone();
        have_done(&self.orders, |reply| {
            Order::Job(Box::new(move |open| match open {
                Some((engine, s)) => engine.roll_back(s, &order, sought, &reply),
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
