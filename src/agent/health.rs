//! Whether this node should take traffic, judged from what it knows of itself.
//!
//! Only the node's own faults count by default. The source gone, a pause or a refused plan meets all nodes of a
//! cluster at once: if that drained them, an outage of the deployment would become one of the service.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::orders::Ordered;
use crate::config::{Fault, Health, Tree};
use crate::disk::{boot_ms, wall_ms};
use crate::error::lock;
use crate::model::{Mark, NodeStatus, RefreshState, RoleName, State, TreeStatus, counted, counted_as};

/// A reason is cut here, in characters: it goes into one line of a load balancer's log.
const LONGEST: usize = 300;

/// What the node is judged by; shared by the agent and its trees.
#[derive(Debug)]
pub(super) struct Limits {
    /// As the configuration has it now.
    health: Mutex<Health>,
    /// An operator's order, which counts whatever is configured.
    drained: Mutex<Option<Ordered>>,
    /// When the agent started, boot time in ms.
    started: u64,
    /// Whether trees that a reload starts again were empty, by their paths.
    empty: Mutex<BTreeMap<PathBuf, bool>>,
    /// When trees were last started, which a reload does, too.
    trees_started: AtomicU64,
}

/// For how long, in ms.
#[derive(Clone, Copy, Debug)]
pub(super) struct Up {
    /// The agent runs.
    pub(super) agent: u64,
    /// The trees run at least; what one of them never heard it may have heard before that.
    pub(super) trees: u64,
}

impl Limits {
    pub(super) fn new(health: Health, drained: Option<Ordered>) -> Self {
        let (now, drained) = (boot_ms(), Mutex::new(drained));
        let empty = Mutex::default();
        Self { health: Mutex::new(health), drained, started: now, empty, trees_started: AtomicU64::new(now) }
    }

    /// Who drained the node, if anybody did.
    pub(super) fn drained(&self) -> Option<Mark> {
        let drained = lock(&self.drained);
        drained.as_ref().map(|by| by.mark(wall_ms()))
    }

    /// The node is drained, or is not any more.
    pub(super) fn set_drained(&self, by: Option<Ordered>) {
        *lock(&self.drained) = by;
    }

    /// Takes over a new configuration, for which trees are started now.
    pub(super) fn set(&self, health: Health) {
        self.trees_started.store(boot_ms(), Ordering::Relaxed);
        *lock(&self.health) = health;
    }

    /// A tree ends, and is perhaps started again.
    pub(super) fn ends(&self, tree: &Tree, last: &TreeStatus) {
        if let Some(empty) = last.nodes.first().and_then(|own| own.empty) {
            lock(&self.empty).insert(tree.path.clone(), empty);
        }
    }

    /// Whether a tree that is being started was empty when it ended.
    pub(super) fn was_empty(&self, tree: &Tree) -> Option<bool> {
        lock(&self.empty).get(&tree.path).copied()
    }

    /// Why the node takes no traffic because of this tree, now; see [`judge`].
    pub(super) fn faults(&self, tree: &Tree, own: &NodeStatus) -> Vec<String> {
        let mut faults: Vec<String> = self.drained().as_ref().map(drained).into_iter().collect();
        let health = lock(&self.health);
        faults.extend(judge(&health, tree, own, self.up()));
        faults
    }

    pub(super) fn up(&self) -> Up {
        let now = boot_ms();
        let trees = now.saturating_sub(self.trees_started.load(Ordering::Relaxed));
        Up { agent: now.saturating_sub(self.started), trees }
    }
}

/// Why the node takes no traffic because of this tree, one line each; empty when it may. `own` is the node's own row.
fn judge(health: &Health, tree: &Tree, own: &NodeStatus, up: Up) -> Vec<String> {
    let found = |fault: &Fault| why(*fault, health, tree, own, up);
    let reasons = health.drain_on.iter().filter_map(found);
    reasons.map(|reason| line(&format!("{}: {reason}", tree.name))).collect()
}

/// The reason that an operator gave, which counts for every tree.
fn drained(mark: &Mark) -> String {
    let reason = mark.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
    line(&format!("drained by {}{reason}", mark.who))
}

fn why(fault: Fault, health: &Health, tree: &Tree, own: &NodeStatus, up: Up) -> Option<String> {
    let said = || own.error.as_ref().map(|e| format!(": {}", e.what)).unwrap_or_default();
    let mirror = own.role == RoleName::Mirror;
    match fault {
        Fault::Lag => {
            let limit = ms(tree.max_lag?);
            match own.lag_ms {
                Some(lag) => over("lag", lag, "max-lag", limit),
                // after the grace a source that is away counts as such, not as lag
                None => (mirror && up.agent < ms(health.startup_grace))
                    .then(|| "the lag is not known yet: the source was not heard since the start".to_owned()),
            }
        }
        Fault::ContactAge if mirror => {
            let limit = ms(tree.max_contact_age?);
            over("contact-age", own.contact_age_ms.unwrap_or(up.trees), "max-contact-age", limit)
        }
        Fault::ContactAge => None,
        Fault::Failed => (own.state == State::Failed).then(|| format!("failed{}", said())),
        Fault::Refresh => {
            let refresh = own.refresh.as_ref()?;
            (refresh.failures >= health.refresh_failures).then(|| {
                let said = refresh.error.as_ref().map(|e| format!(": {}", e.what)).unwrap_or_default();
                format!("the refresh failed {}{said}", counted(refresh.failures, "time"))
            })
        }
        Fault::Verify => {
            let refresh = own.refresh.as_ref()?;
            (refresh.state == RefreshState::VerifyFailed).then(|| {
                let said = refresh.error.as_ref().map(|e| format!(": {}", e.what)).unwrap_or_default();
                format!("the server does not see the change{said}")
            })
        }
        Fault::Drift if own.drift > 0 => {
            Some(format!("{} edited here", counted_as(own.drift, "path", ("was", "were"))))
        }
        Fault::Drift => (own.state == State::Drift).then(|| format!("edited here{}", said())),
        Fault::Refused => (own.state == State::Refused || own.plan.is_some()).then(|| {
            let why = own.plan.as_ref().map(|p| format!(": {}", p.reason)).unwrap_or_default();
            format!("a plan was refused{why}")
        }),
        Fault::Paused => match &own.paused {
            Some(mark) => Some(format!("paused by {}", mark.who)),
            None => (own.state == State::Paused).then(|| "paused".to_owned()),
        },
        Fault::Incomplete => (own.state == State::Incomplete).then(|| format!("incomplete{}", said())),
        Fault::Disconnected => {
            (mirror && !own.connected).then(|| format!("no connection to the source{}", said()))
        }
        Fault::Empty if mirror => match own.empty {
            Some(false) => None,
            Some(true) => Some("nothing of it was ever completely applied here".to_owned()),
            // that says it better
            None if own.state == State::Failed && health.drain_on.contains(&Fault::Failed) => None,
            None => Some("it is not known yet whether anything was ever applied here".to_owned()),
        },
        Fault::Empty => None,
        Fault::RolledBack => (own.state == State::RolledBack).then(|| {
            let said = own.error.as_ref().map(|e| e.what.clone());
            said.unwrap_or_else(|| "rolled back to the generation before".to_owned())
        }),
    }
}

fn over(what: &str, is: u64, name: &str, limit: u64) -> Option<String> {
    // whole seconds, unless that would read as a contradiction
    let coarse = limit.is_multiple_of(1000) && is / 1000 > limit / 1000;
    let shown = |ms: u64| match coarse {
        true => format!("{} s", ms / 1000),
        false => format!("{} s", ms as f64 / 1000.0),
    };
    (is > limit).then(|| format!("{what} {} is over {name} {}", shown(is), shown(limit)))
}

fn ms(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// One line, of a bounded length.
fn line(text: &str) -> String {
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    let mut line: String = text.chars().take(LONGEST).map(plain).collect();
    if text.chars().nth(LONGEST).is_some() {
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::Config;
    use crate::model::{NodeId, RefreshStatus, RefusedPlan, Trouble};

    const TEXT: &str = "[node]\nid = \"b\"\n[tree.deployment]\npath = \"/srv/t\"\nrole = \"mirror\"\n\
        source = \"unix:/run/a.sock\"\nmax-lag = \"60s\"\nmax-contact-age = \"5min\"\n";

    fn tree() -> Tree {
        Config::parse(TEXT).config.unwrap().trees.remove(0)
    }

    fn up(ms: u64) -> Up {
        Up { agent: ms, trees: ms }
    }

    /// A mirror with nothing wrong.
    fn fine() -> NodeStatus {
        NodeStatus {
            state: State::Current,
            lag_ms: Some(0),
            contact_age_ms: Some(40),
            connected: true,
            consistent: true,
            empty: Some(false),
            ..NodeStatus::new(NodeId::new("b").unwrap(), RoleName::Mirror)
        }
    }

    fn trouble(what: &str) -> Option<Trouble> {
        Some(Trouble { what: what.into(), for_ms: 5 })
    }

    fn refresh(state: RefreshState, failures: u64, error: Option<Trouble>) -> NodeStatus {
        let refresh = RefreshStatus { state, action: Some("carbon".into()), attempts: 9, failures, error };
        NodeStatus { refresh: Some(refresh), ..fine() }
    }

    fn empty(state: State) -> NodeStatus {
        NodeStatus { state, empty: Some(true), ..fine() }
    }

    fn mark() -> Option<Mark> {
        Some(Mark { who: "ops (process 7, syncagent)".into(), reason: None, for_ms: 1 })
    }

    fn judged(own: &NodeStatus, up_s: u64) -> Vec<String> {
        judge(&Health::default(), &tree(), own, up(up_s * 1000))
    }

    #[test]
    fn what_drains_by_default() {
        let long = 3600;
        for (own, up_s, expected) in [
            (fine(), long, ""),
            (NodeStatus { lag_ms: Some(60_000), ..fine() }, long, ""),
            (NodeStatus { lag_ms: Some(75_300), ..fine() }, long, "lag 75 s is over max-lag 60 s"),
            (NodeStatus { lag_ms: Some(60_200), ..fine() }, long, "lag 60.2 s is over max-lag 60 s"),
            // not heard yet: out until the grace has passed, and then the source is away
            (
                NodeStatus { lag_ms: None, contact_age_ms: None, ..fine() },
                9,
                "the lag is not known yet: the source was not heard since the start",
            ),
            (NodeStatus { lag_ms: None, contact_age_ms: None, ..fine() }, 10, ""),
            (
                NodeStatus { lag_ms: None, contact_age_ms: None, ..fine() },
                301,
                "contact-age 301 s is over max-contact-age 300 s",
            ),
            (
                NodeStatus { contact_age_ms: Some(400_000), ..fine() },
                long,
                "contact-age 400 s is over max-contact-age 300 s",
            ),
            (
                NodeStatus { state: State::Failed, error: trouble("cannot open /srv/t"), ..fine() },
                long,
                "failed: cannot open /srv/t",
            ),
            (refresh(RefreshState::Idle, 0, None), long, ""),
            (refresh(RefreshState::Running, 0, None), long, ""),
            // it was told, and is asked
            (refresh(RefreshState::Verifying, 0, trouble("404")), long, ""),
            (refresh(RefreshState::Failing, 2, trouble("500")), long, ""),
            (refresh(RefreshState::Failing, 3, trouble("500")), long, "the refresh failed 3 times: 500"),
            (refresh(RefreshState::Running, 4, trouble("500")), long, "the refresh failed 4 times: 500"),
            (
                refresh(RefreshState::VerifyFailed, 1, trouble("404")),
                long,
                "the server does not see the change: 404",
            ),
            // whatever else is so: also with the source away after the grace, paused, refused, incomplete
            (empty(State::Fetching), 1, "nothing of it was ever completely applied here"),
            (
                NodeStatus {
                    lag_ms: None,
                    contact_age_ms: None,
                    connected: false,
                    ..empty(State::Disconnected)
                },
                11,
                "nothing of it was ever completely applied here",
            ),
            (empty(State::Refused), long, "nothing of it was ever completely applied here"),
            (
                NodeStatus { paused: mark(), ..empty(State::Paused) },
                long,
                "nothing of it was ever completely applied here",
            ),
            (empty(State::Incomplete), long, "nothing of it was ever completely applied here"),
            (
                NodeStatus { empty: None, state: State::Starting, ..fine() },
                1,
                "it is not known yet whether anything was ever applied here",
            ),
            (
                NodeStatus { empty: None, state: State::Failed, error: trouble("it hangs"), ..fine() },
                long,
                "failed: it hangs",
            ),
            // files that the agent did not put there
            (NodeStatus { state: State::Refused, plan: None, ..fine() }, long, ""),
        ] {
            let reasons = judged(&own, up_s);
            let expected: Vec<String> =
                (!expected.is_empty()).then(|| format!("deployment: {expected}")).into_iter().collect();
            assert_eq!(reasons, expected, "{own:?}");
        }
    }

    /// Each with the word that makes it a fault all the same.
    #[test]
    fn what_meets_the_whole_cluster_drains_only_where_that_is_configured() {
        let plan = RefusedPlan { id: "0123".into(), reason: "900 of 1000 files".into(), lost: 900 };
        for (word, own) in [
            ("disconnected", NodeStatus { state: State::Disconnected, connected: false, ..fine() }),
            ("disconnected", NodeStatus { state: State::Fetching, connected: false, ..fine() }),
            ("paused", NodeStatus { paused: mark(), ..fine() }),
            ("paused", NodeStatus { state: State::Paused, ..fine() }),
            ("refused", NodeStatus { state: State::Refused, plan: Some(plan), ..fine() }),
            ("drift", NodeStatus { state: State::Drift, drift: 3, ..fine() }),
            ("incomplete", NodeStatus { state: State::Incomplete, error: trouble("2 paths"), ..fine() }),
            ("rolled-back", NodeStatus { state: State::RolledBack, error: trouble("rolled back"), ..fine() }),
        ] {
            assert_eq!(judged(&own, 3600), Vec::<String>::new(), "{word}");
            let fault = Fault::ALL.iter().find(|(w, _)| *w == word).unwrap().1;
            let health = Health { drain_on: [fault].into(), ..Health::default() };
            assert_eq!(judge(&health, &tree(), &own, up(3_600_000)).len(), 1, "{word}");
        }
    }

    #[test]
    fn no_limit_no_fault_and_a_word_left_out_is_none() {
        let late = NodeStatus { lag_ms: Some(u64::MAX), contact_age_ms: Some(u64::MAX), ..fine() };
        let unlimited = Tree { max_lag: None, max_contact_age: None, ..tree() };
        assert_eq!(judge(&Health::default(), &unlimited, &late, up(1)), Vec::<String>::new());
        let unheard = NodeStatus { lag_ms: None, contact_age_ms: None, ..fine() };
        assert_eq!(judge(&Health::default(), &unlimited, &unheard, up(1)), Vec::<String>::new());
        let nothing = Health { drain_on: [].into(), ..Health::default() };
        let failed = NodeStatus { state: State::Failed, ..late };
        assert_eq!(judge(&nothing, &tree(), &failed, up(1)), Vec::<String>::new());
        let source = NodeStatus { role: RoleName::Source, lag_ms: None, contact_age_ms: None, ..fine() };
        let unknown = NodeStatus { empty: None, state: State::Failed, ..fine() };
        let only = Health { drain_on: [Fault::Empty].into(), ..Health::default() };
        assert_eq!(judge(&only, &tree(), &unknown, up(1)).len(), 1, "nothing else says it");
        let source = NodeStatus { empty: None, ..source };
        for up_s in [1, 4000] {
            assert_eq!(judged(&source, up_s), Vec::<String>::new(), "a source hears nobody");
        }
    }

    /// A tree that a reload has just started has heard nobody, and is no worse for it.
    #[test]
    fn a_reload_of_an_agent_that_runs_for_long_is_no_fault() {
        let unheard = NodeStatus { lag_ms: None, contact_age_ms: None, ..fine() };
        let judged = |trees| judge(&Health::default(), &tree(), &unheard, Up { agent: 86_400_000, trees });
        assert_eq!(judged(50), Vec::<String>::new());
        assert_eq!(judged(301_000), ["deployment: contact-age 301 s is over max-contact-age 300 s"]);
    }

    #[test]
    fn a_reason_is_one_line_of_bounded_length() {
        let own = NodeStatus { state: State::Failed, error: trouble(&"x\ny".repeat(400)), ..fine() };
        let reasons = judged(&own, 3600);
        assert_eq!(reasons[0].chars().count(), LONGEST + 1);
        assert!(!reasons[0].contains('\n'));
        let said = drained(&Mark { reason: Some("kernel\nupdate".into()), ..mark().unwrap() });
        assert_eq!(said, "drained by ops (process 7, syncagent): kernel update");
        let sub = Tree { max_lag: Some(Duration::from_millis(500)), ..tree() };
        let own = NodeStatus { lag_ms: Some(1700), ..fine() };
        let said = judge(&Health::default(), &sub, &own, up(1));
        assert_eq!(said, ["deployment: lag 1.7 s is over max-lag 0.5 s"]);
    }
}
