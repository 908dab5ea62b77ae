//! The local server while something changes without rest, and when the configuration asks it something new.

use std::os::unix::fs::PermissionsExt as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::cluster::{Agent, Cluster, until};

/// An executable script in a node's directory.
fn script(c: &Cluster, node: &str, name: &str, text: &str) -> String {
    let path = c.path().join(node).join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, format!("#!/bin/sh\ncd {}\n{text}\n", c.path().join(node).display())).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path.display().to_string()
}

/// A source, and a mirror with these keys.
fn pair(c: &Cluster, keys: &str) -> (Agent, Agent) {
    c.source("a", "settle = \"0s\"\n");
    c.scratch.write("a/tree/x", "0");
    c.mirror("b", "a", keys);
    (c.start("a"), c.start("b"))
}

/// Does `work` while `a/tree/x` changes every so often.
fn without_rest<T>(c: &Cluster, every: Duration, work: impl FnOnce() -> T) -> T {
    /// Ends the writer also when `work` panics.
    struct Over<'a>(&'a AtomicBool);
    impl Drop for Over<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for i in 1.. {
                c.scratch.write("a/tree/x", i.to_string());
                std::thread::sleep(every);
                if over.load(Ordering::Relaxed) {
                    return;
                }
            }
        });
        let _over = Over(&over);
        work()
    })
}

fn number(agent: &Agent, key: &str) -> u64 {
    agent.own()[key]["number"].as_u64().unwrap_or(0)
}

/// A mirror whose server takes longer than changes take to come.
fn slow() -> (Cluster, Agent, Agent) {
    let c = Cluster::new(&["a", "b"]);
    let slow = script(&c, "b", "refresh", "sleep 0.7");
    let keys = format!("[[tree.t.refresh]]\nname = \"slow\"\nexec = [\"{slow}\"]\n");
    let (a, b) = pair(&c, &keys);
    a.order(&["wait", "t"]).code(0);
    (c, a, b)
}

#[test]
fn a_server_slower_than_the_changes_has_each_of_them_sooner_or_later() {
    let (c, a, b) = slow();
    without_rest(&c, Duration::from_millis(250), || {
        for _ in 0..3 {
            until("a change", || number(&a, "generation") > number(&b, "generation"));
            let published = a.tree()["head"]["number"].as_u64().unwrap();
            let to = format!("1.{}", published + 1);
            a.order(&["wait", "t", "--generation", &to, "--timeout", "60s"]).code(0);
            let has = number(&b, "generation");
            assert!(has > published, "{has}, and 1.{published} was published before");
        }
    });
    a.order(&["wait", "t"]).code(0);
    assert_eq!(b.own()["lag_ms"], 0);
}

#[test]
fn a_node_that_starts_while_changes_never_rest_is_waited_for() {
    let (c, a, b) = slow();
    without_rest(&c, Duration::from_millis(250), || {
        until("a change", || number(&a, "generation") > number(&b, "generation"));
        drop(b);
        let b = c.start("b");
        let published = a.tree()["head"]["number"].as_u64().unwrap();
        until("that it goes on", || number(&b, "generation") > published + 3);
        let to = format!("1.{}", published + 1);
        a.order(&["wait", "t", "--generation", &to, "--timeout", "60s"]).code(0);
    });
}

#[test]
fn a_server_that_takes_nothing_up_is_named_also_when_changes_never_rest() {
    let c = Cluster::new(&["a", "b"]);
    let (deaf, verify) = (script(&c, "b", "refresh", "exit 0"), script(&c, "b", "verify", "[ -e agrees ]"));
    let keys = format!(
        "[[tree.t.refresh]]\nname = \"deaf\"\nexec = [\"{deaf}\"]\n\
         verify = {{ exec = [\"{verify}\"], within = \"1s\", refreshes = 1 }}\n"
    );
    let (a, b) = {
        c.scratch.write("b/agrees", "");
        pair(&c, &keys)
    };
    a.order(&["wait", "t"]).code(0);
    std::fs::remove_file(c.path().join("b/agrees")).unwrap();
    let before = number(&b, "generation");
    without_rest(&c, Duration::from_millis(400), || {
        until("that it is said", || b.own()["refresh"]["error"].is_object());
        assert_eq!(number(&b, "generation"), before);
    });
    c.scratch.write("b/agrees", "");
    a.order(&["wait", "t"]).code(0);
    assert_eq!(b.own()["refresh"]["state"], "idle");
}

#[test]
fn what_the_configuration_asks_newly_is_asked_before_the_node_counts() {
    let c = Cluster::new(&["a", "b"]);
    let rule = |node: &str| {
        let told = script(&c, node, "refresh", "echo told >> told");
        format!("[[tree.t.refresh]]\nname = \"server\"\nexec = [\"{told}\"]\n")
    };
    let (of_a, of_b) = (rule("a"), rule("b"));
    c.source("a", &format!("settle = \"0s\"\n{of_a}"));
    c.scratch.write("a/tree/x", "0");
    c.mirror("b", "a", &of_b);
    let (a, b) = (c.start("a"), c.start("b"));
    a.order(&["wait", "t"]).code(0);
    for (node, agent) in [("b", &b), ("a", &a)] {
        let verify = script(&c, node, "verify", "echo asked >> asked; [ -e agrees ]");
        c.add(node, &format!("verify = {{ exec = [\"{verify}\"], within = \"300s\" }}\n"));
        agent.signal(rustix::process::Signal::HUP);
        let asked = c.path().join(node).join("asked");
        until("the question", || asked.exists());
        let own = agent.own();
        assert_eq!(
            (&own["verified"], &own["consistent"]),
            (&serde_json::Value::Null, &false.into()),
            "{own:#}"
        );
        assert_eq!(own["lag_ms"], 0, "no node is late by a new configuration");
        let ran = a.order(&["wait", "t", "--node", node, "--timeout", "1s"]).code(7);
        assert!(ran.out.contains(&format!("{node}: ")), "{ran:?}");
        c.scratch.write(format!("{node}/agrees"), "");
        a.order(&["wait", "t", "--node", node]).code(0);
        let own = agent.own();
        assert_eq!((&own["verified"], &own["consistent"]), (&own["applied"], &true.into()), "{own:#}");
        let told = c.scratch.read(format!("{node}/told"));
        assert_eq!(told, b"told\n", "it was not told again");
    }
}
