//! `[health]`: what takes this node out of its load balancer.

use std::collections::BTreeSet;
use std::time::Duration;

use super::amount;
use super::problem::wrong;
use super::raw::Table;
use super::value;

const REFRESH_FAILURES: u64 = 3;
const STARTUP_GRACE: Duration = Duration::from_secs(10);

/// `[health]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// What counts as a fault of this node; that an operator drained it always does.
    pub drain_on: BTreeSet<Fault>,
    /// So many failed attempts in a row make [`Fault::Refresh`]; at least 1.
    pub refresh_failures: u64,
    /// A tree with `max-lag` whose source was not heard yet is at fault for so long after the start.
    pub startup_grace: Duration,
}

/// A kind of fault, by its word in `drain-on`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    /// More lag than the tree's `max-lag`.
    Lag,
    /// The source was not heard for longer than the tree's `max-contact-age`.
    ContactAge,
    /// The tree's disk or mount does not do what it should.
    Failed,
    /// Telling the local server failed again and again.
    Refresh,
    /// The local server was told and does not see the change.
    Verify,
    /// Somebody edited the tree here.
    Drift,
    /// A guard refused a plan here.
    Refused,
    /// An operator paused the tree here.
    Paused,
    /// Some paths are not in place.
    Incomplete,
    /// The source cannot be reached now.
    Disconnected,
    /// The node went back to the generation before.
    RolledBack,
    /// Nothing of the tree was ever completely applied here, and there were no files before.
    Empty,
}

impl Fault {
    /// All, with their words.
    pub const ALL: [(&str, Self); 12] = [
        ("lag", Self::Lag),
        ("contact-age", Self::ContactAge),
        ("failed", Self::Failed),
        ("refresh", Self::Refresh),
        ("verify", Self::Verify),
        ("drift", Self::Drift),
        ("refused", Self::Refused),
        ("paused", Self::Paused),
        ("incomplete", Self::Incomplete),
        ("disconnected", Self::Disconnected),
        ("rolled-back", Self::RolledBack),
        ("empty", Self::Empty),
    ];

    /// Its word.
    pub fn word(self) -> &'static str {
        Self::ALL.iter().find(|(_, fault)| *fault == self).map_or("", |(word, _)| word)
    }
}

impl Default for Health {
    /// Only the node's own faults: losing the source, a pause or a refused plan would drain the whole cluster at once.
    fn default() -> Self {
        Self {
            drain_on: [
                Fault::Lag,
                Fault::ContactAge,
                Fault::Failed,
                Fault::Refresh,
                Fault::Verify,
                Fault::Empty,
            ]
            .into(),
            refresh_failures: REFRESH_FAILURES,
            startup_grace: STARTUP_GRACE,
        }
    }
}

pub(super) fn health(t: &Table<'_>) -> Health {
    t.known("health");
    let default = Health::default();
    let fault = |text: &str| {
        let found = Fault::ALL.iter().find(|(word, _)| *word == text).map(|(_, fault)| *fault);
        let all = || Fault::ALL.map(|(word, _)| word).join(", ");
        found.ok_or_else(|| wrong(format!("`{text}` is no fault")).hint(format!("one of {}", all())))
    };
    let attempts = |v: &toml::de::DeValue<'_>| match value::count(v)? {
        0 => Err(wrong("must be at least 1").hint("leave \"refresh\" out of drain-on to ignore failures")),
        n => Ok(n),
    };
    Health {
        drain_on: t.list("drain-on", fault).map_or(default.drain_on, BTreeSet::from_iter),
        refresh_failures: t.read("refresh-failures", attempts).unwrap_or(default.refresh_failures),
        startup_grace: t.read("startup-grace", amount::duration).unwrap_or(default.startup_grace),
    }
}
