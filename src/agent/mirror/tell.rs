//! Between what comes into place and the refresh: the local server is told of every path that changed, also when the
//! change took several runs, or a crash lies between.

use super::engine::Engine;
use crate::error::Result;
use crate::model::GenId;
use crate::refresh::Changed;

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
        let untold = std::mem::take(&mut self.untold);
        if !untold.is_empty() || is_new || refresher.in_place() != Some(id) {
            refresher.applied(id, untold)
        } else if expected {
            refresher.unchanged()
        } else {
            Ok(())
        }
    }
}
