//! What of a tree is in no published state: what somebody wrote into it. Whoever displaces that must not lose it,
//! whatever else is kept.

use std::collections::BTreeSet;

use crate::error::Result;
use crate::model::TreePath;
use crate::plan::{Diff, Moves, Op, Side};

/// The paths at which a tree has what the published state has not there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Unpublished {
    /// Of a directory that is not published at all only its own.
    pub(super) paths: BTreeSet<TreePath>,
    /// The files' bytes.
    pub(super) bytes: u64,
}

/// From the difference of a tree as it is (old) to a published state (new).
///
/// # Errors
/// A directory's description cannot be read.
pub(super) fn unpublished<O: Side, N: Side>(diff: &Diff<'_, O, N>) -> Result<Unpublished> {
    let mut found = Unpublished::default();
    diff.walk(&Moves::default(), &mut |step| {
        let Some(old) = step.old else { return Ok(()) };
        // what changes its kind is deleted (and counted), then created
        if matches!(step.op, Op::Delete | Op::Update) {
            found.bytes = found.bytes.saturating_add(old.entry.size());
        }
        let goes = match step.op {
            Op::Delete => !step.covered,
            Op::Update | Op::Create => true,
            Op::Attrs | Op::Move => false,
        };
        if goes {
            found.paths.insert(step.path.clone());
        }
        Ok(())
    })?;
    Ok(found)
}
