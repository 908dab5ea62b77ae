//! What is to be told to the server, and when: a pure state machine, so that every interleaving of changes,
//! outcomes and crashes can be tried. Time comes in, jobs and a value to persist come out.
//!
//! The promise: when `complete` becomes a generation, every rule that the changes up to it concern succeeded (and its
//! verify agreed) in an attempt that *began* when all of that generation, or of a newer one, was in place. So an attempt that
//! a change overtakes counts for nothing of that change, and all rules that the changes since the last completion concern
//! begin anew; for what was in place when it began it counts (`overtaken`).
//!
//! All rules are told in their order, then all are asked in their order. While a change is being put in place
//! nothing new begins: the server would be told of half a change.

mod overtaken;

use std::collections::BTreeMap;

use super::changed::Changed;
use super::saved::{Fault, Pending, Progress, Saved};
use crate::config::OnFailure;
use crate::model::{GenId, RefreshState, RefreshStatus, Trouble};
use crate::plan::Filter;
use overtaken::Overtaken;

/// The first wait after a failure, in milliseconds.
const FIRST_RETRY: u64 = 1000;
/// The first and the longest wait between two questions, in milliseconds.
const ASK_AGAIN: (u64, u64) = (200, 5000);

/// Both clocks, in milliseconds: since the boot, and (across restarts, of this host only) since 1970.
#[derive(Clone, Copy, Debug)]
pub(super) struct Now {
    pub boot: u64,
    pub wall: i64,
}

/// What the machine needs of a refresh. All durations in milliseconds.
#[derive(Clone, Debug)]
pub(super) struct Rule {
    pub name: String,
    /// Tells this configuration of the rule from others.
    pub print: String,
    pub when: Option<Filter>,
    pub min_interval: u64,
    pub retry_max: u64,
    pub verify: Option<Verify>,
}

#[derive(Clone, Debug)]
pub(super) struct Verify {
    /// Tells this question from others.
    pub print: String,
    pub within: u64,
    pub on_failure: OnFailure,
    pub refreshes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Job {
    /// The server is told.
    Tell,
    /// It is asked.
    Ask,
}

/// What is to be done now. Its end is given back with its id.
#[derive(Clone, Debug)]
pub(super) struct Order {
    pub id: u64,
    pub rule: usize,
    pub job: Job,
    pub generation: GenId,
    /// What concerns the rule.
    pub changed: Changed,
}

#[derive(Debug)]
pub(super) enum Next {
    Run(Order),
    /// Until then, by the clock since the boot; or until something comes in.
    Wait(Option<u64>),
}

/// What an operator's order came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Forced {
    /// The server has everything.
    Nothing,
    /// It is under way.
    Begun,
}

impl Rule {
    /// How far it is when nothing that concerns it has changed: it is asked, and told only when it never was.
    fn only_asked(&self, told: &BTreeMap<String, GenId>) -> Progress {
        Progress { print: self.print.clone(), told: told.contains_key(&self.name), ..Progress::default() }
    }
}

/// What each rule asks.
fn questions(rules: &[Rule]) -> BTreeMap<String, String> {
    let of = |rule: &Rule| rule.verify.as_ref().map(|verify| verify.print.clone()).unwrap_or_default();
    rules.iter().map(|rule| (rule.name.clone(), of(rule))).collect()
}

/// A question that is new in the configuration is asked before what is complete counts again; the server was told of that, so
/// it is only asked. Of a rule that is new beside others nobody knows whether it is to be told of what is there: it begins with
/// the next change.
fn note_questions(rules: &[Rule], saved: &mut Saved) {
    let now = questions(rules);
    saved.unasked.retain(|name| now.get(name).is_some_and(|asks| !asks.is_empty()));
    let (Some(before), Some(in_place)) = (&saved.asks, saved.in_place) else {
        if saved.complete.is_some() {
            saved.asks.get_or_insert(now);
        }
        return;
    };
    for rule in rules {
        let (was, is) = (before.get(&rule.name), now.get(&rule.name));
        if is.is_some_and(|asks| !asks.is_empty()) && was.is_some() && was != is {
            saved.unasked.insert(rule.name.clone());
        }
    }
    if saved.unasked.is_empty() {
        return;
    }
    saved.verified = None;
    let told = &saved.told;
    let new = || Pending { generation: in_place, changed: Changed::default(), done: BTreeMap::new() };
    let pending = saved.pending.get_or_insert_with(new);
    for rule in rules.iter().filter(|rule| saved.unasked.contains(&rule.name)) {
        if !pending.changed.concerns(rule.when.as_ref()) {
            let progress = pending.done.entry(rule.name.clone()).or_default();
            if progress.print != rule.print {
                *progress = rule.only_asked(told);
            }
        }
    }
}

struct Running {
    id: u64,
    rule: usize,
    job: Job,
    /// What the order names.
    generation: GenId,
    /// Nothing changed since it began.
    fresh: bool,
    /// And it counts for what is pending.
    counts: bool,
    /// It began when all was in place that `Machine::overtaken` is about.
    counts_before: bool,
    /// By order it is done again, and how this one ends is nobody's concern.
    void: bool,
}

/// Since when a rule is asked, and how often it was.
struct Asking {
    rule: usize,
    began: u64,
    asked: u32,
}

pub(super) struct Machine {
    rules: Vec<Rule>,
    saved: Saved,
    /// `saved` is not what was persisted last.
    dirty: bool,
    running: Option<Running>,
    asking: Option<Asking>,
    /// What a newer change overtook before it was complete.
    overtaken: Option<Overtaken>,
    next_id: u64,
    /// Nothing begins before.
    not_before: u64,
    /// Of telling, in a row.
    failures: u32,
    /// Since the clock's start.
    fault_since: u64,
    /// By rule, when it was told last.
    began: Vec<Option<u64>>,
    /// By order: minimum intervals do not count.
    urgent: bool,
    in_attempt: bool,
    /// Grows with every success and every failure that is more than one answer.
    outcomes: u64,
    random: u64,
}

impl Machine {
    /// Goes on where `saved` ends. When a change was under way then, anything may have changed.
    pub(super) fn new(rules: Vec<Rule>, mut saved: Saved, now: Now, seed: u64) -> Self {
        saved.unsure |= saved.expecting.take().is_some();
        if saved.asks.is_none() {
            // of a version that did not tell them apart
            saved.had = saved.had.or(saved.complete);
        }
        note_questions(&rules, &mut saved);
        let ago = |wall: i64| now.boot.saturating_sub(u64::try_from(now.wall - wall).unwrap_or(0));
        let began = rules.iter().map(|rule| saved.began.get(&rule.name).map(|wall| ago(*wall))).collect();
        saved.began.retain(|name, _| rules.iter().any(|rule| rule.name == *name));
        if let Some(pending) = &mut saved.pending {
            // a rule that was changed has not been carried out
            pending
                .done
                .retain(|name, done| rules.iter().any(|rule| rule.name == *name && rule.print == done.print));
        }
        let known = |fault: &Fault| {
            let asks = |rule: &Rule| !fault.asked || rule.verify.is_some();
            rules.iter().any(|rule| rule.name == fault.rule && asks(rule))
        };
        saved.fault.take_if(|fault| !known(fault));
        saved.disagreed.retain(|_, fault| known(fault));
        saved.told.retain(|name, _| rules.iter().any(|rule| rule.name == *name));
        saved.failed.retain(|name, _| rules.iter().any(|rule| rule.name == *name));
        let fault_since = saved.fault.as_ref().map_or(0, |fault| ago(fault.wall));
        Self {
            rules,
            saved,
            dirty: true,
            running: None,
            asking: None,
            overtaken: None,
            next_id: 0,
            not_before: 0,
            failures: 0,
            fault_since,
            began,
            urgent: false,
            in_attempt: false,
            outcomes: 0,
            random: seed | 1,
        }
    }

    pub(super) fn saved(&self) -> &Saved {
        &self.saved
    }

    /// Whether there is something new to persist since it was asked last.
    pub(super) fn take_dirty(&mut self) -> bool {
        std::mem::take(&mut self.dirty)
    }

    /// What was taken was not persisted.
    pub(super) fn set_dirty(&mut self) {
        self.dirty = true;
    }

    pub(super) fn outcomes(&self) -> u64 {
        self.outcomes
    }

    pub(super) fn is_open(&self) -> bool {
        self.is_held() || self.saved.pending.is_some()
    }

    /// The generation that is in place, when the node was ordered to go back from it and the server still lacks it.
    pub(super) fn rolls_back(&self) -> Option<GenId> {
        let pending = self.saved.pending.as_ref().map(|pending| pending.generation);
        self.saved.rolled_back.filter(|from| self.saved.in_place == Some(*from) && pending == Some(*from))
    }

    /// A change is under way, or was when the agent ended.
    fn is_held(&self) -> bool {
        self.saved.expecting.is_some() || self.saved.unsure
    }

    /// Files are about to change. Gives what [`Machine::unexpect`] takes when that cannot be persisted.
    pub(super) fn expect(&mut self, generation: GenId) -> Option<GenId> {
        self.dirty = true;
        self.saved.expecting.replace(generation)
    }

    pub(super) fn unexpect(&mut self, before: Option<GenId>) {
        self.saved.expecting = before;
    }

    /// The expected change did not happen.
    pub(super) fn unchanged(&mut self) {
        self.dirty = true;
        self.saved.expecting = None;
    }

    /// `generation` is in place.
    pub(super) fn applied(&mut self, generation: GenId, changed: Changed) {
        let changed = if self.saved.unsure { Changed::Everything } else { changed.bounded() };
        self.saved.expecting = None;
        self.saved.unsure = false;
        // it went back, or on: should that one ever be in place again it is by somebody's order
        self.saved.rolled_back.take_if(|from| *from != generation);
        self.saved.in_place = Some(generation);
        self.renew(generation, changed);
    }

    /// Everything that is pending begins anew, with `changed`.
    fn renew(&mut self, generation: GenId, changed: Changed) {
        self.dirty = true;
        let before = self.saved.pending.take();
        let goes_on = self.overtake(before.as_ref(), generation, &changed);
        let changed = match before {
            Some(pending) => pending.changed.union(changed),
            None => changed,
        };
        if let Some(running) = &mut self.running {
            (running.fresh, running.counts) = (false, false);
        }
        if !goes_on {
            (self.failures, self.not_before, self.asking) = (0, 0, None);
        }
        (self.in_attempt, self.urgent) = (false, false);
        let done = self.rules.iter().filter(|rule| {
            // of this one nothing changed, and it is only asked
            self.saved.unasked.contains(&rule.name) && !changed.concerns(rule.when.as_ref())
        });
        let done = done.map(|rule| (rule.name.clone(), rule.only_asked(&self.saved.told))).collect();
        self.saved.pending = Some(Pending { generation, changed, done });
        self.conclude();
    }

    /// Nothing is under way any more that could count.
    fn settle(&mut self) {
        if let Some(running) = &mut self.running {
            (running.counts, running.counts_before) = (false, false);
        }
        self.overtaken = None;
        (self.failures, self.not_before, self.asking) = (0, 0, None);
        (self.in_attempt, self.urgent) = (false, false);
    }

    /// By an operator's order: what waits is done now; with `all`, everything is done again.
    ///
    /// # Errors
    /// Why not, as a sentence.
    pub(super) fn force(&mut self, all: bool) -> Result<Forced, &'static str> {
        if self.is_held() {
            return Err("a change is just being put in place; the server is told when it is");
        }
        if all {
            let generation = self.saved.in_place.ok_or("no generation is in place yet")?;
            self.saved.rolled_back = None;
            self.renew(generation, Changed::Everything);
            if let Some(running) = &mut self.running {
                running.void = true;
            }
        }
        let Some(pending) = &mut self.saved.pending else {
            return Ok(Forced::Nothing);
        };
        for done in pending.done.values_mut().filter(|done| done.verify_failed || done.retold > 0) {
            (done.told, done.verified, done.verify_failed, done.retold) = (false, false, false, 0);
            self.asking = None;
            self.overtaken = None;
            if let Some(running) = &mut self.running {
                (running.counts, running.counts_before, running.void) = (false, false, true);
            }
        }
        (self.failures, self.not_before, self.urgent, self.dirty) = (0, 0, true, true);
        Ok(Forced::Begun)
    }

    /// What comes next at `now`; an order that is given out is under way.
    pub(super) fn next(&mut self, now: Now) -> Next {
        if self.running.is_some() || self.is_held() {
            return Next::Wait(None);
        }
        self.notice(now);
        self.conclude();
        let (Some((rule, job)), Some(pending)) = (self.step(), &self.saved.pending) else {
            return Next::Wait(None);
        };
        let its = &self.rules[rule];
        let mut at = self.not_before;
        if let (Job::Tell, false, Some(began)) = (job, self.urgent, self.began[rule]) {
            at = at.max(began.saturating_add(its.min_interval));
        }
        if at > now.boot {
            return Next::Wait(Some(at));
        }
        self.next_id += 1;
        let counts = match job {
            Job::Tell => self.is_next(rule),
            Job::Ask => self.is_told(rule),
        };
        let generation = if job == Job::Tell { pending.generation } else { self.asked_for(rule, pending) };
        let concerns = pending.changed.concerns(its.when.as_ref());
        // told again without a change, because it does not agree
        let changed =
            if concerns { pending.changed.matching(its.when.as_ref()) } else { Changed::Everything };
        let order = Order { id: self.next_id, rule, job, generation, changed };
        self.running = Some(Running {
            id: order.id,
            rule,
            job,
            generation,
            fresh: true,
            counts,
            counts_before: true,
            void: false,
        });
        if job == Job::Tell {
            self.began[rule] = Some(now.boot);
            if its.min_interval > 0 {
                self.saved.began.insert(its.name.clone(), now.wall);
            }
            self.saved.attempts += u64::from(!std::mem::replace(&mut self.in_attempt, true));
            self.dirty = true;
        } else if self.asking.as_ref().is_none_or(|asking| asking.rule != rule) {
            self.asking = Some(Asking { rule, began: now.boot, asked: 0 });
        }
        Next::Run(order)
    }

    /// Whether the end of an order will count for anything.
    pub(super) fn counts(&self, id: u64) -> bool {
        let before = |running: &Running| running.counts_before && self.overtaken.is_some();
        self.running.as_ref().is_some_and(|running| running.id == id && (running.counts || before(running)))
    }

    /// Whether something is to be asked that was never asked of what is in place.
    pub(super) fn has_new_question(&self) -> bool {
        !self.saved.unasked.is_empty()
    }

    /// An order has ended. Gives the generation that the node is to be rolled back from.
    pub(super) fn finished(&mut self, id: u64, result: Result<(), String>, now: Now) -> Option<GenId> {
        let running = self.running.take_if(|running| running.id == id)?;
        let Running { rule, job, generation, fresh, counts, counts_before, void, .. } = running;
        let counts_before = counts_before && self.overtaken.is_some();
        if !counts && !counts_before {
            if let (Job::Tell, Err(what), false) = (job, result, void) {
                self.fault(rule, job, what, now);
            }
            return None;
        }
        self.dirty = true;
        if result.is_ok() {
            if job == Job::Tell {
                self.saved.told.insert(self.rules[rule].name.clone(), generation);
            }
            if counts_before {
                self.went_well_before(rule, job);
                self.conclude_overtaken();
            }
        }
        // what had to be told before it is perhaps done by now
        let counts = counts || fresh && job == Job::Tell && self.is_next(rule);
        match (job, result) {
            (Job::Tell, Ok(())) if counts => self.told(rule),
            (Job::Tell, Ok(())) => self.well(rule, Some(Job::Tell)),
            (Job::Tell, Err(what)) if !fresh => self.fault(rule, job, what, now),
            (Job::Tell, Err(what)) => {
                self.failures = self.failures.saturating_add(1);
                let most = self.rules[rule].retry_max;
                let wait = FIRST_RETRY.saturating_mul(1 << (self.failures - 1).min(30)).min(most);
                self.not_before = now.boot.saturating_add(self.jittered(wait));
                self.fault(rule, job, what, now);
            }
            (Job::Ask, Ok(())) => {
                if let Some(done) = self.progress(rule).filter(|_| counts) {
                    (done.verified, done.verify_failed) = (true, false);
                }
                self.well(rule, None);
            }
            (Job::Ask, Err(what)) if !counts => self.disagreed_before(rule, what, now),
            (Job::Ask, Err(what)) => return self.disagreed(rule, what, now),
        }
        self.conclude();
        None
    }

    fn told(&mut self, rule: usize) {
        if let Some(done) = self.progress(rule) {
            (done.told, done.verified) = (true, false);
        }
        self.well(rule, Some(Job::Tell));
        let all = self.concerned().all(|rule| self.is_told(rule));
        if let (true, Some(pending)) = (all, &self.saved.pending) {
            self.saved.refreshed = Some(pending.generation);
        }
    }

    /// One answer was not the right one.
    fn disagreed(&mut self, rule: usize, what: String, now: Now) -> Option<GenId> {
        let generation = self.saved.pending.as_ref()?.generation;
        let (verify, slow) = (self.rules[rule].verify.clone()?, self.rules[rule].retry_max);
        let failed_before = self.done(rule).is_some_and(|done| done.verify_failed);
        let asked_slowly = failed_before && verify.on_failure != OnFailure::Refresh;
        if self.is_asked_again(verify.within, now)? && !asked_slowly {
            return None;
        }
        self.asking = None;
        self.fault(rule, Job::Ask, what, now);
        let done = self.progress(rule)?;
        if verify.on_failure == OnFailure::Refresh {
            (done.told, done.retold) = (false, done.retold.saturating_add(1));
            if done.retold <= verify.refreshes {
                self.not_before = 0;
                self.tell_again_before(rule);
                return None;
            }
        }
        self.overtaken = None;
        let done = self.progress(rule)?;
        done.verify_failed = true;
        if let Some(fault) = self.saved.fault.clone() {
            self.saved.disagreed.insert(fault.rule.clone(), fault);
        }
        self.not_before = now.boot.saturating_add(self.jittered(slow));
        // of a question that is new in the configuration nobody knows whether the server could ever answer it
        let is_new = self.saved.unasked.contains(&self.rules[rule].name);
        let roll_back =
            verify.on_failure == OnFailure::Rollback && self.saved.rolled_back != Some(generation) && !is_new;
        roll_back.then(|| *self.saved.rolled_back.insert(generation))
    }

    /// Counts a wrong answer; says whether the same is asked once more, for it is given `within` ms. Sets when.
    fn is_asked_again(&mut self, within: u64, now: Now) -> Option<bool> {
        let asking = self.asking.as_mut()?;
        asking.asked = asking.asked.saturating_add(1);
        let (until, asked) = (asking.began.saturating_add(within), asking.asked);
        if now.boot >= until {
            return Some(false);
        }
        let wait = ASK_AGAIN.0.saturating_mul(1 << (asked - 1).min(20)).min(ASK_AGAIN.1);
        // the last question comes at the very end
        self.not_before = now.boot.saturating_add(wait).min(until);
        Some(true)
    }

    /// When nothing is left to do, the pending generation is complete; when that is so of what it overtook, that one is.
    fn conclude(&mut self) {
        self.conclude_overtaken();
        if self.newest_step().is_some() {
            return;
        }
        let Some(pending) = self.saved.pending.take() else { return };
        let done = Some(pending.generation);
        (self.saved.refreshed, self.saved.verified, self.saved.complete) = (done, done, done);
        (self.saved.attempts, self.saved.fault, self.saved.had) = (0, None, done);
        self.saved.disagreed.clear();
        self.saved.failed.clear();
        self.saved.unasked.clear();
        self.saved.asks = Some(questions(&self.rules));
        self.settle();
        self.outcomes += 1;
        self.dirty = true;
    }

    /// The rules that the pending changes concern, in order.
    fn concerned(&self) -> impl Iterator<Item = usize> {
        self.saved.pending.iter().flat_map(|pending| self.concerned_by(&pending.changed))
    }

    /// The rules that `changed` concerns, or whose question is new, in order.
    fn concerned_by(&self, changed: &Changed) -> impl Iterator<Item = usize> {
        let unasked = &self.saved.unasked;
        let concerned = |rule: &Rule| changed.concerns(rule.when.as_ref()) || unasked.contains(&rule.name);
        self.rules.iter().enumerate().filter(move |(_, rule)| concerned(rule)).map(|(i, _)| i)
    }

    /// Whether `rule` was told of the newest generation.
    fn is_told(&self, rule: usize) -> bool {
        self.done(rule).is_some_and(|done| done.told)
    }

    /// Whether the newest generation was told of to all that comes before `rule`.
    fn is_next(&self, rule: usize) -> bool {
        self.concerned().take_while(|first| *first < rule).all(|first| self.is_told(first))
    }

    /// The generation that `rule` asks for: the one that it was told of. Where that is not the newest one, the server may be
    /// ahead of it, for it also looks by itself or is told by several rules; so newer ones are asked for in turn.
    fn asked_for(&self, rule: usize, pending: &Pending) -> GenId {
        let (told, name) = (&self.saved.told, &self.rules[rule].name);
        let own = told.get(name).copied().unwrap_or(pending.generation);
        if self.is_told(rule) && !self.saved.unasked.contains(name) {
            return pending.generation;
        }
        let ahead = told.values().copied().max().filter(|ahead| (own..=pending.generation).contains(ahead));
        let mut all = vec![own, ahead.unwrap_or(own), pending.generation];
        all.dedup();
        let asking = self.asking.as_ref().filter(|asking| asking.rule == rule);
        all[asking.map_or(0, |asking| asking.asked as usize) % all.len()]
    }

    /// The first thing that is not done yet.
    fn step(&self) -> Option<(usize, Job)> {
        self.overtaken_step().or_else(|| self.newest_step())
    }

    fn newest_step(&self) -> Option<(usize, Job)> {
        let agreed = |rule| self.done(rule).is_some_and(|done| done.verified);
        self.first_lack(|| self.concerned(), |rule| self.is_told(rule), agreed)
    }

    /// The first of `rules` to be told, or, when all were told, to be asked.
    fn first_lack<I: Iterator<Item = usize>>(
        &self,
        rules: impl Fn() -> I,
        told: impl Fn(usize) -> bool,
        agreed: impl Fn(usize) -> bool,
    ) -> Option<(usize, Job)> {
        let tell = rules().find(|rule| !told(*rule)).map(|rule| (rule, Job::Tell));
        let lacks = |rule: &usize| self.rules[*rule].verify.is_some() && !agreed(*rule);
        tell.or_else(|| rules().find(lacks).map(|rule| (rule, Job::Ask)))
    }

    fn done(&self, rule: usize) -> Option<&Progress> {
        self.saved.pending.as_ref()?.done.get(&self.rules[rule].name)
    }

    fn progress(&mut self, rule: usize) -> Option<&mut Progress> {
        let Rule { name, print, .. } = &self.rules[rule];
        let new = || Progress { print: print.clone(), ..Progress::default() };
        Some(self.saved.pending.as_mut()?.done.entry(name.clone()).or_insert_with(new))
    }

    /// `job` of `rule` (or all of it) succeeded: what was wrong with it is no more.
    fn well(&mut self, rule: usize, job: Option<Job>) {
        (self.failures, self.not_before, self.asking) = (0, 0, None);
        let name = &self.rules[rule].name;
        self.saved.failed.remove(name);
        let about =
            |fault: &Fault| fault.rule == *name && job.is_none_or(|job| fault.asked == (job == Job::Ask));
        self.saved.fault.take_if(|fault| about(fault));
        if job.is_none() {
            self.saved.disagreed.remove(name);
        }
    }

    fn fault(&mut self, rule: usize, job: Job, what: String, now: Now) {
        let (rule, asked) = (self.rules[rule].name.clone(), job == Job::Ask);
        let wall = match &self.saved.fault {
            Some(fault) => fault.wall,
            None => {
                self.fault_since = now.boot;
                now.wall
            }
        };
        if !asked {
            let failed = self.saved.failed.entry(rule.clone()).or_default();
            *failed = failed.saturating_add(1);
        }
        self.saved.fault = Some(Fault { rule, asked, what, wall });
        (self.in_attempt, self.urgent) = (false, false);
        self.outcomes += 1;
    }

    /// Up to a fifth less, so that nodes that failed together do not come back together.
    fn jittered(&mut self, ms: u64) -> u64 {
        // xorshift64, G. Marsaglia
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        ms - (ms / 5).saturating_mul(self.random % 1000) / 1000
    }

    #[cfg(test)]
    pub(super) fn forget_fault(&mut self) {
        self.saved.fault = None;
        self.saved.disagreed.clear();
    }

    /// What people see of it.
    pub(super) fn status(&self, now_boot: u64) -> RefreshStatus {
        if !self.is_open() {
            return RefreshStatus::default();
        }
        let step = self.running.as_ref().map(|running| (running.rule, running.job)).or_else(|| self.step());
        let fault = self.saved.fault.as_ref().or_else(|| self.saved.disagreed.values().next());
        let mut dones = self.saved.pending.iter().flat_map(|pending| pending.done.values());
        let state = if !self.saved.disagreed.is_empty() || dones.any(|done| done.verify_failed) {
            RefreshState::VerifyFailed
        } else if fault.is_some_and(|fault| !fault.asked) {
            RefreshState::Failing
        } else {
            match step {
                Some((_, Job::Tell)) if self.running.is_some() => RefreshState::Running,
                Some((_, Job::Ask)) => RefreshState::Verifying,
                _ => RefreshState::Waiting,
            }
        };
        let for_ms = now_boot.saturating_sub(self.fault_since);
        let asked = |fault: &Fault| if fault.asked { "verify: " } else { "" };
        RefreshStatus {
            state,
            action: fault.map(|f| f.rule.clone()).or_else(|| Some(self.rules[step?.0].name.clone())),
            attempts: self.saved.attempts,
            failures: self.saved.failed.values().copied().max().unwrap_or(0),
            error: fault.map(|f| Trouble { what: format!("{}: {}{}", f.rule, asked(f), f.what), for_ms }),
        }
    }
}
