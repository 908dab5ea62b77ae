//! What was deferred, as it outlives the agent: by this host's wall clock, because the boot's clock does not outlive
//! the boot. A wall clock that was set meanwhile moves the spans; it never makes any that reach beyond now or are longer
//! than they were.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::{Deferred, MOST, signed};

/// Spans written down at most; the newest ones.
const WRITTEN: usize = 200;

/// Times in milliseconds since 1970, by this host's wall clock. Unknown fields of a newer version are passed over.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Written {
    /// Spans that ended: from, to. Oldest first.
    pub spans: Vec<(i64, i64)>,
    /// The span that had not ended: since when, and until when it was known to last.
    pub open: Option<(i64, i64)>,
    /// Nothing before it counts.
    pub floor: Option<i64>,
}

impl Deferred {
    /// As it is written down at `now_ms`, which is `wall_ms` by the wall clock. Of what ended before the age `age_ms` of the
    /// oldest generation that is not complete nothing can matter any more; without an age everything can.
    pub fn written(&self, age_ms: Option<u64>, now_ms: u64, wall_ms: i64) -> Written {
        let now = signed(now_ms);
        let from = age_ms.map_or(i64::MIN, |age| now.saturating_sub(signed(age)));
        let wall = |at: i64| wall_ms.saturating_sub(now.saturating_sub(at));
        let mut spans: Vec<_> = self.spans.iter().filter(|(_, end)| *end > from).collect();
        spans.drain(..spans.len().saturating_sub(WRITTEN));
        Written {
            spans: spans.into_iter().map(|&(begin, end)| (wall(begin), wall(end))).collect(),
            open: self.since.map(|since| (wall(since), wall_ms)),
            floor: self.floor.filter(|floor| *floor > from).map(wall),
        }
    }

    /// What an agent that ended left behind, read at `now_ms`, which is `wall_ms` by the wall clock. A span that had not ended
    /// ends when it was last known to last.
    pub fn read(written: &Written, now_ms: u64, wall_ms: i64) -> Self {
        let now = signed(now_ms);
        let boot = |at: i64| now.saturating_sub(wall_ms.saturating_sub(at));
        // a wall clock that was set back must not make spans that are still to come
        let span = |&(begin, end): &(i64, i64)| (boot(begin), boot(end).min(now));
        let mut all: Vec<_> = written.spans.iter().chain(&written.open).map(span).collect();
        all.retain(|(begin, end)| begin < end);
        all.sort_unstable();
        let mut spans: VecDeque<(i64, i64)> = VecDeque::new();
        for (begin, end) in all {
            match spans.back_mut().filter(|(_, last)| *last >= begin) {
                Some((_, last)) => *last = end.max(*last),
                None => spans.push_back((begin, end)),
            }
        }
        spans.drain(..spans.len().saturating_sub(MOST));
        // a floor that is still to come would hide everything
        Self { since: None, spans, floor: written.floor.map(boot).filter(|floor| *floor <= now) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A clock in 2026.
    const WALL: i64 = 1_780_000_000_000;

    fn spans(of: &[(u64, u64)]) -> Deferred {
        let mut d = Deferred::default();
        for &(from, to) in of {
            d.set(true, from);
            d.set(false, to);
        }
        d
    }

    #[test]
    fn a_span_that_was_open_ends_when_it_was_last_written_and_the_time_without_an_agent_counts() {
        let mut d = spans(&[(10_000, 20_000)]);
        d.set(true, 50_000);
        let written = d.written(None, 60_000, WALL);
        assert_eq!(written.spans, [(WALL - 50_000, WALL - 40_000)]);
        assert_eq!(written.open, Some((WALL - 10_000, WALL)));
        // 5 s later, and after a boot 2 s ago
        let d = Deferred::read(&written, 2_000, WALL + 5_000);
        assert_eq!(d.counted(55_000, 2_000), 55_000 - 10_000 - 10_000);
        assert_eq!(d.counted(5_000, 2_000), 5_000, "nothing was deferred while no agent ran");
        assert_eq!(d.counted(8_000, 2_000), 5_000);
    }

    #[test]
    fn what_cannot_matter_any_more_is_not_written() {
        let mut d = spans(&[(10, 20), (30, 40), (50, 60)]);
        d.begin_anew(25);
        assert_eq!(d.written(Some(65), 100, WALL).spans.len(), 2, "20 ended before 35");
        assert_eq!(d.written(Some(65), 100, WALL).floor, None);
        assert_eq!(d.written(Some(90), 100, WALL).floor, Some(WALL - 75));
        assert_eq!(d.written(Some(0), 100, WALL), Written::default());
        assert_eq!(d.written(None, 100, WALL).spans.len(), 3);
        let many: Vec<_> = (0..2_000).map(|i| (i * 10, i * 10 + 5)).collect();
        let written = spans(&many).written(None, 30_000, WALL);
        assert_eq!(written.spans.len(), WRITTEN);
        assert_eq!(written.spans.last(), Some(&(WALL - 30_000 + 19_990, WALL - 30_000 + 19_995)));
    }

    #[test]
    fn a_wall_clock_that_was_set_makes_no_span_beyond_now_and_hides_nothing() {
        let mut d = spans(&[(10_000, 20_000)]);
        d.begin_anew(5_000);
        d.set(true, 30_000);
        let written = d.written(None, 40_000, WALL);
        // set back by an hour
        let back = Deferred::read(&written, 41_000, WALL - 3_600_000);
        assert_eq!(back, Deferred::default());
        assert_eq!(back.counted(100_000, 41_000), 100_000);
        // set back into a span: what lies before now is left of it
        let into = Deferred::read(&written, 41_000, WALL - 25_000);
        assert_eq!(into.spans, [(36_000, 41_000)]);
        assert_eq!(into.counted(20_000, 41_000), 5_000, "the floor is at 31 s");
        // set forward by an hour: the spans are an hour older, and as long as they were
        let forward = Deferred::read(&written, 41_000, WALL + 3_600_000);
        assert_eq!(forward.counted(1_000_000, 41_000), 1_000_000);
        assert_eq!(forward.counted(u64::MAX, 41_000), 3_600_000 + 35_000 - 20_000);
    }

    #[test]
    fn whatever_is_in_the_file_nothing_overflows() {
        let absurd = Written {
            spans: vec![(i64::MIN, i64::MAX), (5, 4), (i64::MAX, i64::MIN), (WALL, WALL)],
            open: Some((i64::MAX, i64::MAX)),
            floor: Some(i64::MIN),
        };
        let d = Deferred::read(&absurd, 100, WALL);
        assert_eq!(d.counted(50, 100), 0);
        let _ = d.counted(u64::MAX, u64::MAX);
        let _ = d.written(Some(u64::MAX), u64::MAX, i64::MIN);
    }

    proptest! {
        /// However often the agent ended and began again: as if it had gone on, but for the time without an agent and what was
        /// written last.
        #[test]
        fn a_restart_at_any_moment_changes_nothing(
            flips in proptest::collection::vec((0..1_000u64, any::<bool>()), 1..16),
            age in 0..12_000u64, rest in 0..500u64, boot in 0..5_000u64, floor in proptest::option::of(0..5_000u64),
        ) {
            let (mut lasting, mut restarted) = (Deferred::default(), Deferred::default());
            // the second node was booted at another time
            let other = |at: u64| at + boot;
            let (mut now, mut deferred) = (0, false);
            for (passed, restarts) in flips {
                if floor.is_some_and(|floor| (now..now + passed).contains(&floor)) {
                    lasting.begin_anew(now);
                    restarted.begin_anew(other(now));
                }
                now += passed;
                if restarts {
                    let written = restarted.written(None, other(now), WALL + now as i64);
                    restarted = Deferred::read(&written, other(now), WALL + now as i64);
                    restarted.set(deferred, other(now));
                } else {
                    deferred = !deferred;
                    lasting.set(deferred, now);
                    restarted.set(deferred, other(now));
                }
            }
            now += rest;
            prop_assert_eq!(restarted.counted(age, other(now)), lasting.counted(age, now));
            // and what is left out cannot matter to what is not older
            let written = restarted.written(Some(age), other(now), WALL);
            let mut pruned = Deferred::read(&written, other(now), WALL);
            pruned.set(deferred, other(now));
            prop_assert_eq!(pruned.counted(age, other(now)), lasting.counted(age, now));
            prop_assert_eq!(pruned.counted(age / 2, other(now)), lasting.counted(age / 2, now));
        }
    }
}
