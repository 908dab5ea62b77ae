//! Between what comes into place and the refresh: the local server is told of every path that changed, also when the
//! change took several runs, or a crash lies between.

use super::engine::Engine;
use crate::error::Result;
use crate::model::{GenId, TreePath};
use crate::refresh::{Changed, MAX_PATHS};

/// What changed since the local server was told last.
#[derive(Debug, Default)]
pub(super) enum Untold {
    /// Nothing.
    #[default]
    Nothing,
    /// These.
    Paths(Vec<TreePath>),
    /// Nobody knows what, or too much.
    Everything,
}

impl Untold {
    pub(super) fn add(&mut self, path: &TreePath) {
        match self {
            Self::Nothing => *self = Self::Paths(vec![path.clone()]),
            Self::Paths(paths) if paths.len() < MAX_PATHS => paths.push(path.clone()),
            Self::Paths(_) => *self = Self::Everything,
            Self::Everything => {}
        }
    }

    pub(super) fn merge(&mut self, other: Self) {
        match other {
            Self::Nothing => {}
            Self::Paths(paths) => paths.iter().for_each(|path| self.add(path)),
            Self::Everything => *self = Self::Everything,
        }
    }
}

impl Engine {
    /// The tree was opened, with `applied` in it. What was under way when the agent ended may have come into place.
    pub(super) fn tell_of_what_is_there(&mut self, applied: Option<GenId>, recovered: bool) -> Result<()> {
        let (Some(refresher), Some(id)) = (self.tree.refresher.get(), applied) else { return Ok(()) };
        if recovered || refresher.is_unsure() || refresher.in_place() != Some(id) {
            refresher.applied(id, Changed::Everything)?;
        }
        Ok(())
    }

    /// A run is over, and all of `id` is in place.
    pub(super) fn tell(&mut self, id: GenId, is_new: bool) -> Result<()> {
        let Some(refresher) = self.tree.refresher.get() else { return Ok(()) };
        let expected = std::mem::take(&mut self.expected);
        match std::mem::take(&mut self.untold) {
            Untold::Nothing if is_new || refresher.in_place() != Some(id) => {
                refresher.applied(id, Changed::Paths(Vec::new()))
            }
            Untold::Nothing if expected => refresher.unchanged(),
            Untold::Nothing => Ok(()),
            Untold::Paths(paths) => refresher.applied(id, Changed::Paths(paths)),
            Untold::Everything => refresher.applied(id, Changed::Everything),
        }
    }
}
