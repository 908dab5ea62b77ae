//! What is ordered, and what is answered.

use super::super::retain::Retention;
use super::NAMED;
use crate::error::PathError;
use crate::model::{GenId, NodeId, counted, listed};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RollbackOrder {
    /// The generation; `None` for the newest one that is not as the present one.
    pub to: Option<GenId>,
    /// Only say what would be done.
    pub dry_run: bool,
    /// Lets exactly the losses of a refused plan through: its id.
    pub approve: Option<String>,
}

/// What was done, or would be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RollbackAnswer {
    /// For people.
    pub message: String,
    /// The generation whose content it is.
    pub to: GenId,
    /// The new generation; `None` in a dry run, or when there was nothing to do.
    pub generation: Option<GenId>,
    /// Paths that came into being.
    pub created: u64,
    /// Files and links whose content was replaced.
    pub updated: u64,
    /// Entries of which only attributes changed.
    pub attrs: u64,
    /// Entries that got another path.
    pub moved: u64,
    /// Entries that went.
    pub deleted: u64,
    /// Bytes brought back.
    pub bytes: u64,
    /// How many contents came, or would come, from which mirror, because this host has them no more.
    #[serde(default)]
    pub mirrors: BTreeMap<NodeId, u64>,
    /// What is kept at present.
    pub retention: Retention,
}

/// How a rollback came only partly into place.
pub(super) fn partly(to: GenId, errors: &[PathError]) -> String {
    format!("a rollback to {to} came only partly into place ({})", named(errors))
}

/// The same of a commit of which nobody knows what it was.
pub(super) fn unfinished(errors: &[PathError]) -> String {
    format!("a commit that was cut off came only partly into place ({})", named(errors))
}

fn named(errors: &[PathError]) -> String {
    listed(errors.iter().map(|e| format!("{}: {}", e.path, e.error)), NAMED, "; ")
}

pub(super) fn counts(a: &RollbackAnswer) -> String {
    let counts = [
        (a.created, "created"),
        (a.updated, "updated"),
        (a.attrs, "attributes"),
        (a.moved, "moved"),
        (a.deleted, "deleted"),
    ];
    let parts: Vec<String> =
        counts.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")).collect();
    if parts.is_empty() {
        "nothing to change".to_owned()
    } else {
        let from: Vec<String> = a.mirrors.iter().map(|(node, n)| format!("{n} from mirror {node}")).collect();
        let from = if from.is_empty() { String::new() } else { format!(" (contents: {})", from.join(", ")) };
        format!("{}, {}{from}", parts.join(", "), counted(a.bytes, "byte"))
    }
}
