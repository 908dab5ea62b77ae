//! Clocks that are wrong: nothing that is shown or decided compares those of two nodes.

use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;
use syncagent::agent::pki::Ca;
use syncagent::model::NodeId;

use super::super::cluster::{Agent, Cluster, noise, until};
use crate::support::{needs_root, program};

/// Makes a command's wall clock wrong by so much, like `-1h`. The monotonic clocks stay as they are.
pub(super) fn wall_clock_off(command: &mut Command, by: &str) {
    let libs = walkdir::WalkDir::new("/usr/lib").max_depth(3).into_iter().flatten();
    let lib: Option<PathBuf> =
        libs.map(|e| e.into_path()).find(|p| p.ends_with("faketime/libfaketimeMT.so.1"));
    let lib = lib.expect("libfaketimeMT.so.1, of the package faketime");
    command.env("LD_PRELOAD", lib).env("FAKETIME", by).env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
}

/// Issues a node's certificate anew, valid from and to so many seconds from now.
pub(super) fn issue(c: &Cluster, node: &str, validity: (i64, i64)) {
    let pki = c.path().join("pki");
    let read = |name| std::fs::read_to_string(pki.join(name)).unwrap();
    let ca = Ca { cert_pem: read("ca.pem"), key_pem: read("ca.key") };
    let issued = ca.issue(&NodeId::new(node).unwrap(), &[], &[], validity).unwrap();
    std::fs::write(pki.join(format!("{node}.pem")), issued.cert_pem).unwrap();
    std::fs::write(pki.join(format!("{node}.key")), issued.key_pem).unwrap();
}

/// How far the clock in a node's log is ahead of ours.
fn log_clock_ahead(agent: &Agent) -> i64 {
    let text = agent.log_text();
    let first = text.lines().find(|l| l.contains("started")).unwrap();
    let seen: jiff::Timestamp = first.split(' ').next().unwrap().parse().unwrap();
    seen.as_second() - jiff::Timestamp::now().as_second()
}

/// Every age and duration in a status is of minutes at most.
#[track_caller]
fn assert_no_hour(node: &str, at: &str, value: &Value) {
    match value {
        Value::Object(fields) => fields.iter().for_each(|(name, v)| assert_no_hour(node, name, v)),
        Value::Array(list) => list.iter().for_each(|v| assert_no_hour(node, at, v)),
        Value::Number(n) if at.contains("_ms") => {
            assert!(n.as_u64().unwrap() < 600_000, "{node}: {at} is {n}");
        }
        _ => {}
    }
}

#[test]
fn lag_is_right_with_clocks_an_hour_off_and_with_nodes_that_were_booted_at_other_times() {
    if !needs_root("clocks of its own for a process") {
        return;
    }
    let c = Cluster::new(&["a", "b", "c", "d"]);
    // or the nodes whose clock is behind would find the certificates not valid yet
    ["a", "b", "c", "d"].iter().for_each(|node| issue(&c, node, (-7_200, 86_400)));
    c.source("a", "");
    c.scratch.write("a/tree/x", "1");
    let mut command = Command::new(program());
    wall_clock_off(&mut command, "+1h");
    let a = c.start_by("a", command);
    c.mirror("b", "a", "");
    let b = c.start("b");
    c.mirror("c", "a", "");
    let mut command = Command::new(program());
    wall_clock_off(&mut command, "-1h");
    let behind = c.start_by("c", command);
    // as if booted an hour earlier
    c.mirror("d", "a", "");
    let mut command = Command::new("unshare");
    command.args(["--time", "--boottime", "3600", "--fork", "--kill-child"]).arg(program());
    let booted = c.start_by("d", command);
    assert!((3_500..3_700).contains(&log_clock_ahead(&a)), "{}", log_clock_ahead(&a));
    assert!((-3_700..-3_500).contains(&log_clock_ahead(&behind)), "{}", log_clock_ahead(&behind));
    let mirrors = [("b", &b), ("c", &behind), ("d", &booted)];
    for round in 0..3 {
        c.scratch.write("a/tree/x", noise(round, 10_000));
        for (node, _) in mirrors {
            let there = || std::fs::read(c.tree(node).join("x")).is_ok_and(|x| x == noise(round, 10_000));
            until("the change", there);
        }
    }
    for (node, agent) in mirrors {
        c.assert_converges(&a, agent, ("a", node));
        until("the source's row", || a.row(node)["lag_ms"] == 0 && a.row(node)["state"] == "current");
        assert_no_hour(node, "", &agent.try_status().unwrap());
        let hour = agent.own()["convergence"]["hour"].clone();
        assert!(hour["count"].as_u64() >= Some(1) && hour["max_ms"].as_u64() < Some(20_000), "{hour}");
    }
    assert_no_hour("a", "", &a.try_status().unwrap());
}
