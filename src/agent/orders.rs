//! What operators ordered for a tree, written down: a pause, a hold. They outlive the agent.

use serde::{Deserialize, Serialize};

use super::state::TreeState;
use crate::disk::ProcessStat;
use crate::error::{Class, Error, Result};
use crate::model::{Digest, GenId, Generation, Hold, Mark};

const FILE: &str = "orders.json";

/// By whom, why and since when something is so. Times of this host's wall clock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ordered {
    /// The user, as the kernel says, and the process.
    pub who: String,
    /// In the operator's words.
    pub reason: Option<String>,
    /// Milliseconds since 1970.
    pub at_ms: i64,
}

impl Ordered {
    /// As it is shown at `wall_ms`.
    pub fn mark(&self, wall_ms: i64) -> Mark {
        Mark { who: self.who.clone(), reason: self.reason.clone(), for_ms: since(self.at_ms, wall_ms) }
    }
}

fn since(at_ms: i64, wall_ms: i64) -> u64 {
    // a clock that was set back makes no age
    u64::try_from(wall_ms - at_ms).unwrap_or(0)
}

/// A deploy job's hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Held {
    /// Tells it from others.
    pub(super) id: String,
    pub(super) who: String,
    pub(super) command: String,
    pub(super) at_ms: i64,
    pub(super) process: Process,
    pub(super) phase: Phase,
    /// When it failed, by the same clock, where that is another time than it began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) failed_at_ms: Option<i64>,
    /// A failed one whose place it took: in force again should this one's command never begin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) before: Option<Box<Held>>,
}

/// A process that cannot be confused with a later one of the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Process {
    pub(super) pid: i32,
    /// Clock ticks from the boot to its start.
    pub(super) started: u64,
}

/// Where a hold is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Phase {
    /// The command runs.
    Running,
    /// It succeeded; what it wrote is being published.
    Publishing,
    /// It failed or died.
    Failed(String),
}

impl Held {
    /// It failed just now.
    pub(super) fn fails(&mut self, why: &str) {
        (self.phase, self.failed_at_ms) = (Phase::Failed(why.to_owned()), Some(crate::disk::wall_ms()));
    }

    pub(super) fn show(&self, wall_ms: i64) -> Hold {
        let failed = match &self.phase {
            Phase::Failed(why) => Some(why.clone()),
            _ => None,
        };
        let failed_at = self.failed_at_ms.filter(|_| failed.is_some());
        Hold {
            who: self.who.clone(),
            command: self.command.clone(),
            for_ms: since(self.at_ms, wall_ms),
            failed,
            failed_for_ms: failed_at.map(|at| since(at, wall_ms)),
        }
    }
}

/// A mirror went back from a generation that its server does not see. Stays until a newer one is in place: what the
/// mirror has seen must not be forgotten, though an older one is in place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RolledBack {
    /// The newest generation at that time.
    pub(super) from: GenId,
    /// The source's root object of that.
    pub(super) from_object: Digest,
    /// Where to.
    pub(super) to: Generation,
    /// What the server said.
    pub(super) why: String,
    /// By this host's wall clock.
    pub(super) at_ms: i64,
    /// By an operator's order `from` is tried again, or it cannot be gone back from.
    #[serde(default)]
    pub(super) over: bool,
}

impl RolledBack {
    /// Milliseconds since the order, at `wall_ms`.
    pub(super) fn for_ms(&self, wall_ms: i64) -> u64 {
        since(self.at_ms, wall_ms)
    }
}

/// All of a tree.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Orders {
    pub(super) paused: Option<Ordered>,
    pub(super) hold: Option<Held>,
    /// The last hold that ended well, and what came of it: who asks again after a restart is told.
    pub(super) ended: Option<(String, String)>,
    /// The tree is marked with the hold of this id, which is over: the mark could not be removed, for the tree could not be
    /// written to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) void_mark: Option<String>,
    /// Of a mirror.
    pub(super) rolled_back: Option<RolledBack>,
}

impl Orders {
    pub(super) fn read(state: &TreeState) -> Self {
        if let Some(orders) = state.read(FILE) {
            return orders;
        }
        let mut orders = Self::default();
        if state.file(FILE).exists() {
            // a hold may be in it: better held too long than published half
            orders.hold = Some(Held {
                id: "damaged".into(),
                who: "unknown".into(),
                command: "unknown".into(),
                at_ms: crate::disk::wall_ms(),
                process: Process { pid: 0, started: 0 },
                phase: Phase::Failed(format!("the record of holds and pauses ({FILE}) cannot be read")),
                failed_at_ms: None,
                before: None,
            });
        }
        orders
    }

    /// What `change` makes of them, written down: to be put in force now. The caller lets one change at a time through,
    /// without a lock that status needs: the disk works meanwhile.
    pub(super) fn changed(
        mut self,
        state: &TreeState,
        change: impl FnOnce(&mut Self) -> Result<()>,
    ) -> Result<Self> {
        change(&mut self)?;
        state.write(FILE, &self)?;
        Ok(self)
    }

    /// Ends a pause; `none` says that there is none.
    pub(super) fn resume(&mut self, none: String) -> Result<()> {
        self.paused.take().map(drop).ok_or_else(|| Error::new(Class::Config, none))
    }
}

impl Process {
    /// The process `pid`, as long as it is there.
    pub(super) fn of(pid: i32) -> Option<Self> {
        let stat = ProcessStat::of(pid).filter(|stat| !stat.is_zombie)?;
        Some(Self { pid, started: stat.started })
    }

    /// Whether it has not ended.
    pub(super) fn is_there(&self) -> bool {
        Self::of(self.pid) == Some(*self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_start_and_not_by_its_number_alone() {
        let own = Process::of(std::process::id() as i32).unwrap();
        assert!(own.is_there());
        assert!(!Process { started: own.started + 1, ..own }.is_there());
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let other = Process::of(child.id() as i32);
        child.wait().unwrap();
        assert!(other.is_none_or(|p| !p.is_there()));
    }
}
