//! Whether the node still has what it confirmed, while a newer generation is on its way: nothing is known to be wrong with
//! what is in place. `consistent` says more, that nothing newer is published at all, so with a source that never rests it
//! is seldom true.
//!
//! Confirming is not enough. Somebody may have edited what was confirmed, and the local server may have taken the edit up:
//! then neither putting it back nor the next generation's files make it whole, only a refresh that began afterwards.

use std::sync::atomic::Ordering;

use super::{MirrorTree, Shared};
use crate::model::{GenId, State};
use crate::plan::Filter;
use crate::watch::{Changes, Watcher};

/// What is known of what is in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sound {
    /// The tree was opened, and nobody compared it yet with what was applied.
    Unknown,
    /// Somebody edited it, and the local server was not told since of how it is.
    Edited,
    /// It is as it was applied, or on its way from there to a newer generation.
    Whole,
}

impl Sound {
    /// The tree was compared with what was applied; `refreshing`: the local server may lack something of what is in place.
    pub(super) fn judged(&mut self, drift: bool, refreshing: bool) {
        *self = match self {
            _ if drift => Self::Edited,
            Self::Whole => Self::Whole,
            // what the server lacks may be what was edited before
            Self::Unknown | Self::Edited if refreshing => Self::Edited,
            Self::Unknown | Self::Edited => Self::Whole,
        };
    }

    /// All that is in place is as it was applied, and the local server, where one is told, has it.
    pub(super) fn told(&mut self) {
        if *self == Self::Edited {
            *self = Self::Whole;
        }
    }
}

impl Shared {
    /// The local server, where one is told, has all that is in place. An edit that is still there is not over.
    pub(super) fn told(&mut self) {
        if self.drift == 0 {
            self.sound.told();
            self.mended = None;
        }
    }

    /// `id` came into place, and nothing is edited any more, unless somebody wrote during the commit.
    pub(super) fn is_mended(&mut self, id: GenId) {
        if self.sound == Sound::Edited && self.mended.is_none() && !self.unjudged {
            self.mended = Some((id, self.complete));
        }
    }

    /// Whether the local server was told since then: of that generation or of a newer one, in an attempt that began when it was
    /// in place. With a source that never rests it never has all that is in place.
    pub(super) fn is_told_of_the_mended(&self) -> bool {
        let told = |(id, before): (GenId, Option<GenId>)| self.complete >= Some(id) && self.complete > before;
        self.mended.is_some_and(told) && !self.unjudged
    }
}

impl MirrorTree {
    /// Something was written here. From the watcher's thread.
    pub(super) fn is_touched(&self) {
        let was = self.touched.swap(true, Ordering::AcqRel);
        if !was && self.shared().state == State::Fetching {
            // the engine's thread may be busy for long
            self.news.notify_one();
        }
    }

    /// What was written here, but for what is excluded.
    pub(super) fn take_counted(&self, watcher: &Watcher, filter: &Filter) -> Changes {
        // before the events are taken: one that comes in between is taken as well
        self.touched.store(false, Ordering::Release);
        let mut changes = watcher.take();
        changes.retain(|path| {
            let (parent, name) = (path.parent().unwrap_or_default(), path.split().1);
            ![false, true].iter().all(|is_dir| filter.excludes(&parent, name, *is_dir))
        });
        changes
    }

    /// Whether nothing is known to be wrong with what is in place. State by state:
    ///
    /// - `current`, `rolled-back`: all of it is there.
    /// - `fetching`: nothing has changed yet, also when the source does not give what is wanted. The engine's thread is busy
    ///   then, so what the watcher has noticed counts as well.
    /// - `committing`, `refreshing`: each path is of this generation or of a newer one, and so is what the server has, as long
    ///   as it does not fail. What was written here before the commit began is not judged yet (`unjudged`), nor is what
    ///   happened during it, from the moment when the newer generation counts as in place until it was looked at.
    /// - `paused`: nothing moves. Edits are not judged then, but where they are noticed they count.
    /// - `starting`: nobody knows yet. `failed`, `incomplete`, `drift`, `refused`: something is wrong, and is named.
    pub(super) fn is_intact(&self, shared: &Shared) -> bool {
        let moves = match self.state_of(shared) {
            State::Current | State::RolledBack | State::Committing | State::Refreshing => true,
            State::Fetching => !self.touched.load(Ordering::Acquire),
            State::Paused => shared.watch.native,
            _ => false,
        };
        let server_fails =
            || self.refresher.get().is_some_and(|r| r.has_new_question() || r.status().error.is_some());
        moves
            && shared.complete.is_some()
            && shared.sound == Sound::Whole
            && shared.drift == 0
            && !shared.unjudged
            && !server_fails()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(steps: &[fn(&mut Sound)]) -> Sound {
        let mut sound = Sound::Unknown;
        steps.iter().for_each(|step| step(&mut sound));
        sound
    }

    const CLEAN: fn(&mut Sound) = |s| s.judged(false, false);
    const CLEAN_UNTOLD: fn(&mut Sound) = |s| s.judged(false, true);
    const EDITED: fn(&mut Sound) = |s| s.judged(true, false);
    const TOLD: fn(&mut Sound) = Sound::told;

    #[test]
    fn an_edit_is_over_when_the_server_was_told_after_it_was_put_back() {
        assert_eq!(after(&[CLEAN]), Sound::Whole);
        // the newer generation that is being told of takes nothing away
        assert_eq!(after(&[CLEAN, CLEAN_UNTOLD]), Sound::Whole);
        assert_eq!(after(&[CLEAN, EDITED]), Sound::Edited);
        // the next generation came before the server was told
        assert_eq!(after(&[CLEAN, EDITED, CLEAN_UNTOLD]), Sound::Edited);
        assert_eq!(after(&[CLEAN, EDITED, CLEAN_UNTOLD, TOLD]), Sound::Whole);
        assert_eq!(after(&[CLEAN, EDITED, TOLD, EDITED]), Sound::Edited);
    }

    #[test]
    fn what_nobody_looked_at_is_not_whole_whatever_the_server_says() {
        assert_eq!(after(&[TOLD]), Sound::Unknown);
        assert_eq!(after(&[CLEAN_UNTOLD]), Sound::Edited);
        assert_eq!(after(&[CLEAN_UNTOLD, TOLD]), Sound::Whole);
    }
}
