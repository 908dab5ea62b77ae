//! What a node says of a tree: to the source over the network, and to people in `status`.

use serde::{Deserialize, Serialize};

use super::{Digest, GenId};

/// What a node is doing with a tree. Exactly one holds; `error` says more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Looking at what is there; nothing is known yet.
    #[default]
    Starting,
    /// Source: all that is settled is published. Mirror: it has the source's newest generation.
    Current,
    /// Source: a change waits for its settle time, or is being scanned.
    Settling,
    /// Mirror: a newer generation is being fetched and staged.
    Fetching,
    /// Mirror: a newer generation is being made visible.
    Committing,
    /// A guard refused; `plan` names what waits for an approval.
    Refused,
    /// Mirror: somebody edited the tree here, and it is left so (`drift = "report"`).
    Drift,
    /// Mirror: applied but for some paths, which are named.
    Incomplete,
    /// Source: it is older than what its mirrors have; waits for `source reset`.
    Superseded,
    /// Source: the hold file is there; nothing is published.
    Held,
    /// Mirror: the source cannot be reached.
    Disconnected,
    /// It failed and is tried again.
    Failed,
    /// A word of a newer version.
    #[serde(other)]
    Unknown,
}

/// A refused plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedPlan {
    /// What `approve` takes.
    pub id: String,
    /// Why it was refused.
    pub reason: String,
    /// Files and links that would go or become empty.
    pub lost: u64,
}

/// Something that is wrong, and for how long.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    /// What was attempted, the cause, and what to do.
    pub what: String,
    /// Milliseconds since it began.
    pub for_ms: u64,
}

/// What a mirror tells its source of one tree.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// What it is doing.
    pub state: State,
    /// The newest generation it has completely.
    pub applied: Option<GenId>,
    /// The content digest of its tree.
    pub content: Option<Digest>,
    /// Age in milliseconds of the oldest generation that it has not applied; 0 when it has all; `None` when unknown.
    pub lag_ms: Option<u64>,
    /// Paths that somebody edited there since the last generation.
    pub drift: u64,
    /// What was refused.
    pub plan: Option<RefusedPlan>,
    /// What is wrong.
    pub error: Option<Trouble>,
    /// Generations applied since the last report: milliseconds from their publication until they were in place.
    pub converged: Vec<(GenId, u64)>,
    /// The node's zone.
    pub zone: Option<String>,
    /// The program's version there.
    pub version: String,
}
