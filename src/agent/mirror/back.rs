//! Going back from a generation that the local server does not see (`on-failure = "rollback"`), to the newest one before
//! it that the server had. That is an order like a pause: written down before anything happens, and as long as
//! nothing newer is heard of the engine brings that one instead, by the same steps as any other.
//!
//! What the mirror has *seen* stays the newest one: a peer that offers less is refused as ever, and a source is told that
//! this one is known. The order ends with a newer generation in place, or by an operator's order; what
//! cannot be brought back ends it, too, and is named.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::engine::{Engine, Session};
use super::{MirrorTree, Order, Shared};
use crate::agent::orders::{Orders, RolledBack};
use crate::config::{OnFailure, Refresh, Verify};
use crate::disk::wall_ms;
use crate::error::{Class, Error, PathError, Result};
use crate::model::{self, Digest, GenId, Generation, TreePath, listed};

/// What is gone is named up to so many paths.
const NAMED: usize = 3;

/// An order to go back counts only while the configuration says that a node does that.
pub(super) fn drop_unless_configured(orders: &mut Orders, rules: &[Refresh]) {
    let goes_back = |verify: &Verify| verify.on_failure == OnFailure::Rollback;
    if !rules.iter().filter_map(|rule| rule.verify.as_ref()).any(goes_back)
        && let Some(back) = &mut orders.rolled_back
    {
        back.over = true;
    }
}

impl Shared {
    /// What the tree is to be: the newest generation, or the one that it went back to.
    pub(super) fn target(&self) -> Option<Arc<Generation>> {
        let newest = self.newest.as_ref()?;
        Some(self.back().map_or_else(|| newest.clone(), |back| Arc::new(back.to.clone())))
    }

    /// The order to go back, as long as nothing newer is known.
    pub(super) fn back(&self) -> Option<&RolledBack> {
        let counts = |back: &&RolledBack| {
            !back.over && self.newest.as_ref().is_none_or(|newest| newest.id == back.from)
        };
        self.orders.rolled_back.as_ref().filter(counts)
    }

    /// The same, once it is done.
    pub(super) fn gone_back(&self) -> Option<&RolledBack> {
        self.back().filter(|back| self.applied == Some(back.to.id))
    }

    /// The newest generation that was ever seen, as far as is known, with its root object.
    pub(super) fn seen(&self) -> Option<(GenId, Digest)> {
        let newest = self.newest.as_ref().map(|g| (g.id, g.root.object));
        let applied = self.applied.zip(self.applied_object);
        let from = self.orders.rolled_back.as_ref().map(|back| (back.from, back.from_object));
        // also when this is the first question after a start
        [newest, from, applied].into_iter().flatten().max_by_key(|(id, _)| *id)
    }

    /// Why it is not, or does not go, where it should.
    pub(super) fn back_error(&self, tree: &str, now: u64) -> Option<model::Trouble> {
        let Some(back) = self.back() else { return self.stays.report(now) };
        let (from, to, why) = (back.from, back.to.id, &back.why);
        let what = match self.gone_back() {
            Some(_) => format!(
                "rolled back from generation {from}: {why}. {to} is in place again, until a newer generation comes, or \
                 `syncagent refresh {tree} --force` on this node tries {from} again"
            ),
            None => format!("is rolled back from generation {from} to {to}: {why}"),
        };
        Some(model::Trouble { what, for_ms: back.for_ms(wall_ms()) })
    }

    /// There is no reason to go back any more.
    pub(super) fn forget_stay(&mut self) {
        self.stays.clear();
        self.stays_at = None;
    }

    /// What was late before the node went back is not late any more, for there is nothing that it should have.
    pub(super) fn forgive(&mut self, now: u64) {
        if self.gone_back().is_some() {
            let late = self.lag.lag_ms(now).unwrap_or(0);
            self.deferred.began(late, now);
        }
    }
}

impl MirrorTree {
    /// The local server does not see `from`. Must not block for long.
    pub(super) fn go_back(&self, from: GenId) {
        // an engine that ended asks again when it starts
        let _ = self.orders.send(Order::Back(from));
    }

    /// Ends the order to go back: `from` is tried again.
    pub(super) fn try_newest_again(&self) -> Result<Option<GenId>> {
        let from = {
            let shared = self.shared();
            let Some(from) = shared.back().map(|back| back.from) else { return Ok(None) };
            if shared.orders.paused.is_some() {
                let name = self.name();
                let what = format!("{name} is paused on this node; first: syncagent resume {name}");
                return Err(Error::new(Class::Config, what));
            }
            from
        };
        self.end_back(from)?;
        // a run that goes back ends before it commits
        self.supersede.store(true, Ordering::Relaxed);
        let _ = self.orders.send(Order::Again);
        Ok(Some(from))
    }

    /// The order to go back from `from` counts no more. What was seen stays known.
    fn end_back(&self, from: GenId) -> Result<()> {
        self.order(|orders| {
            if let Some(back) = orders.rolled_back.as_mut().filter(|back| back.from == from) {
                back.over = true;
            }
            Ok(())
        })
    }

    /// `id` is in place: whatever was gone back from before it is history.
    pub(super) fn is_past(&self, id: GenId) {
        let past = |back: &RolledBack| id > back.from || id == back.from && back.over;
        {
            let mut shared = self.shared();
            if shared.stays_at.is_some_and(|stays| stays != id) {
                shared.forget_stay();
            }
            if !shared.orders.rolled_back.as_ref().is_some_and(past) {
                return;
            }
        }
        let forgotten = self.order(|orders| {
            orders.rolled_back.take_if(|back| past(back));
            Ok(())
        });
        if let Err(e) = forgotten {
            // it counts for nothing, and the next one forgets it
            tracing::warn!(tree = self.name(), "{e}");
        }
    }

    /// What the server had is remembered before that changes.
    pub(super) fn note_complete(&self) {
        if let Some(id) = self.refresher.get().and_then(|refresher| refresher.had()) {
            self.happened.complete(id);
        }
    }

    /// The node cannot go back from `from`, and stays there.
    fn stays(&self, from: GenId, why: &str) {
        let what = format!(
            "generation {from} cannot be rolled back on this node: {why}; it stays in place until a newer one comes"
        );
        tracing::warn!(tree = self.name(), "{what}");
        let mut shared = self.shared();
        shared.stays.set(what);
        shared.stays_at = Some(from);
        drop(shared);
        self.news.notify_one();
    }
}

impl Engine {
    /// The order to go back from `from`, which the local server does not see, if there is still a reason.
    pub(super) fn begin_back(&mut self, s: &Session, from: GenId) -> Result<()> {
        let tree = self.tree.clone();
        let Some(refresher) = tree.refresher.get() else { return Ok(()) };
        let in_place = s.control.marker()?.and_then(|m| m.applied).and_then(|a| a.generation);
        let newest = tree.shared().newest.clone();
        let newest = newest.filter(|newest| newest.id == from && in_place.map(|(id, _)| id) == Some(from));
        let Some(newest) = newest.filter(|_| refresher.rolls_back() == Some(from)) else {
            tracing::info!(tree = tree.name(), "there is no reason any more to go back from {from}");
            return Ok(());
        };
        let why = refresher.status().error.map_or_else(|| "verify failed".to_owned(), |error| error.what);
        tree.note_complete();
        let Some(to) = tree.happened.complete_before(&newest) else {
            tree.stays(from, "no generation before it is known that the server had");
            return Ok(());
        };
        tracing::warn!(tree = tree.name(), "goes back from generation {from} to {}: {why}", to.id);
        let from_object = newest.root.object;
        let back = RolledBack { from, from_object, to, why, at_ms: wall_ms(), over: false };
        tree.order(|orders| {
            orders.rolled_back = Some(back);
            Ok(())
        })?;
        Ok(())
    }

    /// `to` cannot be brought back for good: the node stays where it is. Says whether it was on its way back.
    pub(super) fn give_up_back(&mut self, to: GenId, why: &str) -> Result<bool> {
        let back = self.tree.shared().back().map(|back| (back.from, back.to.id));
        let Some((from, _)) = back.filter(|(_, going)| *going == to) else { return Ok(false) };
        self.tree.end_back(from)?;
        self.tree.stays(from, why);
        Ok(true)
    }
}

/// Why not all of `id` could be staged, for people.
pub(super) fn lacking(id: GenId, paths: &BTreeSet<TreePath>, errors: &[PathError]) -> String {
    if let Some(PathError { path, error }) = errors.first() {
        return format!("{path} of generation {id} could not be fetched: {error}");
    }
    let named = listed(paths.iter(), NAMED, ", ");
    format!(
        "neither the source (by its `keep` and `keep-bytes`) nor this node's trash has the content of generation {id} any \
         more: {named}"
    )
}
