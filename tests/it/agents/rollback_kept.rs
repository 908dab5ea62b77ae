//! What a source keeps of published contents, and what that costs.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use serde_json::Value;

use super::cluster::{Cluster, eventually, noise, until};
use super::rollback::{Loop, assert_same, id, published, retention, settled, snapshot, two_generations};
use crate::support::{chmod, needs_root};

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
    assert!(ran.err.contains("1 file is gone: big"), "{ran:?}");
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
    assert!(gone.err.contains("1 file is gone") || gone.err.contains(" x "), "{gone:?}");
    a.order(&["rollback", "t"]).code(0);
    assert_eq!(c.scratch.read("a/tree/x"), noise(2, 5_000));
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
