//! What a newer change overtook before it was complete. With changes that come faster than the server takes them up nothing
//! else would ever be complete: all that is told or asked is overtaken before it ends.
//!
//! The newest generation comes first, also here: what is told is what is in place, and that counts for what was overtaken as
//! well, since all of that, or newer, was in place when the telling began. Only when the newest one is overtaken in its turn
//! is what was overtaken brought to its end before anything else: what it still lacks is told, and the server is asked
//! for what it was told last. So a server that takes up every change late is seen to take them up. When it does not agree in the
//! time that it is given, or when nothing has come for twice as long as changes took to come (then what is in place is perhaps
//! meant to mend it), the newest one is told at once and all begins anew. That it did not agree is shown then, and no verdict:
//! a server may have been ahead of the question.

use std::collections::BTreeSet;

use super::super::changed::Changed;
use super::super::saved::Pending;
use super::{Job, Machine, Now};
use crate::model::GenId;

/// A generation that was in place and is not complete, while a newer one is pending.
pub(super) struct Overtaken {
    generation: GenId,
    /// The rules that it concerns.
    rules: Vec<usize>,
    /// Who was told, and who agreed.
    told: BTreeSet<usize>,
    verified: BTreeSet<usize>,
    /// What changed after it.
    newer: Changed,
    /// How often a newer generation came since.
    times: u32,
    /// `times` as it was seen last, when that was, and how long it had taken; boot time and ms.
    noticed: (u32, u64, u64),
    /// Who agreed since it was told last.
    agreed: BTreeSet<usize>,
}

/// Changes that come more seldom than this, in ms, do not keep the newest one from being told.
const REST: u64 = 10_000;

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
            return self.failures == 0;
        }
        let under_way = self.running.as_ref().is_some_and(|running| running.counts);
        let failed = pending.done.values().any(|done| done.verify_failed);
        if let Some(running) = &mut self.running {
            running.counts_before = running.counts;
        }
        if !failed && (under_way || pending.done.values().any(|done| done.told)) {
            let rules: Vec<usize> = self.concerned_by(&pending.changed).collect();
            let done = |rule: &usize| pending.done.get(&self.rules[*rule].name);
            let told = rules.iter().copied().filter(|rule| done(rule).is_some_and(|d| d.told)).collect();
            let verified: BTreeSet<usize> =
                rules.iter().copied().filter(|rule| done(rule).is_some_and(|d| d.verified)).collect();
            self.overtaken = Some(Overtaken {
                generation: pending.generation,
                rules,
                told,
                agreed: verified.clone(),
                verified,
                newer: changed.clone(),
                times: 1,
                noticed: (0, 0, 0),
            });
        }
        false
    }

    /// The first thing that is not done yet of what was overtaken, when that comes first.
    pub(super) fn overtaken_step(&self) -> Option<(usize, Job)> {
        let overtaken = self.overtaken.as_ref().filter(|overtaken| overtaken.times > 1)?;
        self.lack_of(overtaken)
    }

    fn lack_of(&self, overtaken: &Overtaken) -> Option<(usize, Job)> {
        let told = |rule| overtaken.told.contains(&rule);
        self.first_lack(|| overtaken.rules.iter().copied(), told, |rule| overtaken.verified.contains(&rule))
    }

    /// Keeps count of how often a newer one comes.
    pub(super) fn notice(&mut self, now: Now) {
        let Some(overtaken) = &mut self.overtaken else { return };
        let (times, at, _) = overtaken.noticed;
        if times != overtaken.times {
            let took = if times == 0 { 0 } else { now.boot.saturating_sub(at) };
            overtaken.noticed = (overtaken.times, now.boot, took);
        }
    }

    /// `job` of `rule` succeeded, begun when all was in place that was overtaken.
    pub(super) fn went_well_before(&mut self, rule: usize, job: Job) {
        let Some(overtaken) = &mut self.overtaken else { return };
        match job {
            Job::Tell => {
                overtaken.told.insert(rule);
                overtaken.agreed.remove(&rule);
            }
            Job::Ask => {
                overtaken.verified.insert(rule);
                overtaken.agreed.insert(rule);
            }
        }
    }

    /// The newest one is told again, because it did not agree; what was overtaken with it.
    pub(super) fn tell_again_before(&mut self, rule: usize) {
        if let Some(overtaken) = &mut self.overtaken {
            overtaken.told.remove(&rule);
        }
    }

    /// One answer for what was overtaken was not the right one.
    pub(super) fn disagreed_before(&mut self, rule: usize, what: String, now: Now) {
        let Some(within) = self.rules[rule].verify.as_ref().map(|verify| verify.within) else { return };
        let asked_again = self.is_asked_again(within, now);
        let Some(overtaken) = &mut self.overtaken else { return };
        let (times, at, took) = overtaken.noticed;
        let rests =
            times == overtaken.times && now.boot.saturating_sub(at) >= took.saturating_mul(2).min(REST);
        match asked_again {
            // nothing is asked any more
            None => return,
            Some(true) if !rests => return,
            Some(true) => overtaken.times = 1,
            Some(false) => {
                self.overtaken = None;
                self.fault(rule, Job::Ask, what, now);
            }
        }
        (self.asking, self.not_before) = (None, 0);
    }

    /// When nothing is left to do of what was overtaken, that generation is complete.
    pub(super) fn conclude_overtaken(&mut self) {
        if self.overtaken.as_ref().is_none_or(|overtaken| self.lack_of(overtaken).is_some()) {
            return;
        }
        // there before the pending one is borrowed
        let newer: Vec<usize> = self.overtaken.iter().flat_map(|o| self.concerned_by(&o.newer)).collect();
        let (Some(overtaken), Some(pending)) = (self.overtaken.take(), &mut self.saved.pending) else {
            return;
        };
        // all of a newer one perhaps, of which every rule was told
        let told = |rule: &usize| self.saved.told.get(&self.rules[*rule].name).copied();
        let agreed = |rule: &usize| self.rules[*rule].verify.is_none() || overtaken.agreed.contains(rule);
        let last = overtaken.rules.iter().map(told).reduce(|a, b| a.filter(|_| a == b)).flatten();
        let all =
            newer.iter().all(|rule| overtaken.rules.contains(rule)) && overtaken.rules.iter().all(agreed);
        let whole = last.filter(|last| *last == overtaken.generation || all && *last < pending.generation);
        let generation = Some(whole.unwrap_or(overtaken.generation));
        self.saved.had = whole.or(self.saved.had);
        let still: BTreeSet<&String> = newer.iter().map(|rule| &self.rules[*rule].name).collect();
        self.saved.failed.retain(|rule, _| still.contains(rule));
        self.saved.disagreed.retain(|rule, _| still.contains(rule));
        self.saved.fault.take_if(|fault| !still.contains(&fault.rule));
        pending.changed = overtaken.newer;
        // what was new to ask was asked
        for rule in &overtaken.rules {
            self.saved.unasked.remove(&self.rules[*rule].name);
        }
        self.saved.refreshed = self.saved.refreshed.max(generation);
        (self.saved.verified, self.saved.complete) = (generation, generation);
        if self.saved.unasked.is_empty() {
            self.saved.asks = Some(super::questions(&self.rules));
        }
        (self.saved.attempts, self.in_attempt, self.asking) = (0, false, None);
        self.outcomes += 1;
        self.dirty = true;
    }
}
