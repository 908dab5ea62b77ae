//! Rollbacks that cannot be carried out, wholly or at all: nothing is published half, and nothing is left behind.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::cluster::{Agent, Cluster, noise, until};
use super::rollback::{Loop, id, published, settled, two_generations};
use crate::support::{needs_root, program};

/// What the guard or a dry run refuses changes nothing; nor does it make a file finished that is not.
#[test]
fn what_is_not_finished_stays_so_whatever_a_rollback_comes_to() {
    use std::io::Write as _;
    let c = Cluster::local();
    c.source("a", "settle = \"200ms\"\nmax-delete = 0\n");
    c.scratch.write("a/tree/app.conf", "1");
    let a = c.start("a");
    settled(&a);
    let first = a.tree()["head"].clone();
    c.scratch.write("a/tree/more", "more");
    let second = published(&a, &first);
    let mut open = std::fs::OpenOptions::new().append(true).open(c.tree("a").join("app.conf")).unwrap();
    open.write_all(b"HALF").unwrap();
    c.scratch.write("a/tree/app.war", "PK\x03\x04 the first half");
    until("that both are held back", || a.tree()["held_count"] == 2);
    for (words, code) in [(&["--dry-run", "--to", &*id(&second)][..], 0), (&["--to", &id(&first)], 4)] {
        let ran = a.order(&[&["rollback", "t"], words].concat());
        assert_eq!(ran.code, code, "{ran:?}");
        // a scan of everything begins and ends after it
        let ran = a.order(&["wait", "t", "--timeout", "2s"]);
        assert_eq!((ran.code, a.tree()["head"].clone()), (7, second.clone()), "{ran:?}");
        assert_eq!(a.tree()["held_count"], 2);
    }
    // nor does a restart after it
    a.kill();
    let a = c.start("a");
    until("that they are held back again", || a.tree()["held_count"] == 2);
    assert_eq!(a.tree()["head"], second);
    drop(open);
    std::fs::remove_file(c.tree("a").join("app.war")).unwrap();
    until("a publication", || a.tree()["head"] != second && a.tree()["held_count"] == 0);
}

/// A file that cannot be replaced.
struct Immutable(std::path::PathBuf);

impl Immutable {
    fn new(path: &Path) -> Option<Self> {
        let done = Command::new("chattr").arg("+i").arg(path).output().ok()?;
        done.status.success().then(|| Self(path.to_owned()))
    }
}

impl Drop for Immutable {
    fn drop(&mut self) {
        let _ = Command::new("chattr").arg("-i").arg(&self.0).status();
    }
}

#[test]
fn what_comes_only_partly_into_place_is_held_and_never_published_as_it_is() {
    if !needs_root("what_comes_only_partly_into_place_is_held_and_never_published_as_it_is") {
        return;
    }
    let c = Cluster::local();
    c.source("a", "keep = 5\n");
    c.mirror("b", "a", "");
    let write = |round: u64, files: u64| {
        for i in 0..files {
            c.scratch.write(format!("a/tree/f{i}"), format!("{round} {i}"));
        }
    };
    write(1, 6);
    let (a, b) = (c.start("a"), c.start("b"));
    settled(&a);
    let first = a.tree()["head"].clone();
    write(2, 3);
    let second = published(&a, &first);
    c.assert_converges(&a, &b, ("a", "b"));
    let Some(fixed) = Immutable::new(&c.tree("a").join("f1")) else {
        eprintln!("skipped: no immutable files here");
        return;
    };
    let new = c.digest("b");
    let ran = a.order(&["rollback", "t"]).code(1);
    for part in ["f1: ", "only partly into place", "--release", "held"] {
        assert!(ran.err.contains(part), "{part}: {ran:?}");
    }
    let held = |a: &Agent| a.own()["state"] == "held" && a.tree()["head"] == second && c.digest("b") == new;
    assert!(held(&a), "{:#}", a.own());
    assert!(a.own()["error"]["what"].as_str().unwrap().contains("f1: "), "{:#}", a.own());
    // a change of the tree, a scan of everything and a restart publish it neither
    c.scratch.write("a/tree/other", "other");
    a.order(&["wait", "t", "--timeout", "1s"]).code(7);
    assert!(held(&a));
    a.kill();
    let a = c.start("a");
    until("the tree is looked at", || a.own()["state"] == "held");
    assert!(!eventually_for(&a, &second), "{:#}", a.own());
    // as long as the cause is there it fails again
    a.order(&["rollback", "t", "--to", &id(&first)]).code(1);
    assert!(held(&a));
    // nor does a deploy job that comes along publish the mixture, or take the way out away
    let job =
        Command::new(program()).args(["hold", "t", "--socket"]).arg(&a.socket).args(["--", "true"]).output();
    let job = job.unwrap();
    let said = String::from_utf8_lossy(&job.stderr).into_owned();
    assert!(job.status.code() == Some(125) && said.contains("only partly into place"), "{job:?}");
    assert!(held(&a));
    drop(fixed);
    a.order(&["rollback", "t", "--to", &id(&first)]).code(0);
    for i in 0..6 {
        assert_eq!(c.scratch.read(format!("a/tree/f{i}")), format!("1 {i}").as_bytes());
    }
    assert!(!c.tree("a").join("other").exists());
    c.assert_converges(&a, &b, ("a", "b"));
    assert!(a.order(&["history", "t"]).code(0).out.lines().next().unwrap().contains("rollback to"));
}

/// Whether something newer than `head` is published within a second.
fn eventually_for(a: &Agent, head: &Value) -> bool {
    super::cluster::within(std::time::Duration::from_secs(1), || a.tree()["head"] != *head)
}

#[test]
fn released_after_a_rollback_that_came_partly_into_place_the_tree_is_published_as_it_is() {
    if !needs_root("released_after_a_rollback_that_came_partly_into_place_the_tree_is_published_as_it_is") {
        return;
    }
    let c = Cluster::local();
    let (a, _, second) = two_generations(&c, "");
    let Some(_fixed) = Immutable::new(&c.tree("a").join("big")) else { return };
    a.order(&["rollback", "t"]).code(1);
    a.order(&["hold", "t", "--release"]).code(0);
    let head = published(&a, &second);
    assert_eq!(c.scratch.read("a/tree/d0/f0"), noise(0, 1_000));
    assert_ne!(head, second);
}

#[test]
fn a_rollback_waits_for_a_hold_that_is_being_published() {
    use std::io::Write as _;
    let c = Cluster::local();
    c.source("a", "settle-max = \"60s\"\n");
    c.scratch.write("a/tree/lib", "1");
    c.scratch.write("a/tree/app", "1");
    let a = c.start("a");
    settled(&a);
    let first = a.tree()["head"].clone();
    c.scratch.write("a/tree/lib", "2");
    published(&a, &first);
    // the job has ended, and a file that it wrote is still open for writing
    let mut open = std::fs::OpenOptions::new().append(true).open(c.tree("a").join("app")).unwrap();
    let job = format!("echo release > {}/lib", c.tree("a").display());
    let socket = a.socket.to_str().unwrap().to_owned();
    let mut hold = Command::new(program())
        .args(["hold", "--socket", &socket, "t", "--", "sh", "-c", &job])
        .spawn()
        .unwrap();
    open.write_all(b"x").unwrap();
    until("it is being published", || {
        a.tree()["hold"].is_object() && a.own()["state"] != "held" && a.tree()["held_count"] == 1
    });
    let ran = a.order(&["rollback", "t", "--to", &id(&first)]).code(4);
    assert!(ran.err.contains("is being published"), "{ran:?}");
    drop(open);
    assert!(hold.wait().unwrap().success());
    assert_eq!(c.scratch.read("a/tree/lib"), b"release\n");
}

/// The last of the disk goes into what is staged, and the journal finds no space.
#[test]
fn when_the_journal_cannot_be_written_nothing_staged_is_left() {
    if !needs_root("when_the_journal_cannot_be_written_nothing_staged_is_left") {
        return;
    }
    let c = Cluster::local();
    c.source("a", "");
    let image = c.path().join("image");
    let mkfs = ["mkfs.ext4", "-q", "-b", "1024", "-O", "^has_journal", "-m", "0", "-N", "4000"];
    let Some(_mount) = Loop::mount_of(&image, &c.tree("a"), &mkfs, 16 << 20) else { return };
    let long = |i: u64| format!("a/tree/d/{i:0>240}");
    for i in 0..300 {
        c.scratch.write(long(i), "x");
    }
    let a = c.start("a");
    settled(&a);
    let first = a.tree()["head"].clone();
    std::fs::remove_dir_all(c.tree("a").join("d")).unwrap();
    c.scratch.write("a/tree/d/one", "one");
    until("a publication, which may need an approval", || {
        let plan = a.own()["plan"]["id"].as_str().map(str::to_owned);
        plan.is_some_and(|plan| a.order(&["approve", "t", &plan]).code == 0) || a.tree()["head"] != first
    });
    let second = published(&a, &first);
    let free = || rustix::fs::statvfs(c.tree("a")).map(|s| s.f_bavail * s.f_frsize).unwrap();
    let mut seen = false;
    // somewhere between too little for what is staged and enough for all
    for left in (100..500).step_by(25) {
        c.scratch.write("a/tree/.syncagent/filler", "");
        let filler =
            std::fs::OpenOptions::new().write(true).open(c.tree("a").join(".syncagent/filler")).unwrap();
        let bytes = free().saturating_sub(left * 1024);
        rustix::fs::fallocate(&filler, rustix::fs::FallocateFlags::empty(), 0, bytes.max(1)).unwrap();
        let before = free();
        let ran = a.order(&["rollback", "t", "--to", &id(&first)]);
        if ran.code == 0 {
            break;
        }
        seen |= ran.err.contains("journal");
        assert!(!c.tree("a").join(".syncagent/stage").exists(), "{ran:?}");
        assert!(!c.tree("a").join(".syncagent/journal").exists(), "{ran:?}");
        assert!(free() + 16_384 >= before, "{} of {before} are free: {ran:?}", free());
        assert_eq!(a.tree()["head"], second);
        assert_eq!(std::fs::read_dir(c.tree("a").join("d")).unwrap().count(), 1);
    }
    assert!(seen, "no attempt ended at the journal");
}
