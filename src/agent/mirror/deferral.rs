//! When what is published is no lag, and how that outlives the agent: `deferred.json` in the tree's state directory.
//!
//! A thread of its own writes it, so that a disk that hangs delays neither status nor contact nor the work on the tree. A
//! crash can lose the last second, and of a span that was open up to [`RENEW`]: that time then counts as lag. Time in which no
//! agent ran counts, too: nobody listened. But a pause goes on meanwhile, as its order does; and so does a refusal, when the
//! first plan that is judged after the start is refused again. Until that is known it is taken to be so.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::{MirrorTree, Shared};
use crate::agent::orders::Ordered;
use crate::agent::state::TreeState;
use crate::disk::{boot_ms, wall_ms};
use crate::lag::{Deferred, Written};
use crate::model::State;

const FILE: &str = "deferred.json";
/// A source that was not heard for so long, in ms, has not answered a report either: it is away, though the question that was
/// sent to it has not failed yet.
const SILENT: u64 = 15_000;
const FORGOTTEN: &str = "after a restart what was deferred counts as lag";
/// It is written so often at most.
const SPACING: Duration = Duration::from_secs(1);
/// A span that goes on is written so often.
const RENEW: Duration = Duration::from_secs(60);

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Record {
    #[serde(flatten)]
    written: Written,
    /// A plan waited for an approval.
    refused: bool,
}

impl Record {
    fn says_nothing(&self) -> bool {
        *self == Self::default()
    }
}

/// What a tree's lag is not.
pub(super) struct Deferral {
    spans: Deferred,
    /// A plan was refused when the agent ended, and none was judged since: for so long (ms) it was deferred at that boot time.
    refused: Option<(u64, u64)>,
    /// Wakes who writes it down.
    changed: SyncSender<()>,
}

impl Deferral {
    /// What the last agent left, with what wakes the writer. Nothing is heard yet.
    pub(super) fn read(state: &TreeState, paused: Option<&Ordered>) -> (Self, Receiver<()>) {
        let record: Record = state.read(FILE).unwrap_or_default();
        let (now, wall) = (boot_ms(), wall_ms());
        let mut spans = Deferred::read(&record.written, now, wall);
        let refused = record.written.open.filter(|_| record.refused).map(|(since, _)| {
            // a clock that was set back makes no age
            (u64::try_from(wall.saturating_sub(since)).unwrap_or(0), now)
        });
        match paused {
            Some(paused) => spans.began(paused.mark(wall).for_ms, now),
            // until the source is heard
            None => spans.set(true, now),
        };
        let (changed, woken) = sync_channel(1);
        (Self { spans, refused, changed }, woken)
    }

    /// Of an age the milliseconds that are lag.
    pub(super) fn counted(&self, age_ms: u64, now: u64) -> u64 {
        match self.refused {
            None => self.spans.counted(age_ms, now),
            Some(_) => self.with_refusal(now).counted(age_ms, now),
        }
    }

    /// With the refusal of which nobody knows yet whether it still holds.
    fn with_refusal(&self, now: u64) -> Deferred {
        let mut spans = self.spans.clone();
        if let Some((for_ms, at)) = self.refused {
            spans.began(for_ms.saturating_add(now.saturating_sub(at)), now);
        }
        spans
    }

    fn set(&mut self, deferred: bool, now: u64) {
        if self.spans.set(deferred, now) {
            self.wake();
        }
    }

    /// It was deferred for so long before anybody looked.
    pub(super) fn began(&mut self, for_ms: u64, now: u64) {
        if self.spans.began(for_ms, now) {
            self.wake();
        }
    }

    /// What was before does not count.
    pub(super) fn begin_anew(&mut self, now: u64) {
        self.spans.begin_anew(now);
        self.wake();
    }

    /// The tree's state says whether a plan that was refused before the start is refused again.
    fn judged(&mut self, state: State, now: u64) {
        if self.refused.is_none() {
            return;
        }
        match state {
            State::Refused => self.spans = self.with_refusal(now),
            State::Committing
            | State::Current
            | State::Incomplete
            | State::Drift
            | State::RolledBack
            // whatever a plan would say: it is not for a refusal that nothing comes
            | State::Failed => {}
            _ => return,
        }
        self.let_through();
    }

    /// What was refused before the start is not refused any more.
    pub(super) fn let_through(&mut self) {
        if self.refused.take().is_some() {
            self.wake();
        }
    }

    pub(super) fn wake(&self) {
        // a thread that was woken already looks anyway, and one that ended needs no waking
        let _ = self.changed.try_send(());
    }
}

impl Shared {
    /// Milliseconds of lag: the age of the oldest generation that is published and not complete here, without the time
    /// in which the tree was paused, refused or rolled back, or the source could not be heard.
    pub(super) fn lag_ms(&self, now: u64) -> Option<u64> {
        // who went back begins to count anew, and lacks nothing until the source says what is newer
        let anew = || (self.connected && self.gone_back().is_some()).then_some(0);
        self.lag.lag_ms(now).map(|age| self.deferred.counted(age, now)).or_else(anew)
    }

    /// To be called whenever one of these may have changed.
    pub(super) fn defer(&mut self, now: u64) {
        self.deferred.judged(self.state, now);
        let deferred = self.orders.paused.is_some()
            || self.state == State::Refused
            || !self.connected
            || self.gone_back().is_some();
        self.deferred.set(deferred, now);
    }

    /// What to write down now, and what that is made from, by which a change shows.
    fn record(&self, stopped: bool) -> (Deferred, Record) {
        let now = boot_ms();
        let mut spans = self.deferred.with_refusal(now);
        // nobody will be there to see that question fail
        if let Some(unheard) = self.lag.contact_age_ms(now).filter(|age| stopped && *age > SILENT) {
            spans.began(unheard, now);
        }
        let written = spans.written(self.lag.lag_ms(now), now, wall_ms());
        let refused = self.state == State::Refused || self.deferred.refused.is_some();
        (spans, Record { written, refused })
    }
}

/// Starts who writes down when `tree` was deferred, until it is stopped; once more then.
pub(super) fn keep(tree: &Arc<MirrorTree>, woken: Receiver<()>) -> Option<JoinHandle<()>> {
    let name = format!("deferred {}", tree.name());
    let kept = tree.clone();
    let thread = std::thread::Builder::new().name(name).spawn(move || write(&kept, &woken));
    let warn = |e: &_| tracing::warn!(tree = tree.name(), "cannot start a thread: {e}; {FORGOTTEN}");
    thread.inspect_err(warn).ok()
}

fn write(tree: &MirrorTree, woken: &Receiver<()>) {
    let mut there: Record = tree.state.read(FILE).unwrap_or_default();
    let (mut seen, mut looked, mut failed) = (None, Instant::now(), false);
    loop {
        let mut renews = false;
        match woken.recv_timeout(RENEW.saturating_sub(looked.elapsed())) {
            Ok(()) => {}
            Err(RecvTimeoutError::Timeout) => renews = true,
            Err(RecvTimeoutError::Disconnected) => return,
        }
        // what begins and ends at once is written once
        while !tree.stopped() && looked.elapsed() < SPACING {
            let _ = woken.recv_timeout(SPACING.saturating_sub(looked.elapsed()));
        }
        looked = Instant::now();
        let stopped = tree.stopped();
        let (spans, record) = tree.shared().record(stopped);
        let goes_on = (stopped || renews) && record.written.open.is_some();
        let differs = goes_on || failed || record.refused != there.refused || seen.as_ref() != Some(&spans);
        if differs && !(record.says_nothing() && there.says_nothing()) {
            match tree.state.write(FILE, &record) {
                Ok(()) => (failed, there, seen) = (false, record, Some(spans)),
                Err(e) => {
                    if !std::mem::replace(&mut failed, true) {
                        let tree = tree.name();
                        tracing::warn!(tree, "{e}; {FORGOTTEN}");
                    }
                }
            }
        }
        if stopped {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As read at the start of an agent, `record` left by another one.
    fn read(record: &Record) -> (Deferral, u64, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let state = TreeState::open(dir.path(), std::path::Path::new("/t")).unwrap();
        state.write(FILE, record).unwrap();
        (Deferral::read(&state, None).0, boot_ms(), dir)
    }

    /// An agent ended 10 s ago, after a plan had been refused for 60 s, and 30 s before that a pause of 5 s had ended.
    fn refused(refused: bool) -> Record {
        let wall = wall_ms();
        let (open, spans) = (Some((wall - 70_000, wall - 10_000)), vec![(wall - 105_000, wall - 100_000)]);
        Record { written: Written { open, spans, floor: None }, refused }
    }

    #[track_caller]
    fn assert_near(is: u64, expected: u64) {
        assert!(is.abs_diff(expected) <= 1_000, "{is} is not about {expected}");
    }

    #[test]
    fn the_time_without_an_agent_is_lag() {
        let (d, now, _dir) = read(&refused(false));
        assert_near(d.counted(110_000, now), 110_000 - 65_000);
        assert_near(d.counted(10_000, now), 10_000);
    }

    #[test]
    fn a_refusal_goes_on_until_the_plan_is_judged_and_if_it_is_refused_again() {
        let (mut d, now, _dir) = read(&refused(true));
        assert_near(d.counted(110_000, now), 110_000 - 75_000);
        // its state while it looks, and the source was heard
        d.judged(State::Fetching, now);
        d.set(false, now);
        assert_near(d.counted(10_000, now), 0);
        d.judged(State::Refused, now);
        d.set(true, now);
        assert!(d.refused.is_none());
        assert_near(d.counted(70_000, now), 0);
        assert_near(d.counted(110_000, now), 110_000 - 75_000);
    }

    #[test]
    fn a_plan_that_is_not_refused_any_more_makes_the_time_without_an_agent_lag() {
        let (mut d, now, _dir) = read(&refused(true));
        d.set(false, now);
        d.judged(State::Committing, now);
        assert_near(d.counted(10_000, now), 10_000);
        assert_near(d.counted(110_000, now), 110_000 - 65_000);
    }

    #[test]
    fn without_a_record_or_with_a_damaged_one_everything_counts() {
        let dir = tempfile::tempdir().unwrap();
        let state = TreeState::open(dir.path(), std::path::Path::new("/t")).unwrap();
        for text in [None, Some("{\"spans\": [[1]]"), Some("[]"), Some("")] {
            if let Some(text) = text {
                std::fs::write(state.file(FILE), text).unwrap();
            }
            let (d, _woken) = Deferral::read(&state, None);
            assert_near(d.counted(50_000, boot_ms()), 50_000);
        }
    }
}
