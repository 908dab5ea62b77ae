//! One round of seeking: who offered what, who was asked for it, and when nothing more will come. No disk work.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::disk::Dir;
use crate::error::{Class, Error, Result};
use crate::model::{Digest, NodeId};
use crate::peer::{MAX_SOUGHT, Piece, Sought};

/// A mirror that was not heard for so long since the round began does not answer.
pub(super) const HEAR: Duration = Duration::from_secs(10);
/// Nor does one that fell silent, or sends nothing of what it was asked for, for so long.
pub(super) const SILENT: Duration = Duration::from_secs(30);
/// So long it may look, whatever it says.
pub(super) const SEARCH: Duration = Duration::from_secs(300);
/// Who sends is judged by its speed after so long, and must have so many bytes a second.
const JUDGED_AFTER: Duration = Duration::from_secs(60);
const SLOWEST: u64 = 8 * 1024;
/// One answer asks for so many contents, and not many more bytes, so that others have their share.
const ASKS: usize = 64;
const ASKED_BYTES: u64 = 64 << 20;
/// Bytes of paths in one part of the list.
const PAGE: usize = 1 << 20;

/// What is sought, and by whom it is answered.
pub(super) struct Round {
    pub(super) number: u64,
    /// Where contents are written to; without it only who has them is asked.
    dir: Option<Arc<Dir>>,
    pub(super) items: Vec<Item>,
    pub(super) nodes: BTreeMap<NodeId, Heard>,
    begun: Instant,
    /// Everything is offered by somebody.
    sends: bool,
    /// Counts what was asked for.
    asks: u64,
    /// Our own trouble.
    error: Option<Error>,
}

pub(super) struct Item {
    what: Sought,
    pub(super) at: At,
    /// Who has it, in the order in which they said so.
    offers: Vec<NodeId>,
    /// Who was asked, and did not send it.
    failed: BTreeSet<NodeId>,
}

pub(super) enum At {
    Nowhere,
    /// This mirror shall send it; the number tells one such request from another.
    Asked(NodeId, u64, Receiving),
    Found(NodeId),
}

pub(super) enum Receiving {
    NotYet,
    /// A piece is being written.
    Writes,
    Has(Box<Got>),
}

/// What arrived of a content.
pub(super) struct Got {
    pub(super) file: OwnedFd,
    pub(super) bytes: u64,
    pub(super) hasher: blake3::Hasher,
}

pub(super) struct Heard {
    /// It said something in this round.
    ever: bool,
    pub(super) last: Instant,
    /// It has looked for everything.
    done: bool,
    /// Since when it owes something, with the bytes that it sent since, and when it sent the last ones.
    pub(super) owes: Option<(Instant, u64, Instant)>,
}

/// What to do with a piece.
pub(super) enum Accepted {
    /// It is here already: the answer was lost.
    Known,
    Write {
        dir: Arc<Dir>,
        what: Sought,
        ask: u64,
        got: Option<Box<Got>>,
    },
}

/// How it ended with a mirror.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// It looked for everything.
    Looked,
    /// It had something, and did not send it.
    Failed,
    Silent,
}

impl Heard {
    fn new() -> Self {
        Self { ever: false, last: Instant::now(), done: false, owes: None }
    }

    fn is_silent(&self) -> bool {
        self.last.elapsed() >= if self.ever { SILENT } else { HEAR }
    }

    /// Whether what it was asked for does not come.
    fn is_stuck(&self) -> bool {
        let slow = |(since, bytes, last): (Instant, u64, Instant)| {
            let passed = since.elapsed();
            last.elapsed() >= SILENT || passed >= JUDGED_AFTER && bytes / passed.as_secs().max(1) < SLOWEST
        };
        self.is_silent() || self.owes.is_some_and(slow)
    }
}

impl Round {
    pub(super) fn new(number: u64, dir: Option<Arc<Dir>>, what: &[Sought], nodes: Vec<NodeId>) -> Self {
        let item = |what: &Sought| Item {
            what: what.clone(),
            at: At::Nowhere,
            offers: Vec::new(),
            failed: BTreeSet::new(),
        };
        Self {
            number,
            dir,
            items: what.iter().map(item).collect(),
            nodes: nodes.into_iter().map(|id| (id, Heard::new())).collect(),
            begun: Instant::now(),
            sends: false,
            asks: 0,
            error: None,
        }
    }

    fn hear(&mut self, node: &NodeId) -> &mut Heard {
        let heard = self.nodes.entry(node.clone()).or_insert_with(Heard::new);
        (heard.ever, heard.last) = (true, Instant::now());
        heard
    }

    /// A part of the list from place `from` on.
    pub(super) fn page(&mut self, node: &NodeId, from: usize) -> Vec<Sought> {
        self.hear(node);
        let mut bytes = 0;
        let more = |item: &&Item| {
            let first = bytes == 0;
            bytes += item.what.path.as_bytes().len() + 64;
            first || bytes <= PAGE
        };
        let left = self.items.get(from..).unwrap_or_default();
        left.iter().take(MAX_SOUGHT).take_while(more).map(|item| item.what.clone()).collect()
    }

    /// A mirror has these, and looks for no more when it is `done`. Gives which it shall send.
    pub(super) fn found(&mut self, node: &NodeId, found: &[u32], done: bool) -> Vec<u32> {
        self.hear(node).done |= done;
        for index in found {
            let Some(item) = self.items.get_mut(*index as usize) else { continue };
            if !item.offers.contains(node) {
                item.offers.push(node.clone());
            } else if let At::Asked(by, ..) = &item.at
                && by == node
            {
                // it did not hear that it was asked, or began anew
                item.at = At::Nowhere;
            }
        }
        self.sends |= self.items.iter().all(|item| !item.offers.is_empty());
        if self.dir.is_none() || !self.sends {
            return Vec::new();
        }
        self.ask(node)
    }

    /// What this mirror shall send next.
    fn ask(&mut self, node: &NodeId) -> Vec<u32> {
        let mut send = Vec::new();
        let mut bytes = 0;
        let owes = self.items.iter().any(|item| matches!(&item.at, At::Asked(by, ..) if by == node));
        if owes {
            // first that
            return send;
        }
        for (index, item) in (0u32..).zip(&mut self.items) {
            if send.len() >= ASKS || bytes >= ASKED_BYTES {
                break;
            }
            let can = item.offers.contains(node) && !item.failed.contains(node);
            if can && matches!(item.at, At::Nowhere) {
                self.asks += 1;
                item.at = At::Asked(node.clone(), self.asks, Receiving::NotYet);
                bytes += item.what.size;
                send.push(index);
            }
        }
        if let Some(heard) = self.nodes.get_mut(node) {
            let now = Instant::now();
            heard.owes = (!send.is_empty()).then_some((now, 0, now));
        }
        send
    }

    /// Whether a piece is what it should be.
    pub(super) fn accept(&mut self, node: &NodeId, piece: Piece, bytes: u64) -> Result<Accepted> {
        let unasked = || Error::new(Class::Permanent, "this node was not asked for that");
        self.hear(node);
        let dir = self.dir.clone().ok_or_else(unasked)?;
        let item = self.items.get_mut(piece.index as usize).ok_or_else(unasked)?;
        let size = item.what.size;
        let (ask, receiving) = match &mut item.at {
            At::Asked(by, ask, receiving) if by == node => (*ask, receiving),
            At::Found(by) if by == node => return Ok(Accepted::Known),
            _ => return Err(unasked()),
        };
        let end = piece.from.checked_add(bytes).filter(|end| bytes > 0 && *end <= size);
        let Some(end) = end else {
            self.failed(node, piece.index);
            if bytes == 0 {
                // it says that it cannot
                return Ok(Accepted::Known);
            }
            return Err(Error::new(Class::Permanent, "it is larger than what was asked for"));
        };
        let got = match std::mem::replace(receiving, Receiving::Writes) {
            Receiving::NotYet if piece.from == 0 => None,
            Receiving::Has(got) if got.bytes == piece.from => Some(got),
            // sent again, because the answer was lost
            Receiving::Has(got) if end <= got.bytes => {
                *receiving = Receiving::Has(got);
                return Ok(Accepted::Known);
            }
            other => {
                let busy = matches!(other, Receiving::Writes);
                *receiving = other;
                let class = if busy { Class::Transient } else { Class::Permanent };
                return Err(Error::new(class, "the pieces come in another order"));
            }
        };
        let what = item.what.clone();
        if let Some((_, sent, last)) = self.nodes.get_mut(node).and_then(|heard| heard.owes.as_mut()) {
            (*sent, *last) = (*sent + bytes, Instant::now());
        }
        Ok(Accepted::Write { dir, what, ask, got })
    }

    /// A piece of what was asked for as `ask` is written; `None`: it came to nothing.
    pub(super) fn wrote(&mut self, node: &NodeId, index: u32, ask: u64, got: Option<Box<Got>>) {
        let Some(item) = self.items.get_mut(index as usize) else { return };
        // somebody else may have been asked meanwhile
        if !matches!(&item.at, At::Asked(by, a, Receiving::Writes) if by == node && *a == ask) {
            return;
        }
        match got {
            Some(got) if got.bytes == item.what.size => item.at = At::Found(node.clone()),
            Some(got) => item.at = At::Asked(node.clone(), ask, Receiving::Has(got)),
            None => self.failed(node, index),
        }
    }

    fn failed(&mut self, node: &NodeId, index: u32) {
        if let Some(item) = self.items.get_mut(index as usize) {
            item.failed.insert(node.clone());
            item.at = At::Nowhere;
        }
    }

    /// Our own trouble ends it.
    pub(super) fn fail(&mut self, error: Option<Error>) {
        self.error = self.error.take().or(error);
    }

    /// Whether nothing more will come.
    pub(super) fn is_over(&mut self) -> bool {
        if self.error.is_some() {
            return true;
        }
        for item in &mut self.items {
            if let At::Asked(by, ..) = &item.at
                && self.nodes.get(by).is_none_or(Heard::is_stuck)
            {
                item.failed.insert(by.clone());
                item.at = At::Nowhere;
            }
        }
        let looks = self.begun.elapsed() < SEARCH;
        let nodes = &self.nodes;
        let awaited = nodes.values().any(|heard| looks && !heard.done && !heard.is_silent());
        if self.dir.is_none() || !self.sends {
            // nobody sends anything before everything is known to be somewhere
            return !awaited || self.items.iter().all(|item| !item.offers.is_empty());
        }
        // everything was offered: over when each is here, or nobody is left for one
        let left = |item: &Item| match &item.at {
            At::Found(_) => false,
            At::Asked(..) => true,
            At::Nowhere => {
                let can = |by: &&NodeId| {
                    !item.failed.contains(*by) && nodes.get(*by).is_some_and(|heard| !heard.is_silent())
                };
                item.offers.iter().any(|by| can(&by))
            }
        };
        let hopeless = |item: &Item| matches!(item.at, At::Nowhere) && !left(item) && !awaited;
        self.items.iter().any(hopeless)
            || !self.items.iter().any(|item| left(item) || matches!(item.at, At::Nowhere))
    }

    /// Who has, or has sent, what; and how it ended with each.
    ///
    /// # Errors
    /// Our own trouble.
    #[allow(clippy::type_complexity)]
    pub(super) fn end(self) -> Result<(HashMap<Digest, NodeId>, BTreeMap<NodeId, Ended>)> {
        if let Some(e) = self.error {
            return Err(e);
        }
        let mut failed = BTreeSet::new();
        let mut found = HashMap::new();
        for item in self.items {
            failed.extend(item.failed);
            let by = match item.at {
                At::Found(by) => Some(by),
                _ if self.dir.is_none() || !self.sends => item.offers.into_iter().next(),
                _ => None,
            };
            if let Some(by) = by {
                found.insert(item.what.digest, by);
            }
        }
        let ended = self.nodes.into_iter().map(|(node, heard)| {
            let how = match heard {
                _ if failed.contains(&node) => Ended::Failed,
                Heard { done: true, .. } => Ended::Looked,
                _ => Ended::Silent,
            };
            (node, how)
        });
        let ended = ended.collect();
        Ok((found, ended))
    }
}
