//! What a rollback needs and the source has no more comes from its mirrors' trash.

use std::path::PathBuf;
use std::process::Command;

use rustix::process::Signal;
use serde_json::Value;

use super::cluster::{Agent, Cluster, eventually, noise, until};
use super::rollback::{id, retention};
use crate::support::{chmod, needs_root, program};

/// The source keeps nothing and loses its trash; the mirrors keep what they displaced.
fn source(c: &Cluster, keys: &str) {
    c.source("a", &format!("keep = 0\n{keys}"));
}

/// Files of several pieces, of one, and of none.
fn write(c: &Cluster, round: u64) {
    c.scratch.write("a/tree/large", noise(round, 3_300_000));
    c.scratch.write("a/tree/d/small", noise(round + 100, 5_000));
    c.scratch.write("a/tree/d/other", noise(round + 200, 5_000));
    c.scratch.write("a/tree/same", "the same");
}

fn on_all(a: &Agent, mirrors: &[&Agent], before: &Value) -> Value {
    until("a publication", || {
        let tree = a.tree();
        tree["head"] != *before
            && tree["nodes"][0]["state"] == "current"
            && tree["unpublished_age_ms"].is_null()
    });
    let head = a.tree()["head"].clone();
    for mirror in mirrors {
        let there = eventually(|| mirror.own()["generation"] == head && mirror.own()["state"] == "current");
        assert!(there, "{:#}\n{}", mirror.own(), mirror.log_tail());
    }
    head
}

/// Two generations on all; then the source has nothing of the first one.
fn two(c: &Cluster, a: &Agent, mirrors: &[&Agent]) -> (Value, String) {
    let first = on_all(a, mirrors, &Value::Null);
    let digest = c.digest("a");
    write(c, 2);
    on_all(a, mirrors, &first);
    until("nothing is kept", || retention(a)["generations"] == 0);
    a.order(&["trash", "t", "empty", "--yes"]).code(0);
    (first, digest)
}

fn sought(c: &Cluster) -> PathBuf {
    c.tree("a").join(".syncagent/sought")
}

#[test]
fn a_mirrors_trash_gives_back_what_the_source_has_no_more() {
    let c = Cluster::new(&["a", "b", "c"]);
    source(&c, "");
    c.mirror("b", "a", "");
    c.mirror("c", "a", "");
    write(&c, 1);
    let (a, b, d) = (c.start("a"), c.start("b"), c.start("c"));
    let (first, digest) = two(&c, &a, &[&b, &d]);
    let second = a.tree()["head"].clone();
    // a dry run fetches nothing, and says where it would come from
    let dry = a.order(&["rollback", "t", "--to", &id(&first), "--dry-run", "--json"]).code(0);
    let answer: Value = serde_json::from_str(&dry.out).unwrap();
    let from = |answer: &Value| -> u64 {
        answer["mirrors"].as_object().unwrap().values().map(|n| n.as_u64().unwrap()).sum()
    };
    assert_eq!(from(&answer), 3, "{answer}");
    assert_eq!(a.tree()["head"], second);
    assert!(!sought(&c).exists());
    let ran = a.order(&["rollback", "t", "--to", &id(&first), "--json"]).code(0);
    let answer: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(from(&answer), 3, "{answer}");
    assert!(answer["message"].as_str().unwrap().contains("from mirror "), "{answer}");
    assert_eq!(c.digest("a"), digest);
    assert!(!sought(&c).exists());
    c.assert_converges(&a, &b, ("a", "b"));
    c.assert_converges(&a, &d, ("a", "c"));
    // a mirror hears within a second that the round is over; one content, or more
    let is_logged = || (b.log_text() + &d.log_text()).contains(" to the source, for a rollback");
    assert!(eventually(is_logged), "{}\n{}", b.log_text(), d.log_text());
}

#[test]
fn what_nobody_has_is_refused_and_says_who_was_asked() {
    let c = Cluster::local();
    source(&c, "");
    for node in ["b", "c", "d"] {
        c.mirror(node, "a", "");
    }
    write(&c, 1);
    let (a, b, e, d) = (c.start("a"), c.start("b"), c.start("c"), c.start("d"));
    let (first, _) = two(&c, &a, &[&b, &e, &d]);
    for mirror in [&b, &e, &d] {
        mirror.order(&["trash", "t", "empty", "--yes"]).code(0);
    }
    d.kill();
    until("it is missed", || a.row("d")["connected"] == false);
    let before = c.digest("a");
    let ran = a.order(&["rollback", "t", "--to", &id(&first)]).code(4);
    for part in ["3 files is gone", "d/small", "without it, too: b, c", "not connected: d"] {
        assert!(ran.err.contains(part), "{part}: {ran:?}");
    }
    assert_eq!(c.digest("a"), before);
    assert!(!sought(&c).exists());
}

/// The whole tree of a mirror that has not taken the newest generation counts, too.
#[test]
fn a_paused_mirror_gives_what_is_still_in_its_tree_and_what_was_renamed_is_found() {
    let c = Cluster::local();
    source(&c, "");
    c.mirror("b", "a", "");
    c.mirror("c", "a", "keep = 0\n");
    write(&c, 1);
    let (a, b, d) = (c.start("a"), c.start("b"), c.start("c"));
    let first = on_all(&a, &[&b, &d], &Value::Null);
    let digest = c.digest("a");
    // it lies in b's trash at another path than it had in the first generation
    // each of these is one generation: with a second one the trash would keep less
    a.order(&["pause", "t"]).code(0);
    std::fs::rename(c.tree("a").join("d/small"), c.tree("a").join("moved")).unwrap();
    a.order(&["resume", "t"]).code(0);
    let moved = on_all(&a, &[&b, &d], &first);
    d.order(&["pause", "t"]).code(0);
    a.order(&["pause", "t"]).code(0);
    std::fs::remove_file(c.tree("a").join("moved")).unwrap();
    write(&c, 2);
    std::fs::remove_file(c.tree("a").join("d/small")).unwrap();
    a.order(&["resume", "t"]).code(0);
    on_all(&a, &[&b], &moved);
    a.order(&["trash", "t", "empty", "--yes"]).code(0);
    let trash = c.tree("b").join(".syncagent/trash");
    for entry in walkdir::WalkDir::new(&trash).into_iter().flatten() {
        // only the paused one has these
        if ["large", "other"].contains(&entry.file_name().to_str().unwrap()) {
            std::fs::remove_file(entry.path()).unwrap();
        }
    }
    let ran = a.order(&["rollback", "t", "--to", &id(&first), "--json"]).code(0);
    let answer: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(answer["mirrors"], serde_json::json!({"b": 1, "c": 2}), "{answer}");
    assert_eq!(c.digest("a"), digest);
}

#[test]
fn damaged_content_of_one_mirror_is_not_taken_and_the_other_one_is_asked() {
    let c = Cluster::local();
    source(&c, "");
    c.mirror("b", "a", "");
    c.mirror("c", "a", "");
    write(&c, 1);
    let (a, b, d) = (c.start("a"), c.start("b"), c.start("c"));
    let (first, digest) = two(&c, &a, &[&b, &d]);
    // of the same size, and not what it was
    for entry in walkdir::WalkDir::new(c.tree("b").join(".syncagent/trash")).into_iter().flatten() {
        if entry.file_type().is_file() {
            chmod(entry.path(), 0o600);
            let mut bytes = std::fs::read(entry.path()).unwrap();
            bytes[0] ^= 1;
            std::fs::write(entry.path(), bytes).unwrap();
        }
    }
    let ran = a.order(&["rollback", "t", "--to", &id(&first), "--json"]).code(0);
    let answer: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(answer["mirrors"], serde_json::json!({"c": 3}), "{answer}");
    assert_eq!(c.digest("a"), digest);
    c.assert_converges(&a, &b, ("a", "b"));
}

/// The source's disk is too small for what would have to come.
#[test]
fn what_does_not_fit_is_refused_before_it_is_fetched() {
    if !needs_root("what_does_not_fit_is_refused_before_it_is_fetched") {
        return;
    }
    let c = Cluster::local();
    std::fs::create_dir_all(c.tree("a")).unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=8m", "tmpfs"])
        .arg(c.tree("a"))
        .status()
        .unwrap();
    assert!(mounted.success());
    struct Mounted(PathBuf);
    impl Drop for Mounted {
        fn drop(&mut self) {
            let _ = Command::new("umount").arg("-l").arg(&self.0).status();
        }
    }
    let _mounted = Mounted(c.tree("a"));
    source(&c, "");
    c.mirror("b", "a", "");
    write(&c, 1);
    let (a, b) = (c.start("a"), c.start("b"));
    let (first, _) = two(&c, &a, &[&b]);
    c.scratch.write("a/tree/filler", noise(9, 2_000_000));
    on_all(&a, &[&b], &a.tree()["head"].clone());
    let before = c.digest("a");
    let ran = a.order(&["rollback", "t", "--to", &id(&first)]).code(4);
    assert!(ran.err.contains("inodes are free. Nothing was changed"), "{ran:?}");
    assert_eq!(c.digest("a"), before);
    assert!(!sought(&c).exists());
}

#[test]
fn killed_while_contents_arrive_neither_side_keeps_half_of_anything() {
    let c = Cluster::local();
    source(&c, "");
    c.mirror("b", "a", "");
    write(&c, 1);
    c.scratch.write("a/tree/huge", noise(50, 60_000_000));
    let (mut a, mut b) = (c.start("a"), c.start("b"));
    let first = on_all(&a, &[&b], &Value::Null);
    let old = c.digest("a");
    c.scratch.write("a/tree/huge", "small");
    write(&c, 2);
    on_all(&a, &[&b], &first);
    let new = c.digest("a");
    until("nothing is kept", || retention(&a)["generations"] == 0);
    a.order(&["trash", "t", "empty", "--yes"]).code(0);
    for kill_source in [true, false] {
        let mut order = Command::new(program())
            .args(["rollback", "t", "--to", &id(&first), "--socket"])
            .arg(&a.socket)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        until("it arrives", || {
            let all = walkdir::WalkDir::new(sought(&c)).into_iter().flatten();
            all.filter_map(|e| e.metadata().ok()).any(|m| m.is_file() && m.len() > 0)
        });
        if kill_source {
            a.kill();
            order.wait().unwrap();
            a = c.start("a");
            a.wait_for_state("current");
            assert!(!sought(&c).exists(), "it is left");
            assert_eq!(c.digest("a"), new, "a mix");
            c.assert_converges(&a, &b, ("a", "b"));
        } else {
            b.kill();
            b = c.start("b");
            // the mirror is back, and is asked again; or it came too late for that
            let code = order.wait().unwrap().code().unwrap();
            let now = c.digest("a");
            assert!(code == 0 && now == old || code == 4 && now == new, "{code}\n{}", a.log_tail());
            assert!(!sought(&c).exists());
        }
    }
    a.order(&["rollback", "t", "--to", &id(&first)]);
    assert_eq!(c.digest("a"), old);
    c.assert_converges(&a, &b, ("a", "b"));
}

/// An order by the program, and what it said.
fn order(a: &Agent) -> std::process::Child {
    Command::new(program())
        .args(["rollback", "t", "--socket"])
        .arg(&a.socket)
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn what_is_published_after_the_order_is_not_undone_and_who_left_orders_nothing() {
    let c = Cluster::local();
    source(&c, "");
    c.mirror("b", "a", "");
    write(&c, 1);
    let (a, b) = (c.start("a"), c.start("b"));
    let (_, digest) = two(&c, &a, &[&b]);
    let sought = |a: &Agent| a.log_text().matches("contents for a rollback are sought").count();
    // who orders it leaves before the mirror answers
    b.signal(Signal::STOP);
    let mut left = order(&a);
    until("it is sought", || sought(&a) == 1);
    let new = c.digest("a");
    assert!(a.order(&["rollback", "t"]).code(6).err.contains("another rollback"));
    let began = std::time::Instant::now();
    rustix::process::kill_process(rustix::process::Pid::from_child(&left), Signal::TERM).unwrap();
    left.wait().unwrap();
    assert!(began.elapsed() < std::time::Duration::from_secs(10), "it goes at the first signal");
    // the next one waits for the mirror, too, and something is published meanwhile
    let second = until_ordered(&a, &sought);
    c.scratch.write("a/tree/other", "other");
    let head = a.tree()["head"].clone();
    until("a publication", || a.tree()["head"] != head);
    let head = a.tree()["head"].clone();
    b.signal(Signal::CONT);
    let out = second.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.code() == Some(4) && said.contains("published generation"), "{out:?}");
    assert_eq!((a.tree()["head"].clone(), c.scratch.read("a/tree/other")), (head, b"other".to_vec()));
    assert_ne!(c.digest("a"), new);
    a.order(&["rollback", "t", "--to", "1.1"]).code(0);
    assert_eq!(c.digest("a"), digest);
}

/// The seeking of an order that was left ends soon; then this one seeks.
fn until_ordered(a: &Agent, sought: &dyn Fn(&Agent) -> usize) -> std::process::Child {
    let mut child = None;
    until("it seeks", || {
        let ended = child.as_mut().is_none_or(|c: &mut std::process::Child| c.try_wait().unwrap().is_some());
        if ended {
            child = Some(order(a));
        }
        sought(a) > 1
    });
    child.unwrap()
}
