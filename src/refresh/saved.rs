//! `refresh.json`: what outlives the agent.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::changed::Changed;
use crate::model::GenId;

/// What is known of the server. Unknown fields of a newer version are passed over.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Saved {
    /// The generation that was applied last.
    pub in_place: Option<GenId>,
    /// A change is under way.
    pub expecting: Option<GenId>,
    /// A change was under way when the agent ended: anything may have changed.
    pub unsure: bool,
    /// What the server was not told of, or not seen to have.
    pub pending: Option<Pending>,
    pub refreshed: Option<GenId>,
    pub verified: Option<GenId>,
    pub complete: Option<GenId>,
    /// The generation for which the node was ordered to go back.
    pub rolled_back: Option<GenId>,
    /// Since the last success.
    pub attempts: u64,
    /// By rule, how often it could not be told, in a row.
    pub failed: BTreeMap<String, u64>,
    pub fault: Option<Fault>,
    /// By rule, why the server does not have what it was told of, in all the time that it was given and whatever came into
    /// place since; until it agrees.
    pub disagreed: BTreeMap<String, Fault>,
    /// By rule, the generation that was in place when it was told last.
    pub told: BTreeMap<String, GenId>,
    /// The newest generation that the server had itself, not only newer files.
    pub had: Option<GenId>,
    /// By rule, what it asked when `complete` came about; empty: nothing. `None` in what a version left that did not note it.
    pub asks: Option<BTreeMap<String, String>>,
    /// Rules whose question is new since then, so that `complete` says nothing of it.
    pub unasked: BTreeSet<String>,
    /// By rule with a minimum interval, when it was told last, by this host's wall clock.
    pub began: BTreeMap<String, i64>,
}

/// A generation that is not complete.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Pending {
    pub generation: GenId,
    /// Since the last one that was complete.
    pub changed: Changed,
    /// By rule.
    pub done: BTreeMap<String, Progress>,
}

/// How far one rule is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Progress {
    /// Of the rule that this is about.
    pub print: String,
    pub told: bool,
    pub verified: bool,
    /// How often it was told again because it did not agree.
    pub retold: u64,
    /// It did not agree, and that is shown.
    pub verify_failed: bool,
}

/// What went wrong last.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Fault {
    pub rule: String,
    /// In asking, not in telling.
    pub asked: bool,
    pub what: String,
    /// When it began, by this host's wall clock.
    pub wall: i64,
}
