//! `syncagent trash`: what a commit displaced comes back, and never over anything.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use serde_json::Value;

use super::cluster::{Cluster, eventually, run, until};
use crate::support::{Ran, Scratch, chmod, program, set_mtime, symlink};

/// A cluster in which the mirror's commits displaced something.
fn displaced() -> (Cluster, super::cluster::Agent, super::cluster::Agent) {
    let c = Cluster::local();
    c.source("a", "max-delete = \"100%\"\n");
    for i in 0..8 {
        c.scratch.write(format!("a/tree/f{i}"), format!("first {i}"));
    }
    c.scratch.write("a/tree/dir/sub/file", "in a directory");
    symlink("sub/file", c.tree("a").join("dir/link"));
    chmod(c.tree("a").join("f1"), 0o640);
    set_mtime(c.tree("a").join("f1"), 1_000_000_000, 123_456_789);
    chmod(c.tree("a").join("dir"), 0o750);
    c.mirror("b", "a", "keep = 10\n");
    let (a, b) = (c.start("a"), c.start("b"));
    c.assert_converges(&a, &b, ("a", "b"));
    c.scratch.write("a/tree/f1", "second");
    std::fs::remove_dir_all(c.tree("a").join("dir")).unwrap();
    until("the deletion", || !c.tree("b").join("dir").exists() && c.scratch.read("b/tree/f1") == b"second");
    c.assert_converges(&a, &b, ("a", "b"));
    (c, a, b)
}

fn list(ran: Ran) -> Vec<Value> {
    ran.code(0).out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_mirror_gives_back_what_it_displaced_but_not_into_its_tree() {
    let (c, _a, b) = displaced();
    let entries = list(b.order(&["trash", "t", "list", "--json"]));
    let paths: Vec<&str> = entries.iter().map(|e| e["path"].as_str().unwrap()).collect();
    for path in ["f1", "dir/sub/file", "dir/link"] {
        assert!(paths.contains(&path), "{entries:?}");
    }
    let f1 = entries.iter().find(|e| e["path"] == "f1").unwrap();
    assert_eq!((&f1["kind"], &f1["bytes"]), (&"tree".into(), &7.into()));
    assert!(f1["at"].as_str().unwrap().ends_with('Z'), "{f1}");

    let refused = b.order(&["trash", "t", "restore", "f1"]).code(4);
    assert!(refused.err.contains("mirror") && refused.err.contains("--to"), "{refused:?}");
    assert_eq!(c.scratch.read("b/tree/f1"), b"second");

    // neither by the way of --to, also without the agent
    let (inside, own) = (c.tree("b").join("sub"), c.tree("b").join(".syncagent/keep"));
    for to in [&inside, &own] {
        for tree in ["t", c.tree("b").to_str().unwrap()] {
            let to = to.to_str().unwrap();
            let refused = b.order(&["trash", tree, "restore", "f1", "--to", to]).code(4);
            assert!(refused.err.contains("lies in"), "{refused:?}");
        }
        assert!(!to.exists());
    }

    let to = c.path().join("back");
    let to = to.to_str().unwrap();
    b.order(&["trash", "t", "restore", "f1", "dir", "--to", to]).code(0);
    assert_eq!(c.scratch.read("back/f1"), b"first 1");
    let meta = std::fs::metadata(c.path().join("back/f1")).unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.mtime(), meta.mtime_nsec()), (0o640, 1_000_000_000, 123_456_789));
    assert_eq!(c.scratch.read("back/dir/sub/file"), b"in a directory");
    assert_eq!(std::fs::read_link(c.path().join("back/dir/link")).unwrap(), Path::new("sub/file"));
    assert_eq!(std::fs::metadata(c.path().join("back/dir")).unwrap().mode() & 0o7777, 0o750);
    let left: Vec<_> = std::fs::read_dir(c.path().join("back")).unwrap().flatten().collect();
    assert_eq!(left.len(), 2, "{left:?}");

    let again = b.order(&["trash", "t", "restore", "f1", "--to", to]).code(4);
    assert!(again.err.contains("f1"), "{again:?}");
    b.order(&["trash", "t", "restore", "nope", "--to", to]).code(2);
}

#[test]
fn emptying_says_how_much_and_frees_only_what_is_old_enough() {
    let (_c, _a, b) = displaced();
    let asked = b.order(&["trash", "t", "empty"]).code(2);
    assert!(asked.err.contains("--yes"), "{asked:?}");
    let kept = b.order(&["trash", "t", "empty", "--older-than", "1h", "--yes"]).code(0);
    assert!(kept.out.contains("freed 0 bytes"), "{kept:?}");
    assert!(!list(b.order(&["trash", "t", "list", "--json"])).is_empty());
    let freed = b.order(&["trash", "t", "empty", "--yes"]).code(0);
    assert!(!freed.out.contains("freed 0 bytes"), "{freed:?}");
    assert!(list(b.order(&["trash", "t", "list", "--json"])).is_empty());
}

/// What the trash of an agent's tree has at a path: kind and generation.
fn kinds(agent: &super::cluster::Agent, path: &str) -> Vec<String> {
    let entries = list(agent.order(&["trash", "t", "list", "--json"]));
    let of_path = entries.iter().filter(|e| e["path"] == path);
    of_path.map(|e| e["kind"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn drift_is_listed_as_such_and_comes_back_elsewhere() {
    let (c, a, b) = displaced();
    c.scratch.write("b/tree/f2", "edited on the mirror");
    c.scratch.write("b/tree/own/deep/file", "made on the mirror");
    until("the repair", || c.scratch.read("b/tree/f2") == b"first 2" && !c.tree("b").join("own").exists());
    c.assert_converges(&a, &b, ("a", "b"));
    assert_eq!(kinds(&b, "f2"), ["drift"]);
    assert_eq!(kinds(&b, "own/deep/file"), ["drift"]);
    assert_eq!(kinds(&b, "f1"), ["tree"], "what a generation replaced");
    let to = c.path().join("back");
    b.order(&["trash", "t", "restore", "f2", "own", "--to", to.to_str().unwrap()]).code(0);
    assert_eq!(c.scratch.read("back/f2"), b"edited on the mirror");
    assert_eq!(c.scratch.read("back/own/deep/file"), b"made on the mirror");
}

#[test]
fn an_edit_on_a_mirror_is_drift_also_when_a_generation_replaces_it_and_outlives_keep() {
    let c = Cluster::local();
    c.source("a", "max-delete = \"100%\"\n");
    for i in 0..8 {
        c.scratch.write(format!("a/tree/f{i}"), format!("first {i}"));
    }
    c.mirror("b", "a", "keep = 0\ndrift = \"report\"\n");
    let (a, b) = (c.start("a"), c.start("b"));
    c.assert_converges(&a, &b, ("a", "b"));
    c.scratch.write("b/tree/f2", "edited on the mirror");
    until("the drift", || b.tree()["nodes"][0]["drift"] == 1);
    c.scratch.write("a/tree/f1", "second");
    c.assert_converges(&a, &b, ("a", "b"));
    for n in 3..6 {
        c.scratch.write("a/tree/f1", format!("version {n}"));
        c.assert_converges(&a, &b, ("a", "b"));
    }
    assert_eq!(kinds(&b, "f2"), ["drift"]);
    // soon after the commit
    until("keep = 0, which keeps nothing of what was published", || kinds(&b, "f1").is_empty());
    let to = c.path().join("back");
    b.order(&["trash", "t", "restore", "f2", "--to", to.to_str().unwrap()]).code(0);
    assert_eq!(c.scratch.read("back/f2"), b"edited on the mirror");
}

#[test]
fn a_source_takes_back_a_file_as_an_ordinary_change() {
    let (c, a, b) = displaced();
    a.stop();
    b.stop();
    // the mirror's tree becomes a source, with the trash that it has
    std::fs::remove_file(c.config_path("b")).unwrap();
    c.source("b", "keep = 10\nmax-delete = \"100%\"\n");
    let b = c.start("b");
    b.wait_for_state("current");
    let before = b.tree()["head"].clone();
    let refused = b.order(&["trash", "t", "restore", "f1"]).code(4);
    assert!(refused.err.contains("f1"), "{refused:?}");
    b.order(&["trash", "t", "restore", "dir/sub/file"]).code(0);
    assert_eq!(c.scratch.read("b/tree/dir/sub/file"), b"in a directory");
    assert!(eventually(|| b.tree()["head"] != before), "{}", b.log_tail());
}

#[test]
fn a_synced_directory_is_given_by_its_path() {
    let s = Scratch::new();
    s.write("src/x", "one");
    s.write("src/odd\nname", "odd");
    s.sync(["-q"]).code(0);
    s.write("src/x", "two");
    std::fs::remove_file(s.src().join("odd\nname")).unwrap();
    s.sync(["-q"]).code(0);
    let dst = s.dst();
    let trash = |args: &[&str]| {
        let mut all = vec!["trash", dst.to_str().unwrap()];
        all.extend(args);
        run(&all)
    };
    let text = trash(&["list"]).code(0).out;
    assert!(text.contains("odd\\nname") && text.contains("  x\n"), "{text}");
    trash(&["restore", "x"]).code(4);
    trash(&["restore", "odd\nname"]).code(0);
    assert_eq!(s.read("dst/odd\nname"), b"odd");
    let to = s.path().join("to");
    trash(&["restore", "x", "--to", to.to_str().unwrap()]).code(0);
    assert_eq!(s.read("to/x"), b"one");
    // another run has the tree
    let held = std::process::Command::new("flock")
        .arg(s.dst().join(".syncagent/lock"))
        .arg(program())
        .args(["trash", dst.to_str().unwrap(), "empty", "--yes"])
        .output();
    assert_eq!(Ran::from(held.unwrap()).code, 6);
    // dated by what the commit noted, which no chown changes
    let at = std::fs::read_dir(s.dst().join(".syncagent/trash"))
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path()
        .join("at");
    let noted: f64 = std::fs::read_link(&at).unwrap().to_str().unwrap().parse().unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    assert!(noted <= now && noted > now - 600.0, "{noted} {now}");
    assert!(trash(&["empty", "--older-than", "24h", "--yes"]).code(0).out.contains("0 files"));
    std::fs::remove_file(&at).unwrap();
    std::os::unix::fs::symlink("1000000000.000000000", &at).unwrap();
    let text = trash(&["list"]).code(0).out;
    assert!(text.lines().all(|line| line.contains("2001-09-09T01:46:40Z")), "{text}");
    trash(&["empty", "--older-than", "24h", "--yes"]).code(0);
    assert!(!at.parent().unwrap().exists());
    s.write("src/x", "three");
    s.sync(["-q"]).code(0);
    trash(&["empty", "--yes"]).code(0);
    assert_eq!(std::fs::read_dir(s.dst().join(".syncagent/trash")).unwrap().count(), 0);
    let none = run(&["trash", s.src().to_str().unwrap(), "list"]).code(2);
    assert!(none.err.contains("no tree of syncagent"), "{none:?}");
}
