//! What is written down of rollbacks and holds, when it outlives what it was written for, or meets something else.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use super::cluster::{Agent, Cluster, eventually, until};
use super::operate::{flush, hold, hold_until, number, pair};
use super::rollback::{Loop, id, published, settled, two_generations};
use crate::support::needs_root;

/// The source's state of its tree.
fn state(c: &Cluster) -> PathBuf {
    let trees = std::fs::read_dir(c.path().join("a/state/trees")).unwrap();
    trees
        .flatten()
        .map(|e| e.path())
        .find(|p| p.join("orders.json").exists() || p.join("published.db").exists())
        .unwrap()
}

/// The record of a rollback of which nobody knows how it ended, or that is done.
fn record(phase: &str, to: &Value, against: &Value) -> Value {
    let digest = "5".repeat(64);
    let header = json!({"mode": 0o755, "owner": {"user": "", "group": ""}});
    let root = json!({"object": digest, "content": digest, "header": header});
    json!({"to": to, "root": root, "approved": null, "phase": phase, "against": against})
}

fn put(c: &Cluster, record: &Value) {
    std::fs::write(state(c).join("rollback.json"), record.to_string()).unwrap();
}

fn newest(a: &Agent) -> String {
    a.order(&["history", "t"]).code(0).out.lines().next().unwrap().to_owned()
}

#[test]
fn the_record_of_a_rollback_counts_for_what_it_was_planned_against_and_for_nothing_later() {
    let c = Cluster::local();
    let (mut a, first, mut head) = two_generations(&c, "");
    for phase in ["Staged", "Done"] {
        a.kill();
        put(&c, &record(phase, &first, &first));
        c.scratch.write("a/tree/later", phase);
        a = c.start("a");
        head = published(&a, &head);
        assert!(!newest(&a).contains("rollback"), "{phase}: {}", newest(&a));
        assert!(!state(&c).join("rollback.json").exists(), "{phase}");
    }
    // one that was planned against the newest counts
    a.kill();
    put(&c, &record("Staged", &first, &head));
    c.scratch.write("a/tree/later", "again");
    a = c.start("a");
    until("the hold", || a.tree()["hold"]["failed"].is_string());
    assert!(a.tree()["hold"]["failed"].as_str().unwrap().contains("was cut off"), "{:#}", a.tree()["hold"]);
    assert_eq!(a.tree()["head"], head);
    assert!(!state(&c).join("rollback.json").exists());
}

fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
}

/// The tree itself says that there were later generations.
#[test]
fn a_record_that_comes_back_with_a_restored_state_directory_holds_nothing() {
    let c = Cluster::local();
    let (a, first, second) = two_generations(&c, "");
    a.kill();
    let (state_dir, backup) = (c.path().join("a/state"), c.path().join("backup"));
    copy(&state_dir, &backup);
    let a = c.start("a");
    c.scratch.write("a/tree/later", "1");
    let third = published(&a, &second);
    a.kill();
    std::fs::remove_dir_all(&state_dir).unwrap();
    copy(&backup, &state_dir);
    put(&c, &record("Staged", &first, &second));
    let a = c.start("a");
    until("a publication", || a.tree()["head"].is_object() && number(&a) > third["number"].as_u64().unwrap());
    assert!(a.tree()["hold"].is_null(), "{:#}", a.tree()["hold"]);
    assert!(!newest(&a).contains("rollback"), "{}", newest(&a));
}

/// A note of what did not come into place is a commit's own: one of before is not taken for this one's.
#[test]
fn a_rollback_without_errors_leaves_no_note_of_an_earlier_one() {
    let c = Cluster::local();
    let (a, first, _) = two_generations(&c, "");
    let left = c.tree("a").join(".syncagent/unplaced");
    let path: &[u8] = b"big";
    let note = json!({"seq": 1, "paths": [{"path": path, "error": "immutable", "name": true}]});
    std::fs::write(&left, note.to_string()).unwrap();
    a.order(&["rollback", "t", "--to", &id(&first)]).code(0);
    assert!(!left.exists());
    let head = a.tree()["head"].clone();
    a.kill();
    let a = c.start("a");
    a.wait_for_state("current");
    assert_eq!((a.tree()["head"].clone(), a.tree()["hold"].clone()), (head, Value::Null));
}

/// The order writes its own record first; when that is all that a crash leaves, the one before it counts.
#[test]
fn an_order_that_a_crash_ends_at_its_beginning_does_not_hide_an_unresolved_rollback() {
    let c = Cluster::local();
    let (a, first, second) = two_generations(&c, "");
    a.kill();
    let mut begun = record("Begun", &first, &second);
    begun["before"] = record("Staged", &first, &second);
    put(&c, &begun);
    c.scratch.write("a/tree/mixture", "half");
    let a = c.start("a");
    until("the hold", || a.tree()["hold"]["failed"].is_string());
    assert!(a.tree()["hold"]["failed"].as_str().unwrap().contains("was cut off"), "{:#}", a.tree()["hold"]);
    assert_eq!(a.tree()["head"], second);
    // repeating it is the way out
    a.order(&["rollback", "t", "--to", &id(&first)]).code(0);
    assert!(a.tree()["hold"].is_null());
    assert!(!state(&c).join("rollback.json").exists());
}

/// What becomes of a job's hold when the agent is killed while the job runs, and finds `left` at its start.
fn job_goes_on(left: impl FnOnce(&Cluster, &Agent) -> Box<dyn FnOnce(&Cluster)>) {
    let (c, a, b) = pair("settle = \"0s\"\n", "");
    let first = a.tree()["head"].clone();
    c.scratch.write("a/tree/y", "2");
    c.assert_converges(&a, &b, ("a", "b"));
    let before = number(&a);
    let put = left(&c, &a);
    let mut job = hold_until(&c, &a, &format!("echo all > {}/half", c.tree("a").display()));
    a.kill();
    put(&c);
    let a = c.start("a");
    // looked at, in full
    assert!(eventually(|| a.own()["state"] == "held"), "{}", a.log_tail());
    flush(&a).code(7);
    let held = a.tree()["hold"].clone();
    assert!(held["failed"].is_null() && held["command"].as_str().unwrap().starts_with("sh -c"), "{held:#}");
    let ran = a.order(&["rollback", "t", "--to", &id(&first)]).code(4);
    assert!(ran.err.contains("t is held"), "{ran:?}");
    assert_eq!((number(&a), c.scratch.read("a/tree/half")), (before, b"half\n".to_vec()));
    c.scratch.write("go", "");
    let code = job.wait().unwrap().code();
    assert_eq!(code, Some(0), "{}", a.log_tail());
    assert_eq!(number(&a), before + 1);
    assert!(a.tree()["hold"].is_null(), "{:#}", a.tree()["hold"]);
    assert!(!newest(&a).contains("rollback"), "{}", newest(&a));
    c.assert_converges(&a, &b, ("a", "b"));
    assert_eq!(c.scratch.read("b/tree/half"), b"all\n");
}

#[test]
fn the_hold_of_a_running_job_outlives_a_start_that_does_not_know_how_a_rollback_ended() {
    job_goes_on(|_, a| {
        let head = a.tree()["head"].clone();
        Box::new(move |c| put(c, &record("Staged", &head, &head)))
    });
}

#[test]
fn the_hold_of_a_running_job_outlives_a_start_that_finds_a_commit_partly_in_place() {
    job_goes_on(|_, a| {
        let head = a.tree()["head"].clone();
        Box::new(move |c| {
            put(c, &record("Staged", &head, &head));
            // a source has no count of commits: what is left of one is of number 0
            let left = json!({"seq": 0, "paths": [{"path": [b'y'], "error": "left alone", "name": true}]});
            c.scratch.write("a/tree/.syncagent/unplaced", left.to_string());
        })
    });
}

fn remount(tree: &Path, how: &str) {
    let done = Command::new("mount").args(["-o", &format!("remount,{how}")]).arg(tree).output().unwrap();
    assert!(done.status.success(), "{done:?}");
}

#[test]
fn a_hold_that_is_released_while_the_tree_is_read_only_stays_released() {
    if !needs_root("a_hold_that_is_released_while_the_tree_is_read_only_stays_released") {
        return;
    }
    let c = Cluster::local();
    c.source("a", "settle = \"0s\"\n");
    let image = c.path().join("image");
    let Some(_mount) = Loop::mount_of(&image, &c.tree("a"), &["mkfs.ext4", "-q"], 16 << 20) else { return };
    c.scratch.write("a/tree/x", "1");
    let a = c.start("a");
    settled(&a);
    let first = a.tree()["head"].clone();
    hold(&a, &format!("echo 2 > {}/x; exit 3", c.tree("a").display())).code(3);
    let mark = c.tree("a").join(".syncagent/hold");
    assert!(mark.exists());
    a.kill();
    remount(&c.tree("a"), "ro");
    let a = c.start("a");
    until("the hold", || a.own()["state"] == "held");
    a.order(&["hold", "t", "--release"]).code(0);
    until("a publication", || a.tree()["head"] != first);
    let second = a.tree()["head"].clone();
    assert!(mark.exists());
    a.kill();
    // neither does a start that still cannot write hold it, nor the first one that can
    let a = c.start("a");
    a.wait_for_state("current");
    assert!(a.tree()["hold"].is_null(), "{:#}", a.tree()["hold"]);
    a.kill();
    remount(&c.tree("a"), "rw");
    let a = c.start("a");
    a.wait_for_state("current");
    assert!(a.tree()["hold"].is_null(), "{:#}", a.tree()["hold"]);
    assert!(!mark.exists());
    c.scratch.write("a/tree/x", "3");
    published(&a, &second);
    // and a hold of later is one
    hold(&a, "exit 3").code(3);
    a.kill();
    std::fs::remove_dir_all(c.path().join("a/state")).unwrap();
    let a = c.start("a");
    until("the hold", || a.tree()["hold"]["failed"].is_string());
}
