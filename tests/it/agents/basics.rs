//! What an agent is for.

use rustix::process::Signal;

use super::cluster::{Cluster, eventually, noise, run, until};
use crate::support::{Ran, Scratch, program};

/// A source and a mirror over TLS, with a few files, in step.
fn pair(source: &str, mirror: &str) -> (Cluster, super::cluster::Agent, super::cluster::Agent) {
    let c = Cluster::new(&["a", "b"]);
    c.source("a", source);
    for i in 0..20 {
        c.scratch.write(format!("a/tree/d{}/f{i}", i % 3), format!("content {i}"));
    }
    c.mirror("b", "a", mirror);
    let a = c.start("a");
    let b = c.start("b");
    c.assert_converges(&a, &b, ("a", "b"));
    (c, a, b)
}

#[test]
fn a_change_arrives_and_the_source_knows_it() {
    let (c, a, b) = pair("", "");
    c.scratch.write("a/tree/d1/f1", "changed");
    c.scratch.write("a/tree/new/deep/er/file", noise(1, 300_000));
    std::fs::remove_file(c.tree("a").join("d2/f2")).unwrap();
    until("the change", || c.tree("b").join("new/deep/er/file").exists());
    c.assert_converges(&a, &b, ("a", "b"));
    until("the report", || {
        let tree = a.tree();
        tree["nodes"][1]["generation"] == tree["head"] && tree["nodes"][1]["state"] == "current"
    });
    let row = &a.tree()["nodes"][1];
    assert_eq!((&row["node"], &row["lag_ms"], &row["connected"]), (&"b".into(), &0.into(), &true.into()));
    let convergence = &a.tree()["convergence"]["hour"];
    assert!(convergence["count"].as_u64().unwrap() >= 1, "{convergence}");
    let table = run(&["status", "t", "--socket", a.socket.to_str().unwrap()]).code(0).out;
    assert!(table.contains('b') && table.contains("current"), "{table}");
}

#[test]
fn a_unix_socket_needs_no_certificates() {
    let c = Cluster::local();
    c.source("a", "");
    c.scratch.write("a/tree/x", "1");
    c.mirror("b", "a", "");
    let (a, b) = (c.start("a"), c.start("b"));
    c.assert_converges(&a, &b, ("a", "b"));
    c.scratch.write("a/tree/x", "2");
    until("the change", || c.scratch.read("b/tree/x") == b"2");
}

#[test]
fn a_mass_deletion_is_refused_until_it_is_approved_and_reaches_no_mirror() {
    let (c, a, b) = pair("", "");
    let before = c.digest("b");
    for d in ["d0", "d1"] {
        std::fs::remove_dir_all(c.tree("a").join(d)).unwrap();
    }
    // a look may have come in the middle of it
    until("the refusal of all of it", || a.own()["plan"]["lost"] == 14);
    assert_eq!(a.own()["state"], "refused");
    assert_eq!(c.digest("b"), before);
    let plan = a.own()["plan"]["id"].as_str().unwrap().to_owned();
    let wrong = a.order(&["approve", "t", "0123456789abcdef"]);
    assert_eq!(wrong.code, 2, "{wrong:?}");
    assert!(wrong.err.contains(&plan), "{wrong:?}");
    a.order(&["approve", "t", &plan]).code(0);
    c.assert_converges(&a, &b, ("a", "b"));
    assert!(!c.tree("b").join("d0").exists());
}

#[test]
fn drift_is_put_back_and_kept_in_the_trash() {
    let (c, a, b) = pair("", "");
    c.scratch.write("b/tree/d1/f1", "edited on the mirror");
    c.scratch.write("b/tree/foreign", "made on the mirror");
    until("the repair", || {
        c.scratch.read("b/tree/d1/f1") == b"content 1" && !c.tree("b").join("foreign").exists()
    });
    c.assert_converges(&a, &b, ("a", "b"));
    assert!(b.log_text().contains("drift"), "{}", b.log_tail());
    let trash = c.tree("b").join(".syncagent/trash");
    let kept = walkdir::WalkDir::new(trash).into_iter().flatten();
    let kept: Vec<_> = kept.filter(|e| e.file_name() == "f1").collect();
    assert_eq!(std::fs::read(kept[0].path()).unwrap(), b"edited on the mirror");
}

#[test]
fn drift_is_only_reported_where_that_is_configured() {
    let (c, a, b) = pair("", "drift = \"report\"\n");
    c.scratch.write("b/tree/d1/f1", "edited on the mirror");
    b.wait_for_state("drift");
    assert_eq!(c.scratch.read("b/tree/d1/f1"), b"edited on the mirror");
    until("the source knowing", || a.tree()["nodes"][1]["drift"] == 1);
}

#[test]
fn a_directory_that_was_never_managed_is_taken_over_only_by_approval() {
    let c = Cluster::new(&["a", "b"]);
    c.source("a", "");
    c.scratch.write("a/tree/x", "theirs");
    c.scratch.write("b/tree/x", "ours");
    c.scratch.write("b/tree/y", "only here");
    c.mirror("b", "a", "");
    let (a, b) = (c.start("a"), c.start("b"));
    b.wait_for_state("refused");
    assert_eq!(c.scratch.read("b/tree/y"), b"only here");
    let plan = b.own()["plan"]["id"].as_str().unwrap().to_owned();
    b.order(&["approve", "t", &plan]).code(0);
    c.assert_converges(&a, &b, ("a", "b"));
}

#[test]
fn generations_go_on_after_restarts_and_after_the_state_directories_are_lost() {
    let (c, a, b) = pair("", "");
    let first = a.tree()["head"].clone();
    a.stop();
    b.stop();
    std::fs::remove_dir_all(c.path().join("a/state")).unwrap();
    std::fs::remove_dir_all(c.path().join("b/state")).unwrap();
    c.scratch.write("a/tree/while-they-were-away", "1");
    let (a, b) = (c.start("a"), c.start("b"));
    c.assert_converges(&a, &b, ("a", "b"));
    let later = a.tree()["head"].clone();
    assert_eq!(first["epoch"], later["epoch"]);
    assert!(later["number"].as_u64() > first["number"].as_u64(), "{first} {later}");
    a.stop();
    let a = c.start("a");
    c.assert_converges(&a, &b, ("a", "b"));
    assert_eq!(a.tree()["head"], later, "an unchanged tree is not published again");
}

#[test]
fn a_source_restored_from_a_backup_publishes_nothing_until_it_is_reset() {
    let (c, a, b) = pair("", "");
    let dir = c.path().to_owned();
    a.stop();
    let copy = |from: &str, to: &str| {
        let ok = std::process::Command::new("cp")
            .arg("-a")
            .arg(dir.join(from))
            .arg(dir.join(to))
            .status()
            .unwrap();
        assert!(ok.success());
    };
    copy("a", "a.backup");
    let a = c.start("a");
    c.scratch.write("a/tree/d1/newer", "newer than the backup");
    until("the newer file", || c.tree("b").join("d1/newer").exists());
    c.assert_converges(&a, &b, ("a", "b"));
    a.stop();
    std::fs::remove_dir_all(dir.join("a")).unwrap();
    copy("a.backup", "a");
    let a = c.start("a");
    a.wait_for_state("superseded");
    c.scratch.write("a/tree/d1/another", "published later");
    assert!(c.tree("b").join("d1/newer").exists(), "the mirror went back");
    // that it is asked again and again is nobody's fault
    until("that the mirror was told", || b.own()["error"].to_string().contains("never made"));
    assert_eq!(a.tree()["refused_peers"], 0);
    let refused = a.order(&["source", "reset", "t"]);
    assert_eq!(refused.code, 2, "{refused:?}");
    a.order(&["source", "reset", "t", "--approve"]).code(0);
    c.assert_converges(&a, &b, ("a", "b"));
    assert!(!c.tree("b").join("d1/newer").exists());
    assert!(c.tree("b").join("d1/another").exists());
}

#[test]
fn a_half_written_archive_waits_and_holds_nothing_else_up() {
    let (c, a, b) = pair("settle-max = \"1s\"\n", "");
    let whole = std::fs::read(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/fixtures/wso2-ei/server/webapps/order-monitor.war"
    ));
    let whole = whole.unwrap();
    c.scratch.write("a/tree/half.war", &whole[..900]);
    until("the hold", || a.tree()["held_count"] == 1);
    c.scratch.write("a/tree/other", "not held up for ever");
    until("the other file", || c.tree("b").join("other").exists());
    assert!(!c.tree("b").join("half.war").exists());
    c.scratch.write("a/tree/half.war", &whole);
    until("the archive", || c.tree("b").join("half.war").exists());
    c.assert_converges(&a, &b, ("a", "b"));
    assert_eq!(c.scratch.read("b/tree/half.war"), whole);
}

#[test]
fn while_the_hold_file_is_there_nothing_is_published() {
    let (c, a, b) = pair("hold-file = \".hold\"\n", "");
    c.scratch.write("a/tree/.hold", "");
    c.scratch.write("a/tree/x", "1");
    a.wait_for_state("held");
    assert!(!c.tree("b").join("x").exists());
    std::fs::remove_file(c.tree("a").join(".hold")).unwrap();
    until("x", || c.tree("b").join("x").exists());
    c.assert_converges(&a, &b, ("a", "b"));
    assert!(!c.tree("b").join(".hold").exists());
}

#[test]
fn a_reload_takes_over_trees_and_names_what_needs_a_restart() {
    let (c, a, b) = pair("", "");
    c.edit("a", "settle = \"50ms\"", "settle = \"60ms\"\nexclude = [\"*.log\"]");
    c.edit("a", "name = \"test\"", "name = \"other\"");
    a.signal(Signal::HUP);
    until("the reload", || a.log_text().contains("cluster.name"));
    c.scratch.write("a/tree/x.log", "1");
    c.scratch.write("a/tree/y", "1");
    if !eventually(|| c.tree("b").join("y").exists()) {
        panic!("{}\n\n{}", a.log_tail(), b.log_tail());
    }
    until("both in step", || a.tree()["head"] == b.own()["generation"]);
    assert!(!c.tree("b").join("x.log").exists());
    c.edit("a", "role = \"source\"", "role = \"sauce\"");
    a.signal(Signal::HUP);
    until("the complaint", || a.log_text().contains("stays in force"));
    c.scratch.write("a/tree/z", "1");
    until("z", || c.tree("b").join("z").exists());
}

#[test]
fn another_nodes_certificate_and_a_node_that_is_not_allowed_are_refused() {
    let c = Cluster::new(&["a", "b", "c"]);
    c.source("a", "");
    c.edit("a", "allow = [\"*\"]", "allow = [\"b\"]");
    c.scratch.write("a/tree/x", "1");
    c.mirror("b", "a", "");
    c.mirror("c", "a", "");
    let (a, b, d) = (c.start("a"), c.start("b"), c.start("c"));
    c.assert_converges(&a, &b, ("a", "b"));
    until("the refusal", || d.own()["error"].is_object());
    let why = d.own()["error"]["what"].as_str().unwrap().to_owned();
    assert!(why.contains("may not read"), "{why}");
    assert!(!c.tree("c").join("x").exists());
    assert!(a.tree()["refused_peers"].as_u64().unwrap() > 0);
    // the mirror expects another node than the one that answers
    b.stop();
    c.edit("b", "source-id = \"a\"", "source-id = \"c\"");
    let b = c.start("b");
    until("the refusal", || b.own()["error"].is_object());
    let why = b.own()["error"]["what"].as_str().unwrap().to_owned();
    assert!(why.contains('a') && why.contains('c'), "{why}");
}

#[test]
fn a_termination_is_quick_also_during_a_large_transfer_and_the_next_start_goes_on() {
    let (c, a, b) = pair("", "");
    c.scratch.write("a/tree/large", noise(7, 400 << 20));
    let partial = c.tree("b").join(".syncagent/partial");
    let size = || {
        let files = std::fs::read_dir(&partial).into_iter().flatten().flatten();
        files.filter_map(|e| e.metadata().ok()).map(|m| m.len()).max().unwrap_or(0)
    };
    if !eventually(|| size() > (8 << 20)) {
        panic!("no transfer\n{}\n{}", a.log_tail(), b.log_tail());
    }
    let took = b.stop();
    // not when the transfer is through, however long the disk takes for what is under way
    assert!(!c.tree("b").join("large").exists(), "it ended after {took:?}, when all was there");
    let there = size();
    let b = c.start("b");
    until("the file", || c.tree("b").join("large").exists());
    c.assert_converges(&a, &b, ("a", "b"));
    assert!(there > (8 << 20), "what was there is gone: {there} bytes");
}

/// The demo, with its temporary directory in a place of its own.
fn demo(scratch: &Scratch, args: &[&str]) -> std::process::Command {
    let mut command = std::process::Command::new(program());
    command.arg("demo").args(args).env("TMPDIR", scratch.path()).stdout(std::process::Stdio::piped());
    command
}

fn left(scratch: &Scratch) -> usize {
    let names = std::fs::read_dir(scratch.path()).unwrap().flatten().map(|e| e.file_name());
    names.filter(|name| name.to_string_lossy().starts_with("syncagent-demo")).count()
}

#[test]
fn the_demo_converges_and_leaves_nothing_behind() {
    let scratch = Scratch::new();
    let ran = Ran::from(demo(&scratch, &["--seconds", "12"]).output().unwrap()).code(0);
    for told in ["no mirror has seen it", "refused:", "every mirror has converged"] {
        assert!(ran.out.contains(told), "{told}: {}", ran.out);
    }
    assert_eq!(left(&scratch), 0);
}

#[test]
fn an_interrupted_demo_leaves_nothing_behind() {
    let scratch = Scratch::new();
    let mut child = demo(&scratch, &[]).spawn().unwrap();
    until("the demo's directory", || left(&scratch) == 1);
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), Signal::INT).unwrap();
    let mut status = None;
    until("the end", || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    assert_eq!(status.unwrap().code(), Some(0), "{status:?}");
    assert_eq!(left(&scratch), 0);
}

#[test]
fn lines_of_json_for_the_journal_begin_with_their_level_too() {
    use std::os::unix::fs::MetadataExt as _;
    let c = Cluster::local();
    c.source("a", "");
    c.edit("a", "level = \"debug\"", "level = \"debug\"\nformat = \"json\"");
    c.scratch.write("a/tree/x", "1");
    for journal in [true, false] {
        c.scratch.write("a.log", "");
        let meta = std::fs::metadata(c.path().join("a.log")).unwrap();
        let mut command = std::process::Command::new(program());
        command.env_remove("JOURNAL_STREAM");
        if journal {
            // as systemd tells it
            command.env("JOURNAL_STREAM", format!("{}:{}", meta.dev(), meta.ino()));
        }
        let a = c.start_by("a", command);
        until("the log", || a.log_text().contains("\"published\"") || !journal);
        a.stop();
        let log = c.scratch.read("a.log");
        let log = String::from_utf8(log).unwrap();
        assert!(log.contains("\"started\""), "{log}");
        for line in log.lines() {
            let (level, json) = if journal { line.split_at(3) } else { ("", line) };
            let json: serde_json::Value =
                serde_json::from_str(json).unwrap_or_else(|e| panic!("{e}: {line}"));
            let expected = match json["level"].as_str().unwrap() {
                _ if !journal => "",
                "ERROR" => "<3>",
                "WARN" => "<4>",
                "INFO" => "<6>",
                _ => "<7>",
            };
            assert_eq!(level, expected, "{line}");
        }
    }
}

#[test]
fn a_reload_and_a_restart_of_the_source_leave_no_refusals_and_no_warnings() {
    let (c, a, b) = super::operate::pair("", "");
    for (from, to) in [("50ms", "60ms"), ("60ms", "70ms"), ("70ms", "80ms")] {
        let before = a.log_text().matches("took over the new configuration").count();
        c.edit("a", from, to);
        a.signal(Signal::HUP);
        until("the reload", || a.log_text().matches("took over the new configuration").count() == before + 1);
        c.scratch.write("a/tree/x", to);
        c.assert_converges(&a, &b, ("a", "b"));
        assert_eq!(a.tree()["refused_peers"], 0);
    }
    a.stop();
    until("that it is noticed", || b.own()["connected"] == false);
    let a = c.start("a");
    c.assert_converges(&a, &b, ("a", "b"));
    assert_eq!(a.tree()["refused_peers"], 0);
    assert!(!a.log_text().contains("refused: "), "{}", a.log_tail());
    for line in b.log_text().lines().filter(|line| line.contains("WARN")) {
        // that nobody listened meanwhile is worth a warning
        assert!(
            !line.contains("set up anew") && !line.contains("is stopping") && !line.contains("404"),
            "{line}"
        );
    }
}
