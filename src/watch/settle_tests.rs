//! A simulated clock and a simulated source.

use super::*;
use crate::watch::Touched;
use proptest::prelude::*;

const MS: Duration = Duration::from_millis(1);

fn p(s: &str) -> TreePath {
    TreePath::new(s.as_bytes()).unwrap()
}

fn touched(path: &str, last: Instant, open: bool) -> Changes {
    Changes { paths: [(p(path), Touched { last, open })].into(), ..Changes::default() }
}

#[test]
fn nothing_is_due_when_nothing_happened() {
    let now = Instant::now();
    let mut s = Settle::new(500 * MS, 5000 * MS);
    assert_eq!((s.due(), s.unpublished_age(now)), (None, None));
    s.started();
    assert!(s.scanned(&[], now));
}

#[test]
fn a_change_is_due_when_it_is_quiet_and_together_with_the_next() {
    let t = Instant::now();
    let mut s = Settle::new(500 * MS, 5000 * MS);
    s.add(&touched("a", t, false), t);
    assert_eq!(s.due(), Some(t + 500 * MS));
    s.add(&touched("b", t + 400 * MS, false), t + 400 * MS);
    assert_eq!(s.due(), Some(t + 900 * MS));
    assert_eq!(s.is_busy(&p("a"), t + 100 * MS), Some(100 * MS));
    assert_eq!(s.is_busy(&p("a"), t + 500 * MS), None);
    s.started();
    assert!(s.scanned(&[], t + 900 * MS));
    assert_eq!(s.unpublished_age(t + 900 * MS), Some(900 * MS));
    s.published();
    assert_eq!((s.due(), s.unpublished_age(t + 900 * MS)), (None, None));
}

#[test]
fn without_a_settle_time_everything_is_due_at_once() {
    let t = Instant::now();
    let mut s = Settle::new(Duration::ZERO, 5000 * MS);
    s.add(&touched("a", t, false), t);
    assert_eq!(s.due(), Some(t));
    assert_eq!(s.is_busy(&p("a"), t), None);
    s.add(&touched("a", t, true), t);
    assert_eq!(s.is_busy(&p("a"), t + 10 * MS), Some(10 * MS), "it was not closed");
}

#[test]
fn what_happens_during_a_scan_stays_pending() {
    let t = Instant::now();
    let mut s = Settle::new(500 * MS, 5000 * MS);
    s.add(&touched("a", t, false), t);
    s.started();
    s.add(&touched("a", t + 600 * MS, false), t + 600 * MS);
    assert!(s.scanned(&[], t + 700 * MS));
    s.published();
    assert_eq!(s.due(), Some(t + 1100 * MS));
    assert_eq!(s.unpublished_age(t + 700 * MS), Some(100 * MS));
}

#[test]
fn a_refused_publication_asks_for_no_scan_but_stays_unpublished() {
    let t = Instant::now();
    let mut s = Settle::new(500 * MS, 5000 * MS);
    s.add(&touched("a", t, false), t);
    s.started();
    assert!(s.scanned(&[], t + 500 * MS));
    assert_eq!(s.due(), None);
    assert_eq!(s.unpublished_age(t + 9000 * MS), Some(9000 * MS));
    s.add(&touched("b", t + 9000 * MS, false), t + 9000 * MS);
    assert_eq!(s.due(), Some(t + 9500 * MS), "the old one does not hurry the new one");
}

#[test]
fn a_held_path_delays_the_others_until_max_and_is_flagged_then() {
    let t = Instant::now();
    let mut s = Settle::new(500 * MS, 5000 * MS);
    let held = [(p("h"), "open".to_owned())];
    s.add(&touched("h", t, false), t);
    s.add(&touched("a", t, false), t);
    s.started();
    assert!(!s.scanned(&held, t + 500 * MS));
    assert!(s.due().unwrap() <= t + 5000 * MS);
    s.started();
    assert!(s.scanned(&held, t + 5000 * MS));
    let all: Vec<_> = s.held().collect();
    assert_eq!(all, [Held { path: &p("h"), why: "open", since: t, flagged: true }]);
    s.published();
    // finished once
    s.started();
    assert!(s.scanned(&[], t + 6000 * MS));
    assert_eq!(s.held().count(), 0);
}

#[test]
fn a_flagged_path_that_falls_quiet_is_looked_at_after_the_settle_time() {
    let t = Instant::now();
    let mut s = Settle::new(500 * MS, 5000 * MS);
    let held = [(p("h"), "open".to_owned())];
    s.started();
    s.scanned(&held, t);
    s.scanned(&held, t + 600_000 * MS);
    s.published();
    assert_eq!(s.due(), Some(t + 660_000 * MS), "without an event, now and then");
    s.add(&touched("h", t + 600_100 * MS, false), t + 600_100 * MS);
    assert_eq!(s.due(), Some(t + 600_600 * MS));
}

#[test]
fn directories_count_when_no_path_is_named_and_lost_events_close_everything() {
    let t = Instant::now();
    let mut s = Settle::new(500 * MS, 5000 * MS);
    s.add(&Changes { dirs: [p("d")].into(), ..Changes::default() }, t);
    assert_eq!(s.due(), Some(t + 500 * MS));
    s.add(&touched("f", t, true), t);
    assert!(s.is_busy(&p("f"), t + 1000 * MS).is_some());
    s.add(&Changes { all: true, ..Changes::default() }, t + 1000 * MS);
    assert!(s.is_busy(&p("f"), t + 1000 * MS).is_none());
    assert_eq!(s.due(), Some(t + 1500 * MS));
}

#[test]
fn paths_beyond_the_bound_are_one_change() {
    let t = Instant::now();
    let mut s = Settle::new(500 * MS, 5000 * MS);
    for i in 0..=LIMIT {
        s.touch(&p(&format!("f{i}")), t + MS, false);
    }
    assert!(s.fresh.len() <= 2);
    assert_eq!(s.due(), Some(t + 501 * MS));
    assert_eq!(s.unpublished_age(t + 2 * MS), Some(MS));
}

/// A file: when it is written, and the state that is published.
#[derive(Clone, Debug)]
struct File {
    writes: Vec<u64>,
    /// Written every so often, for ever.
    every: Option<u64>,
}

fn file() -> impl Strategy<Value = File> {
    let writes = proptest::collection::vec(0..4000u64, 1..4);
    let every = prop_oneof![4 => Just(None), 1 => (20..300u64).prop_map(Some)];
    (writes, every).prop_map(|(writes, every)| File { writes, every })
}

proptest! {
    /// A source whose scans take no time: every file's last state is published; once the files that are written for
    /// ever are flagged, a change of another is published when it is quiet.
    #[test]
    fn nothing_is_dropped_and_nothing_waits_for_a_file_that_is_written_for_ever(
        files in proptest::collection::vec(file(), 1..6),
        settle in prop_oneof![Just(0u64), 1..800u64],
        max in 900..3000u64,
    ) {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mut s = Settle::new(Duration::from_millis(settle), Duration::from_millis(max));
        let mut last_write = vec![None; files.len()];
        let mut published = vec![None; files.len()];
        let path = |i: usize| p(&format!("f{i}"));
        // the last change may wait `max` for the others and as long for a look at it
        for ms in 0..4000 + 3 * max {
            for (i, f) in files.iter().enumerate() {
                if f.writes.contains(&ms) || f.every.is_some_and(|n| ms % n == 0) {
                    last_write[i] = Some(ms);
                    s.add(&touched(&format!("f{i}"), at(ms), false), at(ms));
                }
            }
            if s.due().is_some_and(|due| due <= at(ms)) {
                let busy = |i: usize| s.is_busy(&path(i), at(ms)).is_some();
                let held: Vec<_> = (0..files.len())
                    .filter(|&i| last_write[i] != published[i] && busy(i))
                    .map(|i| (path(i), "busy".to_owned()))
                    .collect();
                s.started();
                if s.scanned(&held, at(ms)) {
                    for i in 0..files.len() {
                        if !held.iter().any(|(h, _)| *h == path(i)) {
                            published[i] = last_write[i];
                        }
                    }
                    s.published();
                }
                prop_assert!(s.due().is_none_or(|due| due > at(ms)), "a scan asks for itself at {ms}");
            }
            let flagged: HashSet<_> = s.held().filter(|h| h.flagged).map(|h| h.path.clone()).collect();
            let waits: Vec<_> = (0..files.len()).filter(|&i| last_write[i] != published[i]).collect();
            prop_assert_eq!(s.unpublished_age(at(ms)).is_some(), !waits.is_empty(), "at {}", ms);
            prop_assert!(waits.is_empty() || s.due().is_some(), "dropped at {ms}");
            // those that are not flagged wait for each other only
            let quiet = waits.iter().filter(|&&i| !flagged.contains(&path(i)));
            if let Some(last) = quiet.clone().filter_map(|&i| last_write[i]).max() {
                let oldest_ok = quiet.clone().all(|&i| files[i].every.is_none());
                prop_assert!(!oldest_ok || ms < last + settle, "late at {ms}, last {last}");
            }
        }
        for (i, f) in files.iter().enumerate() {
            prop_assert!(f.every.is_some() || published[i] == last_write[i], "file {i} was never published");
        }
    }
}
