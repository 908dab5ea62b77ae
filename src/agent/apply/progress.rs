//! How far a run is, and what it tells while it goes on.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use crate::apply::StageCounters;
use crate::error::{PathError, Result};
use crate::model::TreePath;
use crate::plan::Step;
use crate::scan::Counters;

/// Where a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Waiting for the lock, finishing what a crash left.
    Starting,
    /// Looking at both trees.
    Scanning,
    /// Counting and judging.
    Planning,
    /// Bringing content.
    Staging,
    /// Renaming.
    Committing,
    /// Index, marker, trash.
    Finishing,
}

/// Progress of a run; read it from another thread.
#[derive(Debug, Default)]
pub struct Progress {
    phase: AtomicU8,
    /// The source's scan.
    pub source: Counters,
    /// The tree's scan.
    pub tree: Counters,
    /// The staging.
    pub stage: StageCounters,
    /// Files to copy.
    pub files: AtomicU64,
    /// Bytes to copy.
    pub bytes: AtomicU64,
}

impl Progress {
    /// Where the run is.
    pub fn phase(&self) -> Phase {
        use Phase::{Committing, Finishing, Planning, Scanning, Staging, Starting};
        let all = [Starting, Scanning, Planning, Staging, Committing, Finishing];
        all.get(usize::from(self.phase.load(Ordering::Relaxed))).copied().unwrap_or(Finishing)
    }

    pub(in crate::agent) fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Relaxed);
    }
}

/// What a run tells while it goes on.
pub trait Monitor: Sync {
    /// An operation of the plan (dry run) or that was done, in the plan's order.
    ///
    /// # Errors
    /// Output failed; the run has done its work by then.
    fn step(&self, step: &Step<'_, i64>) -> Result<()>;

    /// Everything is staged; nothing is visible yet.
    ///
    /// # Errors
    /// The commit shall not be; what is staged stays for the next run.
    fn staged(&self, _vanished: u64) -> Result<()> {
        Ok(())
    }

    /// Everything is staged but for `paths`, which failed (`errors`) or vanished. Comes before [`Monitor::staged`].
    ///
    /// # Errors
    /// As [`Monitor::staged`].
    fn lacks(&self, _paths: &BTreeSet<TreePath>, _errors: &[PathError]) -> Result<()> {
        Ok(())
    }

    /// The commit is done and durable; `failed` and `vanished` paths are not in place.
    fn committed(&self, _failed: usize, _vanished: u64) {}

    /// Whether anybody listens to the steps.
    fn wants_steps(&self) -> bool {
        true
    }

    /// The root directory's own attributes change, or did.
    ///
    /// # Errors
    /// As [`Monitor::step`].
    fn root_attrs(&self) -> Result<()>;
}
