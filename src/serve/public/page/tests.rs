use super::*;
use crate::model::{Mark, RefreshStatus};

fn status() -> Status {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/status/schema-1.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn page(status: &Status) -> String {
    html(status, &|_, _| vec![Some(0), Some(318_000), None], None, "abc")
}

#[test]
fn the_page_says_what_is_wrong_first_and_the_worst_before_the_rest() {
    let page = page(&status());
    let at = |text: &str| page.find(text).unwrap_or_else(|| panic!("no {text} in {page}"));
    assert!(at("What is wrong") < at("Nodes of assets"));
    let worst = page.find("<strong>failure").unwrap();
    assert!(worst < at("<strong>warning") && at("<strong>warning") < at("<strong>note"));
    for text in [
        "takes no traffic: assets: lag 318 s is over max-lag 60 s",
        "No space left on device",
        "syncagent approve assets 5f1d9a0c2b7e4463",
        "drained by ops (process 815, syncagent)",
        "disk is being replaced",
        "still open for writing",
        "./install.sh ended with exit code 3",
        "Recent generations of assets",
        "80 KiB",
        "verify-failed",
    ] {
        at(text);
    }
}

#[test]
fn what_is_said_of_a_healthy_cluster_is_short() {
    let mut status = status();
    status.certificate_days_left = Some(400);
    status.trees.truncate(1);
    let tree = &mut status.trees[0];
    tree.nodes.truncate(2);
    tree.nodes[0].state = State::Current;
    (tree.nodes[0].plan, tree.nodes[0].error, tree.hold) = (None, None, None);
    (tree.unpublished_age_ms, tree.held_count) = (None, 0);
    tree.held.clear();
    (tree.watch.native, tree.watch.reason) = (true, None);
    assert_eq!(troubles(&status).len(), 0, "{:?}", troubles(&status));
    let page = page(&status);
    assert!(page.contains("Nothing is wrong") && page.contains("takes traffic"));
    assert!(!page.contains("class=\"bad\""));
}

/// `/ha/health` is 503 then.
#[test]
fn an_agent_that_hangs_is_not_said_to_take_traffic() {
    let mut status = status();
    status.trees.remove(0);
    (status.certificate_days_left, status.drained) = (Some(400), None);
    let fine = html(&status, &|_, _| vec![], None, "abc");
    assert!(fine.contains("</span> takes traffic") && fine.contains("<title>app1"), "{fine}");
    let page = html(&status, &|_, _| vec![], Some("the agent hangs"), "abc");
    assert!(page.contains("</span> takes no traffic") && !page.contains("</span> takes traffic"), "{page}");
    assert!(page.contains("<title>! app1"), "{page}");
}

/// People copy it.
#[test]
fn a_command_to_copy_is_that_command_whatever_a_peer_calls_its_plan() {
    let mut status = status();
    let plan = status.trees[0].nodes[0].plan.as_mut().unwrap();
    plan.id = "x; touch /tmp/x\nreboot".into();
    let said: Vec<String> = troubles(&status).into_iter().map(|t| t.what).collect();
    let commands = said.iter().filter_map(|what| what.split_once("syncagent approve ")).map(|(_, args)| args);
    let words: Vec<_> = commands.filter_map(shlex::split).collect();
    assert_eq!(words, [["assets", "x; touch /tmp/x\\nreboot"]], "{said:?}");
}

/// Whatever a peer or a file name says stays text.
#[test]
fn no_text_of_anybody_becomes_markup() {
    const EVIL: &str = "<script>alert(1)</script>\"'><img src=x>";
    let mut status = status();
    let mark = || Some(Mark { who: EVIL.into(), reason: Some(EVIL.into()), for_ms: 1 });
    (status.cluster, status.zone, status.version) = (EVIL.into(), Some(EVIL.into()), EVIL.into());
    status.drained = mark();
    for tree in &mut status.trees {
        (tree.name, tree.path, tree.lock) = (EVIL.into(), EVIL.into(), Some(EVIL.into()));
        tree.watch.reason = Some(EVIL.into());
        tree.held.iter_mut().for_each(|held| (held.path, held.why) = (EVIL.into(), EVIL.into()));
        if let Some(hold) = &mut tree.hold {
            (hold.who, hold.command, hold.failed) = (EVIL.into(), EVIL.into(), Some(EVIL.into()));
        }
        for node in &mut tree.nodes {
            (node.zone, node.version) = (Some(EVIL.into()), Some(EVIL.into()));
            (node.paused, node.drained, node.faults) = (mark(), mark(), vec![EVIL.into()]);
            node.error = Some(crate::model::Trouble { what: EVIL.into(), for_ms: 1 });
            let error = node.error.clone();
            node.refresh = Some(RefreshStatus {
                state: RefreshState::Failing,
                action: Some(EVIL.into()),
                attempts: 1,
                failures: 1,
                error,
            });
            if let Some(plan) = &mut node.plan {
                (plan.id, plan.reason) = (EVIL.into(), EVIL.into());
            }
        }
    }
    let page = page(&status);
    assert!(page.contains("&lt;script&gt;"));
    assert_eq!(page.matches("<script").count(), 1, "our own alone");
    assert!(!page.contains("<img") && !page.contains("\"'>"), "{page}");
}

#[test]
fn the_page_asks_nobody_else_and_is_bounded() {
    let mut status = status();
    let page = page(&status);
    for foreign in ["http://", "https://", "//cdn", "@import", "url("] {
        assert!(!STYLE.contains(foreign) && !SCRIPT.contains(foreign), "{foreign}");
    }
    assert!(!page.contains("style=\""), "the policy forbids it");
    assert!(policy("abc").contains("default-src 'none'"));
    assert!(page.contains("<noscript><meta http-equiv=\"refresh\""));
    assert_ne!(nonce(), nonce());
    let row = status.trees[0].nodes[2].clone();
    status.trees[0].nodes = vec![row; 5_000];
    let page = html(&status, &|_, _| vec![Some(5); 240], None, "abc");
    assert!(page.len() < 2_000_000, "{} bytes", page.len());
    assert!(page.contains("4800 more nodes"));
}
