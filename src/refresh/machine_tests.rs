use std::collections::BTreeSet;

use proptest::prelude::*;

use super::changed::Changed;
use super::machine::{Forced, Job, Machine, Next, Now, Order, Rule, Verify};
use super::saved::Saved;
use crate::config::OnFailure;
use crate::model::{GenId, RefreshState, TreePath};
use crate::plan::Filter;

fn id(number: u64) -> GenId {
    GenId { epoch: 1, number }
}

fn now(ms: u64) -> Now {
    Now { boot: 1000 + ms, wall: 1_000_000 + i64::try_from(ms).unwrap() }
}

fn rule(name: &str, when: &[&str]) -> Rule {
    let filter = || Filter::new(when.iter().map(|line| (*line).to_owned()).collect()).unwrap();
    Rule {
        name: name.into(),
        print: name.into(),
        when: (!when.is_empty()).then(filter),
        min_interval: 0,
        retry_max: 8000,
        verify: None,
    }
}

fn verified(name: &str, on_failure: OnFailure, refreshes: u64) -> Rule {
    let verify = Some(Verify { within: 1000, on_failure, refreshes });
    Rule { verify, ..rule(name, &[]) }
}

fn paths(list: &[&str]) -> Changed {
    Changed::Paths(list.iter().map(|path| TreePath::new(path.as_bytes()).unwrap()).collect())
}

fn machine(rules: Vec<Rule>) -> Machine {
    Machine::new(rules, Saved::default(), now(0), 7)
}

#[track_caller]
fn runs(machine: &mut Machine, at: u64) -> Order {
    match machine.next(now(at)) {
        Next::Run(order) => order,
        wait => panic!("{wait:?}"),
    }
}

/// Milliseconds of the wait.
#[track_caller]
fn waits(machine: &mut Machine, at: u64) -> u64 {
    match machine.next(now(at)) {
        Next::Wait(Some(until)) => until - now(at).boot,
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn rests(machine: &mut Machine, at: u64) {
    assert!(matches!(machine.next(now(at)), Next::Wait(None)));
}

fn bad() -> Result<(), String> {
    Err("no".into())
}

#[test]
fn rules_are_told_in_their_order_and_then_asked_in_it() {
    let mut m =
        machine(vec![verified("a", OnFailure::Alert, 0), rule("b", &["*.car"]), rule("c", &["*.war"])]);
    m.applied(id(1), paths(&["x.car", "y"]));
    assert!(m.is_open() && m.saved().refreshed.is_none());
    let mut seen = Vec::new();
    for _ in 0..3 {
        let order = runs(&mut m, 0);
        rests(&mut m, 0);
        seen.push((order.rule, order.job, order.changed));
        m.finished(order.id, Ok(()), now(0));
        let told = seen.len() >= 2;
        assert_eq!(m.saved().refreshed, told.then_some(id(1)));
    }
    let all = paths(&["x.car", "y"]);
    assert_eq!(seen, [(0, Job::Tell, all.clone()), (1, Job::Tell, paths(&["x.car"])), (0, Job::Ask, all)]);
    assert!(!m.is_open());
    assert_eq!((m.saved().verified, m.saved().complete), (Some(id(1)), Some(id(1))));
}

#[test]
fn what_no_rule_means_is_complete_at_once() {
    let mut m = machine(vec![rule("a", &["*.car"])]);
    m.applied(id(1), paths(&["x.war"]));
    assert!(!m.is_open());
    assert_eq!((m.saved().refreshed, m.saved().complete), (Some(id(1)), Some(id(1))));
    m.applied(id(2), Changed::Everything);
    assert!(m.is_open());
    assert_eq!(m.saved().complete, Some(id(1)));
}

#[test]
fn a_failure_stops_the_rules_after_it_and_is_retried_ever_more_slowly() {
    let mut m = machine(vec![rule("a", &[]), rule("b", &[]), rule("c", &[])]);
    m.applied(id(1), paths(&["x"]));
    let order = runs(&mut m, 0);
    m.finished(order.id, Ok(()), now(0));
    let (mut at, mut last) = (0, 0);
    for expected in [1000, 2000, 4000, 8000, 8000] {
        let order = runs(&mut m, at);
        assert_eq!(order.rule, 1, "what is done is not done again");
        m.finished(order.id, bad(), now(at));
        let wait = waits(&mut m, at);
        assert!((expected * 4 / 5..=expected).contains(&wait), "{wait}, not {expected}");
        last = at;
        at += wait;
    }
    let status = m.status(now(at).boot);
    assert_eq!(
        (status.state, status.action.as_deref(), status.attempts),
        (RefreshState::Failing, Some("b"), 5)
    );
    let error = status.error.unwrap();
    assert_eq!((error.what.as_str(), error.for_ms), ("b: no", at), "since the first failure");
    assert!(last > 0);
    for _ in 0..2 {
        let order = runs(&mut m, at);
        m.finished(order.id, Ok(()), now(at));
    }
    assert!(!m.is_open());
    assert_eq!(m.status(now(at).boot), Default::default());
}

#[test]
fn a_newer_generation_does_not_wait_for_the_retry_of_an_older_one() {
    let mut m = machine(vec![rule("a", &["*.car"]), rule("b", &[])]);
    m.applied(id(1), paths(&["x.car"]));
    let order = runs(&mut m, 0);
    m.finished(order.id, bad(), now(0));
    assert!(waits(&mut m, 0) > 500);
    m.applied(id(2), paths(&["y"]));
    let order = runs(&mut m, 0);
    assert_eq!(
        (order.rule, order.generation, order.changed),
        (0, id(2), paths(&["x.car"])),
        "the union counts"
    );
}

#[test]
fn an_attempt_that_a_change_overtakes_counts_for_nothing() {
    let mut m = machine(vec![rule("a", &[])]);
    m.applied(id(1), paths(&["x"]));
    let early = runs(&mut m, 0);
    m.expect(id(2));
    m.applied(id(2), paths(&["y"]));
    rests(&mut m, 0);
    m.finished(early.id, Ok(()), now(5));
    assert_eq!(m.saved().refreshed, None);
    let order = runs(&mut m, 5);
    assert_eq!((order.generation, &order.changed), (id(2), &paths(&["x", "y"])));
    m.finished(order.id, Ok(()), now(6));
    assert_eq!((m.is_open(), m.saved().complete), (false, Some(id(2))));
}

#[test]
fn nothing_begins_while_a_change_is_put_in_place() {
    let mut m = machine(vec![rule("a", &[])]);
    m.applied(id(1), paths(&["x"]));
    m.expect(id(2));
    rests(&mut m, 0);
    assert!(m.is_open() && m.force(false).is_err() && m.force(true).is_err());
    m.unchanged();
    let order = runs(&mut m, 0);
    m.expect(id(2));
    m.unchanged();
    m.finished(order.id, Ok(()), now(0));
    assert_eq!((m.is_open(), m.saved().complete), (false, Some(id(1))), "nothing changed since it began");
}

#[test]
fn after_a_crash_in_a_change_anything_may_have_changed() {
    let mut m = machine(vec![rule("a", &["*.car"])]);
    m.applied(id(1), paths(&["x"]));
    m.expect(id(2));
    let mut m = Machine::new(vec![rule("a", &["*.car"])], m.saved().clone(), now(9), 7);
    assert!(m.is_open());
    rests(&mut m, 9);
    m.expect(id(2));
    m.unchanged();
    assert!(m.is_open(), "the older expectation is not taken back by this");
    m.applied(id(1), paths(&[]));
    assert_eq!(runs(&mut m, 9).changed, Changed::Everything);
}

#[test]
fn a_rule_begins_no_more_often_than_its_interval_also_after_a_restart() {
    let slow = || vec![Rule { min_interval: 5000, ..rule("a", &[]) }];
    let mut m = machine(slow());
    for number in 1..3 {
        m.applied(id(number), paths(&["x"]));
        let at = number * 10_000;
        let order = runs(&mut m, at);
        m.finished(order.id, Ok(()), now(at));
    }
    m.applied(id(3), paths(&["x"]));
    assert_eq!(waits(&mut m, 21_000), 4000);
    assert_eq!(m.status(now(21_000).boot).state, RefreshState::Waiting);
    let mut m = Machine::new(slow(), m.saved().clone(), now(22_000), 7);
    assert_eq!(waits(&mut m, 22_000), 3000);
    assert_eq!(m.force(false), Ok(Forced::Begun));
    runs(&mut m, 22_000);
}

/// Asks until that has failed; gives how often, and the time.
fn asked(m: &mut Machine, mut at: u64) -> (u32, u64) {
    let mut count = 0;
    loop {
        match m.next(now(at)) {
            Next::Run(order) if order.job == Job::Ask => {
                count += 1;
                assert_eq!(m.finished(order.id, bad(), now(at)), None);
                if m.status(now(at).boot).error.is_some() {
                    return (count, at);
                }
            }
            Next::Wait(Some(until)) => at = until - 1000,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_server_that_does_not_agree_is_told_again_so_often_and_then_slowly() {
    let mut m = machine(vec![verified("a", OnFailure::Refresh, 2)]);
    m.applied(id(1), paths(&["x"]));
    let mut at = 0;
    for round in 0..5 {
        let order = runs(&mut m, at);
        assert_eq!(order.job, Job::Tell);
        m.finished(order.id, Ok(()), now(at));
        m.forget_fault();
        let (count, end) = asked(&mut m, at);
        assert_eq!(end - at, 1000, "it was asked for so long");
        assert!(count >= 3, "again and again");
        let state = m.status(now(end).boot).state;
        at = end;
        if round < 2 {
            assert_ne!(state, RefreshState::VerifyFailed, "round {round}");
        } else {
            assert_eq!(state, RefreshState::VerifyFailed, "round {round}");
            at += waits(&mut m, at);
            assert!(at - end > 6000);
        }
    }
    assert_eq!((m.saved().refreshed, m.saved().verified), (Some(id(1)), None));
    for job in [Job::Tell, Job::Ask] {
        let order = runs(&mut m, at);
        assert_eq!(order.job, job);
        m.finished(order.id, Ok(()), now(at));
    }
    assert_eq!((m.is_open(), m.saved().verified), (false, Some(id(1))));
}

#[test]
fn an_alert_asks_now_and_then_and_heals_without_telling_again() {
    let mut m = machine(vec![verified("a", OnFailure::Alert, 0)]);
    m.applied(id(1), paths(&["x"]));
    let order = runs(&mut m, 0);
    m.finished(order.id, Ok(()), now(0));
    let (_, mut at) = asked(&mut m, 0);
    for _ in 0..3 {
        assert_eq!(m.status(now(at).boot).state, RefreshState::VerifyFailed);
        at += waits(&mut m, at);
        let order = runs(&mut m, at);
        assert_eq!(order.job, Job::Ask);
        m.finished(order.id, bad(), now(at));
    }
    let mut m = Machine::new(vec![verified("a", OnFailure::Alert, 0)], m.saved().clone(), now(at), 7);
    assert_eq!(m.status(now(at).boot).state, RefreshState::VerifyFailed, "also after a restart");
    let order = runs(&mut m, at);
    assert_eq!(order.job, Job::Ask);
    m.finished(order.id, Ok(()), now(at));
    assert!(!m.is_open());
}

#[test]
fn a_node_is_rolled_back_once_for_each_generation() {
    let mut m = machine(vec![Rule { retry_max: 1, ..verified("a", OnFailure::Rollback, 0) }]);
    let mut orders = Vec::new();
    for (number, base) in [(1, 0), (1, 100_000), (2, 200_000)] {
        m.applied(id(number), paths(&["x"]));
        let order = runs(&mut m, base);
        m.finished(order.id, Ok(()), now(base));
        for step in 0..5 {
            let order = runs(&mut m, base + step * 2000);
            orders.extend(m.finished(order.id, bad(), now(base + step * 2000)));
        }
    }
    assert_eq!(orders, [id(1), id(2)]);
}

#[test]
fn what_was_gone_back_from_is_gone_back_from_again_when_it_is_in_place_again() {
    let mut m = machine(vec![Rule { retry_max: 1, ..verified("a", OnFailure::Rollback, 0) }]);
    let mut orders = Vec::new();
    for (number, base) in [(2, 0), (1, 100_000), (2, 200_000)] {
        m.applied(id(number), paths(&["x"]));
        assert_eq!(m.rolls_back(), None);
        for (result, after) in [(Ok(()), 0), (bad(), 0), (bad(), 2000)] {
            let order = runs(&mut m, base + after);
            orders.extend(m.finished(order.id, result, now(base + after)));
        }
        assert_eq!(m.rolls_back(), Some(id(number)), "also for who asks later");
    }
    assert_eq!(orders, [id(2), id(1), id(2)]);
    assert_eq!(m.force(true), Ok(Forced::Begun));
    assert_eq!(m.rolls_back(), None);
}

#[test]
fn by_order_a_server_that_did_not_agree_is_told_again() {
    let mut m = machine(vec![verified("a", OnFailure::Alert, 0)]);
    assert_eq!(m.force(true), Err("no generation is in place yet"));
    m.applied(id(1), paths(&["x"]));
    let order = runs(&mut m, 0);
    m.finished(order.id, Ok(()), now(0));
    let (_, at) = asked(&mut m, 0);
    assert_eq!(m.force(false), Ok(Forced::Begun));
    for job in [Job::Tell, Job::Ask] {
        let order = runs(&mut m, at);
        assert_eq!(order.job, job);
        m.finished(order.id, Ok(()), now(at));
    }
    assert_eq!(m.force(false), Ok(Forced::Nothing));
    assert_eq!(m.force(true), Ok(Forced::Begun));
    assert_eq!(runs(&mut m, at).changed, Changed::Everything);
}

#[test]
fn a_rule_that_was_changed_is_carried_out_again() {
    let mut m = machine(vec![rule("a", &[]), rule("b", &[])]);
    m.applied(id(1), paths(&["x"]));
    let order = runs(&mut m, 0);
    m.finished(order.id, Ok(()), now(0));
    let saved = m.saved().clone();
    let mut same = Machine::new(vec![rule("a", &[]), rule("b", &[])], saved.clone(), now(0), 7);
    assert_eq!(runs(&mut same, 0).rule, 1);
    let other = Rule { print: "other".into(), ..rule("a", &[]) };
    let mut changed = Machine::new(vec![other, rule("b", &[])], saved.clone(), now(0), 7);
    assert_eq!(runs(&mut changed, 0).rule, 0);
    let mut gone = Machine::new(Vec::new(), saved, now(0), 7);
    rests(&mut gone, 0);
    assert_eq!((gone.is_open(), gone.saved().complete), (false, Some(id(1))));
}

#[derive(Clone, Debug)]
enum Op {
    Expect,
    Unchanged { persisted: bool },
    Applied { changed: usize, again: bool },
    Work { begin: bool, good: bool, persisted: bool },
    Pass(u64),
    Force(bool),
    Crash,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        2 => Just(Op::Expect),
        1 => any::<bool>().prop_map(|persisted| Op::Unchanged { persisted }),
        3 => (0..5usize, any::<bool>()).prop_map(|(changed, again)| Op::Applied { changed, again }),
        8 => any::<(bool, bool, bool)>().prop_map(|(begin, good, persisted)| Op::Work { begin, good, persisted }),
        3 => (0..9000u64).prop_map(Op::Pass),
        1 => any::<bool>().prop_map(Op::Force),
        1 => Just(Op::Crash),
    ]
}

/// A server and an agent around the machine, with a record of what really happened, in order.
struct World {
    machine: Machine,
    disk: String,
    rules: Vec<Rule>,
    at: u64,
    step: u64,
    running: Option<(Order, u64)>,
    generation: u64,
    /// When files changed last, by step; an expectation that is open, before it.
    changed: u64,
    expecting: bool,
    unsure: bool,
    required: BTreeSet<usize>,
    told: [u64; 3],
    asked: [u64; 3],
}

impl World {
    fn new() -> Self {
        let refresh = Rule { min_interval: 500, ..verified("b", OnFailure::Refresh, 1) };
        let alert = Rule { when: rule("", &["*.car"]).when, ..verified("c", OnFailure::Alert, 0) };
        let rules = vec![rule("a", &["*.war", "*.car"]), refresh, alert];
        let machine = machine(rules.clone());
        let disk = serde_json::to_string(machine.saved()).unwrap();
        let (told, asked) = ([0; 3], [0; 3]);
        let (step, at, generation, changed) = (1, 0, 0, 0);
        let (running, required) = (None, BTreeSet::new());
        Self {
            machine,
            disk,
            rules,
            at,
            step,
            running,
            generation,
            changed,
            expecting: false,
            unsure: false,
            required,
            told,
            asked,
        }
    }

    fn persist(&mut self) {
        self.disk = serde_json::to_string(self.machine.saved()).unwrap();
    }

    fn begin(&mut self) {
        if self.running.is_none()
            && let Next::Run(order) = self.machine.next(now(self.at))
        {
            assert!(!self.expecting && !self.unsure, "half a change is told");
            self.step += 1;
            self.running = Some((order, self.step));
        }
    }

    fn end(&mut self, good: bool) {
        let Some((order, began)) = self.running.take() else { return };
        if good {
            let log = if order.job == Job::Tell { &mut self.told } else { &mut self.asked };
            log[order.rule] = began;
        }
        self.machine.finished(order.id, if good { Ok(()) } else { bad() }, now(self.at));
    }

    fn apply(&mut self, changed: usize, again: bool) {
        let changed = match changed {
            4 => Changed::Everything,
            n => paths([&["x.car"][..], &["y.war"], &["z"], &["y.war", "x.car"]][n]),
        };
        self.generation += u64::from(!again || self.generation == 0);
        self.machine.applied(id(self.generation), changed.clone());
        self.persist();
        self.step += 1;
        self.changed = self.step;
        let real = if self.unsure { Changed::Everything } else { changed };
        let concerned = |(i, rule): (usize, &Rule)| real.concerns(rule.when.as_ref()).then_some(i);
        self.required.extend(self.rules.iter().enumerate().filter_map(concerned));
        (self.expecting, self.unsure) = (false, false);
    }

    fn take(&mut self, op: &Op) {
        match *op {
            Op::Expect => {
                self.machine.expect(id(self.generation + 1));
                self.persist();
                self.expecting = true;
            }
            Op::Unchanged { persisted } => {
                self.machine.unchanged();
                self.expecting = false;
                if persisted {
                    self.persist();
                }
            }
            Op::Applied { changed, again } => self.apply(changed, again),
            Op::Work { begin, good, persisted } => {
                if begin {
                    self.begin();
                } else {
                    self.end(good);
                }
                if persisted {
                    self.persist();
                }
            }
            Op::Pass(ms) => self.at += ms,
            Op::Force(all) => {
                let _ = self.machine.force(all);
            }
            Op::Crash => {
                self.unsure |= self.expecting;
                self.expecting = false;
                self.running = None;
                let saved = serde_json::from_str(&self.disk).unwrap();
                self.machine = Machine::new(self.rules.clone(), saved, now(self.at), self.at);
            }
        }
    }

    /// What the machine says is true.
    fn check(&mut self) -> Result<(), TestCaseError> {
        if self.machine.is_open() {
            return Ok(());
        }
        prop_assert!(!self.expecting && !self.unsure);
        let complete = self.machine.saved().complete;
        prop_assert_eq!(complete, (self.generation > 0).then(|| id(self.generation)));
        for rule in std::mem::take(&mut self.required) {
            prop_assert!(self.told[rule] > self.changed, "rule {} was not told", rule);
            if self.rules[rule].verify.is_some() {
                prop_assert!(self.asked[rule] > self.told[rule], "rule {} did not agree", rule);
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]
    #[test]
    fn nothing_is_complete_that_the_server_was_not_told_of(ops in prop::collection::vec(op(), 1..60)) {
        let mut world = World::new();
        for op in &ops {
            world.take(op);
            world.check()?;
        }
        // and when all goes well, it becomes complete
        let saved = world.machine.saved();
        if saved.expecting.is_some() || saved.unsure {
            world.apply(2, false);
        }
        for _ in 0..40 {
            world.end(true);
            world.check()?;
            world.at += 10_000;
            world.begin();
        }
        prop_assert!(!world.machine.is_open(), "{:?}", world.machine.saved());
    }
}
