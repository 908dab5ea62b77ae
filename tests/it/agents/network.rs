//! Agents on hosts of their own: what lines and peers do that one machine does not.

mod clocks;
mod hostile;
mod identities;

use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::cluster::{Agent, Cluster, noise, until, within};
use crate::support::needs_root;

const MIB: usize = 1 << 20;
/// A change reaches a mirror in so long, whatever the other mirrors do: sooner than a silence is noticed.
const SOON: Duration = Duration::from_secs(10);

fn long() -> bool {
    std::env::var_os("SYNCAGENT_TEST_LONG").is_some()
}

/// A source `a` and mirrors `b` and `c`, each on a host of its own, in step.
fn three_hosts() -> (Cluster, [Agent; 3]) {
    let c = Cluster::on_hosts(&["a", "b", "c"]);
    c.source("a", "");
    for i in 0..30 {
        c.scratch.write(format!("a/tree/d{}/f{i}", i % 3), format!("content {i}"));
    }
    c.mirror("b", "a", "");
    c.mirror("c", "a", "");
    let agents = ["a", "b", "c"].map(|node| c.start(node));
    assert_all_converge(&c, &agents);
    (c, agents)
}

/// Both mirrors have all, and the source knows it.
#[track_caller]
fn assert_all_converge(c: &Cluster, [a, b, d]: &[Agent; 3]) {
    c.assert_converges(a, b, ("a", "b"));
    c.assert_converges(a, d, ("a", "c"));
    for node in ["b", "c"] {
        until("the source's row", || {
            let tree = a.tree();
            let rows = tree["nodes"].as_array().unwrap();
            let row = rows.iter().find(|n| n["node"] == node).unwrap();
            row["generation"] == tree["head"]
                && row["state"] == "current"
                && row["lag_ms"] == 0
                && row["connected"] == true
        });
    }
}

/// Publishes a file; it is on `mirror` soon.
#[track_caller]
fn assert_arrives_soon(c: &Cluster, agents: [&Agent; 2], mirror: &str, file: &str) {
    c.scratch.write(format!("a/tree/{file}"), file);
    let begun = Instant::now();
    let there = || std::fs::read(c.tree(mirror).join(file)).is_ok_and(|text| text == file.as_bytes());
    if !within(SOON, there) {
        let late = super::cluster::eventually(there);
        let logs = agents.map(Agent::log_tail);
        let took = begun.elapsed();
        panic!("{file} is on {mirror}: {late}, after {took:?}\n{}\n\n{}", logs[0], logs[1]);
    }
}

/// The source shows that it has not heard the node since `since`, and `generation` as what it confirmed last.
#[track_caller]
fn assert_silent(a: &Agent, node: &str, since: Instant, generation: &serde_json::Value) {
    let least = since.elapsed().as_millis() as u64;
    let row = a.row(node);
    assert_eq!(&row["generation"], generation);
    assert!(ms(&row["contact_age_ms"]) >= least, "{least} ms at least: {row}");
    assert!(ms(&row["confirmed_age_ms"]) >= ms(&row["contact_age_ms"]), "{row}");
}

fn ms(value: &serde_json::Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no number"))
}

#[test]
fn a_silent_partition_is_noticed_and_slows_nobody_else_and_the_transfer_goes_on_where_it_stopped() {
    if !needs_root("a silent partition") {
        return;
    }
    let (c, agents) = three_hosts();
    let [a, b, d] = &agents;
    let (size, mbit) = if long() { (64 * MIB, 20) } else { (16 * MIB, 40) };
    let net = c.net();
    net.throttle("b", mbit);
    let before = net.received("b");
    let received = || (net.received("b") - before) as usize;
    let old = a.row("b")["generation"].clone();
    c.scratch.write("a/tree/large", noise(1, size));
    until("half of it", || received() > size / 2);
    until("the other mirror", || c.tree("c").join("large").exists());
    net.cut("b");
    let cut = Instant::now();
    assert!(received() < size, "the line is too fast for this test");
    for i in 0..3 {
        assert_arrives_soon(&c, [a, d], "c", &format!("during{i}"));
    }
    assert_silent(a, "b", cut, &old);
    let row = a.row("b");
    assert!(ms(&row["behind"]) >= 2 && ms(&row["lag_ms"]) > 0, "{row}");
    // both ends see the silence grow
    until("the silence", || {
        ms(&a.row("b")["contact_age_ms"]) > 2_500 && ms(&b.own()["contact_age_ms"]) > 2_500
    });
    assert_silent(a, "b", cut, &old);
    // of what was published since it knows nothing
    let own = b.own();
    assert_eq!(b.tree()["head"]["number"], old["number"].as_u64().unwrap() + 1, "{own}");
    assert_eq!((&own["generation"], &own["behind"]), (&old, &1.into()), "{own}");
    if long() {
        let limit = Duration::from_secs(60);
        let known = || {
            let (own, row) = (b.own(), a.row("b"));
            own["connected"] == false && own["error"]["what"].is_string() && row["connected"] == false
        };
        assert!(within(limit, known), "{:#}\n{:#}\n{}", b.own(), a.row("b"), b.log_tail());
        assert!(["disconnected", "failed", "fetching"].contains(&b.own()["state"].as_str().unwrap()));
        assert_eq!(a.row("b")["state"], "disconnected");
        assert_silent(a, "b", cut, &old);
    }
    let cut_for = cut.elapsed();
    net.heal("b");
    assert_all_converge(&c, &agents);
    let again = received().saturating_sub(size);
    assert!(again < size / 5, "cut for {cut_for:?}; {again} bytes more than {size} were received");
}

#[test]
fn slow_and_lossy_lines_end_with_the_newest_generation_and_keep_what_they_have() {
    if !needs_root("slow and lossy lines") {
        return;
    }
    let (c, agents) = three_hosts();
    let size = if long() { 32 * MIB } else { 4 * MIB };
    let net = c.net();
    net.throttle("b", 10);
    net.lose("c", "0.2");
    let before = net.received("b");
    let received = || (net.received("b") - before) as usize;
    c.scratch.write("a/tree/large", noise(2, size));
    until("a part of it", || received() > size / 4);
    for i in 0..30 {
        c.scratch.write(format!("a/tree/d{}/f{i}", i % 3), noise(i, 2_000));
    }
    c.scratch.write("a/tree/d0/new", noise(9, 100_000));
    std::fs::remove_file(c.tree("a").join("d1/f1")).unwrap();
    until("the newer generation", || agents[0].row("b")["behind"] == 2);
    assert!(received() < size, "the line is too fast for this test");
    if long() {
        let limit = Duration::from_secs(120);
        assert!(within(limit, || ["b", "c"].iter().all(|n| c.tree(n).join("large").exists())));
    }
    assert_all_converge(&c, &agents);
    let again = received().saturating_sub(size + 200_000);
    assert!(again < size / 3, "{again} bytes more than needed were received");
}

#[test]
fn a_dead_mirror_slows_nobody_else_and_is_listed_by_when_it_was_last_heard() {
    if !needs_root("a dead mirror") {
        return;
    }
    let (c, [a, b, d]) = three_hosts();
    let old = a.row("c")["generation"].clone();
    // its question waits at the source; that it is answered is no sign of life
    d.signal(Signal::STOP);
    let stopped = Instant::now();
    assert_arrives_soon(&c, [&a, &b], "b", "asleep");
    assert_silent(&a, "c", stopped, &old);
    d.signal(Signal::CONT);
    c.assert_converges(&a, &d, ("a", "c"));
    until("its report", || a.row("c")["behind"] == 0);
    let old = a.row("c")["generation"].clone();
    // contents are on their way to it
    c.net().throttle("c", 20);
    let before = c.net().received("c");
    c.scratch.write("a/tree/large", noise(3, 16 * MIB));
    until("a part of it", || c.net().received("c") - before > MIB as u64);
    d.signal(Signal::STOP);
    let stopped = Instant::now();
    until("the other mirror", || c.tree("b").join("large").exists());
    for i in 0..5 {
        assert_arrives_soon(&c, [&a, &b], "b", &format!("stopped{i}"));
    }
    until("lag", || ms(&a.row("c")["lag_ms"]) > 1_000);
    assert_silent(&a, "c", stopped, &old);
    d.kill();
    for i in 0..5 {
        assert_arrives_soon(&c, [&a, &b], "b", &format!("killed{i}"));
    }
    until("the end of its connections", || a.row("c")["state"] == "disconnected");
    assert_eq!(a.row("c")["connected"], false);
    assert_silent(&a, "c", stopped, &old);
    c.assert_converges(&a, &b, ("a", "b"));
    c.net().unthrottle("c");
    let d = c.start("c");
    assert_all_converge(&c, &[a, b, d]);
}

#[test]
fn a_source_killed_while_both_mirrors_transfer_costs_them_only_what_was_on_the_way() {
    if !needs_root("a killed source") {
        return;
    }
    let (c, [mut a, b, d]) = three_hosts();
    let (size, kills) = if long() { (48 * MIB, 6) } else { (12 * MIB, 2) };
    let net = c.net();
    let before = ["b", "c"].map(|node| {
        net.throttle(node, 40);
        net.received(node)
    });
    let received = || [("b", 0), ("c", 1)].map(|(node, i)| (net.received(node) - before[i]) as usize);
    c.scratch.write("a/tree/large", noise(4, size));
    for kill in 1..=kills {
        until("a part of it", || received().iter().all(|n| *n > kill * size / (kills + 1)));
        a.kill();
        a = c.start("a");
    }
    assert!(["b", "c"].iter().all(|node| !c.tree(node).join("large").exists()), "they were too fast");
    assert_all_converge(&c, &[a, b, d]);
    for n in received() {
        let again = n.saturating_sub(size);
        assert!(again < size / 4, "{again} bytes more than {size} were received");
    }
}

#[test]
fn a_deploy_script_waits_for_three_hosts_and_is_told_which_is_cut_off() {
    if !needs_root("a deploy script on three hosts") {
        return;
    }
    let (c, agents) = three_hosts();
    let deploy = |text: &str, timeout: &str| {
        let script = format!(
            "set -e; echo {text} > {tree}/app.xml; exec {program} wait t --timeout {timeout} --socket {socket}",
            tree = c.tree("a").display(),
            program = crate::support::program().display(),
            socket = agents[0].socket.display()
        );
        let out = c.net().command("a", "sh").args(["-c", &script]).output().unwrap();
        crate::support::Ran::from(out)
    };
    deploy("one", "60s").code(0);
    for node in ["b", "c"] {
        assert_eq!(c.scratch.read(format!("{node}/tree/app.xml")), b"one\n");
    }
    c.net().cut("c");
    let begun = Instant::now();
    let ran = deploy("two", "10s").code(7);
    assert!(begun.elapsed() < Duration::from_secs(40), "{:?}", begun.elapsed());
    assert!(ran.out.contains("is not on 1 of 3 nodes") && ran.out.contains("\n  c: "), "{ran:?}");
    assert_eq!(c.scratch.read("b/tree/app.xml"), b"two\n");
    assert_eq!(c.scratch.read("c/tree/app.xml"), b"one\n");
    c.net().heal("c");
    agents[0].order(&["wait", "t", "--timeout", "60s"]).code(0);
    assert_eq!(c.scratch.read("c/tree/app.xml"), b"two\n");
}
