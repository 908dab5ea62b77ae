//! A run has ended: what came of it is said and written down.

use std::time::Duration;

use super::super::MirrorTree;
use super::super::engine::{Engine, Session};
use super::monitor::Took;
use crate::agent::apply::Outcome;
use crate::agent::history::Applied;
use crate::disk::{boot_ms, wall_ms};
use crate::error::{Class, Error, Result};
use crate::lag::Lag;
use crate::model::{Digest, GenId, Generation, State, counted_as};

/// What only older generations had goes after so many.
const SWEEP_EVERY: u64 = 64;

impl Engine {
    pub(super) fn finish(
        &mut self,
        s: &mut Session,
        newest: &Generation,
        outcome: Outcome,
        (took, wanted): (Took, Digest),
        is_new: bool,
        drifted: u64,
    ) -> Result<()> {
        let tree = self.tree.clone();
        if let Some(root) = &outcome.root {
            s.scanned.root = root.clone();
        }
        s.scanned.files = newest.files;
        s.scanned.entries = s.scanned.entries.max(newest.files);
        tree.shared().plan = None;
        if !outcome.mismatched.is_empty() {
            tree.shared().suspects = outcome.mismatched.clone();
            tree.news.notify_one();
        }
        let failed = outcome.errors.len() as u64 + outcome.vanished;
        if failed > 0 {
            let persisted = s.control.marker()?.and_then(|m| m.applied).and_then(|a| a.generation);
            {
                let mut shared = tree.shared();
                shared.applied = persisted.map(|(id, _)| id);
                shared.complete = shared.complete.min(shared.applied);
            }
            let first = outcome.errors.first().map(|e| format!("{}: {}", e.path, e.error));
            let first = first.unwrap_or_else(|| "the source does not have their content any more".into());
            let what = format!(
                "generation {}: {} not in place: {first}",
                newest.id,
                counted_as(failed, "path", ("is", "are"))
            );
            s.retry(&Error::new(Class::Transient, what.clone()), newest.id);
            self.trouble(State::Incomplete, what);
            return Ok(());
        }
        if s.scanned.root.object == wanted {
            s.settle(newest);
            // what was seen before and during the commit was looked at, but for what is still to be
            tree.shared().unjudged = Self::is_dirty(s);
        } else {
            // somebody wrote into it during the commit: looked at as drift
            tree.shared().unjudged = true;
            s.retry(&Error::new(Class::Transient, "the tree changed during the commit"), newest.id);
        }
        {
            let mut shared = tree.shared();
            shared.files = newest.files;
            shared.content = Some(outcome.content);
            shared.drift = 0;
            shared.is_mended(newest.id);
            shared.trouble.clear();
        }
        tree.mark_applied(newest);
        self.tell(newest.id, is_new)?;
        if !tree.is_refreshing() {
            tree.shared().told();
            tree.news.notify_one();
        }
        tree.is_past(newest.id);
        tree.enter(State::Current);
        tree.remember(s, newest, &took, is_new);
        if newest.id.number.is_multiple_of(SWEEP_EVERY) {
            self.sweep(s, newest);
        }
        let t = &outcome.tally;
        if is_new || drifted > 0 {
            tracing::info!(
                tree = tree.name(),
                generation = %newest.id,
                files = outcome.copied.0,
                bytes = outcome.copied.1,
                moved = t.moved,
                deleted = t.deleted,
                fetch_ms = ms(took.fetch),
                plan_ms = ms(took.plan),
                stage_ms = ms(took.stage),
                commit_ms = ms(took.commit),
                rest_ms = ms(took.rest),
                drift = drifted + outcome.drift.len() as u64,
                "{}",
                if is_new { "applied" } else { "drift put back; what was there is in the trash" }
            );
        }
        Ok(())
    }

    /// Forgets the directories that only older generations had.
    fn sweep(&self, s: &Session, newest: &Generation) {
        let described = s.scanned.root.object;
        // what the node may have to go back to
        let before = self.tree.refresher.get().and_then(|_| self.tree.happened.complete_before(newest));
        let before = before.into_iter().map(|before| before.root.object);
        let roots: Vec<Digest> = before.chain([newest.root.object, described]).collect();
        if let Err(e) = s.store.sweep(&roots) {
            tracing::warn!(tree = self.tree.name(), "{e}");
        }
    }
}

impl MirrorTree {
    /// Writes down what was applied, and which commit did it.
    fn remember(&self, s: &Session, generation: &Generation, took: &Took, is_new: bool) {
        if let Ok(Some(marker)) = s.control.marker() {
            self.happened.commit(marker.seq, generation.id);
        }
        // when it came first is what counts
        let again = self.shared().gone_back().is_some_and(|back| back.to.id == generation.id);
        if is_new && !again {
            let converged = self.shared().converged_last.filter(|(id, _)| *id == generation.id);
            let all = took.fetch + took.plan + took.stage + took.commit;
            self.happened.applied(&Applied {
                generation: generation.clone(),
                at_ms: wall_ms(),
                took_ms: u64::try_from(all.as_millis()).unwrap_or(u64::MAX),
                converged_ms: converged.map(|(_, ms)| ms),
            });
        }
    }

    /// A generation is completely in place.
    pub(in crate::agent::mirror) fn mark_applied(&self, generation: &Generation) {
        let now = boot_ms();
        let mut shared = self.shared();
        shared.empty = Some(false);
        if shared.applied == Some(generation.id) {
            return;
        }
        let age = shared.lag.lag_ms(now).unwrap_or(0);
        shared.applied = Some(generation.id);
        shared.applied_object = Some(generation.root.object);
        if shared.complete > shared.applied {
            // it went back, and begins to count anew
            shared.complete = shared.applied;
            shared.lag = Lag::default();
            let _ = shared.lag.applied(generation.id, now);
            self.again.notify_one();
        }
        shared.forgive(now);
        shared.recent.push(generation, now as i64 - age as i64);
        drop(shared);
        // where a server is told, it must have it, too
        if self.refresher.get().is_none() {
            self.mark_complete(|| Some(generation.id));
        }
    }

    /// A generation is in place, and the local server has it where one is told. Which one is asked for under the lock: of two
    /// threads that tell of it at once the later one must not say what was true before.
    pub(in crate::agent::mirror) fn mark_complete(&self, id: impl FnOnce() -> Option<GenId>) {
        let now = boot_ms();
        let mut shared = self.shared();
        // what it went back from is not here any more
        let id = id().min(shared.applied);
        let Some(id) = id.filter(|_| shared.complete != id) else { return };
        shared.complete = Some(id);
        shared.behind = shared.newest.as_ref().map(|n| shared.ahead_of_complete(n.id));
        if let Some(took) = shared.lag.applied(id, now) {
            shared.history.add(id, took, now);
            shared.converged.push((id, took));
            shared.converged_last = Some((id, took));
        }
        drop(shared);
        self.news.notify_one();
    }
}

/// Milliseconds, to the tenth.
fn ms(d: Duration) -> f64 {
    (d.as_secs_f64() * 10_000.0).round() / 10.0
}
