//! Certificates that are not what they should be. Both sides say why, the source counts, and nothing is fetched.

use std::process::Command;

use super::super::cluster::{Agent, Cluster, run, until};
use super::clocks::{issue, wall_clock_off};
use crate::support::{Ran, program};

/// A source and a mirror that is not started yet.
fn source_and_mirror() -> (Cluster, Agent) {
    let c = Cluster::new(&["a", "b", "c"]);
    // also for a node whose clock is behind
    issue(&c, "a", (-7_200, 86_400));
    c.source("a", "");
    c.scratch.write("a/tree/secret", "1");
    c.mirror("b", "a", "");
    let a = c.start("a");
    until("a generation", || a.tree()["head"].is_object());
    (c, a)
}

/// The mirror says `why`, has nothing and is not listed; with `counted`, the source counts it and logs that.
#[track_caller]
fn assert_refused(c: &Cluster, a: &Agent, b: &Agent, why: &[&str], counted: &[&str]) {
    let mut said = String::new();
    let told = || {
        said = b.own()["error"]["what"].as_str().unwrap_or_default().to_owned();
        why.iter().all(|w| said.contains(w))
    };
    let told = super::super::cluster::eventually(told);
    assert!(told, "{why:?} is not in {said:?}\n{}", b.log_tail());
    assert!(b.log_text().contains(why[0]), "{}", b.log_tail());
    assert_ne!(b.own()["state"], "current");
    assert!(!c.tree("b").join("secret").exists());
    if !counted.is_empty() {
        assert!(a.tree()["refused_peers"].as_u64() > Some(0), "{:#}", a.tree());
        let log = a.log_text();
        let line = log.lines().find(|l| l.contains("refused:")).unwrap_or_default();
        assert!(counted.iter().all(|w| line.contains(w)), "{counted:?} is not in {line:?}");
    }
    assert!(a.row("b").is_null(), "{}", a.row("b"));
}

/// Replaces a node's certificate, its key and, with `ca`, what it trusts by another cluster's.
fn give_another_clusters(c: &Cluster, node: &str, ca: bool) {
    let other = c.path().join("other");
    let at = other.to_str().unwrap();
    run(&["pki", "init", "--dir", at, "--cluster", "test"]).code(0);
    run(&["pki", "issue", node, "--dir", at]).code(0);
    for end in ["pem", "key"] {
        let name = format!("pki/{node}.{end}");
        c.edit(node, &name, &name.replace("pki", "other"));
    }
    if ca {
        c.edit(node, "pki/ca.pem", "other/ca.pem");
    }
}

#[test]
fn a_certificate_of_another_ca_is_refused_by_the_source() {
    let (c, a) = source_and_mirror();
    give_another_clusters(&c, "b", false);
    let b = c.start("b");
    assert!(b.log_text().contains("peers will refuse this node"), "{}", b.log_tail());
    let why = ["refuses our certificate", "not signed by the CA that the peer trusts"];
    assert_refused(&c, &a, &b, &why, &["127.0.0.1", "not signed by this cluster's CA"]);
}

#[test]
fn another_clusters_mirror_refuses_the_source() {
    let (c, a) = source_and_mirror();
    give_another_clusters(&c, "b", true);
    let b = c.start("b");
    let why = ["the certificate of the peer is not signed by this cluster's CA", "another cluster's"];
    assert_refused(&c, &a, &b, &why, &["peer refuses our certificate"]);
}

#[test]
fn a_node_of_another_cluster_with_the_same_ca_is_refused() {
    let (c, a) = source_and_mirror();
    c.edit("b", "name = \"test\"", "name = \"staging\"");
    let b = c.start("b");
    assert_refused(&c, &a, &b, &["this is cluster `test`, not `staging`"], &["not `staging`"]);
}

#[test]
fn a_certificate_that_expired_since_the_start_is_refused_by_the_source() {
    let (c, a) = source_and_mirror();
    // by the mirror's own clock it is valid
    issue(&c, "b", (-7_200, -1_800));
    let mut command = Command::new(program());
    wall_clock_off(&mut command, "-1h");
    let b = c.start_by("b", command);
    let why = ["refuses our certificate", "expired", "renew it"];
    assert_refused(&c, &a, &b, &why, &["127.0.0.1", "expired 30 minutes ago"]);
}

#[test]
fn a_source_whose_certificate_expired_since_the_start_is_refused_by_the_mirror() {
    let c = Cluster::new(&["a", "b"]);
    issue(&c, "a", (-7_200, -1_800));
    c.source("a", "");
    c.scratch.write("a/tree/secret", "1");
    c.mirror("b", "a", "");
    let mut command = Command::new(program());
    wall_clock_off(&mut command, "-1h");
    let a = c.start_by("a", command);
    let b = c.start("b");
    let why = ["the certificate of the peer expired 30 minutes ago", "renew it"];
    assert_refused(&c, &a, &b, &why, &["refuses our certificate: expired"]);
}

#[test]
fn a_node_does_not_start_with_an_expired_or_another_nodes_certificate() {
    let (c, _a) = source_and_mirror();
    let start = || {
        let mut command = Command::new("timeout");
        command.arg("20").arg(program()).args(["run", "--config"]).arg(c.config_path("b"));
        Ran::from(command.output().unwrap())
    };
    issue(&c, "b", (-7_200, -3_700));
    let expired = start();
    assert!(expired.code != 0 && expired.err.contains("expired 1 hour ago"), "{expired:?}");
    c.edit("b", "pki/b.", "pki/c.");
    let other = start();
    assert!(other.code != 0 && other.err.contains("`c`") && other.err.contains("not `b`"), "{other:?}");
}

#[test]
fn another_node_at_the_sources_address_is_refused_by_the_mirror() {
    let (c, a) = source_and_mirror();
    a.stop();
    // it has a certificate of the cluster, and even calls its tree and node the same
    for end in ["pem", "key"] {
        let of = |node: &str| c.path().join(format!("pki/{node}.{end}"));
        std::fs::copy(of("c"), of("a")).unwrap();
    }
    c.edit("a", "id = \"a\"", "id = \"c\"");
    let imposter = c.start("a");
    let b = c.start("b");
    assert_refused(&c, &imposter, &b, &["`c`, not `a`"], &["refuses our certificate"]);
}
