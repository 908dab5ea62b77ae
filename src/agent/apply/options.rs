//! What shall become of a tree.

use std::path::PathBuf;

use crate::apply::Keep;
use crate::disk::OwnerPolicy;
use crate::plan::{Filter, MaxDelete, PlanId};

/// How a new state becomes visible.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activate {
    /// Path by path, by renames.
    #[default]
    InPlace,
    /// The whole directory at once.
    Swap,
}

/// What shall become of a tree, wherever its content comes from.
#[derive(Clone, Debug)]
pub struct TreeOptions {
    /// What belongs to the tree.
    pub filter: Filter,
    /// What comes into place after everything else.
    pub order: Option<Filter>,
    /// Delete nothing.
    pub no_delete: bool,
    /// The guard's limit.
    pub max_delete: MaxDelete,
    /// Lets exactly these losses through.
    pub approve: Option<PlanId>,
    /// Takes over a directory that was never managed.
    pub adopt: bool,
    /// How it becomes visible.
    pub activate: Activate,
    /// Stage here instead of in the tree.
    pub staging: Option<PathBuf>,
    /// What is kept of what goes.
    pub keep: Keep,
    /// What becomes of owners.
    pub owner: OwnerPolicy,
    /// Threads for scanning and copying.
    pub threads: usize,
}

impl TreeOptions {
    /// How the tree's own owners are described, so that they can be compared with the source's.
    pub(in crate::agent) fn tree_policy(&self) -> OwnerPolicy {
        if self.owner == OwnerPolicy::Ignore { OwnerPolicy::Ignore } else { OwnerPolicy::Preserve }
    }
}
