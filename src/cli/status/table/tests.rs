//! Frozen text of the frozen document, and what peers may put into it.

use super::*;
use crate::model::{Hold, Mark, NodeId, RefreshState, RefreshStatus, RefusedPlan, Trouble};

/// The frozen document of schema 1.
pub(in crate::cli::status) fn sample() -> Status {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/status/schema-1.json");
    let mut status: Status = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    // layout is what the frozen texts are about; what operators ordered has a test of its own
    for tree in &mut status.trees {
        tree.hold = None;
        for node in &mut tree.nodes {
            (node.paused, node.drained, node.refresh) = (None, None, None);
        }
    }
    status
}

const WIDE: &str = "\
app1.example.com in zone a, cluster prod, syncagent 0.2.0, up 3 h; its certificate expires in 12 days

assets  /srv/virtualize/VirtualAssets  generation 1.42, 3.2 s old  1204 files
  ! refused: 900 of 1204 files would be deleted, more than max-delete = 25% allows (900 files lost); to let exactly this through:
      syncagent approve assets 5f1d9a0c2b7e4463
  ! changes are found by scanning, not by events: the limit of inotify watches is reached; raise it with sysctl fs.inotify.max_user_watches=524288
  ! 1 path held back; what was published before stays:
      Payments/Refunds.pva (still open for writing, for 4 min)
  ! a change waits unpublished for 4 min
  ! 1 request of peers refused since the start; the log says whose and why
  in place after 38 ms (p50), 120 ms (p95), 410 ms (p99), 410 ms (max) in the last hour
  NODE              ROLE    STATE         GENERATION  BEHIND    LAG  CONTACT  DRIFT  NOTE
  app1.example.com  source  refused       1.42             0   0 ms        -      0  refused plan 5f1d9a0c2b7e4463
  app3.example.com  mirror  failed        1.39             3  5 min   240 ms      2  cannot stage Payments/Card Authorization.pva: No space left on device (os error 28) (for 5 min); zone b; version 0.1.9
  app4.example.com  mirror  disconnected  -                -      -      2 h      0  confirmed 2 h ago; zone b
  app2.example.com  mirror  current       1.42             0   0 ms   140 ms      0

deploy  /opt/wso2ei/repository/deployment/server  generation 3.7, 24 h old  17 files
  NODE              ROLE    STATE    GENERATION  BEHIND   LAG  CONTACT  DRIFT  NOTE
  app1.example.com  mirror  current  3.7              0  0 ms    90 ms      0
";

const MIDDLE: &str = "\
app1.example.com in zone a, cluster prod, syncagent 0.2.0, up 3 h; its certificate expires in 12 days

assets  /srv/virtualize/VirtualAssets  generation 1.42, 3.2 s old  1204 files
  ! refused: 900 of 1204 files would be deleted, more than max-delete = 25% allows (900 files lost); to let exactly this
  through:
      syncagent approve assets 5f1d9a0c2b7e4463
  ! changes are found by scanning, not by events: the limit of inotify watches is reached; raise it with sysctl
  fs.inotify.max_user_watches=524288
  ! 1 path held back; what was published before stays:
      Payments/Refunds.pva (still open for writing, for 4 min)
  ! a change waits unpublished for 4 min
  ! 1 request of peers refused since the start; the log says whose and why
  in place after 38 ms (p50), 120 ms (p95), 410 ms (p99), 410 ms (max) in the last hour
  NODE              ROLE    STATE         GENERATION  BEHIND    LAG  CONTACT  DRIFT  NOTE
  app1.example.com  source  refused       1.42             0   0 ms        -      0  refused plan 5f1d9a0c2b7e4463
  app3.example.com  mirror  failed        1.39             3  5 min   240 ms      2  cannot stage Payments/Card
                                                                                     Authorization.pva: No space left on
                                                                                     device (os error 28) (for 5 min);
                                                                                     zone b; version 0.1.9
  app4.example.com  mirror  disconnected  -                -      -      2 h      0  confirmed 2 h ago; zone b
  app2.example.com  mirror  current       1.42             0   0 ms   140 ms      0
";

const NARROW: &str = "\
app1.example.com in zone a, cluster prod, syncagent 0.2.0, up 3 h; its
certificate expires in 12 days

assets  /srv/virtualize/VirtualAssets  generation 1.42, 3.2 s old  1204 files
  ! refused: 900 of 1204 files would be deleted, more than max-delete = 25%
  allows (900 files lost); to let exactly this through:
      syncagent approve assets 5f1d9a0c2b7e4463
  ! changes are found by scanning, not by events: the limit of inotify watches
  is reached; raise it with sysctl fs.inotify.max_user_watches=524288
  ! 1 path held back; what was published before stays:
      Payments/Refunds.pva (still open for writing, for 4 min)
  ! a change waits unpublished for 4 min
  ! 1 request of peers refused since the start; the log says whose and why
  in place after 38 ms (p50), 120 ms (p95), 410 ms (p99), 410 ms (max) in the
  last hour
  NODE           ROLE    STATE         GENERATION  BEHIND    LAG  CONTACT  DRIFT
  app1.examp...  source  refused       1.42             0   0 ms        -      0
  app3.examp...  mirror  failed        1.39             3  5 min   240 ms      2
  app4.examp...  mirror  disconnected  -                -      -      2 h      0
  app2.examp...  mirror  current       1.42             0   0 ms   140 ms      0
    app1.example.com: refused plan 5f1d9a0c2b7e4463
    app3.example.com: cannot stage Payments/Card Authorization.pva: No space
    left on device (os error 28) (for 5 min); zone b; version 0.1.9
    app4.example.com: confirmed 2 h ago; zone b
";

#[test]
fn without_a_width_nothing_is_broken() {
    assert_eq!(table(&sample(), None, None), WIDE);
}

#[test]
fn on_a_terminal_notes_wrap_and_figures_do_not() {
    let text = table(&sample(), Some("assets"), Some(120));
    assert_eq!(text, MIDDLE);
    assert!(text.lines().all(|l| l.chars().count() <= 120));
}

#[test]
fn on_a_narrow_terminal_notes_stand_below() {
    let text = table(&sample(), Some("assets"), Some(80));
    assert_eq!(text, NARROW);
    assert!(text.lines().all(|l| l.chars().count() <= 80));
}

#[test]
fn nodes_in_trouble_come_right_after_this_one() {
    let text = table(&sample(), Some("assets"), None);
    let order: Vec<&str> = text.lines().filter_map(|l| l.strip_prefix("  app")).map(|l| &l[..1]).collect();
    assert_eq!(order, ["1", "3", "4", "2"]);
}

#[test]
fn words_of_peers_reach_neither_the_terminal_nor_the_shell() {
    let mut status = sample();
    let node = &mut status.trees[0].nodes[1];
    let nasty = "\x1b[2J\nx\u{202e}; rm -rf /\r\\xff";
    node.error = Some(Trouble { what: nasty.into(), for_ms: 0 });
    node.plan = Some(RefusedPlan { id: nasty.into(), reason: nasty.into(), lost: 1 });
    (node.zone, node.version) = (Some(nasty.into()), Some(nasty.into()));
    (status.zone, status.cluster) = (Some(nasty.into()), nasty.into());
    let mark = Mark { who: nasty.into(), reason: Some(nasty.into()), for_ms: 1 };
    (node.paused, node.drained) = (Some(mark.clone()), Some(mark.clone()));
    let trouble = Some(Trouble { what: nasty.into(), for_ms: 0 });
    let failing = RefreshState::Failing;
    node.refresh = Some(RefreshStatus {
        state: failing,
        action: Some(nasty.into()),
        attempts: 1,
        failures: 1,
        error: trouble,
    });
    status.drained = Some(mark);
    let tree = &mut status.trees[0];
    let failed = Some(nasty.into());
    tree.hold =
        Some(Hold { who: nasty.into(), command: nasty.into(), for_ms: 1, failed, failed_for_ms: None });
    (tree.path, tree.lock, tree.watch.reason) = (nasty.into(), Some(nasty.into()), Some(nasty.into()));
    (tree.held[0].path, tree.held[0].why) = (nasty.into(), nasty.into());
    for width in [None, Some(60)] {
        let text = table(&status, None, width);
        assert!(!text.chars().any(|c| (c.is_control() && c != '\n') || c == '\u{202e}'), "{text:?}");
    }
    let text = table(&status, None, None);
    let lines: Vec<&str> =
        text.lines().map(str::trim).filter(|l| l.starts_with("syncagent approve")).collect();
    assert_eq!(lines.len(), 2);
    let said = shlex::split(lines[1]).unwrap();
    assert_eq!(said[..3], ["syncagent", "approve", "assets"]);
    assert_eq!(said[3], "\\x1b[2J\\nx\\xe2\\x80\\xae; rm -rf /\\r\\xff");
}

#[test]
fn what_operators_ordered_is_said_with_who_and_since_when() {
    let mut status = sample();
    let mark = |reason: Option<&str>| Mark {
        who: "ops (process 7)".into(),
        reason: reason.map(String::from),
        for_ms: 60_000,
    };
    status.drained = Some(mark(Some("new disk")));
    let tree = &mut status.trees[0];
    let hold = Hold {
        who: "ci (process 9)".into(),
        command: "./install".into(),
        for_ms: 5_000,
        failed: None,
        failed_for_ms: None,
    };
    tree.hold = Some(hold.clone());
    tree.nodes[1].paused = Some(mark(None));
    tree.nodes[1].refresh = Some(RefreshStatus {
        state: RefreshState::VerifyFailed,
        action: Some("carbon".into()),
        attempts: 3,
        failures: 3,
        error: Some(Trouble { what: "404".into(), for_ms: 2_000 }),
    });
    let text = table(&status, None, None);
    for said in [
        "; DRAINED by ops (process 7), 1 min ago: new disk",
        "! held by ci (process 9) for 5.0 s, until this command ends: ./install",
        "paused by ops (process 7), 1 min ago; refresh carbon verify-failed",
        ": 404 (3 attempts, for 2.0 s)",
    ] {
        assert!(text.contains(said), "{said}: {text}");
    }
    let mut hold = Hold { failed: Some("exit code 3".into()), ..hold };
    status.trees[0].hold = Some(hold.clone());
    let text = table(&status, None, None);
    assert!(
        text.contains("failed, 5.0 s ago: exit code 3; to let it go:\n      syncagent hold assets --release"),
        "{text}"
    );
    // what counts is when it failed
    hold.failed_for_ms = Some(20);
    status.trees[0].hold = Some(hold);
    let text = table(&status, None, None);
    assert!(text.contains("failed, 20 ms ago: exit code 3"), "{text}");
}

#[test]
fn a_tree_that_cannot_be_written_is_named_with_the_commands() {
    let mut status = sample();
    status.trees[1].unwritable = Some("cannot make /opt/x/.syncagent: Read-only file system".into());
    let text = table(&status, Some("deploy"), None);
    for said in [
        "  ! the tree cannot be written: cannot make /opt/x/.syncagent",
        "\n      syncagent config systemd > /etc",
    ] {
        assert!(text.contains(said), "{text}");
    }
}

#[test]
fn what_is_not_known_yet_is_said_as_that() {
    let mut status = sample();
    let tree = &mut status.trees[1];
    (tree.watch.native, tree.watch.reason) = (false, None);
    (tree.head, tree.head_age_ms) = (None, None);
    for state in [State::Starting, State::Paused, State::Failed, State::Disconnected] {
        status.trees[1].nodes[0].state = state;
        let text = table(&status, Some("deploy"), None);
        assert!(!text.contains("scanning"), "{text}");
        assert!(
            text.contains("  generation 3.7 in place, the newest is not known yet  17 files\n"),
            "{text}"
        );
    }
    let own = &mut status.trees[1].nodes[0];
    (own.generation, own.applied) = (None, None);
    assert!(table(&status, Some("deploy"), None).contains("  no generation yet  "));
}

#[test]
fn any_width_and_a_long_name_are_survived() {
    let mut status = sample();
    status.trees[0].nodes[3].node = NodeId::new(&"x".repeat(253)).unwrap();
    for width in 0..200 {
        let text = table(&status, None, Some(width));
        assert!(text.contains(&format!("\n  {}", "x".repeat(9))), "{text}");
        assert!(text.lines().any(|l| l.contains("1.39") && l.contains("5 min")), "{text}");
        let widest = text.lines().map(|l| l.chars().count()).max().unwrap_or(0);
        assert!(width < 90 || widest <= usize::from(width), "{width}: {text}");
    }
}

#[test]
fn durations_have_one_unit_and_never_claim_more_than_passed() {
    let cases = [
        (0, "0 ms"),
        (240, "240 ms"),
        (999, "999 ms"),
        (1_000, "1.0 s"),
        (3_299, "3.2 s"),
        (9_999, "9.9 s"),
        (10_000, "10 s"),
        (59_999, "59 s"),
        (60_000, "1 min"),
        (3_599_999, "59 min"),
        (7_200_000, "2 h"),
        (172_799_999, "47 h"),
        (172_800_000, "2 days"),
    ];
    for (ms, text) in cases {
        assert_eq!(duration(ms), text);
    }
    assert!(duration(u64::MAX).ends_with(" days"));
}
