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
    /// The newest generation is in place, and the local server has not taken it up yet.
    Refreshing,
    /// Mirror: it went back to the generation before, because its server does not see the newest one.
    RolledBack,
    /// An operator paused it: nothing is published here, or applied.
    Paused,
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

/// Something that an operator ordered, by whom and for how long.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// The user (as the kernel says), with the process's command.
    pub who: String,
    /// Why, in the operator's words.
    pub reason: Option<String>,
    /// Milliseconds since then.
    pub for_ms: u64,
}

/// How far the local server is told of what is in place.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RefreshStatus {
    /// What is being done.
    pub state: RefreshState,
    /// The refresh (its name in the configuration) that is under way or failed.
    pub action: Option<String>,
    /// Attempts since the last success; also such as were overtaken by a change.
    pub attempts: u64,
    /// How often the server could not be told, in a row.
    #[serde(skip_serializing_if = "is_none")]
    pub failures: u64,
    /// What the last attempt said, when it failed; the age is that of the first failure in a row.
    pub error: Option<Trouble>,
}

fn is_none(count: &u64) -> bool {
    *count == 0
}

/// What a refresh is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RefreshState {
    /// The server has all that is in place.
    #[default]
    Idle,
    /// The first attempt is due or waits for the minimum interval.
    Waiting,
    /// The server is being told.
    Running,
    /// The server is being asked whether it sees the change.
    Verifying,
    /// Telling it failed; tried again.
    Failing,
    /// It was told, and does not see the change.
    VerifyFailed,
    /// A word of a newer version.
    #[serde(other)]
    Unknown,
}

/// What a mirror tells its source of one tree.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// What it is doing.
    pub state: State,
    /// The newest generation it has completely: in place, and taken up by the local server where one is told.
    pub applied: Option<GenId>,
    /// The newest generation that is in place.
    pub in_place: Option<GenId>,
    /// The newest generation that the local server was told of.
    pub refreshed: Option<GenId>,
    /// The newest generation that the local server was seen to have.
    pub verified: Option<GenId>,
    /// How the local server is told; `None` where it is not.
    pub refresh: Option<RefreshStatus>,
    /// The tree is paused there.
    pub paused: Option<Mark>,
    /// The node is drained.
    pub drained: Option<Mark>,
    /// Why its load balancer is told to send nothing; empty when it may.
    pub faults: Vec<String>,
    /// Everything it knows of is complete there: nothing pending, no drift.
    pub consistent: bool,
    /// Nothing is known to be wrong with what is in place: what `applied` names is there, as a whole or already on its way to
    /// a newer generation. `None`: an older program, which does not say.
    pub intact: Option<bool>,
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
