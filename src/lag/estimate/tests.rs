//! Examples, and a model: a source and a mirror with clocks of their own, a line that delays and loses, restarts
//! and pauses, compared with what a perfect clock would have seen.

use proptest::prelude::*;

use super::*;

fn id(number: u64) -> GenId {
    GenId { epoch: 1, number }
}

#[test]
fn a_source_that_was_never_heard_gives_no_lag() {
    let mut lag = Lag::default();
    assert_eq!((lag.lag_ms(5), lag.contact_age_ms(5), lag.head()), (None, None, None));
    assert_eq!(lag.applied(id(1), 5), None);
    assert_eq!(lag.lag_ms(5), None);
}

#[test]
fn out_of_contact_is_no_lag_when_all_that_is_known_is_applied() {
    let mut lag = Lag::default();
    lag.heard(0, 10, None, (id(3), 7_000));
    assert_eq!(lag.lag_ms(100_000), Some(0));
    assert_eq!(lag.contact_age_ms(100_010), Some(100_000));
    assert_eq!(lag.head(), Some(id(3)));
}

#[test]
fn lag_grows_from_asking_until_the_generation_is_applied() {
    let mut lag = Lag::default();
    lag.heard(100, 110, Some((id(4), 50)), (id(4), 50));
    assert_eq!(lag.lag_ms(110), Some(60));
    assert_eq!(lag.lag_ms(500), Some(450));
    assert_eq!(lag.applied(id(4), 500), Some(450));
    assert_eq!(lag.lag_ms(9_000), Some(0));
    assert_eq!(lag.applied(id(4), 9_000), None, "applied again after drift is no convergence");
}

#[test]
fn an_answer_that_crossed_the_application_does_not_bring_it_back() {
    let mut lag = Lag::default();
    lag.heard(0, 10, Some((id(1), 0)), (id(1), 0));
    lag.applied(id(1), 30);
    lag.heard(20, 40, Some((id(1), 20)), (id(1), 20));
    assert_eq!(lag.lag_ms(1_000), Some(0));
    lag.heard(20, 40, Some((id(1), 20)), (id(2), 5));
    assert_eq!(lag.lag_ms(40), Some(25));
}

#[test]
fn generations_never_heard_of_count_from_the_answer_that_had_none_of_them() {
    let mut lag = Lag::default();
    lag.heard(0, 10, Some((id(1), 40)), (id(1), 40));
    lag.heard(500, 510, Some((id(1), 540)), (id(4), 1));
    lag.applied(id(1), 600);
    // 2 and 3 were published between the two answers
    assert_eq!(lag.lag_ms(600), Some(600));
    lag.heard(610, 620, Some((id(2), 300)), (id(4), 111));
    assert_eq!(lag.lag_ms(620), Some(310));
}

#[test]
fn after_a_reset_of_the_source_its_own_word_counts() {
    let mut lag = Lag::default();
    lag.heard(0, 10, Some((id(7), 0)), (id(7), 0));
    lag.applied(id(7), 30);
    let first = GenId { epoch: 2, number: 1 };
    lag.heard(5_000, 5_010, Some((first, 20)), (first, 20));
    assert_eq!(lag.lag_ms(5_010), Some(30));
}

#[test]
fn a_source_that_no_longer_has_a_generation_is_believed() {
    let mut lag = Lag::default();
    lag.heard(0, 10, Some((id(8), 5)), (id(9), 5));
    lag.heard(20, 30, None, (id(7), 900));
    assert_eq!((lag.lag_ms(5_000), lag.head()), (Some(0), Some(id(7))));
}

#[test]
fn a_mirror_that_applies_nothing_remembers_a_bounded_number_and_the_oldest_age() {
    let mut lag = Lag::default();
    for n in 2..10_000 {
        lag.heard(n, n + 1, Some((id(1), n)), (id(n), 0));
    }
    assert_eq!(lag.waiting.len(), MOST);
    assert_eq!(lag.lag_ms(10_000), Some(10_000));
    lag.applied(id(1), 10_000);
    assert_eq!(lag.lag_ms(10_000), Some(10_000), "2 is forgotten, and counts as if published right after 1");
}

proptest! {
    #[test]
    fn answers_that_make_no_sense_are_survived(
        steps in proptest::collection::vec((any::<[u64; 4]>(), 0u64..9, 0u64..9, any::<bool>()), 0..30),
    ) {
        let mut lag = Lag::default();
        for ([asked, now, a, b], oldest, head, apply) in steps {
            lag.heard(asked, now, (oldest > 0).then_some((id(oldest), a)), (id(head), b));
            if apply {
                lag.applied(GenId { epoch: a, number: b }, now);
            }
            prop_assert!(lag.lag_ms(a).is_some() && lag.contact_age_ms(b).is_some());
        }
    }
}

/// Microseconds of true time.
type Us = u64;

/// A clock with its own start and rate.
#[derive(Clone, Copy, Debug)]
struct Clock {
    start: Us,
    ppm: i64,
}

impl Clock {
    fn ms(self, t: Us) -> u64 {
        let drift = t as i64 * self.ppm / 1_000_000;
        (self.start + t).checked_add_signed(drift).unwrap() / 1_000
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Publish { reset: bool },
    Ask,
    Arrives,
    Answers,
    Delivered,
    Lost,
    Applies(prop::sample::Index),
    Restart { forget: bool },
}

fn step() -> impl Strategy<Value = (Us, Step)> {
    let wait = prop_oneof![
        6 => 0..2_000u64,
        6 => 0..300_000u64,
        2 => 0..60_000_000u64,
        // a suspend of either side, or a partition
        1 => 0..200_000_000_000u64,
    ];
    let kind = prop_oneof![
        4 => prop::bool::weighted(0.1).prop_map(|reset| Step::Publish { reset }),
        5 => Just(Step::Ask),
        5 => Just(Step::Arrives),
        5 => Just(Step::Answers),
        5 => Just(Step::Delivered),
        1 => Just(Step::Lost),
        4 => any::<prop::sample::Index>().prop_map(Step::Applies),
        1 => any::<bool>().prop_map(|forget| Step::Restart { forget }),
    ];
    (wait, kind)
}

fn clock() -> impl Strategy<Value = Clock> {
    // running for a minute or for months, up to 200 ppm fast or slow
    (prop_oneof![60_000_000u64..61_000_000, 0..10_000_000_000_000u64], -200i64..=200)
        .prop_map(|(start, ppm)| Clock { start: start + 100_000_000_000, ppm })
}

/// The one question that is under way.
#[derive(Clone, Copy, Debug)]
enum Poll {
    None,
    ToSource { asked: Us, applied: Option<GenId> },
    Held { asked: Us, applied: Option<GenId>, arrived: Us },
    ToMirror { asked: Us, held: Us, held_ms: u64, oldest: Option<(GenId, u64)>, head: (GenId, u64) },
}

/// What the newest answer said that named a generation.
#[derive(Clone, Copy, Debug)]
struct Named {
    asked: Us,
    round_trip: Us,
}

/// The world, in true time.
struct World {
    source: Clock,
    mirror: Clock,
    now: Us,
    published: BTreeMap<GenId, Us>,
    poll: Poll,
    lag: Lag,
    applied: Option<GenId>,
    /// Since the mirror's start.
    heard_at: Option<Us>,
    head: Option<GenId>,
    named: BTreeMap<GenId, Named>,
    /// When the newest answer with this head was asked, and that plus the time it was held.
    was_head: BTreeMap<GenId, (Us, Us)>,
}

impl World {
    fn go(&mut self, step: Step) {
        match (step, self.poll) {
            (Step::Publish { reset }, _) => {
                let last =
                    self.published.keys().next_back().copied().unwrap_or(GenId { epoch: 1, number: 0 });
                let next = if reset {
                    GenId { epoch: last.epoch + 1, number: 1 }
                } else {
                    GenId { number: last.number + 1, ..last }
                };
                self.published.insert(next, self.now);
            }
            (Step::Ask, Poll::None) => {
                self.poll = Poll::ToSource { asked: self.now, applied: self.applied };
            }
            (Step::Arrives, Poll::ToSource { asked, applied }) => {
                self.poll = Poll::Held { asked, applied, arrived: self.now };
            }
            (Step::Answers, Poll::Held { asked, applied, arrived }) => {
                let aged = |(id, at): (&GenId, &Us)| (*id, self.source.ms(self.now) - self.source.ms(*at));
                let oldest = self.published.iter().find(|(id, _)| Some(**id) > applied).map(aged);
                if let Some(head) = self.published.last_key_value().map(aged) {
                    let held_ms = self.source.ms(self.now) - self.source.ms(arrived);
                    self.poll = Poll::ToMirror { asked, held: self.now - arrived, held_ms, oldest, head };
                }
            }
            (Step::Delivered, Poll::ToMirror { asked, held, held_ms, oldest, head }) => {
                let asked_ms = self.mirror.ms(asked) + held_ms;
                self.lag.heard(asked_ms, self.mirror.ms(self.now), oldest, head);
                let named = Named { asked, round_trip: self.now - asked - held };
                self.named.extend(oldest.map(|(id, _)| (id, named)));
                self.named.insert(head.0, named);
                self.was_head.insert(head.0, (asked, asked + held));
                (self.heard_at, self.head, self.poll) = (Some(self.now), Some(head.0), Poll::None);
            }
            (Step::Lost, _) => self.poll = Poll::None,
            (Step::Restart { forget }, _) => {
                (self.poll, self.lag, self.heard_at, self.head) = (Poll::None, Lag::default(), None, None);
                self.named.clear();
                self.was_head.clear();
                if forget {
                    self.applied = None;
                }
            }
            (Step::Applies(which), _) => {
                let heads: Vec<GenId> =
                    self.was_head.keys().copied().filter(|h| Some(*h) > self.applied).collect();
                if !heads.is_empty() {
                    self.apply(*which.get(&heads));
                }
            }
            _ => {}
        }
    }

    fn apply(&mut self, id: GenId) {
        let took = self.lag.applied(id, self.mirror.ms(self.now)).expect("it was named, so its age is known");
        self.applied = Some(id);
        let (truth, named) = (self.now - self.published[&id], self.named[&id]);
        let off = tolerance(truth + self.now - named.asked);
        assert!(took * 1_000 + off >= truth, "{id} took {truth} us, not {took} ms");
        assert!(took * 1_000 <= truth + named.round_trip + off, "{id} took {truth} us, not {took} ms");
    }

    /// Compares the estimate with the truth.
    fn check(&self) {
        let ms = self.mirror.ms(self.now);
        let (lag, contact) = (self.lag.lag_ms(ms), self.lag.contact_age_ms(ms));
        let Some((heard_at, head)) = self.heard_at.zip(self.head) else {
            assert_eq!((lag, contact), (None, None));
            return;
        };
        let silent = self.now - heard_at;
        assert!((contact.unwrap() * 1_000).abs_diff(silent) <= tolerance(silent));
        let estimate = lag.unwrap() * 1_000;
        let Some((oldest, at)) = self.published.range(..=head).find(|(id, _)| Some(**id) > self.applied)
        else {
            assert_eq!(estimate, 0, "all that is known is applied");
            return;
        };
        let truth = self.now - at;
        let named = self.named.get(oldest);
        // when nobody told of it, it counts from the last answer that did not have it
        let was_head = self.applied.and_then(|a| self.was_head.get(&a));
        let direct = named.is_some() && (oldest.number > 1 || was_head.is_none());
        let (asked, free) = *was_head.filter(|_| !direct).unwrap_or(&(self.now, self.now));
        let off = tolerance(truth + self.now - named.map_or(asked, |n| n.asked.min(asked)));
        let most = named.map_or(0, |n| truth + n.round_trip).max(self.now - free);
        assert!(estimate + off >= truth, "{oldest}: {estimate} is too low for {truth}");
        assert!(estimate <= most + off, "{oldest}: {estimate} is too high for {truth}, at most {most}");
    }
}

/// Rounding to milliseconds, four times, and 400 ppm between the two clocks.
fn tolerance(span: Us) -> Us {
    4_000 + span * 400 / 1_000_000
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]
    #[test]
    fn the_estimate_is_never_too_low_and_too_high_by_the_round_trip_at_most(
        source in clock(), mirror in clock(), steps in proptest::collection::vec(step(), 0..120),
    ) {
        let mut world = World {
            source, mirror, now: 0, published: BTreeMap::new(), poll: Poll::None, lag: Lag::default(),
            applied: None, heard_at: None, head: None, named: BTreeMap::new(), was_head: BTreeMap::new(),
        };
        for (wait, step) in steps {
            world.now += wait;
            world.check();
            world.go(step);
            world.check();
        }
    }
}
