//! `syncagent history`: what was published, how, and how long each mirror took; also after a restart.

use serde_json::Value;

use super::cluster::{Agent, Cluster, eventually};

fn history(agent: &Agent, args: &[&str]) -> Vec<Value> {
    let mut all = vec!["history", "t", "--json"];
    all.extend(args);
    agent
        .order(&all)
        .code(0)
        .out
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .filter(|v: &Value| v["generation"].is_string())
        .collect()
}

#[test]
fn generations_are_told_with_their_counts_causes_and_mirrors_also_after_a_restart() {
    let c = Cluster::new(&["a", "b"]);
    c.source("a", "max-delete = \"1%\"\n");
    for i in 0..20 {
        c.scratch.write(format!("a/tree/f{i}"), format!("content {i}"));
    }
    c.mirror("b", "a", "");
    let (a, b) = (c.start("a"), c.start("b"));
    c.assert_converges(&a, &b, ("a", "b"));
    c.scratch.write("a/tree/f0", "more content");
    c.scratch.write("a/tree/new", "new");
    assert!(eventually(|| c.tree("b").join("new").exists()));
    c.assert_converges(&a, &b, ("a", "b"));
    // the first few alone would be let through
    a.order(&["pause", "t"]).code(0);
    for i in 1..16 {
        std::fs::remove_file(c.tree("a").join(format!("f{i}"))).unwrap();
    }
    a.order(&["resume", "t"]).code(0);
    assert!(eventually(|| a.own()["plan"]["lost"] == 15), "{:#}", a.own());
    let plan = a.own()["plan"]["id"].as_str().unwrap().to_owned();
    a.order(&["approve", "t", &plan]).code(0);
    c.assert_converges(&a, &b, ("a", "b"));

    let told = || history(&a, &["--limit", "1"])[0]["converged_ms"]["b"].is_number();
    assert!(eventually(told), "{:#?}", history(&a, &[]));
    let all = history(&a, &[]);
    assert_eq!(all[0]["cause"], serde_json::json!({ "kind": "approved", "plan": plan }), "{all:#?}");
    assert_eq!(
        (&all[0]["deleted"], &all[0]["files"], &all[0]["origin"]),
        (&15.into(), &6.into(), &"a".into())
    );
    let change = all.iter().find(|e| e["created"] == 1).unwrap();
    assert_eq!(change["cause_text"], "change");
    assert!(change["at"].as_str().unwrap().ends_with('Z'));
    assert_eq!(all[0]["content"], c.digest("a"));
    let mirrored = history(&b, &[]);
    assert_eq!(mirrored[0]["generation"], all[0]["generation"]);
    assert!(mirrored[0]["took_ms"].is_number() && mirrored[0]["applied_at"].is_string(), "{mirrored:#?}");
    assert_eq!(mirrored[0]["converged_ms"]["b"], all[0]["converged_ms"]["b"]);

    let recent = &a.tree()["recent"];
    assert_eq!((&recent[0]["deleted"], recent[0]["files"].as_u64()), (&15.into(), Some(6)), "{recent}");
    assert_eq!(b.tree()["recent"][0]["generation"], recent[0]["generation"]);

    a.stop();
    b.stop();
    let (a, b) = (c.start("a"), c.start("b"));
    assert_eq!(history(&a, &[]), all);
    assert_eq!(history(&b, &[]), mirrored);
    assert_eq!(a.tree()["recent"][0]["deleted"], 15);
    assert_eq!(b.tree()["recent"][0]["deleted"], 15);
    let text = a.order(&["history", "t"]).code(0).out;
    assert!(text.lines().next().unwrap().contains(&format!("approved plan {plan}")), "{text}");
}
