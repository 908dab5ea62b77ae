//! Convergence: how long generations took from their publication until they were in place on a node. Bounded
//! whatever the rate, so that a source can keep one for each of hundreds of mirrors.

use std::collections::VecDeque;

use crate::model::{Convergence, GenId, Percentiles, Total};

const HOUR_MS: u64 = 3_600_000;

/// So many newest generations count whatever their age.
const GENERATIONS: usize = 1_000;

/// Samples kept at most: an hour with more of them is judged by its newest ones.
const MOST: usize = 4_096;

#[derive(Clone, Copy, Debug)]
struct Sample {
    id: GenId,
    ms: u64,
    at: u64,
}

/// The samples of one node and tree.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// Ascending by id and by time.
    samples: VecDeque<Sample>,
    /// Of all that there ever were.
    total: Total,
}

impl History {
    /// Generation `id` was in place `ms` milliseconds after its publication; known since `at_ms`, which does not go
    /// back. A generation that is not newer than the last one is ignored: a report may come twice.
    pub fn add(&mut self, id: GenId, ms: u64, at_ms: u64) {
        if self.samples.back().is_some_and(|last| last.id >= id) {
            return;
        }
        self.samples.push_back(Sample { id, ms, at: at_ms });
        self.total.count += 1;
        self.total.sum_ms = self.total.sum_ms.saturating_add(ms);
        while self.samples.len() > MOST
            || (self.samples.len() > GENERATIONS
                && self.samples.front().is_some_and(|s| !within_hour(s, at_ms)))
        {
            self.samples.pop_front();
        }
    }

    /// This node alone, at `now_ms`. Costs time in the number of samples.
    pub fn summary(&self, now_ms: u64) -> Convergence {
        Self::pooled([self], now_ms)
    }

    /// Several nodes' samples together: each node's convergence with each generation is one sample, and the
    /// newest 1,000 generations are those that any of them has.
    pub fn pooled<'a>(nodes: impl IntoIterator<Item = &'a Self>, now_ms: u64) -> Convergence {
        let mut samples: Vec<Sample> = Vec::new();
        let mut total = Total::default();
        for node in nodes {
            samples.extend(&node.samples);
            total.count += node.total.count;
            total.sum_ms = total.sum_ms.saturating_add(node.total.sum_ms);
        }
        let mut ids: Vec<GenId> = samples.iter().map(|s| s.id).collect();
        ids.sort_unstable_by(|a, b| b.cmp(a));
        ids.dedup();
        let from = ids.get(GENERATIONS - 1).copied().unwrap_or_default();
        let of = |keep: &dyn Fn(&Sample) -> bool| {
            percentiles(samples.iter().filter(|s| keep(s)).map(|s| s.ms).collect())
        };
        Convergence { hour: of(&|s| within_hour(s, now_ms)), last_1000: of(&|s| s.id >= from), total }
    }
}

fn within_hour(sample: &Sample, now_ms: u64) -> bool {
    now_ms.saturating_sub(sample.at) < HOUR_MS
}

/// By nearest rank: of n sorted samples the one with rank ⌈p·n/100⌉, counted from 1. No interpolation, so every
/// figure is a time that was measured.
fn percentiles(mut ms: Vec<u64>) -> Percentiles {
    ms.sort_unstable();
    let n = ms.len();
    let rank = |p: usize| (n * p).div_ceil(100).checked_sub(1).and_then(|i| ms.get(i)).copied().unwrap_or(0);
    Percentiles { count: n as u64, p50_ms: rank(50), p95_ms: rank(95), p99_ms: rank(99), max_ms: rank(100) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(number: u64) -> GenId {
        GenId { epoch: 1, number }
    }

    #[test]
    fn percentiles_are_samples_of_the_nearest_rank() {
        let p = percentiles((1..=200).rev().collect());
        assert_eq!((p.count, p.p50_ms, p.p95_ms, p.p99_ms, p.max_ms), (200, 100, 190, 198, 200));
        let p = percentiles(vec![7]);
        assert_eq!((p.count, p.p50_ms, p.p99_ms, p.max_ms), (1, 7, 7, 7));
        assert_eq!(percentiles(vec![3, 9]).p50_ms, 3);
        assert_eq!(percentiles(vec![]), Percentiles::default());
    }

    #[test]
    fn a_report_that_comes_twice_counts_once() {
        let mut h = History::default();
        h.add(id(1), 5, 10);
        h.add(id(2), 6, 10);
        h.add(id(1), 5, 20);
        h.add(id(2), 6, 20);
        assert_eq!(h.summary(20).last_1000.count, 2);
    }

    #[test]
    fn a_thousand_generations_stay_whatever_their_age() {
        let mut h = History::default();
        (1..=1_500).for_each(|n| h.add(id(n), n, n));
        let long_after = h.summary(10 * HOUR_MS);
        assert_eq!((long_after.hour.count, long_after.last_1000.count), (0, 1_000));
        assert_eq!(long_after.last_1000.p50_ms, 1_000);
        h.add(id(1_501), 1, 10 * HOUR_MS);
        assert_eq!(h.samples.len(), 1_000);
    }

    #[test]
    fn memory_is_bounded_at_any_rate() {
        let mut h = History::default();
        (1..=50_000).for_each(|n| h.add(id(n), n, 1));
        assert_eq!(h.summary(1).hour.count, MOST as u64);
        assert_eq!(h.summary(1).hour.max_ms, 50_000);
        let all = Total { count: 50_000, sum_ms: 50_000 * 50_001 / 2 };
        assert_eq!(h.summary(10 * HOUR_MS).total, all, "what is forgotten still counts");
    }

    #[test]
    fn nodes_together_count_each_node_and_one_list_of_generations() {
        let mut a = History::default();
        let mut b = History::default();
        (1..=1_000).for_each(|n| a.add(id(n), 1, n));
        (501..=1_500).for_each(|n| b.add(id(n), 9, n));
        let both = History::pooled([&a, &b], 2_000).last_1000;
        assert_eq!((both.count, both.p50_ms, both.max_ms), (1_500, 9, 9));
        let total = History::pooled([&a, &b], 2_000).total;
        assert_eq!(total, Total { count: 2_000, sum_ms: 10_000 });
    }

    /// What the documentation says, computed from everything that was ever added.
    fn naive(all: &[(GenId, u64, u64)], now: u64, keep: impl Fn(usize, u64) -> bool) -> Percentiles {
        let mut ms: Vec<u64> =
            (0..all.len()).filter(|&i| keep(i, now - all[i].2)).map(|i| all[i].1).collect();
        ms.sort_unstable();
        let smallest = |part: f64| {
            let not_above = |x: u64| ms.partition_point(|y| *y <= x) as f64;
            ms.iter().find(|x| not_above(**x) >= part * ms.len() as f64 - 1e-9).copied().unwrap_or(0)
        };
        let count = ms.len() as u64;
        Percentiles {
            count,
            p50_ms: smallest(0.5),
            p95_ms: smallest(0.95),
            p99_ms: smallest(0.99),
            max_ms: smallest(1.0),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn is_what_a_list_of_all_samples_says(
            added in proptest::collection::vec((1u64..3, 0u64..500, prop_oneof![8 => 0u64..8_000, 1 => 0u64..4_000_000]), 0..1_600),
            wait in 0u64..4_000_000,
        ) {
            let (mut h, mut all, mut number, mut now) = (History::default(), vec![], 0, 0);
            for (step, ms, gap) in added {
                number += step;
                now += gap;
                h.add(id(number), ms, now);
                all.push((id(number), ms, now));
            }
            now += wait;
            let n = all.len();
            let summary = h.summary(now);
            prop_assert_eq!(summary.hour, naive(&all, now, |_, age| age < HOUR_MS));
            prop_assert_eq!(summary.last_1000, naive(&all, now, |i, _| i + 1_000 >= n));
        }
    }
}
