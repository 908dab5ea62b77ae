//! What a source knows of its own publications: which a mirror has not applied, and how old the oldest of them is.
//! Ages are by the source's own clock alone; a mirror adds to them what passes on its own.

use std::collections::VecDeque;

use crate::model::GenId;

/// Publications remembered. Of what a mirror lacks beyond them it is only known that it is more, and older.
const MOST: usize = 10_000;

/// When this source published its generations.
#[derive(Clone, Debug, Default)]
pub struct Published {
    /// Ascending in both; milliseconds of CLOCK_BOOTTIME, negative for what was published before the boot.
    ring: VecDeque<(GenId, i64)>,
}

/// How far a mirror is behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Behind {
    /// Generations that it has not applied.
    pub count: u64,
    /// There may be more of them, and older ones, than are remembered.
    pub at_least: bool,
    /// The oldest of them that is remembered, with its age in milliseconds.
    pub oldest: Option<(GenId, u64)>,
}

impl Published {
    /// After a start: `known` generations with their ages in milliseconds at `now_ms`, in any order. Ages are
    /// differences of this node's own wall clock, which may have been set meanwhile: a generation counts as
    /// at least as old as those after it.
    pub fn new(known: impl IntoIterator<Item = (GenId, u64)>, now_ms: u64) -> Self {
        let mut known: Vec<_> =
            known.into_iter().map(|(id, age)| (id, signed(now_ms) - signed(age))).collect();
        known.sort_unstable();
        known.dedup_by_key(|(id, _)| *id);
        let mut next = signed(now_ms);
        for (_, at) in known.iter_mut().rev() {
            *at = next.min(*at);
            next = *at;
        }
        let beyond = known.len().saturating_sub(MOST);
        Self { ring: known.into_iter().skip(beyond).collect() }
    }

    /// `id` was published at `now_ms`. Ids only grow; what does not is ignored.
    pub fn publish(&mut self, id: GenId, now_ms: u64) {
        let last = self.ring.back().copied();
        if last.is_some_and(|(last, _)| last >= id) {
            return;
        }
        if self.ring.len() >= MOST {
            self.ring.pop_front();
        }
        self.ring.push_back((id, signed(now_ms).max(last.map_or(i64::MIN, |(_, at)| at))));
    }

    /// The newest generation and its age in milliseconds.
    pub fn head(&self, now_ms: u64) -> Option<(GenId, u64)> {
        self.ring.back().map(|&(id, at)| (id, age(at, now_ms)))
    }

    /// How far a mirror is behind that has completely applied `applied`, or nothing.
    pub fn behind(&self, applied: Option<GenId>, now_ms: u64) -> Behind {
        let have = self.ring.partition_point(|(id, _)| Some(*id) <= applied);
        let oldest = self.ring.get(have).map(|&(id, at)| (id, age(at, now_ms)));
        // with none of the ring applied, what came before it counts unless it follows directly
        let direct =
            |first: GenId| first.number <= 1 || applied == Some(GenId { number: first.number - 1, ..first });
        let at_least = have == 0 && oldest.is_some_and(|(first, _)| !direct(first));
        Behind { count: (self.ring.len() - have) as u64, at_least, oldest }
    }
}

fn age(at: i64, now_ms: u64) -> u64 {
    // never negative
    u64::try_from(signed(now_ms) - at).unwrap_or(0)
}

/// Bounded, so that differences of two cannot overflow.
fn signed(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX).min(i64::MAX / 4)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(number: u64) -> GenId {
        GenId { epoch: 1, number }
    }

    #[test]
    fn the_oldest_unapplied_generation_gives_the_age() {
        let mut p = Published::default();
        assert_eq!(p.behind(None, 5), Behind::default());
        (1..=5).for_each(|n| p.publish(id(n), n * 100));
        let of = |applied| p.behind(applied, 1_000);
        assert_eq!(of(None), Behind { count: 5, at_least: false, oldest: Some((id(1), 900)) });
        assert_eq!(of(Some(id(3))), Behind { count: 2, at_least: false, oldest: Some((id(4), 600)) });
        assert_eq!(of(Some(id(5))), Behind::default());
        assert_eq!(p.head(1_000), Some((id(5), 500)));
    }

    #[test]
    fn a_mirror_of_an_older_epoch_lacks_the_whole_new_one() {
        let mut p = Published::new([(id(8), 50), (id(9), 40)], 100);
        p.publish(GenId { epoch: 2, number: 1 }, 100);
        let behind = p.behind(Some(id(12)), 130);
        assert_eq!(
            behind,
            Behind { count: 1, at_least: false, oldest: Some((GenId { epoch: 2, number: 1 }, 30)) }
        );
        assert_eq!(p.behind(Some(GenId { epoch: 3, number: 1 }), 130), Behind::default());
    }

    #[test]
    fn what_is_no_longer_remembered_makes_it_at_least() {
        let mut p = Published::default();
        (1..=MOST as u64 + 10).for_each(|n| p.publish(id(n), n));
        let of = |n| p.behind(Some(id(n)), 20_000);
        assert_eq!(of(9).count, MOST as u64);
        assert!(of(9).at_least);
        assert_eq!(of(10), Behind { count: MOST as u64, at_least: false, oldest: Some((id(11), 19_989)) });
        assert!(p.behind(None, 0).at_least);
    }

    #[test]
    fn a_wall_clock_that_was_set_back_makes_no_generation_younger_than_a_later_one() {
        let p = Published::new([(id(3), 70), (id(1), 0), (id(2), u64::MAX)], 50);
        assert_eq!(p.behind(Some(id(2)), 60).oldest, Some((id(3), 80)));
        assert!(p.behind(None, 60).oldest.unwrap().1 >= p.behind(Some(id(1)), 60).oldest.unwrap().1);
    }

    #[test]
    fn ids_that_do_not_grow_are_ignored() {
        let mut p = Published::default();
        p.publish(id(2), 10);
        p.publish(id(2), 20);
        p.publish(id(1), 30);
        assert_eq!(p.behind(None, 40).count, 1);
        assert_eq!(p.head(40), Some((id(2), 30)));
    }

    proptest! {
        #[test]
        fn is_what_a_list_of_all_publications_says(
            loaded in proptest::collection::vec(0u64..10_000, 0..6),
            gaps in proptest::collection::vec(0u64..1_000, 0..20),
            applied in proptest::option::of(0u64..30),
            wait in 0u64..10_000,
        ) {
            let mut ages = loaded;
            ages.sort_unstable_by(|a, b| b.cmp(a));
            let start = 5_000;
            let mut all: Vec<(GenId, i64)> =
                ages.iter().enumerate().map(|(i, age)| (id(i as u64 + 1), start as i64 - *age as i64)).collect();
            let mut p = Published::new(all.iter().map(|(i, at)| (*i, (start as i64 - at) as u64)), start);
            let mut now = start;
            for gap in gaps {
                now += gap;
                p.publish(id(all.len() as u64 + 1), now);
                all.push((id(all.len() as u64 + 1), now as i64));
            }
            now += wait;
            let lacking: Vec<_> = all.iter().filter(|(i, _)| applied.is_none_or(|a| *i > id(a))).collect();
            let b = p.behind(applied.map(id), now);
            prop_assert_eq!(b.count, lacking.len() as u64);
            prop_assert!(!b.at_least);
            prop_assert_eq!(b.oldest, lacking.first().map(|(i, at)| (*i, (now as i64 - at) as u64)));
        }
    }
}
