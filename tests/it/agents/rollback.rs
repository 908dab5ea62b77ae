//! `syncagent rollback`: an older generation's content is in place and published again, or nothing is changed.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::cluster::{Agent, Cluster, eventually, noise, until};
use crate::support::{Seen, chmod, program};

/// All paths below `dir`; the root's own mtime is not part of a tree.
pub(super) fn snapshot(dir: &Path) -> BTreeMap<Vec<u8>, Seen> {
    let mut all = crate::support::snapshot(dir);
    all.remove(&b""[..]);
    all
}

/// Both have the same paths in the same states.
#[track_caller]
pub(super) fn assert_same(now: &BTreeMap<Vec<u8>, Seen>, before: &BTreeMap<Vec<u8>, Seen>) {
    let differs = now.iter().filter(|(path, seen)| before.get(*path) != Some(seen)).map(|(path, _)| path);
    let gone = before.keys().filter(|path| !now.contains_key(*path));
    let names: Vec<_> = differs.chain(gone).map(|path| String::from_utf8_lossy(path).into_owned()).collect();
    assert!(names.is_empty(), "{names:?}");
}

/// The state of what the source keeps.
pub(super) fn retention(agent: &Agent) -> Value {
    let out = agent.order(&["history", "t", "--json", "--limit", "1"]).code(0).out;
    let last: Value = serde_json::from_str(out.lines().last().unwrap()).unwrap();
    last["retention"].clone()
}

/// Waits until everything is published, and kept.
#[track_caller]
pub(super) fn settled(agent: &Agent) {
    let mut last = (Value::Null, Value::Null);
    let kept = || {
        let (tree, kept) = (agent.tree(), retention(agent));
        let done = tree["nodes"][0]["state"] == "current"
            && tree["unpublished_age_ms"].is_null()
            && tree["head"].is_object()
            && kept["up_to"] == tree["head"];
        last = (tree, kept);
        done
    };
    assert!(eventually(kept), "{:#} {:#}\n{}", last.0, last.1, agent.log_tail());
}

/// Waits until the source published something after `before`, and kept it.
#[track_caller]
pub(super) fn published(agent: &Agent, before: &Value) -> Value {
    until("a publication", || agent.tree()["head"] != *before);
    settled(agent);
    agent.tree()["head"].clone()
}

pub(super) fn id(head: &Value) -> String {
    format!("{}.{}", head["epoch"], head["number"])
}

/// A source with a first and a second generation; in the second one files are overwritten in place, deleted, renamed,
/// made, and have other modes.
pub(super) fn two_generations(c: &Cluster, keys: &str) -> (Agent, Value, Value) {
    c.source("a", keys);
    for i in 0..30u64 {
        c.scratch.write(format!("a/tree/d{}/f{i}", i % 3), noise(i, 1_000 + 40 * i as usize));
    }
    c.scratch.write("a/tree/big", noise(99, 700_000));
    c.scratch.write("a/tree/empty", "");
    c.scratch.write("a/tree/gone/deep/x", "x");
    let a = c.start("a");
    settled(&a);
    let first = a.tree()["head"].clone();
    let tree = c.tree("a");
    c.scratch.write("a/tree/d0/f0", "overwritten in place");
    c.scratch.write("a/tree/big", noise(100, 700_001));
    c.scratch.write("a/tree/empty", "not empty");
    std::fs::remove_file(tree.join("d1/f1")).unwrap();
    std::fs::rename(tree.join("d2/f2"), tree.join("d2/renamed")).unwrap();
    std::fs::remove_dir_all(tree.join("gone")).unwrap();
    chmod(tree.join("d0/f3"), 0o600);
    c.scratch.write("a/tree/new/file", "new");
    let second = published(&a, &first);
    (a, first, second)
}

#[test]
fn what_was_overwritten_deleted_and_renamed_comes_back_and_mirrors_follow() {
    let c = Cluster::local();
    c.mirror("b", "a", "");
    c.source("a", "");
    c.scratch.write("a/tree/nothing", "yet");
    let before = {
        let (a, first, _) = two_generations(&c, "");
        let b = c.start("b");
        c.assert_converges(&a, &b, ("a", "b"));
        let dry = a.order(&["rollback", "t", "--dry-run"]).code(0).out;
        assert!(dry.contains(&format!("back to {}", id(&first))), "{dry}");
        let unchanged = snapshot(&c.tree("a"));
        assert!(unchanged.contains_key(&b"new/file"[..]));
        let ran = a.order(&["rollback", "t", "--json"]).code(0);
        let answer: Value = serde_json::from_str(&ran.out).unwrap();
        let head = a.tree()["head"].clone();
        assert_eq!(
            (answer["to"].as_str(), answer["generation"].as_str()),
            (Some(&*id(&first)), Some(&*id(&head)))
        );
        let tree = snapshot(&c.tree("a"));
        assert_eq!(tree[&b"d0/f0"[..]].content, noise(0, 1_000));
        assert_eq!(tree[&b"big"[..]].content, noise(99, 700_000));
        assert_eq!(tree[&b"empty"[..]].content, b"");
        assert_eq!(tree[&b"d0/f3"[..]].mode & 0o777, 0o644);
        assert_eq!(tree[&b"gone/deep/x"[..]].content, b"x");
        assert!(tree.contains_key(&b"d2/f2"[..]) && tree.contains_key(&b"d1/f1"[..]));
        assert!(!tree.contains_key(&b"d2/renamed"[..]) && !tree.contains_key(&b"new/file"[..]));
        c.assert_converges(&a, &b, ("a", "b"));
        assert_eq!(a.tree()["head"], head, "a rollback is one generation");
        let history = a.order(&["history", "t"]).code(0).out;
        assert!(
            history.lines().next().unwrap().contains(&format!("rollback to {}", id(&first))),
            "{history}"
        );
        // what was displaced is in the trash, with the generation that did it
        let trash = a.order(&["trash", "t", "list", "--json"]).code(0).out;
        let trash: Vec<Value> = trash.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        let f0 = trash.iter().find(|e| e["path"] == "d0/f0").unwrap();
        assert_eq!(f0["generation"], id(&head));
        // and back again: the rollback of the rollback
        settled(&a);
        a.order(&["rollback", "t"]).code(0);
        assert_same(&snapshot(&c.tree("a")), &unchanged);
        c.assert_converges(&a, &b, ("a", "b"));
        a.stop();
        unchanged
    };
    // nothing is left that a start would have to finish
    let a = c.start("a");
    a.wait_for_state("current");
    assert_same(&snapshot(&c.tree("a")), &before);
}

#[test]
fn refused_when_content_is_gone_with_its_names_and_the_tree_is_as_it_was() {
    let c = Cluster::local();
    let (a, first, second) = two_generations(&c, "");
    // what was kept is lost
    std::fs::remove_dir_all(c.tree("a").join(".syncagent/keep")).unwrap();
    let before = snapshot(&c.tree("a"));
    for dry in [&["--dry-run"][..], &[]] {
        let mut words = vec!["rollback", "t", "--to"];
        let to = id(&first);
        words.push(&to);
        words.extend(dry);
        let ran = a.order(&words).code(4);
        for name in ["d0/f0", "big", "d1/f1", "gone/deep/x"] {
            assert!(ran.err.contains(name), "{name}: {ran:?}");
        }
        assert!(!ran.err.contains("d2/f2"), "it can be moved: {ran:?}");
    }
    assert_same(&snapshot(&c.tree("a")), &before);
    assert_eq!(a.tree()["head"], second);
    assert!(!c.tree("a").join(".syncagent/stage").exists());
    a.order(&["rollback", "t", "--to", "1.99"]).code(2);
}

#[test]
fn a_mass_deletion_by_rollback_needs_its_approval() {
    let c = Cluster::local();
    c.source("a", "");
    for i in 0..10 {
        c.scratch.write(format!("a/tree/old{i}"), format!("old {i}"));
    }
    let a = c.start("a");
    settled(&a);
    let first = a.tree()["head"].clone();
    for i in 0..40 {
        c.scratch.write(format!("a/tree/f{i}"), format!("new {i}"));
    }
    published(&a, &first);
    let before = snapshot(&c.tree("a"));
    let ran = a.order(&["rollback", "t"]).code(4);
    assert_same(&snapshot(&c.tree("a")), &before);
    let plan = ran.err.split("--approve ").nth(1).unwrap().split_whitespace().next().unwrap().to_owned();
    a.order(&["rollback", "t", "--approve", "0123456789abcdef"]).code(4);
    a.order(&["rollback", "t", "--approve", &plan]).code(0);
    assert_eq!(std::fs::read_dir(c.tree("a")).unwrap().count(), 11);
}

#[test]
fn a_refused_mass_deletion_is_undone_by_rolling_back_to_what_is_published() {
    let c = Cluster::local();
    c.source("a", "");
    // looking at all of these takes a while, and they are no files that a guard counts
    for i in 0..4_000 {
        std::fs::create_dir_all(c.tree("a").join(format!("many/{}/{i}", i % 40))).unwrap();
    }
    let (a, _, second) = two_generations(&c, "");
    let before = c.digest("a");
    for d in ["d0", "d1"] {
        std::fs::remove_dir_all(c.tree("a").join(d)).unwrap();
    }
    a.wait_for_state("refused");
    assert!(a.tree()["nodes"][0]["error"].is_object());
    let ran = a.order(&["rollback", "t", "--to", &id(&second)]).code(0);
    // at once: the next look, at everything, takes longer than this question
    let own = a.tree()["nodes"][0].clone();
    assert_eq!((&own["error"], &own["plan"]), (&Value::Null, &Value::Null), "{own:#}");
    assert!(ran.out.contains("again"), "{ran:?}");
    assert_eq!(c.digest("a"), before);
    a.wait_for_state("current");
    assert_eq!(a.tree()["head"], second);
    let same = a.order(&["rollback", "t", "--to", &id(&second)]).code(0);
    assert!(same.out.contains("already"), "{same:?}");
}

#[test]
fn a_mirror_rolls_nothing_back_and_a_held_source_neither() {
    let c = Cluster::local();
    let (a, _, second) = two_generations(&c, "hold-file = \".hold\"\n");
    c.mirror("b", "a", "");
    let b = c.start("b");
    c.assert_converges(&a, &b, ("a", "b"));
    let refused = b.order(&["rollback", "t"]).code(2);
    assert!(refused.err.contains("source"), "{refused:?}");
    c.scratch.write("a/tree/.hold", "");
    let held = a.order(&["rollback", "t"]).code(4);
    assert!(held.err.contains("held"), "{held:?}");
    assert_eq!(a.tree()["head"], second);
}

#[test]
fn a_rollback_of_a_paused_tree_is_refused_and_says_who_paused_it() {
    let c = Cluster::local();
    let (a, first, second) = two_generations(&c, "");
    let before = snapshot(&c.tree("a"));
    a.order(&["pause", "t"]).code(0);
    let who = a.own()["paused"]["who"].as_str().unwrap().to_owned();
    for words in
        [&["rollback", "t"][..], &["rollback", "t", "--dry-run"], &["rollback", "t", "--to", &id(&first)]]
    {
        let ran = a.order(words).code(4);
        assert!(ran.err.contains(&format!("paused by {who}")), "{ran:?}");
        assert!(ran.err.contains("syncagent resume t first"), "{ran:?}");
    }
    assert_same(&snapshot(&c.tree("a")), &before);
    assert_eq!(a.tree()["head"], second);
    a.order(&["resume", "t"]).code(0);
    a.order(&["rollback", "t", "--to", &id(&first)]).code(0);
}

#[test]
fn killed_during_a_rollback_the_tree_is_old_or_new_and_mirrors_converge() {
    let c = Cluster::local();
    c.source("a", "keep = 50\n");
    c.mirror("b", "a", "");
    let write = |round: u64| {
        for i in 0..200u64 {
            c.scratch.write(format!("a/tree/d{}/f{i}", i % 11), noise(round * 1000 + i, 20_000));
        }
    };
    write(0);
    let (mut a, b) = (c.start("a"), c.start("b"));
    settled(&a);
    let first = a.tree()["head"].clone();
    let old = c.digest("a");
    write(1);
    let second = published(&a, &first);
    let new = c.digest("a");
    assert_ne!(old, new);
    let inode = |path: &str| std::fs::metadata(c.path().join(path)).map(|m| m.ino()).unwrap_or(0);
    let rounds = if std::env::var_os("SYNCAGENT_TEST_LONG").is_some() { 60 } else { 10 };
    for round in 0..rounds {
        let to = if c.digest("a") == new { id(&first) } else { id(&second) };
        let socket = a.socket.to_str().unwrap().to_owned();
        let mut order = Command::new(program())
            .args(["rollback", "t", "--to", &to, "--socket", &socket])
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        if round % 3 == 0 {
            // each of these kills hits another step
            std::thread::sleep(std::time::Duration::from_millis(15 + round * 12));
        } else {
            // and these the renames, or what follows them
            let before = inode("a/tree/d0/f0");
            let begun = std::time::Instant::now();
            let waits = |order: &mut std::process::Child| order.try_wait().unwrap().is_none();
            while inode("a/tree/d0/f0") == before && begun.elapsed().as_secs() < 60 && waits(&mut order) {
                std::thread::yield_now();
            }
            std::thread::sleep(std::time::Duration::from_micros((round % 4) * 700));
        }
        a.kill();
        order.wait().unwrap();
        a = c.start("a");
        c.assert_converges(&a, &b, ("a", "b"));
        let now = c.digest("a");
        assert!(now == old || now == new, "round {round}: a mix\n{}", a.log_tail());
        for left in ["journal", "stage", "stage.done", "unplaced"] {
            assert!(!c.tree("a").join(".syncagent").join(left).exists(), "{left} is left");
        }
    }
    let finished = a.log_text().matches("finished what was under way").count();
    assert!(finished > 0, "no kill hit a commit");
    // and one that is let through
    settled(&a);
    let ran = a.order(&["rollback", "t", "--to", &id(&first)]);
    assert!(ran.code == 0, "{ran:?}");
    assert_eq!(c.digest("a"), old);
    c.assert_converges(&a, &b, ("a", "b"));
}

#[test]
fn writers_that_do_not_rest_leave_a_whole_tree_and_mirrors_converge() {
    let c = Cluster::local();
    let (a, first, _) = two_generations(&c, "keep = 5\n");
    c.mirror("b", "a", "");
    let b = c.start("b");
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut n = 0u64;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                n += 1;
                c.scratch.write(format!("a/tree/d{}/f{}", n % 3, n % 30), noise(n + 1_000, 1_500));
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        });
        for _ in 0..3 {
            let ran = a.order(&["rollback", "t", "--to", &id(&first)]);
            // what is moved by the plan may be overwritten while it is staged
            assert!(ran.code == 0 || ran.code == 1, "{ran:?}");
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    c.assert_converges(&a, &b, ("a", "b"));
    settled(&a);
    a.order(&["rollback", "t", "--to", &id(&first)]).code(0);
    assert_eq!(c.scratch.read("a/tree/big"), noise(99, 700_000));
    c.assert_converges(&a, &b, ("a", "b"));
}

/// A file system in a file.
pub(super) struct Loop(std::path::PathBuf);

impl Loop {
    pub(super) fn mount(image: &Path, at: &Path, mkfs: &[&str]) -> Option<Self> {
        Self::mount_of(image, at, mkfs, 400 << 20)
    }

    pub(super) fn mount_of(image: &Path, at: &Path, mkfs: &[&str], bytes: u64) -> Option<Self> {
        let file = std::fs::File::create(image).unwrap();
        file.set_len(bytes).unwrap();
        std::fs::create_dir_all(at).unwrap();
        let made = Command::new(mkfs[0]).args(&mkfs[1..]).arg(image).output().ok()?;
        assert!(made.status.success(), "{made:?}");
        let mounted = Command::new("mount").args(["-o", "loop"]).arg(image).arg(at).output().unwrap();
        mounted.status.success().then(|| Self(at.to_owned()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_dry_run_without_events_does_not_publish_what_is_half_written() {
    let c = Cluster::local();
    c.source("a", "settle = \"0s\"\n");
    c.scratch.write("a/tree/x", "1");
    let mut command = Command::new("unshare");
    let limit = "echo 0 > /proc/sys/user/max_inotify_instances && exec \"$0\" \"$@\"";
    command.args(["--user", "--map-root-user", "sh", "-c", limit]).arg(program());
    let a = c.start_by("a", command);
    settled(&a);
    assert_eq!(a.tree()["watch"]["native"], false);
    let first = a.tree()["head"].clone();
    c.scratch.write("a/tree/x", "2");
    let second = published(&a, &first);
    // an archive of which the end is missing is not finished, however long it has been so
    c.scratch.write("a/tree/app.war", "PK\x03\x04 the first half");
    until("that it is held back", || a.tree()["held_count"] == 1);
    a.order(&["rollback", "t", "--to", &id(&first), "--dry-run"]).code(0);
    // a scan of everything begins and ends after the dry run
    let ran = a.order(&["wait", "t", "--timeout", "3s"]);
    assert_eq!((ran.code, a.tree()["head"].clone()), (7, second), "{ran:?}");
    assert_eq!(a.tree()["held_count"], 1);
}
