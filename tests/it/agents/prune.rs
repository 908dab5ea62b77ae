//! What old trash has to go goes after the local server was told, and room is made where the disk is full.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use super::cluster::{Agent, Cluster, noise, until, within};
use crate::support::{Mounted, needs_root};

/// A mirror whose server notes with each telling which commits are in the trash, and hangs while `hangs` is there.
fn pair(mirror: &str) -> Cluster {
    let c = Cluster::local();
    c.source("a", "settle = \"0s\"\nmax-delete = \"100%\"\n");
    c.scratch.write("a/tree/x", "0");
    let at = c.path().join("b");
    std::fs::create_dir_all(&at).unwrap();
    let script = format!(
        "#!/bin/sh\ncd {at}\necho $SYNCAGENT_GENERATION $(ls tree/.syncagent/trash) >> told\n[ -e hangs ] && exec sleep 60\n\
         exit 0\n",
        at = at.display()
    );
    let path = at.join("refresh");
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    let rule = format!(
        "{mirror}[[tree.t.refresh]]\nname = \"server\"\nexec = [\"{}\"]\ntimeout = \"1min\"\n",
        path.display()
    );
    c.mirror("b", "a", &rule);
    c
}

fn commits(tree: &Path) -> Vec<u64> {
    let entries = std::fs::read_dir(tree.join(".syncagent/trash")).into_iter().flatten().flatten();
    let mut all: Vec<u64> =
        entries.filter_map(|e| e.file_name().to_str().and_then(|name| name.parse().ok())).collect();
    all.sort_unstable();
    all
}

/// Writes `text` to x, and waits until the cluster has it.
#[track_caller]
fn change(c: &Cluster, a: &Agent, text: &str) {
    c.scratch.write("a/tree/x", text);
    a.order(&["wait", "t"]).code(0);
}

#[test]
fn a_server_is_told_before_old_trash_goes() {
    for keep in ["", "keep = 0\n", "activate = \"swap\"\n"] {
        let c = pair(keep);
        let (a, b) = (c.start("a"), c.start("b"));
        c.assert_converges(&a, &b, ("a", "b"));
        for i in 1..6 {
            change(&c, &a, &i.to_string());
            // the one before is still there, beside the one of this change
            let told = String::from_utf8(c.scratch.read("b/told")).unwrap();
            let there = told.lines().last().unwrap().split(' ').count() - 1;
            let kept = if keep.starts_with("keep") { 0 } else { 1 };
            assert_eq!(there, kept + usize::from(i > 1 || kept == 0), "{keep:?}: {told}\n{}", b.log_tail());
            until("the pruning", || commits(&c.tree("b")).len() == kept);
        }
    }
}

/// One whose server hangs while it is told of the second change.
fn hanging() -> (Cluster, Agent, Agent) {
    let c = pair("");
    let (a, b) = (c.start("a"), c.start("b"));
    c.assert_converges(&a, &b, ("a", "b"));
    change(&c, &a, "1");
    c.scratch.write("b/hangs", "");
    c.scratch.write("a/tree/x", "2");
    until("the change", || c.scratch.read("b/tree/x") == b"2" && b.own()["state"] == "refreshing");
    (c, a, b)
}

#[test]
fn what_a_crash_kept_from_being_pruned_goes_with_the_next_start() {
    let (c, _a, b) = hanging();
    let before = commits(&c.tree("b"));
    assert_eq!(before.len(), 2, "{before:?}");
    b.kill();
    std::fs::remove_file(c.path().join("b/hangs")).unwrap();
    let _b = c.start("b");
    until("the pruning", || commits(&c.tree("b")) == before[1..]);
}

#[test]
fn a_server_that_hangs_holds_up_the_pruning_for_seconds_only() {
    let (c, _a, b) = hanging();
    until("the pruning", || commits(&c.tree("b")).len() == 1);
    assert_eq!(b.own()["state"], "refreshing");
}

#[test]
fn an_order_and_the_pruning_do_not_meet() {
    let c = pair("");
    let (a, b) = (c.start("a"), c.start("b"));
    c.assert_converges(&a, &b, ("a", "b"));
    for round in 0..4 {
        for i in 0..300 {
            c.scratch.write(format!("a/tree/d/{i}"), format!("{round} {i}"));
        }
        a.order(&["wait", "t"]).code(0);
        change(&c, &a, &round.to_string());
        // while the big one goes
        b.order(&["trash", "t", "empty", "--yes"]).code(0);
        assert_eq!(commits(&c.tree("b")), [0; 0]);
    }
    change(&c, &a, "last");
    assert_eq!(commits(&c.tree("b")).len(), 1);
    let log = b.log_text();
    assert!(!log.contains("cannot prune") && !log.contains("is not pruned"), "{log}");
}

#[test]
fn on_a_full_disk_what_waits_to_be_pruned_goes_first() {
    if !needs_root("on_a_full_disk_what_waits_to_be_pruned_goes_first") {
        return;
    }
    let c = pair("");
    let _disk = Mounted::tmpfs(&c.tree("b"), "size=11m");
    let (a, b) = (c.start("a"), c.start("b"));
    let big = |i| c.scratch.write("a/tree/big", noise(i, 3 << 20));
    big(1);
    c.assert_converges(&a, &b, ("a", "b"));
    big(2);
    a.order(&["wait", "t"]).code(0);
    c.scratch.write("b/hangs", "");
    big(3);
    until("the third", || c.digest("a") == c.digest("b") && commits(&c.tree("b")).len() == 2);
    // tree, two in the trash, and no room for a fourth while the server is waited for
    big(4);
    assert!(within(std::time::Duration::from_secs(8), || c.digest("a") == c.digest("b")), "{}", b.log_tail());
    let log = b.log_text();
    assert!(!log.contains("No space left"), "it was tried again at once: {log}");
}
