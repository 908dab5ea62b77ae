//! When the pending changes of a tree may be published. Pure: times are passed in.
//!
//! All changes wait for each other, because a deployment is more than one file: until nothing was touched for
//! `settle`, but at most `max`. A path that is not finished after `max` is flagged: it keeps its published
//! entry and no longer delays the others, until a scan finds it finished.
//!
//! Ordering: what is noted after [`Settle::started`] is not covered by the scan that began there, and stays
//! pending whatever becomes of it.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use super::changes::Changes;
use crate::model::TreePath;

/// Paths noted by name between two scans; above it they count as one change of the root.
const LIMIT: usize = 50_000;
/// Unfinished paths are looked at again after an eighth of the time that they are so, within these.
const LOOK_MIN: Duration = Duration::from_millis(100);
const LOOK_MAX: Duration = Duration::from_secs(60);

/// The pending changes of a tree.
#[derive(Debug)]
pub struct Settle {
    settle: Duration,
    max: Duration,
    /// Noted since the last scan began.
    fresh: HashMap<TreePath, Item>,
    /// Covered by the last scan and not published.
    seen: HashMap<TreePath, Item>,
    /// The last scan found what the others wait for.
    waiting: bool,
}

#[derive(Clone, Debug)]
struct Item {
    first: Instant,
    last: Instant,
    open: bool,
    held: Option<Hold>,
}

#[derive(Clone, Debug)]
struct Hold {
    why: String,
    /// When to look again, unless an event says so earlier.
    look: Instant,
    flagged: bool,
}

/// A path that is held back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held<'a> {
    /// Which.
    pub path: &'a TreePath,
    /// Why, for people.
    pub why: &'a str,
    /// Its first change that is not published.
    pub since: Instant,
    /// Held for longer than `max`: the others do not wait for it.
    pub flagged: bool,
}

impl Settle {
    /// `settle`: quiet time before a change counts; zero: at once. `max`: what a change waits at most for others.
    pub fn new(settle: Duration, max: Duration) -> Self {
        Self { settle, max, fresh: HashMap::new(), seen: HashMap::new(), waiting: false }
    }

    /// Notes changes; those that name no path count as of `now`.
    pub fn add(&mut self, changes: &Changes, now: Instant) {
        for (path, touched) in &changes.paths {
            self.touch(path, touched.last, touched.open);
        }
        let named = |dir: &&TreePath| !changes.paths.contains_key(*dir);
        for dir in changes.dirs.iter().chain(&changes.deep).filter(named) {
            self.touch(dir, now, false);
        }
        if changes.all {
            // a close may be among what was lost
            self.fresh.values_mut().chain(self.seen.values_mut()).for_each(|item| item.open = false);
            self.touch(&TreePath::root(), now, false);
        }
    }

    fn touch(&mut self, path: &TreePath, at: Instant, open: bool) {
        if self.fresh.len() >= LIMIT && !self.fresh.contains_key(path) {
            let first = self.fresh.values().map(|item| item.first).min().unwrap_or(at);
            self.fresh.clear();
            self.fresh.insert(TreePath::root(), Item { first, last: at, open: false, held: None });
        }
        let item = Item { first: at, last: at, open, held: None };
        let item = self.fresh.entry(path.clone()).or_insert(item);
        item.last = item.last.max(at);
        item.open = open;
    }

    /// When a scan should start: when nothing that is not flagged was touched for `settle`, at most `max` after
    /// the first change; and whenever an unfinished path is due for another look. `None`: nothing is pending.
    pub fn due(&self) -> Option<Instant> {
        let flagged = |path: &TreePath| self.hold(path).is_some_and(|hold| hold.flagged);
        let (mut quiet, mut look) = (None, None);
        for (path, item) in &self.fresh {
            let ready = item.last + self.settle;
            if flagged(path) { look = earlier(look, ready) } else { quiet = later(quiet, ready) }
        }
        for (path, item) in &self.seen {
            match &item.held {
                Some(hold) if hold.flagged => look = earlier(look, hold.look),
                Some(hold) if !self.fresh.contains_key(path) => quiet = later(quiet, hold.look),
                _ => {}
            }
        }
        if let Some(at) = quiet {
            // what may be published (and is not, for a reason of the caller's) hurries nobody
            let waits = |item: &Item| self.waiting || item.held.is_some();
            let seen = self.seen.iter().filter(|(_, item)| waits(item));
            let all = self.fresh.iter().chain(seen).filter(|(path, _)| !flagged(path));
            let cap = all.map(|(_, item)| item.first + self.max).min();
            quiet = Some(cap.map_or(at, |cap| cap.min(at)));
        }
        quiet.map_or(look, |at| earlier(look, at))
    }

    /// A scan starts. It must look at all that was noted so far, and at every path in [`held`](Self::held).
    pub fn started(&mut self) {
        for (path, item) in self.fresh.drain() {
            let known = self.seen.entry(path).or_insert_with(|| item.clone());
            known.last = item.last;
            known.open = item.open;
        }
    }

    /// After a scan: `held` are all the paths that it found unfinished, with why. Whether the rest may be
    /// published now: nothing unfinished is left but flagged paths, or the first change is older than `max`. When it
    /// may and the caller does not publish, it stays pending and asks for no further scan.
    pub fn scanned(&mut self, held: &[(TreePath, String)], now: Instant) -> bool {
        let named: HashSet<&TreePath> = held.iter().map(|(path, _)| path).collect();
        self.seen.iter_mut().filter(|(path, _)| !named.contains(path)).for_each(|(_, item)| item.held = None);
        for (path, why) in held {
            let quiet_at = self.fresh.get(path).map(|item| item.last + self.settle);
            // found without an event
            let new = Item { first: now, last: now, open: false, held: None };
            let item = self.seen.entry(path.clone()).or_insert(new);
            let age = now.saturating_duration_since(item.first);
            let wait = (age / 8).min(LOOK_MAX).max(LOOK_MIN).max(self.settle);
            let quiet_at = quiet_at.unwrap_or(item.last + self.settle);
            let look = if quiet_at > now { quiet_at } else { now + wait };
            let flagged = age >= self.max || item.held.as_ref().is_some_and(|hold| hold.flagged);
            item.held = Some(Hold { why: why.clone(), look, flagged });
        }
        let flagged = |item: &Item| item.held.as_ref().is_some_and(|hold| hold.flagged);
        let others = || self.seen.values().filter(|item| !flagged(item));
        let first = others().map(|item| item.first).min();
        self.waiting =
            others().any(|item| item.held.is_some()) && first.is_some_and(|first| now < first + self.max);
        !self.waiting
    }

    /// Whether nothing was noted since the last scan began that its result must wait for: it may be the second half
    /// of what the scan saw.
    pub fn is_quiet(&self, now: Instant) -> bool {
        let over = |item: &Item| now >= item.last + self.settle || now >= item.first + self.max;
        let flagged = |path: &TreePath| self.hold(path).is_some_and(|hold| hold.flagged);
        let waited = self.seen.iter().any(|(path, item)| now >= item.first + self.max && !flagged(path));
        waited || self.fresh.iter().all(|(path, item)| over(item) || flagged(path))
    }

    /// Age of the oldest change that is not published; `None` when all are.
    pub fn unpublished_age(&self, now: Instant) -> Option<Duration> {
        let first = self.fresh.values().chain(self.seen.values()).map(|item| item.first).min()?;
        Some(now.saturating_duration_since(first))
    }

    /// All that the last scan covered is published, but for what it held.
    pub fn published(&mut self) {
        self.seen.retain(|_, item| item.held.is_some());
    }

    /// The paths held back now.
    pub fn held(&self) -> impl Iterator<Item = Held<'_>> {
        self.seen.iter().filter_map(|(path, item)| {
            let hold = item.held.as_ref()?;
            Some(Held { path, why: &hold.why, since: item.first, flagged: hold.flagged })
        })
    }

    /// Since when `path` is quiet, while that is less than `settle`, or less than `max` and it was written to
    /// and not closed. For a file's look during a scan, before it is read.
    pub fn is_busy(&self, path: &TreePath, now: Instant) -> Option<Duration> {
        let item = self.fresh.get(path).or_else(|| self.seen.get(path))?;
        let age = now.saturating_duration_since(item.last);
        (age < self.settle || item.open && age < self.max).then_some(age)
    }

    /// Since when `path` is quiet, while that is less than `max` and it was written to and not closed.
    pub fn is_open(&self, path: &TreePath, now: Instant) -> Option<Duration> {
        let item = self.fresh.get(path).or_else(|| self.seen.get(path))?;
        let age = now.saturating_duration_since(item.last);
        (item.open && age < self.max).then_some(age)
    }

    fn hold(&self, path: &TreePath) -> Option<&Hold> {
        self.seen.get(path)?.held.as_ref()
    }
}

fn earlier(a: Option<Instant>, b: Instant) -> Option<Instant> {
    Some(a.map_or(b, |a| a.min(b)))
}

fn later(a: Option<Instant>, b: Instant) -> Option<Instant> {
    Some(a.map_or(b, |a| a.max(b)))
}

#[cfg(test)]
#[path = "settle_tests.rs"]
mod tests;
