//! What a newer change overtook before it was complete. With changes that come faster than the server takes them up nothing
//! else would ever be complete: all that is told or asked is overtaken before it ends.
//!
//! The newest generation comes first, also here: what is told is what is in place, and that counts for what was overtaken as
//! well, since all of that, or newer, was in place when the telling began. Only when the newest one is overtaken in its turn
//! is what was overtaken brought to its end before anything else: what it still lacks is told, and the server is asked
//! for what it was told last. So a server that takes up every change late is seen to take them up, and one that never does is
//! found out, however often something changes.

use std::collections::BTreeMap;

use super::super::changed::Changed;
use super::super::saved::{Pending, Progress};
use super::{Job, Machine, Now};
use crate::config::OnFailure;
use crate::model::GenId;

/// A generation that was in place and is not complete, while a newer one is pending.
pub(super) struct Overtaken {
    generation: GenId,
    /// The rules that it concerns.
    rules: Vec<usize>,
    done: BTreeMap<usize, Progress>,
    /// What changed after it.
    newer: Changed,
    /// How often a newer generation came since.
    times: u32,
}

impl Overtaken {
    fn lacks(&self, rule: usize, of: fn(&Progress) -> bool) -> bool {
        !self.done.get(&rule).is_some_and(of)
    }
}

impl Machine {
    /// `generation` comes into place while `pending` is not complete. Says whether what is asked goes on to be asked.
    pub(super) fn overtake(
        &mut self,
        pending: Option<&Pending>,
        generation: GenId,
        changed: &Changed,
    ) -> bool {
        let Some(pending) = pending.filter(|pending| pending.generation < generation) else {
            // it went back, or what is in place was put right: whatever the server read was not that
            self.overtaken = None;
            if let Some(running) = &mut self.running {
                running.counts_before = false;
            }
            return false;
        };
        if let Some(overtaken) = &mut self.overtaken {
            overtaken.newer = std::mem::take(&mut overtaken.newer).union(changed.clone());
            overtaken.times = overtaken.times.saturating_add(1);
            // a failure to tell is not waited out by what is newer
            return overtaken.times > 2 && self.failures == 0;
        }
        let under_way = self.running.as_ref().is_some_and(|running| running.counts);
        let failed = pending.done.values().any(|done| done.verify_failed);
        if let Some(running) = &mut self.running {
            running.counts_before = running.counts;
        }
        if !failed && (under_way || pending.done.values().any(|done| done.told)) {
            let concerns = |rule: &usize| {
                let rule = &self.rules[*rule];
                pending.changed.concerns(rule.when.as_ref()) || self.saved.unasked.contains(&rule.name)
            };
            let rules: Vec<usize> = (0..self.rules.len()).filter(concerns).collect();
            let done = rules.iter().filter_map(|rule| {
                let done = pending.done.get(&self.rules[*rule].name)?;
                Some((*rule, done.clone()))
            });
            let done = done.collect();
            let (generation, newer) = (pending.generation, changed.clone());
            self.overtaken = Some(Overtaken { generation, rules, done, newer, times: 1 });
        }
        false
    }

    /// The first thing that is not done yet of what was overtaken, when that comes first.
    pub(super) fn overtaken_step(&self) -> Option<(usize, Job)> {
        let overtaken = self.overtaken.as_ref().filter(|overtaken| overtaken.times > 1)?;
        let rules = || overtaken.rules.iter().copied();
        let tell = rules().find(|rule| overtaken.lacks(*rule, |done| done.told));
        let ask = || {
            let mut asked = rules().filter(|rule| self.rules[*rule].verify.is_some());
            asked.find(|rule| overtaken.lacks(*rule, |done| done.verified))
        };
        tell.map(|rule| (rule, Job::Tell)).or_else(|| ask().map(|rule| (rule, Job::Ask)))
    }

    /// The generation that was in place when the server was last told successfully.
    pub(super) fn told_for(&self, rule: usize) -> Option<GenId> {
        self.overtaken.as_ref()?.done.get(&rule)?.told_for
    }

    /// `job` of `rule` succeeded, begun when all was in place that was overtaken. `generation`: what was in place then.
    pub(super) fn went_well_before(&mut self, rule: usize, job: Job, generation: GenId) {
        let Some(overtaken) = &mut self.overtaken else { return };
        let done = overtaken.done.entry(rule).or_default();
        match job {
            Job::Tell => (done.told, done.told_for) = (true, Some(generation)),
            Job::Ask => done.verified = true,
        }
    }

    /// The newest one is told again, because it did not agree; what was overtaken with it.
    pub(super) fn tell_again_before(&mut self, rule: usize) {
        if let Some(done) = self.overtaken.as_mut().and_then(|overtaken| overtaken.done.get_mut(&rule)) {
            (done.told, done.retold) = (false, done.retold.saturating_add(1));
        }
    }

    /// One answer for what was overtaken was not the right one.
    pub(super) fn disagreed_before(&mut self, rule: usize, what: String, now: Now) {
        let Some(verify) = self.rules[rule].verify.clone() else { return };
        if self.is_asked_again(verify.within, now) != Some(false) {
            return;
        }
        self.asking = None;
        self.fault(rule, Job::Ask, what, now);
        self.not_before = 0;
        let Some(overtaken) = &mut self.overtaken else { return };
        let done = overtaken.done.entry(rule).or_default();
        (done.told, done.retold) = (false, done.retold.saturating_add(1));
        if verify.on_failure == OnFailure::Refresh && done.retold <= verify.refreshes {
            return;
        }
        // that is shown until it agrees; what is in place now is told as if nothing had been before
        self.overtaken = None;
        if let Some(fault) = &mut self.saved.fault {
            fault.failed = true;
        }
    }

    /// When nothing is left to do of what was overtaken, that generation is complete.
    pub(super) fn conclude_overtaken(&mut self) {
        let Some(overtaken) = &self.overtaken else { return };
        let is_done = |rule: &usize| {
            !overtaken.lacks(*rule, |done| done.told)
                && (self.rules[*rule].verify.is_none() || !overtaken.lacks(*rule, |done| done.verified))
        };
        if !overtaken.rules.iter().all(is_done) {
            return;
        }
        let (Some(overtaken), Some(pending)) = (self.overtaken.take(), &mut self.saved.pending) else {
            return;
        };
        let generation = Some(overtaken.generation);
        pending.changed = overtaken.newer;
        // what was new to ask was asked
        let asked = |rule: usize| self.rules[rule].name.clone();
        for name in overtaken.rules.iter().copied().map(asked) {
            self.saved.unasked.remove(&name);
        }
        self.saved.refreshed = self.saved.refreshed.max(generation);
        (self.saved.verified, self.saved.complete) = (generation, generation);
        if self.saved.unasked.is_empty() {
            self.saved.asks = Some(super::questions(&self.rules));
        }
        (self.saved.attempts, self.asking) = (0, None);
        self.outcomes += 1;
        self.dirty = true;
    }
}
