//! What came of a run.

use std::collections::{BTreeSet, HashSet};

use crate::error::PathError;
use crate::model::{Digest, Root, TreePath};
use crate::plan::{Op, PlanId, Refusal, Step, Tally};

/// What a run did, or (dry run, refusal) would do.
#[derive(Debug)]
pub struct Outcome {
    /// Counts of the plan.
    pub tally: Tally,
    /// Content files and bytes copied from the source.
    pub copied: (u64, u64),
    /// Names this plan's losses.
    pub plan_id: PlanId,
    /// Why it was refused.
    pub refusal: Option<Refusal>,
    /// Paths that could not be brought over.
    pub errors: Vec<PathError>,
    /// Those of them whose content arrived and was not what its digest says.
    pub mismatched: Vec<TreePath>,
    /// Paths where the commit displaced what it did not expect; kept in the trash.
    pub drift: Vec<TreePath>,
    /// Fifos, sockets, devices in the source.
    pub specials: u64,
    /// What is not carried over.
    pub dropped: NotCarried,
    /// The destination's content digest now; of a dry run, what it would be.
    pub content: Digest,
    /// What the destination is after a commit.
    pub root: Option<Root>,
    /// Directories that were listed after it.
    pub touched: BTreeSet<TreePath>,
    /// A crash's leftovers were finished first.
    pub recovered: bool,
    /// Files that vanished from the source meanwhile.
    pub vanished: u64,
}

/// Counts of what the copies do not have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NotCarried {
    /// Files with more than one name in the source: copied as separate files.
    pub hard_links: u64,
    /// Files with holes in the source: copied without.
    pub sparse: u64,
    /// Copied files with extended attributes or ACLs.
    pub xattrs: u64,
}

/// What of a plan was not done.
#[derive(Debug, Default)]
pub(in crate::agent) struct Undone {
    /// These paths were not staged.
    pub(in crate::agent) paths: HashSet<TreePath>,
    /// These did not get into place, with all below.
    pub(in crate::agent) trees: BTreeSet<TreePath>,
    /// These did not get their attributes.
    pub(in crate::agent) attrs: HashSet<TreePath>,
}

impl Undone {
    pub(super) fn is_empty(&self) -> bool {
        self.paths.is_empty() && self.trees.is_empty() && self.attrs.is_empty()
    }

    pub(super) fn has(&self, step: &Step<'_, i64>) -> bool {
        if self.paths.contains(step.path) || step.op == Op::Attrs && self.attrs.contains(step.path) {
            return true;
        }
        !self.trees.is_empty() && step.path.ancestors().any(|path| self.trees.contains(&path))
    }
}
