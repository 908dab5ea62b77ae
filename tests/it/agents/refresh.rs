//! The local server: told of what is in place, asked whether it has it, and no node counts before.

use std::os::unix::fs::PermissionsExt as _;
use std::time::Instant;

use serde_json::Value;

use super::cluster::{Agent, Cluster, eventually, until};

/// A server that takes over a tree when it is told: it copies the tree's files, unless `broken` is there; `deaf`
/// makes it say yes and do nothing.
fn server(c: &Cluster, node: &str) -> String {
    let at = c.path().join(node);
    std::fs::create_dir_all(at.join("served")).unwrap();
    let script = format!(
        "#!/bin/sh\ncd {at}\n[ -e broken ] && {{ echo the server is broken >&2; exit 3; }}\n[ -e hangs ] && sleep 60\n\
         [ -e deaf ] && exit 0\ncp -f tree/* served/\necho \"$SYNCAGENT_GENERATION\" >> told\n",
        at = at.display()
    );
    for (name, text) in [
        ("refresh", script),
        (
            "verify",
            format!(
                "#!/bin/sh\ncd {at} && cmp -s tree/x served/x || {{ echo it is not there >&2; exit 1; }}\n",
                at = at.display()
            ),
        ),
    ] {
        let path = at.join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    format!(
        "[[tree.t.refresh]]\nname = \"server\"\nexec = [\"{at}/refresh\"]\ntimeout = \"1s\"\nretry-max = \"500ms\"\n\
         verify = {{ exec = [\"{at}/verify\"], timeout = \"1s\", within = \"1s\", on-failure = \"alert\" }}\n",
        at = at.display()
    )
}

/// A source, and a mirror with a server.
fn pair() -> (Cluster, Agent, Agent) {
    let c = Cluster::new(&["a", "b"]);
    c.source("a", "settle = \"0s\"\n");
    c.scratch.write("a/tree/x", "1");
    let rule = server(&c, "b");
    c.mirror("b", "a", &rule);
    let (a, b) = (c.start("a"), c.start("b"));
    a.order(&["wait", "t"]).code(0);
    assert_eq!(c.scratch.read("b/served/x"), b"1");
    (c, a, b)
}

fn refresh(agent: &Agent) -> Value {
    agent.own()["refresh"].clone()
}

#[test]
fn a_node_is_consistent_when_its_server_was_seen_to_have_the_change() {
    let (c, a, b) = pair();
    for i in 0..5 {
        c.scratch.write("a/tree/x", i.to_string());
        a.order(&["wait", "t"]).code(0);
        assert_eq!(c.scratch.read("b/served/x"), i.to_string().as_bytes());
    }
    let own = b.own();
    for key in ["generation", "applied", "refreshed", "verified"] {
        assert_eq!(own[key], b.tree()["head"], "{key}");
    }
    assert_eq!((&own["state"], &own["consistent"]), (&"current".into(), &true.into()));
}

#[test]
fn a_refresh_that_fails_is_shown_counted_as_lag_and_tried_until_it_succeeds() {
    let (c, a, b) = pair();
    let before = b.own()["generation"].clone();
    c.scratch.write("b/broken", "");
    c.scratch.write("a/tree/x", "2");
    until("the failure", || refresh(&b)["state"] == "failing");
    assert_eq!(c.scratch.read("b/tree/x"), b"2");
    let what = refresh(&b)["error"]["what"].as_str().unwrap().to_owned();
    assert!(what.contains("the server is broken") || what.contains("exit code 3"), "{what}");
    assert_eq!(
        (b.own()["state"].clone(), b.own()["generation"].clone()),
        ("refreshing".into(), before.clone())
    );
    until("lag", || b.own()["lag_ms"].as_u64().unwrap() > 200);
    let ran = a.order(&["wait", "t", "--timeout", "500ms"]).code(7);
    assert!(ran.out.contains("b: its server has not taken it up"), "{ran:?}");
    // over a restart, too
    b.kill();
    let b = c.start("b");
    until("the failure", || refresh(&b)["state"] == "failing");
    assert_eq!(b.own()["generation"], before);
    std::fs::remove_file(c.path().join("b/broken")).unwrap();
    a.order(&["wait", "t"]).code(0);
    assert_eq!(c.scratch.read("b/served/x"), b"2");
    assert_eq!(b.own()["lag_ms"], 0);
}

#[test]
fn a_server_that_says_yes_and_does_nothing_is_found_out() {
    let (c, a, b) = pair();
    c.scratch.write("b/deaf", "");
    c.scratch.write("a/tree/x", "2");
    until("that it was found out", || refresh(&b)["state"] == "verify-failed");
    let own = b.own();
    assert_eq!(own["refreshed"], own["applied"]);
    assert_ne!(own["verified"], own["applied"]);
    assert_eq!((&own["consistent"], &own["generation"]), (&false.into(), &own["verified"]));
    a.order(&["wait", "t", "--timeout", "500ms"]).code(7);
    std::fs::remove_file(c.path().join("b/deaf")).unwrap();
    let ran = b.order(&["refresh", "t", "--force"]).code(0);
    assert!(!ran.out.is_empty());
    a.order(&["wait", "t"]).code(0);
    assert_eq!(c.scratch.read("b/served/x"), b"2");
}

#[test]
fn a_refresh_that_hangs_blocks_neither_files_nor_status() {
    let (c, _a, b) = pair();
    c.scratch.write("b/hangs", "");
    for i in 0..5 {
        c.scratch.write("a/tree/x", format!("new {i}"));
        let arrives = || c.scratch.read("b/tree/x") == format!("new {i}").as_bytes();
        assert!(eventually(arrives), "{}", b.log_tail());
    }
    until("the time-out", || refresh(&b)["state"] == "failing");
    assert_ne!(b.own()["generation"], b.own()["applied"]);
    std::fs::remove_file(c.path().join("b/hangs")).unwrap();
    until("the newest", || c.scratch.read("b/served/x") == b"new 4");
    until("that it counts", || b.own()["consistent"] == true);
}

#[test]
fn drift_that_is_put_back_is_told_again() {
    let (c, _a, b) = pair();
    let told = || std::fs::read_to_string(c.path().join("b/told")).unwrap().lines().count();
    let before = told();
    c.scratch.write("b/tree/x", "drift");
    until("the repair", || c.scratch.read("b/tree/x") == b"1");
    until("the refresh", || told() > before);
    until("that it counts", || b.own()["consistent"] == true);
}

#[test]
fn a_source_tells_its_own_server_too() {
    let c = Cluster::local();
    let rule = server(&c, "a");
    c.source("a", &rule);
    c.scratch.write("a/tree/x", "1");
    let a = c.start("a");
    a.order(&["wait", "t"]).code(0);
    assert_eq!(c.scratch.read("a/served/x"), b"1");
    c.scratch.write("a/broken", "");
    c.scratch.write("a/tree/x", "2");
    until("the failure", || refresh(&a)["state"] == "failing");
    let ran = a.order(&["wait", "t", "--timeout", "500ms"]).code(7);
    assert!(ran.out.contains("a: its server has not taken it up"), "{ran:?}");
    assert_eq!(a.own()["state"], "refreshing");
    std::fs::remove_file(c.path().join("a/broken")).unwrap();
    a.order(&["wait", "t"]).code(0);
    assert_eq!(c.scratch.read("a/served/x"), b"2");
    let none = Cluster::local();
    none.source("a", "");
    let plain = none.start("a");
    assert_eq!(plain.order(&["refresh", "t"]).code, 2);
}

#[test]
fn refreshes_that_are_new_in_the_configuration_make_no_node_late() {
    let c = Cluster::new(&["a", "b"]);
    c.source("a", "settle = \"0s\"\n");
    c.scratch.write("a/tree/x", "1");
    let rule = server(&c, "b");
    c.scratch.write("b/hangs", "");
    c.mirror("b", "a", "max-lag = \"1500ms\"\n");
    let (a, b) = (c.start("a"), c.start("b"));
    c.assert_converges(&a, &b, ("a", "b"));
    until("some age", || a.tree()["head_age_ms"].as_u64().unwrap() > 5_000);
    c.add("b", &rule);
    let begun = Instant::now();
    b.signal(rustix::process::Signal::HUP);
    until("the refresh", || refresh(&b)["state"] == "running" && b.own()["connected"] == true);
    // as old as the generation it would be older
    let since = begun.elapsed().as_millis() as u64;
    let own = b.own();
    assert!(own["lag_ms"].as_u64().unwrap() < 5_000 + since, "{since}: {own:#}");
    assert_eq!(own["consistent"], false);
    // but a server that never takes it up does
    until("the fault", || b.own()["faults"][0].as_str().is_some_and(|f| f.contains("lag")));
    std::fs::remove_file(c.path().join("b/hangs")).unwrap();
    until("that it counts", || b.own()["consistent"] == true && b.own()["faults"] == serde_json::json!([]));
    drop(a);
}

#[test]
fn what_a_killed_agent_was_telling_is_ended_by_the_next_one() {
    let (c, _a, b) = pair();
    let pid = c.path().join("b/pid");
    let script = c.path().join("b/refresh");
    let text = std::fs::read_to_string(&script).unwrap();
    let waits = format!(
        "[ -e hangs ] && {{ trap '' TERM; echo $$ > {}; while :; do sleep 1; done; }}\n",
        pid.display()
    );
    std::fs::write(&script, text.replace("[ -e hangs ] && sleep 60\n", &waits)).unwrap();
    c.scratch.write("b/hangs", "");
    c.scratch.write("a/tree/x", "2");
    until("the program", || std::fs::read_to_string(&pid).is_ok_and(|pid| pid.ends_with('\n')));
    b.kill();
    let alive = || std::path::Path::new("/proc").join(std::fs::read_to_string(&pid).unwrap().trim()).exists();
    assert!(alive());
    std::fs::remove_file(c.path().join("b/hangs")).unwrap();
    let _b = c.start("b");
    until("its end", || !alive());
    until("the change", || c.scratch.read("b/served/x") == b"2");
}
