//! `syncagent rollback`: an older generation's content is in place and published again, or nothing is changed.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::cluster::{Agent, Cluster, eventually, noise, until};
use crate::support::{Seen, chmod, needs_root, program};

/// All paths below `dir`; the root's own mtime is not part of a tree.
pub(super) fn snapshot(dir: &Path) -> BTreeMap<Vec<u8>, Seen> {
    let mut all = crate::support::snapshot(dir);
    all.remove(&b""[..]);
    all
}

/// Both have the same paths in the same states.
#[track_caller]
fn assert_same(now: &BTreeMap<Vec<u8>, Seen>, before: &BTreeMap<Vec<u8>, Seen>) {
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
        while waits() && begun.elapsed().as_secs() < 3 {
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
        for i in 0..100 {
            let text = format!("{round} {i}");
            let there =
                std::fs::read(c.tree("a").join(format!("own/{i}"))).is_ok_and(|t| t == text.as_bytes());
            assert!(there || kept.iter().any(|t| t == text.as_bytes()), "{text} is lost\n{}", a.log_tail());
        }
    }
    assert!(a.log_text().contains("finished what was under way"), "no kill hit a commit");
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
fn damaged_kept_content_is_found_before_anything_changes() {
    let c = Cluster::local();
    let (a, first, _) = two_generations(&c, "");
    let digest = blake3::hash(&noise(99, 700_000)).to_hex();
    let kept = c.tree("a").join(".syncagent/keep").join(&digest[..2]).join(digest.as_str());
    chmod(&kept, 0o600);
    let mut damaged = noise(99, 700_000);
    damaged[350_000] ^= 1;
    std::fs::write(&kept, damaged).unwrap();
    let before = snapshot(&c.tree("a"));
    let ran = a.order(&["rollback", "t", "--to", &id(&first), "--dry-run"]).code(4);
    assert!(ran.err.contains("1 files is gone: big"), "{ran:?}");
    assert_same(&snapshot(&c.tree("a")), &before);
    assert!(!kept.exists() && a.log_text().contains("kept content of big is damaged"), "{}", a.log_tail());
    // a copy that is right does, wherever it is; and what the tree has is kept again
    c.scratch.write("a/tree/.syncagent/trash/77/tree/big", noise(99, 700_000));
    a.order(&["rollback", "t", "--to", &id(&first)]).code(0);
    assert_eq!(c.scratch.read("a/tree/big"), noise(99, 700_000));
    until("it is kept again", || kept.exists());
}

#[test]
fn what_is_foreign_among_what_is_kept_ends_nothing() {
    let c = Cluster::local();
    let (a, ..) = two_generations(&c, "");
    let keep = c.tree("a").join(".syncagent/keep");
    a.stop();
    let kept_as = |content: &[u8]| {
        let digest = blake3::hash(content).to_hex();
        keep.join(&digest[..2]).join(digest.as_str())
    };
    let some = kept_as(&noise(99, 700_000));
    assert!(some.exists());
    c.scratch.write("a/tree/.syncagent/keep/zz", "a file");
    c.scratch.write("a/tree/.syncagent/keep/89/0000/mine", "a directory");
    // where contents of the next generation belong
    std::fs::create_dir_all(kept_as(b"third").join("full")).unwrap();
    let a = c.start("a");
    let head = a.tree()["head"].clone();
    c.scratch.write("a/tree/third", "third");
    c.scratch.write("a/tree/fourth", "fourth");
    published(&a, &head);
    assert_eq!(std::fs::read(kept_as(b"third")).unwrap(), b"third");
    assert_eq!(std::fs::read(kept_as(b"fourth")).unwrap(), b"fourth");
    assert!(some.exists() && retention(&a)["error"].is_null(), "{}", a.log_tail());
    // it is told of, once, and left alone
    let told = || a.log_text().matches("entries of .syncagent/keep are passed over").count();
    until("it is told", || told() > 0);
    assert_eq!(told(), 1, "{}", a.log_tail());
    assert!(keep.join("89/0000/mine").exists() && keep.join("zz").exists());
}

#[test]
fn nothing_is_kept_with_keep_0_and_no_more_than_keep_bytes() {
    let c = Cluster::local();
    c.source("a", "keep = 0\n");
    c.scratch.write("a/tree/x", "1");
    let a = c.start("a");
    a.wait_for_state("current");
    until("the file system", || retention(&a)["generations"] == 0);
    a.stop();
    assert!(!c.tree("a").join(".syncagent/keep").exists());
    c.edit("a", "keep = 0", "keep = 2\nkeep-bytes = \"100KiB\"");
    c.scratch.write("a/tree/large", noise(1, 200_000));
    c.scratch.write("a/tree/small", noise(2, 50_000));
    let a = c.start("a");
    a.wait_for_state("current");
    settled(&a);
    let kept = retention(&a);
    if kept["clones"] == false {
        assert_eq!(
            (&kept["files"], &kept["left_out"], &kept["left_out_bytes"]),
            (&2.into(), &1.into(), &200_000.into())
        );
    }
}

#[test]
fn a_small_file_is_kept_at_once() {
    let c = Cluster::local();
    c.source("a", "keep = 100\n");
    c.scratch.write("a/tree/x", "1");
    let a = c.start("a");
    settled(&a);
    let changed = |path: &Path| {
        let meta = std::fs::metadata(path).unwrap();
        meta.ctime() * 1_000 + meta.ctime_nsec() / 1_000_000
    };
    // 50 ms of these are the settle time; on a busy machine a try may be too slow
    let mut best = i64::MAX;
    for n in 0..60 {
        let content = noise(n, 1_500);
        let digest = blake3::hash(&content).to_hex();
        let kept = c.tree("a").join(".syncagent/keep").join(&digest[..2]).join(digest.as_str());
        let before = a.tree()["head"].clone();
        c.scratch.write("a/tree/x", &content);
        published(&a, &before);
        until("the content", || kept.exists());
        best = best.min(changed(&kept) - changed(&c.tree("a").join("x")));
        if best < 95 {
            return;
        }
    }
    panic!("{best} ms after it was written at best");
}

#[test]
fn the_trash_and_what_is_kept_share_keep_bytes() {
    let c = Cluster::local();
    const BUDGET: u64 = 400 << 10;
    c.source("a", "keep = 3\nkeep-bytes = \"400KiB\"\n");
    for i in 0..4 {
        c.scratch.write(format!("a/tree/f{i}"), noise(i, 45_000));
    }
    let a = c.start("a");
    settled(&a);
    let first = a.tree()["head"].clone();
    for i in 0..4 {
        c.scratch.write(format!("a/tree/f{i}"), noise(10 + i, 45_000));
    }
    published(&a, &first);
    let number = |kept: &Value, field: &str| kept[field].as_u64().unwrap();
    let both = |what: &str, fits: &dyn Fn(u64, u64) -> bool| {
        let mut last = Value::Null;
        let done = eventually(|| {
            last = retention(&a);
            let (kept, limit, trash) =
                (number(&last, "bytes"), number(&last, "limit"), number(&last, "trash"));
            let within = last["clones"] == true || kept <= limit && kept + trash <= BUDGET;
            limit + trash == BUDGET && within && fits(kept, trash)
        });
        assert!(done, "{what}: {last:#}\n{}", a.log_tail());
    };
    both("no trash", &|kept, trash| trash == 0 && kept == 8 * 45_000);
    // 180,000 bytes are displaced; what is kept makes room for them
    a.order(&["rollback", "t"]).code(0);
    both("a rollback", &|kept, trash| trash == 4 * 45_000 && kept > 0);
    // another one would fill the trash over its half
    settled(&a);
    a.order(&["rollback", "t"]).code(0);
    both("another rollback", &|_, trash| trash <= BUDGET / 2 && trash > 0);
    a.order(&["trash", "t", "empty", "--yes"]).code(0);
    both("an empty trash", &|kept, trash| trash == 0 && kept > 0);
}

#[test]
fn what_no_kept_generation_needs_is_swept_out() {
    let c = Cluster::local();
    c.source("a", "keep = 1\n");
    let kept = |seed: u64| {
        let digest = blake3::hash(&noise(seed, 5_000)).to_hex();
        c.tree("a").join(".syncagent/keep").join(&digest[..2]).join(digest.as_str()).exists()
    };
    c.scratch.write("a/tree/x", noise(0, 5_000));
    let mut a = c.start("a");
    settled(&a);
    for seed in 1..4 {
        let before = a.tree()["head"].clone();
        c.scratch.write("a/tree/x", noise(seed, 5_000));
        published(&a, &before);
    }
    // a start sweeps at once
    a.stop();
    a = c.start("a");
    let swept = eventually(|| !kept(0) && !kept(1));
    assert!(swept, "{} {}\n{}", retention(&a), a.order(&["history", "t"]).out, a.log_tail());
    assert!(kept(2) && kept(3));
    let gone = a.order(&["rollback", "t", "--to", "1.1"]).code(4);
    assert!(gone.err.contains("1 files is gone") || gone.err.contains(" x "), "{gone:?}");
    a.order(&["rollback", "t"]).code(0);
    assert_eq!(c.scratch.read("a/tree/x"), noise(2, 5_000));
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
            while inode("a/tree/d0/f0") == before && begun.elapsed().as_secs() < 3 {
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
fn a_mirror_gets_a_published_content_that_was_overwritten_meanwhile() {
    let c = Cluster::local();
    // what is written after the first publication is not published for a long time
    c.source("a", "settle = \"60s\"\nsettle-max = \"120s\"\n");
    for (name, size) in [("small", 3_000), ("large", 900_000)] {
        c.scratch.write(format!("a/tree/{name}"), noise(1, size));
        crate::support::set_mtime(c.tree("a").join(name), 1_000_000_000, 0);
    }
    let a = c.start("a");
    settled(&a);
    let published = c.digest("a");
    c.scratch.write("a/tree/small", "other");
    c.scratch.write("a/tree/large", noise(2, 900_000));
    c.mirror("b", "a", "");
    let b = c.start("b");
    let there = eventually(|| b.own()["state"] == "current" && b.own()["lag_ms"] == 0);
    assert!(there, "{:#}\n{}\n{}", b.own(), a.log_tail(), b.log_tail());
    assert_eq!(c.digest("b"), published, "{}", b.log_tail());
    assert_ne!(c.digest("a"), published);
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
    fn mount(image: &Path, at: &Path, mkfs: &[&str]) -> Option<Self> {
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
fn on_a_file_system_with_clones_what_is_kept_costs_no_budget() {
    if !needs_root("on_a_file_system_with_clones_what_is_kept_costs_no_budget") {
        return;
    }
    let c = Cluster::local();
    let image = c.path().join("image");
    let mount = Loop::mount(&image, &c.tree("a"), &["mkfs.xfs", "-q", "-m", "reflink=1"]);
    let Some(_mount) = mount else {
        eprintln!("skipped: no xfs here");
        return;
    };
    // less than the tree has: clones of the current generation are not counted
    c.source("a", "keep-bytes = \"1MiB\"\n");
    for i in 0..8u64 {
        c.scratch.write(format!("a/tree/f{i}"), noise(i, 400_000));
    }
    let a = c.start("a");
    settled(&a);
    let kept = retention(&a);
    assert_eq!(
        (&kept["clones"], &kept["files"], &kept["left_out"]),
        (&true.into(), &8.into(), &0.into()),
        "{kept}"
    );
    let first = a.tree()["head"].clone();
    let old = c.digest("a");
    c.scratch.write("a/tree/f1", noise(11, 400_000));
    c.scratch.write("a/tree/f2", noise(12, 300_000));
    published(&a, &first);
    a.order(&["rollback", "t"]).code(0);
    assert_eq!(c.digest("a"), old);
    a.stop();
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
