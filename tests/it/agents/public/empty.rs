//! A server without any deployment takes no traffic; one that had a deployment before there was an agent does.

use std::net::TcpStream;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::super::cluster::{Agent, Cluster, noise, until};
use super::{Port, open};
use crate::support::program;

const EMPTY: &str = "t: nothing of it was ever completely applied here";

/// From the first answer on it is `status` all the time, for a while.
#[track_caller]
fn stays(port: Port, status: u16, agent: &Agent) {
    until("the port", || TcpStream::connect(("127.0.0.1", port.http)).is_ok());
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(2_500) {
        let answer = port.get("/ha/health");
        assert_eq!(answer.status, status, "{answer:?}\n{}", agent.log_tail());
        if status == 503 {
            assert!(answer.body.contains(EMPTY), "{answer:?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// While `work` lasts every answer is `ok`.
#[track_caller]
fn always_ok<T>(port: Port, work: impl FnOnce() -> T) -> T {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let asks = scope.spawn(|| {
            let mut bad = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let answer = port.get("/ha/health");
                if answer.status != 200 {
                    bad.push(answer);
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            bad
        });
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        stop.store(true, Ordering::Relaxed);
        let bad = asks.join().unwrap();
        assert!(bad.is_empty(), "{bad:?}");
        done.unwrap_or_else(|e| std::panic::resume_unwind(e))
    })
}

fn start(c: &Cluster) -> Agent {
    c.start_quietly("b", Command::new(program()))
}

#[test]
fn with_a_source_that_never_answered_an_empty_node_stays_out_also_after_the_grace() {
    let c = Cluster::local();
    c.mirror("b", "a", "max-lag = \"1min\"\n");
    std::fs::create_dir_all(c.tree("b").join("services/of nobody")).unwrap();
    c.add("b", "[health]\nstartup-grace = \"500ms\"\n");
    let port = open(&c, "b");
    let b = start(&c);
    stays(port, 503, &b);
    b.wait_for_state("disconnected");
    assert_eq!(b.own()["empty"], true);
    let ready = port.get("/readyz");
    assert_eq!((ready.status, ready.body.trim_end()), (503, EMPTY));
    assert_eq!(port.check(), format!("ready down #{EMPTY}\n"));
    // also after a restart
    b.stop();
    let b = start(&c);
    stays(port, 503, &b);
    // somebody helps himself
    b.stop();
    c.scratch.write("b/tree/services/by hand", "1");
    let b = c.start("b");
    port.wait_for(200, "ok", &b);
    drop(b);
    // and who does not want that leaves the word out
    std::fs::remove_file(c.tree("b").join("services/by hand")).unwrap();
    c.edit("b", "startup-grace", "drain-on = [\"lag\"]\nstartup-grace");
    let b = c.start("b");
    port.wait_for(200, "ok", &b);
    assert_eq!(b.own()["empty"], true);
}

#[test]
fn during_the_first_copy_a_node_takes_no_traffic_and_after_it_it_does() {
    let c = Cluster::local();
    c.source("a", "");
    c.scratch.write("a/tree/small", "1");
    c.scratch.write("a/tree/large", noise(7, 300 << 20));
    c.mirror("b", "a", "");
    let port = open(&c, "b");
    let a = c.start("a");
    a.wait_for_state("current");
    let b = start(&c);
    let partial = c.tree("b").join(".syncagent/partial");
    let size = || {
        let files = std::fs::read_dir(&partial).into_iter().flatten().flatten();
        files.filter_map(|e| e.metadata().ok()).map(|m| m.len()).max().unwrap_or(0)
    };
    until("a transfer", || size() > (4 << 20));
    a.signal(Signal::STOP);
    stays(port, 503, &b);
    assert!(!c.tree("b").join("large").exists(), "it came through: this shows nothing");
    // half of it there, and the agent begins anew
    b.stop();
    let b = start(&c);
    stays(port, 503, &b);
    a.signal(Signal::CONT);
    port.wait_for(200, "ok", &b);
    assert!(c.tree("b").join("large").exists() && c.tree("b").join("small").exists());
    c.assert_converges(&a, &b, ("a", "b"));
    assert_eq!((port.get("/readyz").status, b.own()["empty"].as_bool()), (200, Some(false)));
}

#[test]
fn a_node_that_had_something_stays_in_over_restarts_and_reloads_with_its_source_away() {
    let c = Cluster::local();
    c.source("a", "");
    c.scratch.write("a/tree/x", "1");
    c.mirror("b", "a", "");
    let port = open(&c, "b");
    let (a, b) = (c.start("a"), c.start("b"));
    c.assert_converges(&a, &b, ("a", "b"));
    a.kill();
    b.stop();
    let b = start(&c);
    stays(port, 200, &b);
    b.kill();
    let b = start(&c);
    stays(port, 200, &b);
    // a reload that starts the tree again
    always_ok(port, || {
        c.edit("b", "role = \"mirror\"\n", "role = \"mirror\"\nkeep = 3\n");
        let restarts = || b.log_text().matches("restarts with its new configuration").count();
        b.signal(Signal::HUP);
        until("the reload", || restarts() == 1);
        b.wait_for_state("disconnected");
    });
    // even when somebody emptied it: that is drift
    std::fs::remove_file(c.tree("b").join("x")).unwrap();
    b.stop();
    let b = start(&c);
    stays(port, 200, &b);
    // but another directory in its place, or its control directory lost, makes a node that never had anything
    std::fs::remove_dir_all(c.tree("b")).unwrap();
    std::fs::create_dir(c.tree("b")).unwrap();
    port.wait_for(503, EMPTY, &b);
    let a = c.start("a");
    port.wait_for(200, "ok", &b);
    c.assert_converges(&a, &b, ("a", "b"));
}

#[test]
fn a_directory_that_was_full_before_the_agent_came_is_served_while_its_takeover_waits_and_is_done() {
    let c = Cluster::local();
    c.source("a", "");
    c.scratch.write("a/tree/x", "theirs");
    c.scratch.write("b/tree/dir/only here", "1");
    c.mirror("b", "a", "");
    let port = open(&c, "b");
    // also when the source does not answer
    let b = start(&c);
    stays(port, 200, &b);
    let a = c.start("a");
    b.wait_for_state("refused");
    let b = always_ok(port, || {
        assert_eq!((b.own()["applied"].is_null(), b.own()["empty"].as_bool()), (true, Some(false)));
        let plan = b.own()["plan"]["id"].as_str().unwrap().to_owned();
        b.order(&["approve", "t", &plan]).code(0);
        b.wait_for_state("current");
        b
    });
    c.assert_converges(&a, &b, ("a", "b"));
    assert_eq!(port.get("/readyz").status, 200);
}

/// The marker says that there were files, not what is there in the middle of it.
#[test]
fn a_takeover_that_is_half_done_is_no_first_copy() {
    let c = Cluster::local();
    c.source("a", "");
    c.scratch.write("a/tree/large", noise(8, 300 << 20));
    c.scratch.write("b/tree/only here", "1");
    c.mirror("b", "a", "adopt = true\n");
    let port = open(&c, "b");
    let a = c.start("a");
    a.wait_for_state("current");
    let b = start(&c);
    until("a transfer", || c.tree("b").join(".syncagent/partial").exists());
    a.signal(Signal::STOP);
    b.kill();
    std::fs::remove_file(c.tree("b").join("only here")).unwrap();
    let b = start(&c);
    stays(port, 200, &b);
    assert!(!c.tree("b").join("large").exists(), "it came through: this shows nothing");
    a.signal(Signal::CONT);
    c.assert_converges(&a, &b, ("a", "b"));
}
