//! A rollback on a source that a crash interrupts: what somebody writes before the next start stays.

use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use serde_json::Value;

use super::cluster::{Agent, Cluster, eventually, until};
use super::rollback::id;
use crate::support::needs_root;

const FILES: usize = 4;

/// Waits until everything is published. With `keep = 0` nothing is kept that could be waited for.
#[track_caller]
fn settled(agent: &Agent, keep: u32) {
    let mut last = Value::Null;
    let done = eventually(|| {
        last = agent.tree();
        last["nodes"][0]["state"] == "current"
            && last["unpublished_age_ms"].is_null()
            && last["head"].is_object()
            && (keep == 0 || super::rollback::retention(agent)["up_to"] == last["head"])
    });
    assert!(done, "{last:#}\n{}", agent.log_tail());
}

/// Kills the agent at the `nth` call of `call` that one of its threads makes from now on.
fn kill_at(c: &Cluster, agent: &Agent, call: &str, nth: usize) -> Child {
    let says = c.path().join("strace.log");
    let strace = Command::new("strace")
        .args(["-f", "-o", "/dev/null", "-e", &format!("trace={call}")])
        .args(["-e", &format!("inject={call}:signal=KILL:when={nth}")])
        .args(["-p", &agent.pid().as_raw_nonzero().to_string()])
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(&says).unwrap())
        .spawn()
        .unwrap();
    until("strace", || std::fs::read_to_string(&says).unwrap().contains("attached"));
    strace
}

/// Kills at every call of a rollback in turn; after each crash writes files where the rollback had deleted some.
fn late_stays(keep: u32) {
    if !needs_root("tracing a running process") {
        return;
    }
    let c = Cluster::local();
    c.source("a", &format!("keep = {keep}\nmax-delete = \"100%\"\n"));
    c.mirror("b", "a", "max-delete = \"100%\"\n");
    let base = |n: usize| format!("a/tree/d/base{n}");
    for n in 0..FILES {
        c.scratch.write(base(n), "first");
    }
    let mut a = c.start("a");
    settled(&a, keep);
    let b = c.start("b");
    let first = a.tree()["head"].clone();
    let names: Vec<String> =
        (0..FILES).map(|n| format!("d/new{n}")).chain(["newdir/x".into(), "newdir/sub/y".into()]).collect();
    let (mut round, mut crashes, mut written) = (0, 0, 0);
    for call in ["unlinkat", "renameat2"] {
        for nth in 1.. {
            round += 1;
            let before = a.tree()["head"].clone();
            c.scratch.write(base(0), format!("second, {round}"));
            for name in &names {
                c.scratch.write(format!("a/tree/{name}"), format!("{name} {round}"));
            }
            until("a publication", || a.tree()["head"] != before);
            settled(&a, keep);
            let mut strace = kill_at(&c, &a, call, nth);
            let ran = a.order(&["rollback", "t", "--to", &id(&first)]);
            if ran.code == 0 {
                // no call of that number: the end
                kill_process(Pid::from_child(&strace), Signal::TERM).unwrap();
                strace.wait().unwrap();
                break;
            }
            strace.wait().unwrap();
            a.kill();
            crashes += 1;
            let tree = c.tree("a");
            let mut late = Vec::new();
            let newdir = tree.join("newdir").exists();
            for name in names.iter().filter(|name| !tree.join(name).exists()) {
                // in a directory that has yet to go it is a change of what goes
                if !(newdir && name.starts_with("newdir")) {
                    let content = format!("late {name} {round}");
                    c.scratch.write(format!("a/tree/{name}"), &content);
                    late.push((name, content));
                }
            }
            written += late.len();
            a = c.start("a");
            settled(&a, keep);
            let what = format!("keep {keep}, at {call} {nth}");
            c.assert_converges(&a, &b, ("a", "b"));
            for (name, content) in late {
                for node in ["a", "b"] {
                    let there = std::fs::read_to_string(c.tree(node).join(name)).ok();
                    assert_eq!(there.as_ref(), Some(&content), "{what}: {name} on {node}\n{}", a.log_tail());
                }
            }
            // decided or not, never a mix
            let base0 = std::fs::read_to_string(tree.join("d/base0")).unwrap();
            let undone = names.iter().all(|n| {
                std::fs::read_to_string(tree.join(n)).is_ok_and(|now| now == format!("{n} {round}"))
            });
            let done = base0 == "first"
                && !names.iter().any(|n| {
                    std::fs::read_to_string(tree.join(n)).is_ok_and(|now| now == format!("{n} {round}"))
                });
            assert!(undone && base0 != "first" || done, "{what}: a mix: {base0}\n{}", a.log_tail());
            for left in ["journal", "stage", "stage.done", "unplaced"] {
                assert!(!tree.join(".syncagent").join(left).exists(), "{what}: {left} is left");
            }
        }
    }
    eprintln!("keep {keep}: {crashes} crashes, {written} files written after them");
    assert!(crashes > 8 && written > 12, "{crashes} {written}");
}

#[test]
fn what_is_written_after_a_crash_in_a_rollback_stays_when_nothing_is_kept() {
    late_stays(0);
}

#[test]
fn what_is_written_after_a_crash_in_a_rollback_stays_when_it_is_kept() {
    late_stays(3);
}

/// What is in no generation is in the trash, whenever the exchange of the trees is cut off.
#[test]
fn a_swap_that_is_cut_off_loses_nothing_that_was_only_here() {
    if !needs_root("tracing a running process") {
        return;
    }
    let c = Cluster::local();
    c.source("a", "");
    c.mirror("b", "a", "keep = 0\nactivate = \"swap\"\nmax-delete = \"100%\"\n");
    c.scratch.write("a/tree/x", "0");
    let (a, mut b) = (c.start("a"), c.start("b"));
    c.assert_converges(&a, &b, ("a", "b"));
    let mut crashes = 0;
    for nth in 1..=6 {
        b.order(&["pause", "t"]).code(0);
        let only = format!("only here {nth}");
        c.scratch.write(format!("b/tree/local{nth}"), &only);
        let before = a.tree()["head"].clone();
        c.scratch.write("a/tree/x", format!("{nth}"));
        until("a publication", || a.tree()["head"] != before);
        until("it is heard", || b.tree()["head"] == a.tree()["head"]);
        let mut strace = kill_at(&c, &b, "renameat2", nth);
        // who asks may see it die
        b.order(&["resume", "t"]);
        let done = |status: Value| status["trees"][0]["nodes"][0]["consistent"] == true;
        let died = eventually(|| b.try_status().is_none_or(done));
        assert!(died, "{}", b.log_tail());
        if b.try_status().is_none() {
            crashes += 1;
            b.kill();
            strace.wait().unwrap();
            b = c.start("b");
        } else {
            kill_process(Pid::from_child(&strace), Signal::TERM).unwrap();
            strace.wait().unwrap();
        }
        c.assert_converges(&a, &b, ("a", "b"));
        let all = walkdir::WalkDir::new(c.path().join("b/tree/.syncagent/trash")).into_iter().flatten();
        let kept = all.filter(|e| std::fs::read(e.path()).is_ok_and(|text| text == only.as_bytes())).count();
        assert_eq!(kept, 1, "killed at renameat2 {nth}: {}", b.log_tail());
    }
    assert!(crashes > 1, "{crashes}");
}

/// A source of eight files in two generations, killed between the renames of a rollback to the first one. Gives both.
fn half_a_rollback(c: &Cluster) -> (Value, Value) {
    c.source("a", "");
    let write = |text: &str| (0..8).for_each(|n| c.scratch.write(format!("a/tree/f{n}"), text));
    write("first");
    let a = c.start("a");
    settled(&a, 1);
    let first = a.tree()["head"].clone();
    write("second, longer");
    until("a publication", || a.tree()["head"] != first);
    settled(&a, 1);
    let second = a.tree()["head"].clone();
    let mut strace = kill_at(c, &a, "renameat2", 5);
    assert_ne!(a.order(&["rollback", "t"]).code, 0, "it was not hit");
    strace.wait().unwrap();
    a.kill();
    (first, second)
}

/// A disk that cannot be written to after a crash (errors=remount-ro) cannot be finished, and is not published.
#[test]
fn half_a_rollback_on_a_disk_that_became_read_only_is_not_published() {
    if !needs_root("half_a_rollback_on_a_disk_that_became_read_only_is_not_published") {
        return;
    }
    struct Mounted(std::path::PathBuf);
    impl Drop for Mounted {
        fn drop(&mut self) {
            let _ = Command::new("umount").arg("-l").arg(&self.0).status();
        }
    }
    let mount = |words: &[&str], at: &std::path::Path| {
        assert!(Command::new("mount").args(words).arg(at).status().unwrap().success());
    };
    let c = Cluster::local();
    let tree = c.tree("a");
    std::fs::create_dir_all(&tree).unwrap();
    mount(&["-t", "tmpfs", "-o", "size=64m", "tmpfs"], &tree);
    let _mounted = Mounted(tree.clone());
    let (_, second) = half_a_rollback(&c);
    let text = |n: usize| std::fs::read_to_string(tree.join(format!("f{n}"))).unwrap();
    let mixed = (0..8).map(text).collect::<std::collections::BTreeSet<_>>().len() == 2;
    assert!(mixed, "the kill was not between the renames");
    mount(&["-o", "remount,ro"], &tree);
    let a = c.start("a");
    let said = || a.own()["error"]["what"].as_str().is_some_and(|e| e.contains("cut off"));
    assert!(eventually(said), "{:#}\n{}", a.own(), a.log_tail());
    assert_eq!(a.tree()["head"], second);
    mount(&["-o", "remount,rw"], &tree);
    until("a publication", || a.tree()["head"] != second);
    assert!((0..8).all(|n| text(n) == "first"));
    let history = a.order(&["history", "t"]).code(0).out;
    assert!(history.lines().next().unwrap().contains("rollback to"), "{history}");
}

/// What a start could not finish keeps the tree back, also where nobody remembers the rollback; and once it is repeated
/// and cut off again, what the next start finishes is published.
#[test]
fn what_a_start_could_not_finish_is_held_also_when_the_state_directory_is_lost() {
    if !needs_root("tracing a running process") {
        return;
    }
    for lost in [true, false] {
        let c = Cluster::local();
        let text = |n: usize| c.scratch.read(format!("a/tree/f{n}"));
        let (first, second) = half_a_rollback(&c);
        // somebody writes to what was not reached yet
        let unreached: Vec<usize> = (0..8).filter(|n| text(*n) != b"first").collect();
        assert!((1..8).contains(&unreached.len()), "{unreached:?}");
        for n in &unreached {
            c.scratch.write(format!("a/tree/f{n}"), "written after the crash");
        }
        if lost {
            std::fs::remove_dir_all(c.path().join("a/state")).unwrap();
        }
        let a = c.start("a");
        until("it is held", || a.own()["state"] == "held");
        let what = a.own()["error"]["what"].as_str().unwrap().to_owned();
        assert!(
            what.contains("only partly into place") && what.contains(&format!("f{}", unreached[0])),
            "{what}"
        );
        a.order(&["wait", "t", "--timeout", "1s"]).code(7);
        if lost {
            assert!(a.tree()["head"].is_null(), "{:#}", a.tree()["head"]);
            a.order(&["hold", "t", "--release"]).code(0);
            until("a publication", || a.tree()["head"].is_object());
            continue;
        }
        assert_eq!(a.tree()["head"], second);
        // again, and cut off after it was decided
        let mut strace = kill_at(&c, &a, "renameat2", 3);
        assert_ne!(a.order(&["rollback", "t", "--to", &id(&first)]).code, 0, "it was not hit");
        strace.wait().unwrap();
        a.kill();
        assert!((0..8).any(|n| text(n) != b"first"), "the kill was after the renames");
        assert!(c.tree("a").join(".syncagent/journal").exists(), "the kill was before it was decided");
        let a = c.start("a");
        let done = eventually(|| a.tree()["head"] != second && a.own()["state"] == "current");
        assert!(done, "{:#}\n{}", a.own(), a.log_tail());
        assert!((0..8).all(|n| text(n) == b"first"), "{}", a.log_tail());
        assert!(a.order(&["history", "t"]).code(0).out.lines().next().unwrap().contains("rollback to"));
    }
}
