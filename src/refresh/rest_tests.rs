//! What the machine makes of changes that never rest: what it goes back to, asks, says is wrong, and when it tells a repair.

use super::machine::{Job, Machine, Next, Order, Rule, Verify};
use super::machine_tests::{bad, id, machine, now, paths, rule, runs};
use crate::config::OnFailure;
use crate::model::RefreshState;

fn asks(on_failure: OnFailure, refreshes: u64) -> Option<Verify> {
    Some(Verify { print: "v".into(), within: 1000, on_failure, refreshes })
}

#[test]
fn a_generation_that_the_server_never_had_is_nothing_to_go_back_to() {
    let mut m = machine(vec![Rule { verify: asks(OnFailure::Rollback, 0), ..rule("a", &[]) }]);
    m.applied(id(1), paths(&["x"]));
    let told = runs(&mut m, 0);
    m.applied(id(2), paths(&["x"]));
    // the server refuses generation 1: it is broken
    m.finished(told.id, bad(), now(1));
    let told = runs(&mut m, 1);
    assert_eq!((told.job, told.generation), (Job::Tell, id(2)));
    m.applied(id(3), paths(&["x"]));
    m.finished(told.id, Ok(()), now(2));
    let asked = runs(&mut m, 2);
    assert_eq!((asked.job, asked.generation), (Job::Ask, id(2)));
    m.finished(asked.id, Ok(()), now(3));
    // the server was told of 2 alone, and has 2; 3 is then found to be bad, and note_complete() writes down ...
    assert_ne!(m.saved().complete, Some(id(1)), "what complete_before() goes back to");
}

#[test]
fn a_new_question_is_about_the_generation_that_the_rule_was_told_of() {
    for on_failure in [OnFailure::Rollback, OnFailure::Alert] {
        let rules = |print: &str, within| {
            vec![
                Rule {
                    print: print.into(),
                    verify: Some(Verify { print: print.into(), within, on_failure, refreshes: 0 }),
                    ..rule("a", &["*.car"])
                },
                rule("b", &["*.war"]),
            ]
        };
        let mut m = machine(rules("30s", 30_000));
        let mut server = id(0);
        for (n, path) in [(1, "x.car"), (2, "y.war")] {
            m.applied(id(n), paths(&[path]));
            while let Next::Run(o) = m.next(now(0)) {
                if o.rule == 0 && o.job == Job::Tell {
                    server = o.generation;
                }
                let good = o.job == Job::Tell || server == o.generation;
                m.finished(o.id, if good { Ok(()) } else { bad() }, now(0));
            }
        }
        assert_eq!((m.is_open(), m.saved().complete, server), (false, Some(id(2)), id(1)));
        // only `within` is changed in the configuration
        let mut m = Machine::new(rules("60s", 60_000), m.saved().clone(), now(0), 7);
        let mut back = None;
        for at in (0..600_000).step_by(100) {
            if let Next::Run(o) = m.next(now(at)) {
                if o.rule == 0 && o.job == Job::Tell {
                    server = o.generation;
                }
                let good = o.job == Job::Tell || server == o.generation;
                back = back.or(m.finished(o.id, if good { Ok(()) } else { bad() }, now(at)));
            }
        }
        assert_eq!((m.status(now(600_000).boot).state, back), (RefreshState::Idle, None), "{on_failure:?}");
    }
}

/// A change comes every `every` ms and an order takes `takes` ms, for five minutes. The server has the generation that it was
/// told of last, by any rule, and looks by itself every `scan` ms. Gives the longest time in which nothing became complete.
fn ahead(rules: Vec<Rule>, every: u64, takes: u64, scan: u64) -> u64 {
    let mut m = machine(rules);
    let (mut number, mut running): (u64, Option<(Order, u64)>) = (0, None);
    let (mut server, mut complete, mut since, mut gap) = (0, None, 0, 0);
    for at in (0..300_000).step_by(10) {
        if at % every == 0 {
            number += 1;
            m.applied(id(number), paths(&["x"]));
        }
        if at % scan == 0 {
            server = number;
        }
        if let Some((order, _)) = running.take_if(|(_, until)| *until <= at) {
            let result = match order.job {
                Job::Tell => {
                    server = server.max(order.generation.number);
                    Ok(())
                }
                Job::Ask if order.generation.number == server => Ok(()),
                Job::Ask => bad(),
            };
            m.finished(order.id, result, now(at));
        }
        if running.is_none()
            && let Next::Run(order) = m.next(now(at))
        {
            running = Some((order, at + takes));
        }
        let status = m.status(now(at).boot);
        assert_ne!(
            status.state,
            RefreshState::VerifyFailed,
            "every {every}, takes {takes}, scan {scan}, at {at}"
        );
        if m.saved().complete != complete {
            (complete, since, gap) = (m.saved().complete, at, gap.max(at - since));
        }
    }
    gap.max(300_000 - since)
}

#[test]
fn a_server_that_is_ahead_of_what_it_was_told_is_not_said_to_lack_it() {
    for on_failure in [OnFailure::Alert, OnFailure::Refresh, OnFailure::Rollback] {
        let verify = Some(Verify { print: "v".into(), within: 10_000, on_failure, refreshes: 1 });
        let asks = Rule { verify, ..rule("a", &[]) };
        for every in [300, 700, 1500, 2500] {
            for takes in [100, 400, 900] {
                for scan in [400, 1000, 1700, 15_000] {
                    ahead(vec![asks.clone()], every, takes, scan);
                }
                let gap = ahead(vec![asks.clone(), rule("b", &[])], every, takes, u64::MAX);
                assert!(gap < 15_000, "{on_failure:?}, every {every}, takes {takes}: {gap} ms");
            }
        }
    }
}

/// From `from` to 600 s a change comes every 500 ms, after the first one, and an order takes 700 ms and succeeds.
fn all_goes_well(m: &mut Machine, from: u64) {
    let mut n = 1;
    let mut running: Option<(Order, u64)> = None;
    for at in (from..600_000).step_by(50) {
        if at % 500 == 0 {
            n += 1;
            m.applied(id(n), paths(&["x"]));
        }
        if let Some((o, _)) = running.take_if(|(_, u)| *u <= at) {
            m.finished(o.id, Ok(()), now(at));
        }
        if running.is_none()
            && let Next::Run(o) = m.next(now(at))
        {
            running = Some((o, at + 700));
        }
    }
}

#[test]
fn a_question_that_is_not_asked_any_more_is_not_failed() {
    let asking = || vec![Rule { print: "old".into(), verify: asks(OnFailure::Alert, 0), ..rule("a", &[]) }];
    let mut m = machine(asking());
    m.applied(id(1), paths(&["x"]));
    for at in (0..3000).step_by(50) {
        if let Next::Run(o) = m.next(now(at)) {
            m.finished(o.id, if o.job == Job::Tell { Ok(()) } else { bad() }, now(at));
        }
    }
    assert_eq!(m.status(now(3000).boot).state, RefreshState::VerifyFailed);
    // the verify was wrong, and is taken out
    let mut m = Machine::new(vec![rule("a", &[])], m.saved().clone(), now(3000), 7);
    all_goes_well(&mut m, 3000);
    assert!(m.saved().complete.unwrap().number > 1000, "{:?}", m.saved().complete);
    let status = m.status(now(600_000).boot);
    assert_eq!((status.state != RefreshState::VerifyFailed, status.error), (true, None));
}

#[test]
fn what_failed_of_a_rule_that_means_nothing_any_more_is_over_when_it_is_complete() {
    let mut m = machine(vec![rule("a", &["*.car"]), rule("b", &[])]);
    m.applied(id(1), paths(&["x.car"]));
    for at in (0..60_000).step_by(50) {
        if let Next::Run(o) = m.next(now(at)) {
            m.finished(o.id, bad(), now(at));
        }
    }
    assert!(m.status(now(0).boot).failures > 3);
    let mut m = Machine::new(
        vec![Rule { print: "other".into(), ..rule("a", &["*.zip"]) }, rule("b", &[])],
        m.saved().clone(),
        now(60_000),
        7,
    );
    all_goes_well(&mut m, 60_000);
    assert!(m.saved().complete.unwrap().number > 900, "{:?}", m.saved().complete);
    let status = m.status(now(600_000).boot);
    assert_eq!((status.failures, status.error), (0, None));
}

#[test]
fn a_failure_of_another_rule_does_not_hide_that_one_did_not_agree() {
    let mut m = machine(vec![Rule { verify: asks(OnFailure::Alert, 0), ..rule("a", &[]) }, rule("b", &[])]);
    m.applied(id(1), paths(&["x"]));
    let mut at = 0;
    while m.status(now(at).boot).state != RefreshState::VerifyFailed {
        if let Next::Run(o) = m.next(now(at)) {
            m.finished(o.id, if o.job == Job::Tell { Ok(()) } else { bad() }, now(at));
        }
        at += 50;
    }
    m.applied(id(2), paths(&["x"]));
    assert_eq!(m.status(now(at).boot).state, RefreshState::VerifyFailed, "until it agrees");
    let o = runs(&mut m, at);
    m.finished(o.id, Ok(()), now(at));
    let o = runs(&mut m, at);
    assert_eq!(o.rule, 1);
    m.finished(o.id, bad(), now(at));
    at += 1000;
    let o = runs(&mut m, at);
    assert_eq!(o.rule, 1);
    m.finished(o.id, Ok(()), now(at));
    let status = m.status(now(at).boot);
    assert_eq!((status.state, status.error.is_some()), (RefreshState::VerifyFailed, true), "it never agreed");
}
#[test]
fn what_was_told_with_all_in_place_is_not_told_once_more() {
    let mut m = machine(vec![rule("a", &["*.car"]), rule("b", &[])]);
    m.applied(id(1), paths(&["x.car"]));
    let o = runs(&mut m, 0);
    m.finished(o.id, Ok(()), now(0));
    m.applied(id(2), paths(&["z"]));
    m.applied(id(3), paths(&["z"]));
    let o = runs(&mut m, 0);
    assert_eq!((o.rule, o.generation), (1, id(3)));
    m.finished(o.id, Ok(()), now(0));
    assert_eq!((m.saved().complete, m.is_open()), (Some(id(3)), false), "b is told of 3 twice");
}
#[test]
fn a_failure_that_was_put_right_meanwhile_is_a_failure() {
    let mut m = machine(vec![rule("a", &[])]);
    m.applied(id(1), paths(&["x"]));
    for at in 0..10 {
        let o = runs(&mut m, at * 100);
        m.applied(id(1), paths(&["x"])); // drift is put back
        m.finished(o.id, bad(), now(at * 100 + 50));
    }
    assert_eq!(m.status(now(2000).boot).failures, 10);
}
#[test]
fn a_repair_is_told_at_once() {
    let mut m = machine(vec![Rule {
        verify: Some(Verify {
            print: "v".into(),
            within: 60_000,
            on_failure: OnFailure::Refresh,
            refreshes: 3,
        }),
        ..rule("a", &[])
    }]);
    m.applied(id(1), paths(&["x"]));
    let o = runs(&mut m, 0);
    m.finished(o.id, Ok(()), now(0));
    m.applied(id(2), paths(&["x"]));
    m.applied(id(3), paths(&["x"])); // the repair, and then it rests
    let mut told = None;
    for at in (0..200_000).step_by(100) {
        if let Next::Run(o) = m.next(now(at)) {
            if o.job == Job::Tell {
                told.get_or_insert(at);
                m.finished(o.id, Ok(()), now(at));
            } else {
                m.finished(o.id, if told.is_some() { Ok(()) } else { bad() }, now(at));
            }
        }
    }
    assert!(told.unwrap() < 5000, "told after {} ms", told.unwrap());
}
