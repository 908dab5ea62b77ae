//! `on-failure = "rollback"`: a mirror whose server does not take a generation up goes back to the one before by
//! itself, says so, and goes on with a newer one.

use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use serde_json::{Value, json};

use super::cluster::{Agent, Cluster, noise, until, within};
use super::public::{Port, open};
use super::rollback::{id, settled};

/// A server that says yes to everything, and does not take over a tree whose `x` begins with `bad`, unless
/// `tolerant` is there. With `forgets` it takes away what was displaced, which is there until the server has the change.
fn server(c: &Cluster, node: &str) -> String {
    let at = c.path().join(node).display().to_string();
    std::fs::create_dir_all(c.path().join(node).join("served")).unwrap();
    let refresh = format!(
        "#!/bin/sh\ncd {at}\n[ ! -e forgets ] || rm -rf tree/.syncagent/trash/*/tree\n[ -e tolerant ] || ! grep -q ^bad tree/x || exit 0\ncp -f tree/x served/x\n\
         echo \"$SYNCAGENT_GENERATION\" >> told\n"
    );
    let verify =
        format!("#!/bin/sh\ncmp -s {at}/tree/x {at}/served/x || {{ echo it is not there >&2; exit 1; }}\n");
    for (name, text) in [("refresh", refresh), ("verify", verify)] {
        let path = c.path().join(node).join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    format!(
        "[[tree.t.refresh]]\nname = \"server\"\nexec = [\"{at}/refresh\"]\ntimeout = \"5s\"\nretry-max = \"500ms\"\n\
         verify = {{ exec = [\"{at}/verify\"], timeout = \"5s\", within = \"300ms\", on-failure = \"rollback\" }}\n"
    )
}

/// A source, and a mirror with a server that has the first generation.
fn pair(source: &str, mirror: &str) -> (Cluster, Agent, Agent, Port) {
    let c = Cluster::new(&["a", "b", "c"]);
    c.source("a", source);
    c.scratch.write("a/tree/x", "good 1");
    c.scratch.write("a/tree/dir/large", noise(1, 600_000));
    c.scratch.write("a/tree/dir/same", "same");
    let rule = server(&c, "b");
    c.mirror("b", "a", &format!("{mirror}{rule}"));
    let port = open(&c, "b");
    let (a, b) = (c.start("a"), c.start("b"));
    // the source may not have heard of it yet
    until("the first generation", || b.own()["consistent"] == true);
    if !source.contains("keep = 0") {
        settled(&a);
    }
    (c, a, b, port)
}

/// The source publishes something that the server does not take.
fn bad(c: &Cluster, a: &Agent, round: u64) -> Value {
    bad_and(c, a, round, || ())
}

/// The same, with what `also` writes in the same generation.
fn bad_and(c: &Cluster, a: &Agent, round: u64, also: impl FnOnce()) -> Value {
    let before = a.tree()["head"].clone();
    a.order(&["pause", "t"]).code(0);
    also();
    c.scratch.write("a/tree/x", format!("bad {round}"));
    c.scratch.write("a/tree/dir/large", noise(1_000 + round, 500_000));
    c.scratch.write("a/tree/new/file", "new");
    a.order(&["resume", "t"]).code(0);
    until("a publication", || a.tree()["head"] != before && a.own()["state"] == "current");
    a.tree()["head"].clone()
}

/// The mirror's tree has this content.
#[track_caller]
fn assert_is(c: &Cluster, old: &str) {
    let paths = || {
        let all = crate::support::snapshot(&c.tree("b")).into_keys();
        all.map(|path| String::from_utf8_lossy(&path).into_owned()).collect::<Vec<_>>()
    };
    assert_eq!(c.digest("b"), old, "{:?} {:?}", paths(), c.scratch.read("b/tree/x"));
}

fn kept(c: &Cluster, node: &str) -> Value {
    let trees = std::fs::read_dir(c.path().join(node).join("state/trees")).unwrap();
    let orders = trees.flatten().map(|tree| tree.path().join("orders.json")).find(|path| path.exists());
    let text = orders.and_then(|path| std::fs::read_to_string(path).ok());
    text.map_or(Value::Null, |text| serde_json::from_str(&text).unwrap())
}

#[test]
fn a_node_whose_server_does_not_take_a_generation_goes_back_and_on_with_the_next() {
    let (c, a, b, port) = pair("", "max-lag = \"1s\"\n");
    c.mirror("c", "a", "");
    let other = c.start("c");
    let (first, old) = (a.tree()["head"].clone(), c.digest("b"));
    let second = bad(&c, &a, 2);
    b.wait_for_state("rolled-back");
    assert_is(&c, &old);
    assert_eq!(c.scratch.read("b/served/x"), b"good 1");
    let tree = b.tree();
    let own = tree["nodes"][0].clone();
    assert_eq!(tree["head"], second);
    for key in ["generation", "applied", "refreshed", "verified"] {
        assert_eq!(own[key], first, "{key}");
    }
    assert_eq!(
        (&own["consistent"], &own["behind"], &own["refresh"]["state"]),
        (&json!(false), &json!(1), &json!("idle"))
    );
    let error = own["error"]["what"].as_str().unwrap();
    let says = format!("rolled back from generation {}: server: verify: ", id(&second));
    assert!(error.starts_with(&says), "{error}");
    assert!(error.contains("`syncagent refresh t --force`") && error.contains("newer generation"), "{error}");
    // a bad deployment must not drain the whole cluster, neither now nor by its age
    assert!(!within(Duration::from_millis(1_800), || port.get("/ha/health").status != 200), "{:#}", b.own());
    assert!(port.get("/metrics").body.contains("state=\"rolled-back\"} 1\n"));
    // it is said on the source, and to who waits
    until("the source knowing", || a.row("b")["state"] == "rolled-back");
    assert_eq!(a.row("b")["consistent"], false);
    let ran = a.order(&["wait", "t", "--timeout", "300ms"]).code(7);
    assert!(ran.out.contains(&format!("b: rolled back from generation {}: ", id(&second))), "{ran:?}");
    a.order(&["wait", "t", "--generation", &id(&first)]).code(0);
    // whoever has no such server has it
    until("the other mirror", || other.own()["consistent"] == true);
    assert_eq!(c.digest("c"), c.digest("a"));
    // what drifts is put back to what it went back to
    c.scratch.write("b/tree/dir/same", "drift");
    until("the repair", || c.scratch.read("b/tree/dir/same") == b"same");
    b.wait_for_state("rolled-back");
    assert_is(&c, &old);
    // and that may be configured otherwise
    c.add("b", "[health]\ndrain-on = [\"rolled-back\"]\n");
    b.signal(rustix::process::Signal::HUP);
    port.wait_for(503, "t: rolled back from generation", &b);
    // a newer generation ends it
    c.scratch.write("a/tree/x", "good 3");
    a.order(&["wait", "t"]).code(0);
    c.assert_converges(&a, &b, ("a", "b"));
    assert_eq!(c.scratch.read("b/served/x"), b"good 3");
    assert_eq!((&b.own()["error"], &kept(&c, "b")["rolled_back"]), (&Value::Null, &Value::Null));
    port.wait_for(200, "", &b);
}

#[test]
fn over_restarts_it_stays_where_it_went_back_to_and_remembers_what_it_saw() {
    let (c, a, b, port) = pair("", "max-lag = \"1s\"\n");
    let old = c.digest("b");
    let second = bad(&c, &a, 2);
    b.wait_for_state("rolled-back");
    b.kill();
    let told = std::fs::read_to_string(c.path().join("b/told")).unwrap();
    let b = c.start("b");
    b.wait_for_state("rolled-back");
    assert!(!within(Duration::from_millis(1_500), || b.own()["state"] != "rolled-back"), "{:#}", b.own());
    assert_eq!((c.digest("b"), c.scratch.read("b/served/x")), (old.clone(), b"good 1".to_vec()));
    assert_eq!(std::fs::read_to_string(c.path().join("b/told")).unwrap(), told, "nothing changed");
    assert_eq!(kept(&c, "b")["rolled_back"]["from"], second);
    until("that it takes traffic", || port.get("/ha/health").status == 200);
    // who does not want it any more changes the configuration
    drop(b);
    c.edit("b", "\"rollback\"", "\"alert\"");
    let b = c.start("b");
    until("the newest generation", || b.own()["refresh"]["state"] == "verify-failed");
    assert_eq!(b.own()["applied"], second);
    drop(b);
    c.edit("b", "\"alert\"", "\"rollback\"");
    let b = c.start("b");
    // a failed verify is a failed verify, whenever it is configured what follows from it
    b.order(&["refresh", "t", "--force"]);
    b.wait_for_state("rolled-back");
    // a source that lost the newest generation is found out, although an older one is in place here
    drop(b);
    a.stop();
    let control = c.tree("a").join(".syncagent");
    for path in [c.path().join("a/state"), control] {
        std::fs::remove_dir_all(path).unwrap();
    }
    let a = c.start("a");
    until("the first generation", || a.tree()["head"].is_object());
    let b = c.start("b");
    a.wait_for_state("superseded");
    assert!(a.own()["error"]["what"].as_str().unwrap().contains(&id(&second)), "{:#}", a.own());
    assert_is(&c, &old);
    drop(b);
}

#[test]
fn by_order_the_generation_is_tried_again() {
    let (c, a, b, _) = pair("", "");
    let old = c.digest("b");
    let second = bad(&c, &a, 2);
    b.wait_for_state("rolled-back");
    // without --force nothing is wrong that could be refreshed
    b.order(&["refresh", "t"]).code(0);
    assert_eq!(b.own()["state"], "rolled-back");
    // it is no better, and goes back again
    let ran = b.order(&["refresh", "t", "--force"]);
    assert!(ran.code != 0 && ran.err.contains("it is not there") || ran.err.contains("verify"), "{ran:?}");
    b.wait_for_state("rolled-back");
    assert_is(&c, &old);
    b.order(&["pause", "t"]).code(0);
    assert!(b.order(&["refresh", "t", "--force"]).code(2).err.contains("resume t"));
    b.order(&["resume", "t"]).code(0);
    b.wait_for_state("rolled-back");
    c.scratch.write("b/tolerant", "");
    let ran = b.order(&["refresh", "t", "--force"]).code(0);
    assert!(ran.out.contains(&format!("generation {} is in place again", id(&second))), "{ran:?}");
    a.order(&["wait", "t"]).code(0);
    c.assert_converges(&a, &b, ("a", "b"));
    assert_eq!(c.scratch.read("b/served/x"), b"bad 2");
}

#[test]
fn what_the_source_does_not_keep_is_named_and_the_node_stays() {
    for activate in ["in-place", "swap"] {
        nothing_kept(activate);
    }
}

fn nothing_kept(activate: &str) {
    let (c, a, b, port) = pair("keep = 0\n", &format!("activate = \"{activate}\"\nkeep = 0\n"));
    c.scratch.write("b/forgets", "");
    let second = bad(&c, &a, 2);
    let stays = || b.own()["error"]["what"].as_str().is_some_and(|e| e.contains("cannot be rolled back"));
    until("that it stays", stays);
    let own = b.own();
    let error = own["error"]["what"].as_str().unwrap();
    assert!(error.contains(&id(&second)) && error.contains("dir/large") && error.contains("keep"), "{error}");
    until("the newest generation", || b.own()["refresh"]["state"] == "verify-failed");
    c.scratch.read("b/tree/new/file");
    assert_eq!(c.digest("b"), c.digest("a"), "all of it, and nothing of the one before");
    assert_eq!((&b.own()["applied"], &b.own()["consistent"]), (&second, &json!(false)));
    port.wait_for(503, "the server does not see the change", &b);
    // it does not try again and again
    let tries = || b.log_text().matches("goes back from generation").count();
    let before = tries();
    assert!(!within(Duration::from_secs(2), || tries() > before), "{}", b.log_tail());
    // after a restart it looks once more
    b.kill();
    let b = c.start("b");
    until("that it stays", || {
        b.own()["error"]["what"].as_str().is_some_and(|e| e.contains("cannot be rolled back"))
    });
    c.scratch.write("a/tree/x", "good 3");
    a.order(&["wait", "t"]).code(0);
    c.assert_converges(&a, &b, ("a", "b"));
    assert_eq!(b.own()["error"], Value::Null);
}

#[test]
fn what_the_source_does_not_keep_comes_from_the_nodes_own_trash() {
    let (c, a, b, _) = pair("keep = 0\n", "");
    let old = c.digest("b");
    let second = bad(&c, &a, 2);
    b.wait_for_state("rolled-back");
    assert_eq!((c.digest("b"), c.scratch.read("b/served/x")), (old, b"good 1".to_vec()));
    assert!(b.own()["applied"] != second);
    c.scratch.write("a/tree/x", "good 3");
    a.order(&["wait", "t"]).code(0);
    c.assert_converges(&a, &b, ("a", "b"));
}

#[test]
fn a_tree_that_is_swapped_goes_back_as_a_whole() {
    let (c, a, b, _) = pair("", "activate = \"swap\"\n");
    let old = c.digest("b");
    let second = bad(&c, &a, 2);
    b.wait_for_state("rolled-back");
    assert_eq!((c.digest("b"), c.scratch.read("b/served/x")), (old, b"good 1".to_vec()));
    c.scratch.write("b/tolerant", "");
    b.order(&["refresh", "t", "--force"]).code(0);
    until("the newest generation", || b.own()["consistent"] == true && b.own()["generation"] == second);
    assert_eq!(c.digest("b"), c.digest("a"));
}

#[test]
fn from_a_generation_that_the_server_had_until_it_was_told_again_it_goes_back_too() {
    let (c, a, b, port) = pair("keep = 5\n", "max-lag = \"1s\"\n");
    let (first, old) = (a.tree()["head"].clone(), c.digest("b"));
    c.scratch.write("a/tree/x", "good 2");
    a.order(&["wait", "t"]).code(0);
    settled(&a);
    let verify = c.path().join("b/verify");
    let text = std::fs::read_to_string(&verify).unwrap();
    let picky = format!("grep -q '^good 1' {} || exit 1\n", c.tree("b").join("x").display());
    std::fs::write(&verify, text + &picky).unwrap();
    c.scratch.write("b/tree/dir/same", "drift");
    b.wait_for_state("rolled-back");
    assert_is(&c, &old);
    // nothing says that it has what it went back from
    until("the source knowing", || a.row("b")["generation"] == first);
    let own = b.own();
    assert_eq!((&own["generation"], &own["applied"], &own["consistent"]), (&first, &first, &json!(false)));
    a.order(&["wait", "t", "--timeout", "300ms"]).code(7);
    assert!(!within(Duration::from_millis(1_500), || port.get("/ha/health").status != 200), "{:#}", b.own());
    std::fs::write(&verify, "#!/bin/sh\nexit 0\n").unwrap();
    c.scratch.write("a/tree/x", "good 3");
    a.order(&["wait", "t"]).code(0);
    c.assert_converges(&a, &b, ("a", "b"));
}

#[test]
fn without_a_generation_before_it_stays_and_says_so() {
    let c = Cluster::new(&["a", "b"]);
    c.source("a", "");
    c.scratch.write("a/tree/x", "bad 1");
    let rule = server(&c, "b");
    c.mirror("b", "a", &rule);
    let (_a, b) = (c.start("a"), c.start("b"));
    until("that it stays", || {
        b.own()["error"]["what"].as_str().is_some_and(|e| e.contains("no generation before it"))
    });
    assert_eq!(b.own()["refresh"]["state"], "verify-failed");
    assert_eq!(c.digest("b"), c.digest("a"));
}

#[test]
fn a_server_that_takes_nothing_any_more_makes_it_go_back_no_further() {
    let (c, a, b, _) = pair("keep = 5\n", "");
    c.scratch.write("a/tree/x", "good 2");
    a.order(&["wait", "t"]).code(0);
    settled(&a);
    let (second, old) = (a.tree()["head"].clone(), c.digest("b"));
    // it does not even see what it had before
    let verify = c.path().join("b/verify");
    std::fs::write(&verify, "#!/bin/sh\nexit 1\n").unwrap();
    bad(&c, &a, 3);
    until("the way back", || b.own()["applied"] == second && b.own()["refresh"]["state"] == "verify-failed");
    assert!(!within(Duration::from_secs(2), || b.own()["applied"] != second), "{:#}", b.own());
    assert_is(&c, &old);
    assert_eq!(b.own()["consistent"], false);
}

#[test]
fn killed_on_its_way_back_the_tree_is_old_or_new_and_gets_there() {
    let (c, a, mut b, _) = pair("keep = 5\n", "");
    for i in 0..60u64 {
        c.scratch.write(format!("a/tree/many/f{i}"), noise(i, 20_000));
    }
    a.order(&["wait", "t"]).code(0);
    settled(&a);
    let old = c.digest("b");
    for round in 0..6u64 {
        let second = bad_and(&c, &a, round, || {
            for i in 0..60u64 {
                c.scratch.write(format!("a/tree/many/f{i}"), noise(1_000 * (round + 1) + i, 20_000));
            }
        });
        until("the order", || {
            kept(&c, "b")["rolled_back"]["from"] == second || b.own()["state"] == "rolled-back"
        });
        // each of these kills hits another step
        std::thread::sleep(Duration::from_millis(round * 25));
        b.kill();
        b = c.start("b");
        b.wait_for_state("rolled-back");
        assert_is(&c, &old);
        let left = c.tree("b").join(".syncagent/journal");
        assert!(!left.exists(), "round {round}");
    }
    c.scratch.write("a/tree/x", "good again");
    a.order(&["wait", "t"]).code(0);
    c.assert_converges(&a, &b, ("a", "b"));
}
