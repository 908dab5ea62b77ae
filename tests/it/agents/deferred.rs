//! What is deferred, not late, over restarts of the agent. The local server fails, so that what is in place is not
//! complete and its lag goes on.

use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::cluster::{Agent, Cluster, until};
use crate::support::needs_root;

/// What the test itself and a loaded machine may take, in ms.
const SLACK: u64 = 700;

/// A mirror's refresh that fails while there is a file `bad` beside its tree.
fn server(c: &Cluster, node: &str) -> String {
    let at = c.path().join(node);
    std::fs::create_dir_all(&at).unwrap();
    let script = at.join("refresh");
    std::fs::write(&script, format!("#!/bin/sh\n! [ -e {}/bad ]\n", at.display())).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    format!("[[tree.t.refresh]]\nexec = [\"{}\"]\nretry-max = \"300ms\"\n", script.display())
}

/// A source and a mirror in step; from now on the mirror's server fails.
fn pair(c: Cluster, keys: &str) -> (Cluster, Agent, Agent) {
    c.source("a", "");
    for i in 0..10 {
        c.scratch.write(format!("a/tree/f{i}"), "1");
    }
    let rule = server(&c, "b");
    c.mirror("b", "a", &format!("{keys}{rule}"));
    let (a, b) = (c.start("a"), c.start("b"));
    c.assert_converges(&a, &b, ("a", "b"));
    c.scratch.write("b/bad", "");
    (c, a, b)
}

/// Publishes something. Gives which generation, and when it was published at the earliest.
fn publish(c: &Cluster, a: &Agent) -> (Value, Instant) {
    let (before, begun) = (a.tree()["head"].clone(), Instant::now());
    c.scratch.write("a/tree/f0", format!("{begun:?}"));
    until("a publication", || a.tree()["head"] != before);
    (a.tree()["head"].clone(), begun)
}

/// What the last agent of the mirror wrote down.
fn record(c: &Cluster) -> Value {
    let trees = std::fs::read_dir(c.path().join("b/state/trees")).unwrap();
    let file = trees.flatten().map(|tree| tree.path().join("deferred.json")).find(|path| path.exists());
    let text = file.and_then(|path| std::fs::read_to_string(path).ok());
    text.map_or(Value::Null, |text| serde_json::from_str(&text).unwrap())
}

fn ms(since: Instant) -> u64 {
    since.elapsed().as_millis() as u64
}

/// The lag, as soon as it is known.
fn lag(b: &Agent) -> u64 {
    until("the lag", || b.own()["lag_ms"].is_u64());
    b.own()["lag_ms"].as_u64().unwrap()
}

/// What cannot matter is not on record, and nothing is written for it.
#[test]
fn a_mirror_in_step_has_nothing_on_record() {
    let (c, a, b) = pair(Cluster::local(), "");
    std::fs::remove_file(c.path().join("b/bad")).unwrap();
    for _ in 0..3 {
        let (generation, _) = publish(&c, &a);
        until("the generation", || b.own()["generation"] == generation);
    }
    b.stop();
    let nothing = |list: &Value| list.as_array().is_none_or(Vec::is_empty);
    let left = record(&c);
    assert!(nothing(&left["spans"]) && left["open"].is_null(), "{left:#}");
}

fn has(b: &Agent, generation: &Value) {
    until("the generation in place", || b.own()["applied"] == *generation);
}

#[test]
fn a_pause_that_is_over_is_no_lag_also_when_the_agent_is_stopped_or_killed_before_it_has_caught_up() {
    let (c, a, mut b) = pair(Cluster::local(), "");
    for kills in [false, true] {
        b.order(&["pause", "t"]).code(0);
        let (generation, published) = publish(&c, &a);
        std::thread::sleep(Duration::from_secs(4));
        let resumed = Instant::now();
        b.order(&["resume", "t"]).code(0);
        has(&b, &generation);
        if kills {
            until("the record", || record(&c)["open"].is_null() && record(&c)["spans"][0].is_array());
            b.kill();
        } else {
            b.stop();
        }
        let started = Instant::now();
        b = c.start("b");
        has(&b, &generation);
        // until the source is heard it is deferred
        let before = ms(resumed) - ms(started);
        let (lag, age) = (lag(&b), ms(published));
        let most = ms(resumed) + SLACK;
        assert!(lag <= most, "lag {lag} of an age of {age}, {most} after the pause: {:#}", record(&c));
        assert!(lag + 3_000 < age, "{lag} {age}");
        assert!(lag + 2 * SLACK + 2_000 > before, "the time since is lag: {lag}, not about {before}");
        assert!(b.own()["generation"] != generation, "it had caught up: this shows nothing");
        std::fs::remove_file(c.path().join("b/bad")).unwrap();
        until("the end of the lag", || b.own()["lag_ms"] == 0);
        c.scratch.write("b/bad", "");
    }
}

#[test]
fn what_is_published_while_no_agent_runs_is_late() {
    let (c, a, b) = pair(Cluster::local(), "");
    b.stop();
    let (generation, _) = publish(&c, &a);
    let published = Instant::now();
    std::thread::sleep(Duration::from_secs(2));
    let started = Instant::now();
    let b = c.start("b");
    has(&b, &generation);
    // until the source is heard it is deferred
    let lag = lag(&b);
    let (age, start) = (ms(published), ms(started));
    assert!(lag + start + SLACK >= age, "{lag} of {age}, {start} of them after the start");
    assert!(lag >= 2_000, "{lag}");
}

#[test]
fn a_plan_that_is_refused_again_after_a_restart_was_deferred_all_the_time() {
    let (c, a, b) = pair(Cluster::local(), "max-delete = 0\n");
    std::fs::remove_file(c.path().join("b/bad")).unwrap();
    c.scratch.write("b/tree/only here", "1");
    b.wait_for_state("refused");
    let (_, published) = publish(&c, &a);
    until("the news", || b.tree()["head"] == a.tree()["head"]);
    b.wait_for_state("refused");
    // until the new plan is refused as well it is late
    let most = 1_500 + ms(published);
    std::thread::sleep(Duration::from_millis(1_500));
    b.stop();
    assert_eq!(record(&c)["refused"], true);
    std::thread::sleep(Duration::from_millis(1_500));
    let b = c.start("b");
    let mut judged = false;
    until("the same judgement", || {
        let own = b.own();
        // also before it is judged
        assert!(own["lag_ms"].as_u64().unwrap_or(0) < most, "{own:#}");
        judged = own["state"] == "refused";
        judged
    });
    std::thread::sleep(Duration::from_millis(300));
    assert!(lag(&b) < most && ms(published) > most + 1_500, "{:#}", b.own());
    // not refused any more: the time in which no agent ran is lag, and over at once
    b.stop();
    c.scratch.write("b/bad", "");
    std::fs::remove_file(c.tree("b").join("only here")).unwrap();
    let stopped = Instant::now();
    std::thread::sleep(Duration::from_secs(2));
    let b = c.start("b");
    has(&b, &a.tree()["head"]);
    assert!(lag(&b) >= 2_000, "{:#}", b.own());
    assert!(lag(&b) <= ms(stopped) + 1_500 + SLACK, "{:#}", b.own());
}

#[test]
fn a_source_that_was_away_is_no_lag_also_when_the_agent_was_restarted_meanwhile() {
    if !needs_root("a partition") {
        return;
    }
    let (c, a, b) = pair(Cluster::on_hosts(&["a", "b"]), "");
    c.net().cut("b");
    let (generation, published) = publish(&c, &a);
    // whether or not the question to it has failed by then
    until("the silence", || b.own()["contact_age_ms"].as_u64() > Some(16_000));
    let stopped = Instant::now();
    b.stop();
    let b = c.start("b");
    let down = ms(stopped);
    std::thread::sleep(Duration::from_secs(1));
    let healed = Instant::now();
    c.net().heal("b");
    has(&b, &generation);
    let (lag, most) = (lag(&b), down + ms(healed) + SLACK);
    // a question that was sent into the cut line is answered late, and its age is too high by that
    assert!(lag <= most + 2_000, "lag {lag}, {most} at most: {:#}", record(&c));
    assert!(ms(published) > most + 6_000, "this shows nothing");
}
