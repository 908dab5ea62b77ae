//! What is written down of a rollback before anything changes, so that the start after a crash knows what it publishes.
//!
//! A record may outlive what it was written for (its removal is undone by a power cut, or fails; a backup of the state
//! directory is restored), and an order may begin while nobody knows yet how the one before it ended. So a record names the
//! generation that it was planned against, and an order that begins carries the record of the one before it.

use serde::{Deserialize, Serialize};

use super::super::engine::Engine;
use crate::error::Result;
use crate::model::{GenId, Root};

/// In the state directory.
pub(super) const FILE: &str = "rollback.json";

/// A rollback on its way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::agent::source) struct Rolling {
    pub(super) to: GenId,
    pub(super) root: Root,
    /// The approved plan.
    pub(super) approved: Option<String>,
    #[serde(default)]
    pub(super) phase: Phase,
    /// The newest generation when it was planned; `None` in the record of a version that did not say.
    #[serde(default)]
    pub(super) against: Option<GenId>,
    /// The rollback before it, as long as this one may have changed nothing and that one is neither published nor given up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) before: Option<Box<Rolling>>,
    /// Taken up again from `before`: what is staged is not its own.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) taken_up: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Phase {
    /// Nothing in the tree was changed.
    #[default]
    Begun,
    /// Its journal may have been written.
    Staged,
    /// All of it is in place.
    Done,
}

impl Rolling {
    /// What still counts of it at a start, `newest` being the newest generation that this tree ever published, and
    /// `undecided` whether it is known of what was staged last that nothing was done by it.
    pub(super) fn resumed(self, newest: GenId, undecided: bool) -> Option<Self> {
        if self.against.is_some_and(|against| newest > against) {
            // whatever is in the tree now, it came after this
            return None;
        }
        match self.phase {
            Phase::Begun => self.before?.resumed(newest, false),
            Phase::Staged if undecided && !self.taken_up => {
                Rolling { taken_up: true, ..*self.before? }.resumed(newest, false)
            }
            Phase::Staged | Phase::Done => Some(self),
        }
    }
}

impl Engine {
    /// What counts of the record at a start. `own` is the newest generation by the tree's own word: a state directory that
    /// was restored from a backup knows less than the tree.
    ///
    /// # Errors
    /// The generations cannot be read.
    pub(super) fn resumed(&self, own: GenId, undecided: bool) -> Result<Option<Rolling>> {
        let Some(written) = self.tree.state.read::<Rolling>(FILE) else { return Ok(None) };
        let stored = self.tree.store.newest()?.map(|g| g.id).unwrap_or_default();
        Ok(written.resumed(own.max(stored), undecided))
    }

    /// Writes a new one down; what is known of the one before it stays in it until this one changes something.
    pub(super) fn begin_record(&mut self, rolling: Rolling) -> Result<()> {
        let before = self.rolling.clone().map(|before| Box::new(Rolling { before: None, ..before }));
        let rolling = Rolling { before, ..rolling };
        self.tree.state.write(FILE, &rolling)?;
        self.rolling = Some(rolling);
        self.rolled = false;
        Ok(())
    }

    /// Writes down how far it is.
    pub(super) fn enter(&mut self, phase: Phase) -> Result<()> {
        let Some(rolling) = &mut self.rolling else { return Ok(()) };
        rolling.phase = phase;
        if phase == Phase::Done {
            // the tree is not any more what that one left
            rolling.before = None;
        }
        self.tree.state.write(FILE, rolling)
    }

    /// It came to nothing: what was known of one before it counts again. In one step, so that no crash loses it.
    pub(super) fn back_to(&mut self, before: Option<Rolling>, rolled: bool) -> Result<()> {
        let Some(before) = before else { return self.forget_rollback() };
        self.tree.state.write(FILE, &before)?;
        (self.rolling, self.rolled) = (Some(before), rolled);
        Ok(())
    }

    /// It is published, or something else is, or it came to nothing.
    ///
    /// # Errors
    /// The record cannot be removed, or not durably; the next start reads it again.
    pub(in crate::agent::source) fn forget_rollback(&mut self) -> Result<()> {
        self.rolled = false;
        if self.rolling.take().is_some() { self.tree.state.remove(FILE) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Digest, RootHeader};

    fn id(number: u64) -> GenId {
        GenId { epoch: 1, number }
    }

    fn rolling(phase: Phase, against: Option<GenId>) -> Rolling {
        let root =
            Root { object: Digest::of(b"o"), content: Digest::of(b"c"), header: RootHeader::default() };
        Rolling { to: id(1), root, approved: None, phase, against, before: None, taken_up: false }
    }

    #[test]
    fn a_record_counts_until_something_newer_is_published() {
        for phase in [Phase::Staged, Phase::Done] {
            let written = rolling(phase, Some(id(4)));
            assert_eq!(written.clone().resumed(id(4), false), Some(written.clone()));
            // the generations were lost: that proves nothing
            assert_eq!(written.clone().resumed(GenId::default(), false), Some(written.clone()));
            assert_eq!(written.clone().resumed(id(5), false), None);
            assert_eq!(written.resumed(GenId { epoch: 2, number: 1 }, false), None);
            let old = rolling(phase, None);
            assert_eq!(old.clone().resumed(id(5), false), Some(old));
        }
        assert_eq!(rolling(Phase::Begun, Some(id(4))).resumed(id(4), false), None);
    }

    #[test]
    fn an_order_that_only_began_does_not_hide_the_one_before_it() {
        let unresolved = rolling(Phase::Staged, Some(id(4)));
        let begun =
            Rolling { before: Some(Box::new(unresolved.clone())), ..rolling(Phase::Begun, Some(id(4))) };
        assert_eq!(begun.clone().resumed(id(4), false), Some(unresolved));
        assert_eq!(begun.resumed(id(5), false), None);
    }

    #[test]
    fn one_by_which_nothing_was_done_counts_as_one_that_only_began() {
        let later = rolling(Phase::Staged, Some(id(4)));
        assert_eq!(later.clone().resumed(id(4), true), None);
        let unresolved = Rolling { to: id(2), ..later.clone() };
        let later = Rolling { before: Some(Box::new(unresolved.clone())), ..later };
        let taken_up = Rolling { taken_up: true, ..unresolved };
        assert_eq!(later.clone().resumed(id(4), true), Some(taken_up.clone()));
        // also by the start after one that was killed before it had emptied the staging directory
        assert_eq!(taken_up.clone().resumed(id(4), true), Some(taken_up));
        assert_eq!(later.clone().resumed(id(4), false), Some(later));
    }

    #[test]
    fn a_record_of_an_earlier_version_is_read() {
        let mut written = serde_json::to_value(rolling(Phase::Staged, Some(id(4)))).unwrap();
        written.as_object_mut().unwrap().remove("against");
        let read: Rolling = serde_json::from_value(written).unwrap();
        assert_eq!(read, rolling(Phase::Staged, None));
    }
}
