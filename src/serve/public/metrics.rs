//! `/metrics`: the status in Prometheus' text format 0.0.4, described in docs/metrics.md.
//!
//! Written by hand: the format is three kinds of lines, and the client library knows no summaries.

use std::fmt::Write as _;

use crate::model::{Convergence, NodeStatus, Percentiles, RefreshState, State, Status, TreeStatus};

pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A metric with one value: its name, its type, what it is, and where it comes from; `None` leaves it out.
type Metric<T> = (&'static str, &'static str, &'static str, fn(&T) -> Option<f64>);

/// Of a node and a tree: labels `tree`, `node`, `role`.
const NODE: [Metric<NodeStatus>; 17] = [
    (
        "syncagent_lag_seconds",
        "gauge",
        "Age of the oldest published generation that the node has not applied; absent when unknown.",
        |n| seconds(n.lag_ms),
    ),
    ("syncagent_behind_generations", "gauge", "Published generations that the node has not applied.", |n| {
        number(n.behind)
    }),
    (
        "syncagent_contact_age_seconds",
        "gauge",
        "Since the mirror was heard (on the source) or the source was heard (on the mirror).",
        |n| seconds(n.contact_age_ms),
    ),
    ("syncagent_confirmed_age_seconds", "gauge", "Since the node last confirmed its generation.", |n| {
        seconds(n.confirmed_age_ms)
    }),
    (
        "syncagent_generation_epoch",
        "gauge",
        "Epoch of the newest generation that the node has completely.",
        |n| number(n.generation.map(|g| g.epoch)),
    ),
    (
        "syncagent_generation_number",
        "gauge",
        "Number of the newest generation that the node has completely, within its epoch.",
        |n| number(n.generation.map(|g| g.number)),
    ),
    (
        "syncagent_consistent",
        "gauge",
        "1 when the node has everything that is published, its server too, and nobody edited anything.",
        |n| flag(n.consistent),
    ),
    ("syncagent_healthy", "gauge", "0 when the tree takes the node out of its load balancer.", |n| {
        flag(n.faults.is_empty())
    }),
    ("syncagent_connected", "gauge", "1 while the mirror and its source are connected.", |n| {
        flag(n.connected)
    }),
    ("syncagent_drift_paths", "gauge", "Paths that somebody edited on the node.", |n| Some(n.drift as f64)),
    ("syncagent_failing", "gauge", "1 while something is wrong there, as the status says.", |n| {
        flag(n.error.is_some())
    }),
    ("syncagent_plan_refused", "gauge", "1 while a refused plan waits for an approval there.", |n| {
        flag(n.plan.is_some())
    }),
    (
        "syncagent_plan_lost_files",
        "gauge",
        "Files and links that the refused plan would delete or empty; absent when none waits.",
        |n| number(n.plan.as_ref().map(|p| p.lost)),
    ),
    (
        "syncagent_refresh_attempts",
        "gauge",
        "Attempts to tell the local server since the last success.",
        |n| number(n.refresh.as_ref().map(|r| r.attempts)),
    ),
    (
        "syncagent_refresh_failing",
        "gauge",
        "1 while telling the local server fails, or it does not see the change.",
        |n| {
            let failing = |s| matches!(s, RefreshState::Failing | RefreshState::VerifyFailed);
            n.refresh.as_ref().and_then(|r| flag(failing(r.state) || r.error.is_some()))
        },
    ),
    ("syncagent_paused", "gauge", "1 while an operator has paused the tree there.", |n| {
        flag(n.paused.is_some())
    }),
    ("syncagent_drained", "gauge", "1 while an operator has taken the node out of traffic.", |n| {
        flag(n.drained.is_some())
    }),
];

/// Of a tree on this node: label `tree`.
const TREE: [Metric<TreeStatus>; 9] = [
    ("syncagent_head_epoch", "gauge", "Epoch of the newest generation published or heard of.", |t| {
        number(t.head.map(|g| g.epoch))
    }),
    ("syncagent_head_number", "gauge", "Number of the newest generation published or heard of.", |t| {
        number(t.head.map(|g| g.number))
    }),
    ("syncagent_files", "gauge", "Files and links in the tree.", |t| number(t.files)),
    (
        "syncagent_unpublished_age_seconds",
        "gauge",
        "On a source: since the oldest change that is not published; absent when there is none.",
        |t| seconds(t.unpublished_age_ms),
    ),
    (
        "syncagent_held_paths",
        "gauge",
        "On a source: changed files that wait because they do not settle.",
        |t| Some(t.held_count as f64),
    ),
    ("syncagent_hold", "gauge", "1 while a deploy job holds the tree, or a failed one left it held.", |t| {
        flag(t.hold.is_some())
    }),
    ("syncagent_hold_failed", "gauge", "1 while the tree is held because a deploy job failed.", |t| {
        flag(t.hold.as_ref().is_some_and(|h| h.failed.is_some()))
    }),
    (
        "syncagent_watch_native",
        "gauge",
        "1 when changes are noticed by the kernel's events, 0 when by polling.",
        |t| flag(t.watch.native),
    ),
    (
        "syncagent_refused_peers_total",
        "counter",
        "Requests for the tree that were refused since the agent started.",
        |t| Some(t.refused_peers as f64),
    ),
];

/// One of these is 1 for each node and tree.
const STATES: [(&str, State); 15] = [
    ("starting", State::Starting),
    ("current", State::Current),
    ("settling", State::Settling),
    ("fetching", State::Fetching),
    ("committing", State::Committing),
    ("refreshing", State::Refreshing),
    ("rolled-back", State::RolledBack),
    ("paused", State::Paused),
    ("refused", State::Refused),
    ("drift", State::Drift),
    ("incomplete", State::Incomplete),
    ("superseded", State::Superseded),
    ("held", State::Held),
    ("disconnected", State::Disconnected),
    ("failed", State::Failed),
];

fn seconds(ms: Option<u64>) -> Option<f64> {
    ms.map(|ms| ms as f64 / 1000.0)
}

fn number(n: Option<u64>) -> Option<f64> {
    n.map(|n| n as f64)
}

fn flag(set: bool) -> Option<f64> {
    Some(f64::from(u8::from(set)))
}

/// The text, family by family.
struct Text(String);

impl Text {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        self.0.push_str(name);
        for (i, (label, text)) in labels.iter().enumerate() {
            let _ = write!(self.0, "{}{label}=\"", if i == 0 { '{' } else { ',' });
            for c in text.chars() {
                match c {
                    '\\' => self.0.push_str("\\\\"),
                    '"' => self.0.push_str("\\\""),
                    '\n' => self.0.push_str("\\n"),
                    c => self.0.push(c),
                }
            }
            self.0.push('"');
        }
        let _ = writeln!(self.0, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }
}

/// The whole answer. `started`: when the agent started, in s since the unix epoch; `known`: whether the status is one of
/// now.
pub(super) fn text(status: &Status, started: i64, known: bool) -> String {
    let mut out = Text(String::with_capacity(16 * 1024));
    of_the_agent(&mut out, status, started, known);
    for (name, kind, help, value) in TREE {
        out.family(name, kind, help);
        for tree in &status.trees {
            if let Some(value) = value(tree) {
                out.sample(name, &[("tree", &tree.name)], value);
            }
        }
    }
    let rows = || status.trees.iter().flat_map(|tree| tree.nodes.iter().map(move |node| (tree, node)));
    let labels = |tree: &TreeStatus, node: &NodeStatus| {
        [("tree", tree.name.clone()), ("node", node.node.to_string()), ("role", word(&node.role))]
    };
    for (name, kind, help, value) in NODE {
        out.family(name, kind, help);
        for (tree, node) in rows() {
            if let Some(value) = value(node) {
                let labels = labels(tree, node);
                out.sample(name, &labels.each_ref().map(|(l, v)| (*l, v.as_str())), value);
            }
        }
    }
    let name = "syncagent_state";
    out.family(name, "gauge", "1 for the state that the node is in, 0 for all others.");
    for (tree, node) in rows() {
        let labels = labels(tree, node);
        let [t, n, r] = labels.each_ref().map(|(l, v)| (*l, v.as_str()));
        for (state, is) in STATES {
            out.sample(name, &[t, n, r, ("state", state)], f64::from(u8::from(node.state == is)));
        }
    }
    let name = "syncagent_convergence_seconds";
    out.family(
        name,
        "summary",
        "From publication until in place: quantiles of the last hour, sum and count since the agent's start.",
    );
    for (tree, node) in rows() {
        let Some(Convergence { hour, total, .. }) = node.convergence else { continue };
        let labels = labels(tree, node);
        let [t, n, r] = labels.each_ref().map(|(l, v)| (*l, v.as_str()));
        let Percentiles { p50_ms, p95_ms, p99_ms, max_ms, count } = hour;
        let quantiles = [("0.5", p50_ms), ("0.95", p95_ms), ("0.99", p99_ms), ("1", max_ms)];
        for (quantile, ms) in quantiles.into_iter().filter(|_| count > 0) {
            out.sample(name, &[t, n, r, ("quantile", quantile)], ms as f64 / 1000.0);
        }
        out.sample("syncagent_convergence_seconds_sum", &[t, n, r], total.sum_ms as f64 / 1000.0);
        out.sample("syncagent_convergence_seconds_count", &[t, n, r], total.count as f64);
    }
    out.0
}

fn of_the_agent(out: &mut Text, status: &Status, started: i64, known: bool) {
    let (zone, node) = (status.zone.as_deref().unwrap_or_default(), status.node.to_string());
    out.family("syncagent_build_info", "gauge", "Always 1; what runs where is in the labels.");
    let labels =
        [("version", status.version.as_str()), ("node", &node), ("cluster", &status.cluster), ("zone", zone)];
    out.sample("syncagent_build_info", &labels, 1.0);
    let healthy =
        known && status.trees.iter().filter_map(|t| t.nodes.first()).all(|own| own.faults.is_empty());
    out.family("syncagent_node_healthy", "gauge", "What /ha/health says: 1 for 200, 0 for 503.");
    out.sample("syncagent_node_healthy", &[], f64::from(u8::from(healthy)));
    let name = "syncagent_certificate_expiry_seconds";
    out.family(name, "gauge", "Until the node's certificate expires, in whole days; negative when it has.");
    if let Some(days) = status.certificate_days_left {
        out.sample(name, &[], days as f64 * 86_400.0);
    }
    let name = "process_start_time_seconds";
    out.family(name, "gauge", "Start time of the process since the unix epoch.");
    out.sample(name, &[], started as f64);
}

/// A word as the status document writes it.
pub(super) fn word(value: &impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => "unknown".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(path: &str) -> String {
        std::fs::read_to_string(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
    }

    fn status() -> Status {
        serde_json::from_str(&read("fixtures/status/schema-1.json")).unwrap()
    }

    #[test]
    fn every_metric_is_documented_with_its_type_and_nothing_else_is() {
        let page = read("docs/metrics.md");
        let text = text(&status(), 0, true);
        let mut names = Vec::new();
        for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
            let (name, kind) = line.split_once(' ').unwrap();
            assert!(
                page.contains(&format!("| `{name}` | {kind} |")),
                "docs/metrics.md says nothing of {name}"
            );
            names.push(name);
        }
        let documented =
            page.lines().filter(|line| line.starts_with("| `syncagent_") || line.starts_with("| `process_"));
        assert_eq!(documented.count(), names.len());
        let rules = read("packaging/prometheus/syncagent.rules.yml");
        let used = rules.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        for name in used.filter(|word| word.starts_with("syncagent_")) {
            assert!(names.contains(&name), "the alert rules use {name}, which is not there");
        }
    }

    #[test]
    fn values_and_labels_are_those_of_the_status() {
        let text = text(&status(), 1_700_000_000, true);
        for line in [
            "syncagent_lag_seconds{tree=\"assets\",node=\"app3.example.com\",role=\"mirror\"} 318",
            "syncagent_state{tree=\"assets\",node=\"app3.example.com\",role=\"mirror\",state=\"failed\"} 1",
            "syncagent_state{tree=\"assets\",node=\"app3.example.com\",role=\"mirror\",state=\"current\"} 0",
            "syncagent_convergence_seconds{tree=\"assets\",node=\"app2.example.com\",role=\"mirror\",quantile=\"0.5\"} 0.035",
            "syncagent_convergence_seconds_count{tree=\"assets\",node=\"app2.example.com\",role=\"mirror\"} 44",
            "syncagent_convergence_seconds_sum{tree=\"assets\",node=\"app2.example.com\",role=\"mirror\"} 2.31",
            "syncagent_certificate_expiry_seconds 1036800",
            "syncagent_unpublished_age_seconds{tree=\"assets\"} 252",
            "syncagent_hold_failed{tree=\"assets\"} 1",
            "syncagent_refresh_failing{tree=\"assets\",node=\"app3.example.com\",role=\"mirror\"} 1",
            "syncagent_node_healthy 1",
            "process_start_time_seconds 1700000000",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
        assert!(!text.contains("NaN"), "what is not known is left out");
    }

    /// As `/ha/health`, which is 503 then.
    #[test]
    fn a_node_of_which_nothing_is_known_is_not_healthy() {
        let text = text(&status(), 0, false);
        assert!(text.lines().any(|l| l == "syncagent_node_healthy 0"), "{text}");
    }

    #[test]
    fn a_label_cannot_break_out() {
        let mut out = Text(String::new());
        out.sample("m", &[("l", "a\"b\\c\nd")], 1.0);
        assert_eq!(out.0, "m{l=\"a\\\"b\\\\c\\nd\"} 1\n");
    }
}
