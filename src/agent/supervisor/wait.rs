//! Waiting until nodes are consistent, and saying who is not, and why.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::{Agent, lock};
use crate::config::{Allow, Role as RoleConfig};
use crate::error::{Class, Error, Result};
use crate::model::{GenId, NodeId, NodeStatus, RefreshState, RoleName, State, TreeStatus, counted_as};

/// The state in memory is looked at so often.
const LOOK: Duration = Duration::from_millis(20);
const NOT_HEARD: &str = "is not connected and has never reported";

/// What is waited for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wait {
    /// The tree.
    pub tree: String,
    /// This generation or a newer one; `None`: all that was written until now.
    pub generation: Option<GenId>,
    /// Of `generation: None`: what an earlier answer gave, so that "now" stays the same moment.
    pub token: Option<u64>,
    /// On whom.
    pub scope: Scope,
    /// Milliseconds until the answer comes, whatever it is.
    pub wait_ms: u64,
    /// Of `generation: None`: milliseconds in which the look is waited for, also where `wait_ms` is less.
    #[serde(default)]
    pub look_ms: u64,
}

/// Whom to wait for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// On a source: all. On a mirror: this node.
    #[default]
    Default,
    /// Every node that may read the tree, or ever did.
    All,
    /// Those in a zone.
    Zone(String),
    /// One.
    Node(NodeId),
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waited {
    /// The generation that is waited for, once it is known.
    pub generation: Option<GenId>,
    /// To be given in the next question.
    pub token: Option<u64>,
    /// Nodes that have it.
    pub consistent: Vec<NodeId>,
    /// Nodes that do not, and why.
    pub missing: Vec<(NodeId, String)>,
    /// What was written until the question is still being looked for.
    #[serde(default)]
    pub looking: bool,
}

impl Agent {
    /// Waits, at most as long as asked for, until all nodes in question are consistent.
    ///
    /// # Errors
    /// There is no such tree, zone or node, or this node does not know of the others.
    pub async fn wait(&self, wait: Wait) -> Result<Waited> {
        let role = self.role(&wait.tree)?;
        let (expected, is_source) = self.expected(&wait.tree);
        if !is_source && matches!(wait.scope, Scope::All | Scope::Zone(_)) {
            let what = "only the source of a tree knows of all nodes; ask there";
            return Err(Error::new(Class::Config, what));
        }
        let after = |ms: u64| Instant::now() + Duration::from_millis(ms.min(60_000));
        let (end, look_end) = (after(wait.wait_ms), after(wait.look_ms));
        let token = wait.generation.is_none().then(|| wait.token.unwrap_or_else(|| role.flush()));
        let mut target = wait.generation;
        loop {
            // first, so that what the look found is in the status
            let looked = token.is_none_or(|token| role.has_looked(token));
            let flushed = token.is_none_or(|token| role.is_flushed(token));
            let status = role.status();
            if target.is_none() && flushed {
                target = status.head;
            }
            let mut waited = judge(&status, &expected, &wait.scope, target)?;
            waited.token = token;
            if target.is_none() {
                // nobody has what nobody could get
                waited.consistent.clear();
                waited.looking = !looked;
                waited.missing.insert(0, (lock(&self.config).node.id.clone(), unpublished(&status, looked)));
            }
            let now = Instant::now();
            if waited.missing.is_empty() || now >= end && !(waited.looking && now < look_end) {
                return Ok(waited);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// The nodes that may read a tree, where they are named, and whether this node is its source.
    fn expected(&self, tree: &str) -> (BTreeSet<NodeId>, bool) {
        let trees = lock(&self.trees);
        match trees.get(tree).map(|t| &t.config.role) {
            Some(RoleConfig::Source(role)) => match &role.allow {
                Allow::Nodes(nodes) => (nodes.clone(), true),
                Allow::Any => (BTreeSet::new(), true),
            },
            _ => (BTreeSet::new(), false),
        }
    }
}

/// Why what was written is not a generation yet; `looked`: all of it was looked at.
fn unpublished(status: &TreeStatus, looked: bool) -> String {
    let own = status.nodes.first();
    if let Some(own) = own.filter(|n| n.role == RoleName::Mirror) {
        let why = own.error.as_ref().map(|e| format!(": {}", e.what)).unwrap_or_default();
        return format!("the source has not answered yet{why}");
    }
    let why = match own.map(|n| (n.state, n)) {
        Some((_, n)) if n.paused.is_some() => {
            format!("paused by {}", n.paused.as_ref().map_or("", |p| p.who.as_str()))
        }
        _ if status.hold.is_some() => {
            let hold = status.hold.as_ref();
            let failed = hold.and_then(|h| h.failed.as_ref()).map(|f| format!(", which failed: {f}"));
            format!("held for {}{}", hold.map_or("", |h| h.command.as_str()), failed.unwrap_or_default())
        }
        Some((State::Refused, n)) => n.plan.as_ref().map_or("refused".into(), |p| p.reason.clone()),
        Some((_, n)) if n.error.is_some() => n.error.as_ref().map_or("", |e| e.what.as_str()).to_owned(),
        _ => match status.held.first() {
            Some(held) => format!("{} is not finished ({})", held.path, held.why),
            None if !looked => return "the source is still looking for what was written".into(),
            None => "it settles".into(),
        },
    };
    format!("not all that was written is published: {why}")
}

/// Who has `target`, and who has not.
fn judge(
    status: &TreeStatus,
    expected: &BTreeSet<NodeId>,
    scope: &Scope,
    target: Option<GenId>,
) -> Result<Waited> {
    let mut waited = Waited { generation: target, ..Waited::default() };
    let in_scope = |id: &NodeId, zone: Option<&str>| match scope {
        Scope::Default | Scope::All => true,
        Scope::Zone(name) => zone == Some(name),
        Scope::Node(node) => node == id,
    };
    // a node may be in any zone until it has said in which
    let is_zone = matches!(scope, Scope::Zone(_));
    for node in &status.nodes {
        if is_zone && !has_said_its_zone(node) {
            let connected = if node.connected { "is connected, but has not reported yet" } else { NOT_HEARD };
            let why = format!("it {connected}, so its zone is not known: it may be in this one");
            waited.missing.push((node.node.clone(), why));
        } else if in_scope(&node.node, node.zone.as_deref()) {
            match target.and_then(|target| lacks(node, target)) {
                Some(why) => waited.missing.push((node.node.clone(), why)),
                None => waited.consistent.push(node.node.clone()),
            }
        }
    }
    let unknown = expected.iter().filter(|id| !status.nodes.iter().any(|n| n.node == **id));
    // nobody knows where one stands that was never heard
    for id in unknown.filter(|id| is_zone || in_scope(id, None)) {
        let zone = if is_zone { ", so its zone is not known: it may be in this one" } else { "" };
        let why = format!(
            "it was never heard of{zone}; is its agent installed and running, or does it belong in `allow` at all?"
        );
        waited.missing.push((id.clone(), why));
    }
    if waited.missing.is_empty() && waited.consistent.is_empty() {
        let what = match scope {
            Scope::Zone(zone) => format!("no node of this tree is in the zone `{zone}`"),
            Scope::Node(node) => format!("this agent knows of no node `{node}` with this tree"),
            _ => "no node has this tree".into(),
        };
        return Err(Error::new(Class::Config, what));
    }
    Ok(waited)
}

/// A report always carries the program's version, and the zone where there is one. The register keeps the last one.
fn has_said_its_zone(node: &NodeStatus) -> bool {
    node.role == RoleName::Source || node.version.is_some() || node.zone.is_some()
}

/// Why a node does not count as having `target`.
fn lacks(node: &NodeStatus, target: GenId) -> Option<String> {
    let has = node.generation.is_some_and(|g| g >= target);
    // while a newer one comes into place the older one still counts as reached; an older program does not say whether all is
    // well meanwhile
    let says_nothing = || node.applied > node.generation || node.state == State::RolledBack;
    let whole = node.consistent || node.intact.unwrap_or_else(says_nothing);
    if has && node.connected && node.drift == 0 && whole {
        return None;
    }
    let which = node.generation.map_or("nothing".into(), |g| format!("generation {g}"));
    let seconds = |ms: Option<u64>| ms.map_or("an unknown time".into(), |ms| format!("{} s", ms / 1000));
    let refresh = node.refresh.as_ref();
    let failing = |r: &&crate::model::RefreshStatus| {
        matches!(r.state, RefreshState::Failing | RefreshState::VerifyFailed) && r.error.is_some()
    };
    Some(if !node.connected {
        format!("not heard for {}; it last confirmed {which}", seconds(node.contact_age_ms))
    } else if let Some(paused) = &node.paused {
        format!("paused by {} for {} s; has {which}", paused.who, paused.for_ms / 1000)
    } else if let Some(plan) = &node.plan {
        format!("refused: {} (syncagent approve, plan {}); has {which}", plan.reason, plan.id)
    } else if let Some(error) = refresh.filter(failing).and_then(|r| r.error.as_ref()) {
        format!("its server has not taken it up: {}", error.what)
    } else if let Some(error) = &node.error {
        format!("{}; has {which}", error.what)
    } else if node.drift > 0 {
        format!("{} edited there", counted_as(node.drift, "path", ("was", "were")))
    } else if has && refresh.is_none_or(|r| r.state == RefreshState::Idle) {
        // edits that nobody has judged yet, or a connection that is just made
        let doing = if node.state == State::Starting { "it starts, and " } else { "" };
        format!("has {which}, but {doing}what is in place there is being looked at")
    } else if node.applied >= Some(target) {
        "in place, and its server has not taken it up yet".into()
    } else {
        let state = serde_json::to_value(node.state).ok();
        let state = state.as_ref().and_then(|s| s.as_str()).unwrap_or("unknown").to_owned();
        format!("has {which} ({state}), {} behind", node.behind.unwrap_or(0))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u64) -> GenId {
        GenId { epoch: 1, number: n }
    }

    fn node(name: &str, generation: u64) -> NodeStatus {
        NodeStatus {
            generation: Some(id(generation)),
            applied: Some(id(generation)),
            connected: true,
            consistent: true,
            zone: Some(if name < "b" { "x" } else { "y" }.into()),
            ..NodeStatus::new(NodeId::new(name).unwrap(), RoleName::Mirror)
        }
    }

    fn tree(nodes: Vec<NodeStatus>) -> TreeStatus {
        TreeStatus { nodes, ..TreeStatus::new("t", "/t") }
    }

    fn missing(status: &TreeStatus, scope: Scope) -> Vec<String> {
        let expected = ["a", "b"].map(|n| NodeId::new(n).unwrap()).into();
        let waited = judge(status, &expected, &scope, Some(id(5))).unwrap();
        waited.missing.iter().map(|(n, why)| format!("{n}: {why}")).collect()
    }

    #[test]
    fn while_the_look_goes_on_nobody_says_that_something_settles() {
        let own = NodeStatus {
            state: State::Current,
            ..NodeStatus::new(NodeId::new("a").unwrap(), RoleName::Source)
        };
        let status = tree(vec![own]);
        assert_eq!(unpublished(&status, false), "the source is still looking for what was written");
        assert_eq!(unpublished(&status, true), "not all that was written is published: it settles");
        // what keeps everything back is so before the look is over
        let hold = crate::model::Hold {
            who: "x".into(),
            command: "job".into(),
            for_ms: 1,
            failed: None,
            failed_for_ms: None,
        };
        let held = TreeStatus { hold: Some(hold), ..status };
        assert!(unpublished(&held, false).contains("held for job"));
    }

    #[test]
    fn who_may_read_and_was_never_heard_is_missing() {
        let status = tree(vec![node("a", 5)]);
        assert!(missing(&status, Scope::All)[0].starts_with("b: it was never heard"));
        assert_eq!(missing(&status, Scope::Node(NodeId::new("a").unwrap())), [""; 0]);
    }

    #[test]
    fn who_has_not_said_its_zone_yet_is_missing_in_each() {
        let nobody = tree(vec![node("a", 5)]);
        for zone in ["x", "y"] {
            let why = &missing(&nobody, Scope::Zone(zone.into()))[0];
            assert!(why.starts_with("b: it was never heard of, so its zone is not known"), "{why}");
        }
        let mut b = node("b", 5);
        (b.zone, b.version, b.consistent) = (None, None, false);
        let why = &missing(&tree(vec![node("a", 5), b.clone()]), Scope::Zone("x".into()))[0];
        assert!(why.starts_with("b: it is connected, but has not reported yet, so its zone"), "{why}");
        // one that has reported, and is in no zone, is in no zone
        b.version = Some("1".into());
        assert_eq!(missing(&tree(vec![node("a", 5), b]), Scope::Zone("x".into())), [""; 0]);
        // and what it said last counts while it is away, also for who waits for it
        let mut b = node("b", 5);
        b.connected = false;
        let gone = tree(vec![node("a", 5), b]);
        assert_eq!(missing(&gone, Scope::Zone("x".into())), [""; 0]);
        assert!(missing(&gone, Scope::Zone("y".into()))[0].starts_with("b: not heard for"));
    }

    #[test]
    fn each_reason_is_said() {
        type Change = fn(&mut NodeStatus);
        let whys: [(&str, Change); 7] = [
            ("b: has generation 1.4 (starting), 1 behind", |n| {
                (n.generation, n.applied, n.behind) = (Some(id(4)), Some(id(4)), Some(1));
            }),
            ("b: not heard for 7 s; it last confirmed generation 1.5", |n| {
                (n.connected, n.contact_age_ms) = (false, Some(7_900));
            }),
            ("b: 2 paths were edited there", |n| (n.drift, n.consistent) = (2, false)),
            ("b: in place, and its server has not taken it up yet", |n| {
                (n.generation, n.consistent) = (Some(id(4)), false);
            }),
            ("b: no space; has generation 1.4", |n| {
                n.generation = Some(id(4));
                n.error = Some(crate::model::Trouble { what: "no space".into(), for_ms: 1 });
            }),
            ("b: has generation 1.5, but it starts, and what is in place there is being looked at", |n| {
                (n.consistent, n.intact) = (false, Some(false));
            }),
            ("b: in place, and its server has not taken it up yet", |n| {
                (n.consistent, n.intact) = (false, Some(false));
                let state = RefreshState::Waiting;
                n.refresh = Some(crate::model::RefreshStatus { state, ..Default::default() });
            }),
        ];
        for (why, change) in whys {
            let mut b = node("b", 5);
            change(&mut b);
            assert_eq!(missing(&tree(vec![node("a", 5), b]), Scope::All), [why]);
        }
    }

    #[test]
    fn a_node_that_goes_on_to_a_newer_generation_has_this_one() {
        let mut b = node("b", 5);
        // an older program does not say whether it is intact
        (b.applied, b.consistent) = (Some(id(6)), false);
        assert_eq!(lacks(&b, id(5)), None);
        b.intact = Some(false);
        assert!(lacks(&b, id(5)).is_some());
        for state in [State::Fetching, State::Committing, State::Refreshing] {
            (b.state, b.applied, b.intact) = (state, Some(id(5)), Some(true));
            assert_eq!(missing(&tree(vec![node("a", 7), b.clone()]), Scope::All), [""; 0]);
            assert!(lacks(&b, id(6)).is_some(), "and not the newer one");
        }
    }

    #[test]
    fn who_confirmed_it_and_cannot_be_heard_or_was_edited_does_not_count() {
        type Change = fn(&mut NodeStatus);
        let changes: [Change; 3] =
            [|n| n.connected = false, |n| n.drift = 1, |n| (n.intact, n.consistent) = (Some(false), false)];
        for change in changes {
            let mut b = NodeStatus { intact: Some(true), ..node("b", 6) };
            assert_eq!(lacks(&b, id(5)), None);
            change(&mut b);
            assert!(lacks(&b, id(5)).is_some());
        }
    }

    #[test]
    fn a_node_that_went_back_has_what_it_went_back_to_and_says_why() {
        let mut b = node("b", 4);
        (b.state, b.consistent) = (State::RolledBack, false);
        let what = "rolled back from generation 1.5: server: no".into();
        b.error = Some(crate::model::Trouble { what, for_ms: 1 });
        assert_eq!(lacks(&b, id(4)), None);
        let why = lacks(&b, id(5)).unwrap();
        assert_eq!(why, "rolled back from generation 1.5: server: no; has generation 1.4");
    }

    #[test]
    fn nobody_at_all_is_an_error() {
        let none = judge(&tree(vec![]), &BTreeSet::new(), &Scope::Zone("z".into()), Some(id(1)));
        assert_eq!(none.unwrap_err().class, Class::Config);
    }
}
