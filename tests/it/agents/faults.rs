//! What goes wrong: killed agents, sources that change under a transfer.

use std::io::Write as _;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::cluster::{Cluster, noise, run, until};
use crate::support::{Mounted, needs_root, program, tool};

#[test]
fn killed_at_random_points_source_and_mirror_end_equal() {
    let c = Cluster::new(&["a", "b"]);
    c.source("a", "");
    for i in 0..300u64 {
        c.scratch.write(format!("a/tree/d{}/f{i}", i % 17), noise(i, 2_000));
    }
    c.mirror("b", "a", "");
    let (mut a, mut b) = (c.start("a"), c.start("b"));
    let rounds = if std::env::var_os("SYNCAGENT_TEST_LONG").is_some() { 60 } else { 12 };
    for round in 0..rounds {
        for i in 0..40u64 {
            let n = (round * 40 + i) % 300;
            c.scratch.write(format!("a/tree/d{}/f{n}", n % 17), noise(round * 1000 + i, 3_000));
        }
        // every 7 ms further into the work, so that each kill hits another step
        std::thread::sleep(Duration::from_millis(40 + round * 7));
        if round % 3 == 0 {
            a.kill();
            a = c.start("a");
        } else {
            b.kill();
            b = c.start("b");
        }
    }
    c.assert_converges(&a, &b, ("a", "b"));
}

#[test]
fn a_source_file_overwritten_while_it_is_fetched_never_arrives_torn() {
    let c = Cluster::new(&["a", "b"]);
    c.source("a", "");
    c.scratch.write("a/tree/big", noise(0, 64 << 20));
    c.mirror("b", "a", "");
    let (a, b) = (c.start("a"), c.start("b"));
    let seeds: Vec<Vec<u8>> = (1..6).map(|seed| noise(seed, 64 << 20)).collect();
    for content in &seeds {
        c.scratch.write("a/tree/big", content);
        std::thread::sleep(Duration::from_millis(150));
        if let Ok(seen) = std::fs::read(c.tree("b").join("big")) {
            let known = seen == noise(0, 64 << 20) || seeds.contains(&seen);
            assert!(known, "a torn file of {} bytes", seen.len());
        }
    }
    until("the last one", || std::fs::read(c.tree("b").join("big")).is_ok_and(|seen| seen == seeds[4]));
    c.assert_converges(&a, &b, ("a", "b"));
}

#[test]
fn without_a_watch_left_source_and_mirror_go_on_by_polling_and_say_so() {
    let c = Cluster::new(&["a", "b"]);
    let without_watches = || {
        let mut command = Command::new("unshare");
        let limit = "echo 0 > /proc/sys/user/max_inotify_instances && exec \"$0\" \"$@\"";
        command.args(["--user", "--map-root-user", "sh", "-c", limit]).arg(program());
        command
    };
    c.source("a", "");
    c.scratch.write("a/tree/d/x", "1");
    c.mirror("b", "a", "");
    let (a, b) = (c.start_by("a", without_watches()), c.start_by("b", without_watches()));
    c.assert_converges(&a, &b, ("a", "b"));
    for agent in [&a, &b] {
        let watch = agent.tree()["watch"].clone();
        assert_eq!(watch["native"], false);
        assert!(watch["reason"].as_str().unwrap().contains("sysctl"), "{watch}");
    }
    c.scratch.write("a/tree/d/x", "2");
    until("the change", || c.scratch.read("b/tree/d/x") == b"2");
    c.scratch.write("b/tree/d/x", "drift");
    until("the repair", || c.scratch.read("b/tree/d/x") == b"2");
    c.assert_converges(&a, &b, ("a", "b"));
}

/// A directory mounted on itself so that it cannot be written; unmounted when dropped.
struct ReadOnly(std::path::PathBuf);

impl ReadOnly {
    fn new(at: std::path::PathBuf) -> Self {
        std::fs::create_dir_all(&at).unwrap();
        let path = at.as_os_str();
        tool("mount", &["--bind".as_ref(), path, path]);
        let mounted = Self(at.clone());
        tool("mount", &["-o".as_ref(), "remount,bind,ro".as_ref(), path]);
        mounted
    }
}

impl Drop for ReadOnly {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

#[test]
fn a_tree_that_cannot_be_written_is_named_with_the_remedy_also_after_a_reload() {
    if !needs_root("a read-only tree") {
        return;
    }
    let c = Cluster::local();
    c.source("a", "");
    c.scratch.write("a/tree/x", "1");
    c.mirror("b", "a", "");
    let closed = (ReadOnly::new(c.tree("a")), ReadOnly::new(c.tree("b")));
    for node in ["a", "b"] {
        // as systemd starts it
        let mut command = Command::new(program());
        command.env("INVOCATION_ID", "x");
        let agent = c.start_by(node, command);
        until("the finding", || agent.tree()["unwritable"].to_string().contains("Read-only file system"));
        let text = run(&["status", "--socket", agent.socket.to_str().unwrap()]).out;
        assert!(text.contains("! the tree cannot be written: "), "{text}");
        assert!(text.contains("\n      syncagent config systemd > "), "{text}");
        let said = |n: usize| agent.log_text().matches("is read-only here").count() >= n;
        until("the warning", || said(1));
        agent.signal(Signal::HUP);
        until("the warning after a reload", || said(2));
        let checked = run(&["config", "check", "--config", c.config_path(node).to_str().unwrap()]).code(0);
        assert!(checked.err.contains("cannot be written here: Read-only file system"), "{checked:?}");
        agent.stop();
    }
    drop(closed);
    let (a, b) = (c.start("a"), c.start("b"));
    c.assert_converges(&a, &b, ("a", "b"));
    assert!(a.tree().get("unwritable").is_none() && b.tree().get("unwritable").is_none());
}

#[test]
fn a_full_state_directory_is_the_nodes_own_failure_until_there_is_room() {
    if !needs_root("a_full_state_directory_is_the_nodes_own_failure_until_there_is_room") {
        return;
    }
    let c = Cluster::local();
    c.source("a", "settle = \"0s\"\n");
    c.mirror("b", "a", "");
    c.scratch.write("a/tree/x", "1");
    let state = c.path().join("b/state");
    let _disk = Mounted::tmpfs(&state, "size=24m");
    let (a, b) = (c.start("a"), c.start("b"));
    c.assert_converges(&a, &b, ("a", "b"));
    let mut fill = std::fs::File::create(state.join("fill")).unwrap();
    while fill.write_all(&[1; 4096]).is_ok() {}
    // many directories: more than what a log that was made before has room for
    for i in 0..500 {
        c.scratch.write(format!("a/tree/d{i}/x"), format!("{i}"));
    }
    b.wait_for_state("failed");
    let own = b.own();
    let (what, faults) = (own["error"]["what"].to_string(), own["faults"].to_string());
    assert!(what.contains("No space left") && what.contains(state.to_str().unwrap()), "{own:#}");
    assert!(faults.contains("failed"), "{faults}");
    // also while it is tried again
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(4) {
        let own = b.own();
        assert!(own["faults"].to_string().contains("failed: "), "{own:#}");
    }
    std::fs::remove_file(state.join("fill")).unwrap();
    drop(fill);
    c.assert_converges(&a, &b, ("a", "b"));
    assert_eq!(b.own()["faults"].to_string(), "[]");
}
