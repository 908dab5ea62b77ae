//! What an agent tells people and programs: the document behind `syncagent status --json`, described in
//! docs/status.md. Within one `schema` number fields and words are only added, so that versions can
//! mix: unknown fields are ignored, missing ones are empty, unknown words are read as `unknown`.

use serde::{Deserialize, Serialize};

use super::{Digest, GenId, Mark, NodeId, RefreshStatus, RefusedPlan, State, Trouble};

/// One agent's view of its trees.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The agent's version.
    pub version: String,
    /// [`Status::SCHEMA`]; grows when a field changes its meaning or goes.
    pub schema: u32,
    /// The node that the agent runs on.
    pub node: NodeId,
    /// The node's zone.
    pub zone: Option<String>,
    /// The cluster's name.
    pub cluster: String,
    /// Milliseconds since the agent started.
    pub started_ms_ago: u64,
    /// Whole days until the node's certificate expires; negative when it has; `None` without TLS.
    pub certificate_days_left: Option<i64>,
    /// The node takes no traffic, by order.
    #[serde(default)]
    pub drained: Option<Mark>,
    /// In the order of their names.
    #[serde(default)]
    pub trees: Vec<TreeStatus>,
}

impl Status {
    /// The schema that this version writes.
    pub const SCHEMA: u32 = 1;
}

/// One tree.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TreeStatus {
    /// Its name in the configuration.
    pub name: String,
    /// Where it lies on this node; bytes that cannot be printed as `\xNN`.
    pub path: String,
    /// The newest generation published (source) or heard of (mirror).
    pub head: Option<GenId>,
    /// Milliseconds since the head was published.
    pub head_age_ms: Option<u64>,
    /// The content digest of the head, or of what this node has of it.
    pub content: Option<Digest>,
    /// Files and links in it.
    pub files: Option<u64>,
    /// How changes are noticed here.
    #[serde(default)]
    pub watch: WatchStatus,
    /// Source: milliseconds since the oldest change that is not published.
    pub unpublished_age_ms: Option<u64>,
    /// Source: paths whose previous entry stays published because they do not settle; the longest held first, the first few.
    #[serde(default)]
    pub held: Vec<HeldPath>,
    /// How many are held in all.
    #[serde(default)]
    pub held_count: u64,
    /// The holder, when another process has the tree's lock.
    pub lock: Option<String>,
    /// Why the agent could not write the tree when it opened it; `None` when it could, or has not opened it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unwritable: Option<String>,
    /// All mirrors together (source) or this node (mirror).
    pub convergence: Option<Convergence>,
    /// Source: a deploy job holds the tree, or one that failed left it so.
    #[serde(default)]
    pub hold: Option<Hold>,
    /// The newest generations, newest first, the first few.
    #[serde(default)]
    pub recent: Vec<Recent>,
    /// This node first, then by id.
    #[serde(default)]
    pub nodes: Vec<NodeStatus>,
    /// Requests for this tree that were refused since the agent started.
    #[serde(default)]
    pub refused_peers: u64,
}

impl TreeStatus {
    /// A tree of which nothing is known.
    pub fn new(name: &str, path: &str) -> Self {
        Self {
            name: name.to_owned(),
            path: path.to_owned(),
            head: None,
            head_age_ms: None,
            content: None,
            files: None,
            watch: WatchStatus::default(),
            unpublished_age_ms: None,
            held: Vec::new(),
            held_count: 0,
            lock: None,
            unwritable: None,
            convergence: None,
            hold: None,
            recent: Vec::new(),
            nodes: Vec::new(),
            refused_peers: 0,
        }
    }
}

impl NodeStatus {
    /// A node of which nothing is known.
    pub fn new(node: NodeId, role: RoleName) -> Self {
        Self {
            node,
            zone: None,
            role,
            state: State::Starting,
            generation: None,
            applied: None,
            refreshed: None,
            verified: None,
            consistent: false,
            intact: None,
            refresh: None,
            paused: None,
            drained: None,
            faults: Vec::new(),
            empty: None,
            behind: None,
            lag_ms: None,
            contact_age_ms: None,
            confirmed_age_ms: None,
            drift: 0,
            plan: None,
            error: None,
            convergence: None,
            version: None,
            connected: false,
        }
    }
}

/// How changes are noticed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct WatchStatus {
    /// By the kernel's events; otherwise by scanning again and again.
    pub native: bool,
    /// Directories watched.
    pub directories: u64,
    /// Why it is not native, and what to do.
    pub reason: Option<String>,
}

/// A deploy job's "not yet": nothing is published while it lasts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// The user (as the kernel says) and the process.
    pub who: String,
    /// What it runs.
    pub command: String,
    /// Milliseconds since it began.
    pub for_ms: u64,
    /// It failed or died, and why; the tree stays held until the next one that succeeds, or a release.
    pub failed: Option<String>,
    /// Milliseconds since it failed; `None` while it has not, or where that was not written down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed_for_ms: Option<u64>,
}

impl Hold {
    /// Milliseconds since it is as it is: since it failed, otherwise since it began.
    pub fn since_ms(&self) -> u64 {
        self.failed_for_ms.unwrap_or(self.for_ms)
    }
}

/// A published generation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recent {
    /// Which.
    pub generation: GenId,
    /// Milliseconds since it was published.
    pub age_ms: u64,
    /// Files and links in it.
    pub files: u64,
    /// Paths that it created, changed or moved.
    pub changed: u64,
    /// Paths that it deleted.
    pub deleted: u64,
    /// Bytes that it brought.
    pub bytes: u64,
}

/// A path that is held back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldPath {
    /// Relative to the tree; bytes that cannot be printed as `\xNN`.
    pub path: String,
    /// What it waits for.
    pub why: String,
    /// Milliseconds since it is held.
    pub for_ms: u64,
}

/// What a node is to a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RoleName {
    /// Publishes.
    Source,
    /// Pulls.
    Mirror,
    /// A word of a newer version.
    #[serde(other)]
    Unknown,
}

/// One node and one tree.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// The node.
    pub node: NodeId,
    /// Its zone.
    pub zone: Option<String>,
    /// What it is to the tree.
    pub role: RoleName,
    /// What it is doing.
    pub state: State,
    /// The newest generation that it has completely, as last confirmed: in place, and taken up by the local server where
    /// one is told.
    pub generation: Option<GenId>,
    /// The newest generation that is in place.
    #[serde(default)]
    pub applied: Option<GenId>,
    /// The newest one that the local server was told of; `None` where none is told.
    #[serde(default)]
    pub refreshed: Option<GenId>,
    /// The newest one that the local server was seen to have; `None` where it is not asked.
    #[serde(default)]
    pub verified: Option<GenId>,
    /// It has everything that is published, its server too, and nobody edited anything.
    #[serde(default)]
    pub consistent: bool,
    /// It has `generation`, and nothing is known to be wrong with what is in place; a newer one may be on its way. `None`: an
    /// older program, which does not say.
    #[serde(default)]
    pub intact: Option<bool>,
    /// How the local server is told; `None` where it is not.
    #[serde(default)]
    pub refresh: Option<RefreshStatus>,
    /// The tree is paused there.
    #[serde(default)]
    pub paused: Option<Mark>,
    /// The node takes no traffic, by order.
    #[serde(default)]
    pub drained: Option<Mark>,
    /// Why its load balancer is told to send nothing; empty when it may.
    #[serde(default)]
    pub faults: Vec<String>,
    /// A mirror's own row: nothing was ever completely applied to its directory, and there were no files before; `None`
    /// when that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub empty: Option<bool>,
    /// Published generations that it has not applied; at least so many from 10,000 on.
    pub behind: Option<u64>,
    /// Milliseconds since the oldest published generation that it has not applied; 0 when it has all.
    pub lag_ms: Option<u64>,
    /// Milliseconds: a mirror's row on the source, since it was heard; on the mirror, since the source was heard.
    pub contact_age_ms: Option<u64>,
    /// Milliseconds since it last confirmed `generation`.
    pub confirmed_age_ms: Option<u64>,
    /// Paths that somebody edited there since the last generation.
    #[serde(default)]
    pub drift: u64,
    /// What a guard refused there.
    pub plan: Option<RefusedPlan>,
    /// What is wrong there.
    pub error: Option<Trouble>,
    /// From publication until in place there.
    pub convergence: Option<Convergence>,
    /// The program's version there.
    pub version: Option<String>,
    /// A mirror's row: whether it has a connection to its source. The source's own row: always.
    #[serde(default)]
    pub connected: bool,
}

/// Milliseconds from a generation's publication until it was in place on a mirror.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Convergence {
    /// Put in place within the last hour.
    pub hour: Percentiles,
    /// The newest 1,000 generations.
    pub last_1000: Percentiles,
    /// All since the agent's start.
    pub total: Total,
}

/// Samples counted since the agent's start; both only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Total {
    /// How many.
    pub count: u64,
    /// Their sum, in milliseconds.
    pub sum_ms: u64,
}

/// Percentiles by nearest rank: the smallest sample that at least that part of all samples does not exceed. All 0 when there are none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Percentiles {
    /// How many samples there are.
    pub count: u64,
    /// Half of all took no longer, in milliseconds.
    pub p50_ms: u64,
    /// 95 % took no longer.
    pub p95_ms: u64,
    /// 99 % took no longer.
    pub p99_ms: u64,
    /// The longest.
    pub max_ms: u64,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::{Value, json};

    use super::*;

    fn read(file: &str) -> String {
        std::fs::read_to_string(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap()
    }

    fn frozen() -> Value {
        serde_json::from_str(&read("fixtures/status/schema-1.json")).unwrap()
    }

    #[test]
    fn the_frozen_document_of_schema_1_is_read_and_written_again_in_full() {
        let status: Status = serde_json::from_value(frozen()).unwrap();
        assert_eq!(status.schema, Status::SCHEMA);
        assert_eq!(serde_json::to_value(&status).unwrap(), frozen());
    }

    #[test]
    fn what_a_newer_version_adds_is_passed_over() {
        let mut document = frozen();
        document["weather"] = json!("fine");
        let node = &mut document["trees"][0]["nodes"][1];
        (node["state"], node["role"], node["mood"]) =
            (json!("promoting"), json!("shared"), json!({ "a": [1] }));
        let status: Status = serde_json::from_value(document).unwrap();
        let node = &status.trees[0].nodes[1];
        assert_eq!((node.state, node.role), (State::Unknown, RoleName::Unknown));
    }

    #[test]
    fn what_an_older_version_lacks_is_empty() {
        let document = json!({ "version": "0", "schema": 1, "node": "a", "cluster": "c", "started_ms_ago": 1, "trees": [
            { "name": "t", "path": "/t", "nodes": [{ "node": "a", "role": "source", "state": "current" }] }
        ]});
        let status: Status = serde_json::from_value(document).unwrap();
        assert_eq!((status.trees[0].held_count, status.trees[0].nodes[0].lag_ms), (0, None));
    }

    #[test]
    fn every_field_is_documented_and_the_example_is_the_frozen_document() {
        fn names(value: &Value, into: &mut BTreeSet<String>) {
            match value {
                Value::Object(fields) => fields.iter().for_each(|(name, value)| {
                    into.insert(name.clone());
                    names(value, into);
                }),
                Value::Array(values) => values.iter().for_each(|v| names(v, into)),
                _ => {}
            }
        }
        let page = read("docs/status.md");
        let mut all = BTreeSet::new();
        names(&frozen(), &mut all);
        for name in all {
            assert!(page.contains(&format!("| `{name}` |")), "docs/status.md says nothing of {name}");
        }
        let example = page.split("```json\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
        assert_eq!(serde_json::from_str::<Value>(example).unwrap(), frozen());
    }
}
