//! Time that is nobody's lag: while a node is paused, refused or cannot hear its source, what is published is
//! deferred, not late. Pure.

mod written;

use std::collections::VecDeque;

pub use written::Written;

/// Spans remembered; what lies before the oldest of them counts as lag.
const MOST: usize = 1_000;

/// When a node was deferred, in milliseconds of its own CLOCK_BOOTTIME; negative: before the boot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Deferred {
    since: Option<i64>,
    /// In order, not overlapping.
    spans: VecDeque<(i64, i64)>,
    /// Nothing before it counts.
    floor: Option<i64>,
}

fn signed(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX)
}

impl Deferred {
    /// From `now_ms` on the node is deferred, or is not. Says whether that is new.
    pub fn set(&mut self, deferred: bool, now_ms: u64) -> bool {
        let is_new = self.since.is_some() != deferred;
        let now = signed(now_ms);
        match (self.since, deferred) {
            (None, true) => self.since = Some(now),
            (Some(since), false) => {
                self.since = None;
                if now > since {
                    if self.spans.len() >= MOST {
                        self.spans.pop_front();
                    }
                    self.spans.push_back((since, now));
                }
            }
            _ => {}
        }
        is_new
    }

    /// It was deferred before anybody looked: for the `for_ms` milliseconds before `now_ms`, which may reach back before
    /// the boot. Says whether that is new.
    pub fn began(&mut self, for_ms: u64, now_ms: u64) -> bool {
        let before = self.since;
        self.set(true, now_ms);
        let at = signed(now_ms).saturating_sub(signed(for_ms));
        let mut since = self.since.map_or(at, |since| since.min(at));
        // what overlaps is one span
        while let Some(&(begin, _)) = self.spans.back().filter(|(_, end)| *end >= since) {
            since = since.min(begin);
            self.spans.pop_back();
        }
        self.since = Some(since);
        self.since != before
    }

    /// What was before `now_ms` does not count, whatever it was.
    pub fn begin_anew(&mut self, now_ms: u64) {
        self.floor = Some(signed(now_ms));
    }

    /// Of an age of `age_ms` at `now_ms`, the milliseconds in which the node was not deferred.
    pub fn counted(&self, age_ms: u64, now_ms: u64) -> u64 {
        let now = signed(now_ms);
        // an age may reach back before the boot
        let from = now.saturating_sub(signed(age_ms)).max(self.floor.unwrap_or(i64::MIN)).min(now);
        let open = self.since.map(|since| (since, now));
        let overlap = |(a, b): (i64, i64)| b.min(now).saturating_sub(a.max(from)).max(0);
        let not: i64 = self.spans.iter().copied().chain(open).map(overlap).sum();
        u64::try_from(now.saturating_sub(from).saturating_sub(not)).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_published_during_a_pause_has_no_age_until_it_ends() {
        let mut d = Deferred::default();
        d.set(true, 100);
        assert_eq!(d.counted(50, 1_000), 0);
        d.set(false, 1_000);
        assert_eq!(d.counted(500, 1_010), 10);
        assert_eq!(d.counted(1_000, 1_010), 100, "90 before it and 10 after it");
    }

    #[test]
    fn a_pause_from_before_the_start_counts_from_when_it_began() {
        let mut d = Deferred::default();
        d.began(60, 100);
        assert_eq!(d.counted(60, 100), 0);
        d.set(false, 110);
        assert_eq!(d.counted(90, 120), 20, "10 before it and 10 after it");
    }

    #[test]
    fn what_is_forgiven_reaches_back_over_spans_that_were_deferred_anyway() {
        let mut d = Deferred::default();
        for (from, to) in [(10, 20), (100, 150), (160, 170)] {
            d.set(true, from);
            d.set(false, to);
        }
        d.began(80, 200);
        assert_eq!(d.counted(100, 200), 0, "all since 100");
        assert_eq!(d.counted(190, 200), 80, "20 to 100");
        d.began(90, 210);
        d.set(false, 220);
        assert_eq!(d.counted(110, 230), 10);
    }

    #[test]
    fn a_pause_from_before_the_boot_counts_from_when_it_began() {
        let mut d = Deferred::default();
        d.began(1_000, 100);
        assert_eq!(d.counted(900, 100), 0, "published in the pause, 800 before the boot");
        assert_eq!(d.counted(1_050, 100), 50, "published before the pause");
        d.set(false, 110);
        assert_eq!(d.counted(920, 120), 10);
    }

    #[test]
    fn what_was_before_a_new_beginning_does_not_count() {
        let mut d = Deferred::default();
        d.set(true, 10);
        d.set(false, 20);
        d.begin_anew(100);
        assert_eq!((d.counted(5_000, 100), d.counted(5_000, 130), d.counted(20, 130)), (0, 30, 20));
        d.set(true, 130);
        assert_eq!(d.counted(5_000, 170), 30);
    }

    proptest! {
        #[test]
        fn it_agrees_with_counting_each_millisecond(
            flips in proptest::collection::vec(0..200u64, 0..12), age in 0..300u64, rest in 0..50u64,
        ) {
            let mut at: Vec<u64> = flips;
            at.sort_unstable();
            let mut d = Deferred::default();
            let mut on = vec![false; 1000];
            for (i, t) in at.iter().enumerate() {
                d.set(i % 2 == 0, *t);
                on[*t as usize..].fill(i % 2 == 0);
            }
            let now = at.last().copied().unwrap_or(0) + rest;
            let before = age.saturating_sub(now);
            let within = (now.saturating_sub(age)..now).filter(|t| !on[*t as usize]).count() as u64;
            prop_assert_eq!(d.counted(age, now), before + within);
        }
    }
}
