use std::collections::BTreeSet;

use proptest::prelude::*;

use super::changed::Changed;
use super::machine::{Forced, Job, Machine, Next, Now, Order, Rule, Verify};
use super::saved::Saved;
use crate::config::OnFailure;
use crate::model::{GenId, RefreshState, TreePath};
use crate::plan::Filter;

pub(super) fn id(number: u64) -> GenId {
    GenId { epoch: 1, number }
}

pub(super) fn now(ms: u64) -> Now {
    Now { boot: 1000 + ms, wall: 1_000_000 + i64::try_from(ms).unwrap() }
}

pub(super) fn rule(name: &str, when: &[&str]) -> Rule {
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
    let verify = Some(Verify { print: name.into(), within: 1000, on_failure, refreshes });
    Rule { verify, ..rule(name, &[]) }
}

pub(super) fn paths(list: &[&str]) -> Changed {
    Changed::Paths(list.iter().map(|path| TreePath::new(path.as_bytes()).unwrap()).collect())
}

pub(super) fn machine(rules: Vec<Rule>) -> Machine {
    Machine::new(rules, Saved::default(), now(0), 7)
}

#[track_caller]
pub(super) fn runs(machine: &mut Machine, at: u64) -> Order {
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

pub(super) fn bad() -> Result<(), String> {
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
fn an_attempt_that_a_change_overtakes_counts_for_what_was_in_place_when_it_began() {
    let mut m = machine(vec![rule("a", &[])]);
    m.applied(id(1), paths(&["x"]));
    let early = runs(&mut m, 0);
    m.expect(id(2));
    m.applied(id(2), paths(&["y"]));
    rests(&mut m, 0);
    m.finished(early.id, Ok(()), now(5));
    assert_eq!((m.is_open(), m.saved().refreshed, m.saved().complete), (true, Some(id(1)), Some(id(1))));
    let order = runs(&mut m, 5);
    assert_eq!((order.generation, &order.changed), (id(2), &paths(&["y"])));
    m.finished(order.id, Ok(()), now(6));
    assert_eq!((m.is_open(), m.saved().complete), (false, Some(id(2))));
}

#[test]
fn an_attempt_counts_for_nothing_when_it_was_put_right_or_back_meanwhile() {
    for number in [2, 1] {
        let mut m = machine(vec![rule("a", &[])]);
        m.applied(id(2), paths(&["x"]));
        let early = runs(&mut m, 0);
        m.applied(id(number), paths(&["y"]));
        m.finished(early.id, Ok(()), now(5));
        assert_eq!((m.is_open(), m.saved().complete), (true, None), "{number}");
        let order = runs(&mut m, 5);
        assert_eq!(order.changed, paths(&["x", "y"]));
        m.finished(order.id, Ok(()), now(6));
        assert_eq!((m.is_open(), m.saved().complete), (false, Some(id(number))));
    }
}

/// A change comes every `every` ms, an order of `rules` takes `takes` ms, for 60 s; `agrees` says whether the server has
/// generation `.0`, having been told of `.1`. Gives what became complete, with when, and when it was first shown that something is wrong.
fn without_rest(
    rules: Vec<Rule>,
    every: u64,
    takes: u64,
    agrees: impl Fn(GenId, GenId) -> bool,
) -> (Vec<(u64, u64)>, Option<u64>) {
    let mut m = machine(rules);
    let (mut number, mut running): (u64, Option<(Order, u64)>) = (0, None);
    let mut told = std::collections::BTreeMap::new();
    let (mut complete, mut failed) = (Vec::new(), None);
    for at in (0..60_000).step_by(10) {
        if at % every == 0 {
            number += 1;
            m.applied(id(number), paths(&["x"]));
        }
        if let Some((order, _)) = running.take_if(|(_, until)| *until <= at) {
            let result = if order.job == Job::Tell {
                told.insert(order.rule, order.generation);
                Ok(())
            } else if agrees(order.generation, told[&order.rule]) {
                Ok(())
            } else {
                bad()
            };
            m.finished(order.id, result, now(at));
        }
        if running.is_none()
            && let Next::Run(order) = m.next(now(at))
        {
            running = Some((order, at + takes));
        }
        if let Some(done) =
            m.saved().complete.filter(|done| complete.last().map(|(n, _)| *n) != Some(done.number))
        {
            complete.push((done.number, at));
        }
        if m.status(now(at).boot).error.is_some() {
            failed.get_or_insert(at);
        }
    }
    (complete, failed)
}

#[test]
fn with_changes_that_never_rest_what_the_server_takes_up_becomes_complete() {
    let asks = |on_failure| Rule { verify: verified("a", on_failure, 3).verify, ..rule("a", &[]) };
    let several = || vec![rule("a", &[]), asks(OnFailure::Alert), rule("c", &["x"])];
    let several: Vec<Rule> = several()
        .into_iter()
        .zip(["a", "b", "c"])
        .map(|(rule, name)| Rule { name: name.into(), ..rule })
        .collect();
    for (rules, takes) in [
        (vec![rule("a", &[])], 2000),
        (vec![asks(OnFailure::Refresh)], 400),
        (vec![asks(OnFailure::Alert)], 900),
        (several, 700),
    ] {
        for every in [300, 1000, 1500] {
            // it shows what it was told of last
            let (complete, failed) = without_rest(rules.clone(), every, takes, |of, told| of == told);
            assert_eq!(failed, None);
            let gap = complete.windows(2).map(|w| w[1].1 - w[0].1).max().unwrap_or(u64::MAX);
            let steps = rules.iter().map(|rule| 1 + u64::from(rule.verify.is_some())).sum::<u64>();
            let most = 3 * steps * takes + 2 * every;
            assert!(gap <= most, "{gap} ms, more than {most} with {every}, {takes}: {complete:?}");
            // and it is not far behind
            assert!(
                complete.iter().all(|(n, at)| at.saturating_sub((n - 1) * every) <= 2 * most),
                "{complete:?}"
            );
        }
    }
}

#[test]
fn with_changes_that_never_rest_a_server_that_takes_nothing_up_is_found_out() {
    for on_failure in [OnFailure::Refresh, OnFailure::Alert, OnFailure::Rollback] {
        for every in [300, 700, 1500, 2500] {
            let rules = vec![verified("a", on_failure, 2)];
            let (complete, failed) = without_rest(rules, every, 100, |_, _| false);
            assert_eq!(complete, []);
            let failed = failed.unwrap_or(u64::MAX);
            assert!(failed < 20_000, "{on_failure:?} every {every}: {failed}");
        }
    }
}

#[test]
fn a_question_that_is_new_is_asked_before_what_is_complete_counts_again() {
    let when = |rule: Rule| Rule { when: super::machine_tests::rule("", &["*.car"]).when, ..rule };
    let mut m = machine(vec![when(rule("a", &[])), rule("b", &[])]);
    m.applied(id(1), paths(&["x.car"]));
    for _ in 0..2 {
        let order = runs(&mut m, 0);
        m.finished(order.id, Ok(()), now(0));
    }
    assert_eq!((m.is_open(), m.saved().verified), (false, Some(id(1))));
    let saved = m.saved().clone();
    let rules = || {
        let asks = Rule { print: "more".into(), ..when(verified("a", OnFailure::Refresh, 1)) };
        vec![asks, rule("b", &[])]
    };
    let m = Machine::new(rules(), saved, now(0), 7);
    assert!(m.is_open() && m.has_new_question());
    assert_eq!((m.saved().complete, m.saved().verified), (Some(id(1)), None));
    // also over a crash, and a change that does not concern it
    let mut m = Machine::new(rules(), m.saved().clone(), now(0), 7);
    m.applied(id(2), paths(&["y.war"]));
    let order = runs(&mut m, 0);
    assert_eq!((order.rule, order.job), (1, Job::Tell));
    m.finished(order.id, Ok(()), now(0));
    // it does not agree: it is told again, of everything
    let (_, at) = asked(&mut m, 0);
    let order = runs(&mut m, at);
    assert_eq!((order.rule, order.job, &order.changed), (0, Job::Tell, &Changed::Everything));
    m.finished(order.id, Ok(()), now(at));
    let order = runs(&mut m, at);
    assert_eq!((order.rule, order.job), (0, Job::Ask));
    m.finished(order.id, Ok(()), now(at));
    assert_eq!((m.is_open(), m.has_new_question(), m.saved().verified), (false, false, Some(id(2))));
    // the same again is nothing new, nor is a rule that is new, nor one that is not asked any more
    for rules in [rules(), vec![rules().remove(0)], vec![verified("z", OnFailure::Alert, 0), rule("a", &[])]]
    {
        let m = Machine::new(rules, m.saved().clone(), now(at), 7);
        assert!(!m.is_open() && !m.has_new_question());
    }
}

#[test]
fn failures_are_counted_in_a_row_and_only_such_of_telling() {
    let failures = |m: &Machine| m.status(now(0).boot).failures;
    let mut m = machine(vec![rule("z", &[]), verified("a", OnFailure::Refresh, 9)]);
    let mut at = 0;
    for round in 1..5u64 {
        // each is overtaken by a change, and the first rule succeeds
        m.applied(id(round), paths(&["x"]));
        let order = runs(&mut m, at);
        let order = if order.rule == 0 {
            m.finished(order.id, Ok(()), now(at));
            runs(&mut m, at)
        } else {
            order
        };
        assert_eq!((order.rule, failures(&m)), (1, round - 1), "what has only begun has not failed");
        m.finished(order.id, bad(), now(at));
        assert_eq!(failures(&m), round);
        at += 10_000;
    }
    while m.status(now(at).boot).error.is_none() || failures(&m) > 0 {
        match m.next(now(at)) {
            Next::Run(order) => {
                let result = if order.job == Job::Tell { Ok(()) } else { bad() };
                m.finished(order.id, result, now(at));
            }
            Next::Wait(Some(until)) => at = until - 1000,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(failures(&m), 0, "it was told");
    assert!(m.status(now(at).boot).error.is_some());
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
    /// A change is under way.
    expecting: bool,
    unsure: bool,
    /// Whom a change concerned: generation, step.
    concerned: Vec<(u64, u64, BTreeSet<usize>)>,
    complete: Option<GenId>,
    /// By rule, when those began that succeeded.
    told: [Vec<u64>; 3],
    asked: [Vec<u64>; 3],
}

impl World {
    fn new() -> Self {
        let refresh = Rule { min_interval: 500, ..verified("b", OnFailure::Refresh, 1) };
        let alert = Rule { when: rule("", &["*.car"]).when, ..verified("c", OnFailure::Alert, 0) };
        let rules = vec![rule("a", &["*.war", "*.car"]), refresh, alert];
        let machine = machine(rules.clone());
        let disk = serde_json::to_string(machine.saved()).unwrap();
        let (told, asked) = Default::default();
        let (step, at, generation) = (1, 0, 0);
        let (running, concerned, complete) = (None, Vec::new(), None);
        Self {
            machine,
            disk,
            rules,
            at,
            step,
            running,
            generation,
            expecting: false,
            unsure: false,
            concerned,
            complete,
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
            log[order.rule].push(began);
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
        let real = if self.unsure { Changed::Everything } else { changed };
        let concerned = |(i, rule): (usize, &Rule)| real.concerns(rule.when.as_ref()).then_some(i);
        let concerned = self.rules.iter().enumerate().filter_map(concerned).collect();
        self.concerned.push((self.generation, self.step, concerned));
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
        let complete = self.machine.saved().complete;
        let rests = !self.machine.is_open();
        if rests {
            prop_assert!(!self.expecting && !self.unsure);
            prop_assert_eq!(complete, (self.generation > 0).then(|| id(self.generation)));
        } else if complete == self.complete {
            return Ok(());
        }
        self.complete = complete;
        let Some(complete) = complete else { return Ok(()) };
        // each rule was told since its files came into place, up to this generation, and was asked after that
        for rule in 0..3 {
            let of_it = |c: &&(u64, u64, BTreeSet<usize>)| c.0 <= complete.number && c.2.contains(&rule);
            let Some((_, changed, _)) = self.concerned.iter().rfind(of_it) else { continue };
            let told = self.told[rule].iter().find(|told| *told > changed);
            prop_assert!(told.is_some(), "rule {} was not told of {}", rule, complete);
            if self.rules[rule].verify.is_some() {
                prop_assert!(
                    self.asked[rule].iter().max() > told,
                    "rule {} did not agree to {}",
                    rule,
                    complete
                );
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
