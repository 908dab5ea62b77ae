//! Whom a deploy job may rely on: `wait --zone`, `wait --generation`, and nodes that are gone for good.

use std::os::unix::fs::PermissionsExt as _;

use rustix::process::Signal;

use super::cluster::{Agent, Cluster, noise, until};
use crate::support::{Ran, needs_root, program};

fn number(agent: &Agent) -> u64 {
    agent.tree()["head"]["number"].as_u64().unwrap()
}

fn wait_for(agent: &Agent, number: u64, timeout: &str) -> Ran {
    agent.order(&["wait", "t", "--generation", &format!("1.{number}"), "--timeout", timeout])
}

fn in_zone(c: &Cluster, node: &str, zone: &str) {
    let id = format!("id = \"{node}\"\n");
    c.edit(node, &id, &format!("{id}zone = \"{zone}\"\n"));
}

#[test]
fn wait_at_once_succeeds_where_all_is_well_and_names_who_lags() {
    let (c, a, b) = super::operate::pair("", "");
    for _ in 0..5 {
        let ran = a.order(&["wait", "t", "--timeout", "0s"]).code(0);
        assert!(ran.out.contains("on 2 nodes"), "{ran:?}");
        b.order(&["wait", "t", "--timeout", "0s"]).code(0);
    }
    b.order(&["pause", "t"]).code(0);
    until("that the source knows", || a.row("b")["paused"].is_object());
    a.order(&["wait", "t", "--timeout", "0s"]).code(0);
    let n = number(&a);
    c.scratch.write("a/tree/x", "2");
    until("the next generation", || number(&a) == n + 1);
    let ran = a.order(&["wait", "t", "--timeout", "0s"]).code(7);
    assert!(ran.out.contains("is not on 1 of 2 nodes") && ran.out.contains("b: paused by"), "{ran:?}");
    b.order(&["wait", "t", "--timeout", "0s"]).code(7);
    // and a mirror whose source is away does not wait for it
    a.kill();
    until("that it is noticed", || b.own()["state"] == "disconnected" || b.own()["connected"] == false);
    let ran = b.order(&["wait", "t", "--timeout", "0s"]).code(7);
    assert!(ran.out.contains("the source has not answered yet: "), "{ran:?}");
}

#[test]
fn a_zone_is_not_complete_while_a_node_that_may_be_in_it_has_not_come_up() {
    let c = Cluster::new(&["a", "b", "c"]);
    c.source("a", "");
    c.edit("a", "allow = [\"*\"]", "allow = [\"b\", \"c\"]");
    in_zone(&c, "a", "east");
    c.scratch.write("a/tree/x", "1");
    c.mirror("b", "a", "");
    in_zone(&c, "b", "west");
    let (a, b) = (c.start("a"), c.start("b"));
    c.assert_converges(&a, &b, ("a", "b"));
    for zone in ["west", "east", "north"] {
        let ran = a.order(&["wait", "t", "--zone", zone, "--timeout", "300ms"]).code(7);
        assert!(ran.out.contains("c: it was never heard of, so its zone is not known"), "{ran:?}");
    }
    c.mirror("c", "a", "");
    in_zone(&c, "c", "west");
    let d = c.start("c");
    let ran = a.order(&["wait", "t", "--zone", "west"]).code(0);
    assert!(ran.out.contains("on 2 nodes"), "{ran:?}");
    a.order(&["wait", "t", "--zone", "east"]).code(0);
    assert_eq!(a.order(&["wait", "t", "--zone", "north"]).code, 2);
    // the source remembers who is in the zone
    d.kill();
    a.stop();
    let a = c.start("a");
    let ran = a.order(&["wait", "t", "--zone", "west", "--timeout", "300ms"]).code(7);
    assert!(ran.out.contains("c: not heard for"), "{ran:?}");
    a.order(&["wait", "t", "--zone", "east"]).code(0);
}

#[test]
fn a_node_that_fetches_the_next_generation_has_this_one_unless_somebody_edited_it_there() {
    if !needs_root("a slow line") {
        return;
    }
    let c = Cluster::on_hosts(&["a", "b"]);
    c.source("a", "");
    c.scratch.write("a/tree/x", "1");
    c.mirror("b", "a", "");
    // its disk is slow, so that the commit of the next generation, and what follows it, can be looked at
    let mut slow = c.net().command("b", "strace");
    slow.args(["-D", "-f", "-qq", "-o", "/dev/null", "-e", "trace=fsync,fdatasync"]);
    slow.args(["-e", "inject=fsync,fdatasync:delay_enter=100000"]).arg(program());
    let (a, b) = (c.start("a"), c.start_by("b", slow));
    c.assert_converges(&a, &b, ("a", "b"));
    let n = number(&a);
    c.net().throttle("b", 4);
    c.scratch.write("a/tree/big", noise(1, 48 << 20));
    until("the next generation", || number(&a) == n + 1);
    until("that it is being fetched", || a.row("b")["state"] == "fetching");
    assert_eq!(a.row("b")["consistent"], false);
    wait_for(&a, n, "60s").code(0);
    let ran = wait_for(&a, n + 1, "300ms").code(7);
    assert!(ran.out.contains("b: has generation 1."), "{ran:?}");
    assert_eq!(a.row("b")["state"], "fetching");
    c.scratch.write("b/tree/x", "edited");
    until("that the edit is noticed", || a.row("b")["intact"] == false);
    assert_eq!(a.row("b")["state"], "fetching");
    let ran = wait_for(&a, n, "300ms").code(7);
    assert!(ran.out.contains("is being looked at"), "{ran:?}");
    c.net().unthrottle("b");
    // however far the run is: what is known of is not forgotten
    let x = c.tree("b").join("x");
    until("the next generation, whole", || {
        let row = a.row("b");
        let is_edited = std::fs::read(&x).is_ok_and(|text| text == b"edited");
        assert!(row["intact"] != true || !is_edited, "{row:#}\n{}", b.log_tail());
        row["intact"] == true && row["generation"]["number"] == n + 1
    });
    wait_for(&a, n + 1, "60s").code(0);
    assert_eq!(c.scratch.read("b/tree/x"), b"1");
    c.assert_converges(&a, &b, ("a", "b"));
}

#[test]
fn a_node_whose_server_fails_with_the_next_generation_does_not_count_for_this_one() {
    let c = Cluster::new(&["a", "b"]);
    c.source("a", "");
    c.scratch.write("a/tree/x", "1");
    let (script, bad) = (c.path().join("refresh"), c.path().join("bad"));
    std::fs::write(&script, format!("#!/bin/sh\n! [ -e {} ]\n", bad.display())).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let rule = format!(
        "[[tree.t.refresh]]\nname = \"server\"\nexec = [\"{}\"]\nretry-max = \"200ms\"\n",
        script.display()
    );
    c.mirror("b", "a", &rule);
    let (a, b) = (c.start("a"), c.start("b"));
    c.assert_converges(&a, &b, ("a", "b"));
    let n = number(&a);
    std::fs::write(&bad, "").unwrap();
    c.scratch.write("a/tree/x", "2");
    until("that it is in place", || a.row("b")["applied"]["number"] == n + 1);
    until("the failure", || a.row("b")["refresh"]["state"] == "failing");
    assert_eq!((&a.row("b")["generation"]["number"], &a.row("b")["intact"]), (&n.into(), &false.into()));
    let ran = wait_for(&a, n, "300ms").code(7);
    assert!(ran.out.contains("b: its server has not taken it up: server:"), "{ran:?}");
    std::fs::remove_file(&bad).unwrap();
    wait_for(&a, n + 1, "60s").code(0);
}

#[test]
fn a_paused_node_has_what_it_has_until_somebody_writes_there() {
    let (c, a, b) = super::operate::pair("", "");
    let n = number(&a);
    b.order(&["pause", "t"]).code(0);
    c.scratch.write("a/tree/x", "2");
    until("the next generation", || number(&a) == n + 1);
    until("that the source knows", || a.row("b")["paused"].is_object());
    wait_for(&a, n, "60s").code(0);
    let ran = wait_for(&a, n + 1, "300ms").code(7);
    assert!(ran.out.contains("b: paused by"), "{ran:?}");
    // what comes and goes changes nothing
    c.scratch.write("b/tree/other", "1");
    until("that it is noticed", || a.row("b")["intact"] == false);
    std::fs::remove_file(c.tree("b").join("other")).unwrap();
    until("that it is as it was", || a.row("b")["intact"] == true);
    c.scratch.write("b/tree/x", "edited");
    until("that the edit is noticed", || a.row("b")["intact"] == false);
    wait_for(&a, n, "300ms").code(7);
    b.order(&["resume", "t"]).code(0);
    wait_for(&a, n + 1, "60s").code(0);
    assert_eq!(c.scratch.read("b/tree/x"), b"2");
}

#[test]
fn a_node_that_is_gone_for_good_is_forgotten_at_once_also_over_a_crash() {
    let (c, a, b) = super::operate::pair("", "");
    let has_history =
        |a: &Agent| a.order(&["history", "t", "--json"]).code(0).out.contains("\"converged_ms\":{\"b\":");
    until("the history", || has_history(&a));
    let ran = a.order(&["forget", "t", "b"]).code(4);
    assert!(ran.err.contains("b is connected") && ran.err.contains("allow"), "{ran:?}");
    let ran = a.order(&["forget", "t", "bb"]).code(2);
    assert!(ran.err.contains("no mirror `bb`") && ran.err.contains("among them b"), "{ran:?}");
    let ran = a.order(&["forget", "t", "a"]).code(2);
    assert!(ran.err.contains("the source of t"), "{ran:?}");
    let ran = b.order(&["forget", "t", "b"]).code(2);
    assert!(ran.err.contains("on its source"), "{ran:?}");
    b.kill();
    until("that it is gone", || a.row("b")["connected"] == false);
    a.order(&["wait", "t", "--timeout", "0s"]).code(7);
    let ran = a.order(&["forget", "t", "b"]).code(0);
    assert!(ran.out.starts_with("b is forgotten in t: it was not heard for"), "{ran:?}");
    assert!(!ran.out.contains("`allow`"), "{ran:?}");
    let log = a.log_text();
    let line = log.lines().find(|line| line.contains("forget t b")).unwrap();
    assert!(line.contains("ordered by ") && line.contains("(process "), "{line}");
    // a crash right after does not bring it back
    a.kill();
    let a = c.start("a");
    assert!(a.row("b").is_null(), "{:#}", a.tree());
    a.order(&["wait", "t"]).code(0);
    assert!(has_history(&a));
    // and one that comes again is known again
    let b = c.start("b");
    c.assert_converges(&a, &b, ("a", "b"));
    until("its row", || a.row("b")["connected"] == true);
}

#[test]
fn a_forgotten_node_that_is_still_allowed_goes_on_to_be_expected() {
    let c = Cluster::new(&["a", "b"]);
    c.source("a", "");
    c.edit("a", "allow = [\"*\"]", "allow = [\"b\", \"c\"]");
    c.scratch.write("a/tree/x", "1");
    c.mirror("b", "a", "");
    let (a, b) = (c.start("a"), c.start("b"));
    c.assert_converges(&a, &b, ("a", "b"));
    let ran = a.order(&["forget", "t", "c"]).code(2);
    assert!(ran.err.contains("c was never heard of") && ran.err.contains("reload"), "{ran:?}");
    b.kill();
    until("that it is gone", || a.row("b")["connected"] == false);
    let ran = a.order(&["forget", "t", "b"]).code(0);
    assert!(ran.out.contains("still in `allow`"), "{ran:?}");
    let ran = a.order(&["wait", "t", "--timeout", "0s"]).code(7);
    assert!(ran.out.contains("b: it was never heard of"), "{ran:?}");
    // taken out of `allow` while it is connected it can be forgotten as well
    let b = c.start("b");
    until("its row", || a.row("b")["connected"] == true);
    c.edit("a", "allow = [\"b\", \"c\"]", "allow = [\"zz\"]");
    a.signal(Signal::HUP);
    until("that it may not read any more", || a.row("b")["connected"] == false);
    let ran = a.order(&["forget", "t", "b"]).code(0);
    assert!(!ran.out.contains("still in `allow`"), "{ran:?}");
    assert!(a.row("b").is_null());
    drop(b);
}
