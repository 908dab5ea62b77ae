//! What the load balancer sees of each thing that can go wrong.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::super::cluster::{Agent, Cluster, noise, until, within};
use super::{Port, open};
use crate::support::{needs_root, tool};

/// A source, and a mirror with a public port, in step. `keys` are the mirror's tree's, `more` further sections.
fn pair(source: &str, keys: &str, more: &str) -> (Cluster, Agent, Agent, Port) {
    let c = Cluster::local();
    c.source("a", source);
    for i in 0..20 {
        c.scratch.write(format!("a/tree/d{}/f{i}", i % 3), format!("content {i}"));
    }
    c.mirror("b", "a", keys);
    c.add("b", more);
    let port = open(&c, "b");
    let (a, b) = (c.start("a"), c.start("b"));
    c.assert_converges(&a, &b, ("a", "b"));
    port.wait_for(200, "ok", &b);
    (c, a, b, port)
}

/// It stays as it is for a while.
#[track_caller]
fn stays_healthy(port: Port, agent: &Agent) {
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(1500) {
        let answer = port.get("/ha/health");
        assert_eq!(answer.status, 200, "{answer:?}\n{}", agent.log_tail());
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_lost_source_drains_nobody_unless_its_contact_age_is_limited() {
    let (c, a, b, port) = pair("", "max-lag = \"1s\"\n", "");
    a.kill();
    b.wait_for_state("disconnected");
    stays_healthy(port, &b);
    // taken over by a reload: the limit is the tree's, which begins anew and has heard nobody
    c.edit("b", "max-lag = \"1s\"\n", "max-contact-age = \"2s\"\n");
    b.signal(Signal::HUP);
    let line = port.wait_for(503, "max-contact-age 2 s", &b);
    assert!(line.starts_with("t: contact-age "), "{line}");
    assert_eq!(line.matches('\n').count(), 1);
    assert!(port.check().starts_with("ready down #t: contact-age"), "{}", port.check());
    assert_eq!(
        b.own()["faults"][0].as_str().unwrap().split_once(" is over").unwrap().1,
        " max-contact-age 2 s"
    );
    let a = c.start("a");
    port.wait_for(200, "ok", &b);
    c.assert_converges(&a, &b, ("a", "b"));
}

/// What cannot be fetched is no failure of this node.
#[test]
fn a_source_lost_in_the_middle_of_a_transfer_drains_nobody() {
    let (c, a, b, port) = pair("", "", "");
    c.scratch.write("a/tree/large", noise(7, 400 << 20));
    let partial = c.tree("b").join(".syncagent/partial");
    let size = || {
        let files = std::fs::read_dir(&partial).into_iter().flatten().flatten();
        files.filter_map(|e| e.metadata().ok()).map(|m| m.len()).max().unwrap_or(0)
    };
    until("a transfer", || size() > (8 << 20));
    a.kill();
    until("the error", || b.own()["error"].is_object());
    assert!(!c.tree("b").join("large").exists(), "it came through");
    stays_healthy(port, &b);
    let own = b.own();
    assert!(["fetching", "disconnected"].contains(&own["state"].as_str().unwrap()), "{own:#}");
    assert_eq!((own["connected"].as_bool(), own["faults"].as_array().unwrap().len()), (Some(false), 0));
}

/// A node that was away may lack anything: it takes no traffic before it has heard of its source, or waited for it.
#[test]
fn after_a_start_without_a_source_the_grace_ends() {
    let c = Cluster::local();
    c.mirror("b", "a", "max-lag = \"1min\"\n");
    c.scratch.write("b/tree/x", "was here before");
    c.add("b", "[health]\nstartup-grace = \"4s\"\n");
    let port = open(&c, "b");
    let begun = Instant::now();
    let b = c.start("b");
    let answer = port.get("/ha/health");
    if begun.elapsed() < Duration::from_secs(3) {
        assert_eq!(answer.status, 503, "{answer:?}");
        assert!(answer.body.contains("not heard since the start"), "{answer:?}");
    }
    port.wait_for(200, "ok", &b);
    assert!(begun.elapsed() >= Duration::from_secs(4), "{:?}", begun.elapsed());
    until("the tree", || port.get("/readyz").status == 200);
}

#[test]
fn when_drain_returns_the_ports_say_so() {
    let (_c, _a, b, port) = pair("", "", "");
    port.wait_for(200, "ok", &b);
    for _ in 0..4 {
        b.order(&["drain"]).code(0);
        let (health, check) = (port.get("/ha/health"), port.check());
        assert!(health.status == 503 && health.body.contains("drained by"), "{health:?}");
        assert!(check.starts_with("drain"), "{check}");
        b.order(&["undrain"]).code(0);
        let (health, check) = (port.get("/ha/health"), port.check());
        assert!(health.status == 200 && check == "up ready\n", "{health:?} {check}");
    }
}

#[test]
fn a_refused_plan_and_a_publication_that_is_refused_drain_nobody() {
    let (c, a, b, port) = pair("", "max-lag = \"1s\"\n", "");
    for d in ["d0", "d1"] {
        std::fs::remove_dir_all(c.tree("a").join(d)).unwrap();
    }
    a.wait_for_state("refused");
    stays_healthy(port, &b);
    drop((a, b, c));
    // on the mirror: a directory that was never managed
    let c = Cluster::local();
    c.source("a", "");
    c.scratch.write("a/tree/x", "theirs");
    c.scratch.write("b/tree/y", "only here");
    c.mirror("b", "a", "");
    let port = open(&c, "b");
    let (_a, b) = (c.start("a"), c.start("b"));
    b.wait_for_state("refused");
    stays_healthy(port, &b);
    c.add("b", "[health]\ndrain-on = [\"refused\"]\n");
    b.signal(Signal::HUP);
    let line = port.wait_for(503, "t: a plan was refused", &b);
    assert!(line.contains("never managed"), "{line}");
}

#[test]
fn drift_drains_only_where_that_is_configured_which_a_reload_takes_over_at_once() {
    let (c, a, b, port) = pair("", "drift = \"report\"\n", "");
    c.scratch.write("b/tree/d1/f1", "edited on the mirror");
    b.wait_for_state("drift");
    stays_healthy(port, &b);
    assert_eq!(port.check(), "up ready\n");
    c.add("b", "[health]\ndrain-on = [\"drift\"]\n");
    b.signal(Signal::HUP);
    port.wait_for(503, "t: 1 path was edited here", &b);
    assert_eq!(port.get("/ha/health?tree=t").status, 503);
    assert_eq!(port.check(), "ready down #t: 1 path was edited here\n");
    assert!(port.get("/metrics").body.contains("\nsyncagent_node_healthy 0\n"));
    assert_eq!((port.get("/livez").status, port.get("/readyz").status), (200, 200));
    until("the source knowing", || a.row("b")["faults"][0] == "t: 1 path was edited here");
    // what a running agent cannot take over is said
    c.edit("b", "public = ", "# public = ");
    b.signal(Signal::HUP);
    until("the complaint", || b.log_text().contains("listen.public"));
    assert_eq!(port.get("/livez").status, 200);
}

/// A file system of its own, unmounted when dropped.
struct Mounted(std::path::PathBuf);

impl Mounted {
    fn tmpfs(at: std::path::PathBuf, options: &str) -> Self {
        std::fs::create_dir_all(&at).unwrap();
        tool(
            "mount",
            &["-t".as_ref(), "tmpfs".as_ref(), "-o".as_ref(), options.as_ref(), "t".as_ref(), at.as_ref()],
        );
        Self(at)
    }

    fn detach(&self) {
        tool("umount", &["-l".as_ref(), self.0.as_ref()]);
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

#[test]
fn a_full_disk_drains_and_comes_back() {
    if !needs_root("a full disk") {
        return;
    }
    let c = Cluster::local();
    c.source("a", "");
    c.scratch.write("a/tree/x", "1");
    c.mirror("b", "a", "");
    let _mounted = Mounted::tmpfs(c.tree("b"), "size=4m");
    let port = open(&c, "b");
    let (a, b) = (c.start("a"), c.start("b"));
    c.assert_converges(&a, &b, ("a", "b"));
    port.wait_for(200, "ok", &b);
    c.scratch.write("a/tree/large", noise(1, 8 << 20));
    let line = port.wait_for(503, "No space left", &b);
    assert!(line.starts_with("t: failed: "), "{line}");
    std::fs::remove_file(c.tree("a").join("large")).unwrap();
    // it is tried again at growing intervals
    assert!(within(Duration::from_secs(90), || port.get("/ha/health").status == 200), "{}", b.log_tail());
    c.assert_converges(&a, &b, ("a", "b"));
}

#[test]
fn a_lost_mount_drains_and_its_return_ends_that() {
    if !needs_root("a lost mount") {
        return;
    }
    let c = Cluster::local();
    c.source("a", "");
    c.scratch.write("a/tree/x", "1");
    c.mirror("b", "a", "max-lag = \"1min\"\n");
    let place = c.path().join("elsewhere");
    let mounted = Mounted::tmpfs(place.clone(), "size=4m");
    std::fs::create_dir_all(c.tree("b")).unwrap();
    let bind = || tool("mount", &["--bind".as_ref(), place.as_ref(), c.tree("b").as_ref()]);
    bind();
    let bound = Mounted(c.tree("b"));
    let port = open(&c, "b");
    let (a, b) = (c.start("a"), c.start("b"));
    c.assert_converges(&a, &b, ("a", "b"));
    port.wait_for(200, "ok", &b);
    bound.detach();
    let line = port.wait_for(503, "t: failed: ", &b);
    assert!(line.contains("file system"), "{line}");
    bind();
    assert!(within(Duration::from_secs(90), || port.get("/ha/health").status == 200), "{}", b.log_tail());
    drop((bound, mounted));
}
