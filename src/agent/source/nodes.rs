//! The hub's register: every node that ever asked for the tree, what it confirmed last, and when. It outlives
//! restarts, so that a node that is gone is shown by when it was last heard.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::agent::state::TreeState;
use crate::error::{Class, Error, Result};
use crate::lag::{Behind, History};
use crate::model::{Convergence, GenId, Mark, NodeId, NodeStatus, Report, RoleName, State};

const FILE: &str = "nodes.json";
/// A bound against certificates without end.
const MAX_NODES: usize = 10_000;
/// Nodes that an error names.
const NAMED: usize = 8;

/// What is known of one node.
struct Node {
    report: Report,
    confirmed: Option<GenId>,
    /// Boot time in ms; negative: before this boot.
    confirmed_at: i64,
    heard_at: i64,
    /// When the report came, for the durations in it.
    reported_at: i64,
    connections: i32,
    /// It reported since it came: what it said before it was away may not be so any more.
    is_fresh: bool,
    history: History,
}

/// A node that was taken out.
pub(super) struct Forgotten(Option<(NodeId, Node)>);

/// As it is written down: wall-clock times of this host.
#[derive(Serialize, Deserialize)]
struct Kept {
    report: Report,
    confirmed: Option<GenId>,
    confirmed_wall_ms: i64,
    heard_wall_ms: i64,
}

/// All nodes of one tree.
#[derive(Default)]
pub(super) struct Nodes {
    nodes: HashMap<NodeId, Node>,
    dirty: bool,
    /// A node came that was never heard before.
    news: bool,
}

impl Nodes {
    /// As it was; `now` is (boot time, wall clock).
    pub(super) fn restored(state: &TreeState, now: (u64, i64)) -> Self {
        let kept: HashMap<NodeId, Kept> = state.read(FILE).unwrap_or_default();
        let at = |wall: i64| now.0 as i64 - (now.1 - wall).max(0);
        let nodes = kept.into_iter().map(|(id, k)| {
            let node = Node {
                report: k.report,
                confirmed: k.confirmed,
                confirmed_at: at(k.confirmed_wall_ms),
                heard_at: at(k.heard_wall_ms),
                reported_at: at(k.heard_wall_ms),
                connections: 0,
                is_fresh: false,
                history: History::default(),
            };
            (id, node)
        });
        Self { nodes: nodes.collect(), dirty: false, news: false }
    }

    /// Writes it down when something changed.
    pub(super) fn snapshot(&mut self, now: (u64, i64)) -> Option<Vec<u8>> {
        self.news = false;
        if !std::mem::take(&mut self.dirty) {
            return None;
        }
        let wall = |at: i64| now.1 - (now.0 as i64 - at);
        let kept: HashMap<&NodeId, Kept> = self
            .nodes
            .iter()
            .map(|(id, n)| {
                let mut report = n.report.clone();
                report.converged.clear();
                let kept = Kept {
                    report,
                    confirmed: n.confirmed,
                    confirmed_wall_ms: wall(n.confirmed_at),
                    heard_wall_ms: wall(n.heard_at),
                };
                (id, kept)
            })
            .collect();
        serde_json::to_vec(&kept).ok()
    }

    /// Whether one is not written down at all, which a crash must not forget: whoever waits for all waits for it, too.
    pub(super) fn has_news(&self) -> bool {
        self.news
    }

    /// What [`Nodes::snapshot`] gave was not written down.
    pub(super) fn not_written(&mut self) {
        self.dirty = true;
    }

    /// Takes a node out that is gone for good. Gives what was known of it, for the operator.
    ///
    /// # Errors
    /// It is not known, or it is connected. Nothing has changed then.
    pub(super) fn forget(&mut self, id: &NodeId, tree: &str, now: u64) -> Result<(String, Forgotten)> {
        let Some(node) = self.nodes.get(id) else {
            let known = if self.nodes.is_empty() {
                "none was ever heard".to_owned()
            } else {
                format!("`syncagent status {tree}` lists those that were heard{}", self.like(id))
            };
            return Err(Error::new(Class::Config, format!("{tree} has no mirror `{id}`: {known}")));
        };
        if node.connected() {
            let what = format!(
                "{id} is connected, so it would be known again at once; nothing was changed. Stop its agent (on {id}: \
                 systemctl disable --now syncagent), or take it out of the source's `allow` and reload, then ask again"
            );
            return Err(Error::new(Class::Refused, what));
        }
        let which = node.confirmed.map_or("nothing".into(), |g| format!("generation {g}"));
        let age = u64::try_from(now as i64 - node.heard_at).unwrap_or(0) / 1000;
        self.dirty = true;
        let node = self.nodes.remove(id).map(|node| (id.clone(), node));
        Ok((format!("it was not heard for {age} s and last confirmed {which}"), Forgotten(node)))
    }

    /// What was forgotten could not be written down, so it is not. One that came again meanwhile is newer.
    pub(super) fn remember(&mut self, forgotten: Forgotten) {
        if let Some((id, node)) = forgotten.0 {
            self.nodes.entry(id).or_insert(node);
        }
    }

    /// Known nodes with a name like `id`, as the end of a sentence.
    fn like(&self, id: &NodeId) -> String {
        let alike = |a: &str, b: &str| {
            let same = a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count();
            a.contains(b) || b.contains(a) || same * 2 >= a.len().max(b.len())
        };
        let mut like: Vec<&str> =
            self.nodes.keys().map(NodeId::as_str).filter(|known| alike(known, id.as_str())).collect();
        like.sort_unstable();
        like.truncate(NAMED);
        if like.is_empty() { String::new() } else { format!(", among them {}", like.join(", ")) }
    }

    /// The file that [`Nodes::snapshot`] is for.
    pub(super) fn file() -> &'static str {
        FILE
    }

    fn node(&mut self, id: &NodeId, now: u64) -> Option<&mut Node> {
        if !self.nodes.contains_key(id) {
            if self.nodes.len() >= MAX_NODES {
                return None;
            }
            (self.dirty, self.news) = (true, true);
        }
        let now = now as i64;
        Some(self.nodes.entry(id.clone()).or_insert_with(|| Node {
            report: Report::default(),
            confirmed: None,
            confirmed_at: now,
            heard_at: now,
            reported_at: now,
            connections: 0,
            is_fresh: false,
            history: History::default(),
        }))
    }

    /// It asked for the head, and has `known`.
    pub(super) fn heard(&mut self, id: &NodeId, known: Option<GenId>, now: u64) {
        self.dirty = true;
        if let Some(node) = self.node(id, now) {
            node.heard_at = now as i64;
            node.confirm(known, now);
        }
    }

    /// It reported.
    pub(super) fn reported(&mut self, id: &NodeId, report: Report, now: u64) {
        self.dirty = true;
        if let Some(node) = self.node(id, now) {
            (node.heard_at, node.reported_at) = (now as i64, now as i64);
            node.confirm(report.applied, now);
            for (generation, ms) in &report.converged {
                node.history.add(*generation, *ms, now);
            }
            node.report = report;
            node.is_fresh = true;
        }
    }

    /// A connection came (1) or went (-1).
    pub(super) fn connected(&mut self, id: &NodeId, delta: i32, now: u64) {
        if delta < 0 && !self.nodes.contains_key(id) {
            // what goes away is no news
            return;
        }
        if let Some(node) = self.node(id, now) {
            node.is_fresh &= node.connections > 0;
            node.connections += delta;
        }
    }

    /// Those that are connected, and those that are not.
    pub(super) fn by_connection(&self) -> (Vec<NodeId>, Vec<NodeId>) {
        let mut ids: Vec<NodeId> = self.nodes.keys().cloned().collect();
        ids.sort();
        ids.into_iter().partition(|id| self.nodes.get(id).is_some_and(|node| node.connections > 0))
    }

    /// All nodes' convergence times together.
    pub(super) fn convergence(&self, now: u64) -> Convergence {
        History::pooled(self.nodes.values().map(|n| &n.history), now)
    }

    /// A row for each node, by id.
    pub(super) fn status(&self, now: u64, behind: &dyn Fn(Option<GenId>) -> Behind) -> Vec<NodeStatus> {
        let age = |at: i64| u64::try_from(now as i64 - at).unwrap_or(0);
        let row = |(id, n): (&NodeId, &Node)| {
            let late = behind(n.confirmed);
            let connected = n.connected();
            // a question that came with more than the last report names says nothing of how that is
            let has_said = connected && n.is_fresh && n.confirmed <= n.report.applied;
            let passed = age(n.reported_at);
            let mut error = n.report.error.clone();
            if let Some(error) = &mut error {
                error.for_ms += passed;
            }
            let later = |mark: &Option<Mark>| mark.clone().map(|m| Mark { for_ms: m.for_ms + passed, ..m });
            let mut refresh = n.report.refresh.clone();
            if let Some(error) = refresh.as_mut().and_then(|r| r.error.as_mut()) {
                error.for_ms += passed;
            }
            NodeStatus {
                zone: n.report.zone.clone(),
                state: if connected { n.report.state } else { State::Disconnected },
                generation: n.confirmed,
                applied: n.report.in_place.filter(|_| n.is_fresh || !connected).max(n.confirmed),
                refreshed: n.report.refreshed,
                verified: n.report.verified,
                consistent: has_said && n.report.consistent && late.oldest.is_none(),
                intact: n.report.intact.map(|intact| intact && has_said),
                refresh,
                paused: later(&n.report.paused),
                drained: later(&n.report.drained),
                faults: n.report.faults.clone(),
                behind: Some(late.count),
                lag_ms: Some(late.oldest.map_or(0, |(_, age)| age)),
                contact_age_ms: Some(age(n.heard_at)),
                confirmed_age_ms: n.confirmed.map(|_| age(n.confirmed_at)),
                drift: n.report.drift,
                plan: n.report.plan.clone(),
                error,
                convergence: Some(n.history.summary(now)),
                version: (!n.report.version.is_empty()).then(|| n.report.version.clone()),
                connected,
                ..NodeStatus::new(id.clone(), RoleName::Mirror)
            }
        };
        let mut rows: Vec<_> = self.nodes.iter().map(row).collect();
        rows.sort_by(|a, b| a.node.cmp(&b.node));
        rows
    }
}

impl Node {
    fn connected(&self) -> bool {
        self.connections > 0
    }

    fn confirm(&mut self, known: Option<GenId>, now: u64) {
        // what it has may also shrink: it lost its tree, and says so
        if known != self.confirmed {
            self.confirmed = known;
            self.confirmed_at = now as i64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_node_is_on_its_way_from_counts_as_it_said_last_and_while_it_is_there() {
        let id = NodeId::new("b").unwrap();
        let gen_id = |number| GenId { epoch: 1, number };
        let row = |nodes: &Nodes| nodes.status(9, &|_| Behind::default()).remove(0).intact;
        let report = |number, intact| Report { applied: Some(gen_id(number)), intact, ..Report::default() };
        let mut nodes = Nodes::default();
        nodes.connected(&id, 1, 1);
        nodes.heard(&id, Some(gen_id(5)), 1);
        assert_eq!(row(&nodes), None, "it has not reported yet");
        nodes.reported(&id, report(5, None), 2);
        assert_eq!(row(&nodes), None, "an older program");
        nodes.reported(&id, report(5, Some(true)), 3);
        assert_eq!(row(&nodes), Some(true));
        nodes.heard(&id, Some(gen_id(6)), 4);
        assert_eq!(row(&nodes), Some(false), "of 6 it has not said how it is");
        nodes.reported(&id, report(6, Some(true)), 5);
        assert_eq!(row(&nodes), Some(true));
        nodes.connected(&id, -1, 6);
        assert_eq!(row(&nodes), Some(false));
        nodes.connected(&id, 1, 7);
        assert_eq!(row(&nodes), Some(false), "it may have been edited meanwhile");
    }

    #[test]
    fn a_forgotten_node_is_gone_and_one_that_is_there_is_not_forgotten() {
        let (id, other) = (NodeId::new("app2").unwrap(), NodeId::new("app12").unwrap());
        let known = |nodes: &Nodes| nodes.status(9, &|_| Behind::default()).len();
        let refused = |nodes: &mut Nodes, id| nodes.forget(id, "t", 5_000).map(|_| ()).unwrap_err();
        let mut nodes = Nodes::default();
        assert!(refused(&mut nodes, &id).what.contains("none was ever heard"));
        nodes.heard(&id, Some(GenId { epoch: 1, number: 5 }), 1_000);
        nodes.connected(&id, 1, 1_000);
        let e = refused(&mut nodes, &id);
        assert!(e.class == Class::Refused && e.what.contains("is connected"), "{e}");
        let e = refused(&mut nodes, &other);
        assert!(e.class == Class::Config && e.what.ends_with("among them app2"), "{e}");
        assert_eq!(known(&nodes), 1);
        nodes.connected(&id, -1, 2_000);
        let _ = nodes.snapshot((0, 0));
        let (said, forgotten) = nodes.forget(&id, "t", 5_000).unwrap();
        assert_eq!(said, "it was not heard for 4 s and last confirmed generation 1.5");
        assert_eq!(known(&nodes), 0);
        let text = String::from_utf8(nodes.snapshot((0, 0)).unwrap()).unwrap();
        assert!(!text.contains("app2"), "{text}");
        // a connection that ends late does not bring it back, a question does
        nodes.connected(&id, -1, 5_000);
        assert_eq!(known(&nodes), 0);
        nodes.remember(forgotten);
        assert_eq!(known(&nodes), 1);
        nodes.forget(&id, "t", 5_000).unwrap();
        nodes.heard(&id, None, 6_000);
        assert_eq!(known(&nodes), 1);
    }

    #[test]
    fn what_a_node_said_before_it_was_away_does_not_make_it_consistent() {
        let id = NodeId::new("b").unwrap();
        let five = GenId { epoch: 1, number: 5 };
        let row = |nodes: &Nodes| nodes.status(9, &|_| Behind::default()).remove(0);
        let report =
            || Report { applied: Some(five), in_place: Some(five), consistent: true, ..Report::default() };
        let mut nodes = Nodes::default();
        nodes.heard(&id, Some(five), 1);
        nodes.connected(&id, 1, 1);
        assert!(!row(&nodes).consistent, "it has not reported yet");
        nodes.reported(&id, report(), 2);
        assert!(row(&nodes).consistent);
        nodes.connected(&id, 1, 3);
        nodes.connected(&id, -1, 3);
        assert!(row(&nodes).consistent, "a second connection says nothing");
        let six = GenId { epoch: 1, number: 6 };
        nodes.heard(&id, Some(six), 3);
        assert!(!row(&nodes).consistent, "of 6 it has not said how it is");
        nodes.heard(&id, Some(five), 3);
        assert!(row(&nodes).consistent);
        nodes.connected(&id, -1, 4);
        assert!(!row(&nodes).consistent);
        nodes.connected(&id, 1, 5);
        nodes.heard(&id, Some(five), 5);
        let again = row(&nodes);
        assert!(again.connected && !again.consistent, "it may have been edited meanwhile");
        nodes.reported(&id, report(), 6);
        assert!(row(&nodes).consistent);
    }
}
