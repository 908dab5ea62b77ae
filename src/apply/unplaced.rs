//! What of a commit did not come into place, for whoever starts after a crash: the errors of single paths are
//! known only to the run that met them.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::commit::Committed;
use super::control::Control;
use crate::error::{PathError, Result};
use crate::model::TreePath;

/// The errors of the commit `seq`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Unplaced {
    pub(crate) seq: u64,
    paths: Vec<Unreached>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Unreached {
    path: TreePath,
    error: String,
    /// Not only its attributes: its name is not what it should be.
    name: bool,
}

impl Unplaced {
    pub(super) fn new(seq: u64, errors: &[PathError], failed: &BTreeSet<TreePath>) -> Self {
        let one = |e: &PathError| Unreached {
            path: e.path.clone(),
            error: e.error.clone(),
            name: failed.contains(&e.path),
        };
        Self { seq, paths: errors.iter().map(one).collect() }
    }

    pub(super) fn write(&self, control: &Control) -> Result<()> {
        control.set_unplaced(self)
    }

    /// What is noted of the commit `seq`.
    pub(super) fn read(control: &Control, seq: u64) -> Option<Self> {
        match control.unplaced() {
            Ok(noted) => noted.filter(|noted| noted.seq == seq),
            Err(e) => {
                // something did not come into place; what, nobody knows
                let path = TreePath::root();
                Some(Self { seq, paths: vec![Unreached { path, error: e.to_string(), name: false }] })
            }
        }
    }

    pub(super) fn remove(control: &Control) -> Result<()> {
        control.drop_unplaced()
    }

    /// Hands on what is noted of the commit `seq`, which is done, and forgets it.
    pub(super) fn take(control: &Control, seq: u64) -> Result<Option<Committed>> {
        let noted = Self::read(control, seq);
        Self::remove(control)?;
        Ok(noted.map(Committed::from))
    }
}

impl From<Unplaced> for Committed {
    fn from(noted: Unplaced) -> Self {
        let failed = noted.paths.iter().filter(|p| p.name).map(|p| p.path.clone()).collect();
        let errors = noted.paths.into_iter().map(|p| PathError { path: p.path, error: p.error }).collect();
        Self { errors, failed, ..Self::default() }
    }
}
