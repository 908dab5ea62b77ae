//! The pure difference of two trees. A plan is never held in memory as a list: [`Diff::walk`] produces
//! its steps in order as often as somebody asks (moves, guard, dry run, staging, report), and every
//! pass sees the same steps.

mod count;
mod diff;
mod filter;
mod guard;
mod moves;
#[cfg(test)]
mod tests;

pub use count::{Counted, count};
pub use diff::{Diff, Item, Options, Side, Step};
pub use filter::{CONTROL_DIR, Filter, Verdict};
pub use guard::{Facts, MaxDelete, PlanId, Refusal, Tally, judge};
pub use moves::{Found, Moved, Moves, find_moves};

use std::fmt;

use crate::model::{Kind, Node, escape};

/// What is done to a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Op {
    /// It comes into being.
    Create,
    /// Its content is replaced.
    Update,
    /// Only mode, mtime or owner change.
    Attrs,
    /// It is what another path was.
    Move,
    /// It goes.
    Delete,
}

impl Op {
    /// The fixed word of plan lines and JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Update => "update",
            Self::Attrs => "attrs",
            Self::Move => "move",
            Self::Delete => "delete",
        }
    }
}

impl<H> Step<'_, H> {
    /// What the path is (for a deletion: was).
    pub fn kind(&self) -> Kind {
        self.subject().kind()
    }

    /// A link's target.
    pub fn target(&self) -> Option<&[u8]> {
        if let Node::Link { target } = &self.subject().node { Some(target) } else { None }
    }
}

/// `OP KIND PATH`, then ` -> TARGET` for a link, ` <- OLDPATH` for a move.
impl<H> fmt::Display for Step<'_, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.op.word(), self.kind(), self.path)?;
        if let Some(target) = self.target() {
            write!(f, " -> {}", escape(target))?;
        }
        if let Some(from) = self.from {
            write!(f, " <- {}", from.path)?;
        }
        Ok(())
    }
}
