//! Holds when things go wrong: an agent that does not come back, a tree that is opened anew, a state directory that is
//! lost; and who ended them.

use std::process::Child;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::cluster::{Agent, Cluster, run, until, within};
use super::operate::{flush, hold, hold_until, number, pair};
use crate::support::{is_root, program};

/// Lets the command of [`hold_until`] end, also when a check fails.
struct Go<'a>(&'a Cluster);

impl Drop for Go<'_> {
    fn drop(&mut self) {
        self.0.scratch.write("go", "");
    }
}

/// Whether the process has children.
fn has_children(of: &Child) -> bool {
    let of = of.id().to_string();
    std::fs::read_dir("/proc").unwrap().flatten().any(|process| {
        let stat = std::fs::read_to_string(process.path().join("stat")).unwrap_or_default();
        let mut fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
        fields.nth(1) == Some(of.as_str())
    })
}

fn signal(job: &Child, signal: Signal) {
    kill_process(Pid::from_child(job), signal).unwrap();
}

/// A job whose command has ended by `then`, and that finds no agent to tell.
fn waits_for_the_agent(c: &Cluster, a: Agent, then: &str) -> Child {
    let job = hold_until(c, &a, then);
    a.kill();
    c.scratch.write("go", "");
    until("the end of the command", || !has_children(&job));
    job
}

#[test]
fn a_second_signal_ends_a_hold_that_waits_for_its_agent_and_the_tree_stays_held() {
    let (c, a, _b) = pair("settle = \"0s\"\n", "");
    let before = number(&a);
    let _go = Go(&c);
    let mut job = waits_for_the_agent(&c, a, "true");
    signal(&job, Signal::TERM);
    // one alone does not: what was written would stay unpublished
    assert!(!within(Duration::from_millis(700), || job.try_wait().unwrap().is_some()));
    let begun = Instant::now();
    signal(&job, Signal::INT);
    let out = job.wait_with_output().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    let said = String::from_utf8(out.stderr).unwrap();
    assert_eq!(out.status.code(), Some(125), "{said}");
    assert!(said.contains("a second signal ends this at once"), "{said}");
    assert!(said.contains("t stays held until") && said.contains("--release"), "{said}");
    let a = c.start("a");
    until("the failure", || a.tree()["hold"]["failed"].is_string());
    flush(&a).code(7);
    assert_eq!(number(&a), before);
    a.order(&["hold", "t", "--release"]).code(0);
    until("the publication", || number(&a) == before + 1);
}

#[test]
fn a_signal_that_was_for_the_command_is_the_first() {
    let (c, a, _b) = pair("settle = \"0s\"\n", "");
    let _go = Go(&c);
    let job = hold_until(&c, &a, "true");
    a.kill();
    // ends the command, by a signal
    signal(&job, Signal::TERM);
    until("the end of the command", || !has_children(&job));
    signal(&job, Signal::TERM);
    let out = job.wait_with_output().unwrap();
    // the command failed, and its code tells of that
    assert_eq!(out.status.code(), Some(128 + 15), "{out:?}");
    assert!(String::from_utf8_lossy(&out.stderr).contains("ended by a second signal"), "{out:?}");
}

#[test]
fn a_release_says_and_logs_who_released() {
    let (_c, a, _b) = pair("settle = \"0s\"\n", "");
    hold(&a, "exit 3").code(3);
    let ran = a.order(&["hold", "t", "--release"]).code(0);
    let by = if is_root() { "t is released by root" } else { "t is released by " };
    assert!(ran.err.contains(by) && ran.err.contains("(process "), "{ran:?}");
    let log = a.log_text();
    let line = log.lines().find(|line| line.contains("released by")).unwrap();
    assert!(line.contains("(process ") && line.contains("it was held by"), "{line}");
}

#[test]
fn a_tree_that_is_opened_anew_has_one_watcher_for_its_hold() {
    let (c, a, _b) = pair("settle = \"0s\"\n", "");
    let _go = Go(&c);
    let mut job = hold_until(&c, &a, "true");
    let tasks = format!("/proc/{}/task", a.pid().as_raw_nonzero());
    let watchers = || {
        let tasks = std::fs::read_dir(&tasks).unwrap().flatten();
        let name = |t: std::fs::DirEntry| std::fs::read_to_string(t.path().join("comm")).unwrap_or_default();
        tasks.map(name).filter(|name| name.trim() == "holder").count()
    };
    assert_eq!(watchers(), 1);
    let (tree, away) = (c.tree("a"), c.path().join("a/away"));
    for _ in 0..2 {
        std::fs::rename(&tree, &away).unwrap();
        until("that the tree is missed", || {
            flush(&a);
            a.own()["state"] == "failed"
        });
        std::fs::rename(&away, &tree).unwrap();
        a.wait_for_state("held");
    }
    assert_eq!(watchers(), 1);
    // and it still does its work
    job.kill().unwrap();
    job.wait().unwrap();
    until("the failure", || a.tree()["hold"]["failed"].is_string());
    until("its end", || watchers() == 0);
}

fn lose_the_state(c: &Cluster) {
    std::fs::remove_dir_all(c.path().join("a/state")).unwrap();
}

#[test]
fn a_failed_hold_outlives_the_loss_of_the_state_directory() {
    let (c, a, b) = pair("settle = \"0s\"\n", "");
    let before = number(&a);
    let half = c.tree("a").join("half");
    hold(&a, &format!("echo half > {}; exit 3", half.display())).code(3);
    a.stop();
    lose_the_state(&c);
    let a = c.start("a");
    until("the hold", || a.tree()["hold"]["failed"].is_string());
    let held = a.tree()["hold"].clone();
    assert!(held["failed"].as_str().unwrap().contains("state directory was lost"), "{held}");
    assert!(held["command"].as_str().unwrap().contains("exit 3"), "{held}");
    flush(&a).code(7);
    assert!(!c.tree("b").join("half").exists());
    // written down again, and marked still
    a.kill();
    let a = c.start("a");
    until("the hold", || a.tree()["hold"]["failed"].is_string());
    a.order(&["hold", "t", "--release"]).code(0);
    until("the file", || c.tree("b").join("half").exists());
    assert_eq!(number(&a), before + 1);
    c.assert_converges(&a, &b, ("a", "b"));
    // the mark went with the hold
    assert!(!c.tree("a").join(".syncagent/hold").exists());
    a.stop();
    lose_the_state(&c);
    let a = c.start("a");
    super::operate::published(&a);
    assert!(a.tree()["hold"].is_null(), "{:#}", a.tree());
}

#[test]
fn a_job_that_still_runs_publishes_what_it_wrote_although_the_state_directory_was_lost() {
    let (c, a, b) = pair("settle = \"0s\"\n", "");
    let _go = Go(&c);
    let mut job = hold_until(&c, &a, &format!("echo all > {}/half", c.tree("a").display()));
    a.kill();
    lose_the_state(&c);
    let a = c.start("a");
    until("the hold", || a.tree()["hold"].is_object());
    assert!(a.tree()["hold"]["failed"].is_null(), "{:#}", a.tree());
    flush(&a).code(7);
    assert!(!c.tree("b").join("half").exists());
    c.scratch.write("go", "");
    assert_eq!(job.wait().unwrap().code(), Some(0));
    until("the file", || c.tree("b").join("half").exists());
    assert_eq!(c.scratch.read("b/tree/half"), b"all\n");
    c.assert_converges(&a, &b, ("a", "b"));
    assert!(!c.tree("a").join(".syncagent/hold").exists());
}

#[test]
fn a_mark_that_cannot_be_read_is_a_hold_all_the_same() {
    let (c, a, _b) = pair("settle = \"0s\"\n", "");
    let before = number(&a);
    a.stop();
    c.scratch.write("a/tree/.syncagent/hold", "{\"id\":");
    c.scratch.write("a/tree/x", "2");
    let a = c.start("a");
    until("the hold", || a.tree()["hold"]["failed"].is_string());
    flush(&a).code(7);
    assert_eq!(number(&a), before);
    hold(&a, "true").code(0);
    assert_eq!(number(&a), before + 1);
}

/// Nothing says that what the failed one left is whole.
#[test]
fn a_hold_whose_command_cannot_be_run_leaves_a_failed_one_as_it_was() {
    let c = Cluster::local();
    c.source("a", "");
    c.scratch.write("a/tree/app.conf", "1");
    let a = c.start("a");
    a.wait_for_state("current");
    let head = a.tree()["head"].clone();
    let half = format!("echo HALF > {}/app.conf; exit 3", c.tree("a").display());
    hold(&a, &half).code(3);
    let not_begun =
        |a: &Agent, command: &str| run(&["hold", "t", "--socket", a.socket.to_str().unwrap(), "--", command]);
    for (command, code) in [("/no/such/deploy.sh", 127), ("/etc/passwd", 126)] {
        let ran = not_begun(&a, command);
        assert!(ran.code == code && ran.err.contains("stays held"), "{ran:?}");
    }
    a.order(&["wait", "t", "--timeout", "1s"]).code(7);
    assert_eq!((a.tree()["head"].clone(), &a.own()["state"]), (head.clone(), &"held".into()));
    assert!(a.tree()["hold"]["failed"].as_str().unwrap().contains("exit code 3"), "{:#}", a.tree()["hold"]);
    // also over a restart
    a.kill();
    let a = c.start("a");
    until("it is held", || a.own()["state"] == "held");
    hold(&a, "true").code(0);
    until("a publication", || a.tree()["head"] != head);
    // without one before it nothing is held
    let ran = not_begun(&a, "/no/such/deploy.sh").code(127);
    assert!(ran.err.contains("not held"), "{ran:?}");
    assert!(a.tree()["hold"].is_null());
}

#[test]
fn the_command_of_a_hold_that_is_killed_is_ended_and_writes_no_more() {
    let c = Cluster::local();
    c.source("a", "");
    c.scratch.write("a/tree/x", "0");
    let a = c.start("a");
    a.wait_for_state("current");
    let at = c.path().display();
    let writes = format!("echo $$ > {at}/pid; while :; do date +%N > {at}/a/tree/x; sleep 0.02; done");
    let mut job = std::process::Command::new(program())
        .args(["hold", "t", "--socket", a.socket.to_str().unwrap(), "--", "sh", "-c", &writes])
        .spawn()
        .unwrap();
    until("its writes", || c.path().join("pid").exists() && c.scratch.read("a/tree/x") != b"0");
    let pid = String::from_utf8(c.scratch.read("pid")).unwrap();
    let alive = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
        stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
    };
    assert!(alive());
    signal(&job, Signal::KILL);
    job.wait().unwrap();
    until("the end of its command", || !alive());
    until("that it is held", || a.own()["state"] == "held" && a.tree()["hold"]["failed"].is_string());
}

#[test]
fn a_command_does_not_begin_when_its_hold_is_gone_already() {
    let c = Cluster::local();
    let mark = c.path().join("mark");
    for (parent, begins) in [(1, false), (std::process::id(), true)] {
        let ran = run(&["hold-exec", &parent.to_string(), "--", "touch", mark.to_str().unwrap()]);
        assert_eq!((ran.code == 0, mark.exists()), (begins, begins), "{ran:?}");
    }
}
