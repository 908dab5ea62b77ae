//! What goes wrong: killed agents, sources that change under a transfer.

use std::process::Command;

use super::cluster::{Cluster, noise, until};
use crate::support::program;

#[test]
fn killed_at_random_points_source_and_mirror_end_equal() {
    let c = Cluster::new(&["a", "b"]);
    c.source("a", "");
    for i in 0..300u64 {
        c.scratch.write(format!("a/tree/d{}/f{i}", i % 17), noise(i, 2_000));
    }
    c.mirror("b", "a", "");
    let (mut a, mut b) = (c.start("a"), c.start("b"));
    let rounds = if std::env::var_os("SYNCAGENT_TEST_LONG").is_some() { 60 } else { 12 };
    for round in 0..rounds {
        for i in 0..40u64 {
            let n = (round * 40 + i) % 300;
            c.scratch.write(format!("a/tree/d{}/f{n}", n % 17), noise(round * 1000 + i, 3_000));
        }
        // every 7 ms further into the work, so that each kill hits another step
        std::thread::sleep(std::time::Duration::from_millis(40 + round * 7));
        if round % 3 == 0 {
            a.kill();
            a = c.start("a");
        } else {
            b.kill();
            b = c.start("b");
        }
    }
    c.assert_converges(&a, &b, ("a", "b"));
}

#[test]
fn a_source_file_overwritten_while_it_is_fetched_never_arrives_torn() {
    let c = Cluster::new(&["a", "b"]);
    c.source("a", "");
    c.scratch.write("a/tree/big", noise(0, 64 << 20));
    c.mirror("b", "a", "");
    let (a, b) = (c.start("a"), c.start("b"));
    let seeds: Vec<Vec<u8>> = (1..6).map(|seed| noise(seed, 64 << 20)).collect();
    for content in &seeds {
        c.scratch.write("a/tree/big", content);
        std::thread::sleep(std::time::Duration::from_millis(150));
        if let Ok(seen) = std::fs::read(c.tree("b").join("big")) {
            let known = seen == noise(0, 64 << 20) || seeds.contains(&seen);
            assert!(known, "a torn file of {} bytes", seen.len());
        }
    }
    until("the last one", || std::fs::read(c.tree("b").join("big")).is_ok_and(|seen| seen == seeds[4]));
    c.assert_converges(&a, &b, ("a", "b"));
}

#[test]
fn without_a_watch_left_source_and_mirror_go_on_by_polling_and_say_so() {
    let c = Cluster::new(&["a", "b"]);
    let without_watches = || {
        let mut command = Command::new("unshare");
        let limit = "echo 0 > /proc/sys/user/max_inotify_instances && exec \"$0\" \"$@\"";
        command.args(["--user", "--map-root-user", "sh", "-c", limit]).arg(program());
        command
    };
    c.source("a", "");
    c.scratch.write("a/tree/d/x", "1");
    c.mirror("b", "a", "");
    let (a, b) = (c.start_by("a", without_watches()), c.start_by("b", without_watches()));
    c.assert_converges(&a, &b, ("a", "b"));
    for agent in [&a, &b] {
        let watch = agent.tree()["watch"].clone();
        assert_eq!(watch["native"], false);
        assert!(watch["reason"].as_str().unwrap().contains("sysctl"), "{watch}");
    }
    c.scratch.write("a/tree/d/x", "2");
    until("the change", || c.scratch.read("b/tree/d/x") == b"2");
    c.scratch.write("b/tree/d/x", "drift");
    until("the repair", || c.scratch.read("b/tree/d/x") == b"2");
    c.assert_converges(&a, &b, ("a", "b"));
}
