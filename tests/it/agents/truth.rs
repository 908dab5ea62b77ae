//! However writes, holds, pauses, crashes and failures of the server interleave: no node says that it is consistent
//! when it is not, and `wait` never ends well too early.

use std::os::unix::fs::PermissionsExt as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::cluster::{Agent, Cluster, run, until};
use crate::crash::Rng;

/// A server that takes over what is in the tree, and in a third of the cases fails, lies or dawdles.
fn moody_server(c: &Cluster, node: &str) -> String {
    let at = c.path().join(node);
    std::fs::create_dir_all(at.join("served")).unwrap();
    let refresh = format!(
        "#!/bin/sh\ncd {at}\nif ! [ -e good ]; then\n  mood=$(od -An -N1 -tu1 /dev/urandom)\n\
         [ $mood -lt 40 ] && exit 1\n  [ $mood -lt 80 ] && exit 0\n  [ $mood -lt 110 ] && sleep 0.2\nfi\n\
         cp tree/x served/.x && mv served/.x served/x\n",
        at = at.display()
    );
    let verify = format!("#!/bin/sh\ncd {at} && cmp -s tree/x served/x\n", at = at.display());
    for (name, text) in [("refresh", refresh), ("verify", verify)] {
        std::fs::write(at.join(name), text).unwrap();
        std::fs::set_permissions(at.join(name), std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    format!(
        "[[tree.t.refresh]]\nname = \"moody\"\nexec = [\"{at}/refresh\"]\ntimeout = \"2s\"\nretry-max = \"200ms\"\n\
         verify = {{ exec = [\"{at}/verify\"], timeout = \"2s\", within = \"300ms\", on-failure = \"refresh\" }}\n",
        at = at.display()
    )
}

struct Bed {
    c: Cluster,
    written: u64,
    sockets: [std::path::PathBuf; 2],
}

impl Bed {
    /// What a file says; the numbers only grow.
    fn number(&self, path: &str) -> u64 {
        std::fs::read_to_string(self.c.path().join(path))
            .ok()
            .and_then(|t| t.trim().parse().ok())
            .unwrap_or(0)
    }

    fn own_row(&self, node: usize) -> Option<serde_json::Value> {
        let ran = run(&["status", "--json", "--socket", self.sockets[node].to_str().unwrap()]);
        let status: serde_json::Value = serde_json::from_str(&ran.out).ok().filter(|_| ran.code == 0)?;
        Some(status["trees"][0]["nodes"][0].clone())
    }

    /// Rename into place, so that a reader sees a whole number.
    fn write(&mut self) {
        self.written += 1;
        self.c.scratch.write("a/x.new", self.written.to_string());
        std::fs::rename(self.c.path().join("a/x.new"), self.c.tree("a").join("x")).unwrap();
    }
}

#[test]
fn a_node_is_never_called_consistent_when_it_is_not() {
    let c = Cluster::new(&["a", "b"]);
    c.source("a", "settle = \"10ms\"\n");
    c.scratch.write("a/tree/x", "1");
    let rule = moody_server(&c, "b");
    c.mirror("b", "a", &rule);
    let sockets = ["a", "b"].map(|n| c.path().join(format!("{n}.sock")));
    let mut bed = Bed { c, written: 1, sockets };
    let seed = std::env::var("SYNCAGENT_TEST_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(0x7a57e);
    let mut rng = Rng::new(seed);
    let rounds = if crate::crash::long() { 1500 } else { 120 };
    let (mut a, mut b) = (bed.c.start("a"), bed.c.start("b"));
    // what is written into a tree that was never taken over would be refused for good
    bed.c.scratch.write("b/good", "");
    a.order(&["wait", "t", "--timeout", "30s"]).code(0);
    assert!(a.row("b").is_object());
    std::fs::remove_file(bed.c.path().join("b/good")).unwrap();
    let (stop, seen) = (AtomicBool::new(false), AtomicU64::new(0));
    let watched = Bed { c: Cluster::local(), written: 0, sockets: bed.sockets.clone() };
    let root = bed.c.path().to_owned();
    let (a, b) = std::thread::scope(|scope| {
        scope.spawn(|| {
            let number = |path: &str| {
                std::fs::read_to_string(root.join(path)).ok().and_then(|t| t.trim().parse().ok()).unwrap_or(0)
            };
            while !stop.load(Ordering::Relaxed) {
                let there: u64 = number("b/tree/x");
                let Some(row) = watched.own_row(1) else { continue };
                if row["consistent"] != true {
                    continue;
                }
                let served: u64 = number("b/served/x");
                seen.fetch_add(1, Ordering::Relaxed);
                if served < there {
                    stop.store(true, Ordering::Relaxed);
                    panic!("seed {seed}: {there} was in place, {served} was served, and yet: {row:#}");
                }
            }
        });
        let _end = Stop(&stop);
        let (mut waited, mut did) = (0, Vec::new());
        for round in 0..10 * rounds {
            // on a slow machine it takes more of them until enough came through in time
            let is_enough = round >= rounds && waited > rounds / 100;
            if stop.load(Ordering::Relaxed) || is_enough {
                break;
            }
            let step = rng.below(20);
            did.push((round, step));
            match step {
                0..=7 => bed.write(),
                8 | 9 => {
                    let n = bed.written + 1;
                    let end = if rng.one_in(3) { "exit 1" } else { "true" };
                    let tree = bed.c.tree("a");
                    let script = format!(
                        "echo 0 > {t}/x; echo {n} > {t}/x.2; mv {t}/x.2 {t}/x; {end}",
                        t = tree.display()
                    );
                    hold(&a, &script);
                    // it may not have come to run
                    bed.written = bed.number("a/tree/x");
                }
                10 => drop(a.order(&["hold", "t", "--release"])),
                11 => drop(b.order(&["pause", "t"])),
                12 | 13 => drop(b.order(&["resume", "t"])),
                14 => {
                    a.kill();
                    a = bed.c.start("a");
                }
                15 => {
                    b.kill();
                    b = bed.c.start("b");
                }
                16 => {
                    bed.c.scratch.write("b/tree/x", "0");
                    // an edit counts from when it is noticed; a slow look may come when it was put back
                    until("that the edit is noticed", || {
                        a.row("b")["consistent"] == false || bed.number("b/tree/x") != 0
                    });
                }
                _ => {
                    let (written, ran) = (bed.written, a.order(&["wait", "t", "--timeout", "1s"]));
                    if ran.code == 0 {
                        waited += 1;
                        let served = bed.number("b/served/x");
                        assert!(
                            served >= written,
                            "seed {seed}, round {round}: waited for {written}, {served} is served; {did:?}\n{ran:?}\n{}",
                            b.log_tail()
                        );
                    }
                }
            }
        }
        let ok = !stop.swap(true, Ordering::Relaxed);
        eprintln!(
            "{rounds} rounds, consistent seen {} times, waited well {waited} times",
            seen.load(Ordering::Relaxed)
        );
        assert!(ok, "see above");
        assert!(
            waited > rounds / 100,
            "it was never consistent, so this shows nothing; seed {seed}: {did:?}\n{:#}\n{:#}\n{}",
            a.tree(),
            b.tree(),
            b.log_tail()
        );
        (a, b)
    });
    // and in the end it comes to rest
    a.order(&["hold", "t", "--release"]);
    b.order(&["resume", "t"]);
    bed.c.scratch.write("b/good", "");
    bed.write();
    a.order(&["wait", "t", "--timeout", "30s"]).code(0);
    until("the last", || bed.number("b/served/x") == bed.written);
    assert!(seen.load(Ordering::Relaxed) > 0, "it was never seen consistent: the test shows nothing");
}

/// Ends the watcher also when a check fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn hold(agent: &Agent, script: &str) {
    run(&["hold", "t", "--socket", agent.socket.to_str().unwrap(), "--", "sh", "-c", script]);
}
