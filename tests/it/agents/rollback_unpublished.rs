//! What nobody published yet is displaced by a rollback, and lost by none.

use std::process::Command;

use super::cluster::{Agent, Cluster, eventually, noise};
use super::rollback::{assert_same, id, snapshot, two_generations};
use crate::support::program;

#[test]
fn what_nobody_published_yet_goes_to_the_trash() {
    let c = Cluster::local();
    let (a, first, _) = two_generations(&c, "settle = \"2s\"\n");
    c.scratch.write("a/tree/d0/f0", "written just now");
    c.scratch.write("a/tree/d0/f6", "written just now, too");
    // still within its settle time
    a.order(&["rollback", "t", "--to", &id(&first)]).code(0);
    let tree = snapshot(&c.tree("a"));
    let expected = [(0u64, 1_000), (6, 1_240)];
    for (i, size) in expected {
        assert_eq!(tree[format!("d0/f{i}").as_bytes()].content, noise(i, size), "f{i}");
    }
    let kept: Vec<_> =
        walkdir::WalkDir::new(c.tree("a").join(".syncagent/trash")).into_iter().flatten().collect();
    let texts: Vec<_> = kept.iter().filter_map(|e| std::fs::read(e.path()).ok()).collect();
    assert!(texts.iter().any(|t| t == b"written just now, too"), "{kept:?}");
}

/// The contents of all files in a source's trash.
fn trashed(c: &Cluster) -> Vec<Vec<u8>> {
    let all = walkdir::WalkDir::new(c.tree("a").join(".syncagent/trash")).into_iter().flatten();
    all.filter_map(|e| std::fs::read(e.path()).ok()).collect()
}

/// A source that keeps nothing, with a published file that somebody has just overwritten, a new one and a new directory.
fn unpublished_on_a_source_that_keeps_nothing(c: &Cluster, keys: &str) -> (Agent, String) {
    c.source(
        "a",
        &format!("keep = 0\nsettle = \"200s\"\nsettle-max = \"400s\"\nmax-delete = \"100%\"\n{keys}"),
    );
    c.scratch.write("a/tree/f", "published");
    c.scratch.write("a/tree/dir/g", "published, too");
    let a = c.start("a");
    a.wait_for_state("current");
    std::fs::rename(c.tree("a").join("dir/g"), c.tree("a").join("g")).unwrap();
    c.scratch.write("a/tree/new", "never published 1");
    c.scratch.write("a/tree/dir/new", "never published 2");
    c.scratch.write("a/tree/own/deep/new", "never published 3");
    let first = id(&a.tree()["head"]);
    (a, first)
}

#[test]
fn what_was_never_published_is_in_the_trash_also_with_keep_0() {
    let c = Cluster::local();
    let (a, first) = unpublished_on_a_source_that_keeps_nothing(&c, "");
    a.order(&["rollback", "t", "--to", &first]).code(0);
    assert_eq!(c.scratch.read("a/tree/dir/g"), b"published, too");
    assert!(!c.tree("a").join("new").exists() && !c.tree("a").join("own").exists());
    let kept = trashed(&c);
    for n in 1..4 {
        let text = format!("never published {n}");
        assert!(kept.iter().any(|t| t == text.as_bytes()), "{text}\n{}", a.log_tail());
    }
    let listed = a.order(&["trash", "t", "list", "--json"]).code(0).out;
    assert_eq!(listed.matches("\"drift\"").count(), 3, "{listed}");
    // another rollback takes nothing of it away
    c.scratch.write("a/tree/new", "never published 4");
    a.order(&["rollback", "t", "--to", &first]).code(0);
    assert_eq!(trashed(&c).len(), 4, "{:?}", trashed(&c));
    a.order(&["trash", "t", "restore", "own"]).code(0);
    assert_eq!(c.scratch.read("a/tree/own/deep/new"), b"never published 3");
}

#[test]
fn what_was_never_published_and_is_more_than_the_trash_takes_is_not_displaced() {
    let c = Cluster::local();
    let (a, first) = unpublished_on_a_source_that_keeps_nothing(&c, "keep-bytes = \"1KiB\"\n");
    c.scratch.write("a/tree/new", noise(7, 5_000));
    let before = snapshot(&c.tree("a"));
    for dry in [&["--dry-run"][..], &[]] {
        let ran = a.order(&[&["rollback", "t", "--to", &first], dry].concat()).code(4);
        assert!(ran.err.contains("never published") && ran.err.contains("own"), "{ran:?}");
    }
    assert_same(&snapshot(&c.tree("a")), &before);
    // what is not in its way is no reason
    c.scratch.write("a/tree/new", "small");
    a.order(&["rollback", "t", "--to", &first]).code(0);
    assert!(trashed(&c).contains(&b"small".to_vec()));
}

#[test]
fn killed_during_a_rollback_what_was_never_published_is_in_the_tree_or_in_the_trash() {
    let c = Cluster::local();
    let (mut a, first) = unpublished_on_a_source_that_keeps_nothing(&c, "");
    let mut was_held = false;
    for round in 0..24u64 {
        for i in 0..100 {
            c.scratch.write(format!("a/tree/own/{i}"), format!("{round} {i}"));
        }
        let socket = a.socket.to_str().unwrap().to_owned();
        let mut order = Command::new(program())
            .args(["rollback", "t", "--to", &first, "--socket", &socket])
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let (journal, own) = (c.tree("a").join(".syncagent/journal"), c.tree("a").join("own"));
        let begun = std::time::Instant::now();
        // every other kill is after the renames began, however slow the machine is
        let waits = || if round % 2 == 0 { !journal.exists() } else { own.exists() };
        while waits() && begun.elapsed().as_secs() < 60 && order.try_wait().unwrap().is_none() {
            std::thread::yield_now();
        }
        // each of these kills hits another step
        let after = if round % 2 == 0 { round * 300 } else { round * 30 };
        std::thread::sleep(std::time::Duration::from_micros(after));
        a.kill();
        order.wait().unwrap();
        a = c.start("a");
        let answered = || a.order(&["trash", "t", "list", "--json"]).code == 0;
        assert!(eventually(answered), "{}", a.log_tail());
        assert!(eventually(|| a.tree()["nodes"][0]["state"] != "starting"), "{}", a.log_tail());
        let kept = trashed(&c);
        let mut in_place = 0;
        for i in 0..100 {
            let text = format!("{round} {i}");
            let there =
                std::fs::read(c.tree("a").join(format!("own/{i}"))).is_ok_and(|t| t == text.as_bytes());
            in_place += usize::from(there);
            assert!(there || kept.iter().any(|t| t == text.as_bytes()), "{text} is lost\n{}", a.log_tail());
        }
        let held = a.tree()["hold"].is_object();
        // what was only staged has changed nothing, and is no reason to ask somebody
        assert!(!held || was_held || in_place < 100, "{}", a.log_tail());
        was_held = held;
    }
    assert!(a.log_text().contains("finished what was under way"), "no kill hit a commit");
}
